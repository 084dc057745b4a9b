"""The real program with two additions for the drill.

Its wall clock differs from the machine's by the seconds that a file holds: a drill cannot set the machine's clock. At
SIGUSR1 it uses up all memory that it may have.

    python -m yolo_supervisor.drill.daemon_under_test SKEW-FILE run --project DIR
"""

from __future__ import annotations

import resource
import runpy
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from yolo_supervisor.clock import SystemClock
from yolo_supervisor.fs.read import read_or_none


def skewed_clock(skew: Path) -> type[SystemClock]:
    """A system clock whose wall time is shifted by the seconds in a file."""

    class Skewed(SystemClock):
        def now(self) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=float(read_or_none(skew) or 0))

    return Skewed


_allocated: list[bytearray] = []


def starve(*_: object) -> None:
    """Use up the memory: from now on every allocation may fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))
    size = 2**20
    while size >= 256:
        try:
            _allocated.append(bytearray(size))
        except MemoryError:
            size //= 2


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, starve)
    SystemClock.now = skewed_clock(Path(sys.argv.pop(1))).now  # type: ignore[method-assign]  # the one place where it can be set
    runpy.run_module("yolo_supervisor", run_name="__main__")
