"""The cause of an agent's death, by rules on its evidence.

Each rule is one function that returns a finding or None. The finding of the highest confidence is the verdict; of
equal ones it is the first in ``RULES``.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from yolo_supervisor.formats.crash_report import (
    ENDED_BY_PERSON,
    MAX_TEXT,
    CrashCause,
    Evidence,
    Finding,
    Verdict,
    signal_name,
)
from yolo_supervisor.formats.json import text_or_none
from yolo_supervisor.policy.rate_limit_reset import window_end
from yolo_supervisor.policy.waiting import OPEN_DIALOG, QUOTA_USED_UP
from yolo_supervisor.redaction import redacted

LAST_OUTPUT = 24
"""The lines at the end of the screen that may be an error message; a full heap prints twenty."""

HANG_S = 120.0
"""The time after which the client ends a tool by default."""

LONG_HANG_S = 600.0
"""The longest time that the client ever gives a tool."""

RESET_CONFIDENCE = 0.4
"""Confidence of RATE_LIMITED when the limit had already reset at the time of death."""

UNKNOWN = Finding(cause=CrashCause.UNKNOWN, confidence=0.0, reason="no evidence")


def classify(evidence: Evidence, hold_s: float = 300.0, hold_max_s: float = 21600.0) -> Verdict:
    """The cause of a death, and the end of the rate-limit window if that is the cause.

    A window without a known end lasts ``hold_s``, and none lasts longer than ``hold_max_s``.
    """
    end = window_end(evidence, hold_s, hold_max_s)
    until = None if evidence.observed and end <= evidence.at else end  # a window that has reset stops no other agent
    findings = [finding for rule in RULES if (finding := rule(evidence))]
    if until is None and any(finding.cause is CrashCause.RATE_LIMITED for finding in findings):
        by_api = (CrashCause.RATE_LIMITED, CrashCause.API_ERROR)
        findings = [replace(f, confidence=RESET_CONFIDENCE) if f.cause in by_api else f for f in findings]
    findings.sort(key=lambda finding: -finding.confidence)
    best = findings[0] if findings else UNKNOWN
    return Verdict(
        cause=best.cause, confidence=best.confidence, reason=redacted(best.reason)[:MAX_TEXT],
        others=tuple(findings[1:]), until=until if best.cause is CrashCause.RATE_LIMITED else None,
    )  # fmt: skip


# -- the rules --------------------------------------------------------------------------------------------------

_OUT_OF_MEMORY = re.compile(
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
_QUESTION = re.compile(
    r"[│ ]{0,4}(?:Do you want to (?:proceed|make this edit|create|allow|overwrite)|Would you like to proceed)"
)
_FIRST_ANSWER = re.compile(r"\W{0,6}1\. Yes")
_CURSOR = re.compile(r"[│ ]{0,6}❯ \d\. ")
_MESSAGE = re.compile(r"[\s│]{0,9}[●⏺⎿]")
"""The first line of an agent's message, or of a tool's result."""
_CLIENT_LINE = re.compile(rf"{_MESSAGE.pattern}|[\s│]{{0,9}}[✻✳✶✽✢⏵]|[─━╭╰]{{3}}")
"""A line that the client draws: it was alive after everything above it."""
_QUOTED = re.compile(r"  |\t|\s{0,9}\d{1,6}(?:[→|│]|\s*\t| )")
"""A further line of a message, which is indented, or of a file, which is numbered."""

ENDED_ON_PURPOSE = ENDED_BY_PERSON | {"clear"}
"""Reasons of a SessionEnd by which the session was ended in order."""


def _oom(e: Evidence) -> Finding | None:
    if e.exited_zero:
        return None
    if e.oom is not None and e.fatal_signal in (signal.SIGKILL, None):
        return Finding(cause=CrashCause.OOM, confidence=0.5 if e.oom_ambiguous else 0.97, reason=e.oom)
    if e.fatal_signal in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        return None
    output = [line for line in _after_last(_CLIENT_LINE, e.pane[-LAST_OUTPUT:]) if not _QUOTED.match(line)]
    if line := _last_match(_OUT_OF_MEMORY, output):
        failed = e.faulted or (e.fatal_signal is None and e.status not in (None, 0))
        return Finding(cause=CrashCause.OOM, confidence=0.96 if failed else 0.55, reason=f"its last output: {line}")
    return None


def _signal(e: Evidence) -> Finding | None:
    if e.fatal_signal is None:
        return None
    name = signal_name(e.fatal_signal)
    if e.faulted:
        core = ", core dumped" if e.core else ""
        return Finding(cause=CrashCause.SIGNAL, confidence=0.95, reason=f"crashed with {name}{core}")
    how = f"ended by {name}" if e.signal is not None else f"ended by {name}, as its shell reports"
    return Finding(cause=CrashCause.SIGNAL, confidence=0.6, reason=how)


def _rate_limited(e: Evidence) -> Finding | None:
    error = e.tail.error
    if error is not None:
        if _OVERFLOW.search(error.text) and error.status != 429:
            return None
        vague = error.kind in ("", "unknown") and error.status in (None, 400, 403, 429)
        if error.status == 429 or error.kind in QUOTA_USED_UP or (vague and _QUOTA.search(error.text)):
            confidence = 0.9 if error.attempt is None else 0.8
            return Finding(
                cause=CrashCause.RATE_LIMITED,
                confidence=_unless_survived(e, confidence),
                reason=f"last error: {error.text}",
            )
    event, payload = e.last_hook
    if event == "StopFailure" and _text(payload, "error") in QUOTA_USED_UP:
        return Finding(
            cause=CrashCause.RATE_LIMITED, confidence=0.85, reason=f"hook {event}: {_text(payload, 'error')}"
        )
    return None


def _context_overflow(e: Evidence) -> Finding | None:
    error = e.tail.error
    if error is not None and error.status != 429 and _OVERFLOW.search(error.text):
        return Finding(
            cause=CrashCause.CONTEXT_OVERFLOW, confidence=_unless_survived(e, 0.93), reason=f"last error: {error.text}"
        )
    if e.tail.stop == "model_context_window_exceeded":
        return Finding(
            cause=CrashCause.CONTEXT_OVERFLOW,
            confidence=0.85,
            reason="the context window was full in the middle of an answer",
        )
    return None


def _api_error(e: Evidence) -> Finding | None:
    error = e.tail.error
    if error is not None:
        return Finding(
            cause=CrashCause.API_ERROR, confidence=_unless_survived(e, 0.75), reason=f"last error: {error.text}"
        )
    event, payload = e.last_hook
    if event == "StopFailure":
        return Finding(cause=CrashCause.API_ERROR, confidence=0.7, reason=f"hook {event}: {_text(payload, 'error')}")
    if not e.exited_zero and (line := _last_line(_RETRYING, e.pane[-8:])):
        return Finding(cause=CrashCause.API_ERROR, confidence=0.65, reason=f"on its screen: {line}")
    if not e.exited_zero and (line := _last_line(_GAVE_UP, e.pane[-8:])):
        return Finding(cause=CrashCause.API_ERROR, confidence=0.55, reason=f"on its screen: {line}")
    return None


def _permission_wait(e: Evidence) -> Finding | None:
    if e.exited_zero:
        return None
    dialog = _after_last(_MESSAGE, e.pane[-14:])
    if (line := _last_line(_QUESTION, dialog)) and _last_line(_FIRST_ANSWER, dialog) and _last_line(_CURSOR, dialog):
        return Finding(cause=CrashCause.PERMISSION_WAIT, confidence=0.88, reason=f"on its screen: {line}")
    event, payload = e.last_hook
    if event == "Notification" and _text(payload, "notification_type") in OPEN_DIALOG:
        what = _text(payload, "notification_type")
        return Finding(cause=CrashCause.PERMISSION_WAIT, confidence=0.82, reason=f"hook {event}: {what}")
    return None


def _tool_hang(e: Evidence) -> Finding | None:
    since = e.tail.tool_at
    if since is None or e.exited_zero or not e.observed:
        return None
    waited_s = (e.at - since).total_seconds()
    if waited_s < HANG_S:
        return None
    confidence = 0.8 if waited_s >= LONG_HANG_S else 0.68
    return Finding(
        cause=CrashCause.TOOL_HANG, confidence=confidence, reason=f"waited {waited_s:.0f} s for {e.tail.tool}"
    )


def _clean_exit(e: Evidence) -> Finding | None:
    if e.exited_zero:
        return Finding(cause=CrashCause.CLEAN_EXIT, confidence=0.9, reason="exit code 0")
    event, payload = e.last_hook
    if event == "SessionEnd" and _text(payload, "reason") in ENDED_ON_PURPOSE and not e.faulted:
        confidence = 0.7 if e.fatal_signal is None else 0.55
        return Finding(
            cause=CrashCause.CLEAN_EXIT, confidence=confidence, reason=f"hook {event}: {_text(payload, 'reason')}"
        )
    return None


def _error_exit(e: Evidence) -> Finding | None:
    if e.status and e.fatal_signal is None:
        return Finding(cause=CrashCause.UNKNOWN, confidence=0.3, reason=f"exit code {e.status}, cause not known")
    return None


RULES: Sequence[Callable[[Evidence], Finding | None]] = (
    _oom, _signal, _rate_limited, _context_overflow, _api_error, _permission_wait, _tool_hang, _clean_exit, _error_exit,
)  # fmt: skip


def _text(payload: Mapping[str, object], key: str) -> str | None:
    return text_or_none(payload.get(key))


def _unless_survived(e: Evidence, confidence: float) -> float:
    """Lower the confidence of an API error if the process crashed by itself or exited 0: it outlived the error."""
    return confidence - 0.45 if e.faulted or e.exited_zero else confidence


def _last_match(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    """The last line that contains the pattern."""
    matches = (line for line in reversed(lines) if pattern.search(line[:MAX_TEXT].strip(" │")))
    return _quote(next(matches, None))


def _last_line(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    """The last line that begins with the pattern."""
    return _quote(next((line for line in reversed(lines) if pattern.match(line[:MAX_TEXT])), None))


def _quote(line: str | None) -> str | None:
    return None if line is None else line.strip()[:MAX_TEXT]


def _after_last(pattern: re.Pattern[str], lines: Sequence[str]) -> Sequence[str]:
    """The lines after the last one that begins with the pattern."""
    return lines[max((number for number, line in enumerate(lines, 1) if pattern.match(line[:MAX_TEXT])), default=0) :]
