"""The time from SIGKILL of an agent to its task healed on disk, with many agents watched by the real daemon.

python tests/bench/death.py [--agents 1000] [--kills 200] [--lists 100]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def task_file(claude: Path, team: str, number: int, owner: str) -> Path:
    path = claude / "tasks" / team / f"{number}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    task = {"id": str(number), "subject": "x", "description": "x", "activeForm": "x", "status": "in_progress",
            "blocks": [], "blockedBy": [], "owner": owner}  # fmt: skip
    path.write_text(json.dumps(task, indent=2))
    return path


def healed(path: Path) -> bool:
    return b'"pending"' in path.read_bytes()


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--lists", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        project, home = folder / "project", folder / "home"
        (project / ".yolo-planning").mkdir(parents=True)
        claude = home / ".claude"
        environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
        environment.pop("CLAUDE_CONFIG_DIR", None)
        hold, keep = os.pipe()
        agents = []
        for n in range(options.agents):
            team, owner = f"team-{n % options.lists}", f"dev-{n}"
            path = task_file(claude, team, n, owner)
            words = ["sh", "-c", "read x", "sh", "--agent-id", f"{owner}@{team}", "--agent-name", owner,
                     "--team-name", team]  # fmt: skip
            agents.append((subprocess.Popen(words, cwd=project, stdin=hold, env=environment), path))
        daemon = subprocess.Popen(
            [sys.executable, "-m", "yolo_supervisor", "run", "--project", str(project)],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        records = project / ".yolo-planning" / ".supervisor" / "agents"
        began = time.monotonic()
        while not records.is_dir() or len(list(records.glob("*.json"))) < options.agents:
            time.sleep(0.1)
        print(f"{options.agents} agents in {options.lists} lists found after {time.monotonic() - began:.1f} s")
        time.sleep(2)
        times = []
        for child, path in agents[: options.kills]:
            began = time.perf_counter()
            child.send_signal(signal.SIGKILL)
            while not healed(path):
                if time.perf_counter() - began > 30:
                    raise SystemExit("not healed within 30 s")
            times.append((time.perf_counter() - began) * 1000)
            child.wait()
            time.sleep(0.05)
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        rss = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
        print(
            f"SIGKILL to healed task: p50 {quantile(times, 0.5):.1f} ms, p99 {quantile(times, 0.99):.1f} ms, "
            f"max {max(times):.1f} ms over {len(times)} kills; daemon RSS {int(rss) / 1024:.0f} MiB"
        )
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        os.close(keep)
        for child, _ in agents:
            if child.poll() is None:
                child.kill()
            child.wait()


if __name__ == "__main__":
    main()
