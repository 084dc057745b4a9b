"""Actions on leases and locks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from yolo_supervisor.actions.base import Action, Edit, Kind, Replace
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.read import digest


@dataclass(frozen=True, kw_only=True)
class GrantLease(Replace):
    """Give a lease to its new owner, or to the same one for longer; its line's number is the fencing token."""

    kind: ClassVar[Kind] = "lease"
    verb: Literal["acquired", "renewed", "taken_over"]  # type: ignore[misc]  # one change of one file, three turns


@dataclass(frozen=True, kw_only=True)
class Release(Edit):
    """End a lease: its holder is gone, or has given it back, or has let it run out."""

    kind: ClassVar[Kind] = "lease"
    verb: ClassVar[str] = "released"
    distinct_by: ClassVar[tuple[str, ...]] = ("owner",)
    owner: str
    judged: str | None = None
    """The digest of the lease that ran out: one that was renewed meanwhile has not."""

    def holds(self, before: bytes | None) -> bool:
        held = plugin_leases.lease(before, self.path) if before is not None else None
        return held is not None and held.owner == self.owner and self.judged in (None, digest(before))

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class BreakLock(Action):
    """Remove a lock that is a folder, and that nobody has touched for so long that its holder must be gone."""

    kind: ClassVar[Kind] = "lease"
    verb: ClassVar[str] = "released"
    path: Path
    stale_s: float
