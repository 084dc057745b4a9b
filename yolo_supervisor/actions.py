"""All that the supervisor is able to do. An action is a frozen value: the decision in a test, the entry in the journal.

An ``Edit`` changes one document; a ``Deed`` reaches outside the disk; a ``Note`` changes nothing but what people know.
In a list of actions what proves the trouble goes last, so that a crash in between leaves the proof standing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from yolo_supervisor.files import digest
from yolo_supervisor.formats import claude, load_object, supervisor, tasks, yolo
from yolo_supervisor.formats.crash_report import Report
from yolo_supervisor.memory import Memory
from yolo_supervisor.records import Agent, ProcessId, Task

Kind = Literal["agent", "task", "lease", "flag", "session", "state", "commit", "gate", "command", "daemon"]


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

    def allowed(self, memory: Memory, before: bytes | None = None) -> bool:
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


# -- agents -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Register(Edit):
    """Begin to watch an agent."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "registered"
    agent: Agent

    def holds(self, before: bytes | None) -> bool:
        return before is None or supervisor.load_agent(before) is None

    def edit(self, before: bytes | None) -> bytes | None:
        return supervisor.dump_agent(self.agent)


@dataclass(frozen=True, kw_only=True)
class Died(Note):
    """An agent's process is proven to be over."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "died"
    durable: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class WriteCrashReport(Action):
    """Write the crash report of an agent. The journal mentions it in the entry of the death."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "crash_reported"
    report: Report


@dataclass(frozen=True, kw_only=True)
class PaneDied(Note):
    """tmux tells how the process in an agent's pane ended."""

    kind: ClassVar[Kind] = "session"
    verb: ClassVar[str] = "died"
    distinct_by: ClassVar[tuple[str, ...]] = ("agent", "pane")
    agent: str
    pane: str


@dataclass(frozen=True, kw_only=True)
class Forget(Remove):
    """End the watch over an agent: the last step, its record is the proof that something is left to do."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "forgotten"


@dataclass(frozen=True, kw_only=True)
class Terminate(Action):
    """Ask the roots and all that is in their trees to leave, and kill what stays after the grace period."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "terminated"
    distinct_by: ClassVar[tuple[str, ...]] = ("roots",)
    roots: tuple[ProcessId, ...]
    grace_s: float


@dataclass(frozen=True, kw_only=True)
class Escalate(Note):
    """Tell a person what the supervisor must not or cannot mend by itself."""

    verb: ClassVar[str] = "escalated"
    distinct_by: ClassVar[tuple[str, ...]] = ("code",)
    code: AlertCode
    kind: Kind  # type: ignore[misc]  # the only action that concerns every kind


# -- tasks and leases -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Requeue(Edit):
    """Give a task in Claude Code's task list back, so that anyone may claim it."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "requeued"
    distinct_by: ClassVar[tuple[str, ...]] = ("owner",)
    owner: str

    @property
    def lock(self) -> tuple[Path, float] | None:
        return self.path.with_name(self.path.name + ".lock"), claude.LOCK_STALE_S

    def holds(self, before: bytes | None) -> bool:
        raw = load_object(before) if before is not None else None
        return raw is not None and claude.is_claimed(raw, self.owner)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return claude.given_back(before)


@dataclass(frozen=True, kw_only=True)
class RequeuePlan(Edit):
    """Give a plan of the plugin's execution state back."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "requeued"
    distinct_by: ClassVar[tuple[str, ...]] = ("owner",)
    plan: str
    owner: str | None = None

    def holds(self, before: bytes | None) -> bool:
        raw = load_object(before) if before is not None else None
        return raw is not None and yolo.plan_is_running(raw, self.plan, self.owner)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return yolo.plan_given_back(before, self.plan)


@dataclass(frozen=True, kw_only=True)
class TaskEdit(Edit):
    """A change of a task's status and owner, wherever the task lives."""

    kind: ClassVar[Kind] = "task"
    task: Task
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.task.path)

    @property
    def lock(self) -> tuple[Path, float] | None:
        if self.task.list == yolo.EXECUTION_STATE:
            return None
        return self.path.with_name(self.path.name + ".lock"), claude.LOCK_STALE_S

    def holds(self, before: bytes | None) -> bool:
        found = tasks.state(self.task, before) if before is not None else None
        return found is not None and self.fits(*found)

    def fits(self, status: str, owner: str | None) -> bool:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Claim(TaskEdit):
    """Give a task that nobody has to an owner; its line's number is the fencing token."""

    verb: ClassVar[str] = "claimed"
    owner: str

    def allowed(self, memory: Memory, before: bytes | None = None) -> bool:
        return self.key not in memory.set_aside

    def fits(self, status: str, owner: str | None) -> bool:
        return status == tasks.PENDING and owner in (None, self.owner)

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.AT_WORK, self.owner)


@dataclass(frozen=True, kw_only=True)
class Complete(TaskEdit):
    """Finish a task by the claim with this token: also late, when it was given back and nobody has claimed it since."""

    verb: ClassVar[str] = "completed"
    owner: str
    token: int

    def allowed(self, memory: Memory, before: bytes | None = None) -> bool:
        claim = memory.claims.get(self.key)
        if claim is None or (claim["token"], claim["owner"]) != (self.token, self.owner):
            return False
        # given back, and at work again under the same name: a namesake has taken it up by the client
        return bool(claim["live"]) or tasks.state(self.task, before or b"") != (tasks.AT_WORK, self.owner)

    def fits(self, status: str, owner: str | None) -> bool:
        return (status == tasks.AT_WORK and owner == self.owner) or (status == tasks.PENDING and owner is None)

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.DONE, self.owner)


@dataclass(frozen=True, kw_only=True)
class Finished(Note):
    """A task that had failed before, or was claimed here, has been finished by its owner's own hand: nothing of that
    counts against the next task of this name."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "completed"
    durable: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class SetAside(TaskEdit):
    """Take a task that keeps failing out of everybody's reach, until a person has looked at it."""

    verb: ClassVar[str] = "dead_lettered"
    distinct_by: ClassVar[tuple[str, ...]] = ("owner",)
    owner: str | None

    def fits(self, status: str, owner: str | None) -> bool:
        return status == tasks.AT_WORK and owner == self.owner

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.PENDING, tasks.SET_ASIDE)


@dataclass(frozen=True, kw_only=True)
class Redrive(TaskEdit):
    """Put a task that was set aside back into the queue, as if it had never failed."""

    verb: ClassVar[str] = "redriven"

    def fits(self, status: str, owner: str | None) -> bool:
        return owner == tasks.SET_ASIDE and status in tasks.ASIDE

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.PENDING, None)


@dataclass(frozen=True, kw_only=True)
class Hand(TaskEdit):
    """Give a task back because a person says so, whoever has it."""

    verb: ClassVar[str] = "requeued"

    def fits(self, status: str, owner: str | None) -> bool:
        return status == tasks.AT_WORK or (status == tasks.PENDING and owner not in (None, tasks.SET_ASIDE))

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.PENDING, None)


@dataclass(frozen=True, kw_only=True)
class Letter(Make):
    """Write down the story of a task that is set aside."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "told"

    def holds(self, before: bytes | None) -> bool:
        """Unless it is told already: an older one may be left of a task that was not set aside after all."""
        return before is None or _gist(before) != _gist(self.data)


def _gist(letter: bytes) -> tuple[object, ...]:
    """What makes it the letter of this failure. A letter of version 0.1.0 has no code: it is written again."""
    raw = load_object(letter) or {}
    evidence = raw.get("evidence")
    told = evidence if isinstance(evidence, dict) else {}
    return raw.get("code"), raw.get("last_owner"), told.get("attempt"), told.get("cause")


@dataclass(frozen=True, kw_only=True)
class GiveUp(TaskEdit):
    """Remove a task that was set aside, because a person says so; the journal keeps what it was."""

    verb: ClassVar[str] = "dropped"

    def fits(self, status: str, owner: str | None) -> bool:
        return owner == tasks.SET_ASIDE and status in tasks.ASIDE

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class PutAway(Remove):
    """Remove the story of a task that is not set aside any more; the journal keeps it."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "put_away"


@dataclass(frozen=True, kw_only=True)
class Lend(Replace):
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
        held = yolo.lease(before, self.path) if before is not None else None
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
    pid_lock: Path | None = yolo.PID_LOCK

    @property
    def lock(self) -> tuple[Path, float] | None:
        return (self.pid_lock, yolo.PID_LOCK_STALE_S) if self.pid_lock else None

    def holds(self, before: bytes | None) -> bool:
        return before is not None and yolo.mentions_pid(before, self.pids)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return yolo.without_pids(before, self.pids)


@dataclass(frozen=True, kw_only=True)
class DropHealth(Repair):
    """Remove a dead agent's health file, unless a successor of its role has taken it over."""

    distinct_by: ClassVar[tuple[str, ...]] = ("pid",)
    pid: int

    def holds(self, before: bytes | None) -> bool:
        found = yolo.health(before, self.path.stem) if before is not None else None
        return found is not None and found.pid == self.pid

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class SetMark(Repair):
    """Rewrite (or, with None, remove) a one-word file of the plugin: ``.active-agent``, ``.active-agent-count``."""

    distinct_by: ClassVar[tuple[str, ...]] = ("word",)
    judged: str | None
    """The digest of the content that was judged."""
    word: str | None

    @property
    def lock(self) -> tuple[Path, float] | None:
        return self.path.with_name(".active-agent-count.lock"), yolo.PID_LOCK_STALE_S

    def holds(self, before: bytes | None) -> bool:
        return before is not None and digest(before) == self.judged

    def edit(self, before: bytes | None) -> bytes | None:
        return None if self.word is None else self.word.encode()


# -- the plugin's state ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Keep(Action):
    """Remember a critical file's content as its newest good version. Nobody is told: neighbours write all day."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "kept"
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
class Snap(Make):
    """Save the execution state as it is."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "snapshotted"


@dataclass(frozen=True, kw_only=True)
class DropSnapshot(Remove):
    """Remove a snapshot that newer ones have outlived."""

    kind: ClassVar[Kind] = "state"
    verb: ClassVar[str] = "pruned"


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


# -- feature flags ----------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """One outcome of what a flag switches on; where it was told, how far that was read then, and at what it failed."""

    failed: bool
    source: str = ""
    position: int = 0
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class Count(Action):
    """Write outcomes down, and how far their sources were read. Nobody is told: there may be many."""

    kind: ClassVar[Kind] = "flag"
    verb: ClassVar[str] = "counted"
    outcomes: Mapping[str, Sequence[Told]]
    marks: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Switch(Edit):
    """Change one flag in the plugin's ``config.json``; ``key`` is its name."""

    kind: ClassVar[Kind] = "flag"
    on: ClassVar[bool]

    def holds(self, before: bytes | None) -> bool:
        return before is not None and yolo.wishes(before).get(self.key) is (not self.on)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return yolo.with_flag(before, self.key, self.on)


@dataclass(frozen=True, kw_only=True)
class Disable(Switch):
    """Switch a flag off."""

    verb: ClassVar[str] = "disabled"
    on: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Enable(Switch):
    """Switch a flag on again; what was counted before does not count any more."""

    verb: ClassVar[str] = "enabled"
    on: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FoundOn(Note):
    """A flag that was switched off here is on: somebody wants it to be, so it is judged anew."""

    kind: ClassVar[Kind] = "flag"
    verb: ClassVar[str] = "enabled"


# -- commands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Overran(Note):
    """A command has had its time and was ended."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "terminated"


@dataclass(frozen=True, kw_only=True)
class Trip(Replace):
    """Open a circuit: what keeps failing is not tried for a while."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "circuit_opened"


@dataclass(frozen=True, kw_only=True)
class Probe(Replace):
    """Say who tries whether an open circuit can be closed: one at a time."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "circuit_half_opened"


@dataclass(frozen=True, kw_only=True)
class Close(Replace):
    """Close a circuit: what had failed is well again."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "circuit_closed"


@dataclass(frozen=True, kw_only=True)
class Healed(Note):
    """A call went well that had failed before."""

    kind: ClassVar[Kind] = "command"
    verb: ClassVar[str] = "recovered"
    durable: ClassVar[bool] = False


# -- the daemon itself ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DaemonNote(Note):
    """The supervisor's own life: started, stopped, reloaded, recovered."""

    kind: ClassVar[Kind] = "daemon"
    verb: str  # type: ignore[misc]  # one class for the four, they differ in nothing else
