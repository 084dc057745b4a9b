"""Actions on the plugin's state: its bookkeeping, good versions, quarantine, snapshots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from yolo_supervisor.actions.base import Action, Edit, Kind, Make, Remove, Replace
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.read import digest

# -- the plugin's own bookkeeping of agents ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Repair(Edit):
    """Bring a bookkeeping file of the plugin into line with who is alive."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "repaired"


@dataclass(frozen=True, kw_only=True)
class DropPids(Repair):
    """Strike dead agents' lines from ``.agent-pids`` or ``.agent-panes``."""

    distinct_by: ClassVar[tuple[str, ...]] = ("pids",)
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
class DropHealth(Repair):
    """Remove a dead agent's health file, unless a successor of its role has taken it over."""

    distinct_by: ClassVar[tuple[str, ...]] = ("pid",)
    pid: int

    def holds(self, before: bytes | None) -> bool:
        found = plugin_agents.health(before, self.path.stem) if before is not None else None
        return found is not None and found.pid == self.pid

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class SetMarker(Repair):
    """Rewrite (or, with None, remove) a one-word file of the plugin: ``.active-agent``, ``.active-agent-count``."""

    distinct_by: ClassVar[tuple[str, ...]] = ("word",)
    judged: str | None
    """The digest of the content that was judged."""
    word: str | None

    @property
    def lock(self) -> tuple[Path, float] | None:
        return self.path.with_name(".active-agent-count.lock"), plugin_agents.PID_LOCK_STALE_S

    def holds(self, before: bytes | None) -> bool:
        return before is not None and digest(before) == self.judged

    def edit(self, before: bytes | None) -> bytes | None:
        return None if self.word is None else self.word.encode()


# -- the plugin's state ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SaveVersion(Action):
    """Remember a critical file's content as its newest good version. Nobody is told: neighbours write all day."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "version_saved"
    path: Path
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Quarantine(Make):
    """Put a copy of what cannot be right aside, before anything is done about it."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "quarantined"


@dataclass(frozen=True, kw_only=True)
class Restore(Replace):
    """Put a good content in the place of a broken one, or, with None, nothing."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "restored"


@dataclass(frozen=True, kw_only=True)
class CutTail(Repair):
    """Cut the half-written line from the end of a log."""

    judged: str | None
    size: int
    """How many bytes of it are whole."""

    def holds(self, before: bytes | None) -> bool:
        return before is not None and digest(before) == self.judged

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return before[: self.size]


@dataclass(frozen=True, kw_only=True)
class SaveSnapshot(Make):
    """Save the execution state as it is."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "snapshotted"


@dataclass(frozen=True, kw_only=True)
class DropSnapshot(Remove):
    """Remove a snapshot that newer ones have outlived."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "pruned"
