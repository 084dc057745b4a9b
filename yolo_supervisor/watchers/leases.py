"""Leases that their holders have let run out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from yolo_supervisor.actions import Terminate
from yolo_supervisor.clock import until_next
from yolo_supervisor.config import Config
from yolo_supervisor.leases import Held, Leases, over
from yolo_supervisor.watchers import Remedy


def decide(held: Sequence[Held]) -> list[Remedy]:
    """A lease ends when its time is over, whoever holds it: renewing is the holder's part."""
    return [(over(each),) for each in held if each.left_s <= 0]


class LeasesWatcher:
    name = "leases"

    def __init__(self, config: Callable[[], Config], leases: Leases) -> None:
        self._config = config
        self._leases = leases
        self._next_s: float | None = None

    @property
    def interval_s(self) -> float:
        return self._config().leases.interval_s

    def rest_s(self) -> float:
        """Until the next lease runs out, if that is sooner."""
        rest_s = until_next(self.interval_s)
        return rest_s if self._next_s is None else min(rest_s, self._next_s)

    async def tick(self, now: datetime) -> Sequence[Remedy]:
        held = self._leases.all(now)
        self._next_s = min((each.left_s for each in held if each.left_s > 0), default=None)
        return decide(held)

    async def objection(self, action: Terminate) -> str | None:
        return "no lease is a reason to end a process"
