"""Documents on the disk: how a change is made, made durable, and kept apart from other programs' changes."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection, Iterator
from pathlib import Path

from yolo_supervisor.actions.base import WriteMode
from yolo_supervisor.clock import Clock
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store import checksums
from yolo_supervisor.store.atomic import (
    create,
    is_folder,
    leftovers,
    make_folder,
    refuse_links,
    remove,
    shorten,
    sync_folder,
    write_atomic,
)
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.lines import Write
from yolo_supervisor.store.locks import LockAges, folder_lock, put_aside
from yolo_supervisor.store.paths import quarantine_file
from yolo_supervisor.store.quotas import prune_moved_locks


class Documents:
    """The documents that the store changes, and the locks of their owners. Call it under the store's lock only."""

    def __init__(self, disk: Disk, held_lock: Path, quarantine: Path, clock: Clock) -> None:
        self.disk = disk
        self._quarantine = quarantine
        self._held_lock = held_lock
        """The note about the lock of another program that a writer holds now."""
        self._lock_ages = LockAges(clock.awake)

    def read(self, path: Path) -> bytes | None:
        """The content; None if there is no document. OSError, Refused."""
        refuse_links(self.disk, path)
        return self.disk.read(path)

    def write(self, path: Path, before: bytes | None, after: bytes | None, mode: WriteMode) -> None:
        """Make the change. FileExistsError, BlockingIOError if another process has written to the document."""
        self.rescue_leftovers(path, (digest(before), digest(after)))
        if after is None:
            if before is not None:
                remove(self.disk, path, expected=before)
        elif before is None:
            create(self.disk, path, after)
        elif after == before:
            return
        elif mode is WriteMode.TRUNCATE and before.startswith(after):  # a promise may name another content
            shorten(self.disk, path, before, len(after))
        else:
            write_atomic(self.disk, path, after, expected=before)
            checksums.refresh(self.disk, path, str(digest(after)), make=False)

    def rescue_leftovers(self, path: Path, known: Collection[str | None]) -> list[Path]:
        """Remove temporary files that killed writers have left beside the document; the copies that were made.

        A writer may have been killed between an exchange and its check: a content that is not ``known`` may be another
        program's, and is copied to the quarantine before.
        """
        copies = []
        for left in leftovers(self.disk, path):
            data = self.disk.read(left)
            if data is not None and digest(data) not in known:
                copy = quarantine_file(self._quarantine, path.name, data)
                write_atomic(self.disk, copy, data)
                copies.append(copy)
            if data is not None:
                self.disk.unlink(left)
        return copies

    def make_durable(self, path: Path, write: Write, now: bytes | None) -> None:
        """Flush a promised change that is made: its writer may have been killed before it had.

        A change in place is written again, atomically: a flush that has failed once must not be repeated.
        """
        stamp = self.stamp(path)
        if now is not None and stamp is not None and write.stamp is not None and stamp[0] == write.stamp[0]:
            with contextlib.suppress(BlockingIOError):  # another program has written to it since: nothing is ours there
                write_atomic(self.disk, path, now, expected=now)
        else:
            sync_folder(self.disk, path.parent)

    def stamp(self, path: Path) -> tuple[int, int] | None:
        """Inode and time of the file; None if there is none."""
        status = self.disk.status(path)
        return (status.st_ino, status.st_mtime_ns) if status else None

    def has_not(self, path: Path, expected: str | None) -> bool:
        """Whether the file can be read, and has another content than the one with this digest."""
        try:
            return digest(self.disk.read(path)) != expected
        except OSError:
            return False

    # -- locks of other programs -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def external_lock(self, lock: tuple[Path, float] | None) -> Iterator[None]:
        """Hold the lock folder by which a document's owners lock it. ``Busy`` if another program holds it."""
        if lock is None or not is_folder(self.disk, lock[0].parent):  # without the folder there is no document either
            yield
            return
        with folder_lock(self.disk, *lock, self._lock_ages):
            with contextlib.suppress(OSError, Refused):  # without the note the lock only becomes stale later
                if (stamp := self.stamp(lock[0])) is not None:
                    write_atomic(self.disk, self._held_lock, own_files.dump_held_lock(lock[0], *stamp), durable=False)
            yield
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held_lock)

    def release_orphaned_lock(self) -> None:
        """Remove the external lock that a writer of the store held when it was killed.

        The note about it is made and removed under the store's lock. To hold the store's lock proves that the writer is
        gone; inode and time prove that the folder is still the one that it made.
        """
        if self.disk.status(self._held_lock) is None:
            return
        note = None
        with contextlib.suppress(OSError):
            note = own_files.load_held_lock(self.disk.read(self._held_lock) or b"")
        if note is not None:
            path, inode, made = note
            with contextlib.suppress(OSError, ValueError):
                if self.stamp(path) == (inode, made):
                    self.disk.rmdir(path)
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held_lock)

    def lock_age_s(self, path: Path) -> float | None:
        """The time for which an external lock was seen unchanged; None if there is none."""
        status = self.disk.status(path)
        if status is None:
            self._lock_ages.forget(path)
            return None
        return self._lock_ages.age_s(path, status)

    def break_lock(self, path: Path, stale_s: float, aside: Path, near: Path | None = None) -> None:
        """Take over a stale lock folder and release it, or move a stale lock file to ``aside``.

        A file cannot be moved to another file system: then the folder ``near`` keeps it. ``Busy`` if the lock is held
        after all, OSError if it cannot be moved.
        """
        if is_folder(self.disk, path):
            with folder_lock(self.disk, path, stale_s, self._lock_ages):
                pass
        else:
            try:
                put_aside(self.disk, path, aside, stale_s, self._lock_ages)
            except OSError as error:
                if error.errno != errno.EXDEV or near is None:
                    raise
                make_folder(self.disk, near)
                put_aside(self.disk, path, near / aside.name, stale_s, self._lock_ages)
                prune_moved_locks(self.disk, near)
