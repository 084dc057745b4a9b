"""The structured log: one JSON object, or one line for people, per event on stderr, or in a bounded file of our own;
fields in systemd's journal."""

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
    """stderr as the log needs it: a reader that is gone, or reads no more, or a full disk must never stop us.

    The descriptor is shared with others, who need it blocking. What finds no room is dropped, and counted.
    """

    ROOM = 4096
    """What fits into a pipe that has any room (PIPE_BUF)."""

    def __init__(self, log_format: LogFormat) -> None:
        self._format = log_format
        self._terminal = _terminal_of_our_own()
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
        """Whether all of it was written."""
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
        """Nothing is held back: what could not be written would be tried again at the end, and spoil the exit code."""


def _has_room(fd: int) -> bool:
    watched = select.poll()
    watched.register(fd, select.POLLOUT)
    return bool(watched.poll(0))


def _terminal_of_our_own() -> int | None:
    """The terminal that stderr is, opened once more: it may have less room than a line, and here we need not wait."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.open(os.ttyname(sys.stderr.fileno()), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return None


class _Journal:
    """systemd's journal. What is written to stderr becomes text there; what is sent to it natively has fields."""

    ADDRESS = "/run/systemd/journal/socket"
    PRIORITIES: ClassVar = {"critical": 2, "exception": 3, "error": 3, "warning": 4}

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.there = False
        """Whether it is what our stderr leads to."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = os.fstat(sys.stderr.fileno())
            self.there = environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"

    def send(self, text: str, method: str, event: Mapping[str, Any]) -> bool:
        """Whether the journal has it: ``text`` as its message, each field of the event as ``YOLO_NAME``."""
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
        except OSError:  # too long for a datagram, say
            return False
        return True


class _File:
    """A file for the user alone that has a bound: a full one becomes ``FILE.1``, in the place of an older one.

    It may be moved or removed by others at any time. The standard library's handlers would follow a symbolic link, and
    make it readable for others.
    """

    SIZE = 4 * 2**20

    def __init__(self, path: Path, stderr: _Stderr) -> None:
        self._path = path
        self._stderr = stderr
        self._fd = -1
        self._failing = False

    def wrote(self, text: str) -> bool:
        """Whether the line stands there, as a whole. Why it does not is told once on stderr."""
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
            found = os.lstat(self._path)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._fd))

    def _open(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        careful = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | careful, 0o600)
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a device must not be renamed
            os.close(fd)
            raise OSError(errno.EINVAL, "It is no ordinary file")
        self._fd = fd


def user_copy(environment: Mapping[str, str]) -> Path:
    """The copy of the log for a user who cannot read systemd's journal."""
    return state_dir(environment) / "yolo-supervisor" / "log.jsonl"


def journal_is_volatile() -> bool:
    """Whether systemd keeps its journal in memory: only root may read it then, and it ends with the machine."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        return True
    return os.path.isdir(f"/run/log/journal/{machine}") or not os.path.isdir(f"/var/log/journal/{machine}")


def _copy_for_the_user(environment: Mapping[str, str], stderr: _Stderr) -> _File | None:
    """The file beside a journal that the user cannot read. That it cannot be made is told when it is written to."""
    if not journal_is_volatile():
        return None
    path = user_copy(environment)
    with contextlib.suppress(OSError):
        os.makedirs(path.parent, 0o700, exist_ok=True)
    return _File(path, stderr)


def configure(log_format: LogFormat, path: Path | None = None) -> None:
    """Send the program's log to the file, or to stderr where there is none or it cannot be written, in the given form.

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
