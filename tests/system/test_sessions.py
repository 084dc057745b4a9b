"""Left sessions: the decision alone, then watched on a real, private tmux server."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from support.processes import Children
from support.project import write_task
from support.tmux import PrivateTmux
from support.wait import wait_until
from yolo_supervisor.actions.agents import PaneDied, ShowMessage, Terminate
from yolo_supervisor.actions.base import Action, AlertCode, Escalate
from yolo_supervisor.config import Config, Policy, SessionsConfig
from yolo_supervisor.config.trust import Trust
from yolo_supervisor.formats.session_ends import SessionEnds
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.session_ends import SessionEndsRecord, load_session_ends
from yolo_supervisor.inventory.watchdog import Watchdog
from yolo_supervisor.models import Agent, Liveness, Pane, ProcessId
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import PaneState, Server, Tmux
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.sessions import (
    LOOKS_APART_S,
    PaneEnd,
    SessionKey,
    SessionsObservation,
    SessionState,
    SessionsWatcher,
    Watched,
    decide,
    hold_mass_end,
    remember,
)

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
KEY: SessionKey = ("/tmp/s", 77, "$0")
GRACE_S = 10.0


def agent(name: str, number: int = 1, pid: int = 400) -> Agent:
    return Agent(
        id=f"{name}@red", name=name, role="dev", team="red", source="tmux", since=EPOCH,
        process=ProcessId(pid + number, 1, "here"), pid=pid + number,
        pane=Pane(socket="/tmp/s", server_pid=77, pane=f"%{number}"),
    )  # fmt: skip


DEV, QA = agent("dev", 1), agent("qa", 2)


def work(attached: int = 0, agents: tuple[Agent, ...] = (DEV,), at_work: frozenset[str] = frozenset()) -> SessionState:
    return SessionState(key=KEY, name="work", attached=attached, agents=agents, at_work=at_work)


def left_since(since_s: float) -> dict[SessionKey, Watched]:
    return {KEY: Watched(had_client=True, empty_since_s=since_s)}


def decided(
    observation: SessionsObservation, memory: dict[SessionKey, Watched] | None = None, now_s: float = 0.0,
    policy: Policy = "terminate", detach_grace_s: float = GRACE_S,
) -> list[Remediation]:  # fmt: skip
    return decide(observation, memory or {}, now_s, policy, detach_grace_s, grace_s=3.0, mass_min=5)


def left(of: Agent, detached_s: float) -> Remediation:
    """The remediation for an agent whose session was left."""
    assert of.process is not None
    return (
        Terminate(
            key=of.id, roots=(of.process,), grace_s=3.0, reason="its tmux session work was left by its last person",
            evidence={"session": "work", "tmux": "/tmp/s", "detached_s": detached_s, "pid": of.pid, "agent": of.id},
        ),
    )  # fmt: skip


def orphaned(of: Agent) -> Remediation:
    assert of.process is not None
    assert of.pane is not None
    return (
        Terminate(
            key=of.id, roots=(of.process,), grace_s=3.0, reason="its tmux session is gone",
            evidence={"tmux": "/tmp/s", "pane": of.pane.pane, "pid": of.pid, "agent": of.id},
        ),
    )  # fmt: skip


# -- the memory ---------------------------------------------------------------------------------------------------


def test_a_session_first_seen_empty_was_not_detached() -> None:
    assert remember({}, SessionsObservation(sessions=(work(),)), 7.0) == {
        KEY: Watched(had_client=False, empty_since_s=7.0)
    }


def test_a_session_is_detached_since_the_first_tick_without_a_client() -> None:
    memory = remember({}, SessionsObservation(sessions=(work(attached=2),)), 1.0)
    assert memory == {KEY: Watched(had_client=True, empty_since_s=None)}

    memory = remember(memory, SessionsObservation(sessions=(work(),)), 6.0)
    memory = remember(memory, SessionsObservation(sessions=(work(),)), 11.0)

    assert memory == {KEY: Watched(had_client=True, empty_since_s=6.0)}


def test_while_its_server_does_not_answer_a_session_is_not_forgotten_and_nothing_is_counted() -> None:
    memory = remember(left_since(1.0), SessionsObservation(silent=frozenset({KEY[0]})), 6.0)
    assert memory == {KEY: Watched(had_client=True, empty_since_s=None)}

    memory = remember(memory, SessionsObservation(sessions=(work(),)), 11.0)

    assert memory == {KEY: Watched(had_client=True, empty_since_s=11.0)}


def test_attaching_again_resets_the_grace_period() -> None:
    memory = remember(left_since(1.0), SessionsObservation(sessions=(work(attached=1),)), 6.0)
    memory = remember(memory, SessionsObservation(sessions=(work(),)), 11.0)

    assert memory == left_since(11.0)


def test_a_session_that_is_not_seen_is_forgotten() -> None:
    assert remember(left_since(1.0), SessionsObservation(), 6.0) == {}


# -- a session that was left ---------------------------------------------------------------------------------------


def test_agents_are_terminated_when_their_session_was_left_for_the_detach_grace() -> None:
    observation = SessionsObservation(sessions=(work(agents=(DEV, QA)),), agents=2)

    assert decided(observation, left_since(100.0), 109.9) == []
    assert decided(observation, left_since(100.0), 110.0) == [left(DEV, 10.0), left(QA, 10.0)]


def test_without_a_detach_grace_two_looks_of_the_plugins_own_distance_are_needed() -> None:
    observation = SessionsObservation(sessions=(work(),))

    assert decided(observation, left_since(100.0), 100.0 + LOOKS_APART_S - 0.1, detach_grace_s=0.0) == []
    assert decided(observation, left_since(100.0), 100.0 + LOOKS_APART_S, detach_grace_s=0.0) == [
        left(DEV, LOOKS_APART_S)
    ]


def test_a_session_never_attached_is_ignored() -> None:
    memory = {KEY: Watched(had_client=False, empty_since_s=0.0)}

    assert decided(SessionsObservation(sessions=(work(),)), memory, 1e6) == []


def test_a_session_without_history_is_ignored() -> None:
    assert decided(SessionsObservation(sessions=(work(),)), {}, 1e6) == []


def test_an_attached_session_is_left_alone() -> None:
    observation = SessionsObservation(sessions=(work(attached=1),))

    assert decided(observation, remember(left_since(0.0), observation, 1e6), 1e6) == []


def test_under_keep_nothing_is_done() -> None:
    observation = SessionsObservation(sessions=(work(),), orphans=(QA,), agents=2)

    assert decided(observation, left_since(0.0), 1e6, policy="keep") == []


def test_notify_policy_reports_and_terminates_no_agent() -> None:
    observation = SessionsObservation(sessions=(work(agents=(DEV, QA)),))

    assert decided(observation, left_since(100.0), 110.0, policy="notify") == [
        (
            Escalate(
                kind="session", code=AlertCode.SESSION_LEFT, key="work",
                reason="its tmux session work was left by its last person",
                evidence={"session": "work", "tmux": "/tmp/s", "detached_s": 10.0},
            ),
        )
    ]  # fmt: skip


def test_drain_policy_lets_agents_finish_their_tasks() -> None:
    observation = SessionsObservation(sessions=(work(agents=(DEV, QA), at_work=frozenset({"dev@red"})),))

    assert decided(observation, left_since(100.0), 110.0, policy="drain") == [left(QA, 10.0)]
    assert decided(observation, left_since(100.0), 110.0, policy="terminate") == [left(DEV, 10.0), left(QA, 10.0)]


def test_while_the_plugins_watchdog_runs_left_sessions_are_only_reported() -> None:
    observation = SessionsObservation(sessions=(work(),), orphans=(QA,), agents=2, watchdog=4242)

    (session, orphan) = [
        action for remediation in decided(observation, left_since(0.0), 100.0) for action in remediation
    ]

    assert isinstance(session, Escalate)
    assert "the plugin's watchdog (process 4242)" in session.reason
    assert isinstance(orphan, Escalate)
    assert (orphan.kind, orphan.key) == ("agent", "qa@red")


@pytest.mark.parametrize("policy", ["terminate", "drain", "notify", "keep"])
def test_a_panes_exit_is_reported_under_every_policy(policy: Policy) -> None:
    exited = PaneEnd(agent="dev@red", session="work", pane="%1", status=3, signal=None)
    killed = PaneEnd(agent="qa@red", session="work", pane="%2", status=None, signal=9)

    assert decided(SessionsObservation(ended=(exited, killed)), policy=policy) == [
        (
            PaneDied(
                key="work", agent="dev@red", pane="%1", reason="dev@red in pane %1 ended with status 3",
                evidence={"agent": "dev@red", "pane": "%1", "status": 3, "signal": None},
            ),
        ),
        (
            PaneDied(
                key="work", agent="qa@red", pane="%2", reason="qa@red in pane %2 ended by signal 9",
                evidence={"agent": "qa@red", "pane": "%2", "status": None, "signal": 9},
            ),
        ),
    ]  # fmt: skip


# -- agents whose session is gone -------------------------------------------------------------------------------


def test_an_agent_whose_session_is_gone_is_terminated() -> None:
    assert decided(SessionsObservation(orphans=(DEV,), agents=2)) == [orphaned(DEV)]


def test_notify_policy_reports_agents_whose_session_is_gone() -> None:
    alert = Escalate(
        kind="agent",
        code=AlertCode.AGENT_ORPHANED,
        key="dev@red",
        reason="its tmux session is gone",
        evidence={"tmux": "/tmp/s", "pane": "%1"},
    )

    assert decided(SessionsObservation(orphans=(DEV,), agents=2), policy="notify") == [(alert,)]


def test_no_agent_is_terminated_if_most_of_five_or_more_sessions_vanish() -> None:
    team = tuple(agent(f"dev-{n}", n) for n in range(6))
    inconclusive = (
        "the tmux sessions of 3 of 5 agents are missing at once: nothing is done until a second observation agrees"
    )

    assert decided(SessionsObservation(orphans=team[:3], agents=5)) == [
        (Escalate(kind="session", code=AlertCode.MASS_DEATH, key="all", reason=inconclusive),)
    ]
    assert decided(SessionsObservation(orphans=team[:3], agents=6)) == [orphaned(each) for each in team[:3]]
    assert decided(SessionsObservation(orphans=team[:4], agents=4)) == [orphaned(each) for each in team[:4]]


def test_vanished_agents_are_terminated_if_two_ticks_agree() -> None:
    team = tuple(agent(f"dev-{n}", n) for n in range(5))

    assert decided(SessionsObservation(orphans=team, agents=5, confirmed=True)) == [orphaned(each) for each in team]


# -- a real tmux server -----------------------------------------------------------------------------------------


class SteppedClock:
    """A clock that moves only when the test advances it."""

    def __init__(self) -> None:
        self.s = 1000.0
        self.stopped_s = 0.0

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.s)

    def stop(self, pause_s: float) -> None:
        """Let the time pass while the supervisor is stopped."""
        self.s += pause_s
        self.stopped_s += pause_s

    def awake(self) -> float:
        return self.s - self.stopped_s

    def monotonic(self) -> float:
        return self.s


class Sandbox:
    """A watcher over agents that run in a real tmux."""

    def __init__(self, tmux: PrivateTmux, project: Path, claude_home: Path) -> None:
        self.tmux = tmux
        self.clock = SteppedClock()
        self.processes = Processes(backend())
        self.agents: list[Agent] = []
        self.store = Store(project, self.clock)
        self.store.open()
        self.registry = AgentRegistry(self.store.paths, self.processes, ProcessScanner(self.processes), [claude_home])
        self.watcher = self._made(Config())
        self.policy("terminate")

    def restart(self) -> None:
        """Start another watcher, which knows only the stored state."""
        self.watcher = self._made(self.watcher.config)

    def _made(self, config: Config) -> SessionsWatcher:
        return SessionsWatcher(
            config, self.registry, self._known, self.store.paths, self.processes, Tmux(self.clock), self.clock,
            SessionEndsRecord(self.store),
        )  # fmt: skip

    def policy(self, policy: Policy) -> None:
        sessions = SessionsConfig(on_detach=policy, detach_grace_s=GRACE_S, interval_s=1.0)
        self.watcher.config = msgspec.structs.replace(self.watcher.config, sessions=sessions)

    def agent(self, name: str, pid: int, pane: str, server_pid: int | None = None) -> Agent:
        process = self.processes.identify(pid)
        assert process is not None
        place = Pane(socket=self.tmux.socket, server_pid=server_pid or self.tmux.server.pid, pane=pane)
        found = Agent(
            id=f"{name}@red", name=name, role="dev", team="red", source="tmux", since=EPOCH, process=process, pid=pid,
            pane=place,
        )  # fmt: skip
        self.agents.append(found)
        return found

    async def after(self, pause_s: float) -> list[Action]:
        """The watcher's actions so many seconds later."""
        self.clock.s += pause_s
        return [action for remediation in await self.watcher.tick(self.clock.now()) for action in remediation]

    async def shown_after(self, pause_s: float) -> list[ShowMessage]:
        """The messages for people so many seconds later."""
        actions = await self.after(pause_s)
        self.watcher.save_observations()
        return [action for action in actions if isinstance(action, ShowMessage)]

    def record(self) -> SessionEnds:
        """The stored ends of agents that are being ended."""
        self.watcher.save_observations()
        return load_session_ends(self.store.paths)

    async def terminated_after(self, pause_s: float) -> list[str]:
        """The ids of the agents that it terminates so many seconds later."""
        return [action.key for action in await self.after(pause_s) if isinstance(action, Terminate)]

    async def objection(self, to: Agent) -> str | None:
        assert to.process is not None
        self.clock.s += 0.1
        return await self.watcher.objection(
            Terminate(key=to.id, roots=(to.process,), grace_s=1.0, reason="it was left")
        )

    def _known(self) -> list[tuple[Agent, Liveness]]:
        return [(each, self.processes.liveness(each.process)) for each in self.agents if each.process]


@pytest.fixture
def sandbox(tmux: PrivateTmux, project: Path, claude_home: Path) -> Iterator[Sandbox]:
    made = Sandbox(tmux, project, claude_home)
    yield made
    made.store.close()


async def test_detached_agents_are_terminated_and_reattached_ones_are_not(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    assert await sandbox.after(1000.0) == [], "no person has been there yet"

    person = sandbox.tmux.person("work")
    assert await sandbox.after(1000.0) == []

    sandbox.tmux.leave(person)
    assert await sandbox.after(5.0) == []
    assert await sandbox.after(GRACE_S - 0.1) == []
    assert await sandbox.terminated_after(0.6) == [dev.id]
    assert await sandbox.objection(dev) is None

    sandbox.tmux.person("work")
    assert "attached to work again" in str(await sandbox.objection(dev))
    assert await sandbox.after(1000.0) == []


async def test_people_on_the_server_see_the_countdown_and_those_who_come_back_see_the_end(
    sandbox: Sandbox,
) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.session("other")
    bystander, person = sandbox.tmux.person("other"), sandbox.tmux.person("work")
    at_other = sandbox.tmux.terminal(bystander)
    assert await sandbox.shown_after(1.0) == []

    sandbox.tmux.leave(person)
    (begun,) = await sandbox.shown_after(1.0)
    assert (begun.client, begun.about) == (at_other, "countdown")
    assert begun.reason == (
        f"yolo-supervisor will end dev in {GRACE_S:.0f} s: session work was left. Attach to it to stop this"
    )
    (countdown,) = sandbox.record().countdowns
    assert (countdown.process, countdown.due_s) == (dev.process, sandbox.clock.s + GRACE_S)

    assert await sandbox.terminated_after(GRACE_S) == [dev.id]
    os.kill(dev.pid or 0, signal.SIGKILL)
    wait_until(lambda: sandbox.processes.identify(dev.pid or 0) is None, "the agent to end")
    assert await sandbox.shown_after(1.0) == [], "the person there has seen the countdown"
    assert [end.agent for end in sandbox.record().ended] == [dev.id]

    sandbox.restart()
    assert await sandbox.shown_after(1.0) == []
    back = sandbox.tmux.person("other")
    (message,) = await sandbox.shown_after(1.0)
    assert (message.client, message.about, message.agents) == (sandbox.tmux.terminal(back), "ended", (dev.id,))

    sandbox.watcher.message_shown(message)
    assert await sandbox.shown_after(1.0) == []
    assert sandbox.record() == SessionEnds()
    sandbox.tmux.person("other")
    assert await sandbox.shown_after(1.0) == []


async def test_an_agent_whose_person_comes_back_is_not_counted_down_any_more(sandbox: Sandbox) -> None:
    sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)
    await sandbox.after(1.0)
    assert len(sandbox.record().countdowns) == 1

    sandbox.tmux.person("work")
    assert await sandbox.shown_after(1.0) == []

    assert sandbox.record() == SessionEnds()


@pytest.mark.parametrize(("mode", "policy"), [("observe", "terminate"), ("heal", "notify"), ("heal", "keep")])
async def test_no_countdown_is_shown_if_nothing_will_be_ended(
    sandbox: Sandbox, mode: Literal["heal", "observe"], policy: Policy
) -> None:
    sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.policy(policy)
    sandbox.watcher.config = msgspec.structs.replace(sandbox.watcher.config, mode=mode)
    sandbox.tmux.session("other")
    sandbox.tmux.person("other")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)

    assert await sandbox.shown_after(1.0) == []
    assert sandbox.record() == SessionEnds()


async def test_the_detach_grace_stands_still_while_the_supervisor_is_stopped(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)
    assert await sandbox.after(1.0) == []

    sandbox.clock.stop(3600.0)

    assert await sandbox.after(GRACE_S - 0.1) == []
    assert await sandbox.terminated_after(0.1) == [dev.id]


async def test_a_control_mode_client_is_no_person(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.program("work")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)

    sandbox.tmux.leave(person)
    await sandbox.after(1.0)

    assert await sandbox.terminated_after(GRACE_S) == [dev.id]


async def test_a_session_with_one_of_two_clients_left_is_attached(sandbox: Sandbox) -> None:
    sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.person("work")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)

    sandbox.tmux.leave(person)
    await sandbox.after(1.0)

    assert await sandbox.after(1000.0) == []


async def test_a_client_of_a_linked_window_counts_as_attached(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.session("desk")
    sandbox.tmux("link-window", "-s", "work:0", "-t", "desk:5")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)

    sandbox.tmux.person("desk")
    sandbox.tmux.leave(person)
    await sandbox.after(1.0)

    assert await sandbox.after(1000.0) == []
    assert "attached to desk again" in str(await sandbox.objection(dev))


async def test_each_agent_is_terminated_once_however_often_its_window_is_shown(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux("link-window", "-s", "work:0", "-t", "work:5")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)

    sandbox.tmux.leave(person)
    await sandbox.after(1.0)

    assert await sandbox.terminated_after(GRACE_S) == [dev.id]


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """A program that survives the end of its terminal until the end of the test; ready when the file exists."""
    os.mkfifo(tmp_path / "lifeline")
    lifeline = os.open(tmp_path / "lifeline", os.O_RDWR)
    script = tmp_path / "deaf.py"
    script.write_text(
        "import pathlib, signal, sys\n"
        "signal.signal(signal.SIGHUP, lambda *_: None)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        f"open({str(tmp_path / 'lifeline')!r}).read()\n"
    )
    yield lambda ready: f"exec {sys.executable} {script} {tmp_path}/{ready}"
    os.close(lifeline)


async def test_an_agent_that_outlived_its_session_is_terminated(
    sandbox: Sandbox, tmp_path: Path, deaf: Callable[[str], str]
) -> None:
    sandbox.tmux.session("rest")
    dev = sandbox.agent("dev", sandbox.tmux.session("work", deaf("ready")), "%1")
    wait_until((tmp_path / "ready").exists, "the agent to be deaf to its terminal's end")
    assert await sandbox.after(1.0) == []

    sandbox.tmux("kill-session", "-t", "=work")

    assert await sandbox.after(1.0) == [], "one look is not enough"
    assert await sandbox.terminated_after(1.0) == [dev.id]
    assert await sandbox.objection(dev) is None


@pytest.mark.parametrize(
    "start",
    [
        pytest.param("trap '' HUP; echo $$ > {0}/pid; exec cat {0}/lifeline", id="nohup"),
        pytest.param("setsid cat {0}/lifeline & echo $! > {0}/pid; exec sleep 600", id="a separate session"),
    ],
)
@pytest.mark.parametrize("end", [("kill-session", "-t", "=work"), ("kill-pane", "-t", "%1")], ids=lambda end: end[0])
@pytest.mark.usefixtures("deaf")
async def test_an_agent_that_was_started_to_outlive_its_terminal_goes_on(
    sandbox: Sandbox, tmp_path: Path, start: str, end: tuple[str, ...]
) -> None:
    sandbox.tmux.session("rest")
    sandbox.tmux.session("work", start.format(tmp_path))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the agent to start")
    sandbox.agent("dev", int((tmp_path / "pid").read_text()), "%1")
    assert await sandbox.after(1.0) == []

    sandbox.tmux(*end)

    for _ in range(3):
        assert await sandbox.after(1.0) == []


async def test_switching_to_another_session_of_the_server_is_not_leaving(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.session("other")
    person = sandbox.tmux.person("work")
    assert await sandbox.after(1.0) == []

    sandbox.tmux("switch-client", "-t", "=other")
    assert await sandbox.after(1000.0) == []
    assert await sandbox.after(1000.0) == []

    sandbox.tmux.leave(person)
    assert await sandbox.after(1.0) == []
    assert await sandbox.terminated_after(GRACE_S) == [dev.id]


async def test_attaching_in_the_control_mode_of_a_terminal_is_not_leaving(sandbox: Sandbox) -> None:
    sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    person = sandbox.tmux.person("work")
    assert await sandbox.after(1.0) == []

    sandbox.tmux.person("work", "-CC")
    sandbox.tmux.leave(person)

    assert await sandbox.after(1000.0) == []
    assert await sandbox.after(1000.0) == []


@pytest.mark.usefixtures("deaf")
async def test_an_agent_in_a_popup_is_in_no_pane(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.tmux.session("rest")
    sandbox.tmux.session("work")
    person = sandbox.tmux.person("work")
    sandbox.tmux.popup(person, f"trap '' HUP; echo $$ > {tmp_path}/pid; exec cat {tmp_path}/lifeline")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the agent to start")
    sandbox.agent("dev", int((tmp_path / "pid").read_text()), "%1")
    assert await sandbox.after(1.0) == []

    sandbox.tmux.leave(person)
    assert await sandbox.after(1.0) == []
    assert await sandbox.after(1000.0) == []
    sandbox.tmux("kill-session", "-t", "=work")
    for _ in range(3):
        assert await sandbox.after(1.0) == []


async def test_a_session_is_not_left_while_a_session_of_its_group_is_attached(sandbox: Sandbox) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux("new-session", "-d", "-t", "=work", "-s", "view")
    at_work, at_view = sandbox.tmux.person("work"), sandbox.tmux.person("view")
    assert await sandbox.after(1.0) == []

    sandbox.tmux.leave(at_work)
    assert await sandbox.after(1.0) == []
    assert await sandbox.after(1000.0) == []

    sandbox.tmux.leave(at_view)
    assert await sandbox.after(1.0) == []
    assert await sandbox.terminated_after(GRACE_S) == [dev.id]


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(("move-window", "-s", "=work:0", "-t", "=desk:5"), id="move-window"),
        pytest.param(("move-pane", "-s", "%0", "-t", "=desk:0"), id="move-pane"),
    ],
)
async def test_an_agent_that_is_moved_to_an_attached_session_is_not_ended(
    sandbox: Sandbox, move: tuple[str, ...]
) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.session("desk")
    person, other = sandbox.tmux.person("work"), sandbox.tmux.person("desk")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)
    await sandbox.after(1.0)
    assert await sandbox.terminated_after(GRACE_S) == [dev.id]

    sandbox.tmux(*move)

    assert "attached to desk again" in str(await sandbox.objection(dev))
    assert await sandbox.after(1000.0) == []
    sandbox.tmux.leave(other)
    await sandbox.after(1.0)
    assert await sandbox.terminated_after(GRACE_S) == [dev.id]


async def test_an_agent_that_is_moved_to_a_session_that_had_no_person_is_not_ended(sandbox: Sandbox) -> None:
    sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.tmux.session("store")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)

    sandbox.tmux("move-pane", "-s", "%0", "-t", "=store:0")
    wait_until(lambda: person.poll() is not None, "the client of the session that has become empty to end")

    for _ in range(3):
        assert await sandbox.after(1000.0) == []


async def test_a_session_in_a_pane_of_another_server_is_left_when_that_pane_closes(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outer = PrivateTmux(tmp_path_factory.mktemp("outer"))
    try:
        dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
        outer.session("desk", f"env -u TMUX tmux -S {sandbox.tmux.socket} attach -t =work")
        wait_until(lambda: sandbox.tmux("list-clients"), "the inner client to be attached")
        person = outer.person("desk")
        assert await sandbox.after(1.0) == []

        outer.leave(person)
        assert await sandbox.after(1000.0) == []
        assert await sandbox.after(1000.0) == []

        outer("kill-pane", "-t", "%0")
        wait_until(lambda: not sandbox.tmux("list-clients"), "the inner client to end")
        assert await sandbox.after(1.0) == []
        assert await sandbox.terminated_after(GRACE_S) == [dev.id]
    finally:
        outer.end()


@pytest.mark.usefixtures("deaf")
async def test_an_agent_that_never_was_in_a_pane_has_no_session_to_lose(sandbox: Sandbox, tmp_path: Path) -> None:
    sandbox.tmux.session("rest")
    sandbox.tmux("run-shell", "-b", f"echo $$ > {tmp_path}/pid; exec cat {tmp_path}/lifeline")
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the agent to start")
    sandbox.agent("dev", int((tmp_path / "pid").read_text()), "%7")

    for _ in range(3):
        assert await sandbox.after(1.0) == []


async def test_by_default_the_plugins_rule_holds_only_in_its_trusted_projects(sandbox: Sandbox, project: Path) -> None:
    def trust(trusted: bool) -> None:
        sessions = SessionsConfig(detach_grace_s=GRACE_S, interval_s=1.0)
        sandbox.watcher.config = Config(sessions=sessions, trust=Trust(trusted=trusted))

    trust(True)
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    config = project / ".yolo-planning" / "config.json"
    config.unlink(missing_ok=True)
    person = sandbox.tmux.person("work")
    assert await sandbox.after(1.0) == []
    sandbox.tmux.leave(person)
    assert await sandbox.after(1.0) == []

    assert await sandbox.terminated_after(GRACE_S) == []

    config.write_text("{}")
    trust(False)
    assert await sandbox.terminated_after(1.0) == []

    trust(True)
    assert await sandbox.terminated_after(1.0) == [dev.id]


def test_more_than_half_of_the_agents_are_not_ended_at_one_look() -> None:
    def ends(*names: str) -> list[Remediation]:
        return [(Terminate(key=name, roots=(), grace_s=1.0, reason="left"),) for name in names]

    note: Remediation = (Escalate(kind="session", code=AlertCode.SESSION_LEFT, key="work", reason="left"),)

    held = hold_mass_end([note, *ends("a", "b", "c")], frozenset(), 5, 5)
    assert held[0] == note
    assert [(a.code, a.evidence) for r in held[1:] for a in r if isinstance(a, Escalate)] == [
        (AlertCode.MASS_END, {"agents": ["a", "b", "c"]})
    ]
    assert hold_mass_end(ends("a", "b", "c"), frozenset("abcd"), 5, 5) == ends("a", "b", "c")
    assert hold_mass_end(ends("a", "b"), frozenset(), 5, 5) == ends("a", "b")
    assert hold_mass_end(ends("a", "b", "c"), frozenset(), 4, 5) == ends("a", "b", "c")


async def test_many_agents_at_once_are_gone_only_at_the_third_look(
    sandbox: Sandbox, tmp_path: Path, deaf: Callable[[str], str]
) -> None:
    sandbox.tmux.session("rest")
    team = [
        sandbox.agent(f"dev-{n}", sandbox.tmux.session(f"work-{n}", deaf(f"ready-{n}")), f"%{n + 1}") for n in range(5)
    ]
    wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 5, "all to be deaf to their terminals' end")
    assert await sandbox.after(1.0) == []

    for n in range(5):
        sandbox.tmux("kill-session", "-t", f"=work-{n}")

    assert await sandbox.after(1.0) == []
    assert [(action.kind, action.key) for action in await sandbox.after(1.0)] == [("session", "all")]
    assert [(action.kind, action.key) for action in await sandbox.after(1.0)] == [("session", "all")]
    assert await sandbox.terminated_after(1.0) == [each.id for each in team]


async def test_an_agent_that_only_inherited_its_pane_is_never_an_orphan(sandbox: Sandbox, children: Children) -> None:
    sandbox.tmux.session("rest")
    sandbox.tmux.session("work")
    sandbox.agent("dev", children.start("sleep", "600").pid, "%1")
    assert await sandbox.after(1.0) == []

    sandbox.tmux("kill-session", "-t", "=work")

    assert await sandbox.after(1.0) == []
    assert await sandbox.after(1.0) == []


async def test_an_agent_that_has_ended_meanwhile_does_not_spare_its_leftover_processes(sandbox: Sandbox) -> None:
    sandbox.tmux.session("rest")
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%1")

    sandbox.tmux("kill-session", "-t", "=work")
    wait_until(lambda: sandbox.processes.identify(dev.pid or 0) is None, "the agent to be hung up")

    assert await sandbox.objection(dev) is None


async def test_an_agents_exit_is_reported_while_tmux_keeps_its_pane(sandbox: Sandbox) -> None:
    sandbox.tmux.session("rest")
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%1")
    sandbox.tmux("set-option", "-g", "remain-on-exit", "on")
    assert await sandbox.after(1.0) == []

    os.kill(dev.pid or 0, signal.SIGKILL)
    wait_until(lambda: sandbox.tmux.ends("work") == ["/9"], "tmux to know of the end")

    for _ in range(2):
        assert [action.reason for action in await sandbox.after(1.0)] == ["dev@red in pane %1 ended by signal 9"]
    sandbox.tmux("kill-pane", "-t", "%1")
    assert await sandbox.after(1.0) == []


async def test_an_exit_unknown_to_tmux_is_not_reported(sandbox: Sandbox, children: Children) -> None:
    sandbox.tmux.session("rest")
    dev = sandbox.agent("dev", children.start("sleep", "600").pid, "%1")

    def ended(server_pid: int, pane: PaneState) -> tuple[PaneEnd, ...]:
        server = Server(sandbox.tmux.socket, server_pid, names={"$0": "rest"}, attached={}, panes={"%1": pane})
        return sandbox.watcher.observation([dev], {sandbox.tmux.socket: server}).ended

    ours = sandbox.tmux.server.pid
    assert ended(ours, PaneState(dev.pid or 0, ("$0",), dead=True)) == ()
    assert ended(ours + 1, PaneState(dev.pid or 0, ("$0",), dead=True, status=3)) == ()
    assert ended(ours, PaneState(dev.pid or 0, ("$0",), dead=True, status=3)) == (
        PaneEnd(agent="dev@red", session="rest", pane="%1", status=3, signal=None),
    )


@pytest.mark.parametrize("end", [PrivateTmux.start, lambda tmux: tmux.server.wait()], ids=["another server", "none"])
async def test_agents_whose_server_is_gone_are_unknown(
    sandbox: Sandbox, children: Children, end: Callable[[PrivateTmux], object]
) -> None:
    sandbox.tmux.session("work")
    dev = sandbox.agent("dev", children.start("sleep", "600").pid, "%0")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)
    await sandbox.after(1.0)

    sandbox.tmux.server.kill()
    end(sandbox.tmux)
    if sandbox.tmux.server.poll() is None:
        sandbox.tmux.session("another persons")

    assert await sandbox.after(1000.0) == []
    assert "unknown" in str(await sandbox.objection(dev))


async def test_under_drain_an_agent_goes_when_its_task_is_done(sandbox: Sandbox, claude_home: Path) -> None:
    dev = sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.policy("drain")
    task = write_task(claude_home, "red", 1, owner="dev", status="in_progress")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)
    await sandbox.after(1.0)
    assert await sandbox.after(1000.0) == []

    task.write_text('{"id": "1", "stat')
    assert await sandbox.after(1.0) == [], "it may be its own, and in progress"

    write_task(claude_home, "red", 1, owner="dev", status="completed")
    assert await sandbox.terminated_after(1.0) == [dev.id]


async def test_under_keep_nothing_is_done_about_a_session_that_was_left(sandbox: Sandbox) -> None:
    sandbox.agent("dev", sandbox.tmux.session("work"), "%0")
    sandbox.policy("keep")
    person = sandbox.tmux.person("work")
    await sandbox.after(1.0)
    sandbox.tmux.leave(person)
    await sandbox.after(1.0)

    assert await sandbox.after(1000.0) == []


# -- the plugin's own watchdog ----------------------------------------------------------------------------------


WATCHDOG = "print('ready', flush=True); import time; time.sleep(600)"


def test_the_plugins_watchdog_is_at_work_if_the_process_it_names_lives(
    sandbox: Sandbox, children: Children, project: Path
) -> None:
    child = children.python(WATCHDOG, "tmux-watchdog")
    (project / ".yolo-planning" / ".watchdog-pid").write_text(str(child.pid))

    assert sandbox.watcher.watchdog() == Watchdog(pid=child.pid, liveness=Liveness.ALIVE)
    child.kill()
    child.wait()
    assert sandbox.watcher.watchdog() == Watchdog(pid=child.pid, liveness=Liveness.DEAD)


def test_a_process_that_reuses_the_watchdogs_pid_is_no_watchdog(
    sandbox: Sandbox, children: Children, project: Path
) -> None:
    path = project / ".yolo-planning" / ".watchdog-pid"

    other = children.python(WATCHDOG, "yolo-supervisor", "run").pid
    path.write_text(str(other))
    assert sandbox.watcher.watchdog() == Watchdog(pid=other, liveness=Liveness.UNKNOWN)  # of another pid namespace?

    younger = children.python(WATCHDOG, "tmux-watchdog").pid
    path.write_text(str(younger))
    os.utime(path, (EPOCH.timestamp(), EPOCH.timestamp() - 1e6))  # written long before that process started
    assert sandbox.watcher.watchdog() == Watchdog(pid=younger, liveness=Liveness.DEAD)


@pytest.mark.parametrize("text", [None, "", "0", "1", "-1", "4242x", "9" * 12, "\u00b2", "2147483648"])
def test_a_watchdog_file_without_a_process_is_ignored(sandbox: Sandbox, project: Path, text: str | None) -> None:
    if text is not None:
        (project / ".yolo-planning" / ".watchdog-pid").write_text(text)

    assert sandbox.watcher.watchdog() is None
