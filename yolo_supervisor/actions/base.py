"""The bases of all actions. An ``Edit`` changes one document; a ``Note`` changes nothing and is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

from yolo_supervisor.fs.read import digest

Kind = Literal["agent", "task", "lease", "flag", "session", "state", "commit", "gate", "command", "daemon"]

Verb = Literal[
    "acquired", "adopted", "announced", "circuit_closed", "circuit_half_opened", "circuit_opened", "claimed",
    "completed",
    "crash_reported", "dead_letter_removed", "dead_letter_written", "dead_lettered", "died", "disabled", "dropped",
    "enabled", "escalated", "forgotten", "held", "pruned", "quarantined", "rebased", "recovered", "redriven",
    "registered", "released", "reloaded", "renewed", "repaired", "requeued", "restart_given_up", "restart_reset",
    "restarted", "restored", "resumed", "snapshotted", "started", "stopped",
    "taken_over", "terminated", "trusted", "updated", "version_saved", "work_saved",
]  # fmt: skip
"""The verbs of the journal (docs/journal.md). They are a wire format: they do not change."""

NO_EVIDENCE: Mapping[str, Any] = MappingProxyType({})


class ClaimFacts(Protocol):
    """The newest claim of a task."""

    @property
    def token(self) -> int: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def live(self) -> bool:
        """Whether the task was not given back since."""


class JournalFacts(Protocol):
    """The part of the journal's index that an action may read, under the store's lock."""

    @property
    def claims(self) -> Mapping[str, ClaimFacts]:
        """The newest claim of each task."""

    @property
    def dead_letters(self) -> Mapping[str, str]:
        """The dead letters by task, with the reason of each."""


class AlertCode(StrEnum):
    """The codes of alerts. With ``kind`` and ``key`` the code identifies an alert; the reason may vary."""

    AGENT_IDLE = "agent_idle"
    AGENT_NOT_RESTARTED = "agent_not_restarted"
    """A dead agent that is not started again: a person is needed."""
    AGENT_NOT_RESUMED = "agent_not_resumed"
    """An agent that was started again, and whose model has not answered since."""
    AGENT_ORPHANED = "agent_orphaned"
    AGENT_RECORD_UNREADABLE = "agent_record_unreadable"
    AGENT_SILENT = "agent_silent"
    """Its turn is over, and its task is still in progress."""
    AGENT_STALLED = "agent_stalled"
    AGENT_STRAY = "agent_stray"
    """A teammate without a lead, or that never came; or a session without its daemon."""
    AGENT_WAITING = "agent_waiting"
    AGENTS_INTERRUPTED = "agents_interrupted"
    """Agents were at work when the machine, or their tmux server, went down; a person may start them again."""
    CALL_FAILED = "call_failed"
    COMMIT_FAILED = "commit_failed"
    BRANCH_UPDATE_CUT_OFF = "branch_update_cut_off"
    CRASH_BURST = "crash_burst"
    FILE_NOT_RESTORABLE = "file_not_restorable"
    FILE_NOT_STRICT = "file_not_strict"
    """A critical file that strict readers refuse, and lenient ones understand."""
    FILE_UNMERGED = "file_unmerged"
    """A critical file in a merge conflict."""
    FILE_UNREADABLE = "file_unreadable"
    FLAG_CONFIG_UNREADABLE = "flag_config_unreadable"
    FLAG_LEFT_ON = "flag_left_on"
    """The flag fails too often, and the supervisor needs it."""
    FLAG_OFF = "flag_off"
    GATE_FAILED = "gate_failed"
    LOCK_HELD_LONG = "lock_held_long"
    """A living process has held a lock of git's for so long that it may be stopped or hang."""
    LOCK_OF_UNKNOWN = "lock_of_unknown"
    MASS_DEATH = "mass_death"
    MASS_END = "mass_end"
    """The policy would end more than half of the agents at once."""
    PIDS_UNKNOWN = "pids_unknown"
    """The plugin's files name pids that no process has here."""
    PROCESSES_LEFT = "processes_left"
    SESSION_LEFT = "session_left"
    SESSION_LEFT_TO_PLUGIN = "session_left_to_plugin"
    SESSION_NOT_RESUMED = "session_not_resumed"
    """A session of ``claude --bg`` died at work, and so has the daemon that would have resumed it."""
    SESSION_SHARED = "session_shared"
    """Several processes run one session of the client."""
    SETTINGS_UNTRUSTED = "settings_untrusted"
    """Settings of the project's own file are ignored until the user trusts it."""
    STATE_FOLDER_FOREIGN = "state_folder_foreign"
    """The project holds a state folder that this machine did not write."""
    STATE_FOLDER_OFFERED = "state_folder_offered"
    """The state of another project at this path was set aside."""
    TASK_DONE_TWICE = "task_done_twice"
    TASK_HELD = "task_held"
    TASK_OWNER_UNCLEAR = "task_owner_unclear"
    TASK_OWNER_UNKNOWN = "task_owner_unknown"
    TASK_UNREADABLE = "task_unreadable"
    WORK_HIDDEN = "work_hidden"
    """A hook of a commit that was ended has hidden changes, which are not in the work tree."""
    WORK_NOT_SAVED = "work_not_saved"
    """The uncommitted work of a dead agent could not be copied before the agent is started again."""


class WriteMode(StrEnum):
    """The way in which the new content of a document reaches the disk."""

    REPLACE = "replace"
    """Atomically: readers and crashes see the old content or the new one."""
    TRUNCATE = "truncate"
    """Cut off the end in place: for logs that other programs append to. They would lose lines by a replacement."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """The parts of every action: its subject (``kind``, ``key``), its verb, its reason and its evidence."""

    distinct_by: ClassVar[tuple[str, ...]] = ()
    """The fields that distinguish two such actions on one key."""
    kind: Kind
    verb: Verb
    key: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for the same action in the next tick: the reason and the evidence may change."""
        return (self.kind, self.key, self.verb, *(getattr(self, name) for name in self.distinct_by))


@dataclass(frozen=True, kw_only=True)
class Edit(Action):
    """A change of one document. The store asks under the lock whether it still ``holds``, then makes it."""

    makes_folder: ClassVar[bool] = False
    """Whether the document's folder is made where it is missing."""
    path: Path
    replayable: bool = True
    """Whether recovery may make the change if a crash interrupted it. Otherwise a watcher decides again."""
    write_mode: WriteMode = WriteMode.REPLACE

    @property
    def lock(self) -> tuple[Path, float] | None:
        """The lock folder of the file's owner, and the age in seconds at which such a lock is stale."""
        return None

    def allowed(self, known: JournalFacts, before: bytes | None = None) -> bool:
        """Whether the journal's index permits the change: asked first, under the store's lock."""
        return True

    def holds(self, before: bytes | None) -> bool:
        """Whether the decision still fits the document; ``before`` is None where there is none."""
        raise NotImplementedError

    def edit(self, before: bytes | None) -> bytes | None:
        """The document's new content, None to remove it. Called only where the decision holds."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class WriteFile(Edit):
    """Give a document another content, if it is still the expected one; None means no document."""

    expected_digest: str | None
    """The digest of the content that the decision is based on; None if there was no document."""
    data: bytes | None

    def holds(self, before: bytes | None) -> bool:
        return digest(before) == self.expected_digest

    def edit(self, before: bytes | None) -> bytes | None:
        return self.data


@dataclass(frozen=True, kw_only=True)
class RemoveFile(Edit):
    """Remove a document with any content. The journal keeps the content."""

    def holds(self, before: bytes | None) -> bool:
        return before is not None

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Note(Action):
    """An entry in the journal that changes nothing else."""

    durable: bool = True
    """Whether the entry must be on the device at once, not only with the next durable line."""


@dataclass(frozen=True, kw_only=True)
class Escalate(Note):
    """Ask for a person where the supervisor must not or cannot act."""

    distinct_by: ClassVar[tuple[str, ...]] = ("code", "detail")
    verb: Verb = "escalated"
    code: AlertCode
    detail: str | None = None
    """The code of the condition (of a flaw, of an errno) where one alert code covers several."""
