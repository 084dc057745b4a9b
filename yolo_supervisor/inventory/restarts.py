"""Plans to bring dead agents back: collects the facts of each, and asks ``policy/restart.py``. Read-only."""

from __future__ import annotations

import signal
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from yolo_supervisor.clock import Instant
from yolo_supervisor.config import Config
from yolo_supervisor.formats import restart_plans
from yolo_supervisor.formats.crash_report import ENDED_BY_PERSON, CrashCause
from yolo_supervisor.formats.ended_agents import TASKS, End, EndedAgent
from yolo_supervisor.formats.launch import Launch
from yolo_supervisor.formats.restart_plans import PlannedStart
from yolo_supervisor.formats.transcripts import Tail
from yolo_supervisor.formats.turns import context_tokens
from yolo_supervisor.fs.read import read_part
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.crash_evidence import Crash
from yolo_supervisor.inventory.launches import LaunchRecorder
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot
from yolo_supervisor.inventory.saved_work import SavedWork, sharing
from yolo_supervisor.inventory.session_processes import OneLook, visible
from yolo_supervisor.inventory.transcripts import TAIL_SIZE, Transcripts, version
from yolo_supervisor.models import Agent, Liveness, Task, from_iso, iso
from yolo_supervisor.policy.restart import (
    LOOK_AGAIN_S,
    RestartCode,
    RestartDecision,
    RestartFacts,
    Verdict,
    crash_of,
    decide,
    decide_by_hand,
    may_be_started,
)
from yolo_supervisor.policy.restart_note import handoff_for, note_for
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.ended_agents import EndedAgents
from yolo_supervisor.store.lines import RestartState, StartState
from yolo_supervisor.store.start_ledger import StartLedger
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux

RECENT_S = 60.0
"""The time after a death in which the end of the agent's tmux server may still become known, in seconds."""

UP = "up"
"""The result of a start after which the client's process runs."""


class Stage(StrEnum):
    """How far a dead agent is on its way back."""

    NONE = "none"
    """Its policy is never to start it."""
    DUE = "due"
    WAITING = "waiting"
    STARTING = "starting"
    """A start is under way, or its process runs and is no known agent yet."""
    RETURNED = "returned"
    """A living agent goes on with its session."""
    REFUSED = "refused"
    """This end is not followed by a start."""
    GIVEN_UP = "given_up"
    """A person is needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPlan:
    """The plan for one dead agent, as of this look."""

    stage: Stage
    decision: RestartDecision
    keeps_work: bool = False
    """Whether its tasks and leases stay its own for now."""
    rest_s: float = 0.0
    """The time after which the plan may change by itself; 0 if it does not."""
    successor: Agent | None = None
    """The living agent that goes on with its session."""
    launch: Launch | None = None
    note: str = ""
    saves: Path | None = None
    """The folder whose uncommitted work is to be saved before; None if it was saved, or is not to be."""
    shared_with: tuple[str, ...] = ()
    """The living agents that work in the same work tree."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


_NEVER = RestartDecision(verdict=Verdict.NEVER, code=RestartCode.NEVER_BY_POLICY, text="its policy is never")
NO_RESTART = RestartPlan(stage=Stage.NONE, decision=_NEVER)


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """One dead agent, as the agents watcher knows it."""

    agent: Agent
    record: str
    crash: Crash | None
    by_supervisor: bool
    since_s: float
    """For how long it is known to be dead, in time awake."""
    tasks: Sequence[Task] = ()
    """Its tasks in progress."""


class RestartPlanner:
    """Plans the return of one project's dead agents."""

    def __init__(
        self,
        config: Config,
        registry: AgentRegistry,
        store: Store,
        processes: Processes,
        scanner: ProcessScanner,
        tmux: Tmux,
        launches: LaunchRecorder,
        ledger: StartLedger,
        saved: SavedWork,
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._store = store
        self._processes = processes
        self._scanner = scanner
        self._tmux = tmux
        self._launches = launches
        self._saved = saved
        self._ledger = ledger
        self._transcripts = Transcripts()
        self._table = OneLook(processes)
        self._held: dict[str, dict[Path, str]] = {}
        """By the record of a dead agent that may be started, its tasks in progress when it was first planned for."""
        self._new_deaths: set[str] = set()
        """The records of agents whose deaths are not in the ledger yet."""
        self.ended: dict[str, EndedAgent] = {}
        """The agents that are dead in this look, by their records, and those that died shortly before."""
        self._saved_ended: dict[str, EndedAgent] = {}
        self._plans: dict[str, PlannedStart] = {}
        self._saved_plans: tuple[PlannedStart, ...] = ()
        self._looked_at: set[str] = set()
        """The records of dead agents since they were last saved."""
        self._hung_up: dict[str, bool] = {}
        """Whether each of them may have ended because its terminal was closed."""
        self._ended_files = EndedAgents(store.disk, store.paths.ended, store.clock)

    def renew(self, dead: Collection[str]) -> None:
        """Begin a new look, in which these records are of dead agents."""
        self._transcripts.renew()
        self._table = OneLook(self._processes)
        self._held = {record: tasks for record, tasks in self._held.items() if record in dead}

    def save_deaths(self) -> None:
        """Count the deaths since the last call: many at once pause all starts on this machine."""
        if self._new_deaths:
            self._ledger.record_deaths(self._new_deaths, self.config.restart)
            self._new_deaths = set()

    def save_ended(self) -> None:
        """Remember the agents that are dead: a person may start them again after their records are removed."""
        for record, ended in self.ended.items():  # the end of a tmux server may show a moment after that of its panes
            self.ended[record] = replace(ended, end=self._end_of(record, ended.agent, ended.end))
        new = {record: ended for record, ended in self.ended.items() if self._saved_ended.get(record) != ended}
        if new:
            self._ended_files.save(new)
        self.ended = {name: end for name, end in self.ended.items() if name in self._looked_at or self._is_recent(end)}
        self._hung_up = {record: hung_up for record, hung_up in self._hung_up.items() if record in self.ended}
        self._saved_ended, self._looked_at = dict(self.ended), set()

    def ended_agents(self) -> dict[str, EndedAgent]:
        """The dead agents of this look, and those that are remembered, the one that died last at the end."""
        found = {**self._ended_files.all(), **self.ended}
        return dict(sorted(found.items(), key=lambda item: item[1].at))

    def record_launches(self, agents: Mapping[str, Agent]) -> None:
        """Record how these agents were started, by their records, unless none of them may be started again."""
        rules = self.config.restart
        if (rules.policy, rules.restore) != ("never", "never") or any(p != "never" for p in rules.agents.values()):
            folders, servers = self._registry.folders.roots, self._tmux.last()
            self._launches.record(agents, self._registry.homes(), folders, servers)

    def save_plans(self) -> None:
        """Write down which starts are under way or wait, for ``status``, if that has changed."""
        starts, self._plans = tuple(self._plans.values()), {}
        if [_without_jitter(start) for start in starts] != [_without_jitter(start) for start in self._saved_plans]:
            path = self._store.paths.planned_starts
            write_atomic(self._store.disk, path, restart_plans.dump(starts), durable=False)
            self._saved_plans = starts

    def plan(self, death: Death, others: Sequence[Agent], snapshot: ProjectSnapshot) -> RestartPlan:
        """The plan for one dead agent. ``others`` are all agents that are not known to be dead."""
        plan = self._plan(death, others, snapshot)
        if plan.stage in (Stage.DUE, Stage.STARTING, Stage.WAITING):
            waits, decision = plan.stage is Stage.WAITING, plan.decision
            starts = self._store.index.restarts.get(death.agent.id, RestartState()).starts
            under_way = plan.stage is Stage.STARTING
            self._plans[death.record] = PlannedStart(
                agent=death.agent.id,
                state="waiting" if waits else "starting",
                attempt=min(len(starts) or 1, self.config.restart.max_starts) if under_way else decision.attempt,
                of=self.config.restart.max_starts,
                code=str(RestartCode.START if under_way else decision.code),
                reason="its client is being started" if under_way else decision.text,
                due_s=self._store.clock.monotonic() + decision.wait_s if waits else None,
            )
        return plan

    def _plan(self, death: Death, others: Sequence[Agent], snapshot: ProjectSnapshot) -> RestartPlan:
        """The plan for one dead agent. ``others`` are all agents that are not known to be dead."""
        agent, rules = death.agent, self.config.restart
        if agent.lead is not None or agent.process is None:
            return NO_RESTART
        state = self._store.index.restarts.get(agent.id, RestartState())
        launch = self._launch(death.record, state)
        session = self._session(agent, launch, snapshot)
        self._remember(death, launch, session)
        newest = next((start for start in reversed(state.starts) if start.record == death.record), None)
        if (successor := self._successor(agent, session, newest, others)) is not None:
            return replace(NO_RESTART, stage=Stage.RETURNED, keeps_work=True, successor=successor)
        rebooted = agent.process.boot != self._processes.boot
        if newest is None and not may_be_started(agent.name, agent.role, rules, rebooted):
            return NO_RESTART
        if newest is not None and (left_s := self._starting_s(newest)) is not None:
            return replace(NO_RESTART, stage=Stage.STARTING, keeps_work=True, rest_s=left_s)
        if launch is not None and launch.session != session:
            launch = replace(launch, session=session)
        if is_new := death.record not in self._held:
            self._held[death.record] = {task.path: task.id for task in death.tasks}
        facts = self._facts(death, launch, state, others, snapshot)
        chance = zlib.crc32(f"{agent.id}#{len(state.starts)}".encode("utf-8", "surrogatepass")) / 2**32
        decision = decide(facts, rules, chance, poison_s=self.config.tasks.poison_s)
        if decision.verdict is Verdict.START:  # asked last, since the whole process table is read
            facts = replace(facts, live_elsewhere=self._is_live_elsewhere(agent, session))
            decision = decide(facts, rules, chance, poison_s=self.config.tasks.poison_s)
        if decision.verdict is Verdict.NEVER and any(start.process == agent.process for start in state.starts):
            decision = self._unless_another_runs(agent, session, decision)
        if is_new and decision.verdict is not Verdict.NEVER:
            self._new_deaths.add(death.record)
        plan = self._planned(death, decision, facts, launch, snapshot)
        if launch is None or plan.stage is Stage.REFUSED or self._saved.is_done(death.record):
            return plan
        return replace(plan, saves=Path(launch.folder), shared_with=self._sharing(Path(launch.folder), others))

    def by_hand(self, ended: EndedAgent, others: Sequence[Agent], snapshot: ProjectSnapshot) -> RestartPlan:
        """The plan for a dead agent that a person wants to be started now. ``others`` are all agents but the dead."""
        agent = ended.agent
        state = self._store.index.restarts.get(agent.id, RestartState())
        launch = ended.launch or self._launch(ended.record, state)
        session = self._session(agent, launch, snapshot)
        newest = state.starts[-1] if state.starts else None
        successor = next((other for other in others if other.id == agent.id and other.lead is None), None)
        if (successor := successor or self._successor(agent, session, newest, others)) is not None:
            return replace(NO_RESTART, stage=Stage.RETURNED, successor=successor)
        if newest is not None and newest.record == ended.record and self._starting_s(newest) is not None:
            return replace(NO_RESTART, stage=Stage.STARTING)
        if launch is not None and launch.session != session:
            launch = replace(launch, session=session)
        tasks = [task for task in self._tasks_of(agent, snapshot) if task.status == "in_progress"]
        death = Death(agent=agent, record=ended.record, crash=None, by_supervisor=False, since_s=0.0, tasks=tasks)
        facts = self._facts(death, launch, state, others, snapshot)
        decision = decide_by_hand(facts)
        stage = {Verdict.START: Stage.DUE, Verdict.WAIT: Stage.WAITING}.get(decision.verdict, Stage.REFUSED)
        note = self.config.restart.note or note_for(died_at=from_iso(ended.at), why=ended.why, tool=None, tasks=tasks)
        evidence = {**self._start_evidence(launch, snapshot), "attempt": decision.attempt, "by_hand": True}
        return RestartPlan(stage=stage, decision=decision, launch=launch, note=note, evidence=evidence)

    def _tasks_of(self, agent: Agent, snapshot: ProjectSnapshot) -> list[Task]:
        lists = self._registry.task_lists
        return [
            task
            for folder in lists.of(agent, snapshot)
            for task in lists.tasks(folder)
            if task.owner and agent.bears(task.owner)
        ]

    def _remember(self, death: Death, launch: Launch | None, session: str | None) -> None:
        """Keep what a start by hand needs, for as long as the agent is not forgotten for good."""
        agent, crash = death.agent, death.crash
        self._looked_at.add(death.record)
        before = self.ended.get(death.record)
        at = before.at if before is not None else iso(self._store.clock.now())
        if crash is not None:
            at = iso(crash.report.evidence.at)
        tasks = tuple((task.id, task.subject) for task in death.tasks[:TASKS]) or (before.tasks if before else ())
        end = End.OTHER
        if crash is not None and _ended_by_person(crash):
            end = End.PERSON
        elif death.by_supervisor:
            end = End.SUPERVISOR
        evidence = crash.report.evidence if crash is not None else None
        status, number = (evidence.status, evidence.signal) if evidence is not None else (None, None)
        if (status, number) == (None, None):
            status, number = self._store.index.exit_of(agent)
        hung_up = number is None and status in (None, 128 + signal.SIGHUP)
        self._hung_up[death.record] = hung_up or number == signal.SIGHUP
        if end is End.OTHER and before is not None:
            end = before.end
        self.ended[death.record] = EndedAgent(
            record=death.record,
            agent=replace(agent, session=session),
            launch=launch,
            at=at,
            end=self._end_of(death.record, agent, end),
            why=crash.verdict.reason if crash is not None else "",
            tasks=tasks,
        )

    def _end_of(self, record: str, agent: Agent, end: End) -> End:
        """The kind of an end: what no person and no supervisor has ended may have gone down with its host."""
        process, pane = agent.process, agent.pane
        if end is not End.OTHER or process is None:
            return end
        if process.boot != self._processes.boot:
            return End.REBOOT
        if pane is None or not self._hung_up.get(record):
            return end
        server = self._processes.identify(pane.server_pid)
        gone = server is None or server.started > process.started  # a later process has its pid
        return End.TMUX_SERVER if gone else end

    def _is_recent(self, ended: EndedAgent) -> bool:
        return 0 <= (self._store.clock.now() - from_iso(ended.at)).total_seconds() < RECENT_S

    def _sharing(self, folder: Path, others: Iterable[Agent]) -> tuple[str, ...]:
        seen = [(other.name, self._scanner.agents.get(other.process)) for other in others if other.process]
        return sharing(folder, [(name, at.folder) for name, at in seen if at is not None])

    def _launch(self, record: str, state: RestartState) -> Launch | None:
        """How the agent was started; one that died as soon as it came back is known by its predecessor."""
        records = (record, *(start.record for start in reversed(state.starts)))
        return next((launch for name in records if (launch := self._launches.of(name)) is not None), None)

    def _session(self, agent: Agent, launch: Launch | None, snapshot: ProjectSnapshot) -> str | None:
        """The id of the agent's session; a teammate that died young is known by its only transcript."""
        if agent.session is not None or launch is None or launch.session is not None or agent.team is None:
            return agent.session or (launch.session if launch is not None else None)
        folders = [Path(launch.folder), *self._registry.folders.roots]
        paths = self._transcripts.of_teammate(agent.name, agent.team, snapshot.homes, folders)
        path = self._transcripts.current(paths)
        return path.stem if path is not None else None

    def _planned(
        self, death: Death, decision: RestartDecision, facts: RestartFacts, launch: Launch | None,
        snapshot: ProjectSnapshot,
    ) -> RestartPlan:  # fmt: skip
        match decision.verdict:
            case Verdict.START:
                cause = crash_of(facts)
                evidence = {
                    **self._start_evidence(launch, snapshot), "attempt": decision.attempt,
                    "cause": str(cause) if cause else None,
                }  # fmt: skip
                note = self.config.restart.note or self._note(death, snapshot, fresh=decision.fresh)
                return RestartPlan(
                    stage=Stage.DUE, decision=decision, keeps_work=True, launch=launch, note=note, evidence=evidence
                )
            case Verdict.WAIT:
                # tasks that wait for the same limit are held anyway, and another process of the session works on them
                soon = death.since_s + decision.wait_s <= self.config.restart.window_s
                rest_s = decision.wait_s
                if not soon and (left_s := self.config.restart.window_s - death.since_s) > 0:
                    rest_s = min(rest_s, left_s)
                keeps = soon or decision.code in (RestartCode.QUOTA, RestartCode.LIVE_ELSEWHERE)
                return RestartPlan(stage=Stage.WAITING, decision=decision, keeps_work=keeps, rest_s=rest_s)
            case Verdict.PERSON:
                return RestartPlan(stage=Stage.GIVEN_UP, decision=decision)
        return RestartPlan(stage=Stage.REFUSED, decision=decision)

    def _note(self, death: Death, snapshot: ProjectSnapshot, *, fresh: bool) -> str:
        """The prompt with which the agent goes on."""
        crash = death.crash
        died_at = crash.report.evidence.at if crash is not None else self._store.clock.now()
        why, tail = (crash.verdict.reason, crash.report.evidence.tail) if crash is not None else ("", Tail())
        if fresh:
            saved = self._saved.ref(death.record)
            return handoff_for(died_at=died_at, why=why, tasks=death.tasks, turns=tail.turns, saved=saved)
        team = self._team(death.agent, snapshot)
        return note_for(died_at=died_at, why=why, tool=tail.tool, tasks=death.tasks, team=team)

    def _team(self, agent: Agent, snapshot: ProjectSnapshot) -> list[tuple[str, list[Task]]]:
        """The teammates of a lead, and the tasks that each has in progress."""
        members = [m for team in snapshot.teams if snapshot.is_lead(agent, team) for m in team.members]
        folders = self._registry.task_lists.of(agent, snapshot) if len(members) > 1 else ()
        at_work = [task for folder in folders for task in self._registry.task_lists.at_work(folder)[0]]
        return [
            (member.name, [task for task in at_work if task.owner in (member.name, member.agent_id)])
            for member in members
            if not agent.bears(member.agent_id) and member.name != "team-lead"
        ]

    def _start_evidence(self, launch: Launch | None, snapshot: ProjectSnapshot) -> dict[str, Any]:
        """What the journal remembers of the beginning of a start."""
        now = Instant(self._processes.boot, self._store.clock.monotonic())
        at = self._answered_at(launch, snapshot)
        session = launch.session if launch is not None else None
        return {"session": session, "answered_at": iso(at) if at else None, **now.fields()}

    def _successor(
        self, agent: Agent, session: str | None, start: StartState | None, others: Iterable[Agent]
    ) -> Agent | None:
        """The agent that goes on with the session: one that we started, or that a person resumed.

        It may have died a moment ago: then it is recovered like any other.
        """
        ours = start.process if start is not None else None
        return next(
            (
                other
                for other in others
                if other.process is not None
                and other.process != agent.process
                and other.lead is None
                and (other.process == ours or (session is not None and other.session == session))
            ),
            None,
        )

    def _starting_s(self, start: StartState) -> float | None:
        """The time to wait for a start that is under way; None if it is over, and has failed."""
        if start.result not in ("", UP):
            return None
        if start.process is not None and self._processes.liveness(start.process) is not Liveness.DEAD:
            return self.config.restart.window_s
        if start.result == UP:
            return None
        left_s = self.config.restart.window_s - self._age_s(start)
        return left_s if left_s > 0 else None

    def _age_s(self, start: StartState) -> float:
        """The age of a start. After a reboot the wall clock tells it."""
        now = Instant(self._processes.boot, self._store.clock.monotonic())
        if start.began is not None and (age_s := start.began.age(now)) is not None:
            return age_s
        try:
            return max(0.0, (self._store.clock.now() - from_iso(start.at)).total_seconds())
        except ValueError:
            return float("inf")

    # -- the facts -------------------------------------------------------------------------------------------------

    def _facts(
        self, death: Death, launch: Launch | None, state: RestartState, others: Sequence[Agent],
        snapshot: ProjectSnapshot,
    ) -> RestartFacts:  # fmt: skip
        agent, crash = death.agent, death.crash
        evidence = crash.report.evidence if crash is not None else None
        status, number = (evidence.status, evidence.signal) if evidence is not None else (None, None)
        if status is None and number is None:  # an earlier supervisor may have seen it
            status, number = self._store.index.exit_of(agent)
        starts = tuple(self._age_s(start) for start in state.starts)
        last = state.starts[-1] if state.starts else None
        progressed_s = max(0.0, starts[-1] - death.since_s) if last is not None and last.resumed else None
        cause = crash.verdict.cause if crash is not None else None
        session = launch.session if launch is not None else agent.session
        overflows = sum(
            start.cause == CrashCause.CONTEXT_OVERFLOW and start.session == session for start in state.starts
        )
        return RestartFacts(
            name=agent.name,
            role=agent.role,
            died_s=death.since_s,
            status=status,
            signal=number,
            oom=evidence is not None and evidence.oom is not None and not evidence.oom_ambiguous,
            cause=cause,
            by_supervisor=death.by_supervisor,
            stalled=self._store.index.ended_for_stall(agent.id),
            held=state.held,
            deliberate=crash is not None and _ended_by_person(crash),
            hosted=agent.hosted,
            rebooted=agent.process is not None and agent.process.boot != self._processes.boot,
            headless=launch is not None and launch.headless,
            has_work=bool(death.tasks),
            replaced=_is_replaced(agent, others, snapshot),
            lead_gone=self._registry.lead_has_ended(agent, snapshot),
            work_taken=self._is_work_taken(death),
            hold_s=crash.hold_s if crash is not None else None,
            overflows=overflows + (cause is CrashCause.CONTEXT_OVERFLOW),
            last_crash=_last_crash(last, starts[-1] - death.since_s) if last is not None else None,
            folder_exists=Path(launch.folder).is_dir() if launch is not None else None,
            session=session is not None,
            transcript=self._transcript(launch, snapshot),
            launch_known=launch is not None,
            context_tokens=self._context_tokens(launch, snapshot),
            free_mib=psutil.virtual_memory().available // 2**20,
            starts=starts,
            progressed_s=progressed_s,
            host_starts=self._ledger.ages(),
            storm_left_s=self._ledger.storm_left_s(),
        )

    def _unless_another_runs(self, agent: Agent, session: str | None, never: RestartDecision) -> RestartDecision:
        """Wait while another process runs the session: ours was ended because a person had resumed it.

        The person's process may not be a known agent yet, and works on the same tasks.
        """
        if self._is_live_elsewhere(agent, session) is False:
            return never
        text = "another process runs its session"
        return replace(never, verdict=Verdict.WAIT, code=RestartCode.LIVE_ELSEWHERE, text=text, wait_s=LOOK_AGAIN_S)

    def _is_live_elsewhere(self, agent: Agent, session: str | None) -> bool | None:
        """Whether another process runs the session; None if that is not known."""
        homes = self._registry.homes()
        seen = visible(session, agent.id, agent.team, homes, self._processes, system=self._table)
        return bool(seen.processes - {agent.process}) or (None if seen.unknown else False)

    def _is_work_taken(self, death: Death) -> bool:
        """Whether other agents have begun or finished all that it was working on when it died."""
        held = self._held.get(death.record, {})
        now = {path: self._registry.task_lists.task(path.parent, path.stem) for path in held}
        return bool(held) and all(
            task is not None and (task.status == "completed" or (task.owner and not death.agent.bears(task.owner)))
            for task in now.values()
        )

    def _path(self, launch: Launch | None, snapshot: ProjectSnapshot) -> Path | None:
        if launch is None or launch.session is None:
            return None
        homes = (Path(launch.claude_dir), *snapshot.homes) if launch.claude_dir else snapshot.homes
        return self._transcripts.of_session(launch.session, homes, [Path(launch.folder), *self._registry.folders.roots])

    def _transcript(
        self, launch: Launch | None, snapshot: ProjectSnapshot
    ) -> Literal["missing", "no_turn", "ok", "unknown"]:
        if launch is None or launch.session is None:
            return "unknown"
        path = self._path(launch, snapshot)
        if path is None:
            return "missing"
        return "ok" if self._transcripts.turn(path) is not None else "no_turn"

    def _context_tokens(self, launch: Launch | None, snapshot: ProjectSnapshot) -> int | None:
        """The size of the conversation by its last answer; None if no limit is set, or that is not known."""
        if not self.config.restart.max_resume_tokens or (path := self._path(launch, snapshot)) is None:
            return None
        size = now.size if (now := version(path)) is not None else 0
        return context_tokens(read_part(path, max(0, size - TAIL_SIZE), TAIL_SIZE) or b"")

    def _answered_at(self, launch: Launch | None, snapshot: ProjectSnapshot) -> datetime | None:
        path = self._path(launch, snapshot)
        turn = self._transcripts.turn(path) if path is not None else None
        return turn.answered_at if turn is not None else None


def _without_jitter(start: PlannedStart) -> PlannedStart:
    """The planned start, equal for one whose time was only measured again."""
    return msgspec.structs.replace(start, due_s=round(start.due_s) if start.due_s is not None else None, reason="")


def _is_replaced(agent: Agent, others: Iterable[Agent], snapshot: ProjectSnapshot) -> bool:
    """Whether a teammate's team does not list it any more, or lists another process under its name."""
    if agent.team is None or agent.is_session:
        return False
    if any(other.id == agent.id and other.process != agent.process for other in others):
        return True
    team = next((team for team in snapshot.teams if team.name == agent.team), None)
    return team is not None and all(member.agent_id != agent.id for member in team.members)


def _ended_by_person(crash: Crash) -> bool:
    """Whether the client has reported that a person ended its session."""
    event, payload = crash.report.evidence.last_hook
    return event == "SessionEnd" and payload.get("reason") in ENDED_BY_PERSON


def _last_crash(start: StartState, ago_s: float) -> tuple[CrashCause, float] | None:
    """The cause of the death that the start followed, and how long before this death that was."""
    try:
        return CrashCause(start.cause or ""), max(0.0, ago_s)
    except ValueError:
        return None
