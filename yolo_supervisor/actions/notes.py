"""Actions of the commits program, the gates and the daemon itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from yolo_supervisor.actions.base import Kind, Note, Replace

# -- commits ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rebased(Note):
    """Commits were put on top of what others had pushed before, and pushed."""

    kind: ClassVar[Kind] = "commit"
    verb: ClassVar[str] = "rebased"


# -- gates ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Regenerate(Replace):
    """Generate a contract anew from its plan."""

    kind: ClassVar[Kind] = "gate"
    verb: ClassVar[str] = "repaired"


# -- the daemon itself ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DaemonNote(Note):
    """The supervisor's own life: started, stopped, reloaded, recovered."""

    kind: ClassVar[Kind] = "daemon"
    verb: str  # type: ignore[misc]  # one class for the four, they differ in nothing else
