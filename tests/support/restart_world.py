"""Deaths and starts of agents in virtual time: the real decision, index and ledger, and an oracle beside them.

Two supervisors share a machine and its ledger. They are killed in the middle of starts, the machine is rebooted or its
wall clock set, and persons hold, reset and resume agents. The oracle keeps its own record of processes and times.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.project import FakeClock, QuickDisk
from yolo_supervisor.clock import Instant
from yolo_supervisor.config import RestartConfig
from yolo_supervisor.formats.crash_report import CrashCause
from yolo_supervisor.models import from_iso, iso
from yolo_supervisor.policy.restart import RestartDecision, RestartFacts, Verdict, decide
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.lines import Begun, CheckpointLine, Ended, Entry, Line, RestartState, StartState
from yolo_supervisor.store.start_ledger import StartLedger

CRASHES: tuple[dict[str, Any], ...] = (
    {"signal": signal.SIGKILL, "cause": CrashCause.SIGNAL},
    {"signal": signal.SIGSEGV, "cause": CrashCause.SIGNAL},
    {"status": 1, "cause": CrashCause.UNKNOWN},
    {"status": 137, "cause": CrashCause.SIGNAL},
    {"status": 1, "cause": CrashCause.API_ERROR},
)
DELIBERATE: tuple[dict[str, Any], ...] = (
    *({"signal": number, "cause": CrashCause.SIGNAL} for number in (15, 1, 2, 3)),
    *({"status": status, "cause": CrashCause.CLEAN_EXIT} for status in (0, 129, 130, 131, 143)),
    {"signal": signal.SIGKILL, "cause": CrashCause.SIGNAL, "by_supervisor": True},
)

LIMITS = {
    "default": RestartConfig(policy="on-crash"),
    "raised": RestartConfig(policy="on-crash", max_starts=1000, host_pause_s=0.0, host_starts=1000, backoff_s=0.0),
}


@dataclass
class AgentTruth:
    """One agent as the oracle knows it."""

    name: str
    supervisor: int
    ours: int | None = None
    """The process that the supervisor, or at first a lead, has started."""
    by_person: int | None = None
    died_at: float = 0.0
    end: dict[str, Any] = field(default_factory=dict)
    deliberate: bool = False
    held: bool = False
    starts: list[float] = field(default_factory=list)
    """The true times of its starts since a person's last reset."""


class World:
    """One machine. ``elapsed`` is the true time, which no reboot and no clock step changes."""

    def __init__(self, folder: Path, rng: random.Random, rules: RestartConfig, agents: int = 6) -> None:
        self.rng, self.rules = rng, rules
        self.clock, self.elapsed, self.boot = FakeClock(), 0.0, "machine/boot-1/1"
        self.path = folder / "starts.json"
        self.indexes = [Index(), Index()]
        self.ledgers = [self._ledger(), self._ledger()]
        self.reboots = rng.random() < 0.5  # after a clock step nothing tells how long a reboot took
        self.agents = [AgentTruth(f"dev-{n}@red", n % 2, ours=n + 1) for n in range(agents)]
        self.pids = agents
        self.host_starts: list[float] = []
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def _ledger(self) -> StartLedger:
        return StartLedger(self.path, QuickDisk(), self.clock, self.boot)

    # -- what happens --------------------------------------------------------------------------------------------------

    def wait(self, s: float) -> None:
        self.clock.wait(s)
        self.elapsed += s

    def happen(self) -> None:
        """Let one thing happen, and some time pass."""
        self.wait(self.rng.choice((0.2, 1.0, 1.0, 3.0, 3.0, 8.0, 8.0, 20.0, 200.0)))
        agent = self.rng.choice(self.agents)
        chance = self.rng.random()
        if chance < 0.55:
            self.kill(agent)
        elif chance < 0.60:
            self._note(agent, "held")
            agent.held = True
        elif chance < 0.68:
            self._note(agent, "restart_reset")
            agent.held, agent.starts = False, []
        elif chance < 0.76:
            self.resume_by_hand(agent)
        elif chance < 0.82:
            self.restart_supervisor(self.rng.randrange(2))
        elif chance < 0.86 and self.reboots:
            self.reboot()
        elif chance < 0.86:
            self.clock.jump(timedelta(seconds=self.rng.choice((-86400, -60, 60, 86400))))
            self.counts["clock steps"] += 1

    def kill(self, agent: AgentTruth) -> None:
        """End what runs the agent's session."""
        if agent.ours is None and agent.by_person is None:
            return
        agent.deliberate = self.rng.random() < 0.25
        agent.end = self.rng.choice(DELIBERATE if agent.deliberate else CRASHES)
        agent.ours, agent.by_person, agent.died_at = None, None, self.elapsed
        self.counts["deaths"] += 1
        self.counts["deliberate ends"] += agent.deliberate

    def resume_by_hand(self, agent: AgentTruth) -> None:
        """A person resumes the agent, dead or alive; where ours runs, the guard ends it."""
        if agent.by_person is None:
            self.pids += 1
            agent.by_person, agent.ours = self.pids, None
            self.counts["resumed by hand"] += 1

    def restart_supervisor(self, number: int) -> None:
        index = Index()
        index.apply(CheckpointLine(seq=self.indexes[number].seq + 1, checkpoint=self.indexes[number].checkpoint()))
        self.indexes[number], self.ledgers[number] = index, self._ledger()
        self.counts["supervisors restarted"] += 1

    def reboot(self) -> None:
        for agent in self.agents:
            if agent.ours is not None or agent.by_person is not None:
                agent.ours, agent.by_person, agent.died_at, agent.deliberate = None, None, self.elapsed, True
                agent.end = {}  # no exit is known
        self.wait(30.0)
        self.clock.s, self.boot = 10.0, self.boot + "'"
        for number in range(2):
            self.restart_supervisor(number)
        self.counts["reboots"] += 1

    # -- the supervisors -----------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let both supervisors look at their dead agents, in any order."""
        for agent in self.rng.sample(self.agents, len(self.agents)):
            if agent.ours is None and (agent.by_person is None or self.rng.random() < 0.5):
                self._look(agent)

    def _look(self, agent: AgentTruth) -> None:
        ledger = self.ledgers[agent.supervisor]
        decision = self._decide(agent, ledger)
        self.counts[f"decided {decision.verdict}"] += 1
        if decision.verdict is not Verdict.START:
            return
        if self.rng.random() < 0.05:
            self.resume_by_hand(agent)  # at the same moment
        if agent.by_person is not None:
            return  # the launcher sees it
        if ledger.take(self.rules) > 0:
            self.counts["slots refused"] += 1
            return
        if self.rng.random() < 0.03:  # a person holds it at the same moment: another process writes the journal
            self._note(agent, "held")
            agent.held = True
        begun = self._feed(agent, Begun, "restarted", self._evidence(agent))
        if self.indexes[agent.supervisor].restarts[agent.name].held:
            self.counts["holds at the last moment"] += 1
            return
        self._start(agent, begun)

    def _start(self, agent: AgentTruth, begun: int) -> None:
        self._judge(agent)
        self.counts["starts"] += 1
        fate = self.rng.random()
        if fate < 0.1:
            self._feed(agent, Ended, "restarted", {"result": "refused_by_tmux"}, done=begun)
            return
        self.pids += 1
        agent.ours = self.pids
        if fate < 0.2:  # the supervisor is killed before it writes the end
            self.restart_supervisor(agent.supervisor)
            self.counts["supervisors killed during a start"] += 1
            return
        evidence = {"result": "up", "pid": self.pids, "started": 1, "boot": self.boot}
        self._feed(agent, Ended, "restarted", evidence, done=begun)
        if fate < 0.35:
            self.kill(agent)  # its client dies at once
        elif fate < 0.7:
            self._note(agent, "resumed")

    def _decide(self, agent: AgentTruth, ledger: StartLedger) -> RestartDecision:
        state = self.indexes[agent.supervisor].restarts.get(agent.name, RestartState())
        died_s = self.elapsed - agent.died_at
        last = state.starts[-1] if state.starts else None
        ages = tuple(self._age_s(start) for start in state.starts)
        facts = RestartFacts(
            name=agent.name, role="dev", died_s=died_s, held=state.held, transcript="ok", launch_known=True,
            live_elsewhere=agent.by_person is not None, starts=ages, host_starts=ledger.ages(),
            progressed_s=max(0.0, ages[-1] - died_s) if last is not None and last.resumed else None,
            storm_left_s=ledger.storm_left_s(), **agent.end,
        )  # fmt: skip
        return decide(facts, self.rules, self.rng.random(), poison_s=0.0)

    def _age_s(self, start: StartState) -> float:
        """The age of a start, as the planner measures it."""
        age_s = start.began.age(Instant(self.boot, self.clock.monotonic())) if start.began is not None else None
        return age_s if age_s is not None else max(0.0, (self.clock.now() - from_iso(start.at)).total_seconds())

    def _evidence(self, agent: AgentTruth) -> dict[str, Any]:
        return {"record": agent.name, "session": agent.name, **Instant(self.boot, self.clock.monotonic()).fields()}

    def _note(self, agent: AgentTruth, action: str) -> None:
        self._feed(agent, Entry, action, {})

    def _feed(self, agent: AgentTruth, kind: type[Line], action: str, evidence: dict[str, Any], **more: Any) -> int:
        index = self.indexes[agent.supervisor]
        entry = {
            "at": iso(self.clock.now()), "kind": "agent", "key": agent.name, "action": action, "by": "agents",
            "reason": "", "evidence": evidence, "project": "/p",
        }  # fmt: skip
        index.apply(kind(seq=(seq := index.seq + 1), **entry, **more))
        return seq

    # -- the oracle ----------------------------------------------------------------------------------------------------

    def _judge(self, agent: AgentTruth) -> None:
        """Look at a start that is made now."""
        now, rules = self.elapsed, self.rules
        if agent.ours is not None or agent.by_person is not None:
            self._violated(agent, "another process of the session is visible")
        if agent.deliberate or agent.held:
            self._violated(agent, "its end was deliberate, or a person holds it")
        recent = [at for at in agent.starts if agent.died_at - at < rules.period_s - 0.001]
        if len(recent) >= rules.max_starts:
            self._violated(agent, "too many starts of one agent")
        if self.host_starts and now - self.host_starts[-1] < rules.host_pause_s - 0.001:
            self._violated(agent, "too soon after another start")
        if sum(now - at < rules.host_period_s - 0.001 for at in self.host_starts) >= rules.host_starts:
            self._violated(agent, "too many starts on the machine")
        agent.starts.append(now)
        self.host_starts.append(now)

    def _violated(self, agent: AgentTruth, rule: str) -> None:
        self.violations.append(f"{agent.name} at {self.elapsed:.1f} s: {rule}")


def run(folder: Path, seed: int, deaths: int, rules: RestartConfig) -> World:
    """A world in which so many agents die."""
    world = World(folder, random.Random(seed), rules)
    while world.counts["deaths"] < deaths:
        world.happen()
        world.tick()
        for agent in world.agents:  # what stays dead begins a new life, so that there are deaths to come
            if agent.ours is None and agent.by_person is None and world.rng.random() < 0.02:
                world.resume_by_hand(agent)
    return world
