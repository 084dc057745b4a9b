"""The dead agents that can still be started again by hand: one private file each, bounded by number and age."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from yolo_supervisor.clock import Clock
from yolo_supervisor.formats.ended_agents import LIMIT, EndedAgent, dump, load
from yolo_supervisor.models import from_iso
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk

KEPT, KEPT_S = 200, 14 * 86400.0
"""The number of dead agents that are remembered, the newest, and for how long, in seconds."""


SPARE = 20
"""The number of files that are removed at a time: each look reads all of them."""


class EndedAgents:
    """The dead agents of one project, by the names of their records."""

    def __init__(self, disk: Disk, folder: Path, clock: Clock) -> None:
        self._disk = disk
        self._folder = folder
        self._clock = clock
        self._known: dict[str, EndedAgent] | None = None
        """The content of the files, once it was read: only the supervisor of the project changes it."""

    def all(self) -> dict[str, EndedAgent]:
        """The dead agents that are remembered, the one that died last at the end. A damaged file is left out."""
        if self._known is None:
            self._known = dict(self._read())
        found = [ended for ended in self._known.values() if self._age_s(ended) < KEPT_S]
        return {ended.record: ended for ended in sorted(found, key=lambda ended: ended.at)}

    def save(self, ended: Mapping[str, EndedAgent]) -> None:
        """Remember these agents, and forget the oldest. OSError if that fails."""
        for record, agent in ended.items():
            write_atomic(self._disk, self._folder / record, dump(agent), durable=False)
        self._known = None
        if len(paths := self._paths()) > KEPT:
            kept = set(list(self.all())[SPARE - KEPT :])
            for path in paths:
                if path.name not in kept:
                    self._disk.unlink(path)
            self._known = None

    def _read(self) -> Iterator[tuple[str, EndedAgent]]:
        for path in self._paths():
            with contextlib.suppress(OSError):
                ended = load(self._disk.read(path, LIMIT) or b"")
                if ended is not None and ended.record == path.name:
                    yield path.name, ended

    def _paths(self) -> list[Path]:
        try:
            names = sorted(self._disk.names(self._folder))
        except OSError:
            return []
        return [self._folder / name for name in names if name.endswith(".json")]

    def _age_s(self, ended: EndedAgent) -> float:
        return (self._clock.now() - from_iso(ended.at)).total_seconds()
