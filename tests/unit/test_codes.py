"""Decisions follow codes: the words of a refusal, a flaw, a source or a reason decide nothing."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import anyio
import msgspec
import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from support.journal import an_entry
from yolo_supervisor.actions.agents import PaneDied, Terminate
from yolo_supervisor.actions.base import Action, AlertCode, Escalate, Verb
from yolo_supervisor.actions.tasks import Requeue, WriteDeadLetter
from yolo_supervisor.cli import agent, state
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import failure_identity
from yolo_supervisor.daemon.executor import Progress, apply_action
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import execution_state, outcome_table
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import FlawCode, Task
from yolo_supervisor.policy.file_integrity import Flaw
from yolo_supervisor.policy.retry import Never, NeverCode, RetryDecision, requeue_or_dead_letter
from yolo_supervisor.store.lines import Entry, entry, fields, seal
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes, Refusal, RefusalCode
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.state import Broken, Cure, StateObservation, Unreadable, decide

SNAPSHOT_WORKED = [("v3_snapshot_resume", outcome_table.WORKED)]
REBUILD_WORKED = [("v3_event_recovery", outcome_table.WORKED), ("v3_snapshot_resume", outcome_table.FAILED)]


# -- the source of a restored file -------------------------------------------------------------------------------


def restored(**evidence: str) -> Entry:
    return an_entry("restored", execution_state.STATE_FILE, "state", evidence=evidence)


@pytest.mark.parametrize(
    ("code", "expected"),
    [("good_version", []), ("snapshot", SNAPSHOT_WORKED), ("rebuilt", REBUILD_WORKED), ("lease", [])],
)
@pytest.mark.parametrize("sentence", ["the snapshot x", "plans, summaries and events", "other words", ""])
def test_flag_outcomes_follow_the_code_of_the_source(code: str, expected: list[Any], sentence: str) -> None:
    assert outcome_table.in_journal_entry(restored(restored_from=code, source=sentence)) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("the last good version", []),
        ("the snapshot 5-20261122T205501.json", SNAPSHOT_WORKED),
        ("plans, summaries and events", REBUILD_WORKED),
    ],
)
def test_entries_of_version_0_1_0_are_read_by_their_sentence(sentence: str, expected: list[Any]) -> None:
    assert outcome_table.in_journal_entry(restored(source=sentence)) == expected


# -- refusals of the kill gate -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "registered"),
    [
        (Refusal(RefusalCode.ANCESTOR, "any other words"), True),
        (Refusal(RefusalCode.TMUX, "it is one of the ancestors of tmux"), False),
        (Refusal(RefusalCode.OTHER_USER, "ancestors"), False),
    ],
)
def test_only_the_code_of_a_refusal_lets_an_ancestor_be_registered(
    monkeypatch: pytest.MonkeyPatch, project: Path, refusal: Refusal, registered: bool
) -> None:
    monkeypatch.setattr(Processes, "refusal", lambda *_: refusal)

    words = ["register", "--project", str(project), "--pid", str(os.getpid()), "--role", "dev"]
    answer = CliRunner().invoke(agent.command, words)

    assert (answer.exit_code == 0) is registered, answer.output
    assert (refusal.text in answer.output) is not registered


# -- flaws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["its last line is half written", "any other words"])
def test_recovery_plan_follows_the_code_of_the_flaw(text: str) -> None:
    torn = Broken(path=Path("/p/x.jsonl"), key="x.jsonl", data=b"{", flaw=Flaw(FlawCode.HALF_WRITTEN, text))

    assert state._plan(torn) == "cut off its last line, with a copy in quarantine/"
    assert state._plan(replace(torn, data=b"", flaw=Flaw(FlawCode.LINES_GONE, text))).startswith("ask you")


def test_the_words_of_a_flaw_and_of_a_source_change_only_words() -> None:
    def restoration(words: str) -> Any:
        cure = Cure(data=b"{}", source="snapshot", text=words)
        file = Broken(path=Path("/p/x.json"), key="x", data=b"", flaw=Flaw(FlawCode.EMPTY, words), cures=(cure,))
        ((action,),) = decide(StateObservation(broken=(file,)), Path("/q"))
        return action

    one, other = restoration("some words"), restoration("other words")

    assert one.reason != other.reason
    assert replace(one, reason="", evidence={}) == replace(other, reason="", evidence={})
    assert one.evidence["restored_from"] == other.evidence["restored_from"] == "snapshot"


# -- repetitions by a restart ------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", [{}, {"quiet_s": 700.0}])
@pytest.mark.parametrize("replayable", [True, False])
def test_an_interrupted_change_is_repeated_by_its_replay_key(
    project: Path, claude_home: Path, replayable: bool, evidence: dict[str, Any]
) -> None:
    assert recovered(project, evidence, {"replay": replayable}) is replayable


@pytest.mark.parametrize(("evidence", "repeated"), [({}, True), ({"quiet_s": 700.0}, False)])
def test_changes_for_silence_of_version_0_1_0_are_not_repeated(
    project: Path, claude_home: Path, evidence: dict[str, Any], repeated: bool
) -> None:
    assert recovered(project, evidence, {}) is repeated


def recovered(project: Path, evidence: dict[str, Any], replay: dict[str, bool]) -> bool:
    """Whether ``recover`` makes a change that was promised and not made."""
    path = project / plugin.PLANNING / "x.json"
    path.write_bytes(b"before")
    with closing(Store(project)) as store:
        store.open()
        task = Task(list="red", number="1", status="in_progress", owner="dev", path=path)
        action = Requeue(key=task.id, task=task, owner="dev", cause="died", reason="any", evidence=evidence)
        write = {"path": str(path), "before": digest(b"before"), "after": digest(b"after"), "content": "after"}
        record = fields(entry(action, "tasks", store.clock.now(), project)) | {"seq": 1}
        store.paths.journal.write_bytes(
            seal({**record, "write": {**write, "stamp": store.documents.stamp(path), **replay}})
        )
        store.recover()
    return path.read_bytes() == b"after"


def test_a_change_says_in_the_journal_whether_it_may_be_repeated(project: Path, tmp_path: Path) -> None:
    task = Task(list="red", number="1", status="in_progress", owner="dev", path=tmp_path / "1.json")
    task.path.write_bytes(b'{"id":"1","subject":"x","status":"in_progress","owner":"dev"}')
    (requeue,) = requeue_or_dead_letter(task, RetryDecision(), tmp_path, "any words", {}, replayable=False)

    with closing(Store(project)) as store:
        store.open()
        assert store.commit(requeue, "tasks") is Outcome.DONE
        lines = [json.loads(line) for line in store.paths.journal.read_text().splitlines()]

    assert [line["write"]["replay"] for line in lines if "write" in line] == [False]


def test_every_verb_is_documented() -> None:
    verbs = {*get_args(Verb)}
    documented = (Path(__file__).parents[2] / "docs" / "journal.md").read_text().partition("## Lines in the file")[0]

    assert {verb for verb in verbs if f"`{verb}`" not in documented} == set()


# -- dead letters ------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_rewritten_for_a_new_failure_not_for_new_wording(tmp_path: Path) -> None:
    task = Task(list="red", number="1", status="in_progress", owner="dev", path=Path("/t"))

    def letter(words: str, code: NeverCode = NeverCode.ATTEMPTS, **stamp: object) -> WriteDeadLetter:
        turn = RetryDecision(never=Never(code, words), stamp={"attempt": 3, "cause": "silent", **stamp})
        made, _ = requeue_or_dead_letter(task, turn, tmp_path, words, {"quiet_s": len(words)})
        assert isinstance(made, WriteDeadLetter)
        return made

    before = letter("some words").data

    assert not letter("quite other words").holds(before)
    assert letter("some words", attempt=4).holds(before)
    assert letter("some words", cause="died").holds(before)
    assert letter("some words", NeverCode.NOT_REDRIVEN).holds(before)


# -- alerts and failures -----------------------------------------------------------------------------------------


@pytest.fixture
def runner(project: Path, claude_home: Path) -> Any:
    clock, processes = SystemClock(), Processes(backend())
    services = HostServices(clock, processes, ProcessScanner(processes), Tmux(clock))
    made = Runner(project, Config(), services, {"HOME": str(claude_home.parent)})
    made.open()
    yield made

    async def close() -> None:
        made.close()

    anyio.run(close)


def look(runner: Runner, *actions: Action) -> list[str]:
    """The log events of one look that decides on these actions."""
    with capture_logs() as lines:
        results = runner.executor.apply("tasks", [(action,) for action in actions])
    assert all(result.progress is Progress.DONE for result in results)
    return [line["event"] for line in lines]


def silent(seconds: int, code: AlertCode = AlertCode.AGENT_SILENT) -> Escalate:
    return Escalate(kind="agent", code=code, key="dev", reason=f"silent for {seconds} s")


def test_an_alert_whose_reason_changes_is_logged_once_and_its_end_once(runner: Runner) -> None:
    assert [look(runner, silent(n)) for n in range(3)] == [["alert"], [], []]
    assert look(runner, silent(3), silent(3, AlertCode.AGENT_IDLE)) == ["alert"]
    assert look(runner) == ["alert_resolved", "alert_resolved"]
    assert look(runner) == []


def test_two_panes_of_one_session_are_noted_each(runner: Runner) -> None:
    ends = [PaneDied(key="work", agent="dev", pane=pane, reason="it ended") for pane in ("%1", "%2")]

    assert look(runner, *ends) == ["died", "died"]
    assert look(runner, *ends) == []


def test_in_observe_mode_a_change_whose_reason_changes_is_noted_once(runner: Runner, tmp_path: Path) -> None:
    runner.reload(msgspec.structs.replace(runner.config, mode="observe"))

    def requeue(owner: str, seconds: int, cause: str = "silent") -> Requeue:
        task = Task(list="red", number="1", status="in_progress", owner=owner, path=tmp_path / "1")
        reason = f"silent for {seconds} s"
        return Requeue(key=task.id, task=task, owner=owner, cause=cause, reason=reason)

    assert [look(runner, requeue("dev", n)) for n in range(3)] == [["would_requeued"], [], []]
    assert look(runner, requeue("qa", 3)) == ["would_requeued"]
    assert look(runner, requeue("qa", 3, "oom")) == ["would_requeued"]


def test_in_observe_mode_another_flaw_of_a_file_is_noted(runner: Runner) -> None:
    runner.reload(msgspec.structs.replace(runner.config, mode="observe"))

    def restoration(code: FlawCode, words: str) -> Action:
        cure = Cure(data=b"{}", source="snapshot", text=words)
        file = Broken(path=Path("/p/x.json"), key="x", data=b"", flaw=Flaw(code, words), cures=(cure,))
        ((action,),) = decide(StateObservation(broken=(file,)), Path("/q"))
        return action

    assert look(runner, restoration(FlawCode.EMPTY, "some words")) == ["would_restored"]
    assert look(runner, restoration(FlawCode.EMPTY, "other words")) == []
    assert look(runner, restoration(FlawCode.ONLY_ZEROS, "other words")) == ["would_restored"]


def test_an_unreadable_file_raises_an_alert_for_each_errno(runner: Runner) -> None:
    def unreadable(code: str) -> Action:
        ((action,),) = decide(
            StateObservation(unreadable=(Unreadable(key="STATE.md", code=code, text="words"),)), Path("/q")
        )
        return action

    assert [look(runner, unreadable("EACCES")) for _ in range(2)] == [["alert"], []]
    assert look(runner, unreadable("EIO")) == ["alert", "alert_resolved"]


def failures(runner: Runner, *met: tuple[str, Exception, str]) -> list[str]:
    with capture_logs() as lines:
        for name, error, words in met:
            runner._failures.failed("status_file", error, message=words, file=name)
    return [line["file"] for line in lines if line["event"] == "status_file_failed"]


def resolved(runner: Runner, *names: str) -> list[str]:
    with capture_logs() as lines:
        for name in names:
            runner._failures.recovered("status_file", file=name)
    return [line["file"] for line in lines if line["event"] == "status_file_recovered"]


def full(path: str) -> OSError:
    return OSError(errno.ENOSPC, "no room", path)


def test_one_failure_that_stops_many_things_is_logged_once_and_its_end_once(runner: Runner) -> None:
    assert failures(runner, ("a", full("/a"), "one"), ("b", full("/b"), "two"), ("a", full("/c"), "three")) == ["a"]
    assert resolved(runner, "a", "b", "b") == ["b"]


def test_different_failures_are_logged_each_although_they_use_the_same_words(runner: Runner) -> None:
    met = [
        ("a", full("/a"), "words"),
        ("b", OSError(errno.EACCES, "no", "/b"), "words"),
        ("c", OSError(errno.EACCES, "no", "/c"), "words"),
        ("d", ValueError("no"), "words"),
        ("e", ValueError("no"), "words"),
        ("e", KeyError("no"), "words"),
    ]

    assert failures(runner, *met) == ["a", "b", "c", "d", "e", "e"]
    assert failures(runner, ("e", KeyError("other"), "other words")) == []


def test_the_identity_of_a_failure_is_its_number_and_file_not_its_text() -> None:
    one = OSError(errno.EACCES, "some words", "/a")

    assert failure_identity("x", one) == failure_identity("y", OSError(errno.EACCES, "other words", "/a"))
    assert failure_identity("x", one) != failure_identity("x", OSError(errno.ENOENT, "some words", "/a"))


def test_one_held_lock_that_stops_many_actions_is_one_failure(runner: Runner) -> None:
    lock = Path("/project/.yolo-planning/.supervisor/store.lock")

    assert failures(runner, *((name, Busy(f"{name} waits", lock), name) for name in "abc")) == ["a"]
    assert resolved(runner, *"abc") == ["c"]
    both = [("a", Busy("held", lock), "held"), ("b", Busy("held", lock.with_name("b.lock")), "held")]
    assert failures(runner, *both) == ["a", "b"]


class HungWatcher:
    """A watcher whose tick never ends."""

    name = "tasks"
    interval_s = 1.0

    def rest_s(self) -> float:
        return 1.0

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        await anyio.sleep_forever()
        return ()


async def test_a_hung_tick_is_a_failure_that_says_so(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolo_supervisor.daemon.runner.TICK_LIMIT_S", 0.01)

    with capture_logs() as lines:
        await runner._tick(HungWatcher(), runner.watcher_health["tasks"])

    assert runner.watcher_health["tasks"].last_error == "no answer within 0.01 s"
    assert [(line["event"], line["error"]) for line in lines] == [("watcher_failed", "no answer within 0.01 s")]


def test_a_refused_path_is_another_failure_than_a_held_lock_there() -> None:
    path = Path("/a")

    assert failure_identity("x", Refused("a link", path)) == failure_identity("y", Refused("no file", path))
    assert failure_identity("x", Refused("a link", path)) != failure_identity("x", Busy("held", path))


def test_a_command_cannot_apply_a_termination(runner: Runner) -> None:
    action = Terminate(key="dev", roots=(), grace_s=1.0, reason="its session was left")

    with pytest.raises(TypeError, match="Terminate"):
        apply_action(action, runner.store, "cli")


def test_a_remediation_that_meets_a_lock_waits_and_takes_no_later_step(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    path.write_text('{"id": "1", "status": "in_progress", "owner": "dev"}')
    path.with_name("1.json.lock").mkdir()
    task = Task(list="red", number="1", status="in_progress", owner="dev", path=path)
    requeue = Requeue(key=task.id, task=task, owner="dev", cause="died", reason="its owner is dead")

    with capture_logs() as lines:
        results = runner.executor.apply("tasks", [(requeue, silent(1)), (silent(2, AlertCode.AGENT_IDLE),)])

    assert [result.progress for result in results] == [Progress.WAITS, Progress.DONE]
    assert [line["event"] for line in lines] == ["alert"]


def test_an_alert_lasts_while_a_lock_holds_up_its_remediation(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    path.write_text('{"id": "1", "status": "in_progress", "owner": "dev"}')
    path.with_name("1.json.lock").mkdir()
    task = Task(list="red", number="1", status="in_progress", owner="dev", path=path)
    requeue = Requeue(key=task.id, task=task, owner="dev", cause="died", reason="its owner is dead")

    with capture_logs() as lines:
        runner.executor.apply("tasks", [(silent(1),)])
        (result,) = runner.executor.apply("tasks", [(requeue, silent(1))])
        runner.executor.apply("tasks", [(silent(1),)])

    assert result.progress is Progress.WAITS
    assert [line["event"] for line in lines] == ["alert"]
