"""The retry policy: a failed task is requeued now or later, or becomes a dead letter."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from yolo_supervisor.actions.base import Edit
from yolo_supervisor.actions.tasks import MoveToDeadLetters, Requeue, WriteDeadLetter
from yolo_supervisor.clock import Clock, Instant, pause_s
from yolo_supervisor.config import Config
from yolo_supervisor.models import Task
from yolo_supervisor.store.store import Store


class NeverCode(StrEnum):
    """The reason why a task is not requeued any more."""

    NOT_REDRIVEN = "not_redriven"
    """The task is a dead letter, and was begun without a redrive."""
    ATTEMPTS = "attempts"
    POISON = "poison"
    """Two attempts in a row failed for the same cause within a short time."""
    CLEAN_ENDS = "clean_ends"
    """Several agents ended in order without finishing the task."""


@dataclass(frozen=True, slots=True)
class Never:
    """Decisions compare ``code``; ``text`` is for people and the journal."""

    code: NeverCode
    text: str


@dataclass(frozen=True, kw_only=True)
class RetryDecision:
    """The decision about a task whose attempt failed.

    ``wait_s`` is the time until it may be requeued.
    """

    cause: str = ""
    """The cause of the failed attempt, as a code."""
    attempt: int = 1
    """The number of the failed attempt."""
    wait_s: float = 0.0
    never: Never | None = None
    """The reason why the task is not requeued any more."""
    stamp: Mapping[str, Any] = field(default_factory=dict)
    """The entry about this failure for the journal."""
    reports: tuple[str, ...] = ()
    """The crash reports of the earlier attempts, the oldest first."""


MAX_CLEAN_ENDS = 3
"""The number of clean ends without completion after which a person has to look at a task: it would go on for ever."""

REPORTS = 5
"""The number of attempts whose crash reports are kept."""

_PLAIN = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*[0-9A-Za-z]/[0-9A-Za-z][0-9A-Za-z_.-]*")


class RetryPolicy:
    """Decides about failed attempts.

    ``boot`` identifies the boot in which monotonic times are comparable.
    """

    def __init__(self, config: Config, store: Store, clock: Clock, boot: str) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._store = store
        self._clock = clock
        self._boot = boot

    def decide(self, task: Task, cause: str, hold_s: float | None = None, *, clean: bool = False) -> RetryDecision:
        """The decision about a task whose attempt failed for ``cause``.

        ``cause`` is a word, so that two failures can be compared. With ``hold_s`` the attempt failed at a rate limit
        that stops all agents for so long: it is not charged. Neither is a ``clean`` end: the agent ended in order, by
        itself, a person or the supervisor.
        """
        config, index = self.config.tasks, self._store.index
        attempt = index.requeues[task.id] + 1
        last, now = index.failures.get(task.id), Instant(self._boot, self._clock.monotonic())
        age_s = last.failed.age(now) if last is not None and last.failed is not None else None
        ago_s = age_s if age_s is not None else float("inf")
        stamp = {"cause": cause, "attempt": attempt, **now.fields()}
        never = None
        reports = last.reports if last is not None else ()
        if task.id in index.dead_letters:  # the client lets any agent take it by name
            never = Never(NeverCode.NOT_REDRIVEN, "it is a dead letter, and was begun again without a redrive")
        elif hold_s is not None:
            stamp = {"cause": cause, "charged": False}
            return RetryDecision(cause=cause, attempt=attempt, wait_s=hold_s, stamp=stamp, reports=reports)
        elif clean:
            stamp = {"cause": cause, "charged": False, "clean": True}
            ends = (last.clean_ends if last is not None else 0) + 1
            if ends >= MAX_CLEAN_ENDS:
                never = Never(NeverCode.CLEAN_ENDS, f"{ends} agents ended in order without finishing it")
            return RetryDecision(cause=cause, attempt=attempt, never=never, stamp=stamp, reports=reports)
        elif attempt >= config.max_attempts:
            never = Never(NeverCode.ATTEMPTS, f"attempt {attempt} of {config.max_attempts} has failed")
        elif last is not None and last.cause == cause and ago_s < config.poison_s:
            text = f"two attempts in a row ended in the same way ({cause}) within {ago_s:.0f} s"
            never = Never(NeverCode.POISON, text)
        wait_s = max(0.0, self._pause_s(task, attempt) - ago_s)
        return RetryDecision(
            cause=cause, attempt=attempt, wait_s=0.0 if never else wait_s, never=never, stamp=stamp, reports=reports
        )

    def _pause_s(self, task: Task, attempt: int) -> float:
        """The backoff before the next attempt: random between attempts, constant for one attempt."""
        if attempt == 1:
            return 0.0
        config = self.config.tasks
        chance = zlib.crc32(f"{task.id}#{attempt}".encode("utf-8", "surrogatepass")) / 2**32
        return pause_s(config.backoff_s, attempt - 1, config.backoff_max_s, chance)


def requeue_or_dead_letter(
    task: Task,
    decision: RetryDecision,
    letters: Path,
    reason: str,
    evidence: Mapping[str, Any],
    replayable: bool = True,
) -> tuple[Edit, ...]:
    """The actions for a decision, none while it is too early.

    ``letters`` is the folder of dead letters.
    """
    if decision.wait_s > 0:
        return ()
    recorded = {"owner": task.owner, **evidence, **decision.stamp}
    if reports := [*decision.reports, *([str(evidence["report"])] if "report" in evidence else [])][-REPORTS:]:
        recorded["reports"] = reports
    if decision.never is not None:
        reason = f"{decision.never.text}: {reason}"
        story = _story(task, decision.never.code, reason, recorded)
        letter = WriteDeadLetter(key=task.id, path=letters / letter_file(task.id), data=story, reason=reason)
        aside = MoveToDeadLetters(
            key=task.id, task=task, owner=task.owner, cause=decision.cause, reason=reason, evidence=recorded,
            replayable=replayable,
        )  # fmt: skip
        return letter, aside
    requeue = Requeue(
        key=task.id,
        task=task,
        owner=task.owner,
        cause=decision.cause,
        reason=reason,
        evidence=recorded,
        replayable=replayable,
    )
    return (requeue,)


def letter_file(ident: str) -> str:
    """The file name of a dead letter's story, unique for each task."""
    if _PLAIN.fullmatch(ident) and "__" not in ident and len(ident) < 200:
        return f"{ident.replace('/', '__')}.json"
    return f"{hashlib.sha256(ident.encode('utf-8', 'surrogatepass')).hexdigest()}.json"


def _story(task: Task, code: NeverCode, reason: str, evidence: Mapping[str, Any]) -> bytes:
    raw = {
        "version": 1,
        "id": task.id,
        "list": task.list,
        "number": task.number,
        "path": str(task.path),
        "subject": task.subject,
        "code": code,
        "why": reason,
        "last_owner": task.owner,
        "evidence": dict(evidence),
    }
    return json.dumps(raw, indent=2, default=str).encode()
