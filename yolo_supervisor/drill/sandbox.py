"""The stage of a drill: a scratch project, a client's state folder, a private tmux server, the daemon as a process."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtmux
import tomli_w

from yolo_supervisor.drill.fake_mcp_client import Client
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.own import load_holder
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.process_scan import within
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.subprocesses import undisturbed

TEAM = "drill"
LIMIT_S = 120.0
"""A fault that is not healed by then counts as not healed. Only a hang takes so long, also on a busy machine."""


@dataclass(frozen=True)
class Actor:
    """One scratch agent: its process, the tool that it runs in a session of its own, and its task."""

    name: str
    process: ProcessId
    tool: ProcessId
    task: Path


class Scene:
    """Everything a fault may touch. All of it is private to the drill and goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.claude = folder / "home" / ".claude"
        self.socket = folder / "tmux.sock"
        self.processes = Processes(backend())
        self.actors: list[Actor] = []
        self._daemon: subprocess.Popen[bytes] | None = None
        settings_of_tmux = folder / "tmux.conf"
        settings_of_tmux.write_text("set -g default-shell /bin/sh\n")  # a user's may be nologin
        self._server = libtmux.Server(socket_path=self.socket, config_file=str(settings_of_tmux))
        self._viewer: subprocess.Popen[bytes] | None = None
        self._viewer_terminal = -1
        self._strangers: list[subprocess.Popen[bytes]] = []
        self._skew = folder / "skew"
        self._count = 0
        (self.project / ".yolo-planning").mkdir(parents=True)
        (self.claude / "tasks" / TEAM).mkdir(parents=True)
        self._settings: dict[str, dict[str, Any]] = {
            "processes": {"grace_s": 1.0, "sample_s": 0.2},
            "agents": {"interval_s": 1.0},
            "sessions": {"interval_s": 0.5, "detach_grace_s": 1.0, "on_detach": "terminate"},
            "mcp": {"attempt_s": 0.5, "retry_s": 1.0, "cool_down_s": 1.0, "restarts": 100},
            "tasks": {"max_attempts": 1000, "poison_s": 0.0, "backoff_s": 0.0},  # the same few are killed all the time
        }
        self._write_settings()

    def _write_settings(self) -> None:
        (self.project / ".yolo-planning" / "supervisor.toml").write_bytes(tomli_w.dumps(self._settings).encode())

    def planning(self, folder: str = "") -> Path:
        """A folder of the plugin's in the project."""
        found = self.project / ".yolo-planning" / folder
        found.mkdir(exist_ok=True)
        return found

    # -- the daemon ----------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Start the real daemon, and return when it watches."""
        with (self.folder / "daemon.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-m", "yolo_supervisor.drill.daemon_under_test", str(self._skew), "run", "--project",
                 str(self.project)],
                stdin=subprocess.DEVNULL, stderr=log, env=self._environment(), cwd=self.folder,
            )  # fmt: skip
        pid = self._daemon.pid
        self.wait(
            lambda: any(e["action"] == "started" and e["evidence"].get("pid") == pid for e in self.entries()),
            f"the daemon did not start: see {self.folder / 'daemon.log'}",
        )

    def _environment(self) -> dict[str, str]:
        home, hidden = self.claude.parent, ("TMUX", "TMUX_PANE", "NOTIFY_SOCKET")
        own = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "CLAUDE_CONFIG_DIR": str(self.claude)}
        own |= {f"GIT_{who}_{what}": "drill@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {name: value for name, value in os.environ.items() if name not in hidden} | own

    def set_wall_clock(self, ahead_s: float) -> None:
        """Have the daemon's wall clock jump: from now on it is so far ahead of the machine's, or behind."""
        temporary = self._skew.with_suffix(".tmp")
        temporary.write_text(str(ahead_s))
        temporary.rename(self._skew)

    def command(self, *words: str) -> dict[str, Any]:
        """What the supervisor's command answers. TimeoutError if it says no."""
        child = self.begin(*words, "--json")
        out, errors = child.communicate()
        if child.returncode != 0:
            raise TimeoutError(f"yolo-supervisor {shlex.join(words)}: {(errors or out).decode().strip()}")
        answer: dict[str, Any] = json.loads(out)
        return answer

    def begin(
        self, *words: str, stdin: int = subprocess.DEVNULL, folder: Path | None = None, tools: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Begin a command of the supervisor's. What is in the folder ``tools`` comes before all other programs."""
        environment = self._environment()
        if tools is not None:
            environment["PATH"] = f"{tools}:{environment.get('PATH', os.defpath)}"
        child = subprocess.Popen(
            [sys.executable, "-m", "yolo_supervisor", "--project", str(self.project), *words],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            cwd=folder or self.folder,
        )  # fmt: skip
        self._strangers.append(child)
        return child

    def client(self, *words: str) -> Client:
        """A client that has been introduced to an MCP server through the relay."""
        client = Client(self.begin("mcp", "--", *words, stdin=subprocess.PIPE))
        hello = client.ask("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "drill"})
        self.wait(lambda: client.well(hello), "the relay did not begin")
        client.tell("notifications/initialized")
        tools = client.ask("tools/list")
        self.wait(lambda: client.well(tools), "the relay did not answer")
        return client

    def configure(self, **settings: dict[str, Any]) -> None:
        """Have the daemon go on under other settings."""
        assert self._daemon is not None
        for section, values in settings.items():
            self._settings.setdefault(section, {}).update(values)
        self._write_settings()
        before = self._count_of("reloaded")
        self._daemon.send_signal(signal.SIGHUP)
        self.wait(lambda: self._count_of("reloaded") > before, "the daemon did not take up its new settings")

    def _count_of(self, action: str) -> int:
        return sum(entry["action"] == action for entry in self.entries())

    def kill_daemon(self) -> None:
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    def stop_daemon(self) -> None:
        """As the service manager stops it. TimeoutError if it does not end."""
        assert self._daemon is not None
        self._daemon.terminate()
        self.wait(lambda: not self.daemon_runs(), "the daemon did not end")

    def starve_daemon(self) -> None:
        """Leave the daemon no memory."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGUSR1)

    def daemon_runs(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    def daemon_said(self) -> int:
        """How much is in the daemon's log, in bytes."""
        return (self.folder / "daemon.log").stat().st_size

    def entries(self) -> list[dict[str, Any]]:
        """The journal so far."""
        return history(Paths(self.project).journal)

    # -- the team ------------------------------------------------------------------------------------------------

    def session(self) -> libtmux.Session:
        """A new tmux session, with nothing in it but its first, idle window."""
        self._count += 1
        return self._server.new_session(
            session_name=f"team-{self._count}", start_directory=str(self.project), window_command="sleep 3600"
        )

    def task(self, owner: str | None = None) -> Path:
        """A new task, in progress if it has an owner."""
        self._count += 1
        path = self.claude / "tasks" / TEAM / f"{self._count}.json"
        raw: dict[str, Any] = {"id": path.stem, "subject": f"Task {path.stem}", "description": "", "activeForm": "x",
               "status": "in_progress" if owner else "pending", "blocks": [], "blockedBy": []}  # fmt: skip
        path.write_text(json.dumps(raw | ({"owner": owner} if owner else {}), indent=2))
        return path

    def agent(
        self,
        session: libtmux.Session,
        *,
        ignore_sigterm: bool = False,
        busy: bool = False,
        task: Path | None = None,
        dies: str | None = None,
    ) -> Actor:
        """A new agent in a window of its own, at work on a task of its own or on this one, and known to the daemon.

        One that ``dies`` in some way by its own hand does so when it gets SIGUSR1; its screen stays, as a client's.
        """
        task = task or self.task()
        self._count += 1
        name = f"dev-{self._count}"
        ready = self.folder / f"{name}.ready"
        words = [
            sys.executable,
            "-m",
            "yolo_supervisor.drill.fake_agent",
            "--agent-id",
            f"{name}@{TEAM}",
            "--agent-name",
            name,
            "--team-name",
            TEAM,
            "--task",
            str(task),
            "--ready",
            str(ready),
            *(["--ignore-sigterm"] if ignore_sigterm else []),
            *(["--busy"] if busy else []),
            *(["--dies", dies] if dies else []),
        ]
        environment = {"HOME": str(self.claude.parent), "CLAUDE_CONFIG_DIR": str(self.claude)}
        window = session.new_window(
            window_name=name, attach=False, start_directory=str(self.project), environment=environment,
            window_shell="exec " + shlex.join(words),
        )  # fmt: skip
        if dies:
            window.cmd("set-option", "-w", "remain-on-exit", "on")
        self.wait(ready.exists, f"{name} did not start")
        told = json.loads(ready.read_text())
        process, tool = self.processes.identify(told["pid"]), self.processes.identify(told["tool"])
        assert process is not None
        assert tool is not None
        actor = Actor(name, process, tool, task)
        self.actors.append(actor)
        key = f"{name}@{TEAM}"
        self.wait(
            lambda: any(e["action"].endswith("registered") and e["key"] == key for e in self.entries()),
            f"{name} was not found by the daemon",
        )
        self.wait(lambda: str(tool.pid) in self._trees(), f"the tool of {name} was not found by the daemon")
        return actor

    def _trees(self) -> str:
        try:
            return Paths(self.project).trees.read_text()
        except OSError:
            return ""

    def server_pid(self) -> int:
        answer = self._server.cmd("display-message", "-p", "#{pid}")
        return int(answer.stdout[0])

    def attach(self, session: libtmux.Session) -> None:
        """A person looks at the session, through a terminal of their own."""
        self._viewer_terminal, terminal = pty.openpty()
        self._viewer = subprocess.Popen(
            ["tmux", "-S", str(self.socket), "attach", "-t", f"={session.name}"],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env={**{k: v for k, v in os.environ.items() if k != "TMUX"}, "TERM": "xterm"},
        )  # fmt: skip
        os.close(terminal)
        self.wait(lambda: session.cmd("list-clients", "-F", "#{client_pid}").stdout, "nobody could attach")
        attached_at = self._last_look()
        self.wait(lambda: self._last_look() > attached_at, "the daemon did not look at the sessions")

    def _last_look(self) -> str:
        """When the daemon last looked at the sessions, as it tells itself."""
        holder = load_holder(read_or_none(Paths(self.project).holder) or b"")
        looks = [w["last_tick_at"] for w in holder.watchers if w["name"] == "sessions"] if holder else []
        return looks[0] or "" if looks else ""

    def detach(self) -> None:
        """The person closes the terminal."""
        assert self._viewer is not None
        self._viewer.terminate()
        self._viewer.wait()
        os.close(self._viewer_terminal)
        self._viewer = None

    def stranger(self, *words: str, folder: Path | None = None) -> ProcessId:
        """A process of the same user that nobody may touch: it waits for its input for ever."""
        command = words or (sys.executable, "-c", "import sys; sys.stdin.read()")
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=folder or self.project,
            start_new_session=True,
        )  # a Ctrl-C is for us, who clear the stage
        self._strangers.append(child)
        process = self.processes.identify(child.pid)
        assert process is not None
        return process

    # -- looking -------------------------------------------------------------------------------------------------

    def wait(self, seen: Callable[[], Any], otherwise: str, limit_s: float | None = None) -> None:
        """Until it is so. TimeoutError with the sentence if that takes too long."""
        deadline = time.monotonic() + (limit_s or LIMIT_S)
        while not seen():
            if time.monotonic() > deadline:
                raise TimeoutError(otherwise)
            time.sleep(0.002)

    def alive(self, process: ProcessId) -> bool:
        return self.processes.liveness(process) is Liveness.ALIVE

    def free(self, task: Path) -> bool:
        """Whether anyone may claim the task."""
        found = load_object(task.read_bytes())
        return found is not None and found.get("status") == "pending" and not found.get("owner")

    def owner(self, task: Path) -> object:
        return (load_object(task.read_bytes()) or {}).get("owner")

    def intact(self, actor: Actor) -> bool:
        """Whether an agent that nothing happened to lives, works and owns its task."""
        task = load_object(actor.task.read_bytes())
        owns = task is not None and task.get("status") == "in_progress" and task.get("owner") == actor.name
        return owns and self.alive(actor.process) and self.alive(actor.tool)

    def repository(self) -> Path:
        """The project as a git repository with a commit."""
        if not (self.project / ".git").exists():
            self.git("init", "-q")
            self.git("commit", "-q", "--allow-empty", "-m", "first")
        return self.project

    def upstream(self) -> Path:
        """What the project's repository pushes to, up to date with it; somebody else's clone of it is ``other``."""
        bare = self.folder / "upstream.git"
        self.repository()
        if not bare.exists():
            self.git("init", "-q", "--bare", str(bare))
            self.git("remote", "add", "origin", str(bare))
            self.git("push", "-q", "-u", "origin", "HEAD")
            self.git("clone", "-q", str(bare), str(self.other))
        return bare

    @property
    def other(self) -> Path:
        return self.folder / "other"

    def git(self, *words: str, folder: Path | None = None) -> str:
        """What git answers in the project. TimeoutError if it says no, or is not there."""
        try:
            answer = subprocess.run(
                ["git", *words], cwd=folder or self.project, check=True, capture_output=True,
                stdin=subprocess.DEVNULL, timeout=LIMIT_S, env=self._environment(),
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise TimeoutError(f"git {words[0]}: {getattr(error, 'stderr', None) or error!s}") from error
        return answer.stdout.decode(errors="replace").strip()

    def lost(self) -> int:
        """How many tasks cannot be read any more."""
        return sum(load_object(path.read_bytes()) is None for path in (self.claude / "tasks" / TEAM).glob("*.json"))

    # -- the end -------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """End all that was started, by identity."""
        if self._viewer is not None:
            self.detach()
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        with contextlib.suppress(libtmux.exc.LibTmuxException):
            self._server.kill()
        for stranger in self._strangers:
            stranger.kill()
            stranger.communicate()
        end_all_in(self.folder, self.processes)

    def workplace(self) -> Path:
        """A new folder in which somebody may be at work."""
        self._count += 1
        folder = self.folder / f"work-{self._count}"
        folder.mkdir()
        return folder

    def anybody_in(self, folder: Path) -> list[ProcessId]:
        return processes_in(folder, self.processes)


def processes_in(folder: Path, processes: Processes) -> list[ProcessId]:
    """The processes whose working directory is in the folder: nothing outside the drill knows of it."""
    found = []
    for pid, facts in processes.sweep().facts.items():
        with contextlib.suppress(OSError):
            inside = within(Path(processes.backend.folder(pid)), folder)
            if inside and not facts.zombie and pid != os.getpid() and (process := processes.identify(pid)):
                found.append(process)
    return found


def end_all_in(folder: Path, processes: Processes) -> None:
    """Kill the processes in the folder. Repeat, because one that was just starting may start another."""
    for _ in range(100):
        for process in (here := processes_in(folder, processes)):
            if (handle := processes.backend.hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()
        if not here:
            break
        time.sleep(0.01)


@contextlib.contextmanager
def scene() -> Iterator[Scene]:
    """A stage in a new temporary folder, cleared away at the end, by the guard if this process is killed."""
    stage = Scene(Path(os.path.realpath(tempfile.mkdtemp(prefix="yolo-drill-"))))
    guard = subprocess.Popen(
        [sys.executable, "-m", "yolo_supervisor.drill.guard", str(stage.folder)], stdin=subprocess.PIPE, cwd="/",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield stage
    finally:
        with undisturbed():
            stage.clear()
            shutil.rmtree(stage.folder, ignore_errors=True)
            guard.communicate(b"cleared")
