"""A test of the tests: each known mistake of stores is found by at least one of the searches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.budget import cases
from support.disks import MemoryDisk
from test_bit_rot import rotten
from test_crash_states import PATHS, Exploration, lived, small_limits
from test_faults import every_fault, nothing
from yolo_supervisor.fs.read import digest
from yolo_supervisor.store import atomic, lines
from yolo_supervisor.store import backups as backups_module
from yolo_supervisor.store import documents as documents_module
from yolo_supervisor.store import journal as journal_module
from yolo_supervisor.store.disk import FILE_MODE, Disk
from yolo_supervisor.store.documents import Documents
from yolo_supervisor.store.journal import Journal
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.recovery import Recovery
from yolo_supervisor.store.store import Store

__all__ = ["small_limits"]

Look = Callable[[type[MemoryDisk]], list[str]]


def by_cutting_the_power(disk: type[MemoryDisk]) -> list[str]:
    exploration = Exploration(412)
    for seed in range(5):
        for moment in lived(seed, disk=disk()):
            exploration.crash(moment)
            if exploration.wrong:
                return exploration.wrong
    return []


def by_failing(disk: type[MemoryDisk]) -> list[str]:
    return next((run.wrong for run in every_fault("once", nothing, step=1) if run.wrong), [])


def by_rotting(disk: type[MemoryDisk]) -> list[str]:
    return rotten(400)


LOOKS: tuple[Look, ...] = (by_cutting_the_power, by_failing, by_rotting)


# -- the mistakes ----------------------------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


class NoSyncBeforeRename(MemoryDisk):
    def sync(self, fd: int) -> None:
        if not self._fds[fd][1] & (os.O_EXCL | os.O_TRUNC):
            super().sync(fd)


class NoSyncOfFolders(MemoryDisk):
    def sync(self, fd: int) -> None:
        if not self._opened(fd).folder:
            super().sync(fd)


def no_sync_before_rename(patch: Patch) -> type[MemoryDisk]:
    return NoSyncBeforeRename


def no_sync_of_folders(patch: Patch) -> type[MemoryDisk]:
    return NoSyncOfFolders


def no_sync_before_it_is_acknowledged(patch: Patch) -> None:
    def append(disk: Disk, fd: int, data: bytes, size: int, durable: bool = True) -> None:
        atomic.append(disk, fd, data, size, durable=False)

    patch.setattr(journal_module, "append", append)


def a_torn_tail_stays(patch: Patch) -> None:
    truncate = MemoryDisk.truncate

    def not_the_journal(self: MemoryDisk, fd: int, size: int) -> None:
        if self._fds[fd][0] != self._find(Paths(Path("/p")).journal):
            truncate(self, fd, size)

    patch.setattr(MemoryDisk, "truncate", not_the_journal)


def written_in_place(patch: Patch) -> None:
    def replace(disk: Disk, path: Path, data: bytes, durable: bool = True, expected: bytes | None = None) -> None:
        fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
        disk.write(fd, data)
        disk.sync(fd)
        disk.close(fd)
        atomic.sync_folder(disk, path.parent)

    for module in (documents_module, backups_module):
        patch.setattr(module, "write_atomic", replace)


def the_checksum_is_ignored(patch: Patch) -> None:
    patch.setattr(lines, "unseal", lambda line: line)


def acknowledged_before_it_is_written(patch: Patch) -> None:
    write, waiting = Documents.write, list[Any]()

    def later(self: Documents, *what: Any) -> None:
        for path, _, after, mode in waiting:
            write(self, path, self.disk.read(path), after, mode)
        waiting[:] = [what]

    patch.setattr(Documents, "write", later)


def a_failed_flush_is_tried_again(patch: Patch) -> None:
    class Stubborn:
        """A disk on which a failed flush is repeated."""

        def __init__(self, disk: Disk) -> None:
            self.write, self.truncate = disk.write, disk.truncate
            self._sync = disk.sync

        def sync(self, fd: int) -> None:
            try:
                self._sync(fd)
            except OSError:
                self._sync(fd)

    def append(disk: Disk, fd: int, data: bytes, size: int, durable: bool = True) -> None:
        atomic.append(Stubborn(disk), fd, data, size, durable)  # type: ignore[arg-type]

    patch.setattr(journal_module, "append", append)


def nothing_is_read_after_a_bad_line(patch: Patch) -> None:
    take = Journal._take

    def up_to_it(self: Journal, data: bytes) -> None:
        parts = data.splitlines(keepends=True)
        sealed = itertools.takewhile(lambda line: lines.load(line[:-1]) is not None, parts)
        good = b"".join(sealed)
        take(self, good)
        self._offset += len(data) - len(good)

    patch.setattr(Journal, "_take", up_to_it)


def the_checksum_file_decides(patch: Patch) -> None:
    recover = Store.recover

    def trusting(self: Store) -> Recovery:
        recovery = recover(self)
        for path in PATHS:
            recorded, data = self.disk.read(path.with_name(path.name + ".sha256")), self.disk.read(path)
            if (
                recorded is not None
                and len(recorded) == 64
                and data is not None
                and str(digest(data)).encode() != recorded
            ):
                atomic.write_atomic(self.disk, path, next(self.versions(path), b""))
        return recovery

    patch.setattr(Store, "recover", trusting)


MISTAKES: tuple[tuple[Callable[[Patch], type[MemoryDisk] | None], Look], ...] = (
    (no_sync_before_it_is_acknowledged, by_cutting_the_power),
    (no_sync_before_rename, by_cutting_the_power),
    (no_sync_of_folders, by_cutting_the_power),
    (a_torn_tail_stays, by_cutting_the_power),
    (written_in_place, by_cutting_the_power),
    (acknowledged_before_it_is_written, by_cutting_the_power),
    (the_checksum_file_decides, by_cutting_the_power),
    (a_failed_flush_is_tried_again, by_failing),
    (the_checksum_is_ignored, by_rotting),
    (nothing_is_read_after_a_bad_line, by_rotting),
)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("mistake", "look"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_this_mistake_is_found(
    mistake: Callable[[Patch], type[MemoryDisk] | None], look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mistake(monkeypatch) or MemoryDisk

    assert look(disk) != []


@pytest.mark.parametrize("look", cases(LOOKS, LOOKS[2:]))
def test_without_a_mistake_nothing_is_found(look: Look) -> None:
    assert look(MemoryDisk) == []
