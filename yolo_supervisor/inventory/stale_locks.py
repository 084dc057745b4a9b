"""Locks without a time limit that may be left, and what is known of their holders.

These are the plugin's lock folders and ``.lock`` files, and git's locks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.changes import DirectoryScanner, UnreadFiles, names
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.lock_holders import OWN_LOCKS, Doubt, LockHolder, LockHolders
from yolo_supervisor.models import Agent, Lease, Liveness, SeenLock
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.git_files import LOCKS_DOCUMENT, OWN_FOLDER
from yolo_supervisor.system.git_layout import WorkTree, common_dir, few, root_of, work_trees
from yolo_supervisor.system.processes import Processes

INDEX_STALE_S = 10.0
"""The time for which git's lock must not have changed, besides the proof that its holder is dead."""

SURVEYS = 20
"""The number of git's locks whose holders one look finds. The next look goes on behind them."""

SHARED_LOCKS = ("packed-refs.lock", "config.lock", "shallow.lock")
"""Git's locks in the directory that linked work trees share. Those of single refs are left to ``commit``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleLock:
    """A lock, and the time for which it has been seen unchanged."""

    key: str
    path: Path
    age_s: float
    stale_s: float
    holder: LockHolder | None = None
    """The holder, if it is a lock of git's, or the possible one of a lock folder of the plugin."""
    is_folder: bool = False
    lease: Lease | None = None
    """The content of the lock, if it is a file of the plugin. None of the known agents is its holder."""

    @property
    def changes_soon(self) -> bool:
        """Whether more may soon be known of the holder: it was seen, or the lock is new."""
        return self.holder is not None and (bool(self.holder.holders) or self.age_s < self.stale_s)


class StaleLocks:
    """The locks of one project. Read-only. ``agents`` are all agents that may be at work in it."""

    def __init__(
        self,
        store: Store,
        processes: Processes,
        agents: Callable[[], list[tuple[Agent, Liveness]]],
        pid_lock: Path = plugin_agents.PID_LOCK,
    ) -> None:
        self._store = store
        self._holders = LockHolders(processes)
        self._recalled = False
        """Whether the observations of an earlier daemon have been read."""
        self._agents = agents
        self._folders = (pid_lock, store.paths.active_agent_lock)
        self._place = store.paths.locks
        self._files = DirectoryScanner(self._place, lambda name: name.endswith(".lock"))
        self._unread = UnreadFiles()
        self._held: dict[str, Lease] = {}
        self._last: dict[Path, LockHolder] = {}
        """The holders of git's locks, in the order in which these were looked at."""

    def look(self, file_stale_s: float) -> Iterator[StaleLock | None]:
        """Every lock, in steps; None is one without a result.

        The plugin's files count as stale when they have not changed for ``file_stale_s``.
        """
        yield from self._of_hooks()
        yield from self._of_agents(file_stale_s)
        yield from self._of_git()

    @property
    def seen(self) -> Mapping[Path, SeenLock]:
        """The processes that were seen with locks of git's."""
        return self._holders.seen

    def folders(self) -> set[Path]:
        """The folders in which a change may be a new lock of git's, or a new work tree."""
        folders = {path.parent for path, _ in git_locks(self._store.paths.project)}
        return folders | {folder / "worktrees" for folder in folders if folder.parent.name != "worktrees"}

    def of_git(self, surveys: int | None = None) -> Iterator[tuple[Path, LockHolder] | None]:
        """Git's locks that are there, with what is known of their holders, in steps; None is one without a result.

        To find a holder all processes are asked. At most ``surveys`` locks are looked at in this way, new ones first.
        Of the others the holder is as of an earlier look; one that was dead may be so no longer, and is left out.
        """
        if not self._recalled:
            self._recalled = True
            self._recall([self._store.paths.seen_locks])
        there: dict[Path, list[WorkTree]] = {}
        for path, trees in git_locks(self._store.paths.project):
            if os.path.lexists(path):
                there[path] = trees
            yield None
        self._last = {path: holder for path, holder in self._last.items() if path in there}
        order = [*(path for path in there if path not in self._last), *self._last]
        for path in order[:surveys]:
            holder = self._holder(path, there[path])
            self._last.pop(path, None)
            if holder is not None:
                self._last[path] = holder  # the last one in the next look
            yield (path, holder) if holder is not None else None
        for path in order[surveys:] if surveys is not None else ():
            if (known := self._last.get(path)) is not None and known.state is not Liveness.DEAD:
                yield path, known

    def _holder(self, path: Path, trees: list[WorkTree]) -> LockHolder | None:
        holder = self._holders.look(path, trees)
        if holder is not None and holder.doubt is Doubt.NEVER_SEEN and self._recall(self._of_commits()):
            holder = self._holders.look(path, trees)
        return holder

    def _recall(self, documents: Iterable[Path]) -> bool:
        """Take over what these documents say of locks that are there now; False if that is nothing."""
        seen: dict[Path, SeenLock] = {}
        for document in documents:
            seen |= own_files.load_seen_locks(read_or_none(document) or b"")
        return self._holders.recall(seen)

    def _of_commits(self) -> list[Path]:
        """The documents of commits about their own locks."""
        root = root_of(self._store.paths.project)
        folder = common_dir(root) / OWN_FOLDER if root is not None else None
        return [] if folder is None else [folder / name for name in names(folder) if name.startswith(LOCKS_DOCUMENT)]

    def _of_hooks(self) -> Iterator[StaleLock]:
        for path in self._folders:
            if (age_s := self._store.lock_age_s(path)) is not None:
                stale_s = plugin_agents.PID_LOCK_STALE_S
                holder = self._holders.look_at_folder(path) if age_s >= stale_s else None
                yield StaleLock(key=path.name, path=path, age_s=age_s, stale_s=stale_s, holder=holder, is_folder=True)

    def _of_agents(self, stale_s: float) -> Iterator[StaleLock | None]:
        """The plugin's locks whose owners are not known here.

        A dead agent's locks are released with its other resources.
        """
        for _ in self._unread.read(self._files.look(), self._read):
            yield None
        if not self._held:
            return
        there = [agent for agent, state in self._agents() if state is not Liveness.DEAD]
        for lease in list(self._held.values()):
            age_s = self._store.lock_age_s(lease.path)
            if age_s is not None and not any(agent.bears(lease.owner) for agent in there):
                yield StaleLock(key=lease.resource, path=lease.path, age_s=age_s, stale_s=stale_s, lease=lease)
            else:
                yield None

    def _read(self, name: str) -> None:
        self._held.pop(name, None)
        data = read_or_none(self._place / name)
        if data is not None and (lease := plugin_leases.lease(data, self._place / name)) is not None:
            self._held[name] = lease

    def _of_git(self) -> Iterator[StaleLock | None]:
        for found in self.of_git(SURVEYS):
            age_s = self._store.lock_age_s(found[0]) if found is not None else None
            if found is None or age_s is None:
                yield None
                continue
            path, holder = found
            key = os.path.relpath(path, self._store.paths.project)
            yield StaleLock(key=key, path=path, age_s=age_s, stale_s=INDEX_STALE_S, holder=holder)


def git_locks(project: Path) -> Iterator[tuple[Path, list[WorkTree]]]:
    """The paths of git's locks in the project's repository, each with the work trees in which it is taken.

    None in a repository with too many work trees to be looked through: one that was left out may be at work.
    """
    trees, root = few(work_trees(project)), root_of(project)
    if not trees or root is None:
        return
    for tree in trees:
        yield from ((tree.git_dir / name, [tree]) for name in sorted(OWN_LOCKS))
    yield from ((common_dir(root) / name, trees) for name in SHARED_LOCKS)
