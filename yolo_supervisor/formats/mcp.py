"""Frames of the Model Context Protocol on stdio: one JSON-RPC 2.0 message a line. Both eras: up to 2025-11-25, which
begins with ``initialize``, and 2026-07-28, which does not.

A frame is forwarded as the bytes that it came in; where one value has to change, only that value's bytes do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

REPEATABLE = frozenset({
    "initialize", "server/discover", "ping", "tools/list", "prompts/list", "prompts/get", "resources/list",
    "resources/templates/list", "resources/read", "resources/subscribe", "resources/unsubscribe", "completion/complete",
    "logging/setLevel", "tasks/get", "tasks/list",
})  # fmt: skip
"""Requests that change nothing, or the same thing again: they may be sent twice, and have a time limit."""

ENDLESS = frozenset({"subscriptions/listen", "tasks/result"})
"""Requests that may be sent twice, and are answered when something happens: they have no time limit."""

TRANSIENT = frozenset({-32603, -32000, -32001})
"""Codes of errors that may be over the next time: internal error, connection closed, request timeout."""

LARGE = 64 * 1024
"""A line of more bytes is not parsed as a whole only to know where it belongs."""

_ID = rb'("(?:[^"\\]|\\.){0,200}"|-?\d{1,40})'
_BEGIN = rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?'
_ANSWER = rb'"(?:result|error)"'
_HEAD = re.compile(_BEGIN + rb'"id"\s*:\s*' + _ID + rb"\s*,\s*" + _ANSWER)
_ANSWERS = re.compile(_BEGIN + _ANSWER)
_TAIL = re.compile(rb'[,{]\s*"id"\s*:\s*' + _ID + rb'\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*\Z')
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def load(line: bytes) -> Any:
    """The message in a line. ValueError if it is none."""
    text = line.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number of more digits than Python likes to read
        return json.loads(text, parse_int=float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def answered(line: bytes) -> str | None:
    """The id (see ``key``) that a large answer is to, without reading all of it; None where that cannot be told so.

    A line without its end may be half an answer, and a server numbers its own requests as the client does.
    """
    if not line.endswith(b"\n"):
        return None
    found = _HEAD.match(line[:512]) or (_TAIL.search(line[-512:]) if _ANSWERS.match(line[:512]) else None)
    try:
        return key(json.loads(found[1])) if found else None
    except ValueError:
        return None


def key(ident: object) -> str:
    """An id as a key: 1, 1.0 and "1" are three ids."""
    return json.dumps(ident)


def with_value(line: bytes, path: tuple[str, ...], value: object) -> bytes:
    """The line with another value at the path of keys, every other byte as it was. KeyError if there is none."""
    first, last = _span(line, line.index(b"{"), path)
    return line[:first] + json.dumps(value).encode() + line[last:]


def _span(line: bytes, start: int, path: tuple[str, ...]) -> tuple[int, int]:
    """Where the value at the path is, within the object that begins at ``start``."""
    depth, name, first, before = 0, b"", -1, b""
    for token in _TOKEN.finditer(line, start):
        text = token[0]
        if depth == 1 and before == b":":
            first = token.start()  # of the value of ``name``
        depth += (text in b"{[") - (text in b"}]")
        if depth == 1 and first >= 0:  # and this is its end
            if json.loads(name) == path[0]:
                return (first, token.end()) if len(path) == 1 else _span(line, first, path[1:])
            first = -1
        elif depth == 1 and before in (b"{", b","):
            name = text
        elif depth <= 0:
            break
        before = text
    raise KeyError(path[0])


# -- what is in a message -----------------------------------------------------------------------------------------


def params(message: Mapping[str, Any]) -> Mapping[str, Any]:
    found = message.get("params")
    return found if isinstance(found, dict) else {}


def tool_of(message: Mapping[str, Any]) -> str | None:
    """The tool that a request calls; None if it calls none."""
    name = params(message).get("name") if message.get("method") == "tools/call" else None
    return name if isinstance(name, str) else None


def progress_token(message: Mapping[str, Any]) -> str | None:
    """The token (see ``key``) by which progress of the request is told; None if none is wanted."""
    meta = params(message).get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    return None if token is None else key(token)


def manner(message: Mapping[str, Any]) -> dict[str, Any]:
    """What every request of this client carries, and one that is made for it has to: the era's version, say."""
    meta = params(message).get("_meta")
    kept = {name: value for name, value in meta.items() if name != "progressToken"} if isinstance(meta, dict) else {}
    return {"_meta": kept} if kept else {}


def hints(result: object) -> tuple[dict[str, bool], str | None]:
    """Of each tool in an answer to ``tools/list`` whether its server says that it may be called twice, and the cursor
    of the next page."""
    found: dict[str, bool] = {}
    if not isinstance(result, dict):
        return found, None
    listed = result.get("tools")
    for tool in listed if isinstance(listed, list) else ():
        if isinstance(tool, dict) and isinstance(tool.get("name"), str):
            told = tool.get("annotations")
            told = told if isinstance(told, dict) else {}
            found[tool["name"]] = told.get("readOnlyHint") is True or told.get("idempotentHint") is True
    cursor = result.get("nextCursor")
    return found, cursor if isinstance(cursor, str) else None


# -- messages of our own ------------------------------------------------------------------------------------------


def request(ident: str, method: str, params: Mapping[str, Any] | None = None) -> bytes:
    return _line({"jsonrpc": "2.0", "id": ident, "method": method, **({"params": params} if params else {})})


def cancelled(ident: object, reason: str) -> bytes:
    told = {"requestId": ident, "reason": reason}
    return _line({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": told})


def error(ident: object, code: int, message: str, data: Mapping[str, Any]) -> bytes:
    return _line({"jsonrpc": "2.0", "id": ident, "error": {"code": code, "message": message, "data": data}})


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


RUNNERS = frozenset({
    "npx", "bunx", "uvx", "uv", "node", "bun", "deno", "python", "python3", "sh", "bash", "env", "docker", "run",
})  # fmt: skip
"""Programs that only start others: a server behind one is better known by what it is given."""


def server_name(words: Sequence[str]) -> str:
    """What to call a server in front of people, by its command."""
    plain = [word for word in words if not word.startswith("-") and len(word.split()) == 1]
    names = [word.rstrip("/").rpartition("/")[2] for word in plain]
    name = next((name for name in names if name and name not in RUNNERS), None) or (names or [words[0]])[0]
    return "".join(c if c.isprintable() else "?" for c in name)
