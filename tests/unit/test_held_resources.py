"""The known descendants of an agent outlive the daemon that has seen them."""

from __future__ import annotations

import os
from pathlib import Path

from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.own import Descent
from yolo_supervisor.inventory.held_resources import HeldResourcesFinder
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.task_lists import TaskLists
from yolo_supervisor.models import ProcessId
from yolo_supervisor.policy.retry import RetryPolicy
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes


def test_what_an_earlier_daemon_knew_of_descendants_is_kept_over_the_first_look(
    project: Path, claude_home: Path
) -> None:
    processes = Processes(backend())
    agent, alive = processes.identify_self(), processes.identify(os.getppid())
    assert alive is not None
    ended = ProcessId(alive.pid, alive.started - 1, alive.boot)
    store = Store(project)
    store.open()
    known = {agent: Descent(frozenset({7}), (alive, ended))}
    store.paths.trees.write_bytes(own_files.dump_trees({}, known))
    scanner = ProcessScanner(processes)
    queue = RetryPolicy(Config(), store, SystemClock(), processes.boot)
    finder = HeldResourcesFinder(TaskLists(store.paths), store.paths, processes, scanner, queue)

    scanner.descent.known[agent] = Descent()  # the tool's leader has ended: a look shows nothing of its session
    assert finder.descents([agent]) == {agent: Descent(frozenset({7}), (alive,))}

    scanner.descent.known[agent] = Descent(frozenset({8}))
    assert finder.descents([agent])[agent].sessions == {7, 8}
