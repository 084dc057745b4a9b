"""The journaled store between real processes, on full disks, and beside git."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.processes import Children
from support.project import read_task, write_task
from support.wait import LIMIT_S
from yolo_supervisor.actions.agents import Died, Register
from yolo_supervisor.actions.base import Edit, Kind, Verb
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.models import Agent, Task
from yolo_supervisor.store.history import history
from yolo_supervisor.store.lines import load
from yolo_supervisor.store.store import Outcome, Store

OUR_WORLD = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
"""An environment in which a child can import the same modules, this file too."""
SINCE = datetime(2026, 11, 22, 20, 31, 56, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Put(Edit):
    """Make ``content`` the document, from any content."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "a test wants it so"
    content: bytes | None

    def holds(self, before: bytes | None) -> bool:
        return True

    def edit(self, before: bytes | None) -> bytes | None:
        return self.content


@dataclass(frozen=True, kw_only=True)
class Count(Edit):
    """Add one to the number in the document."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "one more"

    @property
    def lock(self) -> tuple[Path, float] | None:
        return self.path.with_name(self.path.name + ".lock"), 10.0

    def holds(self, before: bytes | None) -> bool:
        return before is not None

    def edit(self, before: bytes | None) -> bytes | None:
        return b"%d" % (int(before or b"0") + 1)


def requeue(path: Path, owner: str = "dev-1") -> Requeue:
    task = Task(list="team", number=path.stem, status="in_progress", owner=owner, path=path)
    return Requeue(key=task.id, task=task, owner=owner, cause="died", reason="dev-1 is dead")


def register(store: Store, name: str) -> Register:
    agent = Agent(id=f"{name}@team", name=name, role="dev", team="team", source="test", since=SINCE)
    path = store.paths.agents / own_files.agent_file(agent)
    return Register(key=agent.id, path=path, agent=agent, reason="first seen")


def recorded(store: Store) -> list[tuple[str, str]]:
    """Each journal entry's action and key."""
    return [(entry["action"], entry["key"]) for entry in history(store.paths.journal)]


def journal_lines(store: Store) -> list[dict[str, Any]]:
    lines = store.paths.journal.read_bytes().splitlines()
    assert None not in map(load, lines), "a line of the journal cannot be read"
    return [json.loads(line) for line in lines]


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    opened = Store(project)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def task(claude_home: Path) -> Path:
    return write_task(claude_home, "team", 1, "dev-1", "in_progress")


# -- done, stale, busy -------------------------------------------------------------------------------------------

CLIENT_AT_WORK = """
import os, sys, time
task = sys.argv[1]
os.mkdir(task + ".lock")
whole = open(task).read()
file = open(task, "w")
file.write(whole[: len(whole) // 2])
file.flush()
print("ready", flush=True)
time.sleep(600)
"""


def test_a_task_that_its_client_is_writing_is_busy_and_left_alone(store: Store, task: Path, children: Children) -> None:
    children.python(CLIENT_AT_WORK, str(task))
    half = task.read_bytes()

    assert store.commit(requeue(task), "agents") is Outcome.BUSY

    assert task.read_bytes() == half
    assert sorted(os.listdir(task.parent)) == ["1.json", "1.json.lock"]
    assert recorded(store) == []


WRITER = """
import fcntl, sys, time
fcntl.flock(lock := open(sys.argv[1], "ab"), fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_store_that_another_process_writes_to_is_busy_until_that_ends(
    store: Store, task: Path, children: Children
) -> None:
    writer = children.python(WRITER, str(store.paths.folder / "store.lock"))

    assert store.commit(requeue(task), "agents") is Outcome.BUSY
    assert read_task(task)["status"] == "in_progress"
    writer.kill()
    writer.wait()

    assert store.commit(requeue(task), "agents") is Outcome.DONE


# -- good versions -----------------------------------------------------------------------------------------------

LEASE = b'{\n  "acquired_at": "2026-02-01T00:00:00Z",\n  "owner": "dev-1",\n  "resource": "r",\n  "ttl_secs": 300\n}'


# -- links, modes, git -------------------------------------------------------------------------------------------


@pytest.mark.system
def test_git_status_stays_clean_of_all_that_is_ours(project: Path) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments]
        return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (project / ".yolo-planning" / "STATE.md").write_text("# State\n")
    git("add", "-A")
    git("commit", "-q", "-m", "start")

    store = Store(project)
    store.open()
    store.commit(register(store, "dev-1"), "agents")
    with store.paths.journal.open("ab") as journal:
        journal.write(b"a torn tail")
    store.recover()
    store.close()

    assert git("status", "--porcelain", "--untracked-files=all") == ""


# -- notes and signals ---------------------------------------------------------------------------------------------

DIED = Died(key="dev-1@team", reason="its process has ended", evidence={"pid": 4242})


# -- a folder that goes and comes --------------------------------------------------------------------------------


def test_a_recreated_store_still_has_one_writer(store: Store, task: Path, children: Children) -> None:
    shutil.rmtree(store.paths.folder)
    other = Store(store.paths.project)
    other.open()
    other.close()
    children.python(WRITER, str(store.paths.folder / "store.lock"))

    assert store.commit(requeue(task), "agents") is Outcome.BUSY

    assert read_task(task)["status"] == "in_progress"


# -- no room -----------------------------------------------------------------------------------------------------


def commit_without_and_with_room(project: Path, task: Path) -> None:
    """Commit while the journal may not grow by a whole line, and again when it may; print the outcomes."""
    store = Store(project)
    store.open()
    store.note(replace(DIED, reason="to make the journal larger than any other file " * 20), "test")
    before = store.paths.journal.read_bytes(), task.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) + 100, resource.RLIM_INFINITY))
    try:
        without = str(store.commit(requeue(task), "agents"))
    except OSError as error:
        without = type(error).__name__
    unchanged = before == (store.paths.journal.read_bytes(), task.read_bytes())
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps({"without": without, "unchanged": unchanged, "with": store.commit(requeue(task), "agents")}))


def test_a_journal_without_room_is_an_error_changes_nothing_and_heals_with_room(
    store: Store, task: Path, children: Children
) -> None:
    program = (
        "import sys, pathlib, test_store_processes; print('ready', flush=True);"
        " test_store_processes.commit_without_and_with_room(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    child = children.python(program, str(store.paths.project), str(task), env=OUR_WORLD)

    assert child.stdout is not None
    assert json.loads(child.stdout.read()) == {"without": "OSError", "unchanged": True, "with": "done"}
    assert not store.recover()
    assert recorded(store) == [("died", "dev-1@team"), ("requeued", "team/1")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root, where it may mount, can make a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.system
def test_a_full_disk_is_an_error_changes_nothing_and_all_is_well_when_there_is_room(small_disk: Path) -> None:
    page = b"x" * os.sysconf("SC_PAGE_SIZE")
    document, filler = small_disk / "document", small_disk / "filler"
    document.write_bytes(b"old" * 2000)
    store, failures = Store(small_disk), list[int | None]()
    store.open()

    for pages_left in range(8):
        document.write_bytes(b"old" * 2000)
        room = os.statvfs(small_disk).f_bfree - pages_left
        filler.write_bytes(page * room)
        action = Put(key=str(pages_left), path=document, content=b"new" * 2000)
        try:
            store.commit(action, "test")
        except OSError as error:
            failures.append(error.errno)
            assert document.read_bytes() == b"old" * 2000
        else:
            assert document.read_bytes() == b"new" * 2000
        assert list(small_disk.rglob("*.tmp")) == []
        filler.unlink()
        assert store.commit(action, "test") is Outcome.DONE
        assert document.read_bytes() == b"new" * 2000

    assert set(failures) == {errno.ENOSPC}
    assert len(failures) < 8, "there was never room"
    assert not store.recover()
    store.close()


# -- several writers ---------------------------------------------------------------------------------------------


def count_up(project: Path, name: str, times: int) -> None:
    """Add to the project's count so many times; print the key of every acknowledged commit."""
    store = Store(project, lock_limit_s=LIMIT_S)
    store.open()
    for number in range(times):
        action = Count(key=f"{name}-{number}", path=project / "count")
        while store.commit(action, name) is not Outcome.DONE:
            pass
        print(action.key, flush=True)
    store.close()


def test_several_processes_that_commit_at_once_lose_nothing_and_do_nothing_twice(
    store: Store, children: Children
) -> None:
    count = store.paths.project / "count"
    count.write_text("0")
    program = (
        "import sys, pathlib, test_store_processes; print('ready', flush=True);"
        " test_store_processes.count_up(pathlib.Path(sys.argv[1]), sys.argv[2], 40)"
    )

    writers = [children.python(program, str(store.paths.project), name, env=OUR_WORLD) for name in "abcd"]
    acknowledged = [key for writer in writers if writer.stdout for key in writer.stdout.read().decode().split()]

    assert len(acknowledged) == 160
    assert count.read_text() == "160"
    assert sorted(key for _, key in recorded(store)) == sorted(acknowledged)
    numbers = [line["seq"] for line in journal_lines(store)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not count.with_name("count.lock").exists()


def release_all(project: Path, name: str, leases: int) -> None:
    """Release every lease; print those that this process has released itself."""
    store = Store(project, lock_limit_s=LIMIT_S)
    store.open()
    for number in range(leases):
        action = Release(key=str(number), path=project / f"{number}.lease", owner="dev-1", reason="dev-1 is dead")
        while (outcome := store.commit(action, name)) is Outcome.BUSY:
            pass
        if outcome is Outcome.DONE:
            print(number, flush=True)
    store.close()


def test_one_of_several_releases_of_a_lease_is_done_and_the_others_are_stale(store: Store, children: Children) -> None:
    for number in range(30):
        (store.paths.project / f"{number}.lease").write_bytes(LEASE)
    program = (
        "import sys, pathlib, test_store_processes; print('ready', flush=True);"
        " test_store_processes.release_all(pathlib.Path(sys.argv[1]), sys.argv[2], 30)"
    )

    writers = [children.python(program, str(store.paths.project), name, env=OUR_WORLD) for name in "abc"]
    released = [key for writer in writers if writer.stdout for key in writer.stdout.read().decode().split()]

    assert sorted(released, key=int) == [str(number) for number in range(30)]
    assert recorded(store) == [("released", str(number)) for number in range(30)]
