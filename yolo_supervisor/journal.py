"""The journal: everything that was decided and done, in order, each line with its own checksum.

One JSON object a line, the CRC-32 of all before it as its last key, so that ``tail`` and ``jq`` read it as it is. Three
kinds of lines: an *entry* (what, why, on what evidence; for a change of a document also what was there and what comes
instead), a deed's *beginning*, and a *mark* that says how an earlier line ended. A line is durable before what it
promises is done; marks need not be, they only spare ``Store.recover`` work.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from yolo_supervisor.actions import Action
from yolo_supervisor.files import Disk, append, read, replace, sync_folder
from yolo_supervisor.records import iso

FileStamp = tuple[int, int]
Ending = Literal["done", "failed"]

LIMIT = 2**32
"""A journal larger than this is not ours."""

_CRC = b',"crc":"'


def seal(record: Mapping[str, Any]) -> bytes:
    """The record as a line of the journal."""
    body = json.dumps(record, separators=(",", ":"), default=str).encode()[:-1]
    return body + _CRC + b'%08x"}\n' % zlib.crc32(body)


def unseal(line: bytes) -> dict[str, Any] | None:
    """The record of a line (without its newline); None if it is not exactly what ``seal`` made."""
    body, mark, tail = line.rpartition(_CRC)
    if not mark or len(tail) != 10 or tail[8:] != b'"}':
        return None
    try:
        if tail[:8] != b"%08x" % zlib.crc32(body):
            return None
        record = json.loads(body + b"}")
    except ValueError:
        return None
    return record if isinstance(record, dict) and type(record.get("seq")) is int else None


def entry(action: Action, by: str, at: datetime, project: Path, prefix: str = "") -> dict[str, Any]:
    """The action as the journal tells it, in the keys that ``history --json`` promises."""
    return {
        "at": iso(at),
        "kind": action.kind,
        "key": action.key,
        "action": prefix + action.verb,
        "by": by,
        "reason": action.reason,
        "evidence": dict(action.evidence),
        "project": str(project),
    }


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that could not be read."""

    offset: int
    length: int


class Journal:
    """The open journal of one project. Writers call it under the store's lock only; readers need none."""

    def __init__(self, path: Path, disk: Disk, quarantine: Path) -> None:
        self.path = path
        self.seq = 0
        self.pending: dict[int, dict[str, Any]] = {}
        """Lines that promise a change or begin a deed and have no mark yet, by their number."""
        self.requeues: Counter[str] = Counter()
        """How often each task was given back since it was last redriven."""
        self.last: dict[tuple[str, str, str], int] = {}
        """The newest line for each (kind, key, action)."""
        self.damage: list[Damage] = []
        self.unreadable: str | None = None
        """Why ``load`` could not read it at all."""
        self.torn = 0
        """How many bytes of a half-written line have been cut off and kept aside."""
        self._owed: list[dict[str, Any]] = []
        """Marks for which there was no room: they come before the next line."""
        self._disk = disk
        self._quarantine = quarantine
        self._fd = -1
        self._file: FileStamp = (0, 0)
        self._offset = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def told(self, kind: str, key: str, action: str, since: str) -> bool:
        """Whether ``action`` was written of this key after the newest line with the action ``since``."""
        return self.last.get((kind, key, action), 0) > self.last.get((kind, key, since), 0)

    # -- writing (under the store's lock) ------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read what other processes have written since, and cut off a line that a crash left half written.

        OSError (FileNotFoundError, say, when the project was deleted) if the journal cannot be had.
        """
        self._reopen_if_replaced()
        data = self._rest(self._fd)
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            torn = data[whole:]
            replace(self._disk, self._quarantine / f"journal-tail-{self._offset + whole}-{zlib.crc32(torn):08x}", torn)
            self._disk.truncate(self._fd, self._offset + whole)
            self.torn += len(torn)
        self._take(data[:whole])

    def append(self, record: Mapping[str, Any], durable: bool = True) -> int:
        """Write one record and return its number. It is on the device when this returns, if ``durable``.

        OSError if it could not be written; then the journal is as it was.
        """
        while self._owed and record is not self._owed[0]:
            self.append(self._owed[0], durable=False)
            self._owed.pop(0)
        line = seal({"seq": self.seq + 1, **record})
        append(self._disk, self._fd, line, self._offset, durable)
        self._take(line)
        return self.seq

    def mark(self, seq: int, ending: Ending, why: str | None = None) -> None:
        """Say how the promise or deed of line ``seq`` ended."""
        record = {ending: seq, **({"why": why} if why else {})}
        try:
            self.append(record, durable=False)
        except OSError:
            self._owed.append(record)
            self.pending.pop(seq, None)  # no room for a mark: the next recovery finds out by looking

    # -- reading -------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the journal as far as it is, without a lock and without changing anything (for readers)."""
        try:
            data = (read(self.path, LIMIT) or b"")[self._offset :]
        except OSError as error:
            self.unreadable = str(error)
        else:
            self._take(data[: data.rfind(b"\n") + 1])

    def _reopen_if_replaced(self) -> None:
        if self._fd >= 0:
            try:
                now = self.path.stat()
            except FileNotFoundError:
                self.close()
                raise
            if (now.st_dev, now.st_ino) == self._file and now.st_size >= self._offset:
                return
            self.close()
        fd = self._disk.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "not an ordinary file", str(self.path))
        if found.st_size == 0:
            sync_folder(self._disk, self.path.parent)
        self._fd, self._file = fd, (found.st_dev, found.st_ino)
        self.seq, self._offset = 0, 0
        self.pending.clear()
        self.requeues.clear()
        self.last.clear()
        self.damage.clear()

    def _rest(self, fd: int) -> bytes:
        parts, at = [], self._offset
        while part := os.pread(fd, 1 << 20, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _take(self, data: bytes) -> None:
        for line in data.splitlines(keepends=True):
            record = unseal(line.rstrip(b"\n"))
            if record is None:
                self.damage.append(Damage(self._offset, len(line)))
            else:
                self._learn(record)
            self._offset += len(line)

    def _learn(self, record: dict[str, Any]) -> None:
        self.seq = max(self.seq, record["seq"])
        for ending in ("done", "failed"):
            if ending in record:
                started = self.pending.pop(record[ending], None)
                if ending == "done" and started is not None:
                    self._count(started)
                return
        if "write" in record or "begun" in record:
            self.pending[record["seq"]] = record
        if "write" not in record:
            self._count(record)

    def _count(self, record: Mapping[str, Any]) -> None:
        kind, key, action = str(record.get("kind")), str(record.get("key")), str(record.get("action"))
        self.last[kind, key, action] = max(record["seq"], self.last.get((kind, key, action), 0))
        if action == "requeued":
            self.requeues[key] += 1
        elif action == "redriven":
            del self.requeues[key]


def history(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The journal's entries from ``offset`` on, for people: each with the offset behind it. Nothing is changed.

    What failed is left out; so is the beginning of a deed whose end is told, and what is promised but not done yet.
    OSError if there is a journal and it cannot be read.
    """
    data = (read(path, LIMIT) or b"")[offset:]
    records, at = [], offset
    for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
        at += len(line)
        if (record := unseal(line.rstrip(b"\n"))) is not None:
            records.append((at, record))
    done = {record["done"] for _, record in records if "done" in record}
    for at, record in records:
        told = "action" in record and "begun" not in record
        if told and ("write" not in record or record["seq"] in done):
            yield at, {key: value for key, value in record.items() if key not in ("write", "crc")}
