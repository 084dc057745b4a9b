"""One sweep of the process table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessFacts

Tree = tuple[tuple[ProcessId, int], ...]
"""Descendants, each with its parent's pid, parents before children."""


# -- the whole table at one moment --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """All processes at one moment."""

    boot: str
    facts: Mapping[int, ProcessFacts]

    @cached_property
    def children(self) -> Mapping[int, list[int]]:
        found: dict[int, list[int]] = {}
        for facts in self.facts.values():
            found.setdefault(facts.parent, []).append(facts.pid)
        return found

    def has(self, process: ProcessId) -> bool:
        found = self.facts.get(process.pid)
        return process.boot == self.boot and found is not None and found.started == process.started and not found.zombie

    def id(self, pid: int) -> ProcessId:
        return ProcessId(pid, self.facts[pid].started, self.boot)

    def tree(self, root: ProcessId, spare: Collection[ProcessId] = ()) -> Tree:
        """All that descends from ``root``, without what descends from, or is, one of ``spare``."""
        if not self.has(root):
            return ()
        found: list[tuple[ProcessId, int]] = []
        ahead = [root.pid]
        seen = {root.pid}
        while ahead:
            parent = ahead.pop(0)
            for pid in self.children.get(parent, ()):
                process = self.id(pid)
                if pid not in seen and not self.facts[pid].zombie and process not in spare:
                    seen.add(pid)
                    found.append((process, parent))
                    ahead.append(pid)
        return tuple(found)
