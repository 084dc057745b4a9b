"""How fast a killed teammate of the real Claude Code client is back: its client, and its model's first answer.

python tests/bench/returns.py [--kills 10]

Needs npm, node, tmux and git. The limits on starts are raised; the teammate works on one task all the time, and the
attempt must go on.
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
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.project import read_task
from support.real_team import CREATE, RealTeam, spawn, use, wait_at_work
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import from_iso
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths

RULES = """
[sessions]
on_detach = "keep"
[restart]
policy = "on-crash"
max_starts = 1000
host_pause_s = 0
host_starts = 1000
backoff_s = 0
storm_deaths = 1000
"""
LEAD, DEV = "BRAVO-LEAD start the team", "CHARLIE-DEV work on task 1"
CLAIM = use("TaskUpdate", taskId="1", status="in_progress", owner="dev-1")
WORK = use("Bash", command="python3 -c 'import time; time.sleep(100)'", timeout=110_000)


class Bench:
    def __init__(self, scratch: Path, kills: int) -> None:
        self.team = RealTeam(scratch)
        self._kills = kills
        self._config = scratch / "supervisor.toml"
        self._config.write_text(RULES)
        self._daemon: subprocess.Popen[bytes] | None = None

    def run(self) -> tuple[list[float], list[float]]:
        """The seconds from each kill to the client in its pane, and to the model's first answer."""
        self.team.begin((LEAD, [CREATE, spawn("dev-1", DEV)]), (DEV, [CLAIM, *[WORK] * (2 * self._kills + 5)]))
        task = self.team.task()
        wait_at_work(task)
        command = [sys.executable, "-m", "yolo_supervisor", "run", "--project", str(self.team.project)]
        log = (self.team.scratch / "daemon.log").open("wb")
        self._daemon = subprocess.Popen([*command, "--config", str(self._config)], stdout=log, stderr=log)
        wait_until(lambda: self._did("registered", "dev-1"), "the teammate to be found", LIMIT_S)
        up, answered = [], []
        for number in range(1, self._kills + 1):
            pid = self.team.panes()[1]
            killed_s = time.time()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(self._did("resumed", "dev-1")) >= number, f"return {number}", LIMIT_S)  # noqa: B023
            up.append(self._did("restarted", "dev-1")[-1] - killed_s)
            answered.append(self._answered_after(killed_s) - killed_s)
        assert not self._did("requeued", ""), "its task was given back"
        assert read_task(task)["owner"] == "dev-1"
        return up, answered

    def _did(self, action: str, name: str) -> list[float]:
        entries = history(Paths(self.team.project).folder / "journal.jsonl")
        return [
            from_iso(entry["at"]).timestamp()
            for entry in entries
            if entry["action"] == action
            and entry["key"].startswith(name)
            and (action != "restarted" or entry["evidence"].get("result") == "up")
        ]

    def _answered_after(self, moment_s: float) -> float:
        lines = [
            json.loads(line)
            for path in self.team.claude.glob("projects/*/*.jsonl")
            if '"agentName":"dev-1"' in (text := path.read_text())
            for line in text.splitlines()
        ]
        answers = (datetime.fromisoformat(line["timestamp"]) for line in lines if line.get("type") == "assistant")
        return min(at.timestamp() for at in answers if at.timestamp() > moment_s)

    def end(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(30)
        self.team.end()


def row(what: str, seconds: Sequence[float]) -> str:
    return f"{what:<32} p50 {median(seconds):6.2f} s   max {max(seconds):6.2f} s   of {len(seconds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "real"
        scratch.mkdir()
        os.environ |= {
            "HOME": f"{scratch}/home",
            "XDG_STATE_HOME": f"{folder}/state",
            "XDG_CONFIG_HOME": f"{folder}/config",
        }
        bench = Bench(scratch, options.kills)
        try:
            up, answered = bench.run()
        finally:
            bench.end()
    print(row("its client is up in its pane", up))
    print(row("its model has answered", answered))


if __name__ == "__main__":
    main()
