"""The outcomes of feature flags: one table for the plugin's logs, the journal and returned leases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from yolo_supervisor.formats.json import load_object, time_or_none
from yolo_supervisor.formats.plugin.config import EVENT_RECOVERY, HARD_CONTRACTS, HARD_GATES, SNAPSHOT_RESUME
from yolo_supervisor.formats.plugin.execution_state import STATE_FILE
from yolo_supervisor.models import RestoredFrom

FAILED, WORKED = True, False

LEASE_LOCKS = "v3_lease_locks"


class Source(StrEnum):
    """The place where an event is seen."""

    PLUGIN_LOG = "plugin_log"
    """The plugin's event log and metrics; the detail is the gate."""
    JOURNAL = "journal"
    """The supervisor's journal, kind and action; the detail is how a lease ended, or what a file was restored from."""
    LEASE_FILES = "lease_files"
    """The plugin's lease folder."""


class Row(NamedTuple):
    """One event and what it says about one flag. ``detail`` narrows the event down; None matches any detail."""

    source: Source
    event: str
    detail: str | None
    flag: str
    failed: bool
    reason: str


TABLE = (
    Row(Source.PLUGIN_LOG, "gate_pass", None, HARD_GATES, WORKED, "a gate let the work go on"),
    Row(
        Source.PLUGIN_LOG, "gate_pass", "contract_compliance", HARD_CONTRACTS, WORKED,
        "the contract is there, intact, and fits the task",
    ),
    Row(
        Source.PLUGIN_LOG, "gate_fail", "contract_compliance", HARD_CONTRACTS, FAILED,
        "the contract is missing, unreadable, altered, or does not know the task",
    ),
    Row(
        Source.PLUGIN_LOG, "task_blocked", "contract_compliance", HARD_GATES, FAILED,
        "the gate stays closed although the contract was generated again: nothing passes until a person helps",
    ),
    Row(Source.PLUGIN_LOG, "snapshot_restored", None, SNAPSHOT_RESUME, WORKED, "work went on from a snapshot"),
    Row(Source.JOURNAL, "lease taken_over", None, LEASE_LOCKS, FAILED, "its holder did not return it in time"),
    Row(Source.JOURNAL, "lease released", "expired", LEASE_LOCKS, FAILED, "its holder did not return it in time"),
    Row(Source.JOURNAL, "lease released", "returned", LEASE_LOCKS, WORKED, "its holder returned it by a command"),
    Row(Source.LEASE_FILES, "returned", None, LEASE_LOCKS, WORKED, "its holder removed the file"),
    Row(Source.JOURNAL, "state restored", "snapshot", SNAPSHOT_RESUME, WORKED, "there was a snapshot"),
    Row(Source.JOURNAL, "state restored", "rebuilt", EVENT_RECOVERY, WORKED, "the events were enough"),
    Row(Source.JOURNAL, "state restored", "rebuilt", SNAPSHOT_RESUME, FAILED, "there was no usable snapshot"),
)  # fmt: skip
"""The only events that count. They are few, because an outcome has to say whether the flag's feature itself works.

A gate that refuses bad work, a rejected completion or message, a used-up budget and a conflict over a lock are the
purpose of these flags, not their failure. A lease of a dead agent that is released says something about the agent only.
``gate_passed`` (event log) repeats ``gate_pass`` (metrics, always written), so only the latter counts. Lines that the
supervisor itself writes into the event log do not count either: their events are not listed, and the numbers in their
``task_blocked`` are strings.
"""

_ROWS: dict[tuple[Source, str], list[Row]] = {}
for _row in TABLE:
    _ROWS.setdefault((_row.source, _row.event), []).append(_row)

_LOG_WORDS = tuple(row.event.encode() for row in TABLE if row.source is Source.PLUGIN_LOG)


class Result(NamedTuple):
    """One outcome: of which flag, and whether it failed."""

    flag: str
    failed: bool


class LogEvent(NamedTuple):
    """A line of one of the plugin's logs that holds outcomes."""

    at: datetime | None
    subject: str
    """The phase, plan and task that the event is about."""
    results: list[Result]


def results(source: Source, event: str, detail: str | None = None) -> list[Result]:
    """The outcomes that an event of this source stands for."""
    rows = _ROWS.get((source, event), ())
    return [Result(row.flag, row.failed) for row in rows if row.detail in (None, detail)]


def in_log_line(line: bytes) -> LogEvent | None:
    """The outcomes in a line of the plugin's event log or metrics; None if there are none."""
    if not any(word in line for word in _LOG_WORDS):
        return None  # most lines: they need not be parsed
    raw = load_object(line) or {}
    data = raw["data"] if isinstance(raw.get("data"), dict) else {}
    event, gate, attempts = raw.get("event"), data.get("gate"), data.get("attempts")
    if event == "task_blocked" and not (type(attempts) is int and attempts > 0):
        return None  # a gate that only a person can open: no repair was attempted
    if not isinstance(event, str) or not (found := results(Source.PLUGIN_LOG, event, gate)):
        return None
    subject = "-".join(str(part) for part in (raw.get("phase"), raw.get("plan"), data.get("task")))
    return LogEvent(time_or_none(raw.get("ts")), subject, found)


class JournalEntry(Protocol):
    """The source of the outcomes of an action."""

    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def action(self) -> str: ...
    @property
    def by(self) -> str: ...
    @property
    def evidence(self) -> Mapping[str, Any]: ...


def in_journal_entry(entry: JournalEntry) -> list[Result]:
    """The outcomes that follow from a finished action of the supervisor."""
    event = f"{entry.kind} {entry.action}"
    if (Source.JOURNAL, event) not in _ROWS:
        return []
    return results(Source.JOURNAL, event, _detail(entry))


def _detail(entry: JournalEntry) -> str | None:
    if entry.kind == "lease":
        if "ttl_s" in entry.evidence:
            return "expired"
        return "returned" if entry.by == "cli" else None
    return _restored_from(entry.evidence) if entry.key == STATE_FILE else None


def _restored_from(evidence: Mapping[str, Any]) -> RestoredFrom | None:
    """The source of a restored file. Version 0.1.0 wrote no code for it: for its entries the sentence decides."""
    if "restored_from" in evidence:
        code: RestoredFrom = evidence["restored_from"]
        return code
    sentence = str(evidence.get("source"))
    if sentence.startswith("the snapshot "):
        return "snapshot"
    return "rebuilt" if sentence.startswith("plans, ") else None
