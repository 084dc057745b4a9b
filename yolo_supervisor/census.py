"""The census: which coding agents run on this machine, and who is in the tree of each.

A tree has to be known *before* its agent dies, since orphans carry no mark of where they came from. So the process
table is sampled every second, but only when something was started since the last sample: idle, that is one small read.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import anyio

from yolo_supervisor import commands
from yolo_supervisor.formats import claude, same_path
from yolo_supervisor.processes import Facts, Processes, Sweep, Tree
from yolo_supervisor.records import Pane, ProcessId
from yolo_supervisor.tmux import pane_of

YOUNG_S = 2.0
"""A process this young may still be the copy of its parent that every program starts as: it is looked at again."""

LOAD_FACTOR = 20
"""After a sweep that took long (thousands of processes) we wait this many times its length: at most 5 % of a core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A running coding agent, by its command line."""

    process: ProcessId
    flags: claude.Flags | None
    folder: Path
    claude_dir: Path | None
    pane: Pane | None


class Census:
    """The latest sample. ``generation`` grows whenever an agent appeared or went."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.agents: dict[ProcessId, Seen] = {}
        self.trees: dict[ProcessId, Tree] = {}
        self.generation = 0
        self._known: set[ProcessId] = set()
        self._young: set[ProcessId] = set()
        self._tracked: set[ProcessId] = set()
        self._newest: int | None = None
        self._started = 0

    def track(self, process: ProcessId) -> None:
        """Remember this process's tree from now on."""
        if process not in self._tracked:
            self._tracked.add(process)
            self._newest = None  # its tree is wanted at the next sample, even if nothing starts

    def drop(self, process: ProcessId) -> None:
        self._tracked.discard(process)
        self.trees.pop(process, None)

    def quiet(self) -> bool:
        """Whether nothing was started since the last sample but our own commands."""
        newest, started = self.processes.kernel.newest(), commands.started
        if newest is None or self._newest is None or self._young:
            quiet = False
        else:
            quiet = newest - self._newest == started - self._started
        self._newest, self._started = newest, started
        return quiet

    def sample(self) -> None:
        """Look at the whole process table."""
        self._take(self.processes.sweep())

    async def sample_gently(self) -> None:
        """The same without holding up the loop for long where there are thousands of processes."""
        found: dict[int, Facts] = {}
        for number, facts in enumerate(self.processes.each()):
            found[facts.pid] = facts
            if number % 64 == 63:
                await anyio.sleep(0)
        self._take(Sweep(self.processes.boot, found))

    def _take(self, sweep: Sweep) -> None:
        alive = {sweep.id(pid) for pid, facts in sweep.facts.items() if not facts.zombie}
        gone = self.agents.keys() - alive
        for process in gone:
            del self.agents[process]
        now = time.time()
        changed = bool(gone)
        for process in (alive - self._known) | (self._young & alive):
            changed |= self._look_at(process, sweep)
        self._young = {
            process
            for process in (alive - self._known) | (self._young & alive)
            if now - self.processes.kernel.started_at(process.started) < YOUNG_S
        }
        self._known = alive
        for process in self._tracked & alive:
            spare = (self._tracked | self.agents.keys()) - {process}
            self.trees[process] = sweep.tree(process, spare)
        self.generation += changed

    def _look_at(self, process: ProcessId, sweep: Sweep) -> bool:
        """Read the command line of one process; whether that changed what we know."""
        before = self.agents.pop(process, None)
        with contextlib.suppress(OSError):
            if self._may_be_agent(process, sweep) and (seen := self._read(process)) is not None:
                self._add(seen, sweep)
        return self.agents.get(process) != before

    def _may_be_agent(self, process: ProcessId, sweep: Sweep) -> bool:
        """Not so for others' processes, nor for a tmux server, whose command line may hold its first agent's."""
        ours = self.processes.kernel.owner(process.pid) == os.geteuid()
        return ours and not sweep.facts[process.pid].comm.startswith("tmux")

    def _read(self, process: ProcessId) -> Seen | None:
        kernel = self.processes.kernel
        argv = kernel.argv(process.pid)
        flags = claude.flags(argv)
        if flags is None and not (argv and claude.looks_like_agent(argv, "")):
            return None
        environment = kernel.environment(process.pid)
        return Seen(
            process=process,
            flags=flags,
            folder=same_path(kernel.folder(process.pid)),
            claude_dir=claude.config_dir(environment),
            pane=pane_of(environment),
        )

    def _add(self, seen: Seen, sweep: Sweep) -> None:
        """Of a parent and child with one command line only one is the agent: the parent, whose copy the child is until
        it becomes another program; but the child, where the parent is another program that only started it."""
        facts = sweep.facts[seen.process.pid]
        parent = sweep.facts.get(facts.parent)
        above = self.agents.get(sweep.id(parent.pid)) if parent else None
        if parent is None or above is None or seen.flags is None or above.flags != seen.flags:
            self.agents[seen.process] = seen
        elif parent.comm != facts.comm:
            del self.agents[above.process]
            self.agents[seen.process] = seen

    async def run(self, every_s: Callable[[], float], sampled: Callable[[bool], None]) -> None:
        """Sample for ever; ``sampled`` is called after each sample, and told whether an agent is new or gone."""
        while True:
            pause_s = every_s()
            if not self.quiet():
                began, generation = time.monotonic(), self.generation
                await self.sample_gently()
                pause_s = max(pause_s, LOAD_FACTOR * (time.monotonic() - began))
                sampled(self.generation != generation)
            await anyio.sleep(pause_s)


def within(folder: Path, project: Path) -> bool:
    """Whether the folder is the project or inside it (both as the kernel spells them)."""
    inner, outer = str(folder), str(project)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


def pick(trees: dict[ProcessId, Tree], wanted: Iterable[ProcessId]) -> dict[ProcessId, Tree]:
    """Those trees that are wanted and not bare."""
    return {process: tree for process in wanted if (tree := trees.get(process))}
