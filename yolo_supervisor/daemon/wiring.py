"""The parts of a project and of the host, built in one place for the daemon and for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from yolo_supervisor.clock import Clock
from yolo_supervisor.config import Config
from yolo_supervisor.inventory.activity import ActivityReader
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.claude_homes import default_homes
from yolo_supervisor.inventory.crash_evidence import CrashInvestigator
from yolo_supervisor.inventory.flag_outcomes import FlagOutcomes
from yolo_supervisor.inventory.launches import LaunchRecorder
from yolo_supervisor.inventory.leases import Leases
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.restarts import RestartPlanner
from yolo_supervisor.inventory.saved_work import SavedWork
from yolo_supervisor.inventory.session_ends import SessionEndsRecord
from yolo_supervisor.inventory.stale_locks import StaleLocks
from yolo_supervisor.inventory.strays import StrayReader
from yolo_supervisor.policy.retry import RetryPolicy
from yolo_supervisor.store.start_ledger import FILE as STARTS_FILE
from yolo_supervisor.store.start_ledger import StartLedger
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.death_watch import DeathWatch
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.user_dirs import own_state_dir
from yolo_supervisor.watchers.agents import AgentsWatcher
from yolo_supervisor.watchers.base import KeepsObservations, Objection, Terminator, Watcher
from yolo_supervisor.watchers.flags import FlagsWatcher
from yolo_supervisor.watchers.leases import LeasesWatcher
from yolo_supervisor.watchers.restarts import RestartsWatcher
from yolo_supervisor.watchers.sessions import SessionsWatcher
from yolo_supervisor.watchers.state import StateWatcher
from yolo_supervisor.watchers.strays import StraysWatcher
from yolo_supervisor.watchers.tasks import TasksWatcher


@dataclass(frozen=True)
class HostServices:
    """The services that all projects share: one process table, one view of tmux, one clock."""

    clock: Clock
    processes: Processes
    scanner: ProcessScanner
    tmux: Tmux


class Configured(Protocol):
    """A part with a configuration."""

    config: Config


class ProjectParts:
    """Everything that observes one project and decides about it; nothing here changes a document.

    A reload replaces the configuration of every part and keeps the parts: they know what cannot be observed again, such
    as the exits that the kernel reported, or that a session had a client. With ``writes_reports=False`` a crash is
    investigated without proposing a report.
    """

    def __init__(
        self,
        store: Store,
        services: HostServices,
        config: Config,
        environment: Mapping[str, str],
        *,
        writes_reports: bool = True,
    ) -> None:
        clock, processes, scanner = services.clock, services.processes, services.scanner
        self._environment = environment
        self.deaths = DeathWatch(processes.backend)
        self.registry = AgentRegistry(store.paths, processes, scanner, default_homes(config, environment))
        self.registry.task_lists.left = lambda: store.index.left
        self.retry_policy = RetryPolicy(config, store, clock, processes.boot)
        self.investigator = CrashInvestigator(
            config, self.registry, store.paths, processes, scanner, self.deaths, clock, writes_reports=writes_reports
        )
        self.held_leases = Leases(store, clock, processes.boot)
        self.flag_outcomes = FlagOutcomes(config, store, clock, processes.boot)

        self.saved_work = SavedWork()
        self.launches = LaunchRecorder(store, processes)
        starts_file = own_state_dir(environment) / STARTS_FILE
        self.start_ledger = StartLedger(starts_file, store.disk, clock, processes.boot)
        self.restart_planner = RestartPlanner(
            config,
            self.registry,
            store,
            processes,
            scanner,
            services.tmux,
            self.launches,
            self.start_ledger,
            self.saved_work,
        )
        self.agents = AgentsWatcher(
            config, self.registry, store, processes, scanner, self.deaths, self.retry_policy, self.investigator,
            self.restart_planner,
        )  # fmt: skip
        living = self.agents.living
        ends = SessionEndsRecord(store)
        self.sessions = SessionsWatcher(
            config, self.registry, living, store.paths, processes, services.tmux, clock, ends
        )
        self.state = StateWatcher(config, self.registry, store, clock, processes.backend)
        self.locks = StaleLocks(store, processes, living)
        self.leases = LeasesWatcher(config, self.held_leases, self.locks)
        self.activity = ActivityReader(store.paths, self.registry.folders, scanner)
        self.tasks = TasksWatcher(config, self.registry, living, store, self.activity, self.retry_policy, clock)
        stray_reader = StrayReader(self.registry, scanner, lambda agent: store.index.recorded(agent, "registered", ""))
        self.strays = StraysWatcher(config, stray_reader, living, clock, lambda: store.index.restarts)
        self.restarts = RestartsWatcher(
            config, store, self.registry, self.activity, living, clock, processes.boot,
            self.restart_planner.ended_agents,
        )  # fmt: skip
        self.flags = FlagsWatcher(config, self.flag_outcomes)

    def configure(self, config: Config) -> None:
        """Continue with another configuration."""
        self.registry.use_homes(default_homes(config, self._environment))
        parts: tuple[Configured, ...] = (
            self.retry_policy, self.investigator, self.flag_outcomes, self.restart_planner,
            self.agents, self.sessions, self.state, self.leases, self.tasks, self.strays, self.restarts,
            self.flags,
        )  # fmt: skip
        for part in parts:
            part.config = config

    @property
    def objections(self) -> Mapping[str, Objection]:
        """The re-check of each watcher that decides terminations, by the watcher's name."""
        terminators: tuple[Terminator, ...] = self.agents, self.sessions, self.tasks, self.strays
        return {watcher.name: watcher.objection for watcher in terminators}

    @property
    def keepers(self) -> Mapping[str, KeepsObservations]:
        """The watchers that store what they observed, by name."""
        keepers: tuple[KeepsObservations, ...] = self.agents, self.flags, self.sessions
        return {watcher.name: watcher for watcher in keepers}

    def close(self) -> None:
        """Stop watching processes."""
        self.deaths.close()
        self.investigator.close()

    @property
    def watchers(self) -> tuple[Watcher, ...]:
        """All watchers. The state is observed, and saved, before another watcher's action changes it."""
        return (
            self.state, self.agents, self.sessions, self.tasks, self.strays, self.restarts, self.leases, self.flags,
        )  # fmt: skip
