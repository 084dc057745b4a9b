"""Bounded reads of files that other programs write."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

LIMIT = 16 * 2**20
"""No document of ours or of our neighbours is anywhere near as large, in bytes."""


def digest(data: bytes | None) -> str | None:
    """SHA-256 in lowercase hex, the plugin's own convention; None for a file that is not there."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def read(path: Path, limit: int = LIMIT) -> bytes | None:
    """The file's bytes, or None where there is no such file.

    OSError for what exists and cannot be read: a folder, a missing permission, a pipe, more than ``limit`` bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # a NUL in a path that somebody else wrote down
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not an ordinary file", str(path))
        if found.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        parts = []
        while chunk := os.read(fd, max(found.st_size, 4095) + 1):
            parts.append(chunk)
        return b"".join(parts)
    finally:
        os.close(fd)


def read_or_none(path: Path) -> bytes | None:
    """The file's bytes for a look that decides nothing by their absence: None also where it cannot be read."""
    try:
        return read(path)
    except OSError:
        return None


def read_part(path: Path, at: int, size: int) -> bytes | None:
    """``size`` bytes of an ordinary file from ``at`` on, never through a link; None if they cannot be read."""
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
