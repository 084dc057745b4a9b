"""Dead agents come back with their conversation: real tmux, the real launcher, a stand-in for the client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import stub_client
from support.daemon import QUICK
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until

RESTART = (
    QUICK
    + """
[restart]
policy = "on-crash"
host_pause_s = 0
host_starts = 1000
backoff_s = 0.1
"""
)


class Teammates:
    """Teammates of the team ``red`` in panes of a private tmux server."""

    def __init__(self, team: Team, tmux: PrivateTmux) -> None:
        self.team, self.tmux = team, tmux
        folder = team.claude / "teams" / "red"
        folder.mkdir(parents=True)
        self.config = folder / "config.json"
        self._members: list[dict[str, Any]] = []
        tmux.session("red")
        tmux("set-option", "-g", "remain-on-exit", "failed")

    def start(self, name: str) -> int:
        """A teammate at work, known to the daemon; its pid."""
        pid = self.start_unrecorded(name)
        self.team.wait_known(name, "red")
        return pid

    def start_unrecorded(self, name: str) -> int:
        """A teammate that is at work; its pid."""
        return self._run(name)

    def resume(self, name: str, session: str) -> int:
        """A person resumes the teammate's session by hand, in another pane; the pid."""
        return self._run(name, f"--resume {session}")

    def pane(self, name: str) -> str:
        """The pane in which the teammate was started."""
        return next(str(member["tmuxPaneId"]) for member in self._members if member["name"] == name)

    def _run(self, name: str, more: str = "") -> int:
        flags = f"--agent-id {name}@red --agent-name {name} --team-name red --model opus {more}"
        line = f"cd {self.team.project} && exec {sys.executable} {stub_client.__file__} {flags}"
        pane, pid = self.tmux("split-window", "-d", "-P", "-F", "#{pane_id} #{pane_pid}", "-t", "red:", line).split()
        if not more:
            member = {"agentId": f"{name}@red", "name": name, "tmuxPaneId": pane, "backendType": "tmux"}
            self._members.append({**member, "cwd": str(self.team.project)})
            self.config.write_text(json.dumps({"name": "red", "leadAgentId": "l@red", "members": self._members}))
        self.team.mind(int(pid))
        wait_until(lambda: self.transcript(name), f"the transcript of {name}")
        return int(pid)

    def transcript(self, name: str) -> Path | None:
        paths = self.team.claude.glob("projects/*/*.jsonl")
        return next((path for path in paths if f'"agentName": "{name}"' in path.read_text()), None)

    def back(self, name: str, times: int = 1) -> dict[str, Any]:
        """The entry of its newest start, once it is up so often."""

        def up() -> dict[str, Any] | None:
            starts = [
                e for e in self.team.running.did("restarted", f"{name}@red") if e["evidence"].get("result") == "up"
            ]
            return starts[-1] if len(starts) >= times else None

        entry: dict[str, Any] = self.team.running.wait(up, f"{name} to come back")
        self.team.mind(entry["evidence"]["pid"])
        return entry


@pytest.fixture
def mates(team: Team, tmux: PrivateTmux) -> Iterator[Teammates]:
    yield Teammates(team, tmux)
    (team.claude / "stub-dev-1.json").unlink(missing_ok=True)


def task_of(path: Path) -> tuple[str, str | None]:
    task = json.loads(path.read_text())
    return task["status"], task.get("owner")


def test_a_killed_teammate_goes_on_in_its_pane_with_its_task(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid = mates.start("dev-1")
    task = team.task("dev-1")
    transcript = mates.transcript("dev-1")
    assert transcript is not None
    os.kill(pid, signal.SIGKILL)
    entry = mates.back("dev-1")
    team.running.wait(lambda: team.running.did("resumed", "dev-1@red"), "its first progress")
    team.wait_healed("dev-1")
    assert task_of(task) == ("in_progress", "dev-1")
    assert not team.running.did("requeued")
    panes = mates.tmux("list-panes", "-a", "-F", "#{pane_id} #{pane_pid}").split("\n")
    assert f"{entry['evidence']['pane']} {entry['evidence']['pid']}" in panes
    assert len(panes) == 2
    told = [json.loads(line)["message"]["content"][0]["text"] for line in transcript.read_text().splitlines()]
    assert any("[yolo-supervisor]" in text and task.stem in text for text in told)


def test_an_agent_that_was_told_to_end_is_not_started_again(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), team.task("dev-1")
    os.kill(pid, signal.SIGTERM)
    team.wait_healed("dev-1")
    assert task_of(task)[0] == "pending"
    assert not team.running.did("restarted")
    (forgotten,) = team.running.did("forgotten", "dev-1@red")
    assert forgotten["evidence"]["not_restarted"] == "deliberate_signal"


def test_an_agent_that_dies_again_and_again_is_given_up(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), team.task("dev-1")
    for times in range(1, 4):
        os.kill(pid, signal.SIGKILL)
        pid = mates.back("dev-1", times)["evidence"]["pid"]
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: team.running.did("restart_given_up", "dev-1@red"), "it to be given up")
    team.wait_given_back(task)
    assert len(team.running.did("restarted", "dev-1@red")) == 3
    alert = team.running.wait(lambda: _alerts(team, "agent_not_restarted"), "the alert")
    assert "3 times" in alert[0]["reason"]


def test_a_client_that_does_not_come_up_costs_a_try_each(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid, task = mates.start("dev-1"), team.task("dev-1")
    (team.claude / "stub-dev-1.json").write_text(json.dumps({"exits": 3}))
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: team.running.did("restart_given_up", "dev-1@red"), "it to be given up")
    team.wait_given_back(task)
    assert len(team.running.did("restarted", "dev-1@red")) == 3


def test_a_pane_that_a_person_uses_is_left_alone(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART.replace("backoff_s = 0.1", "backoff_s = 0.1\nmin_free_mib = 1000000"))
    pid = mates.start("dev-1")
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: team.running.did("died", "dev-1@red"), "its death to be known")
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
    pid, task = mates.start("dev-1"), team.task("dev-1")
    transcript = mates.transcript("dev-1")
    assert transcript is not None
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: team.running.did("died", "dev-1@red"), "its death to be known")
    by_hand = mates.resume("dev-1", transcript.stem)
    team.wait_healed("dev-1")
    assert team.alive(by_hand)
    assert task_of(task) == ("in_progress", "dev-1")
    assert not team.running.did("restarted")


def test_a_model_that_does_not_answer_after_the_start_is_reported(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART + "progress_s = 0.5\n")
    pid, task = mates.start("dev-1"), team.task("dev-1")
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
    (saved,) = team.running.did("work_saved", "dev-1@red")
    assert saved["seq"] < entry["seq"]
    shown = subprocess.run([*git, "show", f"{saved['evidence']['ref']}:half.py"], check=True, capture_output=True)
    assert shown.stdout == b"def half("


def test_nothing_is_started_by_default_nor_while_the_supervisor_only_observes(team: Team, mates: Teammates) -> None:
    team.supervise('mode = "observe"\n' + RESTART)
    pid = mates.start_unrecorded("dev-1")
    os.kill(pid, signal.SIGKILL)
    team.running.wait(lambda: team.running.did("would_restarted", "dev-1@red"), "the proposal")
    assert not team.running.did("restarted")


def _alerts(team: Team, code: str) -> list[dict[str, Any]]:
    text = team.running.log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "alert" and _CODES[code] in line["reason"]]


_CODES = {"agent_not_restarted": "died again", "agent_not_resumed": "has not answered since"}
"""Words by which an alert is found in the log, which does not name its code."""
