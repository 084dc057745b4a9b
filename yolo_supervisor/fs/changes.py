"""Neighbours' files, looked at again and again: a look costs what has changed, not what is there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from yolo_supervisor.fs.read import read_or_none

T = TypeVar("T")

REMEMBERED = 10_000
"""How many parsed files are kept at most: the lists of weeks gone by need not be."""

PORTION = 1000
"""How many files have their turn in a look at a folder that has changed, beside those that have to be looked at."""

QUIET = 250
"""How many have in a look at folders that have not."""

EVERY = sys.maxsize

RECENT_S = 0.1
"""A file written this short ago may be written again within the same tick of its time stamp: not remembered yet."""


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it is missing or cannot be read."""
    try:
        return listed(folder)
    except (OSError, ValueError):
        return []


def listed(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it is missing. OSError if it is there and cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


class ParsedFileCache(Generic[T]):
    """Files parsed once for as long as they stay unchanged."""

    def __init__(self, parse: Callable[[bytes, Path], T | None]) -> None:
        self._parse = parse
        self._known: dict[Path, tuple[tuple[int, int, int], T | None]] = {}

    def get(self, path: Path) -> T | None:
        """What the file says; None if there is none, or it cannot be read."""
        try:
            found = path.stat()
        except (OSError, ValueError):
            self._known.pop(path, None)
            return None
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        data = read_or_none(path)
        value = None if data is None else self._parse(data, path)
        if not _recent(found.st_mtime_ns, time.time_ns()):
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[path] = stamp, value
        return value


class DirectoryScanner:
    """What has changed in a folder since the last look.

    A file that appears, goes, or is replaced changes its folder, and is seen at once. One that is written in its place
    does not; it is seen when it has its turn: in a folder of up to a portion of files at once, in a larger one some
    looks later. Whoever cannot wait for that says which files to look at ``closely``.
    """

    def __init__(self, path: Path, wanted: Callable[[str], bool]) -> None:
        self._path = str(path)  # to make a path of each name would cost more than the look
        self._wanted = wanted
        self._listed: tuple[int, int] | None = None
        """The folder's own stamp when it was listed; None if it must be listed anew."""
        self._there: dict[str, int] = {}
        """What was listed then, with the inodes that the folder names."""
        self._known: dict[str, tuple[int, int, int]] = {}
        """Of each file its inode, size and time."""
        self._unsure: set[str] = set()
        """Files that may have been written again since, within the same tick of their time stamp."""
        self._turns: list[str] = []
        self._next = 0

    def look(self, closely: Iterable[str] = (), quiet: int = QUIET) -> list[str]:
        """The names of the files that were made, changed or removed. OSError if the folder cannot be read.

        ``quiet`` is how many files have their turn while the folder itself is as it was.
        """
        now_ns = time.time_ns()
        before = self._listed
        gone, due = self._list(now_ns)
        due |= self._unsure
        due.update(closely, self._turn(quiet if before is not None and before == self._listed else max(quiet, PORTION)))
        self._unsure = set()
        return [*gone, *(name for name in due if self._changed(name, now_ns))]

    def _list(self, now_ns: int) -> tuple[list[str], set[str]]:
        """The files that are gone, and those that are new, or others than before. All have their turn afterwards."""
        try:
            found = os.stat(self._path)
            stamp = found.st_mtime_ns, found.st_ino
            if stamp == self._listed:
                return [], set()
            with os.scandir(self._path) as entries:
                there = {entry.name: entry.inode() for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            stamp, there = None, {}
        before, self._there = self._there, there
        self._listed = stamp if stamp and not _recent(stamp[0], now_ns) else None
        gone = [name for name in before.keys() - there.keys() if self._known.pop(name, None)]
        fresh = {name for name, inode in there.items() if before.get(name) != inode and self._wanted(name)}
        if gone or not fresh <= self._known.keys():
            self._turns, self._next = [name for name in there if name in self._known or name in fresh], 0
        return gone, fresh

    def _turn(self, portion: int) -> list[str]:
        if portion >= len(self._turns):  # all of them, wherever the last look has stopped
            self._next = 0
            return self._turns
        first, self._next = self._next, self._next + portion
        if self._next >= len(self._turns):
            self._next = 0
        return self._turns[first : first + portion]

    def _changed(self, name: str, now_ns: int) -> bool:
        try:
            found = os.stat(f"{self._path}/{name}")
        except (OSError, ValueError):
            return self._known.pop(name, None) is not None
        stamp = found.st_ino, found.st_size, found.st_mtime_ns
        unsure = _recent(found.st_mtime_ns, now_ns)
        if unsure:
            self._unsure.add(name)
        if stamp == self._known.get(name) and not unsure:
            return False
        self._known[name] = stamp
        return True


def _recent(written_ns: int, now_ns: int) -> bool:
    return abs(now_ns - written_ns) <= RECENT_S * 1e9
