"""Other programs, run with a limit: every command ends, its whole process tree with it, and nothing of it is kept that
has no bound."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from yolo_supervisor.kernel import bury_orphans, kernel
from yolo_supervisor.processes import VERIFY_S, Ending, Processes
from yolo_supervisor.records import ProcessId

OUTPUT_LIMIT = 4 * 1024 * 1024

GRACE_S = 5.0
"""How long a command that has had its time may take to leave before it is killed."""

ENOUGH = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
PASSED_ON = (*ENOUGH, signal.SIGUSR1, signal.SIGUSR2)

started = 0
"""How many commands this process has begun: the census tells its own forks from the world's by it."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. ``exit`` is None where the limit ended it; ``cut`` tells that an output is not whole."""

    exit: int | None
    stdout: bytes
    stderr: bytes
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a command that has our terminal: ``exit`` is as a shell tells it, None where the limit ended it."""

    limit_s: float
    duration_s: float
    exit: int | None
    ending: Ending | None = None
    """How its processes were ended at the limit."""
    given_up: bool = False
    """Whether somebody wanted an end of it all while they were being ended: then it is not run again."""


async def run(
    command: Sequence[str],
    limit_s: float,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    grace_s: float = 0.0,
    bound: int = OUTPUT_LIMIT,
) -> Result:
    """Run the command to its end, at most ``limit_s`` seconds; then its processes are ended, after ``grace_s`` killed.
    Of each output ``bound`` bytes are kept.

    FileNotFoundError if there is no such program.
    """
    global started  # noqa: PLW0603 - the process scan compares it
    started += 1
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    output: dict[int, bytearray] = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}

    cut = False

    async def drain(fd: int) -> None:
        nonlocal cut
        os.set_blocking(fd, False)
        while True:
            await anyio.wait_readable(fd)
            part = os.read(fd, 1 << 16)
            if not part:
                return
            kept = part[: bound - len(output[fd])]
            output[fd] += kept
            cut |= len(kept) < len(part)

    over = False
    try:
        with anyio.move_on_after(limit_s) as limit:
            async with anyio.create_task_group() as readers:
                for fd in output:
                    readers.start_soon(drain, fd)
            while child.poll() is None:  # both pipes are at their end: the program is leaving
                await anyio.sleep(0.001)
        over = limit.cancelled_caught
    finally:
        if child.returncode is None:
            with anyio.CancelScope(shield=True):
                await end(child.pid, grace_s)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its own session, and not reaped yet: the group is surely ours
            child.wait()
        stdout, stderr = (bytes(output[pipe.fileno()]) for pipe in (child.stdout, child.stderr))
        child.stdout.close()
        child.stderr.close()
    return Result(None if over else child.returncode, stdout, stderr, cut)


async def end(pid: int, grace_s: float, adopted: bool = False) -> Ending:
    """End what our child ``pid`` has started, and itself: its tree, its session, and with ``adopted`` all that became
    ours when its parent ended (see ``adopt_orphans``). The child must not be reaped yet.

    It is looked again until nothing is left: much is started on the way out. The grace period is one for all.
    """
    processes = Processes(kernel())
    ended = Ending()
    deadline = time.monotonic() + grace_s
    while True:
        sweep = processes.sweep()
        if pid not in sweep.facts:
            return ended
        begun = sweep.facts[pid].started  # what is ours from before, if a shell became us, is not the command's
        roots = [
            sweep.id(facts.pid)
            for facts in sweep.facts.values()
            if not facts.zombie
            and (
                pid in (facts.pid, facts.session)
                or (adopted and facts.parent == os.getpid() and facts.started >= begun)
            )
        ]
        roots = [root for root in roots if root not in ended.survived and root not in ended.refused]
        left_s = deadline - time.monotonic()
        if not roots or left_s < -VERIFY_S:
            return replace(ended, survived=(*ended.survived, *roots))
        more = await end_all(roots, max(0.0, left_s))
        ended = Ending(
            (*ended.terminated, *more.terminated),
            (*ended.killed, *more.killed),
            (*ended.survived, *more.survived),
            {**ended.refused, **more.refused},
        )


async def end_all(roots: Sequence[ProcessId], grace_s: float) -> Ending:
    """End these processes, which are known to be ours, and their trees."""

    async def holds() -> str | None:
        return None

    return await Processes(kernel()).terminate(roots, grace_s, holds)


def run_attached(command: Sequence[str], limit_s: float) -> Attempt:
    """Run the command with our own input and output, as if it had been called itself; signals are passed on to it.

    FileNotFoundError, PermissionError if it cannot be started.
    """
    with _signals() as bell:
        began = time.monotonic()
        # what was opened for the command, by <(...) say, stays open; ours is never passed on
        child = subprocess.Popen(command, close_fds=False)
        while child.poll() is None:
            bury_orphans(child.pid)
            left_s = began + limit_s - time.monotonic()
            if left_s <= 0:
                ending = anyio.run(end, child.pid, GRACE_S, True)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(0)
                given_up = not {*_rung(bell, 0.0)}.isdisjoint(ENOUGH)
                return Attempt(limit_s, time.monotonic() - began, None, ending, given_up)
            for number in _rung(bell, left_s):
                if not _told_by_terminal(number, child.pid):
                    child.send_signal(number)
        code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        return Attempt(limit_s, time.monotonic() - began, code)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of the signals that reach us can be read."""
    bell, clapper = os.pipe()
    os.set_blocking(bell, False)
    os.set_blocking(clapper, False)
    # what is ignored stays so: whoever started us in the background, or under nohup, wants the command to ignore it too
    heard = [number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    heard.append(signal.SIGCHLD)  # but this one, which would hide from us how the command has ended
    before = {number: signal.signal(number, lambda *_: None) for number in heard}
    woken_by = signal.set_wakeup_fd(clapper, warn_on_full_buffer=False)
    try:
        yield bell
    finally:
        signal.set_wakeup_fd(woken_by)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(bell)
        os.close(clapper)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Whoever wants to end us, and what we start meanwhile, waits until this is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rung(bell: int, limit_s: float) -> list[int]:
    """The signals that have come, at the latest after ``limit_s``."""
    select.select([bell], [], [], limit_s)
    with contextlib.suppress(BlockingIOError):
        return [number for number in os.read(bell, 1 << 16) if number != signal.SIGCHLD]
    return []


def _told_by_terminal(number: int, child: int) -> bool:
    """Whether the terminal has sent the signal to the command, too: it sends Ctrl-C to the group that runs in front."""
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
