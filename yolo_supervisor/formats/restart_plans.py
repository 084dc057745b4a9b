"""``restarts.json``: the dead agents that a running supervisor is going to start again, for ``status``."""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from yolo_supervisor.formats.json import load_object


class PlannedStart(msgspec.Struct, frozen=True, kw_only=True):
    """A start that is under way or due, or waits."""

    agent: str
    state: Literal["starting", "waiting"]
    attempt: int
    of: int
    code: str
    reason: str
    due_s: float | None = None
    """The time until which it waits: monotonic, of the boot of the supervisor."""


class PlannedStarts(msgspec.Struct, frozen=True, kw_only=True):
    starts: tuple[PlannedStart, ...] = ()


def dump(starts: tuple[PlannedStart, ...]) -> bytes:
    return json.dumps({"version": 1, **msgspec.to_builtins(PlannedStarts(starts=starts))}, indent=2).encode() + b"\n"


def load(data: bytes) -> tuple[PlannedStart, ...]:
    """The content of the file; empty if it cannot be read: then ``status`` shows less."""
    try:
        return msgspec.convert(load_object(data), type=PlannedStarts).starts
    except ValueError:
        return ()
