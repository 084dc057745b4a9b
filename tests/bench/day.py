"""A daemon for days: agents work and die all the time under the real daemon, with short intervals.

python tests/bench/day.py [--seconds 60] [--agents 20]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.store.history import history

QUICK = """
[processes]
sample_s = 0.1
[agents]
interval_s = 1.0
[sessions]
interval_s = 0.5
[tasks]
interval_s = 1.0
[leases]
interval_s = 1.0
[state]
interval_s = 1.0
"""


@dataclass(frozen=True)
class Use:
    """The resources that the daemon uses at a moment."""

    rss_mib: float
    descriptors: int
    threads: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Use:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return cls(
            int(status["VmRSS"].split()[0]) / 1024,
            len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]),
            ticks / os.sysconf("SC_CLK_TCK"),
        )

    def __str__(self) -> str:
        return f"RSS {self.rss_mib:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads"


class Day:
    """A project, its agents and their tasks."""

    def __init__(self, folder: Path, agents: int) -> None:
        self.project, self.claude = folder / "project", folder / "home" / ".claude"
        (self.project / ".yolo-planning").mkdir(parents=True)
        (self.project / ".yolo-planning" / "supervisor.toml").write_text(QUICK)
        (self.claude / "tasks" / "red").mkdir(parents=True)
        self.never = folder / "never"
        os.mkfifo(self.never)
        self.names = [f"dev-{number}" for number in range(agents)]
        self.at_work: dict[str, subprocess.Popen[bytes]] = {}
        self.deaths = 0
        self._tasks = 0

    def begin(self, name: str) -> None:
        """Start an agent with a task: the cheapest process that looks like one."""
        self._tasks += 1
        task = {"id": str(self._tasks), "subject": "x", "status": "in_progress", "owner": name, "blocks": []}
        (self.claude / "tasks" / "red" / f"{self._tasks}.json").write_text(json.dumps(task))
        flags = ("--agent-id", f"{name}@red", "--agent-name", name, "--team-name", "red")
        self.at_work[name] = subprocess.Popen(["sh", "-c", f"read x < {self.never}", "sh", *flags], cwd=self.project)

    def end(self, name: str) -> None:
        child = self.at_work.pop(name)
        child.kill()
        child.wait()
        self.deaths += 1

    def count(self, action: str) -> int:
        journal = self.project / ".yolo-planning" / ".supervisor" / "journal.jsonl"
        return sum(entry["action"] == action for entry in history(journal))

    def wait_known(self) -> None:
        """Wait until just the living agents are known: the dead ones are healed."""
        records = self.project / ".yolo-planning" / ".supervisor" / "agents"
        while not records.is_dir() or sum(not name.startswith(".") for name in os.listdir(records)) != len(
            self.at_work
        ):
            time.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--agents", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        day = Day(folder, options.agents)
        environment = {**os.environ, "HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "home" / ".config")}
        environment.pop("CLAUDE_CONFIG_DIR", None)
        log = folder / "log"
        words = ("run", "--project", str(day.project), "--log-file", str(log))
        daemon = subprocess.Popen([sys.executable, "-m", "yolo_supervisor", *words], env=environment)
        try:
            rounds(day, daemon, options.seconds)
        finally:
            for agent in list(day.at_work):
                day.end(agent)
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()
        print(f"log: {len(log.read_bytes().splitlines())} lines, {log.stat().st_size} bytes")


def rounds(day: Day, daemon: subprocess.Popen[bytes], seconds: float) -> None:
    """Let agents come and go; print the daemon's resources without agents, at the beginning and at the end."""
    one_round(day)  # for everything that is read and imported once
    end_all(day)
    first, deaths = Use.of(daemon.pid), day.deaths
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        one_round(day)
    end_all(day)
    last = Use.of(daemon.pid)
    journal = day.project / ".yolo-planning" / ".supervisor" / "journal.jsonl"
    print(f"{day.deaths - deaths} deaths of {len(day.names)} agents at a time, in {seconds:g} s; of all {day.deaths}:")
    print(f"healed {day.count('forgotten')}, tasks given back {day.count('requeued')}")
    print(f"at first: {first}")
    print(f"at last:  {last}; CPU {last.cpu_s - first.cpu_s:.1f} s; journal {journal.stat().st_size} bytes")


def one_round(day: Day) -> None:
    """Let all agents work, then kill half of them."""
    for name in day.names:
        if name not in day.at_work:
            day.begin(name)
    day.wait_known()
    for name in random.sample(day.names, len(day.names) // 2):
        day.end(name)
    day.wait_known()


def end_all(day: Day) -> None:
    """End all agents, and remove the requeued tasks: no list grows for ever."""
    for name in list(day.at_work):
        day.end(name)
    day.wait_known()
    for path in (day.claude / "tasks" / "red").iterdir():
        path.unlink()


if __name__ == "__main__":
    main()
