"""A trial: one fault is injected once, and its recovery is measured."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_supervisor.drill.sandbox import LIMIT_S, TEAM, FakeAgent, Sandbox
from yolo_supervisor.models import ProcessId, from_iso


@dataclass
class Trial:
    """The result of one trial. Times are seconds since the fault."""

    detect_s: float | None = None
    heal_s: float | None = None
    lost: int = 0
    failure: str = ""
    """A sentence about the failure; empty if there was none."""


@dataclass
class Expectation:
    """The things that must be recovered after a fault, and those that must not be touched."""

    healed: Callable[[], bool]
    keys: frozenset[str]
    """The keys of the victims in the journal."""
    verbs: tuple[str, ...]
    """The first journal entry about a victim with one of these verbs counts as the detection."""
    bystanders: list[FakeAgent] = field(default_factory=list)
    bystander_processes: list[ProcessId] = field(default_factory=list)
    kept_files: list[Path] = field(default_factory=list)
    """Files that must exist afterwards."""
    lost: Callable[[], int] = lambda: 0
    """The number of tasks that were claimed twice or never, and of starts that should not have been."""
    ahead_s: float = 0.0
    """The offset of the daemon's wall clock from ours."""


Fault = Callable[[Sandbox, random.Random], Expectation]


def run_trial(sandbox: Sandbox, fault: Fault, rng: random.Random, limit_s: float = LIMIT_S) -> Trial:
    """Inject the fault once, and wait at most ``limit_s`` until it is recovered."""
    result = Trial()
    before = len(sandbox.entries())
    try:
        expected = fault(sandbox, rng)
        began = time.time()
        sandbox.wait(expected.healed, "it was not recovered in time", limit_s)
        healed = time.time()
        result.heal_s = max(0.0, healed - began)
        sandbox.wait(lambda: _entries_about(sandbox, expected, before), "the journal has no entry about it")
        result.detect_s = max(0.0, _first(_entries_about(sandbox, expected, before)) - expected.ahead_s - began)
        touched = [agent.name for agent in expected.bystanders if not sandbox.is_unharmed(agent)]
        touched += [
            f"process {bystander_process.pid}"
            for bystander_process in expected.bystander_processes
            if not sandbox.alive(bystander_process)
        ]
        touched += [path.name for path in expected.kept_files if not path.exists()]
        if touched:
            result.failure = f"harmed: {', '.join(touched)}"
            result.lost = len(touched)
        result.lost += expected.lost()
    except OSError as error:  # TimeoutError if it was not recovered in time
        result.failure = str(error)
    sandbox.set_wall_clock(0.0)
    result.lost += sandbox.unreadable_tasks()
    return result


def _entries_about(sandbox: Sandbox, expected: Expectation, before: int) -> list[dict[str, Any]]:
    """The journal's entries about the victims since the trial began."""
    return [e for e in sandbox.entries()[before:] if e["key"] in expected.keys and e["action"] in expected.verbs]


def _first(entries: Iterable[dict[str, Any]]) -> float:
    return min(from_iso(entry["at"]).timestamp() for entry in entries)


def agents_gone(
    sandbox: Sandbox, victims: list[FakeAgent], bystanders: Sequence[FakeAgent] = (), verbs: tuple[str, ...] = ("died",)
) -> Expectation:
    """Expect that everything that dead agents held is recovered."""
    keys = frozenset(f"{victim.name}@{TEAM}" for victim in victims)
    return Expectation(lambda: all(is_recovered(sandbox, victim) for victim in victims), keys, verbs, list(bystanders))


def is_recovered(sandbox: Sandbox, victim: FakeAgent) -> bool:
    """Whether the task is pending, no process of the agent runs, and the supervisor has forgotten it."""
    return (
        sandbox.is_pending(victim.task)
        and not sandbox.alive(victim.process)
        and not sandbox.alive(victim.tool)
        and any(e["action"] == "forgotten" and e["key"] == f"{victim.name}@{TEAM}" for e in sandbox.entries())
    )


def send(process: ProcessId, number: int) -> None:
    """Send a signal to a process of the sandbox."""
    os.kill(process.pid, number)
