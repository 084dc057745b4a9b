"""What an agent died of: the evidence, the rules that judge it, and the report that is written down.

The rules are at the end of the first half of this file, one function each: it answers with a finding, or with None.
The surest finding is the verdict, and the first of those that are equally sure.
"""

from __future__ import annotations

import json
import re
import signal
from calendar import monthrange
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from yolo_supervisor.files import Disk
from yolo_supervisor.files import replace as put
from yolo_supervisor.formats import load_object, supervisor, text_or_none
from yolo_supervisor.formats.transcripts import ApiError, Tail, moment
from yolo_supervisor.records import Agent, from_iso, iso
from yolo_supervisor.redaction import cut, redacted, redacted_all, shortened

SIZE = 64 * 1024
"""No report is larger, in bytes."""

KEPT = 200
"""How many reports are kept: the newest."""

LAST_WORDS = 24
"""How many of the last lines on its screen may be its own end: a heap that is full is told of in twenty."""

LINE = 400
"""How much of one line is told."""

HANG_S = 120.0
"""A tool that runs this long has had what the client gives one by default."""

LONG_HANG_S = 600.0
"""It never gives one more."""


class Class(StrEnum):
    OOM = "oom"
    SIGNAL = "signal"
    API_ERROR = "api_error"
    RATE_LIMITED = "rate_limited"
    """By the rate of its requests, or because its quota or credit is used up."""
    CONTEXT_OVERFLOW = "context_overflow"
    TOOL_HANG = "tool_hang"
    PERMISSION_WAIT = "permission_wait"
    CLEAN_EXIT = "clean_exit"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a death."""

    at: datetime
    """When it was noticed."""
    seen: bool = True
    """Whether it was noticed when it happened, so that ``at`` is the time of the death."""
    status: int | None = None
    """The exit code."""
    signal: int | None = None
    core: bool = False
    oom: str | None = None
    """How the kernel tells that memory was short."""
    oom_of_many: bool = False
    """Whether that may be about another process, one that shares its cgroup."""
    pane: tuple[str, ...] = ()
    """The last lines on its screen."""
    tail: Tail = field(default_factory=Tail)
    """The end of its transcript."""
    hooks: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """What hooks told of its process, the oldest first."""

    @property
    def killer(self) -> int | None:
        """The signal that ended it; also as a shell tells of it."""
        if self.signal is None and self.status is not None and 128 < self.status < 128 + 65:
            return self.status - 128
        return self.signal

    @property
    def ended_well(self) -> bool:
        return self.status == 0

    @property
    def broke(self) -> bool:
        """Whether it ended by a mistake of its own: such a signal nobody sends."""
        return self.killer in BREAKS

    @property
    def last_hook(self) -> tuple[str, Mapping[str, Any]]:
        return self.hooks[-1] if self.hooks else ("", {})


BREAKS = frozenset(
    {
        signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
        signal.SIGXCPU, signal.SIGXFSZ,
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    died_of: Class
    confidence: float
    why: str

    @property
    def told(self) -> dict[str, Any]:
        """The same for the journal, and for a report."""
        return {"class": str(self.died_of), "confidence": round(self.confidence, 2), "why": self.why}


@dataclass(frozen=True, kw_only=True)
class Verdict(Finding):
    """The surest finding. ``until`` is when what it ran into is over, if that is a wall that others run into, too."""

    others: tuple[Finding, ...] = ()
    until: datetime | None = None


OUTLIVED = 0.4
"""How sure it is that a limit ended an agent that died when the limit was over."""

UNKNOWN = Finding(died_of=Class.UNKNOWN, confidence=0.0, why="nothing tells")


def judge(evidence: Evidence, hold_s: float = 300.0, hold_max_s: float = 21600.0) -> Verdict:
    """What it died of. A wall that tells no time is over after ``hold_s``, none is believed to stand longer than
    ``hold_max_s``."""
    wall = _until(evidence, hold_s, hold_max_s)
    until = None if evidence.seen and wall <= evidence.at else wall  # what it had outlived nobody else is sure to meet
    found = [finding for rule in RULES if (finding := rule(evidence))]
    if until is None and any(finding.died_of is Class.RATE_LIMITED for finding in found):
        met = (Class.RATE_LIMITED, Class.API_ERROR)
        found = [replace(each, confidence=OUTLIVED) if each.died_of in met else each for each in found]
    found.sort(key=lambda finding: -finding.confidence)
    best = found[0] if found else UNKNOWN
    return Verdict(
        died_of=best.died_of, confidence=best.confidence, why=redacted(best.why)[:LINE], others=tuple(found[1:]),
        until=until if best.died_of is Class.RATE_LIMITED else None,
    )  # fmt: skip


# -- the rules --------------------------------------------------------------------------------------------------

_DYING_OF_MEMORY = re.compile(
    r"FATAL ERROR:.{0,80}(?:heap out of memory|Allocation failed|invalid table size)"
    r"|^MemoryError\b|\bCannot allocate memory\b|std::bad_alloc|\bfatal error: (?:runtime: )?out of memory"
    r"|panic.{0,40}: (?:out of memory|OutOfMemory)|^(?:error|RangeError): Out of memory|^Out of memory\b"
)
_QUOTA = re.compile(
    r"\(429\)|\b429\b.{0,80}rate|rate[ _-]?limit|usage limit|You.ve (?:hit|reached) your|out of (?:extra )?usage|quota"
    r"|credit balance|spend limit",
    re.IGNORECASE,
)
_OVERFLOW = re.compile(
    r"prompt is too long|exceeds? (?:the |your )?(?:model'?s? )?(?:maximum )?context|context (?:window|length|limit)"
    r"|conversation (?:is )?too long|input is too long|input length and .?max_tokens.? exceed|request_too_large",
    re.IGNORECASE,
)
_RETRYING = re.compile(r"\W{0,9}API error\b.{0,80}\bRetrying in", re.IGNORECASE)
_GAVE_UP = re.compile(r"\W{0,9}API Error: (?:\d{3}\b|Connection|Request)")
_ASKS = re.compile(
    r"[│ ]{0,4}(?:Do you want to (?:proceed|make this edit|create|allow|overwrite)|Would you like to proceed)"
)
_ANSWERS = re.compile(r"\W{0,6}1\. Yes")
_CHOICE = re.compile(r"[│ ]{0,6}❯ \d\. ")
_TALK = re.compile(r"[\s│]{0,9}[●⏺⎿]")
"""What an agent says, and what its tools have answered."""
_DRAWN = re.compile(rf"{_TALK.pattern}|[\s│]{{0,9}}[✻✳✶✽✢⏵]|[─━╭╰]{{3}}")
"""The client's own lines: it lived on to draw them."""
_QUOTED = re.compile(r"  |\t|\s{0,9}\d{1,6}(?:[→|│]|\s*\t| )")
"""An answer's further lines are indented, those of a file have numbers."""

OUT_OF_QUOTA = frozenset({"rate_limit", "billing_error"})
PATIENT = frozenset({"permission_prompt", "agent_needs_input", "elicitation_dialog"})
LEFT = frozenset({"clear", "logout", "prompt_input_exit", "other", "exit"})


def _oom(e: Evidence) -> Finding | None:
    if e.ended_well:
        return None
    if e.oom is not None and e.killer in (signal.SIGKILL, None):
        return Finding(died_of=Class.OOM, confidence=0.5 if e.oom_of_many else 0.97, why=e.oom)
    if e.killer in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        return None
    last_words = [line for line in _since_the_last(_DRAWN, e.pane[-LAST_WORDS:]) if not _QUOTED.match(line)]
    if words := _seen(_DYING_OF_MEMORY, last_words):
        sure = e.broke or (e.killer is None and e.status not in (None, 0))
        return Finding(died_of=Class.OOM, confidence=0.96 if sure else 0.55, why=f"its last words: {words}")
    return None


def _signal(e: Evidence) -> Finding | None:
    if e.killer is None:
        return None
    name = signal_name(e.killer)
    if e.broke:
        core = ", its core was dumped" if e.core else ""
        return Finding(died_of=Class.SIGNAL, confidence=0.95, why=f"it broke: {name}{core}")
    how = f"{name} ended it" if e.signal is not None else f"its shell says that {name} ended it"
    return Finding(died_of=Class.SIGNAL, confidence=0.6, why=how)


def _rate_limited(e: Evidence) -> Finding | None:
    error = e.tail.error
    if error is not None:
        if _OVERFLOW.search(error.text) and error.status != 429:
            return None
        vague = error.kind in ("", "unknown") and error.status in (None, 400, 403, 429)
        if error.status == 429 or error.kind in OUT_OF_QUOTA or (vague and _QUOTA.search(error.text)):
            sure = 0.9 if error.attempt is None else 0.8
            return Finding(died_of=Class.RATE_LIMITED, confidence=_unless_well(e, sure), why=f"met: {error.text}")
    event, payload = e.last_hook
    if event == "StopFailure" and _word(payload, "error") in OUT_OF_QUOTA:
        return Finding(died_of=Class.RATE_LIMITED, confidence=0.85, why=f"a hook told: {_word(payload, 'error')}")
    return None


def _context_overflow(e: Evidence) -> Finding | None:
    error = e.tail.error
    if error is not None and error.status != 429 and _OVERFLOW.search(error.text):
        return Finding(died_of=Class.CONTEXT_OVERFLOW, confidence=_unless_well(e, 0.93), why=f"met: {error.text}")
    if e.tail.stop == "model_context_window_exceeded":
        return Finding(
            died_of=Class.CONTEXT_OVERFLOW, confidence=0.85, why="the window was full in the middle of an answer"
        )
    return None


def _api_error(e: Evidence) -> Finding | None:
    error = e.tail.error
    if error is not None:
        return Finding(died_of=Class.API_ERROR, confidence=_unless_well(e, 0.75), why=f"met: {error.text}")
    event, payload = e.last_hook
    if event == "StopFailure":
        return Finding(died_of=Class.API_ERROR, confidence=0.7, why=f"a hook told: {_word(payload, 'error')}")
    if not e.ended_well and (words := _begins(_RETRYING, e.pane[-8:])):
        return Finding(died_of=Class.API_ERROR, confidence=0.65, why=f"its screen says: {words}")
    if not e.ended_well and (words := _begins(_GAVE_UP, e.pane[-8:])):
        return Finding(died_of=Class.API_ERROR, confidence=0.55, why=f"its screen says: {words}")
    return None


def _permission_wait(e: Evidence) -> Finding | None:
    if e.ended_well:
        return None
    dialog = _since_the_last(_TALK, e.pane[-14:])
    if (words := _begins(_ASKS, dialog)) and _begins(_ANSWERS, dialog) and _begins(_CHOICE, dialog):
        return Finding(died_of=Class.PERMISSION_WAIT, confidence=0.88, why=f"its screen asks: {words}")
    event, payload = e.last_hook
    if event == "Notification" and _word(payload, "notification_type") in PATIENT:
        what = _word(payload, "notification_type")
        return Finding(died_of=Class.PERMISSION_WAIT, confidence=0.82, why=f"a hook told: {what}")
    return None


def _tool_hang(e: Evidence) -> Finding | None:
    since = e.tail.tool_at
    if since is None or e.ended_well or not e.seen:
        return None
    for_s = (e.at - since).total_seconds()
    if for_s < HANG_S:
        return None
    sure = 0.8 if for_s >= LONG_HANG_S else 0.68
    return Finding(died_of=Class.TOOL_HANG, confidence=sure, why=f"for {for_s:.0f} s it waited for: {e.tail.tool}")


def _clean_exit(e: Evidence) -> Finding | None:
    if e.ended_well:
        return Finding(died_of=Class.CLEAN_EXIT, confidence=0.9, why="its exit code is 0")
    event, payload = e.last_hook
    if event == "SessionEnd" and _word(payload, "reason") in LEFT and not e.broke:
        sure = 0.7 if e.killer is None else 0.55
        return Finding(died_of=Class.CLEAN_EXIT, confidence=sure, why=f"a hook told: {_word(payload, 'reason')}")
    return None


def _error_exit(e: Evidence) -> Finding | None:
    if e.status and e.killer is None:
        return Finding(died_of=Class.UNKNOWN, confidence=0.3, why=f"its exit code is {e.status}, and nothing tells why")
    return None


RULES: Sequence[Callable[[Evidence], Finding | None]] = (
    _oom, _signal, _rate_limited, _context_overflow, _api_error, _permission_wait, _tool_hang, _clean_exit, _error_exit,
)  # fmt: skip


def _word(payload: Mapping[str, Any], key: str) -> str | None:
    return text_or_none(payload.get(key))


def _unless_well(e: Evidence, sure: float) -> float:
    """The confidence that an error ended it; one that broke, or left in good order, had seen worse, or got over it."""
    return sure - 0.45 if e.broke or e.ended_well else sure


def _seen(words: re.Pattern[str], lines: Sequence[str]) -> str | None:
    return next((line.strip()[:LINE] for line in reversed(lines) if words.search(line[:LINE].strip(" │"))), None)


def _begins(words: re.Pattern[str], lines: Sequence[str]) -> str | None:
    return next((line.strip()[:LINE] for line in reversed(lines) if words.match(line[:LINE])), None)


def _since_the_last(words: re.Pattern[str], lines: Sequence[str]) -> Sequence[str]:
    """The lines after the last one that begins so."""
    return lines[max((number for number, line in enumerate(lines, 1) if words.match(line[:LINE])), default=0) :]


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- how long a wall stands ---------------------------------------------------------------------------------------

_EPOCH = re.compile(r"\|(\d{10})\b")
_ISO = re.compile(r"reset\w*(?: at)?:? (\d{4}-\d\d-\d\dT[0-9:.]{4,15}(?:Z|[+-]\d\d:\d\d)?)", re.IGNORECASE)
_LENGTH = r"(\d{1,6}) ?(days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])"
_AHEAD = re.compile(rf"(?:resets?|try again|retry) (?:in|after) ((?:{_LENGTH}(?:, | and | )?){{1,4}})", re.IGNORECASE)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = re.compile(
    rf"(?:resets?|try again)(?: at| on)?:? (?:({'|'.join(_MONTHS)})[a-z]{{0,6}} (\d{{1,2}})(?:,| at)? )?"
    r"(\d{1,2})(?::(\d\d))?(?: ?(am|pm))?(?![\w:-])"
    r"(?: \(([A-Za-z0-9_+-]{1,30}(?:/[A-Za-z0-9_+-]{1,30}){0,2})\)|(?! \())",
    re.IGNORECASE,
)


def _until(e: Evidence, hold_s: float, hold_max_s: float) -> datetime:
    event, payload = e.last_hook
    error = e.tail.error
    if error is None and event == "StopFailure":
        error = ApiError(text=f"{_word(payload, 'error_details')}", at=moment(payload.get("at")))
    since = min((error.at if error else None) or e.at, e.at)
    told = _resets_at(error.text, since) if error else None
    earliest, latest = since + timedelta(seconds=hold_s), e.at + timedelta(seconds=hold_max_s)
    return min(told if told is not None and told > since else earliest, latest)


def _resets_at(text: str, since: datetime) -> datetime | None:
    """When the wall is said to be over; None if nothing that we understand is said."""
    try:
        if found := _EPOCH.search(text):
            return datetime.fromtimestamp(int(found[1]), UTC)
        if found := _ISO.search(text):
            return from_iso(found[1])
        if found := _AHEAD.search(text):
            lengths = {unit[0].lower(): int(number) for number, unit in re.findall(f"(?i){_LENGTH}", found[1])}
            days, hours, minutes, seconds = (lengths.get(unit, 0) for unit in "dhms")
            return since + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if (found := _CLOCK.search(text)) and (found[4] or found[5]):
            return _on_the_clock(found, since)
    except (ValueError, OverflowError, OSError, KeyError):  # no such hour, no such zone
        return None
    return None


def _on_the_clock(found: re.Match[str], since: datetime) -> datetime | None:
    """The next time that a clock shows this; with a date, the nearest such day: over, or to come. ValueError, KeyError
    if there is none."""
    from zoneinfo import ZoneInfo

    month, day, hour, minute, half, zone = found.groups()
    place = ZoneInfo(zone) if zone else None  # none is named: where we are
    local = since.astimezone(place).replace(tzinfo=None)
    if half and not 1 <= int(hour) <= 12:
        return None
    hours = int(hour) % 12 + 12 * (half.lower() == "pm") if half else int(hour)
    then = local.replace(hour=hours, minute=int(minute or 0), second=0, microsecond=0)
    if month is None:
        days = [then if then > local else then + timedelta(days=1)]
    else:
        years, number = (local.year - 1, local.year, local.year + 1), _MONTHS.index(month.lower()) + 1
        days = [then.replace(year=y, month=number, day=int(day)) for y in years if int(day) <= monthrange(y, number)[1]]
    nearest = min(days, key=lambda each: abs(each - local))
    return nearest.replace(tzinfo=place).astimezone(UTC)


# -- reports ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Report:
    """One death. Nothing of it is written down before its secrets are taken out."""

    agent: Agent
    evidence: Evidence
    verdict: Verdict
    more: Mapping[str, Any] = field(default_factory=dict)
    """What only people want to know: its processes, the repository, its tasks."""

    @property
    def ident(self) -> str:
        """The report's name: when, and who; a second life of the same name has another."""
        life = supervisor.agent_file(self.agent).removesuffix(".json")
        return f"{self.evidence.at:%Y%m%dT%H%M%S}Z-{life}"


@dataclass(frozen=True, kw_only=True)
class Crash:
    """What follows from a report now. ``hold_s`` is how long the wall still stands that the agent has run into; None
    if there is none."""

    report: Report
    hold_s: float | None = None
    written: bool = False
    """Whether the report is written, or cannot be."""

    @property
    def verdict(self) -> Verdict:
        return self.report.verdict

    @property
    def cause(self) -> str | None:
        """In one word; None if it is not known."""
        return None if self.verdict.died_of is Class.UNKNOWN else str(self.verdict.died_of)

    @property
    def told(self) -> dict[str, Any]:
        """The verdict for the journal."""
        return self.verdict.told


def dump(report: Report) -> bytes:
    """The report as it is written: redacted, and never larger than ``SIZE``."""
    agent, verdict, e = report.agent, report.verdict, report.evidence
    raw: dict[str, Any] = {
        "version": 1,
        "id": report.ident,
        "at": iso(e.at),
        "agent": agent.id,
        "name": agent.name,
        "role": agent.role,
        "team": agent.team,
        "pid": agent.pid,
        **verdict.told,
        "until": iso(verdict.until) if verdict.until else None,
        "perhaps": [finding.told for finding in verdict.others],
        "exit": {
            "status": e.status, "signal": signal_name(e.signal) if e.signal is not None else None, "core": e.core,
            "oom": e.oom,
        },
        "last_tool": e.tail.tool,
        "last_tool_waited_since": iso(e.tail.tool_at) if e.tail.tool_at else None,
        "hooks": [{"event": event, **dict(told)} for event, told in e.hooks],
        **report.more,
        "turns": list(e.tail.turns),
    }  # fmt: skip
    told = redacted_all(cut(raw, 2 * LINE))
    told |= {key: raw[key] for key in ("id", "agent", "name", "team")}
    told["pane"] = redacted("\n".join(shortened(line, 2 * LINE) for line in e.pane)).split("\n")
    for each in range(8):
        data = json.dumps(cut(told, LINE >> each), indent=2, default=str).encode() + b"\n"
        if len(data) <= SIZE:
            return data
    lean = {key: told[key] for key in ("version", "id", "at", "agent", "class", "confidence")}
    return json.dumps(lean).encode()


def load(data: bytes) -> dict[str, Any] | None:
    """A report that was written; None if it cannot be read."""
    raw = load_object(data)
    whole = raw is not None and all(isinstance(raw.get(key), str) for key in ("id", "at", "agent", "class"))
    return raw if whole else None


_REPORT = re.compile(r"\d{8}T\d{6}Z-.+\.json")


def save(disk: Disk, folder: Path, report: Report) -> None:
    """Write the report, and remove what the newest ones have outlived. OSError, Refused if that cannot be."""
    put(disk, folder / f"{report.ident}.json", dump(report), durable=False)
    ours = sorted(name for name in disk.names(folder) if _REPORT.fullmatch(name))  # whatever else is there is not
    for name in ours[:-KEPT]:
        disk.unlink(folder / name)


# -- clusters -----------------------------------------------------------------------------------------------------


class Clusters:
    """Deaths of one class in a short time: what ends several agents at once is nobody's own fault."""

    WITHIN_S = 180.0
    MANY = 3

    def __init__(self) -> None:
        self._deaths: dict[Class, dict[str, float]] = {}
        self._told: dict[Class, tuple[int, str]] = {}

    def add(self, died_of: Class, agent: str, now_s: float) -> None:
        if died_of not in (Class.UNKNOWN, Class.CLEAN_EXIT):
            self._deaths.setdefault(died_of, {})[agent] = now_s

    def told(self, now_s: float) -> dict[Class, str]:
        """What there is to tell now. It is said anew only when there are twice as many."""
        for died_of, deaths in self._deaths.items():
            for agent in [agent for agent, at_s in deaths.items() if now_s - at_s > self.WITHIN_S]:
                del deaths[agent]
            before, _ = self._told.get(died_of, (0, ""))
            if not deaths:
                self._told.pop(died_of, None)
            elif len(deaths) >= max(self.MANY, 2 * before):
                span_s = max(deaths.values()) - min(deaths.values())
                span = f"{span_s / 60:.0f} minutes" if span_s >= 90 else f"{span_s:.0f} seconds"
                self._told[died_of] = len(deaths), f"{len(deaths)} agents, one class ({died_of}), {span}"
        return {died_of: sentence for died_of, (_, sentence) in self._told.items()}
