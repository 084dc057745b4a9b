"""One sweep of the process table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessFacts

Tree = tuple[tuple[ProcessId, int], ...]
"""Descendants with their parents' pids, parents before children."""


@dataclass(frozen=True)
class Sweep:
    """All processes at one moment."""

    boot: str
    facts: Mapping[int, ProcessFacts]

    @cached_property
    def children(self) -> Mapping[int, list[int]]:
        children: dict[int, list[int]] = {}
        for facts in self.facts.values():
            children.setdefault(facts.parent, []).append(facts.pid)
        return children

    def has(self, process: ProcessId) -> bool:
        facts = self.facts.get(process.pid)
        return process.boot == self.boot and facts is not None and facts.started == process.started and not facts.zombie

    def id(self, pid: int) -> ProcessId:
        return ProcessId(pid, self.facts[pid].started, self.boot)

    def tree(self, root: ProcessId, spare: Collection[ProcessId] = ()) -> Tree:
        """The descendants of ``root``, without the processes in ``spare`` and their descendants."""
        if not self.has(root):
            return ()
        tree: list[tuple[ProcessId, int]] = []
        ahead = [root.pid]
        seen = {root.pid}
        while ahead:
            parent = ahead.pop(0)
            for pid in self.children.get(parent, ()):
                process = self.id(pid)
                if pid not in seen and not self.facts[pid].zombie and process not in spare:
                    seen.add(pid)
                    tree.append((process, parent))
                    ahead.append(pid)
        return tuple(tree)
