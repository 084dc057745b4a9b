"""Copy the work tree, the index and untracked files to a ref without changing any of them.

Every commit with hooks uses this module, so it imports little.
"""

import contextlib
import os
import time
from typing import NamedTuple

from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError, null_separated
from yolo_supervisor.system.git_files import OWN_FOLDER

RESCUE_REFS = "refs/yolo-supervisor/rescue/"

LARGE_FILE, LARGE_TOTAL = 16 * 2**20, 64 * 2**20
"""Bytes of an untracked file, and of all of them, above which they are left out before hooks run."""

ANY_NEWLINE = ("-c", "core.safecrlf=false")
"""Options with which git adds files of any line endings."""

IDENTITY = {
    f"GIT_{role}_{part}": value
    for role in ("AUTHOR", "COMMITTER")
    for part, value in (("NAME", "yolo-supervisor"), ("EMAIL", "yolo-supervisor@localhost"))
}
"""The author of copies."""


class Places(NamedTuple):
    """The absolute paths of a work tree."""

    root: str
    git_dir: str
    common_dir: str
    index_file: str

    @property
    def own_folder(self) -> str:
        """Our folder in the repository's common directory."""
        return os.path.join(self.common_dir, OWN_FOLDER)


class Backup(NamedTuple):
    """A copy of a work tree."""

    ref: str
    tree: str
    """The tree of the work tree's files."""
    index_tree: str | None
    """The tree of the index; None while files in it are unmerged."""
    head: str
    """HEAD's commit; empty before the first one."""
    omitted: list[str]
    """Files that are not in the copy."""


def places(git: QuickGit) -> Places:
    """The places of the work tree that the git is in."""
    asked = (("--show-toplevel",), ("--git-dir",), ("--git-common-dir",), ("--git-path", "index"))
    every = [option for options in asked for option in options]
    lines = git("rev-parse", "--path-format=absolute", *every).split("\n")
    if len(lines) != len(asked):  # a path with a newline
        lines = [git("rev-parse", "--path-format=absolute", *options) for options in asked]
    return Places(*lines)


def back_up(git: QuickGit, where: Places, copy: str, small_only: bool = False) -> Backup:
    """Make the copy; the index file of its work tree is left at ``copy``.

    ``git stash apply REF`` restores it. With ``small_only`` large untracked files are left out.
    """
    at_root = git.at(where.root, GIT_INDEX_FILE=copy)
    copy_file(where.index_file, copy)
    index_tree = at_root.or_none("write-tree")
    omitted = _add_all(at_root, small_only)
    head = head_commit(git)
    return keep(git, Backup("", at_root("write-tree"), index_tree, head, omitted), str(os.getpid()))


def head_commit(git: QuickGit) -> str:
    """HEAD's commit; empty before the first one."""
    return git.or_none("rev-parse", "--verify", "--quiet", "HEAD") or ""


def keep(git: QuickGit, backup: Backup, suffix: str) -> Backup:
    """Make a ref for the trees of the copy. Its name is the time and the suffix.

    The commit has the shape of a stash: the work tree, with HEAD and a commit of the index as its parents.
    """
    seconds, ns = divmod(time.time_ns(), 10**9)
    when = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{ns // 1000:06d}Z"
    as_us = git.at(git.folder, **IDENTITY)
    parents = ["-p", backup.head] if backup.head else []
    if backup.index_tree:
        parents += ["-p", as_us("commit-tree", backup.index_tree, *parents, "-m", f"index at {when}")]
    commit = as_us("commit-tree", backup.tree, *parents, "-m", f"work tree at {when}")
    ref = f"{RESCUE_REFS}{when}-{suffix}"
    git("update-ref", ref, commit)
    return backup._replace(ref=ref)


def copy_file(path: str, copy: str) -> None:
    """Copy an index file, if there is one. By its time git knows which files it has to compare, so that is kept."""
    try:
        with open(path, "rb") as file, open(copy, "wb") as new:
            new.write(file.read())
        written_ns = os.stat(path).st_mtime_ns
        os.utime(copy, ns=(written_ns, written_ns))
    except FileNotFoundError:  # an empty index
        with contextlib.suppress(FileNotFoundError):
            os.unlink(copy)


def _add_all(git: QuickGit, small_only: bool) -> list[str]:
    """Add every file to a temporary index; the files that were left out, since git cannot add them or they are large.

    One such file stops ``git add --all``, so then the files are added by their names.
    """
    large = _large_files(git) if small_only else []
    if not large and git.or_none(*ANY_NEWLINE, "--literal-pathspecs", "add", "--sparse", "--all") is not None:
        return []
    names = dict.fromkeys(git.names("ls-files", "-z", "-m", "-o", "--exclude-standard"))
    return [*large, *add_names(git, [name for name in names if name not in large])]


def add_names(git: QuickGit, names: list[str]) -> list[str]:
    """Add these files, or their removal, to a temporary index; those that git cannot add.

    One such file stops the command, so then each half of them is tried.
    """
    if not names:
        return []
    given = null_separated(name.removesuffix("/") for name in names)  # git ends the name of a repository in it with /
    try:
        git(*ANY_NEWLINE, "update-index", "--add", "--remove", "--replace", "-z", "--stdin", given=given)
    except QuickGitError as error:
        if error.exit is None:
            raise
        half = len(names) // 2
        return [*add_names(git, names[:half]), *add_names(git, names[half:])] if half else names
    return []


def _large_files(git: QuickGit) -> list[str]:
    """The untracked files that are large, or that are too many together."""
    large, total = [], 0
    for name in git.names("ls-files", "-z", "-o", "--exclude-standard"):
        try:
            size = os.lstat(os.path.join(git.folder, name)).st_size
        except OSError:
            continue
        if size > LARGE_FILE or total + size > LARGE_TOTAL:
            large.append(name)
        else:
            total += size
    return large
