"""Lines over pipes and sockets that never block the event loop, with back-pressure in both directions."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import AsyncIterator

import anyio

SMALL_READ, LARGE_READ = 64 * 1024, 256 * 1024
"""Bytes to read at once: the larger size while much is coming. Allocating more than 128 KiB for each small message
can make malloc map and unmap memory every time, which costs as much as the message itself."""

HIGH_WATER = 4 * 2**20
"""While more bytes than this wait to be written, the source that leads to them is not read."""

MAX_LINE = 512 * 2**20
"""A longer line, in bytes, is an error."""


class LineTooLongError(Exception):
    """A line of more than ``MAX_LINE`` bytes."""


class PipeWriter:
    """A non-blocking writer: it writes at once while the pipe has room, and queues the rest for ``run``."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.broken = False
        """Whether the reader is gone: whatever is sent is discarded."""
        self.accepted = 0
        """Bytes that were given to ``send``."""
        self._written = 0
        self._queue: deque[memoryview] = deque()
        self._size = 0
        self._queued = anyio.Event()
        self._drained = anyio.Event()
        self._was_blocking = make_nonblocking(fd)

    def send(self, data: bytes) -> None:
        self.accepted += len(data)
        if self.broken:
            return
        view = memoryview(data)
        if not self._queue:
            view = view[self._write(view) :]
        if view and not self.broken:
            self._queue.append(view)
            self._size += len(view)
            self._queued.set()

    def _write(self, data: memoryview) -> int:
        written = 0
        with contextlib.suppress(BlockingIOError):
            try:
                while written < len(data):
                    written += os.write(self.fd, data[written:])
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
                self.abort()
        self._written += written
        return written

    async def run(self) -> None:
        """Write the queue whenever the pipe has room; return when the reader is gone."""
        while True:
            while not self._queue and not self.broken:
                self._queued = anyio.Event()
                await self._queued.wait()
            if self.broken:
                return
            try:
                await anyio.wait_writable(self.fd)
            except (OSError, anyio.ClosedResourceError):
                self.abort()
                return
            while self._queue and not self.broken:
                written = self._write(self._queue[0])
                self._size -= written
                if written < len(self._queue[0]):
                    self._queue[0] = self._queue[0][written:]
                    break
                self._queue.popleft()
            if self._size < HIGH_WATER:
                self._drained.set()

    def abort(self) -> None:
        """Discard the queue and all further data, and release everything that waits for room."""
        self.broken = True
        self._queue.clear()
        self._size = 0
        self._drained.set()
        self._queued.set()

    def take_back(self) -> int:
        """Take out of the pipe what the reader has not read; how many bytes it has read, as far as is known."""
        unread = 0
        with contextlib.suppress(OSError):  # also when the pipe is empty; and without /proc it is not known
            fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                while chunk := os.read(fd, LARGE_READ):
                    unread += len(chunk)
            finally:
                os.close(fd)
        return self._written - unread

    async def drain(self) -> None:
        """Wait until less than ``HIGH_WATER`` is queued."""
        while self._size >= HIGH_WATER:
            self._drained = anyio.Event()
            await self._drained.wait()

    async def flush(self) -> None:
        """Wait until everything is written."""
        while self._queue:
            await anyio.sleep(0.005)

    def restore_blocking(self) -> None:
        """Make the descriptor blocking again if it was: other processes may share it."""
        if self._was_blocking:
            with contextlib.suppress(OSError):
                os.set_blocking(self.fd, True)


def make_nonblocking(fd: int) -> bool:
    """Make a pipe or socket non-blocking; whether that changed it. Nothing else can be polled for writability."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or not os.get_blocking(fd):
        return False
    os.set_blocking(fd, False)
    return True


async def read_lines(fd: int) -> AsyncIterator[bytes]:
    """Yield the lines from a descriptor, each with its newline, up to the end of file.

    A last line without a newline is yielded too. LineTooLongError if a line exceeds ``MAX_LINE``.
    """
    parts: list[bytes] = []
    size = 0
    read_size = SMALL_READ
    while True:
        await _readable(fd)  # before the first read, too: an inherited descriptor may be blocking
        try:
            chunk = os.read(fd, read_size)
        except BlockingIOError:
            continue
        except ConnectionError:
            chunk = b""
        if not chunk:
            if parts:
                yield b"".join(parts)
            return
        read_size = LARGE_READ if len(chunk) >= SMALL_READ else SMALL_READ
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            parts.append(chunk[start:end])
            yield parts[0] if len(parts) == 1 else b"".join(parts)
            parts, size, start = [], 0, end
        if start < len(chunk):
            parts.append(chunk[start:])
            size += len(chunk) - start
            if size > MAX_LINE:
                raise LineTooLongError


async def _readable(fd: int) -> None:
    try:
        await anyio.wait_readable(fd)
    except PermissionError:  # epoll refuses regular files, which are always readable
        await anyio.sleep(0)
