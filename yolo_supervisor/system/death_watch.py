"""Wakes the agents watcher when a watched process exits."""

from __future__ import annotations

import contextlib
import resource
import select
import sys

import anyio

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessBackend
from yolo_supervisor.system.procfs import PidfdHandle

RESERVE = 32
"""So many file descriptors at least are not spent on watching: documents, tmux clients and signals need some, too."""


def watchable(limit: int) -> int:
    """How many descriptors may be in use, of so many that there can be, for one more to be spent on watching."""
    return min(limit // 2, limit - RESERVE)


class DeathWatch:
    """Knows at once when one of many processes ends: one descriptor for the loop to wait on, whatever their number.

    Where there are no pidfds it watches nothing, and where there are too few descriptors not all: deaths are seen at
    the next look then.
    """

    def __init__(self, backend: ProcessBackend) -> None:
        self._backend = backend
        self._epoll = select.epoll() if sys.platform == "linux" else None
        self._watched: dict[ProcessId, PidfdHandle] = {}
        self._by_fd: dict[int, ProcessId] = {}
        self.exits: dict[ProcessId, int | None] = {}
        """How those ended whose end we saw: as ``waitpid`` would tell, None where the kernel does not say."""
        self.left_out: set[ProcessId] = set()
        """Those for which there was no descriptor to spare when they were last tried."""

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, process: ProcessId) -> None:
        """Begin to watch; nothing happens where it cannot be watched or is over: the next look sees that itself."""
        if self._epoll is None or process in self._watched:
            return
        with contextlib.suppress(OSError):
            handle = self._backend.hold(process)
            if isinstance(handle, PidfdHandle):
                # the lowest free number is given out, so it tells how many are in use, whoever uses them
                if handle.fd >= watchable(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
                    handle.close()
                    self.left_out.add(process)
                    return
                try:
                    self._epoll.register(handle.fd, select.EPOLLIN)
                except OSError:
                    handle.close()
                    raise
                self.left_out.discard(process)
                self._watched[process] = handle
                self._by_fd[handle.fd] = process

    def discard(self, process: ProcessId) -> None:
        self.left_out.discard(process)
        if self._epoll is not None and (handle := self._watched.pop(process, None)) is not None:
            self._by_fd.pop(handle.fd)
            with contextlib.suppress(OSError):
                self._epoll.unregister(handle.fd)
            handle.close()

    def lives(self, process: ProcessId) -> bool:
        """Whether the kernel holds this very process alive for us: True is proof, False says nothing."""
        return process in self._watched

    def ended(self) -> list[ProcessId]:
        """Those that have ended since the last call. They are no longer watched."""
        if self._epoll is None or not self._watched:
            return []
        processes = [self._by_fd[fd] for fd, _ in self._epoll.poll(0)]
        for process in processes:
            self.exits[process] = self._watched[process].exit()
            self.discard(process)
        return processes

    async def wait(self) -> None:
        """Until one of them ends."""
        if self._epoll is None:
            await anyio.sleep_forever()
        else:
            await anyio.wait_readable(self._epoll.fileno())

    def close(self) -> None:
        for process in list(self._watched):
            self.discard(process)
        if self._epoll is not None and not self._epoll.closed:
            anyio.notify_closing(self._epoll.fileno())
            self._epoll.close()
