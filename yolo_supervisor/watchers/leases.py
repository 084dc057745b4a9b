"""Watches leases that have expired, and stale locks."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.clock import in_turns, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.inventory.leases import Held, Leases, over
from yolo_supervisor.inventory.stale_locks import StaleLock, StaleLocks
from yolo_supervisor.models import Liveness
from yolo_supervisor.system.git_files import OWN_FOLDER
from yolo_supervisor.watchers.base import Remediation

LOOK_S = 1.0
"""The pause between two looks at a lock of git's whose holder may soon be known, or dead, in seconds."""


HELD_LONG_S = 600.0
"""The time for which a living git may hold a lock, for an editor or a hook for instance, before that is reported."""


def decide(due: Sequence[Held], locks: Sequence[StaleLock]) -> list[Remediation]:
    """End expired leases and stale locks.

    A lease ends at its time, for any holder: its holder has to renew it. A lock of git's has no time: it ends when its
    holder was seen, and is dead. An unknown holder is reported.
    """
    ended = ((over(held),) for held in due if held.left_s <= 0)
    stale = (_end(lock) for lock in locks if lock.age_s >= lock.stale_s)
    return [*ended, *((action,) for action in stale if action is not None)]


def _end(lock: StaleLock) -> BreakLock | Escalate | None:
    unchanged = f"unchanged for {lock.age_s:.0f} s"
    evidence: dict[str, Any] = {"path": str(lock.path), "unchanged_s": round(lock.age_s, 1)}
    code = AlertCode.LOCK_OF_UNKNOWN
    if lock.lease is not None:
        owner = lock.lease.owner
        reason = f"{owner}, an unknown agent, holds it, and a lock never expires: remove {lock.path} if it is stale"
        evidence["owner"] = owner
        return Escalate(kind="lease", code=code, key=lock.key, reason=reason, evidence=evidence)
    if lock.holder is None:
        reason = f"it is stale: {unchanged}, longer than any hook of the plugin may run"
        return BreakLock(key=lock.key, path=lock.path, stale_s=lock.stale_s, reason=reason, evidence=evidence)
    evidence["pids"] = lock.holder.pids
    known = lock.holder.describe()
    if lock.holder.state is Liveness.DEAD:
        reason = f"it is stale: {unchanged}, and {known}"
        return BreakLock(
            key=lock.path.name, path=lock.path, stale_s=lock.stale_s, near=lock.path.parent / OWN_FOLDER,
            reason=reason, evidence=evidence,
        )  # fmt: skip
    if lock.holder.state is Liveness.ALIVE:
        if lock.age_s < HELD_LONG_S:
            return None
        reason = f"the lock is {unchanged}, and {known}: every other git there fails until it ends"
        return Escalate(kind="lease", code=AlertCode.LOCK_HELD_LONG, key=lock.key, reason=reason, evidence=evidence)
    program, command = ("hook", "rm -r") if lock.is_folder else ("git", "rm")
    do = f"if no {program} is at work there: {command} {shlex.quote(str(lock.path))}"
    reason = f"the lock is {unchanged}, and {known}; {do}"
    return Escalate(kind="lease", code=code, key=lock.key, reason=reason, evidence=evidence)


class LeasesWatcher:
    name = "leases"

    def __init__(self, config: Config, leases: Leases, locks: StaleLocks) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._leases = leases
        self._locks = locks
        self._next_s: float | None = None
        """The time at which the next action is due, in time awake."""

    @property
    def interval_s(self) -> float:
        return self.config.leases.interval_s

    def rest_s(self) -> float:
        """The pause until the next tick: shorter if a lease expires or a lock is due before."""
        rest_s = until_next(self.interval_s)
        return rest_s if self._next_s is None else min(rest_s, max(0.0, self._next_s - self._leases.awake()))

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        async for _ in in_turns(self._leases.read_ahead(now), self._leases.clock):
            pass  # thousands of leases in one project must not delay another
        look = in_turns(self._locks.look(self.config.tasks.idle_limit_s), self._leases.clock)
        locks = [lock async for lock in look if lock is not None]
        due, left_s = self._leases.due(now)
        soon = [lock.stale_s - lock.age_s for lock in locks if lock.age_s < lock.stale_s]
        soon += [LOOK_S for lock in locks if lock.changes_soon]
        next_s = min([*soon, *([] if left_s is None else [left_s])], default=None)
        self._next_s = None if next_s is None else self._leases.awake() + next_s
        return decide(due, locks)
