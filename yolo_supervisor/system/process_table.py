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
        """The descendants of ``root``, without the processes in ``spare`` and their descendants.

        A sweep is not one moment: a pid that was read as a parent may belong to a new process by the time that process
        is read. A child is never older than its parent, so an older process is none.
        """
        if not self.has(root):
            return ()
        tree: list[tuple[ProcessId, int]] = []
        ahead = [root.pid]
        seen = {root.pid}
        while ahead:
            parent = ahead.pop(0)
            for pid in self.children.get(parent, ()):
                process, facts = self.id(pid), self.facts[pid]
                is_older = facts.started < self.facts[parent].started
                if pid not in seen and not facts.zombie and not is_older and process not in spare:
                    seen.add(pid)
                    tree.append((process, parent))
                    ahead.append(pid)
        return tuple(tree)
