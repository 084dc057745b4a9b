"""Every call of the disk fails in every way: acknowledged changes stay, and the store works once the disk does."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.budget import SOAK, budget
from support.disks import FaultyDisk, MemoryDisk, Mode, crash_states
from test_crash_states import LOG, PATHS, Life, StillClock, new_disk, small_limits, wrongs
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store

__all__ = ["small_limits"]

STEP = budget(quick=7, full=2, soak=1)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, errno.EMFILE)
PROJECT = Path("/p")
LARGE = b'{"large":"%s"}' % (b"x" * 1500)


def a_store(disk: MemoryDisk) -> Store:
    store = Store(PROJECT, StillClock(), disk)
    store.journal._segment = 2500
    return store


def writing(path: Path, content: bytes | None) -> Callable[[Life, Store], object]:
    return lambda life, store: life.put(store, path, content)


def steps() -> list[Callable[[Life, Store], object]]:
    """One step of each kind; the segment is full several times."""
    return [
        writing(PATHS[0], b'{"n":1}'),
        Life.note,
        writing(PATHS[2], b'{"n":2}'),
        Life.termination,
        writing(LOG, b'{"line":0}\n'),
        Life.loose_note,
        writing(PATHS[4], LARGE),
        Life.keep,
        lambda life, store: store.recover(),
        writing(PATHS[0], None),
        Life.rotate,
        Life.abandoned_termination,
    ]


class FaultyRun:
    """A store on a disk that fails in the middle of its work."""

    def __init__(self, at: int, number: int, mode: Mode) -> None:
        self.disk = FaultyDisk(at, number, mode)
        new_disk(self.disk)
        self.life = Life(self.disk)
        self.wrong: list[str] = []
        self.errors = 0
        self._what = f"{errno.errorcode[number]} {mode} at {at}"
        self._mode = mode

    def run(self, begin: Callable[[Life], Store | None]) -> None:
        """Do the work with the fault in it, then again without."""
        store = begin(self.life) or a_store(self.disk)
        self.disk.repaired = False
        opened = store._lock_fd >= 0
        seen = False
        for step in steps():
            try:
                if not opened:
                    store.close()
                    store.open()
                    opened = True
                step(self.life, store)
            except (OSError, Busy) as error:
                self.errors += 1
                self._expect(not isinstance(error, OSError) or bool(error.errno), f"an unclear error: {error!r}")
            except Exception as error:  # noqa: BLE001  # any error is reported with its moment
                self._expect(False, f"{type(error).__name__}: {error} on {self.disk.log[-1]}")
            if self.disk.failed and not seen:
                seen = True
                self.crash("in the middle")
        self.disk.repaired = True
        self.crash("at once")
        if self._mode == "on" and self.disk.failed.startswith("sync"):
            # the kernel has dropped what was not flushed, and only this store knows: it writes a new segment next time.
            # Another program that is first makes just its own line durable, not the loose ones before it.
            self.life.expect(open=self.life.expected.open | self.life.expected.loose, loose=frozenset())
        self._go_on(store)

    def _go_on(self, store: Store) -> None:
        """Continue on the repaired disk: another program first, then the same one."""
        try:
            other = a_store(self.disk)
            other.open()
            self.life.note(other)
            self.crash("after another program's note")
            other.close()
            with suppress(OSError):
                store.close()
            store.open()
            store.recover()
            for path in PATHS:
                self.life.put(store, path, b"repaired " + path.name.encode())
            self.life.note(store)
            store.recover()
            self.crash("when it was repaired")
            self._expect(not store.journal.pending, f"still pending: {store.journal.pending}")
            store.close()
            self._expect(self.disk.open_fds == 0, f"{self.disk.open_fds} files are left open")
            left = [name for name, _ in self.disk.files() if name.endswith((".tmp", ".stale", ".lock"))]
            left = [name for name in left if self._mode != "on" or "yolo-supervisor" not in name]
            paths = Paths(PROJECT)
            own = {str(paths.store_lock), str(paths.folder.with_name("enrolment.lock"))}
            self._expect(set(left) <= own, f"files are left: {left}")
        except (OSError, Busy, AssertionError) as error:
            self._expect(False, f"not repaired: {type(error).__name__}: {error}")

    def crash(self, when: str) -> None:
        for state in itertools.islice(crash_states(self.disk, "posix", random.Random(1), 0), 0, None if SOAK else 1, 4):
            for wrong in wrongs(state.mount(), self.life.expected):
                self._expect(False, f"a crash {when}: {wrong}")
        everything = self.disk.copy()
        everything.settle()
        for wrong in wrongs(everything, self.life.expected):
            self._expect(False, f"ended {when}: {wrong}")

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.wrong.append(f"{self._what} ({self.disk.failed}): {otherwise}")


def every_fault(mode: Mode, begin: Callable[[Life], Store | None], step: int = STEP) -> Iterator[FaultyRun]:
    """Let each call of the disk fail, each time with another error; without ``SOAK`` only every ``step``-th call."""
    for at in itertools.count(1) if SOAK else itertools.count(1 if mode == "once" else 2, step):
        for number in ERRORS if SOAK else ERRORS[at % len(ERRORS) :][:1]:
            faulty_run = FaultyRun(at, number, mode)
            faulty_run.run(begin)
            yield faulty_run
        if not faulty_run.disk.reached:
            break


def nothing(life: Life) -> None:
    """Begin without a store: it is made while the disk fails."""


def a_crashed_store(life: Life) -> None:
    """Begin with promises of a killed process; the disk fails while the next one recovers."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    for path, content in ((PATHS[0], b"promised"), (PATHS[2], b"promised too"), (LOG, b'{"line":0}\n{"line":1}\n')):
        store = a_store(life.disk)
        store.open()
        store.documents.write = killed  # type: ignore[method-assign, assignment]
        with suppress(Killed):
            life.put(store, path, content)
        store.close()
    life.expect(open=life.expected.open | {"begun"})
    store = a_store(life.disk)
    store.open()
    with suppress(Killed):
        life.termination(store)
    store.close()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("begin", [nothing, a_crashed_store], ids=["a new store", "a recovery"])
@pytest.mark.parametrize("mode", ["once", "on", "short"])
def test_any_failing_call_loses_nothing_and_is_recovered(mode: Mode, begin: Callable[[Life], Store | None]) -> None:
    wrong, errors, runs = list[str](), 0, 0
    for faulty_run in every_fault(mode, begin):
        wrong += faulty_run.wrong
        errors += faulty_run.errors > 0
        runs += 1
        if len(wrong) > 20:
            break
    print(f"\n{runs} faults, {errors} of them seen")

    assert wrong[:5] == []
    assert errors > 100 / STEP
