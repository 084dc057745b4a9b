"""The uncommitted work of a dead agent is saved, on real git repositories, and nothing else of them changes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import anyio
import pytest

from support.wait import LIMIT_S
from test_commit import Repo, clean_git_environment, git_config
from yolo_supervisor.commits.salvage import MAX_BYTES, Saved, SaveOutcome, save_work

__all__ = ["clean_git_environment", "git_config"]


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """A repository with two commits and a stash entry."""
    return new_repo(tmp_path / "repo")


def new_repo(folder: Path, *options: str) -> Repo:
    subprocess.run(["git", "init", "-q", *options, folder], check=True)
    repo = Repo(folder)
    for number, name in enumerate(("one", "two", "three")):
        repo.put(name, f"{name}\n" * 10, f"commit {number}")
    repo.write("one", "stashed\n")
    repo.git("stash", "push", "-q")
    return repo


def make_dirty(repo: Repo) -> None:
    """A staged change with another one on top, a deleted file, an untracked and an ignored one."""
    repo.write("one", "staged\n", add=True)
    repo.write("one", "staged\nunstaged\n")
    (repo.folder / "two").unlink()
    repo.write("folder/new ü\n", "untracked\n")
    repo.write(".git/info/exclude", "*.log\n")
    repo.write("build.log", "ignored\n")


def save(folder: Path | Repo, name: str = "dev-1", limit_s: float = LIMIT_S, max_bytes: int = MAX_BYTES) -> Saved:
    at = folder.folder if isinstance(folder, Repo) else folder
    return anyio.run(save_work, at, name, limit_s, max_bytes)


def show(repo: Repo, revision: str) -> str:
    return repo.git("show", revision) + "\n"


def names(repo: Repo, tree: str) -> set[str]:
    return {*repo.git("ls-tree", "-r", "-z", "--name-only", tree).split("\0")} - {""}


def facts(repo: Repo) -> dict[str, bytes]:
    """The content of the repository and the work tree, without objects and rescue refs."""
    found = {}
    for path in repo.folder.rglob("*"):
        name = path.relative_to(repo.folder).as_posix()
        if not name.startswith((".git/objects", ".git/refs/yolo-supervisor", ".git/yolo-supervisor")):
            stamp = str(path.lstat().st_mtime_ns).encode() if path.is_file() else b""
            found[name] = stamp + (path.read_bytes() if path.is_file() else b"")
    return found


def refs(repo: Repo) -> list[str]:
    return repo.git("for-each-ref", "--format=%(refname)", "refs/yolo-supervisor").split()


# -- what is saved ---------------------------------------------------------------------------------------------------


def test_work_is_in_the_ref_and_nothing_else_has_changed(repo: Repo) -> None:
    make_dirty(repo)
    before = facts(repo)

    saved = save(repo)

    assert (saved.outcome, saved.files, saved.omitted) == (SaveOutcome.SAVED, 3, ())
    assert saved.ref is not None
    assert saved.ref.endswith("-agent-dev-1")
    assert show(repo, f"{saved.ref}:one") == "staged\nunstaged\n"
    assert show(repo, f"{saved.ref}^2:one") == "staged\n"
    assert names(repo, saved.ref) == {"one", "three", "folder/new ü\n"}
    assert facts(repo) == before
    assert [*(repo.folder / ".git" / "yolo-supervisor").iterdir()] == []
    repo.git("fsck", "--strict")


def test_same_content_makes_no_second_ref(repo: Repo) -> None:
    make_dirty(repo)
    first = save(repo)

    again = save(repo, "dev-2")
    repo.git("add", "three", "folder")
    restaged = save(repo)

    assert (again.outcome, again.ref) == (SaveOutcome.SAME, first.ref)
    assert restaged.outcome is SaveOutcome.SAVED
    assert refs(repo) == [first.ref, restaged.ref]


def test_clean_work_tree_makes_no_ref(repo: Repo) -> None:
    os.utime(repo.folder / "three")  # git has to compare it

    assert save(repo).outcome is SaveOutcome.CLEAN
    assert refs(repo) == []


@pytest.mark.parametrize("folder", [".", "in/gone"])
def test_folder_without_a_work_tree_has_nothing_to_save(tmp_path: Path, folder: str) -> None:
    new_repo(tmp_path / "in")

    assert save(tmp_path / folder).outcome is SaveOutcome.NO_REPOSITORY
