"""Circuit breakers of real relays, in the status and in the history."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from support.cli import Cli
from support.processes import Children
from support.project import FakeClock
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import McpConfig
from yolo_supervisor.mcp.circuit_breaker import (
    CircuitBreaker,
)
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend

CONFIG = McpConfig(failures=5, cool_down_s=60.0, cap_s=240.0)


def fail(breaker: CircuitBreaker, tool: str, times: int = 5) -> None:
    for number in range(times):
        breaker.record_failure(tool, f"error {number + 1}")


# -- several relays -------------------------------------------------------------------------------------------------

RACER = """
import fcntl, sys
from pathlib import Path
from yolo_supervisor.mcp.circuit_breaker import CircuitBreaker
from yolo_supervisor.clock import Instant, SystemClock
from yolo_supervisor.config import McpConfig
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.store.store import Store
project, gate = sys.argv[1:]
config = McpConfig(failures=1, cool_down_s=0.001)
breaker = CircuitBreaker(["server"], "server", config, SystemClock(), backend().boot(), Store(Path(project)))
breaker.remaining_s()
print("ready", flush=True)
fcntl.flock(open(gate), fcntl.LOCK_SH)
print(breaker.refusal("build") is None, flush=True)
"""


def test_one_process_of_many_probes(project: Path, tmp_path: Path, children: Children) -> None:
    config = McpConfig(failures=1, cool_down_s=0.001)
    fail(CircuitBreaker(["server"], "server", config, SystemClock(), backend().boot(), Store(project)), "build", 1)
    with (tmp_path / "gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        racers = [children.python(RACER, str(project), gate.name) for _ in range(8)]

    answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    assert sorted(answers) == [b"False"] * 7 + [b"True"]


# -- the documents --------------------------------------------------------------------------------------------------


def test_status_lists_open_circuits(project: Path, claude_home: Path) -> None:
    real = CircuitBreaker(["server"], "server", CONFIG, SystemClock(), backend().boot(), Store(project))
    fail(real, "build")

    (shown,) = Cli(project).json("status")["projects"][0]["circuits"]

    assert (shown["server"], shown["tool"], shown["failures"], shown["why"]) == ("server", "build", 5, "error 5")
    assert shown["state"] == "open"


def test_every_transition_is_in_the_journal(project: Path, claude_home: Path) -> None:
    clock = FakeClock()
    breaker = CircuitBreaker(["server"], "server", CONFIG, clock, "boot", Store(project))
    fail(breaker, "build")
    clock.wait(60)
    breaker.refusal("build")
    breaker.record_success("build")

    entries = [json.loads(line) for line in Cli(project)("history", "--json").stdout.splitlines()]

    assert [(e["key"], e["action"]) for e in entries] == [
        ("server/build", action) for action in ("circuit_opened", "circuit_half_opened", "circuit_closed")
    ]
