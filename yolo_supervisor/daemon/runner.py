"""The loop of one project: watchers decide in turn; their remediations are applied and logged here only."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import structlog

from yolo_supervisor import __version__
from yolo_supervisor.actions import notes
from yolo_supervisor.actions.agents import Terminate, WriteCrashReport
from yolo_supervisor.actions.base import NO_EVIDENCE, AlertCode, Edit, Escalate, Note
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.actions.state import SaveVersion
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.clock import Clock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.daemon.wiring import HostServices, ProjectParts
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import read_part
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import ProcessId, iso
from yolo_supervisor.store import crash_reports
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Outcome, Store, Unwritable
from yolo_supervisor.system.processes import Ending
from yolo_supervisor.watchers.base import KeepsObservations, Remediation, Watcher

RETRY_S = 0.05
"""First pause before a retry of a change that met another process's lock; the client holds one for a millisecond."""

NOTES, NOTE_SIZE = 1000, 64 * 1024
"""How many notes of hooks are looked through at once, and how much of one, in bytes."""

REST_S = 30.0
"""How long a document is left alone that could not be written: every try is two lines in the journal."""

TICK_LIMIT_S = 30.0
"""A look that takes longer has hung: it costs its watcher this tick, and the daemon nothing."""

REPORT_LOOKS = 6
"""Every how many looks we write down, for ``status``, how the watchers fare."""


class Wakeup:
    """Wakes a watcher before its time. An edge only wakes: it never says what for."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    def rest(self) -> None:
        """From now on a new ring is needed."""
        self._event = anyio.Event()


@dataclass
class WatcherHealth:
    """The health of one watcher: its last tick, its last error, its deadline."""

    last_tick_at: datetime | None = None
    last_error: str | None = None
    fresh_until_s: float = 0.0
    """Monotonic; after it the watcher counts as stuck."""


class RateLimiter:
    """Limits actions to a number per second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._taken: deque[float] = deque()

    def take(self, per_s: float) -> bool:
        """Whether one more may be done now."""
        now_s = self._clock.monotonic()
        while self._taken and now_s - self._taken[0] >= max(1.0, 1.0 / per_s):
            self._taken.popleft()
        if len(self._taken) >= max(1, int(per_s)):
            return False
        self._taken.append(now_s)
        return True


class Runner:
    """The loop of one project: asks the watchers, applies their remediations. Its failures reach no other project."""

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
        parts = ProjectParts(self.store, services, lambda: self.config, environment)
        self.deaths, self.registry, self.investigator = parts.deaths, parts.registry, parts.investigator
        self.agents, self.tasks, self.state = parts.agents, parts.tasks, parts.state
        self.sessions, self.leases, self.flags = parts.sessions, parts.leases, parts.flags
        self.watchers = parts.watchers
        self.wakeups = {watcher.name: Wakeup() for watcher in self.watchers}
        self.watcher_health = {watcher.name: WatcherHealth() for watcher in self.watchers}
        self.started_at = services.clock.now()
        self._rate_limiter = RateLimiter(services.clock)
        self._log = structlog.get_logger().bind(project=str(project))
        self._alerts = AlertLog(self._log)
        self._failures = FailureLog(self._log)
        self._resting: dict[tuple[str, str], float] = {}
        """Until when (monotonic) a remedy is left alone that could not be carried out."""
        self._retry_s = {watcher.name: RETRY_S for watcher in self.watchers}
        self._terminating: set[str] = set()
        self._filing: set[str] = set()
        self._notes: list[str] = []
        """The names of the hooks' notes that are still to be looked at, the last ones first."""
        self._begun: dict[str | None, list[Path]] = {}
        """The notes of subagents' starts, until that of the end is met."""
        self._report_lock = anyio.Lock()
        self._given_up: set[tuple[ProcessId, ...]] = set()
        self._looked = anyio.Event()
        self._crowded = False
        """Whether there are more agents than descriptors to watch them by."""
        self._reported_s = float("-inf")
        self._written_trees: Mapping[ProcessId, Any] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the store ready and finish what a crash interrupted. OSError, Refused, Busy if that cannot be."""
        self.store.open()
        recovery = self.store.recover() if self.config.mode == "heal" else None
        if recovery:
            what = {
                "finished": list(recovery.finished),
                "overtaken": list(recovery.overtaken),
                "damage": list(recovery.damage),
                "torn_bytes": recovery.torn,
            }
            self._carry_out_note(
                notes.daemon("recovered", key="journal", reason="the last run was cut off in the middle", evidence=what)
            )
        self._prune_notes()

    async def run(self) -> None:
        """Watch for ever."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for number, watcher in enumerate(self.watchers):
                tasks.start_soon(self._watch, watcher, 0.05 * number)
            tasks.start_soon(self._wake_at_deaths)

    def close(self) -> None:
        self.deaths.close()
        self.investigator.close()
        self.store.close()

    def reload(self, config: Config) -> None:
        """Go on under another configuration; what is under way goes on as it was begun."""
        self.config = config
        self.wake()

    def wake(self) -> None:
        for wakeup in self.wakeups.values():
            wakeup.ring()

    def daemon_note(self, verb: notes.DaemonVerb, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE) -> None:
        """Write a turn of the daemon's own life into this project's journal."""
        self._carry_out_note(notes.daemon(verb, reason=reason, evidence=evidence))

    def edges(self) -> Iterator[tuple[Path, Wakeup]]:
        """The folders in which a change is a reason to look at once, and who is woken by it."""
        paths = self.store.paths
        yield from ((folder, self.wakeups[self.state.name]) for folder in self.state.folders())
        yield from ((folder, self.wakeups[self.agents.name]) for folder in (paths.agents, paths.hooks))
        yield paths.planning / ".locks", self.wakeups[self.leases.name]
        for name in (paths.folder / "flags", "", ".events", ".metrics", ".locks"):
            yield paths.planning / name, self.wakeups[self.flags.name]

    @property
    def terminating(self) -> bool:
        """Whether a process is being given its grace period now."""
        return bool(self._terminating)

    def stuck(self) -> list[str]:
        """The watchers that have not finished a look for far too long."""
        now_s = time.monotonic()
        return [
            name
            for name, health_of_watcher in self.watcher_health.items()
            if 0 < health_of_watcher.fresh_until_s < now_s
        ]

    # -- the loop ------------------------------------------------------------------------------------------------

    async def _watch(self, watcher: Watcher, delay_s: float) -> None:
        wakeup, health_of_watcher = self.wakeups[watcher.name], self.watcher_health[watcher.name]
        await anyio.sleep(delay_s)
        while True:
            health_of_watcher.fresh_until_s = time.monotonic() + TICK_LIMIT_S + 3 * watcher.interval_s
            wakeup.rest()
            await self._turn(watcher, health_of_watcher)
            if watcher is self.agents:
                self._log_fd_limit()
                self._looked.set()
                self._looked = anyio.Event()
            with anyio.move_on_after(watcher.rest_s()):
                await wakeup.wait()

    async def _wake_at_deaths(self) -> None:
        while True:
            await self.deaths.wait()
            looked = self._looked
            self.wakeups[self.agents.name].ring()
            await looked.wait()

    async def _turn(self, watcher: Watcher, health_of_watcher: WatcherHealth) -> None:
        """Run one tick of a watcher and apply its remediations. An error costs this one tick."""
        try:
            with anyio.fail_after(TICK_LIMIT_S):
                remediations = await watcher.tick(self.services.clock.now())
            present: set[tuple[object, ...]] = set()
            done = [self._save_observations(watcher)] if isinstance(watcher, KeepsObservations) else []
            done += [self._try(watcher, remediation, present) for remediation in remediations]
            self._alerts.resolve(watcher.name, present)
            self._report()
        except OSError as error:
            health_of_watcher.last_error = str(error)
            self._failures.failed("watcher", error, watcher=watcher.name)
        except Exception as error:  # noqa: BLE001 - the one place: a failed look must not end the watch
            health_of_watcher.last_error = f"{type(error).__name__}: {error}"
            self._failures.failed(
                "watcher", error, message=health_of_watcher.last_error, exc_info=True, watcher=watcher.name
            )
        else:
            health_of_watcher.last_error = next((why for why in done if why), None)
            self._failures.recovered("watcher", watcher=watcher.name)
            self._pace(watcher, "" in done)
        health_of_watcher.last_tick_at = self.services.clock.now()

    def _pace(self, watcher: Watcher, busy: bool) -> None:
        """Tick again soon where another process held a lock; the pause doubles while it lasts."""
        if not busy:
            self._retry_s[watcher.name] = RETRY_S
            return
        pause_s = self._retry_s[watcher.name]
        self._retry_s[watcher.name] = min(2 * pause_s, 1.0)

        async def later() -> None:
            await anyio.sleep(pause_s)
            self.wakeups[watcher.name].ring()

        if self._tasks is not None:
            self._tasks.start_soon(later)

    def _save_observations(self, watcher: KeepsObservations) -> str | None:
        """Store what a watcher observed: None if that is done, "" if it met a lock, else the error."""
        try:
            saved = watcher.save_observations()
        except (OSError, Refused) as error:
            self._failures.failed("status_file", error, file="flags")
            return str(error)
        if not saved:
            return ""
        self._failures.recovered("status_file", file="flags")
        return None

    # -- carrying out --------------------------------------------------------------------------------------------

    def _try(self, watcher: Watcher, remediation: Remediation, present: set[tuple[object, ...]]) -> str | None:
        """Apply one remediation: None if it is done, "" if it met a lock, else the error."""
        last = remediation[-1]
        resting = (last.kind, last.key)
        if time.monotonic() < self._resting.get(resting, 0.0):
            return self._failures.message("action", kind=last.kind, key=last.key)
        try:
            done = self._apply(watcher, remediation, present)
        except (OSError, Refused, Busy) as error:
            if isinstance(error, Unwritable):
                self._resting[resting] = time.monotonic() + REST_S
            self._failures.failed("action", error, kind=last.kind, key=last.key)
            return str(error)
        if not done:
            return ""  # a held lock says nothing about the earlier error, so the error stays reported
        self._failures.recovered("action", kind=last.kind, key=last.key)
        self._resting.pop(resting, None)
        return None

    def _apply(self, watcher: Watcher, remediation: Remediation, present: set[tuple[object, ...]]) -> bool:
        """Apply the steps in order; False if one met a lock, so that the rest has to wait."""
        for action in remediation:
            name = action.identity
            if self.config.mode == "observe" or isinstance(action, Note):
                present.add(name)
                if self._alerts.is_new(watcher.name, action):
                    prefix = "would_" if self.config.mode == "observe" else ""
                    self.store.note(action, watcher.name, prefix)
                    self._alerts.remember(watcher.name, action)
                    self._alerts.applied(action, prefix)
            elif isinstance(action, Requeue) and not self._rate_limiter.take(self.config.tasks.requeues_per_s):
                return False  # not all of it in one breath
            elif isinstance(action, Edit):
                outcome = self.store.commit(action, watcher.name)
                if outcome is Outcome.BUSY:
                    return False
                if outcome is Outcome.DONE:
                    self._alerts.applied(action)
            elif isinstance(action, BreakLock):
                if self.store.break_lock(action, watcher.name) is Outcome.DONE:
                    self._alerts.applied(action)
            elif isinstance(action, SaveVersion):
                self.store.keep(action.path, action.data)
            elif isinstance(action, WriteCrashReport):
                self._start_filing(action)
            elif isinstance(action, Terminate):
                self._start_terminating(watcher, action)
        return True

    def _start_filing(self, action: WriteCrashReport) -> None:
        """Reports are written when all tasks of this look have been given back, one at a time: each takes some ms."""
        if action.report.ident in self._filing:
            return
        self._filing.add(action.report.ident)
        if self._tasks is None:
            self._file(action)
        else:
            self._tasks.start_soon(self._file_later, action)

    async def _file_later(self, action: WriteCrashReport) -> None:
        async with self._report_lock:
            await anyio.sleep(0)
            self._file(action)
        self.wakeups[self.agents.name].ring()

    def _file(self, action: WriteCrashReport) -> None:
        """Save a crash report; a failure is logged and stops nothing."""
        try:
            crash_reports.save(self.store.disk, self.store.paths.crashes, action.report)
        except Exception as error:  # noqa: BLE001 - a failing crash report must not block recovery
            self._failures.failed("crash_report", error)
        else:
            self._failures.recovered("crash_report")
        finally:
            self.investigator.report_written(action.report.ident)
            self._filing.discard(action.report.ident)

    def _start_terminating(self, watcher: Watcher, action: Terminate) -> None:
        roots = tuple(root for root in action.roots if root not in self.services.processes.stubborn)
        if action.key in self._terminating or not roots or action.roots in self._given_up:
            return
        assert self._tasks is not None
        self._terminating.add(action.key)
        self._tasks.start_soon(self._terminate, watcher, action)

    async def _terminate(self, watcher: Watcher, action: Terminate) -> None:
        try:
            begun = self.store.begin(action, watcher.name)  # what cannot be written down is not done
            ending = await self.services.processes.terminate(
                action.roots, action.grace_s, lambda: self._objection(watcher, action), lambda: self._spared(action)
            )
            while not self._record_ending(watcher, action, begun, ending):
                await anyio.sleep(1.0)  # it is done: it has to be written down, however long that takes
        except (OSError, Busy, Refused) as error:
            self._failures.failed("termination", error, key=action.key)
        finally:
            self._terminating.discard(action.key)
            self.wakeups[self.agents.name].ring()

    async def _objection(self, watcher: Watcher, action: Terminate) -> str | None:
        if self.config.mode == "observe":
            return "only observing now"
        try:
            return await watcher.objection(action)
        except Exception as error:  # noqa: BLE001 - a look that fails is no evidence, whatever made it fail
            return f"it could not be looked at again: {error}"

    def _spared(self, action: Terminate) -> set[ProcessId]:
        """Every other agent that anybody knows of, by a look at the processes of this moment."""
        self.services.scanner.sample()
        return {*self.services.scanner.agents, *self.services.scanner.tracked} - set(action.roots)

    def _record_ending(self, watcher: Watcher, action: Terminate, begun: int, ending: Ending) -> bool:
        """Whether the result of the termination is in the journal."""
        try:
            self._journal_ending(watcher, action, begun, ending)
        except (OSError, Busy) as error:
            self._failures.failed("termination", error, key=action.key)
            return False
        self._failures.recovered("termination", key=action.key)
        return True

    def _journal_ending(self, watcher: Watcher, action: Terminate, begun: int, ending: Ending) -> None:
        evidence: dict[str, Any] = {
            "terminated": [p.pid for p in ending.terminated],
            "killed": [p.pid for p in ending.killed],
            "survived": [p.pid for p in ending.survived],
            "refused": {str(p.pid): refusal.text for p, refusal in ending.refused.items()},
        }
        evidence = {key: value for key, value in evidence.items() if value}
        if ending.spared:
            evidence["spared"] = ending.spared
        if ending.terminated or ending.killed or ending.survived:
            self.store.end(begun, action, watcher.name, evidence)
            self._alerts.applied(action, "", **evidence)
        else:
            self.store.abandon(begun, ending.spared or "there was nothing left to signal")
        if ending.survived or ending.refused:
            self._given_up.add(action.roots)
            self.services.processes.stubborn.update(ending.refused)  # a person is told below: nobody waits for them
            pids = sorted(p.pid for p in (*ending.survived, *ending.refused))
            what = f"{action.key}: processes {pids} were not signalled or did not end: end them by hand if they must go"
            code = AlertCode.PROCESSES_LEFT
            note = Escalate(kind="agent", code=code, key=action.key, reason=what, evidence=evidence)
            self.store.note(note, watcher.name)
            self._alerts.applied(note)

    def _carry_out_note(self, action: Note) -> None:
        try:
            self.store.note(action, "daemon")
        except (OSError, Busy) as error:
            self._failures.failed("journal", error)
        else:
            self._failures.recovered("journal")

    # -- descriptors ---------------------------------------------------------------------------------------------

    def _log_fd_limit(self) -> None:
        crowded = bool(self.deaths.left_out)
        if crowded and not self._crowded:
            late_s = self.agents.interval_s
            error = f"there are too few to watch all agents: some deaths are seen up to {late_s:g} s later"
            self._log.warning("fd_limit_reached", error=f"{error}; raise LimitNOFILE=, or ulimit -Hn")
        elif self._crowded and not crowded:
            self._log.info("fd_limit_cleared")
        self._crowded = crowded

    # -- what is kept beside the journal (observations: a power cut may have them) -----------------------------------

    def keep_trees(self) -> None:
        """Save the process trees of the agents: after a crash the next supervisor needs them."""
        trees = self.agents.trees()
        if trees == self._written_trees:
            return
        if self._observe(self.store.paths.trees, own_files.dump_trees(trees)):
            self._written_trees = trees

    def _report(self) -> None:
        if time.monotonic() - self._reported_s >= REPORT_LOOKS * min(watcher.interval_s for watcher in self.watchers):
            self._reported_s = time.monotonic()
            self._prune_notes()
            self.report()

    def report(self) -> None:
        """Write down who supervises the project and how the watchers fare."""
        me = self.services.processes.identify_self()
        watchers = tuple(
            {
                "name": watcher.name,
                "interval_s": watcher.interval_s,
                "last_tick_at": iso(health_of_watcher.last_tick_at)
                if (health_of_watcher := self.watcher_health[watcher.name]).last_tick_at
                else None,
                "last_error": health_of_watcher.last_error,
            }
            for watcher in self.watchers
        )
        holder = own_files.Holder(me, iso(self.started_at), self.config.mode, watchers, __version__)
        self._observe(self.store.paths.holder, own_files.dump_holder(holder))

    def _observe(self, path: Path, data: bytes) -> bool:
        """Save an observation; a failure is logged and stops nothing."""
        try:
            write_atomic(self.store.disk, path, data, durable=False)
        except (OSError, Refused) as error:
            self._failures.failed("status_file", error, file=path.name)
            return False
        self._failures.recovered("status_file", file=path.name)
        return True

    def _prune_notes(self) -> None:
        """Remove hook notes from which nothing follows any more: of agents that are gone, of subagents that ended.

        Not all at once, if they are very many. A start comes before its end by name, and is removed with it.
        """
        if not self._notes:
            self._notes = sorted((n for n in names(self.store.paths.hooks) if not n.startswith(".")), reverse=True)
            self._begun = {}
        recorded = {agent.id for agent in self.registry.records()}
        for _ in range(min(NOTES, len(self._notes))):
            path = self.store.paths.hooks / (name := self._notes.pop())
            note = own_files.hook_note(read_part(path, 0, NOTE_SIZE) or b"", name.partition(".")[0])
            gone = [path] if self.registry.hook_process(note) is None else []
            if note.event == "SubagentStart":
                self._begun.setdefault(note.agent_id, []).append(path)
            elif note.event == "SubagentStop" and note.agent_id not in recorded:
                gone = [*self._begun.pop(note.agent_id, []), path]
            for each in gone:
                with contextlib.suppress(OSError):
                    each.unlink()
