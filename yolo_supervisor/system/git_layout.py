"""The work trees of a git repository, found in its files, without running git."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.system.git_files import POINTER_LIMIT, common_dir_of, find_root, git_dir_at


@dataclass(frozen=True, slots=True)
class WorkTree:
    """One checkout: its folder, and its git directory (with the index and HEAD)."""

    root: Path
    git_dir: Path

    @property
    def index_lock(self) -> Path:
        return self.git_dir / "index.lock"


def root_of(project: Path) -> Path | None:
    """The folder of the checkout that the project is, or is in; None if it is in none."""
    root = find_root(str(project))
    return Path(root) if root is not None else None


def common_dir(root: Path) -> Path:
    """The repository of the checkout, which linked work trees share.

    OSError, ValueError if ``.git`` cannot be read.
    """
    return Path(common_dir_of(git_dir_at(str(root / ".git"))))


MANY = 300
"""The largest number of work trees of a repository that a look goes through: each costs some 0.2 ms."""


def few(trees: Iterable[WorkTree]) -> list[WorkTree] | None:
    """The work trees; None if there are more than ``MANY``: what is true of those that were read may be wrong then."""
    known = list(itertools.islice(trees, MANY + 1))
    return known if len(known) <= MANY else None


def work_trees(project: Path) -> Iterator[WorkTree]:
    """All checkouts of the project's repository; none where there is no repository."""
    root = root_of(project)
    if root is None:
        return
    try:
        git_dir = git_dir_at(str(root / ".git"))
        common = Path(common_dir_of(git_dir))
    except (OSError, ValueError):
        return
    yield WorkTree(root, Path(git_dir))
    own = os.path.realpath(git_dir)
    yield from (tree for tree in checkouts(common) if os.path.realpath(tree.git_dir) != own)


def linked_tree(folder: Path) -> WorkTree | None:
    """The linked work tree that the folder is in; None for a main work tree, a submodule, or no repository."""
    root = root_of(folder)
    data = read_or_none(root / ".git") if root is not None else None
    if root is None or data is None or not data.startswith(b"gitdir:"):
        return None
    git_dir = root / os.fsdecode(data.removeprefix(b"gitdir:").strip())
    return WorkTree(root, git_dir) if read_or_none(git_dir / "commondir") is not None else None


def checkouts(common: Path) -> Iterator[WorkTree]:
    """All checkouts that the repository knows: its main work tree and the linked ones."""
    if common.name == ".git":
        yield WorkTree(common.parent, common)
    try:
        linked = sorted(os.listdir(common / "worktrees"))
    except OSError:
        return
    for name in linked:
        git_dir = common / "worktrees" / name
        try:
            pointer = os.fsdecode(read_regular(git_dir / "gitdir", POINTER_LIMIT)).strip()
        except OSError:
            continue
        yield WorkTree(Path(pointer).parent, git_dir)
