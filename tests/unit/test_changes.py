"""Looks at folders: the cost depends on the changes, and no change is missed for longer than promised."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.fs import changes
from yolo_supervisor.fs.changes import EVERY, DirectoryScanner

OLD_NS = 10**18
"""A time so long ago that no later write falls into the same tick of the time stamp."""


def is_json(name: str) -> bool:
    return name.endswith(".json")


def age(path: Path, by_ns: int = 0) -> None:
    os.utime(path, ns=(OLD_NS + by_ns, OLD_NS + by_ns))


def write(path: Path, text: str, by_ns: int = 0) -> None:
    """Write the file in place, as the client does."""
    new = not path.exists()
    path.write_text(text)
    age(path, by_ns)
    age(path.parent, by_ns if new else path.parent.stat().st_mtime_ns - OLD_NS)


def replace(path: Path, text: str, by_ns: int = 0) -> None:
    path.with_suffix(".tmp").write_text(text)
    age(path.with_suffix(".tmp"), by_ns)
    path.with_suffix(".tmp").rename(path)
    age(path.parent, by_ns)


@pytest.fixture
def looked(tmp_path: Path) -> DirectoryScanner:
    """A folder with three files, of which nothing is new any more."""
    for name in ("1.json", "2.json", "3.json", "other"):
        write(tmp_path / name, "a")
    found = DirectoryScanner(tmp_path, is_json)
    assert sorted(found.look()) == ["1.json", "2.json", "3.json"]
    return found


def test_an_unchanged_folder_reports_nothing(looked: DirectoryScanner) -> None:
    assert looked.look() == []


def test_new_and_removed_files_are_reported(looked: DirectoryScanner, tmp_path: Path) -> None:
    write(tmp_path / "4.json", "a")
    (tmp_path / "1.json").unlink()
    age(tmp_path, 1)

    assert sorted(looked.look(quiet=0)) == ["1.json", "4.json"]
    assert looked.look() == []


def test_a_replaced_file_is_reported_at_once(looked: DirectoryScanner, tmp_path: Path) -> None:
    replace(tmp_path / "2.json", "b", by_ns=1)

    assert looked.look(quiet=0) == ["2.json"]


def test_a_file_written_in_place_is_reported_when_the_folder_changed(looked: DirectoryScanner, tmp_path: Path) -> None:
    write(tmp_path / "2.json", "b", by_ns=1)
    (tmp_path / "2.json.lock").mkdir()  # as the client does
    (tmp_path / "2.json.lock").rmdir()
    age(tmp_path, 1)

    assert looked.look(quiet=0) == ["2.json"]


def test_a_file_written_in_place_is_reported_in_its_turn(looked: DirectoryScanner, tmp_path: Path) -> None:
    write(tmp_path / "2.json", "b", by_ns=1)

    found = [looked.look(quiet=1) for _ in range(3)]

    assert sorted(found) == [[], [], ["2.json"]]


def test_a_close_look_at_a_file_reports_its_change_at_once(looked: DirectoryScanner, tmp_path: Path) -> None:
    write(tmp_path / "2.json", "b", by_ns=1)

    assert looked.look(["2.json"], quiet=0) == ["2.json"]


def test_a_recently_written_file_is_reported_again(looked: DirectoryScanner, tmp_path: Path) -> None:
    (tmp_path / "2.json").write_text("b")
    assert looked.look() == ["2.json"]

    assert looked.look(quiet=0) == ["2.json"]


def test_unwanted_files_are_never_reported(looked: DirectoryScanner, tmp_path: Path) -> None:
    write(tmp_path / "other", "b", by_ns=1)
    write(tmp_path / "another", "a")
    age(tmp_path, 1)

    assert looked.look() == []


def test_all_files_of_a_folder_that_is_gone_are_gone_and_are_new_when_it_is_back(
    looked: DirectoryScanner, tmp_path: Path
) -> None:
    tmp_path.rename(away := tmp_path.with_name("away"))
    assert sorted(looked.look()) == ["1.json", "2.json", "3.json"]

    away.rename(tmp_path)
    assert sorted(looked.look()) == ["1.json", "2.json", "3.json"]


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(
    looked: DirectoryScanner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(path)

    age(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(PermissionError):
            looked.look()

    assert looked.look() == []


def remove(path: Path, _: str, by_ns: int) -> None:
    path.unlink(missing_ok=True)
    age(path.parent, by_ns)


CHANGES: list[Callable[[Path, str, int], None]] = [write, replace, remove]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(CHANGES), st.integers(0, 4)), max_size=40))
def test_the_reports_are_complete_after_a_full_scan(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, Callable[[Path, str, int], None], int]]
) -> None:
    path = tmp_path_factory.mktemp("folder")
    found, known = DirectoryScanner(path, is_json), dict[str, str]()

    def learn(names: list[str]) -> None:
        for name in names:
            known.pop(name, None)
            if (path / name).exists():
                known[name] = (path / name).read_text()

    for now_ns, (number, change, quiet) in enumerate(changes, 1):
        change(path / f"{number}.json", str(now_ns), now_ns)
        if quiet:
            learn(found.look(quiet=quiet - 1))
    learn(found.look(quiet=EVERY))

    assert {each.name: each.read_text() for each in path.glob("*.json")} == known


def test_a_look_at_many_files_takes_a_portion_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(changes.QUIET * 2):
        write(tmp_path / f"{number}.json", "a")
    found = DirectoryScanner(tmp_path, is_json)
    found.look()
    looked_at: list[str] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path: looked_at.append(path) or real(path))

    found.look()

    assert len(looked_at) == changes.QUIET + 1
