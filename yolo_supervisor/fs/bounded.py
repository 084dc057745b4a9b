"""The one way to read a file that another program may have put there: bounded, and never waiting.

A path may be a link to an endless file (``/proc/self/pagemap``), a pipe that no process writes to, or a device. Only
small modules are imported, and paths may be strings: the fast path of ``commit`` uses this module.
"""

import errno
import os
from stat import S_ISLNK, S_ISREG

CHUNK = 2**20


def open_regular(path: str | os.PathLike[str], *, follow: bool = False) -> int:
    """Open an ordinary file for reading; a link only with ``follow``.

    OSError for everything else, and for a path that is no path. A pipe or a device is not even opened: that alone could
    change its state.
    """
    try:
        _refuse_others(os.stat(path, follow_symlinks=follow).st_mode, path)
        links = 0 if follow else os.O_NOFOLLOW
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | links)
    except ValueError as error:  # a NUL in a path from another program
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        _refuse_others(os.fstat(fd).st_mode, path)  # it may have been replaced since
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: str | os.PathLike[str], limit: int, *, follow: bool = False) -> bytes:
    """The bytes of an ordinary file. OSError as for ``open_regular``, and for more than ``limit`` bytes.

    The bytes are counted: the size of a file in ``/proc`` is 0, and others grow while they are read.
    """
    fd = open_regular(path, follow=follow)
    try:
        size = os.fstat(fd).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        parts, left = [], limit + 1
        while chunk := os.read(fd, min(left, max(size, 4095) + 1, CHUNK)):
            parts.append(chunk)
            left -= len(chunk)
            if left <= 0:
                raise OSError(errno.EFBIG, f"larger than {limit} bytes", str(path))
        return b"".join(parts)
    finally:
        os.close(fd)


def _refuse_others(mode: int, path: str | os.PathLike[str]) -> None:
    if S_ISLNK(mode):
        raise OSError(errno.ELOOP, "a symbolic link", str(path))
    if not S_ISREG(mode):
        raise OSError(errno.EINVAL, "not an ordinary file", str(path))
