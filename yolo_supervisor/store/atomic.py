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

from yolo_supervisor.fs.exchange import EXCHANGELESS
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.disk import FILE_MODE, FOLDER_MODE, Disk, Unflushed

PUT_BACK_LIMIT = 100
"""The number of attempts to put back a content that changes meanwhile."""

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

    Owner, group, mode and extended attributes of the old file are kept. ``durable=False`` leaves out the flushing, for
    observations that are worthless after a power cut anyway. With ``expected`` no other content is ever replaced: an
    editor does not use our locks. OSError if the change could not be made, then the old content stands;
    BlockingIOError if the old content is not the expected one; ``Refused`` if an attribute cannot be kept.
    """
    found = refuse_links(disk, path)
    with _written_beside(disk, path, data, found, durable) as temporary:
        if expected is None:
            disk.rename(temporary, path)
        else:
            _replace_expected(disk, temporary, path, data, expected)
    if durable:
        sync_folder(disk, path.parent)


def _replace_expected(disk: Disk, temporary: Path, path: Path, data: bytes, expected: bytes) -> None:
    """Put the new file into the place of the old one, if that has the expected content. BlockingIOError if it has not.

    The two change names in one step. If another content comes out than the expected one, it is put back.
    """
    refuse_changed(disk, path, expected)
    try:
        disk.exchange(temporary, path)
    except FileNotFoundError:
        raise BlockingIOError(errno.EAGAIN, "another process has removed it", str(path)) from None
    except OSError as error:
        if error.errno not in EXCHANGELESS:
            raise
        disk.rename(temporary, path)  # the moment between comparison and renaming is left
        return
    if (came_out := disk.read(temporary)) != expected:
        _put_back(disk, temporary, path, [data, came_out])
        _discard(disk, temporary)
        raise BlockingIOError(errno.EAGAIN, "another process has written to it", str(path))
    _discard(disk, temporary)


def _discard(disk: Disk, temporary: Path) -> None:
    """Remove what an exchange has left. The change is made: if this fails twice, the next change does it."""
    try:
        disk.unlink(temporary)
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)


def _put_back(disk: Disk, temporary: Path, path: Path, seen: list[bytes | None]) -> None:
    """Put back what came out of an exchange. A still newer content that comes out then is put back in turn."""
    for _ in range(PUT_BACK_LIMIT):
        disk.exchange(temporary, path)
        if (came_out := disk.read(temporary)) in seen:
            return
        seen.append(came_out)
    raise OSError(errno.EAGAIN, f"it changes all the time; its newest content may be {temporary}", str(path))


def create(disk: Disk, path: Path, data: bytes) -> None:
    """Make the file with this content, durably; FileExistsError if another process was first.

    On a file system without hard links it replaces like ``write_atomic``: then only a lock protects the other file.
    """
    with _written_beside(disk, path, data, None, durable=True) as temporary:
        _link_or_rename(disk, temporary, path)
    sync_folder(disk, path.parent)


def _link_or_rename(disk: Disk, temporary: Path, path: Path) -> None:
    """Give the file its name. FileExistsError if that is taken, on a file system with hard links."""
    try:
        disk.link(temporary, path)
    except OSError as error:
        if error.errno not in LINKLESS:
            raise
        disk.rename(temporary, path)
    else:
        disk.unlink(temporary)


def can_write(disk: Disk, path: Path, size: int) -> bool:
    """Whether a file of ``size`` bytes can be made beside the path now. It is removed again."""
    try:
        with _written_beside(disk, path, bytes(size), None, durable=False) as temporary:
            disk.unlink(temporary)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _written_beside(disk: Disk, path: Path, data: bytes, old: os.stat_result | None, durable: bool) -> Iterator[Path]:
    """The content in a temporary file beside the path, with the attributes of the ``old`` file there, if there is one.

    The file is removed if its use fails, unless it has the content of another program by then (see ``leftovers``).
    """
    temporary = _temporary(path)
    made: os.stat_result | None = None
    try:
        try:
            fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # left by a crash: it may be another name of the document itself
            disk.unlink(temporary)
            fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[disk.write(fd, bytes(rest)) :]
            if old is None:
                disk.chmod(fd, FILE_MODE)
            else:
                _keep_attributes(disk, fd, temporary, path, old)
            if durable:
                disk.sync(fd)
            made = disk.status_of(fd)
        finally:
            disk.close(fd)
        yield temporary
    except (OSError, Refused):
        with contextlib.suppress(OSError):
            left = disk.status(temporary)
            if left is not None and (made is None or left.st_ino == made.st_ino):
                disk.unlink(temporary)
        raise


def leftovers(disk: Disk, path: Path) -> list[Path]:
    """The temporary files beside the path that killed writers have left. One may have another program's content."""
    start = _temporary_start(path)
    return [path.with_name(name) for name in disk.names(path.parent) if name.startswith(start) and name[-4:] == ".tmp"]


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_temporary_start(path)}{threading.get_native_id()}.tmp")


def _temporary_start(path: Path) -> str:
    return f".{os.fsdecode(os.fsencode(path.name)[:200])}."  # leaves room for the rest


def _keep_attributes(disk: Disk, fd: int, temporary: Path, path: Path, old: os.stat_result) -> None:
    """Give the new file the owner, group, mode and extended attributes of the one that it is to replace.

    ``Refused`` if one of them cannot be given: then the old file stays.
    """
    made = disk.status_of(fd)
    try:
        if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
            disk.chown(fd, old.st_uid, old.st_gid)
        disk.chmod(fd, stat.S_IMODE(old.st_mode))  # after the change of owner, which clears bits
        wanted, inherited = disk.attributes(path), disk.attributes(temporary)
        for name in wanted.keys() | inherited.keys():
            if wanted.get(name) != inherited.get(name):
                disk.set_attribute(fd, name, wanted.get(name))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        raise Refused(
            f"{path} is left as it is: a new file in its place could not keep its owner ({old.st_uid}), group "
            f"({old.st_gid}) or access list: {error.strerror}",
            path,
        ) from None


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


def remove(disk: Disk, path: Path, expected: bytes | None = None) -> None:
    """Remove the file, durably. Its content must be in the journal before.

    With ``expected`` no other content is ever removed. BlockingIOError if the file has another.
    """
    refuse_links(disk, path)
    with contextlib.suppress(FileNotFoundError):
        if expected is None:
            disk.unlink(path)
        else:
            _remove_expected(disk, path, expected)
    sync_folder(disk, path.parent)


def _remove_expected(disk: Disk, path: Path, expected: bytes) -> None:
    """Move the file aside, and remove it there if it has the expected content; else put it back.

    FileNotFoundError if another process has removed it. What cannot be put back, since another process has made the
    file again, is left beside it like what a killed writer leaves (see ``leftovers``).
    """
    refuse_changed(disk, path, expected)
    temporary = _temporary(path)
    disk.rename(path, temporary)
    if disk.read(temporary) != expected:
        with contextlib.suppress(FileExistsError):
            _link_or_rename(disk, temporary, path)
        raise BlockingIOError(errno.EAGAIN, "another process has written to it", str(path))
    _discard(disk, temporary)


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
