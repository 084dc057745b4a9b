"""The time that agents have been waiting, from the beginning of each wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from yolo_supervisor.inventory.agent_sources import AgentKey
from yolo_supervisor.policy.activity import Activity, Signs, wait_of


@dataclass(frozen=True, slots=True)
class _Wait:
    kind: Activity
    since_s: float
    answered_at: datetime | None


class WaitClocks:
    """A clock for each agent that waits. A change that does not end the wait, such as a retry, does not reset it."""

    def __init__(self) -> None:
        self._waits: dict[AgentKey, _Wait] = {}
        self._seen: dict[AgentKey, _Wait] = {}
        """The waits that this look has seen so far."""

    def renew(self) -> None:
        """Begin a new look: agents that the last one did not see waiting do not wait any more."""
        self._waits, self._seen = self._seen, {}

    def waited_s(self, agent: AgentKey, signs: Signs, now_s: float) -> float:
        """The time since the agent's wait began, 0 if it does not wait."""
        kind = wait_of(signs)
        if kind is None:
            return 0.0
        answered_at = signs.turn.answered_at if signs.turn is not None else None
        before = self._waits.get(agent)
        same = before is not None and before.kind is kind
        if before is None or not same or answered_at not in (None, before.answered_at):
            before = _Wait(kind, now_s, answered_at)
        self._seen[agent] = before
        return now_s - before.since_s
