"""A sweep of the process table: the descendants of a process."""

from __future__ import annotations

import pytest

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.process_table import Sweep

pytestmark = pytest.mark.unit

AGENT, SHELL, TOOL = 800, 900, 5000


def sweep(shell_started: int, tool_started: int) -> Sweep:
    """The shell was read while its parent had the pid that the tool has by now."""
    facts = (
        ProcessFacts(AGENT, 1, 1000, False, "claude"),
        ProcessFacts(SHELL, TOOL, shell_started, False, "zsh"),
        ProcessFacts(TOOL, AGENT, tool_started, False, "node"),
    )
    return Sweep("boot", {one.pid: one for one in facts})


def tree(now: Sweep) -> list[int]:
    return [process.pid for process, _ in now.tree(ProcessId(AGENT, 1000, "boot"))]


def test_a_process_that_is_older_than_its_parent_is_no_descendant() -> None:
    assert tree(sweep(shell_started=2000, tool_started=2001)) == [TOOL]


def test_a_process_may_start_in_the_same_tick_as_its_parent() -> None:
    assert tree(sweep(shell_started=2000, tool_started=2000)) == [TOOL, SHELL]
