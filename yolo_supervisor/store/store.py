"""The journaled store: the one part that changes documents. The daemon and every command are equal clients of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from msgspec import structs

from yolo_supervisor.actions.base import Action, Edit, Escalate, Note
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.actions.state import files_pruned
from yolo_supervisor.clock import Clock, SystemClock
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.crash_report import Report
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store import checksums, crash_reports, plugin_log
from yolo_supervisor.store.atomic import (
    is_folder,
    make_folder,
    sync_folder,
    write_atomic,
)
from yolo_supervisor.store.backups import Backups
from yolo_supervisor.store.disk import FILE_MODE, FOLDER_MODE, Disk
from yolo_supervisor.store.documents import Documents
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.journal import SIZE, Journal, refuse_newer
from yolo_supervisor.store.lines import (
    Begun,
    GoodVersion,
    Heartbeat,
    Promise,
    SignOfLife,
    Version,
    Write,
    ended,
    entry,
    fields,
)
from yolo_supervisor.store.locks import Busy, file_lock
from yolo_supervisor.store.paths import Paths, refuse_linked_planning
from yolo_supervisor.store.quotas import BACKUPS, QUARANTINE, Pruned, QuotaFolder
from yolo_supervisor.store.recovery import Recovery, recover
from yolo_supervisor.store.state_folder import enrol, refuse_other_owners_root, refuse_untrusted

LOCK_LIMIT_S = 0.25
"""The longest time that one change may block the loop while another process writes; then the outcome is BUSY."""


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    """The decision no longer fits the document: another program has changed it. Nothing was changed."""
    BUSY = "busy"
    """Another process holds the document's lock. Nothing was changed; the next tick tries again."""


class Unwritable(OSError):
    """A promised change of ``filename`` could not be made. Each further try costs two lines of the journal."""

    size = 0
    """The size of the new content, in bytes."""


def write_note(project: Path, action: Action, by: str) -> None:
    """Write one note into the project's journal, for a process that writes nothing else.

    OSError, Busy or Refused if it cannot be written.
    """
    store = Store(project)
    try:
        store.open()
        store.note(action, by)
    finally:
        store.close()


class Store:
    """The store of one project. Every method that writes may raise OSError; then nothing is half done."""

    def __init__(
        self,
        project: Path,
        clock: Clock | None = None,
        disk: Disk | None = None,
        journal_size: int = SIZE,
        lock_limit_s: float = LOCK_LIMIT_S,
        allow_root: bool = False,
    ) -> None:
        self._lock_limit_s = lock_limit_s
        self._allow_root = allow_root
        self.paths = Paths(project)
        self.disk = disk or Disk()
        self.clock = clock or SystemClock()
        self.journal = Journal(self.paths.journal, self.disk, self.paths.quarantine, journal_size)
        self.documents = Documents(self.disk, self.paths.held_lock, self.paths.quarantine, self.clock)
        self._backups = Backups(self.disk, self.paths.backups, self.paths.quarantine)
        self._quotas = {
            folder: QuotaFolder(self.disk, folder, quota)
            for folder, quota in ((self.paths.backups, BACKUPS), (self.paths.quarantine, QUARANTINE))
        }
        self._pruned: list[Note] = []
        self._lock_fd = -1
        self._hidden: bool | None = None
        """Whether git ignores the checksum files that we make; None before that was arranged."""

    @property
    def index(self) -> Index:
        """The state that follows from the journal, as far as it was read."""
        return self.journal.index

    def open(self) -> None:
        """Make the state folder where it is missing, private to the user.

        ``Refused`` if it, or one in it, is a link, or one that others may write to; ``TooNew`` if it is a newer
        program's.
        """
        folder = self.paths.folder
        if not self._allow_root:
            refuse_other_owners_root(self.disk, self.paths)
        refuse_untrusted(self.disk, folder)
        refuse_linked_planning(self.paths.planning, self.disk.status(self.paths.planning))
        enrol(self.disk, self.paths, self._lock_limit_s)
        version = refuse_newer(self.disk, folder)
        self._make_private(folder)
        sync_folder(self.disk, folder.parent)  # the run that made it may have been killed before this
        for inner in self.paths.folders:
            refuse_untrusted(self.disk, inner)
            make_folder(self.disk, inner)
        if version != own_files.VERSION:  # before the first line that an older program would misread
            write_atomic(self.disk, folder / own_files.VERSION_FILE, own_files.dump_version())
        self._lock_fd = self.disk.open(self.paths.store_lock, os.O_RDWR | os.O_CREAT, FILE_MODE)
        with self._locked():
            self.journal.catch_up()

    def _make_private(self, folder: Path) -> None:
        """Make the folder accessible to its user only, also if an older program or a person made it."""
        found = self.disk.status(folder)
        if found is not None and stat.S_IMODE(found.st_mode) & 0o077:
            fd = self.disk.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self.disk.chmod(fd, FOLDER_MODE)
            finally:
                self.disk.close(fd)

    def close(self) -> None:
        self.journal.close()
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            self.disk.close(fd)

    def commit(self, action: Edit, by: str) -> Outcome:
        """Make the change if the decision still holds: first the promise, then the document, durable at DONE."""
        try:
            with self._locked(), self.documents.external_lock(action.lock):
                self.journal.catch_up()
                before = self.documents.read(action.path)
                if not action.allowed(self.index, before) or not action.holds(before):
                    return Outcome.STALE
                after = action.edit(before)
                if action.makes_folder and not is_folder(self.disk, action.path.parent):
                    self._hides()  # before git can see it
                    make_folder(self.disk, action.path.parent, 0o777)
                done = entry(action, by, self.clock.now(), self.paths.project)
                write = Write(
                    path=str(action.path),
                    before=digest(before),
                    after=digest(after),
                    replay=action.replayable,
                    stamp=self.documents.stamp(action.path),
                    mode=action.write_mode,
                    lock=(str(action.lock[0]), action.lock[1]) if action.lock else None,
                    **self._backups.promise_fields(before, after),
                )
                self._settle(action.path, before)
                seq = self.journal.append(Promise(**fields(done), write=write))
                try:
                    self.documents.write(action.path, before, after, action.write_mode)
                except (FileExistsError, BlockingIOError):
                    self.journal.mark(seq, "failed", "another program has written to it")
                    return Outcome.STALE
                except (OSError, Refused) as error:
                    if self.documents.has_not(action.path, digest(after)):  # otherwise ``recover`` decides
                        self.journal.mark(seq, "failed", str(error))
                    unwritable = Unwritable(getattr(error, "errno", None), str(error), str(action.path))
                    unwritable.size = len(after or b"")
                    raise unwritable from error
                plugin_log.append_event(self.disk, self.paths.planning, structs.replace(done, seq=seq))
                self.journal.mark(seq, "done")
                if action.path.parent == self.paths.quarantine:
                    self._added(self.paths.quarantine, after or b"", by)
                if write.removed_in is not None:
                    self._added(self.paths.quarantine, before or b"", by)
                if write.content_in is not None:
                    self._added(self.paths.backups, after or b"", by)
                return Outcome.DONE
        except Busy:
            return Outcome.BUSY

    def beat(self, key: str, token: int, since_s: float, boot: str) -> bool:
        """Record a heartbeat of the claim with this token; False if it is no longer the task's claim."""
        with self._locked():
            self.journal.catch_up()
            claim = self.index.claims.get(key)
            if claim is None or claim.token != token or not claim.live:
                return False
            self.journal.append(Heartbeat(beat=SignOfLife(key, token, since_s, boot)), durable=False)
            return True

    def lock_age_s(self, path: Path) -> float | None:
        """The time for which an external lock was seen unchanged; None if there is none."""
        return self.documents.lock_age_s(path)

    def break_lock(self, action: BreakLock, by: str) -> Outcome:
        """Break a stale lock: take a lock folder over and release it, or move a lock file to the quarantine.

        STALE if the lock is held after all.
        """
        with self._locked():
            self.journal.catch_up()
            done = entry(action, by, self.clock.now(), self.paths.project)
            begun = self.journal.append(Begun(**fields(done)))
            try:
                aside = self.paths.quarantine / f"{action.path.name}-{begun}"
                self.documents.break_lock(action.path, action.stale_s, aside, action.near)
            except (Busy, OSError) as error:
                self.journal.mark(begun, "failed", str(error))
                return Outcome.STALE
            self.journal.append(ended(done, begun, {}))
            self._added(self.paths.quarantine, b"", by)
            return Outcome.DONE

    def note(self, action: Action, by: str, prefix: str = "") -> None:
        """Record an action that changes no document. ``prefix`` is ``would_`` in observe mode."""
        durable = not isinstance(action, Note) or action.durable
        with self._locked():
            self.journal.catch_up()
            note = entry(action, by, self.clock.now(), self.paths.project, prefix)
            seq = self.journal.append(note, durable)
            if isinstance(action, Escalate):  # the plugin logs what its own programs do
                plugin_log.append_event(self.disk, self.paths.planning, structs.replace(note, seq=seq))

    def begin(self, action: Action, by: str) -> int:
        """Record that an operation outside the disk begins; the number is for ``end``."""
        with self._locked():
            self.journal.catch_up()
            return self.journal.append(Begun(**fields(entry(action, by, self.clock.now(), self.paths.project))))

    def end(self, begun: int, action: Action, by: str, evidence: Mapping[str, Any]) -> None:
        """Record the result of the operation that began with line ``begun``."""
        with self._locked():
            self.journal.catch_up()
            done = entry(action, by, self.clock.now(), self.paths.project)
            self.journal.append(ended(done, begun, evidence))

    def abandon(self, begun: int, why: str) -> None:
        """Record that the operation had no effect."""
        with self._locked():
            self.journal.catch_up()
            self.journal.mark(begun, "failed", why)

    def heed(self) -> None:
        """Read the lines of other processes, if the store is open and its lock is free."""
        if self._lock_fd >= 0:
            with contextlib.suppress(Busy, OSError), self._locked():
                self.journal.catch_up()

    def recover(self) -> Recovery:
        """Finish the promised changes that a crash interrupted. Harmless at any time, and idempotent."""
        with self._locked():
            self.journal.catch_up()
            return recover(self.paths, self.journal, self.documents, self._backups)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.paths.store_lock
        if self.disk.status(self.paths.project) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.paths.project))
        if (there := self.disk.status(path)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if self._lock_fd >= 0 and not os.path.samestat(self.disk.status_of(self._lock_fd), there):
            self.close()
            self._lock_fd = self.disk.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        with file_lock(self.disk, self._lock_fd, path, self._lock_limit_s):
            self.documents.release_orphaned_lock()
            yield

    def _settle(self, path: Path, now: bytes | None) -> None:
        """End all earlier promises about the document: no recovery may make them after a later change."""
        for seq, promise in list(self.journal.pending.items()):
            if isinstance(promise, Promise) and promise.write.path == str(path):
                made = promise.write.after == digest(now)
                if made:
                    self.documents.make_durable(path, promise.write, now)
                self.journal.mark(seq, "done" if made else "failed", "overtaken by a later decision")

    # -- good versions ---------------------------------------------------------------------------------------------

    def good(self, path: Path) -> str | None:
        """The digest of the document's newest good version; None if none is known."""
        return next(reversed(self.index.good_versions.get(str(path), ())), None)

    def versions(self, path: Path) -> Iterator[bytes]:
        """The good versions of the document that can still be read, the newest first."""
        return self._backups.whole(reversed(self.index.good_versions.get(str(path), ())))

    def keep(self, path: Path, data: bytes) -> None:
        """Keep ``data`` as the document's newest good version, and refresh its checksum file."""
        hidden = self._hides()
        with self._locked():
            self.journal.catch_up()
            before = tuple(self.index.good_versions.get(str(path), ()))
            version = Version(str(path), self._backups.put(data))
            self.journal.append(GoodVersion(good=version), durable=False)
            self._prune(set(before) - set(self.index.good_versions[str(path)]))
            make = hidden and path.parent == self.paths.planning
            checksums.refresh(self.disk, path, version.digest, make=make)
            self._added(self.paths.backups, data, "state")

    def _hides(self) -> bool:
        """Whether git ignores the files that we make beside the plugin's. This is arranged once."""
        if self._hidden is None:
            self._hidden = checksums.hide(self.disk, self.paths.project)
        return self._hidden

    def _prune(self, outdated: set[str]) -> None:
        """Remove contents that no document and no promise needs any more.

        A content that the journal does not know stays, within the quota: it may be all that is left of a journal that
        was deleted.
        """
        known = {version for versions in self.index.good_versions.values() for version in versions}
        self._backups.remove(outdated - known - self._promised())

    # -- quotas ------------------------------------------------------------------------------------------------------

    def save_crash_report(self, report: Report, by: str) -> None:
        """Write a crash report; the oldest ones leave its folder above the quota."""
        pruned = crash_reports.save(self.disk, self.paths.crashes, report)
        if pruned is not None:
            with self._locked():
                self.journal.catch_up()
                self._record_pruned(pruned, by)

    def take_pruned(self) -> list[Note]:
        """The notes about files that were removed since the last call, to keep a folder within its quota."""
        taken, self._pruned = self._pruned, []
        return taken

    def _added(self, folder: Path, data: bytes, by: str) -> None:
        """Keep the folder, to which a file with this content was added, within its quota."""
        quota = self._quotas[folder]
        if not quota.added(len(data)):
            return
        newest = {versions[-1] for versions in self.index.good_versions.values() if versions}
        if (pruned := quota.prune(newest | self._promised())) is not None:
            self._record_pruned(pruned, by)

    def _record_pruned(self, pruned: Pruned, by: str) -> None:
        note = files_pruned(folder=pruned.folder, files=pruned.files, size=pruned.size)
        self.journal.append(entry(note, by, self.clock.now(), self.paths.project), durable=False)
        self._pruned.append(note)

    def _promised(self) -> set[str]:
        """The names of contents that a promise without a mark needs."""
        writes = [line.write for line in self.journal.pending.values() if isinstance(line, Promise)]
        return {name for write in writes for name in (write.content_in, write.removed_in) if name is not None}
