"""The checksum file beside a critical file: written for other programs, never believed, and ignored by git."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from support.project import new_store
from yolo_supervisor.actions.state import SaveSnapshot
from yolo_supervisor.fs.read import digest
from yolo_supervisor.store import checksums
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.store import Store

SOUND = b'{"status":"running"}'


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    result = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )  # fmt: skip
    return result.stdout


def repository(folder: Path) -> Path:
    """A repository with one commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    (folder / "README").write_text("x\n")
    git(folder, "add", "README")
    git(folder, "commit", "-qm", "x")
    return folder.resolve()


@pytest.fixture
def document(project: Path) -> Path:
    path = project / ".yolo-planning" / ".execution-state.json"
    path.write_bytes(SOUND)
    return path


def side(document: Path) -> Path:
    return document.with_name(document.name + ".sha256")


# -- one checksum file --------------------------------------------------------------------------------------------


def test_a_checksum_file_is_the_digest_in_hex_as_the_plugin_writes_it(document: Path) -> None:
    checksums.refresh(Disk(), document, str(digest(SOUND)), make=True)

    written = side(document).read_bytes()
    assert written == hashlib.sha256(SOUND).hexdigest().encode()


def test_a_missing_checksum_file_is_made_only_on_request(document: Path) -> None:
    checksums.refresh(Disk(), document, "0" * 64, make=False)

    assert not side(document).exists()


def test_a_stale_checksum_file_is_updated(document: Path) -> None:
    side(document).write_text("0" * 64)

    checksums.refresh(Disk(), document, "1" * 64, make=False)

    assert side(document).read_text() == "1" * 64


def test_a_right_checksum_file_is_not_written_again(document: Path) -> None:
    side(document).write_text("1" * 64)
    os.utime(side(document), ns=(0, 0))

    checksums.refresh(Disk(), document, "1" * 64, make=True)

    assert side(document).stat().st_mtime_ns == 0


def _link(path: Path) -> None:
    (path.parent / "precious").write_bytes(b"precious")
    path.symlink_to("precious")


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link": _link,
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_other_files_beside_checksum_files_are_ignored(document: Path, kind: str) -> None:
    UNUSABLE[kind](side(document))
    before = side(document).lstat()

    checksums.refresh(Disk(), document, "1" * 64, make=True)

    assert side(document).lstat() == before
    assert {path.read_bytes() for path in document.parent.glob("precious")} <= {b"precious"}


# -- good versions and their checksum files ------------------------------------------------------------------------


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    with closing(Store(project)) as opened:
        opened.open()
        yield opened


def test_a_good_version_gets_a_checksum_file(store: Store, document: Path) -> None:
    store.keep(document, SOUND)

    assert side(document).read_text() == digest(SOUND)


def test_below_the_planning_folder_itself_no_checksum_files_are_made(store: Store, project: Path) -> None:
    (folder := project / ".yolo-planning" / ".contracts").mkdir()
    (folder / "1-1.json").write_bytes(b"{}")

    store.keep(folder / "1-1.json", b"{}")

    assert [path.name for path in folder.iterdir()] == ["1-1.json"]
    assert [*store.versions(folder / "1-1.json")] == [b"{}"]


# -- ignored by git -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "below", [".", "sub", "a/b c/d", "app/[id]", "#x", "!y", "st*r", "back\\slash", "größe", "tail "]
)
def test_git_status_stays_clean_wherever_in_the_repository_the_project_is(tmp_path: Path, below: str) -> None:
    root = repository(tmp_path / "repo")
    project = (root / below).resolve()
    (project / ".yolo-planning").mkdir(parents=True)
    (document := project / ".yolo-planning" / "STATE.md").write_bytes(b"# State\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "y")

    with closing(Store(project)) as store:
        store.open()
        store.keep(document, b"# State\n")

    assert git(root, "status", "--porcelain", "-uall") == ""
    assert document.read_bytes() == b"# State\n"


def test_in_a_linked_work_tree_the_list_of_the_repository_itself_is_used(tmp_path: Path) -> None:
    root = repository(tmp_path / "repo")
    git(root, "worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    project = (tmp_path / "tree").resolve()
    (project / ".yolo-planning").mkdir()
    (document := project / ".yolo-planning" / "config.json").write_bytes(b"{}")
    git(project, "add", "-A")
    git(project, "commit", "-qm", "y")

    with closing(Store(project)) as store:
        store.open()
        store.keep(document, b"{}")

    assert side(document).exists()
    assert git(project, "status", "--porcelain", "-uall") == ""
    assert b".yolo-planning/*.sha256" in (root / ".git" / "info" / "exclude").read_bytes()


def test_a_submodules_exclude_list_is_used(tmp_path: Path) -> None:
    root, other = repository(tmp_path / "repo"), repository(tmp_path / "other")
    git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "sub")
    git(root, "commit", "-qm", "y")
    project = root / "sub"
    (project / ".yolo-planning").mkdir()

    assert checksums.hide(Disk(), project)

    (project / ".yolo-planning" / "config.json.sha256").write_text("0" * 64)
    assert git(project, "status", "--porcelain", "-uall") == ""
    assert git(root, "status", "--porcelain", "-uall") == ""


@pytest.mark.parametrize("before", [None, b"", b"*.log", b"*.log\n", b"\xff\r\n# mine", b"# a\n\n"])
def test_the_other_bytes_of_gits_exclude_file_are_kept(tmp_path: Path, before: bytes | None) -> None:
    root = repository(tmp_path / "repo")
    exclude = root / ".git" / "info" / "exclude"
    exclude.unlink(missing_ok=True)
    if before is None:
        exclude.parent.rmdir()
    else:
        exclude.write_bytes(before)

    assert checksums.hide(Disk(), root)
    once = exclude.read_bytes()
    assert checksums.hide(Disk(), root)

    assert exclude.read_bytes() == once
    assert once.startswith(before or b"")
    added = once[len(before or b"") :].lstrip(b"\n").splitlines()
    assert b".yolo-planning/*.sha256" in added
    assert all(line.startswith(b".yolo-planning/") for line in added)


def test_checksum_files_work_without_git(tmp_path: Path) -> None:
    (project := tmp_path / "plain").mkdir()

    assert checksums.hide(Disk(), project)
    assert list(project.iterdir()) == []


def _git_is_a_link_to_nowhere(git_: Path) -> None:
    git_.symlink_to("/nowhere/at/all")


def _exclude_is_a_link(git_: Path) -> None:
    (git_ / "info").mkdir(parents=True)
    (git_.parent / "precious").write_bytes(b"precious")
    (git_ / "info" / "exclude").symlink_to(git_.parent / "precious")


def _git_is_junk(git_: Path) -> None:
    git_.write_bytes(b"gitdir: \xff\0")


@pytest.mark.parametrize("spoil", [_git_is_a_link_to_nowhere, _exclude_is_a_link, _git_is_junk])
def test_no_checksum_files_are_made_if_git_cannot_ignore_them(
    project: Path, document: Path, spoil: Callable[[Path], None]
) -> None:
    new_store(project)
    spoil(project / ".git")

    with closing(Store(project)) as store:
        store.open()
        store.keep(document, SOUND)
        assert store.good(document) == digest(SOUND)

    assert not side(document).exists()
    assert {path.read_bytes() for path in project.glob("precious")} <= {b"precious"}


def test_a_project_whose_folder_has_a_line_break_in_its_name_gets_no_checksum_files(tmp_path: Path) -> None:
    project = repository(tmp_path / "two\nlines") / "a\nb"
    (project / ".yolo-planning").mkdir(parents=True)
    before = (project.parent / ".git" / "info" / "exclude").read_bytes()

    assert not checksums.hide(Disk(), project)
    assert (project.parent / ".git" / "info" / "exclude").read_bytes() == before


def test_temporary_files_left_by_a_crash_are_excluded_from_git(tmp_path: Path) -> None:
    project = repository(tmp_path / "repo")
    (project / ".yolo-planning" / ".locks").mkdir(parents=True)

    assert checksums.hide(Disk(), project)
    for name in (".config.json.412.tmp", ".locks/.r.lease.412.tmp", "..execution-state.json.412.tmp"):
        (project / ".yolo-planning" / name).write_bytes(b"{half")

    assert git(project, "status", "--porcelain", "-uall") == ""


def test_the_folder_of_snapshots_is_made_out_of_sight_of_git(tmp_path: Path) -> None:
    project = repository(tmp_path / "repo")
    (project / ".yolo-planning").mkdir()
    path = project / ".yolo-planning" / ".snapshots" / "5-20261122T205510.json"

    with closing(Store(project)) as store:
        store.open()
        assert store.commit(SaveSnapshot(key="5", path=path, expected_digest=None, data=SOUND, reason="new"), "test")

    assert path.read_bytes() == SOUND
    assert git(project, "status", "--porcelain", "-uall") == ""
