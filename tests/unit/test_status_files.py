"""The daemon's report of itself, which `status` shows."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats.own import load_holder
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux

pytestmark = pytest.mark.unit


def test_the_first_tick_of_a_watcher_is_reported_at_once(project: Path, claude_home: Path) -> None:
    clock, processes = SystemClock(), Processes(backend())
    services = HostServices(clock, processes, ProcessScanner(processes), Tmux(clock))
    runner = Runner(project, Config(), services, {"HOME": str(claude_home.parent)})
    watcher = runner.parts.leases

    async def tick() -> None:
        runner.open()
        runner.report()
        await runner._tick(watcher, runner.watcher_health[watcher.name])
        runner.close()

    anyio.run(tick)

    holder = load_holder(runner.store.paths.holder.read_bytes())
    assert holder is not None
    assert [each["name"] for each in holder.watchers if each["last_tick_at"]] == [watcher.name]
