"""The teams of a soak: agents, their tasks, the plugin's files, and processes that belong to none of them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from support.guard import marked
from yolo_supervisor.fs.read import digest, read_or_none
from yolo_supervisor.store.paths import Paths

AGENT_MARK: Final = "SOAK_AGENT"
"""The environment variable that an agent and all that it starts bear; the supervisor does not know it."""


@dataclass(eq=False)
class Task:
    """One task, and its workers' knowledge of it, with which the file has to agree."""

    path: Path
    ident: str
    original: dict[str, Any]
    owner: Worker | None = None
    token: int | None = None
    """The token of the claim, if a command of the supervisor made it."""
    reported: bool = False
    """Whether its owner got the answer that it is done."""
    uncertain: bool = False
    """Whether a command about it was cut off, so that its owner does not know how it ended."""
    reported_s: float = 0.0

    def read(self) -> dict[str, Any] | None:
        """The file's document, None if it is none."""
        try:
            raw = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return None
        return raw if isinstance(raw, dict) else None

    def state(self) -> tuple[object, object] | None:
        """Status and owner by the file."""
        raw = self.read()
        return None if raw is None else (raw.get("status"), raw.get("owner"))

    @property
    def is_free(self) -> bool:
        return self.state() == ("pending", None)


@dataclass(eq=False)
class Command:
    """A command of the supervisor that runs."""

    words: tuple[str, ...]
    child: Any
    output: Path
    code: int | None = None

    def over(self) -> bool:
        if self.code is None:
            self.code = self.child.poll()
        return self.code is not None

    def document(self) -> dict[str, Any]:
        """The document that it printed with ``--json``."""
        for line in self.output.read_text().splitlines():
            with contextlib.suppress(ValueError):
                raw = json.loads(line)
                if isinstance(raw, dict):
                    return raw
        return {}


@dataclass(eq=False)
class Worker:
    """An agent's process, and what it is doing."""

    name: str
    team: Team
    tool_kind: str
    child: subprocess.Popen[bytes]
    ready: Path
    started_s: float
    next_s: float
    task: Task | None = None
    command: Command | None = None
    asked: str = ""
    """The subcommand: claim or done."""
    stopped: bool = False
    killed: bool = False
    """Whether the test has killed it."""
    reserved: bool = False
    """Whether a fault uses it: it begins nothing by itself."""

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def alive(self) -> bool:
        return not self.killed and self.child.poll() is None


@dataclass(eq=False)
class StateFile:
    """A critical file of the plugin, and its writer's last content."""

    path: Path
    make: Callable[[int], bytes]
    number: int = 0
    written: bytes = b""
    torn: bytes | None = None
    """The content that a fault has written, until the file is sound again."""
    replaced: bool = False
    """Whether its writer has replaced the torn content."""

    def write(self) -> bytes:
        """Replace it as careful programs do: a temporary file, and a rename."""
        self.number += 1
        data = self.make(self.number)
        temporary = self.path.with_name(f"{self.path.name}.tmp-soak")
        try:
            temporary.write_bytes(data)
            temporary.rename(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self.written = data
        return data


@dataclass(eq=False)
class Team:
    name: str
    project: Path
    paths: Paths
    workers: list[Worker] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    files: list[StateFile] = field(default_factory=list)
    next_agent_s: float = 0.0

    def knows(self, worker: Worker) -> bool:
        """Whether the supervisor has written the agent and its tool down, so that it can be expected to act."""
        text = (read_or_none(self.paths.trees) or b"").decode()
        pids = [tool := int(worker.ready.read_text())]
        if worker.tool_kind == "left":
            pids = [int(pid) for pid in (read_or_none(Path(f"{worker.ready}.left")) or b"").split()]
        elif worker.tool_kind == "tree":
            pids = marked(AGENT_MARK, worker.name)
        if len(pids) < 2 and worker.tool_kind in ("left", "tree"):
            return False  # it is just starting them
        if not all(re.search(rf"\b{pid}\b", text) for pid in (worker.pid, *pids)):
            return False
        if worker.tool_kind != "left":
            return True
        Path(f"{worker.ready}.seen").touch()
        return tool not in marked(AGENT_MARK, worker.name)

    def has_copy(self, data: bytes) -> bool:
        """Whether the supervisor has this content as a good version."""
        return (self.paths.backups / str(digest(data))).exists()

    def is_somewhere(self, data: bytes) -> bool:
        """Whether any copy has this content."""
        folders = self.paths.quarantine, self.paths.backups
        return any(read_or_none(path) == data for folder in folders if folder.is_dir() for path in folder.iterdir())


@dataclass(eq=False)
class Bystander:
    what: str
    pid: int
    started: int
    felt: Path
