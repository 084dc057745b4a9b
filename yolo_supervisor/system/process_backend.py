"""The interface to the operating system's processes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yolo_supervisor.models import ProcessId

MAX_PID = 2**31 - 1
"""The largest pid that system calls accept."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """The kernel's facts about one process."""

    pid: int
    parent: int
    started: int
    zombie: bool
    comm: str
    cpu: int = 0
    """The processor time that it has used, in clock ticks."""
    session: int = 0
    """The pid of its session's leader; 0 if the kernel does not report it."""
    stopped: bool = False
    """Whether a signal such as SIGSTOP has stopped it."""


class ProcessHandle(Protocol):
    """A handle on one process. It never means another process that has the same pid later."""

    def signal(self, number: int) -> bool:
        """Send the signal; False if the process is over."""

    def over(self) -> bool: ...

    def close(self) -> None: ...


class ProcessBackend(Protocol):
    """Questions to the operating system.

    ``OSError`` means that the answer is unknown, not that a process is gone.
    """

    def boot(self) -> str:
        """Machine, boot and pid namespace: pids and start times are comparable within one of them."""

    def facts(self, pid: int) -> ProcessFacts | None:
        """The facts about the process with this pid; None if there is none."""

    def pids(self) -> list[int]: ...

    def started_at(self, started: int) -> float:
        """The start time as seconds since the epoch."""

    def same_start(self, started: int, text: str) -> bool:
        """Whether ``text`` is this start time as Claude Code writes it."""

    def owner(self, pid: int) -> int:
        """The user id of the process."""

    def argv(self, pid: int) -> list[str]: ...

    def environment(self, pid: int) -> dict[str, str]: ...

    def folder(self, pid: int) -> str: ...

    def executable(self, pid: int) -> str: ...

    def ignores(self, pid: int, number: int) -> bool:
        """Whether the process ignores the signal; True where the system does not say."""

    def has_open(self, pid: int, path: Path) -> bool:
        """Whether the process has the file open."""

    def listens(self, pid: int) -> bool:
        """Whether the process listens on a Unix socket; True where the system does not say."""

    def hold(self, process: ProcessId) -> ProcessHandle | None:
        """A handle on the process; None if it is over."""

    def newest(self) -> int | None:
        """The newest pid, or None if it is expensive to find.

        If it is unchanged, no process was started.
        """


def backend() -> ProcessBackend:
    """The process backend of this machine."""
    if sys.platform == "linux":
        from yolo_supervisor.system.procfs import ProcfsBackend

        return ProcfsBackend()
    from yolo_supervisor.system.portable import PsutilBackend

    return PsutilBackend()
