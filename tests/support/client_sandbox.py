"""A real client and its team at work, under the real daemon: what a scenario begins with, and what has to follow."""

from __future__ import annotations

import os
import random
import shlex
import signal
from collections.abc import Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from support.claude_code import Block, Model, Reply, read_object
from support.cli import PROGRAM
from support.daemon import RunningDaemon, StartDaemon
from support.project import given_back, read_task, write_settings
from support.real_team import (
    CREATE,
    RealTeam,
    activities,
    children_of,
    command_line,
    lives,
    spawn,
    use,
    wait_looks,
)  # fmt: skip
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import from_iso
from yolo_supervisor.store.paths import Paths

NAMES: Final = ("ada", "grace-2", "Linus", "dev-10", "zoe", "qa")
IDLE_LIMIT_S: Final = 2
CONFIG: Final = f"[tasks]\ninterval_s = 0.5\nidle_limit_s = {IDLE_LIMIT_S}\n"
LEFT: Final = f'{CONFIG}[sessions]\ninterval_s = 0.3\ndetach_grace_s = 1\non_detach = "terminate"\n'
PATIENT: Final = "[tasks]\ninterval_s = 0.5\n"
WORK: Final = use("Bash", command="python3 -c 'import time; time.sleep(590)'", timeout=600_000)
DONE: Final = [{"type": "text", "text": "done"}]
ALONE: Final = "ALONE-AT-WORK on a task"
TOOL: Final = b"sleep(590)"

Mode = Literal["tmux", "in-process"]


def own(number: int, owner: str | None = None) -> list[Block]:
    """Begin a task; the client lets a task of a lead or a lone session name no owner."""
    return use("TaskUpdate", taskId=str(number), status="in_progress", **({"owner": owner} if owner else {}))


class Sandbox:
    """A lead or a lone session at work, its teammates, and the daemon over them."""

    def __init__(self, name: str, version: str, scratch: Path, start: StartDaemon) -> None:
        self.name = name
        self.version = version
        self.real = RealTeam(scratch, version)
        self.real.variables = {"CLAUDE_CODE_MAX_RETRIES": "1"}
        self.first, self.second = random.Random(f"{name} {version}").sample(NAMES, 2)
        self.tasks: dict[str, Path] = {}
        """The task of each agent by its name; those of leads and lone sessions are ``lead``'s."""
        self.before: dict[str, dict[str, Any]] = {}
        """The content of these files when the test last read them."""
        self.pids: dict[str, int] = {}
        self.tools: dict[str, list[int]] = {}
        """The processes of the tools that they use."""
        self.event_at = datetime.now(UTC)
        self.measured: dict[str, float] = {}
        """The seconds from the event to the return of each task."""
        self._start = start
        self.running: RunningDaemon
        """The daemon, and its journal of our project."""
        self.others: list[RunningDaemon] = []
        """The same daemon, and its journals of other projects."""

    # -- beginning ----------------------------------------------------------------------------------------------------

    def supervise(self, config: str = CONFIG, *others: Path) -> None:
        """Start the daemon on our project and on others."""
        for project in (self.real.project, *others):
            (project / ".yolo-planning").mkdir(parents=True, exist_ok=True)
        more = [word for project in others for word in ("--project", str(project))]
        self.running = self._start(*more, over=self.real.project, config=config)
        self.others = [RunningDaemon(project, self.running.child, self.running.log) for project in others]

    def supervise_in(self, container: PrivateTmux) -> None:
        """Start the daemon in that container, a successor of one that has ended."""
        project = self.real.project
        (project / ".yolo-planning").mkdir(parents=True, exist_ok=True)
        write_settings(project, CONFIG)
        log = self.real.scratch / "daemon.log"
        command = shlex.join([*PROGRAM, "run", "--project", str(project)])
        self.running = RunningDaemon(project, container.server, log)
        before = len(self.running.did("started"))
        container.session("daemon", f"exec {command} >>{log} 2>&1")
        self.running.wait(lambda: len(self.running.did("started")) > before, "the daemon to start")

    def models(self, first: Reply = WORK, second: Reply = WORK) -> list[Model]:
        """The lead, which starts its teammates, and these."""
        prompts = {name: self.prompt(name) for name in self.mates}
        lead: list[Reply] = [CREATE * 3, own(3), *(spawn(name, prompt) for name, prompt in prompts.items())]
        mates: list[Model] = [
            (prompts[name], [own(number, name), does])
            for number, (name, does) in enumerate(zip(self.mates, (first, second), strict=True), 1)
        ]
        return [("LEAD-AT-WORK start the team", lead), *mates]

    def team(self, mode: Mode = "tmux", config: str = CONFIG, *, first: Reply = WORK, second: Reply = WORK) -> None:
        """A lead, and two teammates that have begun their tasks and now do ``first`` and ``second``."""
        self.supervise(config)
        self.real.begin(*self.models(first, second), mode=mode)
        self.team_at_work(mode, first, second)

    def team_at_work(self, mode: Mode = "tmux", first: Reply = WORK, second: Reply = WORK) -> None:
        """Wait until all have begun their tasks and are known."""
        for number, name in enumerate([*self.mates, "lead"], 1):
            self.begun(name, number)
        pids = self.real.panes()
        self.pids = {"lead": pids[0]}
        self.pids |= dict(zip(self.mates, pids[1:] if mode == "tmux" else [pids[0]] * 2, strict=True))
        for name, does in ((self.first, first), (self.second, second)):
            self.wait_known(name)
            if does is WORK:
                self.wait_tool(name)

    def alone(
        self, config: str = CONFIG, *, does: Reply = WORK, in_shell: bool = False, folder: Path | None = None
    ) -> None:
        """A session without teammates that has begun a task and now does this."""
        self.supervise(config)
        self.real.serve((ALONE, [CREATE, own(1), does]))
        self.real.open("team", prompt=ALONE, in_shell=in_shell, folder=folder)
        self.alone_at_work(1, does)

    def alone_at_work(self, number: int, does: Reply = WORK, name: str = "lead") -> None:
        """Wait until the newest session has begun the task and is known."""
        self.begun(name, number)
        self.pids[name] = wait_until(self.session_pid, "the file of the session", LIMIT_S)
        self.running.wait(lambda: self.is_known(self.pids[name]), "the session to be known")
        if does is WORK:
            self.wait_tool(name)

    def prompt(self, name: str) -> str:
        return f"{name.upper()}-AT-WORK on a task"

    @property
    def mates(self) -> tuple[str, str]:
        return self.first, self.second

    def begun(self, name: str, number: int) -> None:
        """Wait until the agent has begun the task of that number, and remember its content."""
        others = [path for owner, path in self.tasks.items() if owner != name]

        def begun() -> Path | None:
            found = self.real.claude.glob(f"tasks/*/{number}.json")
            return next((path for path in found if path not in others and '"in_progress"' in path.read_text()), None)

        self.tasks[name] = wait_until(begun, f"{name} to begin task {number}", LIMIT_S)
        self.before[name] = read_task(self.tasks[name])
        self.begin_event()

    def session_pid(self) -> int | None:
        """The process of the newest living session, by its client's file."""
        found = sorted(self.real.claude.glob("sessions/*.json"), key=lambda path: -path.stat().st_ctime_ns)
        return next(
            (pid for pid in (int(path.stem) for path in found) if lives(pid) and pid not in self.pids.values()), None
        )

    def wait_known(self, name: str) -> None:
        self.running.wait(
            lambda: any(e["key"].startswith(f"{name}@") for e in self.running.did("registered")), f"{name} to be known"
        )

    def wait_tool(self, name: str) -> None:
        """Wait until the agent's tool runs and the daemon knows it: it ends no other."""

        def running() -> list[int]:
            return [child for child in children_of(self.pids[name]) if TOOL in command_line(child)]

        self.tools[name] = wait_until(running, f"{name}'s tool", LIMIT_S)
        journals = (self.running, *self.others)
        self.running.wait(
            lambda: all(any(each.sees(tool) for each in journals) for tool in self.tools[name]), "the tool to be known"
        )

    def is_known(self, pid: int) -> bool:
        """Whether the agent in that process was registered."""
        return any(
            e["evidence"].get("pid") == pid for each in (self.running, *self.others) for e in each.did("registered")
        )

    # -- events -------------------------------------------------------------------------------------------------------

    def begin_event(self) -> None:
        """Begin the measurement now."""
        self.event_at = datetime.now(UTC)

    def kill(self, name: str, number: signal.Signals) -> None:
        self.begin_event()
        os.kill(self.pids[name], number)

    def type(self, text: str, session: str = "team") -> None:
        self.begin_event()
        self.real.type(text, session)

    def open(self, name: str, *flags: str, prompt: str) -> None:
        """Start another session."""
        self.begin_event()
        self.real.open(name, *flags, prompt=prompt)

    def session_id(self, name: str) -> str:
        """The id of the session now, by its client's file."""
        return str(read_object(self.real.claude / "sessions" / f"{self.pids[name]}.json")["sessionId"])

    def wait_reported(self, name: str, activity: str) -> None:
        """Wait for an alert about this activity of the agent."""
        self.running.wait(
            lambda: any(
                e["key"].startswith(f"{name}@") and e["evidence"]["activity"] == activity
                for e in self.running.did("escalated")
            ),
            f"{name} to be reported as {activity}",
        )

    def wait_doing(self, name: str, *wanted: str) -> None:
        """Wait until ``status`` shows one of these activities of the agent."""
        wait_until(lambda: activities(self.real).get(name) in wanted, f"{name} to be {' or '.join(wanted)}", LIMIT_S)

    # -- expectations -------------------------------------------------------------------------------------------------

    def expect(
        self, *, returned: Set[str] = frozenset(), dead: Set[str] = frozenset(), clean: bool | None = None
    ) -> None:
        """Assert that these tasks are requeued, those of the others stay, and no agent but the dead has ended.

        ``clean``: the dead have ended in order, so no attempt is charged, and there is no crash report.
        """
        for name in sorted(returned):
            self.running.wait(lambda name=name: given_back(self.tasks[name]), f"{name}'s task to be given back")
        wait_looks(self.running, for_s=2.5 * IDLE_LIMIT_S)
        done = [entry for each in (self.running, *self.others) for entry in each.did("requeued")]
        requeued = [{**e, "at": from_iso(e["at"])} for e in done]
        entries = {self.named(e["key"]): e for e in requeued if e["at"] > self.event_at}
        self.measured |= {name: (e["at"] - self.event_at).total_seconds() for name, e in entries.items()}
        assert entries.keys() == returned
        stay = self.tasks.keys() - returned
        assert {name: read_task(self.tasks[name]) for name in stay} == {name: self.before[name] for name in stay}
        self.before |= {name: read_task(self.tasks[name]) for name in returned}
        assert {name for name, pid in self.pids.items() if not lives(pid)} == dead
        for name, tools in self.tools.items():
            if name in dead:
                self.running.wait(lambda tools=tools: not any(map(lives, tools)), f"the tools of {name} to be ended")
            else:
                assert all(map(lives, tools)), name
        if clean is not None:
            assert {name: e["evidence"].get("charged", True) for name, e in entries.items()} == dict.fromkeys(
                returned, not clean
            )
            assert bool(list(Paths(self.real.project).crashes.glob("*"))) is not clean

    def story(self) -> str:
        """The journal of the daemon, for the message of a test that fails."""
        entries = [entry for each in (self.running, *self.others) for entry in each.history()]
        return "\n".join(f"{e['at']} {e['key']} {e['action']}: {e['reason']} {e['evidence']}" for e in entries)

    def named(self, ident: str) -> str:
        """The name of the agent with that task."""
        return next(name for name, path in self.tasks.items() if ident == f"{path.parent.name}/{path.stem}")
