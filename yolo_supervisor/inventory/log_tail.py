"""Follows a log that another program appends to, and sometimes rotates, truncates, edits or restores.

Each complete line is returned once. The position to which the log was read can be stored, so that another process
continues there. Before each read the file is compared with that position; the first row that applies decides:

| case | first line | last line that was read | reading continues |
|---|---|---|---|
| missing: there is no file | | | when it appears; without a position all of its lines are new |
| first read: there is no position | | | in the last ``READ_LIMIT`` bytes; the lines there are *old* |
| unread: no line was read yet | | | at the start |
| grown, or as it was | | right before the offset | at the offset |
| truncated: its beginning was removed | | elsewhere in the last ``SEARCH_LIMIT`` bytes | after it |
| replaced: rotated or edited | another one | not there | at the start; ``is_repeat`` recognises lines that stayed |
| put back: its end was removed, or a copy restored | the same | not there | at the end: all of its lines were read |
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec

from yolo_supervisor.fs.bounded import open_regular
from yolo_supervisor.fs.read import digest
from yolo_supervisor.models import iso

READ_LIMIT = 256 * 1024
"""The largest part of a log that is read at once, in bytes. A longer line is skipped."""

SEARCH_LIMIT = 4 * 2**20
"""The distance from the end, in bytes, in which the last line that was read is searched for."""

NEWEST_LINES = 50
"""The number of lines of the newest time that are remembered."""


class LogPosition(msgspec.Struct, frozen=True):
    """The position to which a log was read, with what is needed to find it again in a log that was changed.

    ``base + offset`` grows for ever, also if the log is replaced. Lines are remembered by their digests.
    """

    base: int = 0
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0
    first_line: str | None = msgspec.field(name="head", default=None)
    last_line: str | None = msgspec.field(name="last", default=None)
    """The last line that was read; None if none was."""
    last_line_length: Annotated[int, msgspec.Meta(ge=0)] = msgspec.field(name="length", default=0)
    newest_at: str | None = msgspec.field(name="newest", default=None)
    """The newest time of a line that was read, in the form of ``iso``."""
    newest_lines: tuple[str, ...] = msgspec.field(name="of_newest", default=())
    """The last lines of that time, by the beginnings of their digests."""

    def moved_to(self, offset: int) -> LogPosition:
        """The same position where it is at another offset."""
        return msgspec.structs.replace(self, base=self.base + self.offset - offset, offset=offset)


class LogLine(NamedTuple):
    """A line, and the position of its end. ``old``: it was there before the first read."""

    end: int
    data: bytes
    old: bool


class LogTail:
    """One log, from a stored position on."""

    def __init__(self, path: Path, position: LogPosition | None) -> None:
        self.position = position
        self.behind = False
        """Whether more lines can be read at once."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        """The inode, size and time of the file at the last read."""
        self._old_until = 0
        """The end of the lines that were there before the first read."""
        self._repeats_until = 0
        """The end of the lines that may repeat lines of the log that was replaced."""
        self._replaced = LogPosition()
        """The position in the log that was replaced."""

    def read(self) -> list[LogLine]:
        """The next complete lines; none while the log cannot be read."""
        try:
            found = os.stat(self._path)
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp == self._stamp and not self.behind:
                return []
            fd = open_regular(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self.position = self.position or LogPosition()
            self._stamp, self.behind = None, False
            return []
        except (OSError, ValueError):
            return []
        try:
            lines = self._read_on(fd, os.fstat(fd).st_size)
        except OSError:
            return []
        finally:
            os.close(fd)
        self._stamp = stamp
        return lines

    def is_repeat(self, line: LogLine, at: datetime | None) -> bool:
        """Whether a line of this time was read before the log was replaced. It is remembered as read.

        Of a replaced log the lines up to the newest time that was read are known, those of that very second by their
        content. A line without a time is never recognised.
        """
        if at is None or self.position is None:
            return False
        time, newest_at = iso(at), self.position.newest_at or ""
        short = str(digest(line.data))[:12]
        if time >= newest_at:
            before = self.position.newest_lines if time == newest_at else ()
            newest_lines = (*before, short)[-NEWEST_LINES:]
            self.position = msgspec.structs.replace(self.position, newest_at=time, newest_lines=newest_lines)
        if line.end > self._repeats_until:
            return False
        read_until = self._replaced.newest_at or ""
        return time < read_until or (time == read_until and short in self._replaced.newest_lines)

    def _read_on(self, fd: int, size: int) -> list[LogLine]:
        position = self.position = self._find(fd, size)
        data = os.pread(fd, READ_LIMIT, position.offset)
        complete = data.rfind(b"\n") + 1 or (len(data) if len(data) == READ_LIMIT else 0)  # a part of a long line
        self.behind = complete > 0 and position.offset + complete < size
        lines, end = [], position.base + position.offset
        for line in data[:complete].splitlines(keepends=True):
            end += len(line)
            lines.append(LogLine(end, line, end <= self._old_until))
        if lines:
            self.position = msgspec.structs.replace(
                position,
                offset=position.offset + complete,
                first_line=_first_line(fd),
                last_line=digest(lines[-1].data),
                last_line_length=len(lines[-1].data),
            )
        return lines

    def _find(self, fd: int, size: int) -> LogPosition:
        """The position from which reading continues: the table in the module's docstring."""
        position = self.position
        if position is None:  # first read
            self._old_until = size
            return _near_end(fd, size)
        if position.last_line is None:  # unread
            return position.moved_to(0)
        length = position.last_line_length
        if digest(os.pread(fd, length, max(0, position.offset - length))) == position.last_line:  # grown
            return position
        start = max(0, size - SEARCH_LIMIT)
        end_part = os.pread(fd, SEARCH_LIMIT, start)
        found_at, offset = None, start
        for line in end_part.splitlines(keepends=True):
            offset += len(line)
            if len(line) == length and digest(line) == position.last_line:
                found_at = offset
        if found_at is not None:  # truncated
            return position.moved_to(found_at)
        if _first_line(fd) != position.first_line:  # replaced
            self._repeats_until, self._replaced = position.base + position.offset + size, position
            return position.moved_to(0)
        complete = end_part[: end_part.rfind(b"\n") + 1]  # put back
        last = complete.splitlines(keepends=True)[-1] if complete else b""
        return msgspec.structs.replace(
            position.moved_to(start + len(complete)), last_line=digest(last), last_line_length=len(last)
        )


def _near_end(fd: int, size: int) -> LogPosition:
    """The start of the first line in the last ``READ_LIMIT`` bytes."""
    start = max(0, size - READ_LIMIT)
    part = os.pread(fd, READ_LIMIT, start) if start else b""
    part = part[: part.find(b"\n") + 1]  # the rest of a line that starts before
    if not part:
        return LogPosition()
    return LogPosition(
        offset=start + len(part), first_line=_first_line(fd), last_line=digest(part), last_line_length=len(part)
    )


def _first_line(fd: int) -> str | None:
    first = os.pread(fd, 4096, 0)
    return digest(first[: first.find(b"\n") + 1] or first)
