"""One look at a project for the commands that show something: the daemon's own rooms, and nothing is changed."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from yolo_supervisor import config as configuration
from yolo_supervisor.actions import Edit, Keep, Note
from yolo_supervisor.census import Census
from yolo_supervisor.cli import Shared
from yolo_supervisor.clock import Instant, SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.files import glance
from yolo_supervisor.flags import Flags
from yolo_supervisor.formats import supervisor, yolo
from yolo_supervisor.inventory.crash_evidence import CrashInvestigator
from yolo_supervisor.kernel import kernel
from yolo_supervisor.leases import Leases
from yolo_supervisor.locks import Locks
from yolo_supervisor.mcp.circuit_breaker import circuit_status, open_circuits
from yolo_supervisor.processes import DeathWatch, Processes
from yolo_supervisor.queue import Queue
from yolo_supervisor.records import Liveness, Task, iso
from yolo_supervisor.roster import Roster, claude_dirs
from yolo_supervisor.runner import REPORT_LOOKS
from yolo_supervisor.store import Outcome, Store
from yolo_supervisor.tmux import Tmux, ask_now
from yolo_supervisor.watchers.agents import AgentsWatcher
from yolo_supervisor.watchers.flags import FlagsWatcher
from yolo_supervisor.watchers.leases import LeasesWatcher
from yolo_supervisor.watchers.sessions import SessionsWatcher
from yolo_supervisor.watchers.state import StateWatcher
from yolo_supervisor.watchers.tasks import TasksWatcher

if TYPE_CHECKING:
    from yolo_supervisor.watchers import Remedy, Watcher


PATIENCE_S = 5.0
"""How long a command waits for others that write: it has nothing else to do."""


SILENT_S = 20.0
"""How long a daemon may be silent beyond twice its usual time."""


class View:
    """A project as it is now, for reading only."""

    def __init__(self, project: Path, config: Config) -> None:
        self.project = project
        self.config = config
        self.clock = SystemClock()
        self.now: datetime = self.clock.now()
        self.processes = Processes(kernel())
        self.census = Census(self.processes)
        self.census.sample()
        size = config.journal.size_mib * 2**20
        self.store = Store(project, self.clock, journal_size=size, lock_limit_s=PATIENCE_S)
        self.store.journal.load()
        self.roster = Roster(self.store.paths, self.processes, self.census, lambda: claude_dirs(config, os.environ))
        self.leases = Leases(self.store, self.clock, self.processes.boot)
        self.queue = Queue(lambda: config, self.store, self.clock, self.processes.boot)
        deaths = DeathWatch(self.processes.kernel)
        investigator = CrashInvestigator(
            lambda: config,
            self.roster,
            self.store.paths,
            self.processes,
            self.census,
            deaths,
            self.clock,
            writes_reports=False,
        )
        self.flags = Flags(lambda: config, self.store, self.clock, self.processes.boot)
        self.agents = AgentsWatcher(
            lambda: config, self.roster, self.store, self.processes, self.census, deaths, self.queue, investigator
        )  # fmt: skip

    def holder(self) -> supervisor.Holder | None:
        """The daemon that supervises the project now, if one does."""
        holder = supervisor.load_holder(glance(self.store.paths.holder) or b"")
        alive = holder is not None and self.processes.liveness(holder.process) is Liveness.ALIVE
        return holder if alive else None

    def silent_s(self) -> float | None:
        """For how long the daemon has said nothing, if that is too long: it hangs, or is stopped."""
        holder = self.holder()
        if holder is None:
            return None
        try:
            age_s = time.time() - self.store.paths.holder.stat().st_mtime
        except OSError:
            return None
        intervals = [w["interval_s"] for w in holder.watchers if isinstance(w.get("interval_s"), int | float)]
        usual_s = REPORT_LOOKS * min(intervals, default=0.0)
        return age_s if age_s > 2 * usual_s + SILENT_S else None

    def tasks(self) -> list[Task]:
        found = [task for folder in self.roster.task_lists() for task in self.roster.tasks(folder)]
        return found + self.roster.plans()

    def tasks_json(self) -> list[dict[str, Any]]:
        """The tasks; ``attempts`` is how often each was given back, ``token`` that of its claim, if it has one."""
        memory = self.store.journal.memory
        claims = {key: claim for key, claim in memory.claims.items() if claim["live"]}
        return [
            {
                "id": task.id,
                "status": task.status,
                "owner": task.owner,
                "attempts": memory.requeues[task.id],
                "token": claims.get(task.id, {}).get("token"),
                "list": task.list,
                "subject": task.subject,
            }
            for task in self.tasks()
        ]

    def circuits_json(self) -> list[dict[str, Any]]:
        """The MCP servers and tools that are switched off."""
        now = Instant(self.processes.boot, self.clock.monotonic())
        return [circuit_status(circuit, now) for circuit in open_circuits(self.store.paths.folder)]

    def flags_json(self) -> list[dict[str, Any]]:
        """The feature flags, and how what they switch on has fared lately."""
        return [
            {
                "name": flag.name,
                "enabled": flag.enabled,
                "errors": flag.errors,
                "samples": flag.samples,
                "error_rate": round(flag.errors / flag.samples, 4) if flag.samples else 0.0,
            }
            for flag in self.flags.look(self.now).flags
        ]

    def lease_ttl_s(self) -> int:
        """How long a claim holds without a sign of life."""
        return yolo.lease_ttl_s(glance(self.store.paths.planning / "config.json") or b"")

    def agents_json(self) -> list[dict[str, Any]]:
        return [
            {
                "id": agent.id,
                "name": agent.name,
                "role": agent.role,
                "team": agent.team,
                "pid": agent.pid,
                "state": str(state),
                "source": agent.source,
                "since": iso(agent.since),
            }
            for agent, state in self.agents.agents(self.now)
        ]

    def watchers(self) -> tuple[Watcher, ...]:
        """Every watcher, asked for what it sees; nothing of it is carried out."""
        tasks = TasksWatcher(
            lambda: self.config, self.roster, self.agents.living, self.store, self.census, self.queue, self.clock
        )
        return (
            self.agents,
            self.sessions(),
            tasks,
            LeasesWatcher(
                lambda: self.config, self.leases, Locks(self.store, self.processes.kernel, self.agents.living)
            ),
            self.state(),
            FlagsWatcher(lambda: self.config, self.flags),
        )

    def state(self) -> StateWatcher:
        """One that has no time to wait: a file that is just being written is broken for it."""
        config = msgspec.structs.replace(self.config, state=msgspec.structs.replace(self.config.state, settle_s=0.0))
        return StateWatcher(lambda: config, self.roster, self.store, self.clock)

    def sessions(self) -> SessionsWatcher:
        return SessionsWatcher(
            lambda: self.config,
            self.roster,
            self.agents.living,
            self.store.paths,
            self.processes,
            Tmux(self.clock),
            self.clock,
        )

    def sessions_json(self) -> list[dict[str, Any]]:
        """The tmux sessions that agents of the project live in. Nothing is asked where there are none."""
        sessions = self.sessions()
        placed = sessions.placed(self.now)
        sockets = dict.fromkeys(agent.pane.socket for agent in placed if agent.pane)
        look = sessions.look_at(placed, {socket: ask_now(socket) for socket in sockets})
        return [
            {
                "name": session.name,
                "attached": session.attached,
                "state": "attached" if session.attached else "detached",
                "socket": session.key[0],
            }
            for session in look.sessions
        ]


def view_of(options: Shared) -> View:
    """The project that the command line means. ConfigError if its configuration cannot be used."""
    project = options.project()
    return View(project, configuration.load(project, options.config))


def carry_out(store: Store, remedy: Remedy) -> Outcome:
    """Take the steps of a remedy that a command has decided on; how the last of them went. BUSY stops it."""
    outcome = Outcome.DONE
    for action in remedy:
        if isinstance(action, Edit):
            outcome = store.commit(action, "cli")
            if outcome is Outcome.BUSY:
                return outcome
        elif isinstance(action, Keep):
            store.keep(action.path, action.data)
        elif isinstance(action, Note):
            store.note(action, "cli")
    return outcome
