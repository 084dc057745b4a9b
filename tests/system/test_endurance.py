"""Endurance: few descriptors, a day of faults, and a supervisor that is stopped for a while."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog

import test_simulation
from support.budget import budget
from support.daemon import QUICK, RunningDaemon
from support.processes import Children
from support.project import given_back, read_task, write_settings
from support.simulation import enter
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until
from support.warm import WarmChild
from test_simulation import CONFIG, TEAM, World
from yolo_supervisor import log
from yolo_supervisor.config import Config, FlagsConfig, JournalConfig, SessionsConfig
from yolo_supervisor.drill.fake_agent import write_turn
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.store.store import Store

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="there are no descriptors for processes here")


# -- few descriptors -----------------------------------------------------------------------------------------------

LIMIT, AGENTS = 64, 80
LIMITED = (
    f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
    "os.execv(sys.executable, [sys.executable, '-m', 'yolo_supervisor', 'run', *sys.argv[1:]])"
)


def descriptors(pid: int) -> list[str]:
    """The targets of the process's descriptors, without those that it closes meanwhile."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return sorted(found)


def watched_by(pid: int) -> set[int]:
    """The processes whose end the kernel reports to this one."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= {int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pid:")}
    return found


@pytest.mark.thorough
@on_linux
def test_with_64_descriptors_and_more_agents_than_that_all_are_healed(
    team: Team, children: Children, tmux: PrivateTmux, tmp_path: Path
) -> None:
    write_settings(team.project, QUICK)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        daemon = children.start(sys.executable, "-c", LIMITED, "--project", str(team.project), stderr=stderr)
    team.running = running = RunningDaemon(team.project, daemon, log)
    running.wait(lambda: running.did("started"), "the daemon to start")
    team.wait_looks(1)
    before = descriptors(daemon.pid)

    crowd = start_crowd(children, team.project)
    running.wait(lambda: len(running.did("registered")) > AGENTS, "all of them to be found")
    pane = team.pane_agent(tmux, "work", "in-tmux")
    watched = running.wait(lambda: watched_by(daemon.pid), "some of them to be watched")
    names = {child.pid: name for name, child in crowd.items()}
    seen, unseen = min(names.keys() & watched), min(names.keys() - watched)
    assert LIMIT // 8 < len(watched) <= LIMIT // 2

    for pid, proof in (  # the unwatched one first: the end of the other frees a descriptor to watch it
        (unseen, f"process {unseen} no longer exists"),
        (seen, f"the kernel reported the exit of process {seen}"),
    ):
        task = team.task(names[pid])
        crowd[names[pid]].kill()
        crowd[names[pid]].wait()
        team.wait_given_back(task)
        team.wait_healed(names[pid])
        (died,) = running.did("died", f"{names[pid]}@red")
        assert died["evidence"]["proof"] == proof
    client = tmux.person("work")
    team.wait_sessions_looked_at()
    tmux.leave(client)
    running.wait(lambda: not team.alive(pane), "tmux to be asked, and the agent in the session that was left to end")
    assert "the daemon has no file descriptors for more agents" in team.cli("doctor").stdout

    for child in crowd.values():
        child.kill()
        child.wait()
    running.wait(lambda: len(running.did("forgotten")) == len(running.did("registered")), "all to be healed")
    running.wait(lambda: '"fd_limit_cleared"' in log.read_text(), "that to be logged")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    limits = [(line["event"], line["level"]) for line in lines if line["event"].startswith("fd_limit_")]
    assert limits == [("fd_limit_reached", "warning"), ("fd_limit_cleared", "info")]
    assert [line for line in lines if line["level"] == "error"] == []
    # births are read only while there are agents, so there may be less
    running.wait(lambda: {*descriptors(daemon.pid)} <= {*before}, "nothing more to be open than before")


def start_crowd(children: Children, project: Path) -> dict[str, subprocess.Popen[bytes]]:
    """Many agents, each the cheapest process that looks like one, by their names."""
    never = project.parent / "never"
    os.mkfifo(never)
    found = {}
    for name in (f"dev-{number}" for number in range(AGENTS)):
        flags = ("--agent-id", f"{name}@red", "--agent-name", name, "--team-name", "red")
        found[name] = children.start("sh", "-c", f"read x < {never}", "sh", *flags, cwd=project)
    return found


# -- a day, in virtual time ------------------------------------------------------------------------------------------

HOUR_S = 3600.0
HOURS = budget(quick=8, full=24, soak=72)
JOURNAL = 2**17
"""The bound of the journal, in bytes: small, so that a day reaches it several times."""


PARSED = {
    "Session", "Team", "Member", "Snapshot", "Version",
    "EndedAgent", "Agent", "ProcessId", "Launch",  # the last 200 dead agents
    "_TaskList", "DirectoryScanner", "UnreadFiles",  # one for each folder of tasks that exists
}  # fmt: skip
"""Types of parsed files, which are kept up to a bound that no day reaches."""


@dataclass(frozen=True)
class Figures:
    """The resources that the supervisor and its world use while nothing is under way."""

    descriptors: int
    threads: int
    tasks: int
    blocks: int
    """Memory blocks that Python has allocated."""
    resident_kib: int
    objects: Counter[str]
    """The number of objects of each type of ours."""

    @classmethod
    def now(cls) -> Figures:
        gc.collect()
        ours = (type(each) for each in gc.get_objects() if type(each).__module__.startswith("yolo_supervisor."))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        return cls(
            len(descriptors(os.getpid())),
            threading.active_count(),
            len(asyncio.all_tasks()),
            sys.getallocatedblocks(),
            resident,
            Counter(kind.__name__ for kind in ours),
        )


class LongWorld(World):
    """A world that forgets finished work, so that it does not grow either. Looks at it are rarer."""

    config = msgspec.structs.replace(
        CONFIG,
        sessions=SessionsConfig(interval_s=60.0),
        tasks=msgspec.structs.replace(CONFIG.tasks, interval_s=30.0),
        flags=FlagsConfig(interval_s=120.0),
        journal=JournalConfig(size_mib=JOURNAL / 2**20),
    )

    def forget(self) -> None:
        """End all agents, and tidy up as people and clients do."""
        for process in list(self.machine.table.values()):
            if process.kind != "agent" and process.pid not in (1, os.getpid()):
                self.machine.end(process)
        self.reap()
        self.forget_done()
        for folder in self.claude.glob("t*/session-*"):
            shutil.rmtree(folder)
        for path in (self.claude / "sessions").glob("*.json"):
            path.unlink()
        for ledger in self.ledgers:
            ledger.sound, ledger.good = [ledger.data], ledger.data
        kept = {paper.path for paper in self.papers} | {grant.path for grant in self.grants}
        self.touched = {path: at_s for path, at_s in self.touched.items() if path in kept}
        self.workers.clear()
        self.attempts.clear()
        self.dropped.clear()
        self.locked.clear()
        self.story.clear()

    def forget_done(self) -> None:
        """Remove the tasks that are finished, or belong to a session that has ended."""
        done = [p for p in self.papers if p.said["status"] == "completed" or p.path.parent.name != "red"]
        for paper in done:
            paper.path.unlink()
        self.papers = [paper for paper in self.papers if paper not in done]

    def suspend(self) -> None:
        """The machine sleeps for hours: to the monotonic clock that is no time at all."""
        self.jump(5 * HOUR_S)

    async def hour_of_faults(self) -> None:
        steps = {
            self.hire: 10, self.lead: 8, self.crash: 7, self.hang: 3, self.wake: 3,
            self.claim: 16, self.resume: 8, self.finish: 10, self.write_slowly: 3, self.garble: 3, self.mend: 4,
            self.claim_by_token: 8, self.beat: 8, self.complete: 5, self.visit: 3, self.drop: 2,
            self.take_lease: 5, self.borrow: 6, self.hand_in: 2,
            self.work: 12, self.use_background: 3, self.end_tool: 4, self.stranger: 6, self.reuse_pid: 6, self.reap: 6,
            self.jump: 4, self.suspend: 2, self.write_ledger: 8, self.break_ledger: 6,
        }  # fmt: skip
        ends_s = self.time.s + HOUR_S
        for step in self.chance.choices(list(steps), list(steps.values()), k=24):
            await self.spend(self.chance.choice((1.0, 60.0, 120.0, 360.0)))
            step()
            self.look()
        self.crash_all()
        await self.settle()
        for paper in [paper for paper in self.papers if paper.aside]:
            self.redrive(paper)
        self.forget()
        await self.spend(max(0.0, ends_s - self.time.s))

    def look_at_the_journal(self) -> None:
        """Skip this check: the journal may have dropped the beginning of the day."""


@pytest.fixture
def long_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LongWorld]:
    """A long world with the real log, in a file."""
    if sys.platform != "linux":
        pytest.skip("the machine is made of Linux's descriptors")
    world = LongWorld(1, True, tmp_path / "world")
    enter(world, monkeypatch, tmp_path / "pid-lock")
    monkeypatch.setattr(test_simulation, "SILENT_S", test_simulation.SILENT_S + 2 * (30.0 - CONFIG.tasks.interval_s))
    log.configure("json", tmp_path / "log")
    yield world
    structlog.reset_defaults()


def logged(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]


@pytest.mark.thorough
@on_linux
def test_after_a_day_of_faults_nothing_has_grown_and_all_is_healed(long_world: LongWorld, tmp_path: Path) -> None:
    figures: list[Figures] = []
    journals: list[int] = []

    async def day() -> None:
        for _ in range(HOURS):
            await long_world.hour_of_faults()
            if long_world.wrongs:
                return
            figures.append(Figures.now())
            journals.append(sum(path.stat().st_size for path in long_world.paths.folder.glob("journal*")))

    long_world.pass_through(day)

    long_world.assert_well()
    assert [line for line in logged(tmp_path) if "exception" in line] == []
    first, last = figures[1], figures[-1]
    assert (last.descriptors, last.threads, last.tasks) == (first.descriptors, first.threads, first.tasks)
    assert last.blocks < first.blocks * 1.05, "some 180 for each of the dead agents that are remembered, 200 at most"
    assert last.resident_kib < first.resident_kib * 1.1
    grown = {kind: number - first.objects[kind] for kind, number in last.objects.items() if kind not in PARSED}
    assert max(grown.values()) < len(figures), f"less than one an hour: {grown}"
    assert max(journals) < JOURNAL * 1.1, "a segment is closed by the line that makes it full"
    events = Counter(line["event"] for line in logged(tmp_path))
    assert min(events[what] for what in ("died", "requeued", "released", "restored")) > HOURS / 5, events


@pytest.mark.thorough
def test_a_healthy_day_writes_less_than_100_kilobytes_so_each_quarter_of_it_less_than_25(
    long_world: LongWorld, tmp_path: Path
) -> None:
    world = long_world
    world.config = Config()

    async def quarter() -> None:
        devs = [world.begin(name) for name in TEAM]
        for number in range(36):
            free = [paper for paper in world.papers if paper.state == ("pending", None)]
            for dev, paper in zip(devs, free, strict=False):
                world.change(paper, dev, "in_progress")
            world.takes(devs[0], world.grants[0], 900)
            shell = world.use_tool(devs[0].process, "good")
            if number % 2:
                world.write_ledger(world.ledgers[number // 2 % len(world.ledgers)])
            await world.spend(HOUR_S / 6 - 60.0)
            world.end_tool(shell)
            for dev in devs:
                for paper in world.own(dev):
                    world.change(paper, dev, "completed")
            await world.spend(60.0)
            world.forget_done()

    world.pass_through(quarter)

    world.assert_well()
    assert Counter(line["event"] for line in logged(tmp_path)).keys() == {"registered", "snapshotted"}
    written = [(tmp_path / "log").stat().st_size, world.paths.journal.stat().st_size]
    assert sum(written) < 25_000, written


# -- a stopped supervisor --------------------------------------------------------------------------------------------

SHORT = f"{QUICK}[leases]\ninterval_s = 0.25\n[tasks]\ninterval_s = 0.25\nidle_limit_s = 5.0\n"


def at_work(team: Team, name: str) -> str:
    """The program of an agent whose transcript shows that it works."""
    write = f"write_turn({name!r}, 'red', Path.cwd(), ended=False, home=Path({str(team.claude)!r}))"
    return f"""
import threading, time
from pathlib import Path
from yolo_supervisor.drill.fake_agent import write_turn
def work():
    while True:
        {write}
        time.sleep(0.02)
threading.Thread(target=work, daemon=True).start()
"""


@contextlib.contextmanager
def stopped(*processes: subprocess.Popen[bytes] | WarmChild) -> Iterator[None]:
    """Stop the processes meanwhile."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda pid=process.pid: state_of(pid) == "T", "it to stop")
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_tasks_looked_at(team: Team, meanwhile: Callable[[], bool] = lambda: True) -> None:
    """Wait until the daemon has begun and ended a look at the tasks."""
    looks = set[str]()

    def often() -> bool:
        watchers = json.loads((team.own.folder / "daemon.json").read_text())["watchers"]
        looks.update(str(each["last_tick_at"]) for each in watchers if each["name"] == "tasks")
        return meanwhile() and len(looks) > 2

    team.running.wait(often, "the tasks to be looked at")


@pytest.mark.thorough
@on_linux
def test_a_lease_that_was_renewed_while_the_daemon_was_stopped_is_not_ended(team: Team) -> None:
    running = team.supervise(SHORT)
    ttl_s = 2
    by_the_plugin = team.planning / ".locks" / plugin_leases.lease_file("docs")

    def held(owner: str, ttl_s: int) -> None:
        """Write a lease in place, as the plugin does."""
        by_the_plugin.write_bytes(plugin_leases.dump_lease("docs", owner, datetime.now(UTC), ttl_s))

    for resource in ("renewed", "abandoned"):
        team.cli("lease", "acquire", resource, "--owner", "dev-1", "--ttl", str(ttl_s)).check_returncode()
    held("dev-1", ttl_s)

    with stopped(running.child):
        until_s = time.monotonic() + 2 * ttl_s
        while time.monotonic() < until_s:
            team.cli("lease", "renew", "renewed", "--owner", "dev-1", "--ttl", "600").check_returncode()
            held("dev-1", 600)

    running.wait(lambda: running.did("released", "abandoned"), "the lease that was not renewed to be ended")
    team.wait_looks()
    assert [entry["key"] for entry in running.did("released")] == ["abandoned"]
    assert {lease["resource"] for lease in team.cli.json("lease", "list")["leases"]} == {"renewed", "docs"}
    held("dev-1", 1)
    running.wait(lambda: running.did("released", "docs"), "one to be ended that runs out later")


@on_linux
def test_agents_that_worked_while_the_daemon_was_stopped_keep_their_tasks(team: Team) -> None:
    running = team.supervise(SHORT)
    team.agent("worker", program=at_work(team, "worker"))
    team.agent("idler")
    write_turn("idler", "red", team.project, ended=True, home=team.claude)
    of_worker, of_idler, of_guest = team.task("worker"), team.task("idler"), team.task("", status="pending")
    token = team.cli.json("task", "claim", of_guest.stem, "--owner", "guest")["token"]

    def beats() -> bool:
        """Send the guest's heartbeat, its only sign of life."""
        with contextlib.closing(Store(team.project)) as store:
            store.open()
            return store.beat(f"red/{of_guest.stem}", token, time.monotonic(), team.processes.boot)

    wait_tasks_looked_at(team, beats)
    with stopped(running.child):
        until_s = time.monotonic() + 6.0
        while time.monotonic() < until_s:
            assert beats()
            time.sleep(0.1)

    running.wait(lambda: beats() and given_back(of_idler), "the task of the idle one to be requeued")
    assert [read_task(task)["status"] for task in (of_worker, of_guest)] == ["in_progress"] * 2
    assert {entry["key"] for entry in running.did("requeued")} == {f"red/{of_idler.stem}"}


@pytest.mark.thorough
@on_linux
def test_an_agent_stopped_together_with_the_daemon_keeps_its_task(team: Team) -> None:
    running = team.supervise(SHORT)
    agent = team.agent("worker", program=at_work(team, "worker"))
    task = team.task("worker")
    wait_tasks_looked_at(team)
    with stopped(agent, running.child):
        until_s = time.monotonic() + 6.0
        while time.monotonic() < until_s:
            time.sleep(0.1)
        running.child.send_signal(signal.SIGCONT)
        wait_tasks_looked_at(team)  # before the agent can have done anything
        assert read_task(task)["status"] == "in_progress"

    team.wait_looks()
    assert running.did("requeued") == []


@on_linux
@pytest.mark.thorough
def test_graces_pass_only_while_the_supervisor_is_awake(team: Team, tmux: PrivateTmux) -> None:
    detach_grace_s, grace_s = 6.0, 4.0
    running = team.supervise(
        QUICK.replace("detach_grace_s = 0.5", f"detach_grace_s = {detach_grace_s}")
        .replace("grace_s = 0.5", f"grace_s = {grace_s}", 1)
    )  # fmt: skip
    asked = team.project.parent / "asked"
    pid = team.pane_agent(tmux, "work", "dev", f"signal.signal(signal.SIGTERM, lambda *_: open({str(asked)!r}, 'w'))")
    person = tmux.person("work")
    team.wait_sessions_looked_at()

    def pause(since_s: float, grace_s: float, ends: Callable[[], bool], what: str) -> None:
        """Stop the supervisor for longer than the grace that began at ``since_s``; then let the rest of it pass."""
        with stopped(running.child):
            rest_s = grace_s - (time.monotonic() - since_s)
            until_s = time.monotonic() + grace_s + 1.0
            wait_until(lambda: time.monotonic() > until_s, "the grace to be over if it were not for the pause")
            went_on_s = time.monotonic()
        wait_until(ends, what)
        assert time.monotonic() - went_on_s >= rest_s

    tmux.leave(person)
    pause(time.monotonic(), detach_grace_s, asked.exists, "the agent to be asked to end")
    pause(asked.stat().st_mtime - time.time() + time.monotonic(), grace_s, lambda: not team.alive(pid), "it to end")
