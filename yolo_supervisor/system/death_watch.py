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
"""The number of file descriptors that are kept free for documents, tmux clients and signals."""


def watchable(limit: int) -> int:
    """The lowest descriptor number that is not used for a pidfd, by the ``limit`` on open files."""
    return min(limit // 2, limit - RESERVE)


class DeathWatch:
    """Reports the exits of watched processes through one descriptor for the event loop.

    Without pidfds it watches nothing, and with too few descriptors not all processes. Their deaths are seen in the next
    scan.
    """

    def __init__(self, backend: ProcessBackend) -> None:
        self._backend = backend
        self._epoll = select.epoll() if sys.platform == "linux" else None
        self._watched: dict[ProcessId, PidfdHandle] = {}
        self._by_fd: dict[int, ProcessId] = {}
        self.exits: dict[ProcessId, int | None] = {}
        """The wait statuses of the exits that were seen, None where the kernel does not report them."""
        self.left_out: set[ProcessId] = set()
        """The processes for which no descriptor was free at the last try."""

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, process: ProcessId) -> None:
        """Watch the process. If it cannot be watched, or has ended, the next scan sees its death."""
        if self._epoll is None or process in self._watched:
            return
        with contextlib.suppress(OSError):
            handle = self._backend.hold(process)
            if isinstance(handle, PidfdHandle):
                # the kernel assigns the lowest free number, so the number shows how many are in use
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
        """Whether the process is watched, and so has not ended. False proves nothing."""
        return process in self._watched

    def ended(self) -> list[ProcessId]:
        """The processes that have ended since the last call. They are no longer watched."""
        if self._epoll is None or not self._watched:
            return []
        processes = [self._by_fd[fd] for fd, _ in self._epoll.poll(0)]
        for process in processes:
            self.exits[process] = self._watched[process].exit()
            self.discard(process)
        return processes

    async def wait(self) -> None:
        """Wait until a watched process ends."""
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
