"""The plugin's defects in supervising agents, by their numbers: in each case the supervisor must do better.

Every test runs the real daemon over real processes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.project import given_back, health_of
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.models import ProcessId

CALLS_A_HOOK = """
import subprocess, sys
def hook(event, payload):
    command = f"{{sys.executable}} -m yolo_supervisor hook {{event}}"
    subprocess.run(["/bin/sh", "-c", command], input=payload.encode(), start_new_session=True, check=True)
for event, payload in {events!r}:
    hook(event, payload)
print("ready", flush=True)
import time
time.sleep(600)
"""


def calls_hooks(*events: tuple[str, dict[str, Any]]) -> str:
    """A program that runs our hook as the client does: by a shell in a separate session, with real payloads."""
    return CALLS_A_HOOK.format(events=[(event, json.dumps(payload)) for event, payload in events])


def payload_of(event: str, project: Path, **more: Any) -> dict[str, Any]:
    """A payload as the client really sends it: never with a pid."""
    session = "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7"
    transcript = f"/home/.claude/projects/x/{session}.jsonl"
    common = {"session_id": session, "transcript_path": transcript, "cwd": str(project)}
    return {**common, "hook_event_name": event, **more}


def test_d1_two_agents_of_one_role_are_two(team: Team) -> None:
    team.supervise()
    one, two = team.agent("dev-1"), team.agent("dev-2")
    tasks = [team.task("dev-1"), team.task("dev-2")]
    health = team.planning / ".agent-health" / "dev.json"
    health.parent.mkdir()
    health.write_text(json.dumps(health_of("dev", two.pid), indent=2))  # the second has overwritten the first

    one.kill()
    team.wait_healed("dev-1")
    assert given_back(tasks[0])
    assert json.loads(health.read_text())["pid"] == two.pid
    assert not given_back(tasks[1])

    two.kill()
    team.wait_healed("dev-2")
    assert given_back(tasks[1])
    assert not health.exists()


def test_d4_a_reused_pid_names_no_agent(team: Team) -> None:
    bystander = team.children.start("sleep", "600", cwd=team.project)
    now = team.identity(bystander.pid)
    team.record("dev-1", ProcessId(now.pid, now.started - 1, now.boot))
    task = team.task("dev-1")
    (team.planning / ".agent-pids").write_text(f"{bystander.pid}\n")

    team.supervise()

    team.wait_healed("dev-1")
    assert given_back(task)
    assert "belongs to another process now" in team.running.did("died")[0]["reason"]
    assert team.running.did("registered") == []
    assert bystander.poll() is None


def test_d5_minus_one_in_a_pid_file_signals_no_process(team: Team) -> None:
    bystander = team.children.start("sleep", "600")
    pids = team.planning / ".agent-pids"
    pids.write_text("4294967295\n-1\n0\n1\n")

    team.supervise()
    agent = team.agent("dev-1")
    with pids.open("a") as file:
        file.write(f"{agent.pid}\n")
    agent.kill()

    team.wait_healed("dev-1")
    assert pids.read_text() == "4294967295\n-1\n0\n1\n"
    assert (bystander.poll(), team.running.child.poll()) == (None, None)
    assert "-1" in team.cli("doctor").stdout


def test_d6_a_dead_watchdog_does_not_block_supervision(team: Team, tmux: PrivateTmux) -> None:
    (team.planning / ".watchdog-pid").write_text("4194303")
    team.supervise()
    tmux.session("rest")
    agent = team.pane_agent(tmux, "work", "dev-1")
    team.wait_sessions_looked_at()

    tmux("kill-session", "-t", "=work")

    team.wait_healed("dev-1")
    assert not team.alive(agent)
    assert team.running.did("terminated", "dev-1@red")[0]["reason"] == "its tmux session is gone"


def test_d7_when_the_entry_of_a_pane_goes_its_agent_and_the_pane_are_gone(team: Team, tmux: PrivateTmux) -> None:
    team.supervise()
    stays, goes = team.pane_agent(tmux, "rest", "dev-1"), team.pane_agent(tmux, "work", "dev-2")
    panes = team.planning / ".agent-panes"
    panes.write_text(f"{stays} %0\n{goes} %1\n")

    os.kill(goes, signal.SIGKILL)

    team.wait_healed("dev-2")
    assert panes.read_text() == f"{stays} %0\n"
    assert tmux("list-panes", "-a", "-F", "#{pane_id}") == "%0"
    assert team.alive(stays)


def test_d8_the_end_of_any_subagent_is_not_the_end_of_one_of_ours(team: Team) -> None:
    team.supervise()
    (team.planning / ".active-agent-count").write_text("2")
    (team.planning / ".active-agent").write_text("dev")
    stop = payload_of("SubagentStop", team.project, agent_id="a0b1", agent_type="general-purpose")
    flags = ("--agent-id", "dev-1@red", "--team-name", "red")

    agent = team.children.python(calls_hooks(("SubagentStop", stop)), *flags, cwd=team.project)
    team.wait_known("dev-1", "red")
    team.wait_looks()

    assert (team.planning / ".active-agent-count").read_text() == "2"
    assert (team.planning / ".active-agent").read_text() == "dev"
    assert team.running.did("forgotten", "dev-1@red") == []
    assert agent.poll() is None


@pytest.mark.parametrize("spelling", ["yolo:yolo-dev", "yolo-dev", "@team-dev-1", "dev"])
def test_d21_every_spelling_of_a_role_is_that_role(team: Team, spelling: str) -> None:
    team.supervise()
    start = payload_of("SubagentStart", team.project, agent_id="a0b1", agent_type=spelling)

    team.children.python(calls_hooks(("SubagentStart", start)), cwd=team.project)

    wait_until(lambda: team.running.did("registered", "a0b1"), "the subagent to be found")
    assert team.running.did("registered", "a0b1")[0]["evidence"]["role"] == "dev"


def test_d23_an_agent_is_known_by_a_hook_that_names_no_pid(team: Team) -> None:
    team.supervise()
    start = payload_of("SessionStart", team.project, source="startup", model="opus")

    lead = team.children.python(calls_hooks(("SessionStart", start)), cwd=team.project)

    (registered,) = wait_until(lambda: team.running.did("registered"), "the session to be found")
    assert registered["evidence"]["pid"] == lead.pid
    assert registered["evidence"]["started"] == team.identity(lead.pid).started
    lead.kill()
    wait_until(lambda: team.running.did("died", registered["key"]), "its death to be seen")


def test_d25_an_orphan_that_is_called_claude_is_left_alone(team: Team, tmp_path: Path) -> None:
    claude = tmp_path / "claude"
    shutil.copy(str(shutil.which("cat")), claude)
    reads, lifeline = os.pipe()
    parent = "import subprocess, sys; print(subprocess.Popen(sys.argv[1], stdin=int(sys.argv[2]), stdout=2).pid)"
    command = [sys.executable, "-c", parent, str(claude), str(reads)]
    result = subprocess.run(command, pass_fds=[reads], stdout=subprocess.PIPE, cwd=team.project, check=True)
    os.close(reads)
    orphan = team.identity(int(result.stdout))  # its parent is gone; it ends when the test closes its lifeline

    team.supervise()
    team.wait_looks()
    team.cli("doctor", "--fix")

    assert team.identity(orphan.pid) == orphan
    assert orphan.pid not in [e["evidence"].get("pid") for e in team.running.did("registered")]
    os.close(lifeline)


@pytest.fixture
def leaked_lock() -> Iterator[Path]:
    """The machine's lock over all pid files, as a killed hook leaves it: without a holder, for ever."""

    def taken() -> bool:
        try:
            plugin_agents.PID_LOCK.mkdir()
        except FileExistsError:
            return False
        return True

    wait_until(taken, f"{plugin_agents.PID_LOCK} to be free: another process on this machine holds it")
    long_ago = time.time() - 3600
    os.utime(plugin_agents.PID_LOCK, (long_ago, long_ago))
    yield plugin_agents.PID_LOCK
    if plugin_agents.PID_LOCK.exists() and plugin_agents.PID_LOCK.lstat().st_mtime == pytest.approx(long_ago):
        plugin_agents.PID_LOCK.rmdir()


@pytest.mark.usefixtures("leaked_lock")
def test_d30_a_leaked_lock_blocks_no_registration(team: Team) -> None:
    team.supervise()
    start = payload_of("SessionStart", team.project, source="startup")

    team.children.python(calls_hooks(("SessionStart", start)), cwd=team.project)

    wait_until(lambda: team.running.did("registered"), "the session to be found")


@pytest.mark.usefixtures("leaked_lock")
def test_d30_a_leaked_lock_holds_up_no_task_and_the_doctor_removes_it(team: Team) -> None:
    team.supervise()
    agent, task = team.agent("dev-1"), team.task("dev-1")
    pids = team.planning / ".agent-pids"
    pids.write_text(f"{agent.pid}\n")

    agent.kill()

    team.wait_given_back(task)
    team.cli("doctor", "--fix")
    team.wait_healed("dev-1")
    assert pids.read_text() == ""


def test_d34_the_doctor_calls_no_mark_stale_whose_agent_is_at_work(team: Team) -> None:
    team.supervise()
    agent = team.agent("dev-1")
    mark, session = team.planning / ".active-agent", team.planning / ".yolo-session"
    mark.write_text("dev")
    session.write_text("session")
    os.utime(mark, (0, 0))

    fixed = team.cli("doctor", "--fix")

    assert fixed.returncode == 0, fixed.stdout
    assert ".active-agent" not in fixed.stdout
    assert (mark.read_text(), session.read_text(), agent.poll()) == ("dev", "session", None)


def test_d34_the_mark_of_the_last_agent_goes_with_it(team: Team) -> None:
    team.supervise()
    agent = team.agent("dev-1")
    (team.planning / ".active-agent").write_text("dev")
    (team.planning / ".active-agent-count").write_text("1")

    agent.kill()

    team.wait_healed("dev-1")
    assert not (team.planning / ".active-agent").exists()
    assert not (team.planning / ".active-agent-count").exists()
