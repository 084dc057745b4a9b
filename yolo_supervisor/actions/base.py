"""What all actions share. An ``Edit`` changes one document; a ``Note`` changes nothing and is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from yolo_supervisor.fs.read import digest

Kind = Literal["agent", "task", "lease", "flag", "session", "state", "commit", "gate", "command", "daemon"]


class JournalFacts(Protocol):
    """What an action may ask of the journal's index, under the store's lock."""

    claims: dict[str, dict[str, Any]]
    """The newest claim of each task: ``token``, ``owner`` and whether it is still ``live``."""
    set_aside: dict[str, str]
    """The dead letters by task, with the reason of each."""


class AlertCode(StrEnum):
    """The alerts there are. With ``kind`` and ``key`` the code is an alert's identity; its reason may vary."""

    AGENT_IDLE = "agent_idle"
    AGENT_ORPHANED = "agent_orphaned"
    AGENT_RECORD_UNREADABLE = "agent_record_unreadable"
    AGENT_SILENT = "agent_silent"
    CALL_FAILED = "call_failed"
    COMMIT_FAILED = "commit_failed"
    BRANCH_UPDATE_CUT_OFF = "branch_update_cut_off"
    CRASH_BURST = "crash_burst"
    FILE_NOT_RESTORABLE = "file_not_restorable"
    FILE_UNREADABLE = "file_unreadable"
    FLAG_CONFIG_UNREADABLE = "flag_config_unreadable"
    FLAG_LEFT_ON = "flag_left_on"
    """It fails too often, and the supervisor needs it."""
    FLAG_OFF = "flag_off"
    GATE_FAILED = "gate_failed"
    LOCK_OF_UNKNOWN = "lock_of_unknown"
    MASS_DEATH = "mass_death"
    PROCESSES_LEFT = "processes_left"
    SESSION_LEFT = "session_left"
    SESSION_LEFT_TO_PLUGIN = "session_left_to_plugin"
    TASK_DONE_TWICE = "task_done_twice"
    TASK_HELD = "task_held"
    TASK_OWNER_UNCLEAR = "task_owner_unclear"
    TASK_UNREADABLE = "task_unreadable"


@dataclass(frozen=True, kw_only=True)
class Action:
    """What is common to all: on what (``kind``, ``key``), what (``verb``), why, and on what evidence."""

    kind: ClassVar[Kind]
    verb: ClassVar[str]
    distinct_by: ClassVar[tuple[str, ...]] = ()
    """The fields that tell two such actions on one key apart."""
    key: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for the same action at the next look, whatever its reason and the figures in its evidence are then."""
        return (self.kind, self.key, self.verb, *(getattr(self, name) for name in self.distinct_by))


@dataclass(frozen=True, kw_only=True)
class Edit(Action):
    """A change of one document: asked again under the lock whether it still ``holds``, then made."""

    path: Path
    replayable: bool = True
    """Whether a restart may make the change if a crash interrupted it; else it is decided again."""

    @property
    def lock(self) -> tuple[Path, float] | None:
        """The folder that the file's owners lock it with, and after how many seconds such a lock is abandoned."""
        return None

    def allowed(self, known: JournalFacts, before: bytes | None = None) -> bool:
        """Whether what the journal knows lets it be: asked first, under the store's lock."""
        return True

    def holds(self, before: bytes | None) -> bool:
        """Whether the document is still as it was judged; ``before`` is None where there is none."""
        raise NotImplementedError

    def edit(self, before: bytes | None) -> bytes | None:
        """The document's new content, None to remove it. Only called where the decision holds."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Make(Edit):
    """Make a new document. One that is there stays as it is."""

    data: bytes

    def holds(self, before: bytes | None) -> bool:
        return before is None

    def edit(self, before: bytes | None) -> bytes | None:
        return self.data


@dataclass(frozen=True, kw_only=True)
class Remove(Edit):
    """Remove a document. The journal keeps what it held."""

    def holds(self, before: bytes | None) -> bool:
        return before is not None

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Replace(Edit):
    """Put another content in the place of the one that was judged; None is no document."""

    judged: str | None
    """The digest of the content that was judged; None if there was no document."""
    data: bytes | None

    def holds(self, before: bytes | None) -> bool:
        return digest(before) == self.judged

    def edit(self, before: bytes | None) -> bytes | None:
        return self.data


@dataclass(frozen=True, kw_only=True)
class Note(Action):
    """Something worth telling that changes nothing."""

    durable: ClassVar[bool] = True
    """Whether it must be on the device at once; what the next durable line brings along need not."""


@dataclass(frozen=True, kw_only=True)
class Escalate(Note):
    """Tell a person what the supervisor must not or cannot mend by itself."""

    verb: ClassVar[str] = "escalated"
    distinct_by: ClassVar[tuple[str, ...]] = ("code",)
    code: AlertCode
    kind: Kind  # type: ignore[misc]  # the only action that concerns every kind
