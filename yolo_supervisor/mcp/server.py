"""The MCP server behind the relay: one process after another, each in a separate session, connected by pipes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import anyio

from yolo_supervisor.clock import pause_s
from yolo_supervisor.config import McpConfig
from yolo_supervisor.formats import mcp
from yolo_supervisor.mcp.call_table import Call
from yolo_supervisor.mcp.circuit_breaker import WHOLE_SERVER, CircuitBreaker
from yolo_supervisor.mcp.journal_writer import warn
from yolo_supervisor.mcp.pipes import PipeWriter, read_lines
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.subreaper import bury_orphans, end_with_parent

PIPE_SIZE = 2**20
"""Requested capacity of each pipe, in bytes: a large result passes in fewer wake-ups."""

F_SETPIPE_SZ = 1031

START_TIME_STEP_S = 0.02
"""Resolution of the start times that the kernel reports for processes."""

EXIT_S, GRACE_S = 2.0, 2.0
"""Time limits of the process to exit after the end of its input, and after SIGTERM, in seconds."""

CLOSED_OUTPUT_EXIT_S = 0.2
"""Its time limit to exit after it has closed its output although its input is open, in seconds."""

EXITING_S = 0.05
"""The time that it has to exit before its input is closed, in seconds."""

RESTART_WINDOW_S = 60.0
"""At most ``restarts`` restarts happen within this time."""

MAX_PAUSE_S = 30.0
"""The longest backoff pause, before a restart or a retry."""

ID_PREFIX = "yolo-supervisor-"
"""The ids of the relay's own requests begin with it, and no client's."""


class ServerState(Enum):
    """The state of the server, which decides what the relay may do with it.

    ===========  ==================================================  ==================================================
    state        meaning                                             next state, and the event that leads to it
    ===========  ==================================================  ==================================================
    STARTING     the process runs; the client's session is being     READY: the session is replayed, or there is none ·
                 replayed to it; the client's lines are queued       DRAINING: as below, or ``start_s`` are over
    READY        lines are sent as they come                         DRAINING: it closed its output, sent a line that is
                                                                     too long, reads its input no more, or was ended:
                                                                     it is stopped, or has not answered ``initialize``
                                                                     within ``start_s``
    DRAINING     the process is to end: no request is sent to it,    BACKING_OFF: it is gone, with all its descendants ·
                 but responses still pass; the client's lines are    IDLE: the same, and it exited by itself with code 0
                 queued                                              after it had answered, while no call was open
    IDLE         no process, and none is needed                      STARTING: the client sends something
    BACKING_OFF  no process; the client's lines and calls are        STARTING: the pause is over · SUSPENDED: the
                 queued until the restart                            restart has to wait for the circuit or the restart
                                                                     limit · CLOSED: the client has closed its input
                                                                     and waits for no response
    SUSPENDED    no process for a while; calls are refused at once   STARTING: the time is over · BACKING_OFF: the
                                                                     program could not be started
    CLOSED       no process, and there will be none                  none
    ===========  ==================================================  ==================================================

    ``generation`` counts the processes. A process that is being ended stays READY until its output ends.
    """

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    IDLE = "idle"
    BACKING_OFF = "backing off"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class Server:
    """The server over all its processes: its state, what is queued for it, and when it is restarted."""

    def __init__(self, argv: Sequence[str], name: str, config: McpConfig, breaker: CircuitBreaker) -> None:
        self.name = name
        self.state = ServerState.STARTING
        self.process: ServerProcess | None = None
        self.generation = 1
        self.input_ended = False
        """Whether the client has closed its input: the server may exit then."""
        self.deaths_in_a_row = 0
        """Without an answered call in between."""
        self._argv = argv
        self._config = config
        self._breaker = breaker
        self._queue: list[Call | bytes] = []
        self._queued = anyio.Event()
        self._handlers: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        """The relay's own requests to this process, and what to do with each response."""
        self._last_number = 0
        self._restarts: list[float] = []
        self._suspended_until_s = 0.0
        self._down_reason = ""

    # -- processes ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process. FileNotFoundError, PermissionError, OSError if the program cannot be started."""
        self.process = ServerProcess(self._argv)
        self.state = ServerState.STARTING

    def restart(self) -> None:
        """Start another process, which counts towards the restart limit."""
        self._restarts.append(time.monotonic())
        self.start()

    async def stop_process(self, idle: bool) -> int | None:
        """Let the process exit for a moment, or for longer if it is ``idle``; then end it, and all its descendants.

        The daemons of its tools live on when the session ends (the client has closed its input), and when an idle
        process exits with code 0. Returns its exit code, None if that is unknown.
        """
        assert self.process is not None
        self.state = ServerState.DRAINING
        patience_s = EXIT_S if idle or self.input_ended else CLOSED_OUTPUT_EXIT_S
        code = await self.process.end(patience_s, GRACE_S, spares_daemons=self.input_ended, idle=idle)
        self.process = None
        self.state = ServerState.BACKING_OFF
        self.generation += 1
        self._handlers.clear()
        return code

    async def wait_until_needed(self) -> None:
        """Stay without a process until a line or a call is queued."""
        self.state = ServerState.IDLE
        while not self._queue:
            self._queued = anyio.Event()
            await self._queued.wait()
        self.state = ServerState.BACKING_OFF

    def back_off(self, reason: str) -> float:
        """Record that the server is down; the seconds until it is to be restarted.

        SUSPENDED, if its circuit is open or it was restarted too often, else BACKING_OFF.
        """
        self.deaths_in_a_row += 1
        warn(f"the MCP server {self.name} is down: {reason}")
        if not self.input_ended:
            self._breaker.record_failure(WHOLE_SERVER, reason)
        now_s = time.monotonic()
        self._restarts = [at_s for at_s in self._restarts if now_s - at_s < RESTART_WINDOW_S]
        suspended_s = self._breaker.remaining_s()
        if len(self._restarts) >= self._config.restarts:
            suspended_s = max(suspended_s, RESTART_WINDOW_S - (now_s - self._restarts[0]))
        self._suspended_until_s, self._down_reason = now_s + suspended_s, reason
        self.state = ServerState.SUSPENDED if suspended_s > 0 else ServerState.BACKING_OFF
        return max(suspended_s, backoff_s(self._config, self.deaths_in_a_row))

    def suspension(self) -> str:
        """The reason why there is no server, and the time of its restart, as text for a model."""
        remaining_s = max(0.0, self._suspended_until_s - time.monotonic())
        return (
            f"The MCP server {self.name} is down after {self.deaths_in_a_row} failures in a row (the last: "
            f"{self._down_reason}). It is restarted in {remaining_s:.0f} s"
        )

    # -- lines to the server -----------------------------------------------------------------------------------------

    def send(self, line: bytes) -> None:
        """Send a line now, or when the server is ready."""
        if self.state is ServerState.READY and self.process is not None:
            self.process.input.send(line)
        else:
            self._enqueue(line)

    def enqueue(self, call: Call) -> None:
        """Keep a call until the server is ready."""
        self._enqueue(call)

    def _enqueue(self, item: Call | bytes) -> None:
        self._queue.append(item)
        self._queued.set()

    @property
    def has_queue(self) -> bool:
        return bool(self._queue)

    def queued_calls(self) -> list[Call]:
        return [item for item in self._queue if isinstance(item, Call)]

    def take_queue(self) -> list[Call | bytes]:
        queue, self._queue = self._queue, []
        return queue

    def new_id(self) -> str:
        """An id for a request of the relay, or for a retry."""
        self._last_number += 1
        return f"{ID_PREFIX}{os.getpid()}-{self._last_number}"

    def request(self, line: bytes, handler: Callable[[Mapping[str, Any]], None]) -> None:
        """Send a request of the relay, whatever the state; the client never sees the response."""
        assert self.process is not None
        self._handlers[mcp.id_key(mcp.load(line)["id"])] = handler
        self.process.input.send(line)

    def take_handler(self, key: str) -> Callable[[Mapping[str, Any]], None] | None:
        """The action for the response that has this id; None if the relay has not asked."""
        return self._handlers.pop(key, None)


class ServerProcess:
    """One process of the server. FileNotFoundError, PermissionError, OSError if it cannot be started."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - prctl must be called in the child
        )  # fmt: skip
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._output = self._child.stdout.fileno()
        os.set_blocking(self._output, False)
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
        self.input = PipeWriter(self._child.stdin.fileno())
        self.reading = anyio.CancelScope()
        """The scope in which its output is read."""
        self.answered = False
        """Whether it has answered any request."""
        self.served = False
        """Whether it has answered a request of the client."""
        self.initializing = False
        """Whether it was sent ``initialize``, and has not answered."""
        self._received: int | None = None
        """Bytes of its input that it has read, once it has ended; None if that is unknown."""
        self.failure = ""
        """The reason why the relay has ended it."""
        self.unfinished: set[str] = set()
        """Calls that may not be repeated and were given up: it may still be at work on them (see ``mcp.id_key``)."""

    @property
    def pid(self) -> int:
        return self._child.pid

    def lines(self) -> AsyncIterator[bytes]:
        return read_lines(self._output)

    def close_input(self) -> None:
        assert self._child.stdin is not None
        if not self._child.stdin.closed:
            with contextlib.suppress(OSError):
                anyio.notify_closing(self._child.stdin.fileno())
            self.input.abort()
            with contextlib.suppress(OSError):
                self._child.stdin.close()

    async def end(
        self, patience_s: float, grace_s: float, spares_daemons: bool = False, idle: bool = False
    ) -> int | None:
        """Wait ``patience_s`` for its exit, then end it and its descendants; its exit code, None if unknown.

        If it was ``idle`` and has exited with code 0, daemons are spared, too.
        """
        await self._wait_for_exit(EXITING_S)
        if not self._exited():
            self.close_input()
            await self._wait_for_exit(patience_s)
        spares_daemons = spares_daemons or (idle and self._exited_with_0())
        await subprocesses.end(self.pid, grace_s, adopted=True, spares_daemons=spares_daemons)
        assert self._child.stdin is not None
        if not self._child.stdin.closed:
            self._received = self.input.take_back()
            self.close_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1.0)
        if self._child.stdout is not None:
            self._child.stdout.close()
        bury_orphans(self.pid)
        return self._child.returncode

    async def _wait_for_exit(self, limit_s: float) -> None:
        with anyio.move_on_after(limit_s):
            while not self._exited():
                await anyio.sleep(0.01)

    def received(self, call: Call) -> bool:
        """Whether it may have read any of this call before it ended."""
        return self._received is None or call.offset < self._received

    def stopped(self) -> bool:
        """Whether a signal has stopped it, as far as is known."""
        try:
            facts = backend().facts(self.pid)
        except OSError:
            return False
        return facts is not None and facts.stopped

    async def kill(self, grace_s: float) -> None:
        """End it and its descendants now: SIGTERM, then SIGKILL after ``grace_s``."""
        await subprocesses.end(self.pid, grace_s, adopted=True)
        await anyio.sleep(CLOSED_OUTPUT_EXIT_S)
        self.reading.cancel()  # another process may hold the pipe open

    async def end_children(self, from_s: float, to_s: float, grace_s: float) -> None:
        """End the descendants that it started between two moments of the monotonic clock.

        They get ``grace_s`` to exit by themselves, and again as much after SIGTERM.
        """
        pause_s = 0.05
        with anyio.move_on_after(grace_s):
            while self._children(from_s, to_s):
                await anyio.sleep(pause_s)
            return
        await subprocesses.end_all(self._children(from_s, to_s), grace_s)

    def _children(self, from_s: float, to_s: float) -> list[ProcessId]:
        """Its descendants, and orphans that this process has adopted, that were started in that time."""
        processes = Processes(backend())
        sweep = processes.sweep()
        if (server := processes.identify(self.pid)) is None:
            return []
        descendants = {process for process, _ in sweep.tree(server)}
        for orphan in sweep.children.get(os.getpid(), ()):
            if orphan != self.pid:
                descendants |= {sweep.id(orphan), *(process for process, _ in sweep.tree(sweep.id(orphan)))}
        to_monotonic = time.monotonic() - time.time()
        started_s = {process: processes.backend.started_at(process.started) + to_monotonic for process in descendants}
        return [
            process
            for process, at_s in started_s.items()
            if from_s - START_TIME_STEP_S <= at_s <= to_s and sweep.has(process)
        ]

    def _exited(self) -> bool:
        """Whether it has exited. It is not reaped here: its pid must stay taken until its descendants are ended."""
        try:
            return self._status() is not None
        except ChildProcessError:
            return True

    def _exited_with_0(self) -> bool:
        try:
            status = self._status()
        except ChildProcessError:
            return False
        return status is not None and status.si_code == os.CLD_EXITED and status.si_status == 0

    def _status(self) -> os.waitid_result | None:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def backoff_s(config: McpConfig, failures: int) -> float:
    """The pause after so many failures in a row: it doubles each time, and part of it is random."""
    return pause_s(config.backoff_s, failures, MAX_PAUSE_S, random.random())
