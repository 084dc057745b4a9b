"""The parts of ``agent stop``: which agent is meant, why it may not be stopped, and its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import anyio

from yolo_supervisor.actions.agents import Register, Terminate
from yolo_supervisor.cli.project_view import ProjectView
from yolo_supervisor.daemon.terminations import journal_end, terminate
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.models import Agent, Liveness, ProcessId
from yolo_supervisor.system.processes import Ending, RefusalCode

BY_HAND = "by hand"
"""The reason in the journal of a termination that a person asked for."""


class StopRefusal(StrEnum):
    """The reason why an agent is not stopped; one by the kill gate has the gate's code."""

    NOT_FOUND = "not_found"
    AMBIGUOUS = "ambiguous"
    ENDED = "ended"
    UNKNOWN_IDENTITY = "unknown_identity"
    OUT_OF_SIGHT = "out_of_sight"
    """Its process is on another machine or in another container."""
    IN_PROCESS = "in_process"
    HOSTED = "hosted"


@dataclass(frozen=True, slots=True)
class CannotStop:
    """The reason why an agent is not stopped. ``text`` is one sentence for people."""

    code: StopRefusal | RefusalCode
    text: str
    agent: str | None = None
    """The id of the agent, if one is meant."""


def choose_agent(view: ProjectView, name: str) -> Agent | CannotStop:
    """The living agent with this id, name or pid; an agent of unknown state or identity is only named."""
    known = view.agents.agents()
    named = [pair for pair in known if name == pair[0].id] or [
        (agent, state) for agent, state in known if agent.bears(name) or (name == str(agent.pid) and agent.lead is None)
    ]
    living = {agent.id + str(agent.process): agent for agent, state in named if state is Liveness.ALIVE}
    if len(living) == 1:
        return next(iter(living.values()))
    if living:
        return CannotStop(StopRefusal.AMBIGUOUS, f"{name} is ambiguous: {_candidates([*living.values()])}")
    return _not_living(name, named)


def _candidates(agents: Sequence[Agent]) -> str:
    """The agents by their ids, and by their pids where that is what differs."""
    same = len({agent.id for agent in agents}) < len(agents)
    hint = "; name one by its pid" if same else ""
    return " or ".join(f"{agent.id} (pid {agent.pid})" for agent in agents) + hint


def _not_living(name: str, named: Sequence[tuple[Agent, Liveness]]) -> CannotStop:
    if not named:
        return CannotStop(StopRefusal.NOT_FOUND, f"no agent {name}; see: yolo-supervisor agent list")
    agent = next((agent for agent, state in named if state is Liveness.UNKNOWN), None)
    if agent is None:
        agent = named[0][0]
        return CannotStop(StopRefusal.ENDED, f"{agent.id} has ended already", agent.id)
    if agent.process is None:
        text = f"{agent.id} is not stopped: a file of the plugin names pid {agent.pid}, and nothing proves that it is"
        return CannotStop(StopRefusal.UNKNOWN_IDENTITY, f"{text} that agent", agent.id)
    text = f"{agent.id} is not stopped: its process cannot be seen from here (another machine or container)"
    return CannotStop(StopRefusal.OUT_OF_SIGHT, text, agent.id)


def refusal_to_stop(view: ProjectView, agent: Agent) -> CannotStop | None:
    """The reason why this living agent must not be stopped; None if it may be."""
    if agent.lead is not None or agent.process is None:
        text = f"{agent.id} is not stopped: it runs inside the process of its lead {agent.lead}, which would end, too"
        return CannotStop(StopRefusal.IN_PROCESS, text, agent.id)
    if agent.hosted:
        text = f"{agent.id} is not stopped: Claude Code's own daemon runs it and would resume it; use: claude stop"
        return CannotStop(StopRefusal.HOSTED, text, agent.id)
    if (refusal := view.processes.refusal(agent.process)) is not None:
        return CannotStop(refusal.code, f"{agent.id} is not stopped: {refusal.text}", agent.id)
    return None


@dataclass(frozen=True, slots=True)
class StoppedAgent:
    """The end of an agent that was stopped by hand."""

    ending: Ending
    gone: bool
    """Whether the agent itself has ended."""


def end_agent(view: ProjectView, agent: Agent) -> StoppedAgent:
    """End the agent through the kill gate, with the same journal entries as a termination by the daemon.

    An agent that is not recorded yet is recorded first: the record is what makes a daemon requeue its tasks.
    """
    process = agent.process
    assert process is not None
    path = view.store.paths.agents / own_files.agent_file(agent)
    if all(known.process != process for known in view.registry.records().values()):
        view.carry_out(Register(key=agent.id, path=path, agent=agent, reason="recorded to be stopped by hand"))
    action = Terminate(
        key=agent.id, roots=(process,), grace_s=view.config.processes.grace_s, reason=BY_HAND,
        evidence={"pid": process.pid, "started": process.started, "boot": process.boot},
    )  # fmt: skip
    ending = anyio.run(_end, view, action)
    return StoppedAgent(ending, view.processes.liveness(process) is Liveness.DEAD)


async def _end(view: ProjectView, action: Terminate) -> Ending:
    async def objection(action: Terminate) -> str | None:
        return None  # the gate has compared the identity, and only the person could object

    begun, ending = await terminate(
        action, "cli", view.store, view.processes, view.scanner, view.registry.is_foreign, objection
    )
    journal_end(action, "cli", view.store, begun, ending)
    return ending


def describe_end(view: ProjectView, agent: Agent, stopped: StoppedAgent) -> str:
    """One sentence about what was done."""
    ending = stopped.ending
    if not stopped.gone:
        why = next((refusal.text for process, refusal in ending.refused.items() if process == agent.process), None)
        return f"{agent.id} did not end: {why or f'process {agent.pid} survived SIGKILL'}"
    others = [process.pid for process in (*ending.terminated, *ending.killed) if process != agent.process]
    more = f", with {len(others)} of its processes" if others else ""
    how = " by SIGKILL after the grace period" if agent.process in ending.killed else ""
    left = _pids((*ending.survived, *ending.refused))
    rest = f"; {left} did not end or may not be signalled" if left else ""
    tasks = "" if view.holder() is not None else "; its tasks are requeued as soon as a daemon runs"
    return f"{agent.id} (process {agent.pid}) was ended{how}{more}{rest}{tasks}"


def _pids(processes: Sequence[ProcessId]) -> str:
    return ", ".join(f"process {process.pid}" for process in processes)
