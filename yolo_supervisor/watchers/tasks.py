"""Watches tasks that are in progress although no agent works on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import anyio

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.tasks import finished_by_owner
from yolo_supervisor.clock import Clock, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import tasks
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.changes import QUIET
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot
from yolo_supervisor.models import Agent, Liveness, Task
from yolo_supervisor.policy.retry import RetryDecision, RetryPolicy, requeue_or_dead_letter
from yolo_supervisor.policy.waiting import WAITS_AFTER_FAILURE, WAITS_FOR_PERSON
from yolo_supervisor.store.store import Store
from yolo_supervisor.watchers.base import Remediation

SILENT, UNKNOWN = "silent", "unknown owner"
"""The cause of a failed attempt whose owner shows no sign of life, or is unknown."""

AT_ONCE = 64
"""The number of tasks after which other coroutines run."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A task in progress and the length of its silence. ``owner`` is the living agent that owns it, if any."""

    task: Task
    quiet_s: float
    looks: int
    owner: Agent | None = None
    decision: RetryDecision = field(default_factory=RetryDecision)


@dataclass(frozen=True, kw_only=True)
class TasksObservation:
    """The tasks in progress without a change, and the finished ones with attempts in the index."""

    silences: tuple[Silence, ...] = ()
    finished: tuple[Task, ...] = ()


def decide(observation: TasksObservation, letters: Path, idle_limit_s: float) -> list[Remediation]:
    """Requeue tasks without a working owner, and reset the attempts of finished ones.

    Where the owner lives, a person is alerted first.
    """
    remediations: list[Remediation] = [
        (
            finished_by_owner(
                key=task.id, reason=f"{task.owner or 'an unknown owner'} finished it", evidence={"owner": task.owner}
            ),
        )
        for task in observation.finished
    ]
    for silence in observation.silences:
        if silence.quiet_s < idle_limit_s or silence.looks < 2:
            continue
        task, owner = silence.task, silence.owner
        if owner is not None:
            reason = f"its owner {owner.name} is alive, but shows no sign of life for {silence.quiet_s:.0f} s"
        elif task.owner:
            reason = f"its owner {task.owner} is not a known agent, and it is unchanged for {silence.quiet_s:.0f} s"
        else:
            reason = f"it has no owner, and it is unchanged for {silence.quiet_s:.0f} s"
        evidence = {"owner": task.owner, "quiet_s": round(silence.quiet_s, 1), "looks": silence.looks}
        steps = requeue_or_dead_letter(task, silence.decision, letters, reason, evidence, replayable=False)
        if steps and owner is not None:
            alert = Escalate(
                kind="agent",
                code=AlertCode.AGENT_SILENT,
                key=owner.id,
                reason=f"{owner.name} seems to hang: its task {task.id} was requeued, the agent was not terminated",
                evidence=evidence,
            )
            remediations.append((alert, *steps))
        elif steps:
            remediations.append(steps)
    return remediations


@dataclass
class _Watched:
    """The last observation of a task in progress: since when it is unchanged, and in how many ticks."""

    signs: tuple[object, ...]
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
        scanner: ProcessScanner,
        queue: RetryPolicy,
        clock: Clock,
    ) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._lists = registry.task_lists
        self._agents = agents
        self._store = store
        self._scanner = scanner
        self._queue = queue
        self._clock = clock
        self._watched: dict[tuple[str, str | None], _Watched] = {}
        self._looked_s = clock.monotonic()

    @property
    def interval_s(self) -> float:
        return self.config.tasks.interval_s

    def rest_s(self) -> float:
        return until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        letters = self._store.paths.dead_letters
        return decide(await self.observe(), letters, self.config.tasks.idle_limit_s)

    async def observe(self) -> TasksObservation:
        snapshot = self._registry.snapshot()
        folders = self._lists.tied(snapshot)
        silences = await self._silences(snapshot, folders)
        return TasksObservation(silences=tuple(silences), finished=tuple(self._finished(folders)))

    async def _silences(self, snapshot: ProjectSnapshot, folders: Sequence[Path]) -> list[Silence]:
        """The tasks in progress, each with the time since it or its owner changed.

        A step of the wall clock changes nothing. Each silence starts from zero after a restart of the supervisor, and
        after a time in which it was stopped: the cause (a container that was paused) may have stopped the owners, too.
        """
        before_s, self._looked_s = self._looked_s, self._clock.monotonic()
        if self._looked_s - before_s > max(2 * self.interval_s, self.config.tasks.idle_limit_s / 2):
            self._watched = {}
        self._store.heed()  # other processes write the heartbeats of claims
        known = self._agents()
        living = [agent for agent, state in known if state is Liveness.ALIVE]
        living += self._registry.in_process(living, living, snapshot)
        ours = _by_owner(living)
        not_living = [agent for agent, state in known if state is not Liveness.ALIVE]
        others = _by_owner([*not_living, *self._registry.elsewhere(snapshot)])

        def has(agent: Agent, task: Task) -> bool:
            is_plan = task.list == execution_state.EXECUTION_STATE
            return is_plan or self._lists.works_on(agent, task.path.parent, snapshot)

        silences: list[Silence] = []
        watched: dict[tuple[str, str | None], _Watched] = {}
        for number, task in enumerate(self._at_work(folders)):
            if number % AT_ONCE == AT_ONCE - 1:
                await anyio.sleep(0)  # this work is not urgent
            if task.owner is None and any(self._lists.works_on(agent, task.path.parent, snapshot) for agent in living):
                continue  # a session names no owner of its tasks
            if any(has(agent, task) for agent in others.get(str(task.owner), ())):
                continue  # AgentsWatcher recovers the dead; the state of the others is unknown
            owner = next((agent for agent in ours.get(str(task.owner), ()) if has(agent, task)), None)
            if owner is None and self._lists.unclear(task.path.parent, snapshot):
                continue  # an agent that cannot be identified may be at work on it
            key = task.id, task.owner
            signs, before = self._signs(task, owner, snapshot), self._watched.get(key)
            if before is None or before.signs != signs or (owner is not None and self._waits(owner, snapshot)):
                watched[key] = _Watched(signs, self._clock.monotonic())
                continue
            before.looks += 1
            watched[key] = before
            quiet_s = self._clock.monotonic() - before.since_s
            cause = UNKNOWN if owner is None else SILENT
            decision = self._queue.decide(task, cause)
            silences.append(Silence(task=task, quiet_s=quiet_s, looks=before.looks, owner=owner, decision=decision))
        self._watched = watched
        return silences

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

    def _at_work(self, folders: Sequence[Path]) -> Iterator[Task]:
        for folder in folders:
            yield from self._lists.at_work(folder, quiet=max(1, QUIET // len(folders)))[0]
        yield from (plan for plan in self._lists.plans() if plan.status in execution_state.RUNNING and plan.owner)

    def _signs(self, task: Task, owner: Agent | None, snapshot: ProjectSnapshot) -> tuple[object, ...]:
        """All signs that an agent works on the task: any difference is a sign of life."""
        claim = self._store.index.claims.get(task.id)
        signs: list[object] = [_writing(task.path), *((claim.token, claim.since_s) if claim else (None, None))]
        if owner is not None and owner.process is not None:
            signs += [
                self._cpu(owner),
                snapshot.session_status(owner),
                *map(self._written, snapshot.notes_of(owner)),
            ]
        return tuple(signs)

    def _cpu(self, owner: Agent) -> int:
        """The processor time of the owner's process tree, in clock ticks: work increases it."""
        assert owner.process is not None
        ticks = 0
        for process in (owner.process, *(child for child, _ in self._scanner.trees.get(owner.process, ()))):
            with contextlib.suppress(OSError):
                facts = self._scanner.processes.backend.facts(process.pid)
                ticks += facts.cpu if facts is not None and facts.started == process.started else 0
        return ticks

    def _written(self, note: str) -> int:
        return _writing(self._store.paths.hooks / note) or 0

    def _waits(self, owner: Agent, snapshot: ProjectSnapshot) -> bool:
        """Whether the owner waits on purpose: for a person, its quota, or work that it has started."""
        if snapshot.session_status(owner) == "waiting":
            return True
        folder = self._store.paths.hooks
        newest = max(snapshot.notes_of(owner), key=self._written, default=None)
        if newest is None:
            return False
        payload = own_files.hook_note(read_or_none(folder / newest) or b"", newest.partition(".")[0]).payload
        return bool(
            payload.get("background_tasks")
            or payload.get("session_crons")
            or payload.get("notification_type") in WAITS_FOR_PERSON
            or (newest.startswith("StopFailure.") and payload.get("error") in WAITS_AFTER_FAILURE)
        )


def _by_owner(agents: Iterable[Agent]) -> dict[str, list[Agent]]:
    """The agents by the names that tasks may use for them."""
    by_owner: dict[str, list[Agent]] = {}
    for agent in agents:
        for name in {agent.name, agent.id}:
            by_owner.setdefault(name, []).append(agent)
    return by_owner


def _writing(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
