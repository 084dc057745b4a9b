"""The two clocks: wall time for documents and people, monotonic seconds for every duration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall time, aware and UTC. It may jump; never subtract two of them to get a duration."""

    def monotonic(self) -> float:
        """Seconds that never run backwards and stand still while the machine sleeps."""


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on the monotonic clock of one boot. It cannot be compared with a moment of another boot.

    On disk and in the journal's evidence it is two fields: ``since_s`` and ``boot``.
    """

    boot_id: str
    seconds: float

    def age(self, now: Instant) -> float | None:
        """Seconds from this moment to ``now``; None if the two belong to different boots."""
        return now.seconds - self.seconds if now.boot_id == self.boot_id else None

    def fields(self) -> dict[str, Any]:
        """The two fields of a stored moment."""
        return {"since_s": self.seconds, "boot": self.boot_id}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Instant | None:
        """The moment that two stored fields name; None if either is missing or has another type."""
        seconds, boot_id = fields.get("since_s"), fields.get("boot")
        if isinstance(boot_id, str) and isinstance(seconds, int | float) and not isinstance(seconds, bool):
            return cls(boot_id, float(seconds))
        return None


def until_next(every_s: float) -> float:
    """How long it is, in seconds, to the next multiple of ``every_s`` by the monotonic clock.

    All who wait so wake together: a wake-up by itself costs more than most looks, and dozens of timers of their own
    would cost an idle machine dozens of them.
    """
    return every_s - time.monotonic() % every_s


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class Backoff:
    """Pauses between attempts, in seconds: ``first_s``, then twice as long each time, at most ``most_s``."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._pause_s = min(first_s, most_s)
        self._most_s = most_s

    def next_s(self) -> float:
        """The length of the next pause, in seconds."""
        pause_s, self._pause_s = self._pause_s, min(2.0 * self._pause_s, self._most_s)
        return pause_s

    def reset(self) -> None:
        """Start with the first pause again, after a success."""
        self._pause_s = self._first_s


def pause_s(first_s: float, number: int, most_s: float, chance: float) -> float:
    """The pause before retry ``number`` (from 1) in seconds, doubled each time and shortened at random.

    ``chance`` (from 0 to 1) decides the jitter: up to half of the pause is left out, so that several who failed at the
    same moment do not try again at the same moment. It needs no state, so a pause can be computed from a stored count.
    """
    return min(most_s, first_s * 2.0 ** min(number - 1, 100)) * (0.5 + chance / 2)
