"""A team of real processes on real tasks, under the real daemon."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from support.cli import Cli
from support.daemon import QUICK, RunningDaemon, StartDaemon
from support.processes import Children
from support.project import agent_of, given_back, write_record, write_task
from support.tmux import PrivateTmux
from support.wait import wait_until
from yolo_supervisor.models import ProcessId, iso
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes


class Team:
    """A team of real processes on real tasks, under the real daemon."""

    def __init__(self, project: Path, claude: Path, children: Children, start: StartDaemon) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.own = Paths(project)
        self.claude = claude
        self.children = children
        self.processes = Processes(backend())
        self.cli = Cli(project)
        self._start = start
        self._probes = 0
        self._tasks = 100  # below it are those that a test writes itself
        self._minded: list[ProcessId] = []
        self.running: RunningDaemon

    def supervise(self, config: str = QUICK) -> RunningDaemon:
        self.running = self._start(config=config)
        return self.running

    def task(self, owner: str, team: str = "red", status: str = "in_progress") -> Path:
        self._tasks += 1
        return write_task(self.claude, team, self._tasks, owner=owner, status=status)

    def agent(self, name: str, team: str = "red", program: str = "") -> subprocess.Popen[bytes]:
        """An agent at work, known to the daemon."""
        child = self.children.agent(name, team, self.project, program)
        self.wait_known(name, team)
        return child

    def pane_agent(self, tmux: PrivateTmux, session: str, name: str, program: str = "") -> int:
        """An agent in a separate tmux session, deaf to its closing, and known to the daemon; its pid."""
        ready = self.project.parent / f"{name}.ready"
        deaf = "import signal, time\nsignal.signal(signal.SIGHUP, lambda *_: None)"
        body = f"{deaf}\n{program}\nopen({str(ready)!r}, 'w')\nwhile True: time.sleep(600)"
        flags = f"--agent-id {name}@red --agent-name {name} --team-name red"
        line = f"cd {self.project} && exec {sys.executable} -c {shlex.quote(body)} {flags}"
        pid = self.mind(tmux.session(session, line)).pid
        wait_until(ready.exists, f"{name} to start")
        self.wait_known(name, "red")
        return pid

    def wait_known(self, name: str, team: str) -> None:
        self.running.wait(lambda: self.running.did("registered", f"{name}@{team}"), f"{name} to be found")

    def wait_healed(self, name: str, team: str = "red") -> None:
        self.running.wait(lambda: self.running.did("forgotten", f"{name}@{team}"), f"{name} to be healed")

    def wait_given_back(self, task: Path) -> None:
        self.running.wait(lambda: given_back(task), f"{task} to be given back")

    def assert_heals(self, team: str = "red") -> None:
        """Wait until the daemon is at work: an agent that is killed now loses its task."""
        name = f"dev-{self._tasks - 99}"
        task = self.task(name, team)
        self.agent(name, team).kill()
        self.wait_given_back(task)

    def wait_looks(self, number: int = 2) -> None:
        """Wait for so many looks of the daemon: at each a real agent is killed and healed."""
        for _ in range(number):
            self._probes += 1
            name = f"probe-{self._probes}"
            self.agent(name, team="probes").kill()
            self.wait_healed(name, "probes")

    def wait_sessions_looked_at(self) -> None:
        """Wait for a whole look at the sessions."""

        def looked_at() -> str:
            (watcher,) = (each for each in self.status()["watchers"] if each["name"] == "sessions")
            return watcher["last_tick_at"] or ""

        ends = {iso(datetime.now(UTC))}
        while len(ends) < 3:  # the first may have begun before
            self.wait_looks(1)  # each heals an agent, and meanwhile the daemon reports on its watchers
            ends.add(max(looked_at(), *ends))

    def alive(self, pid: int) -> bool:
        return self.processes.identify(pid) is not None

    def identity(self, pid: int) -> ProcessId:
        process = self.processes.identify(pid)
        assert process is not None
        return process

    def mind(self, pid: int) -> ProcessId:
        """End this process, which is not our child, with the test."""
        process = self.identity(pid)
        self._minded.append(process)
        return process

    def end(self) -> None:
        for process in self._minded:
            if (handle := self.processes.backend.hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()

    def record(self, name: str, process: ProcessId, **more: Any) -> None:
        """An agent as an earlier daemon has written it down."""
        write_record(self.project, agent_of(name, "red", process, claude_dir=self.claude, **more))

    def status(self) -> dict[str, Any]:
        project: dict[str, Any] = self.cli.json("status")["projects"][0]
        return project
