"""Keep a copy of the user's work while git runs hooks, and give back what a hook has hidden and not restored.

Hooks such as lint-staged and pre-commit put unstaged changes into a stash or a patch file while they run. One that is
ended in between leaves them there. The copy is a rescue ref; a record in our folder names it until the commit is over,
so that the next commit finds what a killed one has left.
"""

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from yolo_supervisor.commits.backup import RESCUE_REFS, Backup, Places, back_up, copy_file, places
from yolo_supervisor.commits.fast_path import HOOKS_RECORD
from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError, null_separated

RECORD, WORK_INDEX, USER_INDEX, NOW_INDEX, STAGED_INDEX = ".json", ".work", ".user", ".now", ".staged"
"""Suffixes of our files: the record, and the indexes of the copy, the user, the work tree now, and the user now."""


OPERATION_FILES = (
    "MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "AUTO_MERGE", "SQUASH_MSG", "CHERRY_PICK_HEAD", "REVERT_HEAD",
)  # fmt: skip
"""Files in the git directory that make the commit a merge, for instance. ``git reset --hard`` removes them."""


class StashEntry(NamedTuple):
    """An entry of the user's stash list."""

    commit: str
    subject: str


class WorkCopy:
    """The copy of one work tree, made before the hooks of a commit run."""

    def __init__(self, git: QuickGit, where: Places, name: str, backup: Backup, stashes: list[StashEntry]) -> None:
        self.git = git
        """Git in the root of the work tree."""
        self.places = where
        self.backup = backup
        self.stashes = stashes
        """The stash entries of before, the newest first."""
        self.operation: dict[str, str] = {}
        """The files of a merge, for instance, that the commit concludes."""
        self.git_pid = 0
        """The git that runs the hooks, and leads their session."""
        self.path = os.path.join(where.own_folder, name)
        """The beginning of the paths of our files."""

    @classmethod
    def make(
        cls, folder: str, environment: Mapping[str, str], deadline: float, before: str = "commit"
    ) -> "WorkCopy | None":
        """Copy the work tree ``before`` a command of git's with hooks; None, with a warning, if that fails."""
        try:
            git = QuickGit(folder, environment, deadline)
            where = places(git)
            if "GIT_DIR" in environment:  # it may be relative to the folder
                git = git.at(folder, GIT_DIR=where.git_dir, GIT_WORK_TREE=where.root)
            os.makedirs(where.own_folder, exist_ok=True)
            name = f"{HOOKS_RECORD}{os.getpid()}-{before}"
            path = os.path.join(where.own_folder, name)
            copy_file(where.index_file, path + USER_INDEX)
            backup = back_up(git, where, path + WORK_INDEX, small_only=True)
            git = QuickGit(where.root, git.environment)
            copy = cls(git, where, name, backup, stash_list(git))
            copy.operation = _operation(where.git_dir)
            copy._write_record()
        except (OSError, QuickGitError) as error:
            sys.stderr.write(f"yolo-supervisor: no copy of your work was made before the hooks: {error}\n")
            return None
        return copy

    @classmethod
    def from_record(cls, record: str, environment: Mapping[str, str]) -> "WorkCopy | None":
        """The copy of a commit that was killed; None if its record is incomplete, or its work tree is gone."""
        try:
            with open(record, encoding="utf-8", errors="surrogateescape") as file:
                first, _, rest = file.read().partition("\n")
            raw = json.loads(first)
            where, backup = Places(*raw["places"]), Backup(*raw["backup"])
            stashes = [StashEntry(*entry) for entry in raw["stashes"]]
            operation = {str(name): str(text) for name, text in raw["operation"].items()}
            is_there = all(isinstance(path, str) for path in where) and os.path.isdir(where.root)
            is_there &= backup.ref.startswith(RESCUE_REFS)
            int(os.path.basename(record).split("-")[1])
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None
        if not is_there or not os.path.isdir(where.git_dir):
            return None
        git = QuickGit(where.root, environment).at(where.root, GIT_DIR=where.git_dir, GIT_WORK_TREE=where.root)
        copy = cls(git, where, os.path.basename(record).removesuffix(RECORD), backup, stashes)
        copy.operation = operation
        copy.git_pid = int(rest) if rest.strip().isdecimal() else 0
        return copy

    def _write_record(self) -> None:
        record = {"places": self.places, "backup": self.backup, "stashes": self.stashes, "operation": self.operation}
        with open(self.path + RECORD, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(json.dumps(record) + "\n")

    def git_started(self, pid: int) -> None:
        """Record the git that runs the hooks: what is left is looked at when its session is over."""
        self.git_pid = pid
        with contextlib.suppress(OSError), open(self.path + RECORD, "a") as file:
            file.write(str(pid))

    @property
    def maker(self) -> int:
        """The process that made the copy."""
        return int(os.path.basename(self.path).split("-")[1])

    @property
    def is_intact(self) -> bool:
        """Whether the work tree holds what the copy holds, and the stash list is the same."""
        try:
            self._at(WORK_INDEX)("update-index", "--refresh")
        except QuickGitError:
            return False
        return not self.resurrected() and stash_list(self.git) == self.stashes

    def resurrected(self) -> list[str]:
        """The files that the user had deleted without staging that, and that exist again."""
        index_tree = self.backup.index_tree
        if index_tree in (None, self.backup.tree):
            return []
        deleted = self.git.changed(index_tree, self.backup.tree, "D")
        return sorted(name for name in deleted if os.path.lexists(os.path.join(self.places.root, name)))

    def tree_now(self) -> str:
        """The tree of the work tree as it is now, for the files of the copy and the resurrected ones."""
        copy_file(self.path + WORK_INDEX, self.path + NOW_INDEX)
        now = self._at(NOW_INDEX)
        now.or_none("-c", "core.safecrlf=false", "add", "--update", "--ignore-errors", ".")
        if again := self.resurrected():
            now("update-index", "--add", "-z", "--stdin", given=null_separated(again))
        return now("write-tree")

    def staged_now(self) -> str | None:
        """The tree of the user's index as it is now, also while it is locked; None while files in it are unmerged."""
        copy_file(self.places.index_file, self.path + STAGED_INDEX)
        return self._at(STAGED_INDEX).or_none("write-tree")

    def changed_since(self) -> set[str]:
        """The files that have changed since ``tree_now``."""
        return {*self._at(NOW_INDEX).names("diff-files", "-z", "--name-only")}

    def write(self, names: list[str]) -> None:
        """Write files of the copy into the work tree."""
        self._at(WORK_INDEX)("checkout-index", "--force", "-z", "--stdin", given=null_separated(names))

    def resume_operation(self) -> None:
        """Write the files of a merge, for instance, that a hook has removed."""
        for name in self.operation.keys() & {*OPERATION_FILES}:
            with contextlib.suppress(FileExistsError):
                path = os.path.join(self.places.git_dir, name)
                with open(path, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
                    file.write(self.operation[name])

    def user_index(self) -> QuickGit:
        """Git with the user's index as it was."""
        return self._at(USER_INDEX)

    def _at(self, suffix: str) -> QuickGit:
        return self.git.at(self.places.root, GIT_INDEX_FILE=self.path + suffix)

    def forget(self, keep_ref: bool = False) -> None:
        """Remove the record and, unless it is needed, the copy."""
        if not keep_ref:
            self.git.or_none("update-ref", "-d", self.backup.ref)
        for suffix in (
            WORK_INDEX,
            USER_INDEX,
            NOW_INDEX,
            STAGED_INDEX,
            RECORD,
        ):  # the record last: it leads to the others
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)


def _operation(git_dir: str) -> dict[str, str]:
    files = {}
    for name in OPERATION_FILES:
        path = os.path.join(git_dir, name)
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            files[name] = file.read()
    return files


def stash_list(git: QuickGit) -> list[StashEntry]:
    """The user's stash entries, the newest first."""
    lines = (git.or_none("stash", "list", "-z", "--format=%H %gs") or "").split("\0")
    return [StashEntry(*line.partition(" ")[::2]) for line in lines if line]
