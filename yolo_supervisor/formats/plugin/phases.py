"""What plans, summaries and events say of a phase: enough to tell its ``.execution-state.json`` anew when that is lost.

The plugin's own ``recover-state`` (2.9.8) misses its own events (it looks for ``type`` and a padded plan, where
``event`` and a number are written) and every summary that is spelled unlike its plan. Here both spellings of both are
read, a summary counts for what it says and not for being there, and whatever is a guess is told as a guess.
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
"""The plans that a phase still waits for; the earliest wave of them is the current one."""

_WORK = frozenset(
    {"agent_spawn", "task_claimed", "task_started", "artifact_written", "task_completed_candidate",
     "task_completed_confirmed", "task_completion_rejected", "task_blocked"}
)  # fmt: skip
"""Events that only a plan at work has. (Reviews come before it, shutdowns after.)"""

_PHASE = re.compile(r"([0-9]{1,9})([a-z]?)-(.+)")
_FILE = re.compile(r"(?:([0-9]{1,9}[a-z]?)-)?([0-9]{1,9})-(PLAN|SUMMARY)\.md")
_FIELD = re.compile(r"(\s*)([A-Za-z_][\w-]*)\s*:\s*(\S.*)")
_PLAN = re.compile(r"(?:[0-9]{1,9}[a-z]?-)?([0-9]{1,9})")
_LEASED = re.compile(r"([0-9]{1,9}[a-z]?)-([0-9]{1,9})(?:-T[0-9]+)?")


# -- *-PLAN.md and *-SUMMARY.md -----------------------------------------------------------------------------------


def front_matter(data: bytes) -> dict[str, str]:
    """The fields above a plan or summary, unquoted; of several with one name the least indented, then the first.

    Read line by line as the plugin does, which also takes a file without any ``---`` for one front matter. Lists and
    empty values are left out; bytes that are not UTF-8 become U+FFFD.
    """
    lines = data.decode("utf-8-sig", "replace").strip().split("\n")
    if lines[0].rstrip() == "---":
        rest = [line.rstrip() for line in lines[1:]]
        lines = rest[: rest.index("---")] if "---" in rest else rest
    found: dict[str, str] = {}
    for match in sorted(filter(None, map(_FIELD.match, lines)), key=lambda field: len(field[1])):
        if value := _unquoted(match[3].strip()):
            found.setdefault(match[2], value)
    return found


def _unquoted(text: str) -> str:
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _torn(data: bytes) -> bool:
    """Whether a crash left the file like this: nothing in it, or cut off above the end of its front matter."""
    text = data.strip(b"\0 \t\r\n\xef\xbb\xbf")
    return not text or (text.startswith(b"---") and not re.search(rb"\n---\s*(\n|$)", text))


# -- .events/event-log.jsonl --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the event log.

    ``phase`` is None where the plugin could not tell it (it then writes 0); ``task`` is as it was written: ``5-1-T2``,
    or by a gate just ``2``.
    """

    kind: str
    phase: int | None
    plan: int | None
    task: str | None
    data: Mapping[str, str]
    at: datetime | None


def events(data: bytes) -> tuple[list[Event], int]:
    """The events of a log in the order in which they were appended, and how many lines cannot be read.

    All writers are understood: ``event`` or ``type``, numbers or text, padded or not, the plan as ``plan`` or as
    ``data.plan`` (``NN-MM``), with or without ``ts``.
    """
    lines = [line for line in data.splitlines() if line.strip()]
    found = [event for line in lines if (event := _event(line))]
    return found, len(lines) - len(found)


def _event(line: bytes) -> Event | None:
    raw = load_object(line) or {}
    kind = text_or_none(raw.get("event")) or text_or_none(raw.get("type"))
    if kind is None:
        return None
    listed = raw.get("data")
    told = listed.items() if isinstance(listed, dict) else ()
    more = {key: v if isinstance(v, str) else json.dumps(v) for key, v in told if isinstance(v, str | int | float)}
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


# -- .execution-state.json anew -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """An execution state, and for a person: what of it is known and from where, and what is only inferred."""

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
    """The execution state of a phase as its ``files`` (name to content), the event log and the leases tell it.

    ``phase_dir`` is the folder's name, ``NN-slug``: ValueError for any other. ``leases`` tells until when a plan or
    one of its tasks (``03-01``, ``3-1-T2``) is leased, None for ever. A summary is believed before the events; a plan
    at work that nobody holds a lease on is ``stale``. Status and wave of the whole are those of ``recover-state``,
    except that a running plan makes a running phase.
    """
    named = _PHASE.fullmatch(phase_dir)
    if named is None:
        raise ValueError(f"{phase_dir!r} is not the name of a phase's folder")
    phase, prefix = int(named[1]), f"{int(named[1]):02d}{named[2]}"
    plan_files, summaries, strays = _paired(prefix, files)
    of_phase = [] if named[2] else [event for event in events if event.phase == phase]  # none can name "03b"
    plans: list[dict[str, Any]] = []
    known: list[str] = []
    inferred = [f"{name} is passed over: it is not taken for a plan's of this phase" for name in strays]
    for number in sorted(plan_files.keys() | summaries.keys()):
        plan_id, plan_file, summary = f"{prefix}-{number:02d}", plan_files.get(number), summaries.get(number)
        said = _told_by_summary(summary, files[summary]) if summary else None
        logged = _told_by_events([event for event in of_phase if event.plan == number])
        if logged and logged.status == "running":
            logged = _while_leased(logged, prefix, number, leases, now)
        told = said or logged or _Told("pending", "neither a summary nor an event tells of it", certain=False)
        (known if told.certain else inferred).append(f"plan {plan_id} is {told.status}: {told.because}")
        if said and logged and logged.status not in (said.status, "running", "stale"):
            inferred.append(f"plan {plan_id} is {logged.status} by the event log, but its summary is believed")
        if summary and not said:
            inferred.append(f"plan {plan_id} has a summary that proves nothing: {summary} is empty or cut off")
        if not plan_file:
            inferred.append(f"plan {plan_id} has no plan file: title and wave are those of its summary, if it has any")
        fields = [front_matter(files[name]) for name in (plan_file, summary) if name]
        wave = _number(next((each["wave"] for each in fields if "wave" in each), "1"))
        title = next((each["title"] for each in fields if "title" in each), "unknown")
        plans.append({"id": plan_id, "title": title, "wave": 1 if wave is None else wave, "status": told.status})
    state = {
        "phase": phase,
        "phase_name": named[3],
        "status": _overall({plan["status"] for plan in plans}),
        "wave": min((plan["wave"] for plan in plans if plan["status"] in OPEN), default=1),
        "total_waves": max((plan["wave"] for plan in plans), default=1),
        **({"correlation_id": correlation_id} if correlation_id else {}),
        "steps_completed": [],
        "plans": plans,
    }
    return Rebuilt(state, tuple(known), tuple(inferred))


def current_phase(dirs: Mapping[str, Mapping[str, bytes]], events: Sequence[Event]) -> str | None:
    """The folder of the phase at work: that of the latest event, else the first not complete, else the last.

    ``dirs`` has the files of each folder; one whose name is no phase's is no candidate. None without any.
    """
    named = sorted((int(match[1]), match[2], name) for name in dirs if (match := _PHASE.fullmatch(name)))
    latest = next((event.phase for event in reversed(events) if event.phase is not None), None)
    at_work = [name for number, letter, name in named if number == latest and not letter]
    unfinished = (
        name for *_, name in named if rebuild(name, dirs[name], events, {}, EPOCH).state["status"] != "complete"
    )
    return next(iter(at_work), None) or next(unfinished, None) or (named[-1][2] if named else None)


def _paired(prefix: str, files: Mapping[str, bytes]) -> tuple[dict[int, str], dict[int, str], list[str]]:
    """The plan file and the summary of each number, however spelled, and the names of what is neither.

    Of two spellings the whole file goes before a torn one, then ``NN-MM`` before ``MM``. A ``04-SUMMARY.md`` beside a
    ``04-04-PLAN.md`` is the whole phase's (real phases have one), unless it names its plan.
    """
    found: dict[str, dict[int, str]] = {"PLAN": {}, "SUMMARY": {}}
    strays = []
    for name in sorted(files, key=lambda name: (_torn(files[name]), -name.count("-"), name)):
        match = _FILE.fullmatch(name)
        foreign = match is None or (match[1] or prefix).lstrip("0") != prefix.lstrip("0")
        of_whole_phase = name == f"{prefix}-SUMMARY.md" and f"{prefix}-{prefix}-PLAN.md" in files
        if match is None or foreign or (of_whole_phase and "plan" not in front_matter(files[name])):
            strays.append(name)
        else:
            found[match[3]].setdefault(int(match[2]), name)
    return found["PLAN"], found["SUMMARY"], strays


@dataclass(frozen=True, slots=True)
class _Told:
    """What one source tells of a plan; ``because`` ends the sentence "it is <status>: …"."""

    status: str
    because: str
    certain: bool = True


def _told_by_summary(name: str, data: bytes) -> _Told | None:
    status = front_matter(data).get("status")
    if status is None:
        return None if _torn(data) else _Told("complete", f"{name} is there, but tells no status", certain=False)
    word = status.lower().split()[0]
    if word in COMPLETE or word == "failed":
        return _Told("failed" if word == "failed" else "complete", f"{name} says so")
    return _Told("pending", f"{name} says {status!r}, which is not finished", certain=False)


def _told_by_events(events: Sequence[Event]) -> _Told | None:
    told = None
    for event in events:
        status = event.data.get("status", "").strip().lower()
        if event.kind == "plan_start":
            told = _Told("running", "the event log has its plan_start and no plan_end since")
        elif event.kind in _WORK and told is None:
            told = _Told("running", "the event log has work on it, but neither plan_start nor plan_end", certain=False)
        elif event.kind == "plan_end" and not status:
            told = _Told("complete", "the event log has its plan_end, but without a status", certain=False)
        elif event.kind == "plan_end" and (status in COMPLETE or status == "failed"):
            told = _Told("failed" if status == "failed" else "complete", "the event log has its plan_end")
        elif event.kind == "plan_end":
            told = _Told("pending", f"the event log ends it as {status!r}, which is not finished", certain=False)
    return told


def _while_leased(told: _Told, prefix: str, number: int, leases: Mapping[str, datetime | None], now: datetime) -> _Told:
    """A plan at work is so while a lease on it or a task of it runs: until its last second, as the plugin counts."""
    for resource, until in leases.items():
        match = _LEASED.fullmatch(resource)
        ours = match and match[1].lstrip("0") == prefix.lstrip("0") and int(match[2]) == number
        if ours and (until is None or now <= until):
            return _Told("running", f"{told.because}, and the lease {resource} runs", told.certain)
    return _Told("stale", f"{told.because}, and no lease on it runs", certain=False)


def _overall(statuses: set[str]) -> str:
    if statuses == {"complete"}:
        return "complete"
    for status in ("failed", "stale"):
        if status in statuses:
            return status
    return "running" if statuses & {"complete", "running"} else "pending"
