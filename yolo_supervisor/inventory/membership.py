"""Which processes are agents of one project: the one answer, for every source of agents and for the kill gate."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.project_snapshot import LiveSession
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.processes import Processes


class Membership:
    """Tells whether a process is an agent of the project. No file in the project can claim one.

    ``registered`` are the processes that a person or a script has registered by hand.
    """

    def __init__(
        self, folders: ProjectFolders, processes: Processes, registered: Callable[[], Collection[ProcessId]]
    ) -> None:
        self._folders = folders
        self._processes = processes
        self._registered = registered

    def belongs(self, process: ProcessId, sessions: Iterable[LiveSession], folder: Path | None = None) -> bool:
        """Whether the process works in the project, by the kernel or by the client's own session file.

        ``folder`` is where the kernel said a moment ago that it works. What is unknown does not belong.
        """
        return (
            (self._works_here(process) if folder is None else self._folders.has(folder))
            or any(live.in_project and live.process == process for live in sessions)
            or process in self._registered()
        )

    def _works_here(self, process: ProcessId) -> bool:
        try:
            folder = self._processes.backend.folder(process.pid)
        except OSError:
            return False
        return self._folders.has(Path(folder)) and self._processes.identify(process.pid) == process
