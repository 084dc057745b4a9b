"""Finds every process on this machine that runs a session of Claude Code, or may run it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system import session_scan
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.processes import Processes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Visible:
    """The living processes of a session. ``unknown`` says that there may be more."""

    processes: frozenset[ProcessId]
    unknown: bool


class OneLook:
    """The answers of the process backend, each asked once: many sessions are looked for in one process table."""

    def __init__(self, processes: Processes) -> None:
        self._backend = processes.backend
        self._pids: list[int] | None = None
        self._facts: dict[int, ProcessFacts | OSError | None] = {}
        self._argv: dict[int, list[str] | OSError] = {}

    def pids(self) -> list[int]:
        if self._pids is None:
            self._pids = self._backend.pids()
        return self._pids

    def facts(self, pid: int) -> ProcessFacts | None:
        if pid not in self._facts:
            try:
                self._facts[pid] = self._backend.facts(pid)
            except OSError as error:
                self._facts[pid] = error
        return _answer(self._facts[pid])

    def argv(self, pid: int) -> list[str]:
        if pid not in self._argv:
            try:
                argv = self._backend.argv(pid)
            except OSError as error:
                self._argv[pid] = error
            else:
                if not any(argv):  # it has just ended, or is being started
                    self._facts.pop(pid, None)
                    return argv
                self._argv[pid] = argv
        return _answer(self._argv[pid])

    def environment(self, pid: int) -> dict[str, str]:
        return self._backend.environment(pid)

    def owner(self, pid: int) -> int:
        return self._backend.owner(pid)

    def same_start(self, started: int, text: str) -> bool:
        return self._backend.same_start(started, text)


def _answer(known: T | OSError) -> T:
    if isinstance(known, OSError):
        raise known
    return known


def visible(
    session: str | None,
    agent_id: str,
    team: str | None,
    homes: Iterable[Path],
    processes: Processes,
    lock: Path | None = None,
    system: OneLook | None = None,
) -> Visible:
    """Look now for the processes that run the session, or the teammate with this id.

    It reads the whole process table, and the client's files in ``homes``; several looks at one moment share a
    ``system``. While a launcher holds the session's ``lock`` (by default that of this user), there may be more.
    """
    named = session or agent_id
    machine, _, namespace = processes.boot.split("/", 2)
    domain = f"linux:{machine}:pid:[{namespace}]"
    launched = _is_held(lock or session_scan.lock_path(named))  # before the look: one that ends meanwhile is then seen
    seen = session_scan.look(named, agent_id, team, map(str, homes), system or processes.backend, domain)
    found = frozenset(ProcessId(pid, started, processes.boot) for pid, started in seen.processes.items())
    return Visible(found, seen.unknown or launched)


def _is_held(lock: Path) -> bool:
    """Whether a launcher holds the lock. One that cannot be opened may be held."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
