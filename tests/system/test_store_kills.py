"""A process that commits is killed at any moment: each acknowledged commit is there, once."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from support.budget import budget
from yolo_supervisor.actions.base import Edit, Kind, Verb
from yolo_supervisor.store.history import history
from yolo_supervisor.store.store import Outcome, Store

# -- the journal --------------------------------------------------------------------------------------------------


def recorded(store: Store) -> list[tuple[str, str]]:
    found = history(store.paths.journal)
    return [(entry["action"], entry["key"]) for entry in found if entry["by"] != "staging"]


# -- a process that is killed ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Count(Edit):
    """Add one to the number that the document repeats many times, so that a torn one shows."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "one more"

    @property
    def lock(self) -> tuple[Path, float] | None:
        return self.path.with_name(self.path.name + ".lock"), 0.0  # one process lives at a time: any lock is stale

    def holds(self, before: bytes | None) -> bool:
        return before is not None

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return b"%d " % (counted(before) + 1) * 2000


def counted(document: bytes) -> int:
    numbers = set(document.split())
    assert len(numbers) == 1, "the document is a mixture"
    assert document.count(b" ") == 2000, "the document is torn"
    return int(numbers.pop())


def count_for_ever(project: Path, pipe: int) -> None:
    """Commit and acknowledge, one byte each, until killed."""
    store = Store(project)
    store.open()
    while True:
        if store.commit(Count(key="count", path=project / "count"), "child") is Outcome.DONE:
            os.write(pipe, b".")


def killed_after(project: Path, commits: int, delay_s: float) -> int:
    """The number of commits that a process acknowledged until it was killed, a while after ``at_least``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            count_for_ever(project, writing)
        os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        acknowledged = len(pipe.read(commits))
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)
        _, ending = os.waitpid(pid, 0)
        acknowledged += len(pipe.read())
    assert os.WIFSIGNALED(ending), "the child ended by itself"
    return acknowledged


def test_a_process_killed_at_any_moment_has_lost_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    (tmp_path / ".yolo-planning").mkdir()
    document, chance = tmp_path / "count", random.Random(412)
    document.write_bytes(b"0 " * 2000)
    value = total = 0
    for _ in range(budget(quick=30, full=100, soak=1000)):
        acknowledged = killed_after(tmp_path, chance.randrange(4), chance.uniform(0.0, 0.01))
        total += acknowledged
        with closing(Store(tmp_path)) as store:
            store.open()
            store.recover()
            found = counted(document.read_bytes())
            assert found in (value + acknowledged, value + acknowledged + 1)
            assert not store.recover()
            assert counted(document.read_bytes()) == found
            assert len(recorded(store)) == found
        value = found
    assert total > 20
