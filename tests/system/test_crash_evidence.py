"""The evidence of real deaths: from the kernel, from tmux, and in the daemon's report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.crash_cases import failed
from support.daemon import QUICK
from support.project import given_back, read_task
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until
from yolo_supervisor.formats import crash_report, transcripts
from yolo_supervisor.models import Pane
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.procfs import PidfdHandle
from yolo_supervisor.system.tmux import last_words

# -- exit codes, from the kernel and from tmux -----------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfds here")
@pytest.mark.parametrize(("program", "ended"), [("import os; os._exit(7)", 7), ("import os; os.kill(0, 0)", 0)])
@pytest.mark.parametrize("reaped", [False, True])
def test_the_kernel_reports_the_exit_code_of_a_process(program: str, ended: int, reaped: bool) -> None:
    child = subprocess.Popen([sys.executable, "-c", program])
    handle = PidfdHandle(os.pidfd_open(child.pid))
    try:
        wait_until(handle.over, "the child to end")
        if reaped:
            child.wait()
        if (status := handle.exit()) is None:
            pytest.skip("this kernel does not report the exit of a process that is not our child")
        assert os.waitstatus_to_exitcode(status) == ended
    finally:
        handle.close()
        child.wait()


@pytest.mark.system
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfds here")
def test_the_kernel_reports_the_signal_that_ended_a_process() -> None:
    child = subprocess.Popen(["sleep", "600"])
    handle = PidfdHandle(os.pidfd_open(child.pid))
    try:
        assert handle.exit() is None  # it lives
        child.send_signal(signal.SIGSEGV)
        child.wait()
        if (status := handle.exit()) is None:
            pytest.skip("this kernel does not report the exit of a process that is not our child")
        assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV
    finally:
        handle.close()
        child.wait()


async def test_a_dead_pane_can_be_read_while_tmux_keeps_it(tmux: PrivateTmux) -> None:
    tmux("set-option", "-g", "remain-on-exit", "on")
    tmux.session("team", "echo MemoryError; exec sh -c 'exit 3'")
    wait_until(lambda: tmux.ends("team") == ["3/"], "the pane's process to end")
    (name,) = tmux("list-panes", "-a", "-F", "#{pane_id}").split()
    pane = Pane(socket=tmux.socket, server_pid=tmux.server.pid, pane=name)

    screen = await last_words(pane, 5.0)

    assert screen is not None
    assert screen.status == 3
    assert "MemoryError" in screen.lines
    assert await last_words(replace(pane, server_pid=1), 5.0) is None  # another server's pane of that name
    assert await last_words(replace(pane, pane="%99"), 5.0) is None


# -- the real daemon --------------------------------------------------------------------------------------------------


def report_on(team: Team, name: str) -> Mapping[str, Any]:
    (died,) = team.running.did("died", f"{name}@red")
    path = Paths(team.project).crashes / f"{died['evidence']['report']}.json"
    team.running.wait(path.exists, "the report to be written")
    report = crash_report.load(path.read_bytes())
    assert report is not None
    assert report.cause == died["evidence"]["class"]
    return report.document


def test_a_death_leaves_one_report_for_people(team: Team) -> None:
    team.supervise()
    task = team.task("dev-1")
    team.agent("dev-1").send_signal(signal.SIGSEGV)
    team.wait_healed("dev-1")

    report = report_on(team, "dev-1")

    assert given_back(task)
    assert report["class"] in ("signal", "unknown")  # kernels before 6.15 do not report the signal
    (listed,) = team.cli.json("crash", "list")["crashes"]
    assert listed["id"] == report["id"]
    shown = team.cli.json("crash", "show", "dev-1")
    assert [entry["action"] for entry in shown["story"]] == ["died", "requeued", "forgotten"]
    assert report["class"] in team.cli("crash", "show", report["id"]).stdout
    assert f"crash show {report['id']}" in team.cli("explain", "agent", "dev-1").stdout
    assert team.cli("crash", "show", "no-one").returncode == 1


def limited(team: Team, name: str, text: str = "Request rejected (429)", ago_s: float = 0) -> Path:
    """An agent whose transcript ends with a rate limit is killed."""
    child = team.agent(name)
    folder = team.claude / "projects" / transcripts.slug(team.project)
    folder.mkdir(parents=True, exist_ok=True)
    error = json.loads(failed(text, "rate_limit", 429))
    at = (datetime.now(UTC) - timedelta(seconds=ago_s)).isoformat().replace("+00:00", "Z")
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps({**error, "agentName": name, "teamName": "red", "timestamp": at}) + "\n")
    child.kill()
    return path


def test_tasks_of_a_rate_limited_agent_are_held_and_charged_no_attempt(team: Team) -> None:
    team.supervise(QUICK + "[tasks]\nhold_s = 3.0\n")
    task = team.task("dev-1")
    limited(team, "dev-1")
    key = f"red/{task.stem}"

    team.running.wait(lambda: team.running.did("escalated", key), "the hold to be escalated")

    assert read_task(task)["status"] == "in_progress"
    assert report_on(team, "dev-1")["class"] == "rate_limited"
    team.wait_given_back(task)
    team.wait_healed("dev-1")
    (requeued,) = team.running.did("requeued", key)
    assert requeued["evidence"]["charged"] is False
    assert len(team.running.did("escalated", key)) == 1


def test_in_process_teammates_end_as_their_lead_does(team: Team) -> None:
    session = "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7"
    lead = team.children.start("sleep", "600")
    file = {
        "pid": lead.pid, "sessionId": session, "cwd": str(team.project), "startedAt": 1795379572760,
        "procStart": str(team.identity(lead.pid).started), "kind": "interactive", "status": "busy",
    }  # fmt: skip
    members = [
        {"agentId": f"{name}@red", "name": name, "agentType": role, "tmuxPaneId": pane, "cwd": str(team.project),
         "joinedAt": 1795379572760, "backendType": "in-process"}
        for name, role, pane in (("team-lead", "team-lead", "leader"), ("mate", "dev", "in-process"))
    ]  # fmt: skip
    red = {"name": "red", "leadAgentId": "team-lead@red", "leadSessionId": session, "members": members}
    for path, content in (("teams/red/config.json", red), (f"sessions/{lead.pid}.json", file)):
        (team.claude / path).parent.mkdir(parents=True, exist_ok=True)
        (team.claude / path).write_text(json.dumps(content))
    task = team.task("mate")
    team.supervise()
    team.wait_known("mate", "red")

    lead.terminate()
    team.wait_healed("mate")

    assert given_back(task)
    (requeued,) = team.running.did("requeued")
    assert requeued["evidence"]["charged"] is False
    assert requeued["evidence"]["clean"] is True
    assert list(Paths(team.project).crashes.iterdir()) == []


def test_a_limit_from_before_the_agent_started_holds_nothing_and_charges_the_attempt(team: Team) -> None:
    team.supervise(QUICK + "[tasks]\nhold_s = 3600.0\n")
    task = team.task("dev-1")
    limited(team, "dev-1", ago_s=1000)

    team.wait_healed("dev-1")

    (requeued,) = team.running.did("requeued", f"red/{task.stem}")
    assert requeued["evidence"].get("charged") is not False
    assert report_on(team, "dev-1")["class"] != "rate_limited"


def test_a_hold_survives_a_restart_of_the_daemon(team: Team) -> None:
    config = QUICK + "[tasks]\nhold_s = 3600.0\n"
    running = team.supervise(config)
    task = team.task("dev-1")
    limited(team, "dev-1")
    running.wait(lambda: running.did("escalated", f"red/{task.stem}"), "the hold to be escalated")
    running.stop(signal.SIGKILL)

    team.supervise(config)
    team.assert_heals("blue")
    team.wait_looks()

    assert read_task(task)["status"] == "in_progress"
    assert not team.running.did("requeued", f"red/{task.stem}")


def test_a_report_that_cannot_be_written_does_not_block_recovery(team: Team) -> None:
    team.supervise()
    folder = Paths(team.project).crashes
    folder.rmdir()
    folder.write_text("in the way")
    task = team.task("dev-1")
    team.agent("dev-1").kill()

    team.wait_healed("dev-1")

    assert given_back(task)
    assert "crash_report_failed" in team.running.log.read_text()


def test_the_screen_of_a_dead_agent_is_in_its_report(team: Team, tmux: PrivateTmux) -> None:
    team.supervise()
    tmux("set-option", "-g", "remain-on-exit", "on")
    pid = team.pane_agent(tmux, "work", "dev-1", "print('API_KEY=hunter2'); print('Do you want to proceed?')")
    os.kill(pid, signal.SIGKILL)
    team.wait_healed("dev-1")

    report = report_on(team, "dev-1")

    assert "Do you want to proceed?" in report["pane"]
    assert "hunter2" not in json.dumps(report)


def test_simultaneous_deaths_of_one_cause_are_escalated_once(team: Team) -> None:
    team.supervise(QUICK + "[tasks]\nhold_s = 1.0\n")
    for number in range(3):
        limited(team, f"dev-{number}")

    team.running.wait(lambda: team.running.did("escalated", "class rate_limited"), "the burst to be escalated")

    assert (
        "3 agents died of one cause (rate_limited)" in team.running.did("escalated", "class rate_limited")[0]["reason"]
    )


def test_an_agent_with_unreadable_evidence_is_recovered(team: Team) -> None:
    team.supervise()
    task = team.task("dev-1")
    folder = team.claude / "projects" / transcripts.slug(team.project)
    folder.mkdir(parents=True)
    child = team.agent("dev-1")
    owner = '{"agentName":"dev-1","teamName":"red","type":"assistant","timestamp":[],"message":'
    broken = ['{"content":[{"type":"tool_use","input":{"a":' + "[" * 500, '{"content":7}}', '{"content":[[7]]}}', "7}"]
    (folder / "s.jsonl").write_text("\n".join(owner + line for line in broken))
    child.kill()

    team.wait_healed("dev-1")

    assert given_back(task)
