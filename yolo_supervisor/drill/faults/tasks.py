"""Tasks that nobody is at work on, or too many."""

from __future__ import annotations

import random
import signal

from yolo_supervisor.drill.sandbox import TEAM, Scene
from yolo_supervisor.drill.trial import Fault, Watch, send, taken_care_of
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.tasks import SET_ASIDE


def task_orphaned(scene: Scene, dice: random.Random) -> Watch:
    """A task is in progress, and nobody has ever heard of its owner."""
    bystander = scene.agent(scene.session(), busy=True)
    scene.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    task = scene.task("nobody")
    return Watch(lambda: scene.free(task), frozenset({f"{TEAM}/{task.stem}"}), ("requeued",), [bystander])


def owner_hung(scene: Scene, dice: random.Random) -> Watch:
    """An agent stops doing anything at all, and lives on: its task is given back, it is left alone."""
    session = scene.session()
    victim, bystander = scene.agent(session), scene.agent(session, busy=True)
    send(victim.process, signal.SIGSTOP)
    scene.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    keys = frozenset({f"{TEAM}/{victim.task.stem}"})
    return Watch(lambda: scene.free(victim.task), keys, ("requeued",), [bystander], [victim.process, victim.tool])


def poison_task(scene: Scene, dice: random.Random) -> Watch:
    """One agent after the other dies of the same task: it is set aside, where nobody can claim it."""
    session = scene.session()
    scene.configure(tasks={"poison_s": 60.0})
    bystander, victim = scene.agent(session), scene.agent(session)
    send(victim.process, signal.SIGKILL)
    scene.wait(lambda: taken_care_of(scene, victim), "it was not healed the first time")
    send(scene.agent(session, task=victim.task).process, signal.SIGKILL)
    keys = frozenset({f"{TEAM}/{victim.task.stem}"})
    return Watch(lambda: scene.owner(victim.task) == SET_ASIDE, keys, ("dead_lettered",), [bystander])


def late_completion(scene: Scene, dice: random.Random) -> Watch:
    """An agent that was given up finishes after all: it counts unless another has begun anew."""
    session = scene.session()
    victim, bystander = scene.agent(session), scene.agent(session, busy=True)
    task = scene.task()
    ident = f"{TEAM}/{task.stem}"
    claim = scene.command("task", "claim", ident, "--owner", victim.name)
    send(victim.process, signal.SIGSTOP)
    scene.configure(tasks={"idle_limit_s": 1.0, "interval_s": 0.25})
    scene.wait(lambda: scene.free(task), "the task was not given back")
    too_late = dice.random() < 0.5
    if too_late:
        scene.command("task", "claim", ident, "--owner", bystander.name)
    scene.begin("task", "done", ident, "--owner", victim.name, "--token", str(claim["token"]))
    status, owner = ("in_progress", bystander.name) if too_late else ("completed", victim.name)
    told = ("escalated",) if too_late else ("completed",)

    def settled() -> bool:
        found = load_object(task.read_bytes()) or {}
        entries = [e for e in scene.entries() if e["key"] == ident and e["action"] in told]
        return bool(entries) and (found.get("status"), found.get("owner")) == (status, owner)

    return Watch(settled, frozenset({ident}), told, [bystander], [victim.process])


FAULTS: tuple[Fault, ...] = (
    task_orphaned,
    owner_hung,
    poison_task,
    late_completion,
)
