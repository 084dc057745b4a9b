"""The clock of the calls' time limits."""

from __future__ import annotations

from yolo_supervisor.mcp.call_clock import CallClock


def test_clock_stands_still_while_it_is_held() -> None:
    moments = [100.0]
    clock = CallClock(lambda: moments[0])
    seen = []

    for then in (None, clock.hold, clock.hold, clock.release, clock.release, clock.hold, clock.release):
        if then is not None:
            then()
        seen.append(clock.now_s())
        moments[0] += 10
        seen.append(clock.now_s())

    assert [moment - 100 for moment in seen] == [0, 10, 10, 10, 10, 10, 10, 20, 20, 30, 30, 30, 30, 40]
    assert not clock.held


def test_skipped_time_does_not_count_twice_while_the_clock_is_held() -> None:
    moments = [100.0]
    clock = CallClock(lambda: moments[0])

    moments[0] += 10
    clock.skip(10)
    clock.hold()
    moments[0] += 10
    clock.skip(10)
    clock.release()

    assert clock.now_s() == 100
