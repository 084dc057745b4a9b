"""Actions on the plugin's files: registry files, critical files, quarantine, snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from yolo_supervisor.actions.base import NO_EVIDENCE, Action, Edit, Kind, Note, RemoveFile, Verb, WriteFile, WriteMode
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.models import FlawCode

# -- the plugin's registry files --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DropPids(Edit):
    """Remove the lines of dead agents from ``.agent-pids`` or ``.agent-panes``."""

    distinct_by: ClassVar[tuple[str, ...]] = ("pids",)
    kind: Kind = "state"
    verb: Verb = "repaired"
    pids: frozenset[int]
    pid_lock: Path | None = plugin_agents.PID_LOCK

    @property
    def lock(self) -> tuple[Path, float] | None:
        return (self.pid_lock, plugin_agents.PID_LOCK_STALE_S) if self.pid_lock else None

    def holds(self, before: bytes | None) -> bool:
        return before is not None and plugin_agents.mentions_pid(before, self.pids)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return plugin_agents.without_pids(before, self.pids)


@dataclass(frozen=True, kw_only=True)
class DropHealth(Edit):
    """Remove a dead agent's health file, unless a successor in its role has taken it over."""

    distinct_by: ClassVar[tuple[str, ...]] = ("pid",)
    kind: Kind = "state"
    verb: Verb = "repaired"
    pid: int

    def holds(self, before: bytes | None) -> bool:
        health = plugin_agents.health(before, self.path.stem) if before is not None else None
        return health is not None and health.pid == self.pid

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class SetMarker(WriteFile):
    """Rewrite a one-word file of the plugin: ``.active-agent``, ``.active-agent-count``. None removes it."""

    distinct_by: ClassVar[tuple[str, ...]] = ("data",)
    kind: Kind = "state"
    verb: Verb = "repaired"

    @property
    def lock(self) -> tuple[Path, float] | None:
        return self.path.with_name(plugin.ACTIVE_AGENT_LOCK), plugin_agents.PID_LOCK_STALE_S


# -- critical files ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SaveVersion(Action):
    """Keep a critical file's content as its newest good version. It makes no entry: there may be many."""

    kind: Kind = "state"
    verb: Verb = "version_saved"
    path: Path
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Restore(WriteFile):
    """Replace a critical file by a good content. None removes it."""

    distinct_by: ClassVar[tuple[str, ...]] = ("flaw",)
    kind: Kind = "state"
    verb: Verb = "restored"
    flaw: FlawCode | None
    """The damage of the replaced content; None if a person asked for the restoration."""


def cut_tail(
    *, key: str, path: Path, expected_digest: str, data: bytes, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE
) -> WriteFile:
    """Cut the half-written last line off a log; ``data`` is the part that remains."""
    return WriteFile(
        kind="state",
        verb="repaired",
        key=key,
        path=path,
        expected_digest=expected_digest,
        data=data,
        write_mode=WriteMode.TRUNCATE,
        reason=reason,
        evidence=evidence,
    )


def quarantine(
    *, key: str, path: Path, data: bytes, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE
) -> WriteFile:
    """Save a copy of a broken content before it is changed."""
    return WriteFile(
        kind="state",
        verb="quarantined",
        key=key,
        path=path,
        expected_digest=None,
        data=data,
        reason=reason,
        evidence=evidence,
    )


def files_pruned(*, folder: str, files: int, size: int) -> Note:
    """Record that the oldest files of a folder in the state folder were removed, to keep it within its quota."""
    reason = f"the oldest {files} files ({size >> 10} KiB) were removed: the folder exceeded its quota"
    evidence = {"files": files, "bytes": size}
    return Note(kind="state", verb="pruned", key=folder, reason=reason, evidence=evidence, durable=False)


# -- snapshots --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SaveSnapshot(WriteFile):
    """Save the execution state as it is, in the plugin's folder."""

    makes_folder: ClassVar[bool] = True
    kind: Kind = "state"
    verb: Verb = "snapshotted"


def drop_snapshot(*, key: str, path: Path, reason: str) -> RemoveFile:
    """Remove a snapshot above the limit."""
    return RemoveFile(kind="state", verb="pruned", key=key, path=path, reason=reason)
