"""Actions of the commits program, of the gates and of the daemon's life."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from yolo_supervisor.actions.base import NO_EVIDENCE, Note, WriteFile
from yolo_supervisor.fs.read import digest

DaemonVerb = Literal["started", "stopped", "reloaded", "recovered"]


def rebased(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that commits were put on top of the upstream's, and pushed."""
    return Note(kind="commit", verb="rebased", key=key, reason=reason, evidence=evidence)


def regenerate_contract(
    *,
    key: str,
    path: Path,
    expected_digest: str | None,
    data: bytes,
    reason: str,
    evidence: Mapping[str, Any] = NO_EVIDENCE,
) -> WriteFile:
    """Generate a contract from its plan."""
    return WriteFile(
        kind="gate",
        verb="repaired",
        key=key,
        path=path,
        expected_digest=expected_digest,
        data=data,
        reason=reason,
        evidence=evidence,
    )


def adopted(*, folder: Path, replaced: Path | None) -> Note:
    """Record that an older state folder was taken up."""
    aside = {"set_aside": str(replaced)} if replaced is not None else {}
    evidence = {"folder": str(folder), **aside}
    return Note(kind="state", verb="adopted", key="state folder", reason="asked to", evidence=evidence)


def trusted(*, content: bytes | None, reason: str) -> Note:
    """Record that the project, with this content of its configuration file, is trusted; None: no longer."""
    evidence = {"digest": digest(content)}
    return Note(kind="state", verb="trusted", key="supervisor.toml", reason=reason, evidence=evidence)


def daemon(verb: DaemonVerb, *, key: str = "daemon", reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE) -> Note:
    """Record an event in the daemon's life."""
    return Note(kind="daemon", verb=verb, key=key, reason=reason, evidence=evidence)
