"""The journaled store: the only room that changes documents. The daemon and every command are equal clients of it."""

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
"""How long one change may block the loop while another process writes; after that it is ``busy``, to be tried again."""

INLINE = 256 * 1024
"""A document larger than this, in bytes, is not written into the journal but beside it, among the good versions."""

FOLDERS = ("agents", "hooks", "snapshots", "backups", "quarantine", "dead-letters", "crashes", "flags", "circuits")


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    """The document is no longer as it was judged: somebody else has acted, and nothing was changed."""
    BUSY = "busy"
    """Somebody holds the document's lock: nothing was changed, the next look tries again."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What ``recover`` found: changes it finished, changes others have overtaken, what of the journal is lost, and the
    bytes of a line that was torn off half written."""

    finished: tuple[str, ...]
    overtaken: tuple[str, ...]
    damage: tuple[str, ...]
    torn: int = 0

    def __bool__(self) -> bool:
        return bool(self.finished or self.overtaken or self.damage or self.torn)


class Unwritable(OSError):
    """A document could not be written after its change had been promised: each further try costs two lines."""


def _ended(begun: Entry, seq: int, evidence: Mapping[str, Any]) -> Ended:
    """The end of the deed that began with line ``seq``, with further evidence."""
    return Ended(**{**fields(begun), "evidence": {**begun.evidence, **evidence}}, done=seq)


def write_note(project: Path, action: Action, by: str) -> None:
    """Write one note into the project's journal, for a process that has nothing else to write. OSError, Busy, Refused
    if that cannot be."""
    store = Store(project)
    try:
        store.open()
        store.note(action, by)
    finally:
        store.close()


class Store:
    """One project's store. Every method that writes may raise OSError; then nothing is half done."""

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
        """Whether git does not see the sidecars that we make; None before that was seen to."""

    @property
    def index(self) -> Index:
        """The state that follows from the journal, as far as it was read."""
        return self.journal.index

    def open(self) -> None:
        """Make our folder where it is missing, private to the user and invisible to git.

        ``Refused`` if it, or one in it, is a link, or one that others may write to; ``TooNew`` if it is a newer
        program's.
        """
        folder = self.paths.folder
        if not self._allow_root:
            refuse_root(self.paths.project, self.disk.status(self.paths.project))
        self._refuse_strange(folder)
        version = refuse_newer(self.disk, folder)
        self._make_private(folder)
        sync_folder(self.disk, folder.parent)  # a run that made it may have been killed before it had
        for name in FOLDERS:
            self._refuse_strange(folder / name)
            make_folder(self.disk, folder / name)
        if self.disk.status(folder / ".gitignore") is None:
            write_atomic(self.disk, folder / ".gitignore", b"*\n")
        if version != own_files.VERSION:  # before anything is written that an older program would misunderstand
            write_atomic(self.disk, folder / own_files.VERSION_FILE, own_files.dump_version())
        self._lock_fd = self.disk.open(folder / "store.lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
        with self._locked():
            self.journal.catch_up()

    def _refuse_strange(self, folder: Path) -> None:
        """A project may come from anybody: what leads elsewhere, or can be changed by others, is not ours."""
        try:
            found = refuse_links(self.disk, folder)
        except Refused:
            raise Refused(
                f"{folder} is a symbolic link: remove it, the supervisor's folder must be its own", folder
            ) from None
        if found is not None and (why := other_writers(folder, found)):
            raise Refused(f"{why}: what it tells cannot be trusted; chmod 700 {folder}", folder)

    def _make_private(self, folder: Path) -> None:
        """Nobody else's, also if it came as part of a clone."""
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
        """Make the change if it still holds. The journal hears of it first; at DONE it is on the disk."""
        try:
            with self._locked(), self._neighbours_lock(action.lock):
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
                    self.journal.mark(seq, "failed", "somebody else has written to it meanwhile")
                    return Outcome.STALE
                except (OSError, Refused) as error:
                    if self._surely_not(action.path, digest(after)):  # else ``recover`` finds out
                        self.journal.mark(seq, "failed", str(error))
                    raise Unwritable(getattr(error, "errno", None), str(error), str(action.path)) from error
                plugin_log.tell(self.disk, self.paths.planning, structs.replace(done, seq=seq))
                self.journal.mark(seq, "done")
                return Outcome.DONE
        except Busy:
            return Outcome.BUSY

    def beat(self, key: str, token: int, since_s: float, boot: str) -> bool:
        """Write down a sign of life of the claim with this token; False if it is not the task's claim any more."""
        with self._locked():
            self.journal.catch_up()
            claim = self.index.claims.get(key)
            if claim is None or claim.token != token or not claim.live:
                return False
            self.journal.append(Heartbeat(beat=SignOfLife(key, token, since_s, boot)), durable=False)
            return True

    def lock_age_s(self, path: Path) -> float | None:
        """For how long we have seen this lock of a neighbour's unchanged; None if there is none."""
        found = self.disk.status(path)
        if found is None:
            self._lock_ages.forget(path)
            return None
        return self._lock_ages.age_s(path, found)

    def break_lock(self, action: BreakLock, by: str) -> Outcome:
        """Take the lock over as its next holder would, and give it back; one that is a file is put into the quarantine.

        STALE if it is held after all.
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
        """Write down what changes no document. ``prefix`` is ``would_`` in observe mode."""
        durable = not isinstance(action, Note) or action.durable
        with self._locked():
            self.journal.catch_up()
            note = entry(action, by, self.clock.now(), self.paths.project, prefix)
            seq = self.journal.append(note, durable)
            if isinstance(action, Escalate):  # what others do by their own hand is for them to tell
                plugin_log.tell(self.disk, self.paths.planning, structs.replace(note, seq=seq))

    def begin(self, action: Action, by: str) -> int:
        """Write down that a deed is about to be done; the number is for ``end``."""
        with self._locked():
            self.journal.catch_up()
            return self.journal.append(Begun(**fields(entry(action, by, self.clock.now(), self.paths.project))))

    def end(self, begun: int, action: Action, by: str, evidence: Mapping[str, Any]) -> None:
        """Write down how the deed went."""
        with self._locked():
            self.journal.catch_up()
            done = entry(action, by, self.clock.now(), self.paths.project)
            self.journal.append(_ended(done, begun, evidence))

    def abandon(self, begun: int, why: str) -> None:
        """Write down that the deed came to nothing."""
        with self._locked():
            self.journal.catch_up()
            self.journal.mark(begun, "failed", why)

    def heed(self) -> None:
        """Take in what other processes have written. Those who only read, and those who meet a lock, know less."""
        if self._lock_fd >= 0:
            with contextlib.suppress(Busy, OSError), self._locked():
                self.journal.catch_up()

    def recover(self) -> Recovery:
        """Finish what the journal promised and a crash interrupted. Harmless at any time, twice too.

        A document that somebody has written to since is left as it is, even if it holds the same again: a successor may
        have claimed the task anew. A deed that had begun is not repeated: whoever
        decided on it looks again.
        """
        finished, overtaken = [], []
        with self._locked():
            self.journal.catch_up()
            damage = tuple(each.what for each in self.journal.damage)  # now: the next segment may begin meanwhile
            if self.journal.pending:
                self.journal.flush()  # nothing is done that the journal has not certainly heard of
            for seq, promise in sorted(self.journal.pending.items()):
                if isinstance(promise, Begun):
                    cut = {"interrupted": "the supervisor ended in the middle of it, and did not see how it went"}
                    self.journal.append(_ended(promise, seq, cut))
                    continue
                write, name = promise.write, f"{promise.action} {promise.key}"
                if not self._concerns_us(write):
                    self.journal.mark(seq, "failed", "it is about another project's file: the journal came from there")
                    overtaken.append(name)
                    continue
                path = Path(write.path)
                lock = (Path(write.lock[0]), write.lock[1]) if write.lock else None
                with contextlib.suppress(Busy, OSError, Refused), self._neighbours_lock(lock):  # left for the next time
                    try:
                        refuse_links(self.disk, path)
                        before = self.disk.read(path)
                    except (OSError, Refused) as error:
                        self.journal.mark(seq, "failed", str(error))
                        overtaken.append(name)
                        continue
                    if digest(before) == write.after:
                        self._make_sure(path, write, before)
                        if write.after is not None:
                            checksums.refresh(self.disk, path, write.after, make=False)
                        plugin_log.tell(self.disk, self.paths.planning, promise)
                        self.journal.mark(seq, "done")
                    elif not write.replay:  # it may be over without a trace in there
                        self.journal.mark(seq, "failed", "it was for silence: whoever sees to that looks again")
                        overtaken.append(name)
                    elif digest(before) == write.before and self._stamp(path) == write.stamp:
                        self.journal.flush()  # the marks of what this one is built on, for the next recovery
                        self._write(path, before, self._promised(write), write.mode)
                        plugin_log.tell(self.disk, self.paths.planning, promise)
                        self.journal.mark(seq, "done")
                        finished.append(name)
                    else:
                        self.journal.mark(seq, "failed", "the document was changed by somebody else since")
                        overtaken.append(name)
            torn, self.journal.torn = self.journal.torn, 0
            if damage:
                self.journal.rotate()  # what is damaged is kept, and told once
            return Recovery(tuple(finished), tuple(overtaken), damage, torn)

    def _concerns_us(self, write: Write) -> bool:
        """Whether a promise to write may be ours. A journal that came with a clone, or a copy, may promise anything;
        whoever promises here means a file of the project's (not git's), or a task that is there in a client's list."""
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
    def _neighbours_lock(self, lock: tuple[Path, float] | None) -> Iterator[None]:
        if lock is None:
            yield
            return
        if not is_folder(self.disk, lock[0].parent):  # and so there is no document either
            yield
            return
        with folder_lock(self.disk, *lock, self._lock_ages):
            with contextlib.suppress(OSError, Refused):  # without the note the lock is only stale later
                if (found := self.disk.status(lock[0])) is not None:
                    note = own_files.dump_held_lock(lock[0], found.st_ino, found.st_mtime_ns)
                    write_atomic(self.disk, self._held, note, durable=False)
            yield
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held)

    def _break_orphaned_lock(self) -> None:
        """Remove the neighbour's lock that a writer of ours held when it was killed.

        The note is made and removed under the store's own lock. That we have this lock proves that its writer is gone;
        inode and time prove that the folder is still the one which it made.
        """
        if self.disk.status(self._held) is None:
            return
        if (held := own_files.load_held_lock(self._glance(self._held) or b"")) is not None:
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

    def _make_sure(self, path: Path, write: Write, now: bytes | None) -> None:
        """Flush a change that is made but was not acknowledged: its writer may have been killed before, or failed.

        What was changed in its place is written anew: a flush that has failed once must not be tried again.
        """
        found = self._stamp(path)
        if now is not None and found is not None and write.stamp is not None and found[0] == write.stamp[0]:
            write_atomic(self.disk, path, now)
        else:
            sync_folder(self.disk, path.parent)

    def _settle(self, path: Path, now: bytes | None) -> None:
        """A later decision about a document ends all earlier promises about it: none may come true after it."""
        for seq, promise in list(self.journal.pending.items()):
            if isinstance(promise, Promise) and promise.write.path == str(path):
                made = promise.write.after == digest(now)
                if made:
                    self._make_sure(path, promise.write, now)
                self.journal.mark(seq, "done" if made else "failed", "overtaken by a later decision")

    # -- good versions ---------------------------------------------------------------------------------------------

    def good(self, path: Path) -> str | None:
        """The digest of the document's newest good version; None if none is known."""
        return next(reversed(self.index.good_versions.get(str(path), ())), None)

    def versions(self, path: Path) -> Iterator[bytes]:
        """The document's good versions that are still whole, the newest first."""
        for told in reversed(self.index.good_versions.get(str(path), ())):
            data = self._glance(self.paths.backups / told)
            if data is not None and digest(data) == told:
                yield data

    def keep(self, path: Path, data: bytes) -> None:
        """Remember ``data`` as the document's newest good version, and say so in its sidecar."""
        told = str(digest(data))
        if self._hidden is None:
            self._hidden = checksums.hide(self.disk, self.paths.project)
        with self._locked():
            self.journal.catch_up()
            before = self.index.good_versions.get(str(path), ())
            self._put(self.paths.backups, data)
            self.journal.append(GoodVersion(good=Version(str(path), told)), durable=False)
            self._prune(set(before) - set(self.index.good_versions[str(path)]))
            checksums.refresh(self.disk, path, told, make=self._hidden and path.parent == self.paths.planning)

    def _put(self, folder: Path, data: bytes) -> str:
        """Keep the content under its digest: then it cannot be mistaken for another."""
        told = str(digest(data))
        if self._glance(folder / told) != data:
            write_atomic(self.disk, folder / told, data)
        return told

    def _prune(self, outdated: set[str]) -> None:
        """Remove these contents, as far as no other document and no promise needs them.

        Of what the journal does not know nothing is removed: it may be all that is left of a journal that was deleted.
        """
        needed = {version for versions in self.index.good_versions.values() for version in versions}
        needed |= {str(line.write.content_in) for line in self.journal.pending.values() if isinstance(line, Promise)}
        for name in outdated - needed:
            with contextlib.suppress(OSError):
                self.disk.unlink(self.paths.backups / name)

    # -- contents in the journal -------------------------------------------------------------------------------------

    def _content(self, key: str, data: bytes | None) -> dict[str, str]:
        """The content as a line of the journal holds it; one that is too large for that is put beside it."""
        if data is None:
            return {}
        if len(data) > INLINE:
            return {f"{key}_in": self._put(self.paths.backups if key == "content" else self.paths.quarantine, data)}
        try:
            return {key: data.decode()}
        except UnicodeDecodeError:
            return {f"{key}_base64": base64.b64encode(data).decode()}

    def _promised(self, write: Write) -> bytes | None:
        """The content that a line of the journal promises. OSError if it was put beside it, and is not there."""
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

    def _glance(self, path: Path) -> bytes | None:
        try:
            return self.disk.read(path)
        except OSError:
            return None

    def _surely_not(self, path: Path, told: str | None) -> bool:
        """Whether the file can be read, and has another content."""
        try:
            return digest(self.disk.read(path)) != told
        except OSError:
            return False

    def _stamp(self, path: Path) -> tuple[int, int] | None:
        """Which writing of the file this is; None where there is no file."""
        found = self.disk.status(path)
        return (found.st_ino, found.st_mtime_ns) if found else None
