"""The rule about what lives on when the work that started it is over. See docs/leftovers.md.

It is one rule for the processes that a dead agent's tools have started, and for those of an MCP server whose session
ends. A command at its time limit (``exec``), and an MCP server that is started again, leave no daemons either.
"""

from __future__ import annotations

from collections.abc import Collection

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import ProcessBackend
from yolo_supervisor.system.process_table import Sweep

SIGHUP = 1


def daemons(
    sweep: Sweep,
    started: Collection[ProcessId],
    sessions: Collection[int],
    backend: ProcessBackend,
    nohup_inherited: bool = False,
) -> set[ProcessId]:
    """The daemons among the processes that some work has started, with all that descends from them.

    ``started`` are the processes that still run, and ``sessions`` are the sessions in which the work runs. A process is
    a daemon if its parent has ended (it is no child of another one in ``started``), and if it has left those sessions
    (``setsid``) or ignores SIGHUP (``nohup``). With ``nohup_inherited`` the work itself ignores SIGHUP, so that this
    says nothing.
    """
    pids = {process.pid for process in started}
    found: set[ProcessId] = set()
    for process in started:
        facts = sweep.facts.get(process.pid)
        if facts is None or facts.parent in pids:
            continue
        if facts.session not in sessions or (not nohup_inherited and ignores_hangup(process.pid, backend)):
            found |= {process, *(below for below, _ in sweep.tree(process))}
    return found


def ignores_hangup(pid: int, backend: ProcessBackend) -> bool:
    """Whether the process ignores SIGHUP, as under ``nohup``; True if that is unknown."""
    try:
        return backend.ignores(pid, SIGHUP)
    except OSError:
        return True
