"""The one small seam through which every durable change reaches the disk.

``Disk`` has the primitive operations and nothing else, so that a test can record, refuse or tear each of them, or put a
disk of its own in their place; the functions below it are the only ways in which this program makes a change survive a
crash.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import pwd
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 16 * 2**20
"""No document of ours or of our neighbours is anywhere near as large, in bytes."""

FILE_MODE = 0o600
FOLDER_MODE = 0o700


LINKLESS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What file systems without hard links say to one."""


class Busy(Exception):
    """Somebody else holds the lock; nothing was changed, and the next look tries again."""


class Refused(Exception):
    """The path is not one that we write to: a link, say, or no ordinary file."""


class TooNew(Refused):
    """What is on the disk was written by a newer version of this program: it is neither read nor changed."""


class Unflushed(OSError):
    """A flush has failed: the kernel may have forgotten what it could not write, so it must not be tried again."""


class Disk:
    """The primitive operations. Every one may raise OSError; none retries."""

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def write_at(self, fd: int, data: bytes, at: int) -> int:
        return os.pwrite(fd, data, at)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """Flush the file (or folder) to the device. A failed sync must never be repeated as if it could succeed."""
        if hasattr(fcntl, "F_FULLFSYNC"):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # on macOS fsync leaves the data in the drive's own cache
        else:
            os.fdatasync(fd)

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path, mode: int = FOLDER_MODE) -> None:
        os.mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    # what is asked of it before it is changed

    def read(self, path: Path, limit: int = LIMIT) -> bytes | None:
        return read(path, limit)

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        return os.pread(fd, size, at)

    def status(self, path: Path) -> os.stat_result | None:
        """What is at the path itself (a link is not followed); None if there is nothing."""
        try:
            return path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def status_of(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def names(self, folder: Path) -> list[str]:
        """The names in the folder; none where it is missing."""
        try:
            return os.listdir(folder)
        except FileNotFoundError:
            return []

    def lock(self, fd: int) -> None:
        """Take the exclusive flock. BlockingIOError if another has it."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


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
        while part := os.read(fd, max(found.st_size, 4095) + 1):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def glance(path: Path) -> bytes | None:
    """The file's bytes for a look that decides nothing by their absence: None also where it cannot be read."""
    try:
        return read(path)
    except OSError:
        return None


def part(path: Path, at: int, size: int) -> bytes | None:
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


def append(disk: Disk, fd: int, data: bytes, size: int, durable: bool = True) -> None:
    """Add ``data`` at the end of an append-mode file of ``size`` bytes, durably, or leave the file as it was.

    OSError if the data is not there; a write that failed half-way has been cut off again. Unflushed if only the flush
    has failed: then nobody knows what of the file is on the device.
    """
    try:
        if disk.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, "No space left for a whole line")
        if durable:
            flush(disk, fd)
    except OSError:
        with contextlib.suppress(OSError):
            disk.truncate(fd, size)
        raise


def flush(disk: Disk, fd: int) -> None:
    """Flush the file. ``Unflushed`` if that fails."""
    try:
        disk.sync(fd)
    except OSError as error:
        raise Unflushed(error.errno, f"it could not be flushed: {error.strerror}") from error


def replace(disk: Disk, path: Path, data: bytes, durable: bool = True, judged: bytes | None = None) -> None:
    """Make ``data`` the file's content in one step: readers and crashes see the old or the new, never a mixture.

    ``durable=False`` leaves out the flushing, for observations that are worthless after a power cut anyway.
    OSError if it could not be done: then the old content stands; BlockingIOError if it is not ``judged`` any more.
    """
    found = refuse_links(disk, path)
    with _written_beside(disk, path, data, stat.S_IMODE(found.st_mode) if found else FILE_MODE, durable) as temporary:
        if judged is not None:  # flushing takes its time, and an editor heeds no lock of ours
            refuse_changed(disk, path, judged)
        disk.rename(temporary, path)
    if durable:
        sync_folder(disk, path.parent)


def create(disk: Disk, path: Path, data: bytes) -> None:
    """Make the file with this content, durably, if nobody else makes one first: FileExistsError then.

    Where there are no hard links it is the same as ``replace``: then only those who lock are told apart.
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


@contextlib.contextmanager
def _written_beside(disk: Disk, path: Path, data: bytes, mode: int, durable: bool) -> Iterator[Path]:
    """The content in a temporary file beside the path, which is gone again if what is done with it fails."""
    name = os.fsdecode(os.fsencode(path.name)[:200])  # there must be room for the rest
    temporary = path.with_name(f".{name}.{threading.get_native_id()}.tmp")  # the pid, but in a second thread
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
    """Cut off the end of a file that others append to: in its place, so that they lose nothing by it.

    OSError if it could not be done, or if the file has changed since ``before`` was read: then it stands.
    """
    refuse_links(disk, path)
    refuse_changed(disk, path, before)
    fd = disk.open(path, os.O_RDWR)
    try:
        if disk.status_of(fd).st_size != len(before):
            raise OSError(errno.EAGAIN, "somebody is writing to it", str(path))
        disk.truncate(fd, size)
        disk.sync(fd)
    finally:
        disk.close(fd)


def remove(disk: Disk, path: Path) -> None:
    """Remove the file, durably. What it held must be in the journal before."""
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
    """What is at the path, None if nothing. ``Refused`` if it is a symbolic link."""
    found = disk.status(path)
    if found is not None and stat.S_ISLNK(found.st_mode):
        raise Refused(f"{path} is a symbolic link: it is not followed, and not replaced")
    return found


def refuse_changed(disk: Disk, path: Path, judged: bytes) -> None:
    """BlockingIOError if the file does not hold what was ``judged`` any more."""
    if disk.read(path) != judged:
        raise BlockingIOError(errno.EAGAIN, "somebody is writing to it", str(path))


def other_writers(path: Path, found: os.stat_result) -> str | None:
    """Why others than the user and root could change the file, or what is in the folder; None if they cannot.

    The group that many systems give every user alone is not others.
    """
    mode, me = stat.S_IMODE(found.st_mode), os.geteuid()
    if me not in (0, found.st_uid) and found.st_uid != 0:
        return f"{path} belongs to another user ({found.st_uid})"
    sticky = (
        stat.S_ISDIR(found.st_mode) and mode & stat.S_ISVTX
    )  # there nobody can put another file in the place of ours
    if mode & stat.S_IWOTH and not sticky:
        return f"{path} can be written by everybody (mode {mode:o})"
    if mode & stat.S_IWGRP and not sticky and not _own_group(found):
        return f"{path} can be written by its group, {found.st_gid} (mode {mode:o})"
    return None


def _own_group(found: os.stat_result) -> bool:
    """Whether the group is the owner's alone."""
    if found.st_gid == 0:
        return True
    try:
        owner, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return found.st_gid == found.st_uid
    return owner.pw_name == group.gr_name and not set(group.gr_mem) - {owner.pw_name}


# -- locks ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_lock(disk: Disk, fd: int, limit_s: float) -> Iterator[None]:
    """Hold the exclusive flock of an open file; ``Busy`` if it is not had within ``limit_s`` seconds.

    The kernel gives it up when its holder dies, so it is never stale.
    """
    deadline, pause_s = time.monotonic() + limit_s, 0.0001
    while True:
        try:
            disk.lock(fd)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Busy("another process is writing to the store") from None
            time.sleep(pause_s)
            pause_s = min(0.002, pause_s * 1.5)
    try:
        yield
    finally:
        disk.unlock(fd)


class LockAges:
    """For how long we have seen each lock folder unchanged, by the monotonic clock.

    Its time stamp alone proves nothing: a step of the wall clock would make a lock that is held look abandoned.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}

    def age_s(self, path: Path, found: os.stat_result) -> float:
        stamp, now_s = (found.st_ino, found.st_mtime_ns), time.monotonic()
        before = self._seen.get(path)
        if before is None or before[0] != stamp:
            self._seen[path] = stamp, now_s
            return 0.0
        return now_s - before[1]

    def forget(self, path: Path) -> None:
        self._seen.pop(path, None)


@contextlib.contextmanager
def folder_lock(disk: Disk, path: Path, stale_s: float, ages: LockAges | None = None) -> Iterator[None]:
    """Hold a lock that is a folder, by its owners' convention; ``Busy`` if somebody has it.

    One that nobody has refreshed for ``stale_s`` seconds was left by a process that died: by ``ages`` where given, else
    by its time stamp. It is taken over by a rename, which only one of several takers can win, so that no fresh lock is
    ever removed in its place.
    """
    try:
        disk.mkdir(path, 0o777)
    except FileExistsError:
        _take_over(disk, path, stale_s, ages)
    if ages is not None:
        ages.forget(path)
    made = _life(disk, path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if _life(disk, path) == made:  # else we were away for so long that another has taken it over
                disk.rmdir(path)


def put_aside(disk: Disk, path: Path, aside: Path, stale_s: float, ages: LockAges) -> None:
    """Move a lock that is a file away, if it is still the one that was seen unchanged for ``stale_s`` seconds.

    ``Busy`` if it is another by now. OSError if it cannot be moved, to another file system, say: then it stands.
    """
    found = refuse_links(disk, path)
    if found is None or ages.age_s(path, found) < stale_s:
        raise Busy(f"{path} changed hands")
    disk.rename(path, aside)
    if _life(disk, aside) != (found.st_ino, found.st_mtime_ns):
        with contextlib.suppress(OSError):
            disk.link(aside, path)  # a newer one than that stands
        raise Busy(f"{path} changed hands")
    sync_folder(disk, path.parent)


def _life(disk: Disk, path: Path) -> tuple[int, int] | None:
    """Which folder this is: an inode alone is given out again at once."""
    found = disk.status(path)
    return (found.st_ino, found.st_mtime_ns) if found else None


def _take_over(disk: Disk, path: Path, stale_s: float, ages: LockAges | None) -> None:
    """Only one of us at a time takes over in a folder (its flock), so that nothing fresh is ever put aside by us."""
    fd = disk.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.lock(fd)
        found = disk.status(path)
        if found is None:
            raise Busy(f"{path} changed hands")
        age_s = ages.age_s(path, found) if ages is not None else time.time() - found.st_mtime
        if not stat.S_ISDIR(found.st_mode) or age_s < stale_s:
            raise Busy(f"{path} is held")
        aside = path.with_name(f"{path.name}.{os.getpid()}.stale")
        disk.rename(path, aside)
        if _life(disk, aside) != (found.st_ino, found.st_mtime_ns):
            disk.rename(aside, path)
            raise Busy(f"{path} is held")
        with contextlib.suppress(OSError):
            disk.rmdir(aside)
        disk.mkdir(path, 0o777)
    except BlockingIOError:
        raise Busy(f"{path} is being taken over") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY):
            raise Busy(f"{path} changed hands") from None
        raise
    finally:
        disk.close(fd)
