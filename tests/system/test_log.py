"""The log's own file: bounded, for the user alone, and never a reason for the supervisor to stop."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from support.cli import Cli
from support.daemon import QUICK, StartDaemon
from support.processes import Children
from support.team import Team
from support.wait import LIMIT_S
from yolo_supervisor import log

SIZE = 4 * 2**20


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """The log file of this process, made by its first line."""
    file = tmp_path / "own.log"
    log.configure("json", file)
    yield file
    structlog.reset_defaults()


def say(word: str) -> None:
    structlog.get_logger().info(word)


def events_in(path: Path) -> list[str]:
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def test_the_log_goes_to_the_file_and_not_to_stderr_and_is_for_the_user_alone(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0)
    try:
        say("first")
    finally:
        os.umask(before)
    say("second")

    assert events_in(path) == ["first", "second"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert capfd.readouterr().err == ""


def test_a_full_file_becomes_the_older_one_and_together_they_stay_within_the_bound(path: Path) -> None:
    older = path.with_name("own.log.1")
    for number in range(25):
        say(f"{number} " + "x" * (SIZE // 10))
        assert path.stat().st_size <= SIZE

    assert older.stat().st_size <= SIZE
    assert [line.split()[0] for line in events_in(older) + events_in(path)] == [str(n) for n in range(9, 25)]
    assert older.stat().st_mode & 0o777 == 0o600


def test_not_even_a_line_without_end_breaks_the_bound(path: Path) -> None:
    say("before")
    for _ in range(2):
        say("x" * 2 * SIZE)
    say("after")

    assert events_in(path) == ["after"]
    assert path.with_name("own.log.1").stat().st_size == SIZE


def test_a_file_that_was_there_is_gone_on_with(path: Path) -> None:
    path.write_text('{"event": "of the last run"}\n')

    say("of this one")

    assert events_in(path) == ["of the last run", "of this one"]


@pytest.mark.parametrize("moved", [True, False], ids=["moved by logrotate", "deleted"])
def test_a_removed_log_file_is_created_again(path: Path, moved: bool) -> None:
    say("before")
    if moved:
        path.rename(path.with_name("rotated"))
    else:
        path.unlink()

    say("after")

    assert events_in(path) == ["after"]
    if moved:
        assert events_in(path.with_name("rotated")) == ["before"]


@pytest.mark.parametrize("what", ["symlink", "fifo", "fifo that is read", "folder", "missing"])
def test_the_log_falls_back_to_stderr_and_reports_the_reason_once(
    what: str, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if what == "symlink":
        path.symlink_to(victim)
    elif what.startswith("fifo"):
        os.mkfifo(path)
        if "read" in what:
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            request.addfinalizer(lambda: os.close(reader))
    elif what == "folder":
        path.mkdir()
    else:
        log.configure("json", path := tmp_path / "nowhere" / "log")

    say("first")
    say("second")

    why, *lines = capfd.readouterr().err.splitlines()
    assert f"{path} cannot be written" in why
    assert [json.loads(line)["event"] for line in lines] == ["first", "second"]
    assert victim.read_text() == "precious"


def test_a_link_that_replaces_the_log_later_is_not_followed(
    path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    say("before")
    path.unlink()
    path.symlink_to(victim)

    say("meanwhile")
    path.unlink()
    say("after")

    assert "meanwhile" in capfd.readouterr().err
    assert (victim.read_text(), events_in(path)) == ("precious", ["after"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk on which there is room for 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_on_a_full_disk_a_whole_line_goes_to_stderr_and_the_file_ends_with_a_whole_one(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = small_disk / "log"
    log.configure("json", path)
    try:
        say("before")
        (small_disk / "filler").write_bytes(bytes(58 * 1024))
        say("x" * 8000)
        assert [line[:13] for line in capfd.readouterr().err.splitlines()[1:]] == ['{"event": "xx']
        assert events_in(path) == ["before"]

        (small_disk / "filler").unlink()
        say("after")
    finally:
        structlog.reset_defaults()

    assert events_in(path) == ["before", "after"]
    assert capfd.readouterr().err == ""


# -- the daemon ----------------------------------------------------------------------------------------------------


def test_run_writes_its_log_into_the_file_that_it_is_given(team: Team, daemon: StartDaemon, tmp_path: Path) -> None:
    path = tmp_path / "file.log"
    team.running = daemon("--log-file", str(path), config=QUICK)

    team.assert_heals()

    team.running.wait(lambda: "requeued" in events_in(path), "the log to have it")
    assert team.running.stop() == 0
    assert team.running.log.read_text() == ""


def test_the_configuration_names_the_file_too(team: Team, claude_home: Path, daemon: StartDaemon) -> None:
    config = claude_home.parent / ".config" / "yolo-supervisor" / "supervisor.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[log]\nfile = "~/file.log"\n')
    team.running = daemon(config=QUICK)

    team.assert_heals()

    team.running.wait(lambda: "requeued" in events_in(claude_home.parent / "file.log"), "the log to have it")


def test_a_file_that_is_no_whole_path_is_refused(cli: Cli, project: Path) -> None:
    (project / ".yolo-planning" / "supervisor.toml").write_text('[log]\nfile = "log"\n')

    refused = cli("check")

    assert (refused.returncode, "supervisor.toml:2: 'log.file'" in refused.stderr) == (78, True)


def test_with_a_full_disk_for_the_log_agents_are_healed_and_the_log_goes_to_stderr(
    small_disk: Path, team: Team, daemon: StartDaemon
) -> None:
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    team.running = daemon("--log-file", str(small_disk / "log"), config=QUICK)

    team.assert_heals()

    team.running.wait(lambda: '"requeued"' in team.running.log.read_text(), "stderr to report it")
    assert (small_disk / "log").read_text() == ""


# -- an unread log --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import structlog
from yolo_supervisor.log import configure

configure("json")
for number in range(5000):
    structlog.get_logger().info("line", number=number, padding="x" * int(sys.argv[1]))
print("written", flush=True)
while sys.stdin.readline():
    structlog.get_logger().info("again")
    print("written", flush=True)
"""


@pytest.fixture(params=["a pipe", "a terminal"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """The two ends: one to read from, one to write to."""
    reader, writer = os.pipe() if request.param == "a pipe" else pty.openpty()
    yield reader, writer
    os.close(reader)


def drain(fd: int, enough: Callable[[bytes], bool]) -> bytes:
    output = b""
    while not enough(output):
        assert select.select([fd], [], [], LIMIT_S)[0], output[-1000:]
        output += os.read(fd, 65536)
    return output


@pytest.mark.parametrize("width", [10, 9000])
def test_an_unread_log_blocks_nothing_and_reports_lost_lines_later(
    ends: tuple[int, int], children: Children, width: int
) -> None:
    reader, writer = ends
    command = [sys.executable, "-c", PROGRAM, str(width)]
    child = children.start(*command, stderr=writer, stdin=subprocess.PIPE)
    os.close(writer)
    assert child.stdin is not None
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], LIMIT_S)[0], "it waits for a reader"
    output = drain(reader, lambda _: not select.select([reader], [], [], 0)[0])
    child.stdin.write(b"\n")
    child.stdin.flush()
    output += drain(reader, lambda output: b'"again"' in output)

    lines = [line for line in output.decode().replace("\r\n", "\n").split("\n") if line]
    whole = [json.loads(line) for line in lines if line.endswith("}")]
    assert [each["event"] for each in whole][-2:] == ["log_lost", "again"]
    losses = [each["lines"] for each in whole if each["event"] == "log_lost"]  # a terminal may have room in between
    written = sum(each["event"] == "line" for each in whole)
    assert 5000 <= written + sum(losses) <= 5000 + len(losses)  # the end of a line may be missing, no more
