"""``agent stop``: the end of an agent by a person, through the kill gate."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.daemon import StartDaemon
from support.processes import Children
from support.project import agent_of, given_back, write_record, write_task
from support.team import Team
from support.wait import LIMIT_S
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
TOOL = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
OTHER_USER = 65534


def entries(cli: Cli, action: str) -> list[dict[str, Any]]:
    lines = cli("history", "--json").stdout.splitlines()
    return [entry for entry in map(json.loads, lines) if entry["action"] == action]


def test_a_stopped_agents_task_is_requeued_and_no_attempt_is_charged(team: Team) -> None:
    team.supervise()
    task = team.task("dev-1")
    child = team.agent("dev-1", program=TOOL)

    result = team.cli("agent", "stop", "dev-1", "--yes")

    assert result.returncode == 0, result.stderr
    assert result.stdout == f"dev-1@red (process {child.pid}) was ended, with 1 of its processes\n"
    assert child.wait(LIMIT_S) == -15
    team.wait_given_back(task)
    team.wait_healed("dev-1")
    (ended,) = team.running.did("terminated", "dev-1@red")
    assert (ended["by"], ended["reason"]) == ("cli", "by hand")
    (died,) = team.running.did("died", "dev-1@red")
    assert died["evidence"]["by_supervisor"] is True
    (requeued,) = team.running.did("requeued")
    assert requeued["evidence"]["charged"] is False
    assert team.cli.json("crash", "list")["crashes"] == []


def test_an_agent_that_no_daemon_has_seen_is_recorded_before_it_is_stopped(
    cli: Cli, project: Path, claude_home: Path, children: Children, daemon: StartDaemon
) -> None:
    child = children.agent("dev-1", "red", project)
    task = write_task(claude_home, "red", 1, owner="dev-1", status="in_progress")

    result = cli("agent", "stop", str(child.pid), "--yes")

    assert result.stdout.endswith("its tasks are requeued as soon as a daemon runs\n")
    assert child.wait(LIMIT_S) == -15
    running = daemon()
    running.wait(lambda: given_back(task) and running.did("requeued"), "the task to be requeued")
    assert running.did("requeued")[0]["evidence"]["charged"] is False


def test_a_deaf_agent_is_killed_after_the_grace_period(cli: Cli, project: Path, children: Children) -> None:
    child = children.agent("dev-1", "red", project, program=DEAF)
    (project / "quick.toml").write_text("[processes]\ngrace_s = 0.2\n")

    document = cli.json("agent", "stop", "dev-1", "--yes", "--config", "quick.toml")

    assert document == {
        "result": "stopped", "id": "dev-1@red", "pid": child.pid, "terminated": [], "killed": [child.pid],
        "survived": [], "refused": {},
    }  # fmt: skip
    assert child.wait(LIMIT_S) == -9


def test_an_ambiguous_name_stops_no_agent_and_names_the_candidates(cli: Cli, project: Path, children: Children) -> None:
    red, blue = children.agent("dev-1", "red", project), children.agent("dev-1", "blue", project)
    twin = children.agent("dev-1", "red", project)

    by_name = cli("agent", "stop", "dev-1", "--yes")
    by_id = cli("agent", "stop", "dev-1@red", "--yes")

    assert by_name.returncode == by_id.returncode == 1
    assert all(f"(pid {child.pid})" in by_name.stderr for child in (red, blue, twin))
    assert "dev-1@blue" not in by_id.stderr
    assert "by its pid" in by_id.stderr
    assert cli("agent", "stop", "dev-1@blue", "--yes").returncode == 0
    assert cli("agent", "stop", str(twin.pid), "--yes").returncode == 0
    assert (red.poll(), blue.wait(LIMIT_S), twin.wait(LIMIT_S)) == (None, -15, -15)


def session(home: Path, project: Path, child: subprocess.Popen[bytes], **more: Any) -> None:
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    said = {"pid": child.pid, "sessionId": "85d6cfb4-e039", "cwd": str(project), "procStart": started, **more}
    (home / "sessions").mkdir(exist_ok=True)
    (home / "sessions" / f"{child.pid}.json").write_text(json.dumps(said))


def test_a_process_that_may_not_be_stopped_is_refused_with_a_reason(
    cli: Cli, project: Path, claude_home: Path, children: Children
) -> None:
    def refused(name: str) -> str:
        document = cli.json("agent", "stop", name, "--yes", code=1)
        assert document["result"] == "refused"
        assert document["reason"]
        return str(document["code"])

    hosted = children.start("sleep", "600")
    session(claude_home, project, hosted, kind="bg")
    plugins = children.start("sleep", "600")
    (project / ".yolo-planning" / ".agent-pids").write_text(f"{plugins.pid}\n")
    assert cli("agent", "register", "--pid", str(os.getpid()), "--role", "qa").returncode == 0

    assert refused("session-85d6cfb4") == "hosted"
    assert refused(f"agent#{plugins.pid}") == "unknown_identity"
    assert refused("qa") == "ancestor"
    assert refused("dev-9") == "not_found"
    assert hosted.poll() is plugins.poll() is None


def test_a_process_of_another_user_is_refused(cli: Cli, project: Path, claude_home: Path, children: Children) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    child = children.start("sleep", "600", user=OTHER_USER, cwd=Path("/"))
    session(claude_home, project, child)

    assert cli.json("agent", "stop", "session-85d6cfb4", "--yes", code=1)["code"] == "other_user"
    assert child.poll() is None


def test_a_teammate_in_its_leads_process_is_refused(
    cli: Cli, project: Path, claude_home: Path, children: Children
) -> None:
    lead = children.start("sleep", "600")
    session(claude_home, project, lead)
    member = {"cwd": str(project), "joinedAt": 1795379581270, "tmuxPaneId": "in-process", "backendType": "in-process"}
    team = {"name": "red", "leadAgentId": "team-lead@red", "leadSessionId": "85d6cfb4-e039", "members": [
        {"agentId": "team-lead@red", "name": "team-lead", "tmuxPaneId": "leader", "cwd": str(project)},
        {"agentId": "mate@red", "name": "mate", **member}]}  # fmt: skip
    (claude_home / "teams" / "red").mkdir(parents=True)
    (claude_home / "teams" / "red" / "config.json").write_text(json.dumps(team))

    document = cli.json("agent", "stop", "mate", "--yes", code=1)

    assert (document["code"], document["id"]) == ("in_process", "mate@red")
    assert lead.poll() is None


def test_without_a_terminal_and_without_yes_no_agent_is_stopped(cli: Cli, project: Path, children: Children) -> None:
    child = children.agent("dev-1", "red", project)

    result = cli("agent", "stop", "dev-1")

    assert result.returncode == 2
    assert "--yes" in result.stderr
    assert child.poll() is None


def test_two_processes_on_one_session_are_shown_until_one_is_stopped_by_its_pid(
    cli: Cli, project: Path, claude_home: Path, children: Children
) -> None:
    facts = {child.pid: backend().facts(child.pid) for child in (children.start("sleep", "600") for _ in range(2))}
    (claude_home / "sessions").mkdir(parents=True, exist_ok=True)
    for pid, found in facts.items():
        assert found is not None
        session = {"pid": pid, "sessionId": "s-1", "cwd": str(project), "procStart": str(found.started)}
        (claude_home / "sessions" / f"{pid}.json").write_text(json.dumps(session))
    pids = sorted(facts)

    (stray,) = cli.json("status")["projects"][0]["strays"]
    assert (stray["code"], stray["id"], stray["pids"]) == ("shared_session", "s-1", pids)
    assert f"the processes {pids[0]} and {pids[1]} run one session" in cli("status").stdout

    assert cli("agent", "stop", str(pids[0]), "--yes").returncode == 0
    assert cli.json("status")["projects"][0]["strays"] == []


@pytest.mark.parametrize("alive", [False, True])
def test_the_pid_of_a_dead_agent_leaves_the_plugins_files_when_it_is_forgotten(
    alive: bool, cli: Cli, project: Path, children: Children
) -> None:
    child = children.agent("dev-1", "red", project)
    process = Processes(backend()).identify(child.pid)
    assert process is not None
    write_record(project, agent_of("dev-1", "red", process))
    pids = project / ".yolo-planning" / ".agent-pids"
    pids.write_text(f"{child.pid}\n4194303\n")
    if not alive:
        child.kill()
        child.wait()

    assert cli("agent", "forget", "dev-1@red").returncode == 0

    assert (str(child.pid) in pids.read_text().split()) is alive
    assert "4194303" in pids.read_text(), "no agent that was known has it"
