"""Change one value in a JSON text and keep every other character."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

_decode = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).raw_decode
"""Decodes the value at an offset. Numbers stay text, since one may have more digits than Python converts."""


def value_span(text: str, path: Sequence[str]) -> tuple[int, int]:
    """Start and end of the value at a path of keys. KeyError if the path does not exist.

    ``text`` must hold a valid JSON object. Of several members with one key the last counts, as for all its readers.
    """
    start, end = text.index("{"), len(text)
    for key in path:
        spans = {name: (first, last) for name, first, last in _members(text, start)}
        start, end = spans[key]
    return start, end


def _members(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """The key of each member of the object at ``start``, and where its value starts and ends; none of other values."""
    if text[start] != "{":
        return
    at = _skip_space(text, start + 1)
    while text[at] != "}":
        key, at = _decode(text, at)
        first = _skip_space(text, _skip_space(text, at) + 1)
        _, last = _decode(text, first)
        yield key, first, last
        at = _skip_space(text, last)
        at = _skip_space(text, at + 1) if text[at] == "," else at


def _skip_space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at
