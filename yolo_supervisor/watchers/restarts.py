"""Watches agents that were started again: their first progress; and those for which a person is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from yolo_supervisor.actions.agents import resumed
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.clock import Clock, Instant, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats.ended_agents import End, EndedAgent
from yolo_supervisor.inventory.activity import ActivityReader
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.interrupted import interrupted
from yolo_supervisor.inventory.restarts import UP
from yolo_supervisor.models import Agent, Liveness, from_iso, iso
from yolo_supervisor.store.lines import RestartState, StartState
from yolo_supervisor.store.store import Store
from yolo_supervisor.watchers.base import Remediation

LOOK_S = 2.0
"""The pause between two looks while an agent that was started again has made no progress yet, in seconds."""

SETTLE_S = 5.0
"""The time for which no further agent has gone down with its host before that is reported, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Returning:
    """A living agent that was started again and has made no progress that is in the journal."""

    agent: Agent
    since_s: float
    answered: bool
    """Whether its model has answered since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartsObservation:
    returning: Sequence[Returning] = ()
    given_up: Mapping[str, str] = field(default_factory=dict)
    """The reasons why dead agents are not started again, by their ids."""
    interrupted: Sequence[EndedAgent] = ()
    """The agents that went down with the machine or their tmux server, where an alert is wanted."""


def decide(observation: RestartsObservation, progress_s: float) -> list[Remediation]:
    """Record the first progress; report agents that make none, and those for which a person is needed, or asked."""
    remediations: list[Remediation] = []
    for returning in observation.returning:
        agent = returning.agent
        evidence = {"pid": agent.pid, "after_s": round(returning.since_s, 1)}
        if returning.answered:
            reason = f"the model of {agent.name} has answered, {returning.since_s:.1f} s after the start"
            remediations.append((resumed(key=agent.id, reason=reason, evidence=evidence),))
        elif returning.since_s >= progress_s:
            reason = (
                f"{agent.name} was started again {returning.since_s:.0f} s ago, and its model has not answered since: "
                "look at its terminal"
            )
            alert = Escalate(
                kind="agent", code=AlertCode.AGENT_NOT_RESUMED, key=agent.id, reason=reason, evidence=evidence
            )
            remediations.append((alert,))
    for agent_id, reason in observation.given_up.items():
        code = AlertCode.AGENT_NOT_RESTARTED
        do = f"yolo-supervisor agent reset {agent_id}, or agent start {agent_id}"
        remediations.append((Escalate(kind="agent", code=code, key=agent_id, reason=f"{reason}: {do}"),))
    remediations += [(alert,) for alert in _interruptions(observation.interrupted)]
    return remediations


def _interruptions(interrupted: Iterable[EndedAgent]) -> Iterator[Escalate]:
    """One alert for each reboot, and for each tmux server that has ended."""
    groups: dict[str, list[EndedAgent]] = {}
    for ended in interrupted:
        groups.setdefault(_host(ended), []).append(ended)
    for host, agents in groups.items():
        end, single = agents[0].end, len(agents) == 1
        were, their = ("1 agent was", "its") if single else (f"{len(agents)} agents were", "their")
        when = "the machine was rebooted" if end is End.REBOOT else f"{their} tmux server ended"
        yield Escalate(
            kind="agent",
            code=AlertCode.AGENTS_INTERRUPTED,
            key="all",
            detail=host,
            reason=f"{were} at work when {when}: yolo-supervisor agent restore",
            evidence={"agents": [ended.agent.id for ended in agents], "end": str(end)},
        )


def _host(ended: EndedAgent) -> str:
    """The boot of the machine, or the tmux server, with which the agent has ended."""
    process, pane = ended.agent.process, ended.agent.pane
    if ended.end is End.REBOOT or pane is None:
        return process.boot if process is not None else ""
    return f"{pane.socket},{pane.server_pid}"


class RestartsWatcher:
    name = "restarts"

    def __init__(
        self,
        config: Config,
        store: Store,
        registry: AgentRegistry,
        activity: ActivityReader,
        agents: Callable[[], list[tuple[Agent, Liveness]]],
        clock: Clock,
        boot: str,
        ended: Callable[[], Mapping[str, EndedAgent]],
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._store = store
        self._registry = registry
        self._activity = activity
        self._agents = agents
        self._clock = clock
        self._boot = boot
        self._ended = ended
        self._returning = False

    @property
    def interval_s(self) -> float:
        return self.config.agents.interval_s

    def rest_s(self) -> float:
        return until_next(LOOK_S if self._returning else self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        observation = self.observe()
        self._returning = bool(observation.returning)
        return decide(observation, self.config.restart.progress_s)

    def observe(self) -> RestartsObservation:
        """The agents that were started again and have made no progress yet, and those that are given up."""
        restarts = self._store.index.restarts
        given_up = {agent: state.reason for agent, state in restarts.items() if state.given_up is not None}
        new = {agent: state.starts[-1] for agent, state in restarts.items() if _has_no_progress(state)}
        returning = tuple(self._seen(new)) if new else ()
        return RestartsObservation(returning=returning, given_up=given_up, interrupted=self._interrupted())

    def _interrupted(self) -> Sequence[EndedAgent]:
        """The agents to report; none while more may be found, so that one alert names all."""
        ended = self._ended().values() if self.config.restart.restore == "ask" else ()
        if not any(one.end.interrupted for one in ended):
            return ()
        living = [agent for agent, liveness in self._agents() if liveness is not Liveness.DEAD]
        found = interrupted(ended, living, self._store.index.restarts)
        now = self._clock.now()
        if any(0 <= (now - from_iso(one.at)).total_seconds() < SETTLE_S for one in found):
            return ()
        return found

    def _seen(self, new: Mapping[str, StartState]) -> Iterator[Returning]:
        snapshot = self._registry.snapshot()
        self._activity.renew()
        for agent, liveness in self._agents():
            start = new.get(agent.id)
            if start is None or liveness is not Liveness.ALIVE or agent.process != start.process:
                continue
            turn = self._activity.read(agent, liveness, snapshot).signs.turn
            answered_at = turn.answered_at if turn is not None else None
            age_s = start.began.age(Instant(self._boot, self._clock.monotonic())) if start.began is not None else None
            answered = answered_at is not None and iso(answered_at) != start.answered_at
            yield Returning(agent=agent, since_s=age_s or 0.0, answered=answered)


def _has_no_progress(state: RestartState) -> bool:
    return bool(state.starts) and state.starts[-1].result == UP and not state.starts[-1].resumed
