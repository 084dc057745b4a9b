"""Other programs are run with a limit, and nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from support.wait import LIMIT_S, wait_until
from yolo_supervisor.kernel import kernel
from yolo_supervisor.processes import Processes
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.subprocesses import OUTPUT_LIMIT, Result, run

FOR_EVER_S = 10 * LIMIT_S
"""A limit that nobody waits for: who reaches it fails the test."""

SHORT_S = 0.5


def gone(pid: int) -> bool:
    return Processes(kernel()).identify(pid) is None


async def test_a_command_tells_how_it_ended_and_what_it_said() -> None:
    assert await run(["sh", "-c", "echo out; echo err >&2; exit 7"], LIMIT_S) == Result(7, b"out\n", b"err\n")


async def test_a_command_that_a_signal_ended_tells_which() -> None:
    assert await run(["sh", "-c", "kill -9 $$"], LIMIT_S) == Result(-signal.SIGKILL, b"", b"")


async def test_a_command_has_the_surroundings_it_is_given() -> None:
    assert await run(["/bin/sh", "-c", "echo $ROLE$HOME"], LIMIT_S, {"ROLE": "dev"}) == Result(0, b"dev\n", b"")


async def test_a_command_does_not_read_what_is_meant_for_us() -> None:
    (read, write), before = os.pipe(), os.dup(0)
    os.write(write, b"for us")
    os.dup2(read, 0)
    try:
        assert await run(["cat"], LIMIT_S) == Result(0, b"", b"")
    finally:
        os.dup2(before, 0)
        for fd in (read, write, before):
            os.close(fd)


async def test_without_others_a_command_has_our_own_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLE", "dev")

    assert (await run(["sh", "-c", "echo $ROLE"], LIMIT_S)).stdout == b"dev\n"


async def test_a_program_that_does_not_exist_is_said_to_be_missing() -> None:
    with pytest.raises(FileNotFoundError):
        await run(["there-is-no-such-program"], LIMIT_S)


async def test_at_the_limit_the_whole_group_is_killed_and_what_it_said_is_kept() -> None:
    result = await run(["sh", "-c", "trap '' TERM; sleep 600 & echo $$ $!; wait"], SHORT_S)
    pids = [int(word) for word in result.stdout.split()]

    assert result.exit is None
    assert len(pids) == 2
    wait_until(lambda: all(gone(pid) for pid in pids), "the group to end")


async def test_a_command_that_is_given_up_is_killed_with_its_group(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    async with anyio.create_task_group() as tasks:
        program = f"sleep 600 & echo $$ $! > {told}.new; mv {told}.new {told}; wait"
        tasks.start_soon(run, ["sh", "-c", program], FOR_EVER_S)
        with anyio.fail_after(LIMIT_S):
            while not told.exists():
                await anyio.sleep(0.005)
        tasks.cancel_scope.cancel()

    pids = [int(word) for word in told.read_text().split()]
    assert len(pids) == 2
    wait_until(lambda: all(gone(pid) for pid in pids), "the group to end")


async def test_one_in_the_background_that_holds_the_output_delays_no_longer_than_the_limit() -> None:
    with anyio.fail_after(LIMIT_S):
        result = await run(["sh", "-c", "sleep 600 & echo $!"], SHORT_S)

    wait_until(lambda: gone(int(result.stdout)), "the one in the background to end: it is of the same group")


async def test_one_that_left_the_group_delays_no_longer_than_the_limit() -> None:
    with anyio.fail_after(LIMIT_S):
        result = await run(["sh", "-c", "setsid sh -c 'echo $$; exec sleep 600' &"], SHORT_S)

    os.kill(int(result.stdout), signal.SIGKILL)  # it has left the group, so it had to be let go


async def test_one_in_the_background_that_lets_go_of_the_output_is_let_live() -> None:
    result = await run(["sh", "-c", "sleep 600 >&- 2>&- & echo $!"], FOR_EVER_S)
    background = int(result.stdout)

    assert result.exit == 0
    assert not gone(background)
    os.kill(background, signal.SIGKILL)


async def test_a_command_that_closes_its_output_is_waited_for() -> None:
    result = await run(["sh", "-c", "exec >&- 2>&-; sleep 0.1; exit 7"], LIMIT_S)

    assert result == Result(7, b"", b"")


async def test_too_much_output_is_cut_and_the_command_not_held_up() -> None:
    program = f"import sys; sys.stdout.write('o' * {OUTPUT_LIMIT + 1}); sys.stderr.write('e' * {OUTPUT_LIMIT + 70000})"

    result = await run([sys.executable, "-c", program], LIMIT_S)

    assert result == Result(0, b"o" * OUTPUT_LIMIT, b"e" * OUTPUT_LIMIT, truncated=True)


async def test_endless_output_ends_at_the_limit() -> None:
    result = await run(["yes"], SHORT_S)

    assert result.exit is None
    assert set(result.stdout) == set(b"y\n")


async def test_others_go_on_while_a_command_runs() -> None:
    turns = 0
    with anyio.move_on_after(FOR_EVER_S) as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, ["sleep", "600"], FOR_EVER_S)
            while turns < 10:
                await anyio.sleep(0.001)
                turns += 1
            scope.cancel()

    assert turns == 10


async def test_no_descriptor_and_no_child_stays_behind() -> None:
    def ours() -> tuple[list[str], set[int]]:
        return os.listdir("/dev/fd"), set(Processes(kernel()).sweep().children.get(os.getpid(), ()))

    before = ours()

    await run(["true"], LIMIT_S)
    await run(["sleep", "600"], 0.05)

    assert before == ours()


async def test_every_command_that_was_begun_is_counted() -> None:
    before = subprocesses.started

    await run(["true"], LIMIT_S)
    with pytest.raises(FileNotFoundError):
        await run(["there-is-no-such-program"], LIMIT_S)  # a pid is taken for it all the same

    assert subprocesses.started == before + 2
