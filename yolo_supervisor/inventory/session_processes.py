"""Finds every process on this machine that runs a session of Claude Code, or may run it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system import session_scan
from yolo_supervisor.system.processes import Processes


@dataclass(frozen=True, slots=True)
class Visible:
    """The living processes of a session. ``unknown`` says that there may be more."""

    processes: frozenset[ProcessId]
    unknown: bool


def visible(
    session: str | None,
    agent_id: str,
    team: str | None,
    homes: Iterable[Path],
    processes: Processes,
    lock: Path | None = None,
) -> Visible:
    """Look now for the processes that run the session, or the teammate with this id.

    It reads the whole process table, and the client's files in ``homes``. While a launcher holds the session's
    ``lock`` (by default that of this user), there may be more.
    """
    named = session or agent_id
    machine, _, namespace = processes.boot.split("/", 2)
    domain = f"linux:{machine}:pid:[{namespace}]"
    launched = _is_held(lock or session_scan.lock_path(named))  # before the look: one that ends meanwhile is then seen
    seen = session_scan.look(named, agent_id, team, [str(home) for home in homes], processes.backend, domain)
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
