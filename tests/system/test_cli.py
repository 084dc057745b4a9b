"""The command line as people, scripts and hooks use it: the real program, its exit codes, JSON and messages.

Every call here goes through ``Cli``, which also asserts that no mistake ends in a traceback.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.cli import PROGRAM, Cli
from support.daemon import QUICK, RunningDaemon, StartDaemon
from support.processes import Children
from support.project import agent_of, new_store, write_record, write_settings, write_task
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until
from yolo_supervisor import __version__
from yolo_supervisor.cli.app import COMMANDS, GROUPS
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.hook import PAYLOAD_LIMIT
from yolo_supervisor.models import ProcessId, iso
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

Answer = subprocess.CompletedProcess[str]


def dead_agent(project: Path, name: str, team: str) -> None:
    """Record an agent whose process ended while no daemon ran."""
    gone = ProcessId(os.getpid(), 1, Processes(backend()).boot)  # a pid that belongs to another process now
    write_record(project, agent_of(name, team, gone))


def tree(*folders: Path) -> dict[str, tuple[object, ...]]:
    """Everything below the folders: names, modes, times, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (each for folder in folders for each in [folder, *folder.rglob("*")]):
        facts = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(facts.st_mode) else ""
        found[str(path)] = (facts.st_mode, facts.st_ino, facts.st_size, facts.st_mtime_ns, content)
    return found


# -- help ---------------------------------------------------------------------------------------------------------

EVERY_COMMAND = [*COMMANDS, "agent list", "agent register", "agent forget"]


@pytest.mark.parametrize("command", EVERY_COMMAND)
def test_every_command_helps_with_an_example(cli: Cli, command: str) -> None:
    result = cli(*command.split(), "--help")

    assert (result.returncode, result.stderr) == (0, "")
    assert "Example" in result.stdout
    assert f"yolo-supervisor {command}" in result.stdout


@pytest.mark.parametrize("group", [(), ("task",)])
def test_a_group_without_a_command_shows_its_help(cli: Cli, group: tuple[str, ...]) -> None:
    bare, helped = cli(*group), cli(*group, "--help")

    assert (bare.returncode, bare.stdout) == (2, "")
    assert bare.stderr == helped.stdout


def test_the_programs_own_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")

    assert result.returncode == 0
    assert all(re.search(rf"^  {name}\s", result.stdout, re.MULTILINE) for name in COMMANDS)
    assert re.findall(r"^(\w+):$", result.stdout, re.MULTILINE) == ["Options", *GROUPS]


@pytest.mark.parametrize(
    "command", ["", "agent", "task", "lease", "flag", "dead-letter", "crash", "state", "snapshot", "gate", "service"]
)
def test_no_one_line_help_is_truncated(cli: Cli, command: str) -> None:
    listed = cli(*command.split(), "--help").stdout.rpartition("Options:")[2]

    assert "..." not in listed


def test_version_is_printed(cli: Cli) -> None:
    result = cli("--version")

    assert (result.returncode, result.stdout) == (0, f"yolo-supervisor, version {__version__}\n")


# -- the project --------------------------------------------------------------------------------------------------

ABOUT_A_PROJECT = ["status", "check", "doctor", "agent list", "explain task 1"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", ABOUT_A_PROJECT)
def test_the_project_may_stand_before_or_after_the_command(
    cli: Cli, project: Path, tmp_path: Path, command: str
) -> None:
    words, elsewhere = command.split(), {"cwd": tmp_path}

    before = cli("--project", str(project), "--json", *words, **elsewhere)
    after = cli(*words, "--json", "--project", str(project), **elsewhere)

    assert before.returncode == after.returncode
    assert project_of(before) == project_of(after) == str(project)


def project_of(answer: Answer) -> object:
    document = json.loads(answer.stdout)
    return document["projects"][0]["path"] if "projects" in document else document["project"]


def test_inside_a_project_it_need_not_be_named(cli: Cli, project: Path) -> None:
    (project / "src" / "deep").mkdir(parents=True)

    result = cli("agent", "list", "--json", cwd=project / "src" / "deep")

    assert project_of(result) == str(project)


def test_a_missing_project_is_reported(cli: Cli, tmp_path: Path) -> None:
    for words in (["status"], ["check"], ["history"], ["doctor"], ["agent", "list"], ["run"], ["explain", "task", "1"]):
        result = cli(*words, "--project", str(tmp_path / "nowhere"))

        assert (result.returncode, result.stdout) == (1, ""), words
        assert result.stderr == f"yolo-supervisor: {tmp_path / 'nowhere'}: no such folder\n"


# -- wrong usage --------------------------------------------------------------------------------------------------

WRONG = {
    "": "",
    "statsu": "No such command 'statsu'. Did you mean 'status'?",
    "status --nonsense": "No such option",
    "status too many": "unexpected extra argument",
    "status --project": "requires an argument",
    "status --project . --project ..": "give --project once",
    "status --project ''": "the path is empty",
    "run --project ''": "the path is empty",
    "--project '' run": "the path is empty",
    "run --config ''": "the path is empty",
    "history bogus": "'bogus' is not one of",
    "history --since yesterday": "'yesterday' is neither a time",
    "history --since 15x": "neither a time",
    "explain": "Missing argument",
    "explain task": "Missing argument",
    "explain weather 1": "'weather' is not one of",
    "agent": "",
    "agent lsit": "No such command",
    "agent register": "Missing option",
    "agent register --pid 1 --role dev": "--pid 1: no process of an agent",
    "agent register --pid 0 --role dev": "no process",
    "agent register --pid -1 --role dev": "no process",
    "agent register --pid 4294967295 --role dev": "no process",
    "agent register --pid x --role dev": "'x' is not a valid integer",
    "agent register --pid 4194304": "Missing option '--role'",
    "agent forget": "Missing argument",
    "run --log-format xml": "'xml' is not one of",
    "drill --faults volcano": "no fault volcano; the faults are agent-killed",
    "drill --rounds 0": "0 is not in the range",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_ends_in_one_clear_sentence(cli: Cli, line: str) -> None:
    result = cli(*shlex.split(line))

    assert result.returncode == 2
    if WRONG[line]:
        assert result.stdout == ""
        (sentence,) = [each for each in result.stderr.splitlines() if each.startswith("Error: ")]
        assert WRONG[line] in sentence


def test_an_empty_role_or_name_is_not_registered(cli: Cli, project: Path, children: Children) -> None:
    pid = str(children.start("sleep", "600").pid)

    for words in (["--role", " "], ["--role", "dev", "--name", ""]):
        result = cli("agent", "register", "--pid", pid, *words)

        assert result.returncode == 2
        assert "must not be empty" in result.stderr
    assert not Paths(project).folder.exists()


# -- exit codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["explain", "task", "9"], "the journal of PROJECT has no entries about task 9"),
        (["agent", "forget", "ghost"], "no agent ghost; see: yolo-supervisor agent list"),
        (["agent", "register", "--pid", "4194304", "--role", "dev"], "no process 4194304"),
    ],
)
def test_an_answer_that_is_no_exits_with_1(cli: Cli, words: list[str], sentence: str) -> None:
    result = cli(*words)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"yolo-supervisor: {sentence.replace('PROJECT', str(cli.folder))}")
    assert len(result.stderr.splitlines()) == 1


def test_where_tmux_is_missing_a_drill_exits_with_69(cli: Cli) -> None:
    result = cli("drill", env={**os.environ, "PATH": "/nowhere"})

    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr == "yolo-supervisor: tmux is not installed: the drill needs it\n"


def test_where_tmux_is_missing_everything_else_still_answers(cli: Cli) -> None:
    bare = {**os.environ, "PATH": "/nowhere"}

    assert cli("status", env=bare).returncode == 0
    assert cli("check", env=bare).returncode == 0
    doctor = cli("doctor", env=bare)
    assert doctor.returncode == 1
    assert "tmux is not installed" in doctor.stdout


def test_a_second_supervisor_exits_with_75_and_names_the_first(cli: Cli, daemon: StartDaemon) -> None:
    first = daemon()

    result = cli("run")

    assert result.returncode == 75
    assert f"is supervised already, by process {first.child.pid}" in result.stderr
    assert first.child.poll() is None


@pytest.mark.thorough
def test_while_the_store_is_being_written_to_a_command_exits_with_75(
    cli: Cli, project: Path, children: Children
) -> None:
    dead_agent(project, "dev-1", "team")
    pid = children.start("sleep", "600").pid
    with (Paths(project).folder / "store.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        for words in (["agent", "forget", "dev-1@team"], ["agent", "register", "--pid", str(pid), "--role", "dev"]):
            result = cli(*words)

            assert (result.returncode, result.stdout) == (75, ""), words
            assert result.stderr.endswith("try again\n")


BAD_CONFIGURATIONS = {
    "[agents]\nintervall_s = 3": ":2: unknown key 'agents.intervall_s'; did you mean 'agents.interval_s'?",
    "[agents]\n\ninterval_s = 0": ":3: 'agents.interval_s': expected",
    "[processes]\nsample_s = 1e-9": ":2: 'processes.sample_s': expected",
    'mode = "kill"': ":1: 'mode': ",
    "[agents]\ninterval_s = \n[log]": ":2: not valid TOML",
}


@pytest.mark.parametrize("text", BAD_CONFIGURATIONS)
@pytest.mark.parametrize("command", ["status", "run"])
def test_a_bad_configuration_exits_with_78_and_says_where(cli: Cli, project: Path, command: str, text: str) -> None:
    file = project / ".yolo-planning" / "supervisor.toml"
    file.write_text(text)

    result = cli(*command.split())

    assert (result.returncode, result.stdout) == (78, "")
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith(f"yolo-supervisor: {file}{BAD_CONFIGURATIONS[text]}")


def test_a_configuration_that_ends_too_early_says_where_too(cli: Cli, project: Path) -> None:
    file = project / ".yolo-planning" / "supervisor.toml"
    file.write_text("[agents]\ninterval_s =")

    result = cli("check")

    assert result.returncode == 78
    assert result.stderr.startswith(f"yolo-supervisor: {file}:2: not valid TOML")


@pytest.mark.parametrize("command", ["status", "run"])
def test_a_fifo_in_place_of_the_configuration_is_reported_without_waiting(
    cli: Cli, project: Path, command: str
) -> None:
    file = project / ".yolo-planning" / "supervisor.toml"
    os.mkfifo(file)

    result = cli(command, timeout=LIMIT_S)

    assert (result.returncode, result.stdout) == (78, "")
    assert result.stderr == f"yolo-supervisor: {file}: cannot be read: it is no ordinary file\n"


def test_a_fifo_given_as_config_is_reported(cli: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    result = cli("check", "--config", str(tmp_path / "pipe"), timeout=LIMIT_S)

    assert (result.returncode, result.stderr) == (
        78, f"yolo-supervisor: {tmp_path / 'pipe'}: cannot be read: it is no ordinary file\n",
    )  # fmt: skip


def test_a_configuration_file_that_is_named_must_be_there(cli: Cli, tmp_path: Path) -> None:
    for words in (["check", "--config", str(tmp_path / "no.toml")], ["--config", str(tmp_path / "no.toml"), "run"]):
        result = cli(*words)

        assert (result.returncode, result.stderr) == (
            78,
            f"yolo-supervisor: {tmp_path / 'no.toml'}: there is no such file\n",
        )


def test_the_file_that_is_named_wins_over_the_projects(cli: Cli, project: Path, tmp_path: Path) -> None:
    write_settings(project, 'mode = "heal"')
    (tmp_path / "mine.toml").write_text('mode = "observe"')

    assert cli.json("check")["mode"] == "heal"
    assert cli.json("check", "--config", str(tmp_path / "mine.toml"))["mode"] == "observe"


def test_the_doctor_finds_a_bad_configuration(cli: Cli, project: Path) -> None:
    (project / ".yolo-planning" / "supervisor.toml").write_text("mode = ")

    result = cli("doctor")

    assert result.returncode == 1
    assert "not valid TOML" in result.stdout


def test_the_doctor_finds_every_mistake_in_a_configuration_by_itself(cli: Cli, project: Path) -> None:
    file = project / ".yolo-planning" / "supervisor.toml"
    file.write_text("mod = 1\n[agents]\ninterval_s = 0\n[log]\nformat = 'xml'\n")

    problems = [each for each in cli.json("doctor", code=1)["findings"] if each["level"] == "problem"]

    assert sorted(each["what"].removeprefix(str(file))[:3] for each in problems) == [":1:", ":3:", ":5:"]
    assert all(each["do"] for each in problems)


def test_a_reader_that_goes_away_is_no_mishap(cli: Cli, project: Path) -> None:
    there, here = os.pipe()
    os.close(there)

    result = subprocess.run(
        [*PROGRAM, "status", "--json"], cwd=project, stdout=here, stderr=subprocess.PIPE, timeout=LIMIT_S
    )

    os.close(here)
    assert b"Traceback" not in result.stderr


# -- status -------------------------------------------------------------------------------------------------------


def shape(value: object) -> object:
    """The value with its types in the place of its contents, and of a list only the first element."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if isinstance(value, str) and TIME.fullmatch(value):
        return "time"
    return type(value).__name__


def assert_promised(value: object, promised: object, at: str = "") -> None:
    """Assert that every promised key is there, with the promised type; more keys may be."""
    if isinstance(promised, dict):
        assert isinstance(value, dict), at
        for key, each in promised.items():
            assert key in value, f"{at}.{key}"
            assert_promised(value[key], each, f"{at}.{key}")
    elif isinstance(promised, list) and promised:
        assert isinstance(value, list), at
        assert value, f"{at}: nothing to look at"
        assert_promised(value[0], promised[0], f"{at}[0]")
    elif isinstance(promised, set):
        assert value in promised, at
    else:
        assert value == promised, at


AGENT = {
    "id": "str", "name": "str", "role": "str", "team": {"str", "NoneType"}, "pid": "int", "state": "str",
    "source": "str", "since": "time",
}  # fmt: skip
STATUS = {
    "version": "int",
    "at": "time",
    "daemon": {"running": "bool", "pid": "int", "started_at": "time", "mode": "str"},
    "projects": [
        {
            "path": "str",
            "agents": [AGENT],
            "leases": [{"resource": "str", "owner": "str", "expires_at": "time"}],
            "tasks": [
                {"id": "str", "status": "str", "owner": "str", "attempts": "int", "token": {"int", "NoneType"},
                 "list": "str"}
            ],
            "dead_letters": "int",
            "flags": [],
            "sessions": [{"name": "str", "attached": "int", "state": "str"}],
            "watchers": [
                {"name": "str", "interval_s": "float", "last_tick_at": {"time", "NoneType"},
                 "last_error": {"str", "NoneType"}}
            ],
        }
    ],
}  # fmt: skip


def start_agent_in(tmux: PrivateTmux, session: str, name: str, team: str, cwd: Path) -> int:
    flags = f"--agent-id {name}@{team} --agent-name {name} --team-name {team}"
    return tmux.session(
        session, f"cd {cwd} && exec {sys.executable} -c 'import time; time.sleep(600)' {flags} --agent-type dev"
    )


def test_status_contains_every_documented_key(
    cli: Cli, daemon: StartDaemon, project: Path, claude_home: Path, tmux: PrivateTmux
) -> None:
    pid = start_agent_in(tmux, "work", "dev-1", "team", project)
    write_task(claude_home, "team", 3, owner="dev-1", status="in_progress")
    (project / ".yolo-planning" / ".locks").mkdir()
    now = datetime.now(UTC)
    lease = {"resource": "src/a.py", "owner": "dev-1", "acquired_at": iso(now), "ttl_secs": 600}
    (project / ".yolo-planning" / ".locks" / "src__a.py.lease").write_text(json.dumps(lease))
    plans = {"status": "running", "plans": [{"id": "05-01", "title": "Do", "status": "pending"}]}
    (project / ".yolo-planning" / ".execution-state.json").write_text(json.dumps(plans))
    running = daemon(config=QUICK)
    wait_until(lambda: running.did("registered", "dev-1@team"), "the agent to be found")

    status = cli.json("status")

    assert_promised(shape(status), STATUS)
    (seen,) = status["projects"]
    assert (status["version"], status["daemon"]["running"], status["daemon"]["pid"]) == (2, True, running.child.pid)
    assert status["daemon"]["mode"] == "heal"
    (agent,) = seen["agents"]
    assert (agent["id"], agent["name"], agent["role"], agent["team"]) == ("dev-1@team", "dev-1", "dev", "team")
    assert (agent["pid"], agent["state"]) == (pid, "alive")
    assert [(task["id"], task["list"], task["owner"]) for task in seen["tasks"]] == [
        ("team/3", "team", "dev-1"),
        ("execution-state/05-01", "execution-state", None),
    ]
    until = iso(now + timedelta(seconds=600))
    assert seen["leases"] == [{"resource": "src/a.py", "owner": "dev-1", "expires_at": until}]
    assert [(s["name"], s["attached"]) for s in seen["sessions"]] == [("work", 0)]
    assert {watcher["name"] for watcher in seen["watchers"]} >= {"agents", "sessions"}


def test_status_shows_locks_and_pids_whose_holders_are_unknown(cli: Cli, project: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    lock = project / ".git" / "index.lock"
    lock.touch()
    (project / ".yolo-planning" / ".agent-pids").write_text("4194303\n")

    (seen,) = cli.json("status")["projects"]
    text = cli("status").stdout

    assert [(held["path"], held["state"], held["pids"]) for held in seen["locks"]] == [(str(lock), "unknown", [])]
    assert seen["unknown_pids"] == [4194303]
    assert re.search(r"index\.lock +no process was seen with it", text)
    assert "4194303" in text


def test_status_reports_that_no_daemon_runs(
    cli: Cli, daemon: StartDaemon, project: Path, claude_home: Path, children: Children
) -> None:
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    agent = children.agent("dev-1", "team", project)
    daemon(config=QUICK).stop(signal.SIGKILL)

    status, for_people = cli.json("status"), cli("status")

    assert status["daemon"] == {"running": False, "pid": None, "started_at": None, "mode": "heal", "silent_s": None}
    assert [(a["pid"], a["state"]) for a in status["projects"][0]["agents"]] == [(agent.pid, "alive")]
    assert [task["id"] for task in status["projects"][0]["tasks"]] == ["team/1"]
    assert for_people.returncode == 0
    assert "no daemon is running" in for_people.stdout


def test_status_counts_the_requeues_of_a_task(cli: Cli, daemon: StartDaemon, project: Path, claude_home: Path) -> None:
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    dead_agent(project, "dev-1", "team")
    running = daemon(config=QUICK)
    wait_until(lambda: running.did("requeued", "team/1"), "the task to be given back")

    with_agent = cli.json("status", "--project", str(project))

    assert [(t["id"], t["attempts"], t["status"], t["owner"]) for t in with_agent["projects"][0]["tasks"]] in (
        [],  # its list belongs to no session any more
        [("team/1", 1, "pending", None)],
    )


def test_status_in_a_folder_that_is_no_project(cli: Cli, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()

    result = cli("status", cwd=bare)

    assert (result.returncode, result.stderr) == (0, "")
    assert "not supervised" in result.stdout
    assert list(bare.iterdir()) == []


JOURNALS: dict[str, Callable[[Path], object]] = {
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 99),
    "a torn line": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "a line of another": lambda path: path.write_bytes(b'{"seq":1,"action":"died"}\n' + path.read_bytes()),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "not ours to read": lambda path: path.chmod(0),
}


def spoil(journal: str, path: Path) -> None:
    JOURNALS[journal](path)
    if journal == "not ours to read" and os.access(path, os.R_OK):
        pytest.skip("this user may read anything")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("journal", JOURNALS)
def test_status_answers_with_a_broken_journal(cli: Cli, project: Path, claude_home: Path, journal: str) -> None:
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    dead_agent(project, "dev-1", "team")
    spoil(journal, Paths(project).journal)

    document = json.loads(cli("status", "--json", timeout=LIMIT_S).stdout)

    assert [(a["id"], a["state"]) for a in document["projects"][0]["agents"]] == [("dev-1@team", "dead")]
    assert [task["id"] for task in document["projects"][0]["tasks"]] == ["team/1"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("command", ["history", "explain task 1", "doctor", "check"])
def test_every_command_survives_a_broken_journal(cli: Cli, project: Path, command: str, journal: str) -> None:
    dead_agent(project, "dev-1", "team")
    spoil(journal, Paths(project).journal)

    result = cli(*command.split(), timeout=LIMIT_S)

    assert result.returncode in (0, 1, 65)
    assert not result.returncode or result.stdout + result.stderr


def test_the_doctor_counts_the_lines_that_cannot_be_read(cli: Cli, project: Path) -> None:
    dead_agent(project, "dev-1", "team")
    Paths(project).journal.write_bytes(b"what\nis this\n")

    result = cli("doctor")

    assert result.returncode == 1
    assert f"{Paths(project).journal} is damaged in 2 places: a line of 5 bytes cannot be read" in result.stdout


# -- texts of other programs must not drive the terminal ----------------------------------------------------------

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\b\x00\x7fend"


def assert_tame(text: str) -> None:
    raw = {c for c in text if not c.isprintable() and c != "\n"}
    assert not raw, f"control characters reached the terminal: {raw}"


def test_control_characters_of_a_task_never_reach_the_terminal(
    cli: Cli, daemon: StartDaemon, project: Path, claude_home: Path
) -> None:
    write_task(claude_home, "team", 1, owner=NASTY, status="in_progress", subject=f"{NASTY}subject")
    write_task(claude_home, "team", 2, owner="dev-9", status="in_progress", subject=f"{NASTY}subject")
    dead_agent(project, NASTY, "team")
    dead_name = NASTY.replace("\0", "")
    outputs = [cli(command).stdout for command in ("status", "check")]
    running = daemon("--log-format", "console", config=QUICK)
    wait_until(lambda: running.did("requeued", "team/1"), "the task to be given back")
    running.stop()
    outputs += [cli(*w).stdout for w in (["history"], ["explain", "task", "1"], ["explain", "agent", dead_name])]
    outputs += [cli("agent", "list").stdout, cli("doctor").stdout, running.log.read_text()]

    assert all("end" in text for text in (*outputs[:4], outputs[-1])), outputs
    for text in outputs:
        assert_tame(text)


def test_a_line_break_in_a_subject_begins_no_line(cli: Cli, project: Path, claude_home: Path) -> None:
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress", subject="fix\nforged: all is well\nbug")
    write_task(claude_home, "team", 2, owner="dev-1\nforged: owner", status="in_progress")
    dead_agent(project, "dev-1", "team")

    output = cli("status").stdout

    assert "all is well" in output
    assert not [line for line in output.splitlines() if line.startswith("forged")]


def test_json_escapes_control_characters(cli: Cli, project: Path, claude_home: Path) -> None:
    write_task(claude_home, "team", 1, owner=NASTY, status="in_progress")
    dead_agent(project, "dev-1", "team")

    result = cli("status", "--json")

    assert_tame(result.stdout)
    assert json.loads(result.stdout)["projects"][0]["tasks"][0]["owner"] == NASTY


# -- reading changes nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["status", "status --json", "check", "check --json", "doctor", "history", "explain agent dev-1", "agent list"],
)
def test_looking_changes_nothing_on_the_disk(
    cli: Cli, project: Path, claude_home: Path, children: Children, command: str
) -> None:
    planning = project / ".yolo-planning"
    children.agent("dev-2", "team", project)
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    write_task(claude_home, "team", 2, owner="dev-2", status="in_progress")
    dead_agent(project, "dev-1", "team")
    Paths(project).journal.write_bytes(b"damaged\nand torn")
    (planning / ".agent-pids").write_text("4194303\n0\n")
    (planning / ".active-agent-count.lock").mkdir()
    os.utime(planning / ".active-agent-count.lock", (0, 0))
    before = tree(project, claude_home.parent)

    result = cli(*command.split())

    assert result.returncode in (0, 1)
    assert tree(project, claude_home.parent) == before


# -- check --------------------------------------------------------------------------------------------------------


def test_check_shows_the_actions_of_the_daemon(cli: Cli, project: Path, claude_home: Path) -> None:
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    dead_agent(project, "dev-1", "team")

    document = cli.json("check")

    assert [(a["action"], a["kind"], a["key"]) for a in document["actions"]] == [
        ("would_died", "agent", "dev-1@team"),
        ("would_requeued", "task", "team/1"),
        ("would_forgotten", "agent", "dev-1@team"),
    ]
    assert all(a["by"] == "agents" and a["reason"] and a["evidence"] for a in document["actions"])


def test_check_of_a_sound_project_has_nothing_to_do(cli: Cli) -> None:
    result = cli("check")

    assert (result.returncode, result.stderr) == (0, "")
    assert "the configuration is valid" in result.stdout
    assert "nothing to do" in result.stdout


# -- history and explain ------------------------------------------------------------------------------------------

ENTRY = {
    "seq": "int", "at": "time", "kind": "str", "key": "str", "action": "str", "by": "str", "reason": "str",
    "evidence": {}, "project": "str",
}  # fmt: skip


@pytest.fixture
def healed(cli: Cli, daemon: StartDaemon, project: Path, claude_home: Path) -> RunningDaemon:
    """A daemon that has healed one dead agent with one task."""
    write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    dead_agent(project, "dev-1", "team")
    running = daemon(config=QUICK)
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "the agent to be healed")
    return running


def entries(answer: Answer) -> list[dict[str, Any]]:
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line) for line in answer.stdout.splitlines()]


def test_history_without_entries_is_reported(cli: Cli, project: Path) -> None:
    assert cli("history").stdout == f"no entries in the journal of {project}\n"
    assert cli("history", "task").stdout == f"no matching entries in the journal of {project}\n"
    assert cli("history", "--json").stdout == ""


@pytest.mark.usefixtures("healed")
def test_history_prints_one_object_per_line(cli: Cli, project: Path) -> None:
    history = entries(cli("history", "--json"))

    for entry in history:
        assert_promised(shape(entry), ENTRY)
        assert isinstance(entry["evidence"], dict)
        assert entry["project"] == str(project)
    assert [entry["action"] for entry in history] == ["started", "died", "requeued", "forgotten"]
    assert [entry["seq"] for entry in history] == sorted(entry["seq"] for entry in history)
    (requeued,) = (entry for entry in history if entry["action"] == "requeued")
    assert (requeued["kind"], requeued["key"], requeued["by"]) == ("task", "team/1", "agents")
    assert requeued["evidence"]["agent"] == "dev-1@team"


@pytest.mark.usefixtures("healed")
def test_history_may_be_of_one_kind_or_one_key(cli: Cli) -> None:
    def asked(*words: str) -> list[str]:
        return [entry["action"] for entry in entries(cli("history", "--json", *words))]

    assert asked("agent") == ["died", "forgotten"]
    assert asked("task") == asked("task", "team/1") == asked("task", "1") == ["requeued"]
    assert asked("task", "2") == asked("lease") == []


def test_history_of_a_file_shows_its_repair(cli: Cli, project: Path) -> None:
    new_store(project)
    (project / ".yolo-planning" / ".agent-pids").write_text("4194303\n")
    cli("doctor", "--fix")

    history = entries(cli("history", "--json", "file", ".agent-pids"))

    assert [(entry["action"], entry["key"]) for entry in history] == [("repaired", ".agent-pids")]
    assert entries(cli("history", "--json", "file", ".agent-panes")) == []


@pytest.mark.usefixtures("healed")
def test_history_may_begin_at_a_time_or_so_long_ago(cli: Cli) -> None:
    everything = entries(cli("history", "--json"))
    at = everything[2]["at"]

    assert entries(cli("history", "--json", "--since", at)) == everything[2:]
    assert entries(cli("history", "--json", "--since", "1h")) == everything
    assert entries(cli("history", "--json", "--since", "999999999d")) == everything
    assert entries(cli("history", "--json", "--since", "2999-01-01")) == []


@pytest.mark.usefixtures("healed")
def test_history_for_people_is_one_line_an_entry(cli: Cli) -> None:
    result = cli("history")

    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 4
    assert "requeued     task team/1: its owner dev-1 is dead" in result.stdout


def test_history_follows_until_it_is_interrupted(cli: Cli, project: Path, children: Children) -> None:
    dead_agent(project, "dev-1", "team")
    dead_agent(project, "dev-2", "team")
    cli("agent", "forget", "dev-1@team")
    follower = children.start(*PROGRAM, "history", "--json", "--follow", "agent", cwd=project)
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["key"] == "dev-1@team"

    cli("agent", "forget", "dev-2@team")

    assert json.loads(follower.stdout.readline())["key"] == "dev-2@team"
    follower.send_signal(signal.SIGINT)
    assert follower.wait(LIMIT_S) == 0


def test_history_may_be_followed_before_there_is_any(
    cli: Cli, daemon: StartDaemon, project: Path, children: Children
) -> None:
    follower = children.start(*PROGRAM, "history", "--json", "--follow", cwd=project)

    daemon()

    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["action"] == "started"


def test_history_of_a_project_that_was_never_watched_is_empty(cli: Cli, project: Path) -> None:
    result = cli("history", "--json")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not Paths(project).folder.exists()


@pytest.mark.usefixtures("healed")
def test_explain_shows_the_history_with_its_evidence(cli: Cli) -> None:
    task, agent = cli("explain", "task", "1"), cli("explain", "agent", "dev-1")

    assert (task.returncode, agent.returncode) == (0, 0)
    assert "task team/1 requeued" in task.stdout
    assert "because its owner dev-1 is dead (decided by agents)" in task.stdout
    assert "belongs to another process now" in task.stdout
    assert all(turn in agent.stdout for turn in ("agent dev-1@team died", "requeued", "agent dev-1@team forgotten"))


@pytest.mark.usefixtures("healed")
def test_explain_is_one_document_in_json(cli: Cli) -> None:
    document = cli.json("explain", "task", "team/1")

    assert (document["kind"], document["key"]) == ("task", "team/1")
    assert [entry["action"] for entry in document["story"]] == ["requeued"]
    assert cli.json("explain", "task", "7", code=1)["story"] == []


# -- agent --------------------------------------------------------------------------------------------------------


def test_an_agent_is_registered_listed_and_forgotten(cli: Cli, children: Children) -> None:
    pid = children.start("sleep", "600").pid

    register = ("agent", "register", "--pid", str(pid), "--role", "dev", "--name", "dev-7", "--team", "blue")
    assert cli.json(*register) == {"result": "registered", "id": "dev-7@blue", "pid": pid}
    assert cli.json(*register)["result"] == "known"
    (listed,) = cli.json("agent", "list")["agents"]
    assert_promised(shape(listed), AGENT)
    assert (listed["id"], listed["name"], listed["role"], listed["team"]) == ("dev-7@blue", "dev-7", "dev", "blue")
    assert (listed["pid"], listed["state"], listed["source"]) == (pid, "alive", "registered")
    assert "dev-7@blue" in cli("agent", "list").stdout

    assert cli.json("agent", "forget", "dev-7@blue") == {"result": "forgotten", "id": "dev-7@blue"}
    assert cli.json("agent", "list")["agents"] == []
    assert cli("agent", "forget", "dev-7@blue").returncode == 1


def test_the_supervisor_folder_is_private_whichever_command_creates_it(
    cli: Cli, project: Path, children: Children
) -> None:
    cli("agent", "register", "--pid", str(children.start("sleep", "600").pid), "--role", "dev")

    assert stat.S_IMODE(Paths(project).folder.stat().st_mode) == 0o700


def test_an_agent_without_a_name_is_named_by_its_role(cli: Cli, children: Children) -> None:
    pid = children.start("sleep", "600").pid

    result = cli("agent", "register", "--pid", str(pid), "--role", "qa")

    assert (result.returncode, result.stdout) == (0, f"qa: registered, process {pid} is watched\n")


def test_a_registered_agent_that_dies_is_healed(
    cli: Cli, daemon: StartDaemon, claude_home: Path, children: Children
) -> None:
    write_task(claude_home, "blue", 1, owner="dev-7", status="in_progress")
    child = children.start("sleep", "600")
    running = daemon(config=QUICK)
    cli("agent", "register", "--pid", str(child.pid), "--role", "dev", "--name", "dev-7", "--team", "blue")

    child.kill()

    wait_until(lambda: running.did("requeued", "blue/1"), "the task to be given back")


def test_a_forgotten_agent_keeps_its_task_and_its_life(
    cli: Cli, claude_home: Path, project: Path, children: Children
) -> None:
    task = write_task(claude_home, "blue", 1, owner="dev-7", status="in_progress")
    child = children.start("sleep", "600")
    cli("agent", "register", "--pid", str(child.pid), "--role", "dev", "--name", "dev-7", "--team", "blue")
    before = task.read_bytes()

    cli("agent", "forget", "dev-7@blue")

    assert child.poll() is None
    assert task.read_bytes() == before


def test_a_tmux_server_cannot_be_registered(cli: Cli, project: Path, tmux: PrivateTmux) -> None:
    result = cli("agent", "register", "--pid", str(tmux.server.pid), "--role", "dev")

    assert (result.returncode, result.stderr) == (
        1,
        f"yolo-supervisor: process {tmux.server.pid} cannot be registered: it is a tmux server\n",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes of other users")
def test_another_users_process_cannot_be_registered(cli: Cli, children: Children) -> None:
    bystander = children.start("sleep", "600", user="nobody", cwd=Path("/"))

    result = cli("agent", "register", "--pid", str(bystander.pid), "--role", "dev")

    assert result.returncode == 1
    assert "belongs to another user" in result.stderr


def test_a_script_may_register_the_shell_it_runs_in(cli: Cli, project: Path) -> None:
    script = f"{sys.executable} -m yolo_supervisor agent register --pid $$ --role lead; exit $?"

    result = subprocess.run(["sh", "-c", script], cwd=project, capture_output=True, text=True, timeout=LIMIT_S)

    assert result.returncode == 0, result.stderr
    assert "registered" in result.stdout


# -- doctor -------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_a_sound_installation_sound(cli: Cli, healed: RunningDaemon) -> None:
    document = json.loads(cli("doctor", "--json").stdout)

    assert [finding for finding in document["findings"] if finding["level"] == "problem"] == []
    assert document["healthy"] is True
    assert any(f"supervised by process {healed.child.pid}" in finding["what"] for finding in document["findings"])


def test_the_doctor_names_a_fix_for_each_problem(cli: Cli, project: Path) -> None:
    dead_agent(project, "dev-1", "team")
    planning = project / ".yolo-planning"
    Paths(project).folder.chmod(0o755)
    (planning / ".agent-pids").write_text("0\n-1\n4294967295\n4194303\n")
    (planning / ".active-agent-count.lock").mkdir()
    os.utime(planning / ".active-agent-count.lock", (0, 0))

    document = cli.json("doctor", code=1)

    assert document["healthy"] is False
    problems = {finding["what"]: finding["do"] for finding in document["findings"] if finding["level"] == "problem"}
    for words in ("other users can read", "no pids (0, -1, 4294967295)", "(4194303)", "count.lock belongs to"):
        (what,) = [what for what in problems if words in what]
        assert problems[what]


def test_the_doctor_says_which_tmux_server_cannot_be_asked_and_why(team: Team, tmux: PrivateTmux) -> None:
    team.supervise()
    team.pane_agent(tmux, "work", "dev-1")
    server = tmux.server.pid

    def problems() -> dict[str, str]:
        found = team.cli.json("doctor", code=1)["findings"]
        return {each["what"]: each["do"] for each in found if "tmux server" in each["what"]}

    assert not any("tmux server" in each["what"] for each in team.cli.json("doctor")["findings"])
    Path(tmux.socket).rename(f"{tmux.socket}-away")
    ((what, do),) = problems().items()
    assert f"tmux server {server} cannot be reached: its socket {tmux.socket} is gone" in what
    assert do.startswith(f"kill -USR1 {server}")
    tmux.server.send_signal(signal.SIGUSR1)
    wait_until(Path(tmux.socket).exists, "the socket to be made again")
    assert not any("tmux server" in each["what"] for each in team.cli.json("doctor")["findings"])
    tmux.server.send_signal(signal.SIGSTOP)
    (what,) = problems()
    tmux.server.send_signal(signal.SIGCONT)
    assert f"tmux server {server} does not answer" in what


@pytest.mark.sampled(1)
@pytest.mark.parametrize("script", ["exec sleep 600", r"printf 'tmux \377\376'", "exit 7"])
def test_the_doctor_answers_under_any_failure_of_tmux(
    cli: Cli, shadow: Callable[[str, str], None], script: str
) -> None:
    shadow("tmux", script)

    result = cli("doctor")

    assert result.returncode in (0, 1)
    assert ("tmux does not answer" in result.stdout) == ("sleep" in script)


def test_status_reports_a_hung_daemon(team: Team) -> None:
    running = team.supervise(QUICK)
    assert team.cli.json("status")["daemon"]["silent_s"] is None
    running.child.send_signal(signal.SIGSTOP)
    long_ago = time.time() - 100
    os.utime(team.own.holder, (long_ago, long_ago))

    assert "has reported nothing for 100 s" in team.cli("status").stdout
    assert any("has reported nothing" in each["what"] for each in team.cli.json("doctor", code=1)["findings"])


def test_doctor_makes_the_safe_repairs(cli: Cli, project: Path) -> None:
    dead_agent(project, "dev-1", "team")
    planning = project / ".yolo-planning"
    (planning / ".agent-pids").write_text("4194303\n")
    (planning / ".active-agent-count.lock").mkdir()
    os.utime(planning / ".active-agent-count.lock", (0, 0))
    cli("agent", "forget", "dev-1@team")
    Paths(project).folder.chmod(0o755)

    document = cli.json("doctor", "--fix")

    assert document["healthy"] is True
    assert sum(finding["fixed"] for finding in document["findings"]) == 3
    assert stat.S_IMODE(Paths(project).folder.stat().st_mode) == 0o700
    assert (planning / ".agent-pids").read_text() == ""
    assert not (planning / ".active-agent-count.lock").exists()
    assert cli.json("doctor")["healthy"] is True


def test_the_doctor_leaves_a_young_lock_and_a_running_agent_alone(cli: Cli, project: Path, children: Children) -> None:
    agent = children.agent("dev-1", "team", project)
    planning = project / ".yolo-planning"
    (planning / ".agent-pids").write_text(f"{agent.pid}\n")
    (planning / ".active-agent").write_text("dev")
    (planning / ".active-agent-count.lock").mkdir()
    before = tree(planning)

    assert cli("doctor", "--fix").returncode == 0

    assert tree(planning) == before
    assert agent.poll() is None


def findings(answer: Answer) -> dict[str, str]:
    """The doctor's problems, each with its fix; it has looked at the installation, too."""
    assert answer.returncode == 1, answer.stderr
    found = json.loads(answer.stdout)["findings"]
    assert "the configuration is valid" in [each["what"] for each in found]
    return {each["what"]: each["do"] for each in found if each["level"] == "problem"}


def test_the_doctor_finds_a_folder_of_ours_that_may_not_be_read(cli: Cli, project: Path) -> None:
    new_store(project)
    folder = Paths(project).folder
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        pytest.skip("this user may read anything")

    result = cli("doctor", "--json")

    folder.chmod(0o700)
    assert any(str(folder) in what and do for what, do in findings(result).items())


def test_the_doctor_finds_a_journal_that_may_not_be_written(cli: Cli, project: Path) -> None:
    new_store(project)
    journal = Paths(project).journal
    journal.touch()
    journal.chmod(0o400)
    if os.access(journal, os.W_OK):
        pytest.skip("this user may write anywhere")

    assert findings(cli("doctor", "--json"))[f"{journal} cannot be written"]


# -- run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [False, True], ids=["home", "above home"])
def test_a_home_folder_does_not_become_a_project_by_accident(cli: Cli, claude_home: Path, above: bool) -> None:
    home = claude_home.parent
    folder = home.parent if above else home
    before = tree(home)

    result = cli("run", cwd=folder, timeout=LIMIT_S)

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"yolo-supervisor: {folder} contains your home folder")
    assert len(result.stderr.splitlines()) == 1
    assert not Paths(folder).planning.exists()
    assert tree(home) == before


@pytest.mark.parametrize("named", [False, True], ids=["with the plugin's folder", "named"])
def test_a_home_that_is_meant_is_watched(cli: Cli, claude_home: Path, children: Children, named: bool) -> None:
    home = claude_home.parent
    if not named:
        Paths(home).planning.mkdir()

    running = children.start(*PROGRAM, "run", *(["--project", str(home)] if named else []), cwd=home)

    wait_until(lambda: Paths(home).holder.exists() or running.poll() is not None, "the daemon to watch")
    running.terminate()
    assert running.wait(LIMIT_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_ends_cleanly_when_asked(healed: RunningDaemon, number: int) -> None:
    assert healed.stop(number) == 0
    assert healed.did("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_daemon_ends_cleanly_when_asked_as_soon_as_it_says_that_it_started(
    daemon: StartDaemon, number: int
) -> None:
    running = daemon()

    assert running.stop(number) == 0
    assert running.did("stopped")


def test_a_reload_as_soon_as_the_daemon_says_that_it_started_does_not_end_it(daemon: StartDaemon) -> None:
    running = daemon()

    running.child.send_signal(signal.SIGHUP)

    wait_until(lambda: running.did("reloaded") or running.child.poll() is not None, "the reload")
    assert running.child.poll() is None


def test_the_log_is_one_json_object_a_line(healed: RunningDaemon) -> None:
    healed.stop()

    lines = [json.loads(line) for line in healed.log.read_text().splitlines()]

    assert [line["event"] for line in lines] == ["died", "requeued", "forgotten"]
    assert all(TIME.fullmatch(line["timestamp"]) and line["level"] == "info" for line in lines)


def test_observing_touches_nothing_but_the_journal(
    daemon: StartDaemon, project: Path, claude_home: Path, children: Children
) -> None:
    task = write_task(claude_home, "team", 1, owner="dev-1", status="in_progress")
    agent = children.agent("dev-1", "team", project)
    before = task.read_bytes()
    running = daemon("--observe", config=QUICK)
    wait_until(lambda: running.did("would_registered", "dev-1@team"), "the agent to be found")

    agent.kill()

    wait_until(lambda: running.did("would_forgotten", "dev-1@team"), "the agent to be forgotten, as if")
    assert task.read_bytes() == before
    assert {entry["action"] for entry in running.history()} >= {"started", "would_died", "would_forgotten"}
    assert all(e["action"].startswith("would_") for e in running.history() if e["kind"] != "daemon")


def test_a_bad_reload_keeps_the_old_configuration_and_says_so(
    healed: RunningDaemon, project: Path, children: Children
) -> None:
    (project / ".yolo-planning" / "supervisor.toml").write_text("mode = 'kill'")

    healed.child.send_signal(signal.SIGHUP)

    wait_until(lambda: "reload_refused" in healed.log.read_text(), "the refusal to be logged")
    lines = map(json.loads, healed.log.read_text().splitlines())
    assert [line["error"] for line in lines if line["event"] == "reload_refused" and "'mode'" in line["error"]]
    children.agent("dev-2", "team", project)
    wait_until(lambda: healed.did("registered", "dev-2@team"), "the daemon to go on")


# -- drill --------------------------------------------------------------------------------------------------------


def test_the_report_of_a_drill_has_every_promised_key(cli: Cli, tmux: PrivateTmux) -> None:
    document = cli.json("drill", "--faults", "agent-killed", "--seed", "7")

    quantiles = {"p50": "float", "p99": "float"}
    fault = {
        "fault": "str", "injected": "int", "detected": "int", "healed": "int", "lost": "int", "detect_s": quantiles,
        "heal_s": quantiles,
    }  # fmt: skip
    drill = {"seed": "int", "rounds": "int", "faults": [fault], "healing_rate": "float", "lost": "int"}
    assert_promised(shape(document), drill)
    assert (document["seed"], document["rounds"], document["healing_rate"], document["lost"]) == (7, 1, 1.0, 0)


# -- hook ---------------------------------------------------------------------------------------------------------

EVENT = {"session_id": "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7", "hook_event_name": "SessionStart", "source": "startup"}


@pytest.fixture
def hooks(project: Path) -> Path:
    """The folder with the hooks' notes in a supervised project."""
    new_store(project)
    return Paths(project).hooks


def assert_silent(answer: Answer) -> None:
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "")


def test_a_real_hook_note_holds_event_payload_and_ancestors(project: Path) -> None:
    notes = Paths(project).hooks
    notes.mkdir(parents=True)
    payload = {"session_id": "85d6cfb4", "agent_id": "a1", "agent_type": "yolo:yolo-dev", "text": "naïve 😀\n"}

    hook = subprocess.Popen(
        [sys.executable, "-m", "yolo_supervisor", "hook", "SubagentStart"],
        stdin=subprocess.PIPE, cwd=project, env={**os.environ, "CLAUDE_PROJECT_DIR": str(project)},
    )  # fmt: skip
    hook.communicate(json.dumps(payload, ensure_ascii=False).encode(), LIMIT_S)

    (path,) = notes.iterdir()
    note = own_files.hook_note(path.read_bytes(), "SubagentStart")
    assert (note.event, note.payload) == ("SubagentStart", payload)
    assert [pid for pid, *_ in note.ancestry[:2]] == [hook.pid, os.getpid()]
    assert note.ancestry[0][3] == os.getsid(0)


def test_a_hook_leaves_one_note_and_says_nothing(cli: Cli, hooks: Path) -> None:
    assert_silent(cli("hook", "SessionStart", stdin=None, input=json.dumps(EVENT)))

    (note,) = hooks.iterdir()
    found = own_files.hook_note(note.read_bytes(), "SessionStart")
    assert found.payload == EVENT
    assert os.getpid() in [pid for pid, *_ in found.ancestry]


PAYLOADS = {
    "empty": "", "garbage": "\x00\x1b{]" * 99, "an array": "[1, 2]", "torn": '{"session_id": "8',
    "deep": "[" * 100_000, "huge": json.dumps({**EVENT, "prompt": "x" * 2 * PAYLOAD_LIMIT}),
}  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_hook_takes_any_payload(cli: Cli, hooks: Path, payload: str) -> None:
    assert_silent(cli("hook", "SessionStart", stdin=None, input=PAYLOADS[payload]))

    assert all(note.stat().st_size < PAYLOAD_LIMIT + 100_000 for note in hooks.iterdir())


def test_a_client_can_write_a_payload_above_the_limit_to_its_end(cli: Cli, hooks: Path, project: Path) -> None:
    hook = subprocess.Popen(
        [sys.executable, "-m", "yolo_supervisor", "hook", "Stop"], stdin=subprocess.PIPE, cwd=project
    )
    assert hook.stdin is not None
    with hook.stdin as client:  # a BrokenPipeError would fail this test
        client.write(b"{" + b" " * 3 * PAYLOAD_LIMIT)

    assert hook.wait(LIMIT_S) == 0
    (note,) = hooks.iterdir()
    assert len(note.read_bytes().partition(b"\n")[2]) == PAYLOAD_LIMIT


EVENTS = ["NoSuchEvent", "x" * 400, "../../escape", "a b", "", "\x1b[31m", "SessionStart/..", ".", "ünï", "--", "-x"]


@pytest.mark.parametrize("event", EVENTS)
def test_hook_accepts_an_unknown_event(cli: Cli, hooks: Path, project: Path, claude_home: Path, event: str) -> None:
    before = tree(claude_home.parent).keys() | tree(project).keys()

    assert_silent(cli("hook", event, stdin=None, input=json.dumps(EVENT)))

    written = (tree(claude_home.parent).keys() | tree(project).keys()) - before
    assert all(Path(name).parent == hooks for name in written)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.usefixtures("hooks")
def test_a_hook_can_do_without_its_streams(cli: Cli, closed: str) -> None:
    script = f"exec {sys.executable} -m yolo_supervisor hook Stop {closed}"

    result = subprocess.run(["sh", "-c", script], cwd=cli.folder, capture_output=True, text=True, timeout=LIMIT_S)

    assert_silent(result)


def test_a_hook_with_endless_input_ends_soon(cli: Cli, children: Children, hooks: Path) -> None:
    endless = children.start("cat", "/dev/zero")

    assert_silent(cli("hook", "Stop", stdin=endless.stdout))


@pytest.mark.parametrize("payload", [json.dumps(EVENT), "", '{"half": '])
def test_a_hook_ends_although_the_client_leaves_its_input_open(cli: Cli, hooks: Path, payload: str) -> None:
    reader, writer = os.pipe()
    os.write(writer, payload.encode())

    assert_silent(cli("hook", "SessionEnd", stdin=reader))

    os.close(reader)
    os.close(writer)
    (note,) = hooks.iterdir()
    assert note.read_bytes().partition(b"\n")[2] == payload.encode()


def test_a_hook_in_a_folder_that_is_gone(cli: Cli, tmp_path: Path) -> None:
    script = f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m yolo_supervisor hook Stop"

    result = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT_S)

    assert_silent(result)


def test_a_hook_in_a_linked_work_tree_leaves_its_note_in_the_project(
    cli: Cli, hooks: Path, project: Path, tmp_path: Path
) -> None:
    git = ["git", "-C", str(project), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run([*git, "worktree", "add", "-q", str(tmp_path / "beside")], check=True)
    (tmp_path / "beside" / "src").mkdir()

    assert_silent(cli("hook", "Stop", cwd=tmp_path / "beside" / "src", stdin=None, input=json.dumps(EVENT)))

    assert [note.name.partition(".")[0] for note in hooks.iterdir()] == ["Stop"]


def test_a_hook_in_a_folder_that_only_claims_to_be_a_work_tree_writes_nothing(
    cli: Cli, hooks: Path, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "hostile").mkdir()
    (project / ".git" / "worktrees" / "hostile").mkdir(parents=True)
    (project / ".git" / "worktrees" / "hostile" / "gitdir").write_text("/elsewhere/.git\n")
    (tmp_path / "hostile" / ".git").write_text(f"gitdir: {project}/.git/worktrees/hostile\n")

    assert_silent(cli("hook", "Stop", cwd=tmp_path / "hostile", stdin=None, input=json.dumps(EVENT)))

    assert list(hooks.iterdir()) == []


def test_a_hook_outside_of_any_project_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()

    assert_silent(cli("hook", "SessionStart", cwd=tmp_path / "elsewhere", stdin=None, input=json.dumps(EVENT)))

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_hook_finds_the_project_above_it_and_the_one_the_client_names(
    cli: Cli, hooks: Path, project: Path, tmp_path: Path
) -> None:
    (project / "src").mkdir()
    assert_silent(cli("hook", "Stop", cwd=project / "src"))
    assert_silent(cli("hook", "Notification", cwd=tmp_path, env={**os.environ, "CLAUDE_PROJECT_DIR": str(project)}))

    assert sorted(note.name.partition(".")[0] for note in hooks.iterdir()) == ["Notification", "Stop"]


def test_a_hook_that_may_not_write_says_nothing(cli: Cli, hooks: Path) -> None:
    hooks.chmod(0o500)
    if os.access(hooks, os.W_OK):
        pytest.skip("this user may write anywhere")

    assert_silent(cli("hook", "Stop"))

    hooks.chmod(0o700)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda hooks: hooks.rmdir(),
        lambda hooks: (hooks.rmdir(), hooks.write_text("a file")),
        lambda hooks: (hooks.rmdir(), hooks.symlink_to("/nowhere")),
        lambda hooks: [(hooks / str(number)).touch() for number in range(1100)],
    ],
    ids=["missing", "a file", "a link to nowhere", "full"],
)
def test_a_hook_whose_folder_cannot_be_used_says_nothing(
    cli: Cli, hooks: Path, break_it: Callable[[Path], object]
) -> None:
    break_it(hooks)
    before = sorted(path.name for path in hooks.parent.rglob("*"))

    assert_silent(cli("hook", "Stop"))

    assert sorted(path.name for path in hooks.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    ["--project {} hook Stop", "hook --project {} Stop", "hook Stop --project {}", "--json --project {} hook Stop"],
)
def test_hook_accepts_project_option(cli: Cli, hooks: Path, project: Path, tmp_path: Path, line: str) -> None:
    assert_silent(cli(*line.format(project).split(), cwd=tmp_path))

    assert [note.name.partition(".")[0] for note in hooks.iterdir()] == ["Stop"]


@pytest.mark.parametrize("line", ["hook", "hook Stop Stop", "hook --nonsense", "hook --nonsense Stop", "hook Stop -v"])
@pytest.mark.usefixtures("hooks")
def test_a_misconfigured_hook_exits_without_blocking(cli: Cli, line: str) -> None:
    assert cli(*line.split()).returncode == 0


def test_hooks_keep_only_the_newest_of_repeated_notes(cli: Cli, hooks: Path) -> None:
    for _ in range(3):
        cli("hook", "PostToolUse", stdin=None, input=json.dumps(EVENT))

    assert len(list(hooks.iterdir())) == 1


# -- any text, any terminal ------------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("command", ["task list", "status", "doctor", "check", "explain task red/1"])
def test_names_in_any_script_print_on_any_terminal(
    cli_of_teams: Cli, claude_home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    write_task(claude_home, "red", 1, "дев-1", "in_progress", subject="修复 🐛")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")

    result = cli_of_teams(*command.split(), stdin=subprocess.DEVNULL)

    assert result.returncode in (0, 1)


BROKEN: list[object] = [None, 5, "x", [], [5], ["x"], [[]], {}, {"a": 1}, json.loads("[" * 500 + "]" * 500)]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_report_with_wrong_values_everywhere_is_shown(cli: Cli, project: Path, number: int) -> None:
    new_store(project)
    keys = (
        "confidence",
        "why",
        "perhaps",
        "exit",
        "turns",
        "hooks",
        "processes",
        "repository",
        "pane",
        "name",
        "until",
    )
    report = {**dict.fromkeys(keys, BROKEN[number]), "id": "r", "at": "never", "agent": "dev-1", "class": "oom"}
    (Paths(project).crashes / "r.json").write_text(json.dumps(report))

    assert "dev-1 died at never: oom" in cli("crash", "show", "r").stdout
    assert cli("crash", "list").returncode == 0
    assert cli.json("crash", "show", "r")["id"] == "r"


def test_without_a_umask_no_folder_is_open_to_all(cli: Cli, daemon: StartDaemon, project: Path) -> None:
    assert cli("lease", "acquire", "a", "--owner", "dev-1", preexec_fn=lambda: os.umask(0)).returncode == 0

    assert stat.S_IMODE((project / ".yolo-planning/.locks").stat().st_mode) & 0o002 == 0


def test_very_many_and_very_large_notes_of_hooks_are_looked_through_in_portions(
    daemon: StartDaemon, project: Path
) -> None:
    new_store(project)
    hooks = Paths(project).hooks
    for number in range(2100):
        (hooks / f"Notification.{number}.1-1").write_bytes(b"1:1:x:1\n{}")
    for event in ("SubagentStart", "SubagentStop"):
        (hooks / f"{event}.1.1-1").write_bytes(f'{os.getpid()}:1:x:1\n{{"agent_id": "a-1", "x": "'.encode())
        os.truncate(hooks / f"{event}.1.1-1", 500_000_000)

    running = daemon(config=QUICK)

    assert len(list(hooks.iterdir())) > 1000  # not all of them before it watches
    running.wait(lambda: not list(hooks.iterdir()), "all to be removed")
