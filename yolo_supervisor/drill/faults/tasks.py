"""Tasks without a working owner, or with two."""

from __future__ import annotations

import random
import signal

from yolo_supervisor.drill.sandbox import TEAM, Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, is_recovered, send
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.tasks import SET_ASIDE


def task_orphaned(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A task is in progress, and its owner is not a known agent: it is requeued after two looks 30 s apart."""
    bystander = sandbox.agent(sandbox.session(), busy=True)
    sandbox.configure(tasks={"unknown_limit_s": 1.0, "interval_s": 0.25})
    task = sandbox.task("nobody")
    return Expectation(lambda: sandbox.is_pending(task), frozenset({f"{TEAM}/{task.stem}"}), ("requeued",), [bystander])


def owner_idle(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent ends its turn with its task in progress: the task is requeued, the agent is left alone."""
    session = sandbox.session()
    victim, bystander = sandbox.agent(session), sandbox.agent(session, busy=True)
    sandbox.end_turn(victim.name)
    sandbox.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    keys = frozenset({f"{TEAM}/{victim.task.stem}"})
    return Expectation(
        lambda: sandbox.is_pending(victim.task), keys, ("requeued",), [bystander], [victim.process, victim.tool]
    )


def poison_task(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """Two agents die on the same task: it becomes a dead letter."""
    session = sandbox.session()
    sandbox.configure(tasks={"poison_s": 60.0})
    bystander, victim = sandbox.agent(session), sandbox.agent(session)
    send(victim.process, signal.SIGKILL)
    sandbox.wait(lambda: is_recovered(sandbox, victim), "it was not recovered the first time")
    send(sandbox.agent(session, task=victim.task).process, signal.SIGKILL)
    keys = frozenset({f"{TEAM}/{victim.task.stem}"})
    return Expectation(lambda: sandbox.owner(victim.task) == SET_ASIDE, keys, ("dead_lettered",), [bystander])


def late_completion(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An agent completes its task after it was requeued: accepted unless it was claimed again."""
    session = sandbox.session()
    victim, bystander = sandbox.agent(session), sandbox.agent(session, busy=True)
    task = sandbox.task()
    ident = f"{TEAM}/{task.stem}"
    claim = sandbox.run_command("task", "claim", ident, "--owner", victim.name)
    sandbox.end_turn(victim.name)
    sandbox.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    sandbox.wait(lambda: sandbox.is_pending(task), "the task was not requeued")
    too_late = rng.random() < 0.5
    if too_late:
        sandbox.run_command("task", "claim", ident, "--owner", bystander.name)
    sandbox.start_command("task", "done", ident, "--owner", victim.name, "--token", str(claim["token"]))
    status, owner = ("in_progress", bystander.name) if too_late else ("completed", victim.name)
    verbs = ("escalated",) if too_late else ("completed",)

    def settled() -> bool:
        content = load_object(task.read_bytes()) or {}
        entries = [e for e in sandbox.entries() if e["key"] == ident and e["action"] in verbs]
        return bool(entries) and (content.get("status"), content.get("owner")) == (status, owner)

    return Expectation(settled, frozenset({ident}), verbs, [bystander], [victim.process])


FAULTS: tuple[Fault, ...] = (
    task_orphaned,
    owner_idle,
    poison_task,
    late_completion,
)
