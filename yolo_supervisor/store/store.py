"""The journaled store: the one part that changes documents. The daemon and every command are equal clients of it."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from msgspec import structs

from yolo_supervisor.actions.base import Action, Edit, Escalate, Note, WriteMode
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.clock import Clock, SystemClock
from yolo_supervisor.formats import claude
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused, other_writers
from yolo_supervisor.store import checksums, plugin_log
from yolo_supervisor.store.atomic import (
    create,
    is_folder,
    make_folder,
    refuse_changed,
    refuse_links,
    remove,
    shorten,
    sync_folder,
    write_atomic,
)
from yolo_supervisor.store.disk import FILE_MODE, FOLDER_MODE, Disk
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.journal import SIZE, Journal, refuse_newer
from yolo_supervisor.store.lines import (
    Begun,
    Ended,
    Entry,
    GoodVersion,
    Heartbeat,
    Promise,
    SignOfLife,
    Version,
    Write,
    entry,
    fields,
)
from yolo_supervisor.store.locks import Busy, LockAges, file_lock, folder_lock, put_aside
from yolo_supervisor.store.paths import Paths, refuse_root

LOCK_LIMIT_S = 0.25
"""The longest time that one change may block the loop while another process writes; then the outcome is BUSY."""

INLINE = 256 * 1024
"""A larger content, in bytes, is not written into the journal but beside it, among the good versions."""

FOLDERS = ("agents", "hooks", "snapshots", "backups", "quarantine", "dead-letters", "crashes", "flags", "circuits")


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    """The decision no longer fits the document: another program has changed it. Nothing was changed."""
    BUSY = "busy"
    """Another process holds the document's lock. Nothing was changed; the next tick tries again."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """The result of ``recover``: finished changes, overtaken changes, damage of the journal, and the size of a
    half-written last line in bytes."""

    finished: tuple[str, ...]
    overtaken: tuple[str, ...]
    damage: tuple[str, ...]
    torn: int = 0

    def __bool__(self) -> bool:
        return bool(self.finished or self.overtaken or self.damage or self.torn)


class Unwritable(OSError):
    """A promised change could not be made. Each further try costs two lines of the journal."""


def _ended(begun: Entry, seq: int, evidence: Mapping[str, Any]) -> Ended:
    """The end of the operation that began with line ``seq``, with further evidence."""
    return Ended(**{**fields(begun), "evidence": {**begun.evidence, **evidence}}, done=seq)


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
        self._lock_fd = -1
        self._lock_ages = LockAges()
        self._hidden: bool | None = None
        """Whether git ignores the checksum files that we make; None before that was arranged."""

    @property
    def index(self) -> Index:
        """The state that follows from the journal, as far as it was read."""
        return self.journal.index

    def open(self) -> None:
        """Make the state folder where it is missing, private to the user and ignored by git.

        ``Refused`` if it, or one in it, is a link, or one that others may write to; ``TooNew`` if it is a newer
        program's.
        """
        folder = self.paths.folder
        if not self._allow_root:
            refuse_root(self.paths.project, self.disk.status(self.paths.project))
        self._refuse_untrusted(folder)
        version = refuse_newer(self.disk, folder)
        self._make_private(folder)
        sync_folder(self.disk, folder.parent)  # the run that made it may have been killed before this
        for name in FOLDERS:
            self._refuse_untrusted(folder / name)
            make_folder(self.disk, folder / name)
        if self.disk.status(folder / ".gitignore") is None:
            write_atomic(self.disk, folder / ".gitignore", b"*\n")
        if version != own_files.VERSION:  # before the first line that an older program would misread
            write_atomic(self.disk, folder / own_files.VERSION_FILE, own_files.dump_version())
        self._lock_fd = self.disk.open(folder / "store.lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
        with self._locked():
            self.journal.catch_up()

    def _refuse_untrusted(self, folder: Path) -> None:
        """Refuse a folder that is a link or that other users may write to: a project may be hostile."""
        try:
            found = refuse_links(self.disk, folder)
        except Refused:
            raise Refused(
                f"{folder} is a symbolic link: remove it, the supervisor needs a folder here", folder
            ) from None
        if found is not None and (why := other_writers(folder, found)):
            raise Refused(f"{why}: its content cannot be trusted; chmod 700 {folder}", folder)

    def _make_private(self, folder: Path) -> None:
        """Make the folder accessible to its user only, also if it came with a clone."""
        make_folder(self.disk, folder)
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
            with self._locked(), self._external_lock(action.lock):
                self.journal.catch_up()
                refuse_links(self.disk, action.path)
                before = self.disk.read(action.path)
                if not action.allowed(self.index, before) or not action.holds(before):
                    return Outcome.STALE
                after = action.edit(before)
                done = entry(action, by, self.clock.now(), self.paths.project)
                write = Write(
                    path=str(action.path),
                    before=digest(before),
                    after=digest(after),
                    replay=action.replayable,
                    stamp=self._stamp(action.path),
                    mode=action.write_mode,
                    lock=(str(action.lock[0]), action.lock[1]) if action.lock else None,
                    **(self._content("content", after) if after is not None else self._content("removed", before)),
                )
                self._settle(action.path, before)
                seq = self.journal.append(Promise(**fields(done), write=write))
                try:
                    self._write(action.path, before, after, action.write_mode)
                except (FileExistsError, BlockingIOError):
                    self.journal.mark(seq, "failed", "another program has written to it")
                    return Outcome.STALE
                except (OSError, Refused) as error:
                    if self._surely_not(action.path, digest(after)):  # otherwise ``recover`` decides
                        self.journal.mark(seq, "failed", str(error))
                    raise Unwritable(getattr(error, "errno", None), str(error), str(action.path)) from error
                plugin_log.tell(self.disk, self.paths.planning, structs.replace(done, seq=seq))
                self.journal.mark(seq, "done")
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
        found = self.disk.status(path)
        if found is None:
            self._lock_ages.forget(path)
            return None
        return self._lock_ages.age_s(path, found)

    def break_lock(self, action: BreakLock, by: str) -> Outcome:
        """Break a stale lock: take a lock folder over and release it, or move a lock file to the quarantine.

        STALE if the lock is held after all.
        """
        with self._locked():
            self.journal.catch_up()
            done = entry(action, by, self.clock.now(), self.paths.project)
            begun = self.journal.append(Begun(**fields(done)))
            try:
                if is_folder(self.disk, action.path):
                    with folder_lock(self.disk, action.path, action.stale_s, self._lock_ages):
                        pass
                else:
                    aside = self.paths.quarantine / f"{action.path.name}-{begun}"
                    put_aside(self.disk, action.path, aside, action.stale_s, self._lock_ages)
            except (Busy, OSError) as error:
                self.journal.mark(begun, "failed", str(error))
                return Outcome.STALE
            self.journal.append(Ended(**fields(done), done=begun))
            return Outcome.DONE

    def note(self, action: Action, by: str, prefix: str = "") -> None:
        """Record an action that changes no document. ``prefix`` is ``would_`` in observe mode."""
        durable = not isinstance(action, Note) or action.durable
        with self._locked():
            self.journal.catch_up()
            note = entry(action, by, self.clock.now(), self.paths.project, prefix)
            seq = self.journal.append(note, durable)
            if isinstance(action, Escalate):  # the plugin logs what its own programs do
                plugin_log.tell(self.disk, self.paths.planning, structs.replace(note, seq=seq))

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
            self.journal.append(_ended(done, begun, evidence))

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
        """Finish the promised changes that a crash interrupted. Harmless at any time, and idempotent.

        A document that was written to since stays, even with the same content: a successor may have claimed the task.
        An operation that had begun is not repeated: the watcher decides again.
        """
        finished, overtaken = [], []
        with self._locked():
            self.journal.catch_up()
            damage = tuple(each.what for each in self.journal.damage)  # now: the next segment may begin below
            if self.journal.pending:
                self.journal.flush()  # no change is made whose promise is not durable
            for seq, promise in sorted(self.journal.pending.items()):
                if isinstance(promise, Begun):
                    cut = {"interrupted": "the supervisor ended in the middle of it, and did not see how it went"}
                    self.journal.append(_ended(promise, seq, cut))
                    continue
                write, name = promise.write, f"{promise.action} {promise.key}"
                if not self._may_be_written(write):
                    self.journal.mark(seq, "failed", "it is about a file of another project: the journal was copied")
                    overtaken.append(name)
                    continue
                path = Path(write.path)
                lock = (Path(write.lock[0]), write.lock[1]) if write.lock else None
                # where it fails, or meets a lock, the next recovery tries again
                with contextlib.suppress(Busy, OSError, Refused), self._external_lock(lock):
                    try:
                        refuse_links(self.disk, path)
                        before = self.disk.read(path)
                    except (OSError, Refused) as error:
                        self.journal.mark(seq, "failed", str(error))
                        overtaken.append(name)
                        continue
                    if digest(before) == write.after:
                        self._make_durable(path, write, before)
                        if write.after is not None:
                            checksums.refresh(self.disk, path, write.after, make=False)
                        plugin_log.tell(self.disk, self.paths.planning, promise)
                        self.journal.mark(seq, "done")
                    elif not write.replay:  # its reason may be gone, without a trace in the document
                        self.journal.mark(seq, "failed", "it is not replayable: the watcher decides again")
                        overtaken.append(name)
                    elif digest(before) == write.before and self._stamp(path) == write.stamp:
                        self.journal.flush()  # the marks of earlier changes, for the next recovery
                        self._write(path, before, self._promised(write), write.mode)
                        plugin_log.tell(self.disk, self.paths.planning, promise)
                        self.journal.mark(seq, "done")
                        finished.append(name)
                    else:
                        self.journal.mark(seq, "failed", "another program has changed the document since")
                        overtaken.append(name)
            torn, self.journal.torn = self.journal.torn, 0
            if damage:
                self.journal.rotate()  # the damaged segment is kept, and reported once
            return Recovery(tuple(finished), tuple(overtaken), damage, torn)

    def _may_be_written(self, write: Write) -> bool:
        """Whether recovery may make a promised change: the journal may come from a hostile clone.

        Only a file inside the project (not in ``.git``), or an existing task file of a client's list, is written.
        """
        try:
            path, lock = Path(write.path), Path(write.lock[0]) if write.lock else None
            folder, project = Path(os.path.realpath(path.parent)), Path(os.path.realpath(self.paths.project))
        except ValueError:
            return False
        if not path.is_absolute() or ".." in path.parts or (write.lock is not None and write.lock[1] < 0):
            return False
        inside = folder.is_relative_to(project)
        if inside and ".git" in map(str.lower, (*folder.parts[len(project.parts) :], path.name)):
            return False
        if not inside and (write.before is None or not claude.is_task_path(path)):
            return False
        return lock in (None, plugin_agents.PID_LOCK, path.with_name(f"{path.name}.lock")) or (
            inside and lock is not None and Path(os.path.realpath(lock.parent)) == folder
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.paths.folder / "store.lock"
        if (there := self.disk.status(path)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if self._lock_fd >= 0 and not os.path.samestat(self.disk.status_of(self._lock_fd), there):
            self.close()
            self._lock_fd = self.disk.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        with file_lock(self.disk, self._lock_fd, path, self._lock_limit_s):
            self._break_orphaned_lock()
            yield

    @contextlib.contextmanager
    def _external_lock(self, lock: tuple[Path, float] | None) -> Iterator[None]:
        if lock is None:
            yield
            return
        if not is_folder(self.disk, lock[0].parent):  # then there is no document either
            yield
            return
        with folder_lock(self.disk, *lock, self._lock_ages):
            with contextlib.suppress(OSError, Refused):  # without the note the lock becomes stale later
                if (found := self.disk.status(lock[0])) is not None:
                    note = own_files.dump_held_lock(lock[0], found.st_ino, found.st_mtime_ns)
                    write_atomic(self.disk, self._held, note, durable=False)
            yield
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held)

    def _break_orphaned_lock(self) -> None:
        """Remove the external lock that a writer of ours held when it was killed.

        The note is made and removed under the store's own lock. Holding that lock proves that the writer is gone; inode
        and time prove that the folder is the one that it made.
        """
        if self.disk.status(self._held) is None:
            return
        if (held := own_files.load_held_lock(self._read_or_none(self._held) or b"")) is not None:
            path, inode, made = held
            with contextlib.suppress(OSError, ValueError):
                found = self.disk.status(path)
                if found is not None and (found.st_ino, found.st_mtime_ns) == (inode, made):
                    self.disk.rmdir(path)
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held)

    @property
    def _held(self) -> Path:
        return self.paths.folder / "held-lock.json"

    def _write(self, path: Path, before: bytes | None, after: bytes | None, mode: WriteMode) -> None:
        """Make the change. FileExistsError, BlockingIOError if another process has written to the document."""
        if after is None:
            if before is not None:
                refuse_changed(self.disk, path, before)
            remove(self.disk, path)
        elif before is None:
            create(self.disk, path, after)
        elif after == before:
            return
        elif mode is WriteMode.TRUNCATE and before.startswith(after):  # a promise may name another content
            shorten(self.disk, path, before, len(after))
        else:
            write_atomic(self.disk, path, after, expected=before)
            checksums.refresh(self.disk, path, str(digest(after)), make=False)

    def _make_durable(self, path: Path, write: Write, now: bytes | None) -> None:
        """Make a change durable that was made but not marked: its writer was killed, or its flush failed.

        A document that was changed in place is written again: a flush that has failed must not be repeated.
        """
        found = self._stamp(path)
        if now is not None and found is not None and write.stamp is not None and found[0] == write.stamp[0]:
            write_atomic(self.disk, path, now)
        else:
            sync_folder(self.disk, path.parent)

    def _settle(self, path: Path, now: bytes | None) -> None:
        """End all earlier promises about the document: no recovery may make them after a later change."""
        for seq, promise in list(self.journal.pending.items()):
            if isinstance(promise, Promise) and promise.write.path == str(path):
                made = promise.write.after == digest(now)
                if made:
                    self._make_durable(path, promise.write, now)
                self.journal.mark(seq, "done" if made else "failed", "overtaken by a later decision")

    # -- good versions ---------------------------------------------------------------------------------------------

    def good(self, path: Path) -> str | None:
        """The digest of the document's newest good version; None if none is known."""
        return next(reversed(self.index.good_versions.get(str(path), ())), None)

    def versions(self, path: Path) -> Iterator[bytes]:
        """The good versions of the document that can still be read, the newest first."""
        for version in reversed(self.index.good_versions.get(str(path), ())):
            data = self._read_or_none(self.paths.backups / version)
            if data is not None and digest(data) == version:
                yield data

    def keep(self, path: Path, data: bytes) -> None:
        """Keep ``data`` as the document's newest good version, and refresh its checksum file."""
        version = str(digest(data))
        if self._hidden is None:
            self._hidden = checksums.hide(self.disk, self.paths.project)
        with self._locked():
            self.journal.catch_up()
            before = self.index.good_versions.get(str(path), ())
            self._put(self.paths.backups, data)
            self.journal.append(GoodVersion(good=Version(str(path), version)), durable=False)
            self._prune(set(before) - set(self.index.good_versions[str(path)]))
            checksums.refresh(self.disk, path, version, make=self._hidden and path.parent == self.paths.planning)

    def _put(self, folder: Path, data: bytes) -> str:
        """Save the content under its digest; returns the digest."""
        name = str(digest(data))
        if self._read_or_none(folder / name) != data:
            write_atomic(self.disk, folder / name, data)
        return name

    def _prune(self, outdated: set[str]) -> None:
        """Remove these contents, except those that another document or a promise needs.

        Contents that the journal does not know stay: they may be all that remains of a deleted journal.
        """
        needed = {version for versions in self.index.good_versions.values() for version in versions}
        needed |= {str(line.write.content_in) for line in self.journal.pending.values() if isinstance(line, Promise)}
        for name in outdated - needed:
            with contextlib.suppress(OSError):
                self.disk.unlink(self.paths.backups / name)

    # -- contents in the journal -------------------------------------------------------------------------------------

    def _content(self, key: str, data: bytes | None) -> dict[str, str]:
        """The fields of a journal line that hold the content. A large content is saved beside the journal."""
        if data is None:
            return {}
        if len(data) > INLINE:
            return {f"{key}_in": self._put(self.paths.backups if key == "content" else self.paths.quarantine, data)}
        try:
            return {key: data.decode()}
        except UnicodeDecodeError:
            return {f"{key}_base64": base64.b64encode(data).decode()}

    def _promised(self, write: Write) -> bytes | None:
        """The content that a line of the journal promises. OSError if it was saved beside it and is missing."""
        if write.content is not None:
            return write.content.encode()
        if write.content_base64 is not None:
            return base64.b64decode(write.content_base64)
        if write.content_in is None:
            return None
        data = self.disk.read(self.paths.backups / write.content_in)
        if digest(data) != write.content_in:
            raise OSError(errno.ENODATA, "the promised content is gone", str(self.paths.backups / write.content_in))
        return data

    # -- looking -----------------------------------------------------------------------------------------------------

    def _read_or_none(self, path: Path) -> bytes | None:
        try:
            return self.disk.read(path)
        except OSError:
            return None

    def _surely_not(self, path: Path, expected_digest: str | None) -> bool:
        """Whether the file can be read and has another digest."""
        try:
            return digest(self.disk.read(path)) != expected_digest
        except OSError:
            return False

    def _stamp(self, path: Path) -> tuple[int, int] | None:
        """The identity of this version of the file (inode, time of change); None if there is no file."""
        found = self.disk.status(path)
        return (found.st_ino, found.st_mtime_ns) if found else None
