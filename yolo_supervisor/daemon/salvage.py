"""Saves the uncommitted work of dead agents in the background, one at a time, and journals where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import anyio
import anyio.abc

from yolo_supervisor.actions.agents import SaveWork
from yolo_supervisor.actions.base import AlertCode, Escalate, Note
from yolo_supervisor.commits.salvage import Saved, save_work
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.inventory.crash_evidence import CrashInvestigator
from yolo_supervisor.inventory.saved_work import SavedWork
from yolo_supervisor.store.store import Store


class WorkSaver:
    """The copies of one project that are under way. A failure delays no recovery: it is reported."""

    def __init__(
        self,
        store: Store,
        saved: SavedWork,
        investigator: CrashInvestigator,
        alerts: AlertLog,
        failures: FailureLog,
        ended: Callable[[], None],
    ) -> None:
        self._store = store
        self._saved = saved
        self._investigator = investigator
        self._alerts = alerts
        self._failures = failures
        self._ended = ended
        self._started: set[str] = set()
        self._lock = anyio.Lock()
        self.tasks: anyio.abc.TaskGroup | None = None
        """Where work is saved in the background; without it, none is."""

    def start(self, action: SaveWork, by: str) -> None:
        """Save the work of the agent, unless that is under way."""
        if self.tasks is not None and action.record not in self._started:
            self._started.add(action.record)
            self.tasks.start_soon(self._save, action, by)

    async def _save(self, action: SaveWork, by: str) -> None:
        ref = None
        try:
            async with self._lock:
                saved = await save_work(action.folder, action.name)
            ref = saved.ref
            for note in journaled(action, saved):
                self._store.note(note, by)
                self._alerts.applied(note)
            self._amend_report(action, saved, by)
        except Exception as error:  # noqa: BLE001 - work that cannot be saved must not block recovery
            self._failures.failed("save_work", error, key=action.key)
        else:
            self._failures.recovered("save_work", key=action.key)
        finally:
            self._saved.done(action.record, ref)
            self._started.discard(action.record)
            self._ended()

    def _amend_report(self, action: SaveWork, saved: Saved, by: str) -> None:
        """Name the copy in the agent's crash report, if there is one."""
        crash = self._investigator.crash(action.record)
        if crash is None or "report" not in crash.facts or not (saved.outcome.is_kept or saved.outcome.is_failure):
            return
        work = {"outcome": str(saved.outcome), **evidence(action, saved)}
        report = replace(crash.report, more={**crash.report.more, "work": work})
        self._store.save_crash_report(report, by)
        self._investigator.report_amended(action.record, report)


def journaled(action: SaveWork, saved: Saved) -> Iterator[Note]:
    """The entries about an attempt: none where there is no uncommitted work."""
    facts = {**action.evidence, **evidence(action, saved)}
    if saved.outcome.is_kept:
        yield Note(kind=action.kind, verb=action.verb, key=action.key, reason=saved.reason, evidence=facts)
    elif saved.outcome.is_failure:
        facts["outcome"] = str(saved.outcome)
        code = AlertCode.WORK_NOT_SAVED
        yield Escalate(kind="agent", code=code, key=action.key, reason=saved.reason, evidence=facts)


def evidence(action: SaveWork, saved: Saved) -> dict[str, object]:
    """Where the work is, and what is not there."""
    facts: dict[str, object] = {
        "folder": str(saved.root or action.folder), "ref": saved.ref, "files": saved.files,
        "nested": dict(saved.nested), "left_out": list(saved.omitted), "shared_with": list(action.shared_with),
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value}
