"""The cost of a look at 100,000 tasks and 10,000 leases: while nothing changes, and for each change as the total grows.

python tests/bench/looks.py [--lists 100] [--tasks 1000] [--leases 10000] [--looks 20]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.watchers.base import Watcher


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def write_list(home: Path, name: str, count: int) -> None:
    folder = home / ".claude" / "tasks" / name
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        task = {"id": str(number), "subject": f"Task {number}", "description": "d" * 200, "status": "pending",
                "blocks": [], "blockedBy": []}  # fmt: skip
        (folder / f"{number}.json").write_text(json.dumps(task, indent=2))


def write_team(home: Path, project: Path, name: str) -> None:
    """Write the team file that ties the list to the project."""
    folder = home / ".claude" / "teams" / name
    folder.mkdir(parents=True)
    members = [{"agentId": f"dev@{name}", "name": "dev", "cwd": str(project), "backendType": "tmux"}]
    (folder / "config.json").write_text(json.dumps({"name": name, "members": members}))


def write_leases(project: Path, first: int, count: int) -> None:
    folder = project / ".yolo-planning" / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"r{number}.lease").write_bytes(
            plugin_leases.dump_lease(f"r{number}", "dev", datetime.now(UTC), 86400)
        )


async def cost_ms(watcher: Watcher, looks: int) -> float:
    """The processor time of one look, in milliseconds: the median."""
    costs = []
    for _ in range(looks):
        began = time.process_time()
        await watcher.tick(datetime.now(UTC))
        costs.append((time.process_time() - began) * 1000)
    return statistics.median(costs)


async def change_ms(watcher: Watcher, changes: list[tuple[Path, bytes]]) -> float:
    costs = []
    for path, data in changes:
        await watcher.tick(datetime.now(UTC))
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(data)
        temporary.rename(path)
        time.sleep(0.15)
        began = time.process_time()
        await watcher.tick(datetime.now(UTC))
        costs.append((time.process_time() - began) * 1000)
    return statistics.median(costs)


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("lists", 100), ("tasks", 1000), ("leases", 10_000), ("looks", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home, project = Path(name).resolve() / "home", Path(name).resolve() / "project"
        (project / ".yolo-planning").mkdir(parents=True)
        processes = Processes(backend())
        scanner = ProcessScanner(processes)
        scanner.sample()
        clock = SystemClock()
        runner = Runner(project, Config(), HostServices(clock, processes, scanner, Tmux(clock)), {"HOME": str(home)})
        with closing(runner):
            runner.open()
            empty = resident_mib()
            lists = leases = 0
            for share in (10, 50, 100):
                for number in range(lists, (lists := options.lists * share // 100)):
                    write_list(home, f"t{number}", options.tasks)
                    write_team(home, project, f"t{number}")
                before, leases = leases, options.leases * share // 100
                write_leases(project, before, leases - before)
                time.sleep(0.3)  # what was written a moment ago is read again
                total = f"{lists * options.tasks:7} tasks in {lists:3} lists, {leases:5} leases"
                print(f"{total}: {await measure(runner, home, options.looks)}; {resident_mib() - empty:.0f} MiB more")
                sys.stdout.flush()


async def measure(runner: Runner, home: Path, looks: int) -> str:
    watchers = (runner.parts.tasks, runner.parts.leases, runner.parts.state)
    for watcher in watchers:
        for _ in range(2):
            await watcher.tick(datetime.now(UTC))
    quiet = {watcher.name: await cost_ms(watcher, looks) for watcher in watchers}
    task = home / ".claude" / "tasks" / "t0" / "1.json"
    busy = task.read_bytes().replace(b"pending", b"in_progress")
    free = busy.replace(b"in_progress", b"pending")
    task_ms = await change_ms(runner.parts.tasks, [(task, data) for data in (busy, free) * 4])
    lease = runner.project / ".yolo-planning" / ".locks" / "r0.lease"
    given = [(lease, plugin_leases.dump_lease("r0", "dev", datetime.now(UTC), 80000 + number)) for number in range(8)]
    lease_ms = await change_ms(runner.parts.leases, given)
    parts = " + ".join(f"{name} {ms:.2f}" for name, ms in quiet.items())
    return f"nothing changed {parts} ms; one task changed {task_ms:.2f} ms, one lease {lease_ms:.2f} ms"


if __name__ == "__main__":
    asyncio.run(main())
