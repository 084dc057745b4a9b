"""The launcher: it becomes the agent's client, if no other process runs the session."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.processes import Children
from support.wait import wait_until
from yolo_supervisor.formats.launch import Launch, resume_argv, start_of
from yolo_supervisor.formats.start import Start
from yolo_supervisor.inventory.session_processes import OneLook, Visible, visible
from yolo_supervisor.launch import LIVE, NO_FILE, NO_FOLDER, NO_PROGRAM, UNUSABLE, WRONG_PLACE, domain
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.starts import remove_stale_starts, write_start
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

SESSION = str(uuid.uuid4())
"""Of no other process that runs tests beside this one."""
TEAM = f"t-{SESSION[:8]}"
DEV = f"dev@{TEAM}"
STUB = """#!/bin/sh
printf '%s\\n' ready "$@"
pwd
env
grep SigIgn /proc/$$/status
read line
"""
"""A client that says how it was started, and waits."""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    started = Children(tmp_path)
    yield started
    started.end()


class Place:
    """A folder with a client, and a launcher for it."""

    def __init__(self, folder: Path, children: Children) -> None:
        self.folder, self.children = folder, children
        self.home, self.starts, self.work = folder / "home", folder / "starts", folder / "work"
        for each in (self.home / "sessions", self.starts, self.work, folder / "bin"):
            each.mkdir(parents=True)
        self.lock = folder / "state" / "s.lock"
        self.client = folder / "bin" / "claude"
        self.client.write_text(STUB)
        self.client.chmod(0o755)
        self.processes = Processes(backend())

    def launch(self, **changed: Any) -> Launch:
        known = {"argv": (str(self.client), "--model", "x"), "folder": str(self.work), "mode": "bypassPermissions"}
        return Launch(agent=DEV, name="dev", session=SESSION, claude_dir=str(self.home), **{**known, **changed})

    def start(self, launch: Launch | None = None, pane: str | None = None) -> Start:
        launch = launch or self.launch()
        argv = resume_argv(launch, "go on")
        assert isinstance(argv, tuple)
        return start_of(launch, argv, team=TEAM, homes=[], lock=str(self.lock), pane=pane)

    def write(self, start: Start | None = None) -> Path:
        return write_start(Disk(), self.starts, start or self.start())

    def run(self, document: Path, **environment: str) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("TMUX", "TMUX_PANE")}
        return self.children.start(
            sys.executable, "-I", "-m", "yolo_supervisor.launch", str(document), stdin=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**inherited, **environment},
        )  # fmt: skip

    def refusal(self, document: Path, **environment: str) -> tuple[int, str]:
        """The exit status of a launcher that starts nothing, and its sentence."""
        launcher = self.run(document, **environment)
        out, err = launcher.communicate()
        assert out == b""
        text = err.decode()
        assert text.count("\n") == 1, "one sentence"
        return launcher.returncode, text

    def started(self, document: Path, **environment: str) -> tuple[subprocess.Popen[bytes], list[str]]:
        """A launcher that has become the client, and what this says."""
        client = self.run(document, **environment)
        assert client.stdout is not None
        said = []
        while line := client.stdout.readline():
            said.append(os.fsdecode(line.removesuffix(b"\n")))
            if line.startswith(b"SigIgn"):
                return client, said
        assert client.stderr is not None
        raise AssertionError(client.stderr.read())

    def visible(self) -> Visible:
        return visible(SESSION, DEV, TEAM, [self.home], self.processes, self.lock)

    def session_file(self, pid: int, started: int, **changed: object) -> None:
        known = {"pid": pid, "sessionId": SESSION, "cwd": "/", "procStart": str(started), "pidDomain": domain()}
        (self.home / "sessions" / f"{pid}.json").write_text(json.dumps({**known, **changed}))


@pytest.fixture
def place(tmp_path: Path, children: Children) -> Place:
    return Place(tmp_path, children)


def started_at(place: Place, pid: int) -> int:
    facts = place.processes.backend.facts(pid)
    assert facts is not None
    return facts.started


# -- starts -----------------------------------------------------------------------------------------------------------


def test_the_launcher_becomes_the_client(place: Place) -> None:
    document = place.write()
    client, said = place.started(document)
    assert said[:6] == ["ready", "--model", "x", "--resume", SESSION, "go on"]
    assert said[6] == str(place.work)
    assert not document.exists()
    identity = place.processes.identify(client.pid)
    assert place.visible() == Visible(frozenset({identity} - {None}), False)  # type: ignore[arg-type]


def test_words_and_folders_may_hold_anything(place: Place) -> None:
    odd = "a 'b' \"c\" $d `e` \\ \udcff\n" + "x" * 100_000
    folder = place.work / "odd \udcfe\nfolder"
    folder.mkdir()
    launch = place.launch(argv=(str(place.client), "--append-system-prompt", odd), folder=str(folder))
    _, said = place.started(place.write(place.start(launch)))
    assert "\n".join(said).startswith(f"ready\n--append-system-prompt\n{odd}\n--resume\n{SESSION}\ngo on\n{folder}\n")


def test_the_environment_is_that_of_the_agent(place: Place) -> None:
    launch = place.launch(
        environment={"CLAUDE_CONFIG_DIR": "/c d", "PATH": os.environ["PATH"]}, absent=("LC_CTYPE", "TZ")
    )
    _, said = place.started(place.write(place.start(launch)), CLAUDE_CONFIG_DIR="/other", TZ="UTC", KEPT="1")
    assert {"CLAUDE_CONFIG_DIR=/c d", "KEPT=1", f"PWD={place.work}"} <= set(said)
    assert not [line for line in said if line.startswith(("TZ=", "LC_CTYPE="))]


def test_the_client_ignores_no_signal_that_python_does(place: Place) -> None:
    _, said = place.started(place.write())
    ignored = int(said[-1].split()[1], 16)
    assert not ignored >> (signal.SIGPIPE - 1) & 1
    assert not ignored >> (signal.SIGXFSZ - 1) & 1


def test_an_upgraded_client_is_found_on_the_path(place: Place) -> None:
    launch = place.launch(argv=(str(place.folder / "claude" / "versions" / "2.1.0"), "--model", "x"))
    client, said = place.started(place.write(place.start(launch)), PATH=f"{place.client.parent}:{os.environ['PATH']}")
    assert said[:4] == ["ready", "--model", "x", "--resume"]
    assert client.pid


@pytest.mark.parametrize("argv", [("node", "/gone/claude"), ("/gone/node", "/gone/claude-code/cli.js")])
def test_a_script_that_is_gone_is_found_on_the_path(place: Place, argv: tuple[str, ...]) -> None:
    launch = place.launch(argv=(*argv, "--model", "x"))
    _, said = place.started(place.write(place.start(launch)), PATH=f"{place.client.parent}:{os.environ['PATH']}")
    assert said[:4] == ["ready", "--model", "x", "--resume"]


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_without_a_program_there_is_one_sentence(place: Place) -> None:
    place.client.unlink()
    assert place.refusal(place.write(), PATH="/nowhere") == (
        NO_PROGRAM, f"yolo-supervisor: the agent's program {place.client} is gone, and claude is not on the PATH\n",
    )  # fmt: skip


def test_another_program_is_not_replaced_by_the_client(place: Place) -> None:
    launch = place.launch(argv=("/gone/agent", "--model", "x"))
    status, text = place.refusal(place.write(place.start(launch)), PATH=f"{place.client.parent}:{os.environ['PATH']}")
    assert (status, "/gone/agent" in text) == (NO_PROGRAM, True)


def test_a_program_that_cannot_be_started_is_named(place: Place) -> None:
    place.client.chmod(0o644)
    status, text = place.refusal(place.write())
    assert (status, "Permission denied" in text) == (UNUSABLE, True)


def test_without_its_folder_nothing_is_started(place: Place) -> None:
    start = place.start()
    shutil.rmtree(place.work)
    status, text = place.refusal(place.write(start))
    assert (status, str(place.work) in text) == (NO_FOLDER, True)


def test_in_another_pane_nothing_is_started(place: Place) -> None:
    assert place.refusal(place.write(place.start(pane="%7")), TMUX_PANE="%8")[0] == WRONG_PLACE
    place.started(place.write(place.start(pane="%7")), TMUX_PANE="%7")


def test_a_document_must_be_private_and_whole(place: Place) -> None:
    document = place.write()
    document.chmod(0o644)
    assert place.refusal(document)[0] == NO_FILE
    document.chmod(0o600)
    link = place.starts / "link"
    link.symlink_to(document)
    assert place.refusal(link)[0] == NO_FILE
    os.link(document, place.starts / "other")
    assert place.refusal(document)[0] == NO_FILE
    (place.starts / "other").unlink()
    assert document.exists(), "a document that is not taken is not removed"
    document.write_bytes(document.read_bytes()[:-9])
    assert place.refusal(document)[0] == NO_FILE
    assert place.refusal(document)[0] == NO_FILE
    assert not document.exists()


def test_a_document_starts_once(place: Place) -> None:
    document = place.write()
    client, _ = place.started(document)
    client.kill()
    client.wait()
    assert place.refusal(document)[0] == NO_FILE


# -- one process a session --------------------------------------------------------------------------------------------


def waiting(place: Place, *argv: str) -> subprocess.Popen[bytes]:
    """A process with these words on its command line."""
    environment = {**os.environ, "CLAUDE_CONFIG_DIR": str(place.home)}
    return place.children.start("/bin/sh", "-c", "read line", *argv, stdin=subprocess.PIPE, env=environment)


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (("claude", "--resume", SESSION), True),
        (("claude", f"--resume={SESSION}"), True),
        (("claude", "--resume", f"/h/projects/p/{SESSION}.jsonl"), True),
        (("claude", "-r", SESSION), True),
        (("claude", f"-r{SESSION}"), True),
        (("claude", "-pr", SESSION), True),
        (("claude", "--session-id", SESSION), True),
        (("x", "--agent-id", DEV, "--team-name", TEAM), True),
        (("claude", "--resume", SESSION, "--fork-session"), False),
        (("grep", "-r", SESSION), False),
        (("claude", "--resume", SESSION[:-1]), False),
        (("claude", "--resume"), False),
        (("x", "--agent-id", DEV, "--team-name", "other"), False),
        (("claude", SESSION), False),
    ],
)
def test_a_process_of_the_session_is_seen_by_its_command_line(place: Place, words: tuple[str, ...], seen: bool) -> None:
    other = waiting(place, *words)
    wait_until(lambda: words[-1] in place.processes.backend.argv(other.pid), "its command line")
    identity = place.processes.identify(other.pid)
    assert identity is not None
    assert place.visible() == Visible(frozenset({identity} if seen else ()), False)
    if seen:
        assert place.refusal(place.write())[0] == LIVE
        other.kill()
        wait_until(lambda: place.processes.identify(other.pid) is None, "its end")  # it is a zombie now
        assert place.visible() == Visible(frozenset(), False), "a zombie does not count"
        other.wait()
    place.started(place.write())


def test_a_process_of_the_session_is_seen_by_its_file(place: Place) -> None:
    other = waiting(place, "x")
    started = started_at(place, other.pid)
    identity = place.processes.identify(other.pid)
    place.session_file(other.pid, started)
    assert place.visible().processes == {identity}
    assert place.refusal(place.write())[0] == LIVE
    place.session_file(other.pid, started, pidDomain=None)
    assert place.visible().processes == {identity}, "of 2.1.197"
    place.session_file(other.pid, started - 1)
    assert place.visible() == Visible(frozenset(), False), "an earlier process with this pid"
    place.session_file(other.pid, started, sessionId="another")
    assert place.visible() == Visible(frozenset(), False)
    place.started(place.write())


def test_a_session_on_another_machine_or_in_a_container_is_unknown(place: Place) -> None:
    place.session_file(99, 1, pidDomain="linux:" + "0" * 32 + ":pid:[4026531836]")
    assert place.visible() == Visible(frozenset(), True)
    status, text = place.refusal(place.write())
    assert (status, "may run" in text) == (LIVE, True)


def test_a_torn_session_file_is_unknown_while_its_process_lives(place: Place) -> None:
    other = waiting(place, "x")
    (place.home / "sessions" / f"{other.pid}.json").write_text('{"pid":')
    assert place.visible() == Visible(frozenset(), True)
    other.kill()
    other.wait()
    assert place.visible() == Visible(frozenset(), False)


def daemon_files(place: Place, daemon: int, state: str, repl: int, started: int) -> None:
    for folder in ("daemon", "jobs/a"):
        (place.home / folder).mkdir(parents=True, exist_ok=True)
    lock = {"pid": daemon, "procStart": str(started_at(place, daemon))}
    worker = {"pid": 1, "procStart": "x", "sessionId": SESSION, "replPid": repl, "replProcStart": str(started)}
    (place.home / "daemon.lock").write_text(json.dumps(lock))
    (place.home / "daemon" / "roster.json").write_text(json.dumps({"workers": {"a": worker}}))
    job = {"state": state, "sessionId": SESSION, "resumeSessionId": SESSION}
    (place.home / "jobs" / "a" / "state.json").write_text(json.dumps(job))


def test_a_session_of_the_clients_own_daemon_is_seen(place: Place) -> None:
    daemon, repl = waiting(place, "claude", "daemon", "run"), waiting(place, "claude", "bg-spare")
    identity, started = place.processes.identify(repl.pid), started_at(place, repl.pid)
    daemon_files(place, daemon.pid, "running", repl.pid, started)
    assert place.visible() == Visible(frozenset({identity}), False)  # type: ignore[arg-type]
    repl.kill()
    repl.wait()
    for state, unknown in (("crashed", True), ("resuming", True), ("working", True), ("stopped", False), ("new", True)):
        daemon_files(place, daemon.pid, state, repl.pid, started)
        assert place.visible() == Visible(frozenset(), unknown), state
    daemon.kill()
    daemon.wait()
    assert place.visible() == Visible(frozenset(), False), "no daemon resumes it any more"


def test_a_held_lock_is_a_start_under_way(place: Place) -> None:
    place.lock.parent.mkdir()
    with place.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert place.visible() == Visible(frozenset(), True)
        status, text = place.refusal(place.write())
        assert (status, "under way" in text) == (LIVE, True)
    assert place.visible() == Visible(frozenset(), False)
    place.started(place.write())


def test_a_lock_that_is_a_link_starts_nothing(place: Place) -> None:
    place.lock.parent.mkdir()
    place.lock.symlink_to(place.folder / "elsewhere")
    assert place.refusal(place.write())[0] == LIVE
    assert not (place.folder / "elsewhere").exists()


RACERS = """
import os, sys, time
import yolo_supervisor.launch as launcher

for line in sys.stdin:
    documents = line.split()
    barrier, go = os.pipe()
    racers = []
    for document in documents:
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.read(barrier, 1)
            os.close(barrier)
            sys.argv = ["launch", document]
            try:
                launcher.main()
            except SystemExit as ended:
                os._exit(ended.code)
            os._exit(1)
        racers.append(pid)
    os.close(barrier)
    os.close(go)
    ends, clients = [], set()
    while len(clients) < len(racers):
        for pid in {*racers} - clients:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"\\0--resume\\0" in file.read():
                    clients.add(pid)
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            ends.append(os.waitstatus_to_exitcode(status))
            racers.remove(ended)
        else:
            time.sleep(0.001)
    print(len(clients), *ends, flush=True)
    for pid in clients:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
"""
"""Forks a launcher for each document of a line and lets them go at once; prints how many begin, and the other ends."""


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.thorough)])
def test_of_racing_launchers_one_starts(place: Place, rounds: int) -> None:
    code = ("/bin/sh", "-c", f"echo $$ >> {place.folder}/begun; exec 3<>{place.folder}/pipe; read line <&3", "claude")
    os.mkfifo(place.folder / "pipe")
    start = place.start(place.launch(argv=code))
    racers = place.children.start(sys.executable, "-c", RACERS, stdin=subprocess.PIPE)
    assert racers.stdin is not None
    assert racers.stdout is not None
    for _ in range(rounds):
        documents = [place.write(start) for _ in range(4)]
        racers.stdin.write(" ".join(map(str, documents)).encode() + b"\n")
        racers.stdin.flush()
        assert racers.stdout.readline().split() == [b"1", *[b"%d" % LIVE] * 3]
    begun = (place.folder / "begun").read_text().split()
    assert len(begun) == len(set(begun)) <= rounds


# -- documents that are left ------------------------------------------------------------------------------------------


def test_a_document_that_no_launcher_takes_is_removed(place: Place) -> None:
    new, old, future = place.write(), place.write(), place.write()
    now = time.time()
    os.utime(new, (now, now))
    os.utime(old, (now - 61, now - 61))
    os.utime(future, (now + 1e6, now + 1e6))
    remove_stale_starts(Disk(), place.starts, now, 60.0)
    assert list(place.starts.iterdir()) == [new]
    assert (new.stat().st_mode & 0o777) == 0o600


def test_looks_at_one_moment_share_the_process_table(place: Place) -> None:
    look = OneLook(place.processes)
    ask = partial(visible, team=TEAM, homes=[place.home], processes=place.processes, lock=place.lock, system=look)
    assert ask(SESSION, DEV) == Visible(frozenset(), False)
    other = waiting(place, "claude", "--resume", SESSION)
    wait_until(lambda: SESSION in place.processes.backend.argv(other.pid), "its command line")
    assert ask(SESSION, DEV) == Visible(frozenset(), False), "as it was"
    assert place.visible().processes == {place.processes.identify(other.pid)}
