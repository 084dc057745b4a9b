"""One project under the daemon: opened, watched, and opened again after it was lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import structlog

from yolo_supervisor import __version__
from yolo_supervisor import config as configuration
from yolo_supervisor.actions import notes
from yolo_supervisor.clock import until_next
from yolo_supervisor.config import Config, ConfigError
from yolo_supervisor.daemon.alerts import failure_identity
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths, refuse_root
from yolo_supervisor.store.state_folder import enrol

LOST_S = 15.0
"""The pause between two checks that a project's folder exists, in seconds; its watchers fail before if it does not."""

REOPEN_S = 3.0
"""The pause before an unavailable project is opened again, in seconds."""


ENROL_LIMIT_S = 5.0
"""How long another process may take to enrol a project, in seconds."""


UPGRADED = "the user's file names the project, and version 0.1.0 has supervised it"


class Held(Exception):
    """Another supervisor holds the project."""


class ProjectLock:
    """The right to supervise a project: two flocks that end with the process, however it ends.

    One is on the project's folder itself, for daemons with another home, in a container for instance; the other is in
    the state folder, for commands.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._fds: list[int] = []

    def take(self) -> bool:
        """Take the right; whether the state folder of 0.1.0 was taken up with it.

        ``Held``, naming the holder, if another process has it.
        """
        taken_up = enrol(Disk(), self._paths, ENROL_LIMIT_S)
        for path, flags in (
            (self._paths.supervisor_lock, os.O_RDWR | os.O_CREAT),
            (self._paths.project, os.O_RDONLY | os.O_DIRECTORY),
        ):
            self._fds.append(Disk().open(path, flags))
            try:
                fcntl.flock(self._fds[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.release()
                holder = own_files.load_holder(read_or_none(self._paths.holder) or b"")
                by = f"process {holder.process.pid}, since {holder.started_at}" if holder else "another process"
                raise Held(f"{self._paths.project} is supervised already, by {by}") from None
        return taken_up

    def release(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


class Project:
    """One project under the daemon: opened, watched, and opened again after it was lost."""

    def __init__(
        self,
        path: Path,
        config: Config,
        load: Callable[[Path], Config],
        services: HostServices,
        opened: Callable[[], None],
        allow_root: bool = False,
    ) -> None:
        self.path = path
        self._allow_root = allow_root
        self._opened = opened
        self._load = load
        self.config = config
        self.services = services
        self.runner: Runner | None = None
        self.unavailable: str | None = None
        """The reason why the project is not watched, if it is not."""
        self._failure: tuple[object, ...] | None = None
        """The identity of the failure that was logged last, until the project is watched again."""
        self.scope = anyio.CancelScope()
        self._lock = ProjectLock(Paths(path))
        self._log = structlog.get_logger().bind(project=str(path))

    def open(self) -> None:
        """Begin to supervise. Held if another supervisor does; OSError, Refused, Busy if its folder cannot be used."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder {self.path}")
        if not self._allow_root:
            for folder in (self.path, Paths(self.path).planning):
                refuse_root(folder, Disk().status(folder))
        content = self._trust_after_upgrade() if self._lock.take() else None
        runner = Runner(self.path, self.config, self.services, os.environ, self._allow_root)
        try:
            runner.open()
            runner.report()
            if content is not None:
                runner.store.note(notes.trusted(content=content, reason=UPGRADED), "daemon")
                self._log.info("project_trusted", reason=UPGRADED)
            runner.daemon_note("started", f"version {__version__}", {"pid": os.getpid(), "mode": self.config.mode})
        except BaseException:
            runner.close()
            self._lock.release()
            raise
        self.runner = runner
        self._opened()

    def _trust_after_upgrade(self) -> bytes | None:
        """Trust the project's own file if the user's file names the project; the content, None if it does not."""
        if not any(os.path.realpath(configuration.expanded(name)) == str(self.path) for name in self.config.projects):
            return None
        content = read_or_none(configuration.project_file(self.path)) or b""
        write_atomic(Disk(), Paths(self.path).trusted, content)
        with contextlib.suppress(ConfigError):  # it was valid a moment ago
            self.config = self._load(self.path)
        return content

    async def run(self) -> None:
        """Watch until ``scope`` is cancelled, through loss and return of the folder."""
        with self.scope:
            while True:
                if self.runner is None:
                    self._try_open()
                if self.runner is not None:
                    await self._watch_while_there(self.runner)
                await anyio.sleep(REOPEN_S)
        self.close()  # the project is no longer wanted

    def _try_open(self) -> None:
        try:
            self.open()
        except (OSError, Held, Refused, Busy) as error:
            self._lost(failure_identity("open", error), f"{error}: tried again until it can be watched")
        else:
            if self.unavailable is not None:
                self.unavailable = self._failure = None
                self._log.info("project_available")

    async def _watch_while_there(self, runner: Runner) -> None:
        """Watch until the project's folder, or the state folder in it, is gone, or the watch fails."""
        failure: tuple[object, ...] = ("gone",)
        paths = runner.store.paths
        reason = f"{paths.planning} or {paths.folder} is gone: watched again when the project is back"
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run)
                while os.path.isdir(paths.planning) and os.path.isdir(paths.agents):
                    await anyio.sleep(until_next(LOST_S))
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - a failure in one project must not stop the others
            failure = failure_identity("watch", error)
            reason = f"the watch failed and begins again: {error!r}"
        runner.close()
        self._lock.release()
        self.runner = None
        self._lost(failure, reason)

    def _lost(self, failure: tuple[object, ...], reason: str) -> None:
        self.unavailable = reason
        if self._failure != failure:
            self._failure = failure
            self._log.error("project_unavailable", error=reason)

    def reload(self, config: Config) -> None:
        self.config = config
        if self.runner is not None:
            self.runner.reload(config)
            self.runner.daemon_note("reloaded", "SIGHUP", {"mode": config.mode})

    def close(self) -> None:
        if self.runner is not None:
            self.runner.daemon_note("stopped", "asked to")
            self.runner.remove_report()
            self.runner.close()
            self.runner = None
        self._lock.release()
