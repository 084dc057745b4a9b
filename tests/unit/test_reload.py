"""A reload reaches every part of a project, and loses nothing that the parts know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config, TasksConfig
from yolo_supervisor.daemon.executor import Progress
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import Task
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux

ONE_A_SECOND = Config(tasks=TasksConfig(requeues_per_s=1.0))


@pytest.fixture
def runner(project: Path, claude_home: Path) -> Iterator[Runner]:
    clock, processes = SystemClock(), Processes(backend())
    services = HostServices(clock, processes, ProcessScanner(processes), Tmux(clock))
    made = Runner(project, ONE_A_SECOND, services, {"HOME": str(claude_home.parent)})
    made.open()
    yield made

    async def close() -> None:
        made.close()

    anyio.run(close)


def test_every_part_is_kept_and_gets_the_new_configuration(runner: Runner) -> None:
    parts, config = dict(vars(runner.parts)), Config(mode="observe")

    runner.reload(config)

    assert all(vars(runner.parts)[name] is part for name, part in parts.items())
    configured = {name for name, part in parts.items() if hasattr(part, "config")}
    assert configured >= {"agents", "sessions", "tasks", "leases", "state", "flags", "retry_policy", "investigator"}
    assert all(parts[name].config is config for name in configured)


def test_the_home_of_the_client_follows_the_configuration(runner: Runner, tmp_path: Path) -> None:
    runner.reload(Config(claude_dir=str(tmp_path / "other")))

    assert runner.parts.registry.snapshot().homes == (tmp_path / "other",)


def test_a_lasting_alert_is_not_logged_again_after_a_reload(runner: Runner) -> None:
    alert = Escalate(kind="agent", code=AlertCode.AGENT_SILENT, key="dev", reason="silent for 9 s")

    with capture_logs() as lines:
        runner.executor.apply("tasks", [(alert,)])
        runner.reload(ONE_A_SECOND)
        runner.executor.apply("tasks", [(alert,)])
        runner.executor.apply("tasks", [])

    assert [line["event"] for line in lines] == ["alert", "alert_resolved"]


def test_the_batch_limit_counts_the_requeues_before_a_reload(runner: Runner, tmp_path: Path) -> None:
    def requeue(number: int) -> Requeue:
        path = tmp_path / f"{number}.json"
        path.write_text(f'{{"id": "{number}", "status": "in_progress", "owner": "dev"}}')
        task = Task(list="red", number=str(number), status="in_progress", owner="dev", path=path)
        return Requeue(key=task.id, task=task, owner="dev", cause="died", reason="its owner is dead")

    (before,) = runner.executor.apply("tasks", [(requeue(1),)])
    runner.reload(ONE_A_SECOND)
    (after,) = runner.executor.apply("tasks", [(requeue(2),)])

    assert (before.progress, after.progress) == (Progress.DONE, Progress.WAITS)
