"""The session files of a home: thousands of killed sessions cost a look little, and no session that runs is missed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from yolo_supervisor.fs.changes import QUIET
from yolo_supervisor.inventory import session_files
from yolo_supervisor.inventory.activity import ActivityReader
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.session_files import SessionFolder
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes


def write(home: Path, pid: int, session: str, cwd: Path = Path("/work"), at_s: int = 1000) -> Path:
    """Write a session file in place; its time is long ago."""
    path = home / "sessions" / f"{pid}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"pid": pid, "sessionId": session, "cwd": str(cwd), "procStart": "1"}))
    os.utime(path, (at_s, at_s))
    os.utime(path.parent, (1000, 1000))
    return path


def look(folder: SessionFolder, *running: int) -> dict[int, str]:
    for _ in folder.read(frozenset(running)):
        pass
    return {file.session.pid: file.session.session_id for file in folder.files}


def test_one_file_is_read_in_each_step_and_an_interrupted_reading_goes_on(tmp_path: Path) -> None:
    for pid in range(10, 15):
        write(tmp_path, pid, "a")
    folder = SessionFolder(tmp_path)
    reading = folder.read(frozenset())
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    assert len(folder.files) == 1

    assert list(look(folder)) == [10, 11, 12, 13, 14]
    assert list(folder.read(frozenset())) == []


def test_a_file_that_is_removed_or_cannot_be_parsed_is_no_session(tmp_path: Path) -> None:
    paths = [write(tmp_path, pid, "a") for pid in (10, 11, 12)]
    folder = SessionFolder(tmp_path)
    assert list(look(folder)) == [10, 11, 12]

    paths[0].unlink()
    paths[1].write_text("{torn")

    assert list(look(folder)) == [12]
    write(tmp_path, 11, "b", at_s=2000)
    assert look(folder) == {11: "b", 12: "a"}


def test_of_many_files_those_of_running_processes_are_checked_in_each_look(tmp_path: Path) -> None:
    pids, running = range(1000, 1000 + QUIET + 50), range(1000, 1000 + QUIET + 50, 10)
    for pid in pids:
        write(tmp_path, pid, "a")
    folder = SessionFolder(tmp_path)
    look(folder)

    for pid in pids:
        write(tmp_path, pid, "b", at_s=2000)

    first = look(folder, *running)
    assert {first[pid] for pid in running} == {"b"}
    assert set(first.values()) == {"a", "b"}
    assert set(look(folder, *running).values()) == {"b"}


def test_a_folder_that_cannot_be_listed_keeps_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, "a")
    folder = SessionFolder(tmp_path)
    look(folder)

    def refuse(*_: object) -> None:
        raise PermissionError("not readable at present")

    monkeypatch.setattr(os, "stat", refuse)

    assert look(folder) == {10: "a"}


@pytest.fixture
def registry(project: Path, tmp_path: Path) -> AgentRegistry:
    processes = Processes(backend())
    return AgentRegistry(Paths(project), processes, ProcessScanner(processes), [tmp_path / "home"])


def test_a_snapshot_reads_no_session_file_again(
    registry: AgentRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    for pid in range(4_000_000, 4_000_020):
        write(tmp_path / "home", pid, f"s{pid}")
    assert len(list(registry.read_ahead())) == 20
    monkeypatch.setattr(session_files, "read_or_none", None)

    snapshot = registry.snapshot(ahead=True)

    assert (len(snapshot.session_files), snapshot.sessions) == (20, ())


def test_the_traces_of_sessions_are_read_once_in_a_look(registry: AgentRegistry, project: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    for pid in range(4_000_000, 4_000_003):
        write(tmp_path / "home", pid, f"s{pid}", project)
    write(tmp_path / "home", 4_000_003, "elsewhere")
    processes = Processes(backend())
    reader = ActivityReader(Paths(project), registry.folders, ProcessScanner(processes))
    snapshot = registry.snapshot()

    steps = [len(list(reader.read_sessions(snapshot))) for _ in range(2)]
    reader.renew()

    assert [*steps, len(list(reader.read_sessions(snapshot)))] == [3, 0, 3]
