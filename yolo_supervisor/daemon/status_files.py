"""The observations that the daemon keeps beside the journal: a power cut may lose them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from yolo_supervisor.daemon.alerts import FailureLog
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.own import Trees
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import read_part
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.models import ProcessId, SeenLock
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.store import Store

REPORT_TICKS = 6
"""The holder file is written once in so many ticks of the watcher with the shortest interval."""

NOTES, NOTE_SIZE = 1000, 64 * 1024
"""How many hook notes are examined at once, and how much of one, in bytes."""


class StatusFiles:
    """The holder file (who supervises the project, for ``status``), the process trees of its agents, and seen locks."""

    def __init__(self, store: Store, failures: FailureLog) -> None:
        self._store = store
        self._failures = failures
        self._written_trees: tuple[Trees, Mapping[ProcessId, own_files.Descent]] = ({}, {})
        self._written_locks: Mapping[Path, SeenLock] | None = None

    def write_trees(self, trees: Trees, descents: Mapping[ProcessId, own_files.Descent]) -> None:
        """Save the descendants of the agents if they changed: after a crash the next supervisor needs them."""
        now = trees, descents
        if now != self._written_trees and self._write(self._store.paths.trees, own_files.dump_trees(*now)):
            self._written_trees = now

    def keep(self, name: str, save: Callable[[], None]) -> None:
        """Save what a watcher observed; a failure stops nothing."""
        try:
            save()
        except (OSError, Refused) as error:
            self._failures.failed("status_file", error, file=name)
        else:
            self._failures.recovered("status_file", file=name)

    def write_seen_locks(self, seen: Mapping[Path, SeenLock]) -> None:
        """Save who was seen with which lock of git's, if that changed: the next supervisor and ``commit`` need it."""
        if seen == self._written_locks or not (seen or self._store.disk.status(self._store.paths.seen_locks)):
            return
        if self._write(self._store.paths.seen_locks, own_files.dump_seen_locks(seen)):
            self._written_locks = dict(seen)

    def write_holder(self, holder: own_files.Holder) -> None:
        """Write down who supervises the project, and how the watchers are."""
        self._write(self._store.paths.holder, own_files.dump_holder(holder))

    def remove_holder(self) -> None:
        """Remove the holder file at a clean end."""
        self._store.paths.holder.unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> bool:
        """Write a file; a failure is logged and stops nothing."""
        try:
            write_atomic(self._store.disk, path, data, durable=False)
        except (OSError, Refused) as error:
            self._failures.failed("status_file", error, file=path.name)
            return False
        self._failures.recovered("status_file", file=path.name)
        return True


class HookNotes:
    """The notes that hooks left for one project."""

    def __init__(self, folder: Path, registry: AgentRegistry) -> None:
        self._folder = folder
        self._registry = registry
        self._names: list[str] = []
        """The names of the notes that are still to be examined, the last ones first."""
        self._begun: dict[str | None, list[Path]] = {}
        """The notes of subagents' starts, until the note of the end is met."""

    def prune(self) -> None:
        """Remove the notes that no longer matter: of agents that are gone, of subagents that ended.

        If there are very many, the rest follows the next time. The note of a start has a smaller name than that of its
        end, and is removed with it.
        """
        if not self._names:
            self._names = sorted((n for n in names(self._folder) if not n.startswith(".")), reverse=True)
            self._begun = {}
        recorded = {agent.id for agent in self._registry.records().values()}
        for _ in range(min(NOTES, len(self._names))):
            path = self._folder / (name := self._names.pop())
            note = own_files.hook_note(read_part(path, 0, NOTE_SIZE) or b"", name.partition(".")[0])
            gone = [path] if self._registry.hook_process(note) is None else []
            if note.event == "SubagentStart":
                self._begun.setdefault(note.agent_id, []).append(path)
            elif note.event == "SubagentStop" and note.agent_id not in recorded:
                gone = [*self._begun.pop(note.agent_id, []), path]
            for outdated in gone:
                with contextlib.suppress(OSError):
                    outdated.unlink()
