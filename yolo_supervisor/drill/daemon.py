"""The real program, but for its wall clock: that is as far ahead of the machine's, or behind, as a file says. A drill
cannot set the machine's own.

    python -m yolo_supervisor.drill.daemon SKEW-FILE run --project DIR
"""

from __future__ import annotations

import runpy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from yolo_supervisor.clock import SystemClock
from yolo_supervisor.files import glance


def skewed(skew: Path) -> type[SystemClock]:
    class Skewed(SystemClock):
        def now(self) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=float(glance(skew) or 0))

    return Skewed


if __name__ == "__main__":
    SystemClock.now = skewed(Path(sys.argv.pop(1))).now  # type: ignore[method-assign]  # the one place where it can be set
    runpy.run_module("yolo_supervisor", run_name="__main__")
