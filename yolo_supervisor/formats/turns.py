"""The progress of an agent's turn, from the end of its transcript (``projects/<slug>/<session>.jsonl``).

Claude Code 2.1.197 and 2.1.332 write a record for each message and, the newer one, for each request to the model. Four
types tell how far a turn is: ``user``, ``assistant``, ``system``, ``api-request``. Untimed records follow them, and a
``user`` record may stand after the ``api-request`` that it caused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none

MAIN_REQUESTS = ("repl_main_thread", "agent")
"""The beginnings of ``querySource`` for requests of the conversation; others ask for a title or a summary."""

INTERRUPTED = "[Request interrupted by user"
"""The beginning of the ``user`` record that the client writes when a person stops a turn."""

COMMAND_OUTPUT = ("<command-name>", "<command-message>", "<local-command-", "<bash-")
"""The beginnings of ``user`` records that a command of the client leaves; the model does not answer them."""


class Phase(StrEnum):
    """The progress of a turn."""

    MODEL = "model"
    """A request to the model has no answer yet."""
    TOOL = "tool"
    """A tool has no result yet."""
    ENDED = "ended"
    """The model has ended its turn, or a person has stopped it."""
    FAILED = "failed"
    """The client gave up after its last retry; nothing goes on by itself, except after a limit of usage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """The state of a conversation at the end of its transcript."""

    phase: Phase
    at: datetime | None = None
    """The newest time of a record; None if no record has one."""
    tools: tuple[str, ...] = ()
    """The names of the tools without a result."""
    failing: bool = False
    """Whether a request has failed since the last answer: the client tries again, or has given up."""
    error: str | None = None
    """The client's name for the API error of that request."""
    status: int | None = None
    """The HTTP status of that error."""
    answered_at: datetime | None = None
    """The time of the model's last answer; None if it is not in the part that was read."""


def turn(data: bytes) -> Turn | None:
    """The turn at the end of a transcript, from its last part; None if no record there tells.

    The first line may be cut off and the last one torn; both are skipped.
    """
    reader = _Reader()
    for line in data.split(b"\n"):
        if (raw := load_object(line)) is not None and raw.get("isSidechain") is not True:
            reader.read(raw)
    return reader.turn()


def agent_turn(data: bytes) -> Turn | None:
    """The same for the transcript of a subagent or in-process teammate, whose records are all marked as a sidechain."""
    reader = _Reader()
    for line in data.split(b"\n"):
        if (raw := load_object(line)) is not None:
            reader.read(raw)
    return reader.turn()


def context_tokens(data: bytes) -> int | None:
    """The size of the conversation in tokens, by the model's last answer in a transcript's end; None if none tells."""
    found = None
    for line in data.split(b"\n"):
        raw = load_object(line)
        if raw is None or raw.get("type") != "assistant" or raw.get("isSidechain") is True:
            continue
        message = raw.get("message")
        usage = message.get("usage") if isinstance(message, dict) else None
        if isinstance(usage, dict):
            parts = [usage.get(name) for name in _CONTEXT]
            found = sum(part for part in parts if type(part) is int and part > 0) or found
    return found


_CONTEXT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
"""The counts of an answer that together are the context of the next request."""


class _Reader:
    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._at: datetime | None = None
        self._answered_at: datetime | None = None
        """The time of the last answer, or of the interruption."""
        self._tools: dict[str, str] = {}
        """The names of the tools without a result, by the id of their use."""
        self._model_answered_at: datetime | None = None
        """The time of the last answer that is no error."""
        self._requested = False
        """Whether the last record of the conversation is a request: a second one is a retry."""
        self._failing = False
        self._error: str | None = None
        self._status: int | None = None

    def read(self, raw: Mapping[str, object]) -> None:
        at = time_or_none(raw.get("timestamp"))
        match raw.get("type"):
            case "assistant":
                self._assistant(raw, at)
            case "user":
                self._user(raw)
            case "api-request" if _is_main(raw.get("querySource")):
                self._request(at)
            case "system" if raw.get("subtype") == "api_error":
                self._retry(raw)
            case _:
                return
        if at is not None and (self._at is None or at > self._at):
            self._at = at

    def _assistant(self, raw: Mapping[str, object], at: datetime | None) -> None:
        message = raw.get("message")
        if not isinstance(message, dict):
            return
        self._answered_at = at
        self._requested = False
        if raw.get("isApiErrorMessage") is True:
            self._phase, self._tools = Phase.FAILED, {}
            self._fail(raw.get("error"), raw.get("apiErrorStatus"))
            return
        self._answer(at)
        uses = [block for block in _blocks(message) if block.get("type") == "tool_use"]
        self._tools |= {str(block.get("id")): str(block.get("name")) for block in uses}
        stop = text_or_none(message.get("stop_reason"))
        if self._tools:
            self._phase = Phase.TOOL
        elif stop is None or stop in ("tool_use", "pause_turn"):
            self._phase = Phase.MODEL
        else:
            self._phase = Phase.ENDED

    def _user(self, raw: Mapping[str, object]) -> None:
        message = raw.get("message")
        if not isinstance(message, dict) or raw.get("isMeta") is True:
            return
        blocks = _blocks(message)
        for block in blocks:
            if block.get("type") == "tool_result":
                self._tools.pop(str(block.get("tool_use_id")), None)
        text = next((str(block.get("text")) for block in blocks if block.get("type") == "text"), "")
        if text.startswith(COMMAND_OUTPUT):
            return
        self._requested = False
        if text.startswith(INTERRUPTED):
            self._phase, self._tools = Phase.ENDED, {}
            self._answered_at = time_or_none(raw.get("timestamp"))
            self._failing, self._error, self._status = False, None, None
        else:
            self._phase = Phase.TOOL if self._tools else Phase.MODEL

    def _request(self, at: datetime | None) -> None:
        if at and self._answered_at and at <= self._answered_at:
            return  # it was written late: its answer was read before
        self._phase, self._tools = Phase.MODEL, {}
        self._failing |= self._requested
        self._requested = True

    def _retry(self, raw: Mapping[str, object]) -> None:
        """Read the record that 2.1.197 writes before each retry."""
        error = raw.get("error")
        self._phase = Phase.MODEL
        self._fail(None, error.get("status") if isinstance(error, dict) else None)

    def _fail(self, error: object, status: object) -> None:
        self._failing = True
        self._error, self._status = text_or_none(error), status if type(status) is int else None

    def _answer(self, at: datetime | None) -> None:
        self._failing, self._error, self._status = False, None, None
        self._model_answered_at = at or self._model_answered_at

    def turn(self) -> Turn | None:
        if self._phase is None:
            return None
        return Turn(
            phase=self._phase,
            at=self._at,
            tools=tuple(self._tools.values()) if self._phase is Phase.TOOL else (),
            failing=self._failing,
            error=self._error,
            status=self._status,
            answered_at=self._model_answered_at,
        )


def _is_main(source: object) -> bool:
    """Whether a request with this ``querySource`` is part of the conversation. One without is."""
    return not isinstance(source, str) or source.startswith(MAIN_REQUESTS)


def _blocks(message: Mapping[str, object]) -> Sequence[Mapping[str, object]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
