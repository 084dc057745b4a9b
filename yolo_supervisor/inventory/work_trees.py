"""Finds signs of work in the linked git work tree of one agent. Read-only.

A work tree that several agents share proves nothing about one of them, and the main work tree is a person's, too.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from yolo_supervisor.inventory.project_folders import within
from yolo_supervisor.inventory.transcripts import Version, version
from yolo_supervisor.system.git_layout import WorkTree, linked_tree

CHANGED_BY_GIT = ("index", "HEAD", "logs/HEAD", "COMMIT_EDITMSG")
"""The files that git changes when an agent stages, commits, switches or rebases in its work tree."""

Trace = tuple[Version | None, ...]


def trace(folders: Iterable[str | Path], others: Collection[str | Path]) -> Trace:
    """The versions of git's files in the linked work trees around ``folders`` that only their agent works in.

    ``others`` are the folders in which other agents work. The trace is empty if no such work tree is known.
    """
    absolute = [path for path in map(Path, folders) if path.is_absolute()]  # a file of another program names them
    trees = dict.fromkeys(tree for path in absolute if (tree := linked_tree(path)) is not None)
    own = [tree for tree in trees if not _is_shared(tree, others)]
    return tuple(version(tree.git_dir / name) for tree in own for name in CHANGED_BY_GIT)


def _is_shared(tree: WorkTree, others: Collection[str | Path]) -> bool:
    root = Path(os.path.realpath(tree.root))
    return any(within(Path(os.path.realpath(folder)), root) for folder in others)
