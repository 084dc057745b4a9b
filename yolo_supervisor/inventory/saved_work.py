"""The dead agents whose uncommitted work was looked after in this run of the supervisor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from yolo_supervisor.system.git_files import find_root

REMEMBERED = 1000
"""The number of agents that are remembered, the newest."""


class SavedWork:
    """Whether the work of a dead agent was saved, by its record: its recovery waits for that, and not for its success.

    A supervisor that was restarted in between saves it again: the same content makes no second copy.
    """

    def __init__(self) -> None:
        self._done: dict[str, str | None] = {}

    def is_done(self, record: str) -> bool:
        """Whether nothing more will be saved for the agent of this record."""
        return record in self._done

    def ref(self, record: str) -> str | None:
        """The copy of its work; None if there is none."""
        return self._done.get(record)

    def done(self, record: str, ref: str | None) -> None:
        """Record the end of the attempt."""
        self._done[record] = ref
        for oldest in list(self._done)[:-REMEMBERED]:
            del self._done[oldest]


def sharing(folder: Path, others: Iterable[tuple[str, Path]]) -> tuple[str, ...]:
    """The names of those whose folders are in the same work tree: they may have made some of its changes."""
    root = find_root(str(folder))
    return () if root is None else tuple(sorted({name for name, at in others if find_root(str(at)) == root}))
