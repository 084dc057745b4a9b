"""The loop of one project: the watchers tick, each at its pace; the executor applies what they decide."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import structlog

from yolo_supervisor import __version__
from yolo_supervisor.actions import notes
from yolo_supervisor.actions.agents import ShowMessage
from yolo_supervisor.actions.base import NO_EVIDENCE, Note
from yolo_supervisor.clock import Backoff
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog, FdLimitLog
from yolo_supervisor.daemon.executor import RECHECK_S, CrashReports, Executor, Progress, Result
from yolo_supervisor.daemon.file_events import Wakeup
from yolo_supervisor.daemon.messages import Messages
from yolo_supervisor.daemon.salvage import WorkSaver
from yolo_supervisor.daemon.starts import Starter, Starts
from yolo_supervisor.daemon.status_files import REPORT_TICKS, HookNotes, StatusFiles
from yolo_supervisor.daemon.terminations import Terminations
from yolo_supervisor.daemon.wiring import HostServices, ProjectParts
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import event_log
from yolo_supervisor.models import iso
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Store
from yolo_supervisor.watchers.base import Watcher

RETRY_S, RETRY_MAX_S = 0.05, 1.0
"""First and longest pause before the next tick after one that met another process's lock, in seconds; it doubles. The
client holds a lock for a millisecond."""

TICK_LIMIT_S = 30.0
"""A tick that takes longer hangs: it is cancelled, and the watcher ticks again at its interval."""


@dataclass
class WatcherHealth:
    """The health of one watcher: its last tick, its last error, its deadline."""

    last_tick_at: datetime | None = None
    last_error: str | None = None
    fresh_until_s: float = 0.0
    """Monotonic; after it the watcher counts as stuck."""


class Runner:
    """The loop of one project. Its failures reach no other project."""

    def __init__(
        self,
        project: Path,
        config: Config,
        services: HostServices,
        environment: Mapping[str, str],
        allow_root: bool = False,
    ) -> None:
        self.project = project
        self.config = config
        self.services = services
        size = config.journal.size_mib * 2**20
        self.store = Store(project, services.clock, journal_size=size, allow_root=allow_root)
        self.parts = ProjectParts(self.store, services, config, environment)
        self.watchers = self.parts.watchers
        self.wakeups = {watcher.name: Wakeup() for watcher in self.watchers}
        self.watcher_health = {watcher.name: WatcherHealth() for watcher in self.watchers}
        self.started_at = services.clock.now()
        log = structlog.get_logger().bind(project=str(project))
        alerts = AlertLog(log)
        self._failures = FailureLog(log)
        wake_agents = self.wakeups[self.parts.agents.name].ring
        reports = CrashReports(self.store, self.parts.investigator, self._failures, wake_agents)
        terminations = Terminations(
            config, self.store, services.processes, services.scanner, self.parts.registry.is_foreign,
            self.parts.objections, alerts, self._failures, wake_agents,
        )  # fmt: skip
        starter = Starter(
            self.store,
            services.processes,
            services.scanner,
            self.parts.registry,
            services.tmux,
            self.parts.start_ledger,
            os.getpid(),
        )
        starts = Starts(
            config, starter, services.scanner, services.processes, self.parts.agents.restart_objection, alerts,
            self._failures, wake_agents,
        )  # fmt: skip
        work_saver = WorkSaver(
            self.store, self.parts.saved_work, self.parts.investigator, alerts, self._failures, wake_agents
        )
        messages = Messages(self._message_shown)
        self.executor = Executor(
            config, self.store, services.clock, self.parts.keepers, reports, terminations, starts, work_saver,
            messages, alerts, self._failures,
        )  # fmt: skip
        self._fd_limit = FdLimitLog(log)
        self._status_files = StatusFiles(self.store, self._failures)
        self._hook_notes = HookNotes(self.store.paths.hooks, self.parts.registry)
        self._retries = {watcher.name: Backoff(RETRY_S, RETRY_MAX_S) for watcher in self.watchers}
        self._wakes_at_s: dict[str, float] = {}
        """When (monotonic) a watcher is woken next because of what its last tick met."""
        self._after_tick = {
            self.parts.agents.name: self._after_agents_tick,
            self.parts.leases.name: self._after_leases_tick,
        }
        self._agents_ticked = anyio.Event()
        self._reported_s = float("-inf")
        self._tasks: anyio.abc.TaskGroup | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the store ready and finish what a crash interrupted. OSError, Refused, Busy if that cannot be."""
        self.store.open()
        recovery = self.store.recover() if self.config.mode == "heal" else None
        if recovery:
            evidence = {
                "finished": list(recovery.finished),
                "overtaken": list(recovery.overtaken),
                "damage": list(recovery.damage),
                "torn_bytes": recovery.torn,
            }
            reason = "the last run was cut off in the middle"
            self._note(notes.daemon("recovered", key="journal", reason=reason, evidence=evidence))
        self._hook_notes.prune()

    async def run(self) -> None:
        """Watch for ever."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self.executor.start(tasks)
            for number, watcher in enumerate(self.watchers):
                tasks.start_soon(self._watch, watcher, 0.05 * number)
            tasks.start_soon(self._wake_at_deaths)

    def close(self) -> None:
        self.parts.close()
        self.store.close()

    def reload(self, config: Config) -> None:
        """Continue with another configuration; what is under way continues as it was begun."""
        self.config = config
        self.parts.configure(config)
        self.executor.configure(config)
        for wakeup in self.wakeups.values():
            wakeup.ring()

    def daemon_note(self, verb: notes.DaemonVerb, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE) -> None:
        """Write an event of the daemon's life into this project's journal."""
        self._note(notes.daemon(verb, reason=reason, evidence=evidence))

    def _note(self, note: Note) -> None:
        try:
            self.store.note(note, "daemon")
        except (OSError, Busy) as error:
            self._failures.failed("journal", error)
        else:
            self._failures.recovered("journal")

    def edges(self) -> Iterator[tuple[Path, Wakeup]]:
        """The folders in which a change is a reason to tick at once, each with the wakeup that it rings."""
        paths, parts = self.store.paths, self.parts
        yield from ((folder, self.wakeups[parts.state.name]) for folder in parts.state.folders())
        yield from ((folder, self.wakeups[parts.agents.name]) for folder in (paths.agents, paths.hooks))
        yield paths.locks, self.wakeups[parts.leases.name]
        logs = (paths.planning / log.parent for log in (event_log.EVENT_LOG, event_log.METRICS))
        yield from (
            (folder, self.wakeups[parts.flags.name]) for folder in (paths.flags, paths.planning, *logs, paths.locks)
        )

    def lock_edges(self) -> Iterator[tuple[Path, Wakeup]]:
        """The same for locks of git's: their holders have to be seen at once."""
        yield from ((folder, self.wakeups[self.parts.leases.name]) for folder in self.parts.locks.folders())

    @property
    def terminating(self) -> bool:
        """Whether a termination is under way."""
        return self.executor.terminating

    def stuck(self) -> list[str]:
        """The watchers whose tick is long overdue."""
        now_s = time.monotonic()
        return [name for name, health in self.watcher_health.items() if 0 < health.fresh_until_s < now_s]

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _watch(self, watcher: Watcher, delay_s: float) -> None:
        wakeup, health = self.wakeups[watcher.name], self.watcher_health[watcher.name]
        after_tick = self._after_tick.get(watcher.name)
        await anyio.sleep(delay_s)
        while True:
            health.fresh_until_s = time.monotonic() + TICK_LIMIT_S + 3 * watcher.interval_s
            wakeup.rest()
            await self._tick(watcher, health)
            if after_tick is not None:
                after_tick()
            with anyio.move_on_after(watcher.rest_s()):
                await wakeup.wait()

    async def _tick(self, watcher: Watcher, health: WatcherHealth) -> None:
        """Run one tick of a watcher and apply its remediations. An error costs this one tick."""
        try:
            with anyio.fail_after(TICK_LIMIT_S):
                remediations = await watcher.tick(self.services.clock.now())
            results = self.executor.apply(watcher.name, remediations)
            self._report_at_times()
        except OSError as error:
            health.last_error = str(error) or f"no answer within {TICK_LIMIT_S:g} s"  # a time-out has no text
            self._failures.failed("watcher", error, message=health.last_error, watcher=watcher.name)
        except Exception as error:  # noqa: BLE001 - the one place: a failed tick must not end the watch
            health.last_error = f"{type(error).__name__}: {error}"
            self._failures.failed("watcher", error, message=health.last_error, exc_info=True, watcher=watcher.name)
        else:
            health.last_error = next((result.error for result in results if result.error), None)
            self._failures.recovered("watcher", watcher=watcher.name)
            self._pace(watcher, results)
        is_first, health.last_tick_at = health.last_tick_at is None, self.services.clock.now()
        if is_first:
            self.report()

    def _pace(self, watcher: Watcher, results: Sequence[Result]) -> None:
        """Tick again soon where a remediation waits or is left, or failed for a cause that may end at any moment."""
        retry = self._retries[watcher.name]
        left = any(result.progress is Progress.LEFT for result in results)
        waits = any(result.progress is Progress.WAITS for result in results)
        if left or not waits:
            retry.reset()
        if self._tasks is not None and (left or waits or any(result.may_end for result in results)):
            at_s = time.monotonic() + (retry.next_s() if left or waits else RECHECK_S)
            if at_s < self._wakes_at_s.get(watcher.name, float("inf")):
                self._wakes_at_s[watcher.name] = at_s
                self._tasks.start_soon(self._wake_at, watcher.name, at_s)

    async def _wake_at(self, name: str, at_s: float) -> None:
        await anyio.sleep_until(at_s)  # now, if that is over
        if self._wakes_at_s.get(name) == at_s:
            del self._wakes_at_s[name]
        self.wakeups[name].ring()

    async def _wake_at_deaths(self) -> None:
        while True:
            await self.parts.deaths.wait()
            ticked = self._agents_ticked
            self.wakeups[self.parts.agents.name].ring()
            await ticked.wait()

    def _after_agents_tick(self) -> None:
        """Report agents that cannot be watched, and let ``_wake_at_deaths`` wait for the next death.

        The trees of new agents are saved at once: after a crash the next supervisor needs them.
        """
        if self.services.scanner.catch_up():
            self.write_trees()
        self._status_files.keep("restarts", self.parts.agents.save_restarts)
        self._fd_limit.update(bool(self.parts.deaths.left_out), self.parts.agents.interval_s)
        self._agents_ticked.set()
        self._agents_ticked = anyio.Event()

    def _after_leases_tick(self) -> None:
        self._status_files.write_seen_locks(self.parts.locks.seen)

    def _message_shown(self, message: ShowMessage) -> None:
        self.parts.sessions.message_shown(message)
        self.executor.save(self.parts.sessions.name)

    # -- status files --------------------------------------------------------------------------------------------

    def write_trees(self) -> None:
        """Save the process trees of the agents."""
        self._status_files.write_trees(self.parts.agents.trees(), self.parts.agents.descents())

    def _report_at_times(self) -> None:
        if time.monotonic() - self._reported_s >= REPORT_TICKS * min(watcher.interval_s for watcher in self.watchers):
            self._reported_s = time.monotonic()
            self._hook_notes.prune()
            self.report()

    def report(self) -> None:
        """Write down who supervises the project, and how the watchers are."""
        health = [(watcher, self.watcher_health[watcher.name]) for watcher in self.watchers]
        watchers = tuple(
            {
                "name": watcher.name,
                "interval_s": watcher.interval_s,
                "last_tick_at": iso(its.last_tick_at) if its.last_tick_at else None,
                "last_error": its.last_error,
            }
            for watcher, its in health
        )
        me = self.services.processes.identify_self()
        self._status_files.write_holder(
            own_files.Holder(me, iso(self.started_at), self.config.mode, watchers, __version__)
        )

    def remove_report(self) -> None:
        """Remove the report at a clean end."""
        self._status_files.remove_holder()
