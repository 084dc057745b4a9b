"""The real program, but for its wall clock, which is as far ahead of the machine's, or behind, as a file says: a drill
cannot set the machine's own. And it takes all the memory that it may have when it gets SIGUSR1.

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


def skewed(skew: Path) -> type[SystemClock]:
    class Skewed(SystemClock):
        def now(self) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=float(read_or_none(skew) or 0))

    return Skewed


hoard: list[bytearray] = []


def starve(*_: object) -> None:
    """From now on every allocation of the daemon's may fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))
    size = 2**20
    while size >= 256:
        try:
            hoard.append(bytearray(size))
        except MemoryError:
            size //= 2


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, starve)
    SystemClock.now = skewed(Path(sys.argv.pop(1))).now  # type: ignore[method-assign]  # the one place where it can be set
    runpy.run_module("yolo_supervisor", run_name="__main__")
