"""The plugin's event log and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.plugin.agents import _moment
from yolo_supervisor.formats.plugin.execution_state import _PLAN_ID

# -- what the plugin's logs tell of its flags ---------------------------------------------------------------------

METRICS = Path(".metrics", "run-metrics.jsonl")

FAILED, WENT_WELL = True, False

TELLING = (
    ("gate_pass", None, "v2_hard_gates", WENT_WELL, "a gate has let the work go on"),
    ("gate_pass", "contract_compliance", "v2_hard_contracts", WENT_WELL, "the contract was there, whole, and fits"),
    (
        "gate_fail",
        "contract_compliance",
        "v2_hard_contracts",
        FAILED,
        "the contract is missing, unreadable, altered, or does not know the task",
    ),
    (
        "task_blocked",
        "contract_compliance",
        "v2_hard_gates",
        FAILED,
        "the gate stays closed although the contract was made anew: nothing gets through until somebody comes",
    ),
    ("snapshot_restored", None, "v3_snapshot_resume", WENT_WELL, "there was a snapshot, and work went on from it"),
)
"""Which event means what for which flag, and why: event, its gate (None: any), flag, outcome.

Only what tells whether that works which the flag switches on. That is little: a gate that refuses bad work, a rejected
completion or message, a budget that is used up, a conflict over a lock are these flags' purpose, not their failure. Of
``gate_pass`` (metrics, always written) and ``gate_passed`` (event log) only the one counts, they are the same fact.
What we write into the event log ourselves is no news: ``state_recovered``, ``task_blocked`` with its numbers as text.
"""


def outcomes(line: bytes) -> tuple[datetime | None, list[tuple[str, bool, str]]]:
    """What a line of the event log or of the metrics tells of flags: which one, whether it failed, and at what."""
    if not any(word in line for word in (b"gate_", b"task_blocked", b"snapshot_restored")):
        return None, []  # most of them: they need not be parsed
    raw = load_object(line) or {}
    data = raw["data"] if isinstance(raw.get("data"), dict) else {}
    gate, attempts = data.get("gate"), data.get("attempts")
    if raw.get("event") == "task_blocked" and not (type(attempts) is int and attempts > 0):
        return None, []  # the repair has not even tried: this gate is one for people
    at = "-".join(str(each) for each in (raw.get("phase"), raw.get("plan"), data.get("task")))
    found = [
        (flag, failed, at)
        for event, its_gate, flag, failed, _ in TELLING
        if event == raw.get("event") and its_gate in (None, gate)
    ]
    return _moment(raw.get("ts")), found


# -- .events/event-log.jsonl ------------------------------------------------------------------------------------

EVENT_LOG = Path(".events", "event-log.jsonl")


def dump_event(
    name: str, at: datetime, ident: str, correlation: str, place: tuple[int, int | None], data: Mapping[str, object]
) -> bytes:
    """A line of the event log as ``log-event`` writes it: compact, sorted, ``data`` in strings only.

    ``place`` is the phase and, where there is one, the plan, as numbers: the plugin's readers take no others.
    """
    phase, plan = place
    line = {
        "correlation_id": correlation,
        "data": {key: str(value) for key, value in data.items() if value is not None},
        "event": name,
        "event_id": ident,
        "phase": phase,
        "ts": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if plan is not None:
        line["plan"] = plan
    text = json.dumps(line, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"


def place(state: bytes, plan_id: str | None) -> tuple[int, int | None]:
    """Phase and plan that an event is about: a plan's own, else the phase that the execution state names, else 0."""
    if plan_id is not None and (found := _PLAN_ID.fullmatch(plan_id)):
        return int(found[1]), int(found[2])
    phase = (load_object(state) or {}).get("phase")
    return (phase if type(phase) is int and phase >= 0 else 0), None


def correlation(state: bytes) -> str:
    return text_or_none((load_object(state) or {}).get("correlation_id")) or ""
