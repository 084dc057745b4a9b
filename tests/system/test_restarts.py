"""Dead agents come back with their conversation: real tmux, the real launcher, a stand-in for the client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.team import Team
from support.teammates import RESTART, Teammates
from support.tmux import PrivateTmux
from support.wait import wait_until
from yolo_supervisor.inventory.session_processes import visible


@pytest.fixture
def mates(team: Team, tmux: PrivateTmux) -> Iterator[Teammates]:
    yield Teammates(team, tmux, f"red-{uuid.uuid4().hex[:8]}")
    (team.claude / "stub-dev-1.json").unlink(missing_ok=True)


def task_of(path: Path) -> tuple[str, str | None]:
    task = json.loads(path.read_text())
    return task["status"], task.get("owner")


def test_a_killed_teammate_goes_on_in_its_pane_with_its_task(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid = mates.start("dev-1")
    task = mates.task()
    transcript = mates.transcript("dev-1")
    assert transcript is not None
    os.kill(pid, signal.SIGKILL)
    entry = mates.back("dev-1")
    team.running.wait(lambda: mates.did("resumed"), "its first progress")
    mates.wait_healed()
    assert task_of(task) == ("in_progress", "dev-1")
    assert not team.running.did("requeued")
    panes = mates.tmux("list-panes", "-a", "-F", "#{pane_id} #{pane_pid}").split("\n")
    assert f"{entry['evidence']['pane']} {entry['evidence']['pid']}" in panes
    assert len(panes) == 2
    told = [json.loads(line)["message"]["content"][0]["text"] for line in transcript.read_text().splitlines()]
    assert any("yolo-supervisor: your process ended" in text and task.stem in text for text in told)


def test_an_agent_that_was_told_to_end_is_not_started_again(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), mates.task()
    os.kill(pid, signal.SIGTERM)
    mates.wait_healed()
    assert task_of(task)[0] == "pending"
    assert not team.running.did("restarted")
    (forgotten,) = mates.did("forgotten")
    assert forgotten["evidence"]["not_restarted"] == "deliberate_signal"


def test_an_agent_that_dies_again_and_again_is_given_up(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), mates.task()
    for times in range(1, 4):
        os.kill(pid, signal.SIGKILL)
        pid = mates.back("dev-1", times)["evidence"]["pid"]
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: mates.did("restart_given_up"), "it to be given up")
    team.wait_given_back(task)
    assert len(mates.did("restarted")) == 3
    alert = team.running.wait(lambda: _alerts(team, "agent_not_restarted"), "the alert")
    assert "3 times" in alert[0]["reason"]


def test_a_client_that_ends_as_soon_as_it_is_up_is_given_up(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), mates.task()
    (team.claude / "stub-dev-1.json").write_text(json.dumps({"exits": 3}))
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: mates.did("restart_given_up"), "it to be given up")
    team.wait_given_back(task)
    assert 2 <= len(mates.did("restarted")) <= 3


def test_a_pane_that_a_person_uses_is_left_alone(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART.replace("backoff_s = 0.1", "backoff_s = 0.1\nmin_free_mib = 1000000"))
    pid = mates.start("dev-1")
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: mates.did("died"), "its death to be known")
    pane = mates.pane("dev-1")
    wait_until(lambda: mates.tmux("display-message", "-p", "-t", pane, "#{pane_dead}") == "1", "its pane to be dead")
    mates.tmux("respawn-pane", "-t", pane, "sleep 600")
    theirs = mates.tmux("display-message", "-p", "-t", pane, "#{pane_pid}")
    team.running.stop()
    team.supervise(RESTART)
    entry = mates.back("dev-1")
    assert entry["evidence"]["pane"] != pane
    assert team.alive(int(theirs))


def test_a_session_that_a_person_resumes_is_not_started_again(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART.replace("backoff_s = 0.1", "backoff_s = 0.1\nmin_free_mib = 1000000"))
    pid, task = mates.start("dev-1"), mates.task()
    transcript = mates.transcript("dev-1")
    assert transcript is not None
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: mates.did("died"), "its death to be known")
    by_hand = mates.resume("dev-1", transcript.stem)
    mates.wait_healed()
    assert team.alive(by_hand)
    assert task_of(task) == ("in_progress", "dev-1")
    assert not team.running.did("restarted")


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.thorough)])
def test_of_a_person_and_the_supervisor_that_resume_at_the_same_moment_the_person_goes_on(
    team: Team, mates: Teammates, rounds: int
) -> None:
    team.supervise(RESTART + "max_starts = 1000\nstorm_deaths = 1000\n")
    pid, task = mates.start("dev-1"), mates.task()
    transcript = mates.transcript("dev-1")
    assert transcript is not None

    def at_work() -> set[int]:
        agent = "dev-1@" + mates.name
        seen = visible(transcript.stem, agent, mates.name, [team.claude], team.processes)
        return {process.pid for process in seen.processes}

    def is_known(pid: int) -> bool:
        known = any(e["evidence"].get("pid") == pid for e in mates.did("registered"))
        return known and any((team.own.launches).glob(f"*~{pid}-*"))

    for number in range(rounds):
        team.running.wait(lambda pid=pid: is_known(pid), "the agent to be known")
        starts = len(mates.did("restarted"))
        os.kill(pid, signal.SIGKILL)
        if number % 2:
            mates.back("dev-1", starts + 1)
        else:
            wait_until(lambda pid=pid: not team.alive(pid), "its end")
        theirs = mates.resume("dev-1", transcript.stem)
        wait_until(lambda theirs=theirs: at_work() == {theirs}, "the person's process to be the only one")
        assert team.alive(theirs)
        pid = theirs
    team.running.wait(lambda: is_known(pid), "the agent to be known")
    assert task_of(task) == ("in_progress", "dev-1")
    assert not team.running.did("requeued")


def test_a_child_that_our_process_has_just_forked_is_no_second_process_of_the_session(
    team: Team, mates: Teammates
) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), mates.task()
    (team.claude / "stub-dev-1.json").write_text(json.dumps({"forks": True}))
    os.kill(pid, signal.SIGKILL)
    entry = mates.back("dev-1")
    team.running.wait(lambda: mates.did("resumed"), "its first progress")
    team.wait_looks(2)
    assert team.alive(entry["evidence"]["pid"])
    assert not mates.did("terminated")
    assert task_of(task) == ("in_progress", "dev-1")


def test_a_model_that_does_not_answer_after_the_start_is_reported(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART + "progress_s = 0.5\n")
    pid, task = mates.start("dev-1"), mates.task()
    (team.claude / "stub-dev-1.json").write_text(json.dumps({"answers": False}))
    os.kill(pid, signal.SIGKILL)
    mates.back("dev-1")
    team.running.wait(lambda: _alerts(team, "agent_not_resumed"), "the alert")
    assert task_of(task) == ("in_progress", "dev-1")
    assert not team.running.did("resumed")


def test_uncommitted_work_is_saved_before_the_start(team: Team, mates: Teammates) -> None:
    git = ["git", "-C", str(team.project), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (team.project / "half.py").write_text("def half(")
    team.supervise(RESTART)
    pid = mates.start("dev-1")
    os.kill(pid, signal.SIGKILL)
    entry = mates.back("dev-1")
    (saved,) = mates.did("work_saved")
    assert saved["seq"] < entry["seq"]
    shown = subprocess.run([*git, "show", f"{saved['evidence']['ref']}:half.py"], check=True, capture_output=True)
    assert shown.stdout == b"def half("
    for command in (("explain", "agent"), ("crash", "show")):
        assert f"diff HEAD {saved['evidence']['ref']}" in team.cli(*command, saved["key"]).stdout


def test_nothing_is_started_by_default_nor_while_the_supervisor_only_observes(team: Team, mates: Teammates) -> None:
    team.supervise('mode = "observe"\n' + RESTART)
    pid = mates.start_unrecorded("dev-1")
    team.running.wait(lambda: mates.did("would_registered"), "it to be found")
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: mates.did("would_restarted"), "the proposal")
    assert not team.running.did("restarted")


def _alerts(team: Team, code: str) -> list[dict[str, Any]]:
    text = team.running.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "alert" and _CODES[code] in line["reason"]]


_CODES = {"agent_not_restarted": "died again", "agent_not_resumed": "has not answered since"}
"""Words by which an alert is found in the log, which does not name its code."""
