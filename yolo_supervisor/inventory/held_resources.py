"""Finds the resources that a dead agent still holds: tasks, leases, processes, and entries in the plugin's registry
files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.own import Descent, Trees
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.read import LOG_LIMIT, digest, read, read_or_none
from yolo_supervisor.inventory.crash_evidence import Crash
from yolo_supervisor.inventory.descent import Descendants
from yolo_supervisor.inventory.leases import readable_leases
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot
from yolo_supervisor.inventory.task_lists import TaskLists
from yolo_supervisor.models import Agent, Lease, Liveness, ProcessId, Task
from yolo_supervisor.policy.retry import RetryDecision, RetryPolicy
from yolo_supervisor.policy.task_owner import OwnerState, ownership
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.daemons import daemons
from yolo_supervisor.system.processes import Leftovers, Processes


@dataclass(frozen=True, kw_only=True)
class HeldTask:
    """A task that names a dead agent as its owner, and the reason why another agent may own it."""

    task: Task
    doubt: str | None = None
    decision: RetryDecision = field(default_factory=RetryDecision)
    """The decision about the task, if there is no doubt."""
    of_mate: bool = False
    """Whether it is that of a teammate inside the agent's process, which does not come back with it."""


@dataclass(frozen=True, kw_only=True)
class StaleMarker:
    """A one-word file of the plugin: its content, and the content that it should have (None: it should not exist)."""

    path: Path
    expected_digest: str
    word: str | None


@dataclass(frozen=True, kw_only=True)
class HeldResources:
    """The resources that a dead agent still holds."""

    tasks: tuple[HeldTask, ...] = ()
    plans: tuple[HeldTask, ...] = ()
    left: Mapping[str, list[str]] = field(default_factory=dict)
    """The folders of its lists, with the tasks in progress that stay, since others may own them."""
    leases: tuple[Lease, ...] = ()
    leftovers: Leftovers = field(default_factory=Leftovers)
    unreadable: tuple[Path, ...] = ()
    """Unreadable files that may name work of the agent: tasks of its lists, its team, the plugin's plans."""
    health: Path | None = None
    panes: Path | None = None
    pids: Path | None = None
    markers: tuple[StaleMarker, ...] = ()

    @property
    def work(self) -> tuple[HeldTask, ...]:
        """All that other agents could do instead: tasks and plans."""
        return (*self.tasks, *self.plans)


class AttemptEnd(NamedTuple):
    """The end of a dead agent's attempts: the cause, the rest of its rate-limit window, and whether in order."""

    cause: str
    hold_s: float | None = None
    clean: bool = False


DIED = "died"
"""The cause of a failed attempt whose agent is dead, or has stopped without finishing it."""

TERMINATED = "terminated by the supervisor"
"""The cause if the supervisor terminated the agent: the attempt is not charged."""

NAMESAKE = "another agent of that name is alive and may be working on it"
"""The doubt if two agents may own the task: the file holds no times and wall clocks jump, so no clock decides."""


class HeldResourcesFinder:
    """Finds the resources that dead agents of one project still hold. Read-only."""

    def __init__(
        self, lists: TaskLists, paths: Paths, processes: Processes, scanner: ProcessScanner, queue: RetryPolicy
    ) -> None:
        self._queue = queue
        self._lists = lists
        self._paths = paths
        self._processes = processes
        self._scanner = scanner
        self._before: tuple[Trees, Mapping[ProcessId, Descent]] | None = None
        """The trees from the last daemon: they count until the scanner has seen more."""

    def of(
        self,
        agent: Agent,
        snapshot: ProjectSnapshot,
        mates: Sequence[Agent],
        others: Sequence[Agent],
        liveness: Callable[[Agent], Liveness],
        crash: Crash | None = None,
        terminated: bool = False,
    ) -> HeldResources:
        """The resources of one dead agent and of the teammates inside its process.

        ``others`` are all agents that are not known dead, and ``liveness`` tells their state. ``crash`` is the
        investigated death, if known, and ``terminated`` says that the supervisor ended the agent: the decision about
        its tasks depends on both.
        """
        if terminated:
            end = AttemptEnd(TERMINATED, clean=True)
        elif crash is not None:
            end = AttemptEnd(crash.cause or DIED, crash.hold_s, clean=crash.clean)
        else:
            end = AttemptEnd(DIED)
        dead = [agent, *mates, *snapshot.aliases(agent)]
        tasks, left, unreadable = self._tasks(dead, others, liveness, end, snapshot)
        return HeldResources(
            tasks=tasks,
            left=left,
            plans=tuple(plan for gone in dead for plan in self._plans(gone, others, end)),
            leases=tuple(lease for gone in dead for lease in self._leases(gone, others)),
            leftovers=self._leftovers(agent),
            unreadable=(*unreadable, *self._lists.unreadable(agent, snapshot)),
            **self.registry_files(agent, others, snapshot),
        )

    def _tasks(
        self,
        dead: Sequence[Agent],
        others: Sequence[Agent],
        liveness: Callable[[Agent], Liveness],
        end: AttemptEnd,
        snapshot: ProjectSnapshot,
    ) -> tuple[tuple[HeldTask, ...], dict[str, list[str]], tuple[Path, ...]]:
        """The tasks that a dead agent may own, in every list that it worked on, and those that are left to others.

        A task that another agent may own is left to it. If it bears the dead agent's name, that is a doubt.
        """
        tasks: list[HeldTask] = []
        left: dict[str, list[str]] = {}
        unreadable: dict[Path, None] = {}
        gone = [snapshot.worker(agent, Liveness.DEAD) for agent in dead]
        for folder in dict.fromkeys(folder for agent in dead for folder in self._lists.of(agent, snapshot)):
            at_work, bad = self._lists.at_work(folder)
            unreadable |= dict.fromkeys(bad)
            for task in at_work:
                if not any(agent.is_session or agent.bears(task.owner) for agent in dead):
                    continue
                may_own = (other for other in others if other.is_session or other.bears(task.owner))
                here = [other for other in may_own if self._lists.works_on(other, folder, snapshot)]
                dead_here = [w for w in gone if self._lists.works_on(w.agent, folder, snapshot)]
                others_here = [snapshot.worker(other, liveness(other)) for other in here]
                owner = ownership(task, [*dead_here, *others_here])
                stays = left.setdefault(str(folder), [])
                if owner.state is OwnerState.DEAD:
                    of_mate = any(gone.source == "team" and gone.bears(task.owner) for gone in dead)
                    tasks.append(HeldTask(task=task, decision=self._decide(task, end), of_mate=of_mate))
                    continue
                stays.append(task.id)
                if any(agent.bears(task.owner) for agent in dead):
                    tasks.append(HeldTask(task=task, doubt=NAMESAKE, decision=self._decide(task, end)))
        return tuple(tasks), left, tuple(unreadable)

    def _decide(self, task: Task, end: AttemptEnd) -> RetryDecision:
        return self._queue.decide(task, end.cause, end.hold_s, clean=end.clean)

    def _plans(self, agent: Agent, others: Iterable[Agent], end: AttemptEnd) -> tuple[HeldTask, ...]:
        return tuple(
            HeldTask(task=plan, decision=self._decide(plan, end))
            for plan in self._lists.plans_of(agent)
            if not any(execution_state.works_on(other.name, other.team, plan.number) for other in others)
        )

    def _leases(self, agent: Agent, others: Iterable[Agent]) -> tuple[Lease, ...]:
        """The leases of the agent.

        A lease names only its holder: while any agent of the project has that name, its leases stay (and may expire).
        """
        if any(other.name == agent.name for other in others):
            return ()
        return tuple(lease for lease in readable_leases(self._paths.planning) if agent.bears(lease.owner))

    def _leftovers(self, agent: Agent) -> Leftovers:
        if agent.process is None or agent.lead is not None:
            return Leftovers()
        tree = self.trees([agent.process]).get(agent.process, ())
        sampled = self._processes.leftovers(agent.process, tree)
        earlier = self._earlier()[1].get(agent.process, Descent())
        found = self._scanner.find_descendants(agent.process, agent.session, earlier)
        sweep, stubborn = found.sweep, self._processes.stubborn
        children = {*sampled.roots, *found.children} - stubborn
        started = {*children, *sampled.uncertain, *found.processes} - stubborn
        below = {process for child in children for process, _ in sweep.tree(child)}
        left = daemons(sweep, started, found.sessions, self._processes.backend, found.nohup) - children - below
        pids = {process.pid for process in started}
        roots = [
            process
            for process in started - left - below
            if self._processes.liveness(process) is not Liveness.DEAD  # the sweep may be older than its end
            and (process in children or (sweep.has(process) and sweep.facts[process.pid].parent not in pids))
        ]
        ended = {*roots, *(process for root in roots for process, _ in sweep.tree(root))}
        return Leftovers(tuple(sorted(roots)), tuple(sorted(left)), self._whole_sessions(found, ended))

    def _whole_sessions(self, found: Descendants, ended: Collection[ProcessId]) -> tuple[int, ...]:
        """The sessions of its tools in which everything that runs is to be ended."""
        members: dict[int, set[ProcessId]] = {session: set() for session in found.sessions}
        for pid, facts in found.sweep.facts.items():
            if facts.session in members and not facts.zombie:
                members[facts.session].add(found.sweep.id(pid))
        others = {session: inside - {*ended} for session, inside in members.items() if inside}
        return tuple(
            sorted(
                session
                for session, rest in others.items()
                if all(self._processes.liveness(process) is Liveness.DEAD for process in rest)
            )
        )

    def trees(self, wanted: Iterable[ProcessId]) -> Trees:
        """The last known trees, from the process scan or from an earlier daemon.

        Trees without descendants are left out.
        """
        before, now = self._earlier()[0], self._scanner.trees
        return {process: tree for process in wanted if (tree := now.get(process) or before.get(process))}

    def descents(self, wanted: Iterable[ProcessId]) -> dict[ProcessId, Descent]:
        """The last known descendants outside the trees.

        What an earlier daemon knew stays, since the kernel does not tell it again: which sessions the tools of an agent
        have led, and which processes have lost their parents.
        """
        before, now = self._earlier()[1], self._scanner.descent.known
        known: dict[ProcessId, Descent] = {}
        for process in wanted:
            old, new = before.get(process, Descent()), now.get(process, Descent())
            orphans = {*new.orphans, *(p for p in old.orphans if self._processes.liveness(p) is not Liveness.DEAD)}
            descent = Descent(old.sessions | new.sessions, tuple(sorted(orphans)))
            if descent != Descent():
                known[process] = descent
        return known

    def _earlier(self) -> tuple[Trees, Mapping[ProcessId, Descent]]:
        if self._before is None:
            data = read_or_none(self._paths.trees, LOG_LIMIT) or b""
            self._before = own_files.load_trees(data), own_files.load_descents(data)
        return self._before

    def registry_files(self, agent: Agent, others: Sequence[Agent], snapshot: ProjectSnapshot) -> dict[str, Any]:
        """The agent's entries in the plugin's registry files, as fields of ``HeldResources``."""
        planning = self._paths.planning
        pids = frozenset({agent.pid}) if agent.pid and all(o.pid != agent.pid for o in others) else frozenset[int]()
        health = next((path for health, path in snapshot.health_files if health.pid in pids), None)
        lists = {
            name: planning / name
            for name in (plugin.AGENT_PIDS, plugin.AGENT_PANES)
            if plugin_agents.mentions_pid(read_or_none(planning / name, plugin_agents.LIST_LIMIT) or b"", pids)
        }
        counted = plugin.AGENT_PIDS in lists or health is not None
        return {
            "health": health,
            "pids": lists.get(plugin.AGENT_PIDS),
            "panes": lists.get(plugin.AGENT_PANES),
            "markers": tuple(self._markers(agent, others, counted, unknown_pids=snapshot.has_unknown_pids)),
        }

    def _listed_pids(self) -> set[int | None] | None:
        """The pids that the plugin lists; None if its list cannot be read."""
        try:
            return {*plugin_agents.agent_pids(read(self._paths.agent_pids, plugin_agents.LIST_LIMIT) or b"")}
        except OSError:
            return None

    def _markers(
        self, agent: Agent, others: Sequence[Agent], counted: bool, *, unknown_pids: bool
    ) -> Iterable[StaleMarker]:
        """``.active-agent`` and its count.

        Both are removed with the last agent. Otherwise they follow the agents that the plugin counted. While the
        plugin's files name pids that are unknown here, agents in a container may be among them.
        """
        role_path, count_path = self._paths.active_agent, self._paths.active_agent_count
        role, count = read_or_none(role_path), read_or_none(count_path)
        if not others and not unknown_pids:
            for path, data in ((role_path, role), (count_path, count)):
                if data is not None:
                    yield StaleMarker(path=path, expected_digest=str(digest(data)), word=None)
            return
        if not counted or not others:
            return
        number = int(count) if count is not None and count.strip().isdigit() and len(count) < 9 else None
        known = self._listed_pids()
        if count is not None and number and known is not None and number > max(1, len(known - {agent.pid})):
            yield StaleMarker(path=count_path, expected_digest=str(digest(count)), word=str(number - 1))
        named = plugin_agents.normal_role(role.decode("utf-8", "replace")) if role is not None else None
        if role is not None and named == agent.role and all(other.role != named for other in others):
            newest = max(others, key=lambda other: other.since)
            yield StaleMarker(path=role_path, expected_digest=str(digest(role)), word=newest.role)
