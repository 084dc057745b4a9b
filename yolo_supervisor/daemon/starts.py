"""The start gate: everything is asked again, then a dead agent's client is started in tmux, journaled before and after.

A person who resumes the same session at the same moment wins: a second process of the session ends ours.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio
import anyio.abc

from yolo_supervisor.actions.agents import Restart, Terminate
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.daemon.terminations import journal_end, terminate
from yolo_supervisor.formats.launch import LaunchProblem, resume_argv, start_of
from yolo_supervisor.formats.start import Start
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.restarts import UP
from yolo_supervisor.inventory.session_processes import visible
from yolo_supervisor.models import Liveness, Pane, ProcessId
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.start_ledger import StartLedger
from yolo_supervisor.store.starts import remove_stale_starts, write_start
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.panes import (
    PlaceCode,
    StartedProgram,
    Unplaced,
    new_session,
    new_window,
    refuse_own_unit,
    respawn,
)
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.session_scan import lock_path
from yolo_supervisor.system.tmux import Server, Tmux
from yolo_supervisor.system.tmux_servers import empty_server

LAUNCH_S = 15.0
"""The time in which the launcher becomes the client, or ends, in seconds."""

LOOK_S = 0.1
"""The pause between two looks at the launcher, in seconds."""

STALE_S = 600.0
"""The age from which a start document that no launcher has taken is removed, in seconds."""

GUARD_LOOKS, GUARD_LOOK_S = 60, 1.0
"""How often after a start a second process of the session is looked for, and the pause between, in seconds."""

NOT_TRIED = ("host_pace", "live_elsewhere", "held")
"""Results of starts that were not begun: they count as no try."""

UNKNOWN = "unknown"
"""Stands for the processes of a session if it is not known whether there are any."""

DUPLICATE_GRACE_S = 1.0
"""The time between SIGTERM and SIGKILL for our process, where another one runs its session, in seconds."""

StartObjection = Callable[[Restart], Awaitable[str | None]]
"""Observes again right before a start. Returns the reason why the decision no longer holds, or None if it holds."""


@dataclass(frozen=True, slots=True)
class StartResult:
    """The end of a start: ``up`` with a process, else a code and a sentence."""

    result: str
    text: str
    process: ProcessId | None = None
    place: StartedProgram | None = None
    wait_s: float = 0.0
    """For ``host_pace``: the time after which to ask again."""

    @property
    def evidence(self) -> dict[str, Any]:
        evidence: dict[str, Any] = {"result": self.result, "why": self.text}
        if self.process is not None:
            evidence |= {"pid": self.process.pid, "started": self.process.started, "boot": self.process.boot}
        if self.place is not None:
            evidence |= {"tmux": self.place.pane.socket, "pane": self.place.pane.pane}
        return evidence


class Starter:
    """Starts clients in tmux, for the daemon and for ``agent start``."""

    def __init__(
        self,
        store: Store,
        processes: Processes,
        scanner: ProcessScanner,
        registry: AgentRegistry,
        tmux: Tmux,
        ledger: StartLedger,
        supervisor: int | None,
    ) -> None:
        """``supervisor`` is the daemon's process, in whose unit nothing is started; None without a daemon."""
        self._store = store
        self._processes = processes
        self._scanner = scanner
        self._registry = registry
        self._tmux = tmux
        self._ledger = ledger
        self._supervisor = supervisor
        self._ours: dict[Pane, int] = {}
        """The process that was started last in each pane."""

    async def start(self, action: Restart, by: str, config: Config) -> StartResult:
        """Journal the beginning, start the client, and journal its end. The caller has asked everything again."""
        if seen := self.others(action):
            return StartResult("live_elsewhere", f"processes {seen} run its session, or may")
        if (wait_s := self._ledger.take(config.restart)) > 0:
            text = f"other agents of this machine were started a moment ago: {wait_s:.0f} s"
            return StartResult("host_pace", text, wait_s=wait_s)
        begun = self._store.begin(action, by)
        state = self._store.index.restarts.get(action.key)
        if state is not None and state.held:  # by another process, since everything was asked
            self._store.abandon(begun, "it is held by hand")
            return StartResult("held", f"{action.agent.name} is held by hand")
        try:
            result = await self._launch(action)
        except Unplaced as error:
            result = StartResult(str(error.code), str(error))
        except (OSError, Refused) as error:
            result = StartResult("failed", str(error))
        self._store.end(begun, action, by, result.evidence)
        return result

    async def _launch(self, action: Restart) -> StartResult:
        argv = resume_argv(action.launch, action.note, action.fresh)
        if isinstance(argv, LaunchProblem):
            return StartResult(str(argv.code), argv.text)
        place = await self._place(action, argv)
        process = self._processes.identify(place.pid)
        if process is None:
            return await self._ended(place)
        return await self._follow(process, place)

    def others(self, action: Restart, but: ProcessId | None = None) -> str:
        """The processes that run the session, or may, for a sentence; empty if there is certainly none."""
        agent, launch = action.agent, action.launch
        assert launch.session is not None
        seen = visible(launch.session, agent.id, agent.team, self._registry.homes(), self._processes)
        pids = sorted(
            process.pid
            for process in seen.processes
            if process not in (but, agent.process) and (but is None or self._is_another(process, but))
        )
        return ", ".join(map(str, pids)) or (UNKNOWN if seen.unknown else "")

    def _is_another(self, process: ProcessId, ours: ProcessId) -> bool:
        """Whether the process lives, and is no child of ours: that has our command line between fork and exec."""
        try:
            facts = self._processes.backend.facts(process.pid)
        except OSError:
            return False
        return facts is not None and facts.started == process.started and facts.parent != ours.pid

    async def _place(self, action: Restart, argv: tuple[str, ...]) -> StartedProgram:
        """Start the launcher in the agent's own pane if it is there and unused, else in a new window or session."""
        agent = action.agent
        if agent.pane is None:
            raise Unplaced(PlaceCode.PANE_GONE, f"{agent.name} did not run in tmux: start it by hand")
        server = await self._tmux.look(agent.pane.socket) or await empty_server(agent.pane.socket)
        if server is None:
            raise Unplaced(PlaceCode.SERVER_GONE, "its tmux server is gone: yolo-supervisor agent restore")
        if self._supervisor is not None:
            refuse_own_unit(server.pid, self._supervisor)
        remove_stale_starts(self._store.disk, self._store.paths.starts, self._store.clock.now().timestamp(), STALE_S)
        path = write_start(self._store.disk, self._store.paths.starts, self._document(action, argv))
        command = [sys.executable, "-I", "-m", "yolo_supervisor.launch", str(path)]
        try:
            place = await self._start(server, action, command)
        except Unplaced:
            path.unlink(missing_ok=True)
            raise
        self._ours[place.pane] = place.pid
        return place

    def _document(self, action: Restart, argv: tuple[str, ...]) -> Start:
        launch = action.launch
        assert launch.session is not None
        lock = lock_path(launch.session)
        make_folder(self._store.disk, lock.parent)
        homes = map(str, self._registry.homes())
        return start_of(launch, argv, team=action.agent.team, homes=homes, lock=str(lock))

    async def _start(self, server: Server, action: Restart, command: list[str]) -> StartedProgram:
        agent, launch = action.agent, action.launch
        assert agent.pane is not None
        assert agent.process is not None
        pane = server.panes.get(agent.pane.pane) if server.pid == agent.pane.server_pid else None
        if pane is not None and pane.dead and pane.pid in (agent.process.pid, self._ours.get(agent.pane)):
            return await respawn(agent.pane, pane.pid, server, command)
        by_name = next((ident for ident, name in server.names.items() if name == launch.tmux_session), None)
        session = pane.sessions[0] if pane is not None and pane.sessions else by_name
        if session is not None:
            return await new_window(server, session, launch.window or agent.name, command)
        return await new_session(server, launch.tmux_session or agent.name, launch.window or agent.name, command)

    async def _follow(self, process: ProcessId, place: StartedProgram) -> StartResult:
        """Wait until the launcher has become the client, or has ended."""
        until_s = self._store.clock.monotonic() + LAUNCH_S
        while self._store.clock.monotonic() < until_s:
            if self._processes.liveness(process) is Liveness.DEAD:
                return await self._ended(place)
            try:
                argv = self._processes.backend.argv(process.pid)
            except OSError:
                argv = []
            if argv and "yolo_supervisor.launch" not in argv:
                return StartResult(UP, "its client runs", process, place)
            await anyio.sleep(LOOK_S)
        return StartResult(UP, "its launcher runs", process, place)

    async def _ended(self, place: StartedProgram) -> StartResult:
        server = await self._tmux.look(place.pane.socket)
        pane = server.panes.get(place.pane.pane) if server is not None else None
        status = pane.status if pane is not None and pane.dead else None
        return StartResult(f"exit_{status}" if status is not None else "ended", "its launcher ended", place=place)

    async def end_ours(self, action: Restart, by: str, process: ProcessId, why: str) -> None:
        """End a process that we started, through the kill gate: another one runs its session."""

        async def objection(action: Terminate) -> str | None:
            return None

        evidence = {"pid": process.pid, "started": process.started, "boot": process.boot, "duplicate_of": why}
        end = Terminate(
            key=action.agent.id,
            roots=(process,),
            grace_s=DUPLICATE_GRACE_S,
            reason=f"process {why} runs the session of {action.agent.name}, too: this one was started by us",
            evidence=evidence,
        )
        begun, ending = await terminate(
            end, by, self._store, self._processes, self._scanner, self._registry.is_foreign, objection
        )
        journal_end(end, by, self._store, begun, ending)


class Starts:
    """The starts of one project that are under way. A reload does not interrupt them."""

    def __init__(
        self,
        config: Config,
        starter: Starter,
        scanner: ProcessScanner,
        processes: Processes,
        objection: StartObjection,
        alerts: AlertLog,
        failures: FailureLog,
        ended: Callable[[], None],
    ) -> None:
        self._config = config
        self._starter = starter
        self._scanner = scanner
        self._processes = processes
        self._objection = objection
        self._alerts = alerts
        self._failures = failures
        self._ended = ended
        self._under_way: set[str] = set()
        self.tasks: anyio.abc.TaskGroup | None = None

    def configure(self, config: Config) -> None:
        """Continue with another configuration; observe mode prevents further starts."""
        self._config = config

    def start(self, action: Restart, by: str) -> None:
        """Start the client in the background, unless that is under way."""
        if action.key in self._under_way or self.tasks is None:
            return
        self._under_way.add(action.key)
        self.tasks.start_soon(self._start, action, by)

    async def _start(self, action: Restart, by: str) -> None:
        try:
            if await self._objects(action) is not None:
                return
            result = await self._starter.start(action, by, self._config)
            if result.result in NOT_TRIED:
                return
            self._alerts.applied(replace(action, evidence=result.evidence), "", result=result.result)
            self._scanner.sample()
        except (OSError, Busy, Refused) as error:
            self._failures.failed("start", error, key=action.key)
            return
        finally:
            self._under_way.discard(action.key)
            self._ended()
        self._failures.recovered("start", key=action.key)
        if result.process is not None:
            await self._guard(action, by, result.process)

    async def _objects(self, action: Restart) -> str | None:
        if self._config.mode == "observe":
            return "the supervisor only observes now"
        try:
            return await self._objection(action)
        except Exception as error:  # noqa: BLE001 - a failed observation is no evidence, whatever made it fail
            return f"the condition cannot be observed again: {error!r}"

    async def _guard(self, action: Restart, by: str, process: ProcessId) -> None:
        """End our process if another one runs its session: a person may have resumed it at the same moment."""
        for _ in range(GUARD_LOOKS):
            if self._processes.liveness(process) is not Liveness.ALIVE:
                return
            others = self._starter.others(action, but=process)
            if others and others != UNKNOWN:
                await self._starter.end_ours(action, by, process, others)
                return
            await anyio.sleep(GUARD_LOOK_S)
