"""Rebuild a lost ``.execution-state.json`` from the plans, summaries and events of a phase.

The plugin's ``recover-state`` (2.9.8) misses the plugin's events (it looks for ``type`` and a padded plan, but
``event`` and a number are written) and every summary that is spelled unlike its plan. Here both spellings of both are
read, a summary counts by its content and not by its existence, and guesses are reported as such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none
from yolo_supervisor.formats.plugin.execution_state import COMPLETE
from yolo_supervisor.formats.plugin.leases import EPOCH

OPEN = frozenset({"pending", "running", "stale"})
"""The statuses of unfinished plans. The earliest wave of such plans is the current one."""

_WORK = frozenset(
    {"agent_spawn", "task_claimed", "task_started", "artifact_written", "task_completed_candidate",
     "task_completed_confirmed", "task_completion_rejected", "task_blocked"}
)  # fmt: skip
"""Events that only a plan in progress has. (Reviews come before it, shutdowns after.)"""

_PHASE = re.compile(r"([0-9]{1,9})([a-z]?)-(.+)")
_FILE = re.compile(r"(?:([0-9]{1,9}[a-z]?)-)?([0-9]{1,9})-(PLAN|SUMMARY)\.md")
_FIELD = re.compile(r"(\s*)([A-Za-z_][\w-]*)\s*:\s*(\S.*)")
_PLAN = re.compile(r"(?:[0-9]{1,9}[a-z]?-)?([0-9]{1,9})")
_LEASED = re.compile(r"([0-9]{1,9}[a-z]?)-([0-9]{1,9})(?:-T[0-9]+)?")


# -- *-PLAN.md and *-SUMMARY.md -----------------------------------------------------------------------------------


def front_matter(data: bytes) -> dict[str, str]:
    """The front matter of a plan or summary, unquoted.

    The least indented, then the first field of a name counts. It is read line by line, as by the plugin, which treats a
    file without any ``---`` as front matter. Lists and empty values are left out; bytes that are not UTF-8 become
    U+FFFD.
    """
    lines = data.decode("utf-8-sig", "replace").strip().split("\n")
    if lines[0].rstrip() == "---":
        rest = [line.rstrip() for line in lines[1:]]
        lines = rest[: rest.index("---")] if "---" in rest else rest
    fields: dict[str, str] = {}
    for match in sorted(filter(None, map(_FIELD.match, lines)), key=lambda field: len(field[1])):
        if value := _unquoted(match[3].strip()):
            fields.setdefault(match[2], value)
    return fields


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _torn(data: bytes) -> bool:
    """Whether a crash cut the file off: it is empty, or ends within its front matter."""
    text = data.strip(b"\0 \t\r\n\xef\xbb\xbf")
    return not text or (text.startswith(b"---") and not re.search(rb"\n---\s*(\n|$)", text))


# -- .events/event-log.jsonl --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the event log.

    ``phase`` is None if the plugin did not know it (it then writes 0). ``task`` is as it was written: ``5-1-T2``, or
    just ``2`` by a gate.
    """

    kind: str
    phase: int | None
    plan: int | None
    task: str | None
    data: Mapping[str, str]
    at: datetime | None


def events(data: bytes) -> tuple[list[Event], int]:
    """The events of a log in their order, and the number of unreadable lines.

    The spellings of all writers are understood: ``event`` or ``type``, numbers or text, padded or not, the plan as
    ``plan`` or as ``data.plan`` (``NN-MM``), with or without ``ts``.
    """
    lines = [line for line in data.splitlines() if line.strip()]
    parsed = [event for line in lines if (event := _event(line))]
    return parsed, len(lines) - len(parsed)


def _event(line: bytes) -> Event | None:
    raw = load_object(line) or {}
    kind = text_or_none(raw.get("event")) or text_or_none(raw.get("type"))
    if kind is None:
        return None
    data = raw.get("data")
    items = data.items() if isinstance(data, dict) else ()
    more = {key: v if isinstance(v, str) else json.dumps(v) for key, v in items if isinstance(v, str | int | float)}
    plan = _number(raw.get("plan"), _PLAN)
    return Event(
        kind,
        _number(raw.get("phase")) or None,
        _number(more.get("plan"), _PLAN) if plan is None else plan,
        more.get("task_id") or more.get("task"),
        more,
        time_or_none(raw.get("ts")),
    )


def _number(value: object, spelled: re.Pattern[str] = re.compile("([0-9]{1,9})")) -> int | None:
    """``5``, ``"5"`` and ``"05"`` are all 5."""
    if type(value) is int:
        return value if 0 <= value < 10**9 else None
    match = spelled.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(match[1]) if match else None


# -- rebuilding .execution-state.json ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An execution state, with sentences about its known and its inferred parts."""

    state: dict[str, Any]
    known: tuple[str, ...]
    inferred: tuple[str, ...]


def rebuild(
    phase_dir: str,
    files: Mapping[str, bytes],
    events: Sequence[Event],
    leases: Mapping[str, datetime | None],
    now: datetime,
    correlation_id: str | None = None,
) -> Rebuilt:
    """The execution state of a phase by its ``files`` (name to content), events and leases.

    ``phase_dir`` is the folder's name, ``NN-slug``: ValueError for any other. ``leases`` has the end of each lease on a
    plan or one of its tasks (``03-01``, ``3-1-T2``), None for one without end. A summary comes before the events. A
    plan in progress without a lease is ``stale``. The status and wave of the phase are those of ``recover-state``,
    except that a running plan makes a running phase.
    """
    match = _PHASE.fullmatch(phase_dir)
    if match is None:
        raise ValueError(f"{phase_dir!r} is not the name of a phase's folder")
    phase, prefix = int(match[1]), f"{int(match[1]):02d}{match[2]}"
    plan_files, summaries, strays = _paired(prefix, files)
    of_phase = [] if match[2] else [event for event in events if event.phase == phase]  # none can name "03b"
    plans: list[dict[str, Any]] = []
    known: list[str] = []
    inferred = [f"{name} is ignored: it belongs to no plan of this phase" for name in strays]
    for number in sorted(plan_files.keys() | summaries.keys()):
        plan_id, plan_file, summary = f"{prefix}-{number:02d}", plan_files.get(number), summaries.get(number)
        summarised = _by_summary(summary, files[summary]) if summary else None
        logged = _by_events([event for event in of_phase if event.plan == number])
        if logged and logged.status == "running":
            logged = _while_leased(logged, prefix, number, leases, now)
        best = summarised or logged or _PlanStatus("pending", "it has neither a summary nor an event", certain=False)
        (known if best.certain else inferred).append(f"plan {plan_id} is {best.status}: {best.because}")
        if summarised and logged and logged.status not in (summarised.status, "running", "stale"):
            inferred.append(f"plan {plan_id} is {logged.status} by the event log, but the summary counts")
        if summary and not summarised:
            inferred.append(f"plan {plan_id} has a summary without content: {summary} is empty or cut off")
        if not plan_file:
            inferred.append(f"plan {plan_id} has no plan file: title and wave come from its summary, if that has them")
        fields = [front_matter(files[name]) for name in (plan_file, summary) if name]
        wave = _number(next((matter["wave"] for matter in fields if "wave" in matter), "1"))
        title = next((matter["title"] for matter in fields if "title" in matter), "unknown")
        plans.append({"id": plan_id, "title": title, "wave": 1 if wave is None else wave, "status": best.status})
    state = {
        "phase": phase,
        "phase_name": match[3],
        "status": _overall({plan["status"] for plan in plans}),
        "wave": min((plan["wave"] for plan in plans if plan["status"] in OPEN), default=1),
        "total_waves": max((plan["wave"] for plan in plans), default=1),
        **({"correlation_id": correlation_id} if correlation_id else {}),
        "steps_completed": [],
        "plans": plans,
    }
    return Rebuilt(state, tuple(known), tuple(inferred))


def current_phase(dirs: Mapping[str, Mapping[str, bytes]], events: Sequence[Event]) -> str | None:
    """The folder of the current phase: by the latest event, else the first open, else the last.

    ``dirs`` has the files of each folder. Folders whose names are no phases are left out; None without any other.
    """
    named = sorted((int(match[1]), match[2], name) for name in dirs if (match := _PHASE.fullmatch(name)))
    latest = next((event.phase for event in reversed(events) if event.phase is not None), None)
    at_work = [name for number, letter, name in named if number == latest and not letter]
    unfinished = (
        name for *_, name in named if rebuild(name, dirs[name], events, {}, EPOCH).state["status"] != "complete"
    )
    return next(iter(at_work), None) or next(unfinished, None) or (named[-1][2] if named else None)


def _paired(prefix: str, files: Mapping[str, bytes]) -> tuple[dict[int, str], dict[int, str], list[str]]:
    """The plan file and the summary of each number in any spelling, and the names of all other files.

    Of two spellings a complete file comes before a torn one, then ``NN-MM`` before ``MM``. A ``04-SUMMARY.md`` beside a
    ``04-04-PLAN.md`` is about the phase (real phases have one), unless it names its plan.
    """
    files_of: dict[str, dict[int, str]] = {"PLAN": {}, "SUMMARY": {}}
    strays = []
    for name in sorted(files, key=lambda name: (_torn(files[name]), -name.count("-"), name)):
        match = _FILE.fullmatch(name)
        foreign = match is None or (match[1] or prefix).lstrip("0") != prefix.lstrip("0")
        of_whole_phase = name == f"{prefix}-SUMMARY.md" and f"{prefix}-{prefix}-PLAN.md" in files
        if match is None or foreign or (of_whole_phase and "plan" not in front_matter(files[name])):
            strays.append(name)
        else:
            files_of[match[3]].setdefault(int(match[2]), name)
    return files_of["PLAN"], files_of["SUMMARY"], strays


@dataclass(frozen=True, slots=True)
class _PlanStatus:
    """The status of a plan by one source; ``because`` ends the sentence "it is <status>: …"."""

    status: str
    because: str
    certain: bool = True


def _by_summary(name: str, data: bytes) -> _PlanStatus | None:
    status = front_matter(data).get("status")
    if status is None:
        return None if _torn(data) else _PlanStatus("complete", f"{name} exists, but has no status", certain=False)
    word = status.lower().split()[0]
    if word in COMPLETE or word == "failed":
        return _PlanStatus("failed" if word == "failed" else "complete", f"{name} has this status")
    return _PlanStatus("pending", f"{name} has the status {status!r}, which is not finished", certain=False)


def _by_events(events: Sequence[Event]) -> _PlanStatus | None:
    latest = None
    for event in events:
        status = event.data.get("status", "").strip().lower()
        if event.kind == "plan_start":
            latest = _PlanStatus("running", "the event log has its plan_start, and no plan_end after it")
        elif event.kind in _WORK and latest is None:
            latest = _PlanStatus(
                "running", "the event log has work on it, but neither its plan_start nor its plan_end", certain=False
            )
        elif event.kind == "plan_end" and not status:
            latest = _PlanStatus("complete", "the event log has its plan_end, but without a status", certain=False)
        elif event.kind == "plan_end" and (status in COMPLETE or status == "failed"):
            latest = _PlanStatus("failed" if status == "failed" else "complete", "the event log has its plan_end")
        elif event.kind == "plan_end":
            latest = _PlanStatus(
                "pending", f"the event log ends it as {status!r}, which is not finished", certain=False
            )
    return latest


def _while_leased(
    running: _PlanStatus, prefix: str, number: int, leases: Mapping[str, datetime | None], now: datetime
) -> _PlanStatus:
    """Stale, unless a lease on the plan or one of its tasks is valid. As in the plugin, its last second counts."""
    for resource, until in leases.items():
        match = _LEASED.fullmatch(resource)
        is_of_plan = match and match[1].lstrip("0") == prefix.lstrip("0") and int(match[2]) == number
        if is_of_plan and (until is None or now <= until):
            return _PlanStatus("running", f"{running.because}, and the lease {resource} is valid", running.certain)
    return _PlanStatus("stale", f"{running.because}, and no lease on it is valid", certain=False)


def _overall(statuses: set[str]) -> str:
    if statuses == {"complete"}:
        return "complete"
    for status in ("failed", "stale"):
        if status in statuses:
            return status
    return "running" if statuses & {"complete", "running"} else "pending"
