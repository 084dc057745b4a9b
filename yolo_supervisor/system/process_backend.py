"""What the supervisor asks of the operating system about processes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yolo_supervisor.models import ProcessId

MAX_PID = 2**31 - 1
"""What a pid can be at all, for the calls that take one."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What the kernel says of one process."""

    pid: int
    parent: int
    started: int
    zombie: bool
    comm: str
    cpu: int = 0
    """The processor time that it has used, in clock ticks."""
    session: int = 0
    """The pid of its session's leader; 0 where the kernel does not say."""


class ProcessHandle(Protocol):
    """A hold on one process that no other can slip into."""

    def signal(self, number: int) -> bool:
        """Send the signal; False if the process is over."""

    def over(self) -> bool: ...

    def close(self) -> None: ...


class ProcessBackend(Protocol):
    """What we ask of the operating system. ``OSError`` means that it did not answer: unknown, not gone."""

    def boot(self) -> str:
        """The world in which pids and start times mean something: machine, boot, pid namespace."""

    def facts(self, pid: int) -> ProcessFacts | None:
        """The process with this pid, None if there is none."""

    def pids(self) -> list[int]: ...

    def started_at(self, started: int) -> float:
        """The start time as seconds since the epoch."""

    def same_start(self, started: int, text: str) -> bool:
        """Whether ``text`` is how Claude Code spells this start time."""

    def owner(self, pid: int) -> int:
        """The user id the process runs as."""

    def argv(self, pid: int) -> list[str]: ...

    def environment(self, pid: int) -> dict[str, str]: ...

    def folder(self, pid: int) -> str: ...

    def executable(self, pid: int) -> str: ...

    def has_open(self, pid: int, path: Path) -> bool:
        """Whether the process has the file open."""

    def hold(self, process: ProcessId) -> ProcessHandle | None:
        """A handle on the process; None if it is over."""

    def newest(self) -> int | None:
        """The pid given out last, where that is cheap to know: unchanged, it proves that nothing was started."""


def backend() -> ProcessBackend:
    """The process backend of this machine."""
    if sys.platform == "linux":
        from yolo_supervisor.system.procfs import ProcfsBackend

        return ProcfsBackend()
    from yolo_supervisor.system.portable import PsutilBackend

    return PsutilBackend()
