"""Locks of the store between real processes: exclusive, and free after the death of a holder."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from support.processes import Children
from support.wait import wait_until
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.journal import Journal
from yolo_supervisor.store.locks import Busy, file_lock, folder_lock

OUR_WORLD = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
"""An environment in which a child can import the same modules, this file too."""


# -- the lock of a file ------------------------------------------------------------------------------------------

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "ab")
fcntl.flock(file, fcntl.LOCK_EX)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_lock_that_another_process_holds_is_busy_until_that_process_dies(children: Children, tmp_path: Path) -> None:
    holder = children.python(HOLDER, str(tmp_path / "lock"))
    fd = os.open(tmp_path / "lock", os.O_RDWR)

    with pytest.raises(Busy), file_lock(Disk(), fd, tmp_path / "lock", 0.02):
        pass
    holder.kill()
    holder.wait()
    with file_lock(Disk(), fd, tmp_path / "lock", 0.0):
        pass

    os.close(fd)


# -- the lock that is a folder -----------------------------------------------------------------------------------

STALE_S = 10.0


def _left_behind(lock: Path, age_s: float) -> Path:
    """Make a lock that its holder refreshed for the last time ``age_s`` seconds ago."""
    lock.mkdir()
    then = time.time() - age_s
    os.utime(lock, (then, then))
    return lock


class DyingHolder(Disk):
    """The disk of a process that died long ago under every lock it gets: the lock is left, stale."""

    def __init__(self, lock: Path) -> None:
        self._lock = lock

    def rename(self, old: Path, new: Path) -> None:
        time.sleep(random.random() / 1000)  # a race needs a slow process
        super().rename(old, new)
        time.sleep(random.random() / 1000)

    def rmdir(self, path: Path) -> None:
        if path == self._lock:
            os.utime(path, (0, 0))
        else:
            super().rmdir(path)


def take_over_and_die(lock: Path, times: int) -> None:
    """Take the stale lock over so many times, always alone under it; print the observations."""
    disk, inside, mine = DyingHolder(lock), lock.with_name("inside"), 0
    while mine < times:
        with suppress(Busy), folder_lock(disk, lock, STALE_S):
            try:
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                print("there were two of us", flush=True)
                return
            time.sleep(random.random() / 1000)
            os.unlink(inside)
            if not lock.is_dir():
                print("the lock was taken from me", flush=True)
                return
            mine += 1
    print("always alone", flush=True)


def test_many_processes_taking_over_one_stale_lock_are_never_two_under_it(children: Children, tmp_path: Path) -> None:
    lock = _left_behind(tmp_path / "1.json.lock", 3600)
    program = (
        "import sys, pathlib, test_file_locks; print('ready', flush=True);"
        " test_file_locks.take_over_and_die(pathlib.Path(sys.argv[1]), 50)"
    )

    takers = [children.python(program, str(lock), env=OUR_WORLD) for _ in range(5)]

    assert [taker.stdout.read() for taker in takers if taker.stdout] == [b"always alone\n"] * 5


# -- the journal under a lock --------------------------------------------------------------------------------------

WRITER = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from support.journal import an_entry
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import file_lock
from yolo_supervisor.store.journal import Journal
folder = Path(sys.argv[1])
lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
journal = Journal(folder / "journal.jsonl", Disk(), folder / "quarantine")
print("ready", flush=True)
for _ in range(100):
    with file_lock(Disk(), lock, folder / "lock", 30):
        journal.catch_up()
        journal.append(an_entry("requeued", sys.argv[2]), durable=False)
"""


def test_processes_that_write_under_a_lock_lose_nothing(tmp_path: Path, children: Children) -> None:
    path, quarantine = tmp_path / "lock", tmp_path / "quarantine"
    quarantine.mkdir()
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    with file_lock(Disk(), lock, path, 1):  # no process gets a head start
        writers = [children.python(WRITER, str(tmp_path), name) for name in ("left", "right")]
    os.close(lock)
    wait_until(lambda: all(writer.poll() is not None for writer in writers), "both to have written")

    journal = Journal(tmp_path / "journal.jsonl", Disk(), quarantine)
    journal.catch_up()

    assert [entry["seq"] for entry in history(tmp_path / "journal.jsonl")] == [*range(1, 201)]
    assert (journal.index.requeues["left"], journal.index.requeues["right"], journal.damage) == (100, 100, [])
