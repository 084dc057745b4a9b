"""Finds the plugin's watchdog, which acts on detached tmux sessions by the plugin's rule. Read-only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.mounts import is_local
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Liveness
from yolo_supervisor.system.processes import Processes


@dataclass(frozen=True, kw_only=True, slots=True)
class Watchdog:
    """The process that ``.watchdog-pid`` names, and whether it runs."""

    pid: int
    liveness: Liveness


def watchdog(file: Path, processes: Processes) -> Watchdog | None:
    """The watchdog that the file names; None without a valid pid in it.

    It runs if a process of that pid is older than the file and has the command line of a watchdog. A younger process
    has reused the pid. An older one with another command line is unknown: the pid may be of another pid namespace.
    """
    word = (read_or_none(file) or b"").strip()
    if not word.isdigit() or len(word) > 9 or not plugin_agents.is_pid(int(word)):
        return None
    return Watchdog(pid=int(word), liveness=_liveness(int(word), file, processes))


def _liveness(pid: int, file: Path, processes: Processes) -> Liveness:
    try:
        facts = processes.backend.facts(pid)
        argv = processes.backend.argv(pid) if facts and not facts.zombie else []
    except OSError:
        return Liveness.UNKNOWN
    process = processes.identify(pid) if argv else None
    if process is None or not processes.older_than_file(process, file):
        return Liveness.DEAD if is_local(file.parent) else Liveness.UNKNOWN
    return Liveness.ALIVE if _is_watchdog(argv) else Liveness.UNKNOWN


def _is_watchdog(argv: Sequence[str]) -> bool:
    """Whether this is ``tmux-watchdog.sh``, or ``yolo session-start``, in which the watchdog is a thread."""
    words = [PurePath(word).name for word in argv]
    return any("watchdog" in word for word in words) or ("yolo" in words and "session-start" in words)
