"""The task lists that are tied to one project, the tasks at work in them, and the plugin's plans.

Everything here is read when it is asked for, not when a snapshot is taken: a dead agent may have begun a task just
before its death, so its tasks are read after the death is known.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.changes import EVERY, DirectoryScanner, ParsedFileCache, UnreadFiles, names
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot, lists_of_agent
from yolo_supervisor.models import Agent, Task
from yolo_supervisor.store.paths import Paths

LISTS = 100
"""The number of lists that are kept before removed ones are looked for."""


class TaskLists:
    """The task lists and plans of one project. Read-only; unreadable tasks are reported, never counted as absent."""

    def __init__(self, paths: Paths) -> None:
        self.left: Callable[[], Mapping[str, Sequence[str]]] = dict
        """The folders of lists of forgotten agents, with the tasks that these may have left in progress."""
        self._state = paths.planning / execution_state.STATE_FILE
        self._lists: dict[Path, _TaskList] = {}
        self._most = LISTS
        """The number of lists at which those are forgotten whose folder was removed."""
        self._plans = ParsedFileCache(execution_state.plans)

    # -- which lists -------------------------------------------------------------------------------------------------

    def tied(self, snapshot: ProjectSnapshot) -> list[Path]:
        """The task folders that are tied to the project: those of its teams, sessions and agents, also forgotten."""
        left = (folder for name in self.left() if os.path.isdir(folder := Path(name)))
        return list(dict.fromkeys((*_folders(snapshot.list_names, snapshot.homes), *left)))

    def names(self, snapshot: ProjectSnapshot) -> frozenset[str]:
        """The names of the lists that are tied to the project."""
        return snapshot.list_names | {Path(name).name for name in self.left()}

    def is_tied(self, task: Task, snapshot: ProjectSnapshot) -> bool:
        """Whether the task is the project's: in one of its lists, or left by an agent that was forgotten."""
        return task.list in snapshot.list_names or task.id in self.left().get(str(task.path.parent), ())

    def of(self, agent: Agent, snapshot: ProjectSnapshot) -> list[Path]:
        """The task folders that the agent works on.

        Without a team or session, these are all that are tied to the project.
        """
        lists = lists_of_agent(agent)
        return list(_folders(lists, _homes(agent, snapshot))) if lists else self.tied(snapshot)

    def works_on(self, agent: Agent, folder: Path, snapshot: ProjectSnapshot) -> bool:
        """Whether this existing task folder is one of those that the agent works on."""
        lists = lists_of_agent(agent)
        homes = _homes(agent, snapshot) if lists else snapshot.homes
        return folder.name in (lists or snapshot.list_names) and folder.parent.parent in homes

    # -- their tasks -------------------------------------------------------------------------------------------------

    def tasks(self, folder: Path) -> list[Task]:
        """All readable tasks in a list's folder."""
        every = (_task(folder, name) for name in names(folder) if claude.is_task_file(name))
        return [task for task in every if task is not None]

    def task(self, folder: Path, number: str) -> Task | None:
        """One task of a list, or None if it does not exist or cannot be read."""
        return _task(folder, f"{number}.json") if claude.is_task_file(f"{number}.json") else None

    def at_work(self, folder: Path, quiet: int = EVERY) -> tuple[list[Task], list[Path]]:
        """The tasks in progress in a list's folder, and the files that cannot be read at present.

        ``quiet`` is the number of other files that are read again while the folder is unchanged.
        """
        try:
            return self._list(folder).look(quiet)
        except OSError:
            return [], [folder]

    def read_ahead(self, folders: Iterable[Path], quiet: int = EVERY) -> Iterator[None]:
        """Read what has changed in these lists, a file in each step: ``at_work`` finds little left to read."""
        for folder in folders:
            try:
                yield from self._list(folder).read(quiet)
            except OSError:
                del self._lists[folder]
            yield

    def read_last(self, folder: Path) -> list[Task]:
        """The tasks that were in progress in a list when it was read last."""
        return self._lists[folder].at_work()[0] if folder in self._lists else []

    def _list(self, folder: Path) -> _TaskList:
        if folder not in self._lists:
            if len(self._lists) >= self._most:  # forget removed folders: every session has a folder
                self._lists = {path: known for path, known in self._lists.items() if os.path.isdir(path)}
                self._most = max(LISTS, 2 * len(self._lists))
            self._lists[folder] = _TaskList(folder)
        return self._lists[folder]

    # -- plans -------------------------------------------------------------------------------------------------------

    def plans(self) -> list[Task]:
        """The plans of the plugin's execution state, none if it cannot be read."""
        return self._plans.get(self._state) or []

    def plans_of(self, agent: Agent) -> list[Task]:
        """The running plans of the agent.

        The owner of a plan decides if it is named, otherwise the plugin's numbering.
        """
        return [
            plan
            for plan in self.plans()
            if plan.status in execution_state.RUNNING
            and (
                agent.bears(plan.owner) if plan.owner else execution_state.works_on(agent.name, agent.team, plan.number)
            )
        ]

    # -- what cannot be read -------------------------------------------------------------------------------------------

    def unreadable(self, agent: Agent, snapshot: ProjectSnapshot) -> Iterator[Path]:
        """Unreadable files, other than its tasks, that may say what the agent was working on.

        They may be unreadable only at present.
        """
        if execution_state.may_have_plans(agent.name) and os.path.isfile(self._state) and not self._plans_readable():
            yield self._state
        if agent.session and agent.lead is None:
            team = agent.team or claude.team_of_session(agent.session)
            files = (home / "teams" / team / "config.json" for home in snapshot.homes)
            yield from (path for path in files if path in snapshot.unreadable_teams)

    def unclear(self, folder: Path, snapshot: ProjectSnapshot) -> bool:
        """Whether a file is unreadable at present that may name a worker of the folder's task list."""
        team = folder.parent.parent / "teams" / folder.name / "config.json"
        return bool(snapshot.records.damaged) or team in snapshot.unreadable_teams

    def _plans_readable(self) -> bool:
        return self._plans.get(self._state) is not None


def _homes(agent: Agent, snapshot: ProjectSnapshot) -> tuple[Path, ...]:
    return (agent.claude_dir, *snapshot.homes) if agent.claude_dir else snapshot.homes


def _folders(lists: Iterable[str], homes: Iterable[Path]) -> Iterator[Path]:
    homes = tuple(dict.fromkeys(homes))
    for name in sorted(lists):
        if Path(name).name == name and not name.startswith("."):
            yield from (path for home in homes if os.path.isdir(path := home / "tasks" / name))


class _TaskList:
    """The tasks in progress of one list. The client locks a task by a folder beside it, so a lock also changes the
    list."""

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._folder = DirectoryScanner(folder, claude.is_task_file)
        self._at_work: dict[str, Task | None] = {}
        """The tasks by file name; None for a file that cannot be read."""
        self._unread = UnreadFiles()

    def read(self, quiet: int) -> Iterator[None]:
        """Read the files that have changed, one in each step. OSError if the folder cannot be read."""
        yield from self._unread.read(self._folder.look(self._at_work, quiet), self._read)

    def _read(self, name: str) -> None:
        self._at_work.pop(name, None)
        task = _task(self._path, name)
        if task is None and os.path.isfile(self._path / name):
            self._at_work[name] = None
        elif task is not None and task.status == tasks.AT_WORK:
            self._at_work[name] = task

    def look(self, quiet: int) -> tuple[list[Task], list[Path]]:
        for _ in self.read(quiet):
            pass
        return self.at_work()

    def at_work(self) -> tuple[list[Task], list[Path]]:
        by_name = sorted(self._at_work.items())
        return [t for _, t in by_name if t is not None], [self._path / n for n, t in by_name if t is None]


def _task(folder: Path, name: str) -> Task | None:
    path = folder / name
    data = read_or_none(path)
    return claude.task(data, folder.name, path) if data is not None else None
