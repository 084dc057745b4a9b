"""Decisions about tasks in progress whose owner is alive or unknown (docs/who-is-at-work.md)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from yolo_supervisor.actions.base import Action, AlertCode, Escalate
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.config import Config, RestartConfig, TasksConfig
from yolo_supervisor.models import Agent, Liveness, Task
from yolo_supervisor.policy.activity import Activity, Judgement
from yolo_supervisor.policy.retry import RetryDecision
from yolo_supervisor.policy.task_owner import Ownership, OwnerState, Worker
from yolo_supervisor.watchers.tasks import LOOKS_APART_S, OwnedTask, TasksObservation, decide

LETTERS = Path("/project/.yolo-planning/.supervisor/dead-letters")
TASK = Task(list="red", number="1", status="in_progress", owner="dev-1", path=Path("/home/.claude/tasks/red/1.json"))
DEV = Agent(
    id="dev-1@red", name="dev-1", role="dev", team="red", source="tmux", since=datetime(2026, 11, 29, tzinfo=UTC)
)
MATE = Agent(id="dev-2@red", name="dev-2", role="dev", team="red", source="tmux", since=DEV.since)
ALIVE = Ownership(state=OwnerState.ALIVE, candidates=(Worker(agent=DEV, liveness=Liveness.ALIVE),), evidence="alive")
UNKNOWN = Ownership(state=OwnerState.UNKNOWN, candidates=(), evidence="no agent of its list is named dev-1")
LIMITS = TasksConfig()
REQUEUEING = TasksConfig(on_stall="requeue")
NO_RESTART = RestartConfig()


def owned(
    *activities: Activity,
    quiet_s: float = 0.0,
    waited_s: float = 0.0,
    owner: Ownership = ALIVE,
    looks: int = 2,
    turn_under_way: str | None = None,
) -> OwnedTask:
    return OwnedTask(
        task=TASK,
        owner=owner,
        activities=tuple(
            (agent, Judgement(activity=activity, sign="a sign"))
            for agent, activity in zip((DEV, MATE), activities, strict=False)
        ),
        quiet_s=quiet_s,
        waited_s=waited_s,
        looks=looks,
        turn_under_way=turn_under_way,
        decisions={cause: RetryDecision(cause=cause) for cause in ("silent", "stalled", "unknown owner")},
    )


def decided(task: OwnedTask, limits: TasksConfig = LIMITS, restart: RestartConfig = NO_RESTART) -> list[str]:
    """The alerts by their codes, and the requeues by their causes."""
    remediations = decide(TasksObservation(in_progress=(task,)), LETTERS, Config(tasks=limits, restart=restart))
    return [_name(action) for remediation in remediations for action in remediation]


def _name(action: Action) -> str:
    if isinstance(action, Escalate):
        return str(action.code)
    assert isinstance(action, Requeue)
    assert not action.replayable, "silence may end while the supervisor is away"
    return f"requeue: {action.cause}"


IDLED = [AlertCode.AGENT_SILENT, "requeue: silent"]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (owned(Activity.IDLE, quiet_s=299.9), []),
        (owned(Activity.IDLE, quiet_s=300.0), IDLED),
        (owned(Activity.IDLE, quiet_s=300.0, looks=1), []),
        (owned(Activity.IDLE, Activity.IDLE, quiet_s=300.0), IDLED),
        (owned(Activity.IDLE, Activity.WORKING, quiet_s=1e6), []),
        (owned(Activity.IDLE, Activity.SUSPENDED, quiet_s=1e6), []),
        (owned(Activity.WORKING, quiet_s=1e6), []),
        (owned(Activity.SUSPENDED, quiet_s=1e6), []),
    ],
)
def test_a_task_leaves_an_idle_owner_at_the_idle_limit(task: OwnedTask, expected: list[str]) -> None:
    assert decided(task) == expected


@pytest.mark.parametrize(
    "waiting", [Activity.WAITS_FOR_PERSON, Activity.WAITS_FOR_QUOTA, Activity.WAITS_FOR_BACKGROUND]
)
def test_a_waiting_owner_keeps_its_task_and_is_reported_after_a_while(waiting: Activity) -> None:
    assert decided(owned(waiting, quiet_s=1e6, waited_s=599.9)) == []
    assert decided(owned(waiting, waited_s=600.0, looks=1)) == [AlertCode.AGENT_WAITING]
    assert decided(owned(waiting, quiet_s=1e6, waited_s=1e6)) == [AlertCode.AGENT_WAITING]
    assert decided(owned(waiting, Activity.IDLE, quiet_s=1e6, waited_s=1e6)) == [AlertCode.AGENT_WAITING]


def test_a_stalled_owner_is_reported_and_keeps_its_task_unless_configured() -> None:
    stalled = owned(Activity.STALLED, quiet_s=900.0)

    assert decided(stalled) == [AlertCode.AGENT_STALLED]
    assert decided(stalled, REQUEUEING) == [AlertCode.AGENT_STALLED, "requeue: stalled"]


@pytest.mark.parametrize(
    ("quiet_s", "limit_s", "turn", "expected"),
    [
        pytest.param(899.9, 900.0, None, [], id="before the limit"),
        pytest.param(900.0, 900.0, None, ["requeue: unknown owner"], id="at the limit"),
        pytest.param(1e6, 900.0, "team-lead", [AlertCode.TASK_OWNER_UNKNOWN], id="a lead in its turn"),
        pytest.param(5.0, 5.0, None, [AlertCode.TASK_OWNER_UNKNOWN], id="two looks too near"),
        pytest.param(LOOKS_APART_S, 5.0, None, ["requeue: unknown owner"], id="two looks far enough"),
    ],
)
@pytest.mark.parametrize("activities", [(), (Activity.UNKNOWN,)], ids=["no agent", "an agent without signs"])
def test_a_task_leaves_an_unknown_owner_slowly(
    activities: tuple[Activity, ...], quiet_s: float, limit_s: float, turn: str | None, expected: list[str]
) -> None:
    owner = ALIVE if activities else UNKNOWN
    task = owned(*activities, quiet_s=quiet_s, owner=owner, turn_under_way=turn)

    assert decided(task, TasksConfig(unknown_limit_s=limit_s)) == expected


def test_an_alert_says_what_to_do_by_hand() -> None:
    task = owned(quiet_s=1e6, owner=UNKNOWN, turn_under_way="team-lead")
    ((alert,),) = decide(TasksObservation(in_progress=(task,)), LETTERS, Config())

    assert "team-lead is in a turn" in alert.reason
    assert "yolo-supervisor task requeue red/1" in alert.reason
