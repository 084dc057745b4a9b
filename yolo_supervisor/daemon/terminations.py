"""Terminations: journaled before the first signal, objected to until the last one, journaled again with their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio
import anyio.abc

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import Action, AlertCode, Escalate
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import ProcessId
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.processes import Ending, Processes
from yolo_supervisor.watchers.base import Objection

JOURNAL_AGAIN_S = 1.0
"""The pause between attempts to journal the end of a termination, in seconds."""


async def terminate(
    action: Terminate,
    by: str,
    store: Store,
    processes: Processes,
    scanner: ProcessScanner,
    is_foreign: Callable[[ProcessId], bool],
    objection: Objection,
) -> tuple[int, Ending]:
    """Journal the beginning, and end the processes through the kill gate. The number is for ``journal_end``.

    Without a journal entry no signal is sent. All other agents that are known, by a scan of the moment, are spared, and
    so are roots that are agents of another project by then (``is_foreign``).
    """

    async def holds() -> str | None:
        if foreign := [str(root.pid) for root in action.roots if is_foreign(root)]:
            return f"process {', '.join(foreign)} is no agent of this project"
        return await objection(action)

    def spared() -> set[ProcessId]:
        scanner.sample()
        return {*scanner.agents, *scanner.tracked} - set(action.roots)

    begun = store.begin(action, by)
    ending = await processes.terminate(action.roots, action.grace_s, holds, spared, action.sessions)
    return begun, ending


def journal_end(action: Terminate, by: str, store: Store, begun: int, ending: Ending) -> Sequence[Action]:
    """Journal the end of a termination. Returns what was journaled, for the log."""
    evidence: dict[str, Any] = {
        "terminated": [p.pid for p in ending.terminated],
        "killed": [p.pid for p in ending.killed],
        "survived": [p.pid for p in ending.survived],
        "refused": {str(p.pid): refusal.text for p, refusal in ending.refused.items()},
        "left_alone": [p.pid for p in ending.unproven],
        "sessions": list(ending.sessions),
    }
    evidence = {key: value for key, value in evidence.items() if value}
    if ending.spared:
        evidence["spared"] = ending.spared
    journaled: list[Action] = []
    if ending.terminated or ending.killed or ending.survived or ending.sessions:
        store.end(begun, action, by, evidence)
        journaled.append(replace(action, evidence=evidence))
    else:
        store.abandon(begun, ending.spared or "there was nothing left to signal")
    if ending.survived or ending.refused or ending.unproven:
        pids = sorted(p.pid for p in (*ending.survived, *ending.refused, *ending.unproven))
        reason = f"{action.key}: processes {pids} were not signalled or did not end: end them by hand if they must go"
        code = AlertCode.PROCESSES_LEFT
        alert = Escalate(kind="agent", code=code, key=action.key, reason=reason, evidence=evidence)
        store.note(alert, by)
        journaled.append(alert)
    return journaled


class Terminations:
    """The terminations of one project that are under way. A reload does not interrupt them."""

    def __init__(
        self,
        config: Config,
        store: Store,
        processes: Processes,
        scanner: ProcessScanner,
        is_foreign: Callable[[ProcessId], bool],
        objections: Mapping[str, Objection],
        alerts: AlertLog,
        failures: FailureLog,
        ended: Callable[[], None],
    ) -> None:
        self._config = config
        self._store = store
        self._processes = processes
        self._scanner = scanner
        self._is_foreign = is_foreign
        self._objections = objections
        """The re-check of each watcher that decides terminations, by the watcher's name."""
        self._alerts = alerts
        self._failures = failures
        self._ended = ended
        self._under_way: set[str] = set()
        self._given_up: set[tuple[ProcessId, ...]] = set()
        self.tasks: anyio.abc.TaskGroup | None = None

    def __bool__(self) -> bool:
        """Whether a termination is under way."""
        return bool(self._under_way)

    def configure(self, config: Config) -> None:
        """Continue with another configuration; observe mode stops further signals."""
        self._config = config

    def start(self, action: Terminate, by: str) -> None:
        """Terminate in the background, unless that is under way or did not help before."""
        roots = tuple(root for root in action.roots if root not in self._processes.stubborn)
        if action.key in self._under_way or not roots or action.roots in self._given_up:
            return
        assert self.tasks is not None
        self._under_way.add(action.key)
        self.tasks.start_soon(self._terminate, action, by)

    async def _terminate(self, action: Terminate, by: str) -> None:
        try:
            begun, ending = await terminate(
                action,
                by,
                self._store,
                self._processes,
                self._scanner,
                self._is_foreign,
                lambda action: self._objection(action, by),
            )
            while not self._journal(action, by, begun, ending):
                await anyio.sleep(JOURNAL_AGAIN_S)  # the processes are gone: the entry must follow, however late
        except (OSError, Busy, Refused) as error:
            self._failures.failed("termination", error, key=action.key)
        finally:
            self._under_way.discard(action.key)
            self._ended()

    async def _objection(self, action: Terminate, by: str) -> str | None:
        if self._config.mode == "observe":
            return "the supervisor only observes now"
        try:
            return await self._objections[by](action)
        except Exception as error:  # noqa: BLE001 - a failed observation is no evidence, whatever made it fail
            return f"the condition cannot be observed again: {error!r}"

    def _journal(self, action: Terminate, by: str, begun: int, ending: Ending) -> bool:
        """Write the end into the journal; False if that failed."""
        try:
            journaled = journal_end(action, by, self._store, begun, ending)
        except (OSError, Busy) as error:
            self._failures.failed("termination", error, key=action.key)
            return False
        self._failures.recovered("termination", key=action.key)
        if ending.survived or ending.refused:
            self._given_up.add(action.roots)
            self._processes.stubborn.update(ending.refused)  # reported: no recovery waits for these processes
        for written in journaled:
            more = written.evidence if isinstance(written, Terminate) else {}
            self._alerts.applied(written, "", **more)
        return True
