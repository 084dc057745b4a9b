"""One project under the daemon: opened, watched, and opened again after it was lost."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import anyio
import structlog

from yolo_supervisor import __version__
from yolo_supervisor.clock import until_next
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import failure_identity
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths, refuse_linked_planning, refuse_root

LOST_S = 15.0
"""The pause between two checks that a project's folder exists, in seconds; its watchers fail before if it does not."""

REOPEN_S = 3.0
"""The pause before an unavailable project is opened again, in seconds."""


class Held(Exception):
    """Another supervisor holds the project."""


class ProjectLock:
    """The right to supervise a project: an flock that ends with the process, however it ends."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._fd = -1

    def take(self) -> None:
        """Take the right. ``Held``, naming the holder, if another process has it."""
        refuse_linked_planning(self._paths.planning, Disk().status(self._paths.planning))
        make_folder(Disk(), self._paths.folder)
        fd = Disk().open(self._paths.supervisor_lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            holder = own_files.load_holder(read_or_none(self._paths.holder) or b"")
            holder_text = f"process {holder.process.pid}, since {holder.started_at}" if holder else "another process"
            raise Held(f"{self._paths.project} is supervised already, by {holder_text}") from None
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Project:
    """One project under the daemon: opened, watched, and opened again after it was lost."""

    def __init__(
        self, path: Path, config: Config, services: HostServices, opened: Callable[[], None], allow_root: bool = False
    ) -> None:
        self.path = path
        self._allow_root = allow_root
        self._opened = opened
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
            refuse_root(self.path, self.path.stat())
        self._lock.take()
        runner = Runner(self.path, self.config, self.services, os.environ, self._allow_root)
        try:
            runner.open()
            runner.report()
            runner.daemon_note("started", f"version {__version__}", {"pid": os.getpid(), "mode": self.config.mode})
        except BaseException:
            runner.close()
            self._lock.release()
            raise
        self.runner = runner
        self._opened()

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
        reason = f"{runner.store.paths.folder} is gone: watched again when the project is back"
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runner.run)
                while os.path.isdir(runner.store.paths.agents):
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
