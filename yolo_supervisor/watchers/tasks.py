"""Watches tasks in progress: who owns each, and whether that agent is at work (docs/who-is-at-work.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import Action, AlertCode, Escalate
from yolo_supervisor.actions.tasks import finished_by_owner
from yolo_supervisor.clock import Clock, in_turns, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats import tasks
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.changes import QUIET
from yolo_supervisor.inventory.activity import ActivityReader, Reading
from yolo_supervisor.inventory.agent_sources import agent_key
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot, lists_of_agent
from yolo_supervisor.models import Agent, Liveness, Task
from yolo_supervisor.policy.activity import Activity, Judgement, judge
from yolo_supervisor.policy.restart import restarts_on_stall
from yolo_supervisor.policy.retry import RetryDecision, RetryPolicy, requeue_or_dead_letter
from yolo_supervisor.policy.task_owner import Ownership, OwnerState, Worker, ownership
from yolo_supervisor.store.store import Store
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.waits import WaitClocks

Cause = Literal["silent", "stalled", "unknown owner"]
"""The cause of a failed attempt of a living owner, or of an unknown one."""

STALLED = "stalled"
"""The evidence of a termination that the agent had stalled."""

LOOKS_APART_S = 30.0
"""A task of an unknown owner is requeued if two looks at least this far apart show no sign of work."""


@dataclass(frozen=True, kw_only=True)
class OwnedTask:
    """A task in progress whose owner is not known dead: dead agents are recovered by the agents watcher."""

    task: Task
    owner: Ownership
    activities: tuple[tuple[Agent, Judgement], ...] = ()
    """The living agents that may own it, and what each is doing."""
    quiet_s: float = 0.0
    """The time since the task or any of these agents has shown a sign of work."""
    waited_s: float = 0.0
    """The time since the wait of one of these agents began; 0 if none waits."""
    looks: int = 1
    """The number of looks in which nothing has changed."""
    turn_under_way: str | None = None
    """The name of a living lead or session of its list that is in a turn, if the owner is unknown."""
    decisions: dict[Cause, RetryDecision] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TasksObservation:
    in_progress: tuple[OwnedTask, ...] = ()
    finished: tuple[Task, ...] = ()
    """The finished tasks of which the index still holds earlier attempts."""


def decide(observation: TasksObservation, letters: Path, config: Config) -> list[Remediation]:
    """Requeue tasks whose owner is idle or unknown for too long, and reset the attempts of finished ones."""
    remediations: list[Remediation] = [
        (
            finished_by_owner(
                key=task.id, reason=f"{task.owner or 'its owner'} finished it", evidence={"owner": task.owner}
            ),
        )
        for task in observation.finished
    ]
    return remediations + [steps for owned in observation.in_progress if (steps := _steps(owned, letters, config))]


def _steps(owned: OwnedTask, letters: Path, config: Config) -> tuple[Action, ...]:
    limits = config.tasks
    activities = {judgement.activity for _, judgement in owned.activities}
    if activities & {Activity.WORKING, Activity.SUSPENDED}:
        return ()
    waiting = next((pair for pair in owned.activities if pair[1].activity.waits), None)
    if waiting is not None:
        return (_alert_waiting(owned, *waiting),) if owned.waited_s >= limits.waiting_after_s else ()
    if owned.looks < 2:
        return ()
    stalled = next((pair for pair in owned.activities if pair[1].activity is Activity.STALLED), None)
    if stalled is not None:
        return _stalled(owned, *stalled, letters, config)
    if owned.owner.state is OwnerState.UNKNOWN or Activity.UNKNOWN in activities:
        return _unknown(owned, letters, config)
    if owned.activities and owned.quiet_s >= limits.idle_limit_s:
        return _idle(owned, *owned.activities[0], letters)
    return ()


def _alert_waiting(owned: OwnedTask, agent: Agent, judgement: Judgement) -> Action:
    reason = (
        f"{agent.name} has waited for {owned.waited_s:.0f} s with task {owned.task.id} in progress: {judgement.sign}"
    )
    return Escalate(
        kind="agent", code=AlertCode.AGENT_WAITING, key=agent.id, reason=reason, evidence=_evidence(owned, judgement)
    )


def _stalled(owned: OwnedTask, agent: Agent, judgement: Judgement, letters: Path, config: Config) -> tuple[Action, ...]:
    limits, evidence = config.tasks, _evidence(owned, judgement)
    if agent.process is not None and agent.lead is None and restarts_on_stall(agent.name, agent.role, config.restart):
        return _restart(owned, agent, judgement, config)
    requeues = limits.on_stall == "requeue"
    steps = _requeue(owned, "stalled", letters, f"its owner {agent.name} is stalled: {judgement.sign}", evidence)
    then = "it was requeued, the agent was not terminated" if requeues and steps else "nothing is done about it"
    reason = f"{agent.name} is stalled with task {owned.task.id} in progress ({judgement.sign}): {then}"
    alert = Escalate(kind="agent", code=AlertCode.AGENT_STALLED, key=agent.id, reason=reason, evidence=evidence)
    return (alert, *steps) if requeues else (alert,)


def _restart(owned: OwnedTask, agent: Agent, judgement: Judgement, config: Config) -> tuple[Action, ...]:
    """End a stalled agent that the user wants to be started again; the agents watcher does that after its death."""
    assert agent.process is not None
    evidence = {**_evidence(owned, judgement), "pid": agent.process.pid, STALLED: True}
    reason = f"{agent.name} is stalled with task {owned.task.id} in progress ({judgement.sign})"
    alert = Escalate(
        kind="agent", code=AlertCode.AGENT_STALLED, key=agent.id, evidence=evidence,
        reason=f"{reason}: it is ended and started again",
    )  # fmt: skip
    end = Terminate(
        key=agent.id, roots=(agent.process,), grace_s=config.processes.grace_s, reason=reason, evidence=evidence
    )
    return alert, end


def _idle(owned: OwnedTask, agent: Agent, judgement: Judgement, letters: Path) -> tuple[Action, ...]:
    evidence = _evidence(owned, judgement)
    reason = f"its owner {agent.name} is idle for {owned.quiet_s:.0f} s: {judgement.sign}"
    steps = _requeue(owned, "silent", letters, reason, evidence)
    if not steps:
        return ()
    alert = Escalate(
        kind="agent",
        code=AlertCode.AGENT_SILENT,
        key=agent.id,
        reason=f"{agent.name} is idle ({judgement.sign}): its task {owned.task.id} was requeued, the agent was not "
        "terminated",
        evidence=evidence,
    )
    return (alert, *steps)


def _unknown(owned: OwnedTask, letters: Path, config: Config) -> tuple[Action, ...]:
    """Alert about a task whose owner is unknown, and requeue it unless its lead may be waiting for that owner."""
    if owned.quiet_s < config.tasks.unknown_limit_s:
        return ()
    task, evidence = owned.task, _evidence(owned, None)
    what = f"nothing has happened for {owned.quiet_s:.0f} s, and its owner is unknown: {owned.owner.evidence}"
    if owned.quiet_s < LOOKS_APART_S or owned.turn_under_way is not None:
        held = f"{owned.turn_under_way} is in a turn" if owned.turn_under_way else "a second look follows"
        reason = f"{what}. It is not requeued while {held}; to requeue it: yolo-supervisor task requeue {task.id}"
        code = AlertCode.TASK_OWNER_UNKNOWN
        return (Escalate(kind="task", code=code, key=task.id, reason=reason, evidence=evidence),)
    return _requeue(owned, "unknown owner", letters, what, evidence)


def _requeue(
    owned: OwnedTask, cause: Cause, letters: Path, reason: str, evidence: dict[str, Any]
) -> tuple[Action, ...]:
    return requeue_or_dead_letter(owned.task, owned.decisions[cause], letters, reason, evidence, replayable=False)


def _evidence(owned: OwnedTask, judgement: Judgement | None) -> dict[str, Any]:
    evidence = {"owner": owned.task.owner, "quiet_s": round(owned.quiet_s, 1), "looks": owned.looks}
    if owned.waited_s:
        evidence["waited_s"] = round(owned.waited_s, 1)
    return {**evidence, "activity": str(judgement.activity), "sign": judgement.sign} if judgement else evidence


@dataclass
class _Watched:
    """The last observation of a task in progress: since when it is unchanged, and in how many ticks."""

    trace: tuple[object, ...]
    since_s: float
    looks: int = 1


class TasksWatcher:
    name = "tasks"

    def __init__(
        self,
        config: Config,
        registry: AgentRegistry,
        agents: Callable[[], list[tuple[Agent, Liveness]]],
        store: Store,
        activity: ActivityReader,
        queue: RetryPolicy,
        clock: Clock,
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._lists = registry.task_lists
        self._agents = agents
        self._store = store
        self._activity = activity
        self._queue = queue
        self._clock = clock
        self._watched: dict[tuple[str, str | None], _Watched] = {}
        self._waits = WaitClocks()

    @property
    def interval_s(self) -> float:
        return self.config.tasks.interval_s

    def rest_s(self) -> float:
        return until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        return decide(await self.observe(), self._store.paths.dead_letters, self.config)

    async def objection(self, action: Terminate) -> str | None:
        """Object if the agent is not stalled any more."""
        observation = await self.observe()
        for owned in observation.in_progress:
            for agent, judgement in owned.activities:
                if agent.process in action.roots and judgement.activity is Activity.STALLED:
                    return None
        return "the agent has shown a sign of work"

    async def observe(self) -> TasksObservation:
        async for _ in in_turns(self._registry.read_ahead(), self._clock):
            pass  # much to read in one project must not delay another
        snapshot = self._registry.snapshot(ahead=True)
        folders = self._lists.tied(snapshot)
        quiet = max(1, QUIET // len(folders)) if folders else QUIET
        async for _ in in_turns(self._lists.read_ahead(folders, quiet), self._clock):
            pass
        in_progress = await self._in_progress(snapshot, folders)
        return TasksObservation(in_progress=tuple(in_progress), finished=tuple(self._finished(folders)))

    async def _in_progress(self, snapshot: ProjectSnapshot, folders: Sequence[Path]) -> list[OwnedTask]:
        """The tasks in progress, each with its owner and the time since a sign of work.

        A step of the wall clock changes nothing. Each silence starts from zero after a restart of the supervisor, and
        stands still while that is stopped: the cause (a container that was paused) may have stopped the owners, too.
        """
        self._store.heed()  # other processes write the heartbeats of claims
        self._activity.renew()
        self._waits.renew()
        workers = self._workers(snapshot)
        by_folder = self._by_folder(workers, folders, snapshot)
        readings: dict[int, Reading] = {}
        in_progress: list[OwnedTask] = []
        watched: dict[tuple[str, str | None], _Watched] = {}
        async for task in in_turns(self._at_work(folders, snapshot), self._clock):
            here = by_folder.get(task.path.parent, workers)  # any agent may work on a plan
            owner = ownership(task, here)
            if owner.state is OwnerState.DEAD:
                continue  # the agents watcher recovers the dead
            if owner.state is OwnerState.UNKNOWN and self._lists.unclear(task.path.parent, snapshot):
                continue  # an agent that cannot be identified may be at work on it
            living = {id(agent): agent for agent in owner.living}
            for ident, agent in living.items():
                if ident not in readings:
                    readings[ident] = self._activity.read(agent, Liveness.ALIVE, snapshot)
            own = [readings[ident] for ident in living]
            beside = [] if owner.candidates else _living_sessions(here)  # any of them may own it
            for agent in beside:
                if id(agent) not in readings:
                    readings[id(agent)] = self._activity.read(agent, Liveness.ALIVE, snapshot)
            if not own:
                async for _ in in_turns(self._activity.read_sessions(snapshot), self._clock):
                    pass  # once in a look
            trace = self._trace(task, own, [readings[id(agent)] for agent in beside], snapshot)
            key = task.id, task.owner
            before, now_s = self._watched.get(key), self._clock.awake()
            if before is None or before.trace != trace:
                before = _Watched(trace, now_s, looks=0)
            before.looks += 1
            watched[key] = before
            quiet_s = now_s - before.since_s
            stall_limit_s = self.config.tasks.stall_limit_s
            judgements = [
                (agent, judge(readings[ident].signs, quiet_s, stall_limit_s)) for ident, agent in living.items()
            ]
            waits = [
                self._waits.waited_s(agent_key(agent), readings[ident].signs, now_s) for ident, agent in living.items()
            ]
            unknown = owner.state is OwnerState.UNKNOWN or any(j.activity is Activity.UNKNOWN for _, j in judgements)
            in_progress.append(
                OwnedTask(
                    task=task,
                    owner=owner,
                    activities=tuple(judgements),
                    quiet_s=quiet_s,
                    waited_s=max(waits, default=0.0),
                    looks=before.looks,
                    turn_under_way=self._turn_under_way(here, workers, snapshot) if unknown else None,
                    decisions={
                        cause: self._queue.decide(task, cause) for cause in ("silent", "stalled", "unknown owner")
                    },
                )
            )
        self._watched = watched
        return in_progress

    def _workers(self, snapshot: ProjectSnapshot) -> list[Worker]:
        """Every agent that may be at work on a task of the project, dead ones as well."""
        known = self._agents()
        agents = [agent for agent, _ in known]
        workers = [snapshot.worker(agent, liveness) for agent, liveness in known]
        for liveness in Liveness:
            leads = [agent for agent, state in known if state is liveness]
            mates = self._registry.in_process(leads, agents, snapshot)
            workers += [snapshot.worker(mate, liveness) for mate in mates]
        elsewhere = self._registry.elsewhere(snapshot)
        return workers + [snapshot.worker(agent, Liveness.ALIVE) for agent in elsewhere]

    def _by_folder(
        self, workers: Sequence[Worker], folders: Sequence[Path], snapshot: ProjectSnapshot
    ) -> dict[Path, list[Worker]]:
        """The workers of each task list."""
        by_name: dict[str, list[Worker]] = {}
        of_any: list[Worker] = []
        for worker in workers:
            lists = lists_of_agent(worker.agent)
            for name in lists:
                by_name.setdefault(name, []).append(worker)
            if not lists:
                of_any.append(worker)
        return {
            folder: [
                worker
                for worker in (*by_name.get(folder.name, ()), *of_any)
                if self._lists.works_on(worker.agent, folder, snapshot)
            ]
            for folder in folders
        }

    def _trace(
        self, task: Task, owners: Sequence[Reading], beside: Sequence[Reading], snapshot: ProjectSnapshot
    ) -> tuple[object, ...]:
        """A value that differs whenever the task or an agent that may own it has shown a sign of work.

        ``beside`` are the sessions of the list if no agent is known that may own it.
        """
        claim = self._store.index.claims.get(task.id)
        unknown = () if owners else self._activity.trace_of_unknown(task, snapshot)
        own = tuple(reading.trace for reading in (*owners, *beside))
        return _written(task.path), (claim.token, claim.since_s) if claim else None, own, unknown

    def _turn_under_way(
        self, here: Sequence[Worker], everywhere: Sequence[Worker], snapshot: ProjectSnapshot
    ) -> str | None:
        """The name of a living lead or session that is in a turn.

        A session of the project that is the lead of no team may be that of the list: a resumed one has another id.
        """
        leads = _living_sessions(here)
        teamless = [
            agent
            for agent in _living_sessions(everywhere)
            if not any(snapshot.is_lead(agent, team) for team in snapshot.teams)
        ]
        return next((a.name for a in leads or teamless if self._activity.turn_under_way(a, snapshot)), None)

    def _finished(self, folders: Sequence[Path]) -> list[Task]:
        """The finished tasks of which the index still holds earlier attempts."""
        index = self._store.index
        remembered = {*index.requeues, *index.failures, *index.claims} - index.dead_letters.keys()
        plans = self._lists.plans()
        finished = []
        for ident in remembered:
            name, _, number = ident.rpartition("/")
            here = [self._lists.task(folder, number) for folder in folders if folder.name == name]
            here += [plan for plan in plans if plan.id == ident]
            finished += [task for task in here if task is not None and tasks.is_done(task)]
        return finished

    def _at_work(self, folders: Sequence[Path], snapshot: ProjectSnapshot) -> Iterator[Task]:
        for folder in folders:
            yield from (task for task in self._lists.read_last(folder) if self._lists.is_tied(task, snapshot))
        yield from (plan for plan in self._lists.plans() if plan.status in execution_state.RUNNING and plan.owner)


def _living_sessions(workers: Sequence[Worker]) -> list[Agent]:
    return [worker.agent for worker in workers if worker.agent.is_session and worker.liveness is Liveness.ALIVE]


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
