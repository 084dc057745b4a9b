"""Start programs in tmux: in a pane whose process has ended, in a new window, in a new session.

A program is given as a command line that tmux executes without a shell. Its server must live outside of the
supervisor's own unit (``refuse_own_unit``): what a server starts is in the server's cgroup, and has its restrictions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import Pane
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.tmux import Server, client_command, client_environment

START_S = 5.0
"""The time limit of a command that starts a program, in seconds."""

_PANE = re.compile(r"%\d{1,9}")
_STARTED = re.compile(r"(%\d{1,9}) (\d{1,10}) (\d{1,10})")


class PlaceCode(StrEnum):
    """The reason why a program was not started in tmux."""

    SERVER_GONE = "server_gone"
    """The tmux server does not answer, or is another one by now."""
    INSIDE_UNIT = "inside_unit"
    """The server runs in the supervisor's own unit."""
    PANE_TAKEN = "pane_taken"
    """The pane is in use, by a person or another program."""
    PANE_GONE = "pane_gone"
    SESSION_GONE = "session_gone"
    REFUSED_BY_TMUX = "refused_by_tmux"


@dataclass(frozen=True, slots=True)
class Unplaced(Exception):
    """A program was not started. Decisions compare ``code``; ``text`` is for people and the journal."""

    code: PlaceCode
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class StartedProgram:
    """A program that was started in a pane."""

    pane: Pane
    pid: int


def refuse_own_unit(server_pid: int, supervisor: int, proc: Path = Path("/proc")) -> None:
    """``Unplaced`` if the tmux server runs in the unit of process ``supervisor``, or has inherited its restrictions.

    Outside of a service the cgroup is that of the person's own session, and everything may be started.
    """
    processes = [proc / str(pid) for pid in (supervisor, server_pid)]
    try:
        ours, theirs = map(_unit, processes)
        restricted = list(map(_no_new_privileges, processes))
    except OSError:
        ours, theirs, restricted = "", "", [False]
    if not ours.endswith(".service"):
        return
    if theirs == ours or theirs.startswith(f"{ours}/") or all(restricted):
        text = (
            f"tmux server {server_pid} runs inside the supervisor's own unit: start tmux in yolo-tmux@.service instead"
        )
        raise Unplaced(PlaceCode.INSIDE_UNIT, text)


def is_in_service(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether the process runs in a service: a tmux server that it started would end with that."""
    try:
        return _unit(proc / str(pid)).endswith(".service")
    except OSError:
        return False


def _unit(folder: Path) -> str:
    """The cgroup of a process, as systemd names it; empty where there is none."""
    for line in (folder / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "name=systemd"):
            return path
    return ""


def _no_new_privileges(folder: Path) -> bool:
    return "\nNoNewPrivs:\t1\n" in (folder / "status").read_text()


async def respawn(pane: Pane, ended_pid: int, server: Server, command: Sequence[str]) -> StartedProgram:
    """Start the program in the pane in which process ``ended_pid`` has ended. ``Unplaced`` if it cannot be there.

    tmux itself refuses where the pane's process runs: a person may have begun something in it a moment ago.
    """
    found = server.panes.get(pane.pane)
    if server.pid != pane.server_pid or found is None or not _PANE.fullmatch(pane.pane):
        raise Unplaced(PlaceCode.PANE_GONE, f"pane {pane.pane} is gone")
    if not found.dead or found.pid != ended_pid:
        raise Unplaced(PlaceCode.PANE_TAKEN, f"pane {pane.pane} is in use")
    argv = ["respawn-pane", "-t", pane.pane, *command, ";", *_show(pane.pane)]
    return await _start(server, argv)


async def new_window(server: Server, session: str, name: str, command: Sequence[str]) -> StartedProgram:
    """Start the program in a new window of the session with this id (``$0``); no client is switched to it."""
    if session not in server.names:
        raise Unplaced(PlaceCode.SESSION_GONE, "its tmux session is gone")
    argv = ["new-window", "-d", "-P", "-F", _FORMAT, "-t", f"{session}:", "-n", _title(name), *command]
    return await _keep(server, await _start(server, argv))


async def new_session(server: Server, session: str, name: str, command: Sequence[str]) -> StartedProgram:
    """Start the program in a new session of the server; no client is attached to it."""
    argv = ["new-session", "-d", "-P", "-F", _FORMAT, "-s", _title(session), "-n", _title(name), *command]
    return await _keep(server, await _start(server, argv))


_FORMAT = "#{pane_id} #{pane_pid} #{pid}"


def _show(pane: str) -> list[str]:
    return ["display-message", "-p", "-t", pane, _FORMAT]


def _title(name: str) -> str:
    """A name for a window or session: without what tmux reads as a format or as a part of a target."""
    return re.sub(r"[^\w@+-]", "-", name)[:60] or "agent"


async def _start(server: Server, argv: Sequence[str]) -> StartedProgram:
    result = await _run(server, argv)
    shown = _STARTED.fullmatch(result.stdout.decode("utf-8", "replace").strip())
    if result.exit != 0 or shown is None:
        said = (result.stderr.decode("utf-8", "replace").strip() or "no answer")[:200]
        raise Unplaced(PlaceCode.REFUSED_BY_TMUX, f"tmux refuses to start it: {said}")
    pane, pid, server_pid = shown[1], int(shown[2]), int(shown[3])
    return StartedProgram(Pane(socket=server.socket, server_pid=server_pid, pane=pane), pid)


async def _keep(server: Server, started: StartedProgram) -> StartedProgram:
    """Let the pane stay when its program fails, as the client does for its teammates."""
    for value in ("failed", "on"):  # before tmux 3.3 there is no "failed"
        result = await _run(server, ["set-option", "-w", "-t", started.pane.pane, "remain-on-exit", value])
        if result.exit == 0:
            break
    return started


async def _run(server: Server, argv: Sequence[str]) -> subprocesses.Result:
    try:
        return await subprocesses.run([*client_command(server.socket), *argv], START_S, client_environment())
    except (OSError, ValueError, Refused) as error:
        raise Unplaced(PlaceCode.SERVER_GONE, f"the tmux server does not answer: {error}") from error
