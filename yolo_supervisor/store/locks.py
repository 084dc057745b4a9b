"""Lock files and lock folders: ours by flock, other programs' by their own convention."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from yolo_supervisor.clock import AwakeTime
from yolo_supervisor.store.atomic import refuse_links, sync_folder
from yolo_supervisor.store.disk import Disk


class Busy(Exception):
    """Another process holds the lock at ``path``, or took what it protects; nothing was changed."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


# -- locks ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_lock(disk: Disk, fd: int, path: Path, limit_s: float) -> Iterator[None]:
    """Hold the exclusive flock of the open file at ``path``; ``Busy`` if it is not free within ``limit_s`` seconds.

    The kernel releases it when its holder dies, so it is never stale.
    """
    deadline, pause_s = time.monotonic() + limit_s, 0.0001
    while True:
        try:
            disk.lock(fd)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy("another process is writing to the store", path) from None
            time.sleep(pause_s)
            pause_s = min(0.002, pause_s * 1.5)
    try:
        yield
    finally:
        disk.unlock(fd)


class LockAges:
    """The time for which each lock folder was seen unchanged, in time awake.

    The time stamp alone proves nothing: after a step of the wall clock a held lock would look stale.
    """

    def __init__(self, awake: Callable[[], float] | None = None) -> None:
        self._awake = awake or AwakeTime().read
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}

    def age_s(self, path: Path, found: os.stat_result) -> float:
        stamp, now_s = (found.st_ino, found.st_mtime_ns), self._awake()
        before = self._seen.get(path)
        if before is None or before[0] != stamp:
            self._seen[path] = stamp, now_s
            return 0.0
        return now_s - before[1]

    def forget(self, path: Path) -> None:
        self._seen.pop(path, None)


@contextlib.contextmanager
def folder_lock(disk: Disk, path: Path, stale_s: float, ages: LockAges | None = None) -> Iterator[None]:
    """Hold a lock folder, by its owners' convention; ``Busy`` if another process has it.

    A lock that was not refreshed for ``stale_s`` seconds (by ``ages`` if given, else by its time stamp) was left by a
    process that died. It is taken over by a rename, which only one of several processes can win, so that a fresh lock
    is never removed in its place.
    """
    try:
        disk.mkdir(path, 0o777)
    except FileExistsError:
        _take_over(disk, path, stale_s, ages)
    if ages is not None:
        ages.forget(path)
    made = _identity(disk, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _identity(disk, path) == made:  # otherwise another process has taken it over
                disk.rmdir(path)


def put_aside(disk: Disk, path: Path, aside: Path, stale_s: float, ages: LockAges) -> None:
    """Move a lock file away, if it is still the one that was seen unchanged for ``stale_s`` seconds.

    ``Busy`` if it is another file now. OSError if it cannot be moved (to another file system, say): then it stays.
    """
    found = refuse_links(disk, path)
    if found is None or ages.age_s(path, found) < stale_s:
        raise Busy(f"{path} changed hands", path)
    disk.rename(path, aside)
    if _identity(disk, aside) != (found.st_ino, found.st_mtime_ns):
        with contextlib.suppress(OSError):
            disk.link(aside, path)  # fails if there is a newer one already
        raise Busy(f"{path} changed hands", path)
    sync_folder(disk, path.parent)


def _identity(disk: Disk, path: Path) -> tuple[int, int] | None:
    """Inode and time of a lock; an inode number alone is soon given to another file."""
    found = disk.status(path)
    return (found.st_ino, found.st_mtime_ns) if found else None


def _take_over(disk: Disk, path: Path, stale_s: float, ages: LockAges | None) -> None:
    """Take over a stale lock folder. The parent folder's flock admits one process, so that no fresh lock is moved."""
    fd = disk.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.lock(fd)
        found = disk.status(path)
        if found is None:
            raise Busy(f"{path} changed hands", path)
        age_s = ages.age_s(path, found) if ages is not None else time.time() - found.st_mtime
        if not stat.S_ISDIR(found.st_mode) or age_s < stale_s:
            raise Busy(f"{path} is held", path)
        if disk.names(path):
            raise Busy(f"{path} is not empty, so it follows another program's rule", path)
        aside = path.with_name(f"{path.name}.{os.getpid()}.stale")
        disk.rename(path, aside)
        if _identity(disk, aside) != (found.st_ino, found.st_mtime_ns):
            disk.rename(aside, path)
            raise Busy(f"{path} is held", path)
        with contextlib.suppress(OSError):
            disk.rmdir(aside)
        disk.mkdir(path, 0o777)
    except BlockingIOError:
        raise Busy(f"{path} is being taken over", path) from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY):
            raise Busy(f"{path} changed hands", path) from None
        raise
    finally:
        disk.close(fd)
