"""Applies remediations: the one place that knows what each type of action needs, in the daemon and for commands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import singledispatch, singledispatchmethod
from pathlib import Path

import anyio
import anyio.abc

from yolo_supervisor.actions.agents import Restart, SaveWork, ShowMessage, Terminate, WriteCrashReport
from yolo_supervisor.actions.base import Action, Edit, Note
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.actions.state import SaveVersion
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.clock import Backoff, Clock
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.alerts import SHARED_FAILURES, AlertLog, FailureLog
from yolo_supervisor.daemon.messages import Messages
from yolo_supervisor.daemon.salvage import WorkSaver
from yolo_supervisor.daemon.starts import Starts
from yolo_supervisor.daemon.terminations import Terminations
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.crash_evidence import CrashInvestigator
from yolo_supervisor.store.atomic import can_write
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Outcome, Store, Unwritable
from yolo_supervisor.watchers.base import KeepsObservations, Remediation

RECHECK_S, REST_S = 2.0, 30.0
"""The shortest and the longest rest, in seconds, of a remediation whose document could not be written: each attempt is
two lines in the journal."""

APPLY_S = 0.1
"""The time after which a tick begins no more remediations, in seconds: the rest follows in the next one. Meanwhile the
other projects wait."""

PROPOSED = "would_"
"""The prefix of a verb that was decided on and not carried out."""

UNREPORTED = (SaveVersion,)
"""Actions that are neither logged nor proposed: they are many, and change nothing that a person works with."""


def proposals(remediations: Iterable[Remediation]) -> Iterator[Action]:
    """The actions that a dry run shows."""
    return (action for steps in remediations for action in steps if not isinstance(action, UNREPORTED))


# -- for the daemon and for commands -----------------------------------------------------------------------------


@singledispatch
def apply_action(action: Action, store: Store, by: str) -> Outcome:
    """Apply one action for which the store is enough. TypeError for one that only the daemon can carry out."""
    raise TypeError(f"only the daemon can carry out {type(action).__name__}")


@apply_action.register
def _(action: Edit, store: Store, by: str) -> Outcome:
    return store.commit(action, by)


@apply_action.register
def _(action: Note, store: Store, by: str) -> Outcome:
    store.note(action, by)
    return Outcome.DONE


@apply_action.register
def _(action: BreakLock, store: Store, by: str) -> Outcome:
    return store.break_lock(action, by)


@apply_action.register
def _(action: SaveVersion, store: Store, by: str) -> Outcome:
    store.keep(action.path, action.data)
    return Outcome.DONE


def apply_remediation(remediation: Remediation, store: Store, by: str) -> Outcome:
    """Apply the steps in order and return the outcome of the last one. A step that meets a lock ends it with BUSY."""
    outcome = Outcome.DONE
    for action in remediation:
        outcome = apply_action(action, store, by)
        if outcome is Outcome.BUSY:
            break
    return outcome


# -- for the daemon ----------------------------------------------------------------------------------------------


class Progress(StrEnum):
    DONE = "done"
    """Every step is done, or its condition no longer held."""
    WAITS = "waits"
    """A step met a lock or the batch limit: the rest follows in a later tick."""
    LEFT = "left"
    """There were too many for one tick: it is begun in the next one."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one remediation in one tick."""

    progress: Progress
    error: str | None = None
    """The message of the failure."""
    may_end: bool = False
    """Whether the failure is one of the disk, or of this process, that may end at any moment."""


DONE, WAITS, LEFT = Result(Progress.DONE), Result(Progress.WAITS), Result(Progress.LEFT)


def _failed(error: Exception) -> Result:
    return Result(Progress.FAILED, str(error), isinstance(error, OSError) and error.errno in SHARED_FAILURES)


@dataclass(slots=True)
class Rest:
    """The rest of a remediation whose document could not be written."""

    pauses: Backoff
    until_s: float = 0.0
    """Monotonic."""
    path: Path | None = None
    """The document, if the remediation rests until there is room for it again."""
    size: int = 0


class RateLimiter:
    """Limits actions to a number per second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._taken: deque[float] = deque()

    def take(self, per_s: float) -> bool:
        """Whether one more may be done now."""
        now_s = self._clock.monotonic()
        while self._taken and now_s - self._taken[0] >= max(1.0, 1.0 / per_s):
            self._taken.popleft()
        if len(self._taken) >= max(1, int(per_s)):
            return False
        self._taken.append(now_s)
        return True


class Executor:
    """Applies the remediations of one project's watchers, logs what was applied, and remembers what failed."""

    def __init__(
        self,
        config: Config,
        store: Store,
        clock: Clock,
        keepers: Mapping[str, KeepsObservations],
        reports: CrashReports,
        terminations: Terminations,
        starts: Starts,
        work_saver: WorkSaver,
        messages: Messages,
        alerts: AlertLog,
        failures: FailureLog,
    ) -> None:
        self._config = config
        self._store = store
        self._keepers = keepers
        """The watchers that store what they observed, by name."""
        self._reports = reports
        self._terminations = terminations
        self._starts = starts
        self._work_saver = work_saver
        self._messages = messages
        self._alerts = alerts
        self._failures = failures
        self._clock = clock
        self._requeues = RateLimiter(clock)
        self._rests: dict[tuple[str, str], Rest] = {}
        """The remediations that rest, by kind and key of their last action."""
        self._room: dict[tuple[Path, int], bool] = {}
        """Whether a folder has room for so many bytes, as tried in this tick."""

    def configure(self, config: Config) -> None:
        """Continue with another configuration; the batch limit still counts the requeues of the last second."""
        self._config = config
        self._terminations.configure(config)
        self._starts.configure(config)

    def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """From now on terminate processes, write crash reports and show messages in the background."""
        self._reports.tasks = self._terminations.tasks = self._messages.tasks = tasks
        self._starts.tasks = self._work_saver.tasks = tasks

    @property
    def terminating(self) -> bool:
        """Whether a termination is under way."""
        return bool(self._terminations)

    def apply(self, by: str, remediations: Sequence[Remediation]) -> list[Result]:
        """Apply the remediations of one tick of the watcher ``by``; end its alerts that it no longer reports.

        At least one is applied, however long it takes, and no more are begun after ``APPLY_S``.
        """
        self._room = {}
        results = [self.save(by)] if by in self._keepers else []
        until_s = self._clock.monotonic() + APPLY_S
        with self._alerts.tick(by):
            for number, remediation in enumerate(remediations):
                if number and self._clock.monotonic() >= until_s:
                    self._alerts.cut_off(by)
                    return [*results, LEFT]
                results.append(self._apply(by, remediation))
        return results

    def save(self, by: str) -> Result:
        """Store what the watcher observed; a failure stops no remediation."""
        keeper = self._keepers[by]
        try:
            saved = keeper.save_observations()
        except (OSError, Refused) as error:
            self._failures.failed("status_file", error, file=keeper.name)
            return _failed(error)
        if not saved:
            return WAITS
        self._failures.recovered("status_file", file=keeper.name)
        return DONE

    def _apply(self, by: str, remediation: Remediation) -> Result:
        self._alerts.decided(by, remediation)
        last = remediation[-1]
        name = (last.kind, last.key)
        if (rest := self._rests.get(name)) is not None and self._rests_still(rest):
            error = self._failures.message("action", kind=last.kind, key=last.key)
            return Result(Progress.FAILED, error, may_end=rest.path is not None)
        try:
            for action in remediation:
                if self._step(action, by) is Outcome.BUSY:
                    return WAITS  # a held lock says nothing about the earlier error, so the error stays reported
        except (OSError, Refused, Busy) as error:
            if isinstance(error, Unwritable):
                self._rest(name, error)
            self._failures.failed("action", error, kind=last.kind, key=last.key)
            return _failed(error)
        self._failures.recovered("action", kind=last.kind, key=last.key)
        self._rests.pop(name, None)
        return DONE

    def _rest(self, name: tuple[str, str], error: Unwritable) -> None:
        """Let the remediation rest; for a cause that may end at any moment, until the document can be written again."""
        rest = self._rests.setdefault(name, Rest(Backoff(RECHECK_S, REST_S)))
        may_end = error.errno in SHARED_FAILURES
        rest.path, rest.size = (Path(error.filename), error.size) if may_end else (None, 0)
        rest.until_s = self._clock.monotonic() + (rest.pauses.next_s() if may_end else REST_S)

    def _rests_still(self, rest: Rest) -> bool:
        if self._clock.monotonic() < rest.until_s:
            return True
        if rest.path is None:
            return False
        place = rest.path.parent, rest.size
        if place not in self._room:
            self._room[place] = can_write(self._store.disk, rest.path, rest.size)
        return not self._room[place]

    def _step(self, action: Action, by: str) -> Outcome:
        if self._config.mode != "observe":
            return self._take(action, by)
        return Outcome.DONE if isinstance(action, UNREPORTED) else self._report_once(action, by, PROPOSED)

    @singledispatchmethod
    def _take(self, action: Action, by: str) -> Outcome:
        return self._apply_and_log(action, by)

    @_take.register
    def _(self, action: Note, by: str) -> Outcome:
        return self._report_once(action, by)

    @_take.register
    def _(self, action: ShowMessage, by: str) -> Outcome:
        is_new = self._alerts.is_new(by, action)
        outcome = self._report_once(action, by)
        if is_new:
            self._messages.start(action)
        return outcome

    @_take.register
    def _(self, action: Requeue, by: str) -> Outcome:
        if not self._requeues.take(self._config.tasks.requeues_per_s):
            return Outcome.BUSY
        return self._apply_and_log(action, by)

    @_take.register
    def _(self, action: WriteCrashReport, by: str) -> Outcome:
        self._reports.start(action)
        return Outcome.DONE

    @_take.register
    def _(self, action: Terminate, by: str) -> Outcome:
        self._terminations.start(action, by)
        return Outcome.DONE

    @_take.register
    def _(self, action: Restart, by: str) -> Outcome:
        self._starts.start(action, by)
        return Outcome.DONE

    @_take.register
    def _(self, action: SaveWork, by: str) -> Outcome:
        self._work_saver.start(action, by)
        return Outcome.DONE

    def _apply_and_log(self, action: Action, by: str) -> Outcome:
        outcome = apply_action(action, self._store, by)
        if outcome is Outcome.DONE and not isinstance(action, UNREPORTED):
            self._alerts.applied(action)
        for note in self._store.take_pruned():
            self._alerts.applied(note)
        return outcome

    def _report_once(self, action: Action, by: str, prefix: str = "") -> Outcome:
        """Write the action into the journal and the log, unless the watcher's earlier ticks did."""
        if self._alerts.is_new(by, action):
            self._store.note(action, by, prefix)
            self._alerts.remember(by, action)
            self._alerts.applied(action, prefix)
        return Outcome.DONE


class CrashReports:
    """Writes crash reports after all tasks of a tick were requeued, one at a time: each takes some milliseconds."""

    def __init__(
        self, store: Store, investigator: CrashInvestigator, failures: FailureLog, written: Callable[[], None]
    ) -> None:
        self._store = store
        self._investigator = investigator
        self._failures = failures
        self._written = written
        self._started: set[str] = set()
        self._lock = anyio.Lock()
        self.tasks: anyio.abc.TaskGroup | None = None
        """Where reports are written in the background; without it, at once."""

    def start(self, action: WriteCrashReport) -> None:
        """Write the report, unless that is under way."""
        if action.report.ident in self._started:
            return
        self._started.add(action.report.ident)
        if self.tasks is None:
            self._write(action)
        else:
            self.tasks.start_soon(self._write_in_turn, action)

    async def _write_in_turn(self, action: WriteCrashReport) -> None:
        async with self._lock:
            await anyio.sleep(0)
            self._write(action)
        self._written()

    def _write(self, action: WriteCrashReport) -> None:
        """Save the report; a failure is logged and stops nothing."""
        try:
            self._store.save_crash_report(action.report, "agents")
        except Exception as error:  # noqa: BLE001 - a failing crash report must not block recovery
            self._failures.failed("crash_report", error)
        else:
            self._failures.recovered("crash_report")
        finally:
            self._investigator.report_written(action.report.ident)
            self._started.discard(action.report.ident)
