"""Actions on commands, calls and circuit breakers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from yolo_supervisor.actions.base import Kind, Note, Replace

# -- commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CommandTimedOut(Note):
    """A command has had its time and was ended."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "terminated"


@dataclass(frozen=True, kw_only=True)
class OpenCircuit(Replace):
    """Open a circuit: what keeps failing is not tried for a while."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "circuit_opened"


@dataclass(frozen=True, kw_only=True)
class HalfOpenCircuit(Replace):
    """Say who tries whether an open circuit can be closed: one at a time."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "circuit_half_opened"


@dataclass(frozen=True, kw_only=True)
class CloseCircuit(Replace):
    """Close a circuit: what had failed is well again."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "circuit_closed"


@dataclass(frozen=True, kw_only=True)
class CallRecovered(Note):
    """A call went well that had failed before."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "recovered"
    durable: ClassVar[bool] = False
