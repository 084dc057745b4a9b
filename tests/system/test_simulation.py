"""A random team lives for half an hour, under a supervisor that dies now and then: what must always hold, holds.

The supervisor is the real one, with its loop, store and journal on a real disk. The machine it runs on is not: its
processes are made up, its time is virtual, so that half an hour takes a second and a seed tells the whole story.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.abc
import pytest
import structlog.testing

from support.budget import budget
from support.project import write_task
from support.simulation import BOOT, EARS, Ears, Machine, MortalDisk, Process, Supervision, Time, enter
from yolo_supervisor.actions import tasks as task_actions
from yolo_supervisor.actions.agents import Register, forget
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.tasks import Claim, Complete, EndDeadLetter
from yolo_supervisor.config import Config, TasksConfig
from yolo_supervisor.formats import claude, tasks, transcripts
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.inventory.leases import Held, Leases
from yolo_supervisor.models import Agent, Task, iso
from yolo_supervisor.policy.retry import letter_file
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.journal import Journal
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.tmux import Tmux

T = TypeVar("T")

LIVES = int(os.environ.get("SIMULATED_LIVES", "0")) or budget(quick=1, full=4, soak=60)
ROUNDS, DEEDS = 4, 180
CONFIG = Config(
    tasks=TasksConfig(interval_s=10.0, idle_limit_s=40.0, unknown_limit_s=40.0, stall_limit_s=40.0, on_stall="requeue")
)
PULSE_S = 5.0
"""The time between two records in the transcript of an agent that works."""
KNOWN_S = 12.0
"""Whoever has lived this long under one and the same supervisor, that knows of him."""

PATIENCE_S = CONFIG.state.interval_s + CONFIG.state.settle_s + 1.0
"""So long a critical file may be broken, or a sound one unknown, under one and the same supervisor."""

ORPHANED_S = CONFIG.agents.interval_s + CONFIG.processes.grace_s + CONFIG.tasks.backoff_s + 5.0
"""So long a task may stay with the dead, under one and the same supervisor."""

IDLE_S = CONFIG.tasks.idle_limit_s
SILENT_S = IDLE_S + 2 * CONFIG.tasks.interval_s + CONFIG.tasks.backoff_s
"""So long it may stay with those who show no sign of life, or whom nobody knows."""

LENT_S = CONFIG.leases.interval_s + 2.0
"""So long a lease may outlive its time, under one and the same supervisor."""

TEAM = ("dev-1", "dev-2", "dev-3", "dev-4", "dev-5")
GUESTS = ("guest-1", "guest-2")
DAY_S = 86400.0


# -- the team -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Worker:
    """An agent. One that lives in its lead's process has no other."""

    name: str
    team: str
    process: Process
    born_s: float
    over_s: float = float("inf")
    shown_s: float = 0.0
    known: bool = False
    forgotten: bool = False
    far: bool = False
    """It works on another machine, and nobody here knows it."""

    @property
    def alive(self) -> bool:
        return not self.process.over

    @property
    def hangs(self) -> bool:
        return self.process.hangs_s is not None

    def __repr__(self) -> str:
        state = "alive" if self.alive else "dead"
        return f"<{self.name} in {self.process.pid}, {state}{', known' * self.known}{', forgotten' * self.forgotten}>"


@dataclass(eq=False)
class Paper:
    """A task's file, as its last writer left it."""

    path: Path
    said: dict[str, Any]
    writer: Worker | None = None
    written_s: float = 0.0
    heard_s: float = 0.0
    """When its writer last showed, by it or for it, that it is at work."""
    minded_s: float = 0.0
    """Until when somebody was at work on it, or nobody could know that it is not so."""
    torn: bool = False
    begun: int = 0
    """How often somebody has begun to work on it."""
    token: int = 0
    """Of the newest claim that was made through the store."""
    attempts: int = 0
    """How often it was given back since it was made or redriven."""
    given_back: int = 0
    untold: int = 0
    """How often it was given back by one who died over it, and was changed before another could see that."""
    unsettled: bool = False

    @property
    def key(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def state(self) -> tuple[str, str | None]:
        return self.said["status"], self.said.get("owner")

    @property
    def aside(self) -> bool:
        return self.state == ("pending", tasks.SET_ASIDE)

    def changes(self) -> None:
        """Somebody is about to write it."""
        self.untold += self.unsettled
        self.unsettled = False


@dataclass(frozen=True)
class Attempt:
    """A claim that was made through the store; ``number`` is the task's attempt that it began."""

    paper: Paper
    worker: Worker
    token: int
    number: int

    @property
    def newest(self) -> bool:
        """Whether nobody is at the task but its owner, by this very claim."""
        return self.token == self.paper.token and self.number == self.paper.begun

    @property
    def at_work(self) -> bool:
        return self.newest and self.paper.state == ("in_progress", self.worker.name)

    @property
    def may_finish(self) -> bool:
        return self.at_work or (self.token == self.paper.token and self.paper.state == ("pending", None))


@dataclass(eq=False)
class Grant:
    """The place of a lease's file, as its last writer left it."""

    path: Path
    resource: str
    data: bytes | None = None
    holder: Worker | None = None
    ttl_s: int = 0
    given_s: float = 0.0
    lent: bool = False
    """Through the store, not by the plugin."""
    token: int = 0
    """The newest that was ever given for it."""
    shown_s: float = 0.0
    """Since when nothing hides it."""
    jumped_s: float | None = None
    """When the wall clock was set while it was held."""
    seen_by: Supervision | None = None
    """Who had judged it before."""

    @property
    def ends_s(self) -> float:
        return self.given_s + self.ttl_s


@dataclass(eq=False)
class Ledger:
    """A critical file of the plugin's, as its last writer left it."""

    path: Path
    data: bytes = b""
    written_s: float = 0.0
    broken: bool = False
    sound: list[bytes] = field(default_factory=list)
    """All whole contents that it ever had, by people and by the plugin."""
    good: bytes | None = None
    """The newest that a supervisor had the time to see."""


class World:
    """A team on a machine, its papers on a disk, and somebody who supervises it, most of the time."""

    config = CONFIG

    def __init__(self, seed: int, pidfds: bool, folder: Path) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.time = Time()
        self.home = folder / "home"
        self.claude = self.home / ".claude"
        self.project = folder / "project"
        self.planning = self.project / ".yolo-planning"
        self.paths = Paths(self.project)
        self.planning.mkdir(parents=True)
        self.tmux = Tmux(self.time)
        self.machine = Machine(self.time, pidfds, self.home, self.project, self.wrong)
        self.workers: list[Worker] = []
        self.papers: list[Paper] = []
        self.guests = [Worker(name, "red", Process(0, 0, 0, [name], "agent", 0.0), 0.0, far=True) for name in GUESTS]
        self.attempts: list[Attempt] = []
        self.dropped: list[Path] = []
        self.touched: dict[Path, float] = {}
        """When the supervisor, or a person by its store, has last changed what is there."""
        self.garbled: dict[Path, bytes] = {}
        self.written_back: set[int] = set()
        """Pids that a person has written into the plugin's books again, with an older content of the file."""
        self.locked: dict[Path, float] = {}
        self.supervision: Supervision | None = None
        self.supervised_s = 0.0
        self.jumped_s = 0.0
        self.story: list[str] = []
        self.wrongs: list[str] = []
        self._tasks: anyio.abc.TaskGroup
        (self.planning / ".agent-pids").touch()
        self.ledgers = [Ledger(self.planning / name) for name in (".execution-state.json", "config.json", "STATE.md")]
        for ledger in self.ledgers:
            self.write_ledger(ledger)
        self.locks = self.planning / ".locks"
        self.locks.mkdir()
        self.grants = [
            Grant(self.locks / plugin_leases.lease_file(name), name) for name in ("src/a.py", "src/b.py", "docs")
        ]
        member = {"agentId": "lead@red", "name": "lead", "cwd": str(self.project), "tmuxPaneId": "%1"}
        self.write(
            self.claude / "teams" / "red" / "config.json", json.dumps({"name": "red", "members": [member]}).encode()
        )
        self._numbers = itertools.count()
        for _ in range(6):
            self.paper("red")

    def tell(self, text: str) -> None:
        self.story.append(f"{self.time.s:9.2f}  {text}")

    def wrong(self, text: str) -> None:
        self.tell(f"WRONG: {text}")
        self.wrongs.append(text)

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self, life: Callable[[], Awaitable[object]]) -> None:
        """Such a life, under a supervisor at first. The test fails with its story if anything was wrong with it."""
        with structlog.testing.capture_logs() as log:
            self.pass_through(life)
        self.wrongs += [f"a look failed: {line}" for line in log if line.get("exc_info")]
        self.assert_well()

    def pass_through(self, life: Callable[[], Awaitable[object]]) -> None:
        async def whole() -> None:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._work_on)
                self.start_supervisor()
                await life()
                self._tasks.cancel_scope.cancel()

        anyio.run(whole, backend_options={"loop_factory": self.time.loop})

    async def _work_on(self) -> None:
        """All agents work all the time, but for those that hang, and their transcripts show it."""
        while True:
            await anyio.sleep(PULSE_S)
            for worker in self.workers:
                if worker.alive and not worker.hangs and not worker.far:
                    self.write_transcript(worker)

    def write_transcript(self, worker: Worker) -> None:
        folder = self.claude / "projects" / transcripts.slug(self.project)
        session = f"{worker.team.removeprefix('session-')}-e039"
        record: dict[str, Any] = {
            "type": "assistant", "timestamp": iso(self.time.now()),
            "message": {"content": [{"type": "tool_use", "id": "t", "name": "Bash"}], "stop_reason": "tool_use"},
        }  # fmt: skip
        if worker.name == "team-lead":
            path = folder / f"{session}.jsonl"
        elif worker.name == "mate":
            path = folder / session / "subagents" / "agent-amate-1.jsonl"
            self.write(
                path.with_suffix(".meta.json"), json.dumps({"taskKind": "in_process_teammate", "name": "mate"}).encode()
            )
        else:
            path = folder / f"{worker.name}-{worker.process.pid}.jsonl"
            record = {"agentName": worker.name, "teamName": worker.team, **record}
        self.write(path, json.dumps(record).encode() + b"\n")

    def assert_well(self) -> None:
        assert not self.wrongs, "\n".join([f"seed {self.seed}:", *self.story[-80:], *self.wrongs])

    async def live(self) -> None:
        """At random, and quiet now and then."""
        deeds = {
            self.hire: 8, self.lead: 3, self.register: 2, self.crash: 7, self.crash_all: 1, self.forget: 1,
            self.claim: 16, self.resume: 8, self.finish: 6, self.write_slowly: 5, self.garble: 4, self.mend: 4,
            self.claim_by_token: 8, self.beat: 8, self.complete: 5, self.visit: 3, self.hang: 5, self.wake: 3,
            self.redrive: 2, self.drop: 1, self.take_lease: 4, self.borrow: 6, self.hand_in: 2,
            self.work: 12, self.use_background: 5, self.end_tool: 4, self.stranger: 6, self.reuse_pid: 6, self.reap: 6,
            self.start_supervisor: 14, self.stop_supervisor: 2, self.kill_supervisor: 3,
            self.kill_supervisor_at_work: 6, self.jump: 4, self.write_ledger: 12, self.break_ledger: 9,
        }  # fmt: skip
        for _ in range(ROUNDS):
            for deed in self.chance.choices(list(deeds), list(deeds.values()), k=DEEDS):
                await self.spend(self.chance.choice((0.05, 0.3, 1.0, 3.0, 8.0)))
                deed()
                self.look()
                if self.wrongs:
                    return
            await self.settle()
            if self.wrongs:
                return

    async def spend(self, s: float) -> None:
        await anyio.sleep(s)
        self.look()

    def some(self, found: list[Any]) -> Any:
        return self.chance.choice(found) if found else None

    def living(self, awake: bool = True) -> list[Worker]:
        """``awake``: no client is at work in its first seconds, nor while it hangs."""
        return [w for w in self.workers if w.alive and not (awake and (self.time.s - w.born_s < 2.0 or w.hangs))]

    def tools(self) -> list[Process]:
        return [process for process in self.machine.table.values() if process.kind == "tool" and not process.over]

    # -- deeds: agents -------------------------------------------------------------------------------------------

    def hire(self) -> None:
        """A teammate; perhaps somebody's tool has started it."""
        names = {worker.name for worker in self.workers if worker.alive}
        if name := self.some([name for name in TEAM if name not in names]):
            self.begin(name, self.some(self.tools()) if self.chance.random() < 0.3 else None)

    def begin(self, name: str, below: Process | None = None) -> Worker:
        """A teammate, whose command line tells what it is."""
        argv = ["claude", "--agent-id", f"{name}@red", "--agent-name", name, "--team-name", "red"]
        process = self.machine.start(argv, "agent", below.pid if below else 1)
        self.write_note(process)
        return self.join(name, "red", process)

    def join(self, name: str, team: str, process: Process) -> Worker:
        worker = Worker(name, team, process, self.time.s)
        process.worker = process.worker or worker
        self.workers.append(worker)
        self.write_transcript(worker)
        self.tell(f"{name} begins in {process.pid}, child of {process.parent}")
        return worker

    def write_note(self, process: Process) -> None:
        """The plugin's own books."""
        with (self.planning / ".agent-pids").open("a") as book:
            book.write(f"{process.pid}\n")
        health = {"pid": process.pid, "role": "dev", "idle_count": 0}
        self.write(self.planning / ".agent-health" / "dev.json", json.dumps(health).encode())

    def lead(self) -> None:
        """A session, with teammates inside its own process."""
        if sum(w.name == "team-lead" and w.alive for w in self.workers) > 1:
            return
        process = self.machine.start(["claude"], "agent")
        session = f"{self.chance.randrange(16**8):08x}-e039"
        team = f"session-{session[:8]}"
        said = {"pid": process.pid, "sessionId": session, "cwd": str(self.project), "procStart": str(process.started)}
        self.write(self.claude / "sessions" / f"{process.pid}.json", json.dumps(said).encode())
        members = [
            {"agentId": f"{name}@{team}", "name": name, "tmuxPaneId": pane, "cwd": str(self.project),
             "backendType": "in-process"}
            for name, pane in (("team-lead", "leader"), ("mate", "in-process"))
        ]  # fmt: skip
        config = {"name": team, "leadAgentId": f"team-lead@{team}", "leadSessionId": session, "members": members}
        self.write(self.claude / "teams" / team / "config.json", json.dumps(config).encode())
        for _ in range(2):
            self.paper(team)
        self.join("team-lead", team, process)
        self.join("mate", team, process)

    def register(self) -> None:
        """A person has one watched that tells nothing of itself."""
        if any(w.alive and w.name == "aider" for w in self.workers):
            return
        process = self.machine.start(["aider"], "agent")
        worker = self.join("aider", "red", process)
        agent = Agent(
            id="aider@red", name="aider", role="dev", team="red", source="registered", since=self.time.now(),
            process=process.id, pid=process.pid, claude_dir=self.claude,
        )  # fmt: skip
        path = self.paths.agents / own_files.agent_file(agent)
        self.person(lambda store: store.commit(Register(key=agent.id, path=path, agent=agent, reason="asked"), "cli"))
        worker.born_s = self.time.s

    def person(self, deed: Callable[[Store], T]) -> T:
        """One calls the program: it is another process, and reads the journal from its beginning."""
        with contextlib.closing(Store(self.project, self.time, MortalDisk(self.stamp))) as store:
            store.open()
            return deed(store)

    def hang(self, worker: Worker | None = None) -> None:
        """One goes on living, and does nothing any more."""
        if worker := worker or self.some(self.living()):
            self.write_transcript(worker)
            worker.process.hangs_s = self.time.s
            self.tell(f"{worker} hangs")

    def wake(self, worker: Worker | None = None) -> None:
        if worker := worker or self.some([w for w in self.living(awake=False) if w.hangs]):
            worker.process.hangs_s, worker.process.heard_s = None, self.time.s
            self.tell(f"{worker} goes on")

    def crash(self) -> None:
        if worker := self.some(self.living(awake=False)):
            self.end(worker)

    def crash_all(self) -> None:
        for worker in self.living(awake=False):
            self.end(worker)

    def end(self, worker: Worker) -> None:
        process = worker.process
        if process.over:
            return
        for tool in self.machine.children(process):
            self.doom(tool)
        self.machine.end(process, reaped=self.chance.random() < 0.7)
        for each in self.workers:
            if each.process is process:
                each.over_s = self.time.s
        self.tell(f"{worker.name} ends in {process.pid}; doomed: {[p.pid for p in self.tools() if p.doomed]}")

    def doom(self, tool: Process) -> None:
        """It, and what hangs on it, will have to go."""
        worker = tool.worker
        if tool.kind == "tool" and tool.known and worker and worker.known and not worker.forgotten:
            tool.doomed = True
            for child in self.machine.children(tool):
                self.doom(child)

    def forget(self) -> None:
        """A person has one no longer watched."""
        path = self.some(sorted(self.paths.agents.iterdir()))
        agent = own_files.load_agent(path.read_bytes()) if path else None
        if agent is None:
            return
        self.person(lambda store: store.commit(forget(key=agent.id, path=path, reason="asked"), "cli"))
        for worker in self.workers:
            if worker.process.id == agent.process:
                worker.forgotten = True
                self.tell(f"a person forgets {worker}")
        for tool in self.tools():
            if tool.worker and tool.worker.forgotten:
                tool.doomed = False

    # -- deeds: tasks --------------------------------------------------------------------------------------------

    def paper(self, team: str) -> Paper:
        number = next(self._numbers)
        path = write_task(self.claude, team, number, metadata={"x-unknown": [number, {"deep": True}]})
        self.stamp(path)
        paper = Paper(path, json.loads(path.read_text()))
        self.papers.append(paper)
        return paper

    def write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (self.time.time(), self.time.time()))
        self.stamp(path)

    def stamp(self, path: Path) -> None:
        """Something was made, replaced or removed there, at this very time."""
        self.touched[path] = self.time.s
        os.utime(path.parent, (self.time.time(), self.time.time()))

    def lock(self, paper: Paper) -> Path | None:
        """The client's lock of the file, if it can be had; one that nobody has refreshed for long is no lock."""
        lock = paper.path.with_name(paper.path.name + ".lock")
        if lock.exists():
            if self.time.s - self.locked.setdefault(lock, self.time.s) < 10.0:
                return None
            lock.rmdir()
        self.locked.pop(lock, None)
        lock.mkdir()
        return lock

    def change(self, paper: Paper, worker: Worker, status: str) -> None:
        said = {**paper.said, "status": status, "owner": worker.name}
        lock = self.lock(paper)
        if lock is not None:
            paper.changes()
            self.write(paper.path, json.dumps(said, indent=2).encode())
            lock.rmdir()
            self.writes(paper, worker, said)
            self.tell(f"{paper.key} is {status} by {worker}")

    def writes(self, paper: Paper, worker: Worker, said: dict[str, Any]) -> None:
        paper.said, paper.writer, paper.written_s, paper.heard_s = said, worker, self.time.s, self.time.s
        paper.begun += said["status"] == "in_progress"
        if said["status"] == "completed":
            self.paper(paper.path.parent.name)  # there is always more to do

    def legible(self, team: str | None = None) -> list[Paper]:
        papers = [paper for paper in self.papers if not paper.torn and paper.path not in self.garbled]
        return [paper for paper in papers if team in (None, paper.path.parent.name)]

    def claim(self) -> None:
        worker = self.some(self.living())
        open_ = [p for p in self.legible(worker.team) if p.said["status"] == "pending"] if worker else []
        pending = [p for p in open_ if not p.said.get("owner")]
        if paper := self.some(pending):
            self.change(paper, worker, "in_progress")

    def own(self, worker: Worker) -> list[Paper]:
        """The papers at work that bear its name, a predecessor's too."""
        return [
            p for p in self.legible(worker.team) if p.said["status"] == "in_progress" and p.said["owner"] == worker.name
        ]

    def resume(self) -> None:
        """One takes over what its predecessor of that name was at: it writes the very same bytes."""
        heirs = [
            (worker, paper) for worker in self.living() for paper in self.own(worker)
            if paper.writer and not paper.writer.alive
        ]  # fmt: skip
        if found := self.some(heirs):
            worker, paper = found
            self.change(paper, worker, "in_progress")

    def finish(self) -> None:
        worker = self.some(self.living())
        if worker and (paper := self.some([p for p in self.own(worker) if p.writer is worker])):
            self.change(paper, worker, "completed")

    def write_slowly(self) -> None:
        """One is at its file for a while, and may crash over it."""
        worker = self.some(self.living())
        if worker and (paper := self.some([p for p in self.own(worker) if p.writer is worker])):
            self._tasks.start_soon(self._write_slowly, worker, paper)

    async def _write_slowly(self, worker: Worker, paper: Paper) -> None:
        if paper.torn or (lock := self.lock(paper)) is None:
            return
        paper.torn = True
        whole = json.dumps(paper.said, indent=2).encode()
        self.write(paper.path, whole[: self.chance.randrange(len(whole))])
        self.tell(f"{worker} is writing {paper.key}")
        await anyio.sleep(self.chance.choice((0.2, 3.0, 15.0)))
        if worker.alive:
            self.write(paper.path, whole)
            lock.rmdir()
            paper.torn, paper.written_s, paper.heard_s = False, self.time.s, self.time.s
            self.tell(f"{worker} has written {paper.key}")

    def garble(self, path: Path | None = None) -> None:
        """Something writes garbage over a file."""
        found = [paper.path for paper in self.legible()]
        for folder in (self.paths.agents, self.planning / ".agent-health", self.claude / "sessions"):
            found += sorted(folder.glob("*.json"))
        found += sorted((self.claude / "teams").glob("*/config.json"))
        found += self.planning.glob(".agent-pids")
        found += [grant.path for grant in self.grants if grant.data]
        path = path or self.some([path for path in found if path not in self.garbled])
        if path is not None:
            self.garbled[path] = path.read_bytes()
            for paper in self.papers:
                if paper.path == path:
                    paper.changes()
            for tool in self.tools():
                if path.parent == self.paths.agents and self.hidden(tool):
                    tool.known = tool.doomed = False
            self.write(path, self.chance.choice((b"", b"{", b"\xff\xfe\0garbage", b"[]", b'"' * 9999)))
            self.tell(f"{path.parent.name}/{path.name} is garbled")

    def mend(self) -> None:
        """A person puts a garbled file right, unless somebody has replaced it meanwhile."""
        path = self.some(list(self.garbled))
        if path is not None:
            before = self.garbled.pop(path)
            if path.name == ".agent-pids":
                self.written_back |= {int(pid) for pid in before.split()}
            if path.exists() and load_object(path.read_bytes()) is None:
                self.write(path, before)
            for grant in self.grants:
                if grant.path == path:
                    grant.shown_s, grant.seen_by = self.time.s, None
                    if not path.exists():  # a broken lease is worth nothing
                        grant.data = grant.holder = None
            self.tell(f"{path.parent.name}/{path.name} is mended")

    # -- deeds: tasks, by the store ----------------------------------------------------------------------------

    def judged(self, what: str, outcome: Outcome, may: bool, untold: bool = False) -> bool:
        """Whether it was done; it must have been if it ``may``, unless somebody held a lock, and else must not."""
        self.tell(f"{what}: {outcome}")
        if outcome is not Outcome.BUSY and (outcome is Outcome.DONE) is not may and not untold:
            self.wrong(f"{what}: {outcome}")
        return outcome is Outcome.DONE

    def task(self, paper: Paper) -> Task:
        found = claude.task(paper.path.read_bytes(), paper.path.parent.name, paper.path)
        assert found is not None
        return found

    def claim_by_token(self) -> None:
        """Any task, free or not."""
        worker = self.some([*self.living(), *self.guests])
        if worker and (paper := self.some(self.legible(worker.team))):
            self.claims(worker, paper)

    def claims(self, worker: Worker, paper: Paper) -> Attempt | None:
        may = paper.state == ("pending", None)
        clock = {"since_s": self.time.s, "boot": BOOT}
        action = Claim(
            key=paper.key, task=self.task(paper), owner=worker.name, reason="asked",
            evidence={"owner": worker.name, **clock},
        )  # fmt: skip

        def deed(store: Store) -> Attempt | None:
            paper.changes()
            if not self.judged(f"{worker} claims {paper.key}", store.commit(action, "cli"), may):
                return None
            token = store.index.claims[paper.key].token
            if token <= paper.token:
                self.wrong(f"{paper.key} had token {paper.token}, and now {token}")
            self.writes(paper, worker, {**paper.said, "status": "in_progress", "owner": worker.name})
            paper.token = token
            return Attempt(paper, worker, token, paper.begun)

        attempt = self.person(deed)
        self.attempts += [attempt] if attempt else []
        return attempt

    def trials(self) -> list[Attempt]:
        """The claims of those who can still show that they are at it, or finish it."""
        able, there = [*self.living(), *self.guests], self.legible()
        return [each for each in self.attempts[-20:] if each.worker in able and each.paper in there]

    def beat(self, attempt: Attempt | None = None) -> None:
        """One shows that it is at its task, as ``task heartbeat`` does it."""
        attempt = attempt or self.some(self.trials())
        if attempt is None:
            return
        paper, may = attempt.paper, attempt.at_work
        its_own = paper.state == ("in_progress", attempt.worker.name)
        beaten = self.person(lambda store: its_own and store.beat(paper.key, attempt.token, self.time.s, BOOT))
        self.tell(f"{attempt.worker} beats for {paper.key}: {beaten}")
        if beaten is not may and not paper.untold:
            self.wrong(f"a heartbeat of {attempt} was {'taken' if beaten else 'refused'}")
        paper.heard_s = self.time.s if beaten else paper.heard_s

    def complete(self, attempt: Attempt | None = None) -> None:
        """One finishes a task by its token, however late."""
        attempt = attempt or self.some(self.trials())
        if attempt is None:
            return
        paper, worker = attempt.paper, attempt.worker
        action = Complete(
            key=paper.key, task=self.task(paper), owner=worker.name, token=attempt.token, reason="asked",
            evidence={"owner": worker.name, "token": attempt.token},
        )  # fmt: skip
        may = attempt.may_finish
        paper.changes()
        outcome = self.person(lambda store: store.commit(action, "cli"))
        if self.judged(f"{worker} finishes {paper.key} by token {attempt.token}", outcome, may, paper.untold > 0):
            paper.attempts = 0
            self.writes(paper, worker, {**paper.said, "status": "completed", "owner": worker.name})

    def visit(self) -> None:
        """One from another machine takes a task as its client does it."""
        guest = self.some(self.guests)
        if paper := self.some([p for p in self.legible(guest.team) if p.state == ("pending", None)]):
            self.change(paper, guest, "in_progress")

    def redrive(self, paper: Paper | None = None) -> None:
        """A person puts a dead letter back into the queue."""
        if paper := paper or self.some([paper for paper in self.legible() if paper.aside]):
            action = task_actions.redrive(self.task(paper), "asked")
            if self.judged(f"a person redrives {paper.key}", self.commit_on(paper, action), True):
                paper.said = {key: value for key, value in paper.said.items() if key != "owner"}
                paper.attempts = 0

    def drop(self) -> None:
        """A person gives a dead letter up."""
        if paper := self.some([paper for paper in self.legible() if paper.aside]):
            action = task_actions.drop(self.task(paper), "asked")
            if self.judged(f"a person drops {paper.key}", self.commit_on(paper, action), True):
                self.papers.remove(paper)
                self.dropped.append(paper.path)
                self.paper(paper.path.parent.name)

    def commit_on(self, paper: Paper, action: EndDeadLetter) -> Outcome:
        away = task_actions.remove_dead_letter(key=paper.key, path=self.letter(paper), reason="asked")

        def deed(store: Store) -> Outcome:
            paper.changes()
            outcome = store.commit(action, "cli")
            if outcome is Outcome.DONE and store.commit(away, "cli") is not Outcome.DONE:
                self.wrong(f"{paper.key} was set aside without a letter")
            return outcome

        return self.person(deed)

    def letter(self, paper: Paper) -> Path:
        return self.paths.folder / "dead-letters" / letter_file(paper.key)

    # -- deeds: leases -------------------------------------------------------------------------------------------

    def at_hand(self) -> Grant | None:
        found: Grant | None = self.some([grant for grant in self.grants if grant.path not in self.garbled])
        return found

    def take_lease(self) -> None:
        """One takes a lease that is free, or renews its own, as the plugin does it."""
        worker, grant = self.some(self.living()), self.at_hand()
        if worker and grant and (grant.holder is None or grant.holder.name == worker.name):
            self.takes(worker, grant, self.chance.choice((5, 30, 120)))

    def takes(self, worker: Worker, grant: Grant, ttl_s: int) -> None:
        self.write(grant.path, plugin_leases.dump_lease(grant.resource, worker.name, self.time.now(), ttl_s))
        self.holds(worker, grant, ttl_s, lent=False)

    def holds(self, worker: Worker, grant: Grant, ttl_s: int, lent: bool) -> None:
        grant.data, grant.holder, grant.ttl_s, grant.lent = grant.path.read_bytes(), worker, ttl_s, lent
        grant.given_s, grant.jumped_s, grant.seen_by = self.time.s, None, None
        self.tell(f"{worker} holds {grant.resource} for {ttl_s} s{', by the store' * lent}")

    def borrow(self) -> None:
        """One asks the store for a lease, whoever may have it."""
        worker, grant = self.some(self.living()), self.at_hand()
        if worker and grant:
            self.borrows(worker, grant, self.chance.choice((5, 30, 120)))

    def borrows(self, worker: Worker, grant: Grant, ttl_s: int) -> None:
        own = grant.holder is not None and grant.holder.name == worker.name
        free = grant.holder is None or own or self.time.s >= grant.ends_s
        sure = grant.lent or (grant.jumped_s is None and not grant.ends_s <= self.time.s < grant.ends_s + 1.0)
        before = grant.token if own and grant.lent else None

        def deed(store: Store) -> None:
            action = Leases(store, self.time, BOOT).lend(grant.resource, worker.name, ttl_s, self.time.now())
            if isinstance(action, Held) is free and sure:
                self.wrong(f"{worker} asked for {grant}, and was answered {action}")
            if not isinstance(action, Held) and self.judged(f"{worker} borrows", store.commit(action, "cli"), True):
                token = store.index.leases[str(grant.path)].token
                if token != before if before is not None else token <= grant.token:
                    self.wrong(f"{grant.resource} had token {grant.token}, and now {token}")
                grant.token = token
                self.holds(worker, grant, ttl_s, lent=True)

        self.person(deed)

    def hand_in(self) -> None:
        """One gives its lease back before its time."""
        able = self.living()
        if grant := self.some([g for g in self.grants if g.holder in able and g.path not in self.garbled]):
            assert grant.holder is not None
            if self.chance.random() < 0.4:
                grant.path.unlink()
                self.stamp(grant.path)
            else:
                action = Release(key=grant.resource, path=grant.path, owner=grant.holder.name, reason="asked")
                self.person(lambda store: self.judged("handed in", store.commit(action, "cli"), True))
            self.tell(f"{grant.holder} hands {grant.resource} in")
            grant.data = grant.holder = None

    # -- deeds: the plugin's state -------------------------------------------------------------------------------

    def write_ledger(self, ledger: Ledger | None = None) -> None:
        """Somebody writes it, in its place or anew; nobody tells us."""
        ledger = ledger or self.some(self.ledgers)
        number = len(ledger.sound)
        state = {"phase": number // 9, "status": "running", "plans": [{"id": "05-01", "status": f"was-{number}"}]}
        data = execution_state.dump(state) if ledger.path.suffix == ".json" else f"# State {number}\n".encode()
        if self.chance.random() < 0.5:
            ledger.path.unlink(missing_ok=True)
        self.write(ledger.path, data)
        ledger.data, ledger.written_s, ledger.broken = data, self.time.s, False
        ledger.sound.append(data)
        self.tell(f"{ledger.path.name} says {number}")

    def break_ledger(self) -> None:
        """A crash, a torn write or a foolish edit."""
        ledger = self.some(self.ledgers)
        whole = ledger.sound[-1]
        torn = whole[: self.chance.randrange(len(whole))] if ledger.path.suffix == ".json" else b"\xff"
        data = self.chance.choice((b"", torn, b"\0" * len(whole), b"\xff\xfe\0garbage"))
        self.write(ledger.path, data)
        ledger.data, ledger.written_s, ledger.broken = data, self.time.s, True
        self.tell(f"{ledger.path.name} is broken: {data[:20]!r}")

    # -- deeds: processes ----------------------------------------------------------------------------------------

    def work(self) -> None:
        """An agent, or one of its tools, starts a process."""
        tools = [tool for tool in self.tools() if not (tool.worker and tool.worker.hangs)]
        if parent := self.some([worker.process for worker in self.living()] + tools):
            self.use_tool(parent)

    def use_tool(self, parent: Process, ears: Ears | None = None) -> Process:
        ears = ears or self.chance.choices(EARS, (6, 3, 1))[0]
        tool = self.machine.start(["bash"], "tool", parent.pid, ears=ears, worker=parent.worker)
        tool.background = parent.background
        self.tell(f"{parent.pid} starts tool {tool.pid}, its ears are {ears}")
        return tool

    def end_tool(self, tool: Process | None = None) -> None:
        """One ends by itself. What it had started lives on in the background."""
        if tool := tool or self.some(self.tools()):
            for each in self.machine.descendants(tool):
                if each.kind == "tool" and each.worker is tool.worker:
                    each.background |= bool(tool.worker and tool.worker.alive)
                    each.doomed = False
            self.machine.end(tool)
            self.tell(f"tool {tool.pid} ends")

    def use_background(self) -> None:
        """A shell starts something and ends, as for ``server &``; its agent may crash the moment after."""
        if worker := self.some(self.living()):
            self._tasks.start_soon(self._use_background, worker, self.chance.random() < 0.3)

    async def _use_background(self, worker: Worker, crash: bool) -> None:
        shell = self.use_tool(worker.process, "good")
        self.use_tool(shell)
        await anyio.sleep(self.chance.choice((0.02, 1.3, 4.0)))
        if not shell.over:
            self.end_tool(shell)
            if crash:
                self.end(worker)

    def stranger(self) -> None:
        others = [p for p in self.machine.table.values() if p.kind == "stranger" and p.pid not in (1, os.getpid())]
        if self.chance.random() < 0.5 or not others:
            self.machine.start(["vim"], "stranger", self.some([1, *(p.pid for p in others)]))
        else:
            self.machine.end(self.some(others))

    def reuse_pid(self) -> None:
        """A stranger gets the pid of one that is gone."""
        gone = [w.process.pid for w in self.workers[-8:] if w.process.pid not in self.machine.table]
        if (pid := self.some(gone)) is not None:
            self.machine.start(["vim"], "stranger", pid=pid)
            self.tell(f"a stranger has pid {pid} now")

    def reap(self) -> None:
        for process in list(self.machine.table.values()):
            if process.over:
                self.machine.reap(process)

    def jump(self, s: float | None = None) -> None:
        """The wall clock is set; not twice while nobody supervises: nobody could know where it had been in between."""
        if self.supervised() or self.jumped_s < self.supervised_s:
            s = s if s is not None else self.chance.choice((-DAY_S, -7.0, 7.0, 3600.0, DAY_S))
            self.time.wall_s += s
            self.jumped_s = self.time.s
            for grant in self.grants:
                seen = self.seen_for_s(grant) > CONFIG.leases.interval_s + 1.0
                if grant.jumped_s is None or grant.seen_by is not self.supervision:
                    grant.seen_by = self.supervision if seen and grant.jumped_s is None else None
                grant.jumped_s = self.time.s
            self.tell(f"the wall clock jumps by {s} s")

    def let_loose(self) -> None:
        """What hangs on nothing any more was known to the last supervisor only."""
        for tool in self.tools():
            if tool.loose:
                for each in (tool, *self.machine.descendants(tool)):
                    each.doomed = False

    # -- deeds: the supervisor -----------------------------------------------------------------------------------

    def supervised(self) -> bool:
        return self.supervision is not None and not self.supervision.over

    def start_supervisor(self) -> None:
        if not self.supervised():
            self.tell("the supervisor starts")
            for paper in self.papers:
                paper.unsettled = False
            self.supervision = Supervision(self)
            self._tasks.start_soon(self.supervision.run)

    def stop_supervisor(self) -> None:
        if self.supervision is not None and not self.supervision.over:
            self.tell("the supervisor stops")
            self.supervision.stop()

    def kill_supervisor(self) -> None:
        if self.supervision is not None and not self.supervision.over:
            self.tell("the supervisor is killed")
            self.supervision.kill()

    def kill_supervisor_at_work(self, operations: int | None = None) -> None:
        """It will die at one of its next operations on the disk."""
        if self.supervision is not None and not self.supervision.over:
            self.tell("the supervisor will be killed at work")
            self.supervision.disk.lives = operations or self.chance.randrange(1, 40)

    # -- what must always hold -----------------------------------------------------------------------------------

    def look(self) -> None:
        for paper in self.legible():
            self.look_at(paper)
        for paper in self.papers:
            self.look_who_minds(paper)
        for grant in self.grants:
            if grant.path not in self.garbled:
                self.look_at_lease(grant)
        for ledger in self.ledgers:
            self.look_at_ledger(ledger)
        for path in self.dropped:
            if path.exists():
                self.wrong(f"{path} was dropped, and is there again")
        everyone: list[Worker | Process] = [*self.living(awake=False), *self.tools()]
        for each in everyone:
            if self.hidden(each):
                each.shown_s = self.time.s
            elif self.supervision is not None and not self.supervision.over:
                seen_s = self.time.s - max(each.born_s, each.shown_s, self.supervision.since_s)
                each.known |= seen_s > KNOWN_S

    def hidden(self, one: Worker | Process) -> bool:
        """Whether the file that tells of the agent cannot be read now."""
        worker = one if isinstance(one, Worker) else one.worker
        if worker is None:
            return False
        names = (f"{worker.process.pid}.json", f"~{worker.process.pid}-")
        return any(path.name == names[0] or names[1] in path.name for path in self.garbled)

    def look_at(self, paper: Paper) -> None:
        said = load_object(paper.path.read_bytes()) if paper.path.exists() else None
        back = {key: value for key, value in paper.said.items() if key != "owner"} | {"status": "pending"}
        if said == paper.said:
            return
        aside = said == {**back, "owner": tasks.SET_ASIDE}
        if aside and not paper.attempts:
            self.wrong(f"{paper.key} was set aside after its first attempt")
        if (not aside and said != back) or paper.said["status"] != "in_progress":
            self.wrong(f"{paper.key} said {paper.said}, and now {said}")
        elif self.may_be_at(paper):
            self.wrong(f"{paper.key} was taken from {paper.writer}")
        elif not aside and paper.attempts + 1 - paper.untold >= CONFIG.tasks.max_attempts:
            self.wrong(f"{paper.key} was given back again after attempt {paper.attempts + 1}")
        elif aside:
            paper.said, paper.writer = dict(said or {}), None
            self.tell(f"{paper.key} was set aside")
        else:
            paper.said, paper.writer = back, None
            paper.attempts += 1
            paper.given_back += 1
            paper.unsettled = self.supervision is None or self.supervision.over or self.supervision.disk.lives < 0
            self.tell(f"{paper.key} was given back")

    def may_be_at(self, paper: Paper) -> bool:
        """Whether its writer may have been at work on it when it was taken from it."""
        writer = paper.writer
        if writer is None or not writer.alive or writer.forgotten:
            return False
        at_s, no_session = self.touched[paper.path], writer.shown_s > self.time.s - CONFIG.agents.interval_s - 1.0
        if writer.far or no_session:
            return at_s - paper.heard_s < IDLE_S - 0.001
        return not writer.hangs or at_s - max(paper.heard_s, writer.process.hangs_s or 0.0) < IDLE_S - 0.001

    def left_s(self, paper: Paper) -> float | None:
        """How long it may stay as it is; None where somebody is at work on it, or nobody could know that it is not so.

        Whoever bears the name of its owner may be at it.
        """
        owner = paper.said.get("owner"), (team := paper.path.parent.name)
        bearers = [w for w in self.workers if (w.name, w.team) == owner and w.over_s >= paper.written_s]
        unread = {path.parent for path in self.garbled} | {each.path.parent for each in self.papers if each.torn}
        telling = {paper.path.parent, self.claude / "teams" / team, self.paths.agents}
        unclear = unread & telling or any(self.hidden(w) for w in bearers)
        locked = paper.path.with_name(f"{paper.path.name}.lock").exists()
        if paper.said["status"] != "in_progress" or unclear or locked or any(w.alive and not w.hangs for w in bearers):
            return None
        healed = bearers and all(w.known and not w.alive and not w.forgotten for w in bearers)
        if not healed and any(self.is_recorded(w) for w in self.workers if (w.name, w.team) == owner and not w.alive):
            return None
        heard_s = max((w.process.heard_s if w.alive else w.over_s for w in bearers), default=0.0)
        since_s = max(paper.minded_s, paper.heard_s, heard_s, self.supervision.since_s if self.supervision else 0.0)
        return since_s + (ORPHANED_S if healed else SILENT_S) - self.time.s

    def is_recorded(self, worker: Worker) -> bool:
        mark = f"~{worker.process.pid}-{worker.process.started}"
        return any(mark in path.name for path in self.paths.agents.iterdir())

    def look_who_minds(self, paper: Paper) -> None:
        left_s = self.left_s(paper) if self.supervised() else None
        if left_s is None:
            paper.minded_s = self.time.s
        elif left_s < 0.0:
            self.wrong(f"{paper.key} of {paper.said['owner']} should have been back {-left_s:.1f} s ago")

    def seen_for_s(self, grant: Grant) -> float:
        """How long the supervisor has had to look at it."""
        since_s = self.supervision.since_s if self.supervision and self.supervised() else float("inf")
        return self.time.s - max(grant.given_s, grant.shown_s, since_s)

    def look_at_lease(self, grant: Grant) -> None:
        found = grant.path.read_bytes() if grant.path.exists() else None
        if found is not None and found == grant.data:
            over_s = grant.ends_s
            if grant.jumped_s is not None and self.supervision is not grant.seen_by and not grant.lent:
                since_s = self.supervision.since_s if self.supervision else 0.0
                over_s = max(over_s, grant.jumped_s + grant.ttl_s, since_s + grant.ttl_s)
            if self.seen_for_s(grant) > LENT_S and self.time.s - over_s > LENT_S:
                self.wrong(f"{grant} has outlived its time")
        elif found is not None:
            self.wrong(f"{grant} says {found!r} now")
        elif (holder := grant.holder) is not None:
            misled = not grant.lent and grant.jumped_s is not None and grant.seen_by is not self.supervision
            at_s = self.touched[grant.path]
            if holder.alive and not holder.forgotten and at_s < grant.ends_s - 0.001 and not misled:
                self.wrong(f"{grant} was taken from {holder} {grant.ends_s - at_s:.1f} s before its time")
            grant.data = grant.holder = None
            self.tell(f"the lease on {grant.resource} of {holder} was ended")

    def look_at_ledger(self, ledger: Ledger) -> None:
        name, found = ledger.path.name, ledger.path.read_bytes()
        since_s = self.supervision.since_s if self.supervision and self.supervised() else float("inf")
        seen = self.time.s - max(ledger.written_s, since_s) > PATIENCE_S
        if not ledger.broken and found != ledger.data:
            self.wrong(f"{name} said {ledger.data!r}, and now {found!r}")
        elif not ledger.broken:
            ledger.good = found if seen else ledger.good
        elif found == ledger.data:
            if seen and ledger.good is not None:
                self.wrong(f"{name} is broken for longer than it may be")
        elif found not in ledger.sound:
            self.wrong(f"{name} says what nobody ever wrote: {found!r}")
        elif ledger.good is not None and ledger.sound.index(found) < ledger.sound.index(ledger.good):
            self.wrong(f"{name} was restored to {found!r}, which is older than {ledger.good!r}")
        else:
            ledger.data, ledger.broken = found, False
            self.tell(f"{name} was restored to {found!r}")

    async def settle(self) -> None:
        """Nobody does anything any more; people mend what was garbled; the supervisor has its time."""
        self.tell("all becomes quiet")
        while self.garbled:
            self.mend()
        await anyio.sleep(20.0)
        for paper in self.papers:
            if paper.torn:
                self.write(paper.path, json.dumps(paper.said, indent=2).encode())
                paper.torn = False
        if self.supervised():
            assert self.supervision is not None
            self.supervision.disk.lives = float("inf")
        self.start_supervisor()
        for _ in range(12):
            await self.spend(10.0)
        self.look_at_the_end()

    def look_at_the_end(self) -> None:
        for paper in self.papers:
            if self.left_s(paper) is not None:
                self.wrong(f"{paper.key} is still in progress, of {paper.said['owner']}")
            if paper.aside and (load_object(self.letter(paper).read_bytes()) or {}).get("id") != paper.key:
                self.wrong(f"{paper.key} was set aside without its story")
        names = {worker.name for worker in self.living(awake=False)}
        for grant in self.grants:
            holder = grant.holder
            if holder and holder.known and not holder.alive and not holder.forgotten and holder.name not in names:
                self.wrong(f"{grant} is still there")
        for tool in self.tools():
            if tool.doomed and tool.ears != "dead":
                self.wrong(f"{tool} was left behind")
        records = [own_files.load_agent(path.read_bytes()) for path in self.paths.agents.iterdir()]
        running = {w.process.id: w for w in self.living(awake=False)}
        for agent in records:
            if agent is None or agent.process not in running:
                self.wrong(f"there is still a record of {agent}")
        recorded = {agent.process for agent in records if agent}
        for process, worker in running.items():
            if worker.known and not worker.forgotten and process not in recorded:
                self.wrong(f"{worker} is not watched")
        at_work = {pid for pid, process in self.machine.table.items() if not process.over}
        # another one may be in a container, and so may one whose record a person has removed
        known = {worker.process.pid: worker.known and not worker.forgotten for worker in self.workers}
        listed = {int(pid) for pid in (self.planning / ".agent-pids").read_text().split()}
        if gone := {pid for pid in listed - at_work - self.written_back if known.get(pid)}:
            self.wrong(f"the plugin's books still name {gone}")
        self.look_at_the_journal()

    def look_at_the_journal(self) -> None:
        entries = [entry for entry in history(self.paths.journal) if entry["kind"] == "task"]
        journal = Journal(self.paths.journal, Disk(), self.paths.folder / "quarantine")
        journal.load()
        attempts = self.attempts_told(entries)
        if attempts != journal.index.requeues:
            self.wrong(f"the journal tells {attempts} and counts {journal.index.requeues}")
        aside = {paper.key for paper in self.papers if paper.aside}
        if aside != journal.index.dead_letters.keys():
            self.wrong(f"{aside} are set aside, and the journal knows {journal.index.dead_letters}")
        told = Counter(entry["key"] for entry in entries if entry["action"] == "requeued")
        for paper in self.papers:
            if not paper.given_back - paper.untold <= told[paper.key] <= paper.given_back:
                self.wrong(f"{paper.key} was given back {paper.given_back} times, the journal tells {told[paper.key]}")

    def attempts_told(self, entries: list[dict[str, Any]]) -> Counter[str]:
        """How often each task was given back since its last good end. Each failure must have had its due."""
        attempts: Counter[str] = Counter()
        failures: dict[str, dict[str, Any]] = {}
        for entry in entries:
            key, action, how = entry["key"], entry["action"], entry["evidence"]
            if action in ("redriven", "dropped", "completed", "put_away"):
                attempts.pop(key, None)
                failures.pop(key, None)
            elif action in ("requeued", "dead_lettered"):
                last = failures.get(key, {"cause": None, "since_s": 0.0})
                again = last["cause"] == how["cause"] and how["since_s"] - last["since_s"] < CONFIG.tasks.poison_s
                never = again or how["attempt"] >= CONFIG.tasks.max_attempts
                if how["attempt"] != attempts[key] + 1 or never is not (action == "dead_lettered"):
                    self.wrong(f"after {attempts[key]} attempts, the last of which was {last}, came {entry}")
                if action == "requeued":
                    attempts[key] += 1
                    failures[key] = how
        return +attempts


@pytest.fixture
def world_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Makes a world whose time is the program's."""
    if sys.platform != "linux":
        pytest.skip("the machine is made of Linux's descriptors")

    def make(seed: int = 0, pidfds: bool = True) -> World:
        world = World(seed, pidfds, tmp_path / str(seed))
        enter(world, monkeypatch, tmp_path / "pid-lock")
        return world

    return make


@pytest.mark.sampled(1)
@pytest.mark.parametrize("pidfds", [True, False], ids=["with pidfds", "without pidfds"])
@pytest.mark.parametrize("seed", range(LIVES))
def test_random_faults_harm_nothing_and_are_all_recovered(
    seed: int, pidfds: bool, world_of: Callable[..., World]
) -> None:
    world = world_of(seed, pidfds)
    world.run(world.live)


# -- stories that it has told, each as short as it can be ---------------------------------------------------------


@pytest.fixture
def world(world_of: Callable[..., World]) -> World:
    return world_of()


def test_an_agent_that_a_leftover_starts_in_its_grace_period_lives_on(world: World) -> None:
    async def story() -> None:
        dev = world.begin("dev-1")
        tool = world.use_tool(dev.process, "deaf")
        await world.spend(KNOWN_S + 1)
        world.end(dev)
        await world.spend(2.0)
        world.begin("dev-2", tool)
        await world.settle()

    world.run(story)


def test_a_background_process_survives_its_agents_death_right_after(world: World) -> None:
    async def story() -> None:
        dev = world.begin("dev-1")
        shell = world.use_tool(dev.process, "good")
        server = world.use_tool(shell, "good")
        await world.spend(KNOWN_S + 1)
        world.end_tool(shell)
        world.end(dev)
        await world.settle()
        assert not server.over

    world.run(story)


def test_leftovers_are_remembered_by_the_next_supervisor_but_one(world: World) -> None:
    async def story() -> None:
        dev, other = world.begin("dev-1"), world.begin("dev-2")
        for each in (dev, other):
            world.use_tool(each.process, "deaf")
        await world.spend(KNOWN_S + 1)
        world.kill_supervisor()
        await world.spend(1.0)
        world.end(dev)
        world.start_supervisor()
        await world.spend(7.0)
        world.kill_supervisor()
        await world.settle()

    world.run(story)


def test_an_agent_whose_command_line_could_not_be_read_at_first_is_watched_when_it_can(world: World) -> None:
    async def story() -> None:
        dev = world.begin("dev-1")
        world.machine.mute.add(dev.process.pid)
        await world.spend(5.0)
        world.machine.mute.clear()
        await world.spend(KNOWN_S + 1)
        world.machine.start(["vim"], "stranger")  # something begins, so that the census looks
        await world.settle()

    world.run(story)


def test_a_record_that_could_not_be_read_at_first_counts_when_it_can(world: World) -> None:
    async def story() -> None:
        dev = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        world.change(world.papers[0], dev, "in_progress")
        world.kill_supervisor()
        await world.spend(1.0)
        (record,) = world.paths.agents.iterdir()
        world.garble(record)
        world.end(dev)
        world.start_supervisor()
        await world.spend(20.0)
        await world.settle()

    world.run(story)


def test_a_successor_keeps_its_task_if_the_clock_went_back_before_its_claim(world: World) -> None:
    async def story() -> None:
        first = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        world.garble(world.papers[5].path)  # so that the case stays open
        world.end(first)
        second = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        world.jump(-3600.0)
        world.change(world.papers[0], second, "in_progress")
        await world.settle()

    world.run(story)


def test_a_successor_keeps_its_task_if_the_clock_went_forward_before_it_was_seen(world: World) -> None:
    async def story() -> None:
        first = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        world.kill_supervisor()
        await world.spend(1.0)
        world.end(first)
        second = world.begin("dev-1")
        await world.spend(5.0)
        world.change(world.papers[0], second, "in_progress")
        world.jump(3600.0)
        await world.settle()

    world.run(story)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("operations", range(1, 24))
def test_a_promise_about_a_dead_agents_task_is_not_kept_when_its_successor_is_at_it(
    operations: int, world: World
) -> None:
    async def story() -> None:
        first = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        world.change(world.papers[0], first, "in_progress")
        await world.spend(KNOWN_S)
        world.kill_supervisor_at_work(operations)
        world.end(first)
        await world.spend(8.0)
        world.kill_supervisor()
        second = world.begin("dev-1")
        for _ in range(2):  # the killed one's lock is in its way at first
            await world.spend(11.0)
            world.change(world.papers[0], second, "in_progress")
        await world.settle()

    world.run(story)


@pytest.mark.parametrize("jump_s", [0.0, DAY_S, -DAY_S])
def test_a_hung_agents_task_is_requeued_after_the_limit_and_the_agent_survives(jump_s: float, world: World) -> None:
    async def story() -> None:
        dev = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        world.change(paper := world.papers[0], dev, "in_progress")
        world.hang(dev)
        world.jump(jump_s)
        await world.spend(IDLE_S - 1.0)
        assert paper.state == ("in_progress", "dev-1")
        await world.spend(SILENT_S - IDLE_S)
        assert paper.state == ("pending", None)  # type: ignore[comparison-overlap]  # it changes while we wait
        await world.settle()
        assert dev.alive

    world.run(story)


def test_an_unknown_owner_keeps_its_task_while_it_sends_heartbeats(world: World) -> None:
    async def story() -> None:
        attempt = world.claims(world.guests[0], world.papers[0])
        assert attempt is not None
        for _ in range(6):
            await world.spend(IDLE_S / 2)
            world.beat(attempt)
        assert attempt.at_work
        await world.spend(SILENT_S)
        assert world.papers[0].state == ("pending", None)

    world.run(story)


@pytest.mark.parametrize("operations", range(1, 12))
def test_a_promise_made_for_silence_lapses_when_the_silence_ends(operations: int, world: World) -> None:
    async def story() -> None:
        attempt = world.claims(world.guests[0], world.papers[0])
        assert attempt is not None
        await world.spend(IDLE_S - 5.0)
        world.kill_supervisor_at_work(operations)
        await world.spend(SILENT_S - IDLE_S + 5.0)
        world.kill_supervisor()
        world.beat(attempt)
        await world.spend(1.0)
        world.start_supervisor()
        await world.spend(5.0)

    world.run(story)


def test_a_late_completion_counts_until_a_newer_attempt_has_begun(world: World) -> None:
    async def story() -> None:
        dev, other = world.begin("dev-1"), world.begin("dev-2")
        await world.spend(KNOWN_S + 1)
        first, second = (world.claims(dev, paper) for paper in world.papers[:2])
        assert first is not None
        assert second is not None
        world.hang(dev)
        await world.spend(SILENT_S)
        newer = world.claims(other, second.paper)
        world.wake(dev)
        world.complete(first)
        world.complete(second)
        assert first.paper.state == ("completed", "dev-1")
        assert newer is not None
        assert newer.at_work

    world.run(story)


def test_a_new_claim_invalidates_the_owners_older_token(world: World) -> None:
    async def story() -> None:
        dev = world.begin("dev-1")
        await world.spend(KNOWN_S + 1)
        older = world.claims(dev, world.papers[0])
        assert older is not None
        world.hang(dev)
        await world.spend(SILENT_S)
        world.wake(dev)
        newer = world.claims(dev, world.papers[0])
        world.complete(older)
        assert newer is not None
        assert newer.at_work
        world.complete(newer)
        assert world.papers[0].state == ("completed", "dev-1")

    world.run(story)


def test_tasks_stay_with_living_agents_while_the_team_file_is_unreadable(
    world: World,
) -> None:
    async def story() -> None:
        world.lead()
        (lead, mate) = world.workers
        await world.spend(KNOWN_S + 1)
        paper = next(paper for paper in world.papers if paper.path.parent.name == mate.team)
        world.change(paper, mate, "in_progress")
        world.garble(world.claude / "teams" / lead.team / "config.json")
        await world.spend(2 * SILENT_S)
        assert paper.state == ("in_progress", "mate")

    world.run(story)


def test_tasks_stay_with_an_agent_whose_record_is_unreadable(world: World) -> None:
    async def story() -> None:
        world.register()
        (aider,) = world.workers
        await world.spend(KNOWN_S + 1)
        world.change(world.papers[0], aider, "in_progress")
        world.stop_supervisor()
        await world.spend(1.0)
        (record,) = world.paths.agents.iterdir()
        world.garble(record)
        world.start_supervisor()
        await world.spend(2 * SILENT_S)
        assert world.papers[0].state == ("in_progress", "aider")

    world.run(story)


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
@pytest.mark.parametrize("lent", [True, False], ids=["by the store", "by the plugin"])
def test_a_step_of_the_wall_clock_ends_no_lease_and_makes_none_outlive_its_time(
    lent: bool, jump_s: float, world: World
) -> None:
    async def story() -> None:
        dev, grant = world.begin("dev-1"), world.grants[0]
        await world.spend(KNOWN_S + 1)
        (world.borrows if lent else world.takes)(dev, grant, 120)
        await world.spend(LENT_S)
        world.jump(jump_s)
        if lent:  # whose time is known to every supervisor
            world.kill_supervisor()
            await world.spend(1.0)
            world.start_supervisor()
        await world.spend(grant.ends_s - world.time.s - 1.0)
        assert grant.holder is dev
        await world.spend(3.0)
        assert grant.holder is None

    world.run(story)


def test_a_dead_letter_waits_for_a_person_despite_repeated_claims(world: World) -> None:
    async def story() -> None:
        paper = world.papers[0]
        for attempt in range(CONFIG.tasks.max_attempts):
            dev = world.begin("dev-1")
            await world.spend(CONFIG.tasks.poison_s)
            world.change(paper, dev, "in_progress")
            world.end(dev)
            await world.spend(ORPHANED_S)
            assert paper.aside is (attempt == CONFIG.tasks.max_attempts - 1)
        for guest in world.guests:
            world.claims(guest, paper)
        await world.settle()
        assert paper.aside
        world.redrive()
        world.claims(world.guests[0], paper)
        assert paper.state == ("in_progress", "guest-1")

    world.run(story)
