"""The descendants of each agent that its process tree does not show: those whose parents have ended.

They have to be known before the agent dies. Where the kernel reports births (see ``births``) every descendant is known.
Elsewhere the sessions of the agent's tools are: a process that a tool has forked before it exited is still in them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from yolo_supervisor.formats import claude
from yolo_supervisor.formats.own import Descent
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.system.births import Births
from yolo_supervisor.system.daemons import ignores_hangup
from yolo_supervisor.system.process_table import Sweep, Tree
from yolo_supervisor.system.processes import Processes

NO_DESCENT = Descent()

LOOKS, LOOK_S = 5, 0.05
"""The most reads of the process table for one agent, and the seconds for which agents that die at once share a read."""

REMEMBERED_S = 60.0
"""Seconds for which a session without processes is remembered: a sample may miss processes that fork and exit."""

CHAIN_SEEN_S, CHAIN_AGE_S = 3.0, 2.0
"""A session that was seen so long ago, and in which every process is younger than this, holds no daemon: one stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Descendants:
    """The processes that an agent, or a tool of it, has started, and that still run."""

    sweep: Sweep
    processes: frozenset[ProcessId] = frozenset()
    children: frozenset[ProcessId] = frozenset()
    """Those that the agent itself has started, as far as the kernel has reported their births."""
    sessions: frozenset[int] = frozenset()
    """The sessions of its tools."""
    nohup: bool = False
    """Whether the agent itself ignores SIGHUP, as does everything that it starts then."""


class Leaderless(NamedTuple):
    """The times of the first and the last sample of a session whose leader has ended, on the monotonic clock."""

    first_s: float
    last_s: float


@dataclass(slots=True)
class Look:
    """The process table at the death of an agent."""

    at_s: float
    sweep: Sweep
    by_session: Mapping[int, Collection[int]]
    spared: frozenset[ProcessId]
    """Other agents and programs that host sessions, with everything below them."""
    born: Mapping[ProcessId, Collection[ProcessId]]
    """The descendants of each agent by their births."""
    children: Mapping[ProcessId, set[ProcessId]]
    """Those of them that the agent itself has started."""
    environments: dict[ProcessId, dict[str, str]] = field(default_factory=dict)
    """The environments of orphans."""
    vanished: bool = False
    """Whether an orphan in a session without a leader has ended before its environment could be read."""


class DescentTracker:
    """Follows the descendants of the tracked agents."""

    def __init__(self, processes: Processes, births: Births) -> None:
        self._processes = processes
        self._births = births
        self.known: dict[ProcessId, Descent] = {}
        """The descendants outside the trees at the last sample."""
        self._leaders: dict[ProcessId, dict[int, int]] = {}
        """The sessions that each agent's tools were seen to lead: the leader's pid and start time."""
        self._nohup: set[ProcessId] = set()
        """The agents that ignore SIGHUP."""
        self._environments: dict[ProcessId, dict[str, str]] = {}
        self._reapers: dict[ProcessId, set[ProcessId]] = {}
        """The ancestors of each agent that may adopt orphans: a service manager has no terminal, a shell has."""
        self._linked: frozenset[int] = frozenset()
        self._leaderless: dict[int, Leaderless] = {}
        self._last_look: Look | None = None

    def track(self, agent: ProcessId) -> None:
        if self._births.open():
            self.read_births()
            self._births.lineages.add(agent, (), self._is_alive)
        if ignores_hangup(agent.pid, self._processes.backend):
            self._nohup.add(agent)
        with contextlib.suppress(OSError):
            self._environments[agent] = self._processes.backend.environment(agent.pid)
            self._reapers[agent] = set(self._ancestors(agent.pid))

    def drop(self, agent: ProcessId) -> None:
        self.known.pop(agent, None)
        self._leaders.pop(agent, None)
        self._nohup.discard(agent)
        self._environments.pop(agent, None)
        self._reapers.pop(agent, None)
        self._births.lineages.discard(agent)
        if not self._births.lineages.tools:
            self._births.close()

    def read_births(self) -> bool:
        """Read the births that the kernel has reported; whether that is all."""
        return not self._births.is_open or self._births.read(self._was_born)

    def begin(self) -> None:
        """Prepare a sample of the process table."""
        self.read_births()
        self._linked = frozenset(self._births.lineages.links)

    def update(self, sweep: Sweep, trees: Mapping[ProcessId, Tree], others: Collection[ProcessId]) -> None:
        """Learn from a sample: the trees of the living agents. ``others`` are processes that belong to none of them."""
        if self.read_births():
            self._births.lineages.prune(sweep, self._linked)
        by_session, now_s = _by_session(sweep), time.monotonic()
        without = {session for session in by_session if session not in sweep.facts or sweep.facts[session].zombie}
        kept = {session: seen for session, seen in self._leaderless.items() if now_s - seen.last_s < REMEMBERED_S}
        self._leaderless = kept | {
            session: Leaderless(kept[session].first_s if session in kept else now_s, now_s) for session in without
        }
        for agent, tree in trees.items():
            if self._births.is_open:
                self._births.lineages.add(agent, tree, self._is_alive)
            led = {child.pid: child.started for child, parent in tree if self._is_tool(child, parent, agent, sweep)}
            leaders = {**self._leaders.get(agent, {}), **led}
            # while a session has a process, no other process gets its leader's pid
            self._leaders[agent] = {pid: started for pid, started in leaders.items() if pid in by_session}
        listed = {*others, *trees, *(process for tree in trees.values() for process, _ in tree)}
        born, since = self._births.lineages.by_agent(sweep), self._born_since(sweep)
        for agent in trees:
            outside = {*self._in_sessions(agent, sweep, by_session), *born.get(agent, ()), *since.get(agent, ())}
            self.known[agent] = Descent(frozenset(self._sessions(agent)), tuple(sorted(outside - listed)))

    def _born_since(self, sweep: Sweep) -> dict[ProcessId, list[ProcessId]]:
        """The descendants of each agent that were born after the sweep, and still run."""
        found: dict[ProcessId, list[ProcessId]] = {}
        for pid, link in self._births.lineages.links.items():
            if pid not in sweep.facts and (started := self._started(pid, link.born)) is not None:
                found.setdefault(link.agent, []).append(ProcessId(pid, started, self._processes.boot))
        return found

    @staticmethod
    def _is_tool(child: ProcessId, parent: int, agent: ProcessId, sweep: Sweep) -> bool:
        return parent == agent.pid and sweep.facts[child.pid].session == child.pid

    def _sessions(self, agent: ProcessId) -> set[int]:
        return {*self._leaders.get(agent, ()), *self._births.lineages.tools.get(agent, ())}

    def _in_sessions(
        self, agent: ProcessId, sweep: Sweep, by_session: Mapping[int, Collection[int]]
    ) -> Iterator[ProcessId]:
        """The processes in the sessions that the agent's tools were seen to lead."""
        for leader, started in self._leaders.get(agent, {}).items():
            yield from (sweep.id(pid) for pid in by_session.get(leader, ()) if sweep.facts[pid].started >= started)

    def find(
        self, agent: ProcessId, session: str | None, earlier: Descent, others: Collection[ProcessId]
    ) -> Descendants:
        """Find the processes that a dead agent has started and that still run. ``earlier`` is an earlier daemon's.

        Other agents and programs that host sessions (tmux) are left out, with everything below them.
        """
        known = self.known.get(agent, NO_DESCENT)
        for attempt in range(LOOKS):
            look = self._look(agent, others, is_new=attempt > 0)
            found = {*self._in_sessions(agent, look.sweep, look.by_session), *look.born.get(agent, ())}
            found |= {process for process in (*known.orphans, *earlier.orphans) if look.sweep.has(process)}
            marked = self._marked(agent, session, look) - found
            chains = set[int]() if self._has_double(agent) else self._chains(look, marked)
            if not look.vanished:
                break
        return Descendants(
            sweep=look.sweep,
            processes=frozenset((found | marked) - look.spared),
            children=frozenset((found & look.children.get(agent, set())) - look.spared),
            sessions=frozenset(self._sessions(agent) | known.sessions | earlier.sessions | chains),
            nohup=agent in self._nohup,
        )

    def _look(self, agent: ProcessId, others: Collection[ProcessId], is_new: bool) -> Look:
        """The process table for an agent that is dead. Several that die at once share one."""
        now_s = time.monotonic()
        last = self._last_look
        if last is not None and not is_new and now_s - last.at_s < LOOK_S and not last.sweep.has(agent):
            return last
        self.read_births()
        links = dict(self._births.lineages.links)
        sweep = self._processes.sweep()
        self.read_births()
        spared = {sweep.id(pid) for pid, facts in sweep.facts.items() if self._processes.hosts_sessions(facts)}
        spared |= {other for other in others if sweep.has(other)}
        spared |= {below for other in spared for below, _ in sweep.tree(other)}
        born = self._births.lineages.by_agent(sweep)
        children = {
            parent: {child for child in below if (link := links.get(child.pid)) and link.is_child}
            for parent, below in born.items()
        }
        look = Look(now_s, sweep, _by_session(sweep), frozenset(spared), born, children)
        self._read_orphans(look)
        self._last_look = look
        return look

    def _read_orphans(self, look: Look) -> None:
        """Read the environments of our user's processes whose parents have ended."""
        backend, user = self._processes.backend, os.geteuid()
        reapers = {process for ancestors in self._reapers.values() for process in ancestors}
        oldest = min((agent.started for agent in self._environments), default=0)
        for pid, facts in look.sweep.facts.items():
            process, parent = look.sweep.id(pid), look.sweep.facts.get(facts.parent)
            is_orphan = parent is None or parent.zombie or parent.pid == 1 or look.sweep.id(parent.pid) in reapers
            if facts.zombie or not is_orphan or facts.started < oldest or process in look.spared:
                continue
            try:
                if backend.owner(pid) == user:
                    look.environments[process] = backend.environment(pid)
            except (FileNotFoundError, ProcessLookupError):
                look.vanished |= facts.session in self._leaderless
            except OSError:
                continue

    def _marked(self, agent: ProcessId, session: str | None, look: Look) -> set[ProcessId]:
        """Orphans that have inherited the agent's environment, and were started after it.

        That proves little: whatever a person starts from the shell of an agent has its environment, too.
        """
        own = self._environments.get(agent)
        names = dict(zip(claude.CLIENT_VARIABLES, (str(agent.pid), session), strict=True))
        return {
            process
            for process, environment in look.environments.items()
            if process.started >= agent.started
            and (
                (own and own.items() <= environment.items())
                or any(name is not None and environment.get(variable) == name for variable, name in names.items())
            )
        }

    def _ancestors(self, pid: int) -> Iterator[ProcessId]:
        """The ancestors of a process that have no terminal."""
        seen = {pid}
        facts = self._processes.backend.facts(pid)
        while facts is not None and facts.parent > 1 and facts.parent not in seen:
            seen.add(facts.parent)
            facts = self._processes.backend.facts(facts.parent)
            if facts is not None and not facts.terminal:
                yield ProcessId(facts.pid, facts.started, self._processes.boot)

    def _chains(self, look: Look, marked: Collection[ProcessId]) -> set[int]:
        """The sessions that hold nothing but a chain of processes that fork and exit, and that were found by marks.

        The leader has ended, all that runs in it is marked and new, and yet the session is old.
        """
        now_s, now = time.monotonic(), time.time()
        chains: set[int] = set()
        facts = look.sweep.facts
        for session in {facts[process.pid].session for process in marked}:
            seen = self._leaderless.get(session)
            if seen is None or now_s - seen.first_s < CHAIN_SEEN_S:
                continue
            members = look.by_session[session]
            ages = (now - self._processes.backend.started_at(facts[pid].started) for pid in members)
            others = {look.sweep.id(pid) for pid in members if facts[pid].parent not in members} - {*marked}
            if all(age < CHAIN_AGE_S for age in ages) and not any(map(self._is_alive, others)):
                chains.add(session)
        return chains

    def _has_double(self, agent: ProcessId) -> bool:
        """Whether another agent has the same environment, so that it does not say whose process one is."""
        own = self._environments.get(agent)
        return any(own == environment for other, environment in self._environments.items() if other != agent)

    def _is_alive(self, process: ProcessId) -> bool:
        return self._processes.liveness(process) is Liveness.ALIVE

    def _was_born(self, pid: int, born: int) -> bool:
        return self._started(pid, born) is not None

    def _started(self, pid: int, born: int) -> int | None:
        """The start time of a process that was born at ``born`` or before, and still runs, in clock ticks."""
        try:
            facts = self._processes.backend.facts(pid)
        except OSError:
            return None
        return facts.started if facts is not None and not facts.zombie and facts.started <= born else None


def _by_session(sweep: Sweep) -> dict[int, list[int]]:
    """The pids in each session."""
    by_session: dict[int, list[int]] = {}
    for pid, facts in sweep.facts.items():
        if not facts.zombie:
            by_session.setdefault(facts.session, []).append(pid)
    return by_session
