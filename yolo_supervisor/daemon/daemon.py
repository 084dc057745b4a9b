"""The daemon: opens its projects, keeps them watched, and answers signals and the service manager."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import structlog

from yolo_supervisor import config as configuration
from yolo_supervisor.clock import SystemClock, until_next
from yolo_supervisor.config import Config, ConfigError
from yolo_supervisor.daemon.file_events import LOCK_STEP_MS, FileEvents, Wakeup
from yolo_supervisor.daemon.project import Held, Project
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.fs.trust import TooNew
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.service.notify import Notifier, endangered
from yolo_supervisor.system.births import Births
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux
from yolo_supervisor.watchers.agents import AgentsWatcher

EX_OK, EX_NO, EX_DATAERR, EX_OSERR, EX_TEMPFAIL = 0, 1, 65, 71, 75

STOP_LIMIT_S = 8.0
"""How long a clean stop waits for terminations that are under way, in seconds."""

MANAGER_S = 0.5
"""Shortest time between two reports to the service manager, in seconds, however short its watchdog time is."""


@dataclass(frozen=True)
class Options:
    """The options of ``run`` on the command line."""

    projects: tuple[Path, ...] = ()
    config: Path | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    allow_root: bool = False
    """Whether root may supervise the projects of other users."""


class Daemon:
    """All projects of one ``run``."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.config = self._load(None)
        processes = Processes(backend())
        self._clock = clock = SystemClock()
        self.services = HostServices(clock, processes, ProcessScanner(processes, Births()), Tmux(clock))
        self.notifier = Notifier(os.environ)
        self.projects: dict[Path, Project] = {}
        self._refused = ""
        """The reason why the last reload changed nothing."""
        self._cgroup_shared: dict[int, str] = {}
        self._log = structlog.get_logger()
        self._stopping = anyio.Event()
        self._file_events = FileEvents(self._edges)
        self._lock_events = FileEvents(self._lock_edges, LOCK_STEP_MS)

    def _load(self, project: Path | None) -> Config:
        return configuration.load(project, self.options.config, self.options.overrides)

    def _project(self, path: Path, config: Config) -> Project:
        return Project(path, config, self._load, self.services, self._renew_file_events, self.options.allow_root)

    def wanted(self, config: Config) -> list[Path]:
        """The projects to supervise: the command line's, else the configuration's."""
        named = self.options.projects or tuple(map(configuration.expanded, config.projects))
        return list(dict.fromkeys(Path(os.path.realpath(path)) for path in named))

    async def run(self) -> int:
        """Supervise until a signal. Returns the exit code; ConfigError if the configuration cannot be used."""
        asyncio.get_running_loop().set_exception_handler(self._callback_failed)
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            _raise_file_limit()
            if (code := self._open_projects()) != EX_OK:
                return code
            if shutil.which("tmux") is None:
                self._log.warning("tmux_missing", error="tmux is not on PATH: no session can be watched")
            self.services.scanner.sample()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._clock.run)
                tasks.start_soon(self._signals, received, tasks)
                for project in self.projects.values():
                    tasks.start_soon(project.run)
                tasks.start_soon(self.services.scanner.run, self._sample_s, self._sampled)
                tasks.start_soon(self.services.scanner.follow_births)
                tasks.start_soon(self._file_events.run)
                tasks.start_soon(self._lock_events.run)
                tasks.start_soon(self._keep_manager_informed)
                self.notifier.ready(self._status())
                await self._stopping.wait()
                self.notifier.stopping()
                await self._let_terminations_end()
                tasks.cancel_scope.cancel()
            for project in self.projects.values():
                project.close()
            return EX_OK

    def _open_projects(self) -> int:
        """Open the wanted projects.

        Returns the exit code: 0 unless none could be opened. ConfigError if wrong configurations are the reason.
        """
        code = EX_NO
        configs, wrong = self._load_projects(self.config)
        for path, config in configs.items():
            project = self.projects[path] = self._project(path, config)
            refusal = project.try_open()
            if isinstance(refusal, Held):
                code = EX_TEMPFAIL
            elif isinstance(refusal, TooNew):
                code = EX_DATAERR
        if wrong and not self.projects:
            raise next(iter(wrong.values()))
        for path, mistake in wrong.items():
            self._log.error("project_unavailable", project=str(path), error=str(mistake))
        return EX_OK if self._projects() else code

    def _sample_s(self) -> float:
        """The pause between two process scans: the shortest that a project asks for."""
        return min((p.config.processes.sample_s for p in self.projects.values()), default=1.0)

    def _sampled(self, changed: bool) -> None:
        for project in self._projects():
            project.contain(Runner.write_trees)
            if changed and project.runner is not None:
                project.runner.wakeups[AgentsWatcher.name].ring()

    def _callback_failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log a failure of the event loop; end without memory, since the loop would fail and log for ever."""
        if isinstance(context.get("exception"), MemoryError):
            sys.stderr.write("yolo-supervisor: out of memory: the program ends, to be started again\n")
            os._exit(EX_OSERR)  # the journal holds the changes under way
        self._log.error("event_loop_failed", error=str(context.get("exception") or context.get("message")))

    # -- signals -------------------------------------------------------------------------------------------------

    async def _signals(self, received: AsyncIterator[signal.Signals], tasks: anyio.abc.TaskGroup) -> None:
        async for number in received:
            if number == signal.SIGHUP:
                self._reload(tasks)
            elif self._stopping.is_set():
                os._exit(128 + number)  # the second one ends at once: the journal holds the changes under way
            else:
                self._stopping.set()

    def _reload(self, tasks: anyio.abc.TaskGroup) -> None:
        self.notifier.reloading()
        self._refused = "not finished"
        try:
            config = self._load(None)
            configs, mistakes = self._load_projects(config)
            for path in [path for path in self.projects if path in configs and configs[path].trust.error]:
                mistakes[path] = ConfigError(configs.pop(path).trust.error)
        except Exception as error:  # noqa: BLE001 - a wrong configuration must not end the daemon: the old one stays
            self._refused = str(error) if isinstance(error, ConfigError) else repr(error)
            self._log.error("reload_refused", error=self._refused, kept="the configuration in force")
        else:
            self._refused = "; ".join(map(str, mistakes.values()))
            self.config = config
            for path, mistake in mistakes.items():
                self._log.error("reload_refused", project=str(path), error=str(mistake), kept="what was in force there")
            for path in self.projects.keys() - configs.keys() - mistakes.keys():
                self.projects.pop(path).scope.cancel()
            for path, project_config in configs.items():
                if path in self.projects:
                    self.projects[path].reload(project_config)
                else:
                    self.projects[path] = self._project(path, project_config)
                    tasks.start_soon(self.projects[path].run)
            self._renew_file_events()
            self._log.info("reloaded", projects=len(configs), mode=config.mode)
        finally:
            self.notifier.reloaded(self._status(), self._refused)

    def _load_projects(self, config: Config) -> tuple[dict[Path, Config], dict[Path, ConfigError]]:
        """The configurations of the wanted projects, and the mistakes in those of others."""
        configs: dict[Path, Config] = {}
        mistakes: dict[Path, ConfigError] = {}
        for path in self.wanted(config):
            try:
                configs[path] = self._load(path)
            except ConfigError as error:
                mistakes[path] = error
        return configs, mistakes

    async def _let_terminations_end(self) -> None:
        with anyio.move_on_after(STOP_LIMIT_S):
            while any(project.contain(lambda runner: runner.terminating) for project in self._projects()):
                await anyio.sleep(0.05)

    def _projects(self) -> list[Project]:
        """The projects that are watched now."""
        return [project for project in self.projects.values() if project.runner is not None]

    def _edges(self) -> Iterator[tuple[Path, Wakeup]]:
        for project in self._projects():
            yield from project.contain(lambda runner: list(runner.edges())) or ()

    def _lock_edges(self) -> Iterator[tuple[Path, Wakeup]]:
        for project in self._projects():
            yield from project.contain(lambda runner: list(runner.lock_edges())) or ()

    def _renew_file_events(self) -> None:
        self._file_events.renew()
        self._lock_events.renew()

    # -- the service manager ---------------------------------------------------------------------------------------

    def _status(self) -> str:
        watched = self._projects()
        agents = sum(len(project.contain(lambda runner: runner.parts.agents.processes()) or ()) for project in watched)
        text = f"{len(watched)} projects, {agents} agents" + (", observing" if self.config.mode == "observe" else "")
        text += "".join(f"; {p.unavailable}" for p in self.projects.values() if p.unavailable)
        text += f"; the last reload was refused: {self._refused}" if self._refused else ""
        return " ".join(text.split())  # a line feed would begin another assignment

    def _check_cgroup(self) -> None:
        """Log, once, tmux servers and agents in the service's cgroup: a unit ends with its whole cgroup."""
        agents = {process.pid for process in self.services.scanner.agents}
        shared = dict(endangered(self.services.processes.backend, os.getpid(), agents))
        for pid, what in shared.items():
            if pid not in self._cgroup_shared:
                error = f"a stop of this service would kill {what} {pid}: start tmux in a login, or yolo-tmux@.service"
                self._log.error("cgroup_shared", error=error, pid=pid)
        if self._cgroup_shared and not shared:
            self._log.info("cgroup_cleared")
        self._cgroup_shared = shared

    async def _keep_manager_informed(self) -> None:
        every_s = max(MANAGER_S, min(10.0, (self.notifier.watchdog_s or 30.0) / 3))
        while True:
            stuck = [name for project in self._projects() for name in project.contain(Runner.stuck) or ()]
            if stuck:
                self.notifier.status(f"stuck: {', '.join(stuck)}")
            else:
                self.notifier.status(self._status())
                if self.notifier.watchdog_s:
                    self.notifier.alive()
            self._check_cgroup()
            await anyio.sleep(until_next(every_s))


def _raise_file_limit() -> None:
    """Raise the limit of file descriptors as far as permitted: each watched agent needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(options: Options) -> int:
    """Run the daemon to its end and return its exit code. ConfigError if the configuration cannot be used."""
    daemon = Daemon(options)
    return anyio.run(daemon.run)
