"""Agents that are started again, and those that are not."""

from __future__ import annotations

import random
import signal
from typing import Any

from yolo_supervisor.drill.sandbox import TEAM, FakeAgent, Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, agents_gone, send

STARTS = 3


def _restart_agents(sandbox: Sandbox) -> None:
    """Let the daemon start agents again, without the limits for a whole machine."""
    sandbox.configure(
        restart={
            "policy": "on-crash", "max_starts": STARTS, "backoff_s": 0.1, "backoff_max_s": 0.5, "host_pause_s": 0.0,
            "host_starts": 1000, "storm_deaths": 1000, "min_free_mib": 0,
        }
    )  # fmt: skip


def _entries(sandbox: Sandbox, agent: FakeAgent, action: str) -> list[dict[str, Any]]:
    key = f"{agent.name}@{TEAM}"
    return [entry for entry in sandbox.entries() if (entry["action"], entry["key"]) == (action, key)]


def _starts(sandbox: Sandbox, agent: FakeAgent) -> int:
    return len(_entries(sandbox, agent, "restarted"))


def _claimed_once(sandbox: Sandbox, agent: FakeAgent) -> int:
    """The number of claims of its task that are too many or too few."""
    return abs(sandbox.claims(agent.task) - 1)


def agent_restarted(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent is killed, and goes on with its conversation and its task."""
    _restart_agents(sandbox)
    session = sandbox.session()
    agents = [sandbox.resumable_agent(session) for _ in range(2)]
    victim = agents.pop(rng.randrange(2))
    send(victim.process, signal.SIGKILL)

    def is_back() -> bool:
        now = sandbox.returned(victim)
        return (
            now is not None
            and sandbox.is_unharmed(now)
            and sandbox.processes_of(victim) == [now.process]
            and not sandbox.alive(victim.tool)
            and bool(_entries(sandbox, victim, "resumed"))
        )

    lost = lambda: _claimed_once(sandbox, victim) + _starts(sandbox, victim) - 1  # noqa: E731
    return Expectation(is_back, frozenset({f"{victim.name}@{TEAM}"}), ("died",), agents, lost=lost)


def agent_restart_loop(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent ends as soon as it is started again: it is given up after some starts, and its task is requeued."""
    _restart_agents(sandbox)
    session = sandbox.session()
    bystander, victim = sandbox.resumable_agent(session), sandbox.resumable_agent(session, "--fails-to-resume")
    send(victim.process, signal.SIGKILL)
    expected = agents_gone(sandbox, [victim], [bystander])
    recovered = expected.healed
    expected.healed = lambda: recovered() and bool(_entries(sandbox, victim, "restart_given_up"))
    expected.lost = lambda: _claimed_once(sandbox, victim) + max(0, _starts(sandbox, victim) - STARTS)
    return expected


def agent_stopped_on_purpose(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent is ended with SIGTERM, and one that a person holds is killed: neither is started again."""
    _restart_agents(sandbox)
    session = sandbox.session()
    bystander, ended, held = (sandbox.resumable_agent(session) for _ in range(3))
    sandbox.run_command("agent", "hold", held.name)
    send(ended.process, signal.SIGTERM)
    send(held.process, signal.SIGKILL)
    expected = agents_gone(sandbox, [ended, held], [bystander])
    expected.lost = lambda: sum(_starts(sandbox, each) + _claimed_once(sandbox, each) for each in (ended, held))
    return expected


def resumed_twice(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A person resumes an agent right after it was started again: only the person's process goes on."""
    _restart_agents(sandbox)
    session = sandbox.session()
    bystander, victim = sandbox.resumable_agent(session), sandbox.resumable_agent(session)
    send(victim.process, signal.SIGKILL)
    sandbox.wait(lambda: sandbox.returned(victim), f"{victim.name} was not started again")
    ours = sandbox.returned(victim)
    assert ours is not None
    sandbox.resume_by_hand(session, victim)

    def is_one() -> bool:
        theirs = sandbox.returned(ours)
        return (
            not sandbox.alive(ours.process)
            and theirs is not None
            and theirs.process != victim.process
            and sandbox.is_unharmed(theirs)
            and sandbox.processes_of(victim) == [theirs.process]
            and len(_entries(sandbox, victim, "forgotten")) == 2
        )

    lost = lambda: _claimed_once(sandbox, victim) + _starts(sandbox, victim) - 1  # noqa: E731
    return Expectation(is_one, frozenset({f"{victim.name}@{TEAM}"}), ("terminated",), [bystander], lost=lost)


FAULTS: tuple[Fault, ...] = (agent_restarted, agent_restart_loop, agent_stopped_on_purpose, resumed_twice)
