"""A dead agent on its way back: what its recovery leaves alone, and what the journal remembers of its starts."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from yolo_supervisor.actions.agents import Restart, SaveWork
from yolo_supervisor.actions.base import RemoveFile
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.formats.launch import Launch
from yolo_supervisor.formats.turns import context_tokens
from yolo_supervisor.inventory.held_resources import HeldResources, HeldTask
from yolo_supervisor.inventory.restarts import NO_RESTART, RestartPlan, Stage
from yolo_supervisor.models import Agent, Lease, Liveness, ProcessId, Task
from yolo_supervisor.policy.restart import RestartCode, RestartDecision, Verdict
from yolo_supervisor.policy.restart_note import handoff_for, note_for
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.lines import Begun, CheckpointLine, Ended, Entry, Failed, Line
from yolo_supervisor.watchers.dead_agents import RecoveryContext, Sighting, recover

CONTEXT = RecoveryContext(records=Path("/records"), letters=Path("/letters"), grace_s=3.0)
EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DEV = Agent(
    id="dev-1@red", name="dev-1", role="dev", team="red", source="tmux", since=EPOCH,
    process=ProcessId(401, 7, "here"), pid=401,
)  # fmt: skip
TASK = Task(list="red", number="1", status="in_progress", owner="dev-1", path=Path("/red/1.json"), subject="Fix it")
LEASE = Lease(resource="src", owner="dev-1", path=Path("/locks/src.lease"), expires_at=None)
HELD = HeldResources(tasks=(HeldTask(task=TASK),), leases=(LEASE,))
DEAD = Sighting(agent=DEV, record="dev-1.json", state=Liveness.DEAD, proof="gone", death_recorded=True, held=HELD)
LAUNCH = Launch(agent="dev-1@red", name="dev-1", session="s-1", argv=("claude",), folder="/project")
DUE = RestartDecision(verdict=Verdict.START, code=RestartCode.START, text="", attempt=2, of=3)


def steps(plan: RestartPlan, context: RecoveryContext = CONTEXT) -> list[type]:
    return [type(step) for step in recover(replace(DEAD, restart=plan), context)]


def plan(stage: Stage, **more: Any) -> RestartPlan:
    return replace(NO_RESTART, stage=stage, decision=DUE, **more)


# -- the recovery ---------------------------------------------------------------------------------------------------


def test_an_agent_that_is_not_started_again_gives_up_everything() -> None:
    assert steps(NO_RESTART) == steps(plan(Stage.REFUSED)) == [Requeue, Release, RemoveFile]


def test_an_agent_keeps_its_work_while_its_start_is_due_and_under_way() -> None:
    due = plan(Stage.DUE, keeps_work=True, launch=LAUNCH, saves=Path("/project"))

    assert steps(due) == [SaveWork, Restart]
    assert steps(replace(due, saves=None)) == [Restart]
    assert steps(plan(Stage.STARTING, keeps_work=True)) == []


def test_an_agent_that_waits_too_long_keeps_its_record_and_not_its_work() -> None:
    assert steps(plan(Stage.WAITING)) == [Requeue, Release]


def test_the_record_of_an_agent_that_goes_on_is_removed_and_its_work_stays_its_own() -> None:
    successor = replace(DEV, process=ProcessId(402, 9, "here"), pid=402)

    (forgotten,) = recover(replace(DEAD, restart=plan(Stage.RETURNED, keeps_work=True, successor=successor)), CONTEXT)

    assert (forgotten.verb, forgotten.evidence["successor"]) == ("forgotten", 402)


def test_a_person_is_told_of_an_agent_that_is_given_up_and_its_work_is_given_back() -> None:
    given_up = recover(replace(DEAD, restart=plan(Stage.GIVEN_UP)), CONTEXT)

    assert [step.verb for step in given_up] == ["requeued", "released", "restart_given_up", "forgotten"]


def test_nothing_is_saved_while_the_supervisor_only_observes() -> None:
    due = plan(Stage.DUE, keeps_work=True, launch=LAUNCH, saves=Path("/project"))

    assert steps(due, replace(CONTEXT, observing=True)) == [Restart]


# -- what the agent is told -----------------------------------------------------------------------------------------


def test_the_note_names_the_task_that_is_still_its_own() -> None:
    note = note_for(died_at=EPOCH, why="ended by SIGKILL", tool="Bash make test", tasks=[TASK])

    assert "1 (Fix it)" in note
    assert "go on with it" in note
    assert "Bash make test" in note


def test_the_note_forbids_to_go_on_with_work_that_may_be_another_agents() -> None:
    assert "Do not go on with it" in note_for(died_at=EPOCH, why="", tool=None, tasks=[])


def test_a_lead_is_told_what_its_teammates_were_doing_and_to_spawn_new_ones() -> None:
    note = note_for(died_at=EPOCH, why="", tool=None, tasks=[], team=[("dev-1", [TASK]), ("qa-1", [])])

    assert "dev-1 (task 1); qa-1" in note
    assert "spawn new ones" in note


def test_a_handoff_names_the_task_the_last_turns_and_the_copy_of_the_work() -> None:
    turns = [f"says: turn {number}" for number in range(20)]

    note = handoff_for(died_at=EPOCH, why="too long", tasks=[TASK], turns=turns, saved="refs/yolo-supervisor/rescue/x")

    assert "1 (Fix it)" in note
    assert "turn 19" in note
    assert "turn 3" not in note
    assert "refs/yolo-supervisor/rescue/x" in note


def test_the_size_of_a_conversation_is_that_of_its_last_answer() -> None:
    def answer(**usage: int) -> bytes:
        return json.dumps({"type": "assistant", "message": {"usage": usage}}).encode() + b"\n"

    first, last = answer(input_tokens=5, output_tokens=1), answer(input_tokens=2, cache_read_input_tokens=90_000)

    assert context_tokens(first + last + b'{"type": "user"}\n{"torn') == 90_002
    assert context_tokens(b"") is None


def test_the_note_is_one_line_whatever_a_tool_was_called_with() -> None:
    note = note_for(
        died_at=EPOCH, why="a\nb", tool="Bash " + "x\x1b[31m\n" * 500, tasks=[replace(TASK, subject="a\rb")]
    )

    assert note.isprintable()
    assert len(note) < 1500


# -- the journal ----------------------------------------------------------------------------------------------------


class Journal:
    """An index, and the lines that it is fed with."""

    def __init__(self) -> None:
        self.index = Index()
        self._seq = 0

    def feed(self, kind: type[Line], action: str = "", key: str = "dev-1@red", **more: Any) -> int:
        self._seq += 1
        entry = {
            "at": "2026-11-22T12:00:00Z", "kind": "agent", "key": key, "action": action, "by": "agents", "reason": "r",
            "evidence": {}, "project": "/p",
        }  # fmt: skip
        fields = entry if issubclass(kind, Entry) else {}
        self.index.apply(kind(seq=self._seq, **{**fields, **more}))
        return self._seq

    def begin(self, since_s: float = 5.0, **more: Any) -> int:
        evidence = {"record": "dev-1.json", "session": "s-1", "since_s": since_s, "boot": "here", **more}
        return self.feed(Begun, "restarted", evidence=evidence)

    def end(self, begun: int, **evidence: Any) -> None:
        self.feed(Ended, "restarted", done=begun, evidence={"since_s": 5.0, "boot": "here", **evidence})

    def reloaded(self) -> Index:
        """The index after the journal was rotated."""
        again = Index()
        again.apply(CheckpointLine(seq=self._seq + 1, checkpoint=self.index.checkpoint()))
        return again


@pytest.fixture
def journal() -> Journal:
    return Journal()


def test_a_start_counts_from_its_beginning_also_if_its_end_is_never_written(journal: Journal) -> None:
    journal.begin()

    (start,) = journal.index.restarts["dev-1@red"].starts

    assert (start.result, start.process, start.session, start.record) == ("", None, "s-1", "dev-1.json")


def test_the_end_of_a_start_names_its_process_or_what_stopped_it(journal: Journal) -> None:
    journal.end(journal.begin(), result="up", pid=402, started=9)
    journal.end(journal.begin(), result="pane_gone")

    up, failed = journal.index.restarts["dev-1@red"].starts

    assert (up.result, up.process) == ("up", ProcessId(402, 9, "here"))
    assert (failed.result, failed.process) == ("pane_gone", None)


def test_a_start_that_had_no_effect_does_not_count(journal: Journal) -> None:
    begun = journal.begin()
    journal.feed(Failed, failed=begun)

    assert journal.index.restarts["dev-1@red"].starts == ()


def test_the_starts_outlive_the_agents_record_and_a_rotation_of_the_journal(journal: Journal) -> None:
    journal.end(journal.begin(), result="up", pid=402, started=9)
    journal.feed(Entry, "resumed")
    journal.feed(Entry, "forgotten")

    (start,) = journal.reloaded().restarts["dev-1@red"].starts

    assert start.resumed
    assert journal.reloaded().restarts == journal.index.restarts


def test_a_hold_lasts_until_a_start_or_a_reset_by_hand(journal: Journal) -> None:
    journal.feed(Entry, "held")
    assert journal.reloaded().restarts["dev-1@red"].held
    journal.begin(by_hand=True)
    assert not journal.index.restarts["dev-1@red"].held
    journal.feed(Entry, "held")
    journal.feed(Entry, "restart_reset")
    assert "dev-1@red" not in journal.index.restarts


def test_a_start_that_was_decided_before_a_hold_does_not_end_it(journal: Journal) -> None:
    journal.feed(Entry, "held")
    begun = journal.begin()

    assert journal.index.restarts["dev-1@red"].held

    journal.feed(Failed, failed=begun)
    assert journal.reloaded().restarts["dev-1@red"].held
    assert journal.index.restarts["dev-1@red"].starts == ()


def test_the_end_of_our_second_process_is_not_that_of_the_persons(journal: Journal) -> None:
    ours, theirs = ProcessId(402, 9, "here"), ProcessId(403, 11, "here")
    journal.feed(Entry, "registered", evidence={"pid": ours.pid, "started": ours.started})
    journal.feed(Entry, "registered", evidence={"pid": theirs.pid, "started": theirs.started})
    begun = journal.feed(Begun, "terminated", evidence=(evidence := {"pid": 402, "started": 9, "duplicate_of": "403"}))
    for _ in ("begun", "ended"):
        assert journal.index.terminated("dev-1@red", ours)
        assert not journal.index.terminated("dev-1@red", theirs)
        journal.feed(Ended, "terminated", done=begun, evidence=evidence)
    assert journal.reloaded().terminated("dev-1@red", ours)
    assert not journal.reloaded().terminated("dev-1@red", theirs)


def test_a_renamed_agent_keeps_its_starts(journal: Journal) -> None:
    journal.begin()
    journal.feed(Entry, "updated", key="team-lead@red", evidence={"was": "dev-1@red"})

    assert [*journal.index.restarts] == ["team-lead@red"]


def test_the_death_of_an_agent_is_known_apart_from_its_successors_life(journal: Journal) -> None:
    journal.feed(Entry, "registered")
    journal.feed(Entry, "died", evidence={"pid": 401, "started": 7})
    journal.feed(Entry, "registered")

    assert journal.index.death_recorded(DEV)
    assert not journal.index.death_recorded(replace(DEV, process=ProcessId(402, 9, "here")))


def test_an_agent_that_was_ended_because_it_stalled_is_known(journal: Journal) -> None:
    journal.feed(Entry, "registered")
    journal.feed(Begun, "terminated", evidence={"stalled": True})
    assert journal.index.ended_for_stall("dev-1@red")
    journal.feed(Entry, "registered")
    assert not journal.index.ended_for_stall("dev-1@red")
