"""Saves the uncommitted work of dead agents in the background, one at a time, and journals where it is."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.abc

from yolo_supervisor.actions.agents import SaveWork
from yolo_supervisor.actions.base import AlertCode, Escalate, Note
from yolo_supervisor.commits.salvage import Saved, SaveOutcome, save_work
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.formats.crash_report import Report
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.crash_evidence import CrashInvestigator
from yolo_supervisor.inventory.saved_work import SavedWork
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Store

RECORD_AGAIN_S = 1.0
"""The pause between attempts to journal a result, in seconds."""


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
            crash = self._investigator.crash(action.record)  # unknown once the agent is forgotten
            self.tasks.start_soon(self._save, action, by, None if crash is None or crash.clean else crash.report)

    async def _save(self, action: SaveWork, by: str, report: Report | None) -> None:
        try:
            async with self._lock:
                saved = await save_work(action.folder, action.name)
        except Exception as error:  # noqa: BLE001 - work that cannot be saved must not block recovery
            saved = Saved(outcome=SaveOutcome.FAILED, reason=f"no copy could be made: {error!r}")
        recorded = self._recorded(action, saved, by, report)
        self._saved.done(action.record, saved.ref)
        self._started.discard(action.record)
        self._ended()
        while not recorded:
            await anyio.sleep(RECORD_AGAIN_S)  # the entry must follow, however late: it names the copy
            recorded = self._recorded(action, saved, by, report)

    def _recorded(self, action: SaveWork, saved: Saved, by: str, report: Report | None) -> bool:
        try:
            self.record(action, saved, by, report)
        except (OSError, Busy, Refused) as error:
            self._failures.failed("save_work", error, key=action.key)
            return False
        self._failures.recovered("save_work", key=action.key)
        return True

    def record(self, action: SaveWork, saved: Saved, by: str, report: Report | None) -> None:
        """Write the result into the journal, the log and the agent's crash report, if it has one.

        Nothing is written where there is no uncommitted work.
        """
        if not (saved.outcome.is_kept or saved.outcome.is_failure):
            return
        reason = saved.reason
        if action.shared_with:
            reason += f"; some changes may be by {', '.join(action.shared_with)}, at work in the same work tree"
        facts = evidence(action, saved)
        note = Note(kind="agent", verb=action.verb, key=action.key, reason=reason, evidence=facts)
        if saved.outcome.is_failure:
            code = AlertCode.WORK_NOT_SAVED
            note = Escalate(kind="agent", code=code, key=action.key, reason=reason, evidence=facts)
        self._store.note(note, by)
        self._alerts.applied(note)
        if report is not None:
            self._amend_report(action, replace(report, more={**report.more, "work": facts}), by)

    def _amend_report(self, action: SaveWork, report: Report, by: str) -> None:
        self._investigator.report_amended(action.record, report)
        try:
            self._store.save_crash_report(report, by)
        except (OSError, Busy, Refused) as error:
            self._failures.failed("crash_report", error)
        else:
            self._failures.recovered("crash_report")


def evidence(action: SaveWork, saved: Saved) -> dict[str, object]:
    """Where the work is, what is not there, and the commands with which a person takes it back."""
    folder = saved.root or action.folder
    copies = [(folder, saved.ref), *((folder / path, ref) for path, ref in saved.nested.items())]
    facts: dict[str, object] = {
        **action.evidence, "outcome": str(saved.outcome), "folder": str(folder), "ref": saved.ref,
        "files": saved.files, "nested": dict(saved.nested), "left_out": list(saved.omitted),
        "shared_with": list(action.shared_with),
        "commands": [command for at, ref in copies if ref for command in _commands(at, ref)],
    }  # fmt: skip
    return {key: value for key, value in facts.items() if value}


def _commands(folder: Path, ref: str) -> list[str]:
    git = f"git -C {shlex.quote(str(folder))}"
    return [
        f"{git} diff HEAD {ref}    # shows the work",
        f"{git} checkout {ref} -- FILE    # writes one file as it was",
        f"{git} update-ref -d {ref}    # removes the copy",
    ]
