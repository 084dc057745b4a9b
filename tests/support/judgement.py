"""A world of random teams for the judgement "who is at work", and an oracle that knows the truth from the script alone.

The clients write their real files, in virtual time; the supervisor is the real one. The oracle is asked at the very
moment at which the supervisor changes a task, or signals a process.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.abc
import pytest
import structlog.testing

from support.client_files import Chat, ClientFiles, Member, Team, write_hook_note
from support.project import write_task
from support.simulation import BOOT, Machine, Process, Supervision, Time, enter
from yolo_supervisor.config import Config, SessionsConfig, TasksConfig
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.tmux import Tmux

T = TypeVar("T")

KNOWN_S = 12.0
"""An agent that has lived so long under one supervisor, and in its team or session, is known to the supervisor."""

MATE_KNOWN_S = KNOWN_S + 15.0
"""The same for a teammate inside its lead's process, which looks like a tmux teammate that is being started."""

BACK_S = 1.0
"""The time in which every task of a known-dead owner is back."""

MASS_S = 12.0
"""The same where more than half of the known agents are missing at once, without observed exits."""

RESUMED_S = 42.0
"""The same for a session that the client's living daemon may bring back: its limit, and one look."""

HOST_ENDED_S = 2.0
"""The same once that daemon has ended, which the kernel does not report."""

SLACK_S = 0.01


class Doing(StrEnum):
    """The activity of an agent, by the script."""

    WORKING = "working"
    PERSON = "waits for a person"
    QUOTA = "waits for its quota"
    BACKGROUND = "waits for background work"
    IDLE = "idle"
    FAILED = "failed with 500"
    STALLED = "stalled"
    SUSPENDED = "suspended"


OVER = (Doing.QUOTA, Doing.BACKGROUND, Doing.IDLE, Doing.FAILED)
"""The states after the end of a turn."""

Kind = Literal["teammate", "lead", "lone", "mate", "hosted"]

OnStall = Literal["notify", "requeue"]

SIGNALS = {"KILL": 9, "SEGV": 11, "ABRT": 6, "TERM": 15, "HUP": 1, "exit": 0}
CLEAN = ("TERM", "HUP", "exit")
"""Ends at which the client removes its files."""


@dataclass(eq=False)
class Body:
    """A process, as the machine knows the agent in it."""

    process: Process
    known: bool = False
    forgotten: bool = False
    hangs: bool = False

    @property
    def alive(self) -> bool:
        return not self.process.over


@dataclass(eq=False)
class Actor:
    """An agent by the script."""

    kind: Kind
    name: str
    process: Process
    chat: Chat
    session: str
    list: str
    born_s: float
    team: Team | None = None
    member: Member | None = None
    lead: Actor | None = None
    unseen: bool = False
    """Whether the supervisor cannot see its process: a container, another machine."""
    doing: Doing = Doing.WORKING
    before: Doing = Doing.WORKING
    """Its activity before it was suspended."""
    sign_s: float = 0.0
    """The time of its last sign of work."""
    next_s: float = 0.0
    retries: int = 0
    changed_s: float = 0.0
    """The time at which it last got another session or team."""
    known: bool = False
    tied: set[str] = field(default_factory=set)
    """The lists that a supervisor had the time to tie it to."""
    list_hidden: bool = False
    """Whether nothing ties it to its list: it was cleared before it was seen, and its version writes no process."""
    dead_s: float | None = None
    at_quota: bool = False
    """Whether it died at a quota."""
    resumed_at_s: float | None = None
    """The time at which the client's own daemon will resume it."""

    @property
    def alive(self) -> bool:
        return self.dead_s is None

    @property
    def is_session(self) -> bool:
        return self.kind in ("lead", "lone", "hosted")

    def __repr__(self) -> str:
        where = " (unseen)" if self.unseen else ""
        return f"<{self.kind} {self.name} in {self.process.pid}{where}, {self.doing if self.alive else 'dead'}>"


@dataclass(eq=False)
class Paper:
    """A task, and its true owner."""

    path: Path
    owner: Actor | None = None
    written_s: float = 0.0
    taken: int = 0
    """The number of its requeues."""

    @property
    def key(self) -> str:
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def said(self) -> dict[str, Any]:
        return load_object(self.path.read_bytes()) or {}


@dataclass(frozen=True)
class Due:
    """A task that has to be back by then."""

    paper: Paper
    owner: Actor
    by_s: float
    taken: int


@dataclass
class Figures:
    """The figures of one scenario, or of many."""

    states: Counter[str] = field(default_factory=Counter)
    """The number of times that an agent with a task was in each state for at least a minute."""
    taken: Counter[str] = field(default_factory=Counter)
    """The tasks that were given back, by the right to it."""
    dues: int = 0
    """The tasks of known-dead owners that had to be back at once."""
    judged: int = 0
    """The tasks that were begun."""
    wrong: int = 0

    def add(self, other: Figures) -> None:
        self.states += other.states
        self.taken += other.taken
        self.dues += other.dues
        self.judged += other.judged
        self.wrong += other.wrong


class JudgedWorld:
    """Random teams on one machine, and the truth about them."""

    def __init__(
        self, seed: int, folder: Path, *, newest: bool = True, hooks: bool = True, on_stall: OnStall = "notify"
    ) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.time = Time()
        self.home = folder / "home"
        self.claude = self.home / ".claude"
        self.project = folder / "project"
        (self.project / ".yolo-planning").mkdir(parents=True)
        self.paths = Paths(self.project)
        self.tmux = Tmux(self.time)
        self.machine = Machine(self.time, True, self.home, self.project, self.wrong)
        self.machine.boot_id = BOOT
        self.config = Config(tasks=TasksConfig(on_stall=on_stall), sessions=SessionsConfig(interval_s=60.0))
        self.files = ClientFiles(self.time, self.claude, self.project, self.stamp_file, newest=newest)
        self.hooks = hooks
        """Whether the clients leave hook notes."""
        self.local = True
        """Whether the home is on a disk of this machine."""
        self.actors: list[Actor] = []
        self.papers: dict[Path, Paper] = {}
        self.dues: list[Due] = []
        self.daemon: Process | None = None
        """The client's own daemon."""
        self.supervision: Supervision | None = None
        self.supervised_s = 0.0
        self._ending = False
        self.story: list[str] = []
        self.wrongs: list[str] = []
        self.figures = Figures()
        self._numbers = itertools.count(1)
        self._tasks: anyio.abc.TaskGroup

    def tell(self, text: str) -> None:
        self.story.append(f"{self.time.s:9.2f}  {text}")

    def wrong(self, text: str) -> None:
        self.tell(f"WRONG: {text}")
        self.wrongs.append(text)
        self.figures.wrong += 1

    def let_loose(self) -> None:
        pass

    # -- files -------------------------------------------------------------------------------------------------------

    def stamp_file(self, path: Path) -> None:
        """Date a file that a client has just written or removed."""
        at_s = self.time.time()
        for changed in (path, path.parent):
            if changed.exists():
                os.utime(changed, (at_s, at_s))

    def stamp(self, path: Path) -> None:
        """Date a file that the supervisor has changed, and judge a requeue."""
        if path.parent.exists():
            os.utime(path.parent, (self.time.time(), self.time.time()))
        if (paper := self.papers.get(path)) is not None:
            os.utime(path, (self.time.time(), self.time.time()))
            if paper.said.get("status") != "in_progress" and paper.owner is not None:
                self.judge(paper, paper.owner)

    # -- life --------------------------------------------------------------------------------------------------------

    def enter(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        """Let the program see this world's time and disk from now on."""
        enter(self, monkeypatch, folder / "pid-lock")
        for module in ("watchers.agents", "inventory.claude_homes"):
            monkeypatch.setattr(f"yolo_supervisor.{module}.is_local", lambda _: self.local)

    def run(self, life: Callable[[], Awaitable[object]]) -> None:
        async def whole() -> None:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._live)
                self.start_supervisor()
                await life()
                self._tasks.cancel_scope.cancel()

        with structlog.testing.capture_logs() as log:
            anyio.run(whole, backend_options={"loop_factory": self.time.loop})
        for line in log:
            if line.get("exc_info"):
                self.wrong(f"a look failed: {line}")

    def report(self) -> str:
        versions = "2.1.332" if self.files.newest else "2.1.197"
        about = f"client {versions}, hooks {self.hooks}, local disk {self.local}, {self.config.tasks.on_stall}"
        return "\n".join([f"seed {self.seed}: {about}", *self.story, *self.wrongs])

    async def _live(self) -> None:
        """Let the clients go on, each at its pace."""
        while True:
            for actor in self.actors:
                if actor.alive and self.time.s >= actor.next_s:
                    self._pulse(actor)
                if actor.resumed_at_s is not None and self.time.s >= actor.resumed_at_s:
                    self.bring_back(actor)
            self.look()
            await anyio.sleep(1.0)

    async def pass_s(self, s: float) -> None:
        until_s = self.time.s + s
        while self.time.s < until_s and not self.wrongs:
            await anyio.sleep(min(30.0, until_s - self.time.s))

    def some(self, found: list[T]) -> T | None:
        return self.chance.choice(found) if found else None

    def living(self, *kinds: Kind) -> list[Actor]:
        return [actor for actor in self.actors if actor.alive and (not kinds or actor.kind in kinds)]

    def papers_of(self, actor: Actor) -> list[Paper]:
        return [paper for paper in self.papers.values() if paper.owner is actor]

    # -- agents ------------------------------------------------------------------------------------------------------

    def _process(self, argv: list[str], unseen: bool, parent: int = 1, boot: str | None = None, **more: Any) -> Process:
        """Its process; one that is out of sight is in ``boot``, or in another container or machine."""
        if unseen:
            boot = boot or self.chance.choice((self._namespace(7), "other/boot/1"))
            pid = self.chance.randrange(400, 9999)  # the files of two clients with one pid are the same
            return Process(pid, 1, int(self.time.s * 100), argv, "agent", self.time.s, boot=boot, **more)
        process = self.machine.start(argv, "agent", parent, **more)
        process.session = process.pid
        process.worker = Body(process)
        return process

    def _namespace(self, number: int) -> str:
        """Another pid namespace of this machine, in this boot."""
        machine, boot, _ = self.machine.boot_id.split("/")
        return f"{machine}/{boot}/{number}"

    def _session_id(self) -> str:
        return f"{self.chance.randrange(16**8):08x}-e039-4e27-ad22-f3bfa65d65f7"

    def _join(self, actor: Actor) -> Actor:
        actor.changed_s = actor.sign_s = actor.born_s
        self.actors.append(actor)
        self.files.asks(actor.chat)
        self._show(actor)
        self._note(actor, "SessionStart", {"source": "startup"}, lasting=True)
        self.tell(f"{actor} begins in list {actor.list}")
        return actor

    def lone(self, unseen: bool = False, hosted: bool = False, session: str | None = None) -> Actor:
        """Start a lone session, perhaps one of the client's own daemon, perhaps with a task list of its environment."""
        session = session or self._session_id()
        environment, listed = {}, session
        if not hosted and not unseen and self.chance.random() < 0.2:
            listed = f"list-{self.chance.randrange(1000)}"
            environment = {"CLAUDE_CODE_TASK_LIST_ID": listed}
        argv = ["claude", "bg-spare"] if hosted else ["claude"]
        parent = self.daemon.pid if hosted and self.daemon else 1
        process = self._process(argv, unseen, parent, environment=environment)
        chat = self.files.chat_of_session(session)
        kind: Kind = "hosted" if hosted else "lone"
        return self._join(Actor(kind, "session", process, chat, session, listed, self.time.s, unseen=unseen))

    def found_team(self, actor: Actor) -> None:
        """Let a session found a team: it is a lead from now on, and its tasks are in the team's list."""
        actor.team = Team(f"session-{actor.session[:8]}", actor.session, actor.process)
        actor.kind, actor.name, actor.list, actor.changed_s = "lead", "team-lead", actor.team.name, self.time.s
        self.files.write_team(actor.team)
        self._show(actor)
        self.tell(f"{actor} founds {actor.team.name}")

    def hire(self, lead: Actor, in_process: bool, name: str | None = None) -> Actor | None:
        """Start a teammate, in a separate process or in its lead's."""
        team = lead.team
        assert team is not None
        names = {a.name for a in self.living() if a.team is team}
        name = name or self.some([name for name in ("dev-1", "dev-2", "qa", "scout") if name not in names])
        if name is None:
            return None
        session = self._session_id()
        member = Member(name, in_process, None if in_process else True)
        team.members = [*(m for m in team.members if m.name != name), member]
        if in_process:
            number = self.chance.randrange(16**6)
            process, chat = lead.process, self.files.chat_of_mate(lead.session, name, team.name, number)
        else:
            ident = f"{name}@{team.name}"
            argv = ["claude", "--agent-id", ident, "--agent-name", name, "--team-name", team.name]
            process = self._process([*argv, "--parent-session-id", lead.session], lead.unseen, boot=lead.process.boot)
            chat = self.files.chat_of_teammate(session, name, team.name)
        kind: Kind = "mate" if in_process else "teammate"
        actor = Actor(kind, name, process, chat, session, team.name, self.time.s, team, member, lead, lead.unseen)
        return self._join(actor)

    def _show(self, actor: Actor) -> None:
        """Bring the client's status files up to date with what the agent does, and with its lead's."""
        if actor.member is not None and actor.team is not None and not actor.member.in_process:
            actor.member.active = actor.doing not in OVER
        if actor.team is not None and actor.team.there and actor.member in actor.team.members:
            self.files.write_team(actor.team)
        session = actor if actor.is_session else actor.lead
        if session is None or not session.alive or session.doing is Doing.SUSPENDED:
            return
        mates = [a for a in self.living() if a.lead is session and a.member in (a.team.members if a.team else ())]
        asks = any(a.doing is Doing.PERSON for a in mates)
        waiting = "permission prompt" if asks or self.chance.random() < 0.5 else "input needed"
        if asks or session.doing is Doing.PERSON:
            self.files.write_session(session.process, session.session, "waiting", waiting, hosted=self._hosted(session))
        else:
            status = "busy" if mates or session.doing not in OVER else "idle"
            self.files.write_session(session.process, session.session, status, hosted=self._hosted(session))

    def _hosted(self, actor: Actor) -> bool:
        return actor.kind == "hosted"

    def _note(self, actor: Actor, event: str, payload: dict[str, Any], lasting: bool = False) -> None:
        if not self.hooks or actor.unseen or not self.paths.folder.is_dir():
            return
        payload = {"hook_event_name": event, "session_id": actor.session, **payload}
        if actor.kind == "mate":
            payload |= {"agent_id": actor.chat.path.stem.removeprefix("agent-"), "agent_type": actor.name}
            event = {"SessionStart": "SubagentStart", "Stop": "SubagentStop"}.get(event, event)
            lasting = event in ("SubagentStart", "SubagentStop")
        order = next(self._numbers)
        at_s = self.time.time() + order * 1e-6  # no two hooks run at the same time
        write_hook_note(self.paths.hooks, event, actor.process, payload, order if lasting else None, at_s)

    # -- what they do ------------------------------------------------------------------------------------------------

    def _pulse(self, actor: Actor) -> None:
        """The next sign of its work, if it is at work."""
        if actor.doing is Doing.QUOTA or actor.doing is Doing.FAILED:
            self._retry(actor)
        elif actor.doing is Doing.WORKING:
            actor.sign_s = self.time.s
            if actor.chat.tool is None:
                self.files.uses_tool(actor.chat)
                self._note(actor, "PreToolUse", {"tool_name": "Bash"})
                self._start_tool(actor)
            else:
                self._end_tools(actor)
                self.files.asks(actor.chat)
            actor.next_s = self.time.s + self.chance.choice((1.0, 4.0, 20.0, 70.0, 240.0, 700.0))

    def _retry(self, actor: Actor) -> None:
        """Its request fails and fails again; then the client gives up."""
        if actor.retries == 0:
            return
        status = 500 if actor.doing is Doing.FAILED else self.chance.choice((429, 529))
        actor.retries -= 1
        actor.sign_s = self.time.s
        actor.next_s = self.time.s + 35.0
        if actor.retries:
            self.files.fails_once(actor.chat, status)
            return
        error = "rate_limit" if status == 429 and self.chance.random() < 0.5 else "server_error"
        self.files.gives_up(actor.chat, status, error)
        self._note(actor, "StopFailure", {"error": error})
        self._show(actor)

    def _start_tool(self, actor: Actor) -> None:
        if not actor.unseen:
            tool = self.machine.start(["bash"], "tool", actor.process.pid, worker=actor.process.worker)
            tool.session, tool.idles = tool.pid, self.chance.random() < 0.5

    def _end_tools(self, actor: Actor) -> None:
        for child in self.machine.children(actor.process):
            if child.kind == "tool":
                self.machine.end(child)

    def turn(self, actor: Actor, doing: Doing) -> None:
        """It does something else from now on."""
        if actor.doing is doing or not actor.alive:
            return
        self.count(actor)
        if actor.doing is Doing.SUSPENDED:
            self._suspend(actor, False)
        if doing is Doing.SUSPENDED:
            self._suspend(actor, True)
            return
        began = actor.doing in OVER
        actor.doing, actor.sign_s, actor.next_s = doing, self.time.s, self.time.s
        if began:
            self.files.asks(actor.chat)
            self._note(actor, "UserPromptSubmit", {})
        match doing:
            case Doing.PERSON:
                self._end_tools(actor)
                self.files.uses_tool(actor.chat)
                self._note(actor, "PreToolUse", {"tool_name": "Bash"})
            case Doing.STALLED:
                self._end_tools(actor)
                self.files.asks(actor.chat)
            case Doing.QUOTA | Doing.FAILED:
                self._end_tools(actor)
                self.files.asks(actor.chat)
                actor.retries = self.chance.randrange(1, 5)
            case Doing.IDLE | Doing.BACKGROUND:
                self._end_tools(actor)
                if actor.chat.tool is not None:
                    self.files.asks(actor.chat)
                self.files.ends_turn(actor.chat)
                shell = [{"id": "b1", "type": "shell", "status": "running"}] if doing is Doing.BACKGROUND else []
                self._note(actor, "Stop", {"background_tasks": shell})
                self._note(actor, "TaskCompleted", {"teammate_name": actor.name})
        self._show(actor)
        self.tell(f"{actor}")

    def _suspend(self, actor: Actor, suspended: bool) -> None:
        """Stop its process, or let it go on."""
        for other in self.living():
            if other.process is actor.process:
                other.doing, other.before = (
                    (Doing.SUSPENDED, other.doing) if suspended else (other.before, other.before)
                )
                other.next_s, other.sign_s = self.time.s + 3.0, self.time.s
        actor.process.stopped = suspended
        self.tell(f"{actor} is {'suspended' if suspended else 'continued'}")

    def count(self, actor: Actor) -> None:
        """Count the state that it leaves, if it has a task."""
        if self.papers_of(actor) and self.time.s - actor.sign_s >= 60.0:
            self.figures.states["unknown" if actor.unseen else str(actor.doing)] += 1

    # -- tasks -------------------------------------------------------------------------------------------------------

    def begin_task(self, actor: Actor, owner: str | None = "?") -> Paper:
        """Let the agent set a task in progress, with this owner in its file, or with one of those that it may write."""
        pending = [
            paper for paper in self.papers.values()
            if paper.path.parent.name == actor.list and paper.owner is None and paper.said.get("status") == "pending"
            and paper.said.get("owner") is None
        ]  # fmt: skip
        paper = self.some(pending)
        if paper is None or self.chance.random() < 0.5:
            path = write_task(self.claude, actor.list, next(self._numbers))
            paper = self.papers[path] = Paper(path)
        names: tuple[str | None, ...] = (None, None, "claude") if actor.is_session else (actor.name,)
        if actor.kind == "lead":
            names = (None, "team-lead", "claude")
        self.write_paper(paper, actor, "in_progress", self.chance.choice(names) if owner == "?" else owner)
        actor.sign_s = self.time.s
        self.figures.judged += 1
        self.tell(f"{actor} begins {paper.key} as {paper.said.get('owner')}")
        return paper

    def write_paper(self, paper: Paper, actor: Actor | None, status: str, owner: str | None) -> None:
        said = {**paper.said, "status": status}
        said.pop("owner", None)
        self.files.write(paper.path, json.dumps({**said, **({"owner": owner} if owner else {})}, indent=2).encode())
        paper.owner, paper.written_s = actor, self.time.s

    def finish_task(self, paper: Paper) -> None:
        self.write_paper(paper, None, "completed", paper.said.get("owner"))
        self.tell(f"{paper.key} is finished")

    # -- ends --------------------------------------------------------------------------------------------------------

    def die(self, actor: Actor, how: str) -> None:
        """End its process, and all agents in it."""
        if actor.lead is not None and actor.kind == "mate":
            actor = actor.lead
        self.tell(f"{actor} ends by {how}")
        team, process = actor.team, actor.process
        ended = [a for a in self.living() if a.process is process]
        if how == "TERM" and actor.kind == "lead":
            ended += [a for a in self.living("teammate") if a.lead is actor]
        if how in CLEAN:
            self._clean_up(actor, how)
        for other in ended:
            self.count(other)
            other.at_quota = other.doing is Doing.QUOTA and other.retries == 0
            other.dead_s = self.time.s
        for process in dict.fromkeys(a.process for a in ended):
            if process in self.machine.table.values():
                self.machine.end(process, self.chance.random() < 0.7, 0 if how == "exit" else SIGNALS[how])
        if actor.kind == "hosted" and how not in CLEAN and self.daemon is not None:
            actor.resumed_at_s = self.time.s + 10.1
        if team is not None and team.there and how == "exit" and actor.member in team.members:
            team.members.remove(actor.member)
            self.files.write_team(team)
        for other in ended:
            self._expect(other)

    def _clean_up(self, actor: Actor, how: str) -> None:
        self._note(actor, "SessionEnd", {"reason": "prompt_input_exit" if how == "exit" else "other"}, lasting=True)
        if actor.is_session:
            self.files.remove_session(actor.process)
        if actor.kind == "lead" and actor.team is not None:
            self.files.remove_team(actor.team)

    def bring_back(self, actor: Actor) -> None:
        """Let the client's own daemon resume a crashed session."""
        actor.resumed_at_s = None
        parent = self.daemon.pid if self.daemon else 1
        actor.process = self._process(["claude", "bg-spare"], False, parent)
        actor.dead_s, actor.born_s, actor.changed_s, actor.known = None, self.time.s, self.time.s, False
        actor.doing, actor.sign_s, actor.next_s, actor.retries = Doing.WORKING, self.time.s, self.time.s, 0
        self.files.asks(actor.chat)
        self._show(actor)
        self.tell(f"{actor} is resumed by the client's daemon")

    def start_daemon(self) -> None:
        self.daemon = self.machine.start(["claude", "daemon", "run"], "stranger")
        self.files.write_daemon(self.daemon)

    def end_daemon(self) -> None:
        """End the client's own daemon; its sessions are not resumed."""
        if self.daemon is None:
            return
        self.tell("the client's daemon dies")
        self.machine.end(self.daemon)
        self.daemon = None
        for actor in self.actors:
            if actor.resumed_at_s is not None:
                actor.resumed_at_s = None
                self._expect(actor, HOST_ENDED_S)

    def clear(self, actor: Actor) -> None:
        """Type ``/clear``: another session id. A team keeps its list; else the list is that of the new session."""
        self.count(actor)
        self._end_tools(actor)
        actor.list_hidden = actor.kind == "lead" and not self.files.newest and actor.list not in actor.tied
        actor.session = self._session_id()
        actor.chat = self.files.chat_of_session(actor.session)
        if actor.team is None and "CLAUDE_CODE_TASK_LIST_ID" not in actor.process.environment:
            actor.list = actor.session
        actor.changed_s = actor.sign_s = self.time.s
        actor.doing = Doing.WORKING
        self.files.asks(actor.chat)
        self._show(actor)
        self.tell(f"{actor} was cleared, and is session {actor.session[:8]} now")

    def resume(self, actor: Actor) -> Actor:
        """Start ``--resume`` in a new process; the old one may even live on. Its tasks stay as they are."""
        if actor.kind == "lone" or actor.team is None:
            return self.lone(session=actor.session)
        resumed = self.lone(session=actor.session)
        resumed.kind, resumed.name = "lead", "team-lead"
        lead_session = actor.session if self.files.newest else self._session_id()
        name = actor.team.name if self.files.newest else f"session-{lead_session[:8]}"
        resumed.team = Team(name, lead_session, resumed.process)
        if not self.files.newest:  # no file says whose the new team is
            resumed.process.watches.append(self.claude / "tasks" / name)
        resumed.list, resumed.process.environment = name, {}
        self.files.write_team(resumed.team)
        if self.files.newest:
            actor.team.there = False  # the file is the new team's
        self._show(resumed)
        return resumed

    # -- the supervisor ----------------------------------------------------------------------------------------------

    def supervised(self) -> bool:
        return self.supervision is not None and not self.supervision.over and not self._ending

    def start_supervisor(self) -> None:
        if self.supervision is not None and not self.supervision.over:
            return
        self._ending = False
        self.tell("the supervisor starts")
        self.supervision = Supervision(self)
        self._tasks.start_soon(self.supervision.run)
        for actor in self.actors:
            if not actor.alive:
                self._expect(actor, MASS_S)

    def end_supervisor(self, killed: bool) -> None:
        if self.supervision is None or not self.supervised():
            return
        self._ending = True
        self.tell(f"the supervisor is {'killed' if killed else 'stopped'}")
        if killed:
            self.supervision.kill()
        else:
            self.supervision.stop()
        self.dues.clear()

    def move_away(self) -> None:
        """Move the supervisor to another pid namespace: it sees none of the processes any more."""
        boot = self._namespace(next(self._numbers) + 100)
        self.tell(f"the supervisor moves to {boot}")
        for process in [p for p in self.machine.table.values() if p.pid not in (1, os.getpid())]:
            del self.machine.table[process.pid]
        self.machine.boot_id = boot
        for actor in self.actors:
            actor.unseen, actor.known = True, False
            actor.resumed_at_s = None
        self.daemon = None

    def reboot(self) -> None:
        """Reboot the machine; every process has ended."""
        self.tell("the machine is started again")
        for actor in self.living():
            if actor.alive and not actor.process.boot.startswith("other/"):
                self.die(actor, "KILL")
        self.end_daemon()
        for process in [p for p in self.machine.table.values() if p.pid not in (1, os.getpid())]:
            del self.machine.table[process.pid]
        self.machine.boot_id = self.machine.boot_id.replace("/boot", "/boot+", 1)
        if not self.local:
            for actor in self.actors:
                actor.known = False

    # -- the oracle --------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Update the known agents, and report overdue tasks."""
        now_s, supervision = self.time.s, self.supervision
        if supervision is None or not self.supervised():
            return
        for actor in self.living():
            least_s = MATE_KNOWN_S if actor.kind == "mate" else KNOWN_S
            if not actor.unseen and now_s - max(actor.born_s, actor.changed_s, supervision.since_s) >= least_s:
                actor.known = True
                hidden = actor.list_hidden or (
                    actor.kind == "mate" and actor.lead is not None and actor.lead.list_hidden
                )
                own = set[str]() if hidden else {actor.list}
                actor.tied |= {*own, actor.session, f"session-{actor.session[:8]}"}
        for due in self.dues:
            if due.by_s < now_s and due.paper.taken == due.taken and due.paper.owner is due.owner:
                self.wrong(f"{due.paper.key} is still with {due.owner}, which died at {due.owner.dead_s}")
        self.dues = [due for due in self.dues if due.by_s >= now_s]

    def judge(self, paper: Paper, owner: Actor) -> None:
        """Judge a requeue by the supervisor."""
        right = self.right(paper, owner)
        quiet_s = self.time.s - max(owner.sign_s, paper.written_s)
        if right is None:
            self.wrong(f"{paper.key} was taken from {owner} after {quiet_s:.1f} s of silence: {self._reason(paper)}")
        else:
            self.figures.taken[right] += 1
            self.tell(f"{paper.key} is given back: {owner} ({right}, {quiet_s:.1f} s)")
        late = [due for due in self.dues if due.paper is paper and due.by_s < self.time.s - SLACK_S]
        if late:
            self.wrong(f"{paper.key} is back {self.time.s - late[0].by_s:.2f} s too late")
        paper.owner = None
        paper.taken += 1

    def _reason(self, paper: Paper) -> object:
        """The reason that the journal gives."""
        lines = map(load_object, self.paths.journal.read_bytes().splitlines())
        return next((line for line in reversed([*lines]) if line and line.get("key") == paper.key), None)

    def right(self, paper: Paper, owner: Actor) -> str | None:
        """The right to give the task back at this moment, None if there is none."""
        limits, now_s = self.config.tasks, self.time.s + SLACK_S
        quiet_s = now_s - max(owner.sign_s, paper.written_s)
        if owner.dead_s is not None:
            return "dead" if owner.resumed_at_s is None else None
        if owner.unseen:
            return "unknown" if quiet_s >= limits.unknown_limit_s else None
        if owner.doing in (Doing.IDLE, Doing.FAILED) and not any(self._mates_in_turn(owner)):
            return "idle" if quiet_s >= limits.idle_limit_s else None
        if owner.doing in (Doing.STALLED, Doing.WORKING) and limits.on_stall == "requeue":
            return "stalled" if quiet_s >= limits.stall_limit_s else None
        return None

    def _mates_in_turn(self, lead: Actor) -> Iterator[Actor]:
        """The teammates whose end of a turn wakes the lead."""
        for actor in self.living("teammate", "mate"):
            if actor.lead is lead and actor.doing not in OVER:
                yield actor

    def _expect(self, owner: Actor, within_s: float = BACK_S) -> None:
        """Expect the agent's tasks to be requeued soon, if the supervisor knew the agent."""
        if not self.supervised() or not owner.known or owner.at_quota or owner.resumed_at_s is not None:
            return
        if owner.kind == "hosted" and self.daemon is not None:
            within_s = RESUMED_S
        for paper in self.papers_of(owner):
            tied = paper.path.parent.name in owner.tied
            if paper.taken == 0 and tied and not any(self._others(paper, owner)):
                self.dues.append(Due(paper, owner, self.time.s + within_s, paper.taken))
                self.figures.dues += 1

    def _others(self, paper: Paper, owner: Actor) -> Iterator[Actor]:
        """Living agents that may own the task, too, as far as can be seen from outside."""
        for other in self.living():
            same_list = paper.path.parent.name in (other.list, other.session, f"session-{other.session[:8]}")
            named = paper.said.get("owner") in (other.name, f"{other.name}@{other.list}")
            twin = owner.kind == "mate" and other.kind == "lead"  # another process of its session may hold it
            if same_list and (named or twin or (owner.is_session and other.is_session)):
                yield other
