"""The real Claude Code client, offline, as a team in tmux: the main job where it counts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import Cli
from support.daemon import StartDaemon
from support.processes import Children
from support.project import given_back, read_task, write_task
from support.real_team import (
    CREATE,
    WORK,
    RealTeam,
    children_of,
    command_line,
    kill_known,
    lives,
    spawn,
    use,
    wait_at_work,
    wait_doing,
    wait_for,
    wait_for_deed,
    wait_looks,
)  # fmt: skip
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats.tasks import SET_ASIDE

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("npm", "node", "tmux", "git")),
        reason="npm, node, tmux or git is missing: the real client is not driven",
    ),
]

# -- what the models say --------------------------------------------------------------------------------------------

LEAD, DEV_1, DEV_2 = "BRAVO-LEAD start the team", "CHARLIE-DEV work on task 1", "DELTA-DEV look for work"


CLAIM = use("TaskUpdate", taskId="1", status="in_progress", owner="dev-1")

# -- the team -------------------------------------------------------------------------------------------------------


@pytest.fixture
def team(tmp_path: Path) -> Iterator[RealTeam]:
    scratch = tmp_path / "real"
    scratch.mkdir()
    started = RealTeam(scratch)
    yield started
    started.end()


# -- given back -----------------------------------------------------------------------------------------------------


def test_killed_teammate_is_recovered_and_its_lead_unaffected(team: RealTeam, daemon: StartDaemon) -> None:
    team.begin((LEAD, [CREATE, spawn("dev-1", DEV_1)]), (DEV_1, [CLAIM, WORK]))
    task, claude = team.task(), team.claude
    wait_at_work(task)
    lead, mate = team.panes()
    wait_until(lambda: any(b"sleep(100)" in command_line(p) for p in children_of(mate)), "the teammate's tool", LIMIT_S)
    tools = [pid for pid in children_of(mate) if b"sleep(100)" in command_line(pid)]
    untouched = {p: p.read_bytes() for p in (*claude.glob("teams/*/config.json"), *claude.glob("settings.json"))}
    before = read_task(task)
    running = daemon(over=team.project)
    wait_until(lambda: all(running.sees(tool) for tool in tools), "the tool to be known")

    kill_known(running, mate, "dev-1")

    assert read_task(task) == {
        **{key: value for key, value in before.items() if key != "owner"}, "status": "pending",
    }  # fmt: skip
    assert not any(lives(tool) for tool in tools)
    assert lives(lead)
    assert {p: p.read_bytes() for p in untouched} == untouched
    reasons = [e["reason"] for e in running.did("requeued")]
    assert reasons == ["its owner dev-1 is dead"]
    dirty = subprocess.run(
        ["git", "-C", str(team.project), "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    assert ".yolo-planning" not in dirty.stdout


@pytest.mark.thorough
def test_a_requeued_task_is_claimed_by_a_new_teammate(team: RealTeam, daemon: StartDaemon) -> None:
    look, start = use("TaskList"), use("TaskUpdate", taskId="1", status="in_progress")
    team.begin(
        (LEAD, [CREATE, spawn("dev-1", DEV_1), wait_for(team.gate), spawn("dev-2", DEV_2)]),
        (DEV_1, [CLAIM, WORK]),
        (DEV_2, [look, start, WORK]),
    )
    task = team.task()
    wait_at_work(task)
    before = read_task(task)
    running = daemon(over=team.project)
    _, mate = team.panes()
    kill_known(running, mate, "dev-1")
    assert given_back(task)

    team.gate.touch()
    wait_at_work(task)

    assert read_task(task) == {**before, "owner": "dev-2"}  # it has named nobody: so the client does with the ownerless
    team.wait_told("#1 [pending] Fix bug")


@pytest.fixture
def idle(team: RealTeam) -> RealTeam:
    """A lead and dev-1 in its process, which looks for work in the list that bears the id of its session."""
    team.begin((LEAD, [spawn("dev-1", DEV_2)]), mode="in-process")
    return team


def owner_in(team: RealTeam, children: Children) -> tuple[Path, int]:
    """A task of dev-9, which is a process beside the client; and its pid."""
    session = team.session()
    task = write_task(team.claude, session, 1, "dev-9", "in_progress")
    child = children.agent("dev-9", session, team.project, env={**os.environ, "HOME": str(team.claude.parent)})
    return task, child.pid


@pytest.mark.thorough
def test_a_requeued_task_is_claimed_by_an_idle_teammate_unprompted(
    idle: RealTeam, children: Children, daemon: StartDaemon
) -> None:
    task, owner = owner_in(idle, children)
    before = read_task(task)
    running = daemon(over=idle.project)

    kill_known(running, owner, "dev-9")
    wait_at_work(task)

    assert read_task(task) == {**before, "owner": "dev-1"}


# -- set aside ------------------------------------------------------------------------------------------------------

ONE_ATTEMPT = "[tasks]\nmax_attempts = 1\n"


@pytest.mark.thorough
def test_an_idle_teammate_leaves_a_dead_letter_alone_until_it_is_redriven(
    idle: RealTeam, children: Children, daemon: StartDaemon
) -> None:
    task, owner = owner_in(idle, children)
    before = read_task(task)
    running = daemon(over=idle.project, config=ONE_ATTEMPT)
    kill_known(running, owner, "dev-9")
    aside = {**before, "status": "pending", "owner": SET_ASIDE}
    assert read_task(task) == aside

    other = write_task(idle.claude, task.parent.name, 2)
    wait_until(lambda: '"dev-1"' in other.read_text(), "the teammate to look for work")
    assert read_task(task) == aside

    assert Cli(idle.project)("dead-letter", "redrive", "1").returncode == 0
    wait_at_work(task)
    assert read_task(task) == {**before, "owner": "dev-1"}


@pytest.mark.thorough
def test_the_model_sees_the_owner_of_a_dead_letter_and_a_taken_one_is_set_aside_again(
    team: RealTeam, daemon: StartDaemon
) -> None:
    look, start = use("TaskList"), use("TaskUpdate", taskId="1", status="in_progress")
    take = use("TaskUpdate", taskId="1", owner="dev-2")  # the client asks nobody
    team.begin(
        (LEAD, [CREATE, spawn("dev-1", DEV_1), wait_for(team.gate), spawn("dev-2", DEV_2)]),
        (DEV_1, [CLAIM, WORK]),
        (DEV_2, [look, start, look, take, WORK]),
    )
    task = team.task()
    wait_at_work(task)
    before = read_task(task)
    aside = {**before, "status": "pending", "owner": SET_ASIDE}
    running = daemon(over=team.project, config=ONE_ATTEMPT)
    kill_known(running, team.panes()[1], "dev-1")
    assert read_task(task) == aside

    team.gate.touch()
    wait_until(lambda: '"dev-2"' in task.read_text(), "dev-2 to take it", LIMIT_S)

    assert read_task(task) == {**before, "owner": "dev-2"}
    team.wait_told("#1 [pending] Fix bug (dead-letter)")
    team.wait_told("#1 [in_progress] Fix bug (dead-letter)")  # who begins it without naming itself has not got it
    kill_known(running, team.panes()[2], "dev-2")
    assert read_task(task) == aside


# -- who is at work -------------------------------------------------------------------------------------------------

UNOWNED = use("TaskUpdate", taskId="1", status="in_progress")
FAST = "[agents]\ninterval_s = 0.5\n[tasks]\ninterval_s = 0.5\nidle_limit_s = 3\n"


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["tmux", pytest.param("in-process", marks=pytest.mark.thorough)])
def test_an_idle_teammates_task_is_requeued_and_a_working_ones_is_not(
    mode: str, team: RealTeam, daemon: StartDaemon
) -> None:
    team.begin((LEAD, [CREATE, spawn("dev-1", DEV_1)]), (DEV_1, [CLAIM, wait_for(team.gate)]), mode=mode)
    task = team.task()
    wait_at_work(task)
    running = daemon(over=team.project, config=FAST)
    wait_for_deed(running, "registered", "dev-1")
    wait_doing(team, team_lead="waits_for_background", dev_1="working")
    wait_looks(running, for_s=6)  # twice the idle limit
    assert read_task(task)["owner"] == "dev-1"

    team.gate.touch()
    running.wait(lambda: given_back(task), "its task to be given back")

    wait_doing(team, team_lead="idle", dev_1="idle")
    assert "dev-1 is idle" in running.did("escalated")[-1]["reason"]


@pytest.mark.thorough
def test_a_killed_leads_own_task_is_requeued_and_its_teammate_keeps_the_other(
    team: RealTeam, daemon: StartDaemon
) -> None:
    team.begin(
        (LEAD, [CREATE, CREATE, use("TaskUpdate", taskId="2", status="in_progress"), spawn("dev-1", DEV_1)]),
        (DEV_1, [CLAIM, WORK]),
    )
    task = team.task()
    wait_at_work(task)
    own = task.with_name("2.json")
    running = daemon(over=team.project)
    wait_for_deed(running, "registered", "dev-1")

    kill_known(running, team.panes()[0], "team-lead")

    running.wait(lambda: given_back(own), "the lead's task to be given back")
    assert read_task(task)["owner"] == "dev-1"
    assert lives(team.panes()[0])


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["tmux", "in-process"])
def test_a_team_that_ends_in_order_leaves_no_task_and_no_crash_report(
    mode: str, team: RealTeam, daemon: StartDaemon
) -> None:
    team.begin((LEAD, [CREATE, spawn("dev-1", DEV_1)]), (DEV_1, [CLAIM, WORK]), mode=mode)
    task = team.task()
    wait_at_work(task)
    running = daemon(over=team.project)
    wait_for_deed(running, "registered", "dev-1")
    lead = team.panes()[0]

    os.kill(lead, signal.SIGTERM)

    running.wait(lambda: given_back(task), "the task to be given back")
    assert not any(team.claude.glob("teams/*")), "the client has removed the team's folder"
    running.wait(lambda: running.did("requeued"), "that to be recorded")
    assert "dev-1" in running.did("requeued")[-1]["reason"]
    assert list((team.project / ".yolo-planning" / ".supervisor" / "crashes").iterdir()) == []


@pytest.mark.thorough
def test_a_lead_does_not_wait_for_a_teammate_that_was_killed(team: RealTeam, daemon: StartDaemon) -> None:
    team.begin((LEAD, [CREATE, spawn("dev-1", DEV_1)]), (DEV_1, [CLAIM, WORK]))
    wait_at_work(team.task())
    running = daemon(over=team.project)
    wait_doing(team, team_lead="waits_for_background", dev_1="working")

    kill_known(running, team.panes()[1], "dev-1")

    wait_doing(team, team_lead="idle")
