"""The daemon saves the work of dead agents in the background, and says where it is, whatever fails meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from structlog.testing import capture_logs
from test_salvage import make_dirty, new_repo

from support.project import EPOCH, FakeClock, QuickDisk
from support.wait import LIMIT_S
from test_commit import clean_git_environment, git_config
from yolo_supervisor.actions.agents import SaveWork
from yolo_supervisor.config import Config
from yolo_supervisor.daemon import salvage
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.daemon.salvage import WorkSaver
from yolo_supervisor.formats import crash_report
from yolo_supervisor.formats.crash_report import Evidence
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.crash_evidence import CrashInvestigator
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.saved_work import SavedWork, sharing
from yolo_supervisor.models import Agent, ProcessId
from yolo_supervisor.store.history import history
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.death_watch import DeathWatch
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

__all__ = ["clean_git_environment", "git_config"]

RECORD = "dev-1.json"


class SmallDisk(QuickDisk):
    """A disk that is full while ``full`` is set."""

    full = False

    def write(self, fd: int, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, data)


class Saving:
    """A saver of one project's work, and an agent of it that SIGSEGV has ended."""

    def __init__(self, project: Path) -> None:
        self.project, self.disk, self.saved = project, SmallDisk(), SavedWork()
        self.store = Store(project, disk=self.disk)
        self.store.open()
        processes = Processes(backend())
        scanner, self._deaths = ProcessScanner(processes), DeathWatch(processes.backend)
        registry = AgentRegistry(self.store.paths, processes, scanner, ())
        self._investigator = CrashInvestigator(
            Config(), registry, self.store.paths, processes, scanner, self._deaths, FakeClock()
        )
        process = ProcessId(1 << 22, 1, processes.boot)
        self._agent = Agent(
            id="dev-1@red", name="dev-1", role="dev", team="red", source="team", since=EPOCH, process=process,
            pid=process.pid,
        )  # fmt: skip
        log = structlog.get_logger()
        self.saver = WorkSaver(
            self.store, self.saved, self._investigator, AlertLog(log), FailureLog(log), self._has_ended
        )
        self.ended = anyio.Event()

    def _has_ended(self) -> None:
        self.ended.set()

    async def die(self, wait_status: int = 11) -> None:
        """Investigate the death and write the crash report, as the daemon does before."""
        assert self._agent.process is not None
        self._deaths.exits[self._agent.process] = wait_status
        await self._investigator.collect({RECORD: self._agent}, EPOCH, {})
        crash = self._investigator.crash(RECORD)
        assert crash is not None
        if not crash.clean:
            self.store.save_crash_report(crash.report, "agents")

    async def save(self, folder: Path, *shared_with: str) -> None:
        """Save the work, and wait for the end of that."""
        action = SaveWork(
            key="dev-1@red", name="dev-1", record=RECORD, folder=folder, shared_with=shared_with, reason="dead"
        )
        with anyio.fail_after(LIMIT_S):
            async with anyio.create_task_group() as tasks:
                self.saver.tasks = tasks
                self.saver.start(action, "agents")
                self.saver.start(action, "agents")  # decided again while it is under way
                await self.ended.wait()
                assert self.saved.is_done(RECORD)
                self.disk.full = False

    def entries(self) -> list[dict[str, Any]]:
        return [entry for entry in history(self.store.paths.journal) if entry["kind"] == "agent"]

    def work(self) -> dict[str, Any]:
        """What the crash report says about the work."""
        (path,) = self.store.paths.crashes.glob("*.json")
        report = crash_report.load(path.read_bytes())
        assert report is not None
        return dict(report.work)


@pytest.fixture
def saving(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Saving]:
    monkeypatch.setattr(salvage, "RECORD_AGAIN_S", 0.01)
    new_repo(project)
    saving = Saving(project)
    with closing(saving.store):
        yield saving


async def test_journal_log_and_crash_report_name_the_copy(saving: Saving) -> None:
    make_dirty(repo := new_repo(saving.project.parent / "other"))

    with capture_logs() as logs:
        await saving.die()
        await saving.save(repo.folder, "dev-2")

    (entry,) = saving.entries()
    ref = saving.saved.ref(RECORD)
    evidence = entry["evidence"]
    assert (entry["action"], entry["key"], evidence["ref"]) == ("work_saved", "dev-1@red", ref)
    assert repo.git("rev-parse", "--verify", f"{ref}^{{commit}}")
    assert (evidence["folder"], evidence["shared_with"]) == (str(repo.folder), ["dev-2"])
    assert "dev-2" in entry["reason"]
    assert f"git -C {repo.folder} diff HEAD {ref}" in evidence["commands"][0]
    assert [line["event"] for line in logs] == ["work_saved"]
    assert saving.work()["ref"] == ref
    assert saving.work()["commands"] == evidence["commands"]


async def test_nothing_is_written_where_there_is_no_uncommitted_work(saving: Saving) -> None:
    with capture_logs() as logs:
        await saving.die()
        await saving.save(saving.project.parent)

    assert (saving.entries(), logs, saving.work()) == ([], [], {})


async def test_an_agent_without_a_crash_report_gets_none(saving: Saving) -> None:
    await saving.die(wait_status=15)
    saving.project.joinpath("new").touch()
    await saving.save(saving.project)

    assert [entry["action"] for entry in saving.entries()] == ["work_saved"]
    assert [*saving.store.paths.crashes.glob("*")] == []


async def test_work_that_cannot_be_saved_is_an_alert_and_delays_nothing(
    saving: Saving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    await saving.die()
    await saving.save(saving.project)

    (entry,) = saving.entries()
    assert (entry["action"], entry["evidence"]["outcome"]) == ("escalated", "failed")
    assert saving.work()["outcome"] == "failed"


async def test_entry_follows_when_the_disk_has_room_again(saving: Saving) -> None:
    saving.project.joinpath("new").touch()
    await saving.die()
    saving.disk.full = True

    with capture_logs() as logs:
        await saving.save(saving.project)

    assert [entry["action"] for entry in saving.entries()] == ["work_saved"]
    assert [line["event"] for line in logs] == ["save_work_failed", "work_saved", "save_work_recovered"]
    assert saving.work()["ref"] == saving.saved.ref(RECORD)


async def test_no_error_keeps_an_agent_from_coming_back(saving: Saving, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(salvage, "save_work", broken)
    await saving.save(saving.project)

    (entry,) = saving.entries()
    assert entry["action"] == "escalated"
    assert "a mistake of ours" in entry["reason"]


async def test_event_loop_runs_while_work_is_saved(saving: Saving) -> None:
    for number in range(500):
        saving.project.joinpath(f"{number}").write_text(f"{number}\n" * 100)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while not saving.ended.is_set():
            turns += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turn)
        await saving.save(saving.project)

    assert turns > 50


def test_those_in_the_same_work_tree_share_it(project: Path, tmp_path: Path) -> None:
    new_repo(project)
    inside, linked = project / "folder", project / "tree"
    for folder in (inside, linked):
        folder.mkdir()
    (linked / ".git").write_text("gitdir: elsewhere\n")
    at = [("dev-2", inside), ("dev-3", project), ("dev-4", linked), ("dev-5", tmp_path), ("dev-2", inside)]

    assert sharing(inside, at) == ("dev-2", "dev-3")
    assert sharing(linked, at) == ("dev-4",)
    assert sharing(tmp_path, at) == ()


def test_many_deaths_are_forgotten_again() -> None:
    saved = SavedWork()
    for number in range(1001):
        saved.done(str(number), None)

    assert not saved.is_done("0")
    assert saved.is_done("1")


def test_report_keeps_what_is_known_of_the_work() -> None:
    agent = Agent(id="a", name="a", role="dev", team=None, source="test", since=EPOCH)
    ref = "refs/yolo-supervisor/rescue/20261130T033433.475068Z-agent-dev-1"
    report = crash_report.Report(
        agent=agent, evidence=Evidence(at=EPOCH), verdict=crash_report.Verdict(
            cause=crash_report.CrashCause.UNKNOWN, confidence=0, reason="none"
        ), more={"work": {"ref": ref, "folder": "/work/it", "commands": [f"git diff HEAD {ref}"]}},
    )  # fmt: skip

    loaded = crash_report.load(crash_report.dump(report))

    assert loaded is not None
    assert loaded.work == report.more["work"]
