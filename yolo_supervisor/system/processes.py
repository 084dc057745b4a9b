"""Processes: their identity, liveness and descent, and the kill gate for all signals.

An identity is pid, start time and boot together (``ProcessId``). A signal goes through a descriptor that was opened
first and checked afterwards, so it cannot reach another process that has got the pid meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import anyio

from yolo_supervisor.clock import AwakeTime
from yolo_supervisor.formats import claude
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.system.process_backend import ProcessBackend, ProcessFacts, ProcessHandle
from yolo_supervisor.system.process_table import Sweep, Tree

FILE_TIME_SLACK_S = 0.05
"""The start of a process is known in ticks of 10 ms, and a file's time in ticks of the kernel's clock."""

CLIENTS = re.compile(r"claude|node|bun|\d+\.\d+")
"""The beginnings of the names under which the kernel lists Claude Code's programs; a binary is named by its version."""

TREE_READS = 3
"""How often the process table is read at most until a tree does not change while handles are opened."""

VERIFY_S = 5.0
"""The time after SIGKILL, in seconds, after which a process that is still there is reported."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The leftover processes of a dead agent.

    ``roots`` are proven to have been orphaned by its death.
    """

    roots: tuple[ProcessId, ...] = ()
    uncertain: tuple[ProcessId, ...] = ()
    """Processes whose parents are gone, too: they may have been sent to the background on purpose."""
    sessions: tuple[int, ...] = ()
    """The sessions in which everything is a leftover: processes that fork and exit are always in them."""


class RefusalCode(StrEnum):
    """The reason why the kill gate refuses a process."""

    INIT = "init"
    OTHER_BOOT = "other_boot"
    """It was recorded before a reboot or in another container."""
    ANCESTOR = "ancestor"
    """It is this program or one of its ancestors."""
    GONE = "gone"
    TMUX = "tmux"
    CLIENT_DAEMON = "client_daemon"
    """It is Claude Code's own daemon, or hosts a terminal of it."""
    OTHER_USER = "other_user"
    UNPROVEN = "unproven"
    """Its identity could not be proven by the kernel's answers."""
    NO_HANDLE = "no_handle"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Decisions compare ``code``; ``text`` is for people and the journal."""

    code: RefusalCode
    text: str


@dataclass(frozen=True, slots=True)
class Ending:
    """The result of a termination."""

    terminated: tuple[ProcessId, ...] = ()
    """Gone within the grace period."""
    killed: tuple[ProcessId, ...] = ()
    survived: tuple[ProcessId, ...] = ()
    refused: Mapping[ProcessId, Refusal] = field(default_factory=dict)
    unproven: tuple[ProcessId, ...] = ()
    """Not signalled: the parent ended while the tree was read, so the process may have come from elsewhere."""
    sessions: tuple[int, ...] = ()
    """The sessions in which processes were signalled that fork faster than they can be held."""
    spared: str | None = None
    """The objection that stopped the termination before its end."""


@dataclass(slots=True)
class HeldProcesses:
    """The processes of one termination."""

    handles: dict[ProcessId, ProcessHandle] = field(default_factory=dict)
    refused: dict[ProcessId, Refusal] = field(default_factory=dict)
    unproven: set[ProcessId] = field(default_factory=set)
    """Not descendants any more by the last reading: see ``Ending``."""

    def over(self) -> tuple[ProcessId, ...]:
        """The held processes that have ended."""
        return tuple(process for process, handle in self.handles.items() if handle.over())


class Processes:
    """The process table of this machine, and the kill gate."""

    def __init__(self, backend: ProcessBackend) -> None:
        self.backend = backend
        self.boot = backend.boot()
        self.stubborn: set[ProcessId] = set()
        """Processes that survived SIGKILL. They are reported once, and not tried again."""

    def identify(self, pid: int) -> ProcessId | None:
        """The process that has this pid now; None if there is none, or the kernel does not answer."""
        try:
            facts = self.backend.facts(pid)
        except OSError:
            return None
        return ProcessId(pid, facts.started, self.boot) if facts and not facts.zombie else None

    def identify_self(self) -> ProcessId:
        """The identity of this process."""
        process = self.identify(os.getpid())
        assert process is not None, "the kernel does not know us"
        return process

    def liveness(self, process: ProcessId) -> Liveness:
        if process.boot != self.boot:
            return Liveness.DEAD if _is_rebooted(process.boot, self.boot) else Liveness.UNKNOWN
        try:
            facts = self.backend.facts(process.pid)
        except OSError:
            return Liveness.UNKNOWN
        if facts is None or facts.started != process.started or facts.zombie:
            return Liveness.DEAD
        return Liveness.ALIVE

    def older_than_file(self, process: ProcessId, path: Path) -> bool:
        """Whether the process existed when the file was written.

        A pid in a file can mean only such a process: the kernel reuses pids.
        """
        try:
            return self.backend.started_at(process.started) <= path.stat().st_mtime + FILE_TIME_SLACK_S
        except OSError:
            return False

    def sweep(self) -> Sweep:
        """Read the process table."""
        return Sweep(self.boot, {facts.pid: facts for facts in self.each()})

    def each(self) -> Iterator[ProcessFacts]:
        """Every process, without those that end meanwhile."""
        for pid in self.backend.pids():
            with contextlib.suppress(OSError):
                if (facts := self.backend.facts(pid)) is not None:
                    yield facts

    def leftovers(self, agent: ProcessId, tree: Sequence[tuple[ProcessId, int]]) -> Leftovers:
        """The processes that still run of a dead agent's last sampled tree."""
        roots, uncertain, kept = [], [], set()
        for process, parent in tree:
            if self.liveness(process) is not Liveness.ALIVE or process in self.stubborn:
                continue
            if parent == agent.pid:
                roots.append(process)
                kept.add(process.pid)
            elif parent in kept and self._parent(process) == parent:
                kept.add(process.pid)  # below an intact root: it is terminated with the root
            else:
                uncertain.append(process)
        return Leftovers(tuple(roots), tuple(uncertain))

    def _parent(self, process: ProcessId) -> int | None:
        try:
            facts = self.backend.facts(process.pid)
        except OSError:
            return None
        return facts.parent if facts else None

    # -- the kill gate -------------------------------------------------------------------------------------------

    def refusal(self, process: ProcessId) -> Refusal | None:
        """The reason why this process must not be signalled; None if it may be."""
        if process.pid <= 1:
            return Refusal(RefusalCode.INIT, "it is init, or no process at all")
        if process.boot != self.boot:
            return Refusal(RefusalCode.OTHER_BOOT, "it was recorded before a reboot or in another container")
        if process.pid in self.ancestry():
            return Refusal(RefusalCode.ANCESTOR, "it is this supervisor, or one of its ancestors")
        try:
            facts = self.backend.facts(process.pid)
            if facts is None or facts.started != process.started:
                return Refusal(RefusalCode.GONE, "its pid is gone or belongs to another process now")
            if self._is_tmux_server(facts):
                return Refusal(RefusalCode.TMUX, "it is a tmux server")
            if self._is_client_daemon(facts):
                return Refusal(RefusalCode.CLIENT_DAEMON, "it is Claude Code's own daemon")
            if self.backend.owner(process.pid) != os.geteuid():
                return Refusal(RefusalCode.OTHER_USER, "it belongs to another user")
        except OSError as error:
            return Refusal(RefusalCode.UNPROVEN, f"its identity could not be proven ({error.strerror or error})")
        return None

    def ancestry(self) -> set[int]:
        """The pids of this program and its ancestors."""
        ancestry, pid = set(), os.getpid()
        while pid > 1 and pid not in ancestry:
            ancestry.add(pid)
            with contextlib.suppress(OSError):
                facts = self.backend.facts(pid)
                pid = facts.parent if facts else 0
        return ancestry

    async def terminate(
        self,
        roots: Iterable[ProcessId],
        grace_s: float,
        holds: Callable[[], Awaitable[str | None]],
        spare: Callable[[], Collection[ProcessId]] = tuple,
        sessions: Collection[int] = (),
    ) -> Ending:
        """Terminate the roots with their trees: SIGTERM, a grace period, SIGKILL, then verify.

        ``holds`` is asked right before each round of signals, and returns an objection or None. No signal goes to the
        processes that ``refusal`` names, nor to those that ``spare`` returns at each round and their descendants. In
        the ``sessions`` everything is terminated, however fast it forks.
        """
        held = HeldProcesses()
        handles = held.handles
        roots = tuple(roots)
        try:
            if objection := await holds():
                return Ending(spared=objection)
            spared = spare()
            self._take_hold(roots, spared, held)
            for handle in handles.values():
                handle.signal(signal.SIGTERM)
                handle.signal(signal.SIGCONT)  # a stopped process could not act on it
            sessions = self.backend.signal_sessions(self._only_ours(sessions, spared, held), signal.SIGTERM)
            await self._wait(handles.values(), grace_s)
            gone = held.over()
            if len(gone) == len(handles) and not self.backend.signal_sessions(sessions, 0):
                unproven = self._alive(held.unproven)
                return Ending(gone, refused=held.refused, unproven=unproven, sessions=sessions)
            objection = await holds()
            gone = held.over()
            if objection:
                return Ending(gone, refused=held.refused, unproven=self._alive(held.unproven), spared=objection)
            left = [process for process in handles if process not in gone]
            spared = spare()
            self._take_hold(left, spared, held)  # their descendants that were started since
            for process in {*spared} & handles.keys():  # processes that have been found to be agents meanwhile
                handles.pop(process).close()
            gone = held.over()
            left = [process for process in handles if process not in gone]
            for process in left:
                handles[process].signal(signal.SIGKILL)
            await self._end_sessions(self._only_ours(sessions, spared, held))
            await self._wait([handles[process] for process in left], VERIFY_S)
            survived = tuple(process for process in left if not handles[process].over())
            self.stubborn.update(survived)
            killed = tuple(process for process in left if process not in survived)
            return Ending(gone, killed, survived, held.refused, self._alive(held.unproven), sessions)
        finally:
            for handle in handles.values():
                handle.close()

    def _only_ours(
        self, sessions: Collection[int], spared: Collection[ProcessId], held: HeldProcesses
    ) -> Collection[int]:
        """The sessions in which no process runs that must not be signalled."""
        if not sessions:
            return ()
        now = self.sweep()
        hosts = [pid for pid, facts in now.facts.items() if self.hosts_sessions(facts)]
        kept = {*hosts, *self.ancestry(), *(process.pid for process in (*spared, *held.refused))}
        taken = {now.facts[pid].session for pid in kept if pid in now.facts}
        return [session for session in sessions if session > 1 and session not in taken]

    async def _end_sessions(self, sessions: Collection[int]) -> None:
        """Kill everything in the sessions."""
        with anyio.move_on_after(VERIFY_S):
            while self.backend.signal_sessions(sessions, signal.SIGKILL):
                await anyio.sleep(0.002)

    def _take_hold(self, roots: Collection[ProcessId], spare: Collection[ProcessId], held: HeldProcesses) -> None:
        """Open a handle on each process in the trees of the roots. The table is read again if a tree has changed."""
        for _ in range(TREE_READS):
            now = self.sweep()
            servers = {now.id(pid) for pid, facts in now.facts.items() if self.hosts_sessions(facts)}
            trees = [
                (root, () if root in servers else now.tree(root, {*spare, *servers}))
                for root in roots
                if root not in spare
            ]
            changed = [process for root, tree in trees for process in self._hold_tree(root, tree, now, held)]
            held.unproven = {*held.unproven, *changed} - held.handles.keys()
            if not changed:
                return

    def _hold_tree(self, root: ProcessId, tree: Tree, now: Sweep, held: HeldProcesses) -> list[ProcessId]:
        """Open a handle on the root and on each descendant; the descendants that are not proven to be any more.

        The parent is read again after the handle is open. If it is the same process as in the sweep and still alive,
        the descent is proven: the pid of a parent that has ended may belong to another process meanwhile.
        """
        self._hold(root, held)
        proven, unproven = {root}, []
        for process, pid in tree:
            parent = now.id(pid)
            if process not in held.handles:
                self._hold(process, held)
                if parent not in proven or not self._is_child(process, parent):
                    unproven.append(process)
                    held.refused.pop(process, None)
                    if (handle := held.handles.pop(process, None)) is not None:
                        handle.close()
                    continue
            proven.add(process)
        return unproven

    def _hold(self, process: ProcessId, held: HeldProcesses) -> None:
        """Open a handle on the process, unless the gate refuses it."""
        if process in held.handles:
            return
        if (refusal := self.refusal(process)) is not None:
            if self.liveness(process) is not Liveness.DEAD:
                held.refused[process] = refusal
            return
        try:
            handle = self.backend.hold(process)
        except OSError as error:
            held.refused[process] = Refusal(RefusalCode.NO_HANDLE, f"it could not be opened ({error.strerror})")
            return
        if handle is not None:
            held.handles[process] = handle

    def _is_child(self, process: ProcessId, parent: ProcessId) -> bool:
        """Whether the process is a child of this very parent, which lives."""
        try:
            facts = self.backend.facts(process.pid)
        except OSError:
            return False
        is_below = facts is not None and facts.started == process.started and facts.parent == parent.pid
        return is_below and self.liveness(parent) is Liveness.ALIVE

    def _alive(self, processes: Iterable[ProcessId]) -> tuple[ProcessId, ...]:
        return tuple(process for process in processes if self.liveness(process) is Liveness.ALIVE)

    def hosts_sessions(self, facts: ProcessFacts, if_unknown: bool = True) -> bool:
        """Whether the process hosts sessions of people or agents: neither it nor anything below it is signalled.

        That is a tmux server, and the client's own daemon with its terminal hosts. ``if_unknown`` is the answer about a
        process that calls itself so and cannot be examined.
        """
        try:
            return self._is_tmux_server(facts) or self._is_client_daemon(facts)
        except (FileNotFoundError, ProcessLookupError):
            return False  # it has ended
        except OSError:
            return if_unknown

    def _is_tmux_server(self, facts: ProcessFacts) -> bool:
        """Whether the process runs tmux's program and listens on a socket. A process can give itself any name."""
        if facts.zombie or not facts.comm.startswith("tmux"):
            return False
        return "tmux" in Path(self.backend.executable(facts.pid)).name and self.backend.listens(facts.pid)

    def _is_client_daemon(self, facts: ProcessFacts) -> bool:
        if facts.zombie or CLIENTS.match(facts.comm) is None:
            return False
        if CLIENTS.match(Path(self.backend.executable(facts.pid)).name) is None:
            return False
        return claude.is_client_daemon(self.backend.argv(facts.pid))

    async def _wait(self, handles: Collection[ProcessHandle], limit_s: float) -> None:
        """Wait until all are over, at most for the limit in time awake: a pause of ours is often theirs, too.

        Polling is exact enough: milliseconds do not matter here.
        """
        pause_s, awake = 0.002, AwakeTime()
        while awake.read() < limit_s and not all(handle.over() for handle in handles):
            await anyio.sleep(min(pause_s, limit_s))
            pause_s = min(pause_s * 2, 0.05)


def _is_rebooted(then: str, now: str) -> bool:
    """Whether this machine was booted between the two.

    Containers of one image share the machine's id, and some have separate boot ids while they run beside each
    other; their pid namespaces differ. The first namespace has the same number in every boot.
    """
    (machine, _, rest), (machine_now, _, rest_now) = then.partition("/"), now.partition("/")
    (boot, _, namespace), (boot_now, _, namespace_now) = rest.partition("/"), rest_now.partition("/")
    return machine == machine_now and boot != boot_now and namespace == namespace_now
