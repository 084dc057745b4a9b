"""Change one value in a JSON text and keep every other byte."""

from __future__ import annotations

import json
from collections.abc import Iterator


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """The members of the object in a JSON text that can be read: key, and from where to where its value stands."""
    decode = json.JSONDecoder().raw_decode
    at = _space(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        start = _space(text, _space(text, at) + 1)
        _, end = decode(text, start)
        yield key, start, end
        at = _space(text, end)
        at = _space(text, at + 1) if text[at] == "," else at


def _space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
