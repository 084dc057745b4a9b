"""Task files: reading, writing, and the conditions of each change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.actions import tasks as task_actions
from yolo_supervisor.actions.tasks import Claim, Complete, MoveToDeadLetters, Requeue, TaskEdit, WriteDeadLetter
from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.tasks import AT_WORK, DONE, PENDING, SET_ASIDE
from yolo_supervisor.models import Task
from yolo_supervisor.policy.retry import RetryDecision, requeue_or_dead_letter
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.lines import ClaimState

STATE = Path("/project/.yolo-planning/.execution-state.json")
FILE = Path("/home/.claude/tasks/red/3.json")
TASK = Task(list="red", number="3", status=AT_WORK, owner="dev-1", path=FILE)
PLAN = Task(list=execution_state.EXECUTION_STATE, number="05-01", status="running", owner="dev-1", path=STATE)

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=8)
objects = st.dictionaries(st.text(), values, max_size=6)
owners = st.none() | st.sampled_from(["dev-1", "Grüße", SET_ASIDE])
statuses = st.sampled_from([PENDING, AT_WORK, DONE])
styles = st.sampled_from(
    [{"indent": 2}, {"separators": (",", ":")}, {}, {"indent": 2, "ensure_ascii": False}, {"separators": (",", ":")}]
)


def written(value: object, style: dict[str, Any], end: str = "") -> bytes:
    return (json.dumps(value, **style) + end).encode(
        "utf-8", "surrogatepass" if "ensure_ascii" not in style else "replace"
    )


def without_state(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key not in ("status", "owner")}


# -- reading and writing --------------------------------------------------------------------------------------------


@given(objects, st.sampled_from([PENDING, AT_WORK, DONE, "deleted"]), owners, statuses, owners, styles, st.booleans())
def test_a_tasks_state_is_changed_and_nothing_else_of_it(
    more: dict[str, Any], was: str, had: str | None, status: str, owner: str | None, style: dict[str, Any], end: bool
) -> None:
    data = written(more | {"id": "3", "status": was} | ({"owner": had} if had else {}), style, "\n" * end)

    after = tasks.with_state(TASK, data, status, owner)

    assert tasks.state(TASK, after) == (status, owner)
    assert without_state(json.loads(after)) == without_state(json.loads(data))
    assert list(without_state(json.loads(after))) == list(without_state(json.loads(data))), "in the same order"
    assert after.endswith(b"\n") is end
    assert (b"\n" in after.strip()) is ("indent" in style)


@given(objects, st.lists(objects, max_size=4), st.integers(0, 4), statuses, owners, styles)
def test_a_plans_state_is_changed_and_nothing_else_of_the_execution_state(
    more: dict[str, Any],
    others: list[dict[str, Any]],
    at: int,
    status: str,
    owner: str | None,
    style: dict[str, Any],
) -> None:
    others = [plan | {"id": f"05-{number:02}0"} for number, plan in enumerate(others)]
    plan = {"id": "05-01", "title": "Grüße", "status": "running", "wave": 1, "commits": []}
    before = more | {"plans": [*others[:at], plan, *others[at:]]}

    after = tasks.with_state(PLAN, written(before, style), status, owner)

    found = json.loads(after)
    assert tasks.state(PLAN, after) == ("failed" if owner == SET_ASIDE else status, owner)
    assert without_state(found["plans"].pop(min(at, len(others)))) == without_state(plan)
    assert found == json.loads(written(before | {"plans": others}, style))


@pytest.mark.parametrize(
    ("spelling", "status"),
    [("running", AT_WORK), ("in_progress", AT_WORK), ("executing", AT_WORK), ("complete", DONE), ("completed", DONE),
     ("done", DONE), ("pending", PENDING), ("failed", "failed")],
)  # fmt: skip
def test_a_plans_status_is_understood_in_every_spelling_that_real_files_hold(spelling: str, status: str) -> None:
    data = json.dumps({"plans": [{"id": "05-01", "status": spelling}]}).encode()

    assert tasks.state(PLAN, data) == (status, None)


@pytest.mark.parametrize("task", [TASK, PLAN])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"status": 3, "plans": 4}', b"{}",
                                  b'{"plans": null}', b'{"plans": [3, null, {"id": 5}]}'])  # fmt: skip
def test_a_document_that_is_no_task_is_never_written(task: Task, data: bytes) -> None:
    assert tasks.state(task, data) is None
    for action in every_action(task):
        assert not action.holds(data)
    if task is PLAN:
        with pytest.raises(ValueError, match=r"holds no JSON object|has no plan"):
            tasks.with_state(task, data, PENDING, None)


@pytest.mark.parametrize("owner", ["", None, 5, ["dev-1"]])
def test_an_owner_that_is_no_name_means_unowned(owner: object) -> None:
    data = json.dumps({"status": PENDING, "owner": owner}).encode()

    assert tasks.state(TASK, data) == (PENDING, None)


def test_the_plan_that_is_read_is_written_if_two_have_one_id() -> None:
    data = json.dumps({"plans": [{"id": "05-01"}, {"id": "05-01", "status": "running"}]}).encode()

    after = tasks.with_state(PLAN, data, DONE, None)

    assert tasks.state(PLAN, after) == (DONE, None)
    assert json.loads(after)["plans"][0] == {"id": "05-01"}


# -- conditions and results of changes -------------------------------------------------------------------------------


def every_action(task: Task) -> list[TaskEdit]:
    common: dict[str, Any] = {"key": task.id, "task": task, "reason": "why"}
    return [
        Claim(**common, owner="dev-1"),
        Complete(**common, owner="dev-1", token=1),
        Requeue(**common, owner="dev-1", cause="died"),
        MoveToDeadLetters(**common, owner="dev-1", cause="died"),
        task_actions.redrive(task, "why"),
        task_actions.drop(task, "why"),
    ]


def by_verb(task: Task) -> dict[str, TaskEdit]:
    by_hand = Requeue(key=task.id, task=task, owner=None, cause="by hand", by_hand=True, reason="why")
    return {action.verb: action for action in every_action(task)} | {"by hand": by_hand}


STATES: dict[tuple[str, str | None], set[str]] = {
    (PENDING, None): {"claimed", "completed"},
    (PENDING, "dev-1"): {"claimed", "by hand"},
    (PENDING, "dev-2"): {"by hand"},
    (AT_WORK, None): {"by hand"},
    (AT_WORK, "dev-1"): {"completed", "dead_lettered", "requeued", "by hand"},
    (AT_WORK, "dev-2"): {"by hand"},
    (DONE, None): set(),
    (DONE, "dev-1"): set(),
    (DONE, SET_ASIDE): set(),
    ("deleted", None): set(),
    ("deleted", "dev-1"): set(),
    (PENDING, SET_ASIDE): {"redriven", "dropped"},
}
"""The changes that hold, by status and owner of a task."""


@pytest.mark.parametrize(("state", "may"), [pytest.param(*each, id=str(each[0])) for each in STATES.items()])
def test_each_change_holds_in_its_states_only(state: tuple[str, str | None], may: set[str]) -> None:
    status, owner = state
    data = json.dumps({"id": "3", "status": status, **({"owner": owner} if owner else {})}).encode()

    assert {verb for verb, action in by_verb(TASK).items() if action.holds(data)} == may


def test_no_edit_holds_once_the_task_file_is_gone() -> None:
    assert not any(action.holds(None) for action in every_action(TASK) + every_action(PLAN))


@pytest.mark.parametrize("task", [TASK, PLAN])
def test_a_dead_letter_keeps_its_place_until_it_is_redriven(task: Task) -> None:
    at_work = {"id": task.number, "status": "in_progress", "owner": "dev-1", "blocks": ["4"]}
    data = json.dumps(at_work if task is TASK else {"plans": [at_work]}).encode()
    by = by_verb(task)

    aside = by["dead_lettered"].edit(data)

    assert aside is not None
    assert not by["claimed"].holds(aside)
    assert not by["by hand"].holds(aside)
    assert not by["dead_lettered"].holds(aside)
    assert tasks.state(task, aside) == ("pending" if task is TASK else "failed", SET_ASIDE)
    assert by["redriven"].holds(aside)
    again = by["redriven"].edit(aside)
    assert again is not None
    assert tasks.state(task, again) == (PENDING, None)
    assert by["claimed"].holds(again)


def test_a_dead_letter_cannot_be_claimed_regardless_of_its_file() -> None:
    index, claim = Index(), every_action(TASK)[0]
    assert claim.allowed(index)

    index.dead_letters["red/3"] = "it kept failing"

    assert not claim.allowed(index)


@pytest.mark.parametrize(
    ("claim", "allowed"),
    [
        (ClaimState(token=1, owner="dev-1", live=True), True),
        (ClaimState(token=1, owner="dev-1", live=False), True),
        (ClaimState(token=2, owner="dev-1", live=True), False),
        (ClaimState(token=1, owner="dev-2", live=True), False),
        (None, False),
    ],
)
def test_only_the_newest_claim_finishes_a_task(claim: ClaimState | None, allowed: bool) -> None:
    index = Index()
    if claim:
        index.claims["red/3"] = claim

    assert every_action(TASK)[1].allowed(index) is allowed


def test_a_task_is_changed_under_the_clients_lock_and_a_plan_has_none() -> None:
    assert {action.lock for action in every_action(TASK)} == {(FILE.with_name("3.json.lock"), claude.LOCK_STALE_S)}
    assert {action.lock for action in every_action(PLAN)} == {None}


def plan(**more: Any) -> bytes:
    return json.dumps({"plans": [{"id": "05-01", "status": "running", **more}]}).encode()


def test_a_requeued_plan_has_no_owner() -> None:
    (requeue,) = requeue_or_dead_letter(PLAN, RetryDecision(), Path("/letters"), "it is dead", {})
    assert isinstance(requeue, Requeue)
    after = requeue.edit(plan(owner="dev-1"))

    assert after is not None
    assert tasks.state(PLAN, after) == (PENDING, None)


def test_a_plan_that_another_has_claimed_since_is_left_to_it() -> None:
    (requeue,) = requeue_or_dead_letter(PLAN, RetryDecision(), Path("/letters"), "it is dead", {})
    assert isinstance(requeue, Requeue)

    assert requeue.holds(plan(owner="dev-1"))
    assert not requeue.holds(plan(owner="dev-2"))


@pytest.mark.parametrize("more", [{"status": "failed"}, {"status": "complete"}, {"status": "pending"}, {"id": "05-02"}])
def test_only_a_running_plan_is_requeued(more: dict[str, str]) -> None:
    (requeue,) = requeue_or_dead_letter(replace(PLAN, owner=None), RetryDecision(), Path("/letters"), "it is dead", {})
    assert isinstance(requeue, Requeue)

    assert requeue.holds(plan())
    assert not requeue.holds(plan(**more))


def test_a_dead_letter_is_written_once_and_removed_once() -> None:
    letter = WriteDeadLetter(key="red/3", path=Path("/letters/red__3.json"), data=b"{}", reason="why")
    away = task_actions.remove_dead_letter(key="red/3", path=letter.path, reason="why")

    assert (letter.holds(None), letter.holds(b"{}")) == (True, False)
    assert (away.holds(None), away.holds(b"{}")) == (False, True)
    assert (letter.edit(None), away.edit(b"{}")) == (b"{}", None)
