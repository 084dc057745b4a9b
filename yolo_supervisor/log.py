"""The structured log, on stderr, in a bounded file, or in systemd's journal.

An event is one JSON object or one line for people; the journal gets its fields.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import socket
import stat
import struct
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO, cast

import structlog

from yolo_supervisor.user_dirs import state_dir

LogFormat = Literal["json", "console"]


def _printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters: a task's subject or a pane's output must not drive the reader's terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event


class _Stderr:
    """stderr without waiting: a reader that is gone or stopped, or a full disk, must not stop the daemon.

    The descriptor is shared with other programs, which need it blocking. Lines without room are dropped and counted.
    """

    ROOM = 4096
    """The bytes that can be written without waiting to a pipe that is writable (PIPE_BUF)."""

    def __init__(self, log_format: LogFormat) -> None:
        self._format = log_format
        self._terminal = _open_terminal()
        self._dropped = 0
        self._torn = False

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            fd = sys.stderr.fileno() if self._terminal is None else self._terminal
            if self._dropped and self._put(fd, self._lost().encode()):
                self._dropped = 0
            if self._dropped or not self._put(fd, text.encode(errors="backslashreplace")):
                self._dropped += 1

    def _put(self, fd: int, data: bytes) -> bool:
        """Write the data. False if not all of it was written."""
        data = b"\n" * self._torn + data
        while data and _has_room(fd):
            written = os.write(fd, data[: self.ROOM])
            data = data[written:]
            self._torn = bool(data)
        return not data

    def _lost(self) -> str:
        lost = {"lines": self._dropped, "event": "log_lost", "level": "warning"}
        return (json.dumps(lost) if self._format == "json" else f"log_lost lines={self._dropped}") + "\n"

    def flush(self) -> None:
        """Do nothing: no text is buffered, since an error at exit would change the exit code."""


def _has_room(fd: int) -> bool:
    watched = select.poll()
    watched.register(fd, select.POLLOUT)
    return bool(watched.poll(0))


def _open_terminal() -> int | None:
    """A second descriptor of stderr's terminal, which does not block; None if stderr is no terminal.

    A terminal may have less room than a line, although it is writable.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.open(os.ttyname(sys.stderr.fileno()), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return None


class _Journal:
    """systemd's journal. Lines on stderr are plain text there; messages to its socket have fields."""

    ADDRESS = "/run/systemd/journal/socket"
    PRIORITIES: ClassVar = {"critical": 2, "exception": 3, "error": 3, "warning": 4}

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.there = False
        """Whether stderr leads to the journal."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            status = os.fstat(sys.stderr.fileno())
            self.there = environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"

    def send(self, text: str, method: str, event: Mapping[str, Any]) -> bool:
        """Send ``text`` as message, and each field of the event as ``YOLO_NAME``.

        False if that failed.
        """
        if not self.there:
            return False
        fields = {f"YOLO_{re.sub(r'[^A-Z0-9]', '_', key.upper())[:50]}": str(value) for key, value in event.items()}
        fields |= {"MESSAGE": text, "PRIORITY": str(self.PRIORITIES.get(method, 6))}
        fields |= {"SYSLOG_IDENTIFIER": "yolo-supervisor"}
        message = b""
        for key, value in fields.items():
            data = value.encode(errors="backslashreplace")
            message += key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(1)
                sender.sendto(message, self.ADDRESS)
        except OSError:  # too long for a datagram, for example
            return False
        return True


class _File:
    """A bounded log file that only the user can read; a full one replaces ``FILE.1``.

    Other programs may move or remove it at any time. The standard library's handlers would follow a symbolic link, and
    make the file readable for other users.
    """

    SIZE = 4 * 2**20

    def __init__(self, path: Path, stderr: _Stderr) -> None:
        self._path = path
        self._stderr = stderr
        self._fd = -1
        self._failing = False

    def wrote(self, text: str) -> bool:
        """Append a line; False if that failed. The reason is reported once on stderr."""
        try:
            self._append(text.encode(errors="backslashreplace")[: self.SIZE - 1] + b"\n")
        except OSError as error:
            if not self._failing:
                self._stderr.write(f"yolo-supervisor: {self._path} cannot be written: {error.strerror}\n")
            self._failing = True
        else:
            self._failing = False
        return not self._failing

    def _append(self, line: bytes) -> None:
        if not self._is_at_its_place():
            self._open()
        if (size := os.fstat(self._fd).st_size) + len(line) > self.SIZE and size:
            os.replace(self._path, f"{self._path}.1")
            self._open()
            size = 0
        if os.write(self._fd, line) != len(line):
            os.ftruncate(self._fd, size)  # half a line would spoil the next one
            raise OSError(errno.ENOSPC, "No space left for a whole line")

    def _is_at_its_place(self) -> bool:
        if self._fd < 0:
            return False
        try:
            status = os.lstat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(status, os.fstat(self._fd))

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        careful = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | careful, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a device must not be renamed
            os.close(fd)
            raise OSError(errno.EINVAL, "not an ordinary file")
        self._fd = fd


def user_copy(environment: Mapping[str, str]) -> Path:
    """The path of the copy of the log for a user without access to systemd's journal."""
    return state_dir(environment) / "yolo-supervisor" / "log.jsonl"


def journal_is_volatile() -> bool:
    """Whether systemd keeps its journal in memory: only root may read it, and a reboot ends it."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return True
    return os.path.isdir(f"/run/log/journal/{machine}") or not os.path.isdir(f"/var/log/journal/{machine}")


def _copy_for_the_user(environment: Mapping[str, str], stderr: _Stderr) -> _File | None:
    """The copy of the log if the user cannot read the journal. An error is reported by the first write."""
    if not journal_is_volatile():
        return None
    path = user_copy(environment)
    with contextlib.suppress(OSError):
        os.makedirs(path.parent, 0o700, exist_ok=True)
    return _File(path, stderr)


def configure(log_format: LogFormat, path: Path | None = None) -> None:
    """Send the log to the file, or to stderr without a file or if it cannot be written.

    Tracebacks never show local variables (secrets).
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=10)
        )
        if log_format == "json"
        else structlog.processors.format_exc_info,
        _printable,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=path is None and sys.stderr is not None and sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    as_json = structlog.processors.JSONRenderer()
    journal = _Journal(os.environ)
    stderr = _Stderr(log_format)
    file = _File(path, stderr) if path is not None else None
    copy = _copy_for_the_user(os.environ, stderr) if file is None and journal.there else None

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        fields = dict(event)
        text: str = renderer(logger, method, event)
        if file is not None and file.wrote(text):
            raise structlog.DropEvent
        if copy is not None:
            copy.wrote(str(as_json(logger, method, dict(fields))))
        if journal.send(text, method, fields):
            raise structlog.DropEvent
        return text

    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, stderr)),
        cache_logger_on_first_use=False,
    )
