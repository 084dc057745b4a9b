"""The two clocks: wall time for documents and people, monotonic seconds for every duration."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall time, aware and UTC. It may jump; never subtract two of them to get a duration."""

    def monotonic(self) -> float:
        """Seconds that never run backwards and stand still while the machine sleeps."""


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
