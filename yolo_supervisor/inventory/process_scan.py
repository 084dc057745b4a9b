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
from yolo_supervisor.models import Liveness, Pane, ProcessId
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.process_table import Sweep, Tree
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import pane_of

YOUNG_S = 2.0
"""A process this young may still be the copy of its parent that every program starts as: it is read again."""

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

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.agents: dict[ProcessId, AgentProcess] = {}
        self.trees: dict[ProcessId, Tree] = {}
        self.generation = 0
        self._seen: dict[ProcessId, AgentProcess] = {}
        """The agents, and their short-lived copies: an agent that starts a program is copied for a moment."""
        self._known: set[ProcessId] = set()
        self._young: set[ProcessId] = set()
        self._tracked: set[ProcessId] = set()
        self._tool_sessions: dict[ProcessId, dict[int, int]] = {}
        """The sessions that each agent's tools have begun: the leader's pid and start time."""
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
            self._newest = None  # the next sample must read its tree, even if nothing starts

    def drop(self, process: ProcessId) -> None:
        self._tracked.discard(process)
        self.trees.pop(process, None)
        self._tool_sessions.pop(process, None)

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
        self._take(self.processes.sweep())

    async def sample_gently(self) -> None:
        """Sample without a long pause of the event loop, even with thousands of processes."""
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
        for process in self._tracked & alive:
            tree = sweep.tree(process, (self._tracked | self.agents.keys()) - {process})
            # it may have died in the middle of the sweep: then its children have lost their parent
            if tree != self.trees.get(process) and self.processes.liveness(process) is Liveness.ALIVE:
                self.trees[process] = tree
                self._note_sessions(process, tree, sweep)
        self._forget_sessions(sweep)

    def _note_sessions(self, agent: ProcessId, tree: Tree, sweep: Sweep) -> None:
        """Remember the sessions that began in the agent's tree: a tool that forks and exits stays in its session."""
        led = {child.pid: child.started for child, _ in tree if sweep.facts[child.pid].session == child.pid}
        if led:
            self._tool_sessions.setdefault(agent, {}).update(led)

    def _forget_sessions(self, sweep: Sweep) -> None:
        """Forget sessions without a process. The pid of a leader is not given out again while its session has one."""
        if self._tool_sessions:
            live = {facts.session for facts in sweep.facts.values()}
            for agent, led in list(self._tool_sessions.items()):
                self._tool_sessions[agent] = {pid: started for pid, started in led.items() if pid in live}

    def in_tool_sessions(self, agent: ProcessId) -> tuple[ProcessId, ...]:
        """The processes that run now in sessions of the agent's tools.

        They were started after the session's leader, which was seen in the agent's tree. Other agents and programs that
        host sessions (tmux) are left out, with everything below them.
        """
        led = self._tool_sessions.get(agent)
        if not led:
            return ()
        sweep = self.processes.sweep()
        others = ({*self.agents, *self._tracked} - {agent}) & {sweep.id(pid) for pid in sweep.facts}
        others |= {sweep.id(pid) for pid, facts in sweep.facts.items() if self.processes.hosts_sessions(facts)}
        spared = others | {process for other in others for process, _ in sweep.tree(other)}
        return tuple(
            process
            for pid, facts in sweep.facts.items()
            if not facts.zombie and facts.session in led and facts.started >= led[facts.session]
            if (process := sweep.id(pid)) not in spared and process != agent
        )

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

    def read_now(self, process: ProcessId) -> AgentProcess | None:
        """The agent that the process's command line shows now: the latest sample may be older than the process."""
        try:
            facts = self.processes.backend.facts(process.pid)
            if facts is None or facts.started != process.started:
                return None
            return self._read(process, Sweep(self.processes.boot, {process.pid: facts}))
        except OSError:
            return None

    def _read(self, process: ProcessId, sweep: Sweep) -> AgentProcess | None:
        """The agent that the process's command line shows, or None.

        OSError if it cannot be read.
        """
        if not self._may_be_agent(process, sweep):
            return None
        backend = self.processes.backend
        argv = backend.argv(process.pid)
        flags = claude.flags(argv)
        if flags is None and not (argv and claude.looks_like_agent(argv, "")):
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
            pause_s = until_next(every_s())
            if not self.quiet():
                began, generation = time.monotonic(), self.generation
                with contextlib.suppress(OSError):  # no descriptors left, for example: retried at the next sample
                    await self.sample_gently()
                pause_s = max(pause_s, LOAD_FACTOR * (time.monotonic() - began))
                sampled(self.generation != generation)
            await anyio.sleep(pause_s)


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
