"""The worlds that tests live in: a scratch project, a scratch client's home, real children, a private tmux server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
LIMIT_S = 30.0
"""No wait in a test is longer; none is expected to come near it."""


def wait_until(seen: Callable[[], Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """What ``seen`` answers once it is truthy; the test fails with ``what`` if that never comes."""
    deadline = time.monotonic() + limit_s
    while not (found := seen()):
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(0.005)
    return found


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An empty project that the plugin is used in."""
    folder = tmp_path / "project"
    (folder / ".yolo-planning").mkdir(parents=True)
    return folder.resolve()


@pytest.fixture
def claude_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client's state folder of our own: the real one is never looked at."""
    home = tmp_path / "home"
    (home / ".claude").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    for name in ("TMUX", "TMUX_PANE"):
        monkeypatch.delenv(name, raising=False)
    return home / ".claude"


class Children:
    """Real processes that a test starts, and ends again whatever happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            argv, cwd=cwd or self._folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **options
        )
        self._started.append(child)
        return child

    def python(self, program: str, *arguments: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """A Python child; returns when it has printed its first line, ``ready`` say."""
        child = self.start(sys.executable, "-c", program, *arguments, cwd=cwd, **options)
        assert child.stdout is not None
        assert child.stdout.readline(), "the child ended before it was ready"
        return child

    def agent(self, name: str, team: str, cwd: Path, program: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """A process that looks like a teammate: it runs ``program``, says ready and sleeps."""
        body = f"{program}\nprint('ready', flush=True)\nimport time\ntime.sleep(600)\n"
        flags = ("--agent-id", f"{name}@{team}", "--agent-name", name, "--team-name", team)
        return self.python(body, *flags, cwd=cwd, **options)

    def end(self) -> None:
        for child in self._started:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    started = Children(tmp_path)
    yield started
    started.end()


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


class RunningDaemon:
    """The real daemon as a process of its own."""

    def __init__(self, project: Path, child: subprocess.Popen[bytes], log: Path) -> None:
        self.project = project
        self.child = child
        self.log = log

    @property
    def folder(self) -> Path:
        return self.project / ".yolo-planning" / ".supervisor"

    def history(self) -> list[dict[str, Any]]:
        """What the journal tells, oldest first."""
        from yolo_supervisor.journal import history

        return [entry for _, entry in history(self.folder / "journal.jsonl")]

    def did(self, action: str, key: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.history() if e["action"] == action and key in (None, e["key"])]

    def sees(self, pid: int) -> bool:
        """Whether the process is known as part of an agent's tree."""
        trees = self.folder / "trees.json"
        return trees.exists() and str(pid) in trees.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(LIMIT_S)


@pytest.fixture
def daemon(project: Path, claude_home: Path, tmp_path: Path) -> Iterator[Callable[..., RunningDaemon]]:
    """Starts a daemon on the project (``config`` is the text of its file) and waits until it watches."""
    running: list[RunningDaemon] = []

    def start(*arguments: str, config: str = "", over: Path | None = None) -> RunningDaemon:
        at = over or project
        if config:
            (at / ".yolo-planning" / "supervisor.toml").write_text(config)
        log = tmp_path / f"daemon-{len(running)}.log"
        with log.open("wb") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "yolo_supervisor", "run", "--project", str(at), *arguments],
                stdin=subprocess.DEVNULL, stderr=stderr, env=dict(os.environ), cwd=tmp_path,
            )  # fmt: skip
        started = RunningDaemon(at, child, log)
        running.append(started)
        wait_until(
            lambda: (
                child.poll() is not None or any(e["evidence"].get("pid") == child.pid for e in started.did("started"))
            ),
            "the daemon to start",
        )
        return started

    yield start
    for each in running:
        if each.child.poll() is None:
            each.child.kill()
        each.child.wait()
