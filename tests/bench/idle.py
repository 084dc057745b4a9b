"""The cost of an idle daemon: CPU of one core and memory, with many projects, agents and a watched tmux server.

python tests/bench/idle.py [--projects 10] [--agents 100] [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """CPU seconds of the process, to the nanosecond, and of its children that ended (its tmux clients), in ticks.

    The usual counters charge whole ticks of 10 ms, which is too much for what wakes with the tick and sleeps at once.
    """
    own = sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own / 1e9 + sum(int(field) for field in fields[13:15]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--projects", type=int, default=10)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        home, socket = folder / "home", folder / "tmux.sock"
        projects = [folder / f"project-{n}" for n in range(options.projects)]
        for project in projects:
            (project / ".yolo-planning").mkdir(parents=True)
        (home / ".claude").mkdir(parents=True)
        environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
        environment.pop("CLAUDE_CONFIG_DIR", None)
        tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        for number, project in enumerate(projects):
            for n in range(options.agents // options.projects):
                words = ["sh", "-c", "read x", "sh", "--agent-id", f"dev-{n}@team-{number}", "--agent-name",
                         f"dev-{n}", "--team-name", f"team-{number}"]  # fmt: skip
                verb = (
                    ["new-window", "-d", "-t", f"team-{number}:"]
                    if n
                    else ["new-session", "-d", "-s", f"team-{number}"]
                )
                subprocess.run(
                    [*tmux, *verb, "-c", str(project), "exec " + shlex.join(words)], env=environment, check=True
                )
        named = [word for project in projects for word in ("--project", str(project))]
        daemon = subprocess.Popen(
            [sys.executable, "-m", "yolo_supervisor", "run", *named], env=environment, stderr=subprocess.PIPE
        )
        wanted = options.agents // options.projects * options.projects
        while sum(len(list(p.glob(".yolo-planning/.supervisor/agents/*.json"))) for p in projects) < wanted:
            time.sleep(0.1)
        time.sleep(10)
        before = cpu_s(daemon.pid)
        time.sleep(options.seconds)
        used = cpu_s(daemon.pid) - before
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if ":" in line
        )
        rss, threads = int(status["VmRSS"].split()[0]) / 1024, status["Threads"].strip()
        print(f"{wanted} agents in {options.projects} projects, idle for {options.seconds:g} s:")
        print(f"{used / options.seconds:.3%} of one core, RSS {rss:.1f} MiB, {threads} threads")
        daemon.send_signal(signal.SIGTERM)
        _, log = daemon.communicate()
        print(f"log: {len(log.splitlines())} lines, {len(log)} bytes")
        subprocess.run([*tmux, "kill-server"], check=True)


if __name__ == "__main__":
    main()
