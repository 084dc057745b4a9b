"""Messages to people at their tmux clients. They are shown in the background: the loop never waits for tmux."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import anyio.abc

from yolo_supervisor.actions.agents import ShowMessage
from yolo_supervisor.system import tmux

AT_ONCE = 4
"""How many messages are on their way at once: a server that hangs holds each for two seconds."""


class Messages:
    """The messages of one project."""

    def __init__(self, shown: Callable[[ShowMessage], None]) -> None:
        self._shown = shown
        self._limiter = anyio.Semaphore(AT_ONCE)
        self.tasks: anyio.abc.TaskGroup | None = None
        """Where messages are shown in the background; without it, none is."""

    def start(self, action: ShowMessage) -> None:
        """Show the message."""
        if self.tasks is not None:
            self.tasks.start_soon(self._show, action)

    async def _show(self, action: ShowMessage) -> None:
        async with self._limiter:
            if await tmux.show_message(action.socket, action.client, action.reason):
                self._shown(action)
