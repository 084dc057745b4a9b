"""Cancel the work of a command when a signal arrives."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import AsyncIterator, Iterable

import anyio

TERMINATING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.asynccontextmanager
async def cancelled_by_signal(numbers: Iterable[signal.Signals] = TERMINATING) -> AsyncIterator[list[int]]:
    """Cancel the block when one of the signals arrives; gives the list of the signals that have arrived.

    An exception of the block leaves it as it is, not in a group.
    """
    arrived: list[int] = []

    async def listen(scope: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(*numbers) as signals:
            task_status.started()
            async for number in signals:
                arrived.append(number)
                scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as block:
                await tasks.start(listen, block)
                yield arrived
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
