"""What can happen to a team: each fault is done for real, and says what being healed means for it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from yolo_supervisor.drill.scene import TEAM, Actor, Scene
from yolo_supervisor.formats import supervisor
from yolo_supervisor.records import Agent, ProcessId, from_iso
from yolo_supervisor.store import Paths


@dataclass
class Round:
    """How one fault went once. Times are seconds since the fault."""

    detect_s: float | None = None
    heal_s: float | None = None
    lost: int = 0
    why: str = ""
    """What went wrong, where something did."""


@dataclass
class Watch:
    """What a fault wants to see: who must be healed, and who must not be touched."""

    victims: list[Actor]
    bystanders: list[Actor] = field(default_factory=list)
    strangers: list[ProcessId] = field(default_factory=list)
    told: tuple[str, ...] = ("died",)
    """The journal's actions about a victim of which the first counts as noticing the fault."""


Fault = Callable[[Scene, random.Random], Watch]


def _signal(process: ProcessId, number: int) -> None:
    os.kill(process.pid, number)  # our own children's children, whose identity the scene holds


def agent_killed(scene: Scene, dice: random.Random) -> Watch:
    """An agent is killed with SIGKILL; its tool lives on in a session of its own."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(2)]
    victim = actors.pop(dice.randrange(2))
    _signal(victim.process, signal.SIGKILL)
    return Watch([victim], actors)


def agent_ignores_sigterm(scene: Scene, dice: random.Random) -> Watch:
    """Its session is closed, and the agent ignores SIGHUP and SIGTERM."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session, ignore_sigterm=True), scene.agent(other)
    session.kill()
    return Watch([victim], [bystander], told=("terminated", "died"))


def session_killed(scene: Scene, dice: random.Random) -> Watch:
    """A tmux session is closed with an agent in it, another goes on."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session), scene.agent(other)
    session.kill()
    return Watch([victim], [bystander])


def session_detached(scene: Scene, dice: random.Random) -> Watch:
    """The last person leaves a session; a session that nobody ever looked at goes on."""
    session, other = scene.session(), scene.session()
    victim, bystander = scene.agent(session), scene.agent(other)
    scene.attach(session)
    scene.detach()
    return Watch([victim], [bystander], told=("terminated", "died"))


def tmux_server_killed(scene: Scene, dice: random.Random) -> Watch:
    """The tmux server itself is killed, and with it every terminal."""
    session = scene.session()
    victims = [scene.agent(session) for _ in range(2)]
    os.kill(scene.server_pid(), signal.SIGKILL)
    return Watch(victims)


def supervisor_killed(scene: Scene, dice: random.Random) -> Watch:
    """The supervisor is killed in the middle of healing, and started again."""
    session = scene.session()
    actors = [scene.agent(session) for _ in range(3)]
    bystander = actors.pop(dice.randrange(3))
    before = len(scene.entries())
    for victim in actors:
        _signal(victim.process, signal.SIGKILL)
    scene.wait(lambda: len(scene.entries()) > before, "the daemon noticed nothing")
    time.sleep(dice.random() * 0.004)  # not a wait: the random moment of the crash
    scene.kill_daemon()
    scene.start_daemon()
    return Watch(actors, [bystander])


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
    (Paths(scene.project).agents / supervisor.agent_file(ghost)).write_bytes(supervisor.dump_agent(ghost))
    scene.start_daemon()
    return Watch([Actor(name, gone, gone, task)], [bystander], [stranger])


FAULTS: dict[str, Fault] = {
    "agent-killed": agent_killed,
    "agent-ignores-sigterm": agent_ignores_sigterm,
    "session-killed": session_killed,
    "session-detached": session_detached,
    "tmux-server-killed": tmux_server_killed,
    "supervisor-killed": supervisor_killed,
    "pid-reused": pid_reused,
}


def play(scene: Scene, fault: Fault, dice: random.Random) -> Round:
    """Do the fault once and watch it being healed."""
    result = Round()
    began = time.time()
    try:
        watch = fault(scene, dice)
        began = min(time.time(), began) if not watch.victims else time.time()
        scene.wait(lambda: all(_healed(scene, victim) for victim in watch.victims), "it was not healed in time")
        healed = time.time()
        keys = {f"{victim.name}@{TEAM}" for victim in watch.victims}
        told = [e for e in scene.entries() if e["key"] in keys and e["action"] in watch.told]
        result.heal_s = max(0.0, healed - began)
        result.detect_s = max(0.0, _first(told) - began) if told else None
        touched = [actor.name for actor in watch.bystanders if not scene.intact(actor)]
        touched += [f"process {stranger.pid}" for stranger in watch.strangers if not scene.alive(stranger)]
        if touched:
            result.why = f"harmed: {', '.join(touched)}"
            result.lost = len(touched)
    except TimeoutError as error:
        result.why = str(error)
    result.lost += scene.lost()
    return result


def _first(entries: Iterable[dict[str, Any]]) -> float:
    return min(from_iso(entry["at"]).timestamp() for entry in entries)


def _healed(scene: Scene, victim: Actor) -> bool:
    """The task may be claimed again, nothing of the agent runs, and the supervisor has closed the case."""
    return (
        scene.given_back(victim)
        and not scene.alive(victim.process)
        and not scene.alive(victim.tool)
        and any(e["action"] == "forgotten" and e["key"] == f"{victim.name}@{TEAM}" for e in scene.entries())
    )
