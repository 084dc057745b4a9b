"""A project as the command line sees it: the daemon's parts, read once, without a daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from yolo_supervisor import config as configuration
from yolo_supervisor.actions.base import Action
from yolo_supervisor.cli.context import Shared, fail_busy
from yolo_supervisor.clock import Instant, SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.executor import apply_remediation
from yolo_supervisor.daemon.starts import Starter
from yolo_supervisor.daemon.status_files import REPORT_TICKS
from yolo_supervisor.daemon.wiring import HostServices, ProjectParts
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import restart_plans
from yolo_supervisor.formats.ended_agents import EndedAgent
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.restart_plans import PlannedStart
from yolo_supervisor.formats.session_ends import Countdown
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.interrupted import interrupted
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.session_ends import load_session_ends
from yolo_supervisor.mcp.circuit_breaker import circuit_status, open_circuits
from yolo_supervisor.models import Agent, Liveness, ProcessId, Task, iso
from yolo_supervisor.policy.activity import Signs, judge
from yolo_supervisor.store.state_folder import linked_elsewhere
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux, ask_now
from yolo_supervisor.watchers.sessions import SessionsWatcher
from yolo_supervisor.watchers.state import StateWatcher

if TYPE_CHECKING:
    from yolo_supervisor.watchers.base import Watcher


PATIENCE_S = 5.0
"""The time that a command waits for other writers of the store, in seconds."""

SILENT_S = 20.0
"""A daemon hangs if it has reported nothing for this long beyond twice its usual interval."""


class ProjectView:
    """A project as it is now. Reading it changes nothing."""

    def __init__(self, project: Path, config: Config) -> None:
        self.project = project
        self.config = config
        self.clock = SystemClock()
        self.now: datetime = self.clock.now()
        self.processes = Processes(backend())
        self.scanner = ProcessScanner(self.processes)
        self.scanner.sample()
        size = config.journal.size_mib * 2**20
        self.store = Store(project, self.clock, journal_size=size, lock_limit_s=PATIENCE_S)
        self.store.journal.load()
        if (elsewhere := linked_elsewhere(self.store.disk, self.store.paths)) is not None:
            note = f"the state of {project} is in {elsewhere}, of another HOME or XDG_STATE_HOME: it is not shown"
            click.echo(f"yolo-supervisor: {note}", err=True)
        services = HostServices(self.clock, self.processes, self.scanner, Tmux(self.clock))
        # a command cannot wait for a file to settle: one that is being written is broken
        state = msgspec.structs.replace(config.state, settle_s=0.0)
        asked_once = msgspec.structs.replace(config, state=state)
        self._parts = ProjectParts(self.store, services, asked_once, os.environ, writes_reports=False)
        self.registry, self.agents = self._parts.registry, self._parts.agents
        self.leases, self.flags = self._parts.held_leases, self._parts.flag_outcomes
        self.planner, self.tmux = self._parts.restart_planner, services.tmux

    def holder(self) -> own_files.Holder | None:
        """The daemon that supervises the project now; None if there is none."""
        holder = own_files.load_holder(read_or_none(self.store.paths.holder) or b"")
        alive = holder is not None and self.processes.liveness(holder.process) is Liveness.ALIVE
        return holder if alive else None

    def silent_s(self) -> float | None:
        """Seconds since the daemon's last report if that is too long: it hangs or is stopped."""
        holder = self.holder()
        if holder is None:
            return None
        try:
            age_s = time.time() - self.store.paths.holder.stat().st_mtime
        except OSError:
            return None
        intervals = [w["interval_s"] for w in holder.watchers if isinstance(w.get("interval_s"), int | float)]
        usual_s = REPORT_TICKS * min(intervals, default=0.0)
        return age_s if age_s > 2 * usual_s + SILENT_S else None

    def tasks(self) -> list[Task]:
        lists = self.registry.task_lists
        tied = lists.tied(self.registry.snapshot())
        return [task for folder in tied for task in lists.tasks(folder)] + lists.plans()

    def tasks_json(self) -> list[dict[str, Any]]:
        """The tasks; ``attempts`` counts the requeues, ``token`` is that of the claim, if there is one."""
        index = self.store.index
        tokens = {key: claim.token for key, claim in index.claims.items() if claim.live}
        return [
            {
                "id": task.id,
                "status": task.status,
                "owner": task.owner,
                "attempts": index.requeues[task.id],
                "token": tokens.get(task.id),
                "list": task.list,
                "subject": task.subject,
            }
            for task in self.tasks()
        ]

    def locks_json(self) -> list[dict[str, Any]]:
        """Git's locks that are there now; ``pids`` hold them, or may."""
        return [
            {"path": str(path), "state": str(holder.state), "pids": holder.pids, "holder": holder.describe()}
            for path, holder in filter(None, self._parts.locks.of_git())
        ]

    def unknown_pids(self) -> list[int]:
        """The pids in the plugin's files that no process has here, and no known agent."""
        snapshot = self.registry.snapshot()
        known = {agent.pid for agent in snapshot.records.agents}
        return sorted(self.registry.dangling_pids(snapshot) - known)

    def circuits_json(self) -> list[dict[str, Any]]:
        """The open circuits of MCP servers and tools."""
        now = Instant(self.processes.boot, self.clock.monotonic())
        return [circuit_status(circuit, now) for circuit in open_circuits(self.store.paths.circuits)]

    def flags_json(self) -> list[dict[str, Any]]:
        """The feature flags, and their recent outcomes."""
        return [
            {
                "name": flag.name,
                "enabled": flag.enabled,
                "errors": flag.errors,
                "samples": flag.samples,
                "error_rate": round(flag.errors / flag.samples, 4) if flag.samples else 0.0,
            }
            for flag in self.flags.observe(self.now).flags
        ]

    def lease_ttl_s(self) -> int:
        """The time that a claim lasts without a heartbeat."""
        return plugin_config.lease_ttl_s(read_or_none(self.store.paths.plugin_config) or b"")

    def agents_json(self) -> list[dict[str, Any]]:
        """The agents; ``activity`` is what each is doing, and ``sign`` is what says so.

        ``ends_in_s`` is the time after which the daemon ends it, because its session was left; None if it does not.
        """
        snapshot, reader = self.registry.snapshot(), self._parts.activity
        reader.renew()
        agents = self.agents.agents()
        countdowns, planned = self._countdowns(), self._planned_starts()
        alive = {agent.id for agent, state in agents if state is Liveness.ALIVE}
        rows = [
            {
                **self._agent_json(agent, state),
                **self._activity_json(reader.read(agent, state, snapshot).signs),
                **self._ending_json(countdowns.get(agent.process) if state is Liveness.ALIVE else None),
                "restart": self._restart_json(
                    agent.id, planned.get(agent.id) if state is Liveness.DEAD else None, agent.id in alive
                ),
            }
            for agent, state in agents
        ]
        return rows + self._given_up_json({agent.id for agent, _ in agents})

    def restart_json(self, ident: str) -> dict[str, Any] | None:
        """The state of an agent's starts; None if there is nothing to say of them."""
        alive = any(agent.id == ident and state is Liveness.ALIVE for agent, state in self.agents.agents())
        return self._restart_json(ident, None if alive else self._planned_starts().get(ident), alive)

    def given_up(self) -> dict[str, str]:
        """The reasons why dead agents are not started again until a person decides, by their ids."""
        states = self.store.index.restarts.items()
        return {ident: state.reason for ident, state in states if state.given_up is not None}

    def interrupted(self) -> list[EndedAgent]:
        """The agents that went down with the machine or their tmux server, as far as that is written down, or seen."""
        living = [agent for agent, state in self.agents.agents() if state is not Liveness.DEAD]
        return interrupted(self.planner.ended_agents().values(), living, self.store.index.restarts)

    def _planned_starts(self) -> dict[str, PlannedStart]:
        """The starts that the daemon plans, by the agent's id; empty without a daemon."""
        if self.holder() is None:
            return {}
        starts = restart_plans.load(read_or_none(self.store.paths.planned_starts) or b"")
        return {start.agent: start for start in starts}

    def _restart_json(self, ident: str, planned: PlannedStart | None, alive: bool) -> dict[str, Any] | None:
        """``in_s`` is the rest of a wait; ``try`` is the number of the start, of at most ``of`` in a row."""
        state, of = self.store.index.restarts.get(ident), self.config.restart.max_starts
        tries = len(state.starts) if state is not None else 0
        shown: dict[str, Any] = {"try": tries, "of": of, "in_s": None, "code": None}
        if state is not None and state.held:
            return {"state": "held", **shown, "code": "held", "reason": "a person holds it: no start by itself"}
        if state is not None and state.given_up is not None and not alive:
            return {"state": "given_up", **shown, "code": state.given_up, "reason": state.reason}
        if planned is None:
            return None
        in_s = round(max(0.0, planned.due_s - self.clock.monotonic()), 1) if planned.due_s is not None else None
        return {
            "state": planned.state, "try": planned.attempt, "of": planned.of, "in_s": in_s, "code": planned.code,
            "reason": planned.reason,
        }  # fmt: skip

    def _given_up_json(self, listed: Collection[str]) -> list[dict[str, Any]]:
        """The agents that were given up and are forgotten: a person is needed for each."""
        missing = [ident for ident in self.given_up() if ident not in listed]
        ended = {agent.agent.id: agent.agent for agent in self.planner.ended_agents().values()} if missing else {}
        none = {"activity": "unknown", "sign": "", "ends_in_s": None, "ends_because": None}
        return [
            {**self._agent_json(ended[ident], Liveness.DEAD), **none, "restart": self._restart_json(ident, None, False)}
            for ident in missing
            if ident in ended
        ]

    def _countdowns(self) -> dict[ProcessId | None, Countdown]:
        """The ends that the daemon is counting down to, by the agent's process; empty without a daemon."""
        if self.holder() is None:
            return {}
        return {countdown.process: countdown for countdown in load_session_ends(self.store.paths).countdowns}

    def _ending_json(self, countdown: Countdown | None) -> dict[str, Any]:
        if countdown is None:
            return {"ends_in_s": None, "ends_because": None}
        left_s = max(0.0, countdown.due_s - self.clock.monotonic())
        return {"ends_in_s": round(left_s, 1), "ends_because": countdown.reason}

    def ended_agents_json(self) -> list[dict[str, Any]]:
        """The agents that were ended because their session was left, and that no person at tmux has been shown."""
        return [
            {"id": end.agent, "ended_at": end.at, "session": end.session, "reason": end.reason}
            for end in load_session_ends(self.store.paths).ended
        ]

    def strays_json(self) -> list[dict[str, Any]]:
        """The strays that show now; the daemon reports those that stay for a while."""
        self.agents.agents()  # learn which agents there are
        found = [stray for stray, _ in self._parts.strays.observe(self.now)]
        return [{"code": str(s.code), "id": s.key, "pids": list(s.pids), "reason": s.reason} for s in found]

    def _activity_json(self, signs: Signs) -> dict[str, str]:
        """The activity of an agent. One look shows no change, so the age of its last record decides about a stall."""
        at = signs.turn.at if signs.turn is not None else None
        quiet_s = max(0.0, (self.now - at).total_seconds()) if at is not None else 0.0
        judgement = judge(signs, quiet_s, self.config.tasks.stall_limit_s)
        return {"activity": str(judgement.activity), "sign": judgement.sign}

    def _agent_json(self, agent: Agent, state: Liveness) -> dict[str, Any]:
        return {
            "id": agent.id,
            "name": agent.name,
            "role": agent.role,
            "team": agent.team,
            "pid": agent.pid,
            "state": str(state),
            "source": agent.source,
            "since": iso(agent.since),
        }

    def agent_processes(self) -> set[ProcessId]:
        """The processes of all agents on this machine that are known or look like one."""
        self.agents.agents()
        return {*self.scanner.agents, *self.agents.processes()}

    def note_flags_off(self, *flags: str) -> None:
        """Say which of these flags are off, and what that means: the command works all the same."""
        for flag in plugin_config.off(read_or_none(self.store.paths.plugin_config) or b"", *flags):
            click.echo(f"yolo-supervisor: note: {flag} is off: {plugin_config.IF_OFF[flag]}", err=True)

    def carry_out(self, *actions: Action) -> Outcome:
        """Apply actions that a command decided on, and return the outcome of the last one.

        A held lock ends the program: trying again is for the person, or for the script.
        """
        outcome = apply_remediation(actions, self.store, "cli")
        if outcome is Outcome.BUSY:
            fail_busy(actions[-1].key)
        return outcome

    def watchers(self) -> tuple[Watcher, ...]:
        """Every watcher of the project."""
        parts = self._parts
        return (
            parts.agents, parts.sessions, parts.tasks, parts.strays, parts.restarts, parts.leases, parts.state,
            parts.flags,
        )  # fmt: skip

    def state(self) -> StateWatcher:
        """The watcher of critical files, which does not wait for a file to settle."""
        return self._parts.state

    def starter(self) -> Starter:
        """What starts clients in tmux."""
        holder, ledger = self.holder(), self._parts.start_ledger
        daemon = holder.process.pid if holder is not None else None
        return Starter(self.store, self.processes, self.scanner, self.registry, self.tmux, ledger, daemon)

    def sessions(self) -> SessionsWatcher:
        """The watcher of tmux sessions."""
        return self._parts.sessions

    def sessions_json(self) -> list[dict[str, Any]]:
        """The tmux sessions of the project's agents; tmux is asked only if there are any."""
        sessions = self.sessions()
        placed = sessions.placed()
        sockets = dict.fromkeys(agent.pane.socket for agent in placed if agent.pane)
        observation = sessions.observation(placed, {socket: ask_now(socket) for socket in sockets})
        return [
            {
                "name": session.name,
                "attached": session.attached,
                "state": "attached" if session.attached else "detached",
                "socket": session.key[0],
            }
            for session in observation.sessions
        ]


def project_view(options: Shared) -> ProjectView:
    """The view of the project that the command line names. ``ConfigError`` if its configuration is invalid."""
    project = options.project()
    return ProjectView(project, configuration.load(project, options.config))
