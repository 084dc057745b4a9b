"""tmux servers without a session, and the start of one in the place of a server that has ended."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from yolo_supervisor.fs.trust import Refused, own_socket_place
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.panes import PlaceCode, Unplaced
from yolo_supervisor.system.tmux import CONNECT_S, LIMIT_S, Server, client_command, client_environment

START_S = 10.0
"""The time limit of a server's start, in seconds: it reads the user's own configuration."""


async def empty_server(name: str) -> Server | None:
    """The server at this socket if it runs and has no session; None if not, or if it does not answer."""
    argv = ["list-sessions", "-F", "#{session_id}", ";", "display-message", "-p", "#{pid}"]
    try:
        result = await subprocesses.run([*client_command(name), *argv], LIMIT_S, client_environment())
    except (OSError, ValueError, Refused):
        return None
    answer = result.stdout.decode("utf-8", "replace").strip()
    return Server(name, int(answer), {}, {}, {}) if result.exit == 0 and answer.isdigit() else None


def has_ended(name: str) -> bool:
    """Whether certainly no server listens at the socket. One that hangs has not ended."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_S)
        try:
            client.connect(name)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except (OSError, ValueError):
            return False
    return False


async def start_server(name: str) -> str:
    """Start a server of this user at the socket, which stays without a session until ``let_end``.

    Returns what is to be given to ``let_end``. ``Unplaced`` if it cannot be started.
    """
    try:
        path = own_socket_place(name)
        keep = ["show-options", "-sv", "exit-empty", ";", "set-option", "-s", "exit-empty", "off"]
        result = await subprocesses.run(
            ["tmux", "-S", str(path), "start-server", ";", *keep], START_S, client_environment()
        )
    except (OSError, ValueError, Refused) as error:
        raise Unplaced(PlaceCode.SERVER_GONE, f"no tmux server can be started at {name}: {error}") from error
    if result.exit != 0:
        said = (result.stderr.decode("utf-8", "replace").strip() or "no answer")[:200]
        raise Unplaced(PlaceCode.REFUSED_BY_TMUX, f"tmux starts no server at {name}: {said}")
    return result.stdout.decode("utf-8", "replace").strip()


async def let_end(name: str, exit_empty: str) -> None:
    """Let the server end with its last session, if it would have done so."""
    if exit_empty in ("on", "off"):
        argv = ["set-option", "-s", "exit-empty", exit_empty]
        await subprocesses.run([*client_command(name), *argv], LIMIT_S, client_environment())


def named_sockets(name: str, environment: Mapping[str, str], uid: int) -> list[str]:
    """The paths at which ``tmux -L NAME`` of this user may have its socket."""
    folders = dict.fromkeys((environment.get("TMUX_TMPDIR") or "/tmp", "/tmp"))
    return [str(Path(folder, f"tmux-{uid}", name)) for folder in folders]
