"""The task lists that running clients watch: the only sign of a session's list that no file of some versions holds.

Claude Code 2.1.197 gives a resumed session another task list, and writes nowhere which process that belongs to. Its
screen shows the tasks, so the kernel reports the changes in the list's folder to it.
"""

from __future__ import annotations

import os
from pathlib import Path

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import FileId, ProcessBackend


class WatchedLists:
    """Finds the lists of processes, and remembers each that was found."""

    def __init__(self, backend: ProcessBackend) -> None:
        self._backend = backend
        self._known: dict[ProcessId, tuple[str, ...]] = {}

    def of(self, process: ProcessId, home: Path) -> tuple[str, ...]:
        """The lists in this folder of Claude Code's state that the process watches, none if that cannot be seen."""
        if process not in self._known and (found := self._watched(process, home / "tasks")):
            self._known[process] = found
        return self._known.get(process, ())

    def keep(self, processes: set[ProcessId]) -> None:
        """Forget all other processes."""
        self._known = {process: lists for process, lists in self._known.items() if process in processes}

    def _watched(self, process: ProcessId, lists: Path) -> tuple[str, ...]:
        try:
            if not (watched := self._backend.watched(process.pid)):
                return ()
            device = os.stat(lists).st_dev
            with os.scandir(lists) as entries:
                return tuple(sorted(each.name for each in entries if FileId(device, each.inode()) in watched))
        except OSError:
            return ()
