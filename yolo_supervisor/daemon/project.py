"""One project under the daemon: opened, watched, and opened again after it was lost."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.state_folder import enrol, refuse_other_owners_root

LOST_S = 15.0
"""The pause between two checks that a project's folder exists, in seconds; its watchers fail before if it does not."""

REOPEN_S = 3.0
"""The pause before an unavailable project is opened again, in seconds."""


ENROL_LIMIT_S = 5.0
"""How long another process may take to enrol a project, in seconds."""


UPGRADED = "the user's file names the project, and version 0.1.0 has supervised it"


T = TypeVar("T")


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
        self._watch = anyio.CancelScope()
        """Of the watch under way."""
        self._error: Exception | None = None
        """The failure that has ended the watch."""
        self._lock = ProjectLock(Paths(path))
        self._log = structlog.get_logger().bind(project=str(path))

    def open(self) -> None:
        """Begin to supervise. Held if another supervisor does; OSError, Refused, Busy if its folder cannot be used."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder {self.path}")
        if not self._allow_root:
            refuse_other_owners_root(Disk(), Paths(self.path))
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            content = self._trust_after_upgrade() if self._lock.take() else None
            runner = Runner(self.path, self.config, self.services, os.environ, self._allow_root)
            undo.callback(runner.close)
            runner.open()
            runner.report()
            if content is not None:
                runner.store.note(notes.trusted(content=content, reason=UPGRADED), "daemon")
                self._log.info("project_trusted", reason=UPGRADED)
            runner.daemon_note("started", f"version {__version__}", {"pid": os.getpid(), "mode": self.config.mode})
            undo.pop_all()
        self.runner = runner
        self._opened()

    def _trust_after_upgrade(self) -> bytes | None:
        """Trust the project's own file if the user's file names the project; the content, None if it does not."""
        if not any(os.path.realpath(configuration.expanded(name)) == str(self.path) for name in self.config.projects):
            return None
        try:
            content = configuration.read_project_file(self.path)
        except ConfigError:
            return None
        write_atomic(Disk(), Paths(self.path).trusted, content)
        with contextlib.suppress(ConfigError):  # it was valid a moment ago
            self.config = self._load(self.path)
        return content

    async def run(self) -> None:
        """Watch until ``scope`` is cancelled, through loss and return of the folder."""
        with self.scope:
            while True:
                if self.runner is None:
                    self.try_open()
                if self.runner is not None:
                    await self._watch_while_there(self.runner)
                await anyio.sleep(REOPEN_S)
        self.close()  # the project is no longer wanted

    def try_open(self) -> Exception | None:
        """Begin to supervise; the reason if that cannot be now. It is tried again."""
        try:
            self.open()
        except Exception as error:  # noqa: BLE001 - a failure in one project must not stop the others
            expected = isinstance(error, OSError | Held | Refused | Busy)
            text = str(error) if expected else f"it cannot be opened: {error!r}"
            self._lost(failure_identity("open", error), f"{text}: tried again until it can be watched")
            return error
        if self.unavailable is not None:
            self.unavailable = self._failure = None
            self._log.info("project_available")
        return None

    def contain(self, do: Callable[[Runner], T]) -> T | None:
        """Call ``do`` with the project's runner, and return its result; None if it is not watched, or ``do`` fails.

        Everything that the daemon asks of a project between its ticks comes through here: whatever it raises ends the
        watch of this project only, and it begins again.
        """
        if self.runner is None:
            return None
        try:
            return do(self.runner)
        except Exception as error:  # noqa: BLE001 - a failure in one project must not stop the others
            self._error = error
            self._watch.cancel()
            return None

    async def _watch_while_there(self, runner: Runner) -> None:
        """Watch until the project's folder, or the state folder in it, is gone, or the watch fails."""
        paths = runner.store.paths
        self._error = None
        try:
            async with anyio.create_task_group() as tasks:
                self._watch = tasks.cancel_scope
                tasks.start_soon(runner.run)
                while os.path.isdir(paths.planning) and os.path.isdir(paths.agents):
                    await anyio.sleep(until_next(LOST_S))
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 - a failure in one project must not stop the others
            self._error = error
        self._release(runner)
        if self._error is not None:
            reason = f"the watch failed and begins again: {self._error!r}"
            self._lost(failure_identity("watch", self._error), reason)
        else:
            self._lost(("gone",), f"{paths.planning} or {paths.folder} is gone: watched again when the project is back")

    def _release(self, runner: Runner) -> None:
        """Close the project's files, whatever state they are in."""
        self.runner = None
        try:
            runner.close()
        except Exception as error:  # noqa: BLE001 - a failure in one project must not stop the others
            self._error = self._error or error
        self._lock.release()

    def _lost(self, failure: tuple[object, ...], reason: str) -> None:
        self.unavailable = reason
        if self._failure != failure:
            self._failure = failure
            self._log.error("project_unavailable", error=reason)

    def reload(self, config: Config) -> None:
        self.config = config

        def follow(runner: Runner) -> None:
            runner.reload(config)
            runner.daemon_note("reloaded", "SIGHUP", {"mode": config.mode})

        self.contain(follow)

    def close(self) -> None:
        """End the watch for good."""

        def stop(runner: Runner) -> None:
            runner.daemon_note("stopped", "asked to")
            runner.remove_report()

        self.contain(stop)
        if self.runner is not None:
            self._release(self.runner)
        self._lock.release()
