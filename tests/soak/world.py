"""Two real projects under one real daemon: agents with tools, tasks, files of the plugin, bystanders, a small disk.

Everything here is outside the supervisor: the daemon, its commands and the oracle meet it as any team. The test acts
for the agents (claim, work, report), so that a seed decides it.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from soak.team import AGENT_MARK, Bystander, Command, StateFile, Task, Team, Worker
from support.cli import start_program
from support.guard import CHILD_MARK, kill_all, new_mark
from support.project import agent_of, write_settings, write_team
from yolo_supervisor.drill.fake_agent import write_turn
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import transcripts
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import ProcessId
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

AGENTS: Final = 4
"""The number of agents of a team."""
OPEN_TASKS: Final = 6
"""The number of tasks of a team that are not finished."""
DISK_MIB: Final = 192
SETTINGS: Final = """
[processes]
grace_s = 0.5
sample_s = 0.3
[agents]
interval_s = 2.0
[sessions]
on_detach = "keep"
[tasks]
interval_s = 5.0
max_attempts = 1000
poison_s = 0.0
backoff_s = 0.0
unknown_limit_s = 40.0
[leases]
interval_s = 5.0
[state]
interval_s = 5.0
[journal]
size_mib = 8
"""

TOOLS: Final = {
    "sleep": "exec sleep 3600",
    "tree": "for i in 1 2; do sh -c 'sleep 3600 & sleep 3600 & wait' & done; wait",
    "chain": "while :; do sleep 0.2; done",
    "left": 'for i in 1 2; do sleep 3600 & echo $! >> "$0.left"; done; until [ -e "$0.seen" ]; do sleep 0.1; done',
}
"""The programs of an agent's tools, each in a separate session. That of ``left`` ends before its children, once these
were seen: later nothing says whose they are."""

AGENT: Final = """
import os, sys, time
ready, script = sys.argv[1:3]
tool = os.fork()
if tool == 0:
    os.setsid()
    os.execv("/bin/sh", ["sh", "-c", script, ready])
with open(ready + ".tmp", "w") as file:
    file.write(str(tool))
os.rename(ready + ".tmp", ready)
while True:
    time.sleep(3600)
"""

BYSTANDER: Final = """
import os, signal, sys, time
felt = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, lambda number, frame: os.write(felt, b"%d\\n" % number))
os.write(felt, b"ready\\n")
while True:
    time.sleep(3600)
"""


class World:
    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.processes = Processes(backend())
        self._mark = new_mark()
        self._numbers = itertools.count(1)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self.disk = folder / "disk"
        self.disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.disk)]
        self.mounted = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0
        self.home = self.disk / "home"
        self.claude = self.home / ".claude"
        self.claude.mkdir(parents=True)
        omitted = ("TMUX", "TMUX_PANE", "NOTIFY_SOCKET")
        inherited = {name: value for name, value in os.environ.items() if name not in omitted}
        self.environment = inherited | {
            "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / ".config"), CHILD_MARK: self._mark,
            "XDG_STATE_HOME": str(self.home / ".local/state"), "CLAUDE_CONFIG_DIR": str(self.claude),
            **{f"GIT_{who}_{what}": "soak@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }  # fmt: skip
        self.skew = folder / "skew"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.daemon_killed = False
        self.disk_full = False
        self.bystanders: list[Bystander] = []
        self._commands: list[Command] = []
        """Those that may still run."""
        self._children: list[subprocess.Popen[bytes]] = []
        self.teams = [self._team(name) for name in ("red", "blue")]
        self.set_wall_clock(0.0)
        for team in self.teams:
            self._past(team)

    # -- the projects ----------------------------------------------------------------------------------------------

    def _team(self, name: str) -> Team:
        project = self.disk / f"{name}-project"
        (project / ".yolo-planning").mkdir(parents=True)
        write_settings(project, SETTINGS, self.environment)
        write_team(self.claude, name, project)
        (self.claude / "tasks" / name).mkdir(parents=True)
        for words in (("init", "-q"), ("commit", "-q", "--allow-empty", "-m", "first")):
            subprocess.run(["git", *words], cwd=project, env=self.environment, check=True, capture_output=True)
        team = Team(name, project, Paths(project, self.environment))
        planning = project / ".yolo-planning"
        plans = [{"id": "01-01", "status": "pending"}]
        team.files = [
            StateFile(
                planning / ".execution-state.json",
                lambda n: json.dumps({"phase": 1, "status": "running", "plans": plans, "n": n}, indent=2).encode(),
            ),
            StateFile(planning / "config.json", lambda n: json.dumps({"effort": "balanced", "n": n}).encode()),
            StateFile(planning / "STATE.md", lambda n: f"# State\n\nStep {n} of the work.\n".encode()),
        ]
        for file in team.files:
            file.write()
        return team

    def _past(self, team: Team) -> None:
        """Bystanders, and files of the past that name their pids."""
        elsewhere = self.folder / f"elsewhere-{team.name}"
        elsewhere.mkdir()
        flags = ("--agent-id", f"dev-1@{team.name}", "--agent-name", "dev-1", "--team-name", team.name)
        bystanders = [
            self.bystander("beside the team", team.project),
            self.bystander("with the name of an agent, elsewhere", elsewhere, *flags),
            self.bystander("named claude", elsewhere, name="claude"),
            self.bystander("an orphan in the project", team.project, orphan=True),
        ]
        team.paths.agents.mkdir(mode=0o700, exist_ok=True)
        boot = self.processes.boot
        ghost, root = bystanders[0], bystanders[3]
        gone = ProcessId(ghost.pid, ghost.started - 1, boot)
        record = agent_of("ghost", team.name, gone, claude_dir=self.claude)
        (team.paths.agents / own_files.agent_file(record)).write_bytes(own_files.dump_agent(record))
        tree = ((ProcessId(root.pid, root.started - 1, boot), gone.pid),)
        team.paths.trees.write_bytes(own_files.dump_trees({gone: tree}))
        pids = "".join(f"{bystander.pid}\n" for bystander in bystanders)
        team.paths.agent_pids.write_text(pids)

    def bystander(self, what: str, cwd: Path, *flags: str, name: str = "", orphan: bool = False) -> Bystander:
        """A process of the user that is none of an agent's. It writes down each signal that it gets."""
        felt = self.folder / f"felt-{next(self._numbers)}"
        argv = [sys.executable, "-I", "-S", "-c", BYSTANDER, str(felt), *flags]
        if orphan:
            started = subprocess.run(
                ["sh", "-c", '"$@" >&- & echo $!', "sh", *argv], cwd=cwd, env=self.environment, check=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            pid = int(started.stdout)
        else:
            child = subprocess.Popen(
                [name, *argv[1:]] if name else argv, executable=sys.executable, cwd=cwd, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            self._children.append(child)
            pid = child.pid
        until_s = time.monotonic() + 60
        while read_or_none(felt) != b"ready\n" and time.monotonic() < until_s:
            time.sleep(0.01)
        process = self.processes.identify(pid)
        assert process is not None, f"the bystander {what} did not start"
        bystander = Bystander(what, pid, process.started, felt)
        self.bystanders.append(bystander)
        return bystander

    def task(self, team: Team) -> Task:
        """A new task, pending."""
        number = next(self._numbers)
        path = self.claude / "tasks" / team.name / f"{number}.json"
        raw = {"id": str(number), "subject": f"Task {number}", "description": "", "activeForm": "x",
               "status": "pending", "blocks": [], "blockedBy": [], "x_soak": {"n": number}}  # fmt: skip
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(raw, indent=2))
        temporary.rename(path)
        task = Task(path, f"{team.name}/{number}", raw)
        team.tasks.append(task)
        return task

    # -- the daemon ------------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        projects = [word for team in self.teams for word in ("--project", str(team.project))]
        program = [sys.executable, "-m", "yolo_supervisor.drill.daemon_under_test", str(self.skew)]
        argv = [*program, "run", *projects]
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stderr=log, env=self.environment, cwd=self.folder
            )
        self.daemon_killed = False

    def kill_daemon(self) -> None:
        assert self.daemon is not None
        self.daemon_killed = True
        self.daemon.kill()
        self.daemon.wait()

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    @property
    def daemon_runs(self) -> bool:
        return self.daemon is not None and self.daemon.poll() is None

    def set_wall_clock(self, ahead_s: float) -> None:
        temporary = self.skew.with_suffix(".tmp")
        temporary.write_text(str(ahead_s))
        temporary.rename(self.skew)

    # -- the disk --------------------------------------------------------------------------------------------------

    def fill_disk(self) -> None:
        """Leave no room from now on: on the disk if it is ours, else for the daemon's writes."""
        self.disk_full = True
        if not self.mounted:
            if self.daemon is not None and self.daemon_runs:
                resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with contextlib.suppress(OSError), (self.disk / "ballast").open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"x" * size):
                        pass

    def empty_disk(self) -> None:
        self.disk_full = False
        if self.mounted:
            (self.disk / "ballast").unlink(missing_ok=True)
        elif self.daemon is not None and self.daemon_runs:
            resource.prlimit(self.daemon.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    # -- agents ----------------------------------------------------------------------------------------------------

    def agent(self, team: Team) -> Worker:
        name = f"dev-{next(self._numbers) + 1}"
        kind = self.rng.choice(sorted(TOOLS))
        ready = self.folder / f"{name}.ready"
        flags = ("--agent-id", f"{name}@{team.name}", "--agent-name", name, "--team-name", team.name)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", AGENT, str(ready), TOOLS[kind], *flags], cwd=team.project,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=self.environment | {AGENT_MARK: name},
        )  # fmt: skip
        now_s = time.monotonic()
        worker = Worker(name, team, kind, child, ready, now_s, now_s + self.rng.uniform(0.2, 1.0))
        team.workers.append(worker)
        with contextlib.suppress(OSError), team.paths.agent_pids.open("a") as file:
            file.write(f"{child.pid}\n")
        return worker

    def kill_agent(self, worker: Worker) -> None:
        """SIGKILL for the agent, and for the command that it has called: its caller does not know how that ended."""
        worker.killed = True
        if worker.command is not None:
            self._cut_off(worker)
        os.kill(worker.pid, signal.SIGKILL)
        worker.child.wait()
        worker.team.workers.remove(worker)
        transcript = self.claude / "projects" / transcripts.slug(worker.team.project) / f"{worker.name}.jsonl"
        self.later(60.0, lambda: transcript.unlink(missing_ok=True))
        worker.ready.unlink(missing_ok=True)

    def _cut_off(self, worker: Worker) -> None:
        assert worker.command is not None
        worker.command.child.kill()
        if worker.task is not None:
            worker.task.uncertain = True
            if worker.asked == "claim":
                worker.task.owner = worker

    def stop_agent(self, worker: Worker) -> None:
        os.kill(worker.pid, signal.SIGSTOP)
        worker.stopped = True

    def continue_agent(self, worker: Worker) -> None:
        worker.stopped = False
        if worker.alive:
            os.kill(worker.pid, signal.SIGCONT)

    @property
    def workers(self) -> Iterator[Worker]:
        for team in self.teams:
            yield from team.workers

    def command(self, team: Team, *words: str) -> Command:
        output = self.folder / f"out-{next(self._numbers)}"
        argv = ("--project", str(team.project), *words, "--json")
        with output.open("wb") as out:
            child = start_program(argv, self.folder, out.fileno(), **self.environment)
        command = Command(words, child, output)
        self._commands = [each for each in self._commands if not each.over()] + [command]
        return command

    # -- time ------------------------------------------------------------------------------------------------------

    def later(self, s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + s, next(self._numbers), do))

    def step(self, *, drains: bool) -> None:
        """Let all agents do their due steps. At the end no new work is begun."""
        now_s = time.monotonic()
        while self._later and self._later[0][0] <= now_s:
            heapq.heappop(self._later)[2]()
        for team in self.teams:
            if not drains and len(team.workers) < AGENTS and now_s >= team.next_agent_s:
                team.next_agent_s = now_s + self.rng.uniform(0.3, 1.0)
                self.agent(team)
            if not drains and not self.disk_full and sum(not task.reported for task in team.tasks) < OPEN_TASKS:
                with contextlib.suppress(OSError):
                    self.task(team)
            for worker in tuple(team.workers):
                if worker.alive and not worker.stopped and worker.ready.exists():
                    self._work(worker, now_s, drains=drains)

    def _work(self, worker: Worker, now_s: float, *, drains: bool) -> None:
        if worker.command is not None:
            if worker.command.over():
                self.ended(worker)
            return
        if now_s < worker.next_s or worker.reserved:
            return
        if worker.task is None:
            if not drains:
                self._begin(worker)
        elif worker.task.uncertain:
            self.find_out(worker)
        elif worker.task.token is None:
            self._edit_as_client(worker.task, worker, "completed")
        else:
            self.ask(worker, "done")

    def _begin(self, worker: Worker) -> None:
        free = [task for task in worker.team.tasks if not task.reported and task.is_free and not self._is_asked(task)]
        worker.next_s = time.monotonic() + self.rng.uniform(0.3, 1.0)
        if not free:
            return
        task = self.rng.choice(free)
        if self.rng.random() < 0.3:
            worker.task = task
            self.ask(worker, "claim")
        else:
            self._edit_as_client(task, worker, "in_progress")

    def _is_asked(self, task: Task) -> bool:
        return any(worker.task is task for worker in self.workers)

    def ask(self, worker: Worker, what: str) -> None:
        """Call the supervisor's command about the worker's task."""
        task = worker.task
        assert task is not None
        token = ("--token", str(task.token)) if what == "done" else ()
        worker.asked = what
        worker.command = self.command(worker.team, "task", what, task.ident, "--owner", worker.name, *token)

    def ended(self, worker: Worker) -> None:
        """Evaluate the end of the worker's command."""
        command, task = worker.command, worker.task
        assert command is not None
        assert task is not None
        worker.command = None
        worker.next_s = time.monotonic() + self.rng.uniform(1.0, 5.0)
        if command.code == 0 and worker.asked == "claim":
            self._took(worker, task, int(command.document()["token"]))
        elif command.code == 0:
            self._reported(worker, task)
        elif command.code == 1 and worker.asked == "claim" and not task.uncertain:
            worker.task = None  # another one has it
        else:  # no room on the disk, say: it may have been done or not
            task.uncertain = True
            if worker.asked == "claim":
                task.owner, task.token = worker, None
        command.output.unlink(missing_ok=True)

    def find_out(self, worker: Worker) -> None:
        """Look at the task's file, as a caller does whose command was cut off."""
        task = worker.task
        assert task is not None
        state = task.state()
        worker.next_s = time.monotonic() + 0.3
        if state == ("completed", worker.name):
            self._reported(worker, task)
        elif state == ("in_progress", worker.name):
            task.uncertain = False  # it goes on; a claim whose token is not known is finished as the client does it
        elif state is not None and not self.disk_full:
            task.owner, task.token, task.uncertain, worker.task = None, None, False, None

    def _took(self, worker: Worker, task: Task, token: int | None) -> None:
        worker.task, task.owner, task.token, task.uncertain = task, worker, token, False
        worker.next_s = time.monotonic() + self.rng.uniform(1.0, 5.0)
        self._turn(worker, ended=False)

    def _reported(self, worker: Worker, task: Task) -> None:
        task.owner, task.reported, task.uncertain, task.reported_s = worker, True, False, time.monotonic()
        worker.task = None
        worker.next_s = time.monotonic() + self.rng.uniform(0.2, 1.0)
        self._turn(worker, ended=True)

    def _turn(self, worker: Worker, *, ended: bool) -> None:
        with contextlib.suppress(OSError):
            write_turn(worker.name, worker.team.name, worker.team.project, ended=ended, home=self.claude)

    def _edit_as_client(self, task: Task, worker: Worker, status: str) -> None:
        """Change a task as Claude Code does: under a lock folder beside the file, which is written in place."""
        if self.disk_full:
            return  # the client would tear the file itself
        lock = task.path.with_name(f"{task.path.name}.lock")
        try:
            lock.mkdir()
        except OSError:
            return
        try:
            raw = task.read()
            expected = ("pending", None) if status == "in_progress" else ("in_progress", worker.name)
            if raw is not None and (raw.get("status"), raw.get("owner")) == expected:
                task.path.write_text(json.dumps({**raw, "status": status, "owner": worker.name}, indent=2))
                if status == "in_progress":
                    self._took(worker, task, None)
                else:
                    self._reported(worker, task)
        finally:
            lock.rmdir()

    # -- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything, in any state."""
        if self.daemon is not None and self.daemon_runs:
            self.daemon.send_signal(signal.SIGCONT)
            self.daemon.kill()
        kill_all(CHILD_MARK, self._mark)
        for command in self._commands:
            command.child.kill()
        for child in (
            *(command.child for command in self._commands),
            *self._children,
            *(worker.child for worker in self.workers),
        ):
            child.wait()
        if self.daemon is not None:
            self.daemon.wait()
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)
        shutil.rmtree(self.disk, ignore_errors=True)
