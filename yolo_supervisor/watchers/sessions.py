"""Watches detached tmux sessions, and agents whose session is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NamedTuple

from yolo_supervisor.actions.agents import PaneDied, ShowMessage, Terminate
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.clock import Clock, until_next
from yolo_supervisor.config import Config, Policy
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.session_ends import Clients, Countdown
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.session_ends import SessionEndsRecord
from yolo_supervisor.inventory.watchdog import Watchdog, watchdog
from yolo_supervisor.models import Agent, Liveness, ProcessId, Task
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Server, Tmux
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.session_ends import follow, messages

LOOKS_APART_S = 5.0
"""The plugin's rule: a session is detached if two observations this far apart show no client."""

GONE = "its tmux session is gone"
"""The reason to end an agent that has outlived its session."""

SessionKey = tuple[str, int, str]
"""Socket, server pid, session id: a name is reused, this triple is not."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The remembered state of a session. Losing it only lengthens the wait."""

    had_client: bool = False
    people: frozenset[str] = frozenset()
    """The terminals of the people who were attached last."""
    empty_since_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class SessionState:
    """One session with the agents that live in it, as observed in this tick."""

    key: SessionKey
    name: str
    attached: int
    agents: tuple[Agent, ...]
    people: frozenset[str] = frozenset()
    """The terminals of the people who are attached."""
    elsewhere: frozenset[str] = frozenset()
    """The terminals of the people who are attached to other sessions of its server."""
    at_work: frozenset[str] = frozenset()
    """The ids of those agents that have a task in progress."""


@dataclass(frozen=True, kw_only=True)
class PaneEnd:
    """The end of an agent's pane, where tmux keeps it (``remain-on-exit``)."""

    agent: str
    session: str
    pane: str
    status: int | None
    signal: int | None


@dataclass(frozen=True, kw_only=True)
class SessionsObservation:
    """The tmux sessions and panes of the project's agents."""

    sessions: tuple[SessionState, ...] = ()
    orphans: tuple[Agent, ...] = ()
    """Living agents whose pane no longer exists on a server that is alive and answers."""
    ended: tuple[PaneEnd, ...] = ()
    agents: int = 0
    """The number of agents of this project that live in tmux."""
    confirmed: bool = False
    """Whether the previous observation showed the same large number of orphans."""
    silent: frozenset[str] = frozenset()
    """The sockets of servers that have not answered: the state of their sessions is unknown."""
    watchdog: int | None = None
    """The pid of the plugin's watchdog, if that runs: it terminates by the same rule."""
    clients: Mapping[str, Clients] = field(default_factory=dict)
    """The clients of the people on each server that has answered."""


def remember(
    memory: Mapping[SessionKey, Watched], observation: SessionsObservation, now_s: float
) -> dict[SessionKey, Watched]:
    """The remembered state of each session after this observation.

    ``now_s`` is time awake.
    """
    after = {}
    for session in observation.sessions:
        before = memory.get(session.key, Watched())
        if session.attached:
            after[session.key] = Watched(had_client=True, people=session.people)
        elif before.people & session.elsewhere:  # switching to another session is not leaving
            after[session.key] = Watched(had_client=True, people=before.people)
        else:
            since = before.empty_since_s if before.empty_since_s is not None else now_s
            after[session.key] = Watched(had_client=before.had_client, people=before.people, empty_since_s=since)
    for key, before in memory.items():
        if key[0] in observation.silent:  # one late answer must not erase that a client was attached
            after[key] = Watched(had_client=before.had_client, people=before.people)
    return after


def decide(
    observation: SessionsObservation,
    memory: Mapping[SessionKey, Watched],
    now_s: float,
    policy: Policy,
    detach_grace_s: float,
    grace_s: float,
    mass_min: int,
) -> list[Remediation]:
    """Apply the policy to detached sessions and orphaned agents."""
    remediations: list[Remediation] = [(_pane_died(end),) for end in observation.ended]
    if policy == "keep":
        return remediations
    for session, detached_s in _left(observation, memory, now_s):
        if detached_s < max(LOOKS_APART_S, detach_grace_s):
            continue
        reason = _left_reason(session)
        evidence = {"session": session.name, "tmux": session.key[0], "detached_s": detached_s}
        if policy == "notify" or observation.watchdog is not None:
            code = AlertCode.SESSION_LEFT
            if observation.watchdog:
                code = AlertCode.SESSION_LEFT_TO_PLUGIN
                reason = f"{reason}: the plugin's watchdog (process {observation.watchdog}) acts on it"
            alert = Escalate(kind="session", code=code, key=session.name, reason=reason, evidence=evidence)
            remediations.append((alert,))
            continue
        remediations += [_terminate(agent, reason, evidence, grace_s) for agent in _to_be_ended(session, policy)]
    if len(observation.orphans) * 2 > observation.agents >= mass_min and not observation.confirmed:
        reason = (
            f"the tmux sessions of {len(observation.orphans)} of {observation.agents} agents are missing at once: "
            "nothing is done until a second observation agrees"
        )
        return [*remediations, (Escalate(kind="session", code=AlertCode.MASS_DEATH, key="all", reason=reason),)]
    for agent in observation.orphans:
        reason = GONE
        evidence = {"tmux": agent.pane.socket, "pane": agent.pane.pane} if agent.pane else {}
        if policy == "notify" or observation.watchdog is not None:
            code = AlertCode.AGENT_ORPHANED
            remediations.append((Escalate(kind="agent", code=code, key=agent.id, reason=reason, evidence=evidence),))
        else:
            remediations.append(_terminate(agent, reason, evidence, grace_s))
    return remediations


def _left(
    observation: SessionsObservation, memory: Mapping[SessionKey, Watched], now_s: float
) -> Iterator[tuple[SessionState, float]]:
    """The sessions that their people have left, and for how long they have been detached."""
    for session in observation.sessions:
        before = memory.get(session.key, Watched())
        if before.had_client and before.empty_since_s is not None:
            yield session, round(now_s - before.empty_since_s, 1)  # observations are no more punctual than that


def _left_reason(session: SessionState) -> str:
    return f"its tmux session {session.name} was left by its last person"


def _to_be_ended(session: SessionState, policy: Policy) -> list[Agent]:
    """The agents of a session that was left, without those that may finish their task."""
    return [agent for agent in session.agents if not (policy == "drain" and agent.id in session.at_work)]


def count_down(
    observation: SessionsObservation,
    memory: Mapping[SessionKey, Watched],
    now_s: float,
    policy: Policy,
    detach_grace_s: float,
    interval_s: float,
) -> Iterator[tuple[Agent, str | None, str, float]]:
    """The agents that are going to be ended: each with its session, the reason, and the time that is left.

    An agent whose session is gone is ended at the second look, after ``interval_s``.
    """
    if policy in ("keep", "notify") or observation.watchdog is not None:
        return
    for session, detached_s in _left(observation, memory, now_s):
        left_s = max(0.0, max(LOOKS_APART_S, detach_grace_s) - detached_s)
        for agent in _to_be_ended(session, policy):
            yield agent, session.name, _left_reason(session), left_s
    for agent in observation.orphans:
        yield agent, None, GONE, interval_s


def terminated(remediations: Sequence[Remediation]) -> frozenset[str]:
    """The ids of the agents that are to be ended."""
    return frozenset(a.key for remediation in remediations for a in remediation if isinstance(a, Terminate))


def hold_mass_end(
    remediations: Sequence[Remediation], before: frozenset[str], agents: int, mass_min: int
) -> list[Remediation]:
    """Hold the end of more than half of at least ``mass_min`` agents until a second look agrees.

    ``before`` are the agents that the look before had decided to end.
    """
    ends = terminated(remediations)
    if not len(ends) * 2 > agents >= mass_min or ends <= before:
        return list(remediations)
    reason = (
        f"{len(ends)} of {agents} agents are to be ended at once: nothing is done until a second observation agrees"
    )
    alert = Escalate(
        kind="session", code=AlertCode.MASS_END, key="all", reason=reason, evidence={"agents": sorted(ends)}
    )
    others = [remediation for remediation in remediations if not terminated([remediation])]
    return [*others, (alert,)]


def _pane_died(end: PaneEnd) -> PaneDied:
    how = f"by signal {end.signal}" if end.signal is not None else f"with status {end.status}"
    evidence = {"agent": end.agent, "pane": end.pane, "status": end.status, "signal": end.signal}
    reason = f"{end.agent} in pane {end.pane} ended {how}"
    return PaneDied(key=end.session, agent=end.agent, pane=end.pane, reason=reason, evidence=evidence)


def _terminate(agent: Agent, reason: str, evidence: Mapping[str, object], grace_s: float) -> Remediation:
    assert agent.process is not None
    return (
        Terminate(
            key=agent.id,
            roots=(agent.process,),
            grace_s=grace_s,
            reason=reason,
            evidence={**evidence, "pid": agent.process.pid, "agent": agent.id},
        ),
    )


def _may_own(agent: Agent, task: Task) -> bool:
    """Whether the task may be the agent's. The client names no owner of a session's tasks."""
    return agent.bears(task.owner) or (not task.owner and agent.is_session)


class _PaneAgent(NamedTuple):
    agent: str
    pane_pid: int
    """The process of the pane: the leader of the session in it."""


class SessionsWatcher:
    name = "sessions"

    def __init__(
        self,
        config: Config,
        registry: AgentRegistry,
        agents: Callable[[], list[tuple[Agent, Liveness]]],
        paths: Paths,
        processes: Processes,
        tmux: Tmux,
        clock: Clock,
        ends: SessionEndsRecord,
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._agents = agents
        self._paths = paths
        self._processes = processes
        self._tmux = tmux
        self._clock = clock
        self._ends = ends
        self._memory: dict[SessionKey, Watched] = {}
        self._panes: dict[tuple[str, int, str], _PaneAgent] = {}
        """The agent that was seen in each pane: socket, server pid, pane."""
        self._orphans: set[str] = set()
        self._many: frozenset[str] = frozenset()
        self._decided: frozenset[str] = frozenset()
        """The agents that were to be ended at the last look."""

    @property
    def interval_s(self) -> float:
        return self.config.sessions.interval_s

    @property
    def policy(self) -> Policy:
        """The policy for a session that was left: the plugin's rule in a trusted project of the plugin."""
        policy = self.config.sessions.on_detach
        if policy != "auto":
            return policy
        is_plugins = self.config.trust.trusted and (self._paths.planning / "config.json").is_file()
        return "terminate" if is_plugins else "notify"

    def rest_s(self) -> float:
        return until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        config = self.config
        seen = await self.observe(self.interval_s / 2)
        observation = self._twice_seen(seen)
        now_s = self._clock.awake()
        self._memory = remember(self._memory, observation, now_s)
        mass_min = config.agents.mass_death_min
        remediations = decide(
            observation,
            self._memory,
            now_s,
            self.policy,
            config.sessions.detach_grace_s,
            config.processes.grace_s,
            mass_min,
        )
        before, self._decided = self._decided, terminated(remediations)
        remediations = hold_mass_end(remediations, before, observation.agents, mass_min)
        return self._follow_ends(seen, terminated(remediations), now_s, now) + remediations

    def _follow_ends(
        self, observation: SessionsObservation, ending: Collection[str], now_s: float, now: datetime
    ) -> list[Remediation]:
        """Follow the countdowns and the ends of agents. Returns what people are to be shown of them."""
        monotonic_s, sessions = self._clock.monotonic(), self.config.sessions
        counted = (
            count_down(observation, self._memory, now_s, self.policy, sessions.detach_grace_s, self.interval_s)
            if self.config.mode == "heal"
            else ()
        )
        countdowns = [
            Countdown(
                agent=agent.id,
                name=agent.name,
                process=agent.process,
                socket=agent.pane.socket,
                session=session,
                reason=reason,
                due_s=monotonic_s + left_s,
                ending=agent.id in ending,
            )
            for agent, session, reason, left_s in counted
            if agent.process is not None and agent.pane is not None
        ]
        self._ends.ends = follow(self._ends.ends, countdowns, observation.clients, self._is_dead, now)
        return [(message,) for message in messages(self._ends.ends, observation.clients, monotonic_s)]

    def _is_dead(self, process: ProcessId) -> bool:
        return self._processes.liveness(process) is Liveness.DEAD

    def message_shown(self, message: ShowMessage) -> None:
        """Take notice that a person has seen a message."""
        if message.about == "ended":
            self._ends.mark_shown(message.socket, message.agents)

    def save_observations(self) -> bool:
        """Store the countdowns, and the ends that people are still to be shown."""
        self._ends.save()
        return True

    def _twice_seen(self, observation: SessionsObservation) -> SessionsObservation:
        """Confirm orphans by a second observation.

        One observation is not enough to call an agent an orphan. For many at once, two are not enough.
        """
        now = {agent.id for agent in observation.orphans}
        before, self._orphans = self._orphans, now
        confirmed = tuple(agent for agent in observation.orphans if agent.id in before)
        many, self._many = self._many, frozenset(agent.id for agent in confirmed)
        return replace(observation, orphans=confirmed, confirmed=bool(confirmed) and self._many <= many)

    async def objection(self, action: Terminate) -> str | None:
        """Object if a client has attached again or the policy has changed.

        tmux itself is asked, right before the signal.
        """
        if self.policy in ("keep", "notify"):
            return f"the policy is {self.policy} now"
        observation = await self.observe(0.0)
        if any(agent.id == action.key and agent.process in action.roots for agent in observation.orphans):
            return None
        for session in observation.sessions:
            if any(agent.id == action.key and agent.process in action.roots for agent in session.agents):
                return f"a client is attached to {session.name} again" if session.attached else None
        if all(self._processes.liveness(root) is Liveness.DEAD for root in action.roots):
            return None  # the agent has exited already: the rest of its tree remains to be ended
        return "its session is unknown: tmux does not answer, or shows the agent elsewhere"

    async def observe(self, fresh_s: float) -> SessionsObservation:
        """Ask the servers that agents live in and observe.

        Answers may be ``fresh_s`` old.
        """
        placed = self.placed()
        sockets = {agent.pane.socket for agent in placed if agent.pane} | {socket for socket, _, _ in self._panes}
        sockets |= {end.socket for end in self._ends.ends.ended}
        return self.observation(placed, {socket: await self._tmux.look(socket, fresh_s) for socket in sockets})

    def placed(self) -> list[Agent]:
        """The living agents that run in a pane."""
        return [
            agent
            for agent, state in self._agents()
            if state is Liveness.ALIVE and agent.pane and agent.process and agent.lead is None
        ]

    def observation(self, placed: Sequence[Agent], answers: Mapping[str, Server | None]) -> SessionsObservation:
        """The sessions of these agents, from the answers of their servers."""
        residents: dict[SessionKey, list[Agent]] = {}
        servers: dict[SessionKey, Server] = {}
        orphans: list[Agent] = []
        for agent in placed:
            assert agent.pane is not None
            server = answers.get(agent.pane.socket)
            if server is None or server.pid != agent.pane.server_pid:
                continue  # no answer, or another server on that socket: unknown, nothing follows from it
            place = (server.socket, server.pid, agent.pane.pane)
            pane = server.panes.get(agent.pane.pane)
            before = self._panes.get(place)
            was_there = before is not None and before.agent == agent.id
            if pane is None or not pane.sessions:
                if was_there and before is not None and self._depends_on(agent, before.pane_pid):
                    orphans.append(agent)
            elif not was_there and not self._descends(agent, pane.pid):
                continue  # it was started from there, but lives in another terminal, or in none
            else:
                self._panes[place] = _PaneAgent(agent.id, pane.pid)
            shown = pane.sessions if pane else ()  # a linked window is in several sessions: one with a client suffices
            for session in [s for s in shown if server.attached.get(s)] or shown:
                key = (server.socket, server.pid, session)
                residents.setdefault(key, []).append(agent)
                servers[key] = server
        at_work = self._at_work(placed) if residents else frozenset()
        return SessionsObservation(
            sessions=tuple(
                SessionState(
                    key=key,
                    name=servers[key].names.get(key[2], key[2]),
                    attached=servers[key].attached.get(key[2], 0),
                    agents=tuple(agents),
                    people=servers[key].people.get(key[2], frozenset()),
                    elsewhere=frozenset().union(*(p for s, p in servers[key].people.items() if s != key[2])),
                    at_work=at_work,
                )
                for key, agents in residents.items()
            ),
            orphans=tuple(orphans),
            ended=tuple(self._ended(answers, {agent.id for agent in placed})),
            agents=len(placed),
            silent=frozenset(socket for socket, server in answers.items() if server is None),
            watchdog=self._running_watchdog(),
            clients={socket: dict(server.clients) for socket, server in answers.items() if server is not None},
        )

    def _depends_on(self, agent: Agent, pane_pid: int) -> bool:
        """Whether the agent was meant to end with its pane: it is in the pane's session, and does not ignore SIGHUP.

        An agent that was started with ``nohup``, or in a separate session, goes on without a terminal.
        """
        if agent.process is None:
            return False
        try:
            facts = self._processes.backend.facts(agent.process.pid)
            ignores = self._processes.backend.ignores(agent.process.pid, signal.SIGHUP)
        except OSError:
            return False
        return facts is not None and facts.session == pane_pid and not ignores

    def _descends(self, agent: Agent, ancestor: int) -> bool:
        """Whether the agent is, or descends from, that process.

        Any descendant inherits ``TMUX``, so the variable alone proves nothing.
        """
        pid, seen = agent.process.pid if agent.process else 0, set[int]()
        while pid > 1 and pid not in seen:
            if pid == ancestor:
                return True
            seen.add(pid)
            try:
                facts = self._processes.backend.facts(pid)
            except OSError:
                return False
            pid = facts.parent if facts else 0
        return False

    def _ended(self, answers: Mapping[str, Server | None], living: Collection[str]) -> Iterator[PaneEnd]:
        """The dead panes of agents that tmux keeps.

        A pane that is gone is forgotten with its agent: as long as the agent lives, it is an orphan.
        """
        for (socket, server_pid, name), resident in list(self._panes.items()):
            agent = resident.agent
            server = answers.get(socket)
            if server is None:
                if self._processes.identify(server_pid) is None:
                    del self._panes[socket, server_pid, name]  # with its server
                continue
            pane = server.panes.get(name) if server.pid == server_pid else None
            if pane is None:
                if agent in living:
                    continue
                del self._panes[socket, server_pid, name]
            elif pane.dead and (pane.status is not None or pane.signal is not None):
                session = server.names.get(pane.sessions[0], pane.sessions[0])
                yield PaneEnd(agent=agent, session=session, pane=name, status=pane.status, signal=pane.signal)

    def _at_work(self, agents: Sequence[Agent]) -> frozenset[str]:
        if self.policy != "drain":
            return frozenset()
        lists, snapshot = self._registry.task_lists, self._registry.snapshot()
        busy = set()
        for agent in agents:
            for folder in lists.of(agent, snapshot):
                tasks, unreadable = lists.at_work(folder)
                if unreadable or any(_may_own(agent, task) for task in tasks):
                    busy.add(agent.id)
            if lists.plans_of(agent):
                busy.add(agent.id)
        return frozenset(busy)

    def watchdog(self) -> Watchdog | None:
        """The plugin's watchdog, if the plugin has started one."""
        return watchdog(self._paths.planning / plugin.WATCHDOG_PID, self._processes)

    def _running_watchdog(self) -> int | None:
        found = self.watchdog()
        return found.pid if found is not None and found.liveness is Liveness.ALIVE else None
