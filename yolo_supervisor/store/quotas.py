"""Quotas of folders that grow with what other programs do: the oldest files are removed first."""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.store.disk import Disk


@dataclass(frozen=True, slots=True)
class Quota:
    """The largest size of a folder."""

    size: int
    """In bytes."""
    files: int
    rest: float = 0.9
    """The part that is left after files were removed, so that not each further file exceeds the quota again."""


QUARANTINE = Quota(64 * 2**20, 1000)
BACKUPS = Quota(256 * 2**20, 4000)
CRASHES = Quota(16 * 2**20, 200, rest=1)
MOVED_LOCKS = Quota(64 * 2**20, 100)


@dataclass(frozen=True, slots=True)
class Pruned:
    """The files that were removed from a folder."""

    folder: str
    files: int
    size: int


class QuotaFolder:
    """A folder with a quota. It is listed only when enough was added since the last time."""

    def __init__(self, disk: Disk, folder: Path, quota: Quota, pattern: str = ".*") -> None:
        """``pattern`` is that of the names that count; other files stay."""
        self._pattern = re.compile(pattern)
        self._disk = disk
        self._folder = folder
        self._quota = quota
        self._size_left = self._files_left = 0
        """The bytes and files that may be added before the folder is listed again."""

    def added(self, size: int) -> bool:
        """Count a file that was added. Returns whether the folder may exceed its quota now."""
        self._size_left -= size
        self._files_left -= 1
        return self._size_left < 0 or self._files_left < 0

    def prune(self, needed: Container[str] = ()) -> Pruned | None:
        """Remove the oldest files above the quota, but never a needed one and the newest one; None if none was removed.

        A file is as old as its last change of name or content. A file that cannot be removed is left.
        """
        there = []
        for name in filter(self._pattern.fullmatch, self._disk.names(self._folder)):
            status = self._disk.status(self._folder / name)
            if status is not None and stat.S_ISREG(status.st_mode):
                there.append((status.st_ctime_ns, name, status.st_size))
        there.sort()
        size, files = sum(each[2] for each in there), len(there)
        removed = removed_size = 0
        if size > self._quota.size or files > self._quota.files:
            for _, name, file_size in there[:-1]:
                if size <= self._quota.size * self._quota.rest and files <= self._quota.files * self._quota.rest:
                    break
                if name not in needed and self._remove(name):
                    size, files = size - file_size, files - 1
                    removed, removed_size = removed + 1, removed_size + file_size
        self._size_left, self._files_left = self._quota.size - size, self._quota.files - files
        return Pruned(self._folder.name, removed, removed_size) if removed else None

    def _remove(self, name: str) -> bool:
        try:
            self._disk.unlink(self._folder / name)
        except OSError:
            return False
        return True


def prune_moved_locks(disk: Disk, folder: Path) -> None:
    """Keep our folder in a repository within its quota of moved locks. Other files in it stay.

    A folder that cannot be listed is left: the lock that was just moved into it is moved all the same.
    """
    with contextlib.suppress(OSError):
        QuotaFolder(disk, folder, MOVED_LOCKS, r"[^/]+\.lock-.+").prune()
