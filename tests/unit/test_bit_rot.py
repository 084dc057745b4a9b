"""Bit rot in our files: all that is read is true, and every loss is reported."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from support.budget import budget
from support.disks import MemoryDisk
from support.journal import an_entry
from test_crash_states import PATHS, PROJECT, Life, new_disk, opened, recorded, small_limits
from yolo_supervisor.actions import notes
from yolo_supervisor.fs.read import digest
from yolo_supervisor.store.lines import Entry, Write, load
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store

__all__ = ["small_limits"]

MUTATIONS = budget(quick=500, full=10_000, soak=1_000_000)
FOLDER = f"{Paths(PROJECT).folder}/"


def a_life() -> MemoryDisk:
    """A store with several segments, good versions, counts, and promises that are open."""
    disk = new_disk()
    life = Life(disk, 7)
    with closing(opened(disk)) as store:
        for _ in range(10):
            life.step(store)
        for step in (life.keep, life.keep, life.note):
            step(store)
        for n in range(2):
            write = Write(path=f"/p/docs/{n}", before=None, after=None, replay=True)
            store.journal.append(an_entry("requeued", f"team/{n}", write=write))
        for n in range(6):
            store.journal.append(an_entry("requeued", f"team/{n}"))
    newest = disk.content(Paths(PROJECT).journal) or b""
    assert newest.count(b"\n") >= 3, "most mutations are of the newest segment: it needs lines behind its checkpoint"
    disk.settle()
    return disk


# -- mutations of bytes ----------------------------------------------------------------------------------------------

Mutation = Callable[[bytes, random.Random], bytes]


def flip_a_bit(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def cut_at_the_end(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def zero_a_run(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.choice([1, 8, 100, 512])
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


def splice(data: bytes, chance: random.Random) -> bytes:
    """Remove bytes in the middle."""
    at = chance.randrange(len(data))
    return data[:at] + data[at + chance.choice([1, 8, 100, 512]) :]


def repeat(data: bytes, chance: random.Random) -> bytes:
    """Write bytes twice."""
    at, size = chance.randrange(len(data)), chance.choice([1, 8, 100, 512])
    return data[: at + size] + data[at:]


def change_a_digit(data: bytes, chance: random.Random) -> bytes:
    digits = [at for at, byte in enumerate(data) if chr(byte).isdigit()] or [0]
    at = chance.choice(digits)
    return data[:at] + b"%d" % chance.randrange(10) + data[at + 1 :]


def lose_lines(data: bytes, chance: random.Random) -> bytes:
    """Remove whole lines: the others look right."""
    lines = data.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    return b"".join(lines[:at] + lines[at + chance.randrange(1, 3) :])


def swap_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    one, two = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[two] = lines[two], lines[one]
    return b"".join(lines)


def empty(data: bytes, chance: random.Random) -> bytes:
    return b""


MUTATIONS_OF_A_FILE: tuple[tuple[Mutation, int], ...] = (
    (flip_a_bit, 6), (cut_at_the_end, 3), (zero_a_run, 3), (splice, 3), (repeat, 3), (change_a_digit, 3),
    (lose_lines, 2), (swap_lines, 1), (empty, 1),
)  # fmt: skip


# -- the rules -------------------------------------------------------------------------------------------------------


def memory(store: Store) -> Any:
    journal = store.journal
    return dict(journal.pending), dict(journal.index.requeues), journal.index.good_versions


def requeues_in(disk: MemoryDisk) -> set[str]:
    """The tasks that were requeued by lines that can be read, as far as these are in order."""
    data = disk.content(Paths(PROJECT).journal) or b""
    lines = [line for each in data.split(b"\n")[:-1] if (line := load(each)) is not None]
    if sorted(lines, key=lambda line: line.seq) != lines:
        return set()
    return {line.key for line in lines if type(line) is Entry and line.action == "requeued"}


def journals(disk: MemoryDisk) -> bytes:
    return b"".join(node.data for name, node in disk.files() if "/journal" in name)


def rots(disk: MemoryDisk, rotten: bytes, before: Any, unflushed: list[Any]) -> str | None:
    """The first mistake of a store on a disk with a mutated file; None if there is none."""
    try:
        with closing(opened(disk)) as store:
            now, silent = memory(store), not store.journal.damage and not store.journal.torn
            if silent and now != before and now not in unflushed:
                return f"silently another memory: {now} instead of {before}"
            if any(digest(data) not in now[2][str(PATHS[0])] for data in store.versions(PATHS[0])):
                return "a version is kept that was never good"
            if unread := requeues_in(disk) - store.index.requeues.keys():
                return f"lines that are whole were not read: {unread}"
            recovery = store.recover()
            if not silent and not (recovery.damage or recovery.torn):
                return "the recovery does not report the loss"
            store.note(notes.daemon("reloaded", key="after", reason="asked to"), "test")
        kept = journals(disk)
        for line in rotten.split(b"\n")[:-1]:
            if line not in kept and load(line) is not None:
                return f"a line that was whole is gone: {line!r}"
        if recorded(disk).count("after") != 1:
            return "an entry written after it is not in the journal"
    except OSError:
        return None
    except Exception as error:  # noqa: BLE001  # any error is reported with its mutation
        return f"{type(error).__name__}: {error}"
    return None


def without_the_unflushed(disk: MemoryDisk) -> list[Any]:
    """The memories that a power cut may leave: it takes lines after the newest one that was acknowledged."""
    found = []
    for cut in (1, 2):
        short = disk.copy()
        path = Paths(PROJECT).journal
        lines = (short.content(path) or b"").splitlines(keepends=True)
        short.put(path, b"".join(lines[:-cut]))
        with closing(opened(short)) as store:
            if not store.journal.damage:
                found.append(memory(store))
    return found


OURS = ("journal.jsonl", "journal.mark", "journal-", "backups/")


def rotten(mutations: int, names: tuple[str, ...] = OURS) -> list[str]:
    whole, chance = a_life(), random.Random(412)
    files = [name for name, _ in whole.files() if name.startswith(tuple(FOLDER + name for name in names))]
    newest = [name for name in files if name.endswith("journal.jsonl")]
    with closing(opened(whole.copy())) as store:
        before = memory(store)
    unflushed, wrong = without_the_unflushed(whole), []
    kinds, weights = zip(*MUTATIONS_OF_A_FILE, strict=True)
    for _ in range(mutations):
        disk = whole.copy()
        name = chance.choice(newest if newest and chance.random() < 0.6 else files)
        [mutate] = chance.choices(kinds, weights)
        node = dict(disk.files())[name]
        node.data = node.kept = mutate(node.data, chance) if node.data else b"x"
        rot = node.data if "/journal" in name else b""
        if (found := rots(disk, rot, before, unflushed)) is not None:
            wrong.append(f"{mutate.__name__} of {name.removeprefix(FOLDER)}: {found}")
            if len(wrong) > 50:
                break
    print(f"\n{mutations} mutations of {len(files)} files")
    return wrong


def test_corruption_is_reported_and_intact_data_is_kept() -> None:
    assert rotten(MUTATIONS)[:5] == []


@pytest.mark.parametrize("name", ["journal.jsonl", "journal.mark", "backups/"])
def test_each_of_our_files_is_looked_at(name: str) -> None:
    assert rotten(100, (name,))[:5] == []
