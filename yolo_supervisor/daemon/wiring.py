"""The parts of a project and of the host, built in one place for the daemon and for the command line."""

from __future__ import annotations

from dataclasses import dataclass

from yolo_supervisor.clock import Clock
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux


@dataclass(frozen=True)
class HostServices:
    """What the projects share: one process table, one view of tmux, one clock."""

    clock: Clock
    processes: Processes
    scanner: ProcessScanner
    tmux: Tmux
