"""Programs that write to one project are killed at any moment, repeatedly: each acknowledged write is there, once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.budget import budget
from yolo_supervisor.actions.base import Edit, Kind, Verb
from yolo_supervisor.store.history import History
from yolo_supervisor.store.store import Outcome, Store

KILLS = budget(quick=50, full=1_000, soak=100_000)
SEGMENT = 20_000
"""The size of a segment in bytes: so small that programs are also killed while they begin the next one."""

pytestmark = pytest.mark.timeout(budget(quick=600, full=1200, soak=36_000))


@dataclass(frozen=True, kw_only=True)
class Put(Edit):
    """Make ``content`` the document."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "a test wants it so"
    content: bytes

    @property
    def lock(self) -> tuple[Path, float] | None:
        return (self.path.with_name(self.path.name + ".lock"), 10.0) if self.path.stem == "locked" else None

    def holds(self, before: bytes | None) -> bool:
        return True

    def edit(self, before: bytes | None) -> bytes | None:
        return self.content


def opened(project: Path) -> Store:
    store = Store(project, lock_limit_s=60.0)
    store.journal._segment = SEGMENT
    store.open()
    return store


def put(store: Store, document: Path, name: str, number: int) -> None:
    action = Put(key=f"{name}-{number}", path=document, content=b"%d " % number * 500)
    while store.commit(action, "child") is not Outcome.DONE:
        pass


def a_daemon(project: Path, document: Path, name: str, acknowledge: Callable[[], object]) -> None:
    """Write through one store until killed."""
    with closing(opened(project)) as store:
        acknowledge()
        for number in range(1, 10_000):
            put(store, document, name, number)
            acknowledge()


def commands(project: Path, document: Path, name: str, acknowledge: Callable[[], object]) -> None:
    """Open a new store for each write, until killed."""
    acknowledge()
    for number in range(1, 10_000):
        with closing(opened(project)) as store:
            put(store, document, name, number)
        acknowledge()


class Child:
    """A program at work on its document."""

    def __init__(self, project: Path, work: Callable[..., None], document: Path, name: str) -> None:
        self.document = document
        self.name = name
        document.write_bytes(b"0 " * 500)
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                work(project, document, name, lambda: os.write(writing, b"."))
            os._exit(1)
        os.close(writing)
        self._pipe = reading
        self._began = 0

    def wait(self) -> None:
        """Wait until it is at work, which is its first acknowledgement."""
        self._began += len(os.read(self._pipe, 1))

    def kill(self) -> int:
        """Kill it; the number of writes that it had acknowledged."""
        os.kill(self.pid, signal.SIGKILL)
        _, ending = os.waitpid(self.pid, 0)
        with open(self._pipe, "rb") as pipe:
            acknowledged = len(pipe.read()) + self._began - 1
        assert os.WIFSIGNALED(ending), "the child ended by itself"
        return max(acknowledged, 0)


def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path) -> None:
    (tmp_path / ".yolo-planning").mkdir()
    chance = random.Random(412)
    with closing(opened(tmp_path)) as store:
        followed = History(store.paths.journal)
    kills = total = 0
    while kills < KILLS or total <= KILLS / 10:
        children = [
            Child(tmp_path, a_daemon, tmp_path / "locked.json", f"d{kills}"),
            Child(tmp_path, commands, tmp_path / "commands.json", f"c{kills}"),
        ]
        if chance.random() < 0.5:
            for child in children:
                child.wait()
        time.sleep(chance.uniform(0.001, 0.012))  # a random moment; nothing is waited for
        chance.shuffle(children)
        acknowledged = {child: child.kill() for child in children}
        kills += len(children)

        with closing(opened(tmp_path)) as store:
            recovery = store.recover()
            assert recovery.damage == ()
            assert store.journal.pending == {}
            assert not store.recover()
        followed_keys = [entry.key for entry in followed.new_entries()]
        for child, count in acknowledged.items():
            [found] = set(child.document.read_bytes().split())
            assert count <= int(found) <= count + 1
            assert [key for key in followed_keys if key.startswith(f"{child.name}-")] == [
                f"{child.name}-{number}" for number in range(1, int(found) + 1)
            ]
            total += count
    print(f"\n{kills} kills, {total} acknowledged")
