"""The exchange of two files' names in one step, which neither Python nor a library offers."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

EXCHANGELESS = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EXDEV)
"""The errors of systems and file systems without it."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = _RENAME_SWAP = 2
"""The flag of renameat2(2) on Linux, and of renamex_np(2) on macOS."""


def exchange(one: Path, other: Path) -> None:
    """Let two names change their files in one step. OSError if a name is missing, or the system cannot."""
    call = _function()
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one))
    if call(os.fsencode(one), os.fsencode(other)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


@functools.cache
def _function() -> Callable[[bytes, bytes], int] | None:
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        swap = getattr(library, "renamex_np", None)
        return None if swap is None else lambda one, other: int(swap(one, other, _RENAME_SWAP))
    rename = getattr(library, "renameat2", None)  # glibc 2.28, musl 1.2.6
    if rename is None:
        return None
    return lambda one, other: int(rename(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))
