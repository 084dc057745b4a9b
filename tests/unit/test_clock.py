"""Moments on a monotonic clock, and the time awake."""

from __future__ import annotations

from typing import Any

import pytest

from yolo_supervisor.clock import PAUSE_S, STEP_S, AwakeTime, Backoff, Instant, pace_s


def test_an_instant_has_an_age_within_its_boot_only() -> None:
    instant = Instant("boot-1", 10.0)

    assert instant.age(Instant("boot-1", 12.5)) == 2.5
    assert instant.age(Instant("boot-2", 12.5)) is None


def test_an_instant_is_stored_as_two_fields() -> None:
    assert Instant("boot-1", 10.0).fields() == {"since_s": 10.0, "boot": "boot-1"}
    assert Instant.from_fields({"owner": "dev-1", "since_s": 10, "boot": "boot-1"}) == Instant("boot-1", 10.0)


@pytest.mark.parametrize(
    "fields",
    [{}, {"since_s": 1.0}, {"boot": "boot-1"}, {"since_s": "1", "boot": "boot-1"}, {"since_s": True, "boot": "boot-1"},
     {"since_s": 1.0, "boot": None}, {"since_s": 10**400, "boot": "boot-1"}],
    ids=str,
)  # fmt: skip
def test_incomplete_fields_are_not_an_instant(fields: dict[str, Any]) -> None:
    assert Instant.from_fields(fields) is None


def test_backoff_doubles_up_to_its_limit_and_starts_again_after_a_reset() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]

    backoff.reset()

    assert backoff.next_s() == 0.5


def test_the_first_pause_is_not_longer_than_the_limit() -> None:
    assert Backoff(5.0, 3.0).next_s() == 3.0


@pytest.mark.parametrize(
    ("ages", "wait_s"),
    [
        ([], 0.0),
        ([0.0], 5.0),
        ([2.0], 3.0),
        ([5.0], 0.0),
        ([90.0, 50.0, 20.0], 10.0),
        ([50.0, 90.0, 98.0, 20.0], 10.0),
        ([99.0, 98.0, 3.0], 2.0),
        ([100.0, 98.0, 6.0], 0.0),
        ([-1000.0], 5.0),  # a clock that was set back
    ],
)
def test_events_have_a_pace(ages: list[float], wait_s: float) -> None:
    assert pace_s(ages, every_s=5.0, most=3, period_s=100.0) == wait_s


class Readings:
    """Read the time awake whenever the monotonic clock has advanced by so many seconds."""

    def __init__(self) -> None:
        self.s = 1000.0
        self._awake = AwakeTime(lambda: self.s)

    def after(self, *steps_s: float) -> float:
        for step_s in steps_s:
            self.s += step_s
            awake_s = self._awake.read()
        return round(awake_s, 6)


def test_the_time_awake_goes_with_the_monotonic_clock_while_it_is_read_often() -> None:
    assert Readings().after(0.0, 0.25, 1.0, 1.0, STEP_S) == 0.25 + 2.0 + STEP_S


@pytest.mark.parametrize("pause_s", [PAUSE_S + 0.001, 60.0, 86400.0])
def test_a_pause_of_the_process_is_no_time_awake(pause_s: float) -> None:
    assert Readings().after(1.0, pause_s, 0.0, 1.0) == 2.0


def test_a_short_pause_adds_one_step_at_most() -> None:
    assert Readings().after(1.0, PAUSE_S, 1.0) == 2.0 + STEP_S


def test_on_a_machine_where_every_reading_is_late_the_time_awake_goes_on() -> None:
    assert Readings().after(*[3.0] * 11) == pytest.approx(10 * STEP_S)
