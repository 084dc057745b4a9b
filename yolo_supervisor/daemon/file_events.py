"""File events: a change in a folder wakes the watchers whose subject it may be. Their intervals are the safety net."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import anyio
import structlog
import watchfiles

from yolo_supervisor.clock import Backoff

AGAIN_S, AGAIN_MAX_S = 0.1, 10.0
"""First and longest pause before folders are watched again after an error, in seconds; it doubles."""


STEP_MS, LOCK_STEP_MS = 200, 20
"""How long further changes are waited for after one, in milliseconds; less for locks: a holder may soon be gone."""

RENEW_S = 60.0
"""How often the folders are asked for again, at the latest: another one may exist now."""


class Wakeup:
    """Wakes a watcher before its time. It carries no reason: the watcher observes everything."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()

    def rest(self) -> None:
        """From now on a new ring is needed."""
        self._event = anyio.Event()


class FileEvents:
    """Watches the folders of all projects. ``edges`` are the folders, each with the wakeup that it rings."""

    def __init__(self, edges: Callable[[], Iterable[tuple[Path, Wakeup]]], step_ms: int = STEP_MS) -> None:
        self._edges = edges
        self._step_ms = step_ms
        self._changed = anyio.Event()
        self._backoff = Backoff(AGAIN_S, AGAIN_MAX_S)
        self._error = ""
        """The error that was logged last."""
        self._log = structlog.get_logger()

    def renew(self) -> None:
        """Ask for the folders again: another set is to be watched."""
        self._changed.set()

    async def run(self) -> None:
        """Watch for ever."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_with_us)
            while True:
                self._changed = anyio.Event()
                wakeups: dict[Path, list[Wakeup]] = {}
                for folder, wakeup in self._edges():
                    wakeups.setdefault(folder, []).append(wakeup)
                folders = {folder for folder in wakeups if folder.is_dir()}
                if folders:
                    await self._watch(folders, wakeups)
                else:
                    with anyio.move_on_after(RENEW_S):
                        await self._changed.wait()

    async def _end_with_us(self) -> None:
        """End the thread that waits for changes; without this a stop would wait for its time-out."""
        try:
            await anyio.sleep_forever()
        finally:
            self._changed.set()

    async def _watch(self, folders: set[Path], wakeups: Mapping[Path, Sequence[Wakeup]]) -> None:
        """Watch until another set of folders is to be watched, or an error and the pause after it."""
        began_s = time.monotonic()
        try:
            async for changes in watchfiles.awatch(
                *folders, watch_filter=None, step=self._step_ms, rust_timeout=int(RENEW_S * 1000),
                yield_on_timeout=True, recursive=False, stop_event=self._changed,
            ):  # fmt: skip
                changed = {Path(name) for _, name in changes}
                _ring(wakeups, {path.parent for path in changed} & folders)
                if moved := changed & wakeups.keys():  # a folder to be watched appeared or disappeared, with its files
                    _ring(wakeups, moved)
                    return
                if {folder for folder, _ in self._edges()} != wakeups.keys():
                    return
        except* Exception as errors:  # noqa: BLE001 - a file whose name is no text, say, must not end the daemon
            error = str(errors.exceptions[0])
        else:
            return
        if error != self._error:
            self._error = error
            self._log.warning("file_events_failed", error=error)
        _ring(wakeups, wakeups)
        if time.monotonic() - began_s > AGAIN_MAX_S:
            self._backoff.reset()
        with anyio.move_on_after(self._backoff.next_s()):
            await self._changed.wait()


def _ring(wakeups: Mapping[Path, Sequence[Wakeup]], folders: Iterable[Path]) -> None:
    for folder in folders:
        for wakeup in wakeups[folder]:
            wakeup.ring()
