"""Recovery: what becomes of promises and beginnings that a crash left without a mark."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats import claude
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store import checksums, plugin_log
from yolo_supervisor.store.backups import Backups
from yolo_supervisor.store.documents import Documents
from yolo_supervisor.store.journal import Journal
from yolo_supervisor.store.lines import Begun, Promise, Write, ended
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths


@dataclass(frozen=True, slots=True)
class Recovery:
    """The result of a recovery."""

    finished: tuple[str, ...]
    """The changes that it finished."""
    overtaken: tuple[str, ...]
    """The changes that were not made, because another program was first or they are not the project's."""
    damage: tuple[str, ...]
    """The lost parts of the journal."""
    torn: int = 0
    """The bytes of half-written lines that were cut off."""

    def __bool__(self) -> bool:
        return bool(self.finished or self.overtaken or self.damage or self.torn)


def recover(paths: Paths, journal: Journal, documents: Documents, backups: Backups) -> Recovery:
    """Finish the promised changes that a crash interrupted. Called under the store's lock; harmless at any time.

    A document that another program has written to since stays as it is, even if it holds the old content again: a
    successor may have claimed the task. An operation that had begun is not repeated: the watcher decides again.
    """
    run = _Run(paths, journal, documents, backups)
    damage = tuple(each.what for each in journal.damage)  # before the next segment begins
    if journal.pending:
        journal.flush()  # no promise is kept that may not be on the device
    for seq, line in sorted(journal.pending.items()):
        if isinstance(line, Begun):
            cut = {"interrupted": "the supervisor ended in the middle of it, and did not see how it went"}
            journal.append(ended(line, seq, cut))
        else:
            run.finish(line)
    torn, journal.torn = journal.torn, 0
    if damage:
        journal.rotate()  # the damaged segment is kept, and reported once
    return Recovery(tuple(run.finished), tuple(run.overtaken), damage, torn)


class _Run:
    """One recovery."""

    def __init__(self, paths: Paths, journal: Journal, documents: Documents, backups: Backups) -> None:
        self.finished: list[str] = []
        self.overtaken: list[str] = []
        self._paths = paths
        self._journal = journal
        self._documents = documents
        self._backups = backups

    def finish(self, promise: Promise) -> None:
        """Make the promised change, or mark it failed. If a lock is held it is left for the next recovery."""
        write = promise.write
        if not is_ours(write, self._paths):
            self._fail(promise, "it is about a file of another project: the journal was copied")
            return
        lock = (Path(write.lock[0]), write.lock[1]) if write.lock else None
        with contextlib.suppress(Busy, OSError, Refused), self._documents.external_lock(lock):
            self._finish_locked(promise, Path(write.path), write)

    def _finish_locked(self, promise: Promise, path: Path, write: Write) -> None:
        try:
            for copy in self._documents.rescue_leftovers(path, (write.before, write.after)):
                self.overtaken.append(f"{promise.action} {promise.key}: a content found beside it is in {copy}")
            now = self._documents.read(path)
        except (OSError, Refused) as error:
            self._fail(promise, str(error))
            return
        if digest(now) == write.after:
            self._documents.make_durable(path, write, now)
            if write.after is not None:
                checksums.refresh(self._documents.disk, path, write.after, make=False)
            self._done(promise)
        elif not write.replay:  # the condition may be over, and the document does not show it
            self._fail(promise, "it is not replayable: the watcher decides again")
        elif digest(now) == write.before and self._documents.stamp(path) == write.stamp:
            self._journal.flush()  # the marks of the changes that this one is based on, for the next recovery
            self._documents.write(path, now, self._backups.promised(write), write.mode)
            self._done(promise)
            self.finished.append(f"{promise.action} {promise.key}")
        else:
            self._fail(promise, "another program has changed the document since")

    def _done(self, promise: Promise) -> None:
        plugin_log.append_event(self._documents.disk, self._paths.planning, promise)
        self._journal.mark(promise.seq, "done")

    def _fail(self, promise: Promise, reason: str) -> None:
        self._journal.mark(promise.seq, "failed", reason)
        self.overtaken.append(f"{promise.action} {promise.key}")


def is_ours(write: Write, paths: Paths) -> bool:
    """Whether a promise may be kept: a person may have taken up the journal of another project.

    Accepted are files in the state folder, files in the project, except git's, and existing tasks in a task list of
    Claude Code, with the lock of the document's owners.
    """
    try:
        path, lock = Path(write.path), Path(write.lock[0]) if write.lock else None
        folder, root = Path(os.path.realpath(path.parent)), Path(os.path.realpath(paths.project))
    except ValueError:
        return False
    if not path.is_absolute() or ".." in path.parts or (write.lock is not None and write.lock[1] < 0):
        return False
    if folder.is_relative_to(os.path.realpath(paths.folder)):
        return write.lock is None
    inside = folder.is_relative_to(root)
    if inside and ".git" in map(str.lower, (*folder.parts[len(root.parts) :], path.name)):
        return False
    if not inside and (write.before is None or not claude.is_task_path(path)):
        return False
    return lock in (None, plugin_agents.PID_LOCK, path.with_name(f"{path.name}.lock")) or (
        inside and lock is not None and Path(os.path.realpath(lock.parent)) == folder
    )
