"""The relay's entries in the project's journal, and its lines on stderr."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import anyio

from yolo_supervisor.actions import circuits
from yolo_supervisor.actions.base import AlertCode, Escalate, Note
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Store

MAX_QUEUED = 1000
"""The number of entries that may wait to be written. Further ones are dropped."""


class JournalWriter:
    """Writes entries in a thread: opening a long journal takes longer than a call may wait.

    Without a ``store`` (outside a project) it writes nothing.
    """

    def __init__(self, store: Store | None, server_name: str) -> None:
        self._store = store
        self._server_name = server_name
        self._store_opened = False
        self._queue: list[Note] = []
        self._queued = anyio.Event()

    def recovered(self, reason: str, evidence: Any) -> None:
        """Record a call, or the server, that works again after failures."""
        self._enqueue(circuits.call_recovered(key=self._server_name, reason=reason, evidence=evidence))

    def escalated(self, reason: str, evidence: Any) -> None:
        """Record a call that failed for good."""
        code = AlertCode.CALL_FAILED
        self._enqueue(Escalate(kind="command", code=code, key=self._server_name, reason=reason, evidence=evidence))

    def _enqueue(self, entry: Note) -> None:
        if self._store is not None and len(self._queue) < MAX_QUEUED:
            self._queue.append(entry)
            self._queued.set()

    async def run(self) -> None:
        """Write entries as they come, until cancelled."""
        while True:
            await self._queued.wait()
            with anyio.CancelScope(shield=True):  # a batch that was begun is completed although the relay is leaving
                await self.write_queued()

    async def write_queued(self) -> None:
        """Write the entries that are queued now."""
        self._queued = anyio.Event()
        entries, self._queue = self._queue, []
        if entries:
            await anyio.to_thread.run_sync(self._write, entries, abandon_on_cancel=True)

    def _write(self, entries: list[Note]) -> None:
        assert self._store is not None
        try:
            if not self._store_opened:
                self._store.open()
                self._store_opened = True
            for entry in entries:
                self._store.note(entry, "mcp")
        except (OSError, Busy, Refused) as error:
            warn(f"cannot write the journal: {error}")


def warn(text: str) -> None:
    """Write a line to stderr; do nothing if it is closed or its reader is gone."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stderr.write(f"yolo-supervisor: {text}\n")
