"""The real daemon on real processes: its promises from its start to its end."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import pytest

from support.daemon import RunningDaemon
from support.processes import Children
from support.project import read_task, write_settings, write_task
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.daemon import Daemon, Options
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths

Start = Callable[..., RunningDaemon]

QUICK = """
[processes]
grace_s = 0.5
sample_s = 0.1
[agents]
interval_s = 0.5
[sessions]
interval_s = 0.3
"""

TOOL = (
    "import subprocess, sys; "
    "t = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
    "open('tool.pid', 'w').write(str(t.pid))"
)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def found(daemon: RunningDaemon, *ids: str) -> None:
    for ident in ids:
        wait_until(lambda ident=ident: daemon.did("registered", ident), f"{ident} to be found")


def command(*words: str, project: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "yolo_supervisor", *words, "--project", str(project)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


# -- recovery ---------------------------------------------------------------------------------------------------


def test_a_killed_agent_is_healed_and_everything_else_is_untouched(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    planning = project / ".yolo-planning"
    mine, other = (
        write_task(claude_home, "team", 1, "dev-1", "in_progress"),
        write_task(claude_home, "team", 2, "dev-2", "in_progress"),
    )
    done = write_task(claude_home, "team", 3, "dev-1", "completed", metadata={"kept": [1, 2.5, None]})
    foreign = write_task(claude_home, "elsewhere", 1, "dev-1", "in_progress")
    untouched = {path: path.read_bytes() for path in (other, done, foreign)}
    victim = children.agent("dev-1", "team", project, TOOL)
    tool = int((project / "tool.pid").read_text())
    other_agent = children.agent("dev-2", "team", project)
    (planning / ".locks").mkdir()
    lease = planning / ".locks" / "src__a.js.lease"
    lease.write_text(json.dumps({"acquired_at": "2026-11-22T20:55:10Z", "owner": "dev-1", "resource": "src/a.js",
                                 "ttl_secs": 999999999, "type": "lease"}))  # fmt: skip
    (planning / ".agent-pids").write_text(f"{victim.pid}\n{other_agent.pid}\n")
    (planning / ".agent-panes").write_text(f"{victim.pid} %1\n{other_agent.pid} %2\n")
    (planning / ".agent-health").mkdir()
    (planning / ".agent-health" / "dev.json").write_text(json.dumps({"pid": victim.pid, "role": "dev"}))
    (planning / ".active-agent-count").write_text("2")
    running = daemon(config=QUICK)
    found(running, "dev-1@team", "dev-2@team")
    wait_until(lambda: running.sees(tool), "the tool to be seen")

    victim.kill()
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed")

    task = read_task(mine)
    assert (task["status"], "owner" in task, task["subject"]) == ("pending", False, "Fix bug")
    assert {path: path.read_bytes() for path in untouched} == untouched
    assert not lives(tool)
    assert lives(other_agent.pid)
    assert not lease.exists()
    assert (planning / ".agent-pids").read_text() == f"{other_agent.pid}\n"
    assert (planning / ".agent-panes").read_text() == f"{other_agent.pid} %2\n"
    assert not (planning / ".agent-health" / "dev.json").exists()
    assert (planning / ".active-agent-count").read_text() == "1"
    order = [e["action"] for e in running.history() if e["evidence"].get("agent") == "dev-1@team"]
    assert order.index("terminated") > order.index("released")
    order.remove("terminated")  # a process that ends at once is recorded after its end
    assert order == ["requeued", "released", "repaired", "repaired", "repaired", "repaired", "forgotten"]
    story = command("explain", "task", "team/1", project=project).stdout
    assert "its owner dev-1 is dead" in story
    assert f"pid: {victim.pid}" in story


def test_a_server_that_was_sent_to_the_background_before_survives_its_agent(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    background = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', '''"
        "import subprocess, sys\n"
        's = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)\n'
        'open("server.pid", "w").write(str(s.pid))\'\'\'])'
    )
    victim = children.agent("dev-1", "team", project, background)
    server = int((project / "server.pid").read_text())
    running = daemon(config=QUICK)
    found(running, "dev-1@team")
    try:
        victim.kill()
        wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be forgotten")
        assert lives(server)
    finally:
        os.kill(server, signal.SIGKILL)


def test_an_agent_that_dies_while_no_daemon_runs_is_healed_at_the_next_start(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project, TOOL)
    tool = int((project / "tool.pid").read_text())
    first = daemon(config=QUICK)
    found(first, "dev-1@team")
    wait_until(lambda: first.sees(tool), "the tool to be seen")
    first.child.kill()
    first.child.wait()

    victim.kill()
    victim.wait()
    second = daemon()
    wait_until(lambda: second.did("forgotten", "dev-1@team"), "dev-1 to be healed")

    assert read_task(task)["status"] == "pending"
    assert not lives(tool)


def test_a_restart_of_the_supervisor_harms_no_agent(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    agent = children.agent("dev-1", "team", project)
    first = daemon(config=QUICK)
    found(first, "dev-1@team")
    assert first.stop() == 0

    second = daemon()
    wait_until(lambda: len(second.did("started")) == 2, "the second start")
    assert second.stop() == 0

    assert lives(agent.pid)
    assert read_task(task)["owner"] == "dev-1"
    assert len(second.did("registered", "dev-1@team")) == 1


def test_a_task_that_was_finished_between_look_and_write_stays_finished(project: Path, claude_home: Path) -> None:
    from yolo_supervisor.actions.tasks import Requeue
    from yolo_supervisor.models import Task
    from yolo_supervisor.store.store import Outcome, Store

    path = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    store = Store(project)
    store.open()
    task = Task(list="team", number="1", status="in_progress", owner="dev-1", path=path)
    action = Requeue(key=task.id, task=task, owner="dev-1", cause="died", reason="its owner dev-1 is dead")
    write_task(claude_home, "team", 1, "dev-1", "completed")

    assert store.commit(action, "agents") is Outcome.STALE
    assert read_task(path)["status"] == "completed"


def test_a_task_is_left_until_the_client_gives_its_lock_back(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    path = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    lock = path.with_name("1.json.lock")
    victim = children.agent("dev-1", "team", project)
    running = daemon(config=QUICK)
    found(running, "dev-1@team")
    lock.mkdir()

    victim.kill()
    wait_until(lambda: running.did("died", "dev-1@team"), "the death to be recorded")
    assert read_task(path)["owner"] == "dev-1"
    assert not running.did("forgotten", "dev-1@team")

    lock.rmdir()
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed")
    assert read_task(path)["status"] == "pending"


# -- one supervisor, its configuration, its signals ----------------------------------------------------------------


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(daemon: Start, project: Path) -> None:
    first = daemon()
    second = command("run", project=project)

    assert second.returncode == 75
    assert f"process {first.child.pid}" in second.stderr
    assert first.child.poll() is None


def test_a_mistake_in_the_configuration_ends_the_start_with_file_line_key_and_nearest_name(project: Path) -> None:
    (project / ".yolo-planning" / "supervisor.toml").write_text("[sessions]\non_detatch = 'keep'\n")
    ended = command("run", project=project)

    assert ended.returncode == 78
    assert "supervisor.toml:2: unknown key 'sessions.on_detatch'; did you mean 'sessions.on_detach'?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_sighup_reloads_and_a_bad_file_keeps_the_old_configuration(daemon: Start, project: Path) -> None:
    running = daemon(config="mode = 'heal'\n")
    file = project / ".yolo-planning" / "supervisor.toml"

    file.write_text("mode = 'obsreve'\n")
    running.child.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload_refused" in running.log.read_text(), "the bad file to be refused")
    assert not running.did("reloaded")

    file.write_text("mode = 'observe'\n")
    running.child.send_signal(signal.SIGHUP)
    wait_until(lambda: running.did("reloaded"), "the reload")
    assert running.did("reloaded")[0]["evidence"] == {"mode": "observe"}
    assert running.stop() == 0


async def test_a_bad_file_of_one_project_keeps_no_other_from_its_new_configuration(
    project: Path, claude_home: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / ".yolo-planning").mkdir(parents=True)
    daemon = Daemon(Options(projects=(project, other)))
    for path in (project, other):
        daemon.projects[path] = daemon._project(path, Config())
    (project / ".yolo-planning" / "supervisor.toml").write_text("mode = 'obsreve'\n")
    (other / ".yolo-planning" / "supervisor.toml").write_text("mode = 'observe'\n")

    async with anyio.create_task_group() as tasks:
        daemon._reload(tasks)

    assert (daemon.projects[project].config.mode, daemon.projects[other].config.mode) == ("heal", "observe")
    assert "supervisor.toml:1" in daemon._refused


async def test_a_reload_that_fails_in_any_way_is_refused_and_the_old_configuration_kept(
    project: Path, claude_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(Options(projects=(project,)))
    monkeypatch.setattr(daemon, "_load", lambda _: os.stat("/nowhere/at/all"))

    async with anyio.create_task_group() as tasks:
        daemon._reload(tasks)

    assert "FileNotFoundError" in daemon._refused
    assert daemon.config == Config()


def test_a_daemon_that_fails_ends_and_waits_for_no_change_first(project: Path, claude_home: Path) -> None:
    program = """
import sys, anyio
from pathlib import Path
from yolo_supervisor.daemon.daemon import Daemon, Options, start
from yolo_supervisor.daemon.runner import Runner

async def fails(self):
    while not anyio.to_thread.current_default_thread_limiter().borrowed_tokens:
        await anyio.sleep(0.01)
    raise LookupError("so it ends")

Runner.edges = lambda self: [(Path(sys.argv[2]), self.wakeups["agents"])]
Daemon._keep_manager_informed = fails
start(Options(projects=(Path(sys.argv[1]),)))
"""
    quiet = project / "src"
    quiet.mkdir()
    argv = [sys.executable, "-c", program, str(project), str(quiet)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    assert ended.returncode == 1
    assert "so it ends" in ended.stderr


def test_a_storm_of_sighups_is_survived_and_agents_are_still_healed(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project)
    running = daemon(config=QUICK)
    found(running, "dev-1@team")

    for number in range(300):
        running.child.send_signal(signal.SIGHUP)
        if number == 150:
            victim.kill()
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed")

    assert read_task(task)["status"] == "pending"
    assert running.stop() == 0


def test_a_project_that_a_reload_takes_away_is_let_go_and_the_others_go_on(
    daemon: Start, children: Children, project: Path, claude_home: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / ".yolo-planning").mkdir(parents=True)
    file = tmp_path / "projects.toml"
    file.write_text(f"projects = ['{project}', '{other}']\n")
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        child = children.start(sys.executable, "-m", "yolo_supervisor", "run", "--config", str(file), stderr=stderr)
    holder = other / ".yolo-planning" / ".supervisor" / "daemon.json"
    wait_until(holder.exists, "both to be watched")
    children.agent("dev-1", "team", other)
    wait_until(lambda: list(other.glob(".yolo-planning/.supervisor/agents/dev-1*")), "an agent to be watched there")

    file.write_text(f"projects = ['{project}']\n")
    child.send_signal(signal.SIGHUP)
    wait_until(lambda: not holder.exists(), "the other to be let go")

    assert command("status", "--json", project=project).returncode == 0
    assert child.poll() is None
    child.terminate()
    assert child.wait(LIMIT_S) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(daemon: Start, number: int) -> None:
    running = daemon()
    assert running.stop(number) == 0
    assert [e["action"] for e in running.history()] == ["started", "stopped"]
    assert not (running.folder / "daemon.json").exists()


def test_a_second_signal_ends_it_at_once_though_a_grace_period_is_running(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    stubborn = TOOL.replace("import time;", "import signal, time; signal.signal(15, signal.SIG_IGN);")
    victim = children.agent("dev-1", "team", project, stubborn)
    tool = int((project / "tool.pid").read_text())
    running = daemon(config=QUICK.replace("grace_s = 0.5", "grace_s = 600"))
    found(running, "dev-1@team")
    wait_until(lambda: running.sees(tool), "the tool to be seen")
    victim.kill()
    wait_until(lambda: b'"begun":true' in (running.folder / "journal.jsonl").read_bytes(), "the grace period")
    try:
        running.child.send_signal(signal.SIGTERM)
        wait_until(lambda: (running.child.send_signal(signal.SIGTERM), running.child.poll())[1] is not None, "the end")
        assert running.child.returncode in (143, -signal.SIGTERM)
    finally:
        os.kill(tool, signal.SIGKILL)


@pytest.mark.parametrize("value", ["9" * 5000, "9" * 400, "1", "0", "²", ""])
async def test_any_watchdog_interval_of_the_service_manager_is_served(
    project: Path, claude_home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", value)
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    naps: list[float] = []
    monkeypatch.setattr("yolo_supervisor.daemon.daemon.until_next", lambda every_s: naps.append(every_s) or 3600.0)
    daemon = Daemon(Options(projects=(project,)))

    with anyio.move_on_after(0.01):
        await daemon._keep_manager_informed()

    assert naps == [0.5 if value == "1" else 10.0]


def test_the_service_manager_hears_ready_reloading_stopping_and_the_watchdog(
    daemon: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tmp_path / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(LIMIT_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(address))
        monkeypatch.setenv("WATCHDOG_USEC", "300000")
        heard: list[str] = []

        def hear(word: str) -> str:
            while not any(word in message for message in heard):
                heard.append(manager.recv(4096).decode())
            return next(message for message in heard if word in message)

        running = daemon()
        assert "STATUS=1 projects, 0 agents" in hear("READY=1")
        hear("WATCHDOG=1")
        heard.clear()
        running.child.send_signal(signal.SIGHUP)
        assert re.search(r"MONOTONIC_USEC=\d+", hear("RELOADING=1"))
        hear("READY=1")
        running.child.send_signal(signal.SIGTERM)
        hear("STOPPING=1")


# -- failures ---------------------------------------------------------------------------------------------------


def test_projects_are_isolated_from_each_others_failures(
    daemon: Start, children: Children, project: Path, claude_home: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    (broken / ".yolo-planning" / ".supervisor").mkdir(parents=True)
    (broken / ".yolo-planning" / ".supervisor" / "journal.jsonl").mkdir()
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project)
    running = daemon("--project", str(broken), config=QUICK)
    found(running, "dev-1@team")

    victim.kill()
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed")

    assert read_task(task)["status"] == "pending"
    assert str(broken) in running.log.read_text()


def test_a_recreated_project_is_watched_again(
    daemon: Start, children: Children, project: Path, tmp_path: Path, claude_home: Path
) -> None:
    other = tmp_path / "other"
    (other / ".yolo-planning").mkdir(parents=True)
    running = daemon("--project", str(other), config=QUICK)
    wait_until(
        lambda: shutil.rmtree(project, ignore_errors=True) or not project.exists(), "the daemon to stop writing there"
    )
    wait_until(lambda: "is gone" in running.log.read_text(), "the loss to be logged")

    (project / ".yolo-planning").mkdir(parents=True, exist_ok=True)  # the daemon may be there first
    wait_until(lambda: running.did("started"), "the project to be watched again")
    agent = children.agent("dev-1", "team", project)
    found(running, "dev-1@team")
    assert lives(agent.pid)
    assert running.stop() == 0


def test_no_action_is_taken_until_it_can_be_journaled(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project, TOOL)
    tool = int((project / "tool.pid").read_text())
    running = daemon(config=QUICK)
    found(running, "dev-1@team")
    wait_until(lambda: running.sees(tool), "the tool to be seen")
    full = (running.folder / "journal.jsonl").stat().st_size
    unlimited = resource.prlimit(running.child.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))

    victim.kill()
    wait_until(lambda: "File too large" in running.log.read_text(), "the error to be logged")
    assert read_task(task)["owner"] == "dev-1"
    assert lives(tool)

    resource.prlimit(running.child.pid, resource.RLIMIT_FSIZE, unlimited)
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed")
    assert read_task(task)["status"] == "pending"
    assert not lives(tool)
    assert running.log.read_text().count("File too large") <= 3


@pytest.fixture(params=["a full disk", "a reader that is gone"])
def unheard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """A stream to which nothing can be written; the text for it stays in the writer's buffer."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    if request.param == "a full disk":
        stream = open("/dev/full", "wb")  # noqa: SIM115 - closed below
    else:
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "wb")
    yield stream
    stream.close()


def test_the_daemon_recovers_agents_with_an_unwritable_log(
    unheard: BinaryIO, children: Children, project: Path, claude_home: Path
) -> None:
    write_settings(project, QUICK)
    tasks = [write_task(claude_home, "team", n, f"dev-{n}", "in_progress") for n in (1, 2)]
    child = children.start(sys.executable, "-m", "yolo_supervisor", "run", stderr=unheard, cwd=project)
    running = RunningDaemon(project, child, Path(os.devnull))

    for number, task in enumerate(tasks, 1):
        victim = children.agent(f"dev-{number}", "team", project)
        running.wait(lambda number=number: running.did("registered", f"dev-{number}@team"), "it to be found")
        victim.kill()
        running.wait(lambda number=number: running.did("forgotten", f"dev-{number}@team"), "it to be healed")
        assert read_task(task)["status"] == "pending"


def test_the_daemon_ends_cleanly_with_an_unwritable_log(unheard: BinaryIO, children: Children, project: Path) -> None:
    write_settings(project, QUICK)
    victim = children.agent("dev-1", "team", project)
    child = children.start(sys.executable, "-m", "yolo_supervisor", "run", stderr=unheard, cwd=project)
    running = RunningDaemon(project, child, Path(os.devnull))
    running.wait(lambda: running.did("registered", "dev-1@team"), "dev-1 to be found")
    victim.kill()
    running.wait(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed, which is logged")

    assert running.stop() == 0


def test_a_second_signal_ends_the_daemon_at_once_even_if_its_log_cannot_be_written(
    unheard: BinaryIO, children: Children, project: Path
) -> None:
    write_settings(project, QUICK.replace("grace_s = 0.5", "grace_s = 600"))
    stubborn = TOOL.replace("import time;", 'import signal, time; signal.signal(15, lambda *_: open("asked", "w"));')
    victim = children.agent("dev-1", "team", project, stubborn)
    tool = int((project / "tool.pid").read_text())
    child = children.start(sys.executable, "-m", "yolo_supervisor", "run", stderr=unheard, cwd=project)
    running = RunningDaemon(project, child, Path(os.devnull))
    try:
        running.wait(lambda: running.sees(tool), "the tool to be seen")
        victim.kill()
        running.wait((project / "asked").exists, "the grace period")
        child.send_signal(signal.SIGINT)
        assert running.stop() in (130, 143)  # sent so close together, either may be the second
    finally:
        os.kill(tool, signal.SIGKILL)


def test_missing_tmux_is_reported_once_and_agents_are_still_recovered(
    daemon: Start, children: Children, project: Path, claude_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project)
    monkeypatch.setenv("PATH", "/nowhere")
    running = daemon(config=QUICK)
    found(running, "dev-1@team")

    victim.kill()
    wait_until(lambda: running.did("forgotten", "dev-1@team"), "dev-1 to be healed")

    assert read_task(task)["status"] == "pending"
    assert running.log.read_text().count("tmux is not on PATH") == 1


def test_an_idle_daemon_logs_nothing(daemon: Start, children: Children, project: Path) -> None:
    children.agent("dev-1", "team", project)
    running = daemon(config=QUICK)
    found(running, "dev-1@team")
    looks = [json.loads((running.folder / "daemon.json").read_text())["watchers"][0]["last_tick_at"]]
    size, journal = running.log.stat().st_size, (running.folder / "journal.jsonl").stat().st_size

    def looked_again() -> bool:
        looks.append(json.loads((running.folder / "daemon.json").read_text())["watchers"][0]["last_tick_at"])
        return len(set(looks)) > 1

    wait_until(looked_again, "further looks")
    assert (running.log.stat().st_size, (running.folder / "journal.jsonl").stat().st_size) == (size, journal)


# -- observe mode ------------------------------------------------------------------------------------------------

WRITES = ("rename", "unlink", "mkdir", "rmdir", "chmod", "chown", "truncate", "link(", "symlink", "mknod", "utime")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: observe mode is not proven here")
def test_observing_writes_nothing_but_our_own_folder_and_sends_no_signal(
    daemon: Start, children: Children, project: Path, claude_home: Path, tmp_path: Path
) -> None:
    write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project, TOOL)
    tool = int((project / "tool.pid").read_text())
    planning = project / ".yolo-planning"
    (planning / ".agent-pids").write_text(f"{victim.pid}\n999999\n")
    (planning / ".active-agent").write_text("dev")
    (planning / ".locks").mkdir()
    (planning / ".locks" / "a.lease").write_text(json.dumps({"owner": "dev-1", "resource": "a", "ttl_secs": 9}))
    running = daemon("--observe", config=QUICK)
    wait_until(lambda: running.did("would_registered", "dev-1@team") and running.sees(tool), "dev-1 to be found")
    trace = tmp_path / "trace"
    watching = children.start("strace", "-f", "-y", "-qq", "-e", "trace=file,desc,kill,tgkill,pidfd_send_signal",
                              "-o", str(trace), "-p", str(running.child.pid))  # fmt: skip
    wait_until(lambda: trace.exists() and trace.stat().st_size, "strace to watch")
    before = {path: path.read_bytes() for path in _files(tmp_path) if ".supervisor" not in path.parts}

    victim.kill()
    victim.wait()
    wait_until(lambda: running.did("would_terminated"), "the decision")
    running.child.send_signal(signal.SIGTERM)
    running.child.wait(LIMIT_S)
    watching.wait(LIMIT_S)

    ignored = {running.log, trace}
    after = {path: path.read_bytes() for path in _files(tmp_path) if ".supervisor" not in path.parts}
    assert {p: d for p, d in after.items() if p not in ignored} == {p: d for p, d in before.items() if p not in ignored}
    assert lives(tool)
    os.kill(tool, signal.SIGKILL)
    calls = trace.read_text().splitlines()
    assert [c for c in calls if _signals(c)] == []
    assert [
        c for c in calls if _writes(c) and str(Paths(project).folder.parent) not in c and str(running.log) not in c
    ] == []
    done = {e["action"] for e in running.history()} - {"started", "stopped"}
    assert {"would_died", "would_requeued", "would_released", "would_terminated"} <= done
    assert all(action.startswith("would_") for action in done)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _signals(call: str) -> bool:
    sent = re.search(r"(?:kill|pidfd_send_signal)\(.*?(SIG\w+|\b0\b)(?:, NULL, 0)?\)", call)
    return sent is not None and sent[1].startswith("SIG")  # kill(pid, 0) only asks


def _writes(call: str) -> bool:
    name = re.sub(r"^\d+\s+", "", call)
    if name.startswith(("openat(", "open(", "creat(")):
        return any(flag in name for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")) and "/dev/null" not in name
    if name.startswith(("write(", "pwrite64(", "writev(")):
        return not re.search(r"\(\d+<(pipe|socket|anon_inode|UNIX|/dev/)", name)
    return name.startswith(WRITES)


def test_a_daemon_that_observes_can_be_made_to_heal_by_a_reload(
    daemon: Start, children: Children, project: Path, claude_home: Path
) -> None:
    task = write_task(claude_home, "team", 1, "dev-1", "in_progress")
    victim = children.agent("dev-1", "team", project)
    running = daemon(config="mode = 'observe'\n" + QUICK)
    wait_until(lambda: running.did("would_registered", "dev-1@team"), "dev-1 to be found")
    victim.kill()
    wait_until(lambda: running.did("would_requeued"), "the decision")
    assert read_task(task)["owner"] == "dev-1"

    write_settings(project, QUICK)
    running.child.send_signal(signal.SIGHUP)
    wait_until(lambda: running.did("requeued"), "dev-1 to be healed")
    assert read_task(task)["status"] == "pending"


def status(project: Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(command("status", "--json", project=project).stdout)
    return answer


def test_the_tree_of_an_agent_is_saved_at_its_registration(daemon: Start, children: Children, project: Path) -> None:
    """If the daemon dies before its next sample, the following one knows every orphan."""
    start = "tool = subprocess.Popen(['sleep', '600'])"
    program = f"import subprocess; {start}; print('started', tool.pid, sep='\\n', flush=True)"
    agent = children.agent("dev-1", "team", project, program)
    assert agent.stdout is not None
    tool = int(agent.stdout.readline())
    running = daemon(config="[processes]\nsample_s = 86400.0\n")
    found(running, "dev-1@team")

    running.wait(lambda: running.sees(tool), "its tree")


def test_status_shows_the_running_daemon(daemon: Start, children: Children, project: Path) -> None:
    agent = children.agent("dev-1", "team", project)
    running = daemon(config=QUICK)
    found(running, "dev-1@team")

    answer = status(project)
    assert answer["daemon"] == {**answer["daemon"], "running": True, "pid": running.child.pid, "mode": "heal"}
    agents = answer["projects"][0]["agents"]
    assert [(a["id"], a["pid"], a["state"]) for a in agents] == [("dev-1@team", agent.pid, "alive")]
    names = [watcher["name"] for watcher in answer["projects"][0]["watchers"]]
    assert names == ["state", "agents", "sessions", "tasks", "strays", "restarts", "leases", "flags"]


def test_the_daemon_exits_when_it_is_out_of_memory(
    project: Path, claude_home: Path, children: Children, tmp_path: Path
) -> None:
    if sys.platform != "linux":
        pytest.skip("the limit is Linux's")
    log = tmp_path / "log"
    words = (
        "-m",
        "yolo_supervisor.drill.daemon_under_test",
        str(tmp_path / "no-skew"),
        "run",
        "--project",
        str(project),
    )
    with log.open("wb") as stderr:
        starving = children.start(sys.executable, *words, stderr=stderr)
    journal = Paths(project).journal
    wait_until(lambda: any(entry["action"] == "started" for entry in history(journal)), "it to start")

    starving.send_signal(signal.SIGUSR1)

    assert starving.wait(LIMIT_S) != 0
    assert log.stat().st_size < 20_000
