"""Stop and kill all descendants of this process, however fast they fork (Linux).

A sweep of the process table takes milliseconds. A process that forks and exits in less time is never in it at the
moment of a signal. This process has to be a child subreaper (see ``adopt_orphans``): then the successor of such a
process is always in the kernel's own list of our children, which is read in microseconds, newest first. A signal to a
process group reaches all its members at one moment, and the kernel sends it to a child that is being forked as well. A
group is signalled only if its session began below this process, so that it has no other members.

Everything is stopped before anything is killed: processes that start each other again cannot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.processes import Processes

LIMIT_S = 20.0
"""The longest time until everything has to be stopped and killed."""

STUCK_S = 5.0
"""The time after which processes that SIGKILL does not end are given up."""

KILL_AFTER = 50
"""After so many rounds that each found another process, new ones are killed at once: only SIGKILL aborts a fork."""

PAUSE_S = 0.002


@dataclass
class Frozen:
    """The descendants that were found. ``killed`` have ended, ``survived`` have not."""

    killed: list[ProcessId] = field(default_factory=list)
    survived: list[ProcessId] = field(default_factory=list)
    spared: list[ProcessId] = field(default_factory=list)


class Freezer:
    """The descendants of this process that were started at ``since`` or later, in clock ticks.

    ``child`` is reaped by its starter; all others that have exited are reaped here. ``is_spared`` tells the processes
    that are not signalled, with everything below them.
    """

    def __init__(self, processes: Processes, child: int, since: int, is_spared: Callable[[ProcessFacts], bool]) -> None:
        self._processes = processes
        self._child = child
        self._since = since
        self._is_spared = is_spared
        self._found: dict[ProcessId, int] = {}
        """The processes that were stopped, and the number of processes above each."""
        self._spared: dict[ProcessId, bool] = {}
        self._shielded: set[int] = set()
        """The process groups in which a spared process is."""
        self._our_session = os.getsid(0)

    def kill_all(self) -> Frozen:
        """Stop, kill and reap everything; return when nothing is left, or at the limit."""
        began_s = changed_s = time.monotonic()
        rounds, alive = 0, list[ProcessId]()
        while time.monotonic() < min(began_s + LIMIT_S, changed_s + STUCK_S):
            rounds += 1
            if self._stop_new(signal.SIGSTOP if rounds <= KILL_AFTER else signal.SIGKILL):
                changed_s = time.monotonic()
                continue
            before, alive = alive, self._alive()
            if not alive:
                break
            if alive != before:
                changed_s = time.monotonic()
            for process in sorted(alive, key=self._found.__getitem__, reverse=True):
                # the deepest first: the kernel continues a stopped group whose last parent ends
                self._signal(process, signal.SIGKILL)
            time.sleep(PAUSE_S)
        alive = self._alive()
        spared = [process for process, is_spared in self._spared.items() if is_spared]
        return Frozen([process for process in self._found if process not in alive], alive, spared)

    def _alive(self) -> list[ProcessId]:
        alive = []
        for process in self._found:
            facts = self._facts(process.pid)
            if facts is not None and facts.started == process.started and not facts.zombie:
                alive.append(process)
        return alive

    def _stop_new(self, number: int) -> bool:
        """Send the signal to each descendant that was not found before.

        Returns whether the descendants have changed since the last time.
        """
        changed = False
        ahead = [(os.getpid(), 0)]
        while ahead:
            parent, depth = ahead.pop()
            for pid in reversed(list(children(parent))):
                facts = self._facts(pid)
                if facts is None or facts.parent != parent:
                    changed = True
                    continue
                process = ProcessId(pid, facts.started, self._processes.boot)
                if facts.started < self._since or self._spares(process, facts):
                    continue
                if facts.zombie:
                    changed |= parent == os.getpid() and self._reap(process, number)
                    continue
                if process not in self._found:
                    changed = True
                    self._found[process] = depth
                    self._signal(process, number, is_child=parent == os.getpid())
                    self._signal_group(pid, number)
                ahead.append((pid, depth + 1))
        return changed

    def _reap(self, process: ProcessId, number: int) -> bool:
        """Reap a child that has exited, after a signal to its group, in which its successor may be."""
        if process.pid == self._child:
            return False
        self._signal_group(process.pid, number)
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(process.pid, os.WNOHANG)
            if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
                self._found.setdefault(process, 0)  # killed with its group
        return True

    def _spares(self, process: ProcessId, facts: ProcessFacts) -> bool:
        if process not in self._spared or facts.comm.startswith("tmux"):
            self._spared[process] = not facts.zombie and self._is_spared(facts)
            if self._spared[process]:
                with contextlib.suppress(OSError):
                    self._shielded.add(os.getpgid(process.pid))
        return self._spared[process]

    def _signal(self, process: ProcessId, number: int, is_child: bool = False) -> None:
        with contextlib.suppress(OSError):
            if is_child:
                os.kill(process.pid, number)  # it keeps its pid until it is reaped, here
            elif (handle := self._processes.backend.hold(process)) is not None:
                try:
                    handle.signal(number)
                finally:
                    handle.close()

    def _signal_group(self, pid: int, number: int) -> None:
        """Signal the process group of a descendant, if its session began below this process."""
        with contextlib.suppress(OSError):
            group = os.getpgid(pid)
            if os.getsid(pid) != self._our_session and group not in self._shielded:
                os.killpg(group, number)

    def _facts(self, pid: int) -> ProcessFacts | None:
        try:
            return self._processes.backend.facts(pid)
        except OSError:
            return None


def children(pid: int) -> Iterator[int]:
    """The children of a process, the oldest first, by the kernel's own lists: one for each thread."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                yield from map(int, file.readall().split())
