"""The journaled store: the only room that changes documents. The daemon and every command are equal clients of it."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from yolo_supervisor.actions import Action, Edit, Note
from yolo_supervisor.clock import Clock, SystemClock
from yolo_supervisor.files import (
    FILE_MODE,
    Busy,
    Disk,
    LockAges,
    Refused,
    digest,
    file_lock,
    folder_lock,
    glance,
    make_folder,
    read,
    refuse_links,
    remove,
    replace,
)
from yolo_supervisor.formats import supervisor, yolo
from yolo_supervisor.journal import Journal, entry

LOCK_LIMIT_S = 0.25
"""How long one change may block the loop while another process writes; after that it is ``busy``, to be tried again."""

FOLDERS = ("agents", "hooks", "snapshots", "backups", "quarantine", "dead-letters", "crashes")


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    """The document is no longer as it was judged: somebody else has acted, and nothing was changed."""
    BUSY = "busy"
    """Somebody holds the document's lock: nothing was changed, the next look tries again."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What ``recover`` found: changes it finished, changes others have overtaken, lines it could not read, and the
    bytes of a line that was torn off half written."""

    finished: tuple[str, ...]
    overtaken: tuple[str, ...]
    unreadable: int
    torn: int = 0

    def __bool__(self) -> bool:
        return bool(self.finished or self.overtaken or self.unreadable or self.torn)


class Unwritable(OSError):
    """A document could not be written after its change had been promised: each further try costs two lines."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a project keeps what concerns us."""

    project: Path

    @property
    def planning(self) -> Path:
        return self.project / yolo.PLANNING

    @property
    def folder(self) -> Path:
        return self.planning / supervisor.FOLDER

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def agents(self) -> Path:
        return self.folder / "agents"

    @property
    def hooks(self) -> Path:
        return self.folder / "hooks"

    @property
    def trees(self) -> Path:
        return self.folder / "trees.json"

    @property
    def holder(self) -> Path:
        return self.folder / "daemon.json"


class Store:
    """One project's store. Every method that writes may raise OSError; then nothing is half done."""

    def __init__(self, project: Path, clock: Clock | None = None, disk: Disk | None = None) -> None:
        self.paths = Paths(project)
        self.disk = disk or Disk()
        self.clock = clock or SystemClock()
        self.journal = Journal(self.paths.journal, self.disk, self.paths.folder / "quarantine")
        self._lock_fd = -1
        self._lock_ages = LockAges()

    def open(self) -> None:
        """Make our folder where it is missing, private to the user and invisible to git."""
        folder = self.paths.folder
        if folder.is_symlink():
            raise Refused(f"{folder} is a symbolic link: remove it, the supervisor's folder must be its own")
        make_folder(self.disk, folder)
        for name in FOLDERS:
            make_folder(self.disk, folder / name)
        if not (folder / ".gitignore").exists():
            replace(self.disk, folder / ".gitignore", b"*\n")
        self._lock_fd = self.disk.open(folder / "store.lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
        with self._locked():
            self.journal.catch_up()

    def close(self) -> None:
        self.journal.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def commit(self, action: Edit, by: str) -> Outcome:
        """Make the change if it still holds. The journal hears of it first; at DONE it is on the disk."""
        try:
            with self._locked(), self._neighbours_lock(action.lock):
                self.journal.catch_up()
                refuse_links(action.path)
                before = read(action.path)
                if not action.holds(before):
                    return Outcome.STALE
                after = action.edit(before)
                write: dict[str, Any] = {"path": str(action.path), "before": digest(before), "after": digest(after)}
                if before is not None:
                    write["stamp"] = _stamp(action.path)
                if action.lock:
                    write["lock"] = [str(action.lock[0]), action.lock[1]]
                write |= _text("content", after) if after is not None else _text("removed", before)
                told = entry(action, by, self.clock.now(), self.paths.project)
                self._settle(action.path, before)
                seq = self.journal.append({**told, "write": write})
                try:
                    self._write(action.path, before, after)
                except (OSError, Refused) as error:
                    made = digest(glance(action.path)) == digest(after)  # all but the last flush, perhaps
                    self.journal.mark(seq, "done" if made else "failed", str(error))
                    raise Unwritable(getattr(error, "errno", None), str(error), str(action.path)) from error
                self.journal.mark(seq, "done")
                return Outcome.DONE
        except Busy:
            return Outcome.BUSY

    def note(self, action: Action, by: str, prefix: str = "") -> None:
        """Write down what changes no document. ``prefix`` is ``would_`` in observe mode."""
        durable = not isinstance(action, Note) or action.durable
        with self._locked():
            self.journal.catch_up()
            self.journal.append(entry(action, by, self.clock.now(), self.paths.project, prefix), durable)

    def begin(self, action: Action, by: str) -> int:
        """Write down that a deed is about to be done; the number is for ``end``."""
        with self._locked():
            self.journal.catch_up()
            return self.journal.append({**entry(action, by, self.clock.now(), self.paths.project), "begun": True})

    def end(self, begun: int, action: Action, by: str, evidence: Mapping[str, Any]) -> None:
        """Write down how the deed went."""
        with self._locked():
            self.journal.catch_up()
            told = entry(action, by, self.clock.now(), self.paths.project)
            self.journal.append({**told, "evidence": {**told["evidence"], **evidence}})
            self.journal.mark(begun, "done")

    def abandon(self, begun: int, why: str) -> None:
        """Write down that the deed came to nothing."""
        with self._locked():
            self.journal.catch_up()
            self.journal.mark(begun, "failed", why)

    def recover(self) -> Recovery:
        """Finish what the journal promised and a crash interrupted. Harmless at any time, twice too.

        A document that somebody has written to since is left as it is, even if it holds the same again: a successor may
        have claimed the task anew. A deed that had begun is not repeated: whoever
        decided on it looks again.
        """
        finished, overtaken = [], []
        with self._locked():
            self.journal.catch_up()
            for seq, promise in sorted(self.journal.pending.items()):
                if "write" not in promise:
                    told = {key: value for key, value in promise.items() if key not in ("seq", "begun", "crc")}
                    cut = {"interrupted": "the supervisor ended in the middle of it, and did not see how it went"}
                    self.journal.append({**told, "evidence": {**told["evidence"], **cut}})
                    self.journal.mark(seq, "done")
                    continue
                write = promise["write"]
                path, name = Path(write["path"]), f"{promise['action']} {promise['key']}"
                lock = (Path(write["lock"][0]), write["lock"][1]) if "lock" in write else None
                with contextlib.suppress(Busy, OSError, Refused), self._neighbours_lock(lock):  # left for the next time
                    try:
                        refuse_links(path)
                        before = read(path)
                    except (OSError, Refused) as error:
                        self.journal.mark(seq, "failed", str(error))
                        overtaken.append(name)
                        continue
                    if digest(before) == write["after"]:
                        if write["after"] is not None:
                            self._refresh_side_file(path, write["after"])
                        self.journal.mark(seq, "done")
                    elif digest(before) == write["before"] and _stamp(path) == write.get("stamp"):
                        self._write(path, before, _bytes("content", write))
                        self.journal.mark(seq, "done")
                        finished.append(name)
                    else:
                        self.journal.mark(seq, "failed", "the document was changed by somebody else since")
                        overtaken.append(name)
            torn, self.journal.torn = self.journal.torn, 0
            return Recovery(tuple(finished), tuple(overtaken), len(self.journal.damage), torn)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.paths.folder / "store.lock"
        if self._lock_fd >= 0 and not os.path.samestat(os.fstat(self._lock_fd), path.stat()):
            self.close()
            self._lock_fd = self.disk.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        with file_lock(self._lock_fd, LOCK_LIMIT_S):
            self._break_orphaned_lock()
            yield

    @contextlib.contextmanager
    def _neighbours_lock(self, lock: tuple[Path, float] | None) -> Iterator[None]:
        if lock is None:
            yield
            return
        if not lock[0].parent.is_dir():  # and so there is no document either
            yield
            return
        with folder_lock(self.disk, *lock, self._lock_ages):
            found = lock[0].lstat()
            with contextlib.suppress(OSError, Refused):  # without the note the lock is only stale later
                note = supervisor.dump_held_lock(lock[0], found.st_ino, found.st_mtime_ns)
                replace(self.disk, self._held, note, durable=False)
            yield
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held)

    def _break_orphaned_lock(self) -> None:
        """Remove the neighbour's lock that a writer of ours held when it was killed.

        The note is made and removed under the store's own lock. That we have this lock proves that its writer is gone;
        inode and time prove that the folder is still the one which it made.
        """
        if not os.path.lexists(self._held):
            return
        if (held := supervisor.load_held_lock(glance(self._held) or b"")) is not None:
            path, inode, made = held
            with contextlib.suppress(OSError, ValueError):
                found = path.lstat()
                if (found.st_ino, found.st_mtime_ns) == (inode, made):
                    self.disk.rmdir(path)
        with contextlib.suppress(OSError):
            self.disk.unlink(self._held)

    @property
    def _held(self) -> Path:
        return self.paths.folder / "held-lock.json"

    def _write(self, path: Path, before: bytes | None, after: bytes | None) -> None:
        if after is None:
            remove(self.disk, path)
        elif after != before:
            try:
                replace(self.disk, path, after)
            finally:
                if digest(glance(path)) == digest(after):
                    self._refresh_side_file(path, str(digest(after)))

    def _refresh_side_file(self, path: Path, told: str) -> None:
        """Bring the plugin's ``.sha256`` up to date where there is one; the journal has the truth, so it may fail."""
        sidecar = path.with_name(path.name + ".sha256")
        if sidecar.exists() and glance(sidecar) != told.encode():
            with contextlib.suppress(OSError, Refused):
                replace(self.disk, sidecar, told.encode())

    def _settle(self, path: Path, now: bytes | None) -> None:
        """A later decision about a document ends all earlier promises about it: none may come true after it."""
        for seq, promise in list(self.journal.pending.items()):
            if promise.get("write", {}).get("path") == str(path):
                made = promise["write"]["after"] == digest(now)
                self.journal.mark(seq, "done" if made else "failed", "overtaken by a later decision")


def _stamp(path: Path) -> list[int] | None:
    """Which writing of the file this is; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return [found.st_ino, found.st_mtime_ns]


def _text(key: str, data: bytes | None) -> dict[str, str]:
    if data is None:
        return {}
    try:
        return {key: data.decode()}
    except UnicodeDecodeError:
        return {f"{key}_base64": base64.b64encode(data).decode()}


def _bytes(key: str, write: Mapping[str, Any]) -> bytes | None:
    if key in write:
        return str(write[key]).encode()
    encoded = write.get(f"{key}_base64")
    return base64.b64decode(encoded) if encoded is not None else None
