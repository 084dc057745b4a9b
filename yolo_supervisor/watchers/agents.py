"""Watches agents: registers living ones, and recovers the resources that dead ones still hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from yolo_supervisor.actions.agents import Register, Restart, Terminate, UpdateRecord, forget
from yolo_supervisor.actions.base import AlertCode, Edit, Escalate
from yolo_supervisor.clock import in_turns, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.crash_report import CrashCause
from yolo_supervisor.formats.own import Descent, Trees
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.mounts import is_local
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.agent_sources import AgentKey, Rank, agent_key, combine, merge
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.crash_evidence import Crash, CrashInvestigator
from yolo_supervisor.inventory.held_resources import HeldResources, HeldResourcesFinder
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot, Records, is_process_of, lists_of_agent
from yolo_supervisor.inventory.restarts import NO_RESTART, Death, RestartPlanner, Stage
from yolo_supervisor.models import Agent, Liveness, ProcessId
from yolo_supervisor.policy.retry import RetryPolicy
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.death_watch import DeathWatch
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.dead_agents import (
    RecoveryContext,
    Sighting,
    agent_facts,
    next_step_s,
    recover,
    registry_file_steps,
)

PIDS_SHOWN = 20
"""The number of unknown pids that an alert names."""

STARTING_S = 5.0
"""The time in which a tmux teammate has its process; it joins its team before."""

RESUMED_S = 30.0
"""The time that the client's own daemon has to resume a crashed session; it takes 10 s. Its tasks stay meanwhile."""

RESUMING_S = 1.0
"""The pause between two looks at that daemon meanwhile: once it has ended, the tasks are requeued."""


@dataclass(frozen=True, kw_only=True)
class AgentsObservation:
    """The known agents that may need an action, and the state of the files about agents."""

    sightings: tuple[Sighting, ...]
    """The agents that may need an action: dead, new or stopped ones."""
    known: int = 0
    """The number of known agents, including those that need no action."""
    confirmed: bool = True
    """Whether the previous observation showed the same deaths concluded from absence."""
    dangling: frozenset[int] = frozenset()
    """Pids in the plugin's files that no process has, and no agent that was known."""
    dangling_files: tuple[Path, ...] = ()
    """The files that name them."""
    observing: bool = False
    """Whether this is observe mode: nothing is recorded, so dead agents cannot be registered first."""
    damaged: tuple[str, ...] = ()
    """The names of agent records that cannot be read."""
    idle: tuple[tuple[str, int], ...] = ()
    """Roles whose health file counts three or more idle turns."""
    clusters: Mapping[CrashCause, str] = field(default_factory=dict)
    """The crash causes of which several agents died in a short time, with the text of the report for each."""


def decide(observation: AgentsObservation, records: Path, grace_s: float, mass_min: int) -> list[Remediation]:
    """Decide about one observation.

    Living agents are registered. Dead ones are recovered and their records removed.
    """
    letters = records.with_name("dead-letters")
    context = RecoveryContext(records=records, letters=letters, grace_s=grace_s, observing=observation.observing)
    dead, alerts = _certain_deaths(observation, mass_min)
    alerts += [
        Escalate(kind="agent", code=AlertCode.CRASH_BURST, key=f"class {cause}", reason=sentence)
        for cause, sentence in observation.clusters.items()
    ]
    alerts += [_damaged(name) for name in observation.damaged]
    recoveries = [recovery for sighting in dead if (recovery := recover(sighting, context))]
    return [
        *((action,) for action in _record_changes(observation, records)),
        *((alert,) for alert in alerts),
        *recoveries,
        *((alert,) for alert in _unknown_pids(observation)),
        *((_idle_role(role, count),) for role, count in observation.idle),
    ]


def _record_changes(observation: AgentsObservation, records: Path) -> Iterator[Edit]:
    """New records of agents, what is known better of others, and the end of those that were none."""
    for s in observation.sightings:
        agent, path, alive = s.agent, records / s.record, s.state is Liveness.ALIVE
        if not s.recorded and not s.stopped and (alive or _first_to_be_recorded(s, observation)):
            reason = f"a {agent.role} at work was found by its {agent.source}"
            yield Register(key=agent.id, path=path, agent=agent, reason=reason, evidence=agent_facts(agent))
        if s.known_as is not None and alive:
            evidence = {**agent_facts(agent), "was": s.known_as, "lists": list(agent.lists)}
            reason = f"more is known of {agent.name}"
            yield UpdateRecord(key=agent.id, path=path, agent=agent, reason=reason, evidence=evidence)
        if s.left_team and s.recorded:
            yield forget(key=agent.id, path=path, reason="it is no teammate in its lead's process any more")


def _certain_deaths(observation: AgentsObservation, mass_min: int) -> tuple[list[Sighting], list[Escalate]]:
    """The dead agents, and an alert if so many are missing at once that absence proves nothing yet."""
    dead = [
        s
        for s in observation.sightings
        if (s.state is Liveness.DEAD and not _first_to_be_recorded(s, observation)) or (s.stopped and s.recorded)
    ]
    absent = [s.agent.id for s in dead if not s.certain]
    if observation.confirmed or not len(absent) * 2 > observation.known >= mass_min:
        return dead, []
    reason = (
        f"{len(absent)} of {observation.known} agents are missing at once: "
        "nothing is done until a second observation agrees"
    )
    alert = Escalate(kind="agent", code=AlertCode.MASS_DEATH, key="all", reason=reason, evidence={"absent": absent})
    return [s for s in dead if s.certain], [alert]


def _unknown_pids(observation: AgentsObservation) -> Iterator[Escalate]:
    """Report pids in the plugin's files that no process has here.

    They may be those of agents in another pid namespace, a container for instance, and stay.
    """
    if observation.dangling_files:
        pids, files = sorted(observation.dangling), ", ".join(path.name for path in observation.dangling_files)
        more = f" and {len(pids) - PIDS_SHOWN} more" if len(pids) > PIDS_SHOWN else ""
        listed, do = ", ".join(map(str, pids[:PIDS_SHOWN])) + more, "yolo-supervisor doctor --fix"
        reason = f"no process has the pids {listed} in {files} here: if no agent of a container has them, {do}"
        code, evidence = AlertCode.PIDS_UNKNOWN, {"pids": pids[:PIDS_SHOWN]}
        yield Escalate(kind="agent", code=code, key=plugin.AGENT_PIDS, reason=reason, evidence=evidence)


def _idle_role(role: str, count: int) -> Escalate:
    reason = f"the plugin counts {count} idle turns of {role}: the supervisor does nothing about it"
    return Escalate(kind="agent", code=AlertCode.AGENT_IDLE, key=f"role {role}", reason=reason)


def _damaged(name: str) -> Escalate:
    reason = "the record cannot be read, so its agent is not watched: remove it, a running agent is found again"
    code = AlertCode.AGENT_RECORD_UNREADABLE
    return Escalate(kind="state", code=code, key=f".supervisor/agents/{name}", reason=reason)


def _first_to_be_recorded(sighting: Sighting, observation: AgentsObservation) -> bool:
    """Register first an agent that died unrecorded.

    Its record is the proof of the work that remains.
    """
    return sighting.state is Liveness.DEAD and not sighting.recorded and not observation.observing


class KnownAgents:
    """The agents that were seen and are not released, by the name of their record, recorded or not (in observe mode
    they never are)."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.exit_watched: set[str] = set()
        """Recorded agents whose exit the kernel reports: they need no polling."""
        self._names: dict[ProcessId, list[str]] = {}
        self._learned: dict[tuple[str, Rank], Agent] = {}
        """The newest sighting of each agent in each source: an unchanged one says nothing more."""

    def add(self, name: str, agent: Agent) -> None:
        self.agents[name] = agent
        if agent.process:
            self._names.setdefault(agent.process, []).append(name)

    def learn(self, rank: Rank, sighting: Agent) -> None:
        """Add what a sighting says of a known agent."""
        name = self.name_of(agent_key(sighting))
        if name is None or self._learned.get((name, rank)) is sighting:
            return
        self._learned[name, rank] = sighting
        combined = combine(self.agents[name], sighting)
        if combined != self.agents[name]:
            self.agents[name] = combined
            self.exit_watched.discard(name)  # its record has to be updated

    def name_of(self, key: AgentKey) -> str | None:
        """The name of the record of the agent with this key, or None if it is not known."""
        process = key[0]
        if process is None:
            return None
        return next((name for name in self.names(process) if agent_key(self.agents[name]) == key), None)

    def remove(self, name: str) -> ProcessId | None:
        """Remove the agent and return its process, if it was known."""
        agent = self.agents.pop(name, None)
        self.exit_watched.discard(name)
        for rank in Rank:
            self._learned.pop((name, rank), None)
        if agent is None or agent.process is None:
            return None
        names = self._names[agent.process]
        names.remove(name)
        if not names:
            del self._names[agent.process]
        return agent.process

    def names(self, process: ProcessId) -> Sequence[str]:
        """The records of all agents in the process: a session, and subagents that hooks reported."""
        return self._names.get(process, ())

    def __contains__(self, key: object) -> bool:
        """Whether an agent with this key (``agent_key``) is known, from any source."""
        return isinstance(key, tuple) and self.name_of(key) is not None


class AgentsWatcher:
    name = "agents"

    def __init__(
        self,
        config: Config,
        registry: AgentRegistry,
        store: Store,
        processes: Processes,
        scanner: ProcessScanner,
        deaths: DeathWatch,
        queue: RetryPolicy,
        investigator: CrashInvestigator | None = None,
        restarts: RestartPlanner | None = None,
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._store = store
        self._processes = processes
        self._scanner = scanner
        self._deaths = deaths
        self.investigator = investigator
        """Without an investigator, crash causes are not determined."""
        self._known = KnownAgents()
        self._recorded = Records(by_name={})
        """The records in the last snapshot."""
        self._merged: Mapping[Rank, Sequence[Agent]] = {}
        """The sightings in the last snapshot. A source that returns the same object again needs no merging."""
        self._held_resources = HeldResourcesFinder(registry.task_lists, store.paths, processes, scanner, queue)
        self._restarts = restarts
        """Without it, no agent is brought back."""
        self._next_s: float | None = None
        """The time at which the next task may be requeued that is waiting now."""
        self._again = False
        """Whether unchanged sources are merged again: an agent may be missing whose record was removed by a person."""
        self._recovered: set[ProcessId] = set()
        """The processes of agents whose records were removed: the client may leave their session files."""
        self._lost: list[Agent] = []
        """The sessions that ended while no supervisor saw it, as of this look."""
        self._outdated: set[str] = set()
        """The names of records that say less than is known: they are read again, and updated."""
        self._absent: frozenset[str] = frozenset()
        self._mates_since_s: dict[AgentKey, float] = {}
        """When each in-process teammate was first seen that is not known yet."""
        self._dead_since_s: dict[str, float] = {}
        """When each dead agent was first seen to be dead."""
        self._resuming: set[str] = set()
        """Dead agents that their client's own daemon may be resuming: its end is not reported by the kernel."""
        self._proofs: dict[str, tuple[str, bool]] = {}
        """How each death was first known: the kernel reports it only once."""

    @property
    def interval_s(self) -> float:
        return self.config.agents.interval_s

    def rest_s(self) -> float:
        rest_s = until_next(self.interval_s)
        rest_s = min(rest_s, RESUMING_S) if self._resuming else rest_s
        return rest_s if self._next_s is None else min(rest_s, self._next_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        config, clock = self.config, self._store.clock
        async for _ in in_turns(self._registry.read_ahead(), clock):
            pass  # much of it in one project must not delay another
        snapshot = self._snapshot(ahead=True)
        lost = in_turns(self._registry.lost_sessions(snapshot), clock)
        self._lost = [agent async for agent in lost if agent is not None]
        sightings = self._meet(snapshot)
        attention = self._attention(sightings, snapshot)
        dead = {s.record: s.agent for s in attention if s.state is Liveness.DEAD}
        lists = {folder: None for agent in dead.values() for folder in self._registry.task_lists.of(agent, snapshot)}
        async for _ in in_turns(self._registry.task_lists.read_ahead(lists), clock):
            pass
        if self.investigator is not None:
            await self.investigator.collect(dead, now, self.trees())
        observation = self._observe(attention, snapshot, ahead=True)
        return decide(observation, self._store.paths.agents, config.processes.grace_s, config.agents.mass_death_min)

    async def objection(self, action: Terminate) -> str | None:
        """Object if the agent's process is itself among the roots.

        Only its leftover processes may be. Nothing else is checked: a dead agent cannot come back to life.
        """
        dead = [agent for agent in self._known.agents.values() if agent.id == action.key and agent.process]
        if any(agent.process in action.roots for agent in dead):
            return "the process is a known agent"
        return None

    async def restart_objection(self, action: Restart) -> str | None:
        """Object if the start is not due any more: everything that the decision depends on is observed again."""
        snapshot, sightings = self._look(everyone=True)
        observation = self._observe(self._attention(sightings, snapshot), snapshot)
        now = next((s for s in observation.sightings if s.record == action.record), None)
        if now is None or now.state is not Liveness.DEAD:
            return "the agent is not known to be dead any more"
        if now.restart.stage is not Stage.DUE or now.restart.launch != action.launch:
            return f"its start is not due any more: {now.restart.decision.text}"
        if now.restart.saves is not None:
            return "its uncommitted work is not saved yet"
        return None

    def save_observations(self) -> bool:
        """Record how the known agents were started, before their registration says that they are watched."""
        if self._restarts is not None:
            self._restarts.record_launches(self._known.agents)
            try:
                self._restarts.save_deaths()
            except Busy:
                return False
        return True

    def save_restarts(self) -> None:
        """Write down which agents are dead, and which starts are due. Their tasks have been requeued by then."""
        if self._restarts is not None:
            self._restarts.save_ended()
            self._restarts.save_plans()

    def agents(self) -> list[tuple[Agent, Liveness]]:
        """Every known agent and its state, for people.

        Pids of unproven identity are unknown.
        """
        snapshot, sightings = self._look(everyone=True)
        states = [(s.agent, s.state) for s in sightings]
        known = [agent for agent, _ in states]
        states += [
            (mate, state) for agent, state in states for mate in self._registry.in_process([agent], known, snapshot)
        ]
        unproven = self._registry.unproven((agent for agent, _ in states), snapshot)
        return states + [(agent, Liveness.UNKNOWN) for agent in unproven]

    def registry_entries(self, agent: Agent) -> Remediation:
        """The steps that remove a dead agent's entries from the plugin's registry files; none unless it is dead."""
        snapshot, sightings = self._look(everyone=True)
        dead = [s for s in sightings if agent_key(s.agent) == agent_key(agent) and s.state is Liveness.DEAD]
        others = [s.agent for s in sightings if s.state is not Liveness.DEAD]
        if not dead:
            return ()
        held = HeldResources(**self._held_resources.registry_files(agent, others, snapshot))
        return registry_file_steps(replace(dead[0], held=held))

    def living(self) -> list[tuple[Agent, Liveness]]:
        """The agents known from the last observation, in their present state."""
        return [(agent, self._judge(agent, ())[0]) for agent in self._known.agents.values()]

    def trees(self) -> Trees:
        """The process trees of all known agents, as last seen by the scanner or an earlier daemon."""
        return self._held_resources.trees(self.processes())

    def descents(self) -> Mapping[ProcessId, Descent]:
        """The descendants of all known agents that are not in their trees, likewise."""
        return self._held_resources.descents(self.processes())

    def processes(self) -> list[ProcessId]:
        """The processes of all known agents."""
        return [agent.process for agent in self._known.agents.values() if agent.process]

    # -- observing -----------------------------------------------------------------------------------------------

    def observe(self) -> AgentsObservation:
        snapshot, sightings = self._look()
        return self._observe(self._attention(sightings, snapshot), snapshot)

    def _attention(self, sightings: Sequence[Sighting], snapshot: ProjectSnapshot) -> list[Sighting]:
        """The agents that may need an action. One that its client may be resuming needs none yet."""
        now_s = self._store.clock.awake()
        dead = {s.record: s.agent for s in sightings if s.state is Liveness.DEAD}
        self._dead_since_s = {name: self._dead_since_s.get(name, now_s) for name in dead}
        self._resuming = {
            name
            for name, agent in dead.items()
            if now_s - self._dead_since_s[name] < RESUMED_S and self._registry.may_be_resumed(agent, snapshot)
        }
        return [s for s in sightings if s.needs_attention and s.record not in self._resuming]

    def _observe(
        self, attention: Sequence[Sighting], snapshot: ProjectSnapshot, *, ahead: bool = False
    ) -> AgentsObservation:
        """Observe what follows from the sightings that may need an action.

        If an agent is dead, the snapshot is taken again. It must be newer than the death: the agent may have joined a
        team and begun a task after the first one.
        """
        dead = [s for s in attention if s.state is Liveness.DEAD]
        if dead:
            self._store.heed()  # a command may have ended one of them
            snapshot = self._registry.snapshot(ahead=ahead)
            self._discover(snapshot)
            if self._restarts is not None:
                self._restarts.renew({s.record for s in dead})
        others = self._agents_beside(dead, snapshot) if dead else []
        absent = frozenset(s.record for s in dead if not s.certain)
        confirmed = absent <= self._absent
        self._absent = absent
        dangling = self._registry.dangling_pids(snapshot) - {s.agent.pid for s in dead}
        sightings = tuple(self._with_held_resources(s, others, snapshot) for s in attention)
        self._next_s = next_step_s(sightings)
        return AgentsObservation(
            sightings=sightings,
            known=len(self._known.agents),
            observing=self.config.mode == "observe",
            confirmed=confirmed,
            dangling=dangling,
            dangling_files=self._dangling_files(dangling, snapshot),
            damaged=snapshot.records.damaged,
            clusters=self.investigator.bursts() if self.investigator else {},
            idle=tuple((h.role, h.idle_count) for h, _ in snapshot.health_files if h.idle_count >= 3),
        )

    def _agents_beside(self, dead: Sequence[Sighting], snapshot: ProjectSnapshot) -> list[Agent]:
        """All agents that may be at work on what the dead ones held."""
        gone = {s.record for s in dead}
        known = [agent for name, agent in self._known.agents.items() if name not in gone]
        beside = [agent for agent in known if not _has_pane(agent, snapshot)]
        beside += self._registry.in_process(beside, beside, snapshot)
        lists = {name for s in dead for name in lists_of_agent(s.agent)}
        elsewhere = self._registry.elsewhere(snapshot) if lists else []
        return beside + [agent for agent in elsewhere if not lists_of_agent(agent).isdisjoint(lists)]

    def _snapshot(self, *, ahead: bool = False) -> ProjectSnapshot:
        snapshot = self._registry.snapshot(frozenset(self._outdated), ahead=ahead)
        self._outdated.clear()
        return snapshot

    def _look(self, everyone: bool = False) -> tuple[ProjectSnapshot, list[Sighting]]:
        """Take a snapshot, and see which of the known agents live (``_meet``)."""
        snapshot = self._snapshot()
        self._lost = [agent for agent in self._registry.lost_sessions(snapshot) if agent is not None]
        return snapshot, self._meet(snapshot, everyone)

    def _meet(self, snapshot: ProjectSnapshot, everyone: bool = False) -> list[Sighting]:
        """See which of the known agents live, those in the snapshot among them.

        Without ``everyone``, agents that are certainly alive and fully known are left out.
        """
        self._discover(snapshot)
        ended = set(self._deaths.ended())
        for process in ended:
            self._known.exit_watched.difference_update(self._known.names(process))
        stopped = self._registry.stopped_subagents(snapshot)
        left = {name for name, agent in self._known.agents.items() if self._left_team(agent, snapshot)}
        polled = self._known.agents.keys() - (() if everyone or stopped else self._known.exit_watched - left)
        sightings = [self._sight(name, self._known.agents[name], ended, stopped) for name in polled]
        return [replace(s, left_team=s.record in left and s.state is Liveness.ALIVE) for s in sightings]

    def _left_team(self, agent: Agent, snapshot: ProjectSnapshot) -> bool:
        """Whether a teammate in its lead's process is none any more: it has a process, or its team does not list it."""
        if agent.source != "team":
            return False
        if _has_pane(agent, snapshot) or any(is_process_of(other, agent) for other in snapshot.teammates.agents):
            return True
        team = next((team for team in snapshot.teams if team.name == agent.team), None)
        if team is None or any(member.agent_id == agent.id for member in team.mates):
            return False
        folders = self._registry.task_lists.of(agent, snapshot)
        looks = [self._registry.task_lists.at_work(folder) for folder in folders]
        return not any(bad or any(agent.bears(task.owner) for task in at_work) for at_work, bad in looks)

    def _discover(self, snapshot: ProjectSnapshot) -> None:
        """Learn from the snapshot which agents there are."""
        before, self._recorded = self._recorded, snapshot.records
        records = snapshot.records.by_name
        settled = before.by_name.keys() - records.keys() if before is not snapshot.records else set[str]()
        for name in settled:
            self._settle(name)
        for name in records.keys() - self._known.agents.keys():
            self._known.add(name, records[name])
        sightings = self._registry.sightings(snapshot)
        changed: dict[Rank, Sequence[Agent]] = {
            rank: agents
            for rank, agents in sightings.items()
            if rank is not Rank.RECORD and (self._again or agents is not self._merged.get(rank))  # records are known
        }
        self._merged, self._again = sightings, bool(settled) and self._again
        mates = {agent_key(agent) for agent in changed.get(Rank.TEAM_FILE, ())}
        self._mates_since_s = {key: s for key, s in self._mates_since_s.items() if key in mates}
        for agent in merge(changed, self._known):
            if (name := own_files.agent_file(agent)) not in settled and self._runs(agent) and self._is_settled(agent):
                self._known.add(name, agent)
        for rank, agents in sorted(changed.items()):
            for agent in agents:
                self._known.learn(rank, agent)
        self._recovered.intersection_update(agent.process for agent in self._lost if agent.process)
        for agent in self._lost:
            if agent_key(agent) not in self._known and agent.process not in self._recovered:
                self._known.add(own_files.agent_file(agent), agent)

    def _is_settled(self, agent: Agent) -> bool:
        """Whether an in-process teammate is one for sure: a tmux teammate looks like one while it starts."""
        if agent.source != "team":
            return True
        now, now_s = self._store.clock.now(), self._store.clock.awake()
        first_s = self._mates_since_s.setdefault(agent_key(agent), now_s)
        return now_s - first_s >= STARTING_S or (now - agent.since).total_seconds() >= STARTING_S

    def _runs(self, agent: Agent) -> bool:
        """Whether a sighting is still true: the process scan may be a second old."""
        return agent.process is not None and self._processes.liveness(agent.process) is Liveness.ALIVE

    def _sight(self, name: str, agent: Agent, ended: Collection[ProcessId], stopped: Collection[str]) -> Sighting:
        state, proof, certain = self._judge(agent, ended)
        recorded = name in self._recorded.by_name
        if state is Liveness.DEAD:
            proof, certain = self._proofs.setdefault(name, (proof, certain))
        elif agent.process and not self._deaths.lives(agent.process):
            self._deaths.add(agent.process)
            self._scanner.track(agent.process)
            if self.investigator is not None:
                self.investigator.track(agent.process)
        outdated = recorded and self._recorded.by_name[name] != agent
        if outdated:
            self._outdated.add(name)
        elif state is Liveness.ALIVE and recorded and agent.process and self._deaths.lives(agent.process):
            self._known.exit_watched.add(name)
        return Sighting(
            agent=agent,
            record=name,
            state=state,
            recorded=recorded,
            known_as=self._recorded.by_name[name].id if outdated else None,
            proof=proof,
            certain=certain,
            death_recorded=state is Liveness.DEAD and self._store.index.death_recorded(agent),
            stopped=agent.lead is not None and agent.id in stopped,
        )

    def _settle(self, name: str) -> None:
        """Forget an agent whose record was removed, after its recovery or by a person."""
        self._proofs.pop(name, None)
        process = self._known.remove(name)
        if process is not None:
            self._recovered.add(process)
        if self.investigator is not None:
            self.investigator.release(name, process)
        if process is not None:
            self._deaths.exits.pop(process, None)
        self._again |= process is not None and self._deaths.lives(process)  # after removal by a person: find it again
        if process and not self._known.names(process):
            self._deaths.discard(process)
            self._scanner.drop(process)

    def _liveness(self, agent: Agent) -> Liveness:
        """The state of an agent that may own what a dead one held; unknown if its client may be resuming it."""
        resuming = any(name in self._resuming for name in self._known.names(agent.process)) if agent.process else False
        return Liveness.UNKNOWN if resuming else self._judge(agent, ())[0]

    def _judge(self, agent: Agent, ended: Collection[ProcessId]) -> tuple[Liveness, str, bool]:
        process = agent.process
        if process is None:
            return Liveness.UNKNOWN, "", False
        if self._deaths.lives(process):
            return Liveness.ALIVE, "", True
        if process in ended:
            return Liveness.DEAD, f"the kernel reported the exit of process {process.pid}", True
        state = self._processes.liveness(process)
        if state is not Liveness.DEAD:
            return state, "", True
        if process.boot != self._processes.boot:
            if not is_local(self._store.paths.agents):
                return Liveness.UNKNOWN, "", False  # a machine of the same image may have written the record
            return state, "the machine was rebooted since", True
        if self._processes.identify(process.pid) is not None:
            return state, f"pid {process.pid} belongs to another process now", True
        return state, f"process {process.pid} no longer exists", False

    # -- resources that the dead still hold ------------------------------------------------------------------------

    def _with_held_resources(self, sighting: Sighting, others: Sequence[Agent], snapshot: ProjectSnapshot) -> Sighting:
        if sighting.state is not Liveness.DEAD:
            return sighting
        agent = sighting.agent
        mates = self._registry.in_process([agent], self._known.agents.values(), snapshot)
        session = self._session_record(sighting)  # an in-process teammate ends as its lead does
        ended = (agent, self._known.agents.get(session, agent))
        ours, end = any(self._store.index.terminated(each.id, each.process) for each in ended), self._crash(session)
        held = self._held_resources.of(agent, snapshot, mates, others, self._liveness, end, ours)
        alone = agent.hosted and not self._registry.may_be_resumed(agent, snapshot)
        crash = self._crash(sighting.record)
        plan = NO_RESTART
        if self._restarts is not None:
            dead_s = self._store.clock.awake() - self._dead_since_s.get(sighting.record, self._store.clock.awake())
            tasks = [work.task for work in held.work if not (work.doubt or work.of_mate)]
            death = Death(
                agent=agent, record=sighting.record, crash=crash, by_supervisor=ours, since_s=dead_s, tasks=tasks
            )
            plan = self._restarts.plan(death, others, snapshot)
        return replace(sighting, held=held, terminated=ours, crash=crash, host_ended=alone, restart=plan)

    def _crash(self, record: str) -> Crash | None:
        return self.investigator.crash(record) if self.investigator else None

    def _session_record(self, sighting: Sighting) -> str:
        """The record of the session in the agent's process; the agent's own if there is none."""
        process = sighting.agent.process
        inside = self._known.names(process) if process else ()
        return next((name for name in inside if self._known.agents[name].lead is None), sighting.record)

    def _dangling_files(self, dangling: frozenset[int], snapshot: ProjectSnapshot) -> tuple[Path, ...]:
        if not dangling:
            return ()
        path = self._store.paths.agent_pids
        listed = plugin_agents.mentions_pid(read_or_none(path, plugin_agents.LIST_LIMIT) or b"", dangling)
        health = (p for h, p in snapshot.health_files if h.pid in dangling)
        return (*([path] if listed else []), *health)


def _has_pane(agent: Agent, snapshot: ProjectSnapshot) -> bool:
    """Whether an agent that was recorded as in-process has a pane: a tmux teammate looks in-process while it starts."""
    if agent.source != "team":
        return False
    members = (member for team in snapshot.teams if team.name == agent.team for member in team.members)
    return any(member.agent_id == agent.id and not member.in_process for member in members)
