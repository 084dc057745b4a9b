"""The holder of a lock file of git's: the one rule for the watcher of locks and for ``commit``.

A lock file names no process, and a lock file that no process has open may be held: git closes it while an editor or
a hook runs, and a git in another container or on another machine cannot be seen from here. So a holder has to have
been seen with the lock, and to be proven dead. See docs/who-is-at-work.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.mounts import is_local
from yolo_supervisor.models import Liveness, LockStamp, ProcessId, SeenLock
from yolo_supervisor.system.git_layout import WorkTree
from yolo_supervisor.system.process_backend import FileId, file_id
from yolo_supervisor.system.processes import Processes

READERS = frozenset({
    "annotate", "archive", "blame", "cat-file", "check-attr", "check-ignore", "check-mailmap", "check-ref-format",
    "cherry", "count-objects", "credential", "credential-cache", "credential-cache--daemon", "credential-store",
    "daemon", "diff-tree", "for-each-ref", "fsmonitor--daemon", "grep", "help", "lfs", "log", "ls-files", "ls-remote",
    "ls-tree", "merge-base", "merge-tree", "name-rev", "remote-http", "remote-https", "rev-list", "rev-parse",
    "shortlog", "show", "show-ref", "upload-archive", "upload-pack", "var", "version", "whatchanged",
})  # fmt: skip
"""Git's commands that take no lock in a repository."""

VALUED_OPTIONS = frozenset({"-C", "-c", "--git-dir", "--work-tree", "--namespace", "--exec-path", "--config-env"})
"""Options before git's command whose value is the next argument, unless it follows a ``=``."""

OWN_LOCKS = frozenset({"index.lock", "HEAD.lock"})
"""Locks of one work tree. All others belong to the repository, which linked work trees share."""

HOOK = ["yolo", "hook"]
"""The beginning of the command line of the plugin's hooks."""

FALSE_INDEX = re.compile(r"next-index-\d+\.lock")
"""The index that hooks see while ``git commit -- PATHS`` holds ``index.lock``."""

ANCESTORS_AT_MOST = 64
"""The number of processes that are followed from an editor or hook up to its git."""


class Doubt(StrEnum):
    """The reason why it is unknown whether a lock is held."""

    NOT_A_FILE = "not_a_file"
    OTHER_USER = "other_user"
    NOT_LOCAL = "not_local"
    """Another machine may hold it."""
    NEVER_SEEN = "never_seen"
    """No process was seen with it."""
    HOLDER_UNKNOWN = "holder_unknown"
    """The process that was seen with it belongs to another pid namespace, or cannot be examined."""
    MAY_BE_HELD = "may_be_held"
    """The process that was seen with it is dead, but another git is at work there."""
    HOOK_RUNS = "hook_runs"
    """A hook of the plugin that may have made the lock folder still runs, or is stopped."""
    NOT_EMPTY = "not_empty"
    """It is a folder with files in it: the plugin makes none, so another program's rule holds for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockHolder:
    """The holder of one lock file, as far as it is known.

    ``state`` is DEAD only if it is proven that no process holds the lock.
    """

    state: Liveness
    holders: tuple[ProcessId, ...] = ()
    """The processes that were seen with it."""
    may_hold: Mapping[int, str] = field(default_factory=dict)
    """The other gits at work there, by pid, with their commands."""
    readers: Mapping[int, str] = field(default_factory=dict)
    """Gits there that hold no lock."""
    doubt: Doubt | None = None
    """Set if the state is UNKNOWN."""

    @property
    def pids(self) -> list[int]:
        """The processes that hold the lock, or may hold it."""
        return sorted({*(process.pid for process in self.holders), *self.may_hold})

    def describe(self) -> str:
        """The holder as a sentence for a person."""
        seen = ", ".join(str(process.pid) for process in self.holders)
        if self.state is Liveness.ALIVE:
            return f"process {seen} holds it"
        if self.state is Liveness.DEAD:
            return f"process {seen} held it and is dead"
        parts = [_DOUBTS[self.doubt] if self.doubt else "its holder is unknown"]
        if seen:
            parts.append(f"it was seen with process {seen}")
        if self.may_hold:
            parts.append(f"{_listed(self.may_hold)} may hold it")
        elif self.doubt in (Doubt.NEVER_SEEN, Doubt.NOT_LOCAL):
            parts.append("no git that is visible here can be holding it; one in a container or on another machine may")
        if self.readers:
            parts.append(f"{_listed(self.readers)} only reads there and does not hold it")
        return "; ".join(parts)


_DOUBTS = {
    Doubt.NOT_A_FILE: "it is no regular file",
    Doubt.OTHER_USER: "it belongs to another user",
    Doubt.NOT_LOCAL: "it is on a file system that other machines may use",
    Doubt.NEVER_SEEN: "no process was seen with it",
    Doubt.HOLDER_UNKNOWN: "whether its holder lives cannot be seen from here",
    Doubt.MAY_BE_HELD: "the process that was seen with it is dead, but another git is at work there",
    Doubt.HOOK_RUNS: "a hook of the plugin that is older than the lock still runs, or is stopped",
    Doubt.NOT_EMPTY: "there are files in it, which the plugin never makes",
}


def _listed(gits: Mapping[int, str]) -> str:
    return ", ".join(f"process {pid} ({command})" for pid, command in gits.items())


class LockHolders:
    """Knows who was seen with which lock."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._backend = processes.backend
        self.seen: dict[Path, SeenLock] = {}

    def recall(self, seen: Mapping[Path, SeenLock]) -> bool:
        """Take over the observations of another program, as far as these locks are still there; False if none is."""
        there = {_real(path): lock for path, lock in seen.items() if lock_stamp(path) == lock.stamp}
        self.seen |= there
        return bool(there)

    def look(self, lock: Path, trees: Collection[WorkTree]) -> LockHolder | None:
        """The holder of the lock; None if the lock is gone.

        ``trees`` are the work trees of its repository. A holder is found only while it works with the lock, so this has
        to be asked from the lock's first moments on, again and again.
        """
        lock = _real(lock)
        try:
            found = lock.lstat()
        except FileNotFoundError:
            self.seen.pop(lock, None)
            return None
        except OSError:
            return LockHolder(state=Liveness.UNKNOWN, doubt=Doubt.HOLDER_UNKNOWN)
        if not stat.S_ISREG(found.st_mode):
            return LockHolder(state=Liveness.UNKNOWN, doubt=Doubt.NOT_A_FILE)
        if found.st_uid != os.geteuid():
            return LockHolder(state=Liveness.UNKNOWN, doubt=Doubt.OTHER_USER)
        stamp = LockStamp(found.st_dev, found.st_ino, found.st_ctime_ns)
        known = self.seen.get(lock)
        if known is not None and known.stamp != stamp:
            known = None
        if known is not None and any(self._processes.liveness(p) is Liveness.ALIVE for p in known.holders):
            return LockHolder(state=Liveness.ALIVE, holders=known.holders)
        survey = self._survey(lock, stamp, trees)
        if survey.holders and lock_stamp(lock) == stamp:  # else it was another one meanwhile
            earlier = known.holders if known is not None else ()
            known = self.seen[lock] = SeenLock(stamp=stamp, holders=tuple(dict.fromkeys((*earlier, *survey.holders))))
        elif known is None:
            self.seen.pop(lock, None)
        return self._judge(lock, known.holders if known is not None else (), survey)

    def _judge(self, lock: Path, holders: tuple[ProcessId, ...], survey: _Survey) -> LockHolder:
        states = {self._processes.liveness(process) for process in holders}
        doubt = None
        if Liveness.ALIVE in states:
            state = Liveness.ALIVE
        elif not is_local(lock.parent):
            state, doubt = Liveness.UNKNOWN, Doubt.NOT_LOCAL
        elif not states:
            state, doubt = Liveness.UNKNOWN, Doubt.NEVER_SEEN
        elif Liveness.UNKNOWN in states:
            state, doubt = Liveness.UNKNOWN, Doubt.HOLDER_UNKNOWN
        elif survey.may_hold:
            state, doubt = Liveness.UNKNOWN, Doubt.MAY_BE_HELD
        else:
            state = Liveness.DEAD
        return LockHolder(state=state, holders=holders, may_hold=survey.may_hold, readers=survey.readers, doubt=doubt)

    def look_at_folder(self, lock: Path) -> LockHolder | None:
        """The possible holder of a lock folder of the plugin; None if only its time limit decides.

        The plugin's hooks keep such a lock for seconds, and Claude Code kills a hook that does not end. A stopped one
        goes on holding its lock.
        """
        if names(lock):
            return LockHolder(state=Liveness.UNKNOWN, doubt=Doubt.NOT_EMPTY)
        hooks = {}
        for pid in self._backend.pids():
            with contextlib.suppress(OSError):
                argv = self._backend.argv(pid)
                if [os.path.basename(argument) for argument in argv[:2]] != HOOK:
                    continue
                process = self._processes.identify(pid)
                if process is not None and self._processes.older_than_file(process, lock):
                    hooks[pid] = " ".join([*HOOK, *argv[2:3]])
        return LockHolder(state=Liveness.UNKNOWN, may_hold=hooks, doubt=Doubt.HOOK_RUNS) if hooks else None

    # -- the processes -----------------------------------------------------------------------------------------------

    def _survey(self, lock: Path, stamp: LockStamp, trees: Collection[WorkTree]) -> _Survey:
        """Ask every process of this user about the lock."""
        survey, place = _Survey(), _Place.of(lock, stamp, trees)
        for pid in self._backend.pids():
            try:
                if self._backend.owner(pid) == os.geteuid():
                    self._ask(pid, lock, place, survey)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except OSError as error:
                if self._may_be_git(pid):
                    survey.may_hold[pid] = error.strerror or str(error)
        for process in survey.holders:
            survey.may_hold.pop(process.pid, None)
        return survey

    def _ask(self, pid: int, lock: Path, place: _Place, survey: _Survey) -> None:
        facts = self._backend.facts(pid)
        if facts is None or facts.zombie:
            return
        is_git = facts.comm == "git" or facts.comm.startswith("git-")
        environment: Mapping[str, str] = {}
        with contextlib.suppress(
            PermissionError
        ):  # guarded programs, for example key agents: none works on repositories
            environment = self._backend.environment(pid)
            if self._backend.writes_to(pid, lock, place.file):
                survey.holders.append(ProcessId(pid, facts.started, self._processes.boot))
                return
        if lock.name == "index.lock" and self._works_on_index(pid, environment, place):
            holder = self._git_above(facts.parent, place)
            if holder is not None and holder not in survey.holders:
                survey.holders.append(holder)
        if not is_git:
            return
        argv = self._backend.argv(pid)
        command = subcommand(argv) or facts.comm.removeprefix("git-")
        if not self._works_there(pid, argv, self._backend.environment(pid), place):
            return
        gits = survey.readers if command in READERS else survey.may_hold
        gits[pid] = f"git {command}"

    def _works_on_index(self, pid: int, environment: Mapping[str, str], place: _Place) -> bool:
        """Whether git lets the process use the locked index: the process is an editor or a hook of its."""
        name = environment.get("GIT_INDEX_FILE", "")
        try:
            if os.path.basename(name) == "index.lock":
                return self._backend.file_id(pid, name) == place.file
            if FALSE_INDEX.fullmatch(os.path.basename(name)):
                return self._backend.file_id(pid, os.path.dirname(name) or ".") == place.folder
        except OSError:
            pass
        return False

    def _git_above(self, pid: int, place: _Place) -> ProcessId | None:
        """The git that began a process which works on its locked index; None if it is gone."""
        for _ in range(ANCESTORS_AT_MOST):
            facts = self._backend.facts(pid) if pid > 1 else None
            if facts is None or facts.zombie:
                return None
            if not self._works_on_index(pid, self._backend.environment(pid), place):
                is_git = facts.comm == "git" or facts.comm.startswith("git-")
                return ProcessId(pid, facts.started, self._processes.boot) if is_git else None
            pid = facts.parent
        return None

    def _works_there(self, pid: int, argv: Sequence[str], environment: Mapping[str, str], place: _Place) -> bool:
        """Whether the git works in the lock's repository, or may: by the options and variables, else by its folder."""
        named = [value for name in ("GIT_DIR", "GIT_COMMON_DIR") if (value := environment.get(name))]
        named += [value] if (value := _git_dir_option(argv)) else []
        if index := environment.get("GIT_INDEX_FILE"):
            named.append(os.path.dirname(index) or ".")
        for name in named:
            try:
                if self._backend.file_id(pid, name) in place.repository:
                    return True
            except OSError:
                return True
        if environment.get("GIT_DIR") or _git_dir_option(argv):
            return False
        return not place.repository.isdisjoint(self._backend.folder_ids(pid))

    def _may_be_git(self, pid: int) -> bool:
        """Whether a process that cannot be examined may be a git; not if it is gone."""
        try:
            facts = self._backend.facts(pid)
        except OSError:
            return True
        return facts is not None and not facts.zombie and facts.comm.startswith("git")


@dataclass
class _Survey:
    """The findings about one lock in all processes."""

    holders: list[ProcessId] = field(default_factory=list)
    may_hold: dict[int, str] = field(default_factory=dict)
    readers: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A lock file and its repository, by device and inode."""

    file: FileId
    folder: FileId
    repository: frozenset[FileId]
    """The work trees and git directories in which a git can take the lock."""

    @classmethod
    def of(cls, lock: Path, stamp: LockStamp, trees: Collection[WorkTree]) -> _Place:
        folder = file_id(lock.parent)
        ids = {folder}
        for tree in trees:
            with contextlib.suppress(OSError):
                git_dir = file_id(tree.git_dir)
                if lock.name in OWN_LOCKS and git_dir != folder:
                    continue
                ids.add(git_dir)
                ids.add(file_id(tree.root))
        return cls(file=FileId(stamp.device, stamp.inode), folder=folder, repository=frozenset(ids))


def _real(lock: Path) -> Path:
    """The path of the lock without symbolic links above it."""
    return Path(os.path.realpath(lock.parent)) / lock.name


def lock_stamp(lock: Path) -> LockStamp | None:
    """The lock file that is there now; None if there is none."""
    try:
        found = lock.lstat()
    except OSError:
        return None
    return LockStamp(found.st_dev, found.st_ino, found.st_ctime_ns)


def subcommand(argv: Sequence[str]) -> str | None:
    """Git's command in its arguments: ``commit`` in ``git -C folder commit``."""
    if argv and (name := os.path.basename(argv[0])).startswith("git-"):
        return name.removeprefix("git-")
    rest = iter(argv[1:])
    for argument in rest:
        if argument in VALUED_OPTIONS:
            next(rest, None)
        elif not argument.startswith("-"):
            return argument
    return None


def _git_dir_option(argv: Sequence[str]) -> str | None:
    """The value of ``--git-dir`` before git's command."""
    rest = iter(argv[1:])
    for argument in rest:
        if argument == "--git-dir":
            return next(rest, None)
        if argument.startswith("--git-dir="):
            return argument.partition("=")[2]
        if argument in VALUED_OPTIONS:
            next(rest, None)
        elif not argument.startswith("-"):
            return None
    return None
