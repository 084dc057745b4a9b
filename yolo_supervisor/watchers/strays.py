"""Watches for strays: teammates without a lead, shared sessions, teammates that never came. They are only reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.clock import Clock, in_turns, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.inventory.strays import StrayReader
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.policy.strays import Stray, StrayCode, strays
from yolo_supervisor.watchers.base import Remediation

STRAY_S = 30.0
"""The time for which a stray is seen before it is reported: a teammate that ends in order leaves its team first."""


def decide(seen: Sequence[tuple[Stray, float]]) -> list[Remediation]:
    """Report each stray that has been seen for ``STRAY_S``."""
    return [(_alert(stray),) for stray, seen_s in seen if seen_s >= STRAY_S]


def _alert(stray: Stray) -> Escalate:
    code = AlertCode.SESSION_SHARED if stray.code is StrayCode.SHARED_SESSION else AlertCode.AGENT_STRAY
    return Escalate(
        kind="agent",
        code=code,
        key=stray.key,
        detail=str(stray.code),
        reason=stray.reason,
        evidence={"stray": str(stray.code), "pids": list(stray.pids)},
    )


class StraysWatcher:
    name = "strays"

    def __init__(
        self, config: Config, reader: StrayReader, agents: Callable[[], list[tuple[Agent, Liveness]]], clock: Clock
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._reader = reader
        self._agents = agents
        self._clock = clock
        self._since_s: dict[tuple[object, ...], float] = {}
        """When each stray was first seen, in time awake."""

    @property
    def interval_s(self) -> float:
        return self.config.tasks.interval_s

    def rest_s(self) -> float:
        return until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        async for _ in in_turns(self._reader.read_ahead(), self._clock):
            pass  # much to read in one project must not delay another
        return decide(self.observe(now, ahead=True))

    def observe(self, now: datetime, *, ahead: bool = False) -> list[tuple[Stray, float]]:
        """The strays now, and for how long each has been seen. ``ahead`` says that the reader has read ahead."""
        found, now_s = strays(self._reader.read(self._agents(), now, ahead=ahead)), self._clock.awake()
        self._since_s = {stray.identity: self._since_s.get(stray.identity, now_s) for stray in found}
        return [(stray, now_s - self._since_s[stray.identity]) for stray in found]
