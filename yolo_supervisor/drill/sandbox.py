"""The sandbox of a drill: a scratch project, Claude Code's state folder, a private tmux server, the daemon."""

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libtmux
import tomli_w

from yolo_supervisor.drill.fake_agent import claims_file, write_turn
from yolo_supervisor.drill.fake_mcp_client import McpClient
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.launch import load_launch
from yolo_supervisor.formats.own import load_agent, load_holder, load_seen_locks
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.project_folders import within
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.state_folder import enrol
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.subprocesses import undisturbed

TEAM = "drill"
LIMIT_S = 120.0
"""The time limit of a recovery. Only a hang takes so long, also on a busy machine."""


@dataclass(frozen=True)
class FakeAgent:
    """A fake agent: its process, the tool that it runs in a separate session, and its task."""

    name: str
    process: ProcessId
    tool: ProcessId
    task: Path


class Sandbox:
    """Everything that a fault may touch. It is private to the drill, and removed at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.claude = folder / "home" / ".claude"
        self.paths = Paths(self.project, {"HOME": str(self.claude.parent)})
        self.socket = folder / "tmux.sock"
        self.processes = Processes(backend())
        self.agents: list[FakeAgent] = []
        self._daemon: subprocess.Popen[bytes] | None = None
        tmux_config = folder / "tmux.conf"
        tmux_config.write_text("set -g default-shell /bin/sh\n")  # the user's shell may be nologin
        self._server = libtmux.Server(socket_path=self.socket, config_file=str(tmux_config))
        self._viewer: subprocess.Popen[bytes] | None = None
        self._viewer_terminal = -1
        self._other_processes: list[subprocess.Popen[bytes]] = []
        self._skew = folder / "skew"
        self._count = 0
        (self.project / ".yolo-planning").mkdir(parents=True)
        (self.claude / "tasks" / TEAM).mkdir(parents=True)
        self._settings: dict[str, dict[str, Any]] = {
            "processes": {"grace_s": 1.0, "sample_s": 0.2},
            "agents": {"interval_s": 1.0},
            "sessions": {"interval_s": 0.5, "detach_grace_s": 1.0, "on_detach": "terminate"},
            "mcp": {"attempt_s": 0.5, "retry_s": 1.0, "cool_down_s": 1.0, "restarts": 100},
            "tasks": {"max_attempts": 1000, "poison_s": 0.0, "backoff_s": 0.0},  # a few tasks fail often
        }
        self._write_settings()

    def _write_settings(self) -> None:
        content = tomli_w.dumps(self._settings).encode()
        (self.project / ".yolo-planning" / "supervisor.toml").write_bytes(content)
        enrol(Disk(), self.paths, LIMIT_S)
        self.paths.trusted.write_bytes(content)

    def planning(self, folder: str = "") -> Path:
        """A folder of the plugin in the project, created if it is missing."""
        path = self.project / ".yolo-planning" / folder
        path.mkdir(exist_ok=True)
        return path

    # -- the daemon ----------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Start the daemon, and wait until it supervises the project."""
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
        home, omitted = self.claude.parent, ("TMUX", "TMUX_PANE", "NOTIFY_SOCKET")
        added = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config"), "CLAUDE_CONFIG_DIR": str(self.claude)}
        added["XDG_STATE_HOME"] = str(home / ".local/state")
        added |= {
            f"GIT_{who}_{what}": "drill@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        return {name: value for name, value in os.environ.items() if name not in omitted} | added

    def set_wall_clock(self, ahead_s: float) -> None:
        """Let the daemon's wall clock jump to this offset from the machine's."""
        temporary = self._skew.with_suffix(".tmp")
        temporary.write_text(str(ahead_s))
        temporary.rename(self._skew)

    def run_command(self, *arguments: str) -> dict[str, Any]:
        """Run a command of the supervisor; its ``--json`` document. ``TimeoutError`` if its exit code is not 0."""
        child = self.start_command(*arguments, "--json")
        out, errors = child.communicate()
        if child.returncode != 0:
            raise TimeoutError(f"yolo-supervisor {shlex.join(arguments)}: {(errors or out).decode().strip()}")
        document: dict[str, Any] = json.loads(out)
        return document

    def start_command(
        self, *arguments: str, stdin: int = subprocess.DEVNULL, folder: Path | None = None, tools: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command of the supervisor. The folder ``tools`` is put first in its PATH."""
        environment = self._environment()
        if tools is not None:
            environment["PATH"] = f"{tools}:{environment.get('PATH', os.defpath)}"
        child = subprocess.Popen(
            [sys.executable, "-m", "yolo_supervisor", "--project", str(self.project), *arguments],
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            cwd=folder or self.folder,
        )  # fmt: skip
        self._other_processes.append(child)
        return child

    def mcp_client(self, *argv: str) -> McpClient:
        """An MCP client that is connected to a server through the relay."""
        client = McpClient(self.start_command("mcp", "--", *argv, stdin=subprocess.PIPE))
        initialize = client.request(
            "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "drill"}
        )
        self.wait(lambda: client.succeeded(initialize), "the relay did not start")
        client.notify("notifications/initialized")
        tools = client.request("tools/list")
        self.wait(lambda: client.succeeded(tools), "the relay did not answer")
        return client

    def configure(self, **settings: dict[str, Any]) -> None:
        """Change settings, and wait until the daemon has reloaded them."""
        assert self._daemon is not None
        for section, values in settings.items():
            self._settings.setdefault(section, {}).update(values)
        self._write_settings()
        before = self._count_of("reloaded")
        self._daemon.send_signal(signal.SIGHUP)
        self.wait(lambda: self._count_of("reloaded") > before, "the daemon did not reload its settings")

    def _count_of(self, action: str) -> int:
        return sum(entry["action"] == action for entry in self.entries())

    def kill_daemon(self) -> None:
        """Kill the daemon with SIGKILL."""
        assert self._daemon is not None
        self._daemon.kill()
        self._daemon.wait()

    def stop_daemon(self) -> None:
        """Stop the daemon with SIGTERM. ``TimeoutError`` if it does not end."""
        assert self._daemon is not None
        self._daemon.terminate()
        self.wait(lambda: not self.daemon_runs(), "the daemon did not end")

    def starve_daemon(self) -> None:
        """Let the daemon use up its memory."""
        assert self._daemon is not None
        self._daemon.send_signal(signal.SIGUSR1)

    def daemon_runs(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    def daemon_log_size(self) -> int:
        """The size of the daemon's log, in bytes."""
        return (self.folder / "daemon.log").stat().st_size

    def entries(self) -> list[dict[str, Any]]:
        """The entries of the journal."""
        return history(self.paths.journal)

    # -- the team ------------------------------------------------------------------------------------------------

    def session(self) -> libtmux.Session:
        """A new tmux session with an idle window."""
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

    def end_turn(self, name: str) -> None:
        """Write the transcript of an agent that has ended its turn."""
        write_turn(name, TEAM, self.project, ended=True, home=self.claude)

    def agent(
        self,
        session: libtmux.Session,
        *,
        ignore_sigterm: bool = False,
        busy: bool = False,
        task: Path | None = None,
        dies: str | None = None,
        options: Sequence[str] = (),
    ) -> FakeAgent:
        """A new fake agent in a new window, which works on ``task`` or a new one, and is known to the daemon.

        With ``dies`` it dies in that way when it gets SIGUSR1; its screen remains. ``options`` are further ones of the
        fake agent.
        """
        task = task or self.task()
        self._count += 1
        name = f"dev-{self._count}"
        if options:
            name += f"-{self.folder.name[-8:]}"  # one that runs anywhere on the machine is not started again
        more = [
            *(["--ignore-sigterm"] if ignore_sigterm else []),
            *(["--busy"] if busy else []),
            *([f"--dies={dies}"] if dies else []),
            *options,
        ]
        self.open_window(session, name, task, more, remains=bool(dies or options))
        agent = self._started(name, task)
        self.agents.append(agent)
        key = f"{name}@{TEAM}"
        self.wait(
            lambda: any(e["action"].endswith("registered") and e["key"] == key for e in self.entries()),
            f"the daemon did not discover {name}",
        )
        self.wait(lambda: str(agent.tool.pid) in self._trees(), f"the daemon did not sample the tool of {name}")
        return agent

    def resumable_agent(self, session: libtmux.Session, *options: str) -> FakeAgent:
        """A new fake agent that the daemon could start again: it knows its conversation and its pane."""
        agent = self.agent(session, options=("--resumable", *options))
        self.wait(lambda: self._is_resumable(agent), f"the daemon did not record how {agent.name} was started")
        return agent

    def _is_resumable(self, agent: FakeAgent) -> bool:
        for path in self.paths.launches.glob("*"):
            launch = load_launch(read_or_none(path) or b"")
            if launch is not None and launch.name == agent.name:
                record = load_agent(read_or_none(self.paths.agents / path.name) or b"")
                return launch.session is not None and record is not None and record.pane is not None
        return False

    def returned(self, agent: FakeAgent) -> FakeAgent | None:
        """The fake agent with the process that has written its ready file by now; None if that is the same as ever."""
        try:
            now = self._started(agent.name, agent.task)
        except (OSError, TimeoutError):
            return None
        return now if now.process != agent.process else None

    def session_of(self, agent: FakeAgent) -> str:
        """The id of the agent's conversation."""
        paths = self.claude.glob("projects/*/*.jsonl")
        return next(path.stem for path in paths if f'"agentName": "{agent.name}"' in path.read_text())

    def resume_by_hand(self, session: libtmux.Session, agent: FakeAgent) -> None:
        """Let a person resume the agent's conversation in another window."""
        more = ["--resumable", "--resume", self.session_of(agent), "go on"]
        self.open_window(session, agent.name, agent.task, more, remains=False)

    def processes_of(self, agent: FakeAgent) -> list[ProcessId]:
        """The processes that run the agent: its tools are others."""
        found = []
        for process in self.processes_in(self.project):
            with contextlib.suppress(OSError):
                if f"{agent.name}@{TEAM}" in self.processes.backend.argv(process.pid):
                    found.append(process)
        return found

    def claims(self, task: Path) -> int:
        """How often the task was claimed."""
        return len((read_or_none(claims_file(task)) or b"").splitlines())

    def open_window(
        self, session: libtmux.Session, name: str, task: Path, options: Sequence[str], *, remains: bool
    ) -> None:
        """Start a fake agent in a new window. If it ``remains``, the window is there after the agent's end."""
        argv = [
            sys.executable, "-m", "yolo_supervisor.drill.fake_agent", "--agent-id", f"{name}@{TEAM}",
            "--agent-name", name, "--team-name", TEAM, f"--task={task}", f"--ready={self._ready(name)}", *options,
        ]  # fmt: skip
        environment = {"HOME": str(self.claude.parent), "CLAUDE_CONFIG_DIR": str(self.claude)}
        environment["XDG_STATE_HOME"] = str(self.claude.parent / ".local/state")
        window = session.new_window(
            window_name=name, attach=False, start_directory=str(self.project), environment=environment,
            window_shell="exec " + shlex.join(argv),
        )  # fmt: skip
        if remains:
            window.cmd("set-option", "-w", "remain-on-exit", "on")

    def _ready(self, name: str) -> Path:
        return self.folder / f"{name}.ready"

    def _started(self, name: str, task: Path) -> FakeAgent:
        """The fake agent as its ready file names it. ``TimeoutError`` if it does not run."""
        ready = self._ready(name)
        self.wait(ready.exists, f"{name} did not start")
        pids = json.loads(ready.read_text())
        process, tool = self.processes.identify(pids["pid"]), self.processes.identify(pids["tool"])
        if process is None or tool is None:
            raise TimeoutError(f"{name} has ended")
        return FakeAgent(name, process, tool, task)

    def _trees(self) -> str:
        try:
            return self.paths.trees.read_text()
        except OSError:
            return ""

    def tmux_server_pid(self) -> int:
        return int(self._server.cmd("display-message", "-p", "#{pid}").stdout[0])

    def attach(self, session: libtmux.Session) -> None:
        """Attach a person to the session: a tmux client with a terminal."""
        self._viewer_terminal, terminal = pty.openpty()
        self._viewer = subprocess.Popen(
            ["tmux", "-S", str(self.socket), "attach", "-t", f"={session.name}"],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env={**{k: v for k, v in os.environ.items() if k != "TMUX"}, "TERM": "xterm"},
        )  # fmt: skip
        os.close(terminal)
        self.wait(lambda: session.cmd("list-clients", "-F", "#{client_pid}").stdout, "no client could attach")
        self.wait_for_session_ticks()

    def wait_for_session_ticks(self) -> None:
        """Wait until the daemon has observed the sessions. The first tick that ends may have begun before."""
        seen = {self._last_session_tick()}

        def observed_twice() -> bool:
            seen.add(self._last_session_tick())
            return len(seen) > 2

        self.wait(observed_twice, "the daemon did not observe the sessions")

    def _last_session_tick(self) -> str:
        """The time of the last tick of the sessions watcher, by the daemon's status file."""
        holder = load_holder(read_or_none(self.paths.holder) or b"")
        ticks = [w["last_tick_at"] for w in holder.watchers if w["name"] == "sessions"] if holder else []
        return ticks[0] or "" if ticks else ""

    def detach(self) -> None:
        """Detach the person: the client ends."""
        assert self._viewer is not None
        self._viewer.terminate()
        self._viewer.wait()
        os.close(self._viewer_terminal)
        self._viewer = None

    def bystander_process(self, *argv: str, folder: Path | None = None) -> ProcessId:
        """A process of the user that the supervisor must not touch: it waits for its input for ever."""
        command = argv or (sys.executable, "-c", "import sys; sys.stdin.read()")
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=folder or self.project,
            start_new_session=True,
        )  # in a separate session: Ctrl-C is for the drill, which then removes the sandbox
        self._other_processes.append(child)
        process = self.processes.identify(child.pid)
        assert process is not None
        return process

    # -- observing -----------------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], Any], error: str, limit_s: float | None = None) -> None:
        """Wait for the condition. ``TimeoutError`` with the text ``error`` if that takes too long."""
        began_s = time.monotonic()
        while not condition():
            waited_s = time.monotonic() - began_s
            if waited_s > (limit_s or LIMIT_S):
                raise TimeoutError(error)
            time.sleep(min(max(0.002, waited_s / 20), 0.05))  # 5 % late; the daemon needs the processor, too

    def alive(self, process: ProcessId) -> bool:
        return self.processes.liveness(process) is Liveness.ALIVE

    def is_pending(self, task: Path) -> bool:
        """Whether the task is pending without an owner."""
        content = load_object(task.read_bytes())
        return content is not None and content.get("status") == "pending" and not content.get("owner")

    def owner(self, task: Path) -> object:
        return (load_object(task.read_bytes()) or {}).get("owner")

    def is_unharmed(self, agent: FakeAgent) -> bool:
        """Whether a bystander and its tool still run, and it still owns its task."""
        task = load_object(agent.task.read_bytes())
        owns = task is not None and task.get("status") == "in_progress" and task.get("owner") == agent.name
        return owns and self.alive(agent.process) and self.alive(agent.tool)

    def repository(self) -> Path:
        """The project, made a git repository with a commit."""
        if not (self.project / ".git").exists():
            self.git("init", "-q")
            self.git("commit", "-q", "--allow-empty", "-m", "first")
        return self.project

    def git_with_index_lock(self, folder: Path) -> tuple[ProcessId, Path]:
        """A git that holds the index's lock while it waits for its input, and that the daemon has seen."""
        lock = folder / self.git("rev-parse", "--git-path", "index.lock", folder=folder)
        git = self.bystander_process("git", "update-index", "--stdin", folder=folder)

        def is_seen() -> bool:
            seen = load_seen_locks(read_or_none(self.paths.seen_locks) or b"")
            return any(git in known.holders for known in seen.values())

        self.wait(is_seen, "the daemon did not see the holder of the lock")
        return git, lock

    def upstream(self) -> Path:
        """The repository that the project pushes to; ``other_clone`` is another user's clone of it."""
        bare = self.folder / "upstream.git"
        self.repository()
        if not bare.exists():
            self.git("init", "-q", "--bare", str(bare))
            self.git("remote", "add", "origin", str(bare))
            self.git("push", "-q", "-u", "origin", "HEAD")
            self.git("clone", "-q", str(bare), str(self.other_clone))
        return bare

    @property
    def other_clone(self) -> Path:
        return self.folder / "other"

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """Run git in the project; its output. ``TimeoutError`` if it fails or is not installed."""
        try:
            ended = subprocess.run(
                ["git", *arguments], cwd=folder or self.project, check=True, capture_output=True,
                stdin=subprocess.DEVNULL, timeout=LIMIT_S, env=self._environment(),
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise TimeoutError(f"git {arguments[0]}: {getattr(error, 'stderr', None) or error!s}") from error
        return ended.stdout.decode(errors="replace").strip()

    def unreadable_tasks(self) -> int:
        """The number of task files that cannot be read."""
        return sum(load_object(path.read_bytes()) is None for path in (self.claude / "tasks" / TEAM).glob("*.json"))

    # -- the end -------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """End every process that was started, by identity."""
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
        for bystander_process in self._other_processes:
            bystander_process.kill()
            bystander_process.communicate()
        end_all_in(self.folder, self.processes)

    def new_folder(self) -> Path:
        """A new folder for the processes of a fault to work in."""
        self._count += 1
        folder = self.folder / f"work-{self._count}"
        folder.mkdir()
        return folder

    def processes_in(self, folder: Path) -> list[ProcessId]:
        return processes_in(folder, self.processes)


def processes_in(folder: Path, processes: Processes) -> list[ProcessId]:
    """The processes whose working directory is in the folder. They are the drill's: no other program knows it."""
    processes_there = []
    for pid, facts in processes.sweep().facts.items():
        with contextlib.suppress(OSError):
            inside = within(Path(processes.backend.folder(pid)), folder)
            if inside and not facts.zombie and pid != os.getpid() and (process := processes.identify(pid)):
                processes_there.append(process)
    return processes_there


def end_all_in(folder: Path, processes: Processes) -> None:
    """Kill the processes in the folder. Repeat, because one that was just starting may start another."""
    for _ in range(100):
        for process in (left := processes_in(folder, processes)):
            if (handle := processes.backend.hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()
        if not left:
            break
        time.sleep(0.01)


@contextlib.contextmanager
def new_sandbox() -> Iterator[Sandbox]:
    """A sandbox in a new temporary folder. At the end it is removed, by the guard if this process is killed."""
    sandbox = Sandbox(Path(os.path.realpath(tempfile.mkdtemp(prefix="yolo-drill-"))))
    guard = subprocess.Popen(
        [sys.executable, "-m", "yolo_supervisor.drill.guard", str(sandbox.folder)], stdin=subprocess.PIPE, cwd="/",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield sandbox
    finally:
        with undisturbed():
            sandbox.clear()
            shutil.rmtree(sandbox.folder, ignore_errors=True)
            guard.communicate(b"cleared")
