"""What can happen to a team: each fault is done for real, and says what being healed means for it."""

from __future__ import annotations

from yolo_supervisor.drill.faults import agents, commands, commits, locks, mcp, sessions, state, supervisor, tasks
from yolo_supervisor.drill.trial import Fault

KINDS = (agents, sessions, supervisor, tasks, locks, state, mcp, commands, commits)

FAULTS: dict[str, Fault] = {fault.__name__.replace("_", "-"): fault for kind in KINDS for fault in kind.FAULTS}
