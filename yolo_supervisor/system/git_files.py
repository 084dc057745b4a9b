"""The git directory of a work tree, and the commit of its HEAD.

The files are read without git. Only small modules are imported, and paths are strings: the fast path of ``commit`` uses
this module.
"""

import os

from yolo_supervisor.fs.bounded import read_regular

NAMING_VARIABLES = ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
"""Environment variables by which git works on another repository than the one that its folder is in."""

LOCAL_VARIABLES = (*NAMING_VARIABLES, "GIT_IMPLICIT_WORK_TREE", "GIT_PREFIX")
"""Environment variables that describe one work tree. They must be unset for a git that works in another one."""

NOT_IN_FILES = "ref: refs/heads/.invalid"
"""The content of the file ``HEAD`` if git stores refs in another format than files."""

OWN_FOLDER, LOCKS_DOCUMENT = "yolo-supervisor", "locks-"
"""Our folder in a repository's common directory, and the prefix of the documents in it about the locks of a commit."""

POINTER_LIMIT = 2**16
"""The largest file, in bytes, with a path or one ref in it."""

PACKED_REFS_LIMIT = 2**28
"""The largest ``packed-refs`` that is read, in bytes: some four million refs."""

SYMREF_LIMIT = 4096
"""Bytes of symbolic refs that are followed, so that a circle of them ends."""


def find_root(folder: str) -> str | None:
    """The nearest folder, from ``folder`` upwards, that has a ``.git``; None if there is none."""
    while not os.path.lexists(os.path.join(folder, ".git")):
        if folder == (folder := os.path.dirname(folder)):
            return None
    return folder


def git_dir_at(path: str) -> str:
    """The git directory that ``path`` is, or that the file at ``path`` names.

    ``.git`` is a file in linked work trees and submodules. OSError if it is neither a directory nor a file, ValueError
    if the file is not text.
    """
    if os.path.isdir(path):
        return path
    return os.path.normpath(os.path.join(os.path.dirname(path), _text(path).removeprefix("gitdir:").strip()))


def common_dir_of(git_dir: str) -> str:
    """The repository's directory, which linked work trees share.

    OSError, ValueError if the file that names it cannot be read.
    """
    try:
        return os.path.normpath(os.path.join(git_dir, _text(os.path.join(git_dir, "commondir")).strip()))
    except (FileNotFoundError, NotADirectoryError):
        return git_dir


def git_dirs(folder: str) -> tuple[str, str] | None:
    """The real git directory and common directory of the work tree that ``folder`` is in.

    None if it is in no work tree. ``$GIT_DIR`` counts, as for git.
    """
    if "GIT_DIR" in os.environ:
        git_dir = os.path.join(folder, os.environ["GIT_DIR"])
    elif (root := find_root(folder)) is not None:
        git_dir = os.path.join(root, ".git")
    else:
        return None
    common_dir = git_dir
    try:
        git_dir = common_dir = git_dir_at(git_dir)
        common_dir = common_dir_of(git_dir)
    except (OSError, ValueError):
        pass  # git itself reports the error
    return os.path.realpath(git_dir), os.path.realpath(common_dir)


def head(git_dir: str, common_dir: str) -> str:
    """The symbolic refs that HEAD goes through, and the commit at their end.

    The commit is empty where the branch does not exist yet. OSError if HEAD cannot be read, or refs are not stored in
    files (reftable): then only git can tell.
    """
    value, symbolic = _text(os.path.join(git_dir, "HEAD")).strip(), ""
    if value == NOT_IN_FILES:
        raise OSError(f"the refs of {common_dir} are not stored in files")
    while value.startswith("ref: ") and len(symbolic) < SYMREF_LIMIT:  # a branch may itself be a symbolic ref
        symbolic += f"{value} "
        value = _ref(value.removeprefix("ref: "), git_dir, common_dir)
    return symbolic + value


def _ref(name: str, git_dir: str, common_dir: str) -> str:
    """The value of the ref; empty where it does not exist yet."""
    for folder in (git_dir, common_dir):
        try:
            return _text(os.path.join(folder, name)).strip()
        except FileNotFoundError:
            continue
    try:
        packed = _text(os.path.join(common_dir, "packed-refs"), PACKED_REFS_LIMIT)
    except FileNotFoundError:
        return ""
    return next((line.split()[0] for line in packed.splitlines() if line.endswith(f" {name}")), "")


def _text(path: str, limit: int = POINTER_LIMIT) -> str:
    """The text of a file of git, which may be a link. OSError, ValueError if it cannot be read."""
    return os.fsdecode(read_regular(path, limit, follow=True))
