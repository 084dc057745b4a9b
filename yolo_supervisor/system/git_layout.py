"""Where a git repository keeps what concerns us. It is only read; git itself is not asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WorkTree:
    """One checkout: its folder, and the git folder of its own (index, HEAD)."""

    root: Path
    own: Path

    @property
    def index_lock(self) -> Path:
        return self.own / "index.lock"


def root_of(project: Path) -> Path | None:
    """The folder of the checkout that the project is, or is in; None if it is in none."""
    return next((folder for folder in (project, *project.parents) if os.path.lexists(folder / ".git")), None)


def common_dir(root: Path) -> Path:
    """The repository itself, which linked work trees share. OSError, ValueError if ``.git`` does not tell."""
    own = _own_dir(root)
    common = own / "commondir"
    return own / common.read_text().strip() if common.is_file() else own


def work_trees(project: Path) -> Iterator[WorkTree]:
    """All checkouts of the project's repository that can be found; none where there is no repository."""
    root = root_of(project)
    if root is None:
        return
    try:
        common = common_dir(root)
        yield WorkTree(root, _own_dir(root))
    except (OSError, ValueError):
        return
    yield from (tree for tree in checkouts(common) if tree.root != root)


def checkouts(common: Path) -> Iterator[WorkTree]:
    """All checkouts that the repository itself knows of: its own, and linked ones."""
    if common.name == ".git":
        yield WorkTree(common.parent, common)
    try:
        linked = sorted(os.listdir(common / "worktrees"))
    except OSError:
        return
    for name in linked:
        own = common / "worktrees" / name
        try:
            yield WorkTree(Path((own / "gitdir").read_text().strip()).parent, own)
        except (OSError, ValueError):
            continue


def _own_dir(root: Path) -> Path:
    """``.git`` is a file in linked work trees and submodules."""
    git = root / ".git"
    return git if git.is_dir() else Path(os.path.normpath(root / git.read_text().removeprefix("gitdir:").strip()))
