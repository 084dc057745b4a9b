"""The owner of a task in progress, and whether that agent is alive: the model of docs/who-is-at-work.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from yolo_supervisor.models import Agent, Liveness, Task


class OwnerState(StrEnum):
    """The state of a task's owner. Only a proof makes it dead."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """An agent that any evidence ties to the list of a task."""

    agent: Agent
    liveness: Liveness
    members: frozenset[str] = frozenset()
    """The names of the teammates with a separate process that its team has had: their tasks are not its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ownership:
    """The owner of a task, as far as it is known."""

    state: OwnerState
    candidates: tuple[Worker, ...]
    """The agents that may own the task; empty if no agent is known that may."""
    evidence: str

    @property
    def living(self) -> tuple[Agent, ...]:
        return tuple(worker.agent for worker in self.candidates if worker.liveness is Liveness.ALIVE)


def ownership(task: Task, workers: Sequence[Worker]) -> Ownership:
    """The owner of a task in progress. ``workers`` are all agents of its list, dead ones as well."""
    candidates, how = _candidates(task, workers)
    states = {worker.liveness for worker in candidates}
    if Liveness.ALIVE in states:
        alive = next(worker.agent.name for worker in candidates if worker.liveness is Liveness.ALIVE)
        return Ownership(state=OwnerState.ALIVE, candidates=candidates, evidence=f"{alive} is alive, {how}")
    if states == {Liveness.DEAD}:
        return Ownership(state=OwnerState.DEAD, candidates=candidates, evidence=f"{candidates[0].agent.name}, {how}")
    if candidates:
        evidence = f"the state of {candidates[0].agent.name} cannot be seen from here"
        return Ownership(state=OwnerState.UNKNOWN, candidates=candidates, evidence=evidence)
    return Ownership(state=OwnerState.UNKNOWN, candidates=(), evidence=how)


def _candidates(task: Task, workers: Sequence[Worker]) -> tuple[tuple[Worker, ...], str]:
    """The agents that may own the task, and the rule that names them."""
    leads = tuple(worker for worker in workers if worker.agent.is_session)
    if not task.owner:
        if leads:
            return leads, "the session of the list, whose tasks name no owner"
        return (), "the task names no owner, and no session of its list is known"
    named = tuple(worker for worker in workers if worker.agent.bears(task.owner))
    if named:
        return named, "which the task names"
    if any(task.owner in lead.members for lead in leads):
        return (), f"no process of its teammate {task.owner} is known"
    if len({worker.agent.process or worker.agent.id for worker in leads}) == 1:
        return leads, f"the only session of the list; no agent is named {task.owner}"
    return (), f"no agent of its list is named {task.owner}"
