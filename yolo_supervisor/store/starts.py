"""The documents with which the launcher starts agents, in ``starts/`` of the state folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from yolo_supervisor.formats.launch_fields import SIZE_LIMIT
from yolo_supervisor.formats.start import Start, dump_start
from yolo_supervisor.store.disk import FILE_MODE, Disk


def write_start(disk: Disk, folder: Path, start: Start) -> Path:
    """Write the document of one start, which the launcher removes; its path. OSError if that fails."""
    data = dump_start(start)
    path = folder / f"{secrets.token_hex(16)}.json"
    if len(data) > SIZE_LIMIT:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), str(path))
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        while data:
            data = data[disk.write(fd, data) :]
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(path)
        raise
    finally:
        disk.close(fd)
    return path


def remove_stale_starts(disk: Disk, folder: Path, now_s: float, age_s: float) -> None:
    """Remove the documents that no launcher has taken for ``age_s`` seconds. ``now_s`` is the time of the wall clock.

    OSError if the folder cannot be read, or a document not be removed.
    """
    for path in (folder / name for name in disk.names(folder)):
        found = disk.status(path)
        if found is not None and not 0 <= now_s - found.st_mtime < age_s:
            with contextlib.suppress(FileNotFoundError):  # a launcher has just taken it
                disk.unlink(path)
