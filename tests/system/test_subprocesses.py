"""Running other programs with limits, and ending their process trees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from support.wait import LIMIT_S, wait_until
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.subprocesses import OUTPUT_LIMIT, Result, run

FOR_EVER_S = 10 * LIMIT_S
"""A time limit in seconds that no test may reach."""

SHORT_S = 0.5


def gone(pid: int) -> bool:
    return Processes(backend()).identify(pid) is None


async def test_result_has_exit_code_and_outputs() -> None:
    assert await run(["sh", "-c", "echo out; echo err >&2; exit 7"], LIMIT_S) == Result(7, b"out\n", b"err\n")


async def test_death_by_signal_gives_a_negative_exit_code() -> None:
    assert await run(["sh", "-c", "kill -9 $$"], LIMIT_S) == Result(-signal.SIGKILL, b"", b"")


async def test_command_has_the_given_environment() -> None:
    assert await run(["/bin/sh", "-c", "echo $ROLE$HOME"], LIMIT_S, {"ROLE": "dev"}) == Result(0, b"dev\n", b"")


async def test_command_does_not_read_our_input() -> None:
    (read, write), before = os.pipe(), os.dup(0)
    os.write(write, b"for us")
    os.dup2(read, 0)
    try:
        assert await run(["cat"], LIMIT_S) == Result(0, b"", b"")
    finally:
        os.dup2(before, 0)
        for fd in (read, write, before):
            os.close(fd)


async def test_environment_is_inherited_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLE", "dev")

    assert (await run(["sh", "-c", "echo $ROLE"], LIMIT_S)).stdout == b"dev\n"


async def test_missing_program_raises_file_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        await run(["there-is-no-such-program"], LIMIT_S)


async def test_group_is_killed_at_the_limit_and_its_output_kept() -> None:
    result = await run(["sh", "-c", "trap '' TERM; sleep 600 & echo $$ $!; wait"], SHORT_S)
    pids = [int(word) for word in result.stdout.split()]

    assert result.exit is None
    assert len(pids) == 2
    wait_until(lambda: all(gone(pid) for pid in pids), "the group to end")


async def test_cancelled_command_is_killed_with_its_group(tmp_path: Path) -> None:
    pids_file = tmp_path / "pids"
    async with anyio.create_task_group() as tasks:
        program = f"sleep 600 & echo $$ $! > {pids_file}.new; mv {pids_file}.new {pids_file}; wait"
        tasks.start_soon(run, ["sh", "-c", program], FOR_EVER_S)
        with anyio.fail_after(LIMIT_S):
            while not pids_file.exists():
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()

    pids = [int(word) for word in pids_file.read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: all(gone(pid) for pid in pids), "the group to end")


async def test_background_process_with_open_output_delays_until_the_limit_only() -> None:
    with anyio.fail_after(LIMIT_S):
        result = await run(["sh", "-c", "sleep 600 & echo $!"], SHORT_S)

    wait_until(lambda: gone(int(result.stdout)), "the one in the background to end: it is of the same group")


async def test_process_outside_the_group_delays_until_the_limit_only() -> None:
    with anyio.fail_after(LIMIT_S):
        result = await run(["sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' &"], SHORT_S)

    os.kill(int(result.stdout), signal.SIGKILL)  # outside of the group, so it was not ended


async def test_background_process_with_closed_output_is_not_ended() -> None:
    result = await run(["sh", "-c", "sleep 600 >&- 2>&- & echo $!"], FOR_EVER_S)
    background = int(result.stdout)

    assert result.exit == 0
    assert not gone(background)
    os.kill(background, signal.SIGKILL)


async def test_command_that_closes_its_output_is_awaited() -> None:
    result = await run(["sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 7"], LIMIT_S)

    assert result == Result(7, b"", b"")


async def test_long_output_is_truncated_without_blocking_the_command() -> None:
    program = f"import sys; sys.stdout.write('o' * {OUTPUT_LIMIT + 1}); sys.stderr.write('e' * {OUTPUT_LIMIT + 70000})"

    result = await run([sys.executable, "-c", program], LIMIT_S)

    assert result == Result(0, b"o" * OUTPUT_LIMIT, b"e" * OUTPUT_LIMIT, truncated=True)


async def test_endless_output_ends_at_the_limit() -> None:
    result = await run(["yes"], SHORT_S)

    assert result.exit is None
    assert set(result.stdout) == set(b"y\n")


async def test_other_tasks_run_during_a_command() -> None:
    turns = 0
    with anyio.move_on_after(FOR_EVER_S) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, ["sleep", "600"], FOR_EVER_S)
            while turns < 10:
                await anyio.sleep(0.001)
                turns += 1
            scope.cancel()

    assert turns == 10


async def test_no_descriptor_or_child_is_leaked() -> None:
    def ours() -> tuple[list[str], set[int]]:
        return os.listdir("/dev/fd"), set(Processes(backend()).sweep().children.get(os.getpid(), ()))

    before = ours()

    await run(["true"], LIMIT_S)
    await run(["sleep", "600"], 0.05)

    assert before == ours()


async def test_started_commands_are_counted() -> None:
    before = subprocesses.started

    await run(["true"], LIMIT_S)
    with pytest.raises(FileNotFoundError):
        await run(["there-is-no-such-program"], LIMIT_S)  # the fork takes a pid all the same

    assert subprocesses.started == before + 2


async def test_signal_that_arrives_while_a_command_starts_ends_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def interrupted_start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))
        signal.raise_signal(signal.SIGHUP)
        return started[0]

    before = signal.signal(signal.SIGHUP, interrupt)
    try:
        monkeypatch.setattr(subprocess, "Popen", interrupted_start)
        with pytest.raises(Interrupted):
            await run(["sleep", "600"], LIMIT_S)
    finally:
        signal.signal(signal.SIGHUP, before)

    assert started[0].returncode is not None
