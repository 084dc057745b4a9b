"""The end of a Claude Code (2.1.197) transcript, ``projects/<slug>/<session>.jsonl``.

The format is not documented by its publisher, so a line of unknown content is skipped. Secrets are hidden on reading.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none
from yolo_supervisor.redaction import cut, redacted, redacted_all, shortened

MAX_TURNS = 12
"""The number of turns, the last ones, in a ``Tail``."""

MAX_TEXT = 2000
"""The largest part of one turn that is read, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiError:
    """An API error at which the client gave up, or, with ``attempt``, waits for a retry."""

    text: str
    kind: str = ""
    """The client's name for it: ``rate_limit``, ``server_error``, ``billing_error``, ``invalid_request``, …"""
    status: int | None = None
    at: datetime | None = None
    attempt: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """The end of a transcript."""

    turns: tuple[str, ...] = ()
    """The last turns, one line each."""
    tool: str | None = None
    """The tool that was used last, with its input."""
    tool_at: datetime | None = None
    """The start of its wait for a result; None if the result is there."""
    error: ApiError | None = None
    """The API error, if nothing follows it."""
    stop: str | None = None
    """The ``stop_reason`` of the model's last answer, if nothing follows it."""


def slug(folder: Path) -> str:
    """The name of the transcript directory of clients that work in ``folder``."""
    return re.sub(r"[^0-9A-Za-z]", "-", str(folder))


_OWNER = re.compile(rb'"(agentName|teamName)": ?("(?:[^"\\\n]|\\.){0,400}")')


def owner(head: bytes) -> tuple[str, str] | None:
    """The name and the team of the teammate whose transcript begins with ``head``.

    None if it names none.
    """
    fields: dict[bytes, str] = {}
    for key, text in _OWNER.findall(head):
        with contextlib.suppress(ValueError):
            fields.setdefault(key, json.loads(text))
    return (fields[b"agentName"], fields[b"teamName"]) if len(fields) == 2 else None


def tail(data: bytes, since: datetime | None = None) -> Tail:
    """Parse the last part of a transcript. The first line may be cut off and the last torn.

    Both are skipped. A resumed session continues its transcript. An error or a wait from before ``since`` belongs to an
    earlier process and cannot have ended this one, so only its turns are kept.
    """
    reader = _Reader()
    for line in data.split(b"\n"):
        if (raw := load_object(line)) is not None and not raw.get("isSidechain"):
            reader.read(raw)
            if since is not None and (at := time_or_none(raw.get("timestamp"))) is not None and at < since:
                reader.forget_state()
    return reader.tail()


class _Reader:
    def __init__(self) -> None:
        self.turns: list[tuple[str, str | tuple[str, object]]] = []
        """Verb and content, not yet redacted: most of them are not among the last."""
        self.open: dict[str, datetime | None] = {}
        """The tool uses without a result, by id, and when each began."""
        self.tool: tuple[str, object] | None = None
        self.error: ApiError | None = None
        self.stop: str | None = None

    def read(self, raw: Mapping[str, object]) -> None:
        kind = raw.get("type")
        if kind == "system" and raw.get("subtype") == "api_error":
            self._retry(raw)
        if kind not in ("assistant", "user") or not isinstance(message := raw.get("message"), dict):
            return
        content = message.get("content")
        blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
        text = " ".join(_texts(blocks))
        if raw.get("isApiErrorMessage") is True:
            self._error(raw, text)
            return
        self.error = None
        self.stop = text_or_none(message.get("stop_reason")) if kind == "assistant" else None
        for block in blocks:
            if isinstance(block, dict):
                self._block(block, str(kind), time_or_none(raw.get("timestamp")))

    def _block(self, block: Mapping[str, object], kind: str, at: datetime | None) -> None:
        match block.get("type"):
            case "tool_use":
                self.tool = str(block.get("name")), block.get("input")
                self.open[str(block.get("id"))] = at
                self._turn("uses", self.tool)
            case "tool_result":
                self.open.pop(str(block.get("tool_use_id")), None)
                answer = block.get("content")
                text = " ".join(_texts(answer)) if isinstance(answer, list) else str(answer)
                self._turn("fails" if block.get("is_error") else "gets", text)
            case "text":
                self._turn("says" if kind == "assistant" else "receives", str(block.get("text")))

    def forget_state(self) -> None:
        """Forget all but the turns: the lines up to here are of an earlier process."""
        self.open.clear()
        self.tool = self.error = self.stop = None

    def _error(self, raw: Mapping[str, object], text: str) -> None:
        details = text_or_none(raw.get("errorDetails"))
        status = raw.get("apiErrorStatus")
        self.error = ApiError(
            text=redacted(shortened(f"{text} ({details})" if details else text, MAX_TEXT)),
            kind=text_or_none(raw.get("error")) or "",
            status=status if type(status) is int else None,
            at=time_or_none(raw.get("timestamp")),
        )
        self.open.clear()
        self._turn("API error", self.error.text)

    def _retry(self, raw: Mapping[str, object]) -> None:
        error = raw.get("error")
        status = error.get("status") if isinstance(error, dict) else None
        attempt = raw.get("retryAttempt")
        self.error = ApiError(
            text=f"status {status}, attempt {attempt} of {raw.get('maxRetries')}",
            status=status if type(status) is int else None,
            at=time_or_none(raw.get("timestamp")),
            attempt=attempt if type(attempt) is int else 0,
        )
        self._turn("retries", self.error.text)

    def _turn(self, verb: str, content: str | tuple[str, object]) -> None:
        self.turns = [*self.turns[1 - MAX_TURNS :], (verb, content)]

    def tail(self) -> Tail:
        newest = next(reversed(self.open), None)
        return Tail(
            turns=tuple(f"{verb}: {' '.join(_redacted_turn(content).split())}" for verb, content in self.turns),
            tool=_redacted_turn(self.tool) if self.tool is not None else None,
            tool_at=self.open[newest] if newest is not None else None,
            error=self.error,
            stop=self.stop,
        )


def _redacted_turn(content: str | tuple[str, object]) -> str:
    """The text, or the tool with its input, redacted before JSON escapes the secrets and after."""
    if isinstance(content, str):
        return redacted(shortened(content, MAX_TEXT))
    tool, tool_input = content
    text = json.dumps(redacted_all(cut(tool_input, MAX_TEXT)), ensure_ascii=False)
    return redacted(shortened(f"{tool} {text}", MAX_TEXT))


def _texts(blocks: Sequence[object]) -> Iterable[str]:
    for block in blocks:
        if isinstance(block, dict) and isinstance(text := block.get("text"), str):
            yield text


def permission_mode(data: bytes) -> str | None:
    """The permission mode that the last record says which has one; None if none has.

    ``permission-mode`` records have it, which both versions repeat now and then, and prompts of a person.
    """
    end = len(data)
    while (found := data.rfind(b'"permissionMode"', 0, end)) >= 0:
        begin = data.rfind(b"\n", 0, found) + 1
        raw = load_object(data[begin:end].partition(b"\n")[0]) or {}
        if raw.get("type") in ("permission-mode", "user") and raw.get("isSidechain") is not True:
            mode = text_or_none(raw.get("permissionMode"))
            if mode is not None:
                return mode
        end = begin
    return None
