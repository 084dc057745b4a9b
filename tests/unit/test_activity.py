"""The activity of an agent, derived from its signs of work."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from yolo_supervisor.formats.turns import Phase, Turn
from yolo_supervisor.models import Liveness
from yolo_supervisor.policy.activity import Activity, Signs, judge

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
MODEL = Turn(phase=Phase.MODEL, at=NOON)
TOOL = Turn(phase=Phase.TOOL, at=NOON, tools=("Bash",))
ENDED = Turn(phase=Phase.ENDED, at=NOON)
LIMITED = Turn(phase=Phase.FAILED, at=NOON, error="rate_limit", status=429)
OVERLOADED = Turn(phase=Phase.FAILED, at=NOON, error="server_error", status=529)
BROKEN = Turn(phase=Phase.FAILED, at=NOON, error="server_error", status=500)
JOB = {"background_tasks": [{"type": "shell", "id": "b1"}]}
MATE = {"background_tasks": [{"type": "teammate", "id": "dev-1"}]}
ASKED = {"notification_type": "permission_prompt"}


def alive(**signs: object) -> Signs:
    return Signs(liveness=Liveness.ALIVE, **signs)  # type: ignore[arg-type]


def activity(signs: Signs, quiet_s: float = 0.0) -> Activity:
    return judge(signs, quiet_s, 900.0).activity


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        # a tmux teammate of 2.1.332
        pytest.param(alive(turn=TOOL, active=True, tool_runs=True), Activity.WORKING, id="in a tool"),
        pytest.param(alive(turn=MODEL, active=True), Activity.WORKING, id="in a model call"),
        pytest.param(alive(turn=ENDED, active=False), Activity.IDLE, id="idle"),
        pytest.param(alive(turn=ENDED, active=True), Activity.WORKING, id="the file says active, the turn is over"),
        pytest.param(alive(turn=TOOL, active=True, asks_lead=True), Activity.WAITS_FOR_PERSON, id="asks its lead"),
        pytest.param(
            alive(turn=TOOL, active=True, asks_lead=True, tool_runs=True), Activity.WORKING, id="another one asks"
        ),
        pytest.param(alive(turn=LIMITED, active=False), Activity.WAITS_FOR_QUOTA, id="429"),
        pytest.param(alive(turn=OVERLOADED, active=False), Activity.WAITS_FOR_QUOTA, id="529"),
        pytest.param(
            alive(turn=replace(LIMITED, phase=Phase.MODEL), active=True), Activity.WAITS_FOR_QUOTA, id="429, tries"
        ),
        pytest.param(alive(turn=BROKEN, active=False), Activity.IDLE, id="500"),
        pytest.param(alive(turn=MODEL, suspended=True), Activity.SUSPENDED, id="stopped"),
        # a lone session
        pytest.param(alive(turn=MODEL, status="busy"), Activity.WORKING, id="session busy"),
        pytest.param(alive(turn=ENDED, status="busy"), Activity.WORKING, id="session busy after a turn"),
        pytest.param(alive(turn=ENDED, status="idle"), Activity.IDLE, id="session idle"),
        pytest.param(alive(turn=TOOL, status="waiting"), Activity.WAITS_FOR_PERSON, id="session waiting"),
        pytest.param(alive(status="idle"), Activity.IDLE, id="session idle, no transcript"),
        pytest.param(alive(status="busy"), Activity.WORKING, id="session busy, no transcript"),
        # a lead: it shows busy for as long as it has teammates
        pytest.param(alive(turn=ENDED, status="busy", leads=True), Activity.IDLE, id="lead after its turn"),
        pytest.param(
            alive(turn=ENDED, status="busy", leads=True, mates_work=True),
            Activity.WAITS_FOR_BACKGROUND,
            id="lead whose teammates work",
        ),
        pytest.param(
            alive(turn=MODEL, status="busy", leads=True, mates_work=True), Activity.WORKING, id="lead in its turn"
        ),
        # hooks
        pytest.param(alive(turn=ENDED, event="Stop", payload=JOB), Activity.WAITS_FOR_BACKGROUND, id="a job"),
        pytest.param(alive(turn=ENDED, event="Stop", payload={"session_crons": [{}]}), Activity.WAITS_FOR_BACKGROUND,
                     id="a cron"),
        pytest.param(alive(turn=ENDED, event="Stop", payload=MATE), Activity.IDLE, id="a teammate is no job"),
        pytest.param(alive(event="Notification", payload=ASKED), Activity.WAITS_FOR_PERSON, id="permission prompt"),
        pytest.param(alive(turn=ENDED, event="Notification", payload={"notification_type": "idle_prompt"}),
                     Activity.IDLE, id="idle prompt"),
        pytest.param(alive(event="StopFailure", payload={"error": "rate_limit"}), Activity.WAITS_FOR_QUOTA,
                     id="quota by hook"),
        # nothing tells
        pytest.param(alive(), Activity.UNKNOWN, id="no sign"),
        pytest.param(Signs(liveness=Liveness.UNKNOWN, turn=MODEL), Activity.UNKNOWN, id="out of sight"),
        pytest.param(Signs(liveness=Liveness.DEAD, turn=MODEL), Activity.DEAD, id="dead"),
    ],
)  # fmt: skip
def test_the_activity_follows_from_the_signs(signs: Signs, expected: Activity) -> None:
    assert activity(signs) is expected


@pytest.mark.parametrize("signs", [alive(turn=MODEL), alive(turn=TOOL, tool_runs=True), alive(status="busy")])
def test_a_turn_without_a_sign_of_work_is_stalled_at_its_limit(signs: Signs) -> None:
    assert activity(signs, 899.9) is Activity.WORKING
    assert activity(signs, 900.0) is Activity.STALLED


@pytest.mark.parametrize(
    "signs",
    [
        alive(turn=ENDED, active=False),
        alive(turn=LIMITED),
        alive(status="waiting"),
        alive(turn=ENDED, event="Stop", payload=JOB),
        alive(turn=MODEL, suspended=True),
        alive(),
    ],
)
def test_only_a_turn_that_is_under_way_can_stall(signs: Signs) -> None:
    assert activity(signs, 1e6) is not Activity.STALLED


def test_an_event_from_before_the_newest_record_is_outdated() -> None:
    asked = alive(turn=MODEL, event="Notification", payload=ASKED, event_at=NOON - timedelta(seconds=1))
    asks = alive(turn=TOOL, event="Notification", payload=ASKED, event_at=NOON + timedelta(seconds=1))

    assert [activity(asked), activity(asks)] == [Activity.WORKING, Activity.WAITS_FOR_PERSON]
