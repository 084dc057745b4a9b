"""The faults of the drill. Each is injected for real, and says what must be recovered."""

from __future__ import annotations

from yolo_supervisor.drill.faults import (
    agents,
    commands,
    commits,
    locks,
    mcp,
    restarts,
    sessions,
    state,
    supervisor,
    tasks,
)
from yolo_supervisor.drill.trial import Fault

KINDS = (agents, sessions, restarts, supervisor, tasks, locks, state, mcp, commands, commits)

FAULTS: dict[str, Fault] = {fault.__name__.replace("_", "-"): fault for kind in KINDS for fault in kind.FAULTS}
