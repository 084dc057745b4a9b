"""The journal's entries for people, in order, over all segments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.journal import LIMIT, _records, refuse_newer, segments


class History:
    """The journal for people: its entries in order, over all segments. Nothing is changed, and no lock is needed.

    What failed is left out; so is the beginning of a deed whose end is told, and what is promised but not done yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = Disk()
        self._seq = 0
        self._head = b""
        """The newest segment's first line, by which it is known: the number of a file is given out again at once."""
        self._offset = 0
        self._promised: dict[int, dict[str, Any]] = {}

    def news(self) -> Iterator[dict[str, Any]]:
        """What has come since the last time. OSError if there is a journal and it cannot be read, ``TooNew`` if it is a
        newer program's."""
        if not self._head:
            refuse_newer(self._disk, self._path.parent)
        newest = self._disk.read(self._path, LIMIT) or b""  # before the others are listed: it may be closed meanwhile
        if not (self._head and newest.startswith(self._head) and len(newest) >= self._offset):
            self._head, self._offset = newest[: newest.find(b"\n") + 1], 0
            first = next((record["seq"] for record in _records(newest)), 0)
            for older in segments(self._disk, self._path):
                if older.name != f"journal-{first:012d}.jsonl":  # else a crash came while the newest was being closed
                    yield from self._new_ones(self._disk.read(older, LIMIT) or b"")
        whole = newest[self._offset : newest.rfind(b"\n") + 1]
        self._offset += len(whole)
        yield from self._new_ones(whole)

    def _new_ones(self, data: bytes) -> Iterator[dict[str, Any]]:
        for record in _records(data):
            if record["seq"] <= self._seq:
                continue
            self._seq = record["seq"]
            if "done" in record and record["done"] in self._promised:
                yield _for_people(self._promised.pop(record["done"]))
            elif "action" in record and "write" in record:
                self._promised[record["seq"]] = record
            elif "action" in record and "begun" not in record:
                yield _for_people(record)


def _for_people(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("write", "done", "crc")}


def history(path: Path) -> list[dict[str, Any]]:
    """All entries of the journal, by their numbers. OSError if there is a journal and it cannot be read."""
    return sorted(History(path).news(), key=lambda entry: int(entry["seq"]))
