"""The rules of docs/who-is-at-work.md on the real client: one scenario a case, on each version.

A team is a lead with a task that names no owner, and two teammates with a task each. ``done`` describes the event,
``returned`` names the agents whose tasks have to be requeued. All others keep their tasks, their tools and their lives.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import pytest

from support.budget import SOAK
from support.claude_code import NEWEST, VERSIONS, Block, Reply, read_object
from support.daemon import RunningDaemon, StartDaemon
from support.measured import ROW
from support.project import given_back, read_task
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
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import from_iso
from yolo_supervisor.store.paths import Paths

pytestmark = [
    pytest.mark.real,
    pytest.mark.thorough,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("npm", "node", "tmux", "git")),
        reason="npm, node, tmux or git is missing: the real client is not driven",
    ),
]

NAMES: Final = ("ada", "grace-2", "Linus", "dev-10", "zoe", "qa")
IDLE_LIMIT_S: Final = 2
CONFIG: Final = f"[tasks]\ninterval_s = 0.5\nidle_limit_s = {IDLE_LIMIT_S}\n"
PATIENT: Final = "[tasks]\ninterval_s = 0.5\n"
WORK: Final = use("Bash", command="python3 -c 'import time; time.sleep(590)'", timeout=600_000)
DONE: Final = [{"type": "text", "text": "done"}]
TOOL: Final = b"sleep(590)"

Mode = Literal["tmux", "in-process"]

# -- the sandbox ----------------------------------------------------------------------------------------------------


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
        self.event_at = datetime.now(UTC)
        self.measured: dict[str, float] = {}
        """The seconds from the event to the return of each task."""
        self._start = start
        self.running: RunningDaemon

    # -- beginning ----------------------------------------------------------------------------------------------------

    def supervise(self, config: str = CONFIG, *arguments: str) -> None:
        self.real.project.mkdir(exist_ok=True)
        (self.real.project / ".yolo-planning").mkdir(exist_ok=True)
        self.running = self._start(*arguments, over=self.real.project, config=config)

    def team(self, mode: Mode = "tmux", config: str = CONFIG, *, first: Reply = WORK, second: Reply = WORK) -> None:
        """A lead, and two teammates that have begun their tasks and now do ``first`` and ``second``."""
        self.supervise(config)
        prompts = {name: self.prompt(name) for name in self.mates}
        self.real.begin(
            (
                "LEAD-AT-WORK start the team",
                [CREATE * 3, own(3), *(spawn(name, prompt) for name, prompt in prompts.items())],
            ),
            *(
                (prompt, [own(number, name), does])
                for (name, prompt), number, does in zip(prompts.items(), (1, 2), (first, second), strict=True)
            ),
            mode=mode,
        )
        for number, name in enumerate([*self.mates, "lead"], 1):
            self.begun(name, number)
        pids = self.real.panes()
        self.pids = {"lead": pids[0]}
        self.pids |= dict(zip(self.mates, pids[1:] if mode == "tmux" else [pids[0]] * 2, strict=True))
        for name, does in ((self.first, first), (self.second, second)):
            self.wait_known(name)
            if does is WORK:
                self.wait_tool(name)

    def alone(self, config: str = CONFIG, *, does: Reply = WORK, in_shell: bool = False) -> None:
        """A session without teammates that has begun a task and now does this."""
        self.supervise(config)
        self.real.serve(("ALONE-AT-WORK on a task", [CREATE, own(1), does]))
        self.real.open("team", prompt="ALONE-AT-WORK on a task", in_shell=in_shell)
        self.alone_at_work(1, does)

    def alone_at_work(self, number: int, does: Reply = WORK) -> None:
        """Wait until the session has begun the task and is known."""
        self.begun("lead", number)
        self.pids["lead"] = wait_until(self.session_pid, "the file of the session", LIMIT_S)
        self.running.wait(lambda: self.record_of(self.pids["lead"]), "the session to be known")
        if does is WORK:
            self.wait_tool("lead")

    def prompt(self, name: str) -> str:
        return f"{name.upper()}-AT-WORK on a task"

    @property
    def mates(self) -> tuple[str, str]:
        return self.first, self.second

    def begun(self, name: str, number: int) -> None:
        """Wait until the agent has begun the task of that number, and remember its content."""

        def begun() -> Path | None:
            found = self.real.claude.glob(f"tasks/*/{number}.json")
            return next((path for path in found if '"in_progress"' in path.read_text()), None)

        self.tasks[name] = wait_until(begun, f"{name} to begin task {number}", LIMIT_S)
        self.before[name] = read_task(self.tasks[name])
        self.event_at = datetime.now(UTC)

    def session_pid(self) -> int | None:
        """The process of the one living session, by its client's file."""
        found = (int(path.stem) for path in self.real.claude.glob("sessions/*.json"))
        return next(filter(lives, found), None)

    def wait_known(self, name: str) -> None:
        self.running.wait(
            lambda: any(e["key"].startswith(f"{name}@") for e in self.running.did("registered")), f"{name} to be known"
        )

    def wait_tool(self, name: str) -> None:
        """Wait until the agent's tool runs."""
        pid = self.pids[name]
        wait_until(lambda: any(TOOL in command_line(child) for child in children_of(pid)), f"{name}'s tool", LIMIT_S)

    def record_of(self, pid: int) -> dict[str, Any] | None:
        """The entry by which the agent in that process was registered."""
        return next((e for e in self.running.did("registered") if e["evidence"].get("pid") == pid), None)

    # -- events -------------------------------------------------------------------------------------------------------

    def kill(self, name: str, number: signal.Signals) -> None:
        self.event_at = datetime.now(UTC)
        os.kill(self.pids[name], number)

    def type(self, text: str, session: str = "team") -> None:
        self.event_at = datetime.now(UTC)
        self.real.type(text, session)

    def open(self, name: str, *flags: str, prompt: str) -> None:
        """Start another session."""
        self.event_at = datetime.now(UTC)
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
        requeued = [{**e, "at": from_iso(e["at"])} for e in self.running.did("requeued")]
        entries = {self.named(e["key"]): e for e in requeued if e["at"] > self.event_at}
        self.measured |= {name: (e["at"] - self.event_at).total_seconds() for name, e in entries.items()}
        assert entries.keys() == returned
        stay = self.tasks.keys() - returned
        assert {name: read_task(self.tasks[name]) for name in stay} == {name: self.before[name] for name in stay}
        self.before |= {name: read_task(self.tasks[name]) for name in returned}
        assert {name for name, pid in self.pids.items() if not lives(pid)} == dead
        if clean is not None:
            assert {name: e["evidence"].get("charged", True) for name, e in entries.items()} == dict.fromkeys(
                returned, not clean
            )
            assert bool(list(Paths(self.real.project).crashes.glob("*"))) is not clean

    def named(self, ident: str) -> str:
        """The name of the agent with that task."""
        return next(name for name, path in self.tasks.items() if ident == f"{path.parent.name}/{path.stem}")


# -- ends -----------------------------------------------------------------------------------------------------------

CRASHES, CLEAN_ENDS = (signal.SIGKILL, signal.SIGSEGV), (signal.SIGTERM, signal.SIGHUP)


def end_teammate(sandbox: Sandbox, number: signal.Signals) -> None:
    sandbox.team()
    sandbox.kill(sandbox.second, number)
    sandbox.expect(returned={sandbox.second}, dead={sandbox.second}, clean=number in CLEAN_ENDS)


def end_lead(sandbox: Sandbox, number: signal.Signals) -> None:
    """A lead that ends in order ends its teammates, too."""
    sandbox.team()
    sandbox.kill("lead", number)
    clean = number in CLEAN_ENDS
    gone = {"lead", *sandbox.mates} if clean else {"lead"}
    sandbox.expect(returned=gone, dead=gone, clean=clean)


def end_lone_session(sandbox: Sandbox, number: signal.Signals) -> None:
    sandbox.alone()
    sandbox.kill("lead", number)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=number in CLEAN_ENDS)


def end_lead_of_in_process_team(sandbox: Sandbox, number: signal.Signals) -> None:
    sandbox.team("in-process")
    sandbox.kill("lead", number)
    all_agents = {"lead", *sandbox.mates}
    sandbox.expect(returned=all_agents, dead=all_agents, clean=number in CLEAN_ENDS)


def exit_lone_session(sandbox: Sandbox) -> None:
    sandbox.alone()
    sandbox.type("/exit")
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=True)


def exit_lead(sandbox: Sandbox) -> None:
    sandbox.team()
    sandbox.type("/exit")
    if sandbox.version == NEWEST:
        wait_until(
            lambda: "Exit and stop tasks" in sandbox.real.screen(), "the client to ask about the teammates", LIMIT_S
        )
        sandbox.real.press("Enter")
    all_agents = {"lead", *sandbox.mates}
    sandbox.expect(returned=all_agents, dead=all_agents, clean=True)


# -- sessions that change their id ----------------------------------------------------------------------------------


def clear(sandbox: Sandbox) -> None:
    """The earlier task stays the session's, and is requeued when the session is killed."""
    sandbox.alone(PATIENT, does=DONE)
    before = sandbox.session_id("lead")
    sandbox.type("/clear")
    wait_until(lambda: sandbox.session_id("lead") != before, "the session to get another id", LIMIT_S)
    sandbox.expect()
    sandbox.kill("lead", signal.SIGKILL)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=False)


def resume(sandbox: Sandbox) -> None:
    """A new process resumes a killed session that had a task in progress."""
    again = 2 if sandbox.version == NEWEST else 1  # the older one has another list then
    sandbox.alone()
    session = sandbox.session_id("lead")
    sandbox.kill("lead", signal.SIGKILL)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=False)
    sandbox.real.say("ALONE-AT-WORK", CREATE, own(again), WORK)
    sandbox.open("again", "--resume", session, prompt="go on")
    sandbox.alone_at_work(again)
    sandbox.expect()
    sandbox.kill("lead", signal.SIGTERM)
    sandbox.expect(returned={"lead"}, dead={"lead"})


def resume_lead(sandbox: Sandbox) -> None:
    """A resumed lead has forgotten its teammates, which go on."""
    sandbox.team()
    session = sandbox.session_id("lead")
    sandbox.kill("lead", signal.SIGKILL)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=False)
    sandbox.open("again", "--resume", session, prompt="look around")
    sandbox.expect(dead={"lead"})
    sandbox.kill(sandbox.first, signal.SIGKILL)
    sandbox.expect(returned={sandbox.first}, dead={"lead", sandbox.first}, clean=False)


# -- turns ----------------------------------------------------------------------------------------------------------


def idle_teammate(sandbox: Sandbox, mode: Mode) -> None:
    """The turn of one teammate is over, with its task in progress; the other works."""
    sandbox.team(mode, first=DONE)
    sandbox.event_at = sandbox.real.said_at(sandbox.prompt(sandbox.first))
    sandbox.expect(returned={sandbox.first})


def refused_teammate(sandbox: Sandbox, status: int) -> None:
    """The model refuses until the client has no retry left. At a limit the client waits, else its turn is over."""
    sandbox.team(first=status)
    sandbox.event_at = sandbox.real.said_at(sandbox.prompt(sandbox.first))
    if status == 500:
        sandbox.expect(returned={sandbox.first})
    else:
        sandbox.wait_doing(sandbox.first, "waits_for_quota")
        sandbox.expect()


def silent_model(sandbox: Sandbox) -> None:
    """The model never answers: that is reported, and the task stays."""
    sandbox.team(config=f"{CONFIG}stall_limit_s = 3\n", first=None)
    sandbox.wait_reported(sandbox.first, "stalled")
    sandbox.expect()


def suspended_session(sandbox: Sandbox) -> None:
    sandbox.alone(in_shell=True)  # tmux continues the process of its pane at once
    sandbox.kill("lead", signal.SIGSTOP)
    sandbox.expect()
    sandbox.kill("lead", signal.SIGCONT)
    sandbox.expect()


# -- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scenario:
    done: str
    """The event, for people."""
    play: Callable[[Sandbox], None]
    versions: tuple[str, ...] = VERSIONS
    short: tuple[str, ...] = ()
    """The versions on which a short round plays it, too."""


class End(Protocol):
    def __call__(self, sandbox: Sandbox, number: signal.Signals) -> None: ...


def by_signals(who: str, play: End, **short: tuple[str, ...]) -> dict[str, Scenario]:
    return {
        f"{who}-{number.name}": Scenario(
            done=f"{number.name} to a {who}", play=partial(play, number=number), short=short.get(number.name, ())
        )
        for number in (*CRASHES, *CLEAN_ENDS)
    }


SCENARIOS: Final = {
    **by_signals("teammate", end_teammate, SIGKILL=VERSIONS),
    **by_signals("lead", end_lead, SIGKILL=(NEWEST,), SIGTERM=VERSIONS),
    **by_signals("lone session", end_lone_session, SIGSEGV=(NEWEST,)),
    **by_signals("lead of an in-process team", end_lead_of_in_process_team, SIGKILL=(NEWEST,)),
    "lone session-exit": Scenario(done="/exit in a lone session at work", play=exit_lone_session),
    "lead-exit": Scenario(done="/exit in a lead with teammates at work", play=exit_lead),
    "clear": Scenario(done="/clear, then SIGKILL", play=clear),
    "resume": Scenario(done="SIGKILL, --resume, then SIGTERM", play=resume),
    "resume_lead": Scenario(done="lead SIGKILL, --resume, then SIGKILL to a teammate", play=resume_lead),
    "idle-tmux": Scenario(done="a teammate's turn ends", play=partial(idle_teammate, mode="tmux")),
    "idle-in_process": Scenario(done="a teammate's turn ends", play=partial(idle_teammate, mode="in-process")),
    **{
        f"refused-{status}": Scenario(
            done=f"HTTP {status} to a teammate", play=partial(refused_teammate, status=status)
        )
        for status in (429, 529, 500)
    },
    "silent_model": Scenario(done="a model that never answers a teammate", play=silent_model),
    "suspended": Scenario(done="SIGSTOP and SIGCONT to a lone session", play=suspended_session),
}

ROUND: Final = [
    (name, version) for name, each in SCENARIOS.items() for version in each.versions if SOAK or version in each.short
]


@pytest.fixture
def sandbox(
    request: pytest.FixtureRequest, tmp_path: Path, claude_home: Path, daemon: StartDaemon
) -> Iterator[Sandbox]:
    name, version = request.param
    made = Sandbox(name, version, tmp_path, daemon)
    yield made
    made.real.end()


@pytest.mark.parametrize("sandbox", ROUND, ids="-".join, indirect=True)
def test_matrix(sandbox: Sandbox, record_property: Callable[[str, object], None]) -> None:
    played = SCENARIOS[sandbox.name]
    right = False
    try:
        played.play(sandbox)
        right = True
    finally:
        returns = ", ".join(f"{name} {s:.2f}" for name, s in sandbox.measured.items())
        record_property(
            ROW, (sandbox.name, sandbox.version, played.done, returns or "-", "right" if right else "WRONG")
        )
