"""Random faults that overlap, in a real team under the real daemon, checked from outside."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from soak.faults import Fault, Faults
from soak.oracle import Oracle
from soak.world import World
from support.wait import LIMIT_S

PACE_S = 2.0
"""The mean time between two faults, in seconds."""
HEAL_LIMIT_S = LIMIT_S
"""The time for the faults that are left at the end. Most take a second, on a busy machine a minute."""
KEPT_S = 20.0
"""The time for which a finished task stays in its list."""


def test_faults_lose_nothing_and_are_healed(
    tmp_path: Path, pytestconfig: pytest.Config, record_property: Callable[[str, object], None]
) -> None:
    minutes, seed = pytestconfig.getoption("soak_minutes"), pytestconfig.getoption("soak_seed")
    world = World(tmp_path, random.Random(seed))
    try:
        oracle = Oracle(world)
        faults = Faults(world, oracle, random.Random(seed + 1))
        wrong = run(world, oracle, faults, minutes * 60, random.Random(seed + 2))
        summary = table(faults.over, faults.open, oracle, f"{minutes:g} minutes, seed {seed}")
        record_property("soak", summary)
        lost = [fault.lost for fault in faults.over if fault.lost]
        unhealed = [f"{fault.kind}: {fault.what}" for fault in faults.open]
        complaints = [*oracle.lost.values(), *oracle.harmed.values(), *lost, *unhealed, *wrong]
        context = about(complaints, world.log.read_text(errors="replace")) + around(faults)
    finally:
        world.close()
    assert not complaints, "\n".join([summary, *complaints, *context])


def about(complaints: Sequence[str], log: str) -> list[str]:
    """The lines of the daemon's log that name an agent, a task or a process of a complaint."""
    names = {word.strip(",:") for text in complaints for word in text.split() if any(map(str.isdigit, word))}
    return [line for line in log.splitlines() if any(f'"{name}@' in line or f'"{name}"' in line for name in names)]


def around(faults: Faults) -> list[str]:
    """The faults that were injected in the minute before each one that was not healed, and soon after it."""
    every = sorted((*faults.over, *faults.open), key=lambda fault: fault.injected_s)
    near = [
        fault
        for fault in every
        if any(-60.0 < fault.injected_s - unhealed.injected_s < 10.0 for unhealed in faults.open[:5])
    ]
    first_s = every[0].injected_s if every else 0.0
    return [f"{fault.injected_s - first_s:7.1f} s {fault.kind}: {fault.what}" for fault in near]


def run(world: World, oracle: Oracle, faults: Faults, length_s: float, rng: random.Random) -> list[str]:
    """Inject faults for so long, then let everything be healed; the mistakes at the end."""
    world.start_daemon()
    now_s = time.monotonic()
    end_s, next_fault_s, next_look_s = now_s + length_s, now_s + 5.0, now_s
    while now_s < end_s + HEAL_LIMIT_S:
        drains = now_s >= end_s
        world.step(drains=drains)
        if not (world.daemon_runs or world.daemon_killed):
            return ["the daemon has ended by itself"]
        if not drains and now_s >= next_fault_s:
            faults.inject()
            next_fault_s = now_s + rng.expovariate(1 / PACE_S)
        if now_s >= next_look_s:
            next_look_s = now_s + 0.25
            faults.watch()
            oracle.look()
            discard_old(world, oracle)
            if drains and not faults.open and not (wrong := list(oracle.final())):
                return wrong
        time.sleep(0.05)
        now_s = time.monotonic()
    return list(oracle.final())


def discard_old(world: World, oracle: Oracle) -> None:
    """Remove finished tasks, as the client does with its lists, and agents whose ends were checked."""
    for team in world.teams:
        for task in tuple(team.tasks):
            if task.reported and time.monotonic() - task.reported_s > KEPT_S and oracle.is_settled(task):
                team.tasks.remove(task)
                task.path.unlink()


def table(over: Sequence[Fault], left: Sequence[Fault], oracle: Oracle, title: str) -> str:
    """A table of the kinds of faults: numbers injected and healed, losses, and times to heal."""
    head = ("fault", "injected", "healed", "not healed", "lost", "harmed", "median s", "worst s")
    rows = []
    for kind in sorted({fault.kind for fault in (*over, *left)}):
        healed = [fault for fault in over if fault.kind == kind]
        times = [fault.healed_s - fault.injected_s for fault in healed if fault.healed_s is not None]
        open_ = sum(fault.kind == kind for fault in left)
        lost = sum(bool(fault.lost) for fault in healed)
        rows.append((kind, len(healed) + open_, len(healed), open_, lost, "", *_times(times)))
    every = [fault.healed_s - fault.injected_s for fault in over if fault.healed_s is not None]
    lost = len(oracle.lost) + sum(bool(fault.lost) for fault in over)
    rows.append(("all", len(over) + len(left), len(over), len(left), lost, len(oracle.harmed), *_times(every)))
    lines = [f"{row[0]:<30}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in (head, *rows)]
    return "\n".join([title, *lines])


def _times(times: Sequence[float]) -> tuple[str, str]:
    return (f"{statistics.median(times):.1f}", f"{max(times):.1f}") if times else ("", "")
