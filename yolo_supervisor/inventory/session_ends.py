"""Keeps what people at tmux are to be shown of ended agents, until they have seen it. It outlives the supervisor."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from yolo_supervisor.formats import session_ends
from yolo_supervisor.formats.session_ends import SessionEnds
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store


def load_session_ends(paths: Paths) -> SessionEnds:
    """The ends as the supervisor has written them down."""
    return session_ends.load(read_or_none(paths.session_ends) or b"")


class SessionEndsRecord:
    """The ends of one project's agents, and their file. The file is written when they change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: SessionEnds | None = None
        self._ends: SessionEnds | None = None

    @property
    def ends(self) -> SessionEnds:
        if self._ends is None:
            self._ends = self._written = load_session_ends(self._store.paths)
        return self._ends

    @ends.setter
    def ends(self, ends: SessionEnds) -> None:
        self._ends = ends

    def mark_shown(self, socket: str, agents: Collection[str]) -> None:
        """Forget the ends of these agents: a person on that server has seen them."""
        left = tuple(end for end in self.ends.ended if end.socket != socket or end.agent not in agents)
        self.ends = msgspec.structs.replace(self.ends, ended=left)

    def save(self) -> None:
        """Write the file if the ends have changed. OSError if it cannot be written."""
        if self.ends != self._written:
            write_atomic(self._store.disk, self._store.paths.session_ends, session_ends.dump(self.ends), durable=False)
            self._written = self.ends
