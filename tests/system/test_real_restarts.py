"""The real Claude Code client comes back with its conversation: a teammate in its pane, a session in a new window."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.daemon import QUICK, RunningDaemon, StartDaemon
from support.project import read_task
from support.real_team import CREATE, WORK, RealTeam, lives, spawn, use, wait_at_work, wait_for_deed
from support.wait import LIMIT_S, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("npm", "node", "tmux", "git")),
        reason="npm, node, tmux or git is missing: the real client is not driven",
    ),
]

RESTART = QUICK.replace('on_detach = "terminate"', 'on_detach = "keep"') + '\n[restart]\npolicy = "on-crash"\n'
LEAD, DEV_1, ALONE = "BRAVO-LEAD start the team", "CHARLIE-DEV work on task 1", "ECHO-ALONE work"
CLAIM = use("TaskUpdate", taskId="1", status="in_progress", owner="dev-1")
FINISH = use("TaskUpdate", taskId="1", status="completed")


@pytest.fixture
def team(tmp_path: Path) -> Iterator[RealTeam]:
    scratch = tmp_path / "real"
    scratch.mkdir()
    started = RealTeam(scratch)
    yield started
    started.end()


def wait_up(running: RunningDaemon, name: str) -> dict[str, Any]:
    """The entry of the agent's start that is up."""

    def up() -> dict[str, Any] | None:
        starts = [e for e in running.did("restarted") if e["key"].startswith(name)]
        return next((entry for entry in starts if entry["evidence"].get("result") == "up"), None)

    found: dict[str, Any] = running.wait(up, f"{name} to be started again")
    return found


def test_killed_teammate_finishes_its_task_after_its_return(team: RealTeam, daemon: StartDaemon) -> None:
    team.begin((LEAD, [CREATE, spawn("dev-1", DEV_1)]), (DEV_1, [CLAIM, WORK, FINISH]))
    task = team.task()
    wait_at_work(task)
    lead, mate = team.panes()
    running = daemon(over=team.project, config=RESTART)
    wait_for_deed(running, "registered", "dev-1")

    os.kill(mate, signal.SIGKILL)

    entry = wait_up(running, "dev-1")
    wait_for_deed(running, "resumed", "dev-1")
    wait_for_deed(running, "forgotten", "dev-1")
    wait_until(lambda: read_task(task)["status"] == "completed", "the task to be completed", LIMIT_S)
    assert not running.did("requeued")
    assert sorted(team.panes()) == sorted([lead, entry["evidence"]["pid"]])
    config = next(team.claude.glob("teams/*/config.json"))
    assert [member["name"] for member in json.loads(config.read_text())["members"]] == ["team-lead", "dev-1"]


@pytest.mark.thorough
def test_killed_session_goes_on_in_a_new_window(team: RealTeam, daemon: StartDaemon) -> None:
    team.begin((ALONE, [WORK, WORK]))
    running = daemon(over=team.project, config=RESTART)
    (registered,) = running.wait(lambda: running.did("registered"), "the session to be found")
    wait_until(lambda: [*team.claude.glob("projects/*/*.jsonl")], "its transcript", LIMIT_S)
    wait_until(lambda: "assistant" in next(team.claude.glob("projects/*/*.jsonl")).read_text(), "its turn", LIMIT_S)
    (pid,) = team.panes()
    team.tmux("new-window", "-d", "-t", "=team:", "sleep 900")

    os.kill(pid, signal.SIGKILL)

    entry = wait_up(running, registered["key"])
    running.wait(lambda: running.did("resumed"), "its first progress")
    assert lives(entry["evidence"]["pid"])
    sessions = [json.loads(path.read_text()) for path in team.claude.glob("sessions/*.json")]
    assert {session["sessionId"] for session in sessions} == {sessions[0]["sessionId"]}
