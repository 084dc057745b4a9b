"""The process scan: the coding agents on this machine, and the process tree of each.

A tree has to be known *before* its agent dies, since orphans carry no mark of their origin. The process table is
sampled every second, but only when a process was started since the last sample. An idle machine costs one small read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio

from yolo_supervisor.clock import until_next
from yolo_supervisor.formats import claude
from yolo_supervisor.formats.json import same_path
from yolo_supervisor.formats.own import Descent
from yolo_supervisor.inventory.descent import Descendants, DescentTracker
from yolo_supervisor.models import Liveness, Pane, ProcessId
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.births import Births
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.process_table import Sweep, Tree
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import pane_of

YOUNG_S = 2.0
"""A process this young may still be the copy of its parent that every program starts as: it is read again."""

BORN_S = 0.2
"""The shortest pause between two samples, after a birth in an agent's tree."""

BATCH_S = 0.05
"""The pause between two readings of births."""

LOAD_FACTOR = 20
"""After a long sweep (thousands of processes) the scanner pauses this many times its length: at most 5 % of a core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentProcess:
    """A running coding agent, by its command line."""

    process: ProcessId
    flags: claude.Flags | None
    folder: Path
    claude_dir: Path | None
    pane: Pane | None
    task_list: str | None = None
    """The task list that its environment names, whatever its session or team."""


class ProcessScanner:
    """The latest sample. ``generation`` grows whenever an agent has appeared or gone."""

    def __init__(self, processes: Processes, births: Births | None = None) -> None:
        self.processes = processes
        self.births = births or Births(is_wanted=False)
        self.descent = DescentTracker(processes, self.births)
        self.agents: dict[ProcessId, AgentProcess] = {}
        self.trees: dict[ProcessId, Tree] = {}
        self.generation = 0
        self._seen: dict[ProcessId, AgentProcess] = {}
        """The agents, and their short-lived copies: an agent that starts a program is copied for a moment."""
        self._known: set[ProcessId] = set()
        self._young: set[ProcessId] = set()
        self._tracked: set[ProcessId] = set()
        self._without_tree: set[ProcessId] = set()
        """The processes that are tracked since the last sample."""
        self._born = anyio.Event()
        """Set when an agent has got a new descendant since the last sample."""
        self._newest: int | None = None
        self._started = 0

    @property
    def tracked(self) -> Collection[ProcessId]:
        """The processes of all agents that any project knows."""
        return self._tracked

    def track(self, process: ProcessId) -> None:
        """Record this process's tree from now on."""
        if process not in self._tracked:
            self._tracked.add(process)
            self._without_tree.add(process)
            self._newest = None  # the next sample must read its tree, even if nothing starts
            self.descent.track(process)

    def catch_up(self) -> bool:
        """Read the trees of processes that are tracked since the last sample; whether there was one."""
        if not self._without_tree:
            return False
        self.sample()
        return True

    def drop(self, process: ProcessId) -> None:
        self._tracked.discard(process)
        self._without_tree.discard(process)
        self.trees.pop(process, None)
        self.descent.drop(process)

    def quiet(self) -> bool:
        """Whether no process was started since the last sample except our commands."""
        newest, started = self.processes.backend.newest(), subprocesses.started
        if newest is None or self._newest is None or self._young:
            quiet = False
        else:
            quiet = newest - self._newest == started - self._started
        self._newest, self._started = newest, started
        return quiet

    def sample(self) -> None:
        """Sample the whole process table."""
        self.descent.begin()
        self._take(self.processes.sweep())

    async def sample_gently(self) -> None:
        """Sample without a long pause of the event loop, even with thousands of processes."""
        self.descent.begin()
        by_pid: dict[int, ProcessFacts] = {}
        for number, facts in enumerate(self.processes.each()):
            by_pid[facts.pid] = facts
            if number % 64 == 63:
                await anyio.sleep(0)
        self._take(Sweep(self.processes.boot, by_pid))

    def _take(self, sweep: Sweep) -> None:
        alive = {sweep.id(pid) for pid, facts in sweep.facts.items() if not facts.zombie}
        unread = (alive - self._known) | (self._young & alive)
        read, failed = self._read_all(unread, sweep)
        kept = {process: seen for process, seen in self._seen.items() if process in alive and process not in unread}
        self._seen = {**kept, **read}
        agents = _without_copies(self._seen, sweep)
        self.generation += agents != self.agents
        self.agents = agents
        now = time.time()
        started_at = self.processes.backend.started_at
        self._young = failed | {process for process in unread if now - started_at(process.started) < YOUNG_S}
        self._known = alive - failed
        trees: dict[ProcessId, Tree] = {}
        for process in self._tracked & alive:
            tree = sweep.tree(process, (self._tracked | self.agents.keys()) - {process})
            # it may have died in the middle of the sweep: then its children have lost their parent
            if tree == self.trees.get(process) or self.processes.liveness(process) is Liveness.ALIVE:
                self.trees[process] = trees[process] = tree
        self._without_tree -= trees.keys()
        others = self.agents.keys() - trees.keys()
        below = {child for other in others for child, _ in sweep.tree(other)}
        self.descent.update(sweep, trees, others | below)

    def find_descendants(self, agent: ProcessId, session: str | None, earlier: Descent) -> Descendants:
        """Find the processes that a dead agent has started and that still run (see ``DescentTracker.find``)."""
        return self.descent.find(agent, session, earlier, {*self.agents, *self._tracked})

    def _read_all(
        self, processes: Iterable[ProcessId], sweep: Sweep
    ) -> tuple[dict[ProcessId, AgentProcess], set[ProcessId]]:
        """The agents among the processes, and the unreadable processes.

        Unreadable ones are read again at the next sample.
        """
        read: dict[ProcessId, AgentProcess] = {}
        failed: set[ProcessId] = set()
        for process in processes:
            try:
                seen = self._read(process, sweep)
            except OSError:
                failed.add(process)
            else:
                if seen is not None:
                    read[process] = seen
        return read, failed

    def _may_be_agent(self, process: ProcessId, sweep: Sweep) -> bool:
        """Whether the process may be an agent.

        Processes of other users cannot, nor can a tmux server, whose command line may hold that of its first agent.
        """
        ours = self.processes.backend.owner(process.pid) == os.geteuid()
        return ours and not sweep.facts[process.pid].comm.startswith("tmux")

    def read_now(self, process: ProcessId, *, is_agent: bool = False) -> AgentProcess | None:
        """The agent that the process's command line shows now: the latest sample may be older than the process.

        ``is_agent`` says that the process is known to be one, whatever its command line.
        """
        try:
            facts = self.processes.backend.facts(process.pid)
            if facts is None or facts.started != process.started:
                return None
            return self._read(process, Sweep(self.processes.boot, {process.pid: facts}), is_agent=is_agent)
        except OSError:
            return None

    def _read(self, process: ProcessId, sweep: Sweep, *, is_agent: bool = False) -> AgentProcess | None:
        """The agent that the process's command line shows, or None.

        OSError if it cannot be read.
        """
        if not self._may_be_agent(process, sweep):
            return None
        backend = self.processes.backend
        argv = backend.argv(process.pid)
        flags = claude.flags(argv)
        if flags is None and not is_agent and not (argv and claude.looks_like_agent(argv, "")):
            return None
        environment = backend.environment(process.pid)
        return AgentProcess(
            process=process,
            flags=flags,
            folder=same_path(backend.folder(process.pid)),
            claude_dir=claude.config_dir(environment),
            pane=pane_of(environment),
            task_list=environment.get(claude.TASK_LIST_VARIABLE) or None,
        )

    async def run(self, every_s: Callable[[], float], sampled: Callable[[bool], None]) -> None:
        """Sample for ever.

        ``sampled`` is called after each sample, with True if an agent is new or gone.
        """
        while True:
            pause_s, least_s = until_next(every_s()), BORN_S
            if not self.quiet():
                began, generation = time.monotonic(), self.generation
                with contextlib.suppress(OSError):  # no descriptors left, for example: retried at the next sample
                    await self.sample_gently()
                least_s = max(least_s, LOAD_FACTOR * (time.monotonic() - began))
                sampled(self.generation != generation)
            self._born = anyio.Event()
            await anyio.sleep(least_s)
            with anyio.move_on_after(pause_s - least_s):
                await self._born.wait()

    async def follow_births(self) -> None:
        """Read the births that the kernel reports, for ever. After one in an agent's tree the next sample is early."""
        while True:
            await self.births.wait()
            changes = self.births.lineages.changes
            self.descent.read_births()
            if self.births.lineages.changes != changes:
                self._born.set()
            await anyio.sleep(BATCH_S)  # many at once are cheaper


def _without_copies(seen: Mapping[ProcessId, AgentProcess], sweep: Sweep) -> dict[ProcessId, AgentProcess]:
    """Remove copies: of a parent and child with one command line, only one is the agent.

    It is the parent, whose copy the child is until it becomes another program. It is the child where the parent is
    another program that only started it.
    """
    agents = dict(seen)
    for process, agent in seen.items():
        facts = sweep.facts[process.pid]
        parent = sweep.facts.get(facts.parent)
        above = seen.get(sweep.id(parent.pid)) if parent else None
        if parent and above and agent.flags and above.flags == agent.flags:
            agents.pop(process if parent.comm == facts.comm else above.process, None)
    return agents
