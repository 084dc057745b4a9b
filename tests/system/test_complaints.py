"""Complaints of users of other supervisors, in their words: none may come true here.

The tests run the real daemon over real processes, and where they are about tmux, over a real server of our own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import anyio
import psutil
import pytest

from support.daemon import QUICK
from support.processes import Children
from support.project import given_back, health_of, read_task, write_task
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.clock import SystemClock, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import Pane, ProcessId
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.watchers.base import Remediation

BRISK = QUICK.replace("interval_s = 0.3", "interval_s = 0.05")
PATIENT = BRISK + "\n[tasks]\nmax_attempts = 1000\npoison_s = 0\nbackoff_s = 0\n"


def long_ago(path: Path) -> Path:
    """Date the file back by a day."""
    os.utime(path, (time.time() - 86400, time.time() - 86400))
    return path


class Clients:
    """Every client of tmux that any process starts: it notes its arguments, and becomes the real one."""

    def __init__(self, folder: Path, real: str, shadow: Callable[[str, str], None]) -> None:
        self._folder = folder
        folder.mkdir()
        shadow("tmux", f'echo "$*" > {folder}/$PPID.$$\nexec {real} "$@"')

    def of(self, team: Team) -> list[Path]:
        """The notes of the clients that the daemon has started, oldest first."""
        return sorted(self._folder.glob(f"{team.running.child.pid}.*"), key=lambda note: note.stat().st_mtime_ns)

    def times(self, team: Team) -> list[float]:
        """The start times of the daemon's clients."""
        return [note.stat().st_mtime for note in self.of(team)]

    def questions(self, notes: Iterable[Path] | None = None) -> set[str]:
        """The clients' arguments, without those of a client that is still writing its note."""
        return {text for note in notes or self._folder.iterdir() if (text := note.read_text())}


@pytest.fixture
def clients(tmp_path: Path, tmux: PrivateTmux, shadow: Callable[[str, str], None]) -> Clients:
    return Clients(tmp_path / "clients", str(shutil.which("tmux")), shadow)


@pytest.fixture
def other_tmux(tmp_path: Path, tmux: PrivateTmux) -> Iterator[PrivateTmux]:
    """A second server beside the first."""
    (tmp_path / "other").mkdir()
    started = PrivateTmux(tmp_path / "other")
    yield started
    started.end()


def children_of(team: Team) -> list[int]:
    """The processes that the daemon has started and that are still there."""
    return [child.pid for child in psutil.Process(team.running.child.pid).children()]


def mentioning(folder: Path) -> set[int]:
    """The processes with the folder in their command line or as their working directory."""
    each = psutil.process_iter(["cmdline", "cwd"])
    return {process.pid for process in each if str(folder) in f"{process.info}"}


# -- 1: killed because idle ---------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_my_agent_was_killed_because_it_was_idle(team: Team, tmux: PrivateTmux) -> None:
    team.supervise()
    idle = team.pane_agent(tmux, "work", "dev-1")
    (team.planning / ".agent-health").mkdir()
    health = json.dumps(health_of("dev", idle, idle_count=99))
    long_ago(team.planning / ".agent-health").joinpath("dev.json").write_text(health)

    wait_until(lambda: team.running.did("escalated"), "an alert about its idle turns")
    team.wait_looks(3)

    assert team.alive(idle)
    assert team.running.did("terminated") == []
    assert "the supervisor does nothing about it" in team.running.did("escalated")[0]["reason"]


# -- 2: killed while working --------------------------------------------------------------------------------------


def test_my_agent_was_killed_while_it_quietly_wrote_its_files(team: Team) -> None:
    team.supervise()
    task = long_ago(team.task("dev-1"))
    worker = team.agent("dev-1")
    locks = team.planning / ".locks"
    locks.mkdir()
    lease = {"acquired_at": "2026-01-01T00:00:00Z", "owner": "dev-1", "resource": "src/a.py", "ttl_secs": 60}
    (locks / "src__a.py.lease").write_text(json.dumps(lease))
    before = task.read_bytes()

    team.wait_looks(3)

    assert worker.poll() is None
    assert task.read_bytes() == before
    assert team.running.did("terminated") == team.running.did("requeued") == []


# -- 3: a stale verdict, executed late ----------------------------------------------------------------------------


@pytest.mark.thorough
def test_my_agent_was_killed_although_i_was_back(team: Team, tmux: PrivateTmux) -> None:
    """A person attaches again after the agent's SIGTERM, before the end of the grace period."""
    team.supervise(QUICK.replace("grace_s = 0.5", "grace_s = 2", 1))
    noted = team.planning / "asked"
    note_it = f"import signal; signal.signal(signal.SIGTERM, lambda *_: open({str(noted)!r}, 'w'))"
    agent = team.pane_agent(tmux, "work", "dev-1", note_it)
    me = tmux.person("work")
    team.wait_sessions_looked_at()
    tmux.leave(me)
    wait_until(noted.exists, "the agent to be asked to leave")

    tmux.person("work")

    wait_until(lambda: "attached to work again" in journal(team), "the kill to be given up")
    team.wait_looks(1)
    assert team.alive(agent)
    assert team.running.did("terminated") == []


def journal(team: Team) -> str:
    return team.own.journal.read_text()


# -- 4: one bad probe of tmux kills many --------------------------------------------------------------------------

ANSWERS = {
    "an error": "echo 'error connecting: Resource temporarily unavailable' >&2; exit 1",
    "no answer": "exit 0",
    "an empty server": "echo 'S 4242 $0 other'",
    "nonsense": "head -c 4000 /dev/urandom",
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("answer", ANSWERS)
def test_one_bad_answer_of_tmux_killed_my_whole_fleet(
    team: Team, tmux: PrivateTmux, tmp_path: Path, shadow: Callable[[str, str], None], answer: str
) -> None:
    team.supervise()
    fleet = [team.pane_agent(tmux, f"work-{number}", f"dev-{number}") for number in range(3)]
    assert team.running.stop() == 0
    calls = tmp_path / "calls"
    shadow("tmux", f"echo call >> {calls}\n{ANSWERS[answer]}")
    calls.touch()

    team.supervise()

    wait_until(lambda: calls.read_text().count("call") >= 4, "tmux to be asked")
    team.wait_looks(1)
    assert [team.alive(pid) for pid in fleet] == [True, True, True]
    assert team.running.did("terminated") == []


# -- 5: unknown must not be for ever, and a server that is gone is not an agent that is gone ----------------------


def test_after_a_reboot_my_sessions_stayed_undead(team: Team) -> None:
    machine, boot, world = team.processes.boot.split("/")
    before_the_reboot = f"{machine}/{boot[::-1]}/{world}"
    pane = Pane(socket="/nowhere/tmux", server_pid=77, pane="%0")
    team.record("dev-1", ProcessId(os.getpid(), 1, before_the_reboot), pane=pane)
    task = team.task("dev-1")

    team.supervise()

    team.wait_healed("dev-1")
    assert given_back(task)
    assert "the machine was rebooted since" in team.running.did("died")[0]["reason"]


def test_tmux_went_away_and_my_living_agents_were_killed_with_it(team: Team, tmux: PrivateTmux) -> None:
    team.supervise()
    agent, task = team.pane_agent(tmux, "work", "dev-1"), team.task("dev-1")

    tmux.server.kill()
    tmux.server.wait()
    team.wait_looks(3)

    assert team.alive(agent)
    assert not given_back(task)
    os.kill(agent, signal.SIGKILL)
    team.wait_healed("dev-1")  # and it was watched all the while
    assert given_back(task)


# -- 6: the wrong process is killed -------------------------------------------------------------------------------


def test_a_recycled_pid_got_my_tmux_server_killed(team: Team, tmux: PrivateTmux) -> None:
    shell = tmux.session("mine")
    server = team.identity(tmux.server.pid)
    team.record("dev-1", ProcessId(server.pid, server.started - 1, server.boot))
    team.record("dev-2", server)  # and even where the record names that very process
    task = team.task("dev-1")
    (team.planning / ".agent-pids").write_text(f"{server.pid}\n")

    team.supervise()

    team.wait_healed("dev-1")
    team.wait_looks(2)
    assert given_back(task)
    assert team.identity(server.pid) == server
    assert team.alive(shell)


# -- 7: matching by name ------------------------------------------------------------------------------------------


def test_a_cleanup_by_name_killed_everything_that_was_called_like_it(team: Team, children: Children) -> None:
    team.supervise()
    sleep = "print('ready', flush=True); import time; time.sleep(600)"
    named = [
        children.python(sleep, *words, cwd=team.project)
        for words in (["tmux", "-C"], ["claude"], ["orphan tmux launcher"], ["yolo", "agent"], ["dev-1@red"])
    ]

    team.wait_looks(2)
    team.cli("doctor", "--fix")

    assert [child.poll() for child in named] == [None] * len(named)


# -- 8: someone else's sessions -----------------------------------------------------------------------------------


def test_the_cleanup_of_a_team_killed_my_own_session_beside_it(team: Team, tmux: PrivateTmux, tmp_path: Path) -> None:
    mine = tmp_path / "claude"
    shutil.copy(str(shutil.which("sleep")), mine)
    team.supervise()
    tmux.session("rest")
    agent = team.pane_agent(tmux, "work", "dev-1")
    line = f"cd {team.project} && trap '' HUP && exec {mine} 600"
    person = team.mind(int(tmux("split-window", "-d", "-P", "-F", "#{pane_pid}", "-t", "=work:0", line))).pid
    wait_until(lambda: "claude" in "".join(team.processes.backend.argv(person)[:1]), "my own session to start")
    team.wait_sessions_looked_at()

    tmux("kill-session", "-t", "=work")

    team.wait_healed("dev-1")
    assert not team.alive(agent)
    assert team.alive(person)


def test_agents_of_the_same_name_in_another_project_were_cleaned_up_with_mine(
    team: Team, children: Children, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "project" / ".yolo-planning").mkdir(parents=True)
    home = elsewhere / "home"
    theirs = write_task(home / ".claude", "red", 1, owner="dev-1", status="in_progress")
    namesake = children.agent("dev-1", "red", elsewhere / "project", env={**os.environ, "HOME": str(home)})
    team.supervise()
    mine = team.task("dev-1")

    team.agent("dev-1").kill()

    team.wait_healed("dev-1")
    assert given_back(mine)
    assert namesake.poll() is None
    assert read_task(theirs)["owner"] == "dev-1"
    assert list((elsewhere / "project" / ".yolo-planning").iterdir()) == []


# -- 9: restarting the supervisor kills the agents ----------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_restarting_the_supervisor_killed_my_agents(team: Team, number: int) -> None:
    team.supervise()
    agent, task = team.agent("dev-1"), team.task("dev-1")

    team.running.stop(number)
    assert agent.poll() is None
    team.supervise()
    team.wait_looks(1)

    assert agent.poll() is None
    assert not given_back(task)
    assert len(team.running.did("registered", "dev-1@red")) == 1
    agent.kill()
    team.wait_healed("dev-1")
    assert given_back(task)


# -- 10: detach = kill --------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_i_looked_at_another_window_and_my_agent_was_killed(team: Team, tmux: PrivateTmux) -> None:
    """Three sessions: one of two people leaves; no person has ever attached; the last person has left."""
    team.supervise()
    watched, never, left = (team.pane_agent(tmux, name, f"dev-{name}") for name in ("watched", "never", "left"))
    tmux("new-window", "-t", "=watched", "sleep 600")
    tmux.person("watched")
    two, three = tmux.person("watched"), tmux.person("left")
    team.wait_sessions_looked_at()

    tmux.leave(two)
    tmux.leave(three)

    team.wait_healed("dev-left")  # so the time of all of them is over
    team.wait_looks(1)
    assert [team.alive(pid) for pid in (watched, never, left)] == [True, True, False]
    assert {entry["key"] for entry in team.running.did("terminated")} == {"dev-left@red"}


@pytest.mark.thorough
def test_notify_policy_never_kills_agents_of_a_detached_session(team: Team, tmux: PrivateTmux) -> None:
    team.supervise(QUICK.replace('on_detach = "terminate"', 'on_detach = "notify"'))
    agent = team.pane_agent(tmux, "work", "dev-1")
    me = tmux.person("work")
    team.wait_sessions_looked_at()

    tmux.leave(me)

    wait_until(lambda: team.running.did("escalated", "work"), "an alert")
    team.wait_looks(1)
    assert team.alive(agent)
    assert team.running.did("terminated") == []


# -- 11: leaks when nothing kills ---------------------------------------------------------------------------------

SLEEP = "import time; time.sleep(600)"
WITH_TOOLS = f"""
import subprocess, sys
in_its_group = subprocess.Popen([sys.executable, "-c", {SLEEP!r}])
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); " + {SLEEP!r}
on_its_own = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
on_its_own.stdout.readline()
print(in_its_group.pid, on_its_own.pid, flush=True)
{SLEEP}
"""


def test_my_agent_died_and_the_servers_that_it_had_started_ate_all_memory(team: Team) -> None:
    """One process lives in the agent's group, one in a separate session and ignores SIGTERM."""
    team.supervise()
    flags = ("--agent-id", "dev-1@red", "--agent-name", "dev-1", "--team-name", "red")
    agent = team.children.start(sys.executable, "-c", WITH_TOOLS, *flags, cwd=team.project)
    assert agent.stdout is not None
    tools = [team.mind(int(word)) for word in agent.stdout.readline().split()]
    wait_until(lambda: all(str(tool.pid) in sampled(team) for tool in tools), "them to be seen in its tree")

    agent.kill()

    team.wait_healed("dev-1")
    assert [tool.pid for tool in tools if team.alive(tool.pid)] == []
    (ending,) = team.running.did("terminated", "dev-1@red")
    assert set(ending["evidence"]["terminated"] + ending["evidence"]["killed"]) == {tool.pid for tool in tools}


def sampled(team: Team) -> str:
    return team.own.trees.read_text() if team.own.trees.exists() else ""


# -- 12: runaway spawn --------------------------------------------------------------------------------------------


def test_a_dead_agent_is_not_restarted_at_every_tick(team: Team) -> None:
    """The agent's lead starts it repeatedly: each life ends once, and no other program starts it."""
    team.supervise(PATIENT)

    def wait_recorded(action: str, life: int) -> None:
        wait_until(lambda: len(team.running.did(action)) == life, f"life {life} to be {action}")

    for life in range(1, 6):
        write_task(team.claude, "red", 1, owner="dev-1", status="in_progress")
        agent = team.children.agent("dev-1", "red", team.project)
        wait_recorded("registered", life)
        agent.kill()
        wait_recorded("forgotten", life)
    team.wait_looks(3)

    recorded = [e["action"] for e in team.running.history() if "dev-1@red" in (e["key"], e["evidence"].get("agent"))]
    assert Counter(recorded) == {"registered": 5, "died": 5, "requeued": 5, "forgotten": 5}
    assert mentioning(team.project) <= {team.running.child.pid}


def lock_held(task: Path) -> Path:
    lock = task.with_name(f"{task.name}.lock")
    lock.mkdir()
    return lock


def name_too_long_to_write_beside(task: Path) -> Path:
    return task.rename(task.with_name(f"{'1' * 248}.json"))


@pytest.mark.parametrize("hinder", [lock_held, name_too_long_to_write_beside])
def test_a_failing_recovery_is_retried_at_bounded_cost(team: Team, hinder: Callable[[Path], Path]) -> None:
    team.supervise(BRISK)
    hindrance = hinder(team.task("dev-1"))
    team.agent("dev-1").kill()
    wait_until(lambda: team.running.did("died", "dev-1@red"), "its death to be recorded")

    for _ in range(4):
        os.utime(hindrance)  # as the client does that holds a lock
        team.wait_looks(1)  # two looks at least, and the other agents are healed meanwhile

    assert team.running.did("forgotten", "dev-1@red") == []
    assert journal(team).count('"action":"requeued"') < 4
    assert len(team.running.did("died", "dev-1@red")) == 1
    lines = map(json.loads, team.running.log.read_text().splitlines())
    errors = [line["error"] for line in lines if line["event"].endswith("_failed")]
    assert len(errors) <= 1, errors


def test_my_tmux_server_went_away_and_the_supervisor_started_one_after_the_other(
    team: Team, tmux: PrivateTmux, clients: Clients
) -> None:
    team.supervise()
    agent = team.pane_agent(tmux, "work", "dev-1")
    wait_until(lambda: clients.of(team), "tmux to be asked")

    tmux.server.kill()
    tmux.server.wait()
    before = len(clients.of(team))
    team.wait_sessions_looked_at()

    assert len(clients.of(team)) <= before + 1, "no client is started for a server that does not answer"
    (question,) = clients.questions(clients.of(team))
    assert question.startswith(f"-S {tmux.socket} list-sessions ")
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(tmux.socket)
    assert team.alive(agent)


@pytest.mark.thorough
def test_a_fire_drill_left_its_agents_and_its_tmux_server_behind(
    team: Team, tmux: PrivateTmux, clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TMUX_TMPDIR", str(tmp_path))
    mine, before = tmux.session("mine"), mentioning(tmp_path)

    drill = team.cli("drill", "--faults", "agent-killed,tmux-server-killed", timeout=5 * LIMIT_S)

    assert drill.returncode == 0, drill.stdout
    wait_until(lambda: mentioning(tmp_path) <= before, "all that it had killed to be gone")
    assert list(tmp_path.glob("yolo-drill-*")) == []
    assert {question.strip() for question in clients.questions() if "yolo-drill-" not in question} == {"-V"}
    assert team.alive(mine)


# -- 13: lost or doubled tasks ------------------------------------------------------------------------------------


def test_nine_agents_died_at_once_and_their_work_was_dropped(team: Team) -> None:
    team.supervise()
    agents = [team.agent(f"dev-{number}") for number in range(9)]
    tasks = [team.task(f"dev-{number}") for number in range(9)]
    done = team.task("dev-0", status="completed")
    before = done.read_bytes()

    for agent in agents:
        agent.kill()

    for task in tasks:
        team.wait_given_back(task)
    for number in range(9):
        team.wait_healed(f"dev-{number}")
    assert set(Counter(entry["key"] for entry in team.running.did("requeued")).values()) == {1}
    assert len(team.running.did("requeued")) == 9
    assert done.read_bytes() == before


@pytest.mark.thorough
def test_nine_agents_died_while_the_supervisor_was_down_and_their_work_was_dropped(team: Team) -> None:
    team.supervise()
    agents = [team.agent(f"dev-{number}") for number in range(9)]
    tasks = [team.task(f"dev-{number}") for number in range(9)]
    team.running.stop(signal.SIGKILL)
    for agent in agents:
        agent.kill()
        agent.wait()

    team.supervise()

    for task in tasks:
        team.wait_given_back(task)
    for number in range(9):
        team.wait_healed(f"dev-{number}")
    assert len(team.running.did("requeued")) == 9
    assert team.status()["agents"] == []


def test_a_living_worker_was_declared_dead_and_its_task_given_to_another(team: Team) -> None:
    """The agent's namesake has died: the owner of the task is unclear, so a person is asked."""
    team.supervise()
    living, dead = team.agent("dev-1"), team.children.agent("dev-1", "red", team.project)
    wait_until(lambda: len(team.running.did("registered", "dev-1@red")) == 2, "both to be found")
    task = team.task("dev-1")

    dead.kill()

    wait_until(lambda: team.running.did("escalated", f"red/{task.stem}"), "a person to be asked")
    team.wait_looks(1)
    assert living.poll() is None
    assert read_task(task)["owner"] == "dev-1"


# -- 14: the cost of polling --------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_it_forked_three_times_a_session_at_every_look(
    team: Team, tmux: PrivateTmux, other_tmux: PrivateTmux, clients: Clients
) -> None:
    """One agent on one server costs as much as four sessions with an agent and two more panes each on another."""
    team.supervise()
    team.pane_agent(tmux, "work", "dev-0")
    for number in range(1, 5):
        team.pane_agent(other_tmux, f"work-{number}", f"dev-{number}")
        other_tmux("split-window", "-d", "-t", f"=work-{number}:", "sleep 600")
        other_tmux("split-window", "-d", "-t", f"=work-{number}:", "sleep 600")
    tmux.person("work")
    other_tmux.person("work-1")

    def asked() -> list[int]:
        notes = [note.read_text() for note in clients.of(team)]
        return [sum(f"-S {each.socket} " in note for note in notes) for each in (tmux, other_tmux)]

    before = asked()
    wait_until(lambda: min(asked()) >= max(before) + 10, "both to be asked again and again")

    few, many = (now - then for now, then in zip(asked(), before, strict=True))
    assert abs(few - many) <= 2  # at either end one of them may be asked already, and the other not yet


@pytest.mark.thorough
def test_a_wedged_tmux_server_had_clients_piled_up_before_it(team: Team, tmux: PrivateTmux, clients: Clients) -> None:
    team.supervise()
    agent = team.pane_agent(tmux, "work", "dev-1")
    tmux.person("work")
    team.wait_sessions_looked_at()
    crowds = []

    def asked_thrice() -> bool:
        crowds.append(len(children_of(team)))
        return len(clients.of(team)) >= before + 3

    tmux.server.send_signal(signal.SIGSTOP)
    before = len(clients.of(team))
    wait_until(asked_thrice, "the wedged server to be asked again")
    assert max(crowds) == 1
    team.wait_looks(1)  # agents are healed all the while

    tmux.server.send_signal(signal.SIGCONT)

    wait_until(lambda: len(clients.of(team)) > before + 10, "tmux to be asked as ever")
    assert paced(clients.times(team))
    assert team.alive(agent)
    assert team.running.did("terminated") == []


@pytest.mark.thorough
def test_after_a_stall_it_forked_a_storm_of_clients(team: Team, tmux: PrivateTmux, clients: Clients) -> None:
    team.supervise()
    team.pane_agent(tmux, "work", "dev-1")
    wait_until(lambda: clients.of(team), "tmux to be asked")

    team.running.child.send_signal(signal.SIGSTOP)
    time.sleep(20 * SESSIONS_INTERVAL_S)  # the stall itself: nothing is waited for
    stalled = len(clients.of(team))
    team.running.child.send_signal(signal.SIGCONT)

    wait_until(lambda: len(clients.of(team)) > stalled + 10, "tmux to be asked again and again")
    assert paced(clients.times(team))


SESSIONS_INTERVAL_S = 0.1
"""The interval of ``QUICK``."""


def paced(times: list[float]) -> bool:
    """Whether each six further looks took five intervals: one may come late and the next in time, but no two."""
    return all(later - earlier > 4.5 * SESSIONS_INTERVAL_S for earlier, later in zip(times, times[6:], strict=False))


class Sluggish:
    """A watcher that stalls the whole daemon at its third look, and notes when it looks."""

    name = "sessions"
    interval_s = SESSIONS_INTERVAL_S

    def __init__(self) -> None:
        self.looks: list[float] = []
        self.enough = anyio.Event()

    def rest_s(self) -> float:
        return until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        self.looks.append(time.monotonic())
        if len(self.looks) == 3:
            time.sleep(20 * self.interval_s)
        elif len(self.looks) == 12:
            self.enough.set()
        return ()


async def test_after_a_stall_all_missed_looks_came_at_once(project: Path, claude_home: Path) -> None:
    """Missed looks are not made up for: they would start no client of tmux, but do everything else."""
    processes, clock, watcher = Processes(backend()), SystemClock(), Sluggish()
    runner = Runner(
        project, Config(), HostServices(clock, processes, ProcessScanner(processes), Tmux(clock)), os.environ
    )
    runner.open()
    runner.watchers = (watcher,)

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runner.run)
            await watcher.enough.wait()
            tasks.cancel_scope.cancel()
    runner.close()

    assert paced(watcher.looks)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: started processes cannot be seen")
def test_an_idle_project_cost_me_a_program_at_every_look(team: Team, tmux: PrivateTmux, tmp_path: Path) -> None:
    team.supervise()
    team.agent("dev-1")
    trace, daemon = tmp_path / "trace", team.running.child.pid
    watch = ("strace", "-f", "-qq", "-e", "trace=execve,execveat", "-o", str(trace), "-p", str(daemon))
    team.children.start(*watch)
    traced = Path(f"/proc/{daemon}/status")
    wait_until(lambda: "TracerPid:\t0\n" not in traced.read_text(), "strace to watch")

    team.wait_looks(3)  # agents appear, die and are healed meanwhile

    assert trace.read_text() == ""
    team.pane_agent(tmux, "work", "dev-2")
    wait_until(lambda: "/tmux" in trace.read_text(), "strace to see the first client of tmux")


# -- 15: noise, and silence ---------------------------------------------------------------------------------------


def test_the_same_warning_filled_my_disk(team: Team) -> None:
    team.supervise(BRISK)
    agent, task = team.agent("dev-1"), team.task("dev-1")
    sound = task.read_text()
    task.write_text(sound[:20])

    agent.kill()
    wait_until(lambda: team.running.did("escalated"), "an alert")
    team.wait_looks(4)

    assert len(team.running.did("escalated")) == 1
    assert log_events(team).count("alert") == 1
    task.write_text(sound)
    team.wait_given_back(task)
    team.wait_healed("dev-1")
    wait_until(lambda: "alert_resolved" in log_events(team), "the end of the alert to be logged")
    assert log_events(team).count("alert_resolved") == 1


def test_while_nothing_happens_nothing_is_logged(team: Team) -> None:
    team.supervise(BRISK)
    team.agent("dev-1")
    team.wait_looks(1)

    assert len(team.running.did("registered", "dev-1@red")) == 1
    assert set(log_events(team)) <= {"registered", "died", "forgotten"}
    assert log_events(team).count("registered") == 2


def log_events(team: Team) -> list[str]:
    return [json.loads(line)["event"] for line in team.running.log.read_text().splitlines()]


@pytest.mark.thorough
def test_i_detached_and_went_home_and_in_the_morning_my_task_was_said_to_have_failed_three_times(
    team: Team, tmux: PrivateTmux
) -> None:
    team.supervise(QUICK + "[tasks]\nmax_attempts = 1\n")
    task = team.task("dev-1")
    team.pane_agent(tmux, "work", "dev-1")
    person = tmux.person("work")
    team.wait_sessions_looked_at()

    tmux.leave(person)

    team.wait_given_back(task)
    team.wait_healed("dev-1")
    (requeued,) = team.running.did("requeued")
    assert (requeued["evidence"]["charged"], requeued["evidence"]["cause"]) == (False, "terminated by the supervisor")
    assert team.running.did("dead_lettered") == []
