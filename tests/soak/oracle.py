"""Checks a soak from outside: by files, processes and git, never by the supervisor's own reports."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from soak.team import AGENT_MARK, Bystander, Task, Team, Worker
from soak.world import World
from support.guard import marked
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Liveness, ProcessId


class Oracle:
    """Finds harm and loss: a task's file that contradicts its worker, a bystander that was signalled."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._bad: Counter[Task] = Counter()
        self.lost: dict[str, str] = {}
        """Sentences about losses, by task."""
        self.harmed: dict[str, str] = {}
        """Bystanders and living agents that were signalled."""

    def look(self) -> None:
        """Look at everything that must hold at any moment."""
        for team in self._world.teams:
            for task in team.tasks:
                if (complaint := self.complaint(task)) is not None:
                    self.lost.setdefault(task.ident, complaint)
            for worker in team.workers:
                if not worker.alive:
                    self.harmed.setdefault(worker.name, f"{worker.name} has ended ({worker.child.returncode})")
        for bystander in self._world.bystanders:
            if (complaint := self._felt(bystander)) is not None:
                self.harmed.setdefault(bystander.what, f"a bystander {bystander.what}, {bystander.pid}: {complaint}")

    def complaint(self, task: Task) -> str | None:
        """The reason why the task's file is wrong even now; None if it is right, or may still be put right."""
        raw = task.read()
        if raw is None:
            return f"{task.path} is no document any more: {(read_or_none(task.path) or b'none')[:80]!r}"
        gone = [key for key, value in task.original.items() if key != "status" and raw.get(key) != value]
        if gone:
            return f"{task.ident} has lost its {', '.join(gone)}"
        state, owner = task.state(), task.owner
        if task.reported and owner is not None:
            wanted = ("completed", owner.name)
            return None if state == wanted else f"{task.ident} was reported done by {owner.name}, and is {state}"
        if owner is None or not owner.alive or task.uncertain:
            return None
        reports = owner.task is task and owner.command is not None and owner.asked == "done"
        if state != ("in_progress", owner.name) and not (reports and state == ("completed", owner.name)):
            return f"{task.ident} is at work by {owner.name}, which lives, and is {state}"
        return None

    def is_settled(self, task: Task) -> bool:
        """Whether the task is done as its worker reported, at work by a living worker, or can be claimed again."""
        state, owner = task.state(), task.owner
        if task.reported:
            return self.complaint(task) is None
        if owner is None:
            return state == ("pending", None)
        allowed: set[tuple[object, object]] = set()
        if owner.alive:
            allowed.add(("in_progress", owner.name))
        if not owner.alive or task.uncertain:
            allowed.add(("pending", None))
        if task.uncertain:
            allowed.add(("completed", owner.name))
        return state in allowed

    def is_recovered(self, worker: Worker, task: Task | None) -> bool:
        """Whether nothing of a dead agent is left: no task in progress, no process."""
        if task is not None and task.owner is worker and not self.is_settled(task):
            return False
        return not marked(AGENT_MARK, worker.name)

    def _felt(self, bystander: Bystander) -> str | None:
        process = ProcessId(bystander.pid, bystander.started, self._world.processes.boot)
        signals = (read_or_none(bystander.felt) or b"").split()[1:]
        if signals:
            return f"it got the signals {b', '.join(signals).decode()}"
        if self._world.processes.liveness(process) is not Liveness.ALIVE:
            return "it has ended"
        state = Path(f"/proc/{bystander.pid}/stat").read_text().rpartition(") ")[2][0]
        return "it is stopped" if state == "T" else None

    def final(self) -> Iterator[str]:
        """Yield the mistakes at the end, when no work is under way."""
        for team in self._world.teams:
            yield from (
                f"{task.ident} is {task.state()}, and should be otherwise: {_story(task)}"
                for task in team.tasks
                if not self.is_settled(task)
            )
            yield from (
                f"{file.path.name} of {team.name} is {(read_or_none(file.path) or b'missing')[:60]!r}, "
                f"and its writer wrote {file.written[:60]!r}"
                for file in team.files
                if read_or_none(file.path) != file.written
            )
            yield from self._git(team)

    def _git(self, team: Team) -> Iterator[str]:
        for words in (("fsck", "--no-progress"), ("status", "--porcelain"), ("add", "-N", ".")):
            done = subprocess.run(["git", *words], cwd=team.project, env=self._world.environment, capture_output=True)
            if done.returncode != 0:
                yield f"git {' '.join(words)} in {team.project.name}: {done.stderr.decode()}"


def _story(task: Task) -> str:
    owner = f"{task.owner.name}, which {'lives' if task.owner.alive else 'is dead'}" if task.owner else "no agent"
    return f"at work on it: {owner}; reported: {task.reported}; unsure: {task.uncertain}"
