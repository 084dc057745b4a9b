"""Out-of-memory kills, from the kernel log and from cgroups."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.cgroups import cgroup_v2
from yolo_supervisor.system.procfs import INITIAL_PIDS


class KernelLog:
    """The records of OOM kills in the kernel log, if it may be read."""

    RECORD = re.compile(rb"[^,;]*,[^,;]*,(\d+),[^;]*;([^\n]*(?:[Kk]illed|oom_reaper: reaped) process (\d+)\b[^\n]*)")
    AT_ONCE = 20_000
    """The largest number of records that are read in one call."""

    def __init__(self) -> None:
        self._fd = -1
        self._kills: dict[int, tuple[int, str]] = {}
        """For each pid, the time in microseconds since boot, and the line."""

    def killed(self, process: ProcessId) -> str | None:
        """The record of this process; None if there is none, or the log cannot be read."""
        if sys.platform != "linux" or not process.boot.endswith(f"/{INITIAL_PIDS}"):
            return None
        self._read()
        at_us, line = self._kills.get(process.pid, (0, ""))
        started_us = process.started * 1_000_000 // os.sysconf("SC_CLK_TCK")
        return line if line and at_us >= started_us else None

    def _read(self) -> None:
        """Read the new records. The descriptor keeps the position."""
        try:
            if self._fd < 0:
                self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        for _ in range(self.AT_ONCE):
            try:
                record = os.read(self._fd, 8192)
            except BrokenPipeError:  # the next record has been overwritten
                continue
            except OSError:  # no more records at present
                return
            if match := self.RECORD.match(record):
                self._kills[int(match[3])] = int(match[1]), match[2].decode("utf-8", "replace").strip()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def memory_kills(pid: int, folder: Path | None = None) -> tuple[Path, int] | None:
    """The process's cgroup, or the one given, and the number of OOM kills in it.

    None if they cannot be read.
    """
    try:
        folder = folder or cgroup_v2(pid)
        if folder is None:
            return None
        events = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
        return folder, int(events["oom_kill"])
    except (OSError, ValueError, KeyError):
        return None
