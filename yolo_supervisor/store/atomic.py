"""The functions through which every durable change reaches the disk.

``Disk`` has primitive operations only, so that a test can record, refuse or tear each of them, or replace the disk. The
functions here are the only ways in which this program makes a change survive a crash.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.disk import FILE_MODE, FOLDER_MODE, Disk, Unflushed

LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""The errors of file systems without hard links."""


def append(disk: Disk, fd: int, data: bytes, size: int, durable: bool = True) -> None:
    """Add ``data`` at the end of an append-mode file of ``size`` bytes, durably, or leave the file as it was.

    OSError if the data is not there; a write that failed half-way has been cut off again. Unflushed if the flush has
    failed, or the end could not be cut off: then it is unknown what of the file is on the device.
    """
    try:
        if disk.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "No space left for a whole line")
        if durable:
            flush(disk, fd)
    except OSError as error:
        try:
            disk.truncate(fd, size)
        except OSError:
            raise Unflushed(error.errno, f"{error.strerror}, and the written part could not be cut off") from error
        raise


def flush(disk: Disk, fd: int) -> None:
    """Flush the file. ``Unflushed`` if that fails."""
    try:
        disk.sync(fd)
    except OSError as error:
        raise Unflushed(error.errno, f"it could not be flushed: {error.strerror}") from error


def write_atomic(disk: Disk, path: Path, data: bytes, durable: bool = True, expected: bytes | None = None) -> None:
    """Make ``data`` the file's content in one step: readers and crashes see the old or the new, never a mixture.

    ``durable=False`` leaves out the flushing, for observations that are worthless after a power cut anyway.
    With ``expected`` the old content is compared right before the change. OSError if it could not be made, then the old
    content stands; BlockingIOError if the old content is not the expected one.
    """
    found = refuse_links(disk, path)
    with _written_beside(disk, path, data, stat.S_IMODE(found.st_mode) if found else FILE_MODE, durable) as temporary:
        if expected is not None:  # flushing takes time, and an editor does not use our locks
            refuse_changed(disk, path, expected)
        disk.rename(temporary, path)
    if durable:
        sync_folder(disk, path.parent)


def create(disk: Disk, path: Path, data: bytes) -> None:
    """Make the file with this content, durably; FileExistsError if another process was first.

    On a file system without hard links it replaces like ``write_atomic``: then only a lock protects the other file.
    """
    with _written_beside(disk, path, data, FILE_MODE, durable=True) as temporary:
        try:
            disk.link(temporary, path)
        except OSError as error:
            if error.errno not in LINKLESS:
                raise
            disk.rename(temporary, path)
        else:
            disk.unlink(temporary)
    sync_folder(disk, path.parent)


def can_write(disk: Disk, path: Path, size: int) -> bool:
    """Whether a file of ``size`` bytes can be made beside the path now. It is removed again."""
    try:
        with _written_beside(disk, path, bytes(size), FILE_MODE, durable=False) as temporary:
            disk.unlink(temporary)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _written_beside(disk: Disk, path: Path, data: bytes, mode: int, durable: bool) -> Iterator[Path]:
    """The content in a temporary file beside the path. The file is removed if its use fails."""
    name = os.fsdecode(os.fsencode(path.name)[:200])  # leaves room for the rest
    temporary = path.with_name(f".{name}.{threading.get_native_id()}.tmp")  # the pid, except in a second thread
    try:
        try:
            fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # left by a crash: it may be another name of the document itself
            disk.unlink(temporary)
            fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            left = memoryview(data)
            while left:
                left = left[disk.write(fd, bytes(left)) :]
            disk.chmod(fd, mode)
            if durable:
                disk.sync(fd)
        finally:
            disk.close(fd)
        yield temporary
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise


def shorten(disk: Disk, path: Path, before: bytes, size: int) -> None:
    """Cut the end off a file in place, so that programs that append to it lose nothing.

    OSError if it could not be done, or if the file has changed since ``before`` was read: then it stays as it is.
    """
    refuse_links(disk, path)
    refuse_changed(disk, path, before)
    fd = disk.open(path, os.O_RDWR)
    try:
        if disk.status_of(fd).st_size != len(before):
            raise OSError(errno.EAGAIN, "another process is writing to it", str(path))
        disk.truncate(fd, size)
        disk.sync(fd)
    finally:
        disk.close(fd)


def remove(disk: Disk, path: Path) -> None:
    """Remove the file, durably. Its content must be in the journal before."""
    refuse_links(disk, path)
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(path)
    sync_folder(disk, path.parent)


def sync_folder(disk: Disk, folder: Path) -> None:
    """Make names that were added to or removed from the folder durable."""
    fd = disk.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.sync(fd)
    finally:
        disk.close(fd)


def make_folder(disk: Disk, folder: Path, mode: int = FOLDER_MODE) -> None:
    """Create the folder, and its parents, where missing."""
    if is_folder(disk, folder):
        return
    make_folder(disk, folder.parent, 0o777)
    with contextlib.suppress(FileExistsError):
        disk.mkdir(folder, mode)
        sync_folder(disk, folder.parent)


def is_folder(disk: Disk, path: Path) -> bool:
    found = disk.status(path)
    return found is not None and (stat.S_ISDIR(found.st_mode) or (stat.S_ISLNK(found.st_mode) and path.is_dir()))


def refuse_links(disk: Disk, path: Path) -> os.stat_result | None:
    """The status of the path, None if nothing is there. ``Refused`` if it is a symbolic link."""
    found = disk.status(path)
    if found is not None and stat.S_ISLNK(found.st_mode):
        raise Refused(f"{path} is a symbolic link: it is not followed, and not replaced", path)
    return found


def refuse_changed(disk: Disk, path: Path, expected: bytes) -> None:
    """BlockingIOError if the file does not hold the ``expected`` content."""
    if disk.read(path) != expected:
        raise BlockingIOError(errno.EAGAIN, "another process is writing to it", str(path))
