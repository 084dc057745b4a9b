"""The end of a transcript (``projects/<slug>/<session>.jsonl``), as Claude Code 2.1.197 writes it: what an agent was at
when it stopped. It is no published interface: a line that makes no sense is left out. Secrets are hidden as it is read.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from yolo_supervisor.formats import load_object, text_or_none
from yolo_supervisor.records import from_iso
from yolo_supervisor.redaction import cut, redacted, redacted_all, shortened

KEPT = 12
"""How many of the last turns are told."""

WORDS = 2000
"""How much of one of them is read at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiError:
    """An error of the API that the client gave up at (``retrying`` is None), or waits to try again after."""

    text: str
    kind: str = ""
    """The client's own word for it: ``rate_limit``, ``server_error``, ``billing_error``, ``invalid_request``, …"""
    status: int | None = None
    at: datetime | None = None
    attempt: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """How a transcript ends."""

    turns: tuple[str, ...] = ()
    """The last turns, one line each."""
    tool: str | None = None
    """The tool that was used last, and what it was given."""
    tool_at: datetime | None = None
    """Since when its result is awaited; None if it has come."""
    error: ApiError | None = None
    """The error that nothing has come after."""
    stop: str | None = None
    """Why the model's last answer ended, if that is the last word."""


def slug(folder: Path) -> str:
    """The name under which a client at work in the folder keeps its transcripts."""
    return re.sub(r"[^0-9A-Za-z]", "-", str(folder))


_OWNER = re.compile(rb'"(agentName|teamName)": ?("(?:[^"\\\n]|\\.){0,400}")')


def owner(head: bytes) -> tuple[str, str] | None:
    """The name and the team of the teammate whose transcript begins so; None if it does not say."""
    found: dict[bytes, str] = {}
    for key, text in _OWNER.findall(head):
        with contextlib.suppress(ValueError):
            found.setdefault(key, json.loads(text))
    return (found[b"agentName"], found[b"teamName"]) if len(found) == 2 else None


def tail(data: bytes, since: datetime | None = None) -> Tail:
    """What the lines at a transcript's end tell. The first may be cut off, and the last torn: both are left out.

    A session that is resumed goes on in its transcript: what an earlier life met or waited for, before ``since``, is
    nothing that this one could die of. Its turns are told all the same.
    """
    found = _Reader()
    for line in data.split(b"\n"):
        if (raw := load_object(line)) is not None and not raw.get("isSidechain"):
            found.read(raw)
            if since is not None and (at := moment(raw.get("timestamp"))) is not None and at < since:
                found.begin_anew()
    return found.tail()


class _Reader:
    def __init__(self) -> None:
        self.turns: list[tuple[str, str | tuple[str, Any]]] = []
        """Not yet told: most of them are not the last."""
        self.open: dict[str, datetime | None] = {}
        self.tool: tuple[str, Any] | None = None
        self.error: ApiError | None = None
        self.stop: str | None = None

    def read(self, raw: Mapping[str, Any]) -> None:
        kind = raw.get("type")
        if kind == "system" and raw.get("subtype") == "api_error":
            self._retry(raw)
        if kind not in ("assistant", "user") or not isinstance(message := raw.get("message"), dict):
            return
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        words = " ".join(_texts(blocks))
        if raw.get("isApiErrorMessage") is True:
            self._error(raw, words)
            return
        self.error = None
        self.stop = text_or_none(message.get("stop_reason")) if kind == "assistant" else None
        for block in blocks:
            if isinstance(block, dict):
                self._block(block, str(kind), moment(raw.get("timestamp")))

    def _block(self, block: Mapping[str, Any], who: str, at: datetime | None) -> None:
        match block.get("type"):
            case "tool_use":
                self.tool = str(block.get("name")), block.get("input")
                self.open[str(block.get("id"))] = at
                self._turn("uses", self.tool)
            case "tool_result":
                self.open.pop(str(block.get("tool_use_id")), None)
                answer = block.get("content")
                words = " ".join(_texts(answer)) if isinstance(answer, list) else str(answer)
                self._turn("fails" if block.get("is_error") else "gets", words)
            case "text":
                self._turn("says" if who == "assistant" else "is told", str(block.get("text")))

    def begin_anew(self) -> None:
        """What was read so far was told by an earlier life."""
        self.open.clear()
        self.tool = self.error = self.stop = None

    def _error(self, raw: Mapping[str, Any], words: str) -> None:
        details = text_or_none(raw.get("errorDetails"))
        status = raw.get("apiErrorStatus")
        self.error = ApiError(
            text=redacted(shortened(f"{words} ({details})" if details else words, WORDS)),
            kind=text_or_none(raw.get("error")) or "",
            status=status if type(status) is int else None,
            at=moment(raw.get("timestamp")),
        )
        self.open.clear()
        self._turn("meets an error", self.error.text)

    def _retry(self, raw: Mapping[str, Any]) -> None:
        error = raw.get("error")
        status = error.get("status") if isinstance(error, dict) else None
        attempt = raw.get("retryAttempt")
        self.error = ApiError(
            text=f"status {status}, try {attempt} of {raw.get('maxRetries')}",
            status=status if type(status) is int else None,
            at=moment(raw.get("timestamp")),
            attempt=attempt if type(attempt) is int else 0,
        )
        self._turn("tries again", self.error.text)

    def _turn(self, verb: str, what: str | tuple[str, Any]) -> None:
        self.turns = [*self.turns[1 - KEPT :], (verb, what)]

    def tail(self) -> Tail:
        newest = next(reversed(self.open), None)
        return Tail(
            turns=tuple(f"{verb}: {' '.join(_told(what).split())}" for verb, what in self.turns),
            tool=_told(self.tool) if self.tool is not None else None,
            tool_at=self.open[newest] if newest is not None else None,
            error=self.error,
            stop=self.stop,
        )


def _told(what: str | tuple[str, Any]) -> str:
    """What was said, or the tool and what it was given, without secrets: before they are escaped, and after."""
    if isinstance(what, str):
        return redacted(shortened(what, WORDS))
    tool, given = what
    text = json.dumps(redacted_all(cut(given, WORDS)), ensure_ascii=False)
    return redacted(shortened(f"{tool} {text}", WORDS))


def _texts(blocks: Sequence[Any]) -> Iterable[str]:
    for block in blocks:
        if isinstance(block, dict) and isinstance(text := block.get("text"), str):
            yield text


def moment(value: object) -> datetime | None:
    """The time that is written so, if it is one."""
    try:
        return from_iso(str(value))
    except (ValueError, OverflowError):
        return None
