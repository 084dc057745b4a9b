"""Real Claude Code clients as a team, under the real daemon."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from support.claude_code import NEWEST, Block, Model, RealClient
from support.cli import Cli
from support.daemon import RunningDaemon
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import from_iso

# -- what the models say --------------------------------------------------------------------------------------------


def use(tool: str, **said: Any) -> list[Block]:
    return [{"type": "tool_use", "name": tool, "input": said}]


def spawn(name: str, prompt: str) -> list[Block]:
    return use(
        "Agent", name=name, prompt=prompt, description="dev mate", subagent_type="general-purpose", team_name="alpha",
        run_in_background=True,
    )  # fmt: skip


def wait_for(gate: Path) -> list[Block]:
    waits = f"timeout 90 sh -c 'until [ -e {gate} ]; do sleep 0.1; done'"
    return use("Bash", command=waits, timeout=100_000)


CREATE = use("TaskCreate", subject="Fix bug", description="Fix the bug", activeForm="Fixing bug")
WORK = use("Bash", command="python3 -c 'import time; time.sleep(100)'", timeout=110_000)  # the client refuses ``sleep``

# -- the team -------------------------------------------------------------------------------------------------------


class RealTeam(RealClient):
    """A lead, and its teammates in panes beside it (``tmux``) or inside its process."""

    def __init__(self, scratch: Path, version: str = NEWEST) -> None:
        super().__init__(scratch, version)
        self.gate = scratch / "gate"
        """The condition of ``wait_for``."""

    def begin(self, *models: Model, mode: str = "tmux") -> None:
        """Start the lead, whose model is the first, and make the project one of the plugin's."""
        self.start(*models, prompt=models[0][0], mode=mode)
        (self.project / ".yolo-planning").mkdir(exist_ok=True)

    def end(self) -> None:
        super().end()
        self.gate.touch()

    def panes(self) -> list[int]:
        """The process in each pane, in the order of their making: the lead's, and those of its teammates."""
        panes = self.tmux("list-panes", "-a", "-F", "#{pane_id} #{pane_pid}")
        return [int(pid) for _, pid in sorted((int(pane[1:]), pid) for pane, pid in map(str.split, panes.splitlines()))]

    def task(self) -> Path:
        """Task 1, once there is one."""
        found: Path = wait_until(lambda: next(iter(self.claude.glob("tasks/*/1.json")), None), "the task", LIMIT_S)
        return found

    def session(self) -> str:
        """The id of the lead's session, once its teammate is there."""

        def teammate() -> str | None:
            for path in self.claude.glob("teams/*/config.json"):
                config = json.loads(path.read_text() or "{}")
                if len(config.get("members", ())) > 1:
                    return str(config["leadSessionId"])
            return None

        found: str = wait_until(teammate, "the teammate", LIMIT_S)
        return found

    def told(self) -> list[Any]:
        """The results of tools that the client has given to the models, by its transcripts."""
        whole = [path.read_text().rpartition("\n")[0] for path in self.claude.glob("projects/**/*.jsonl")]
        said = [json.loads(line).get("message", {}).get("content") for text in whole for line in text.splitlines()]
        blocks = [block for content in said if isinstance(content, list) for block in content]
        return [block["content"] for block in blocks if block.get("type") == "tool_result"]

    def wait_told(self, text: str) -> None:
        wait_until(lambda: text in self.told(), f"a model to get {text!r}", LIMIT_S)


# -- processes and deeds --------------------------------------------------------------------------------------------


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def lives(pid: int) -> bool:
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(stat(int(folder.name))[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_at_work(task: Path) -> None:
    wait_until(lambda: '"in_progress"' in task.read_text(), "the teammate to claim it", LIMIT_S)


def wait_for_deed(running: RunningDaemon, action: str, name: str) -> None:
    running.wait(lambda: any(e["key"].startswith(f"{name}@") for e in running.did(action)), f"{name} to be {action}")


def kill_known(running: RunningDaemon, pid: int, name: str) -> None:
    """Kill an agent that the daemon knows, and wait until its held resources are recovered."""
    wait_for_deed(running, "registered", name)
    os.kill(pid, signal.SIGKILL)
    wait_for_deed(running, "forgotten", name)


def activities(team: RealTeam) -> dict[str, str]:
    """The activity of each agent in ``status``, by name."""
    status = Cli(team.project)("status", "--json", env={**os.environ, "HOME": str(team.claude.parent)})
    return {agent["name"]: agent["activity"] for agent in json.loads(status.stdout)["projects"][0]["agents"]}


def wait_looks(running: RunningDaemon, for_s: float) -> None:
    """Wait until the daemon has looked at tasks for so long."""
    began = last_look(running)
    limit = timedelta(seconds=for_s)
    wait_until(lambda: last_look(running) - began > limit, f"looks at tasks for {for_s} s", LIMIT_S)


def last_look(running: RunningDaemon) -> datetime:
    """The time of the daemon's last look at tasks, by its report."""

    def looked() -> datetime | None:
        watchers = json.loads((running.folder / "daemon.json").read_text())["watchers"]
        at = next(watcher["last_tick_at"] for watcher in watchers if watcher["name"] == "tasks")
        return from_iso(at) if at else None

    found: datetime = wait_until(looked, "a look at tasks", LIMIT_S)
    return found


def wait_doing(team: RealTeam, **expected: str) -> None:
    wanted = {name.replace("_", "-"): activity for name, activity in expected.items()}
    wait_until(lambda: activities(team) == wanted, f"the agents to be {wanted}", LIMIT_S)
