"""Actions on leases and locks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from yolo_supervisor.actions.base import NO_EVIDENCE, Action, Edit, Kind, Verb, WriteFile
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.read import digest

Grant = Literal["acquired", "renewed", "taken_over"]


def grant(
    verb: Grant,
    *,
    key: str,
    path: Path,
    expected_digest: str | None,
    data: bytes,
    reason: str,
    evidence: Mapping[str, Any] = NO_EVIDENCE,
) -> WriteFile:
    """Give a lease to a new owner, or to its owner for longer. The journal's line number is the fencing token."""
    return WriteFile(
        kind="lease",
        verb=verb,
        key=key,
        path=path,
        expected_digest=expected_digest,
        data=data,
        reason=reason,
        evidence=evidence,
    )


@dataclass(frozen=True, kw_only=True)
class Release(Edit):
    """End a lease: its holder is gone, has given it back, or has let it expire."""

    distinct_by: ClassVar[tuple[str, ...]] = ("owner",)
    kind: Kind = "lease"
    verb: Verb = "released"
    owner: str
    expected_digest: str | None = None
    """The digest of the expired lease: a lease that was renewed since has another. None: any lease of the owner."""

    def holds(self, before: bytes | None) -> bool:
        held = plugin_leases.lease(before, self.path) if before is not None else None
        return held is not None and held.owner == self.owner and self.expected_digest in (None, digest(before))

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class BreakLock(Action):
    """Remove a lock that was unchanged for so long that its holder must be gone."""

    kind: Kind = "lease"
    verb: Verb = "released"
    path: Path
    stale_s: float
    near: Path | None = None
    """The folder that keeps a lock file if the quarantine is on another file system."""
