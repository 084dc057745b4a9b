"""The worlds that tests live in: a scratch project, a scratch client's home, real children, a private tmux server, the
real daemon over a real team."""

from __future__ import annotations

import functools
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from warm import Warm
from yolo_supervisor.files import Disk
from yolo_supervisor.formats import supervisor
from yolo_supervisor.journal import history
from yolo_supervisor.kernel import kernel
from yolo_supervisor.processes import Processes
from yolo_supervisor.records import Agent, ProcessId, from_iso, iso
from yolo_supervisor.store import Paths, Store

PROGRAM = (sys.executable, "-m", "yolo_supervisor")
QUICK = """
[processes]
grace_s = 0.5
sample_s = 0.1
[agents]
interval_s = 0.3
[sessions]
interval_s = 0.1
detach_grace_s = 0.5
"""
"""The configuration of a daemon that is in a hurry."""

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
LIMIT_S = 30.0
"""No wait in a test is longer; none is expected to come near it."""


def wait_until(seen: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """What ``seen`` answers once it is truthy; the test fails with ``what`` if that never comes."""
    deadline = time.monotonic() + limit_s
    while not (found := seen()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.005)
    return found


def pytest_configure() -> None:
    """A shell without job control has its background jobs ignore these (so does nohup): what a test starts must not."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project that the plugin is used in."""
    folder = tmp_path / "project"
    (folder / ".yolo-planning").mkdir(parents=True)
    return folder.resolve()


@pytest.fixture
def claude_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client's state folder of our own: the real one is never looked at."""
    home = tmp_path / "home"
    (home / ".claude").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    for name in ("TMUX", "TMUX_PANE"):
        monkeypatch.delenv(name, raising=False)
    return home / ".claude"


EPOCH = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)


class FakeClock:
    """Both clocks: ``wait`` moves the two, ``jump`` only the one on the wall."""

    def __init__(self) -> None:
        self.wall = EPOCH
        self.s = 5000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.s

    def wait(self, s: float) -> None:
        self.s += s
        self.wall += timedelta(seconds=s)

    def jump(self, by: timedelta) -> None:
        self.wall += by


class QuickDisk(Disk):
    """The real disk without the flushing."""

    def sync(self, fd: int) -> None:
        pass


class Children:
    """Real processes that a test starts, and ends again whatever happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
        child = subprocess.Popen(argv, cwd=cwd or self._folder, **options)
        self._started.append(child)
        return child

    def python(self, program: str, *arguments: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """A Python child; returns when it has printed its first line, ``ready`` say."""
        child = self.start(sys.executable, "-c", program, *arguments, cwd=cwd, **options)
        assert child.stdout is not None
        assert child.stdout.readline(), "the child ended before it was ready"
        return child

    def agent(self, name: str, team: str, cwd: Path, program: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """A process that looks like a teammate: it runs ``program``, says ready and sleeps."""
        body = f"{program}\nprint('ready', flush=True)\nimport time\ntime.sleep(600)\n"
        flags = ("--agent-id", f"{name}@{team}", "--agent-name", name, "--team-name", team)
        return self.python(body, *flags, cwd=cwd, **options)

    def end(self) -> None:
        for child in self._started:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    stream.close()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    started = Children(tmp_path)
    yield started
    started.end()


def write_task(
    claude: Path, team: str, number: int | str, owner: str | None = None, status: str = "pending", **more: Any
) -> Path:
    """A task file just as the client writes it."""
    folder = claude / "tasks" / team
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.json"
    task = {
        "id": str(number), "subject": "Fix bug", "description": "Fix the bug", "activeForm": "Fixing bug",
        "status": status, "blocks": [], "blockedBy": [], **({"owner": owner} if owner else {}), **more,
    }  # fmt: skip
    path.write_text(json.dumps(task, indent=2))
    return path


def read_task(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def given_back(task: Path) -> bool:
    found = read_task(task)
    return found["status"] == "pending" and "owner" not in found


def health_of(role: str, pid: int, idle_count: int = 0) -> dict[str, Any]:
    """A health file as the plugin writes it."""
    return {
        "idle_count": idle_count, "last_event": "start", "last_event_at": "2026-11-22T20:38:34Z", "pid": pid,
        "role": role, "started_at": "2026-11-22T20:38:34Z",
    }  # fmt: skip


def new_store(project: Path) -> None:
    """The supervisor's folder as a daemon leaves it."""
    Paths(project).folder.mkdir(mode=0o700, exist_ok=True)
    store = Store(project)
    store.open()
    store.close()


def agent_of(name: str, team: str, process: ProcessId, **more: Any) -> Agent:
    return Agent(
        id=f"{name}@{team}", name=name, role="dev", team=team, source="registered", since=from_iso("2026-01-01"),
        process=process, pid=process.pid, **more,
    )  # fmt: skip


def write_record(project: Path, agent: Agent) -> None:
    """An agent as an earlier daemon has written it down."""
    new_store(project)
    (Paths(project).agents / supervisor.agent_file(agent)).write_bytes(supervisor.dump_agent(agent))


@functools.cache
def warm_program() -> Warm:
    """Of this process of the tests; it ends with it."""
    return Warm()


class Cli:
    """Calls the program in a folder, as a person at a terminal there. No mistake of anybody may end in a traceback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if not options and (warm := warm_program()).fits():
            told = warm.run(words, self.folder, LIMIT_S)
        else:
            options = {"timeout": LIMIT_S, "cwd": self.folder, "stdin": subprocess.DEVNULL, **options}
            told = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, **options)
        assert "Traceback" not in told.stderr, told.stderr
        return told

    def json(self, *words: str, code: int = 0) -> Any:
        """The one document that the command prints."""
        told = self(*words, "--json")
        assert told.returncode == code, told.stderr
        return json.loads(told.stdout)


@pytest.fixture
def cli(project: Path, claude_home: Path) -> Cli:
    """A person at work in the project."""
    return Cli(project)


@pytest.fixture
def cli_of_teams(cli: Cli, project: Path, claude_home: Path) -> Cli:
    """The same where the teams red and blue are."""
    for team in ("red", "blue"):
        write_team(claude_home, team, project)
    return cli


def write_team(claude: Path, name: str, project: Path) -> None:
    """What ties a team, and its list, to the project."""
    member = {"agentId": f"lead@{name}", "name": "lead", "cwd": str(project), "tmuxPaneId": "%1"}
    folder = claude / "teams" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": name, "members": [member]}))


class RunningDaemon:
    """The real daemon as a process of its own."""

    def __init__(self, project: Path, child: subprocess.Popen[bytes], log: Path) -> None:
        self.project = project
        self.child = child
        self.log = log

    @property
    def folder(self) -> Path:
        return Paths(self.project).folder

    def history(self) -> list[dict[str, Any]]:
        """What the journal tells, oldest first."""
        return history(self.folder / "journal.jsonl")

    def did(self, action: str, key: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.history() if e["action"] == action and key in (None, e["key"])]

    def sees(self, pid: int) -> bool:
        """Whether the process is known as part of an agent's tree."""
        trees = self.folder / "trees.json"
        return trees.exists() and str(pid) in trees.read_text()

    def wait(self, seen: Callable[[], Any], what: str) -> Any:
        """What ``seen`` answers once it is truthy; in vain, or if the daemon ends meanwhile, its log is told."""
        try:
            found = wait_until(lambda: seen() or self.child.poll() is not None, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-3000:]}") from None
        assert self.child.poll() is None, f"the daemon ended\n{self.log.read_text()[-3000:]}"
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(LIMIT_S)


StartDaemon = Callable[..., RunningDaemon]


@pytest.fixture
def daemon(project: Path, claude_home: Path, tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts a daemon on the project (``config`` is the text of its file) and waits until it watches."""
    running: list[RunningDaemon] = []

    def start(*arguments: str, config: str = "", over: Path | None = None) -> RunningDaemon:
        at = over or project
        if config:
            (at / ".yolo-planning" / "supervisor.toml").write_text(config)
        log = tmp_path / f"daemon-{len(running)}.log"
        with log.open("wb") as stderr:
            child = subprocess.Popen(
                [*PROGRAM, "run", "--project", str(at), *arguments],
                stdin=subprocess.DEVNULL, stderr=stderr, env=dict(os.environ), cwd=tmp_path,
            )  # fmt: skip
        started = RunningDaemon(at, child, log)
        running.append(started)
        wait_until(
            lambda: (
                child.poll() is not None or any(e["evidence"].get("pid") == child.pid for e in started.did("started"))
            ),
            "the daemon to start",
        )
        return started

    yield start
    for each in running:
        if each.child.poll() is None:
            each.child.kill()
        each.child.wait()


class PrivateTmux:
    """A tmux server of our own, and people who attach to it."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "tmux")
        outside = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
        self._environment = {**outside, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self._started: list[subprocess.Popen[bytes]] = []
        self._terminals: list[int] = []
        self.server = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """A server, in the place of one that has ended."""
        Path(self.socket).unlink(missing_ok=True)
        self.server = self._run("-D", "-f", "/dev/null", stdin=subprocess.DEVNULL)
        wait_until(Path(self.socket).exists, "the tmux server to listen")
        return self.server

    def __call__(self, *words: str) -> str:
        """What tmux says to a command."""
        command = ["tmux", "-S", self.socket, *words]
        told = subprocess.run(command, env=self._environment, capture_output=True, check=True, timeout=LIMIT_S)
        return told.stdout.decode().strip()

    def session(self, name: str, program: str = "sleep 600") -> int:
        """A new session; the pid of the program in its pane."""
        return int(self("new-session", "-d", "-P", "-F", "#{pane_pid}", "-s", name.replace("#", "##"), program))

    def person(self, session: str) -> subprocess.Popen[bytes]:
        """Somebody who attaches to the session at a terminal."""
        terminal, other_end = pty.openpty()
        self._terminals.append(terminal)
        client = self._run("attach", "-t", f"={session}", stdin=other_end, stdout=other_end, stderr=other_end)
        os.close(other_end)
        return self._attached(client)

    def program(self, session: str) -> subprocess.Popen[bytes]:
        """A program that attaches in control mode."""
        return self._attached(
            self._run("-C", "attach", "-t", f"={session}", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )

    def leave(self, client: subprocess.Popen[bytes]) -> None:
        client.terminate()
        client.wait(LIMIT_S)
        wait_until(lambda: client.pid not in self._clients(), "the client to be detached")

    def ends(self, session: str) -> list[str]:
        """``status/signal`` of each pane; at times tmux misses an end, and learns of it with the next."""
        self.server.send_signal(signal.SIGCHLD)
        return self("list-panes", "-s", "-t", f"={session}", "-F", "#{pane_dead_status}/#{pane_dead_signal}").split()

    def end(self) -> None:
        for child in reversed(self._started):
            if child.poll() is None:
                child.kill()  # panes are hung up with their server
            child.wait()
            if child.stdin:
                child.stdin.close()
        for terminal in self._terminals:
            os.close(terminal)

    def _run(self, *words: str, **streams: Any) -> subprocess.Popen[bytes]:
        command = ["tmux", "-S", self.socket, *words]
        child: subprocess.Popen[bytes]
        child = subprocess.Popen(command, env=self._environment, start_new_session=True, **streams)
        self._started.append(child)
        return child

    def _attached(self, client: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        wait_until(lambda: client.pid in self._clients(), "the client to be attached")
        return client

    def _clients(self) -> set[int]:
        return {int(pid) for pid in self("list-clients", "-F", "#{client_pid}").split()}


@pytest.fixture
def tmux(tmp_path: Path, claude_home: Path) -> Iterator[PrivateTmux]:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    started = PrivateTmux(tmp_path)
    yield started
    started.end()


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts a shell script before the program of that name on everybody's path."""

    def put(name: str, script: str) -> None:
        program = tmp_path / "bin" / name
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return put


class Team:
    """A team of real processes on real tasks, under the real daemon."""

    def __init__(self, project: Path, claude: Path, children: Children, start: StartDaemon) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.own = Paths(project)
        self.claude = claude
        self.children = children
        self.processes = Processes(kernel())
        self.cli = Cli(project)
        self._start = start
        self._probes = 0
        self._tasks = 100  # below it are those that a test writes itself
        self._minded: list[ProcessId] = []
        self.running: RunningDaemon

    def supervise(self, config: str = QUICK) -> RunningDaemon:
        self.running = self._start(config=config)
        return self.running

    def task(self, owner: str, team: str = "red", status: str = "in_progress") -> Path:
        self._tasks += 1
        return write_task(self.claude, team, self._tasks, owner=owner, status=status)

    def agent(self, name: str, team: str = "red", program: str = "") -> subprocess.Popen[bytes]:
        """An agent at work, known to the daemon."""
        child = self.children.agent(name, team, self.project, program)
        self.wait_known(name, team)
        return child

    def pane_agent(self, tmux: PrivateTmux, session: str, name: str, program: str = "") -> int:
        """An agent in a tmux session of its own, deaf to its closing, and known to the daemon; its pid."""
        ready = self.project.parent / f"{name}.ready"
        body = f"{program}\nopen({str(ready)!r}, 'w')\nimport time\ntime.sleep(600)"
        flags = f"--agent-id {name}@red --agent-name {name} --team-name red"
        line = f"cd {self.project} && trap '' HUP && exec {sys.executable} -c {shlex.quote(body)} {flags}"
        pid = self.mind(tmux.session(session, line)).pid
        wait_until(ready.exists, f"{name} to start")
        self.wait_known(name, "red")
        return pid

    def wait_known(self, name: str, team: str) -> None:
        self.running.wait(lambda: self.running.did("registered", f"{name}@{team}"), f"{name} to be found")

    def wait_healed(self, name: str, team: str = "red") -> None:
        self.running.wait(lambda: self.running.did("forgotten", f"{name}@{team}"), f"{name} to be healed")

    def wait_given_back(self, task: Path) -> None:
        self.running.wait(lambda: given_back(task), f"{task} to be given back")

    def assert_heals(self, team: str = "red") -> None:
        """The daemon is up, and at work: an agent that is killed now loses its task."""
        name = f"dev-{self._tasks - 99}"
        task = self.task(name, team)
        self.agent(name, team).kill()
        self.wait_given_back(task)

    def wait_looks(self, number: int = 2) -> None:
        """Until the daemon has looked so many times more: each time a real agent that is killed is healed."""
        for _ in range(number):
            self._probes += 1
            name = f"probe-{self._probes}"
            self.agent(name, team="probes").kill()
            self.wait_healed(name, "probes")

    def wait_sessions_looked_at(self) -> None:
        """Until the sessions have been looked at again, from the beginning of a look to its end."""

        def looked_at() -> str:
            (watcher,) = (each for each in self.status()["watchers"] if each["name"] == "sessions")
            return watcher["last_tick_at"] or ""

        ends = {iso(datetime.now(UTC))}
        while len(ends) < 3:  # the first may have begun before
            self.wait_looks(1)  # each heals an agent, and meanwhile the daemon tells how its watchers fare
            ends.add(max(looked_at(), *ends))

    def alive(self, pid: int) -> bool:
        return self.processes.identify(pid) is not None

    def identity(self, pid: int) -> ProcessId:
        process = self.processes.identify(pid)
        assert process is not None
        return process

    def mind(self, pid: int) -> ProcessId:
        """See to it that this process, which is not our child, ends with the test."""
        process = self.identity(pid)
        self._minded.append(process)
        return process

    def end(self) -> None:
        for process in self._minded:
            if (handle := self.processes.kernel.hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()

    def record(self, name: str, process: ProcessId, **more: Any) -> None:
        """An agent as an earlier daemon has written it down."""
        write_record(self.project, agent_of(name, "red", process, claude_dir=self.claude, **more))

    def status(self) -> dict[str, Any]:
        project: dict[str, Any] = self.cli.json("status")["projects"][0]
        return project


@pytest.fixture
def team(project: Path, claude_home: Path, children: Children, daemon: StartDaemon) -> Iterator[Team]:
    started = Team(project, claude_home, children, daemon)
    yield started
    started.end()
