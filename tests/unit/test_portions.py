"""Looks with a budget: small documents are read whole, larger ones in portions, each look after the one before."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from yolo_supervisor.fs import portions
from yolo_supervisor.fs.portions import FilePortions, FolderPortions
from yolo_supervisor.inventory.agents import PIDS_SIZE, AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes


def test_a_small_file_is_read_whole_by_each_look(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_bytes(b"1\n2\n3")
    file = FilePortions(path, 5)

    assert [file.next(), file.next()] == [b"1\n2\n3"] * 2
    path.write_bytes(b"4\n")
    assert file.next() == b"4\n"


def test_a_large_file_is_read_in_whole_lines_and_begins_again_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_bytes(b"".join(b"%d\n" % number for number in range(10, 20)))
    file = FilePortions(path, 13)

    assert [file.next() for _ in range(4)] == [
        b"10\n11\n12\n13\n",
        b"14\n15\n16\n17\n",
        b"18\n19\n",
        b"10\n11\n12\n13\n",
    ]


def test_a_line_without_an_end_does_not_stop_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_bytes(b"x" * 25 + b"\n7\n")
    file = FilePortions(path, 10)

    assert [file.next() for _ in range(3)] == [b"x" * 10, b"x" * 10, b"x" * 5 + b"\n7\n"]


def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    path.write_bytes(b"1\n" * 10)
    file = FilePortions(path, 8)
    file.next()

    path.write_bytes(b"5\n")

    assert [file.next(), file.next()] == [b"", b"5\n"]


def _link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, _link])
def test_a_path_without_a_file_yields_nothing(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "pids")

    assert FilePortions(tmp_path / "pids", 8).next() == b""


def test_a_large_folder_is_listed_over_several_looks_and_a_small_one_by_each(tmp_path: Path) -> None:
    names = [f"{number}" for number in range(10, 17)]
    for name in names:
        (tmp_path / name).touch()
    small = FolderPortions(tmp_path, 7)

    with closing(FolderPortions(tmp_path, 3)) as large:
        looks = [large.next() for _ in range(3)]
        assert [len(look) for look in looks] == [3, 3, 1]
        assert large.partial
        assert sorted(name for look in looks for name in look) == names
        assert len(large.next()) == 3
    assert [small.next(), small.next()] == [names, names]
    assert not small.partial


def test_a_look_at_a_slow_folder_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    monkeypatch.setattr(portions, "LOOK_LIMIT_S", -1)

    with closing(FolderPortions(tmp_path, 100)) as folder:
        assert sorted([*folder.next(), *folder.next(), *folder.next()]) == ["a", "b", "c"]


def test_a_missing_folder_has_no_names(tmp_path: Path) -> None:
    assert FolderPortions(tmp_path / "none", 3).next() == []


def test_a_look_at_a_list_of_very_many_pids_sees_a_part_and_the_next_one_goes_on(project: Path) -> None:
    processes = Processes(backend())
    registry = AgentRegistry(Paths(project), processes, ProcessScanner(processes), ())
    pids = range(2, 20_002)
    Paths(project).agent_pids.write_text("".join(f"{pid}\n" for pid in pids))

    looks = [registry.snapshot().listed_pids for _ in range(7)]

    assert max(map(len, looks)) <= PIDS_SIZE / 2
    assert [pid for look in looks for pid in look] == [*pids]
    again = registry.snapshot()
    assert again.listed_pids == looks[0]
    assert again.has_unknown_pids  # those of the next looks
