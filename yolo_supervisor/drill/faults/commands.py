"""Commands that do not exit."""

from __future__ import annotations

import random
import sys

from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault


def _command(sandbox: Sandbox, program: str) -> Expectation:
    """Run the program with a time limit, and expect that no process of it is left in its folder."""
    folder = sandbox.new_folder()
    child = sandbox.start_command("exec", "--timeout", "1", "--", sys.executable, "-c", program, folder=folder)
    return Expectation(
        lambda: child.poll() == 124 and not sandbox.processes_in(folder), frozenset({sys.executable}), ("terminated",)
    )


def command_hangs(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A command hangs, and so does a process that it started in another session."""
    return _command(sandbox, "import subprocess as s; s.Popen(['setsid', 'sleep', '3600']); s.run(['sleep', '3600'])")


def command_ignores_sigterm(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A command exceeds its time limit and ignores SIGTERM."""
    return _command(sandbox, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)")


FAULTS: tuple[Fault, ...] = (
    command_hangs,
    command_ignores_sigterm,
)
