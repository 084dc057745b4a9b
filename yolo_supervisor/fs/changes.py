"""Repeated scans of files, at a cost that grows with the number of changed ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from yolo_supervisor.fs.read import read_or_none

T = TypeVar("T")

REMEMBERED = 10_000
"""The largest number of parsed files that are kept. Task lists of past weeks need not be."""

PORTION = 1000
"""The number of files that are checked in turn in a scan of a changed folder, beside the new ones."""

QUIET = 250
"""The number of files that are checked in turn in a scan of an unchanged folder."""

EVERY = sys.maxsize

RECENT_S = 0.1
"""The age up to which a file is not remembered: it may change again within one tick of its time stamp."""


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it is missing or cannot be read."""
    try:
        return listed(folder)
    except (OSError, ValueError):
        return []


def listed(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it is missing.

    OSError if it exists and cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


class ParsedFileCache(Generic[T]):
    """Parses a file again only after it has changed."""

    def __init__(self, parse: Callable[[bytes, Path], T | None]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, int, int], T | None]] = {}

    def get(self, path: Path) -> T | None:
        """The parsed content; None if there is no file, or it cannot be read."""
        try:
            status = path.stat()
        except (OSError, ValueError):
            self._known.pop(path, None)
            return None
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        data = read_or_none(path)
        value = None if data is None else self._parse(data, path)
        if not _recent(status.st_mtime_ns, time.time_ns()):
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[path] = stamp, value
        return value


class UnreadFiles:
    """The names of changed files that are still to be read: a reading that was interrupted goes on where it stopped."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def read(self, changed: Iterable[str], read: Callable[[str], object]) -> Iterator[None]:
        """Read these files and those that are left from before, one in each step."""
        self._names.update(dict.fromkeys(changed))
        while self._names:
            name = next(iter(self._names))
            read(name)
            del self._names[name]
            yield


class DirectoryScanner:
    """Finds the files in a folder that have changed since the last scan.

    A file that appears, disappears or is replaced changes its folder, and is seen at once. A file that is written in
    place does not change the folder, and is seen when its turn comes: at once in a folder of up to ``PORTION`` files,
    some scans later in a larger one. Callers that cannot wait name the files to check ``closely``.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self._path = str(path)  # a path object for each name would cost more than the scan
        self._wanted = wanted
        self._listed: tuple[int, int] | None = None
        """The folder's stamp when it was listed; None if it must be listed again."""
        self._there: dict[str, int] = {}
        """The names that were listed then, with their inodes."""
        self._known: dict[str, tuple[int, int, int]] = {}
        """The inode, size and time of each file."""
        self._unsure: set[str] = set()
        """Files that may have changed again since, within one tick of their time stamp."""
        self._turns: list[str] = []
        self._next = 0

    def look(self, closely: Iterable[str] = (), quiet: int = QUIET) -> list[str]:
        """The names of the files that were created, changed or removed.

        OSError if the folder cannot be read. ``quiet`` is the number of files that are checked in turn if the folder is
        unchanged.
        """
        now_ns = time.time_ns()
        before = self._listed
        gone, due = self._list(now_ns)
        due |= self._unsure
        due.update(closely, self._turn(quiet if before is not None and before == self._listed else max(quiet, PORTION)))
        self._unsure = set()
        return [*gone, *(name for name in due if self._changed(name, now_ns))]

    def _list(self, now_ns: int) -> tuple[list[str], set[str]]:
        """The files that are gone, and those that are new or replaced. Then all files are checked in turn."""
        try:
            status = os.stat(self._path)
            stamp = status.st_mtime_ns, status.st_ino
            if stamp == self._listed:
                return [], set()
            with os.scandir(self._path) as entries:
                there = {entry.name: entry.inode() for entry in entries}
        except (FileNotFoundError, NotADirectoryError, ValueError):  # a path with a NUL, that a damaged record names
            stamp, there = None, {}
        before, self._there = self._there, there
        self._listed = stamp if stamp and not _recent(stamp[0], now_ns) else None
        gone = [name for name in before.keys() - there.keys() if self._known.pop(name, None)]
        fresh = {name for name, inode in there.items() if before.get(name) != inode and self._wanted(name)}
        if gone or not fresh <= self._known.keys():
            self._turns, self._next = [name for name in there if name in self._known or name in fresh], 0
        return gone, fresh

    def _turn(self, portion: int) -> list[str]:
        if portion >= len(self._turns):  # all of them, independent of the end of the last scan
            self._next = 0
            return self._turns
        first, self._next = self._next, self._next + portion
        if self._next >= len(self._turns):
            self._next = 0
        return self._turns[first : first + portion]

    def _changed(self, name: str, now_ns: int) -> bool:
        try:
            status = os.stat(f"{self._path}/{name}")
        except (OSError, ValueError):
            return self._known.pop(name, None) is not None
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        unsure = _recent(status.st_mtime_ns, now_ns)
        if unsure:
            self._unsure.add(name)
        if stamp == self._known.get(name) and not unsure:
            return False
        self._known[name] = stamp
        return True


def _recent(written_ns: int, now_ns: int) -> bool:
    return abs(now_ns - written_ns) <= RECENT_S * 1e9
