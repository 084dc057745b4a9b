"""The log events of applied actions."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from yolo_supervisor.actions.agents import forget
from yolo_supervisor.daemon.alerts import AlertLog

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("left", [[], [4711, 4712]])
def test_processes_that_were_left_running_are_named(left: list[int]) -> None:
    evidence = {"left_alone": left} if left else {}
    action = forget(key="dev-1@red", path=Path("/record"), reason="its recovery is complete", evidence=evidence)

    with capture_logs() as events:
        AlertLog(structlog.get_logger()).applied(action)

    assert [event.get("left_alone", []) for event in events] == [left]
