"""Bound the copies of the user's work: the oldest go first, and none whose content is nowhere else."""

from __future__ import annotations

import os

from yolo_supervisor.commits.backup import RESCUE_REFS
from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError

REFS_KEPT = 20
BYTES_KEPT = 2**30
"""The number of copies, and the bytes on disk that only they need, above which old ones are removed."""

ELSEWHERE = ("--not", f"--exclude={RESCUE_REFS}*", "--all", "--indexed-objects")
"""Arguments of ``git rev-list`` that leave out all that other refs and the indexes of all work trees reach."""


def prune(git: QuickGit, keep: str) -> list[str]:
    """Remove old copies above the bounds, but not ``keep``; sentences about what was removed, and what stays."""
    refs = git("for-each-ref", "--sort=refname", "--format=%(refname)", RESCUE_REFS).split()
    removed = 0
    for ref in [ref for ref in refs if ref != keep]:
        if not _is_above(git, len(refs) - removed):
            break
        if _is_elsewhere(git, ref):
            git("update-ref", "-d", ref)
            removed += 1
    said = []
    if removed:
        copies = f"{removed} old copies" if removed > 1 else "1 old copy"
        said.append(f"removed {copies} of work that is in the work tree or in history")
    if _is_above(git, len(refs) - removed):
        left = f"{len(refs) - removed} copies in {RESCUE_REFS} have changes that are nowhere else"
        said.append(f"{left}: git diff HEAD REF shows one, git update-ref -d REF removes it")
    return said


def _is_above(git: QuickGit, number: int) -> bool:
    if number > REFS_KEPT:
        return True
    size = git.or_none("rev-list", "--objects", "--disk-usage", f"--glob={RESCUE_REFS}*", *ELSEWHERE)
    return size is not None and size.isdecimal() and int(size) > BYTES_KEPT


def _is_elsewhere(git: QuickGit, ref: str) -> bool:
    """Whether the content of each file in the copy is in history, in an index, or in the work tree."""
    try:
        lines = git("rev-list", "--objects", ref, *ELSEWHERE).splitlines()
        objects = dict(line.split(" ", 1) for line in lines if " " in line)
        asked = "".join(f"{name}\n" for name in objects)
        kinds = git("cat-file", "--batch-check=%(objecttype)", given=asked.encode()).splitlines()
    except QuickGitError:
        return False
    files = {name: path for (name, path), kind in zip(objects.items(), kinds, strict=True) if kind == "blob"}
    return all(_is_in_work_tree(git, name, path) for name, path in files.items())


def _is_in_work_tree(git: QuickGit, name: str, path: str) -> bool:
    file = os.path.join(git.folder, path)
    return os.path.isfile(file) and not os.path.islink(file) and git.or_none("hash-object", "--", path) == name
