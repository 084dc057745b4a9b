"""The log lines about alerts and failures: one when a condition begins, one when it ends."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import structlog

from yolo_supervisor.actions.base import Action, Escalate
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.locks import Busy

FailureKind = Literal[
    "watcher", "action", "start", "termination", "journal", "crash_report", "save_work", "status_file",
]  # fmt: skip
"""What can fail; the log events are ``KIND_failed`` and ``KIND_recovered``."""

SHARED_FAILURES = frozenset({
    errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EROFS,
})  # fmt: skip
"""Errors of the disk, or of this process, that stop many things at once, whichever file they are met at."""

Name = tuple[str, ...]
"""What has failed: the kind and the values of the fields that name the thing."""


def failure_identity(name: object, error: Exception) -> tuple[object, ...]:
    """Equal for errors that are one failure, however many things it stops.

    An error about a file is identified by its number, or its type where it has none, and the file; a shared one by its
    number alone; any other by ``name``, which is what it stops, and its type.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in SHARED_FAILURES:
        return (number,)
    path = error.filename if isinstance(error, OSError) else error.path if isinstance(error, Busy | Refused) else None
    if number is None and path is None:
        return name, type(error)
    return number if number is not None else type(error), str(path)


class FailureLog:
    """Logs each failure of one project once when it begins and once when it ends, however many things it stops."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._lasting: dict[Name, tuple[tuple[object, ...], str]] = {}
        """The failures that last: the identity of each error, and its message."""

    def failed(
        self,
        failed: FailureKind,
        error: Exception,
        /,
        *,
        message: str | None = None,
        exc_info: bool = False,
        **fields: str,
    ) -> None:
        """Log ``KIND_failed`` unless the same failure is logged already; ``fields`` name the thing that failed."""
        name = (failed, *fields.values())
        failure = failure_identity(name, error)
        text = message or str(error)
        if not self._lasts(failure):
            more: dict[str, Any] = {"exc_info": True} if exc_info else {}
            self._log.error(f"{failed}_failed", error=text, **fields, **more)
        self._lasting[name] = failure, text

    def recovered(self, failed: FailureKind, /, **fields: str) -> None:
        """Log ``KIND_recovered`` if the thing had failed and the failure stops nothing else."""
        failure, text = self._lasting.pop((failed, *fields.values()), (None, ""))
        if failure is not None and not self._lasts(failure):
            self._log.info(f"{failed}_recovered", error=text, **fields)

    def message(self, failed: FailureKind, /, **fields: str) -> str:
        """The message of a lasting failure; empty where there is none."""
        return self._lasting.get((failed, *fields.values()), ((), ""))[1]

    def _lasts(self, failure: tuple[object, ...]) -> bool:
        return failure in (known for known, _ in self._lasting.values())


class AlertLog:
    """Logs applied actions, and the end of each alert that a watcher no longer reports."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._lasting: dict[str, dict[tuple[object, ...], Escalate | None]] = {}
        """What each watcher's last tick reported, by the identity of the action; for an alert the action, too."""
        self._present: dict[str, set[tuple[object, ...]]] = {}
        """What each watcher's present tick decided."""

    @contextlib.contextmanager
    def tick(self, watcher: str) -> Iterator[None]:
        """The time in which one tick's actions are applied.

        At its end ``alert_resolved`` is logged for each alert of the watcher that this tick did not decide; not if it
        was cut off by an exception, since the rest is unknown then.
        """
        present = self._present[watcher] = set()
        yield
        lasting = self._lasting.get(watcher, {})
        for identity in lasting.keys() - present:
            alert = lasting.pop(identity)
            if alert is not None:
                self._log.info("alert_resolved", kind=alert.kind, key=alert.key, reason=alert.reason)

    def cut_off(self, watcher: str) -> None:
        """Say that this tick does not apply everything that the watcher reports, so that no alert ends with it."""
        self._present[watcher] |= self._lasting.get(watcher, {}).keys()

    def decided(self, watcher: str, actions: Iterable[Action]) -> None:
        """Say what this tick decided, whether or not it can be applied in it: none of these alerts ends with it."""
        self._present[watcher].update(action.identity for action in actions)

    def is_new(self, watcher: str, action: Action) -> bool:
        """Whether the watcher's ticks so far did not report the action."""
        return action.identity not in self._lasting.get(watcher, {})

    def remember(self, watcher: str, action: Action) -> None:
        """Keep a reported action until a tick no longer reports it."""
        lasting = self._lasting.setdefault(watcher, {})
        lasting[action.identity] = action if isinstance(action, Escalate) else None

    def applied(self, action: Action, prefix: str = "", **more: Any) -> None:
        """Log an applied action, with the prefix ``would_`` a proposed one; an escalation is an ``alert``."""
        alert = isinstance(action, Escalate)
        event = "alert" if alert and not prefix else prefix + action.verb
        level = self._log.warning if alert else self._log.info
        if left := action.evidence.get("left_alone"):
            more = {"left_alone": left, **more}
        level(event, kind=action.kind, key=action.key, reason=action.reason, **more)


class FdLimitLog:
    """Logs when there are too few file descriptors to watch all agents, and when there are enough again."""

    def __init__(self, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._reached = False

    def update(self, reached: bool, late_s: float) -> None:
        """Log a change; ``late_s`` is how late the death of an unwatched agent is seen."""
        if reached and not self._reached:
            error = f"there are too few to watch all agents: some deaths are seen up to {late_s:g} s later"
            self._log.warning("fd_limit_reached", error=f"{error}; raise LimitNOFILE=, or ulimit -Hn")
        elif self._reached and not reached:
            self._log.info("fd_limit_cleared")
        self._reached = reached
