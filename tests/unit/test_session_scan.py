"""The look for processes of a session, on a process table that is made up: what cannot be read is unknown."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from yolo_supervisor.launch import Facts
from yolo_supervisor.system import session_scan

HERE = "linux:" + "a" * 32 + ":pid:[4026531836]"
CLIENT = ["claude", "--resume", "s"]
ELSEWHERE = os.geteuid() + 1


class Table:
    """Processes by pid; what is an error is raised. An argv that is a list of lists is another one at each reading."""

    def __init__(self, pid: int = 7, comm: str = "claude", owner: int | None = None) -> None:
        self.pid = pid
        self.known: Facts | OSError | None = Facts(started=5, zombie=False, comm=comm)
        self.uid = os.geteuid() if owner is None else owner
        self.home: str | None = ""
        self.words: list[Sequence[str] | OSError] = [CLIENT]

    def pids(self) -> list[int]:
        return [self.pid]

    def facts(self, pid: int) -> Facts | None:
        if isinstance(self.known, OSError):
            raise self.known
        return self.known if pid == self.pid else None

    def owner(self, pid: int) -> int:
        return self.uid

    def argv(self, pid: int) -> list[str]:
        words = self.words.pop(0) if len(self.words) > 1 else self.words[0]
        if isinstance(words, OSError):
            raise words
        return list(words)

    def environment(self, pid: int) -> dict[str, str]:
        if self.home is None:
            raise denied()
        return {"HOME": "/h", "CLAUDE_CONFIG_DIR": self.home} if self.home else {"HOME": "/h"}

    def same_start(self, started: int, text: str) -> bool:
        return str(started) == text


def look(table: Table, home: Path | None = None) -> tuple[dict[int, int], bool]:
    seen = session_scan.look("s", "dev@t", "t", [str(home)] if home else [], table, HERE)
    return seen.processes, seen.unknown


def denied() -> OSError:
    return OSError(errno.EACCES, "denied")


def test_a_client_is_seen() -> None:
    assert look(Table()) == ({7: 5}, False)


def test_a_program_that_is_being_started_is_read_again() -> None:
    table = Table(comm="python3")
    table.words = [[], [""], [], CLIENT]
    assert look(table) == ({7: 5}, False)


def test_a_command_line_that_stays_empty_is_unknown_if_it_may_be_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_scan, "EXEC_S", 0.0)
    for comm, unknown in (("claude", True), ("2.1.332", True), ("node", True), ("sh", True), ("kworker/0:1", False)):
        table = Table(comm=comm)
        table.words = [[]]
        assert look(table) == ({}, unknown), comm


def test_an_unreadable_process_is_unknown_if_it_may_be_a_client() -> None:
    for comm, owner, unknown in (
        ("claude", None, True), ("claude", ELSEWHERE, True), ("node", None, True), ("node", ELSEWHERE, False),
        ("postgres", None, False),
    ):  # fmt: skip
        table = Table(comm=comm, owner=owner)
        table.words = [denied()]
        assert look(table) == ({}, unknown), comm


def test_a_teammate_of_another_home_is_another(tmp_path: Path) -> None:
    table = Table()
    table.words = [["x", "--agent-id", "dev@t", "--team-name", "t"]]
    for home, seen in ((str(tmp_path), {7: 5}), ("/elsewhere", {}), ("", {}), (None, {7: 5})):
        table.home = home
        assert look(table, tmp_path) == (seen, False)
    assert look(table) == ({7: 5}, False)


def test_a_process_that_ends_is_none() -> None:
    table = Table()
    table.words = [[]]
    table.known = Facts(started=5, zombie=False, comm="claude", ending=True)
    assert look(table) == ({}, False)


def test_a_hidden_process_is_unknown_if_it_is_this_users() -> None:
    table = Table()
    table.known = denied()
    assert look(table) == ({}, True)
    table.uid = ELSEWHERE
    assert look(table) == ({}, False)


def test_another_users_client_counts_by_its_command_line() -> None:
    assert look(Table(owner=ELSEWHERE)) == ({7: 5}, False)


def test_a_tmux_server_is_no_process_of_its_first_session() -> None:
    assert look(Table(comm="tmux: server")) == ({}, False)


def test_a_key_of_a_process_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    key = tmp_path / "sessions" / "7.abc.key"
    table = Table(comm="postgres")
    for words, started, domain, unknown in (
        (["x"], "5", HERE, False),
        (denied(), "5", HERE, True),
        (denied(), "4", HERE, False),
        (denied(), "5", "linux:" + "b" * 32 + ":pid:[4026531836]", False),
    ):
        key.write_text(f'{{"peerToken": "x", "procStart": "{started}", "pidDomain": "{domain}"}}')
        table.words = [words]
        assert look(table, tmp_path) == ({}, unknown)


def test_a_folder_that_cannot_be_listed_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> list[str]:
        raise denied()

    assert look(Table(pid=8), tmp_path) == ({8: 5}, False), "a home without sessions"
    monkeypatch.setattr(os, "listdir", refuse)
    assert look(Table(pid=8), tmp_path)[1]


def test_a_damaged_roster_is_unknown_while_the_daemon_lives(tmp_path: Path) -> None:
    table = Table()
    table.words = [["claude", "daemon", "run"]]
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "roster.json").write_text("{")
    (tmp_path / "daemon.lock").write_text('{"pid": 7, "procStart": "5"}')
    assert look(table, tmp_path) == ({}, True)
    (tmp_path / "daemon.lock").write_text('{"pid": 7, "procStart": "4"}')
    assert look(table, tmp_path) == ({}, False)
    (tmp_path / "daemon.lock").write_text("{")
    assert look(table, tmp_path) == ({}, True)
