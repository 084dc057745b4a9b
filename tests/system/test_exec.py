"""``exec`` passes everything through to the command, and ends its process tree at the time limit."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cli import PROGRAM
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.store.history import history
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

EXEC = (*PROGRAM, "exec")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")

SHORT = ("--timeout", "0.6")
"""A limit that passes only after the command has started its children."""

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def gone(pid: int) -> bool:
    return Processes(backend()).identify(pid) is None


def pids(path: Path) -> list[int]:
    return [int(word) for word in path.read_text().split()]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run ``exec`` with these arguments, without a terminal."""

    def call(*argv: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return plain(*EXEC, *argv, **options)

    def plain(*command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "start_new_session": True, **options}
        if not {"stdout", "stderr"} & options.keys():
            options["capture_output"] = True
        done = subprocess.run(command, timeout=2 * LIMIT_S, **options)
        assert b"Traceback" not in (done.stderr or b""), done.stderr.decode()
        return done

    return call


def with_and_without(tmp_path: Path, *command: str, **options: Any) -> tuple[bytes, bytes]:
    """The results of the command called directly, and through ``exec``."""
    options = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "start_new_session": True, **options}
    itself, through = (
        subprocess.run([*before, *command], stdout=subprocess.PIPE, check=True, timeout=LIMIT_S, **options).stdout
        for before in ((), (*EXEC, "--"))
    )
    return itself, through


def report(done: subprocess.CompletedProcess[bytes]) -> Any:
    """The document of ``--json``."""
    return json.loads(done.stderr.splitlines()[-1])


def entries(project: Path) -> list[dict[str, Any]]:
    return history(project / ".yolo-planning" / ".supervisor" / "journal.jsonl")


# -- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 124, 255])
def test_exit_code_is_the_commands(run: Run, code: int) -> None:
    assert run("--", "sh", "-c", f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_death_by_signal_gives_the_exit_code_of_shells(run: Run, number: int) -> None:
    assert run("--", "sh", "-c", f"kill -{int(number)} $$").returncode == 128 + number


def test_exit_code_survives_an_ignored_sigchld(tmp_path: Path) -> None:
    ignore = "import os, sys; from signal import *; signal(SIGCHLD, SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", ignore, *EXEC, "--timeout", "5", "--", "sh", "-c", "exit 7"]

    assert subprocess.run(command, cwd=tmp_path, timeout=LIMIT_S).returncode == 7


def test_missing_program_exits_with_127(run: Run) -> None:
    done = run("--", "there-is-no-such-program", "x")

    assert done.returncode == 127
    assert b"there-is-no-such-program: program not found" in done.stderr


def test_file_that_is_not_a_program_exits_with_126(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")

    assert [run("--", name).returncode for name in ("./notes.txt", str(tmp_path))] == [126, 126]


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--"], ["--timeout", "3"]])
def test_missing_command_is_a_usage_error(run: Run, argv: list[str]) -> None:
    assert run(*argv).returncode == 2


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_invalid_limit_is_a_usage_error_and_nothing_is_run(run: Run, tmp_path: Path, value: str) -> None:
    done = run(f"--timeout={value}", "--", "touch", "ran")

    assert done.returncode == 2
    assert b"--timeout" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", ["-1", "often"])
def test_invalid_number_of_retries_is_a_usage_error(run: Run, tmp_path: Path, value: str) -> None:
    assert run(f"--retries={value}", "--", "touch", "ran").returncode == 2
    assert not (tmp_path / "ran").exists()


def test_misspelt_option_is_not_run_as_a_command(run: Run) -> None:
    done = run("--tiemout", "5", "--", "true")

    assert done.returncode == 2
    assert b"--timeout" in done.stderr, "the nearest known name is suggested"


@pytest.mark.parametrize("separator", [["--"], []])
def test_arguments_after_the_command_are_passed_to_it(run: Run, separator: list[str]) -> None:
    argv = [
        "--json",
        "--timeout",
        "5",
        "--",
        "-h",
        "--help",
        "--version",
        "hook",
        "commit",
        "--project",
        "",
        "a b",
        "*",
    ]

    done = run(*separator, "printf", "%s\\n", *argv)

    assert done.stdout.decode().splitlines() == argv


def test_arguments_that_are_not_text_are_passed_unchanged(run: Run) -> None:
    assert run("--", "printf", "%s", os.fsdecode(b"\xff\xfe")).stdout == b"\xff\xfe"


def test_arguments_that_are_not_text_are_printed_escaped(run: Run) -> None:
    odd = os.fsdecode(b"\xff\033[2J")

    slow, missing = run(*SHORT, "--", "sh", "-c", "sleep 60", odd), run("--", odd)

    assert (slow.returncode, missing.returncode) == (124, 127)
    assert b"\033" not in slow.stderr + missing.stderr, "it must not drive the reader's terminal"


# -- transparency -------------------------------------------------------------------------------------------------


def test_output_is_passed_byte_for_byte(run: Run, tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(noise := os.urandom(3_000_000))

    done = run("--", "sh", "-c", "cat noise; cat noise >&2")

    assert done.stdout == done.stderr == noise


def test_input_is_passed_byte_for_byte(run: Run) -> None:
    noise = os.urandom(3_000_000)

    assert run("--", "cat", stdin=None, input=noise).stdout == noise


def test_output_is_passed_without_delay(tmp_path: Path) -> None:
    command = [*EXEC, "--", "sh", "-c", "echo name?; read name; echo hello $name"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"name?\n"
        child.stdin.write(b"dev\n")
        child.stdin.close()
        assert child.stdout.readline() == b"hello dev\n"


def test_closed_output_ends_the_command(tmp_path: Path) -> None:
    with subprocess.Popen([*EXEC, "--", "yes"], stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()

        assert child.wait(LIMIT_S) == 128 + signal.SIGPIPE


def test_memory_does_not_grow_with_the_output(tmp_path: Path) -> None:
    with subprocess.Popen([*EXEC, "--", "yes"], stdout=subprocess.PIPE, cwd=tmp_path) as child:
        assert child.stdout is not None
        passed = 0
        while passed < 200_000_000:
            passed += len(os.read(child.stdout.fileno(), 1 << 20))

        assert psutil.Process(child.pid).memory_info().rss < 60_000_000
        child.send_signal(signal.SIGTERM)


def test_environment_is_inherited(tmp_path: Path) -> None:
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    for environment in (
        ours,
        {**ours, "LC_CTYPE": "C"},
        {**ours, "LC_ALL": "C"},
        {**ours, "ODD": os.fsdecode(b"\xff\n=")},
    ):
        itself, through = with_and_without(tmp_path, shutil.which("env") or "env", "-0", env=environment)

        assert sorted(itself.split(b"\0")) == sorted(through.split(b"\0"))


def test_working_folder_is_inherited_with_any_project(run: Run, project: Path, tmp_path: Path) -> None:
    (here := tmp_path / "here").mkdir()

    assert run("--project", str(project), "--", "pwd", cwd=here).stdout.decode().strip() == str(here.resolve())


@LINUX
def test_only_inherited_descriptors_are_passed(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given to the command")
    fd = os.open(tmp_path / "given", os.O_RDONLY)
    try:
        itself, through = with_and_without(tmp_path, "ls", "/proc/self/fd", pass_fds=[fd])
        assert itself == through
        assert str(fd).encode() in through.split()
    finally:
        os.close(fd)


def test_descriptor_opened_by_the_shell_is_passed(tmp_path: Path) -> None:
    line = f"{shlex.join(EXEC)} -- cat <(echo one) <(echo two)"

    done = subprocess.run(["bash", "-c", line], capture_output=True, cwd=tmp_path, timeout=LIMIT_S)

    assert done.stdout == b"one\ntwo\n"


def test_command_runs_with_closed_standard_streams(tmp_path: Path) -> None:
    line = f"{shlex.join([*EXEC, '--', 'sh', '-c', 'touch ran; exit 7'])} <&- >&- 2>&-"

    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=LIMIT_S).returncode == 7
    assert (tmp_path / "ran").exists()


@LINUX
@pytest.mark.parametrize("ignored", ["HUP", "INT QUIT", "TERM USR1"])
def test_ignored_signals_stay_ignored(tmp_path: Path, ignored: str) -> None:
    ask = ("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
    line = f"trap '' {ignored}; exec {shlex.join(ask)}"
    itself = subprocess.run(["sh", "-c", line], capture_output=True, check=True, cwd=tmp_path).stdout
    through = subprocess.run(
        ["sh", "-c", line.replace("exec ", f"exec {shlex.join(EXEC)} -- ")],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    ).stdout

    assert itself == through


# -- the limit --------------------------------------------------------------------------------------------------------

TREES = {
    "the command": "echo $$ >> pids; exec sleep 60",
    "a child": "echo $$ >> pids; sleep 60 & echo $! >> pids; wait",
    "a grandchild": "echo $$ >> pids; sh -c 'echo $$ >> pids; sleep 60 & echo $! >> pids; wait' & wait",
    "one in a separate session": "echo $$ >> pids; setsid sh -c 'echo $$ >> pids; exec sleep 60' & wait",
    "a stopped one": "echo $$ >> pids; sleep 60 & echo $! >> pids; kill -STOP $!; wait",
    "itself stopped": "echo $$ >> pids; kill -STOP $$; sleep 60",
    "many": "for i in $(seq 64); do sleep 60 & echo $! >> pids; done; wait",
    "one started on the way out": "trap 'sleep 60 & echo $! >> pids; exit' TERM; echo $$ >> pids; sleep 60 & wait",
}  # fmt: skip
ORPHANS = {
    "an orphan": "echo $$ >> pids; (sleep 60 & echo $! >> pids); sleep 60",
    "an orphan in a separate session": "(setsid sh -c 'echo $$ >> pids; exec sleep 60' &); sleep 60",
    "an orphan's child": "(setsid sh -c 'sleep 60 & echo $$ $! >> pids; wait' &); sleep 60",
    "an orphan started on the way out":
        "trap 'setsid sh -c \"echo \\$\\$ >> pids; exec sleep 60\" & exit' TERM; echo $$ >> pids; sleep 60 & wait",
    "the orphans of another exec": f"{shlex.join(EXEC)} -- sh -c '(setsid sleep 60 & echo $! >> pids); sleep 60'",
}  # fmt: skip


Ended = dict[str, tuple[int, list[int]]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The exit code at the limit and the started processes of each program, all run at once.

    On a busy machine one may not have come to its processes at the limit: it is run again, with a longer one.
    """
    folders = {what: tmp_path_factory.mktemp("tree") for what in (*TREES, *ORPHANS)}
    found: Ended = {}
    limit_s = 1.5
    while left := {what: program for what, program in {**TREES, **ORPHANS}.items() if what not in found}:
        running = {
            what: subprocess.Popen(
                [*EXEC, "--timeout", str(limit_s), "--", "sh", "-c", program],
                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folders[what], start_new_session=True,
            )
            for what, program in left.items()
        }  # fmt: skip
        codes = {what: child.wait(LIMIT_S) for what, child in running.items()}
        found |= {what: (code, pids(file)) for what, code in codes.items() if (file := folders[what] / "pids").exists()}
        limit_s *= 4
    return found


@pytest.mark.sampled(1)
@pytest.mark.parametrize("what", TREES)
def test_process_tree_is_ended_at_the_limit(ended: Ended, what: str) -> None:
    code, started = ended[what]

    assert code == 124
    assert [pid for pid in started if not gone(pid)] == []


@pytest.mark.sampled(1)
@LINUX
@pytest.mark.parametrize("what", ORPHANS)
def test_orphans_are_ended_at_the_limit(ended: Ended, what: str) -> None:
    code, started = ended[what]

    assert code == 124
    assert [pid for pid in started if not gone(pid)] == []


def test_doubling_process_tree_is_ended(run: Run, tmp_path: Path) -> None:
    fork = "import os, time; [os.fork() for _ in range(6)]; open('pids', 'a').write(f'{os.getpid()} '); time.sleep(60)"

    assert run("--timeout", "1.5", "--", sys.executable, "-c", fork).returncode == 124

    assert len(pids(tmp_path / "pids")) == 64
    assert all(gone(pid) for pid in pids(tmp_path / "pids"))


FLEEING = """
import os, time
if os.fork():
    time.sleep(60)
until = time.monotonic() + 600
while time.monotonic() < until:
    if os.fork():
        os._exit(0)
    os.setsid()
    time.sleep(0.1)
"""


@LINUX
def test_process_that_keeps_forking_is_ended(children: Children) -> None:
    child = children.start(*EXEC, *SHORT, "--", sys.executable, "-c", FLEEING, start_new_session=True)

    assert child.wait(LIMIT_S) == 124

    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    output = child.stdout  # ends once the killed processes are gone; without kills they would fork for ten minutes
    wait_until(lambda: output.read() == b"", "the output to be closed")


FORKING = """
import os, sys, time
for _ in range(2):
    if os.fork() == 0:
        if sys.argv[1] == "in another session":
            os.setsid()
        until = time.monotonic() + 600
        while time.monotonic() < until:
            if os.fork():
                os._exit(0)
            if sys.argv[1] == "in ever new sessions":
                os.setsid()
time.sleep(600)
"""


@pytest.mark.sampled(1)
@LINUX
@pytest.mark.parametrize("where", ["in its session", "in another session", "in ever new sessions"])
def test_processes_that_fork_and_exit_at_once_are_ended(children: Children, where: str) -> None:
    command = (*EXEC, *SHORT, "--", sys.executable, "-c", FORKING, where)
    child = children.start(*command, start_new_session=True, stderr=subprocess.STDOUT)

    assert child.wait(LIMIT_S) == 124

    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    output, message = child.stdout, bytearray()
    wait_until(lambda: (part := output.read()) == b"" or message.extend(part or b""), "the output to be closed")
    counts = re.findall(rb"(\d+) (?:terminated|killed)", message)
    assert sum(map(int, counts)) >= 3, "those that fled count, too"
    assert b"still running" not in message


NAMED_TMUX = """
import os, time
def named(name, life):
    if os.fork() == 0:
        os.setsid()
        open("/proc/self/comm", "w").write(name)
        open("pids", "a").write(f"{os.getpid()} ")
        life()
        time.sleep(60)
named("tmux: server", lambda: named("other", lambda: None))
time.sleep(60)
"""


@LINUX
def test_process_that_calls_itself_tmux_is_ended_with_its_children(run: Run, tmp_path: Path) -> None:
    assert run("--timeout", "1.5", "--", sys.executable, "-c", NAMED_TMUX).returncode == 124

    started = pids(tmp_path / "pids")
    assert len(started) == 2
    assert [pid for pid in started if not gone(pid)] == []


def test_stopped_command_is_continued_to_exit(run: Run) -> None:
    done = run(*SHORT, "--", "sh", "-c", "trap 'echo tidied up; exit' TERM; kill -STOP $$; sleep 60")

    assert done.stdout == b"tidied up\n"


@pytest.mark.thorough
def test_only_processes_that_ignore_sigterm_are_killed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "deaf").write_text("trap '' TERM; echo $$ >> pids; while :; do read x < pipe; done")
    os.mkfifo(tmp_path / "pipe")

    done = run(*SHORT, "--", "sh", "-c", "sh deaf & setsid sh deaf & trap 'echo tidied up; exit' TERM; sleep 60 & wait")

    assert done.returncode == 124
    assert done.stdout == b"tidied up\n"
    assert b"2 killed" in done.stderr
    assert len(pids(tmp_path / "pids")) == 2
    assert all(gone(pid) for pid in pids(tmp_path / "pids"))


def test_background_process_survives_a_command_that_ends_in_time(run: Run, tmp_path: Path) -> None:
    program = "sleep 60 & echo $! >> pids; setsid sleep 60 & echo $! >> pids"

    assert run("--", "sh", "-c", program, stdout=subprocess.DEVNULL).returncode == 0

    left = pids(tmp_path / "pids")
    assert len(left) == 2
    assert not any(gone(pid) for pid in left)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def test_children_of_the_shell_that_became_exec_are_not_ended(tmp_path: Path) -> None:
    line = f"sleep 60 & echo $! > server; exec {shlex.join([*EXEC, *SHORT, '--', 'sleep', '60'])}"

    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=LIMIT_S).returncode == 124

    (server,) = pids(tmp_path / "server")
    assert not gone(server)
    os.kill(server, signal.SIGKILL)


@LINUX
def test_orphans_are_ended_although_the_shell_that_became_exec_has_children(tmp_path: Path) -> None:
    orphan = "(setsid sh -c 'echo $$ > orphan; exec sleep 60' &); sleep 60"
    line = f"sleep 60 & echo $! > server; exec {shlex.join([*EXEC, '--timeout', '1.5', '--', 'sh', '-c', orphan])}"

    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=LIMIT_S).returncode == 124

    (server,), (orphaned,) = pids(tmp_path / "server"), pids(tmp_path / "orphan")
    assert gone(orphaned)
    assert not gone(server)
    os.kill(server, signal.SIGKILL)


@LINUX
def test_orphans_of_those_children_are_not_ended(tmp_path: Path) -> None:
    server = "sleep 0.2; setsid sh -c 'echo $$ > worker; exec sleep 60' &"
    line = f"({server}) & exec {shlex.join([*EXEC, *SHORT, '--', 'sleep', '60'])}"

    assert subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=LIMIT_S).returncode == 124

    (worker,) = pids(tmp_path / "worker")
    assert not gone(worker)
    os.kill(worker, signal.SIGKILL)


def test_command_can_wait_for_the_end_of_its_daemon(run: Run) -> None:
    stop = "(sleep 60 & echo $! > pid); kill $(cat pid); while kill -0 $(cat pid) 2>/dev/null; do sleep 0.02; done"

    assert run("--timeout", "10", "--", "sh", "-c", f"{stop}; echo stopped").stdout == b"stopped\n"


def test_command_just_below_its_limit_is_not_ended(run: Run) -> None:
    done = run("--timeout", "20", "--json", "--", "sh", "-c", "sleep 0.3; exit 3")

    assert report(done)["attempts"][0]["timed_out"] is False
    assert done.returncode == 3


def test_tmux_server_of_the_command_is_not_ended(run: Run, tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    tmux = ["tmux", "-f", "/dev/null", "-S", str(tmp_path / "socket")]
    pane = "echo $$ > pane; exec sleep 60"

    try:
        done = run(*SHORT, "--", "sh", "-c", f"{shlex.join([*tmux, 'new', '-d', pane])}; sleep 60")
        assert done.returncode == 124
        assert not gone(*pids(tmp_path / "pane"))
        server = subprocess.run([*tmux, "display", "-p", "#{pid}"], check=True, capture_output=True).stdout.strip()
        assert b"still running: %s\n" % server in done.stderr
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


# -- retries ----------------------------------------------------------------------------------------------------------


def test_timeout_is_not_retried_by_default(run: Run, tmp_path: Path) -> None:
    assert run(*SHORT, "--", "sh", "-c", "echo run >> runs; sleep 60").returncode == 124

    assert (tmp_path / "runs").read_text() == "run\n"


@pytest.mark.thorough
def test_time_in_which_it_is_stopped_with_its_command_does_not_count(children: Children, tmp_path: Path) -> None:
    limit_s, pause_s = 4.0, 5.0
    started = tmp_path / "started"
    child = children.start(*EXEC, "--timeout", str(limit_s), "--", "sh", "-c", f"touch {started}; sleep 600")
    begun_s = time.monotonic()
    wait_until(started.exists, "the command to start")

    child.send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    wait_until(lambda: time.monotonic() > stopped_s + pause_s, "the limit to pass")
    child.send_signal(signal.SIGCONT)
    went_on_s = time.monotonic()

    assert child.wait(LIMIT_S) == 124
    assert time.monotonic() - went_on_s >= limit_s - (stopped_s - begun_s)


def test_retry_after_a_timeout_has_twice_the_limit(run: Run, tmp_path: Path) -> None:
    done = run("--timeout", "0.3", "--retries", "1", "--json", "--", "sh", "-c", "echo run >> runs; sleep 60")

    first, second = report(done)["attempts"]
    assert done.returncode == report(done)["exit"] == 124
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert (first["timeout_s"], second["timeout_s"]) == (0.3, 0.6)
    assert [(attempt["exit"], attempt["timed_out"]) for attempt in (first, second)] == [(None, True), (None, True)]
    assert first["duration_s"] >= 0.3
    assert second["duration_s"] >= 0.6


def test_second_attempt_may_succeed(run: Run) -> None:
    done = run(*SHORT, "--retries", "5", "--json", "--", "sh", "-c", "test -e been && exit 5; touch been; sleep 60")

    assert done.returncode == report(done)["exit"] == 5
    assert [(attempt["exit"], attempt["timed_out"]) for attempt in report(done)["attempts"]] == [
        (None, True),
        (5, False),
    ]


def test_failure_is_not_retried(run: Run, tmp_path: Path) -> None:
    done = run("--retries", "3", "--json", "--", "sh", "-c", "echo run >> runs; kill -TERM $$")

    assert (done.returncode, report(done)["exit"], len(report(done)["attempts"])) == (143, 143, 1)
    assert (tmp_path / "runs").read_text() == "run\n"


def test_json_report_is_written_to_stderr(run: Run) -> None:
    done = run("--json", "--", "sh", "-c", "echo '{\"mine\": 1}'; echo hm >&2")

    assert done.stdout == b'{"mine": 1}\n'
    assert done.stderr.startswith(b"hm\n")
    assert report(done)["exit"] == 0


# -- signals ----------------------------------------------------------------------------------------------------------

WAIT = "while :; do sleep 0.05; done"


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2"])
def test_signal_is_forwarded(children: Children, name: str) -> None:
    program = f"trap 'exit 41' {name}; echo ready; {WAIT}"
    child = children.start(*EXEC, "--", "sh", "-c", program, start_new_session=True)
    said(child, b"ready")

    child.send_signal(signal.Signals[f"SIG{name}"])

    assert child.wait(LIMIT_S) == 41


def said(child: subprocess.Popen[bytes], text: bytes) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == text + b"\n"


def test_forwarded_signal_gives_the_exit_code_of_shells(children: Children) -> None:
    child = children.start(*EXEC, "--", "sh", "-c", "echo ready; exec sleep 60", start_new_session=True)
    said(child, b"ready")

    child.terminate()

    assert child.wait(LIMIT_S) == 128 + signal.SIGTERM


def test_repeated_signals_are_forwarded(children: Children) -> None:
    program = f"n=0; trap 'n=$((n+1)); echo $n' INT; trap 'exit $n' TERM; echo ready; {WAIT}"
    child = children.start(*EXEC, "--", "sh", "-c", program, start_new_session=True)
    said(child, b"ready")

    for count in (b"1", b"2", b"3"):
        child.send_signal(signal.SIGINT)
        said(child, count)
    child.terminate()

    assert child.wait(LIMIT_S) == 3


def test_hangup_under_nohup_is_ignored(children: Children, tmp_path: Path) -> None:
    program = "echo ready; until [ -e leave ]; do sleep 0.02; done; exit 5"
    child = children.start("sh", "-c", f"trap '' HUP; exec {shlex.join(EXEC)} -- sh -c '{program}'")
    said(child, b"ready")

    child.send_signal(signal.SIGHUP)
    (tmp_path / "leave").touch()

    assert child.wait(LIMIT_S) == 5


def test_signal_during_the_ending_cancels_the_retry(children: Children, tmp_path: Path) -> None:
    slow = "trap 'echo asked' TERM; echo run >> runs; until [ -e leave ]; do sleep 0.02; done"
    child = children.start(*EXEC, *SHORT, "--retries", "3", "--", "sh", "-c", slow, start_new_session=True)
    said(child, b"asked")

    child.terminate()
    (tmp_path / "leave").touch()

    assert child.wait(LIMIT_S) == 124
    assert (tmp_path / "runs").read_text() == "run\n"


class Terminal:
    """A pseudo-terminal in which a command was started."""

    def __init__(self, folder: Path, *command: str) -> None:
        self._status: int | None = None
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(folder)
                os.execv(command[0], command)
            finally:
                os._exit(99)
        os.set_blocking(self._fd, False)
        self.screen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def shows(self, text: bytes) -> None:
        wait_until(lambda: text in self._look(), f"{text!r} on the screen")

    def code(self) -> int:
        """The exit code of the command."""
        wait_until(self._over, "the command to end")
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def close(self) -> None:
        if not self._over():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def _over(self) -> bool:
        self._look()  # a process cannot exit while its output does not fit into the terminal
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def _look(self) -> bytes:
        with contextlib.suppress(OSError):
            self.screen += os.read(self._fd, 65536)
        return self.screen


Call = Callable[..., Terminal]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Call]:
    """Run ``exec`` with these arguments in a terminal."""
    called: list[Terminal] = []

    def call(*argv: str) -> Terminal:
        called.append(Terminal(tmp_path, *EXEC, *argv))
        return called[-1]

    yield call
    for terminal in called:
        terminal.close()


COUNT = """
import signal, sys
caught = 0
def catch(*_):
    global caught
    caught += 1
    print("caught", caught, flush=True)
signal.signal(signal.SIGINT, catch)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(40 + caught))
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_ctrl_c_reaches_the_command_once(terminal: Call) -> None:
    at = terminal("--", sys.executable, "-c", COUNT)
    at.shows(b"ready")

    for count in range(1, 9):
        at.type(b"\x03")
        at.shows(b"caught %d" % count)
    os.kill(at.pid, signal.SIGUSR1)  # forwarded after all earlier signals

    assert at.code() == 48


@pytest.mark.parametrize(("key", "number"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_key_that_ends_the_command_gives_its_exit_code(terminal: Call, key: bytes, number: int) -> None:
    at = terminal("--", "sh", "-c", "echo ready; exec sleep 60")
    at.shows(b"ready")

    at.type(key)

    assert at.code() == 128 + number


def test_ctrl_c_reaches_a_command_in_another_group(terminal: Call) -> None:
    at = terminal("--", "setsid", "--wait", sys.executable, "-c", COUNT)
    at.shows(b"ready")

    at.type(b"\x03")
    at.shows(b"caught 1")
    os.kill(at.pid, signal.SIGUSR1)

    assert at.code() == 41


def test_command_has_the_terminal(terminal: Call) -> None:
    at = terminal("--", "sh", "-c", "test -t 0 && test -t 1 && echo name? && read name && echo hello $name")
    at.shows(b"name?")

    at.type(b"dev\n")

    at.shows(b"hello dev")
    assert at.code() == 0


def cmdline(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def test_job_control_of_a_shell_works(terminal: Call) -> None:
    if (shell := shutil.which("bash")) is None:
        pytest.skip("there is no bash here")
    at = terminal("--timeout", "60", "--", shell, "--norc", "-i")

    at.type(b"PS1=; sleep 60; echo $((6 * 7))$?\n")
    wait_until(lambda: any(cmdline(p) == ["sleep", "60"] for p in psutil.Process(at.pid).children(True)), "the job")
    at.type(b"\x03")
    at.type(b"echo $((6 * 7))-$?; exit 6\n")

    at.shows(b"42-130")
    assert at.code() == 6


# -- exec inside exec ---------------------------------------------------------------------------------------------


def test_nested_exec_changes_nothing(run: Run) -> None:
    done = run("--", *EXEC, "--", *EXEC, "--", "sh", "-c", "cat; exit 9", stdin=None, input=b"through")

    assert (done.returncode, done.stdout) == (9, b"through")


def test_nested_exec_has_a_separate_limit(run: Run) -> None:
    done = run("--json", "--", *EXEC, *SHORT, "--", "sleep", "60")

    assert done.returncode == 124
    assert report(done)["attempts"][0] == {**report(done)["attempts"][0], "exit": 124, "timed_out": False}


# -- a project's configuration ------------------------------------------------------------------------------------


def limit_s(run: Run, *argv: str, **options: Any) -> float:
    done = report(run("--json", *argv, "--", "true", **options))["attempts"][0]["timeout_s"]
    assert isinstance(done, float)
    return done


def test_limit_comes_from_the_plugins_configuration(run: Run, project: Path) -> None:
    (project / ".yolo-planning" / "config.json").write_text('{"command_timeout_ms": 90500}')
    (inside := project / "src" / "lib").mkdir(parents=True)

    assert limit_s(run, cwd=inside) == 90.5
    assert limit_s(run, "--project", str(project)) == 90.5
    assert limit_s(run, "--timeout", "3", cwd=project) == 3.0


def test_default_limit_is_30_seconds(run: Run) -> None:
    assert limit_s(run) == 30.0


@pytest.mark.parametrize(
    "said", ["{", "[]", '{"command_timeout_ms": "soon"}', '{"command_timeout_ms": -1}', "\ufeff{}\0"]
)
def test_invalid_configured_limit_is_ignored(run: Run, project: Path, said: str) -> None:
    (project / ".yolo-planning" / "config.json").write_text(said)

    assert limit_s(run, cwd=project) == 30.0


def test_unreadable_configuration_does_not_stop_the_command(run: Run, project: Path) -> None:
    config = project / ".yolo-planning" / "config.json"
    os.mkfifo(config)
    assert limit_s(run, cwd=project) == 30.0
    config.unlink()
    config.mkdir()
    assert limit_s(run, cwd=project) == 30.0


@given(st.binary() | st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists).map(
    lambda value: json.dumps({"command_timeout_ms": value}).encode()
))  # fmt: skip
def test_configured_limit_is_bounded(config: bytes) -> None:
    assert 1.0 <= plugin_config.command_limit_s(config) <= 86400.0


@given(st.integers(1000, 3_600_000))
def test_valid_configured_limit_is_used(limit_ms: int) -> None:
    assert plugin_config.command_limit_s(b'{"command_timeout_ms": %d}' % limit_ms) == limit_ms / 1000


# -- the journal ------------------------------------------------------------------------------------------------------


def test_timeout_is_journaled(run: Run, project: Path) -> None:
    argv = ["sh", "-c", "echo $$ > pids; sleep 60 & echo $! >> pids; wait"]

    assert run(*SHORT, "--", *argv, cwd=project).returncode == 124

    (entry,) = entries(project)
    done = {key: entry[key] for key in ("kind", "key", "action", "by", "project")}
    evidence = {key: entry["evidence"][key] for key in ("command", "limit_s", "terminated", "killed", "survived")}
    assert done == {"kind": "command", "key": "sh", "action": "terminated", "by": "cli", "project": str(project)}
    assert evidence == {"command": argv, "limit_s": 0.6, "terminated": 2, "killed": 0, "survived": 0}
    assert sorted(entry["evidence"]["pids"]) == sorted(pids(project / "pids"))


def test_timeout_of_each_attempt_is_journaled(run: Run, project: Path) -> None:
    run("--timeout", "0.2", "--retries", "1", "--", "sleep", "60", cwd=project)

    assert [entry["evidence"]["limit_s"] for entry in entries(project)] == [0.2, 0.4]


def test_command_that_ends_in_time_is_not_journaled(run: Run, project: Path) -> None:
    run("--", "false", cwd=project)

    assert list((project / ".yolo-planning").iterdir()) == []


def test_nothing_is_written_outside_a_project(run: Run, tmp_path: Path) -> None:
    assert run(*SHORT, "--", "sleep", "60").returncode == 124

    assert list(tmp_path.iterdir()) == []


def in_the_way(folder: Path) -> None:
    folder.write_text("a file where our folder is to be")


def elsewhere(folder: Path) -> None:
    folder.symlink_to(folder.parent.parent)


def no_journal(folder: Path) -> None:
    (folder / "journal.jsonl").mkdir(parents=True)


def garbage(folder: Path) -> None:
    folder.mkdir()
    (folder / "journal.jsonl").write_bytes(os.urandom(4096))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("spoil", [in_the_way, elsewhere, no_journal, garbage])
def test_damaged_journal_does_not_change_the_exit_code(run: Run, project: Path, spoil: Callable[[Path], None]) -> None:
    spoil(project / ".yolo-planning" / ".supervisor")

    done = run("--timeout", "0.2", "--json", "--", "sleep", "60", cwd=project)

    assert done.returncode == report(done)["exit"] == 124


def test_full_disk_does_not_change_the_exit_code(run: Run, project: Path) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    done = run("--timeout", "0.2", "--json", "--", "sleep", "60", cwd=project, preexec_fn=full)

    assert done.returncode == report(done)["exit"] == 124
    assert b"cannot write the journal" in done.stderr


def test_locked_journal_does_not_change_the_exit_code(run: Run, project: Path) -> None:
    run("--timeout", "0.2", "--", "sleep", "60", cwd=project)
    with (project / ".yolo-planning" / ".supervisor" / "store.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        done = run("--timeout", "0.2", "--", "sleep", "60", cwd=project)

    assert done.returncode == 124
    assert b"cannot write the journal" in done.stderr


# -- commands of the daemon -----------------------------------------------------------------------------------------


async def test_twenty_concurrent_commands_get_their_results() -> None:
    results: dict[int, subprocesses.Result] = {}

    async def one(number: int) -> None:
        program = f"i=0; while [ $i -lt 200 ]; do echo {number}; i=$((i+1)); done; exit {number}"
        results[number] = await subprocesses.run(["sh", "-c", program], LIMIT_S)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number)

    assert results == {n: subprocesses.Result(n, f"{n}\n".encode() * 200, b"") for n in range(20)}


async def test_process_trees_of_concurrent_commands_are_ended_at_the_limit(tmp_path: Path) -> None:
    async def one(program: str, folder: Path) -> None:
        folder.mkdir()
        result = await subprocesses.run(["sh", "-c", program], 1.0, folder=folder, grace_s=1.0)
        assert result.exit is None
        assert [pid for pid in pids(folder / "pids") if not gone(pid)] == []

    async with anyio.create_task_group() as tasks:
        for number, program in enumerate(TREES.values()):
            tasks.start_soon(one, program, tmp_path / str(number))


async def test_twenty_cancelled_commands_are_ended_with_their_trees(tmp_path: Path) -> None:
    program = "setsid sh -c 'echo $$ >> pids; exec sleep 60' & echo $$ >> pids; trap '' TERM; wait"
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(subprocesses.run, ["sh", "-c", program], 10 * LIMIT_S, None, tmp_path)
        with anyio.fail_after(LIMIT_S):
            while not (tmp_path / "pids").exists() or len(pids(tmp_path / "pids")) < 40:
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()

    assert all(gone(pid) for pid in pids(tmp_path / "pids"))
