"""The parts of ``agent restore``: who went down with the machine or a tmux server, and their starts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from yolo_supervisor.cli import returning
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, EX_UNAVAILABLE
from yolo_supervisor.cli.project_view import ProjectView
from yolo_supervisor.cli.returning import EXIT_CODES, CannotStart
from yolo_supervisor.formats.ended_agents import End, EndedAgent
from yolo_supervisor.models import from_iso
from yolo_supervisor.service.manager import ManagerError, Systemd
from yolo_supervisor.system.panes import PlaceCode, Unplaced, is_in_service
from yolo_supervisor.system.tmux import Server
from yolo_supervisor.system.tmux_servers import empty_server, has_ended, let_end, named_sockets, start_server

UNIT = "agents"
"""The instance of the unit ``yolo-tmux@`` that is started where an agent's tmux server is gone."""

LISTENS_S = 10.0
"""The time in which the tmux server of a unit that was started must answer, in seconds."""

LOOK_S = 0.1
"""The pause between two looks at something that starts, in seconds."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """One agent that may be restored, and the reason why it cannot be now."""

    ended: EndedAgent
    cannot: CannotStart | None


@dataclass(frozen=True, slots=True)
class RestoreEnd:
    """What became of one agent."""

    document: Mapping[str, Any]
    text: str
    code: int


def listed(view: ProjectView) -> list[Interrupted]:
    """The agents that went down with the machine or their tmux server, and have not come back."""
    returning.known_ids(view)  # without a daemon their deaths were not seen yet
    found = []
    for ended in view.interrupted():
        plan = returning.plan_start(view, ended)
        cannot = plan if isinstance(plan, CannotStart) else None
        if cannot is None and ended.agent.pane is None:
            text = f"{ended.agent.id} is not started: it did not run in tmux, start it by hand"
            cannot = CannotStart(PlaceCode.PANE_GONE, text, ended.agent.id)
        if cannot is None or cannot.code not in (returning.RefusalCode.RUNS, returning.RefusalCode.STARTING):
            found.append(Interrupted(ended, cannot))
    return found


def choose(found: Sequence[Interrupted], names: Sequence[str]) -> list[Interrupted] | CannotStart:
    """Those with these ids or names, in the order of the list."""
    chosen: list[Interrupted] = []
    for name in names:
        meant = [one for one in found if one.ended.agent.id == name]
        meant = meant or [one for one in found if one.ended.agent.name == name]
        if not meant:
            text = f"{name} is not among the agents that went down: see agent restore, or use agent start {name}"
            return CannotStart(returning.RefusalCode.NOT_FOUND, text)
        if len(meant) > 1:
            ids = " or ".join(one.ended.agent.id for one in meant)
            return CannotStart(returning.RefusalCode.AMBIGUOUS, f"{name} is ambiguous: {ids}")
        chosen += meant
    return [one for one in found if one in chosen]


def row(view: ProjectView, one: Interrupted) -> dict[str, Any]:
    """One agent of the list, for programs. ``code`` and ``reason`` say why it cannot be started; null if it can."""
    ended = one.ended
    return {
        "id": ended.agent.id,
        "role": ended.agent.role,
        "team": ended.agent.team,
        "session": ended.agent.session,
        "folder": ended.launch.folder if ended.launch is not None else None,
        "end": str(ended.end),
        "ended_at": ended.at,
        "age_s": round(_age_s(view, ended), 1),
        "tasks": [{"id": ident, "subject": subject} for ident, subject in ended.tasks],
        "code": str(one.cannot.code) if one.cannot is not None else None,
        "reason": one.cannot.text if one.cannot is not None else None,
    }


def describe_list(view: ProjectView, found: Sequence[Interrupted]) -> list[str]:
    """The list for people, in lines."""
    if not found:
        return ["no agent waits to be restored: none went down with the machine or its tmux server, or all are back"]
    lines = []
    for one in found:
        ended = one.ended
        why = "the machine was rebooted" if ended.end is End.REBOOT else "its tmux server ended"
        folder = f" in {ended.launch.folder}" if ended.launch is not None else ""
        lines.append(f"{ended.agent.id}  {ended.agent.role}{folder}: {why} {_ago(_age_s(view, ended))} ago")
        lines += [f"  was at work on {ident}: {subject}" for ident, subject in ended.tasks]
        lines += [f"  {one.cannot.text}"] if one.cannot is not None else []
    lines.append("start them again: yolo-supervisor agent restore --all, or agent restore NAME")
    return lines


def restore(view: ProjectView, chosen: Sequence[Interrupted], tell: Callable[[str], None]) -> list[RestoreEnd]:
    """Start these agents one after the other. ``tell`` says for what a start waits."""
    servers = TmuxServers(view)
    try:
        return [_restore(view, one, servers, tell) for one in chosen]
    finally:
        servers.close()


def _restore(view: ProjectView, one: Interrupted, servers: TmuxServers, tell: Callable[[str], None]) -> RestoreEnd:
    ended, ident = one.ended, one.ended.agent.id
    if one.cannot is not None:
        return _refused(one.cannot)
    rules = view.config.restart
    until_s = view.clock.monotonic() + rules.host_period_s + rules.storm_pause_s
    while True:
        view.scanner.sample()
        plan = returning.plan_start(view, ended)
        if isinstance(plan, CannotStart):
            return _refused(plan)
        assert ended.agent.pane is not None
        try:
            server = servers.find(ended.agent.pane.socket)
        except Unplaced as error:
            return _refused(CannotStart(error.code, f"{ident} is not started: {error}", ident))
        result = returning.start(view, ended, plan, server)
        if result.result != "host_pace" or view.clock.monotonic() + result.wait_s > until_s:
            code = returning.exit_code(result)
            return RestoreEnd(returning.document(ended, result), returning.describe(ended, result), code)
        tell(f"{ident} waits: {result.text}")
        time.sleep(max(LOOK_S, result.wait_s))


def _refused(cannot: CannotStart) -> RestoreEnd:
    document = {
        "result": "not_started", "id": cannot.agent, "pid": None, "pane": None, "tmux": None,
        "code": str(cannot.code), "reason": cannot.text,
    }  # fmt: skip
    return RestoreEnd(document, cannot.text, EXIT_CODES.get(cannot.code, EX_NO))


def exit_code(ends: Sequence[RestoreEnd]) -> int:
    """0 if all were started; 75 only if trying again is all that is left to do."""
    codes = {end.code for end in ends}
    return next((code for code in (EX_NO, EX_UNAVAILABLE, EX_TEMPFAIL) if code in codes), 0)


@dataclass
class TmuxServers:
    """The tmux servers of one restore: the agents' own where they run, else those that it starts."""

    view: ProjectView
    _places: dict[str, str] = field(default_factory=dict)
    """Where the agents of a server that is gone are started, by its socket."""
    _started: dict[str, str] = field(default_factory=dict)
    """What ``let_end`` needs, by the sockets of the servers that were started here."""

    def find(self, socket: str) -> str:
        """The socket of a server for the agents of this one. ``Unplaced`` if there is none, and none can be started."""
        if self._look(socket) is not None:
            return socket
        if socket not in self._places:
            if not has_ended(socket):
                raise Unplaced(PlaceCode.SERVER_GONE, f"the tmux server at {socket} does not answer")
            self._places[socket] = self._start(socket)
        return self._places[socket]

    def close(self) -> None:
        """Let the servers that were started here end with their last session."""
        for socket, exit_empty in self._started.items():
            anyio.run(let_end, socket, exit_empty)

    def _look(self, socket: str) -> Server | None:
        async def look() -> Server | None:
            return await self.view.tmux.look(socket) or await empty_server(socket)

        return anyio.run(look)

    def _start(self, socket: str) -> str:
        if (unit := self._start_unit()) is not None:
            return unit
        if is_in_service(os.getpid()):
            text = "its tmux server is gone, and one that this shell starts would end with the service that it runs in"
            raise Unplaced(PlaceCode.INSIDE_UNIT, f"{text}: run this command in a login shell")
        self._started[socket] = anyio.run(partial(start_server, socket))
        return socket

    def _start_unit(self) -> str | None:
        """Start the server of the unit; its socket, None if the unit is not installed."""
        try:
            pid = Systemd().start_tmux(UNIT)
        except ManagerError as error:
            raise Unplaced(PlaceCode.SERVER_GONE, f"yolo-tmux@{UNIT} cannot be started: {error}") from error
        if pid is None:
            return None
        until_s = self.view.clock.monotonic() + LISTENS_S
        while self.view.clock.monotonic() < until_s:
            for socket in named_sockets(UNIT, os.environ, os.geteuid()):
                server = self._look(socket)
                if server is not None and server.pid == pid:
                    return socket
            time.sleep(LOOK_S)
        raise Unplaced(PlaceCode.SERVER_GONE, f"the tmux server of yolo-tmux@{UNIT} does not answer")


def _age_s(view: ProjectView, ended: EndedAgent) -> float:
    return max(0.0, (view.now - from_iso(ended.at)).total_seconds())


def _ago(age_s: float) -> str:
    for unit, s in (("days", 86400), ("h", 3600), ("min", 60)):
        if age_s >= 2 * s:
            return f"{age_s / s:.0f} {unit}"
    return f"{age_s:.0f} s"
