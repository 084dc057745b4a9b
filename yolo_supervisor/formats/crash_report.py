"""``crashes/<id>.json``: the report about an agent's death, with evidence and verdict.

``Report`` is what is written, ``StoredReport`` what is read back. Secrets are removed when a report is dumped.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.transcripts import Tail
from yolo_supervisor.models import Agent, iso
from yolo_supervisor.redaction import cut, cut_fields, redacted, redacted_fields, shortened

MAX_SIZE = 64 * 1024
"""The largest report, in bytes."""

MAX_TEXT = 400
"""The longest line that a rule quotes, in characters; texts in a report may have twice as many."""


class CrashCause(StrEnum):
    """Causes of death. The values are the ``class`` of reports and journal entries."""

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


FAULT_SIGNALS = frozenset(
    {
        signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
        signal.SIGXCPU, signal.SIGXFSZ,
    }
)  # fmt: skip
"""Signals that a process causes itself; other processes do not send them."""

DELIBERATE_SIGNALS = frozenset({signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})
"""Signals by which people, terminals and other programs ask a process to end."""

ENDED_BY_PERSON = frozenset({"logout", "prompt_input_exit", "other", "exit"})
"""Reasons of a SessionEnd after which the session does not go on: a person ended it, or closed its terminal."""

HookEvent = tuple[str, Mapping[str, object]]
"""A hook event: its name and its payload."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The known facts about a death."""

    at: datetime
    """The time at which it was noticed."""
    observed: bool = True
    """Whether it was noticed when it happened, so that ``at`` is the time of the death."""
    status: int | None = None
    """The exit code."""
    signal: int | None = None
    core: bool = False
    oom: str | None = None
    """The kernel's record of an OOM kill."""
    oom_ambiguous: bool = False
    """Whether that record may be about another process in the same cgroup."""
    pane: tuple[str, ...] = ()
    """The last lines on its screen."""
    tail: Tail = field(default_factory=Tail)
    """The end of its transcript."""
    hooks: tuple[HookEvent, ...] = ()
    """The hook events of its process, the oldest first."""

    @property
    def fatal_signal(self) -> int | None:
        """The signal that ended it, also where a shell reports one as 128 + its number."""
        if self.signal is None and self.status is not None and 128 < self.status < 128 + 65:
            return self.status - 128
        return self.signal

    @property
    def exited_zero(self) -> bool:
        return self.status == 0

    @property
    def faulted(self) -> bool:
        """Whether the process crashed by itself: other processes do not send such a signal."""
        return self.fatal_signal in FAULT_SIGNALS

    @property
    def ended_on_purpose(self) -> bool:
        """Whether the process exited 0, or a signal ended it that a person or a closed terminal sends: no failure."""
        return self.exited_zero or self.fatal_signal in DELIBERATE_SIGNALS

    @property
    def last_hook(self) -> HookEvent:
        return self.hooks[-1] if self.hooks else ("", {})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One possible cause, with a confidence from 0 to 1."""

    cause: CrashCause
    confidence: float
    reason: str

    @property
    def summary(self) -> dict[str, object]:
        """The finding as JSON, for the journal and for a report."""
        return {"class": str(self.cause), "confidence": round(self.confidence, 2), "why": self.reason}


@dataclass(frozen=True, kw_only=True)
class Verdict(Finding):
    """The finding of the highest confidence."""

    others: tuple[Finding, ...] = ()
    until: datetime | None = None
    """The end of the rate-limit window, which stops other agents, too; None if there is none."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One death, before its secrets are removed."""

    agent: Agent
    evidence: Evidence
    verdict: Verdict
    more: Mapping[str, object] = field(default_factory=dict)
    """Further keys, for people only: its processes, the repository."""

    @property
    def ident(self) -> str:
        """The name of the report: the time, and the agent's record name, which no other agent has."""
        life = own_files.agent_file(self.agent).removesuffix(".json")
        return f"{self.evidence.at:%Y%m%dT%H%M%S}Z-{life}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def dump(report: Report) -> bytes:
    """The report as JSON: redacted, and never larger than ``MAX_SIZE``."""
    agent, verdict, e = report.agent, report.verdict, report.evidence
    raw: dict[str, object] = {
        "version": 1,
        "id": report.ident,
        "at": iso(e.at),
        "agent": agent.id,
        "name": agent.name,
        "role": agent.role,
        "team": agent.team,
        "pid": agent.pid,
        **verdict.summary,
        "until": iso(verdict.until) if verdict.until else None,
        "perhaps": [finding.summary for finding in verdict.others],
        "exit": {
            "status": e.status, "signal": signal_name(e.signal) if e.signal is not None else None, "core": e.core,
            "oom": e.oom,
        },
        "last_tool": e.tail.tool,
        "last_tool_waited_since": iso(e.tail.tool_at) if e.tail.tool_at else None,
        "hooks": [{"event": event, **payload} for event, payload in e.hooks],
        **report.more,
        "turns": list(e.tail.turns),
    }  # fmt: skip
    document = redacted_fields(cut_fields(raw, 2 * MAX_TEXT))
    document |= {key: raw[key] for key in ("id", "agent", "name", "team")}  # commands find the report by them
    document["pane"] = redacted("\n".join(shortened(line, 2 * MAX_TEXT) for line in e.pane)).split("\n")
    for halvings in range(8):
        data = json.dumps(cut(document, MAX_TEXT >> halvings), indent=2, default=str).encode() + b"\n"
        if len(data) <= MAX_SIZE:
            return data
    minimal = {key: document[key] for key in ("version", "id", "at", "agent", "class", "confidence")}
    return json.dumps(minimal).encode()


@dataclass(frozen=True, kw_only=True)
class StoredFinding:
    """A finding in a stored report; None for a value that is missing or of the wrong type."""

    cause: str | None
    confidence: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class StoredReport(StoredFinding):
    """A report as it was read. ``ident``, ``at``, ``agent`` and ``cause`` are always there."""

    ident: str
    at: str
    """ISO 8601, unless the file was damaged."""
    agent: str
    cause: str
    name: str | None
    others: tuple[StoredFinding, ...]
    exit: Mapping[str, object]
    repository: Mapping[str, object]
    work: Mapping[str, object]
    """Where its uncommitted work was saved; empty if nothing was."""
    turns: Sequence[object]
    hooks: Sequence[object]
    processes: Sequence[object]
    pane: Sequence[object]
    document: Mapping[str, object]
    """All keys, unknown ones included."""


def load(data: bytes) -> StoredReport | None:
    """A report that was written; None if it cannot be read."""
    raw = load_object(data)
    if raw is None:
        return None
    ident, at, agent, cause = (raw.get(key) for key in ("id", "at", "agent", "class"))
    if not (isinstance(ident, str) and isinstance(at, str) and isinstance(agent, str) and isinstance(cause, str)):
        return None
    document = cut_fields(raw, MAX_SIZE)  # a damaged file may nest its values too deep to be printed
    return StoredReport(
        ident=ident,
        at=at,
        agent=agent,
        cause=cause,
        confidence=_number(raw.get("confidence")),
        reason=text_or_none(document.get("why")),
        name=text_or_none(raw.get("name")),
        others=tuple(_finding(finding) for finding in _list(document.get("perhaps"))),
        exit=_object(document.get("exit")),
        repository=_object(document.get("repository")),
        work=_object(document.get("work")),
        turns=_list(document.get("turns")),
        hooks=_list(document.get("hooks")),
        processes=_list(document.get("processes")),
        pane=_list(document.get("pane")),
        document=document,
    )


def _finding(value: object) -> StoredFinding:
    raw = _object(value)
    return StoredFinding(
        cause=text_or_none(raw.get("class")),
        confidence=_number(raw.get("confidence")),
        reason=text_or_none(raw.get("why")),
    )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}
