"""Recovers the resources of one dead agent, in phases whose order is safety."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from yolo_supervisor.actions import agents as agent_actions
from yolo_supervisor.actions.agents import Restart, SaveWork, Terminate, WriteCrashReport
from yolo_supervisor.actions.base import Action, AlertCode, Escalate
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.state import DropHealth, DropPids, SetMarker
from yolo_supervisor.formats import plugin
from yolo_supervisor.inventory.crash_evidence import Crash
from yolo_supervisor.inventory.held_resources import HeldResources
from yolo_supervisor.inventory.restarts import NO_RESTART, RestartPlan, Stage
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.policy.retry import requeue_or_dead_letter
from yolo_supervisor.watchers.base import Remediation


@dataclass(frozen=True, kw_only=True, slots=True)
class Sighting:
    """One known agent as observed in this tick."""

    agent: Agent
    record: str
    """The name of the agent's record."""
    state: Liveness
    recorded: bool = True
    known_as: str | None = None
    """The id in its record, if the record says less than is known."""
    left_team: bool = False
    """Whether it was a teammate inside its lead's process, and is none any more; the lead lives, and it has no task."""
    proof: str = ""
    """The reason why the agent counts as dead."""
    certain: bool = True
    """Whether the death is a proven exit, not concluded from an absence."""
    death_recorded: bool = False
    """Whether the death is in the journal already."""
    stopped: bool = False
    """Whether a hook reported an orderly end of the agent while its process continues."""
    held: HeldResources = field(default_factory=HeldResources)
    terminated: bool = False
    """Whether the supervisor ended the agent: by policy, when its session was left."""
    crash: Crash | None = None
    """The crash that ended the agent, once it was investigated."""
    host_ended: bool = False
    """Whether the client's own daemon that ran the agent has ended, so that it is not resumed."""
    restart: RestartPlan = NO_RESTART
    """The plan to bring the agent back."""

    @property
    def needs_attention(self) -> bool:
        """Whether something is to be done: it is dead, stopped or no agent any more, or its record says too little."""
        return self.state is Liveness.DEAD or not self.recorded or bool(self.known_as) or self.stopped or self.left_team

    @property
    def fate(self) -> str:
        return "stopped" if self.stopped else "is dead"

    @property
    def evidence(self) -> dict[str, Any]:
        """The evidence of the death, for each action that follows from it."""
        evidence = {"agent": self.agent.id, "proof": self.proof, **({"pid": self.agent.pid} if self.agent.pid else {})}
        if self.crash is not None:
            evidence |= {key: self.crash_facts[key] for key in ("class", "report") if key in self.crash_facts}
        return evidence

    @property
    def exit(self) -> dict[str, int]:
        """The exit code or the signal of its process, as far as they are known: a later supervisor cannot ask again."""
        seen = self.crash.report.evidence if self.crash is not None else None
        known = {"status": seen.status, "signal": seen.signal} if seen is not None else {}
        return {key: value for key, value in known.items() if value is not None}

    @property
    def crash_facts(self) -> dict[str, object]:
        """The crash as the journal records it. An agent that the supervisor ended has no crash report."""
        if self.crash is None:
            return {}
        return self.crash.summary if self.terminated else self.crash.facts


@dataclass(frozen=True, kw_only=True, slots=True)
class RecoveryContext:
    """The settings and folders on which every recovery depends."""

    records: Path
    letters: Path
    grace_s: float
    observing: bool = False
    """Whether this is observe mode, in which no crash report is written."""


class PhaseResult(NamedTuple):
    """The steps of one phase, and whether the next phases may change anything in this tick."""

    steps: tuple[Action, ...] = ()
    may_continue: bool = True


Phase = Callable[[Sighting, RecoveryContext], PhaseResult]


def recover(dead: Sighting, context: RecoveryContext) -> Remediation:
    """The steps for one dead agent in this tick: those of all phases up to the first that must wait.

    The phases after it only report: an alert that a tick leaves out counts as resolved.
    """
    steps: list[Action] = []
    waits = False
    for phase in RECOVERY_PHASES:
        result = phase(dead, context)
        steps += (step for step in result.steps if not waits or isinstance(step, Escalate))
        waits = waits or not result.may_continue
    return tuple(steps)


def agent_facts(agent: Agent) -> dict[str, Any]:
    """The identity of an agent, for the journal."""
    facts: dict[str, Any] = {"role": agent.role, "team": agent.team, "source": agent.source}
    if agent.process:
        facts |= {"pid": agent.process.pid, "started": agent.process.started, "boot": agent.process.boot}
    if agent.lead:
        facts["lead"] = agent.lead
    if agent.pane:
        facts |= {"tmux": agent.pane.socket, "pane": agent.pane.pane}
    return facts


# -- the phases --------------------------------------------------------------------------------------------------


def announce(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Write the death into the journal, once."""
    if dead.death_recorded or dead.stopped:
        return PhaseResult()
    evidence = {**agent_facts(dead.agent), "proof": dead.proof, **dead.exit, **dead.crash_facts}
    if dead.terminated:
        evidence["by_supervisor"] = True
        reason = f"{dead.agent.name} was ended by the supervisor: {dead.proof}"
    else:
        reason = f"{dead.agent.name} is dead: {dead.proof}"
    died = agent_actions.Died(key=dead.agent.id, reason=reason, evidence=evidence, process=dead.agent.process)
    if dead.terminated or not (dead.host_ended and dead.held.work):
        return PhaseResult((died,))
    reason = (
        f"{dead.agent.name} is dead with a task in progress, and Claude Code's own daemon has ended, too: the task is "
        "requeued, and the session stays ended until you resume it (claude respawn)"
    )
    evidence = {**dead.evidence, "host": "ended"}
    alert = Escalate(
        kind="agent", code=AlertCode.SESSION_NOT_RESUMED, key=dead.agent.id, reason=reason, evidence=evidence
    )
    return PhaseResult((died, alert))


def requeue(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Requeue its tasks and plans, or make them dead letters. A task with an unclear owner is reported.

    An agent that comes back keeps its own: it goes on with the same attempt.
    """
    keeps, steps = dead.restart.keeps_work, list[Action]()
    for held in dead.held.tasks:
        if keeps and not held.of_mate:
            continue
        reason = f"its owner {held.task.owner} {dead.fate}"
        if held.doubt:
            steps.append(
                Escalate(
                    kind="task",
                    code=AlertCode.TASK_OWNER_UNCLEAR,
                    key=held.task.id,
                    reason=f"{reason}, but {held.doubt}",
                    evidence=dead.evidence,
                )
            )
        else:
            steps += requeue_or_dead_letter(held.task, held.decision, context.letters, reason, dead.evidence)
    for held in () if keeps else dead.held.plans:
        reason = f"its owner {dead.agent.name} {dead.fate}"
        steps += requeue_or_dead_letter(held.task, held.decision, context.letters, reason, dead.evidence)
    return PhaseResult(tuple(steps))


def release(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Release its leases, unless it keeps its work."""
    if dead.restart.keeps_work:
        return PhaseResult()
    return PhaseResult(
        tuple(
            Release(
                key=lease.resource,
                path=lease.path,
                owner=lease.owner,
                reason=f"its holder {lease.owner} {dead.fate}",
                evidence={"owner": lease.owner, **dead.evidence},
            )
            for lease in dead.held.leases
        )
    )


def hold(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Report the tasks that are held during a rate-limit window.

    All agents would run into the limit, so no task is lost and no attempt is charged.
    """
    crash = dead.crash
    if crash is None or crash.hold_s is None or dead.restart.stage is Stage.RETURNED:
        return PhaseResult()
    until = f"{crash.verdict.until:%Y-%m-%d %H:%M:%S}Z" if crash.verdict.until else "the limit resets"
    return PhaseResult(
        tuple(
            Escalate(
                kind="task",
                code=AlertCode.TASK_HELD,
                key=held.task.id,
                reason=f"{dead.agent.name} reached a usage limit: the task is held until {until}, "
                "and no attempt is charged",
                evidence=dead.crash_facts,
            )
            for held in dead.held.work
            if held.decision.wait_s > 0 and not (held.doubt or held.decision.never)
        )
    )


def report_crash(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Write the crash report. Nothing that it describes is cleaned up before it is on the disk."""
    crash = dead.crash
    if crash is None or crash.written or dead.terminated or context.observing:
        return PhaseResult()
    reason = f"{dead.agent.name} is dead: {crash.verdict.reason}"
    report = WriteCrashReport(key=dead.agent.id, report=crash.report, reason=reason)
    return PhaseResult((report,), may_continue=False)


def kill_leftovers(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Terminate its leftover processes. The record stays until they are gone."""
    roots = dead.held.leftovers.roots
    if not roots:
        return PhaseResult()
    terminate = Terminate(
        key=dead.agent.id,
        roots=roots,
        grace_s=context.grace_s,
        sessions=dead.held.leftovers.sessions,
        reason=f"a leftover process of {dead.agent.name}, which is dead",
        evidence={**dead.evidence, "left": [process.pid for process in roots]},
    )
    return PhaseResult((terminate,), may_continue=False)


def save_work(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Save its uncommitted work in the background; the start gate waits for that."""
    if dead.restart.saves is None or context.observing:
        return PhaseResult()
    save = SaveWork(
        key=dead.agent.id,
        name=dead.agent.name,
        record=dead.record,
        folder=dead.restart.saves,
        shared_with=dead.restart.shared_with,
        reason=f"{dead.agent.name} is dead",
        evidence=dead.evidence,
    )
    return PhaseResult((save,))


def start_again(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Start its client again, or wait until that may be or has succeeded: the record is the only trace of it."""
    plan, agent = dead.restart, dead.agent
    match plan.stage:
        case Stage.DUE if plan.launch is not None:
            restart = Restart(
                key=agent.id,
                agent=agent,
                record=dead.record,
                attempt=plan.decision.attempt,
                launch=plan.launch,
                note=plan.note,
                fresh=plan.decision.fresh,
                reason=f"{agent.name} is started again, try {plan.decision.attempt} of {plan.decision.of}",
                evidence={**dead.evidence, **plan.evidence, "record": dead.record},
            )
            return PhaseResult((restart,), may_continue=False)
        case Stage.WAITING | Stage.STARTING:
            return PhaseResult(may_continue=False)
        case Stage.GIVEN_UP:
            evidence = {**dead.evidence, "code": str(plan.decision.code)}
            note = agent_actions.restart_given_up(key=agent.id, reason=plan.decision.text, evidence=evidence)
            return PhaseResult((note,))
    return PhaseResult()


def wait_for_tasks(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Wait while a task may not be requeued yet: the record is the only trace of that task."""
    if dead.restart.stage is Stage.RETURNED:
        return PhaseResult()
    return PhaseResult(may_continue=not any(held.decision.wait_s > 0 for held in dead.held.work))


def report_unreadable(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Wait for files that may name more of its tasks and cannot be read, and report them."""
    unreadable = dead.held.unreadable
    if not unreadable:
        return PhaseResult()
    files = ", ".join(str(path) for path in unreadable)
    alert = Escalate(
        kind="task",
        code=AlertCode.TASK_UNREADABLE,
        key=unreadable[0].name,
        reason=f"{dead.agent.name} is dead, and these files that may name its tasks cannot be read: "
        f"repair or remove {files}",
        evidence=dead.evidence,
    )
    return PhaseResult((alert,), may_continue=False)


def clean_registry_files(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Remove its entries from the plugin's registry files."""
    return PhaseResult(registry_file_steps(dead))


def registry_file_steps(dead: Sighting) -> tuple[Action, ...]:
    """The steps that remove a dead agent's entries from the plugin's registry files."""
    held, pid = dead.held, dead.agent.pid
    reason, evidence = f"{dead.agent.name} is dead", dead.evidence
    pids = frozenset({pid} if pid else ())
    steps: list[Action] = []
    if held.health and pid:
        key = f".agent-health/{held.health.name}"
        steps.append(DropHealth(key=key, path=held.health, pid=pid, reason=reason, evidence=evidence))
    if held.panes:
        steps.append(
            DropPids(
                key=plugin.AGENT_PANES, path=held.panes, pids=pids, pid_lock=None, reason=reason, evidence=evidence
            )
        )
    steps += [
        SetMarker(
            key=marker.path.name,
            path=marker.path,
            expected_digest=marker.expected_digest,
            data=None if marker.word is None else marker.word.encode(),
            reason=reason,
            evidence=evidence,
        )
        for marker in held.markers
    ]
    if held.pids:
        steps.append(DropPids(key=plugin.AGENT_PIDS, path=held.pids, pids=pids, reason=reason, evidence=evidence))
    return tuple(steps)


def deregister(dead: Sighting, context: RecoveryContext) -> PhaseResult:
    """Remove the agent's record, the proof that something remains to be done."""
    evidence = dead.evidence
    reason = "it stopped" if dead.stopped else "its recovery is complete"
    if (successor := dead.restart.successor) is not None:
        reason = f"it goes on in process {successor.pid}"
        evidence |= {"successor": successor.pid}
    elif dead.restart.stage is Stage.REFUSED:
        evidence |= {"not_restarted": str(dead.restart.decision.code)}
    if left := dead.held.leftovers.uncertain:
        evidence["left_alone"] = [process.pid for process in left]
        reason += f"; processes that it had started and that still run: {len(left)}"
    if dead.held.left:
        evidence["left"] = dict(dead.held.left)
    path = context.records / dead.record
    forget = agent_actions.forget(key=dead.agent.id, path=path, reason=reason, evidence=evidence)
    return PhaseResult((forget,), may_continue=False)


RECOVERY_PHASES: tuple[Phase, ...] = (
    announce,
    requeue,
    release,
    hold,
    report_crash,
    kill_leftovers,
    save_work,
    start_again,
    wait_for_tasks,
    report_unreadable,
    clean_registry_files,
    deregister,
)
"""The order of a recovery. It is safety:

- ``announce`` is first: a later entry in the journal refers to the death.
- ``requeue``, ``release`` and ``hold`` come before everything that may take long or fail: other agents wait for the
  tasks and leases. They also come before ``kill_leftovers``, which takes a grace period.
- ``report_crash`` comes before ``kill_leftovers`` and ``clean_registry_files``: these remove what the report describes.
- ``save_work`` comes after ``kill_leftovers``, which may still write, and before the agent writes again.
- ``start_again`` comes after ``kill_leftovers``: what the dead client has started does not meet its successor.
- ``kill_leftovers``, ``start_again``, ``wait_for_tasks`` and ``report_unreadable`` end the tick while something remains
  to be done: of the phases after them only the alerts count.
- ``clean_registry_files`` comes after them: the plugin counts the agent until its processes are gone.
- ``deregister`` is last: after a crash in between, the record makes the next tick start again.
"""


def next_step_s(sightings: Iterable[Sighting]) -> float | None:
    """The time until the first of these agents may be started, or its first task requeued; None if none waits."""
    waiting = [held.decision.wait_s for sighting in sightings for held in sighting.held.work]
    waiting += [sighting.restart.rest_s for sighting in sightings]
    return min((wait_s for wait_s in waiting if wait_s > 0), default=None)
