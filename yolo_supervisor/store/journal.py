"""The journal: the record of everything decided and done, in order.

A promise is durable before its change is made. Marks need not be durable: they only save work in a recovery.

It is written in segments: ``journal.jsonl`` is the newest, ``journal-<first line>.jsonl`` are older ones. A segment's
first line is a checkpoint of the index, so that a start reads the newest segment only. ``lines`` has the kinds of
lines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.trust import TooNew
from yolo_supervisor.store import lines
from yolo_supervisor.store.atomic import append, flush, sync_folder, write_atomic
from yolo_supervisor.store.disk import Disk, Unflushed
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.lines import Begun, CheckpointLine, Done, Failed, Line, Promise

FileStamp = tuple[int, int]
Ending = Literal["done", "failed"]

LIMIT = 2**32
"""A larger file, in bytes, is no segment."""

SIZE = 64 * 2**20
"""The default limit of the whole journal, in bytes."""

SEGMENTS = 7
"""The number of closed segments that are kept beside the newest. Each has an eighth of the size."""

_CLOSED = re.compile(r"journal-(\d{12})\.jsonl")


def refuse_newer(disk: Disk, folder: Path) -> int | None:
    """The version of the journal's folder; None if there is no version file.

    ``TooNew`` if a newer program wrote it: this one would misread it, and lose information.
    """
    version = own_files.load_version(disk.read(folder / own_files.VERSION_FILE) or b"")
    if version is not None and version > own_files.VERSION:
        raise TooNew(
            f"{folder} was written by a newer yolo-supervisor (format {version}, this one knows {own_files.VERSION}): "
            "upgrade this one; nothing was changed",
            folder,
        )
    return version


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of the journal that could not be read: where it is, and a description."""

    offset: int
    what: str


class Journal:
    """The journal of one project. Writers call it under the store's lock only; readers need no lock."""

    def __init__(self, path: Path, disk: Disk, quarantine: Path, size: int = SIZE) -> None:
        self.path = path
        self.index = Index()
        self.damage: list[Damage] = []
        self.unreadable: str | None = None
        """The error of ``load`` if it could not read the file at all."""
        self.torn = 0
        """The bytes of half-written lines that were cut off and put into the quarantine."""
        self._spoiled = False
        """Whether the segment's content on the device is unknown: then the next line begins a new one."""
        self._late_marks: list[Done | Failed] = []
        """Marks that could not be written: they come before the next line."""
        self._disk = disk
        self._quarantine = quarantine
        self._segment = size // (SEGMENTS + 1)
        self._fd = self._mark_fd = -1
        self._file: FileStamp = (0, 0)
        self._offset = 0
        self._first = 0
        """The number of the segment's first line."""

    @property
    def seq(self) -> int:
        return self.index.seq

    @property
    def pending(self) -> dict[int, Promise | Begun]:
        return self.index.pending

    def close(self) -> None:
        opened, self._fd, self._mark_fd = (self._fd, self._mark_fd), -1, -1
        for fd in opened:
            if fd >= 0:
                with contextlib.suppress(OSError):  # the descriptor is closed in any case
                    self._disk.close(fd)

    # -- writing (under the store's lock) ------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Read the new lines of other processes, and cut off a line that a crash left half written.

        OSError if the journal cannot be read, FileNotFoundError if the project was deleted.
        """
        try:
            opened = self._reopen_if_replaced()
            data = self._rest()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                torn = data[whole:]
                name = f"journal-tail-{self._offset + whole}-{zlib.crc32(torn):08x}"
                write_atomic(self._disk, self._quarantine / name, torn)
                self._disk.truncate(self._fd, self._offset + whole)
                self.torn += len(torn)
            self._take(data[:whole])
        except OSError:
            self.close()  # no line is written after lines that were not read
            raise
        if opened:
            self._read_mark()

    def append(self, line: Line, durable: bool = True) -> int:
        """Write one line and return its number. It is on the device when this returns, if ``durable``.

        OSError if it could not be written; then the journal is as it was.
        """
        if self._spoiled:
            self.rotate()
        while self._late_marks and line is not self._late_marks[0]:
            self.append(self._late_marks[0], durable=False)
            self._late_marks.pop(0)
        data = lines.dump(msgspec.structs.replace(line, seq=self.seq + 1))
        try:
            append(self._disk, self._fd, data, self._offset, durable)
        except Unflushed:
            self._spoiled = True
            raise
        self._take(data)
        seq = self.seq  # a new segment's checkpoint has a number too
        if durable:
            self._write_mark()
        if self._offset > self._segment:
            with contextlib.suppress(OSError):  # no room for another: this one remains in use
                self.rotate()
        return seq

    def mark(self, seq: int, ending: Ending, why: str | None = None) -> None:
        """Mark how the promise or operation of line ``seq`` ended."""
        line = Done(done=seq, why=why) if ending == "done" else Failed(failed=seq, why=why)
        try:
            self.append(line, durable=False)
        except OSError:
            self._late_marks.append(line)  # without a mark the next recovery looks at the document
            started = self.pending.pop(seq, None)
            if ending == "done" and started is not None:
                self.index.count(started)

    def rotate(self) -> None:
        """Close the segment and begin the next. ``journal.jsonl`` exists and is complete at every moment.

        OSError if it cannot be done: then the segment remains in use.
        """
        line = lines.dump(CheckpointLine(seq=self.seq + 1, checkpoint=self.index.checkpoint()))
        with contextlib.suppress(OSError):  # a crash must not change the closed segment later
            self.flush()
        # a copy, not a link: after a failed flush of any process it is unknown what of the file is on the device
        self._keep_closed(self._disk.read_at(self._fd, self._offset, 0))
        try:
            write_atomic(self._disk, self.path, line)
        finally:  # it may have worked although it failed: do not write to the closed one
            self.catch_up()
        self._write_mark()
        for old in segments(self._disk, self.path)[:-SEGMENTS]:
            with contextlib.suppress(OSError):
                self._disk.unlink(old)

    def _keep_closed(self, data: bytes) -> None:
        """Save a closed segment. A segment that was restored from an older copy does not replace another."""
        closed = self.path.with_name(f"journal-{self._first:012d}.jsonl")
        before = self._disk.read(closed, LIMIT)
        if before is not None and not data.startswith(before):
            if before.startswith(data):
                return
            closed = self.path.with_name(f"journal-{self.seq:012d}.jsonl")
        write_atomic(self._disk, closed, data)

    def flush(self) -> None:
        """Make durable what other processes wrote: they may have been killed before their flush."""
        try:
            flush(self._disk, self._fd)
        except Unflushed:
            self._spoiled = True
            raise

    # -- the watermark: the last line that is certainly on the device --------------------------------------------------

    def _write_mark(self) -> None:
        """Write the watermark, unflushed: its line is on the device, so an older watermark is not wrong either."""
        with contextlib.suppress(OSError):
            if self._mark_fd < 0:
                self._mark_fd = self._disk.open(self._mark, os.O_RDWR | os.O_CREAT)
            self._disk.write_at(self._mark_fd, lines.seal({"seq": self.seq}).rjust(48), 0)

    def _read_mark(self) -> None:
        """Report a lost end of the journal, and do not use the numbers of acknowledged lines again."""
        try:
            newest = lines.load((self._disk.read(self._mark) or b"").strip())
        except OSError:
            return
        if newest is not None and newest.seq > self.seq:
            what = f"lines {self.seq + 1} to {newest.seq} were written and are gone"
            self.damage.append(Damage(self._offset, what))
            self.index.seq = newest.seq

    @property
    def _mark(self) -> Path:
        return self.path.with_name("journal.mark")

    # -- reading -------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the journal for a reader: without a lock, and without any change.

        ``TooNew`` if a newer program wrote it.
        """
        try:
            if not self._offset:
                refuse_newer(self._disk, self.path.parent)
            data = (self._disk.read(self.path, LIMIT) or b"")[self._offset :]
        except OSError as error:
            self.unreadable = str(error)
        else:
            fresh = not self._offset
            self._take(data[: data.rfind(b"\n") + 1])
            if fresh:
                self._read_mark()

    def _reopen_if_replaced(self) -> bool:
        """Open the newest segment if it is another file than before; returns whether it is."""
        if self._fd >= 0:
            now = self._disk.status(self.path)
            if now is None:
                self.close()
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
            if (now.st_dev, now.st_ino) == self._file and now.st_size >= self._offset:
                return False
            self.close()
        fd = self._disk.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            found = self._disk.status_of(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not an ordinary file", str(self.path))
            sync_folder(self._disk, self.path.parent)  # its writer may have been killed before it had
        except OSError:
            self._disk.close(fd)
            raise
        self._spoiled = self._spoiled and self._file == (found.st_dev, found.st_ino)
        self._fd, self._file = fd, (found.st_dev, found.st_ino)
        self.index = Index()
        self._offset = self._first = 0
        self.damage.clear()
        return True

    def _rest(self) -> bytes:
        parts, at = [], self._offset
        while part := self._disk.read_at(self._fd, 1 << 20, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def _take(self, data: bytes) -> None:
        whole = True
        for data_line in data.splitlines(keepends=True):
            expected = self.seq + 1 if whole else 2**63  # what cannot be read is reported already
            line, lost = lines.load_last(data_line.rstrip(b"\n"))
            if lost:
                self.damage.append(Damage(self._offset, f"a line of {lost} bytes cannot be read"))
            if line is not None:
                if type(line) is Line:
                    self.damage.append(Damage(self._offset, f"line {line.seq} has a form that is not known"))
                if not lost and line.seq > expected and not isinstance(line, CheckpointLine):
                    what = f"lines {expected} to {line.seq - 1} are not there"
                    self.damage.append(Damage(self._offset, what))
            if self._offset == 0 and (lost or type(line) is Line):
                self._take_older()
            if line is not None:
                self._first = self._first or line.seq
                self.index.apply(line)
            whole = line is not None
            self._offset += len(data_line)

    def _take_older(self) -> None:
        """Read the closed segments, because the checkpoint cannot be read."""
        for older in segments(self._disk, self.path):
            for line in read_lines(self._disk.read(older, LIMIT) or b""):
                self.index.apply(line)


def segments(disk: Disk, path: Path) -> list[Path]:
    """The closed segments of the journal at ``path``, the oldest first."""
    return [path.with_name(name) for name in sorted(disk.names(path.parent)) if _CLOSED.fullmatch(name)]


def read_lines(data: bytes) -> Iterator[Line]:
    """The readable lines of a segment."""
    for data_line in data[: data.rfind(b"\n") + 1].splitlines():
        if (line := lines.load_last(data_line)[0]) is not None:
            yield line
