"""The ledger of starts under many real processes: one slot goes to one of them, and a kill loses none."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from support.budget import budget
from support.project import QuickDisk
from support.wait import LIMIT_S
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import RestartConfig
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.start_ledger import BUSY_WAIT_S, StartLedger

TAKERS = 10
ROUNDS = budget(quick=20, full=200, soak=5_000)
KILLS = budget(quick=50, full=500, soak=20_000)

DAY = RestartConfig(host_pause_s=86400.0)
"""One start a day."""

FREE = RestartConfig(host_pause_s=0.0, host_starts=1000, host_period_s=0.001, storm_pause_s=0.0)


def ledger(folder: Path) -> StartLedger:
    return StartLedger(folder / "starts.json", QuickDisk(), SystemClock(), "boot")


def forked(run: Callable[[], None]) -> int:
    """A process that runs it; its pid."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(LIMIT_S))
        try:
            run()
        except BaseException:  # noqa: BLE001 - the child must end here, whatever happens
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def race(folder: Path) -> list[float]:
    """The answers to all takers, who ask at the same moment. A taker whom the lock refuses asks again."""
    start, go = os.pipe()
    reading, output = os.pipe()

    def taker() -> None:
        os.close(go)
        os.read(start, 1)
        while (wait_s := ledger(folder).take(DAY)) == BUSY_WAIT_S:
            pass
        os.write(output, b"%r\n" % wait_s)

    pids = [forked(taker) for _ in range(TAKERS)]
    for fd in (start, go, output):
        os.close(fd)
    with open(reading) as pipe:
        answers = [float(line) for line in pipe]
    assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}
    return answers


def test_of_ten_processes_that_ask_at_the_same_moment_one_gets_the_slot(tmp_path: Path) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        answers = race(folder)

        assert (len(answers), answers.count(0.0)) == (TAKERS, 1)
        assert len(ledger(folder).ages()) == 1


def test_start_of_a_process_that_is_killed_afterwards_is_known(tmp_path: Path) -> None:
    rng = random.Random(0)
    acknowledged = 0
    reading, output = os.pipe()

    def taker() -> None:
        while True:
            with suppress(Busy):
                ledger(tmp_path).record_deaths([str(time.monotonic_ns())], FREE)
            if ledger(tmp_path).take(FREE) == 0.0:
                os.write(output, b".")

    for _ in range(KILLS):
        pid = forked(taker)
        acknowledged += len(os.read(reading, 1))
        time.sleep(rng.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.set_blocking(reading, False)
        with suppress(BlockingIOError):
            acknowledged += len(os.read(reading, 2**16))
        os.set_blocking(reading, True)

        after = ledger(tmp_path)
        recorded = len(after.ages())
        assert after.damage is None
        assert acknowledged <= recorded or recorded == 1000
    os.close(reading)
    os.close(output)

    assert acknowledged >= KILLS
    while ledger(tmp_path).take(FREE) > 0:
        pass
    assert sorted(each.name for each in tmp_path.iterdir()) == ["starts.json", "starts.lock"]
