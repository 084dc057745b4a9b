"""Locks without a time limit, and the proof that no process holds them.

These are the plugin's lock folders and ``.lock`` files, and git's ``index.lock``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.changes import DirectoryScanner
from yolo_supervisor.fs.read import digest, read_or_none
from yolo_supervisor.inventory.project_folders import within
from yolo_supervisor.models import Agent, Lease, Liveness
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.git_files import NAMING_VARIABLES
from yolo_supervisor.system.git_layout import WorkTree, work_trees
from yolo_supervisor.system.process_backend import ProcessBackend

INDEX_STALE_S = 10.0
"""The time for which git's lock must not have changed, besides the proof that no git is at work. It covers a holder
that is invisible to us, on the other side of a network file system, for example."""

SERVANTS = frozenset({"credential-cache--daemon", "fsmonitor--daemon", "daemon", "credential-cache"})
"""Git's long-running programs, which never take that lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleLock:
    """A lock, the time for which it has been seen unchanged, and its possible holder.

    ``holder`` is None if it is proven that none exists.
    """

    path: Path
    age_s: float
    stale_s: float
    holder: str | None = None
    lease: Lease | None = None
    """The content of the lock, if it is a file of the plugin."""
    expected_digest: str | None = None
    """The digest of that content."""


class StaleLocks:
    """The locks of one project. Read-only. ``agents`` are all agents that may be at work in it."""

    def __init__(
        self,
        store: Store,
        backend: ProcessBackend,
        agents: Callable[[], list[tuple[Agent, Liveness]]],
        pid_lock: Path = plugin_agents.PID_LOCK,
    ) -> None:
        self._store = store
        self._backend = backend
        self._agents = agents
        self._folders = (pid_lock, store.paths.active_agent_lock)
        self._place = store.paths.locks
        self._files = DirectoryScanner(self._place, lambda name: name.endswith(".lock"))
        self._held: dict[str, tuple[Lease, str | None]] = {}

    def all(self, file_stale_s: float) -> list[StaleLock]:
        """Every lock.

        The plugin's files count as stale when they have not changed for ``file_stale_s``.
        """
        return [*self._of_hooks(), *self._of_agents(file_stale_s), *self._of_git()]

    def _of_hooks(self) -> Iterator[StaleLock]:
        for path in self._folders:
            if (age_s := self._store.lock_age_s(path)) is not None:
                yield StaleLock(path=path, age_s=age_s, stale_s=plugin_agents.PID_LOCK_STALE_S)

    def _of_agents(self, stale_s: float) -> Iterator[StaleLock]:
        for name in self._files.look():
            self._held.pop(name, None)
            data = read_or_none(self._place / name)
            if data is not None and (lease := plugin_leases.lease(data, self._place / name)) is not None:
                self._held[name] = lease, digest(data)
        if not self._held:
            return
        there = [agent for agent, state in self._agents() if state is not Liveness.DEAD]
        for lease, content_digest in self._held.values():
            age_s = self._store.lock_age_s(lease.path)
            if age_s is not None and not any(agent.bears(lease.owner) for agent in there):
                holder = "an unknown subagent" if there else None
                yield StaleLock(
                    path=lease.path,
                    age_s=age_s,
                    stale_s=stale_s,
                    holder=holder,
                    lease=lease,
                    expected_digest=content_digest,
                )

    def _of_git(self) -> Iterator[StaleLock]:
        for tree in work_trees(self._store.paths.project):
            age_s = self._store.lock_age_s(tree.index_lock)
            if age_s is not None:
                holder = (
                    git_at_work(self._backend, tree, tree.index_lock)
                    if age_s >= INDEX_STALE_S
                    else "not searched for yet"
                )
                yield StaleLock(path=tree.index_lock, age_s=age_s, stale_s=INDEX_STALE_S, holder=holder)


def git_at_work(backend: ProcessBackend, tree: WorkTree, lock: Path) -> str | None:
    """The possible holder of this checkout's lock, or None if it is proven that none exists.

    Git closes the lock file while an editor or a hook runs. It is therefore not enough that no process has the file
    open: no git may be at work there.
    """
    try:
        status = lock.lstat()
    except OSError as error:
        return f"unknown: {error}"
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return "another user"
    for pid in backend.pids():
        try:
            if backend.owner(pid) == os.geteuid() and _may_hold(backend, pid, tree, lock):
                return f"process {pid}"
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError as error:
            if _exists(backend, pid):
                return f"process {pid}, perhaps: {error}"
    return None


def _may_hold(backend: ProcessBackend, pid: int, tree: WorkTree, lock: Path) -> bool:
    facts = backend.facts(pid)
    if facts is None or facts.zombie:
        return False
    with contextlib.suppress(PermissionError):  # guarded programs, for example key agents: none works on repositories
        if backend.has_open(pid, lock):
            return True
    if not facts.comm.startswith("git"):
        return False
    argv = backend.argv(pid)
    if SERVANTS.intersection(argv[1:2]):
        return False
    if any(word.startswith(("--git-dir", "--work-tree")) for word in argv):
        return True
    environment, folder = backend.environment(pid), Path(backend.folder(pid))
    if named := environment.get("GIT_DIR"):
        place = os.path.realpath(folder / named)
        return place == os.path.realpath(tree.git_dir) or not os.path.isdir(place)  # a file names another folder
    if any(name in environment for name in NAMING_VARIABLES):
        return True
    return within(folder, tree.root) or within(folder, tree.git_dir)


def _exists(backend: ProcessBackend, pid: int) -> bool:
    try:
        return backend.facts(pid) is not None
    except OSError:
        return True
