"""Query tmux servers over their sockets: sessions, attached clients and panes.

A query is one client process for any number of sessions. A permanent control-mode client would be cheaper, but it
counts as an attached client, and the plugin's watchdog would never see a session detached again.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio

from yolo_supervisor.clock import Clock
from yolo_supervisor.fs.trust import Refused, own_server, own_socket
from yolo_supervisor.models import Pane
from yolo_supervisor.system import subprocesses

LIMIT_S = 2.0
"""The time limit of a query. A server that is stopped or overloaded exceeds it: its state is unknown, not gone."""

CONNECT_S = 0.1
"""The time limit of a connection. The kernel makes it, whatever the server does, unless too many others wait there."""

MESSAGE_S, MESSAGE_LENGTH = 10.0, 300
"""How long a message is shown at a client, in seconds, unless a key is pressed; and its greatest length."""

LINES = 60
WIDTH = 2000
"""The lines and columns of a dead agent's screen that are read."""

_QUERY = (
    ("list-sessions", "-F", "S #{pid} #{session_id} #{session_name}"),
    ("list-clients", "-F", "C #{session_id} #{client_pid} #{client_tty}"),
    (
        "list-panes",
        "-a",
        "-F",
        "P #{pane_id} #{session_id} #{pane_pid} #{pane_dead}:#{pane_dead_status}:#{pane_dead_signal} #{window_name}",
    ),
)


@dataclass(frozen=True, slots=True)
class PaneState:
    """One pane: the sessions that show it, and the exit of its process if tmux keeps dead panes."""

    pid: int
    sessions: tuple[str, ...]
    dead: bool
    status: int | None = None
    signal: int | None = None
    window: str = field(default="", compare=False)
    """The name of its window."""


@dataclass(frozen=True, slots=True)
class Server:
    """The state of a server at one moment. ``attached`` counts people: clients with a terminal."""

    socket: str
    pid: int
    names: Mapping[str, str]
    """Session names by their id (``$0``)."""
    attached: Mapping[str, int]
    panes: Mapping[str, PaneState]
    people: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The terminals of the people attached to each session."""
    clients: Mapping[int, str] = field(default_factory=dict)
    """The terminals of all attached people by the pid of their client."""


@dataclass
class _Query:
    at: float
    server: Server | None
    lock: anyio.Lock = field(default_factory=anyio.Lock)


class Tmux:
    """The tmux servers by socket. Answers are shared among callers for ``fresh_s`` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queries: dict[str, _Query] = {}

    def last(self) -> list[Server]:
        """The newest answers of all servers that have answered."""
        return [query.server for query in self._queries.values() if query.server is not None]

    async def look(self, socket: str, fresh_s: float = 0.0) -> Server | None:
        """The server's state, at most ``fresh_s`` seconds old; None (unknown) if it does not answer."""
        query = self._queries.setdefault(socket, _Query(float("-inf"), None))
        async with query.lock:
            if self._clock.monotonic() - query.at > fresh_s:
                query.server = await _ask(socket)
                query.at = self._clock.monotonic()
        return query.server


@dataclass(frozen=True, slots=True)
class LastWords:
    """The screen of a pane, and the exit of its process if tmux keeps dead panes."""

    pid: int
    lines: tuple[str, ...]
    status: int | None = None
    signal: int | None = None


async def last_words(pane: Pane, limit_s: float) -> LastWords | None:
    """The screen of the pane.

    None if its server does not answer in time, or no longer has the pane.
    """
    format_ = "#{pid} #{pane_pid} #{pane_dead_status}:#{pane_dead_signal}"
    argv = ["display-message", "-p", "-t", pane.pane, format_, ";",
            "capture-pane", "-p", "-J", "-t", pane.pane, "-S", f"-{LINES}"]  # fmt: skip
    try:
        if not re.fullmatch(r"%\d{1,9}", pane.pane):
            return None
        result = await subprocesses.run([*client_command(pane.socket), *argv], limit_s, client_environment())
        head, _, screen = result.stdout.decode("utf-8", "replace").partition("\n")
        server, pid, end = head.split(" ")
        status, _, killer = end.partition(":")
        if result.exit != 0 or int(server) != pane.server_pid:
            return None
        lines = tuple(line.rstrip()[:WIDTH] for line in screen.splitlines() if line.strip())
        return LastWords(int(pid), lines[-LINES:], int(status) if status else None, int(killer) if killer else None)
    except (OSError, ValueError, Refused):
        return None


async def show_message(socket: str, client: str, text: str) -> bool:
    """Show a line at the client with this terminal for some seconds. Returns whether that was done, and in time.

    tmux reports no error about a client that has left, so it is asked for its clients, too.
    """
    text = "".join(c if c.isprintable() else "?" for c in text)[:MESSAGE_LENGTH]
    text = text.replace("#", "##").replace("%", "%%") + "."  # no format of tmux, no time, no end of a command
    for options in (("-d", str(round(MESSAGE_S * 1000))), ()):  # before tmux 3.2 a message has no separate time
        argv = ["display-message", "-c", client, *options, text, ";", "list-clients", "-F", "#{client_tty}"]
        try:
            result = await subprocesses.run([*client_command(socket), *argv], LIMIT_S, client_environment())
        except (OSError, ValueError, Refused):
            return False
        if result.exit != 1:
            return result.exit == 0 and client in result.stdout.decode("utf-8", "replace").splitlines()
    return False


async def _ask(socket: str) -> Server | None:
    try:
        result = await subprocesses.run(_argv(socket), LIMIT_S, client_environment())
    except (OSError, ValueError, Refused):  # a path with a NUL, for example: agents' environments may contain anything
        return None
    return (
        parse(socket, result.stdout.decode("utf-8", "replace")) if result.exit == 0 and not result.truncated else None
    )


def ask_now(socket: str) -> Server | None:
    """The server's state, for a command without an event loop.

    None (unknown) if it does not answer.
    """
    try:
        result = subprocess.run(
            _argv(socket),
            env=client_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, ValueError, Refused, subprocess.TimeoutExpired):
        return None
    return parse(socket, result.stdout.decode("utf-8", "replace")) if result.returncode == 0 else None


def client_command(socket: str) -> list[str]:
    """The beginning of a client's command line. OSError, ValueError, ``Refused`` if the socket cannot be used."""
    path = own_socket(socket)
    own_server(path, CONNECT_S)
    return ["tmux", "-S", str(path)]


def _argv(socket: str) -> list[str]:
    argv = client_command(socket)
    for part in _QUERY:
        argv += [*part, ";"]
    return argv[:-1]


def client_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}


def parse(socket: str, answer: str) -> Server | None:
    """Parse the answer to the query; None if it is malformed."""
    pid: int | None = None
    names: dict[str, str] = {}
    attached: dict[str, int] = {}
    people: dict[str, frozenset[str]] = {}
    clients: dict[int, str] = {}
    panes: dict[str, PaneState] = {}
    try:
        for line in answer.split("\n"):
            kind, _, rest = line.partition(" ")
            if kind == "S":
                server, session, name = rest.split(" ", 2)
                pid, names[session] = int(server), name
                attached.setdefault(session, 0)
            elif kind == "C":
                session, client, terminal = rest.split(" ", 2)
                if terminal:  # a control client on a pipe is a program; one with a terminal is a person's ("tmux -CC")
                    attached[session] = attached.get(session, 0) + 1
                    people[session] = people.get(session, frozenset()) | {terminal}
                    clients[int(client)] = terminal
            elif kind == "P":
                pane, session, process, end, *window = rest.split(" ", 4)
                dead, status, killer = end.split(":")
                before = panes[pane].sessions if pane in panes else ()
                panes[pane] = PaneState(
                    int(process),
                    (*before, session) if session not in before else before,
                    dead == "1",
                    int(status) if status else None,
                    int(killer) if killer.isdigit() else None,
                    "".join(window),
                )
    except ValueError:
        return None
    return Server(socket, pid, names, attached, panes, people, clients) if pid else None


def pane_of(environment: Mapping[str, str]) -> Pane | None:
    """The pane in which a process with this environment was started.

    ``TMUX`` is ``socket,server pid,session``.
    """
    parts, pane = environment.get("TMUX", "").rsplit(",", 2), environment.get("TMUX_PANE")
    if len(parts) != 3 or not pane or not re.fullmatch(r"[0-9]{1,10}", parts[1]):
        return None  # the environment of any process is read here, and may contain anything
    return Pane(socket=parts[0], server_pid=int(parts[1]), pane=pane)
