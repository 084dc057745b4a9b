"""Finding git's directories and HEAD in the files of a work tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.stale_locks import git_locks
from yolo_supervisor.system import git_layout
from yolo_supervisor.system.git_files import find_root, git_dirs, head
from yolo_supervisor.system.git_layout import WorkTree, work_trees

COMMIT = "1" * 40


@pytest.fixture(autouse=True)
def no_git_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_DIR", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A work tree whose repository has no ref yet."""
    root = Path(os.path.realpath(tmp_path)) / "main"
    (root / ".git" / "refs" / "heads").mkdir(parents=True)
    (root / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    return root


def linked(root: Path) -> tuple[Path, Path]:
    """A linked work tree of the repository, and its git directory."""
    tree, git_dir = root.with_name("linked"), root / ".git" / "worktrees" / "linked"
    tree.mkdir()
    git_dir.mkdir(parents=True)
    (tree / ".git").write_text(f"gitdir: {git_dir}\n")
    (git_dir / "commondir").write_text("../..\n")
    (git_dir / "HEAD").write_text("ref: refs/heads/other\n")
    return tree, git_dir


def test_git_directory_is_found_from_a_subfolder(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)

    assert find_root(str(root / "a" / "b")) == str(root)
    assert git_dirs(str(root / "a" / "b")) == (str(root / ".git"), str(root / ".git"))


def test_linked_work_tree_has_two_directories(root: Path) -> None:
    tree, git_dir = linked(root)

    assert git_dirs(str(tree)) == (str(git_dir), str(root / ".git"))


def test_git_directory_of_a_submodule_may_be_relative(root: Path) -> None:
    (root / ".git" / "modules" / "library").mkdir(parents=True)
    (root / "library").mkdir()
    (root / "library" / ".git").write_text("gitdir: ../.git/modules/library\n")

    assert git_dirs(str(root / "library")) == (str(root / ".git" / "modules" / "library"),) * 2


def test_git_dir_of_the_environment_wins(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(root / ".git"))

    assert git_dirs(str(tmp_path)) == (str(root / ".git"), str(root / ".git"))


def test_folder_outside_of_every_work_tree_has_no_git_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda path: False)

    assert find_root(str(tmp_path)) is None
    assert git_dirs(str(tmp_path)) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"gitdir: /no/such/folder"])
def test_damaged_git_file_raises_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".git").write_bytes(content)

    assert git_dirs(str(tmp_path)) is not None


def test_head_of_an_unborn_branch_has_no_commit(root: Path) -> None:
    assert head(str(root / ".git"), str(root / ".git")) == "ref: refs/heads/main "


def test_head_changes_with_the_branch_and_with_its_commit(root: Path) -> None:
    git_dir = str(root / ".git")
    (root / ".git" / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert head(git_dir, git_dir) == f"ref: refs/heads/main {COMMIT}"

    (root / ".git" / "HEAD").write_text(f"{COMMIT}\n")

    assert head(git_dir, git_dir) == COMMIT


def test_branch_of_a_linked_work_tree_is_read_from_the_packed_refs_of_the_repository(root: Path) -> None:
    _, git_dir = linked(root)
    (root / ".git" / "packed-refs").write_text(f"# pack-refs with: peeled\n{COMMIT} refs/heads/other\n")

    assert head(str(git_dir), str(root / ".git")) == f"ref: refs/heads/other {COMMIT}"


def test_circle_of_symbolic_refs_ends(root: Path) -> None:
    (root / ".git" / "refs" / "heads" / "main").write_text("ref: refs/heads/main\n")

    assert head(str(root / ".git"), str(root / ".git")).startswith("ref: refs/heads/main ref: refs/heads/main ")


def test_head_is_not_guessed_where_refs_are_not_files(root: Path) -> None:
    (root / ".git" / "HEAD").write_text("ref: refs/heads/.invalid\n")

    with pytest.raises(OSError, match="not stored in files"):
        head(str(root / ".git"), str(root / ".git"))


def test_unreadable_head_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="HEAD"):
        head(str(tmp_path), str(tmp_path))


# -- all work trees of a repository --------------------------------------------------------------------------------


def test_every_work_tree_of_a_repository_is_found_from_each_of_them(root: Path) -> None:
    tree, git_dir = linked(root)
    (git_dir / "gitdir").write_text(f"{tree / '.git'}\n")
    main, other = WorkTree(root, root / ".git"), WorkTree(tree, git_dir)

    assert list(work_trees(root)) == [main, other]
    assert list(work_trees(tree)) == [other, main]


def test_a_work_tree_that_is_reached_through_a_link_is_found_once(root: Path, tmp_path: Path) -> None:
    tree, git_dir = linked(root)
    (git_dir / "gitdir").write_text(f"{tree / '.git'}\n")
    (tmp_path / "link").symlink_to(root.parent)

    for folder in (root, tree):
        found = list(work_trees(tmp_path / "link" / folder.name))
        assert sorted(os.path.realpath(each.git_dir) for each in found) == [str(root / ".git"), str(git_dir)]


def test_a_folder_outside_of_a_repository_has_no_work_trees(tmp_path: Path) -> None:
    assert list(work_trees(tmp_path)) == []


def test_with_too_many_work_trees_none_belongs_to_the_project_and_no_lock_is_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, git_dir = linked(root)
    (git_dir / "gitdir").write_text(f"{tree}/.git\n")
    folders = ProjectFolders(root)

    monkeypatch.setattr(git_layout, "MANY", 2)
    folders.refresh()
    assert [*folders.roots] == [root, tree]
    assert {path.parent for path, _ in git_locks(root)} == {root / ".git", git_dir}

    monkeypatch.setattr(git_layout, "MANY", 1)
    folders.refresh()
    assert [*folders.roots] == [root]
    assert list(git_locks(root)) == []
