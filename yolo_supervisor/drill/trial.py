"""One fault, done once: what it wants to see healed, who must not be touched, and how it went."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_supervisor.drill.sandbox import TEAM, Actor, Scene
from yolo_supervisor.models import ProcessId, from_iso


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
    """What a fault wants to see: what must be healed, and who must not be touched."""

    healed: Callable[[], bool]
    keys: frozenset[str]
    """What the journal calls the victims."""
    told: tuple[str, ...]
    """The journal's actions about a victim of which the first counts as noticing the fault."""
    bystanders: list[Actor] = field(default_factory=list)
    strangers: list[ProcessId] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    """Files that must be there afterwards."""
    ahead_s: float = 0.0
    """How far the daemon's wall clock is ahead of ours."""


Fault = Callable[[Scene, random.Random], Watch]


def play(scene: Scene, fault: Fault, dice: random.Random) -> Round:
    """Do the fault once and watch it being healed."""
    result = Round()
    before = len(scene.entries())
    try:
        watch = fault(scene, dice)
        began = time.time()
        scene.wait(watch.healed, "it was not healed in time")
        healed = time.time()
        result.heal_s = max(0.0, healed - began)
        scene.wait(lambda: _told(scene, watch, before), "the journal does not tell of it")
        result.detect_s = max(0.0, _first(_told(scene, watch, before)) - watch.ahead_s - began)
        touched = [actor.name for actor in watch.bystanders if not scene.intact(actor)]
        touched += [f"process {stranger.pid}" for stranger in watch.strangers if not scene.alive(stranger)]
        touched += [path.name for path in watch.kept if not path.exists()]
        if touched:
            result.why = f"harmed: {', '.join(touched)}"
            result.lost = len(touched)
    except OSError as error:  # what is not healed in time, too
        result.why = str(error)
    scene.set_wall_clock(0.0)
    result.lost += scene.lost()
    return result


def _told(scene: Scene, watch: Watch, before: int) -> list[dict[str, Any]]:
    """What the journal tells of the victims since this fault began."""
    return [e for e in scene.entries()[before:] if e["key"] in watch.keys and e["action"] in watch.told]


def _first(entries: Iterable[dict[str, Any]]) -> float:
    return min(from_iso(entry["at"]).timestamp() for entry in entries)


def agents_gone(
    scene: Scene, victims: list[Actor], bystanders: Sequence[Actor] = (), told: tuple[str, ...] = ("died",)
) -> Watch:
    """Agents that are gone: all that they left has to be taken care of."""
    keys = frozenset(f"{victim.name}@{TEAM}" for victim in victims)
    return Watch(lambda: all(taken_care_of(scene, victim) for victim in victims), keys, told, list(bystanders))


def taken_care_of(scene: Scene, victim: Actor) -> bool:
    """The task may be claimed again, nothing of the agent runs, and the supervisor has closed the case."""
    return (
        scene.free(victim.task)
        and not scene.alive(victim.process)
        and not scene.alive(victim.tool)
        and any(e["action"] == "forgotten" and e["key"] == f"{victim.name}@{TEAM}" for e in scene.entries())
    )


def send(process: ProcessId, number: int) -> None:
    os.kill(process.pid, number)  # our own children's children, whose identity the scene holds
