"""Agents that die in different ways."""

from __future__ import annotations

import random
import signal

from yolo_supervisor.drill.sandbox import TEAM, FakeAgent, Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, agents_gone, send
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.crash_report import load
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Agent, ProcessId, from_iso


def _crash(sandbox: Sandbox, way: str, cause: str) -> tuple[FakeAgent, Expectation]:
    """Let an agent die in this way, and expect a crash report with this cause."""
    session = sandbox.session()
    bystander, victim = sandbox.agent(session), sandbox.agent(session, dies=way)
    key = f"{victim.name}@{TEAM}"
    send(victim.process, signal.SIGUSR1)
    expected = agents_gone(sandbox, [victim], [bystander])
    healed = expected.healed

    def explained() -> bool:
        deaths = [e["evidence"] for e in sandbox.entries() if (e["action"], e["key"]) == ("died", key)]
        if not healed() or not deaths:
            return False
        report = load(read_or_none(sandbox.paths.crashes / f"{deaths[0].get('report')}.json") or b"")
        return report is not None and report.cause == deaths[0]["class"] == cause

    expected.healed = explained
    return victim, expected


def agent_killed(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent is killed with SIGKILL; its tool runs on in another session."""
    session = sandbox.session()
    agents = [sandbox.agent(session) for _ in range(2)]
    victim = agents.pop(rng.randrange(2))
    send(victim.process, signal.SIGKILL)
    return agents_gone(sandbox, [victim], agents)


def agent_segfault(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent dies of a segmentation fault."""
    return _crash(sandbox, "segfault", "signal")[1]


def agent_oom(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent exceeds its memory limit."""
    return _crash(sandbox, "oom", "oom")[1]


def agent_api_errors(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent exits because the API is overloaded."""
    return _crash(sandbox, "api-errors", "api_error")[1]


def agent_rate_limited(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent hits a rate limit: its task is held, and requeued without charging an attempt."""
    sandbox.configure(tasks={"hold_s": 2.0})
    victim, expected = _crash(sandbox, "rate-limited", "rate_limited")
    key = f"{TEAM}/{victim.task.stem}"
    explained = expected.healed

    def held() -> bool:
        mine = [e for e in sandbox.entries() if e["key"] == key]
        by_verb = {e["action"]: e for e in mine}
        if not explained() or not {"escalated", "requeued"} <= by_verb.keys():
            return False
        wait_s = from_iso(by_verb["requeued"]["at"]).timestamp() - from_iso(by_verb["escalated"]["at"]).timestamp()
        return by_verb["requeued"]["evidence"].get("charged") is False and wait_s > 1.0

    expected.healed = held
    return expected


def agent_ignores_sigterm(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent's session is closed, and it ignores SIGHUP and SIGTERM."""
    session, other = sandbox.session(), sandbox.session()
    victim, bystander = sandbox.agent(session, ignore_sigterm=True), sandbox.agent(other)
    sandbox.wait_for_session_ticks()  # an agent that was never seen in its pane has no session to lose
    session.kill()
    return agents_gone(sandbox, [victim], [bystander], verbs=("terminated", "died"))


def pid_reused(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """Another process has the pid of a dead agent: the task is requeued, the process lives."""
    session = sandbox.session()
    bystander = sandbox.agent(session)
    bystander_process = sandbox.bystander_process()
    sandbox.kill_daemon()  # so that the record below looks like that of an earlier run
    task = bystander.task.with_name(f"{bystander.task.stem}9.json")
    name = f"ghost-{task.stem}"
    before = bystander.task.read_text()
    task.write_text(before.replace(bystander.name, name))
    gone = ProcessId(bystander_process.pid, bystander_process.started - 1, bystander_process.boot)
    ghost = Agent(
        id=f"{name}@{TEAM}", name=name, role="dev", team=TEAM, source="record", since=from_iso("2026-01-01"),
        process=gone, pid=gone.pid, claude_dir=sandbox.claude,
    )  # fmt: skip
    (sandbox.paths.agents / own_files.agent_file(ghost)).write_bytes(own_files.dump_agent(ghost))
    sandbox.start_daemon()
    expected = agents_gone(sandbox, [FakeAgent(name, gone, gone, task)], [bystander])
    expected.bystander_processes.append(bystander_process)
    return expected


def mass_death(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """Eight of nine agents are killed at once."""
    session = sandbox.session()
    agents = [sandbox.agent(session) for _ in range(9)]
    bystander = agents.pop(rng.randrange(9))
    for victim in agents:
        send(victim.process, signal.SIGKILL)
    return agents_gone(sandbox, agents, [bystander])


FAULTS: tuple[Fault, ...] = (
    agent_killed,
    agent_segfault,
    agent_oom,
    agent_api_errors,
    agent_rate_limited,
    agent_ignores_sigterm,
    pid_reused,
    mass_death,
)
