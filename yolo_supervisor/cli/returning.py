"""The parts of ``agent start``, ``hold``, ``reset`` and ``restore``: which agent is meant, and its start by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import anyio

from yolo_supervisor.actions.agents import Restart
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, EX_UNAVAILABLE
from yolo_supervisor.cli.project_view import ProjectView
from yolo_supervisor.daemon.starts import StartResult
from yolo_supervisor.formats.ended_agents import EndedAgent
from yolo_supervisor.inventory.restarts import UP, RestartPlan, Stage
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.policy.restart import RestartCode
from yolo_supervisor.system.panes import PlaceCode

EXIT_CODES = {
    "host_pace": EX_TEMPFAIL,
    RestartCode.LIVE_ELSEWHERE: EX_NO,
    PlaceCode.SERVER_GONE: EX_UNAVAILABLE,
    PlaceCode.INSIDE_UNIT: EX_UNAVAILABLE,
    PlaceCode.REFUSED_BY_TMUX: EX_UNAVAILABLE,
}
"""The exit codes of the results of a start; 1 for all others."""


class RefusalCode(StrEnum):
    """The reason why an agent is not found, or not started; one of the policy has the policy's code."""

    NOT_FOUND = "not_found"
    AMBIGUOUS = "ambiguous"
    RUNS = "runs"
    """It is alive, or another process goes on with its session."""
    UNKNOWN = "unknown"
    """It is not known whether it is alive."""
    STARTING = "starting"
    IN_PROCESS = "in_process"


@dataclass(frozen=True, slots=True)
class CannotStart:
    """The reason why an agent is not started. ``text`` is one sentence for people."""

    code: str
    text: str
    agent: str | None = None


def known_ids(view: ProjectView) -> dict[str, set[str]]:
    """All agents that are known or remembered, by id, with their names."""
    found: dict[str, set[str]] = {}
    for agent, _ in view.agents.agents():
        found.setdefault(agent.id, set()).update({agent.name, *agent.aliases})
    view.agents.observe()
    for ended in view.planner.ended_agents().values():
        found.setdefault(ended.agent.id, set()).add(ended.agent.name)
    for ident in view.store.index.restarts:
        found.setdefault(ident, set()).add(ident.rpartition("@")[0] or ident)
    return found


def choose_id(view: ProjectView, name: str) -> str | CannotStart:
    """The id of the agent with this id or name, alive, dead or forgotten."""
    known = known_ids(view)
    if name in known:
        return name
    ids = sorted(ident for ident, names in known.items() if name in names)
    if len(ids) == 1:
        return ids[0]
    if ids:
        return CannotStart(RefusalCode.AMBIGUOUS, f"{name} is ambiguous: {' or '.join(ids)}")
    return CannotStart(RefusalCode.NOT_FOUND, f"no agent {name} is known or remembered")


def choose_dead(view: ProjectView, name: str) -> EndedAgent | CannotStart:
    """The dead agent with this id or name: the one of this id that died last."""
    ident = choose_id(view, name)
    if isinstance(ident, CannotStart):
        return ident
    for agent, state in view.agents.agents():
        if agent.id != ident or state is Liveness.DEAD:
            continue
        if agent.lead is not None:
            text = f"{ident} is not started: it lives in the process of its lead, and comes back with that"
            return CannotStart(RefusalCode.IN_PROCESS, text, ident)
        if state is Liveness.ALIVE:
            return CannotStart(RefusalCode.RUNS, f"{ident} is not started: it runs in process {agent.pid}", ident)
        text = f"{ident} is not started: it is not known whether its process is alive"
        return CannotStart(RefusalCode.UNKNOWN, text, ident)
    dead = [ended for ended in view.planner.ended_agents().values() if ended.agent.id == ident]
    if not dead:
        text = f"{ident} is not started: nothing is remembered of how it ended and how it was started"
        return CannotStart(RestartCode.NO_LAUNCH, text, ident)
    return dead[-1]


def plan_start(view: ProjectView, ended: EndedAgent) -> RestartPlan | CannotStart:
    """The plan of its start now."""
    ident, others = ended.agent.id, living(view)
    plan = view.planner.by_hand(ended, others, view.registry.snapshot())
    if plan.stage is Stage.DUE:
        return plan
    if plan.successor is not None:
        text = f"{ident} is not started: process {plan.successor.pid} goes on with its session"
        return CannotStart(RefusalCode.RUNS, text, ident)
    if plan.stage is Stage.STARTING:
        return CannotStart(RefusalCode.STARTING, f"{ident} is being started already", ident)
    return CannotStart(plan.decision.code, f"{ident} is not started: {plan.decision.text}", ident)


def living(view: ProjectView) -> list[Agent]:
    """All agents that are not known to be dead."""
    return [agent for agent, state in view.agents.agents() if state is not Liveness.DEAD]


def start(view: ProjectView, ended: EndedAgent, plan: RestartPlan, server: str | None = None) -> StartResult:
    """Start its client; the result is in the journal."""
    assert plan.launch is not None
    agent = ended.agent
    if server is not None and agent.pane is not None:
        agent = replace(agent, pane=replace(agent.pane, socket=server, server_pid=0))  # no pane of it is the agent's
    action = Restart(
        key=agent.id,
        agent=agent,
        record=ended.record,
        attempt=plan.decision.attempt,
        launch=plan.launch,
        note=plan.note,
        reason=f"{agent.name} is started by hand",
        evidence={**plan.evidence, "record": ended.record},
    )
    return anyio.run(partial(view.starter().start, action, "cli", view.config))


def exit_code(result: StartResult) -> int:
    return 0 if result.result == UP else EXIT_CODES.get(result.result, EX_NO)


def describe(ended: EndedAgent, result: StartResult) -> str:
    """One sentence about the start."""
    ident = ended.agent.id
    if result.result != UP or result.process is None:
        again = "; try again" if result.result == "host_pace" else ""
        return f"{ident} was not started: {result.text}{again}"
    where = f" in pane {result.place.pane.pane} of {result.place.pane.socket}" if result.place is not None else ""
    return f"{ident} was started with its conversation: process {result.process.pid}{where}"


def document(ended: EndedAgent, result: StartResult) -> Mapping[str, object]:
    """The result for programs."""
    process, place = result.process, result.place
    return {
        "result": "started" if result.result == UP else "not_started",
        "id": ended.agent.id,
        "pid": process.pid if process is not None else None,
        "pane": place.pane.pane if place is not None else None,
        "tmux": place.pane.socket if place is not None else None,
        "code": result.result,
        "reason": result.text,
    }
