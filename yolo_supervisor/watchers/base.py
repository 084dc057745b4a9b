"""The watchers: each looks and decides, and changes nothing. What they decide is carried out by the runner."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import Action

Remediation = tuple[Action, ...]
"""What belongs together, in order: each step is only taken when the one before it is done, and the last one ends the
proof of the trouble. Different remedies do not wait for each other."""


class Watcher(Protocol):
    name: str

    @property
    def interval_s(self) -> float:
        """How long to rest between two looks, as a rule."""

    def rest_s(self) -> float:
        """How long to rest now, unless woken."""

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        """Look, and say what is to be done. Asked again, it says the same until the trouble is gone."""

    async def objection(self, action: Terminate) -> str | None:
        """Look again right before a signal: why the decision does not hold any more, or None if it does."""
