"""The plugin's event log and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.plugin.execution_state import PLAN_ID

EVENT_LOG = Path(".events", "event-log.jsonl")
METRICS = Path(".metrics", "run-metrics.jsonl")


def dump_event(
    name: str, at: datetime, ident: str, correlation: str, place: tuple[int, int | None], data: Mapping[str, object]
) -> bytes:
    """A line of the event log, as ``log-event`` writes it: compact, sorted, ``data`` as strings.

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
    """The phase and plan of an event: by the plan's id, else the state's phase, else 0."""
    if plan_id is not None and (match := PLAN_ID.fullmatch(plan_id)):
        return int(match[1]), int(match[2])
    phase = (load_object(state) or {}).get("phase")
    return (phase if type(phase) is int and phase >= 0 else 0), None


def correlation(state: bytes) -> str:
    return text_or_none((load_object(state) or {}).get("correlation_id")) or ""
