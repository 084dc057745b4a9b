"""The cost of a look at many agents while nothing changes.

python tests/bench/agents.py [--agents 1000] [--looks 30]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor import log
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon import executor
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux


def start_agents(project: Path, claude: Path, count: int, hold: int) -> list[subprocess.Popen[bytes]]:
    """Agents with a task each, in ten teams; the plugin's files name them, too."""
    agents = []
    (project / ".yolo-planning" / ".agent-health").mkdir(parents=True)
    for number in range(count):
        team, name = f"team-{number % 10}", f"dev-{number}"
        folder = claude / "tasks" / team
        folder.mkdir(parents=True, exist_ok=True)
        task = {"id": str(number), "subject": "x", "description": "x", "status": "in_progress", "owner": name,
                "blocks": [], "blockedBy": []}  # fmt: skip
        (folder / f"{number}.json").write_text(json.dumps(task))
        words = ["sh", "-c", "read x", "sh", "--agent-id", f"{name}@{team}", "--agent-name", name, "--team-name", team]
        agents.append(subprocess.Popen(words, cwd=project, stdin=hold))
    pids = "".join(f"{agent.pid}\n" for agent in agents)
    (project / ".yolo-planning" / ".agent-pids").write_text(pids)
    for agent in agents[:50]:
        health = {"pid": agent.pid, "role": f"dev{agent.pid}"}
        (project / ".yolo-planning" / ".agent-health" / f"dev{agent.pid}.json").write_text(json.dumps(health))
    return agents


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--looks", type=int, default=30)
    options = parser.parse_args()
    executor.APPLY_S = float("inf")  # type: ignore[misc]  # everything is recorded by the first tick
    with tempfile.TemporaryDirectory() as name:
        home, project = Path(name).resolve() / "home", Path(name).resolve() / "project"
        log.configure("json", Path(name).resolve() / "log.jsonl")
        os.environ.update(HOME=str(home), XDG_STATE_HOME=str(home / "state"), XDG_CONFIG_HOME=str(home / ".config"))
        os.environ.pop("CLAUDE_CONFIG_DIR", None)
        hold, keep = os.pipe()
        agents = start_agents(project, home / ".claude", options.agents, hold)
        try:
            await measure(project, home, options.looks)
        finally:
            os.close(keep)
            for agent in agents:
                agent.kill()
                agent.wait()


async def measure(project: Path, home: Path, looks: int) -> None:
    processes, clock = Processes(backend()), SystemClock()
    scanner = ProcessScanner(processes)
    scanner.sample()
    runner = Runner(project, Config(), HostServices(clock, processes, scanner, Tmux(clock)), {"HOME": str(home)})
    with closing(runner):
        runner.open()
        watchers = runner.watchers
        for _ in range(3):
            for watcher in watchers:
                runner.executor.apply(watcher.name, await watcher.tick(datetime.now(UTC)))
            scanner.sample()
        known = len(runner.parts.agents.processes())
        costs: dict[str, list[float]] = {watcher.name: [] for watcher in watchers}
        costs["process scan"] = []
        for _ in range(looks):
            for watcher in watchers:
                began = time.process_time()
                await watcher.tick(datetime.now(UTC))
                costs[watcher.name].append((time.process_time() - began) * 1000)
            began = time.process_time()
            scanner.sample()
            costs["process scan"].append((time.process_time() - began) * 1000)
        medians = {name: statistics.median(each) for name, each in costs.items()}
        lows = {name: min(each) for name, each in costs.items()}
        print(f"{known} agents, {len(runner.parts.registry.records())} recorded; ms of processor time, median (least):")
        for name, ms in medians.items():
            print(f"  {name:<14} {ms:8.2f} ({lows[name]:.2f})")
        print(f"  {'all':<14} {sum(medians.values()):8.2f} ({sum(lows.values()):.2f})")


if __name__ == "__main__":
    asyncio.run(main())
