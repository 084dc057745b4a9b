"""The clocks: wall time for documents and people, monotonic seconds for durations, time awake for graces."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import anyio

T = TypeVar("T")

TURN_S = 0.005
"""The time after which a long piece of work lets all others run, in seconds."""

BEAT_S = 1.0
"""The interval at which the time awake is read, in seconds."""

STEP_S = 1.2
"""The most that one reading of the time awake adds, in seconds."""

PAUSE_S = 2.0
"""A longer time between two readings of the time awake is a pause of this process."""


class Clock(Protocol):
    def now(self) -> datetime:
        """The wall time, aware and UTC. It may jump; never subtract two of them to get a duration."""

    def monotonic(self) -> float:
        """Seconds that never run backwards and stand still while the machine sleeps."""

    def awake(self) -> float:
        """Seconds in which this process was awake, see ``AwakeTime``. Every grace is counted in them."""


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment on the monotonic clock of one boot.

    It cannot be compared with a moment of another boot. On disk and in the journal's evidence it is two fields:
    ``since_s`` and ``boot``.
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
        if not isinstance(boot_id, str) or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            return None
        try:
            return cls(boot_id, float(seconds))
        except OverflowError:  # JSON has integers of any size
            return None


def until_next(every_s: float) -> float:
    """Seconds to the next multiple of ``every_s`` on the monotonic clock.

    Tasks that wait in this way wake together. A wake-up costs more than most ticks, and dozens of separate timers would
    cost an idle machine dozens of wake-ups.
    """
    return every_s - time.monotonic() % every_s


async def in_turns(steps: Iterable[T], clock: Clock) -> AsyncIterator[T]:
    """The steps of a long piece of work; after every ``TURN_S`` all others run, other projects too."""
    until_s = clock.monotonic() + TURN_S
    for step in steps:
        yield step
        if clock.monotonic() >= until_s:
            await anyio.sleep(0)
            until_s = clock.monotonic() + TURN_S


class AwakeTime:
    """Seconds in which this process was awake.

    The monotonic clock goes on while a process is stopped (SIGSTOP, a container that is frozen), and a grace that is
    counted by it would end as soon as the process goes on. Each reading adds the time since the last one, at most
    ``STEP_S``. After more than ``PAUSE_S`` it adds nothing, since the process was stopped, unless the last reading was
    as late: then the machine is busy. It has to be read every ``BEAT_S``.
    """

    def __init__(self, monotonic: Callable[[], float] | None = None) -> None:
        self._monotonic = monotonic or time.monotonic
        self._read_at_s = self._monotonic()
        self._awake_s = 0.0
        self._late = False

    def read(self) -> float:
        now_s = self._monotonic()
        since_s, self._read_at_s = now_s - self._read_at_s, now_s
        before, self._late = self._late, since_s > PAUSE_S
        if before or not self._late:
            self._awake_s += min(since_s, STEP_S)
        return self._awake_s


class SystemClock:
    """The clocks of this machine. In a process that counts graces ``run`` has to run."""

    def __init__(self) -> None:
        self._awake = AwakeTime()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    def awake(self) -> float:
        return self._awake.read()

    async def run(self) -> None:
        """Count the time awake, for ever."""
        while True:
            self.awake()
            await anyio.sleep(until_next(BEAT_S))


class Backoff:
    """Doubling pauses between attempts, from ``first_s`` to at most ``most_s`` seconds."""

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
    """The pause before retry ``number`` (from 1), doubled each time and shortened at random.

    ``chance`` (from 0 to 1) decides the jitter: up to half of the pause is left out, so that several clients that
    failed at the same moment do not retry at the same moment. It needs no state, so a pause can be computed from a
    stored count.
    """
    return min(most_s, first_s * 2.0 ** min(number - 1, 100)) * (0.5 + chance / 2)


def pace_s(ages: Sequence[float], every_s: float, most: int, period_s: float) -> float:
    """The time until one more event may follow events of these ages.

    There may be one every ``every_s`` seconds, and ``most`` in ``period_s``.
    """
    recent = sorted(max(0.0, age) for age in ages)
    wait_s = every_s - recent[0] if recent else 0.0
    if len(recent) >= most:
        wait_s = max(wait_s, period_s - recent[most - 1])
    return max(0.0, wait_s)
