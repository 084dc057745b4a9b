"""Bounded reads of files that other programs write."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from yolo_supervisor.fs.bounded import open_regular, read_regular

LIMIT = 2**19
"""The largest document that is read, in bytes. All known ones are far smaller, and one of this size takes up to 100 ms
to parse, in which nothing else is done."""

LOG_LIMIT = 16 * 2**20
"""The largest file that is read whole though it grows, and is not parsed whole: a log of the plugin, a copy."""


def digest(data: bytes | None) -> str | None:
    """SHA-256 in lowercase hex, as in the plugin; None for a missing file."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def read(path: Path, limit: int = LIMIT) -> bytes | None:
    """The file's bytes; None if there is no such file.

    OSError if it exists and cannot be read: a folder, a link, a missing permission, a pipe, more than ``limit`` bytes.
    """
    try:
        return read_regular(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_or_none(path: Path, limit: int = LIMIT) -> bytes | None:
    """The file's bytes; None also if it cannot be read.

    Use it only where absence decides nothing.
    """
    try:
        return read(path, limit)
    except OSError:
        return None


def read_part(path: Path, at: int, size: int) -> bytes | None:
    """At most ``size`` bytes from offset ``at`` on, never through a link.

    None if they cannot be read.
    """
    try:
        fd = open_regular(path)
    except OSError:
        return None
    try:
        return os.pread(fd, size, at)
    except OSError:
        return None
    finally:
        os.close(fd)
