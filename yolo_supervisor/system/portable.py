"""The process backend for macOS and other systems, through psutil."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import MAX_PID, FileId, ProcessFacts, ProcessHandle, file_id


class PsutilHandle:
    def __init__(self, backend: PsutilBackend, process: ProcessId) -> None:
        self._backend, self._process = backend, process

    def signal(self, number: int) -> bool:
        if self.over():
            return False
        try:
            os.kill(self._process.pid, number)
        except ProcessLookupError:
            return False
        return True

    def over(self) -> bool:
        facts = self._backend.facts(self._process.pid)
        return facts is None or facts.zombie or facts.started != self._process.started

    def close(self) -> None:
        pass


class PsutilBackend:
    """Checks the identity of a process right before each signal, in place of a pidfd."""

    def __init__(self) -> None:
        import psutil

        self._psutil = psutil

    def boot(self) -> str:
        return f"{os.uname().nodename}/-/0"  # start times are absolute here, so they differ between boots

    def facts(self, pid: int) -> ProcessFacts | None:
        if not 0 < pid <= MAX_PID:
            return None
        try:
            process = self._psutil.Process(pid)
            with process.oneshot():
                status = process.status()
                zombie, stopped = status == self._psutil.STATUS_ZOMBIE, status == self._psutil.STATUS_STOPPED
                used = process.cpu_times()
                cpu = round((used.user + used.system) * 100)
                return ProcessFacts(
                    pid, process.ppid(), round(process.create_time() * 100), zombie, process.name(), cpu,
                    stopped=stopped,
                )  # fmt: skip
        except self._psutil.NoSuchProcess:
            return None
        except self._psutil.Error as error:
            raise OSError(errno.EACCES, str(error)) from error

    def pids(self) -> list[int]:
        return list(self._psutil.pids())

    def started_at(self, started: int) -> float:
        return started / 100

    def same_start(self, started: int, text: str) -> bool:
        try:
            named_s = time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))
        except (ValueError, OverflowError):
            return text == str(started)
        return abs(named_s - started / 100) <= 1.0

    def owner(self, pid: int) -> int:
        return int(self._ask(pid, lambda process: process.uids().effective))

    def argv(self, pid: int) -> list[str]:
        return list(self._ask(pid, lambda process: process.cmdline()))

    def words(self, pid: int) -> list[bytes]:
        return [os.fsencode(word) for word in self.argv(pid)]

    def environment(self, pid: int) -> dict[str, str]:
        return dict(self._ask(pid, lambda process: process.environ()))

    def folder(self, pid: int) -> str:
        return str(self._ask(pid, lambda process: process.cwd()))

    def executable(self, pid: int) -> str:
        return str(self._ask(pid, lambda process: process.exe()))

    def ignores(self, pid: int, number: int) -> bool:
        return True

    def folder_ids(self, pid: int) -> list[FileId]:
        folder = Path(self.folder(pid))
        return [file_id(each) for each in (folder, *folder.parents)]

    def file_id(self, pid: int, name: str) -> FileId:
        return file_id(Path(self.folder(pid)) / name)

    def writes_to(self, pid: int, path: Path, file: FileId) -> bool:
        opened = self._ask(pid, lambda process: process.open_files())
        names = [each.path for each in opened if getattr(each, "mode", "r") != "r"]  # macOS does not report how
        return any(os.path.basename(name) == path.name and file_id(name) == file for name in names)

    def watched(self, pid: int) -> frozenset[FileId]:
        return frozenset()

    def listens(self, pid: int) -> bool:
        return True

    def _ask(self, pid: int, question: Callable[[Any], Any]) -> Any:
        try:
            return question(self._psutil.Process(pid))
        except self._psutil.Error as error:
            raise OSError(errno.ESRCH, str(error)) from error

    def hold(self, process: ProcessId) -> ProcessHandle | None:
        handle = PsutilHandle(self, process)
        return None if handle.over() else handle

    def newest(self) -> int | None:
        return None

    def signal_sessions(self, sessions: Collection[int], number: int) -> tuple[int, ...]:
        return ()
