"""The start gate: what has changed since a start was decided prevents it."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio

from support.project import FakeClock, QuickDisk
from yolo_supervisor.actions.agents import Restart, held
from yolo_supervisor.config import Config, RestartConfig
from yolo_supervisor.daemon.starts import Starter, StartResult
from yolo_supervisor.formats.launch import Launch
from yolo_supervisor.models import Agent, ProcessId
from yolo_supervisor.store.start_ledger import StartLedger
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

DEV = Agent(
    id="dev-1@gate", name="dev-1", role="dev", team="gate", source="tmux", since=datetime(2026, 11, 22, tzinfo=UTC),
    process=ProcessId(401, 7, "earlier"), pid=401,
)  # fmt: skip
LAUNCH = Launch(agent=DEV.id, name="dev-1", session="gate-0-session", argv=("claude",), folder="/project")


def start(store: Store, folder: Path, **evidence: Any) -> StartResult:
    """Start the agent, which ran in no pane: a start that is tried ends with ``pane_gone``."""
    processes = Processes(backend())
    ledger = StartLedger(folder / "starts.json", QuickDisk(), FakeClock(), processes.boot)
    registry = SimpleNamespace(homes=lambda: ())
    starter = Starter(store, processes, cast(Any, None), cast(Any, registry), cast(Any, None), ledger, None)
    action = Restart(
        key=DEV.id, agent=DEV, record="dev-1.json", attempt=1, launch=LAUNCH, note="go on", reason="it died",
        evidence={"record": "dev-1.json", **evidence},
    )  # fmt: skip
    return anyio.run(partial(starter.start, action, "agents", Config(restart=RestartConfig(policy="on-crash"))))


def test_a_hold_after_the_decision_prevents_the_start(project: Path, tmp_path: Path) -> None:
    with closing(Store(project, disk=QuickDisk())) as store, closing(Store(project, disk=QuickDisk())) as by_hand:
        store.open()
        by_hand.open()
        by_hand.note(held(key=DEV.id, reason="a person said so"), "cli")

        assert start(store, tmp_path).result == "held"

        state = store.index.restarts[DEV.id]
        assert (state.held, state.starts) == (True, ())


def test_a_start_by_hand_ends_a_hold(project: Path, tmp_path: Path) -> None:
    with closing(Store(project, disk=QuickDisk())) as store:
        store.open()
        store.note(held(key=DEV.id, reason="a person said so"), "cli")

        assert start(store, tmp_path, by_hand=True).result == "pane_gone"

        assert not store.index.restarts[DEV.id].held
