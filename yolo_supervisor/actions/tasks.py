"""Actions on tasks: claim, complete, requeue, dead letters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from yolo_supervisor.actions.base import Edit, JournalFacts, Kind, Note, RemoveFile, Verb, WriteFile
from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.models import Task


@dataclass(frozen=True, kw_only=True)
class TaskEdit(Edit):
    """A change of a task's status and owner, in a client's task list or in the plugin's execution state."""

    kind: Kind = "task"
    task: Task
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.task.path)

    @property
    def lock(self) -> tuple[Path, float] | None:
        if self.task.list == execution_state.EXECUTION_STATE:
            return None
        return self.path.with_name(self.path.name + ".lock"), claude.LOCK_STALE_S

    def holds(self, before: bytes | None) -> bool:
        state = tasks.state(self.task, before) if before is not None else None
        return state is not None and self.fits(*state)

    def fits(self, status: str, owner: str | None) -> bool:
        """Whether the decision still fits the task's status and owner."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Claim(TaskEdit):
    """Give a free task to an owner; the number of the journal's line is the fencing token."""

    verb: Verb = "claimed"
    owner: str

    def allowed(self, known: JournalFacts, before: bytes | None = None) -> bool:
        return self.key not in known.dead_letters

    def fits(self, status: str, owner: str | None) -> bool:
        return status == tasks.PENDING and owner in (None, self.owner)

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.AT_WORK, self.owner)


@dataclass(frozen=True, kw_only=True)
class Complete(TaskEdit):
    """Finish a task by the claim with this token; a requeued task, too, if it was not claimed since."""

    verb: Verb = "completed"
    owner: str
    token: int

    def allowed(self, known: JournalFacts, before: bytes | None = None) -> bool:
        claim = known.claims.get(self.key)
        if claim is None or (claim.token, claim.owner) != (self.token, self.owner):
            return False
        # after a requeue, an agent of the same name may have taken the task in the client, without a claim
        return claim.live or tasks.state(self.task, before or b"") != (tasks.AT_WORK, self.owner)

    def fits(self, status: str, owner: str | None) -> bool:
        return (status == tasks.AT_WORK and owner == self.owner) or (status == tasks.PENDING and owner is None)

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.DONE, self.owner)


@dataclass(frozen=True, kw_only=True)
class Requeue(TaskEdit):
    """Give a task back to the queue: pending, without an owner."""

    distinct_by: ClassVar[tuple[str, ...]] = ("owner", "cause")
    verb: Verb = "requeued"
    owner: str | None
    cause: str
    """The cause of the failed attempt, as a code."""
    by_hand: bool = False
    """Whether a person asked for it: then it is taken from any owner, also before the work has begun."""

    def fits(self, status: str, owner: str | None) -> bool:
        if self.by_hand:
            return status == tasks.AT_WORK or (status == tasks.PENDING and owner not in (None, tasks.SET_ASIDE))
        return status == tasks.AT_WORK and owner == self.owner

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.PENDING, None)


def finished_by_owner(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that the owner's own edit finished the task: earlier attempts do not count for the next task of the
    name."""
    return Note(kind="task", verb="completed", key=key, reason=reason, evidence=evidence, durable=False)


# -- dead letters -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WriteDeadLetter(WriteFile):
    """Write the story of a task that becomes a dead letter."""

    kind: Kind = "task"
    verb: Verb = "dead_letter_written"
    expected_digest: str | None = None
    data: bytes

    def holds(self, before: bytes | None) -> bool:
        """Whether the present story is of another failure: its task may not have become a dead letter after all."""
        return before is None or _failure(before) != _failure(self.data)


def _failure(letter: bytes) -> tuple[object, ...]:
    """The identity of the failure. A story of version 0.1.0 has no code: it is written again."""
    raw = load_object(letter) or {}
    evidence = raw.get("evidence")
    recorded = evidence if isinstance(evidence, dict) else {}
    return raw.get("code"), raw.get("last_owner"), recorded.get("attempt"), recorded.get("cause")


@dataclass(frozen=True, kw_only=True)
class MoveToDeadLetters(TaskEdit):
    """Make a task a dead letter, so that no agent can claim it until a person decides."""

    distinct_by: ClassVar[tuple[str, ...]] = ("owner", "cause")
    verb: Verb = "dead_lettered"
    owner: str | None
    cause: str
    """The cause of the last failed attempt, as a code."""

    def fits(self, status: str, owner: str | None) -> bool:
        return status == tasks.AT_WORK and owner == self.owner

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.PENDING, tasks.SET_ASIDE)


@dataclass(frozen=True, kw_only=True)
class EndDeadLetter(TaskEdit):
    """Carry out what a person decided about a dead letter."""

    removes: bool
    """Whether the task is removed. Otherwise it is pending, without an owner."""

    def fits(self, status: str, owner: str | None) -> bool:
        return owner == tasks.SET_ASIDE and status in tasks.ASIDE

    def edit(self, before: bytes | None) -> bytes | None:
        return None if self.removes else tasks.with_state(self.task, before or b"", tasks.PENDING, None)


def redrive(task: Task, reason: str) -> EndDeadLetter:
    """Put a dead letter back into the queue, with its attempts reset."""
    return EndDeadLetter(verb="redriven", removes=False, key=task.id, task=task, reason=reason)


def drop(task: Task, reason: str) -> EndDeadLetter:
    """Remove the task of a dead letter. The journal keeps its content."""
    return EndDeadLetter(verb="dropped", removes=True, key=task.id, task=task, reason=reason)


def remove_dead_letter(*, key: str, path: Path, reason: str) -> RemoveFile:
    """Remove the story of a task that is no dead letter any more. The journal keeps its content."""
    return RemoveFile(kind="task", verb="dead_letter_removed", key=key, path=path, reason=reason)
