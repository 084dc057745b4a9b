"""Looks with a budget: a file or a folder of any size is read in portions, each look after the one before.

A document of the usual size is read whole by each look. Of a larger one a look sees a part, and the next one goes on
where it stopped, so that no project can delay the others.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from yolo_supervisor.fs.bounded import open_regular

if TYPE_CHECKING:
    from os import _ScandirIterator

LOOK_LIMIT_S = 0.02
"""The time after which a look at a folder stops."""


class FilePortions:
    """A file of lines that is read in portions of at most ``size`` bytes."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self._at = 0
        self.partial = False
        """Whether the last look saw only a part."""

    def next(self) -> bytes:
        """The next whole lines; all of a file up to ``size`` bytes. Nothing if it cannot be read."""
        try:
            fd = open_regular(self._path)
        except OSError:
            self._at, self.partial = 0, False
            return b""
        try:
            data = os.pread(fd, self._size + 1, self._at)
        except OSError:
            data = b""
        finally:
            os.close(fd)
        self.partial = self._at > 0 or len(data) > self._size
        if len(data) <= self._size:  # the end
            self._at = 0
            return data
        whole = data.rfind(b"\n", 0, self._size) + 1 or self._size
        self._at += whole
        return data[:whole]


class FolderPortions:
    """A folder whose names are listed in portions of at most ``number``."""

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number = number
        self._entries: _ScandirIterator[str] | None = None
        """The rest of the listing that the last look began."""
        self._first: list[str] = []
        """The first name of that rest: it had to be read to know that there is a rest."""
        self.partial = False
        """Whether the last look saw only a part."""

    def next(self) -> list[str]:
        """The next names, sorted; all of a folder with up to ``number``. Nothing if it cannot be listed."""
        until_s = time.monotonic() + LOOK_LIMIT_S
        found, self._first = self._first, []
        self.partial = self._entries is not None
        with contextlib.suppress(OSError, ValueError):
            entries = self._entries or os.scandir(self._path)
            self._entries = None
            for entry in entries:
                if len(found) >= self._number or (found and time.monotonic() > until_s):
                    self._entries, self._first, self.partial = entries, [entry.name], True
                    break
                found.append(entry.name)
        return sorted(found)

    def close(self) -> None:
        """Forget how far the listing has come, and free its descriptor."""
        entries, self._entries, self._first = self._entries, None, []
        if entries is not None:
            entries.close()
