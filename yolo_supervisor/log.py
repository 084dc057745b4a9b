"""The structured log: one JSON object, or one line for people, per event on stderr; fields in systemd's journal."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Literal, TextIO, cast

import structlog

LogFormat = Literal["json", "console"]


def _printable(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters: a task's subject or a pane's output must not drive the reader's terminal."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    return event


class _Stderr:
    """stderr as the log needs it: a reader that is gone or a full disk must never stop the supervisor."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Nothing is held back: what could not be written would be tried again at the end, and spoil the exit code."""


class _Journal:
    """systemd's journal. What is written to stderr becomes text there; what is sent to it natively has fields."""

    ADDRESS = "/run/systemd/journal/socket"
    PRIORITIES: ClassVar = {"critical": 2, "exception": 3, "error": 3, "warning": 4}

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._there = False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found = os.fstat(sys.stderr.fileno())
            self._there = environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"

    def send(self, text: str, method: str, event: Mapping[str, Any]) -> bool:
        """Whether the journal has it: ``text`` as its message, each field of the event as ``YOLO_NAME``."""
        if not self._there:
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


def configure(log_format: LogFormat) -> None:
    """Send the program's log to stderr in the given form. Tracebacks never show local variables (secrets)."""
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
            colors=sys.stderr is not None and sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    journal = _Journal(os.environ)

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        fields = dict(event)
        text: str = renderer(logger, method, event)
        if journal.send(text, method, fields):
            raise structlog.DropEvent
        return text

    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _Stderr())),
        cache_logger_on_first_use=False,
    )
