"""Other programs, run with a limit: every command ends, its whole process group with it, and its output is bounded."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anyio

OUTPUT_LIMIT = 4 * 1024 * 1024

started = 0
"""How many commands this process has begun: the census tells its own forks from the world's by it."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended. ``exit`` is None where the limit ended it; ``stdout`` is cut at ``OUTPUT_LIMIT`` bytes."""

    exit: int | None
    stdout: bytes
    stderr: bytes


async def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> Result:
    """Run the command to its end, at most ``limit_s`` seconds; then its process group is killed.

    FileNotFoundError if there is no such program.
    """
    global started
    started += 1
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    output: dict[int, bytearray] = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}

    async def drain(fd: int) -> None:
        os.set_blocking(fd, False)
        while True:
            await anyio.wait_readable(fd)
            part = os.read(fd, 1 << 16)
            if not part:
                return
            output[fd] += part[: OUTPUT_LIMIT - len(output[fd])]

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
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its own session: the group is proven to be ours
            child.wait()
        stdout, stderr = (bytes(output[pipe.fileno()]) for pipe in (child.stdout, child.stderr))
        child.stdout.close()
        child.stderr.close()
    return Result(None if over else child.returncode, stdout, stderr)
