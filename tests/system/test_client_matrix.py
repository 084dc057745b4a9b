"""The rules of docs/who-is-at-work.md on the real client: one scenario a case, on each version.

A team is a lead with a task that names no owner, and two teammates with a task each. ``done`` describes the event,
``returned`` names the agents whose tasks have to be requeued. All others keep their tasks, their tools and their lives.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import pytest

from support.budget import SOAK
from support.claude_code import NEWEST, VERSIONS, read_object
from support.client_sandbox import ALONE, CONFIG, DONE, LEFT, PATIENT, WORK, Mode, Sandbox, own
from support.daemon import StartDaemon
from support.measured import ROW
from support.real_team import CREATE, activities, children_of, command_line, lives
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.thorough,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("npm", "node", "tmux", "git")),
        reason="npm, node, tmux or git is missing: the real client is not driven",
    ),
]

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
    sandbox.real.say(ALONE, CREATE, own(again), WORK)
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


# -- hooks ----------------------------------------------------------------------------------------------------------


def install_hooks(sandbox: Sandbox) -> None:
    """Have each agent run the project's hook at its start, as the README says."""
    command = str(Path(sys.executable).with_name("yolo-supervisor-hook"))
    events = ("SessionStart", "SubagentStart", "SubagentStop", "Stop")
    started = {event: [{"hooks": [{"type": "command", "command": f"{command} {event}"}]}] for event in events}
    sandbox.real.claude.mkdir(parents=True, exist_ok=True)
    (sandbox.real.claude / "settings.json").write_text(json.dumps({"hooks": started}))


def hooks(sandbox: Sandbox) -> None:
    """A hook's note may come before the command line was seen, or after it: each agent is known by its own name."""
    install_hooks(sandbox)
    sandbox.team()
    assert activities(sandbox.real).keys() == {"team-lead", *sandbox.mates}
    sandbox.kill(sandbox.first, signal.SIGKILL)
    sandbox.expect(returned={sandbox.first}, dead={sandbox.first}, clean=False)


# -- places ---------------------------------------------------------------------------------------------------------


def leave(sandbox: Sandbox) -> None:
    """Another client and another session are no leaving; once the last person has left, the policy ends the agents."""
    sandbox.team(config=LEFT)
    people = sandbox.real.people()
    people.session("desk")
    plain, control = people.person("team"), people.person("team", "-CC")
    people.leave(plain)
    sandbox.expect()
    people("switch-client", "-c", people.terminal(control), "-t", "=desk")
    sandbox.expect()
    sandbox.begin_event()
    people.leave(control)
    all_agents = {"lead", *sandbox.mates}
    sandbox.expect(returned=all_agents, dead=all_agents, clean=True)


def nested(sandbox: Sandbox) -> None:
    """A person who leaves the outer tmux has not left the inner one."""
    sandbox.team(config=LEFT)
    folder = sandbox.real.scratch / "outer"
    folder.mkdir()
    outer, people = PrivateTmux(folder), sandbox.real.people()
    try:
        outer.session("desk", f"env -u TMUX tmux -S {people.socket} attach -t =team")
        wait_until(lambda: people("list-clients"), "the inner client to be attached", LIMIT_S)
        outer.leave(outer.person("desk"))
        sandbox.expect()
        sandbox.begin_event()
        outer("kill-pane", "-t", "%0")
        all_agents = {"lead", *sandbox.mates}
        sandbox.expect(returned=all_agents, dead=all_agents, clean=True)
    finally:
        outer.end()


def popup(sandbox: Sandbox) -> None:
    """A session in a popup is in no pane; it ends in order when its person leaves."""
    sandbox.supervise(LEFT)
    sandbox.real.serve((ALONE, [CREATE, own(1), WORK]))
    people = sandbox.real.people()
    people.session("rest")
    person = people.person("rest")
    people.popup(person, f"cd {sandbox.real.project} && {sandbox.real.command(ALONE)}")
    sandbox.alone_at_work(1)
    sandbox.expect()
    sandbox.begin_event()
    people.leave(person)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=True)


def background(sandbox: Sandbox) -> None:
    """The client's own daemon resumes its session five times; when it is dead nobody does."""
    sandbox.supervise()
    sandbox.real.serve((ALONE, [CREATE, own(1), *[WORK] * 6]))
    sandbox.real.background(ALONE)
    sandbox.alone_at_work(1)
    host = int(read_object(sandbox.real.claude / "daemon.lock")["pid"])
    terminals = [pid for pid in children_of(host) if b"bg-pty-host" in command_line(pid)]
    for _ in range(5):
        sandbox.kill("lead", signal.SIGKILL)
        sandbox.alone_at_work(1)
        assert lives(host)
    sandbox.expect()
    assert sandbox.running.did("requeued") == []
    assert all(lives(pid) for pid in terminals if command_line(pid))
    os.kill(host, signal.SIGKILL)
    sandbox.kill("lead", signal.SIGKILL)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=False)


def two_projects(sandbox: Sandbox) -> None:
    """An end in one project takes nothing from the other, in one home and one tmux server."""
    other = sandbox.real.scratch / "other"
    sandbox.supervise(CONFIG, other)
    sandbox.real.begin(*sandbox.models(), (ALONE, [CREATE, own(1), WORK]))
    sandbox.team_at_work()
    sandbox.real.open("other", prompt=ALONE, folder=other)
    sandbox.alone_at_work(1, name="other")
    sandbox.kill("other", signal.SIGKILL)
    sandbox.expect(returned={"other"}, dead={"other"})
    sandbox.kill(sandbox.second, signal.SIGKILL)
    sandbox.expect(returned={sandbox.second}, dead={"other", sandbox.second}, clean=False)


def work_tree(sandbox: Sandbox) -> None:
    """A session in a linked work tree beside the project is one of the project."""
    project, beside = sandbox.real.project, sandbox.real.scratch / "beside"
    git = ("git", "-C", str(project), "-c", "user.name=x", "-c", "user.email=x@example.com")
    for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "x"), ("worktree", "add", "-q", str(beside))):
        subprocess.run([*git, *words], check=True)
    sandbox.alone(folder=beside)
    sandbox.expect()
    sandbox.kill("lead", signal.SIGKILL)
    sandbox.expect(returned={"lead"}, dead={"lead"}, clean=False)


# -- containers -----------------------------------------------------------------------------------------------------

CONTAINER: Final = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def restarted_container(sandbox: Sandbox) -> None:
    """Agents from before a container's restart are unknown to the daemon in it: nothing is taken."""
    real = sandbox.real
    real.within = CONTAINER
    real.serve((ALONE, [CREATE, own(1), WORK]))
    sandbox.supervise_in(real.people())
    real.open("team", prompt=ALONE)
    sandbox.begun("lead", 1)
    sandbox.running.wait(lambda: sandbox.running.did("registered"), "the session to be known")
    real.people().server.kill()
    real.people().server.wait(LIMIT_S)
    real.people().start()
    sandbox.supervise_in(real.people())
    sandbox.expect()


def sibling_container(sandbox: Sandbox) -> None:
    """An agent in another container that shares the home cannot be seen, at work or dead: nothing is taken from it."""
    real, folder = sandbox.real, sandbox.real.scratch / "sibling"
    folder.mkdir()
    real.within = CONTAINER
    real.serve((ALONE, [CREATE, own(1), WORK]))
    sibling = PrivateTmux(folder, real.environment(), within=CONTAINER)
    try:
        sandbox.supervise_in(sibling)
        real.open("team", prompt=ALONE)
        sandbox.begun("lead", 1)
        sandbox.expect()
        real.people().server.kill()
        real.people().server.wait(LIMIT_S)
        sandbox.expect()
    finally:
        sibling.end()


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
    **by_signals("lone session", end_lone_session, SIGSEGV=VERSIONS),
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
    "hooks": Scenario(done="a hook at each start, SIGKILL to a teammate", play=hooks, short=(NEWEST,)),
    "leave": Scenario(done="another client, another session, then no person", play=leave),
    "nested": Scenario(done="no person at the outer tmux, then its pane is closed", play=nested),
    "popup": Scenario(done="a session in a popup whose person leaves", play=popup),
    "background": Scenario(
        done="SIGKILL five times under --bg, then without daemon", play=background, versions=(NEWEST,)
    ),
    "two_projects": Scenario(done="SIGKILL in one of two projects, then in the other", play=two_projects),
    "work_tree": Scenario(done="SIGKILL in a linked work tree", play=work_tree),
    "restarted_container": Scenario(done="a container is restarted", play=restarted_container),
    "sibling_container": Scenario(done="a session in a sibling container, then its end", play=sibling_container),
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
        print(sandbox.story())
        returns = ", ".join(f"{name} {s:.2f}" for name, s in sandbox.measured.items())
        record_property(
            ROW, (sandbox.name, sandbox.version, played.done, returns or "-", "right" if right else "WRONG")
        )
