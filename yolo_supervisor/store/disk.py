"""The seam to the disk: every primitive operation that the store and the journal use."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from yolo_supervisor.fs.exchange import exchange
from yolo_supervisor.fs.owner import open_for_owner, other_owner
from yolo_supervisor.fs.read import LOG_LIMIT, read

FILE_MODE = 0o600
FOLDER_MODE = 0o700


class Unflushed(OSError):
    """The content of a file on the device is unknown: nothing may be added to it any more.

    A flush has failed, and must not be repeated (the kernel may have dropped what it could not write), or the end of a
    failed write could not be cut off.
    """


class Disk:
    """The primitive operations. Every one may raise OSError; none retries.

    What root makes in another user's folder belongs to that user.
    """

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        return open_for_owner(path, flags | os.O_NOFOLLOW, mode)

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

    def exchange(self, one: Path, other: Path) -> None:
        """Let two names change their files in one step. OSError (``EXCHANGELESS``) where the system cannot."""
        exchange(one, other)

    def chown(self, fd: int, user: int, group: int) -> None:
        os.fchown(fd, user, group)

    def set_attribute(self, fd: int, name: str, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (None)."""
        if value is None:
            os.removexattr(fd, name)
        else:
            os.setxattr(fd, name, value)

    def chmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def link(self, old: Path, new: Path) -> None:
        os.link(old, new, follow_symlinks=False)

    def symlink(self, target: Path, path: Path) -> None:
        os.symlink(target, path)
        if (owner := other_owner(path.parent)) is not None:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def mkdir(self, path: Path, mode: int = FOLDER_MODE) -> None:
        os.mkdir(path, mode)
        if (owner := other_owner(path.parent)) is not None:
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)

    def rmdir(self, path: Path) -> None:
        os.rmdir(path)

    # what is asked of it before it is changed

    def read(self, path: Path, limit: int = LOG_LIMIT) -> bytes | None:
        return read(path, limit)

    def read_at(self, fd: int, size: int, at: int) -> bytes:
        return os.pread(fd, size, at)

    def status(self, path: Path) -> os.stat_result | None:
        """The status of the path itself (a link is not followed); None if there is nothing."""
        try:
            return path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def attributes(self, path: Path) -> dict[str, bytes]:
        """The extended attributes, access lists among them; none where the file system has none."""
        if not hasattr(os, "listxattr"):
            return {}
        try:
            names = os.listxattr(path, follow_symlinks=False)
            return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        except OSError as error:
            if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODATA):
                return {}
            raise

    def readlink(self, path: Path) -> Path:
        return Path(os.readlink(path))

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
