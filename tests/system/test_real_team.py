"""The real Claude Code client, offline, as a team in tmux: the main job where it counts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.claude_code import Model, RealClient, Reply
from support.cli import Cli
from support.daemon import RunningDaemon, StartDaemon
from support.processes import Children
from support.project import given_back, read_task, write_task
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats.tasks import SET_ASIDE
from yolo_supervisor.models import from_iso

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


def use(tool: str, **said: Any) -> Reply:
    return [{"type": "tool_use", "name": tool, "input": said}]


def spawn(name: str, prompt: str) -> Reply:
    return use(
        "Agent", name=name, prompt=prompt, description="dev mate", subagent_type="general-purpose", team_name="alpha",
        run_in_background=True,
    )  # fmt: skip


def wait_for(gate: Path) -> Reply:
    waits = f"timeout 90 sh -c 'until [ -e {gate} ]; do sleep 0.1; done'"
    return use("Bash", command=waits, timeout=100_000)


CREATE = use("TaskCreate", subject="Fix bug", description="Fix the bug", activeForm="Fixing bug")
CLAIM = use("TaskUpdate", taskId="1", status="in_progress", owner="dev-1")
WORK = use("Bash", command="python3 -c 'import time; time.sleep(100)'", timeout=110_000)  # the client refuses ``sleep``

# -- the team -------------------------------------------------------------------------------------------------------


class RealTeam(RealClient):
    """A lead, and its teammates in panes beside it (``tmux``) or inside its process."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self.gate = scratch / "gate"
        """What ``wait_for`` waits for."""

    def begin(self, *models: Model, mode: str = "tmux") -> None:
        """Start the lead, and make the project one of the plugin's."""
        self.start(*models, prompt=LEAD, mode=mode)
        (self.project / ".yolo-planning").mkdir()

    def end(self) -> None:
        super().end()
        self.gate.touch()

    def panes(self) -> list[int]:
        """The process in each pane, in the order of their making: the lead's, and those of its teammates."""
        told = self.tmux("list-panes", "-a", "-F", "#{pane_id} #{pane_pid}")
        return [int(pid) for _, pid in sorted((int(pane[1:]), pid) for pane, pid in map(str.split, told.splitlines()))]

    def task(self) -> Path:
        """Task 1, once there is one."""
        found: Path = wait_until(lambda: next(iter(self.claude.glob("tasks/*/1.json")), None), "the task", LIMIT_S)
        return found

    def session(self) -> str:
        """The id of the lead's session, once its teammate is there."""

        def teammate() -> str | None:
            for path in self.claude.glob("teams/*/config.json"):
                config = json.loads(path.read_text() or "{}")
                if len(config.get("members", ())) > 1:
                    return str(config["leadSessionId"])
            return None

        found: str = wait_until(teammate, "the teammate", LIMIT_S)
        return found

    def told(self) -> list[Any]:
        """What the client has told the models of the tools that they used, by its transcripts."""
        whole = [path.read_text().rpartition("\n")[0] for path in self.claude.glob("projects/**/*.jsonl")]
        said = [json.loads(line).get("message", {}).get("content") for text in whole for line in text.splitlines()]
        blocks = [block for content in said if isinstance(content, list) for block in content]
        return [block["content"] for block in blocks if block.get("type") == "tool_result"]

    def wait_told(self, text: str) -> None:
        wait_until(lambda: text in self.told(), f"a model to be told {text!r}", LIMIT_S)


@pytest.fixture
def team(tmp_path: Path) -> Iterator[RealTeam]:
    scratch = tmp_path / "real"
    scratch.mkdir()
    started = RealTeam(scratch)
    yield started
    started.end()


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def lives(pid: int) -> bool:
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(stat(int(folder.name))[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_at_work(task: Path) -> None:
    wait_until(lambda: '"in_progress"' in task.read_text(), "the teammate to claim it", LIMIT_S)


def wait_for_deed(running: RunningDaemon, action: str, name: str) -> None:
    running.wait(lambda: any(e["key"].startswith(f"{name}@") for e in running.did(action)), f"{name} to be {action}")


def kill_known(running: RunningDaemon, pid: int, name: str) -> None:
    """Kill an agent that the daemon knows, and wait until what it left is healed."""
    wait_for_deed(running, "registered", name)
    os.kill(pid, signal.SIGKILL)
    wait_for_deed(running, "forgotten", name)


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


def activities(team: RealTeam) -> dict[str, str]:
    """What ``status`` says that each agent is doing, by name."""
    status = Cli(team.project)("status", "--json", env={**os.environ, "HOME": str(team.claude.parent)})
    return {agent["name"]: agent["activity"] for agent in json.loads(status.stdout)["projects"][0]["agents"]}


def last_look(running: RunningDaemon) -> datetime:
    """When the daemon last looked at tasks, by its report."""

    def looked() -> datetime | None:
        watchers = json.loads((running.folder / "daemon.json").read_text())["watchers"]
        at = next(watcher["last_tick_at"] for watcher in watchers if watcher["name"] == "tasks")
        return from_iso(at) if at else None

    found: datetime = wait_until(looked, "a look at tasks", LIMIT_S)
    return found


def wait_doing(team: RealTeam, **expected: str) -> None:
    wanted = {name.replace("_", "-"): activity for name, activity in expected.items()}
    wait_until(lambda: activities(team) == wanted, f"the agents to be {wanted}", LIMIT_S)


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
    began = last_look(running)
    wait_until(lambda: last_look(running) - began > timedelta(seconds=6), "looks for twice the idle limit", LIMIT_S)
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
    evidence = running.did("requeued")[-1]
    assert "dev-1" in evidence["reason"]
    assert list((team.project / ".yolo-planning" / ".supervisor" / "crashes").iterdir()) == []


@pytest.mark.thorough
def test_a_lead_does_not_wait_for_a_teammate_that_was_killed(team: RealTeam, daemon: StartDaemon) -> None:
    team.begin((LEAD, [CREATE, spawn("dev-1", DEV_1)]), (DEV_1, [CLAIM, WORK]))
    wait_at_work(team.task())
    running = daemon(over=team.project)
    wait_doing(team, team_lead="waits_for_background", dev_1="working")

    kill_known(running, team.panes()[1], "dev-1")

    wait_doing(team, team_lead="idle")
