"""Garbage in every file that the daemon reads: it stays up, destroys nothing, signals no other process, and heals."""

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

from support.budget import TIER, cases
from support.daemon import QUICK
from support.processes import Children
from support.project import agent_of, health_of, new_store, write_record
from support.team import Team
from support.tmux import PrivateTmux
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.models import Pane, ProcessId

TEAM = "yolo-phase-05"

Spoil = Callable[[Path], object]


@pytest.fixture
def bystander(children: Children, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is no agent, and must live until the end of the test."""
    child = children.start("sleep", "600", cwd=project)
    yield child
    assert child.poll() is None, "a bystander was signalled"


def looks(path: Path) -> tuple[object, ...]:
    """The type and the content of a file."""
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


class NotUnreadable(Exception):
    """The file cannot be made unreadable: root may read a file of any mode."""


def spoil(garbage: str, paths: Iterable[Path]) -> None:
    try:
        replace_all(garbage, paths)
    except NotUnreadable:
        pytest.skip("this user may read anything")


def replace_all(garbage: str, paths: Iterable[Path]) -> None:
    """Put garbage in the place of each file, or of the garbage that is there."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        GARBAGE[garbage](path)
        if garbage == "not ours to read" and os.access(path, os.R_OK):
            raise NotUnreadable


def everything(team: Team) -> list[Path]:
    """A file of every kind that the daemon reads: the plugin's, the client's, and our records of agents."""
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
        *(team.planning / name for name in plugin.split()),
        *(team.claude / name for name in client.split()),
        *(team.own.folder / name for name in ours.split()),
    ]


def notes(team: Team) -> list[Path]:
    return [team.own.hooks / name for name in ("SessionStart.77.88-99", "SubagentStop.7.8-9", "Stop.7", "junk")]


def observations(team: Team) -> list[Path]:
    """Our files that are rewritten all the time: their old content is no loss."""
    return [team.own.folder / name for name in ("trees.json", "seen-locks.json", "daemon.json", "held-lock.json")]


@pytest.mark.parametrize("garbage", cases(GARBAGE, ["torn", "deep"]))
def test_garbage_in_every_file_at_the_start_stops_nothing_and_stays(team: Team, garbage: str) -> None:
    new_store(team.project)
    files = everything(team)
    spoil(garbage, [*files, *notes(team)])
    kept = {path: looks(path) for path in files if path.suffix != ".lease"}  # a broken lease is removed

    team.supervise()
    team.assert_heals(TEAM)
    team.assert_heals(TEAM)

    assert {path: looks(path) for path in kept} == kept


def test_garbage_of_every_kind_that_comes_while_the_daemon_runs_stops_nothing_and_stays(team: Team) -> None:
    team.supervise()
    team.assert_heals(TEAM)

    for garbage in GARBAGE:
        files = everything(team)
        try:
            replace_all(garbage, [*files, *notes(team)])
        except NotUnreadable:
            continue
        # a broken lease is removed, and the markers of the last agent go with it, at any time from now on
        staying = [path for path in files if path.suffix != ".lease" and not path.name.startswith(".active-agent")]
        kept = {path: looks(path) for path in staying}
        team.assert_heals(TEAM)
        assert {path: looks(path) for path in kept} == kept, garbage


@pytest.mark.parametrize("name", ["trees.json", "seen-locks.json", "daemon.json"])
@pytest.mark.parametrize("garbage", cases(SOME, ["torn"]))
def test_garbage_in_our_own_observations_stops_nothing(team: Team, garbage: str, name: str) -> None:
    new_store(team.project)
    spoil(garbage, [team.own.folder / name])

    team.supervise()
    team.assert_heals(TEAM)


@pytest.mark.parametrize(
    "garbage", cases([*SOME, "huge", "a list", "null", "deep", "not ours to read"], ["torn", "a folder"])
)
def test_garbage_in_the_note_of_a_held_lock_stops_nothing(team: Team, garbage: str) -> None:
    new_store(team.project)
    spoil(garbage, [team.own.folder / "held-lock.json"])

    team.supervise()
    team.assert_heals(TEAM)


def test_garbage_in_our_own_observations_that_comes_while_the_daemon_runs_stops_nothing(team: Team) -> None:
    team.supervise()
    team.assert_heals(TEAM)

    for garbage in SOME:
        replace_all(garbage, observations(team))

        team.assert_heals(TEAM)


def test_folders_that_vanish_stop_nothing(team: Team) -> None:
    spoil("empty", everything(team))
    team.supervise()
    team.assert_heals(TEAM)

    for folder in (team.planning / ".agent-health", team.planning / ".locks", team.own.hooks, team.claude):
        shutil.rmtree(folder)

    team.assert_heals(TEAM)


@pytest.mark.parametrize("garbage", cases(["empty", "a pipe", "a link to nowhere"], ["a pipe"]))
def test_something_else_in_the_place_of_a_folder_stops_nothing(team: Team, garbage: str) -> None:
    spoil(garbage, [team.planning / ".agent-health", team.planning / ".locks"])
    spoil(garbage, [team.claude / "sessions", team.claude / "teams"])

    team.supervise()
    team.assert_heals(TEAM)


# -- commands meanwhile ------------------------------------------------------------------------------------------

LOOKING = ["status", "check", "doctor", "agent list", "history"]


def assert_tells(team: Team, command: str) -> None:
    result = team.cli(*command.split())
    assert result.returncode in (0, 1), f"{command}\n{result.stdout}{result.stderr}"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("garbage", [*SOME, "deep and closed", "not ours to read"])
def test_garbage_in_every_file_leaves_no_command_without_an_answer(team: Team, garbage: str) -> None:
    new_store(team.project)
    spoil(garbage, [*everything(team), *notes(team), *observations(team)])

    for command in LOOKING:
        assert_tells(team, command)


# -- the journal --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", cases(["empty", "torn", "huge", "binary", "a list", "deep"], ["torn", "binary"]))
def test_garbage_in_the_journal_stops_nothing_and_is_kept(team: Team, garbage: str) -> None:
    new_store(team.project)
    spoil(garbage, [team.own.journal])
    before = team.own.journal.read_bytes()

    team.supervise()
    team.assert_heals(TEAM)

    whole = before.rfind(b"\n") + 1
    torn = b"".join(path.read_bytes() for path in (team.own.folder / "quarantine").iterdir())
    assert any(path.read_bytes().startswith(before[:whole]) for path in team.own.folder.glob("journal*.jsonl"))
    assert torn == before[whole:]


@pytest.mark.parametrize("garbage", ["a folder", "a pipe", "a link to nowhere", "a link to itself"])
def test_a_daemon_that_cannot_have_its_journal_says_so_and_does_nothing(team: Team, garbage: str) -> None:
    new_store(team.project)
    spoil(garbage, [team.own.journal])
    before = looks(team.own.journal)

    result = team.cli("run")

    assert result.returncode in (1, 65, 75)
    assert "journal.jsonl" in result.stderr
    assert looks(team.own.journal) == before


# -- one wrong value in an otherwise sound document ---------------------------------------------------------------

VALUES: list[object] = [
    None, True, -1, 0, 1, 2**31, 2**32 - 1, 2**64, 10**40, 0.5, float("inf"), float("nan"), "", " ", "x" * 5000, "\0",
    "\x1b[31m", "\ud800", "²", "..", "/", "a/b", "../../..", "-1", "9" * 5000, f"05-{'9' * 5000}",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", [], [[]], {}, {"a": {}}, [None, 1, "x", {}],
]  # fmt: skip


WRONG = VALUES if TIER != "quick" else VALUES[:: len(VALUES) // 8]


def spoilt(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The document with one value missing, or wrong in every way, for every key at every depth."""
    for key, sound in document.items():
        yield {name: value for name, value in document.items() if name != key}
        for value in WRONG:
            yield {**document, key: value}
        if isinstance(sound, dict):
            yield from ({**document, key: each} for each in spoilt(sound))


def write_all(folder: Path, documents: Iterable[dict[str, Any]], name: str = "{}.json", first: bytes = b"") -> None:
    for number, document in enumerate(documents, 1):
        path = folder / name.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(first + json.dumps(document).encode())


def session_of(team: Team, process: ProcessId) -> dict[str, Any]:
    return {
        "pid": process.pid, "sessionId": "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7", "cwd": str(team.project),
        "procStart": str(process.started), "name": "proj-18", "status": "busy", "startedAt": 1795379572760,
    }  # fmt: skip


def test_a_wrong_value_in_a_session_stops_nothing(team: Team, bystander: subprocess.Popen[bytes]) -> None:
    write_all(team.claude / "sessions", spoilt(session_of(team, team.identity(bystander.pid))))

    team.supervise()
    team.assert_heals(TEAM)


def test_a_wrong_value_in_a_team_stops_nothing(team: Team, bystander: subprocess.Popen[bytes]) -> None:
    session = session_of(team, team.identity(bystander.pid))
    write_all(team.claude / "sessions", [session])
    member = {
        "agentId": "dev-1@team", "name": "dev-1", "agentType": "general-purpose", "tmuxPaneId": "in-process",
        "cwd": str(team.project), "backendType": "in-process", "joinedAt": 1, "isActive": True,
    }  # fmt: skip
    known = {
        "name": "session-85d6cfb4", "leadAgentId": "team-lead@session-85d6cfb4", "leadSessionId": session["sessionId"],
        "members": [member],
    }  # fmt: skip
    members = ({**known, "members": [each, member]} for each in spoilt(member))
    write_all(team.claude / "teams", [*spoilt(known), *members], "broken-{}/config.json")

    team.supervise()
    team.assert_heals(TEAM)


def test_a_wrong_value_in_a_task_stops_nothing_and_stays(team: Team) -> None:
    task = {
        "id": "1", "subject": "Fix", "description": "Fix", "activeForm": "Fixing", "status": "in_progress",
        "blocks": [], "blockedBy": [], "owner": "dev-77", "metadata": {"a": 1},
    }  # fmt: skip
    folder = team.claude / "tasks" / TEAM
    write_all(folder, spoilt(task), "9{}.json")
    kept = {path: looks(path) for path in folder.glob("*.lock")}

    team.supervise()
    team.assert_heals(TEAM)

    assert {path: looks(path) for path in kept} == kept


def test_a_wrong_value_in_an_agents_record_stops_nothing(team: Team, bystander: subprocess.Popen[bytes]) -> None:
    new_store(team.project)
    alive = team.identity(bystander.pid)
    pane = Pane(socket="/nowhere/tmux", server_pid=alive.pid, pane="%0")
    agent = agent_of("dev-0", TEAM, alive, claude_dir=team.claude, pane=pane, session="85d6cfb4")
    write_all(team.own.agents, spoilt(json.loads(own_files.dump_agent(agent))))

    team.supervise()
    team.assert_heals(TEAM)


@pytest.mark.parametrize("event", ["SessionStart", "SubagentStart", "SubagentStop"])
def test_a_wrong_value_in_a_hooks_note_stops_nothing(
    team: Team, bystander: subprocess.Popen[bytes], event: str
) -> None:
    new_store(team.project)
    by = team.identity(bystander.pid)
    ancestry = f"4194303:1:python:4194303 {by.pid}:{by.started}:sleep:{by.pid}\n".encode()
    payload = {"session_id": "85d6cfb4", "agent_id": "a-1", "agent_type": "yolo:yolo-dev", "cwd": str(team.project)}
    write_all(team.own.hooks, spoilt(payload), f"{event}.{by.pid}.{{}}-1", ancestry)

    team.supervise()
    team.assert_heals(TEAM)


ANCESTRIES = [
    b"", b"x", b":::", b"1:1:init:1", b"0:0::0", b"-1:-1:x:-1", b"2147483648:1:x:1 2147483648:1:x:1",
    b"4294967295:1:x:1 4294967295:1:x:1 4294967295:1:x:1", b"9" * 5000 + b":1:x:1", b"7:" + b"9" * 5000 + b":x:1",
    b"18446744073709551616:1:x:1 18446744073709551616:1:y:2", b"\xff\xfe:1:\xff:1", b"7:7:x:7 " * 10_000,
]  # fmt: skip


def test_a_wrong_ancestry_in_a_hooks_note_stops_nothing(team: Team) -> None:
    new_store(team.project)
    for number, ancestry in enumerate(ANCESTRIES):
        (team.own.hooks / f"SessionStart.{number}.1-1").write_bytes(ancestry + b'\n{"session_id": "1"}')

    team.supervise()
    team.assert_heals(TEAM)


def test_a_wrong_value_in_a_health_file_stops_nothing_and_stays(team: Team, bystander: subprocess.Popen[bytes]) -> None:
    folder = team.planning / ".agent-health"
    write_all(folder, spoilt(health_of("dev", bystander.pid)))
    kept = {path: looks(path) for path in folder.glob("*.lock")}

    team.supervise()
    team.assert_heals(TEAM)

    assert {path: looks(path) for path in kept} == kept
    assert bystander.pid not in [e["evidence"]["pid"] for e in team.running.did("registered")]


def test_a_wrong_value_in_a_lease_stops_nothing_and_in_a_lock_stays(team: Team) -> None:
    lease = {
        "acquired_at": "2026-11-22T20:55:10Z", "owner": "dev-77", "resource": "src/a.js", "ttl_secs": 60,
        "type": "lease",
    }  # fmt: skip
    folder = team.planning / ".locks"
    write_all(folder, spoilt(lease), "{}.lease")
    write_all(folder, spoilt(lease), "{}.lock")
    kept = {path: looks(path) for path in folder.glob("*.lock")}

    team.supervise()
    team.assert_heals(TEAM)

    assert {path: looks(path) for path in kept} == kept


PLAN = {"id": "05-77", "title": "Do", "wave": 1, "status": "running", "owner": "dev-77"}


def test_wrong_values_in_the_execution_state_stop_nothing_and_stay(team: Team) -> None:
    path = team.planning / ".execution-state.json"
    cases_of_plans: list[object] = [list(spoilt(PLAN)), None, 5, "x", {"a": 1}, [[], 5, None, "x"]]
    for number, plans in enumerate(cases_of_plans):
        path.write_text(json.dumps({"phase": 5, "status": "running", "plans": plans}))
        before = looks(path)
        if number == 0:
            team.supervise(f"{QUICK}[state]\nsettle_s = 600\n")  # plans that are no list would be restored
        team.assert_heals(TEAM)

        assert looks(path) == before, plans


def test_wrong_values_everywhere_leave_no_command_without_an_answer(
    team: Team, bystander: subprocess.Popen[bytes]
) -> None:
    new_store(team.project)
    alive = team.identity(bystander.pid)
    agent = agent_of("dev-0", TEAM, alive, claude_dir=team.claude, session="85d6cfb4")
    record = json.loads(own_files.dump_agent(agent))
    lease = {"acquired_at": "2026-11-22T20:55:10Z", "owner": "dev-77", "resource": "src/a.js", "ttl_secs": 60}
    task = {"id": "1", "subject": "Fix", "status": "in_progress", "owner": "dev-77"}
    holder = {"version": 1, "process": own_files.dump_process(alive), "started_at": "", "mode": "heal", "watchers": []}
    write_all(team.own.agents, spoilt(record))
    write_all(team.claude / "sessions", spoilt(session_of(team, alive)))
    write_all(team.claude / "tasks" / TEAM, spoilt(task))
    write_all(team.planning / ".locks", spoilt(lease), "{}.lease")
    (team.planning / ".execution-state.json").write_text(json.dumps({"plans": list(spoilt(PLAN))}))
    watchers = [*VALUES, *spoilt({"name": "agents", "interval_s": 5.0, "last_tick_at": "", "last_error": None})]
    team.own.holder.write_text(json.dumps({**holder, "watchers": watchers}))

    for command in LOOKING:
        assert_tells(team, command)


PID = os.getpid()
TREES: list[object] = [
    None, 5, "x", [5], [[]], [[1]], [[1, 2, 3, 4]], [["x", "y", "z"]], [[None, None, None]], [[float("inf"), 1, PID]],
    [[float("nan"), 1, PID]], [[2**64, 1, PID]], [[-1, 1, PID]], [[0, 0, PID]], {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize(
    "tree",
    cases(TREES, [[[1, 2, 3, 4]], [[2**64, 1, PID]], {"a": 1}]),
    ids=lambda tree: str(tree).replace(str(PID), "PID"),
)
def test_wrong_values_in_the_sampled_trees_stop_nothing(team: Team, tree: object) -> None:
    task = team.task("dev-0", TEAM)
    gone = ProcessId(PID, 1, team.processes.boot)  # a pid that belongs to another process now: to this one
    write_record(team.project, agent_of("dev-0", TEAM, gone, claude_dir=team.claude))
    trees = [{"boot": gone.boot, "agents": [[gone.pid, gone.started, tree]]}]
    team.own.trees.write_text(json.dumps({"version": 1, "trees": trees}))

    team.supervise()

    team.wait_given_back(task)


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


@pytest.mark.parametrize("number", cases(range(len(HELD)), [0, 5]))
def test_a_lock_is_broken_only_by_the_note_of_its_maker(team: Team, number: int) -> None:
    new_store(team.project)
    theirs = team.claude / "tasks" / TEAM / "1.json.lock"
    theirs.mkdir(parents=True)
    facts = theirs.lstat()
    note = HELD[number](str(theirs), facts.st_ino, facts.st_mtime_ns)
    (team.own.folder / "held-lock.json").write_text(json.dumps(note))

    team.supervise()

    assert team.running.child.poll() is None, team.running.log.read_text()
    assert theirs.is_dir()


# -- processes with misleading environments ------------------------------------------------------------------------

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


def test_processes_with_malformed_data_stop_no_watcher(team: Team, children: Children) -> None:
    (team.planning / ".execution-state.json").write_text(json.dumps({"plans": [PLAN]}))
    sleep = "import time; time.sleep(600)"
    odd = [
        children.start(
            sys.executable, "-c", sleep, "--agent-id", f"odd-{number}", "--team-name", "odd", cwd=team.project,
            env={**os.environ, **environment},
        )
        for number, environment in enumerate(ENVIRONMENTS)
    ]  # fmt: skip
    odd += [
        children.start(sys.executable, "-c", sleep, "--agent-id", ident, "--team-name", name, cwd=team.project)
        for ident, name in FLAGS
    ]

    team.supervise()
    team.assert_heals(TEAM)
    assert [child.args for child in odd if child.poll() is not None] == []

    for child in odd:
        child.kill()
    team.assert_heals(TEAM)


# -- pids of no process, or of another one -------------------------------------------------------------------------


TOUCHY = """
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCONT):
    signal.signal(number, lambda number, frame: print("signalled", number, flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_pids_in_a_garbage_file_are_neither_signalled_nor_registered(
    team: Team, children: Children, tmux: PrivateTmux
) -> None:
    shell = tmux.session("work", "exec sh -c 'while sleep 60; do :; done'")
    bystander = children.python(TOUCHY, cwd=team.project)
    assert bystander.stdout is not None
    team.supervise()
    numbers = [0, 1, -1, 4294967295, 4294967297, 2**63, os.getpid(), os.getppid(), team.running.child.pid]
    numbers += [tmux.server.pid, shell, bystander.pid]
    words = [str(each) for each in numbers] + ["", "x", "1e3", "0x10", "²", "+7", " 7 7"]
    (team.planning / ".agent-pids").write_text("\n".join(words))
    (team.planning / ".agent-panes").write_text("".join(f"{number} %0\n" for number in numbers))
    (team.planning / ".watchdog-pid").write_text(str(bystander.pid))
    health = ({"pid": number, "role": "dev", "idle_count": 9, "last_event": "idle"} for number in numbers)
    write_all(team.planning / ".agent-health", health)

    team.assert_heals(TEAM)
    team.assert_heals(TEAM)

    assert {e["evidence"]["pid"] for e in team.running.did("registered")}.isdisjoint(numbers)
    assert team.running.did("terminated") == []
    assert [bystander.poll(), tmux.server.poll(), team.running.child.poll()] == [None, None, None]
    assert team.processes.identify(shell) is not None
    os.set_blocking(bystander.stdout.fileno(), False)
    assert bystander.stdout.read() is None, "the bystander got a signal"


def test_a_process_that_reuses_an_agents_pid_is_not_signalled(team: Team, children: Children, project: Path) -> None:
    elsewhere = project.parent
    looks_alike = children.agent("dev-5", "their-team", elsewhere)
    pids = team.planning / ".agent-pids"
    pids.write_text(f"{looks_alike.pid}\n")
    an_hour_ago = time.time() - 3600
    os.utime(pids, (an_hour_ago, an_hour_ago))

    team.supervise()
    team.assert_heals(TEAM)

    assert looks_alike.pid not in [e["evidence"]["pid"] for e in team.running.did("registered")]
    assert looks_alike.poll() is None
