"""What ``status`` shows of dead agents that come back."""

from __future__ import annotations

from typing import Any

import pytest

from yolo_supervisor.cli.restart_text import restart_text
from yolo_supervisor.formats.restart_plans import PlannedStart, dump, load

WAITS = PlannedStart(agent="dev-1@red", state="waiting", attempt=2, of=3, code="backoff", reason="pause", due_s=7.5)


def test_planned_starts_are_read_as_they_were_written() -> None:
    assert load(dump((WAITS,))) == (WAITS,)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"starts": 1}', b'{"starts": [{"agent": 1}]}', b"\xff"])
def test_a_damaged_file_shows_no_starts(data: bytes) -> None:
    assert load(data) == ()


@pytest.mark.parametrize(
    ("restart", "text"),
    [
        ({"state": "starting", "try": 2, "of": 3}, "↻ starting again (try 2 of 3)"),
        ({"state": "waiting", "in_s": 41.6, "reason": "pause"}, "waits 42 s to be started again: pause"),
        ({"state": "given_up", "reason": "it died"}, "needs you: it died: agent reset d@r, or agent start d@r"),
        ({"state": "held"}, "held: it is not started by itself until agent start d@r, or agent reset d@r"),
    ],
)
def test_a_person_reads_what_comes_next(restart: dict[str, Any], text: str) -> None:
    assert restart_text("d@r", restart) == text
