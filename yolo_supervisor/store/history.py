"""The journal's entries for people, in order, over all segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.journal import LIMIT, read_lines, refuse_newer, segments
from yolo_supervisor.store.lines import Begun, Done, Entry, Promise, fields


class History:
    """Reads the entries in order, over all segments. Nothing is changed, and no lock is needed.

    It leaves out what failed, the beginning of an operation, and a promise that is not kept yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = Disk()
        self._seq = 0
        self._head = b""
        """The newest segment's first line, which identifies it: an inode number is soon given to another file."""
        self._offset = 0
        self._promised: dict[int, Promise] = {}

    def new_entries(self) -> Iterator[Entry]:
        """The entries since the last call.

        OSError if there is a journal and it cannot be read, ``TooNew`` if a newer program wrote it.
        """
        if not self._head:
            refuse_newer(self._disk, self._path.parent)
        newest = self._disk.read(self._path, LIMIT) or b""  # before the others are listed: it may be closed meanwhile
        if not (self._head and newest.startswith(self._head) and len(newest) >= self._offset):
            self._head, self._offset = newest[: newest.find(b"\n") + 1], 0
            first = next((line.seq for line in read_lines(newest)), 0)
            for older in segments(self._disk, self._path):
                if older.name != f"journal-{first:012d}.jsonl":  # else a crash came while the newest was being closed
                    yield from self._read(self._disk.read(older, LIMIT) or b"")
        whole = newest[self._offset : newest.rfind(b"\n") + 1]
        self._offset += len(whole)
        yield from self._read(whole)

    def _read(self, data: bytes) -> Iterator[Entry]:
        for line in read_lines(data):
            if line.seq <= self._seq:
                continue
            self._seq = line.seq
            match line:
                case Promise():
                    self._promised[line.seq] = line
                case Done() if (kept := self._promised.pop(line.done, None)) is not None:
                    yield kept
                case Begun():
                    pass
                case Entry():
                    yield line


def history(path: Path) -> list[dict[str, Any]]:
    """All entries of the journal as ``history --json`` shows them, by their numbers.

    OSError if there is a journal and it cannot be read.
    """
    return [fields(entry) for entry in sorted(History(path).new_entries(), key=lambda entry: entry.seq)]
