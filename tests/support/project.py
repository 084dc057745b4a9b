"""Files as the client, the plugin and the daemon write them, and stand-ins for the clock and the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Agent, ProcessId, from_iso
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.state_folder import enrol
from yolo_supervisor.store.store import Store

SAMPLES = Path(__file__).parents[1] / "samples"


EPOCH = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)


class FakeClock:
    """Both clocks: ``wait`` moves the two, ``jump`` only the wall clock."""

    def __init__(self) -> None:
        self.wall = EPOCH
        self.s = 5000.0

    def now(self) -> datetime:
        return self.wall

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.s

    def wait(self, s: float) -> None:
        self.s += s
        self.wall += timedelta(seconds=s)

    def jump(self, by: timedelta) -> None:
        self.wall += by


class QuickDisk(Disk):
    """The real disk without flushes."""

    def sync(self, fd: int) -> None:
        pass


def write_task(
    claude: Path, team: str, number: int | str, owner: str | None = None, status: str = "pending", **more: Any
) -> Path:
    """A task file just as the client writes it."""
    folder = claude / "tasks" / team
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number}.json"
    task = {
        "id": str(number), "subject": "Fix bug", "description": "Fix the bug", "activeForm": "Fixing bug",
        "status": status, "blocks": [], "blockedBy": [], **({"owner": owner} if owner else {}), **more,
    }  # fmt: skip
    path.write_text(json.dumps(task, indent=2))
    return path


def read_task(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def given_back(task: Path) -> bool:
    found = read_task(task)
    return found["status"] == "pending" and "owner" not in found


def health_of(role: str, pid: int, idle_count: int = 0) -> dict[str, Any]:
    """A health file as the plugin writes it."""
    return {
        "idle_count": idle_count, "last_event": "start", "last_event_at": "2026-11-22T20:38:34Z", "pid": pid,
        "role": role, "started_at": "2026-11-22T20:38:34Z",
    }  # fmt: skip


def new_store(project: Path) -> None:
    """The supervisor's folder after a daemon's run."""
    store = Store(project)
    store.open()
    store.close()


def write_settings(project: Path, text: str, environment: Mapping[str, str] | None = None) -> Path:
    """Write the project's own configuration, which its user trusts."""
    path = project / ".yolo-planning" / "supervisor.toml"
    path.write_text(text)
    trust(project, environment)
    return path


def trust(project: Path, environment: Mapping[str, str] | None = None) -> None:
    """Trust the project with its own configuration as it is now."""
    paths = Paths(project, environment)
    enrol(Disk(), paths, 60.0)
    content = read_or_none(paths.planning / "supervisor.toml") or b""
    paths.trusted.write_bytes(content)


def agent_of(name: str, team: str, process: ProcessId, **more: Any) -> Agent:
    return Agent(
        id=f"{name}@{team}", name=name, role="dev", team=team, source="registered", since=from_iso("2026-01-01"),
        process=process, pid=process.pid, **more,
    )  # fmt: skip


def write_record(project: Path, agent: Agent) -> None:
    """An agent as an earlier daemon has written it down."""
    new_store(project)
    (Paths(project).agents / own_files.agent_file(agent)).write_bytes(own_files.dump_agent(agent))


def write_team(claude: Path, name: str, project: Path) -> None:
    """Write the team file that ties a team, and its list, to the project."""
    member = {"agentId": f"lead@{name}", "name": "lead", "cwd": str(project), "tmuxPaneId": "%1"}
    folder = claude / "teams" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": name, "members": [member]}))
