"""Agents that die, each in another way."""

from __future__ import annotations

import random
import signal

from yolo_supervisor.drill.sandbox import TEAM, Actor, Scene
from yolo_supervisor.drill.trial import Fault, Watch, agents_gone, send
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.crash_report import load
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Agent, ProcessId, from_iso
from yolo_supervisor.store.paths import Paths


def _dies(scene: Scene, way: str, cause: str) -> tuple[Actor, Watch]:
    """An agent that dies by its own hand: the report must say of what."""
    session = scene.session()
    bystander, victim = scene.agent(session), scene.agent(session, dies=way)
    key = f"{victim.name}@{TEAM}"
    send(victim.process, signal.SIGUSR1)
    watch = agents_gone(scene, [victim], [bystander])
    healed = watch.healed

    def explained() -> bool:
        told = [e["evidence"] for e in scene.entries() if (e["action"], e["key"]) == ("died", key)]
        report = (
            load(read_or_none(Paths(scene.project).crashes / f"{told[0].get('report')}.json") or b"") if told else None
        )
        return healed() and report is not None and report.cause == told[0]["class"] == cause

    watch.healed = explained
    return victim, watch


def agent_killed(scene: Scene, dice: random.Random) -> Watch:
    """An agent is killed with SIGKILL; its tool lives on in a session of its own."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(2)]
    victim = actors.pop(dice.randrange(2))
    send(victim.process, signal.SIGKILL)
    return agents_gone(scene, [victim], actors)


def agent_segfault(scene: Scene, dice: random.Random) -> Watch:
    """An agent breaks with a segmentation fault."""
    return _dies(scene, "segfault", "signal")[1]


def agent_oom(scene: Scene, dice: random.Random) -> Watch:
    """An agent runs out of memory, under a limit of its own."""
    return _dies(scene, "oom", "oom")[1]


def agent_api_errors(scene: Scene, dice: random.Random) -> Watch:
    """The model's server is overloaded, and an agent gives up."""
    return _dies(scene, "api-errors", "api_error")[1]


def agent_rate_limited(scene: Scene, dice: random.Random) -> Watch:
    """An agent has used up its rate: its task is held for a while, and given back without an attempt being charged."""
    scene.configure(tasks={"hold_s": 2.0})
    victim, watch = _dies(scene, "rate-limited", "rate_limited")
    key = f"{TEAM}/{victim.task.stem}"
    explained = watch.healed

    def held() -> bool:
        mine = [e for e in scene.entries() if e["key"] == key]
        told = {e["action"]: e for e in mine}
        if not explained() or not {"escalated", "requeued"} <= told.keys():
            return False
        wait_s = from_iso(told["requeued"]["at"]).timestamp() - from_iso(told["escalated"]["at"]).timestamp()
        return told["requeued"]["evidence"].get("charged") is False and wait_s > 1.0

    watch.healed = held
    return watch


def agent_ignores_sigterm(scene: Scene, dice: random.Random) -> Watch:
    """Its session is closed, and the agent ignores SIGHUP and SIGTERM."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session, ignore_sigterm=True), scene.agent(other)
    session.kill()
    return agents_gone(scene, [victim], [bystander], told=("terminated", "died"))


def pid_reused(scene: Scene, dice: random.Random) -> Watch:
    """An agent's recorded pid belongs to a stranger by now: its task is given back, the stranger lives."""
    session = scene.session()
    bystander = scene.agent(session)
    stranger = scene.stranger()
    scene.kill_daemon()  # the record is as an earlier supervisor left it
    task = bystander.task.with_name(f"{bystander.task.stem}9.json")
    name = f"ghost-{task.stem}"
    before = bystander.task.read_text()
    task.write_text(before.replace(bystander.name, name))
    gone = ProcessId(stranger.pid, stranger.started - 1, stranger.boot)
    ghost = Agent(
        id=f"{name}@{TEAM}", name=name, role="dev", team=TEAM, source="record", since=from_iso("2026-01-01"),
        process=gone, pid=gone.pid, claude_dir=scene.claude,
    )  # fmt: skip
    (Paths(scene.project).agents / own_files.agent_file(ghost)).write_bytes(own_files.dump_agent(ghost))
    scene.start_daemon()
    watch = agents_gone(scene, [Actor(name, gone, gone, task)], [bystander])
    watch.strangers.append(stranger)
    return watch


def mass_death(scene: Scene, dice: random.Random) -> Watch:
    """Eight of nine agents are killed at once."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(9)]
    bystander = actors.pop(dice.randrange(9))
    for victim in actors:
        send(victim.process, signal.SIGKILL)
    return agents_gone(scene, actors, [bystander])


FAULTS: tuple[Fault, ...] = (
    agent_killed,
    agent_segfault,
    agent_oom,
    agent_api_errors,
    agent_rate_limited,
    agent_ignores_sigterm,
    pid_reused,
    mass_death,
)
