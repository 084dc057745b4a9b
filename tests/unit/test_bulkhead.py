"""The error of one project, and its work, are its own: another project does not notice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from support.project import EPOCH, FakeClock, QuickDisk, write_task, write_team
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.clock import TURN_S, SystemClock, in_turns
from yolo_supervisor.config import Config
from yolo_supervisor.daemon import executor
from yolo_supervisor.daemon import project as daemon_project
from yolo_supervisor.daemon.executor import Progress
from yolo_supervisor.daemon.project import Project
from yolo_supervisor.daemon.runner import Runner
from yolo_supervisor.daemon.wiring import HostServices
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.read import LIMIT
from yolo_supervisor.inventory import leases
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.task_lists import TaskLists
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux


def services(clock: Any) -> HostServices:
    processes = Processes(backend())
    return HostServices(clock, processes, ProcessScanner(processes), Tmux(clock))


@pytest.fixture
async def watched(project: Path, claude_home: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that is opened again at once after it was lost."""
    monkeypatch.setattr(daemon_project, "REOPEN_S", 0.01)
    return Project(project, Config(), lambda path: Config(), services(SystemClock()), lambda: None)


async def wait_for(watched: Project, *, runs: bool) -> None:
    with anyio.fail_after(300):
        while (watched.runner is not None) is not runs:
            await anyio.sleep(0.005)


def fail(*_: object) -> None:
    raise ValueError("a line of a wrong shape")


class TestErrors:
    async def test_a_project_that_cannot_be_opened_lets_go_of_its_locks(
        self, watched: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(Runner, "open", fail)
            assert isinstance(watched.try_open(), ValueError)
        assert watched.unavailable is not None
        assert "a line of a wrong shape" in watched.unavailable
        assert watched.try_open() is None
        assert watched.unavailable is None
        watched.close()

    async def test_a_failure_between_ticks_ends_one_watch_only(self, watched: Project) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watched.run)
            await wait_for(watched, runs=True)
            first = watched.runner
            await anyio.sleep(0.05)
            assert watched.contain(fail) is None
            await wait_for(watched, runs=False)
            assert "a line of a wrong shape" in (watched.unavailable or "")
            await wait_for(watched, runs=True)
            assert watched.runner is not first
            assert watched.contain(lambda runner: runner.project) == watched.path
            watched.scope.cancel()

    async def test_a_watch_that_fails_begins_again(self, watched: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as broken:
            broken.setattr(Runner, "_after_leases_tick", fail)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watched.run)
                await wait_for(watched, runs=True)
                await wait_for(watched, runs=False)
                broken.undo()
                await wait_for(watched, runs=True)
                watched.scope.cancel()

    async def test_an_error_while_it_stops_releases_the_project(
        self, watched: Project, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert watched.try_open() is None
        with monkeypatch.context() as broken:
            broken.setattr(Runner, "remove_report", fail)
            watched.close()
        assert watched.try_open() is None
        watched.close()


class SlowDisk(QuickDisk):
    """Each flush takes some time of a clock."""

    def __init__(self, clock: FakeClock, sync_s: float) -> None:
        self._clock = clock
        self._sync_s = sync_s

    def sync(self, fd: int) -> None:
        self._clock.wait(self._sync_s)


class TestWork:
    async def test_a_tick_begins_no_more_remediations_after_its_time(self, project: Path, claude_home: Path) -> None:
        clock = FakeClock()
        runner = Runner(project, Config(), services(clock), {})
        alerts = [
            Escalate(kind="agent", code=AlertCode.AGENT_IDLE, key=f"dev-{number}", reason="idle") for number in range(9)
        ]
        with closing(runner):
            runner.open()
            runner.store.journal._disk = SlowDisk(clock, executor.APPLY_S / 2.5)
            ticks = []
            for _ in range(4):
                results = runner.executor.apply("tasks", [(alert,) for alert in alerts])
                ticks.append([result.progress for result in results])
            assert ticks[0] == [Progress.DONE] * 3 + [Progress.LEFT]
            assert ticks[1] == [Progress.DONE] * 6 + [Progress.LEFT]  # what was reported costs nothing
            assert ticks[3] == [Progress.DONE] * 9

    async def test_long_work_lets_others_run(self) -> None:
        clock = FakeClock()
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.sleep(0)

        def work() -> Iterator[None]:
            for _ in range(100):
                clock.wait(0.51 * TURN_S)
                yield

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            async for _ in in_turns(work(), clock):
                pass
            tasks.cancel_scope.cancel()
        assert 40 <= turns <= 60

    async def test_a_document_above_the_limit_is_reported_and_a_long_log_is_cut(
        self, project: Path, claude_home: Path
    ) -> None:
        planning = project / ".yolo-planning"
        (planning / "config.json").write_bytes(b'{"x": "' + b"y" * LIMIT + b'"}')
        (planning / ".events").mkdir()
        (planning / ".events" / "event-log.jsonl").write_bytes(b"{}\n" * LIMIT + b'{"half')
        clock = FakeClock()
        runner = Runner(project, Config(), services(clock), {})
        with closing(runner):
            runner.open()
            seen = runner.parts.state.observe(EPOCH, 0.0)
            assert [(file.key, file.code) for file in seen.unreadable] == [
                ("config.json", errno.errorcode[errno.EFBIG])
            ]
            assert [file.key for file in seen.broken] == [".events/event-log.jsonl"]

    async def test_an_interrupted_look_at_a_task_list_loses_nothing(self, project: Path, claude_home: Path) -> None:
        write_team(claude_home, "red", project)
        for number in range(5):
            write_task(claude_home, "red", number, owner="dev", status="in_progress")
        lists, folder = TaskLists(Paths(project)), claude_home / "tasks" / "red"
        look = lists.read_ahead([folder])
        next(look)
        look.close()  # type: ignore[attr-defined]
        assert [task.number for task in lists.at_work(folder)[0]] == ["0", "1", "2", "3", "4"]

    async def test_thousands_of_expired_leases_are_released_in_portions(
        self, project: Path, claude_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(leases, "DUE", 3)
        clock = FakeClock()
        locks = project / ".yolo-planning" / ".locks"
        locks.mkdir()
        for number in range(5):
            data = plugin_leases.dump_lease(f"r{number}", "dev", EPOCH - timedelta(hours=1), 60)
            (locks / f"r{number}.lease").write_bytes(data)
        runner = Runner(project, Config(), services(clock), {})
        with closing(runner):
            runner.open()
            held = runner.parts.held_leases
            due, next_s = held.due(clock.now())
            assert (len(due), next_s) == (3, leases.REST_S)
            for each in due:
                each.lease.path.unlink()
            due, next_s = held.due(clock.now())
            assert (len(due), next_s) == (2, None)
