"""The clock of the calls' time limits."""

from __future__ import annotations

import time
from collections.abc import Callable


class CallClock:
    """Monotonic seconds without those in which the clock was held."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._held_s = 0.0
        self._held_since_s: float | None = None

    @property
    def held(self) -> bool:
        return self._held_since_s is not None

    def now_s(self) -> float:
        at_s = self._monotonic() if self._held_since_s is None else self._held_since_s
        return at_s - self._held_s

    def skip(self, length_s: float) -> None:
        """Leave out a time that has passed although nothing could be done in it."""
        if self._held_since_s is None:
            self._held_s += length_s

    def hold(self) -> None:
        """Let the clock stand still until ``release``."""
        if self._held_since_s is None:
            self._held_since_s = self._monotonic()

    def release(self) -> None:
        if self._held_since_s is not None:
            self._held_s += self._monotonic() - self._held_since_s
            self._held_since_s = None
