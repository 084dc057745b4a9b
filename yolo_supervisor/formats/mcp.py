"""Frames of the Model Context Protocol on stdio: one JSON-RPC 2.0 message per line.

Covers the versions up to 2025-11-25, which begin with ``initialize``, and 2026-07-28, which has no handshake.
A frame is forwarded byte for byte; where one value has to change, only the bytes of that value change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from yolo_supervisor.formats.json_edit import value_span

REPEATABLE = frozenset({
    "server/discover", "ping", "tools/list", "prompts/list", "prompts/get", "resources/list",
    "resources/templates/list", "resources/read", "resources/subscribe", "resources/unsubscribe", "completion/complete",
    "logging/setLevel", "tasks/get", "tasks/list",
})  # fmt: skip
"""Idempotent requests: they may be sent twice, and have a time limit. ``initialize`` is none of them: a process gets it
once."""

UNBOUNDED = frozenset({"subscriptions/listen", "tasks/result"})
"""Requests that are answered when an event occurs: they may be sent twice, and have no time limit."""

TRANSIENT_ERRORS = frozenset({-32603, -32000, -32001})
"""Codes of errors that a retry may avoid: internal error, connection closed, request timeout."""

NESTED = frozenset({"elicitation/create", "sampling/createMessage"})
"""Requests of a server that it makes while it answers a request of the client, and for that request."""

LARGE = 64 * 1024
"""A longer line, in bytes, is not parsed completely just to find the id that it answers."""

_ID = rb'("(?:[^"\\]|\\.){0,200}"|-?\d{1,40})'
_VERSION = rb'"jsonrpc"\s*:\s*"2\.0"\s*'
_BEGIN = rb"\s*\{\s*(?:" + _VERSION + rb",\s*)?"
_RESULT = rb'"(?:result|error)"'
_ID_FIELD = rb'"id"\s*:\s*' + _ID + rb"\s*"
_ID_THEN_RESULT = re.compile(_BEGIN + _ID_FIELD + rb",\s*" + _RESULT)
_RESULT_FIRST = re.compile(_BEGIN + _RESULT)
_ID_AT_END = re.compile(rb"[,{]\s*" + _ID_FIELD + rb"(?:,\s*" + _VERSION + rb")?\}\s*\Z")
_VERSION_FIRST = re.compile(rb"\s*\{\s*" + _VERSION)
_VERSION_AT_END = re.compile(rb",\s*" + _VERSION + rb"(?:,\s*" + _ID_FIELD + rb")?\}\s*\Z")


def load(line: bytes) -> Any:
    """The message in a line. ValueError if it is not JSON."""
    text = line.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer with more digits than Python converts
        return json.loads(text, parse_int=float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def answered_id(line: bytes) -> str | None:
    """The id (see ``id_key``) that a large response answers; None if it is ambiguous.

    Only the ends of the line are read.

    A line without a newline may be half a response. A request of the server must not match, as servers and clients
    number their requests alike.
    """
    if not line.endswith(b"\n"):
        return None
    begin, end = line[:512], line[-512:]
    match = _ID_THEN_RESULT.match(begin) or (_ID_AT_END.search(end) if _RESULT_FIRST.match(begin) else None)
    if match is None or not (_VERSION_FIRST.match(begin) or _VERSION_AT_END.search(end)):
        return None
    try:
        return id_key(json.loads(match[1]))
    except ValueError:
        return None


def is_message(value: object) -> bool:
    """Whether a JSON value is a message, or a batch with one: any other JSON is a program's own output."""
    if isinstance(value, dict):
        return value.get("jsonrpc") == "2.0"
    return isinstance(value, list) and any(isinstance(item, dict) and is_message(item) for item in value)


def id_key(ident: object) -> str:
    """An id as a dictionary key: 1, 1.0 and "1" are three different ids."""
    return json.dumps(ident)


def with_value(line: bytes, path: tuple[str, ...], value: object) -> bytes:
    """Replace the value at a path of keys and keep every other byte.

    KeyError if the path does not exist.
    """
    text = line.decode("utf-8", "surrogatepass")
    start, end = value_span(text, path)
    return (text[:start] + json.dumps(value) + text[end:]).encode("utf-8", "surrogatepass")


# -- fields of a message --------------------------------------------------------------------------------------------


def params(message: Mapping[str, Any]) -> Mapping[str, Any]:
    value = message.get("params")
    return value if isinstance(value, dict) else {}


def called_tool(message: Mapping[str, Any]) -> str | None:
    """Name of the tool that a request calls; None if it is not a tool call."""
    name = params(message).get("name") if message.get("method") == "tools/call" else None
    return name if isinstance(name, str) else None


def progress_token(message: Mapping[str, Any]) -> str | None:
    """The request's progress token (see ``id_key``).

    None if the client wants no progress notifications.
    """
    meta = params(message).get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    return None if token is None else id_key(token)


def related_task(params: Mapping[str, Any]) -> str | None:
    """Key of the task that a request belongs to; None if it belongs to none."""
    meta = params.get("_meta")
    task = meta.get("io.modelcontextprotocol/related-task") if isinstance(meta, dict) else None
    return task_key(task.get("taskId")) if isinstance(task, dict) else None


def begun_by(method: str, params: Mapping[str, Any], response: Mapping[str, Any]) -> str | None:
    """Key of what the answer to a request of the server has only begun; None if the answer is all there is.

    It is a person's visit to a URL, or a task of the client.
    """
    outcome = response.get("result")
    if not isinstance(outcome, dict) or method not in NESTED:
        return None
    if isinstance(task := outcome.get("task"), dict):
        return task_key(task.get("taskId"))
    by_url = params.get("mode") == "url" and outcome.get("action") == "accept"
    return elicitation_key(params.get("elicitationId")) if by_url else None


def task_key(ident: object) -> str:
    return f"task {id_key(ident)}"


def elicitation_key(ident: object) -> str:
    return f"elicitation {id_key(ident)}"


def request_meta(message: Mapping[str, Any]) -> dict[str, Any]:
    """The ``_meta`` params of all this client's requests, such as the protocol version.

    A request that the relay makes for the client has to carry them too.
    """
    meta = params(message).get("_meta")
    kept = {name: value for name, value in meta.items() if name != "progressToken"} if isinstance(meta, dict) else {}
    return {"_meta": kept} if kept else {}


def repeatable_tools(result: object) -> tuple[dict[str, bool], str | None]:
    """The tools of a ``tools/list`` result, true if repeatable, and the next page's cursor.

    A tool is repeatable if it is declared read-only or idempotent.
    """
    repeatable: dict[str, bool] = {}
    if not isinstance(result, dict):
        return repeatable, None
    listed = result.get("tools")
    for tool in listed if isinstance(listed, list) else ():
        if isinstance(tool, dict) and isinstance(tool.get("name"), str):
            hints = tool.get("annotations")
            hints = hints if isinstance(hints, dict) else {}
            repeatable[tool["name"]] = hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True
    cursor = result.get("nextCursor")
    return repeatable, cursor if isinstance(cursor, str) else None


# -- messages of the relay ------------------------------------------------------------------------------------------


def request(ident: str, method: str, params: Mapping[str, Any] | None = None) -> bytes:
    return _line({"jsonrpc": "2.0", "id": ident, "method": method, **({"params": params} if params else {})})


def cancellation(ident: object, reason: str) -> bytes:
    """The notification that cancels the request ``ident``."""
    params = {"requestId": ident, "reason": reason}
    return _line({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})


def error_response(ident: object, code: int, message: str, data: Mapping[str, Any]) -> bytes:
    return _line({"jsonrpc": "2.0", "id": ident, "error": {"code": code, "message": message, "data": data}})


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


LAUNCHERS = frozenset({
    "npx", "bunx", "uvx", "uv", "node", "bun", "deno", "python", "python3", "sh", "bash", "env", "docker", "run",
})  # fmt: skip
"""Programs that only start other programs: a server behind one is named after its arguments."""


def server_name(argv: Sequence[str]) -> str:
    """A short name for a server in messages, derived from its command line."""
    plain = [arg for arg in argv if not arg.startswith("-") and len(arg.split()) == 1]
    names = [arg.rstrip("/").rpartition("/")[2] for arg in plain]
    name = next((name for name in names if name and name not in LAUNCHERS), None) or (names or [argv[0]])[0]
    return "".join(c if c.isprintable() else "?" for c in name)
