"""Actions on tasks: claim, complete, requeue, dead letters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from yolo_supervisor.actions.base import Edit, JournalFacts, Kind, Make, Note, Remove
from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.models import Task

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
        return raw is not None and execution_state.plan_is_running(raw, self.plan, self.owner)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return execution_state.plan_given_back(before, self.plan)


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
        if self.task.list == execution_state.EXECUTION_STATE:
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

    def allowed(self, known: JournalFacts, before: bytes | None = None) -> bool:
        return self.key not in known.set_aside

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

    def allowed(self, known: JournalFacts, before: bytes | None = None) -> bool:
        claim = known.claims.get(self.key)
        if claim is None or (claim["token"], claim["owner"]) != (self.token, self.owner):
            return False
        # given back, and at work again under the same name: a namesake has taken it up by the client
        return bool(claim["live"]) or tasks.state(self.task, before or b"") != (tasks.AT_WORK, self.owner)

    def fits(self, status: str, owner: str | None) -> bool:
        return (status == tasks.AT_WORK and owner == self.owner) or (status == tasks.PENDING and owner is None)

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.DONE, self.owner)


@dataclass(frozen=True, kw_only=True)
class FinishedByOwner(Note):
    """A task that had failed before, or was claimed here, has been finished by its owner's own hand: nothing of that
    counts against the next task of this name."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "completed"
    durable: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class MoveToDeadLetters(TaskEdit):
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
class RequeueByHand(TaskEdit):
    """Give a task back because a person says so, whoever has it."""

    verb: ClassVar[str] = "requeued"

    def fits(self, status: str, owner: str | None) -> bool:
        return status == tasks.AT_WORK or (status == tasks.PENDING and owner not in (None, tasks.SET_ASIDE))

    def edit(self, before: bytes | None) -> bytes | None:
        return tasks.with_state(self.task, before or b"", tasks.PENDING, None)


@dataclass(frozen=True, kw_only=True)
class WriteDeadLetter(Make):
    """Write down the story of a task that is set aside."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "dead_letter_written"

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
class DropTask(TaskEdit):
    """Remove a task that was set aside, because a person says so; the journal keeps what it was."""

    verb: ClassVar[str] = "dropped"

    def fits(self, status: str, owner: str | None) -> bool:
        return owner == tasks.SET_ASIDE and status in tasks.ASIDE

    def edit(self, before: bytes | None) -> bytes | None:
        return None


@dataclass(frozen=True, kw_only=True)
class RemoveDeadLetter(Remove):
    """Remove the story of a task that is not set aside any more; the journal keeps it."""

    kind: ClassVar[Kind] = "task"
    verb: ClassVar[str] = "dead_letter_removed"
