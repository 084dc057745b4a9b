"""Locks without a time limit: stale ones, and those that a process may still hold."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.processes import Children
from support.project import FakeClock
from support.wait import wait_until
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.leases import BreakLock, Release
from yolo_supervisor.config import Config
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.inventory import lock_holders, stale_locks
from yolo_supervisor.inventory.leases import Leases
from yolo_supervisor.inventory.lock_holders import LockHolder, LockHolders, subcommand
from yolo_supervisor.inventory.stale_locks import INDEX_STALE_S, StaleLocks
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.store import locks as lock_files
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.git_layout import WorkTree
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.leases import HELD_LONG_S, LeasesWatcher

NOW = datetime(2026, 11, 22, tzinfo=UTC)
IDLE_S = Config().tasks.idle_limit_s
HOLD = """
import os, sys, time
sys.stdin.close()
print("ready", flush=True)
time.sleep(600)
"""


class World:
    """A project with its watcher of locks, and a clock for the time since their last change."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.clock = FakeClock()
        self.store = Store(project, self.clock)
        self.store.open()
        self.living: list[tuple[Agent, Liveness]] = []
        self.restart()

    def restart(self) -> None:
        """Start without observations, as another supervisor does."""
        self.processes = Processes(backend())
        self.locks = StaleLocks(self.store, self.processes, lambda: self.living, self.project / "pid-lock")
        self.watcher = LeasesWatcher(Config(), Leases(self.store, self.clock, "here"), self.locks)

    async def look(self) -> list[Remediation]:
        return list(await self.watcher.tick(NOW))

    async def later(self, s: float) -> list[Remediation]:
        """The decisions after so long without a change."""
        assert await self.look() == []
        self.clock.wait(s)
        return await self.look()

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


async def test_a_folder_with_files_stays_and_is_reported(world: World) -> None:
    """Another program's rule holds for such a folder: the pid may be of another pid namespace."""
    folder = world.project / "pid-lock"
    folder.mkdir()
    (folder / "pid").write_text("1234\n")

    ((alert,),) = await world.later(plugin_agents.PID_LOCK_STALE_S)

    assert isinstance(alert, Escalate)
    assert (alert.code, alert.key) == (AlertCode.LOCK_OF_UNKNOWN, "pid-lock")
    assert f"rm -r {folder}" in alert.reason
    with pytest.raises(lock_files.Busy), lock_files.folder_lock(Disk(), folder, 0.0):
        pass
    assert (folder / "pid").exists()


async def test_a_folder_stays_while_an_older_hook_of_the_plugin_runs(
    world: World, children: Children, tmp_path: Path
) -> None:
    (tmp_path / "hook").write_text("echo ready; read answer\n")
    words = ("yolo", "hook", "SubagentStart")
    hook = children.start(*words, executable="/bin/sh", cwd=tmp_path, stdin=subprocess.PIPE)
    assert hook.stdout is not None
    assert hook.stdout.readline()
    folder = world.project / "pid-lock"
    folder.mkdir()

    ((alert,),) = await world.later(plugin_agents.PID_LOCK_STALE_S)

    assert isinstance(alert, Escalate)
    assert alert.evidence["pids"] == [hook.pid]
    kill(hook)
    assert world.carry_out(await world.look()) == [Outcome.DONE]
    assert not folder.exists()


# -- the plugin's files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [Liveness.ALIVE, Liveness.UNKNOWN])
async def test_a_lock_whose_owner_may_be_there_is_left_alone(world: World, state: Liveness) -> None:
    world.plugin_lock("dev-1")
    world.living = [(agent("dev-1"), state)]

    assert await world.later(10 * IDLE_S) == []


@pytest.mark.parametrize("others", [["dev-1"], []])
async def test_a_lock_of_an_unknown_owner_is_reported_and_stays(world: World, others: list[str]) -> None:
    path = world.plugin_lock("dev-2")
    world.living = [(agent(name), Liveness.ALIVE) for name in others]
    assert await world.later(IDLE_S - 0.1) == []

    ((alert,),) = await world.later(0.2)

    assert isinstance(alert, Escalate)
    assert (alert.code, alert.key, alert.evidence["owner"]) == (AlertCode.LOCK_OF_UNKNOWN, "src/a", "dev-2")
    assert str(path) in alert.reason
    assert path.exists()


async def test_a_lock_that_cannot_be_read_is_left_to_the_plugin_which_takes_it_for_free(world: World) -> None:
    world.plugin_lock("dev-1").write_bytes(b"{")

    assert await world.later(IDLE_S) == []


# -- git's ------------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words],
        cwd=folder, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


@pytest.fixture
def repository(project: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(project, "init", "-q")
    (project / "a").write_text("one")
    git(project, "add", "a")
    git(project, "commit", "-qm", "first")
    return project


def index_lock(folder: Path) -> Path:
    return folder / git(folder, "rev-parse", "--git-path", "index.lock").strip()


def start_git(children: Children, folder: Path, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    """A git that waits for its input."""
    return children.start("git", *words, cwd=folder, stdin=subprocess.PIPE, **options)


def start_holder(children: Children, folder: Path) -> subprocess.Popen[bytes]:
    """A git that has locked the index, and waits for its input."""
    child = start_git(children, folder, "update-index", "--stdin")
    wait_until(index_lock(folder).exists, "the lock")
    return child


def kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


async def alert_after(world: World) -> Escalate:
    """The one alert about a lock that has not changed for long."""
    ((alert,),) = await world.later(INDEX_STALE_S)
    assert isinstance(alert, Escalate)
    assert alert.code is AlertCode.LOCK_OF_UNKNOWN
    return alert


@pytest.mark.parametrize("linked", [False, True], ids=["main", "linked"])
async def test_the_lock_of_a_git_that_was_seen_and_killed_is_put_aside(
    world: World, repository: Path, children: Children, tmp_path: Path, linked: bool
) -> None:
    folder = tmp_path / "other" if linked else repository
    if linked:
        git(repository, "worktree", "add", "-q", str(folder))
    child = start_holder(children, folder)
    lock = index_lock(folder)
    assert await world.later(10 * INDEX_STALE_S) == []

    kill(child)
    (remediation,) = await world.look()

    assert world.carry_out([remediation]) == [Outcome.DONE]
    assert not lock.exists()
    (entry,) = [each for each in history(world.store.paths.journal) if each["action"] == "released"]
    assert entry["evidence"]["pids"] == [child.pid]
    assert len(list(world.store.paths.quarantine.iterdir())) == 1
    git(folder, "commit", "-q", "--allow-empty", "-m", "second")


async def test_a_lock_without_an_observed_holder_stays_and_is_reported_once(
    world: World, repository: Path, children: Children
) -> None:
    lock = repository / ".git" / "index.lock"
    lock.write_bytes(b"DIRC half an index")
    reader = start_git(children, repository, "cat-file", "--batch")

    alert = await alert_after(world)

    assert lock.exists()
    assert (alert.key, alert.evidence["pids"]) == (".git/index.lock", [])
    assert f"process {reader.pid} (git cat-file) only reads there" in alert.reason
    assert f"rm {lock}" in alert.reason
    ((again,),) = await world.look()
    assert again.identity == alert.identity


async def test_the_lock_of_a_killed_git_is_put_aside_beside_a_reader(
    world: World, repository: Path, children: Children
) -> None:
    start_git(children, repository, "cat-file", "--batch")
    child = start_holder(children, repository)
    await world.later(INDEX_STALE_S)
    kill(child)

    assert world.carry_out(await world.look()) == [Outcome.DONE]


async def test_the_lock_of_a_killed_git_stays_while_another_git_is_at_work_there(
    world: World, repository: Path, children: Children
) -> None:
    child = start_holder(children, repository)
    await world.look()
    kill(child)
    other = start_git(children, repository, "hash-object", "--stdin")

    alert = await alert_after(world)

    assert alert.evidence["pids"] == sorted([child.pid, other.pid])
    assert f"process {other.pid} (git hash-object) may hold it" in alert.reason
    kill(other)
    assert world.carry_out(await world.look()) == [Outcome.DONE]


@pytest.mark.parametrize("how", ["--git-dir", "GIT_DIR", "link"])
async def test_a_git_that_works_from_elsewhere_may_hold_the_lock(
    world: World, repository: Path, children: Children, tmp_path: Path, how: str
) -> None:
    (repository / ".git" / "index.lock").touch()
    (tmp_path / "link").symlink_to(repository)
    folder = tmp_path / "link" / ".git"
    words = [f"--git-dir={folder}"] if how == "--git-dir" else []
    options = {"env": {**os.environ, "GIT_DIR": str(folder)}} if how == "GIT_DIR" else {}
    at = tmp_path / "link" if how == "link" else tmp_path
    child = start_git(children, at, *words, "hash-object", "--stdin", **options)

    alert = await alert_after(world)

    assert alert.evidence["pids"] == [child.pid]


@pytest.mark.parametrize("how", ["there", "from here"])
async def test_a_git_at_work_in_another_project_holds_nothing_here(
    world: World, repository: Path, children: Children, tmp_path: Path, how: str
) -> None:
    (repository / ".git" / "index.lock").touch()
    other = tmp_path / "elsewhere"
    other.mkdir()
    git(other, "init", "-q")
    named = {"env": {**os.environ, "GIT_DIR": str(other / ".git")}} if how == "from here" else {}
    start_git(children, repository if how == "from here" else other, "hash-object", "--stdin", **named)

    assert (await alert_after(world)).evidence["pids"] == []


def editing(children: Children, folder: Path, tmp_path: Path, *words: str) -> subprocess.Popen[bytes]:
    """A git that has locked the index, and has closed it while it waits for its editor."""
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\ntouch {tmp_path}/editing\nexec sleep 600\n")
    editor.chmod(0o755)
    (folder / "a").write_text("two")
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", f"core.editor={editor}")
    child = children.start("git", *identity, "commit", *words, cwd=folder, stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "editing").exists, "the editor was not started")
    assert index_lock(folder).exists()
    return child


@pytest.mark.parametrize("words", [["-a"], ["--", "a"]], ids=["all", "paths"])
async def test_the_lock_of_a_git_that_waits_for_its_editor_stays_until_it_is_killed(
    world: World, repository: Path, children: Children, tmp_path: Path, words: list[str]
) -> None:
    child = editing(children, repository, tmp_path, *words)

    assert await world.later(HELD_LONG_S - 1) == []
    world.clock.wait(1)
    ((alert,),) = await world.look()
    assert isinstance(alert, Escalate)
    assert (alert.code, alert.evidence["pids"]) == (AlertCode.LOCK_HELD_LONG, [child.pid])

    kill(child)
    assert world.carry_out(await world.look()) == [Outcome.DONE]


async def test_the_lock_of_a_git_in_another_mount_namespace_stays(
    world: World, repository: Path, children: Children, tmp_path: Path
) -> None:
    """In a container the repository has another path."""
    there = tmp_path / "workspace"
    there.mkdir()
    words = ["git", "update-index", "--stdin"]
    line = f"mount --bind {repository} {there} && cd {there} && exec {shlex.join(words)}"
    child = children.start("unshare", "-rm", "sh", "-c", line, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lock = repository / ".git" / "index.lock"
    wait_until(lambda: lock.exists() or child.poll() is not None, "the lock")
    if not lock.exists():
        pytest.skip("no file system of our own can be mounted here")

    assert await world.later(10 * INDEX_STALE_S) == []
    assert [p.pid for seen in world.locks.seen.values() for p in seen.holders] == [child.pid]

    kill(child)
    assert world.carry_out(await world.look()) == [Outcome.DONE]


async def test_a_lock_on_another_file_system_than_the_quarantine_is_kept_in_the_repository(
    world: World, repository: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Disk.rename

    def rename_here(disk: Disk, old: Path, new: Path) -> None:
        if new.parent == world.store.paths.quarantine:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(disk, old, new)

    monkeypatch.setattr(Disk, "rename", rename_here)
    child = start_holder(children, repository)
    await world.later(INDEX_STALE_S)
    kill(child)

    assert world.carry_out(await world.look()) == [Outcome.DONE]
    assert not index_lock(repository).exists()
    assert [path.name.partition("-")[0] for path in (repository / ".git" / "yolo-supervisor").iterdir()] == [
        "index.lock"
    ]


@pytest.mark.parametrize("name", ["HEAD.lock", "packed-refs.lock", "config.lock", "shallow.lock"])
async def test_other_locks_of_git_follow_the_same_rule(
    world: World, repository: Path, children: Children, name: str
) -> None:
    lock = repository / ".git" / name
    child = children.python(f"lock = open({str(lock)!r}, 'x')\n{HOLD}", cwd=Path("/"))
    assert await world.later(10 * INDEX_STALE_S) == []

    kill(child)

    assert world.carry_out(await world.look()) == [Outcome.DONE]
    assert not lock.exists()


async def test_a_process_that_reads_a_lock_does_not_hold_it(world: World, repository: Path, children: Children) -> None:
    lock = repository / ".git" / "index.lock"
    lock.touch()
    child = children.python(f"lock = open({str(lock)!r})\n{HOLD}", cwd=Path("/"))
    await world.look()
    kill(child)

    await alert_after(world)


async def test_observations_of_locks_survive_the_supervisor(world: World, repository: Path, children: Children) -> None:
    child = start_holder(children, repository)
    await world.look()
    world.store.paths.seen_locks.write_bytes(own_files.dump_seen_locks(world.locks.seen))
    kill(child)
    world.restart()

    assert world.carry_out(await world.later(INDEX_STALE_S)) == [Outcome.DONE]


async def test_a_process_that_has_got_the_pid_of_the_holder_holds_nothing(
    world: World, repository: Path, children: Children
) -> None:
    child = start_holder(children, repository)
    await world.look()
    ((path, seen),) = world.locks.seen.items()
    other = world.processes.identify(children.start("sleep", "600").pid)
    assert other is not None
    earlier = replace(seen, holders=(replace(other, started=other.started - 1),))
    world.store.paths.seen_locks.write_bytes(own_files.dump_seen_locks({path: earlier}))
    kill(child)
    world.restart()

    assert world.carry_out(await world.later(INDEX_STALE_S)) == [Outcome.DONE]


async def test_the_lock_of_a_killed_commit_is_put_aside(world: World, repository: Path, children: Children) -> None:
    """A commit writes down the locks that it takes itself: it does not keep them open."""
    child = start_holder(children, repository)
    await world.look()
    document = repository / ".git" / "yolo-supervisor" / "locks-1.json"
    document.parent.mkdir()
    document.write_bytes(own_files.dump_seen_locks(world.locks.seen))
    kill(child)
    world.restart()

    assert world.carry_out(await world.later(INDEX_STALE_S)) == [Outcome.DONE]


async def test_a_holder_of_another_pid_namespace_is_unknown(world: World, repository: Path, children: Children) -> None:
    child = start_holder(children, repository)
    await world.look()
    ((path, seen),) = world.locks.seen.items()
    boot = world.processes.boot.rpartition("/")[0] + "/1"
    elsewhere = replace(seen, holders=tuple(replace(process, boot=boot) for process in seen.holders))
    world.store.paths.seen_locks.write_bytes(own_files.dump_seen_locks({path: elsewhere}))
    kill(child)
    world.restart()

    alert = await alert_after(world)

    assert alert.evidence["pids"] == [child.pid]
    assert "cannot be seen from here" in alert.reason


async def test_a_lock_on_a_file_system_of_several_machines_stays(
    world: World, repository: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start_holder(children, repository)
    await world.look()
    kill(child)
    monkeypatch.setattr(lock_holders, "is_local", lambda folder: False)

    assert "other machines" in (await alert_after(world)).reason


async def test_a_later_lock_with_the_same_inode_is_another_one(
    world: World, repository: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start_holder(children, repository)
    await world.look()
    kill(child)
    ((path, seen),) = world.locks.seen.items()
    earlier = replace(seen, stamp=seen.stamp._replace(changed_ns=seen.stamp.changed_ns - 1))
    monkeypatch.setattr(world.locks._holders, "seen", {path: earlier})

    await alert_after(world)


async def test_a_new_lock_in_the_place_of_the_one_that_was_left_stands(
    world: World, repository: Path, children: Children
) -> None:
    child = start_holder(children, repository)
    await world.later(INDEX_STALE_S)
    kill(child)
    remediations = await world.look()
    lock = index_lock(repository)
    lock.unlink()
    lock.write_bytes(b"new")

    assert world.carry_out(remediations) == [Outcome.STALE]
    assert lock.read_bytes() == b"new"


async def test_of_many_locks_of_git_some_are_examined_in_each_look_and_all_stay_reported(
    world: World, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To examine a lock all processes are asked: a repository with hundreds of left locks must not delay others."""
    monkeypatch.setattr(stale_locks, "SURVEYS", 2)
    examined: list[str] = []
    look = LockHolders.look

    def record(self: LockHolders, lock: Path, trees: Collection[WorkTree]) -> LockHolder | None:
        examined.append(lock.name)
        return look(self, lock, trees)

    monkeypatch.setattr(LockHolders, "look", record)
    there = ["HEAD.lock", "config.lock", "index.lock", "packed-refs.lock"]
    for name in there:
        (repository / ".git" / name).touch()
    await world.look()
    await world.look()
    assert sorted(set(examined)) == there
    world.clock.wait(INDEX_STALE_S)
    examined.clear()

    (repository / ".git" / "shallow.lock").touch()
    alerts = await world.look()
    assert len(set(examined)) == 2
    assert "shallow.lock" in examined  # a new lock is examined at once
    assert sorted(Path(alert.key).name for (alert,) in alerts) == there


async def test_a_link_in_the_place_of_gits_lock_is_left_alone(world: World, repository: Path, tmp_path: Path) -> None:
    (repository / ".git" / "index.lock").symlink_to(tmp_path / "elsewhere")

    assert "no regular file" in (await alert_after(world)).reason
    assert (repository / ".git" / "index.lock").is_symlink()


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["git", "commit", "-m", "x"], "commit"),
        (["git", "-C", "/a", "-c", "a=b", "--git-dir", "/b", "cat-file", "--batch"], "cat-file"),
        (["/usr/libexec/git-core/git-upload-pack", "/a"], "upload-pack"),
        (["git", "--no-pager", "--git-dir=/b", "log"], "log"),
        (["git"], None),
    ],
)  # fmt: skip
def test_gits_command_is_found_in_its_arguments(argv: list[str], command: str | None) -> None:
    assert subcommand(argv) == command
