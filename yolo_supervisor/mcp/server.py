"""The server behind the relay: a process in a session of its own, spoken to over pipes that never block us."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import subprocess
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence

import anyio

from yolo_supervisor import commands
from yolo_supervisor.kernel import bury_orphans, end_with_parent, kernel
from yolo_supervisor.processes import Processes
from yolo_supervisor.records import ProcessId

CHUNK = 256 * 1024
PIPE_SIZE = 2**20
"""How much a pipe may hold, in bytes, where we may say so: fewer turns for a large result."""

BACKLOG = 4 * 2**20
"""How much may wait to be written, in bytes, before we stop reading what leads to it."""

LINE_LIMIT = 512 * 2**20
"""A line of more bytes is not waited for."""

F_SETPIPE_SZ = 1031

TICK_S = 0.02
"""How exactly the kernel tells when a process was started."""


class Endless(Exception):
    """A line that does not end."""


class Outlet:
    """Lines to somebody else: written at once where there is room, else as there is."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.broken = False
        """Nobody reads it any more: what is sent is thrown away."""
        self._left: deque[memoryview] = deque()
        self._size = 0
        self._wanted = anyio.Event()
        self._room = anyio.Event()
        self._blocking = unblock(fd)

    def send(self, data: bytes) -> None:
        if self.broken:
            return
        view = memoryview(data)
        if not self._left:
            view = view[self._write(view) :]
        if view and not self.broken:
            self._left.append(view)
            self._size += len(view)
            self._wanted.set()

    def _write(self, data: memoryview) -> int:
        done = 0
        with contextlib.suppress(BlockingIOError):
            try:
                while done < len(data):
                    done += os.write(self.fd, data[done:])
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
                self.shut()
        return done

    async def run(self) -> None:
        """Write what is left whenever there is room for it, until nobody reads it any more."""
        while True:
            while not self._left and not self.broken:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            if self.broken:
                return
            try:
                await anyio.wait_writable(self.fd)
            except (OSError, anyio.ClosedResourceError):
                self.shut()
                return
            while self._left and not self.broken:
                done = self._write(self._left[0])
                self._size -= done
                if done < len(self._left[0]):
                    self._left[0] = self._left[0][done:]
                    break
                self._left.popleft()
            if self._size < BACKLOG:
                self._room.set()

    def shut(self) -> None:
        """Write no more; who waits for that need not."""
        self.broken = True
        self._left.clear()
        self._size = 0
        self._room.set()
        self._wanted.set()

    async def room(self) -> None:
        """Until not too much is waiting to be written."""
        while self._size >= BACKLOG:
            self._room = anyio.Event()
            await self._room.wait()

    async def empty(self) -> None:
        """Until all is written."""
        while self._left:
            await anyio.sleep(0.005)

    def close(self) -> None:
        if self._blocking:
            with contextlib.suppress(OSError):
                os.set_blocking(self.fd, True)  # others may go on with the same terminal or pipe


def unblock(fd: int) -> bool:
    """Whether the descriptor was blocking and is so no more: pipes and sockets only, nothing else can be waited for."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) or not os.get_blocking(fd):
        return False
    os.set_blocking(fd, False)
    return True


async def lines(fd: int) -> AsyncIterator[bytes]:
    """The lines that can be read there, each with its end, up to the end of the file; a last one without an end too.

    ``Endless`` if one becomes too long.
    """
    parts: list[bytes] = []
    size = 0
    while True:
        await _readable(fd)  # also before the first: a descriptor that we did not open may block
        try:
            chunk = os.read(fd, CHUNK)
        except BlockingIOError:
            continue
        except ConnectionError:
            chunk = b""
        if not chunk:
            if parts:
                yield b"".join(parts)
            return
        start = 0
        while (end := chunk.find(b"\n", start) + 1) > 0:
            parts.append(chunk[start:end])
            yield parts[0] if len(parts) == 1 else b"".join(parts)
            parts, size, start = [], 0, end
        if start < len(chunk):
            parts.append(chunk[start:])
            size += len(chunk) - start
            if size > LINE_LIMIT:
                raise Endless


async def _readable(fd: int) -> None:
    try:
        await anyio.wait_readable(fd)
    except PermissionError:  # a file, or no file at all: it is readable always
        await anyio.sleep(0)


class Upstream:
    """One life of the server. FileNotFoundError, PermissionError if its program cannot be started."""

    def __init__(self, words: Sequence[str]) -> None:
        self._child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, preexec_fn=end_with_parent
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._output = self._child.stdout.fileno()
        os.set_blocking(self._output, False)
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
        self.input = Outlet(self._child.stdin.fileno())

    @property
    def pid(self) -> int:
        return self._child.pid

    def lines(self) -> AsyncIterator[bytes]:
        return lines(self._output)

    def finish(self) -> None:
        """Tell it that nothing more will come."""
        assert self._child.stdin is not None
        if not self._child.stdin.closed:
            with contextlib.suppress(OSError):
                anyio.notify_closing(self._child.stdin.fileno())
            self.input.shut()
            with contextlib.suppress(OSError):
                self._child.stdin.close()

    async def end(self, patience_s: float, grace_s: float) -> int | None:
        """Let it leave by itself for a while, then end it and all that it has started; its exit code."""
        self.finish()
        with anyio.move_on_after(patience_s):
            while not self._over():
                await anyio.sleep(0.01)
        await commands.end(self.pid, grace_s, adopted=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)
        if self._child.stdout is not None:
            self._child.stdout.close()
        bury_orphans(self.pid)
        return self._child.returncode

    async def condemn(self, grace_s: float) -> None:
        """End it, and all that it has started, whatever it is at."""
        await commands.end(self.pid, grace_s, adopted=True)

    async def end_children(self, from_s: float, to_s: float, grace_s: float) -> None:
        """End what it has started between two moments of the monotonic clock, if that does not go by itself soon."""
        pause_s = 0.05
        with anyio.move_on_after(grace_s):
            while self._children(from_s, to_s):
                await anyio.sleep(pause_s)
            return
        await commands.end_all(self._children(from_s, to_s), grace_s)

    def _children(self, from_s: float, to_s: float) -> list[ProcessId]:
        """What descends from it, or became ours when its parent ended, and was started then."""
        processes = Processes(kernel())
        sweep = processes.sweep()
        if (own := processes.identify(self.pid)) is None:
            return []
        found = {process for process, _ in sweep.tree(own)}
        for adopted in sweep.children.get(os.getpid(), ()):
            if adopted != self.pid:
                found |= {sweep.id(adopted), *(process for process, _ in sweep.tree(sweep.id(adopted)))}
        to_monotonic = time.monotonic() - time.time()
        started = {each: processes.kernel.started_at(each.started) + to_monotonic for each in found}
        return [each for each, at_s in started.items() if from_s - TICK_S <= at_s <= to_s and sweep.has(each)]

    def _over(self) -> bool:
        """Whether it has ended; it is not reaped, so that its pid stays its own until its children are seen to."""
        try:
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return found is not None
