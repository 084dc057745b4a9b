"""The watcher protocol: a watcher observes and decides, and changes nothing. The executor applies its decisions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Protocol

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import Action

Remediation = tuple[Action, ...]
"""Actions that belong together, in order. A step is taken only when the one before it is done, and the last one removes
the evidence of the condition. Remediations do not wait for each other."""

Objection = Callable[[Terminate], Awaitable[str | None]]
"""Observes again right before a signal. Returns the reason why the decision no longer holds, or None if it holds."""


class Watcher(Protocol):
    name: str

    @property
    def interval_s(self) -> float:
        """The usual pause between two ticks."""

    def rest_s(self) -> float:
        """The pause from now on, unless woken."""

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        """Observe and decide.

        Asked again, it returns the same until the condition is gone.
        """


class Terminator(Watcher, Protocol):
    """A watcher that decides terminations. No other watcher may return a ``Terminate``."""

    async def objection(self, action: Terminate) -> str | None:
        """Observe again right before a signal, see ``Objection``."""


class KeepsObservations(Watcher, Protocol):
    """A watcher that stores what it observed. That changes no document, so it happens in every mode."""

    def save_observations(self) -> bool:
        """Store what the last tick observed; False if another process holds the lock: the next tick tries again.

        OSError if it cannot be written.
        """
