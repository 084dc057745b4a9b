"""Watches for strays: teammates without a lead, shared sessions, teammates that never came.

They are reported. Teammates of a lead that was started again are ended where ``[restart] strays`` says so: that lead
knows nothing of them, and spawns new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.clock import Clock, in_turns, until_next
from yolo_supervisor.config import Config, RestartConfig
from yolo_supervisor.formats import claude
from yolo_supervisor.inventory.strays import StrayReader
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.policy.strays import Stray, StrayCode, strays
from yolo_supervisor.store.lines import RestartState
from yolo_supervisor.watchers.base import Remediation

NO_AGENTS: Mapping[tuple[int, ...], Agent] = MappingProxyType({})

ORPHANED = (StrayCode.UNLISTED, StrayCode.TEAM_GONE, StrayCode.NO_LEAD)
"""The strays that no lead reaches."""

STRAY_S = 30.0
"""The time for which a stray is seen before it is reported: a teammate that ends in order leaves its team first."""


def decide(
    seen: Sequence[tuple[Stray, float]], ended: Mapping[tuple[int, ...], Agent] = NO_AGENTS, grace_s: float = 0.0
) -> list[Remediation]:
    """Report each stray that has been seen for ``STRAY_S``; end those in ``ended``, which names them by their pids."""
    lasting = [stray for stray, seen_s in seen if seen_s >= STRAY_S]
    ends = [_end(stray, ended[stray.pids], grace_s) for stray in lasting if stray.pids in ended]
    return [*((_alert(stray),) for stray in lasting), *((end,) for end in ends)]


def _end(stray: Stray, agent: Agent, grace_s: float) -> Terminate:
    assert agent.process is not None
    return Terminate(
        key=agent.id,
        roots=(agent.process,),
        grace_s=grace_s,
        reason=f"{agent.name} is a stray: its lead was started again without it",
        evidence={"stray": str(stray.code), "pid": agent.process.pid},
    )


def _alert(stray: Stray) -> Escalate:
    code = AlertCode.SESSION_SHARED if stray.code is StrayCode.SHARED_SESSION else AlertCode.AGENT_STRAY
    return Escalate(
        kind="agent",
        code=code,
        key=stray.key,
        detail=str(stray.code),
        reason=stray.reason,
        evidence={"stray": str(stray.code), "pids": list(stray.pids)},
    )


def teams_of_returned_leads(restarts: Mapping[str, RestartState]) -> set[str]:
    """The names of the teams whose leads were started again, and have gone on."""
    starts = [start for state in restarts.values() for start in state.starts if start.resumed]
    return {claude.team_of_session(start.session) for start in starts if start.session}


def to_be_ended(
    found: Iterable[Stray], agents: Iterable[tuple[Agent, Liveness]], teams: Collection[str], rules: RestartConfig
) -> dict[tuple[int, ...], Agent]:
    """The strays of these teams by their pids, if the settings say to end them."""
    pids = {stray.pids for stray in found if stray.code in ORPHANED} if rules.strays == "stop" else set()
    return {
        (agent.pid,): agent
        for agent, liveness in agents
        if liveness is Liveness.ALIVE and agent.process and agent.pid and agent.lead is None
        if (agent.pid,) in pids and agent.team in teams
    }


class StraysWatcher:
    name = "strays"

    def __init__(
        self,
        config: Config,
        reader: StrayReader,
        agents: Callable[[], list[tuple[Agent, Liveness]]],
        clock: Clock,
        restarts: Callable[[], Mapping[str, RestartState]],
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._reader = reader
        self._agents = agents
        self._clock = clock
        self._restarts = restarts
        """The starts of agents, by their ids."""
        self._since_s: dict[tuple[object, ...], float] = {}
        """When each stray was first seen, in time awake."""

    @property
    def interval_s(self) -> float:
        return self.config.tasks.interval_s

    def rest_s(self) -> float:
        return until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        async for _ in in_turns(self._reader.read_ahead(), self._clock):
            pass  # much to read in one project must not delay another
        seen = self.observe(now, ahead=True)
        return decide(seen, self._to_be_ended([stray for stray, _ in seen]), self.config.processes.grace_s)

    async def objection(self, action: Terminate) -> str | None:
        """Object if the agent is no stray any more that is to be ended."""
        found = strays(self._reader.read(self._agents(), self._clock.now()))
        ended = (agent.process for agent in self._to_be_ended(found).values())
        return None if set(action.roots) <= {*ended} else "it is no stray any more whose lead was started again"

    def _to_be_ended(self, found: Sequence[Stray]) -> dict[tuple[int, ...], Agent]:
        teams = teams_of_returned_leads(self._restarts())
        return to_be_ended(found, self._agents(), teams, self.config.restart)

    def observe(self, now: datetime, *, ahead: bool = False) -> list[tuple[Stray, float]]:
        """The strays now, and for how long each has been seen. ``ahead`` says that the reader has read ahead."""
        found, now_s = strays(self._reader.read(self._agents(), now, ahead=ahead)), self._clock.awake()
        self._since_s = {stray.identity: self._since_s.get(stray.identity, now_s) for stray in found}
        return [(stray, now_s - self._since_s[stray.identity]) for stray in found]
