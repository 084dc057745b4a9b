"""Teammates in panes of a private tmux server: a stand-in for the client, which a supervisor can start again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support import stub_client
from support.daemon import QUICK
from support.team import Team
from support.tmux import PrivateTmux
from support.wait import wait_until

RESTART = (
    QUICK
    + """
[restart]
policy = "on-crash"
host_pause_s = 0
host_starts = 1000
backoff_s = 0.1
"""
)


class Teammates:
    """Teammates of one team in panes of a private tmux server.

    One that runs anywhere on the machine is not started again: either its own name or that of its team must be one that
    no other test uses.
    """

    def __init__(self, team: Team, tmux: PrivateTmux, name: str = "red") -> None:
        self.team, self.tmux, self.name = team, tmux, name
        folder = team.claude / "teams" / name
        folder.mkdir(parents=True)
        self.config = folder / "config.json"
        self._members: list[dict[str, Any]] = []
        tmux.session("red")
        tmux("set-option", "-g", "remain-on-exit", "failed")

    def start(self, name: str) -> int:
        """A teammate at work, known to the daemon; its pid."""
        pid = self.start_unrecorded(name)
        self.team.wait_known(name, self.name)
        return pid

    def start_unrecorded(self, name: str) -> int:
        """A teammate that is at work; its pid."""
        return self._run(name)

    def resume(self, name: str, session: str) -> int:
        """A person resumes the teammate's session by hand, in another pane; the pid."""
        return self._run(name, f"--resume {session}")

    def pane(self, name: str) -> str:
        """The pane in which the teammate was started."""
        return next(str(member["tmuxPaneId"]) for member in self._members if member["name"] == name)

    def _run(self, name: str, more: str = "") -> int:
        flags = f"--agent-id {name}@{self.name} --agent-name {name} --team-name {self.name} --model opus {more}"
        line = f"cd {self.team.project} && exec {sys.executable} {stub_client.__file__} {flags}"
        place = ("new-window" if more else "split-window", "-d")  # a window has room for a few panes
        pane, pid = self.tmux(*place, "-P", "-F", "#{pane_id} #{pane_pid}", "-t", "red:", line).split()
        if not more:
            member = {"agentId": f"{name}@{self.name}", "name": name, "tmuxPaneId": pane, "backendType": "tmux"}
            self._members.append({**member, "cwd": str(self.team.project)})
            self.config.write_text(json.dumps({"name": self.name, "leadAgentId": "l", "members": self._members}))
        self.team.mind(int(pid))
        wait_until(lambda: self.transcript(name), f"the transcript of {name}")
        return int(pid)

    def transcript(self, name: str) -> Path | None:
        paths = self.team.claude.glob("projects/*/*.jsonl")
        return next((path for path in paths if f'"agentName": "{name}"' in path.read_text()), None)

    def did(self, action: str, name: str = "dev-1") -> list[dict[str, Any]]:
        """The journal's entries about the teammate with this action."""
        return self.team.running.did(action, f"{name}@{self.name}")

    def task(self, name: str = "dev-1") -> Path:
        """A task of the team that the teammate has in progress."""
        return self.team.task(name, self.name)

    def wait_healed(self, name: str = "dev-1") -> None:
        self.team.wait_healed(name, self.name)

    def back(self, name: str, times: int = 1) -> dict[str, Any]:
        """The entry of its newest start, once it is up so often."""

        def up() -> dict[str, Any] | None:
            starts = [e for e in self.did("restarted", name) if e["evidence"].get("result") == "up"]
            return starts[-1] if len(starts) >= times else None

        entry: dict[str, Any] = self.team.running.wait(up, f"{name} to come back")
        self.team.mind(entry["evidence"]["pid"])
        return entry
