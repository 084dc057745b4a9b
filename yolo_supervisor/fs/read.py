"""Bounded reads of files that other programs write."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

LIMIT = 16 * 2**20
"""The largest file that is read, in bytes; all known documents are far smaller."""


def digest(data: bytes | None) -> str | None:
    """SHA-256 in lowercase hex, as in the plugin; None for a missing file."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def read(path: Path, limit: int = LIMIT) -> bytes | None:
    """The file's bytes; None if there is no such file.

    OSError if it exists and cannot be read: a folder, a missing permission, a pipe, more than ``limit`` bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # a NUL in a path from another program
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        parts = []
        while chunk := os.read(fd, max(status.st_size, 4095) + 1):
            parts.append(chunk)
        return b"".join(parts)
    finally:
        os.close(fd)


def read_or_none(path: Path) -> bytes | None:
    """The file's bytes; None also if it cannot be read.

    Use it only where absence decides nothing.
    """
    try:
        return read(path)
    except OSError:
        return None


def read_part(path: Path, at: int, size: int) -> bytes | None:
    """At most ``size`` bytes from offset ``at`` on, never through a link.

    None if they cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return None
    try:
        return os.pread(fd, size, at)
    except OSError:
        return None
    finally:
        os.close(fd)
