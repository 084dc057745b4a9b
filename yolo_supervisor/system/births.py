"""The births of processes, as the kernel's proc connector reports them (Linux; root in the initial namespaces).

A sample of the process table misses a process that lives for less than a second, and with it the only trace from its
children to the agent that they descend from. Here every fork is an event with the pids of parent and child. Where the
connector is not to be had, nothing is known, and the samples alone count.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import anyio

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_table import Sweep, Tree
from yolo_supervisor.system.procfs import INITIAL_PIDS

NETLINK_CONNECTOR, CN_IDX_PROC, CN_VAL_PROC = 11, 1, 1
PROC_CN_MCAST_LISTEN = 1
PROC_EVENT_NONE, PROC_EVENT_FORK = 0, 1
NLMSG_DONE = 3
SO_ATTACH_FILTER, SO_RCVBUFFORCE = 26, 33

RECEIVE_BUFFER = 8 * 2**20
"""Bytes of events that may wait while the event loop is busy."""

ACK_S = 0.5
"""The time limit of the kernel to confirm that it sends events, in seconds. It takes microseconds."""

EVENTS_AT_ONCE = 4096
"""The number of events that are read without a pause."""

CLOSED_S = 0.5
"""The pause after which it is looked again whether births are asked for."""

HEADER = 36
"""Bytes before the event: the headers of netlink and of the connector."""


@dataclass(frozen=True, slots=True)
class Link:
    """The descent of one process from an agent."""

    agent: ProcessId
    born: int
    """It was started at this time or before, in clock ticks. A later process with its pid is another one."""
    is_child: bool
    """Whether the agent itself started it."""


@dataclass
class Lineages:
    """The descendants of each agent, by their births."""

    links: dict[int, Link] = field(default_factory=dict)
    """By pid. A link outlives its process while an event that names it may still come."""
    tools: dict[ProcessId, set[int]] = field(default_factory=dict)
    """The pids of the children that each agent has started. A tool leads a session, which has its pid."""

    changes: int = 0
    """The number of descendants recorded so far."""

    def add(self, agent: ProcessId, tree: Tree, is_alive: Callable[[ProcessId], bool]) -> None:
        """Follow an agent from now on, and its descendants in the tree that still live."""
        if agent not in self.tools and is_alive(agent):
            self.links[agent.pid] = Link(agent, agent.started, False)
            self.tools[agent] = set()
        for process, parent in tree:
            known = self.links.get(process.pid)
            if (known is None or known.born < process.started or known.agent != agent) and is_alive(process):
                self._link(process.pid, Link(agent, process.started, parent == agent.pid))

    def discard(self, agent: ProcessId) -> None:
        self.tools.pop(agent, None)
        self.links = {pid: link for pid, link in self.links.items() if link.agent != agent}

    def forked(self, parent: int, child: int, at: int) -> None:
        """Record a birth at a time in clock ticks. The child of another process ends what was known of its pid."""
        link = self.links.get(parent)
        if link is None:
            self.links.pop(child, None)
        else:
            self._link(child, Link(link.agent, at, parent == link.agent.pid and link.born == link.agent.started))

    def _link(self, pid: int, link: Link) -> None:
        self.links[pid] = link
        self.changes += 1
        if link.is_child:
            self.tools.setdefault(link.agent, set()).add(pid)

    def keep(self, is_alive: Callable[[int, int], bool]) -> None:
        """Forget the processes that have ended; ``is_alive`` gets the pid and the latest start."""
        self.links = {pid: link for pid, link in self.links.items() if is_alive(pid, link.born)}

    def prune(self, sweep: Sweep, before: Collection[int]) -> None:
        """Forget the processes in ``before`` that have ended. All events from before the sweep must have been read."""
        ended = [
            pid
            for pid in before
            if (link := self.links.get(pid)) and not _is_alive(sweep, pid, link.born) and link.agent.pid != pid
        ]
        for pid in ended:
            del self.links[pid]
        sessions = {facts.session for facts in sweep.facts.values()}
        for tools in self.tools.values():
            tools.intersection_update({*sessions, *self.links})

    def by_agent(self, sweep: Sweep) -> dict[ProcessId, list[ProcessId]]:
        """The descendants of each agent that run in this sweep, without the agents."""
        found: dict[ProcessId, list[ProcessId]] = {}
        for pid, link in self.links.items():
            if pid != link.agent.pid and _is_alive(sweep, pid, link.born):
                found.setdefault(link.agent, []).append(sweep.id(pid))
        return found


def _is_alive(sweep: Sweep, pid: int, born: int) -> bool:
    facts = sweep.facts.get(pid)
    return facts is not None and not facts.zombie and facts.started <= born


class Births:
    """The proc connector's events since ``open``, and the lineages that follow from them."""

    def __init__(self, is_wanted: bool = True) -> None:
        self.is_wanted = is_wanted
        """Whether the kernel is to be asked. It is asked once only if it refuses."""
        self.lineages = Lineages()
        self.lost = 0
        """The number of times that events were lost: some births are unknown then."""
        self._socket: socket.socket | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self) -> bool:
        """Ask the kernel for events; whether it sends them."""
        if self._socket is None and self.is_wanted:
            try:
                self._socket = _connect()
            except OSError:
                self.is_wanted = False
        return self._socket is not None

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(Exception):  # outside an event loop no task waits for it
                anyio.notify_closing(self._socket)
            self._socket.close()
            self._socket = None
        self.lineages = Lineages()

    async def wait(self) -> None:
        """Wait for the next birth; at most a moment while the kernel is not asked."""
        if self._socket is None:
            await anyio.sleep(CLOSED_S)
            return
        with contextlib.suppress(anyio.ClosedResourceError):
            await anyio.wait_readable(self._socket)

    def read(self, is_alive: Callable[[int, int], bool]) -> bool:
        """Read the events that have come; whether none is left. ``is_alive`` gets a pid and the latest start.

        After a loss only the processes that still run are known for sure.
        """
        was_lost = False
        for _ in range(EVENTS_AT_ONCE):
            try:
                event = self._receive()
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    was_lost = True
                    continue
                break
            if event is not None and not was_lost:
                self.lineages.forked(*event)
        else:
            return False
        if was_lost:
            self.lost += 1
            self.lineages.keep(is_alive)
        return True

    def _receive(self) -> tuple[int, int, int] | None:
        """The next birth: parent, child, and the time in clock ticks."""
        assert self._socket is not None
        data, (sender, _) = self._socket.recvfrom(512)
        if sender != 0 or len(data) < HEADER + 32:
            return None
        what, _cpu, at_ns, _thread, parent, child, process = struct.unpack_from("=IIQIIII", data, HEADER)
        if what != PROC_EVENT_FORK or child != process:
            return None
        return parent, child, _ticks(at_ns)


def _ticks(monotonic_ns: int) -> int:
    """A time of the monotonic clock in the unit of processes' start times: in clock ticks since the boot."""
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return (monotonic_ns + asleep_ns) * os.sysconf("SC_CLK_TCK") // 10**9


def _connect() -> socket.socket:
    """A socket that receives the births. OSError if the kernel, the user or the namespace does not allow it."""
    if sys.platform != "linux" or os.stat("/proc/self/ns/pid").st_ino != INITIAL_PIDS:
        raise OSError(errno.EPERM, "events name pids of the initial namespace")
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_CONNECTOR)
    try:
        connection.bind((0, CN_IDX_PROC))
        with contextlib.suppress(OSError):  # needs CAP_NET_ADMIN: the usual size holds some hundred events
            connection.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        connection.settimeout(ACK_S)
        connection.send(_request(PROC_CN_MCAST_LISTEN))
        for data in _messages(connection):
            what, _cpu, _at, error = struct.unpack_from("=IIQI", data, HEADER)
            if what == PROC_EVENT_NONE:
                if error:
                    raise OSError(error, os.strerror(error))
                break
        _only_births(connection)
        connection.setblocking(False)
    except BaseException:
        connection.close()
        raise
    return connection


def _messages(connection: socket.socket) -> Iterator[bytes]:
    deadline_s = time.monotonic() + ACK_S
    while time.monotonic() < deadline_s:
        data, (sender, _) = connection.recvfrom(512)
        if sender == 0 and len(data) >= HEADER + 20:
            yield data
    raise TimeoutError(errno.ETIMEDOUT, "the kernel does not confirm")


def _request(operation: int) -> bytes:
    body = struct.pack("=I", operation)
    message = struct.pack("=IIIIHH", CN_IDX_PROC, CN_VAL_PROC, 0, 0, len(body), 0) + body
    return struct.pack("=IHHII", 16 + len(message), NLMSG_DONE, 0, 0, os.getpid()) + message


def _only_births(connection: socket.socket) -> None:
    """Have the kernel drop all events but births of processes: those of threads, and exits, need not wake us."""
    load, store_x, equals, equals_x, give = 0x20, 0x07, 0x15, 0x1D, 0x06
    program = (
        (load, 0, 0, HEADER),
        (equals, 0, 5, socket.htonl(PROC_EVENT_FORK)),  # the filter reads big-endian numbers
        (load, 0, 0, HEADER + 24),  # the child's pid
        (store_x, 0, 0, 0),
        (load, 0, 0, HEADER + 28),  # the pid of its process
        (equals_x, 0, 1, 0),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    connection.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code)))
