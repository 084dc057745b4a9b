"""The recovery of a dead agent, tick after tick: what waits ends no alert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from yolo_supervisor.actions.agents import Terminate, WriteCrashReport
from yolo_supervisor.actions.base import Action, AlertCode, Escalate
from yolo_supervisor.formats.crash_report import CrashCause, Evidence, Report, Verdict
from yolo_supervisor.inventory.crash_evidence import Crash
from yolo_supervisor.inventory.held_resources import HeldResources, HeldTask
from yolo_supervisor.models import Agent, Liveness, ProcessId, Task
from yolo_supervisor.policy.retry import RetryDecision
from yolo_supervisor.system.processes import Leftovers
from yolo_supervisor.watchers.dead_agents import RecoveryContext, Sighting, recover

CONTEXT = RecoveryContext(records=Path("/records"), letters=Path("/letters"), grace_s=3.0)
EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DEV = Agent(
    id="dev-1@red", name="dev-1", role="dev", team="red", source="process", since=EPOCH,
    process=ProcessId(401, 7, "here"), pid=401,
)  # fmt: skip
TASK = Task(list="red", number="1", status="in_progress", owner="dev-1", path=Path("/red/1.json"))
DEAD = Sighting(agent=DEV, record="dev-1.json", state=Liveness.DEAD, proof="gone", death_recorded=True)
VERDICT = Verdict(cause=CrashCause.SIGNAL, confidence=0.9, reason="SIGKILL ended it")
CRASH = Crash(report=Report(agent=DEV, evidence=Evidence(at=EPOCH), verdict=VERDICT))

CONDITIONS: Mapping[AlertCode, Mapping[str, Any]] = {
    AlertCode.TASK_UNREADABLE: {"unreadable": (Path("/red/2.json"),)},
    AlertCode.TASK_OWNER_UNCLEAR: {"tasks": (HeldTask(task=TASK, doubt="a dev-1 is alive"),)},
}
"""What a recovery reports while it lasts, and what the agent holds then."""

WAITS: Mapping[str, Sighting] = {
    "a crash report that is not written": replace(DEAD, crash=CRASH),
    "a leftover process": replace(
        DEAD, held=HeldResources(leftovers=Leftovers(roots=(ProcessId(501, 8, "here"),)))
    ),
    "a plan that may not be requeued yet": replace(
        DEAD, held=HeldResources(plans=(HeldTask(task=TASK, decision=RetryDecision(wait_s=1.0)),))
    ),
}  # fmt: skip
"""What a recovery waits for."""


def alerts(steps: tuple[Action, ...]) -> list[AlertCode]:
    return [step.code for step in steps if isinstance(step, Escalate)]


@pytest.mark.parametrize("held", CONDITIONS.values(), ids=CONDITIONS)
@pytest.mark.parametrize("waiting", WAITS.values(), ids=WAITS)
def test_an_alert_lasts_while_the_recovery_waits_for_something_else(waiting: Sighting, held: dict[str, Any]) -> None:
    before = recover(replace(DEAD, held=HeldResources(**held)), CONTEXT)
    while_it_waits = recover(replace(waiting, held=replace(waiting.held, **held)), CONTEXT)

    assert alerts(before)
    assert alerts(while_it_waits) == alerts(before)


def test_nothing_is_changed_before_its_turn() -> None:
    held = HeldResources(
        unreadable=(Path("/red/2.json"),),
        leftovers=Leftovers(roots=(ProcessId(501, 8, "here"),)),
        pids=Path("/.agent-pids"),
    )

    unwritten = recover(replace(DEAD, crash=CRASH, held=held), CONTEXT)
    written = recover(replace(DEAD, crash=replace(CRASH, written=True), held=held), CONTEXT)

    assert [type(step) for step in unwritten] == [WriteCrashReport, Escalate]
    assert [type(step) for step in written] == [Terminate, Escalate]
