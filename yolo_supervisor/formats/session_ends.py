"""``session-ends.json``: the agents that are being ended because their session was left, and those that were."""

from __future__ import annotations

import json

import msgspec

from yolo_supervisor.formats.json import load_object
from yolo_supervisor.models import ProcessId, from_iso

Clients = dict[int, str]
"""The tmux clients of people: the terminal by the pid of the client's process."""


class Countdown(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that is ended when its grace has passed, unless its person comes back before."""

    agent: str
    name: str
    process: ProcessId
    socket: str
    session: str | None
    """The tmux session's name; None if it is gone."""
    reason: str
    due_s: float
    """The time at which its grace has passed: monotonic, of the boot of ``process``."""
    ending: bool = False
    """Whether its termination was decided."""
    clients: frozenset[int] = frozenset()
    """The clients that people had on that server at the last look."""


class EndedAgent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that was ended. No person who came to its tmux server after that has been shown it yet."""

    agent: str
    name: str
    socket: str
    session: str | None
    reason: str
    at: str
    clients: frozenset[int] = frozenset()
    """The clients that were there before: their people have seen the countdown."""


class SessionEnds(msgspec.Struct, frozen=True, kw_only=True):
    countdowns: tuple[Countdown, ...] = ()
    ended: tuple[EndedAgent, ...] = ()


def dump(ends: SessionEnds) -> bytes:
    return json.dumps({"version": 1, **msgspec.to_builtins(ends)}, indent=2).encode() + b"\n"


def load(data: bytes) -> SessionEnds:
    """The content of the file; empty if it cannot be read: then a person is shown less."""
    try:
        ends = msgspec.convert(load_object(data), type=SessionEnds)
        for end in ends.ended:
            from_iso(end.at)
    except ValueError:
        return SessionEnds()
    return ends
