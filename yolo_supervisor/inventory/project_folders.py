"""The folders in which a project's agents work: its own, and the linked work trees of its repository."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system import git_layout
from yolo_supervisor.system.git_files import git_dir_at
from yolo_supervisor.system.git_layout import WorkTree, checkouts, common_dir, root_of


class ProjectFolders:
    """Tells which project an agent belongs to, by the folder that it works in (as the kernel spells it).

    A folder belongs to the innermost project around it. A work tree that is no project itself belongs to the first
    project of its repository, that of the main work tree if there is one; in a repository with more than
    ``git_layout.MANY`` of them it belongs to none.
    """

    def __init__(self, project: Path) -> None:
        self.project = Path(os.path.realpath(project))
        self.roots: tuple[Path, ...] = (self.project,)
        """The project, and the same folder in each work tree that belongs to it."""
        self._has: dict[Path, bool] = {}
        """The answers since the work trees were read: many agents work in one folder."""

    def refresh(self) -> None:
        """Read again which work trees and projects there are."""
        for _ in self.read():
            pass

    def read(self) -> Iterator[None]:
        """The same in steps, one for each work tree. The answers change at the end."""
        roots = [self.project]
        for root in self._linked():
            if root is not None:
                roots.append(root)
            yield
        self.roots, self._has = tuple(roots), {}

    def has(self, folder: Path) -> bool:
        """Whether an agent at work in the folder belongs to this project, as of the last ``refresh``."""
        if folder not in self._has:
            self._has[folder] = any(_is_innermost(folder, root, inclusive=root != self.project) for root in self.roots)
        return self._has[folder]

    def _linked(self) -> Iterator[Path | None]:
        """The work trees that belong to the project; None is a step without a result."""
        root = root_of(self.project)
        if root is None:
            return
        inside = self.project.relative_to(root)
        with contextlib.suppress(OSError, ValueError):
            known: list[WorkTree] = []
            for tree in checkouts(common_dir(root)):
                known.append(tree)
                yield None
                if len(known) > git_layout.MANY:
                    return  # one that is left out may be that of another project
            trees = []
            for tree in known:
                if _leads_back(tree.root, tree.git_dir):
                    trees.append(tree.root / inside)
                yield None
            first = next((tree for tree in trees if _is_supervised(tree)), None)
            if first is None or os.path.realpath(first) == str(self.project):
                yield from (tree for tree in trees if os.path.realpath(tree) != str(self.project))


def _leads_back(root: Path, git_dir: Path) -> bool:
    """Whether the work tree names this repository, too: a hostile repository may name any folder."""
    try:
        return os.path.realpath(git_dir_at(str(root / ".git"))) == os.path.realpath(git_dir)
    except (OSError, ValueError):
        return False


def _is_innermost(folder: Path, root: Path, *, inclusive: bool) -> bool:
    """Whether the folder is in ``root``, with no supervised project between; ``inclusive`` asks about ``root``, too."""
    if not within(folder, root):
        return False
    between = [inner for inner in (folder, *folder.parents) if within(inner, root) and (inclusive or inner != root)]
    return not any(_is_supervised(inner) for inner in between)


def _is_supervised(folder: Path) -> bool:
    """Whether the folder is a project that was enrolled."""
    paths = Paths(folder)
    return paths.planning.is_dir() and paths.enrolment.is_file()


def within(folder: Path, project: Path) -> bool:
    """Whether the folder is the project or inside it (both as the kernel spells them)."""
    inner, outer = str(folder), str(project)
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")
