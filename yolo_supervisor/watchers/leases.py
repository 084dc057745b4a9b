"""Leases that their holders have let run out, and locks that their holders have left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from yolo_supervisor.actions import BreakLock, Terminate
from yolo_supervisor.clock import until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats import yolo
from yolo_supervisor.leases import Held, Leases, over
from yolo_supervisor.store import Store
from yolo_supervisor.watchers import Remedy


def decide(due: Sequence[Held], locks: Mapping[Path, float]) -> list[Remedy]:
    """A lease ends when its time is over, whoever holds it: renewing is the holder's part.

    ``locks`` are the plugin's folders that are locks, and for how long each was seen unchanged, in seconds.
    """
    remedies: list[Remedy] = [(over(each),) for each in due if each.left_s <= 0]
    return remedies + [
        (
            BreakLock(
                key=path.name,
                path=path,
                stale_s=yolo.PID_LOCK_STALE_S,
                reason=f"it was left behind: untouched for {age_s:.0f} s, and those who take it live for 15 s at most",
                evidence={"path": str(path), "unchanged_s": round(age_s, 1)},
            ),
        )
        for path, age_s in locks.items()
        if age_s >= yolo.PID_LOCK_STALE_S
    ]


class LeasesWatcher:
    name = "leases"

    def __init__(
        self, config: Callable[[], Config], leases: Leases, store: Store, pid_lock: Path = yolo.PID_LOCK
    ) -> None:
        self._config = config
        self._leases = leases
        self._store = store
        self._locks = (pid_lock, store.paths.planning / ".active-agent-count.lock")
        self._next_s: float | None = None
        """When the next lease runs out, by the monotonic clock."""

    @property
    def interval_s(self) -> float:
        return self._config().leases.interval_s

    def rest_s(self) -> float:
        """Until the next lease runs out, if that is sooner."""
        rest_s = until_next(self.interval_s)
        return rest_s if self._next_s is None else min(rest_s, max(0.0, self._next_s - self._leases.monotonic()))

    async def tick(self, now: datetime) -> Sequence[Remedy]:
        due, left_s = self._leases.due(now)
        self._next_s = None if left_s is None else self._leases.monotonic() + left_s
        locks = {path: age_s for path in self._locks if (age_s := self._store.lock_age_s(path)) is not None}
        return decide(due, locks)

    async def objection(self, action: Terminate) -> str | None:
        return "no lease is a reason to end a process"
