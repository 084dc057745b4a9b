"""The clocks of waits: the changes that end a wait, and those that do not."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.project import FakeClock, write_task
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.wiring import HostServices, ProjectParts
from yolo_supervisor.formats.turns import Phase, Turn
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.policy.activity import Signs
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.watchers.waits import WaitClocks

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
DEV = ProcessId(401, 7, "here"), None
FAILED = Turn(phase=Phase.FAILED, failing=True, status=429, answered_at=NOON)
RETRIES = replace(FAILED, phase=Phase.MODEL)
FIRST_RETRIES = replace(RETRIES, status=None)
"""The first round: no record names the error yet."""
WORKS = Turn(phase=Phase.TOOL, answered_at=NOON)
ASKED = Signs(liveness=Liveness.ALIVE, status="waiting", turn=WORKS)


def waited(*looks: Turn | Signs) -> list[float]:
    """The times that the looks show, one each ten seconds."""
    clocks, shown = WaitClocks(), []
    for number, look in enumerate(looks):
        clocks.renew()
        signs = look if isinstance(look, Signs) else Signs(liveness=Liveness.ALIVE, turn=look)
        shown.append(clocks.waited_s(DEV, signs, 10.0 * number))
    return shown


def test_a_wait_for_a_quota_begins_with_the_first_failed_request() -> None:
    assert waited(FIRST_RETRIES, FAILED, RETRIES, FAILED, RETRIES) == [0, 10, 20, 30, 40]


def test_an_answer_ends_the_wait() -> None:
    assert waited(FAILED, WORKS, FAILED) == [0, 0, 0]
    assert waited(FAILED, FAILED, replace(FAILED, answered_at=NOON + timedelta(seconds=15))) == [0, 10, 0]


def test_an_answer_that_is_too_old_to_be_read_ends_no_wait() -> None:
    assert waited(FAILED, replace(FAILED, answered_at=None), FAILED) == [0, 10, 20]


def test_another_kind_of_wait_has_another_clock() -> None:
    assert waited(ASKED, replace(ASKED, tool_runs=True), FAILED, FAILED) == [0, 10, 0, 10]


def test_an_agent_that_is_stopped_does_not_wait() -> None:
    assert waited(ASKED, replace(ASKED, suspended=True), ASKED) == [0, 0, 0]


@pytest.mark.anyio
async def test_a_wait_is_reported_under_any_changes(project: Path, claude_home: Path) -> None:
    clock, processes = FakeClock(), Processes(backend())
    services = HostServices(clock, processes, ProcessScanner(processes), Tmux(clock))
    parts = ProjectParts(Store(project, clock), services, Config(), os.environ)
    session = {
        "pid": os.getpid(), "procStart": str(processes.identify_self().started), "cwd": str(project),
        "sessionId": "85d6cfb4-e039", "status": "waiting",
    }  # fmt: skip
    (claude_home / "sessions").mkdir()
    (claude_home / "sessions" / f"{os.getpid()}.json").write_text(json.dumps(session))
    parts.agents.observe()

    reported = []
    for look in range(22):
        write_task(claude_home, "85d6cfb4-e039", 1, status="in_progress", look=look)
        for remediation in await parts.tasks.tick(clock.now()):
            reported += [(look, action.code) for action in remediation if isinstance(action, Escalate)]
        clock.wait(30.0)

    assert reported == [(20, AlertCode.AGENT_WAITING), (21, AlertCode.AGENT_WAITING)]
    parts.close()
