"""No process of a test outlives the tests, however these end.

Each process that runs tests puts a mark into its environment, which all that it starts inherit. Run as a program, this
module waits until that process is gone (its end of a pipe is closed), and then kills all that still bears the mark.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "YOLO_TESTS_MARK"
CHILD_MARK: Final = "YOLO_TESTS_CHILD"
"""Names the ``Children`` of one test that a process descends from."""
SETTLE_S: Final = 5.0
"""Processes that were just killed may take a moment to vanish."""


class Guard:
    """Starts the program that kills leftover processes, and reports them at a regular end."""

    def __init__(self) -> None:
        self._mark = new_mark()
        os.environ[MARK] = self._mark
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        self._program = subprocess.Popen(
            [sys.executable, __file__, self._mark], stdin=subprocess.PIPE, env=environment, start_new_session=True
        )

    def leftovers(self) -> list[str]:
        """The processes that still run, each with its test; waits a moment for those that are ending."""
        deadline = time.monotonic() + SETTLE_S
        while (found := marked(MARK, self._mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return sorted(describe(pid) for pid in found)

    def close(self) -> None:
        """Kill all leftover processes, and end."""
        assert self._program.stdin is not None
        self._program.stdin.close()
        self._program.wait()


def new_mark() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def marked(name: str, mark: str) -> list[int]:
    """The living processes that bear the mark, without this one."""
    entry = f"{name}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pid = int(folder.name)
            if pid != os.getpid() and entry in (folder / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def describe(pid: int) -> str:
    """Describe a process: its command and its test."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return f"{pid} (ended)"
    test = next((entry for entry in environment if entry.startswith(b"PYTEST_CURRENT_TEST=")), b"=unknown")
    return f"{argv[:200]} (process {pid}, started in {test.partition(b'=')[2].decode(errors='replace')})"


def kill_all(name: str, mark: str) -> None:
    """Kill until no process is left: one that is killed last may have started another."""
    while found := marked(name, mark):
        for pid in found:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    kill_all(MARK, sys.argv[1])
