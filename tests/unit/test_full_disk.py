"""A document that cannot be written is tried again when its cause has ended, and not before."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from support.disks import use_disk
from support.project import FakeClock, QuickDisk
from support.wait import LIMIT_S
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.config import Config
from yolo_supervisor.daemon import runner as runner_module
from yolo_supervisor.daemon.executor import RECHECK_S, REST_S, Progress, Result
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import Task
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux

DISK_ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS]


class SmallDisk(QuickDisk):
    """A disk whose second file system, with the client's task list, has a fault at times."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fault: int | None = None
        self.renames = True
        self.tries = 0

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if self.fault is not None and path.parent == self.folder and flags & os.O_CREAT:
            raise OSError(self.fault, os.strerror(self.fault), str(path))
        return super().open(path, flags, mode)

    def rename(self, old: Path, new: Path) -> None:
        if new.parent == self.folder:
            self.tries += 1
            if not self.renames:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
        super().rename(old, new)

    def exchange(self, one: Path, other: Path) -> None:
        if other.parent == self.folder:
            self.tries += 1
            if not self.renames:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(other))
        super().exchange(one, other)


class RequeueCase:
    """A project whose daemon has to requeue one task."""

    def __init__(self, project: Path, claude_home: Path, tasks: Path) -> None:
        self.clock, processes = FakeClock(), Processes(backend())
        services = HostServices(self.clock, processes, ProcessScanner(processes), Tmux(self.clock))
        self.runner = Runner(project, Config(), services, {"HOME": str(claude_home.parent)})
        self.disk = SmallDisk(tasks)
        use_disk(self.runner.store, self.disk)
        self.runner.open()
        self.looks_again_soon = False
        self.path = tasks / "1.json"
        self.path.write_text('{"id": "1", "status": "in_progress", "owner": "dev"}')

    def look(self, after_s: float = 0.0) -> Progress:
        self.clock.wait(after_s)
        task = Task(list="red", number="1", status="in_progress", owner="dev", path=self.path)
        requeue = Requeue(key=task.id, task=task, owner="dev", cause="died", reason="its owner is dead")
        (result,) = self.runner.executor.apply("tasks", [(requeue,)])
        self.looks_again_soon = result.may_end
        return result.progress

    def status(self) -> str:
        status: str = json.loads(self.path.read_text())["status"]
        return status

    def journal_size(self) -> int:
        return self.runner.store.paths.journal.stat().st_size


@pytest.fixture
def case(project: Path, claude_home: Path, tmp_path: Path) -> Iterator[RequeueCase]:
    tasks = tmp_path / "other" / "red"
    tasks.mkdir(parents=True)
    built = RequeueCase(project, claude_home, tasks)
    yield built

    async def close() -> None:
        built.runner.close()

    anyio.run(close)


@pytest.mark.parametrize("number", DISK_ERRORS, ids=errno.errorcode.get)
def test_a_task_is_requeued_soon_after_its_disk_has_room_again(case: RequeueCase, number: int) -> None:
    case.disk.fault = number
    assert case.look() is Progress.FAILED
    for _ in range(100):
        assert case.look(RECHECK_S) is Progress.FAILED
        assert case.looks_again_soon

    case.disk.fault = None

    assert case.look(RECHECK_S) is Progress.DONE
    assert not case.looks_again_soon
    assert case.status() == "pending"


def test_while_a_disk_is_full_no_try_is_journaled(case: RequeueCase) -> None:
    case.disk.fault = errno.ENOSPC
    case.look()
    size = case.journal_size()

    for _ in range(1000):
        assert case.look(RECHECK_S) is Progress.FAILED

    assert case.journal_size() == size


def test_a_write_that_fails_though_there_is_room_is_tried_less_and_less_often(case: RequeueCase) -> None:
    case.disk.renames = False

    for _ in range(600):
        assert case.look(1.0) is Progress.FAILED

    assert 600 / REST_S <= case.disk.tries <= 600 / REST_S + 4


def test_after_another_failure_a_task_rests_for_its_whole_time(case: RequeueCase) -> None:
    case.disk.fault = errno.EACCES
    assert case.look() is Progress.FAILED
    assert not case.looks_again_soon
    case.disk.fault = None

    assert case.look(REST_S - 0.1) is Progress.FAILED
    assert case.look(0.1) is Progress.DONE


async def test_a_watcher_whose_action_met_a_full_disk_is_woken_once_soon(
    case: RequeueCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RECHECK_S", 0.01)
    runner = case.runner
    watcher, full = runner.parts.tasks, Result(Progress.FAILED, "No space left on device", may_end=True)
    wakeup = runner.wakeups[watcher.name]
    wakeup.rest()

    async with anyio.create_task_group() as tasks:
        runner._tasks = tasks
        for _ in range(3):
            runner._pace(watcher, [full])
        assert len(runner._wakes_at_s) == 1
        await wakeup.wait()

    assert runner._wakes_at_s == {}


async def test_a_watcher_whose_time_to_wake_is_over_is_woken_at_once(case: RequeueCase) -> None:
    """A busy machine may take longer to start the task that waits than it has to wait."""
    runner = case.runner
    wakeup, name = runner.wakeups[runner.parts.tasks.name], runner.parts.tasks.name
    runner._wakes_at_s[name] = at_s = time.monotonic() - 1.0
    wakeup.rest()

    await runner._wake_at(name, at_s)

    with anyio.fail_after(LIMIT_S):
        await wakeup.wait()
