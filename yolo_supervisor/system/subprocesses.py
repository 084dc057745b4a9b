"""Run other programs with a time limit, and end their whole process tree at the limit."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import anyio

from yolo_supervisor.clock import BEAT_S, AwakeTime
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.system.daemons import daemons
from yolo_supervisor.system.process_backend import ProcessBackend, ProcessFacts, backend
from yolo_supervisor.system.process_table import Sweep
from yolo_supervisor.system.processes import VERIFY_S, Ending, Processes
from yolo_supervisor.system.subreaper import bury_orphans

OUTPUT_LIMIT = 4 * 1024 * 1024
"""Bytes that are kept of each output."""

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL for a command that reached its time limit."""

INTERRUPT_GRACE_S = 10.0
"""Seconds after SIGINT in which the hooks of git may restore what they have hidden."""

TERMINATING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
FORWARDED = (*TERMINATING, signal.SIGUSR1, signal.SIGUSR2)

started = 0
"""The number of commands that this process has started. The process scan subtracts them from the forks that it sees."""


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a command. ``exit`` is None at the time limit.

    ``truncated`` means that an output was longer than its limit.
    """

    exit: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class AttachedRun:
    """One run of a command with our terminal.

    ``exit`` is the exit code as in a shell, None at the time limit.
    """

    limit_s: float
    duration_s: float
    exit: int | None
    ending: Ending | None = None
    """The termination of its processes at the limit."""
    cancelled: bool = False
    """Whether a terminating signal arrived while they were being ended: then the command is not run again."""


async def run(
    command: Sequence[str],
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    grace_s: float = 0.0,
    output_limit: int = OUTPUT_LIMIT,
    interrupt: bool = False,
) -> Result:
    """Run the command for at most ``limit_s`` seconds, then end its process tree.

    The tree gets SIGTERM, and SIGKILL after ``grace_s``; with ``interrupt`` it gets SIGINT before, as by Ctrl-C.
    ``output_limit`` bytes of each output are kept. FileNotFoundError if there is no such program.
    """
    global started  # noqa: PLW0603 - the process scan compares it
    started += 1
    deferred = _DeferredSignals()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
    except BaseException:
        deferred.release()
        raise
    assert child.stdout is not None
    assert child.stderr is not None
    output: dict[int, bytearray] = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}

    truncated = False

    async def drain(fd: int) -> None:
        nonlocal truncated
        os.set_blocking(fd, False)
        while True:
            await anyio.wait_readable(fd)
            part = os.read(fd, 1 << 16)
            if not part:
                return
            kept = part[: output_limit - len(output[fd])]
            output[fd] += kept
            truncated |= len(kept) < len(part)

    timed_out = False
    try:
        deferred.release()
        with anyio.move_on_after(limit_s) as limit:
            async with anyio.create_task_group() as readers:
                for fd in output:
                    readers.start_soon(drain, fd)
            while child.poll() is None:  # both pipes are closed: the program is about to exit
                await anyio.sleep(0.001)
        timed_out = limit.cancelled_caught
    finally:
        if child.returncode is None:
            with anyio.CancelScope(shield=True):
                if interrupt:
                    await _interrupt(child.pid)
                await end(child.pid, grace_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # not reaped yet and a session leader, so the group is the child's
            child.wait()
        stdout, stderr = (bytes(output[pipe.fileno()]) for pipe in (child.stdout, child.stderr))
        child.stdout.close()
        child.stderr.close()
    return Result(None if timed_out else child.returncode, stdout, stderr, truncated)


class _DeferredSignals:
    """Holds signals back while a child is started.

    A handler that raises between fork and the return of ``Popen`` would leave a child that runs and that nothing ends.
    """

    def __init__(self) -> None:
        self._arrived: list[int] = []
        self._handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if callable(handler) and not getattr(handler, "__module__", "").startswith("asyncio"):  # those do not raise
                self._handlers[number] = handler
                signal.signal(number, self._defer)

    def _defer(self, number: int, _: FrameType | None) -> None:
        self._arrived.append(number)

    def release(self) -> None:
        """Handle the signals that have arrived, as before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for arrived in self._arrived:
            signal.raise_signal(arrived)


async def _interrupt(pid: int) -> None:
    """Interrupt our child, which leads a session and is not reaped yet, and wait for the end of its session."""
    os.killpg(pid, signal.SIGINT)
    with anyio.move_on_after(INTERRUPT_GRACE_S):
        while has_session(pid):
            await anyio.sleep(0.05)


def has_session(pid: int) -> bool:
    """Whether a process is left in the session that ``pid`` leads, or has led."""
    return any(facts.session == pid and not facts.zombie for facts in Processes(backend()).sweep().facts.values())


async def end(pid: int, grace_s: float, adopted: bool = False, spares_daemons: bool = False) -> Ending:
    """End our child ``pid`` with its process tree and its session.

    It must not be reaped yet. With ``adopted`` also the orphans that were reparented to us since it started (see
    ``adopt_orphans``), and those that fork faster than the process table can be read. The table is read again until no
    process is left, since programs start others while they exit; ``grace_s`` is shared by all rounds. With
    ``spares_daemons`` the daemons that it has started live on (see ``daemons``); its session has to be its own then.
    """
    processes = Processes(backend())
    ended = Ending()
    deadline = time.monotonic() + grace_s
    facts = processes.backend.facts(pid)
    if facts is None:
        return ended
    begun = facts.started  # older children, of a shell that replaced itself by us, are not the command's
    while True:
        sweep = processes.sweep()
        mine = [
            facts
            for facts in sweep.facts.values()
            if pid in (facts.pid, facts.session) or (adopted and facts.parent == os.getpid() and facts.started >= begun)
        ]
        if adopted:
            _reap(facts.pid for facts in mine if facts.zombie and facts.parent == os.getpid() and facts.pid != pid)
        roots = [sweep.id(facts.pid) for facts in mine if not facts.zombie]
        spared = _daemons_of(pid, roots, sweep, processes.backend) if spares_daemons else set[ProcessId]()
        roots = [root for root in roots if root not in {*ended.survived, *ended.refused, *spared}]
        left_s = deadline - time.monotonic()
        if not roots or left_s < -VERIFY_S:
            ended = replace(ended, survived=(*ended.survived, *roots))
            is_final = not adopted or spares_daemons or sys.platform != "linux"
            return ended if is_final else _end_faster(processes, pid, begun, ended)
        more = await end_all(roots, max(0.0, left_s), spared)
        ended = Ending(
            (*ended.terminated, *more.terminated),
            (*ended.killed, *more.killed),
            (*ended.survived, *more.survived),
            {**ended.refused, **more.refused},
        )


def _daemons_of(pid: int, roots: Iterable[ProcessId], sweep: Sweep, backend: ProcessBackend) -> set[ProcessId]:
    """The daemons that the child ``pid``, a session leader, has started. While it lives, its children are none."""
    started = {process for root in roots for process in (root, *(below for below, _ in sweep.tree(root)))}
    return daemons(sweep, started, [pid], backend, signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)


def _reap(pids: Iterable[int]) -> None:
    """Reap children that have exited."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _end_faster(processes: Processes, pid: int, begun: int, ended: Ending) -> Ending:
    """End the descendants that fork faster than the process table can be read."""
    from yolo_supervisor.system.freeze import Freezer

    def is_spared(facts: ProcessFacts) -> bool:
        return processes.hosts_sessions(facts, if_unknown=False)

    frozen = Freezer(processes, pid, begun, is_spared).kill_all()
    killed = [process for process in frozen.killed if process not in ended.killed]
    survived = {*ended.survived, *frozen.survived}
    survived = {process for process in survived if processes.liveness(process) is not Liveness.DEAD}
    refusals = {process: processes.refusal(process) for process in frozen.spared}
    refused = {process: refusal for process, refusal in refusals.items() if refusal is not None}
    refused = {
        process: refusal
        for process, refusal in {**ended.refused, **refused}.items()
        if processes.liveness(process) is not Liveness.DEAD
    }
    return replace(ended, killed=(*ended.killed, *killed), survived=tuple(survived), refused=refused)


async def end_all(roots: Sequence[ProcessId], grace_s: float, spared: Collection[ProcessId] = ()) -> Ending:
    """End these processes, which must be children of this one, with their trees.

    No signal goes to those in ``spared`` and to their descendants.
    """

    async def no_objection() -> str | None:
        return None

    return await Processes(backend()).terminate(roots, grace_s, no_objection, lambda: spared)


def run_attached(command: Sequence[str], limit_s: float) -> AttachedRun:
    """Run the command with our input and output, and forward signals to it.

    The limit is counted in time awake: a terminal stops (Ctrl-Z) and continues us together with the command.
    FileNotFoundError, PermissionError if it cannot be started.
    """
    with _signals() as wakeup_fd:
        began, awake = time.monotonic(), AwakeTime()
        # descriptors that were opened for the command, by <(...) for instance, are inherited; ours have CLOEXEC set
        child = subprocess.Popen(command, close_fds=False)
        while child.poll() is None:
            bury_orphans(child.pid)
            left_s = limit_s - awake.read()
            if left_s <= 0:
                ending = anyio.run(end, child.pid, GRACE_S, True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0)
                cancelled = not {*_received(wakeup_fd, 0.0)}.isdisjoint(TERMINATING)
                return AttachedRun(limit_s, time.monotonic() - began, None, ending, cancelled)
            for number in _received(wakeup_fd, min(left_s, BEAT_S)):
                if not _sent_by_terminal(number, child.pid):
                    child.send_signal(number)
        code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        return AttachedRun(limit_s, time.monotonic() - began, code)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Receive signals as bytes on a descriptor (see ``signal.set_wakeup_fd``)."""
    wakeup_fd, write_fd = os.pipe()
    os.set_blocking(wakeup_fd, False)
    os.set_blocking(write_fd, False)
    # an ignored signal stays ignored, for the command too: a shell in the background or nohup asked for that
    numbers = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    numbers.append(signal.SIGCHLD)  # except this one: if it were ignored, the exit code of the command would be lost
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    previous_fd = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        yield wakeup_fd
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(wakeup_fd)
        os.close(write_fd)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Defer SIGINT, SIGTERM and SIGHUP until the end of the block.

    Programs that are started in it inherit the blocked signals. For a section that must be finished or not begun, such
    as a change of several files by another program: a signal to the process group (Ctrl-C) would otherwise stop it in
    the middle. The section must have time limits.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _received(wakeup_fd: int, limit_s: float) -> list[int]:
    """The numbers of the signals that arrived, after at most ``limit_s``."""
    select.select([wakeup_fd], [], [], limit_s)
    with contextlib.suppress(BlockingIOError):
        return [number for number in os.read(wakeup_fd, 1 << 16) if number != signal.SIGCHLD]
    return []


def _sent_by_terminal(number: int, child: int) -> bool:
    """Whether the terminal sent this signal to the command as well.

    Ctrl-C goes to the whole foreground process group.
    """
    if number not in (signal.SIGINT, signal.SIGQUIT):
        return False
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp() == os.getpgid(child)
    except OSError:
        return False
    finally:
        os.close(terminal)
