"""Copy the work tree, the index and untracked files to a ref without changing any of them."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.commits.fast_path import INDEX_COPY, OWN_FOLDER
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.git import Git, GitError

LIMIT_S = 600.0
"""How long git may take to read a whole work tree, or to check one out."""

RESCUE_REFS = "refs/yolo-supervisor/rescue/"


async def own_folder(git: Git) -> Path:
    """Our folder in the repository's common directory, created if it is missing."""
    folder = Path(await git("rev-parse", "--path-format=absolute", "--git-common-dir"), OWN_FOLDER)
    make_folder(Disk(), folder)
    return folder


async def back_up(git: Git) -> tuple[str, list[str]]:
    """Make the copy; its ref, and the files that git could not add.

    ``git stash apply REF`` restores it. The commit has the shape of a stash: the work tree, with HEAD and a commit of
    the index as its parents.
    """
    index = Path(await git("rev-parse", "--path-format=absolute", "--git-path", "index"))
    copy = await own_folder(git) / f"{INDEX_COPY}{os.getpid()}"
    with_copy = git.with_environment(GIT_INDEX_FILE=str(copy))
    try:
        copy.write_bytes(index.read_bytes() if index.exists() else b"")
        if index.exists():  # by the time of the index git knows which files it has to compare
            written_ns = index.stat().st_mtime_ns
            os.utime(copy, ns=(written_ns, written_ns))
        index_tree = await git.or_none("write-tree")
        omitted = await _add_all(with_copy)
        tree = await with_copy("write-tree")
    finally:
        copy.unlink(missing_ok=True)
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    head = await git.or_none("rev-parse", "--verify", "HEAD")
    parents = ["-p", head] if head else []
    as_us = git.with_environment(
        GIT_COMMITTER_NAME="yolo-supervisor", GIT_COMMITTER_EMAIL="yolo-supervisor@localhost",
        GIT_AUTHOR_NAME="yolo-supervisor", GIT_AUTHOR_EMAIL="yolo-supervisor@localhost",
    )  # fmt: skip
    if index_tree and parents:
        parents += ["-p", await as_us("commit-tree", index_tree, *parents, "-m", f"index at {when}")]
    commit = await as_us("commit-tree", tree, *parents, "-m", f"work tree at {when}")
    ref = f"{RESCUE_REFS}{when}-{os.getpid()}"
    await git("update-ref", ref, commit)
    return ref, omitted


async def _add_all(git: Git) -> list[str]:
    """Add every file to a temporary index; the files that git cannot add.

    One such file stops ``git add --all``, so then the files are added one by one.
    """
    add = ("-c", "core.safecrlf=false", "--literal-pathspecs", "add")
    with contextlib.suppress(GitError):
        await git(*add, "--all", limit_s=LIMIT_S)
        return []
    at_root = Git(Path(await git("rev-parse", "--show-toplevel")), git.environment)
    omitted = []
    for name in dict.fromkeys(await at_root.names("ls-files", "-z", "-m", "-o", "--exclude-standard")):
        try:
            await at_root(*add, "--", name)
        except GitError:
            omitted.append(name)
    return omitted
