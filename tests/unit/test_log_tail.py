"""The follower of a log: each case of its table, in one process and after a restart."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from yolo_supervisor.inventory import log_tail
from yolo_supervisor.inventory.log_tail import LogPosition, LogTail

START = datetime(2026, 1, 1, tzinfo=UTC)


class Log:
    """A log of numbered lines, one a second, and its follower."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tail = LogTail(path, None)

    def append(self, *numbers: int) -> None:
        with self.path.open("ab") as file:
            file.write(text(*numbers))

    def replace(self, *numbers: int) -> None:
        """Put another file under the same name, as a rotation does."""
        other = self.path.with_name("other")
        other.write_bytes(text(*numbers))
        other.rename(self.path)

    def overwrite(self, *numbers: int) -> None:
        """Write in place, with any size, as an editor may do."""
        self.path.write_bytes(text(*numbers))

    def restart(self) -> None:
        """Continue in another process, from the stored position."""
        position = self.tail.position
        stored = msgspec.json.encode(position)
        self.tail = LogTail(self.path, msgspec.json.decode(stored, type=LogPosition) if position else None)

    def new(self) -> list[int]:
        """The numbers of the lines that are read and no repeats."""
        return [number for line, number in self.read() if not self.tail.is_repeat(line, at(number))]

    def read(self) -> list[tuple[log_tail.LogLine, int]]:
        return [(line, int(line.data.split()[1])) for line in self.tail.read()]


def at(number: int) -> datetime:
    return START + timedelta(seconds=number)


def text(*numbers: int) -> bytes:
    return b"".join(f"line {number:04}\n".encode() for number in numbers)


@pytest.fixture(params=[False, True], ids=["same process", "restarted"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    """A log whose lines 1 to 6 were read, in one process or by one before."""
    made = Log(tmp_path / "log")
    assert made.new() == []
    made.append(1, 2, 3, 4, 5, 6)
    assert made.new() == [1, 2, 3, 4, 5, 6]
    if request.param:
        made.restart()
    return made


def test_grown(log: Log) -> None:
    assert log.new() == []
    log.append(7, 8)

    assert log.new() == [7, 8]
    assert log.new() == []


def test_missing(log: Log) -> None:
    log.path.unlink()
    assert log.new() == []
    log.append(7)

    assert log.new() == [7]


@pytest.mark.parametrize("change", [Log.replace, Log.overwrite])
def test_truncated_at_its_beginning(log: Log, change: Callable[..., None]) -> None:
    change(log, 4, 5, 6, 7, 8)

    assert log.new() == [7, 8]
    log.append(9)
    assert log.new() == [9]


@pytest.mark.parametrize("change", [Log.replace, Log.overwrite])
def test_replaced_by_a_rotation(log: Log, change: Callable[..., None]) -> None:
    change(log, 7, 8)

    assert log.new() == [7, 8]
    log.append(9)
    assert log.new() == [9]


@pytest.mark.parametrize("change", [Log.replace, Log.overwrite])
def test_replaced_by_an_edited_log(log: Log, change: Callable[..., None]) -> None:
    change(log, 2, 4, 5)

    assert log.new() == []
    log.append(7)
    assert log.new() == [7]


def test_emptied(log: Log) -> None:
    log.overwrite()
    assert log.new() == []
    log.append(7, 8)

    assert log.new() == [7, 8]


@pytest.mark.parametrize("change", [Log.replace, Log.overwrite])
def test_put_back(log: Log, change: Callable[..., None]) -> None:
    change(log, 1, 2, 3)

    assert log.new() == []
    log.append(7)
    assert log.new() == [7]


def test_positions_grow_in_every_case(log: Log) -> None:
    ends = [0]

    def read() -> None:
        ends.extend(line.end for line in log.tail.read())

    log.append(7)
    read()
    log.replace(8, 9)
    read()
    log.overwrite(9, 10)
    read()
    log.overwrite(9)
    read()
    log.append(11)
    read()

    assert len(ends) == 6
    assert ends == sorted(set(ends))


def test_lines_from_before_the_first_read_are_old(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.append(1, 2)
    first = [(number, line.old) for line, number in log.read()]
    log.append(3)

    assert first == [(1, True), (2, True)]
    assert [(number, line.old) for line, number in log.read()] == [(3, False)]


def test_the_first_read_begins_with_a_complete_line_near_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "READ_LIMIT", 25)
    log = Log(tmp_path / "log")
    log.append(*range(1, 100))

    assert log.new() == [98, 99]
    log.append(100)
    assert log.new() == [100]


def test_a_long_log_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_tail, "READ_LIMIT", 25)
    log = Log(tmp_path / "log")
    assert log.new() == []
    log.append(*range(5))
    parts = [log.new()]
    while log.tail.behind:
        parts.append(log.new())

    assert parts == [[0, 1], [2, 3], [4]]


def test_a_half_written_line_is_read_when_it_is_complete(log: Log) -> None:
    with log.path.open("ab") as file:
        file.write(b"line 00")
    assert log.new() == []
    with log.path.open("ab") as file:
        file.write(b"07\n")

    assert log.new() == [7]


def test_a_repeat_is_recognised_by_its_time_and_of_the_newest_second_by_its_content(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    assert log.new() == []
    log.append(1, 2, 3)
    assert [log.tail.is_repeat(line, at(0)) for line, _ in log.read()] == [False] * 3
    log.overwrite(2, 4)

    assert [log.tail.is_repeat(line, at(0)) for line, _ in log.read()] == [True, False]


def test_a_line_without_a_time_is_no_repeat(log: Log) -> None:
    log.overwrite(2, 4)

    assert [log.tail.is_repeat(line, None) for line, _ in log.read()] == [False, False]


def test_a_special_file_has_no_lines(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)

    assert [LogTail(path, None).read() for path in (folder, pipe, tmp_path / "no\0file")] == [[], [], []]
