"""Locks without a time limit: which are left behind, and which somebody may still be holding."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from support.processes import Children
from support.project import FakeClock
from support.wait import wait_until
from yolo_supervisor.actions.base import Escalate
from yolo_supervisor.actions.leases import BreakLock, Release
from yolo_supervisor.config import Config
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.inventory.leases import Leases
from yolo_supervisor.inventory.stale_locks import INDEX_STALE_S, StaleLocks
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.store.history import history
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.leases import LeasesWatcher

NOW = datetime(2026, 11, 22, tzinfo=UTC)
IDLE_S = Config().tasks.idle_limit_s
HOLD = """
import os, sys, time
sys.stdin.close()
print("ready", flush=True)
time.sleep(600)
"""


class World:
    """A project with its watcher of locks, and a clock of our own for how long they have not changed."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.clock = FakeClock()
        self.store = Store(project, self.clock)
        self.store.open()
        self.living: list[tuple[Agent, Liveness]] = []
        locks = StaleLocks(self.store, backend(), lambda: self.living, project / "pid-lock")
        self.watcher = LeasesWatcher(Config(), Leases(self.store, self.clock, "here"), locks)

    async def look(self) -> list[Remediation]:
        return list(await self.watcher.tick(NOW))

    async def later(self, s: float) -> list[Remediation]:
        """What is decided when nothing has changed for so long."""
        assert await self.look() == []
        self.clock.wait(s)
        return await self.look()

    async def no_git_later(self, s: float) -> list[Remediation]:
        """The same once no git of another test, which may be at work anywhere, keeps the lock in place."""
        decided = await self.later(s)
        while not decided:
            await anyio.sleep(0.05)
            decided = await self.look()
        return decided

    def carry_out(self, remediations: list[Remediation]) -> list[Outcome]:
        done = []
        for remediation in remediations:
            for action in remediation:
                assert isinstance(action, BreakLock | Release)
                commit: Callable[[Any, str], Outcome] = (
                    self.store.break_lock if isinstance(action, BreakLock) else self.store.commit
                )
                done.append(commit(action, "leases"))
        return done

    def plugin_lock(self, owner: str) -> Path:
        path = self.project / plugin.PLANNING / ".locks" / "src__a.lock"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            execution_state.dump({"acquired_at": "2026-11-22T00:00:00Z", "owner": owner, "resource": "src/a"})
        )
        return path


@pytest.fixture
def world(project: Path) -> Iterator[World]:
    made = World(project)
    with closing(made.store):
        yield made


def agent(name: str) -> Agent:
    return Agent(id=f"{name}@team", name=name, role="dev", team="team", source="tmux", since=NOW)


# -- the plugin's folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["pid-lock", f"{plugin.PLANNING}/.active-agent-count.lock"])
async def test_a_folder_that_a_hook_left_is_removed_after_its_time(world: World, where: str) -> None:
    (world.project / where).mkdir()
    assert await world.later(plugin_agents.PID_LOCK_STALE_S - 0.1) == []

    remediations = await world.later(0.2)

    assert world.carry_out(remediations) == [Outcome.DONE]
    assert not (world.project / where).exists()


# -- the plugin's files -----------------------------------------------------------------------------------------------


async def test_a_lock_is_ended_when_no_agent_is_there_any_more_and_nothing_has_changed(world: World) -> None:
    path = world.plugin_lock("dev-1")
    assert await world.later(IDLE_S - 0.1) == []

    remediations = await world.later(0.2)

    assert world.carry_out(remediations) == [Outcome.DONE]
    assert not path.exists()
    (entry,) = [each for each in history(world.store.paths.journal) if each["action"] == "released"]
    assert (entry["key"], entry["evidence"]["owner"]) == ("src/a", "dev-1")


@pytest.mark.parametrize("state", [Liveness.ALIVE, Liveness.UNKNOWN])
async def test_a_lock_whose_owner_may_be_there_is_left_alone(world: World, state: Liveness) -> None:
    world.plugin_lock("dev-1")
    world.living = [(agent("dev-1"), state)]

    assert await world.later(10 * IDLE_S) == []


async def test_an_unknown_owner_is_reported_while_other_agents_run(
    world: World,
) -> None:
    world.plugin_lock("dev-2")
    world.living = [(agent("dev-1"), Liveness.ALIVE)]

    ((told,),) = await world.later(IDLE_S)

    assert isinstance(told, Escalate)
    assert "dev-2" in told.reason
    assert "src__a.lock" in told.reason


async def test_a_lock_retaken_between_observation_and_action_stands(world: World) -> None:
    path = world.plugin_lock("dev-1")
    remediations = await world.later(IDLE_S)
    world.plugin_lock("dev-2")

    assert world.carry_out(remediations) == [Outcome.STALE]
    assert path.exists()


async def test_a_lock_that_cannot_be_read_is_left_to_the_plugin_which_takes_it_for_free(world: World) -> None:
    world.plugin_lock("dev-1").write_bytes(b"{")

    assert await world.later(IDLE_S) == []


# -- git's ------------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture
def repository(project: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(project, "init", "-q")
    git(project, "commit", "-q", "--allow-empty", "-m", "first")
    return project


async def test_gits_lock_is_put_aside_when_no_git_can_hold_it(world: World, repository: Path) -> None:
    lock = repository / ".git" / "index.lock"
    lock.write_bytes(b"DIRC half an index")
    assert await world.later(INDEX_STALE_S - 0.1) == []

    remediations = await world.no_git_later(0.2)

    assert world.carry_out(remediations) == [Outcome.DONE]
    (aside,) = world.store.paths.quarantine.iterdir()
    assert aside.read_bytes() == b"DIRC half an index"
    git(repository, "commit", "-q", "--allow-empty", "-m", "second")


async def test_the_lock_of_a_linked_work_tree_is_found_too(world: World, repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "-q", str(tmp_path / "other"))
    lock = repository / ".git" / "worktrees" / "other" / "index.lock"
    lock.write_bytes(b"")

    assert world.carry_out(await world.no_git_later(INDEX_STALE_S)) == [Outcome.DONE]
    assert not lock.exists()


async def test_lock_of_a_git_that_waits_for_an_editor_stays(
    world: World, repository: Path, children: Children, tmp_path: Path
) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\ntouch {tmp_path}/editing\nexec sleep 600\n")
    editor.chmod(0o755)
    (repository / "a").write_text("a")
    git(repository, "add", "a")
    words = ["git", "-c", f"core.editor={editor}", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-a"]
    child = children.start(*words, cwd=repository, stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "editing").exists, "the editor was not started")
    lock = repository / ".git" / "index.lock"
    assert lock.exists()

    assert await world.later(10 * INDEX_STALE_S) == []

    child.kill()
    child.wait()
    assert world.carry_out(await world.look()) == [Outcome.DONE]


async def test_a_process_with_the_lock_file_open_holds_it(world: World, repository: Path, children: Children) -> None:
    lock = repository / ".git" / "index.lock"
    lock.write_bytes(b"")
    children.python(f"file = open({str(lock)!r})\n{HOLD}", cwd=Path("/"))

    assert await world.later(10 * INDEX_STALE_S) == []


@pytest.mark.parametrize("how", ["--git-dir", "GIT_DIR"])
async def test_a_git_that_works_from_elsewhere_may_hold_it(
    world: World, repository: Path, children: Children, tmp_path: Path, how: str
) -> None:
    lock = repository / ".git" / "index.lock"
    lock.write_bytes(b"")
    folder = repository / ".git"
    words = ["git", *([f"--git-dir={folder}"] if how == "--git-dir" else []), "cat-file", "--batch"]
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", **({"GIT_DIR": str(folder)} if how == "GIT_DIR" else {})}
    child = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, env=environment)  # waits for its input
    try:
        assert await world.later(10 * INDEX_STALE_S) == []
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("how", ["there", "from here"])
async def test_a_git_at_work_in_another_project_holds_nothing_here(
    world: World, repository: Path, tmp_path: Path, how: str
) -> None:
    (repository / ".git" / "index.lock").write_bytes(b"")
    other = tmp_path / "elsewhere"
    other.mkdir()
    git(other, "init", "-q")
    named = {**os.environ, "GIT_DIR": str(other / ".git")} if how == "from here" else None
    at = repository if how == "from here" else other
    child = subprocess.Popen(["git", "cat-file", "--batch"], cwd=at, stdin=subprocess.PIPE, env=named)
    try:
        assert len(await world.no_git_later(INDEX_STALE_S)) == 1
    finally:
        child.kill()
        child.communicate()


async def test_a_new_lock_in_the_place_of_the_one_that_was_left_stands(world: World, repository: Path) -> None:
    lock = repository / ".git" / "index.lock"
    lock.write_bytes(b"old")
    remediations = await world.no_git_later(INDEX_STALE_S)
    lock.unlink()
    lock.write_bytes(b"new")

    assert world.carry_out(remediations) == [Outcome.STALE]
    assert lock.read_bytes() == b"new"


async def test_a_link_in_the_place_of_gits_lock_is_left_alone(world: World, repository: Path, tmp_path: Path) -> None:
    (repository / ".git" / "index.lock").symlink_to(tmp_path / "elsewhere")

    assert await world.later(10 * INDEX_STALE_S) == []
