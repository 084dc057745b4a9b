"""The interface to the operating system's processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from yolo_supervisor.models import ProcessId

MAX_PID = 2**31 - 1
"""The largest pid that system calls accept."""


class FileId(NamedTuple):
    """A file or folder, however it is reached. The inode may be given to another file once this one is removed."""

    device: int
    inode: int


def file_id(path: str | Path) -> FileId:
    """The file that the path leads to. OSError."""
    found = os.stat(path)
    return FileId(found.st_dev, found.st_ino)


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
    terminal: int = 0
    """The number of its controlling terminal; 0 without one."""
    ending: bool = False
    """Whether it runs no code any more, though it is no zombie yet; False where the system does not say."""


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

    def argv(self, pid: int) -> list[str]:
        """The command line, for a look at it: bytes that are no text are replaced."""

    def words(self, pid: int) -> list[bytes]:
        """The command line, to be repeated."""

    def environment(self, pid: int) -> dict[str, str]: ...

    def folder(self, pid: int) -> str: ...

    def executable(self, pid: int) -> str: ...

    def ignores(self, pid: int, number: int) -> bool:
        """Whether the process ignores the signal; True where the system does not say."""

    def folder_ids(self, pid: int) -> list[FileId]:
        """The working folder of the process and the folders above it, the innermost first.

        They are compared by device and inode, because a bind mount or a symbolic link gives a folder another path.
        """

    def file_id(self, pid: int, name: str) -> FileId:
        """The file that the process means by this name, from its working folder and its root."""

    def writes_to(self, pid: int, path: Path, file: FileId) -> bool:
        """Whether the process has this file open for writing; False where the system does not say how.

        ``path`` is our path of the file.
        """

    def watched(self, pid: int) -> frozenset[FileId]:
        """The files and folders whose changes the kernel reports to the process; none where the system does not say."""

    def listens(self, pid: int) -> bool:
        """Whether the process listens on a Unix socket; True where the system does not say."""

    def hold(self, process: ProcessId) -> ProcessHandle | None:
        """A handle on the process; None if it is over."""

    def newest(self) -> int | None:
        """The newest pid, or None if it is expensive to find.

        If it is unchanged, no process was started.
        """

    def signal_sessions(self, sessions: Collection[int], number: int) -> tuple[int, ...]:
        """Signal everything in the sessions at once; the sessions in which there is a process.

        Empty where the system does not report sessions.
        """


def backend() -> ProcessBackend:
    """The process backend of this machine."""
    if sys.platform == "linux":
        from yolo_supervisor.system.procfs import ProcfsBackend

        return ProcfsBackend()
    from yolo_supervisor.system.portable import PsutilBackend

    return PsutilBackend()
