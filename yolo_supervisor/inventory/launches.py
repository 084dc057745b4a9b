"""Records how each living agent was started, so that it can be started again after its death.

One file an agent, in ``launches/`` of the state folder: a command line may hold secrets, so it is in no journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from yolo_supervisor.formats.launch import Launch
from yolo_supervisor.models import Agent
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Server


class LaunchRecorder:
    """The launches of one project's agents, by the names of their records."""

    def __init__(self, store: Store, processes: Processes) -> None:
        self._store = store
        self._processes = processes

    def record(
        self,
        agents: Mapping[str, Agent],
        homes: Iterable[Path],
        folders: Iterable[Path],
        servers: Iterable[Server] = (),
    ) -> None:
        """Record the launches of these living agents, and remove those of records that are not among ``agents``.

        ``homes`` and ``folders`` are where their transcripts may be.
        """

    def of(self, record: str) -> Launch | None:
        """How the agent of this record was started, with its permission mode by now; None if that is not known."""
        return None
