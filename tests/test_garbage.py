"""Whatever stands in the files that the daemon reads, it stays up, destroys nothing, signals no stranger, and heals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tmux import PrivateTmux

from conftest import Children, RunningDaemon, read_task, wait_until, write_task
from yolo_supervisor.formats import supervisor
from yolo_supervisor.kernel import kernel
from yolo_supervisor.processes import Processes
from yolo_supervisor.records import Agent, Pane, ProcessId, from_iso
from yolo_supervisor.store import Paths, Store

QUICK = "[processes]\ngrace_s = 0.3\nsample_s = 0.1\n[agents]\ninterval_s = 0.2\n[sessions]\ninterval_s = 0.2\n"
TEAM = "yolo-phase-05"
SOON_S = 10.0
"""Long for what takes half a second, short for what never comes."""

StartDaemon = Callable[..., RunningDaemon]
Spoil = Callable[[Path], object]


class World:
    """A project and a client's home in which everything that the daemon reads may be spoilt."""

    def __init__(self, project: Path, claude: Path, children: Children, start: StartDaemon) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.own = Paths(project)
        self.claude = claude
        self.processes = Processes(kernel())
        self._children = children
        self._start = start
        self._agents = 0

    def supervised_before(self) -> None:
        """The folder of the supervisor as an earlier one left it."""
        self.own.folder.mkdir(mode=0o700, exist_ok=True)
        store = Store(self.project)
        store.open()
        store.close()

    def daemon(self) -> RunningDaemon:
        return self._start(config=QUICK)

    def assert_heals(self, daemon: RunningDaemon) -> None:
        """A real agent that is killed now is healed: the daemon is up, and at work."""
        self._agents += 1
        name = f"dev-{self._agents}"
        task = write_task(self.claude, TEAM, 100 + self._agents, owner=name, status="in_progress")
        agent = self._children.agent(name, TEAM, self.project)
        self.wait(daemon, lambda: daemon.did("registered", f"{name}@{TEAM}"), "a real agent to be found")

        agent.kill()

        self.wait(daemon, lambda: read_task(task)["status"] == "pending", "its task to be given back")
        assert "owner" not in read_task(task)

    def wait(self, daemon: RunningDaemon, seen: Callable[[], Any], what: str) -> None:
        try:
            wait_until(lambda: seen() or daemon.child.poll() is not None, what, SOON_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{daemon.log.read_text()[-3000:]}") from None
        assert daemon.child.poll() is None, f"the daemon ended\n{daemon.log.read_text()[-3000:]}"

    def identity(self, pid: int) -> ProcessId:
        process = self.processes.identify(pid)
        assert process is not None
        return process

    def agent(self, process: ProcessId, **more: Any) -> Agent:
        return Agent(
            id=f"dev-0@{TEAM}", name="dev-0", role="dev", team=TEAM, source="registered", since=from_iso("2026-01-01"),
            process=process, pid=process.pid, claude_dir=self.claude, **more,
        )  # fmt: skip


@pytest.fixture
def world(project: Path, claude_home: Path, children: Children, daemon: StartDaemon) -> World:
    return World(project, claude_home, children, daemon)


@pytest.fixture
def stranger(children: Children, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A live process that is nobody's agent, and must see the end of the test."""
    child = children.start("sleep", "600", cwd=project)
    yield child
    assert child.poll() is None, "a stranger was signalled"


def looks(path: Path) -> tuple[object, ...]:
    """What a thing is and what is in it."""
    facts = path.lstat()
    if stat.S_ISLNK(facts.st_mode):
        return stat.S_IFLNK, os.readlink(path)
    if stat.S_ISREG(facts.st_mode) and os.access(path, os.R_OK):
        with path.open("rb") as file:
            return facts.st_mode, hashlib.file_digest(file, "sha256").hexdigest()
    return facts.st_mode, facts.st_size


# -- any file, any garbage ----------------------------------------------------------------------------------------

GARBAGE: dict[str, Spoil] = {
    "empty": Path.touch,
    "torn": lambda path: path.write_bytes(b'{"id": "1", "pid": 77, "sta'),
    "huge": lambda path: (path.touch(), os.truncate(path, 20_000_000)),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "a list": lambda path: path.write_bytes(b"[1, 2, 3]"),
    "an unlucky list": lambda path: path.write_bytes(b"[[], {}, null]"),
    "a number": lambda path: path.write_bytes(b"5"),
    "null": lambda path: path.write_bytes(b"null"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "deep and closed": lambda path: path.write_bytes(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "not ours to read": lambda path: (path.write_bytes(b"{}"), path.chmod(0)),
}
SOME = ["torn", "an unlucky list", "a folder", "a pipe", "a link to nowhere"]


def spoil(garbage: str, paths: Iterable[Path]) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            path.unlink()
        GARBAGE[garbage](path)
        if garbage == "not ours to read" and os.access(path, os.R_OK):
            pytest.skip("whoever runs this may read anything")


def everything(world: World) -> list[Path]:
    """A file of every kind that the daemon reads: the plugin's, the client's, and what ours are named by others."""
    plugin = (
        ".agent-pids .agent-panes .active-agent .active-agent-count .watchdog-pid .execution-state.json .yolo-session "
        ".execution-state.json.sha256 .agent-health/dev.json .locks/a.lease .locks/b.lock"
    )
    client = (
        f"sessions/4242.json teams/broken/config.json teams/{TEAM}/config.json tasks/{TEAM}/1.json tasks/other/1.json "
        f"tasks/{TEAM}/.highwatermark"
    )
    ours = "agents/dev-1@team.json agents/junk"
    return [
        *(world.planning / name for name in plugin.split()),
        *(world.claude / name for name in client.split()),
        *(world.own.folder / name for name in ours.split()),
    ]


def notes(world: World) -> list[Path]:
    return [world.own.hooks / name for name in ("SessionStart.77.88-99", "SubagentStop.7.8-9", "Stop.7", "junk")]


def observations(world: World) -> list[Path]:
    """Our own, written anew all the time: what stood there is no loss."""
    return [world.own.folder / name for name in ("trees.json", "daemon.json", "held-lock.json")]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_every_file_at_once_stops_nothing_and_is_left_as_it_is(world: World, garbage: str) -> None:
    world.supervised_before()
    files = everything(world)
    spoil(garbage, [*files, *notes(world)])
    kept = {path: looks(path) for path in files}

    daemon = world.daemon()
    world.assert_heals(daemon)
    world.assert_heals(daemon)

    assert {path: looks(path) for path in kept} == kept


@pytest.mark.parametrize("garbage", SOME)
def test_garbage_that_comes_while_the_daemon_runs_stops_nothing(world: World, garbage: str) -> None:
    daemon = world.daemon()
    world.assert_heals(daemon)

    spoil(garbage, [*everything(world), *notes(world)])

    world.assert_heals(daemon)
    world.assert_heals(daemon)


@pytest.mark.parametrize("name", ["trees.json", "daemon.json"])
@pytest.mark.parametrize("garbage", SOME)
def test_garbage_in_our_own_observations_stops_nothing(world: World, garbage: str, name: str) -> None:
    world.supervised_before()
    spoil(garbage, [world.own.folder / name])

    world.assert_heals(world.daemon())


@pytest.mark.parametrize("garbage", [*SOME, "huge", "a list", "null", "deep", "not ours to read"])
def test_garbage_in_the_note_of_a_held_lock_stops_nothing(world: World, garbage: str) -> None:
    world.supervised_before()
    spoil(garbage, [world.own.folder / "held-lock.json"])

    world.assert_heals(world.daemon())


@pytest.mark.parametrize("garbage", SOME)
def test_garbage_in_our_own_observations_that_comes_while_the_daemon_runs_stops_nothing(
    world: World, garbage: str
) -> None:
    daemon = world.daemon()
    world.assert_heals(daemon)

    spoil(garbage, observations(world))

    world.assert_heals(daemon)


def test_folders_that_vanish_stop_nothing(world: World) -> None:
    spoil("empty", everything(world))
    daemon = world.daemon()
    world.assert_heals(daemon)

    for folder in (world.planning / ".agent-health", world.planning / ".locks", world.own.hooks, world.claude):
        shutil.rmtree(folder)

    world.assert_heals(daemon)


@pytest.mark.parametrize("garbage", ["empty", "a pipe", "a link to nowhere"])
def test_something_else_in_the_place_of_a_folder_stops_nothing(world: World, garbage: str) -> None:
    spoil(garbage, [world.planning / ".agent-health", world.planning / ".locks"])
    spoil(garbage, [world.claude / "sessions", world.claude / "teams"])

    world.assert_heals(world.daemon())


# -- people who look meanwhile ------------------------------------------------------------------------------------

LOOKING = ["status", "check", "doctor", "agent list", "history"]


def assert_tells(world: World, command: str) -> None:
    words = [sys.executable, "-m", "yolo_supervisor", *command.split()]
    told = subprocess.run(words, cwd=world.project, capture_output=True, text=True, timeout=SOON_S)
    assert "Traceback" not in told.stderr, f"{command}\n{told.stderr}"
    assert told.returncode in (0, 1), f"{command}\n{told.stdout}{told.stderr}"


@pytest.mark.parametrize("garbage", [*SOME, "deep and closed", "not ours to read"])
def test_garbage_in_every_file_leaves_no_command_without_an_answer(world: World, garbage: str) -> None:
    world.supervised_before()
    spoil(garbage, [*everything(world), *notes(world), *observations(world)])

    for command in LOOKING:
        assert_tells(world, command)


# -- the journal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", ["empty", "torn", "huge", "binary", "a list", "deep"])
def test_garbage_in_the_journal_stops_nothing_and_is_kept(world: World, garbage: str) -> None:
    world.supervised_before()
    spoil(garbage, [world.own.journal])
    before = world.own.journal.read_bytes()

    world.assert_heals(world.daemon())

    whole = before.rfind(b"\n") + 1
    torn = b"".join(path.read_bytes() for path in (world.own.folder / "quarantine").iterdir())
    assert world.own.journal.read_bytes().startswith(before[:whole])
    assert torn == before[whole:]


@pytest.mark.parametrize("garbage", ["a folder", "a pipe", "a link to nowhere", "a link to itself"])
def test_a_daemon_that_cannot_have_its_journal_says_so_and_does_nothing(world: World, garbage: str) -> None:
    world.supervised_before()
    spoil(garbage, [world.own.journal])
    before = looks(world.own.journal)
    command = [sys.executable, "-m", "yolo_supervisor", "run", "--project", str(world.project)]

    told = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S)

    assert told.returncode in (1, 65, 75)
    assert "Traceback" not in told.stderr
    assert "journal.jsonl" in told.stderr
    assert looks(world.own.journal) == before


# -- one wrong value in an otherwise sound document ---------------------------------------------------------------

VALUES: list[object] = [
    None, True, -1, 0, 1, 2**31, 2**32 - 1, 2**64, 10**40, 0.5, float("inf"), float("nan"), "", " ", "x" * 5000, "\0",
    "\x1b[31m", "\ud800", "²", "..", "/", "a/b", "../../..", "-1", "9" * 5000, f"05-{'9' * 5000}",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", [], [[]], {}, {"a": {}}, [None, 1, "x", {}],
]  # fmt: skip


def spoilt(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document with one value missing, or wrong in every way, for every key however deep."""
    for key, sound in document.items():
        yield {name: value for name, value in document.items() if name != key}
        for value in VALUES:
            yield {**document, key: value}
        if isinstance(sound, dict):
            yield from ({**document, key: each} for each in spoilt(sound))


def write_all(folder: Path, documents: Iterable[dict[str, Any]], name: str = "{}.json", first: bytes = b"") -> None:
    for number, document in enumerate(documents, 1):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first + json.dumps(document).encode())


def session_of(world: World, process: ProcessId) -> dict[str, Any]:
    return {
        "pid": process.pid, "sessionId": "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7", "cwd": str(world.project),
        "procStart": str(process.started), "name": "proj-18", "status": "busy", "startedAt": 1795379572760,
    }  # fmt: skip


def test_a_wrong_value_in_a_session_stops_nothing(world: World, stranger: subprocess.Popen[bytes]) -> None:
    write_all(world.claude / "sessions", spoilt(session_of(world, world.identity(stranger.pid))))

    world.assert_heals(world.daemon())


def test_a_wrong_value_in_a_team_stops_nothing(world: World, stranger: subprocess.Popen[bytes]) -> None:
    session = session_of(world, world.identity(stranger.pid))
    write_all(world.claude / "sessions", [session])
    member = {
        "agentId": "dev-1@team", "name": "dev-1", "agentType": "general-purpose", "tmuxPaneId": "in-process",
        "cwd": str(world.project), "backendType": "in-process", "joinedAt": 1, "isActive": True,
    }  # fmt: skip
    team = {
        "name": "session-85d6cfb4", "leadAgentId": "team-lead@session-85d6cfb4", "leadSessionId": session["sessionId"],
        "members": [member],
    }  # fmt: skip
    members = ({**team, "members": [each, member]} for each in spoilt(member))
    write_all(world.claude / "teams", [*spoilt(team), *members], "broken-{}/config.json")

    world.assert_heals(world.daemon())


def test_a_wrong_value_in_a_task_stops_nothing_and_stays(world: World) -> None:
    task = {
        "id": "1", "subject": "Fix", "description": "Fix", "activeForm": "Fixing", "status": "in_progress",
        "blocks": [], "blockedBy": [], "owner": "dev-77", "metadata": {"a": 1},
    }  # fmt: skip
    folder = world.claude / "tasks" / TEAM
    write_all(folder, spoilt(task), "9{}.json")
    kept = {path: looks(path) for path in folder.iterdir()}

    world.assert_heals(world.daemon())

    assert {path: looks(path) for path in kept} == kept


def test_a_wrong_value_in_an_agents_record_stops_nothing(world: World, stranger: subprocess.Popen[bytes]) -> None:
    world.supervised_before()
    alive = world.identity(stranger.pid)
    pane = Pane(socket="/nowhere/tmux", server_pid=alive.pid, pane="%0")
    agent = world.agent(alive, pane=pane, session="85d6cfb4")
    write_all(world.own.agents, spoilt(json.loads(supervisor.dump_agent(agent))))

    world.assert_heals(world.daemon())


@pytest.mark.parametrize("event", ["SessionStart", "SubagentStart", "SubagentStop"])
def test_a_wrong_value_in_a_hooks_note_stops_nothing(
    world: World, stranger: subprocess.Popen[bytes], event: str
) -> None:
    world.supervised_before()
    by = world.identity(stranger.pid)
    ancestry = f"4194303:1:python:4194303 {by.pid}:{by.started}:sleep:{by.pid}\n".encode()
    payload = {"session_id": "85d6cfb4", "agent_id": "a-1", "agent_type": "yolo:yolo-dev", "cwd": str(world.project)}
    write_all(world.own.hooks, spoilt(payload), f"{event}.{by.pid}.{{}}-1", ancestry)

    world.assert_heals(world.daemon())


ANCESTRIES = [
    b"", b"x", b":::", b"1:1:init:1", b"0:0::0", b"-1:-1:x:-1", b"2147483648:1:x:1 2147483648:1:x:1",
    b"4294967295:1:x:1 4294967295:1:x:1 4294967295:1:x:1", b"9" * 5000 + b":1:x:1", b"7:" + b"9" * 5000 + b":x:1",
    b"18446744073709551616:1:x:1 18446744073709551616:1:y:2", b"\xff\xfe:1:\xff:1", b"7:7:x:7 " * 10_000,
]  # fmt: skip


def test_a_wrong_ancestry_in_a_hooks_note_stops_nothing(world: World) -> None:
    world.supervised_before()
    for number, ancestry in enumerate(ANCESTRIES):
        (world.own.hooks / f"SessionStart.{number}.1-1").write_bytes(ancestry + b'\n{"session_id": "1"}')

    world.assert_heals(world.daemon())


def test_a_wrong_value_in_a_health_file_stops_nothing_and_stays(
    world: World, stranger: subprocess.Popen[bytes]
) -> None:
    health = {
        "idle_count": 0, "last_event": "start", "last_event_at": "2026-11-22T20:38:34Z", "pid": stranger.pid,
        "role": "dev", "started_at": "2026-11-22T20:38:34Z",
    }  # fmt: skip
    folder = world.planning / ".agent-health"
    write_all(folder, spoilt(health))
    kept = {path: looks(path) for path in folder.iterdir()}

    daemon = world.daemon()
    world.assert_heals(daemon)

    assert {path: looks(path) for path in kept} == kept
    assert stranger.pid not in [e["evidence"]["pid"] for e in daemon.did("registered")]


def test_a_wrong_value_in_a_lease_stops_nothing_and_stays(world: World) -> None:
    lease = {
        "acquired_at": "2026-11-22T20:55:10Z", "owner": "dev-77", "resource": "src/a.js", "ttl_secs": 60,
        "type": "lease",
    }  # fmt: skip
    folder = world.planning / ".locks"
    write_all(folder, spoilt(lease), "{}.lease")
    write_all(folder, spoilt(lease), "{}.lock")
    kept = {path: looks(path) for path in folder.iterdir()}

    world.assert_heals(world.daemon())

    assert {path: looks(path) for path in kept} == kept


PLAN = {"id": "05-77", "title": "Do", "wave": 1, "status": "running", "owner": "dev-77"}


@pytest.mark.parametrize("plans", [None, 5, "x", {"a": 1}, [[], 5, None, "x"], list(spoilt(PLAN))])
def test_wrong_values_in_the_execution_state_stop_nothing_and_stay(world: World, plans: object) -> None:
    path = world.planning / ".execution-state.json"
    path.write_text(json.dumps({"phase": 5, "status": "running", "plans": plans}))
    before = looks(path)

    world.assert_heals(world.daemon())

    assert looks(path) == before


def test_wrong_values_everywhere_leave_no_command_without_an_answer(
    world: World, stranger: subprocess.Popen[bytes]
) -> None:
    world.supervised_before()
    alive = world.identity(stranger.pid)
    record = json.loads(supervisor.dump_agent(world.agent(alive, session="85d6cfb4")))
    lease = {"acquired_at": "2026-11-22T20:55:10Z", "owner": "dev-77", "resource": "src/a.js", "ttl_secs": 60}
    task = {"id": "1", "subject": "Fix", "status": "in_progress", "owner": "dev-77"}
    holder = {"version": 1, "process": supervisor.dump_process(alive), "started_at": "", "mode": "heal", "watchers": []}
    write_all(world.own.agents, spoilt(record))
    write_all(world.claude / "sessions", spoilt(session_of(world, alive)))
    write_all(world.claude / "tasks" / TEAM, spoilt(task))
    write_all(world.planning / ".locks", spoilt(lease), "{}.lease")
    (world.planning / ".execution-state.json").write_text(json.dumps({"plans": list(spoilt(PLAN))}))
    watchers = [*VALUES, *spoilt({"name": "agents", "interval_s": 5.0, "last_tick_at": "", "last_error": None})]
    world.own.holder.write_text(json.dumps({**holder, "watchers": watchers}))

    for command in LOOKING:
        assert_tells(world, command)


PID = os.getpid()
TREES: list[object] = [
    None, 5, "x", [5], [[]], [[1]], [[1, 2, 3, 4]], [["x", "y", "z"]], [[None, None, None]], [[float("inf"), 1, PID]],
    [[float("nan"), 1, PID]], [[2**64, 1, PID]], [[-1, 1, PID]], [[0, 0, PID]], {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_wrong_values_in_the_sampled_trees_stop_nothing(world: World, tree: object) -> None:
    world.supervised_before()
    task = write_task(world.claude, TEAM, 1, owner="dev-0", status="in_progress")
    gone = ProcessId(PID, 1, world.processes.boot)  # a pid that belongs to another process now: to this one
    dead = world.agent(gone)
    (world.own.agents / supervisor.agent_file(dead)).write_bytes(supervisor.dump_agent(dead))
    trees = [{"boot": gone.boot, "agents": [[gone.pid, gone.started, tree]]}]
    world.own.trees.write_text(json.dumps({"version": 1, "trees": trees}))

    daemon = world.daemon()

    world.wait(daemon, lambda: read_task(task)["status"] == "pending", "the dead agent's task to be given back")


HELD: list[Callable[[str, int, int], object]] = [
    lambda path, inode, made: [path, inode, made + 1],
    lambda path, inode, made: [path, inode + 1, made],
    lambda path, inode, made: [None, inode, made],
    lambda path, inode, made: [1, inode, made],
    lambda path, inode, made: ["\0", inode, made],
    lambda path, inode, made: [[path], inode, made],
    lambda path, inode, made: {path: inode, "b": 2, "c": 3},
    lambda path, inode, made: "abc",
]


@pytest.mark.parametrize("number", range(len(HELD)))
def test_a_lock_is_only_broken_by_the_note_of_the_one_who_made_it(world: World, number: int) -> None:
    world.supervised_before()
    theirs = world.claude / "tasks" / TEAM / "1.json.lock"
    theirs.mkdir(parents=True)
    facts = theirs.lstat()
    note = HELD[number](str(theirs), facts.st_ino, facts.st_mtime_ns)
    (world.own.folder / "held-lock.json").write_text(json.dumps(note))

    daemon = world.daemon()

    assert daemon.child.poll() is None, daemon.log.read_text()
    assert theirs.is_dir()


# -- processes that tell nonsense of themselves -------------------------------------------------------------------

ENVIRONMENTS: list[dict[str, str]] = [
    {"TMUX": "/tmp/s,²,0", "TMUX_PANE": "%0"}, {"TMUX": ",,", "TMUX_PANE": ""}, {"TMUX": "x", "TMUX_PANE": "%0"},
    {"TMUX": f"/nowhere,{2**64},0", "TMUX_PANE": "%0"}, {"TMUX": f"{'/x' * 3000},7,0", "TMUX_PANE": "%0"},
    {"TMUX": "/dev/zero,7,0", "TMUX_PANE": "%0"}, {"HOME": ""}, {"HOME": "relative"}, {"HOME": "/" + "x" * 5000},
    {"CLAUDE_CONFIG_DIR": "x" * 300}, {"CLAUDE_CONFIG_DIR": "/dev/null"}, {"CLAUDE_CONFIG_DIR": "/proc/self"},
    {"CLAUDE_CONFIG_DIR": "\udcff\n\x1b[31m"},
]  # fmt: skip
FLAGS = [
    ("@", "/"), ("a@b", "../../.."), ("x" * 3000, "t"), ("a", "x" * 3000), ("\x1b[31m\n@t", "\n"), ("\udcff", "\udcff"),
    ("a/b@c/d", "c/d"), ("..", ".."), (".", "."), (" ", " "), ("~", "%2F"), ("dev-²", "yolo-phase-²"),
    (f"dev-{'9' * 5000}", TEAM),
]  # fmt: skip


def test_processes_that_tell_nonsense_of_themselves_stop_nothing(world: World, children: Children) -> None:
    (world.planning / ".execution-state.json").write_text(json.dumps({"plans": [PLAN]}))
    sleep = "import time; time.sleep(600)"
    odd = [
        children.start(
            sys.executable, "-c", sleep, "--agent-id", f"odd-{number}", "--team-name", "odd", cwd=world.project,
            env={**os.environ, **environment},
        )
        for number, environment in enumerate(ENVIRONMENTS)
    ]  # fmt: skip
    odd += [
        children.start(sys.executable, "-c", sleep, "--agent-id", ident, "--team-name", team, cwd=world.project)
        for ident, team in FLAGS
    ]

    daemon = world.daemon()
    world.assert_heals(daemon)
    assert [child.args for child in odd if child.poll() is not None] == []

    for child in odd:
        child.kill()
    world.assert_heals(daemon)


# -- pids that name nobody, or somebody else ----------------------------------------------------------------------


@pytest.fixture
def tmux(tmp_path: Path, claude_home: Path) -> Iterator[PrivateTmux]:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    started = PrivateTmux(tmp_path)
    yield started
    started.end()


TOUCHY = """
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
    signal.signal(number, lambda number, frame: print("signalled", number, flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_of_the_pids_that_stand_in_a_file_nobody_is_signalled_and_nobody_registered(
    world: World, children: Children, tmux: PrivateTmux
) -> None:
    shell = tmux.session("work", "exec sh -c 'while sleep 60; do :; done'")
    stranger = children.python(TOUCHY, cwd=world.project)
    assert stranger.stdout is not None
    daemon = world.daemon()
    numbers = [0, 1, -1, 4294967295, 4294967297, 2**63, os.getpid(), os.getppid(), daemon.child.pid]
    numbers += [tmux.server.pid, shell, stranger.pid]
    words = [str(each) for each in numbers] + ["", "x", "1e3", "0x10", "²", "+7", " 7 7"]
    (world.planning / ".agent-pids").write_text("\n".join(words))
    (world.planning / ".agent-panes").write_text("".join(f"{number} %0\n" for number in numbers))
    (world.planning / ".watchdog-pid").write_text(str(stranger.pid))
    health = ({"pid": number, "role": "dev", "idle_count": 9, "last_event": "idle"} for number in numbers)
    write_all(world.planning / ".agent-health", health)

    world.assert_heals(daemon)
    world.assert_heals(daemon)

    assert {e["evidence"]["pid"] for e in daemon.did("registered")}.isdisjoint(numbers)
    assert daemon.did("terminated") == []
    assert [stranger.poll(), tmux.server.poll(), daemon.child.poll()] == [None, None, None]
    assert world.processes.identify(shell) is not None
    os.set_blocking(stranger.stdout.fileno(), False)
    assert stranger.stdout.read() is None, "the stranger got a signal"


def test_one_who_got_the_pid_of_an_agent_later_is_left_alone(world: World, children: Children, project: Path) -> None:
    elsewhere = project.parent
    looks_alike = children.agent("dev-5", "their-team", elsewhere)
    pids = world.planning / ".agent-pids"
    pids.write_text(f"{looks_alike.pid}\n")
    an_hour_ago = time.time() - 3600
    os.utime(pids, (an_hour_ago, an_hour_ago))

    daemon = world.daemon()
    world.assert_heals(daemon)

    assert looks_alike.pid not in [e["evidence"]["pid"] for e in daemon.did("registered")]
    assert looks_alike.poll() is None
