"""Hide secrets in crash reports: an agent's screen and transcript may contain any.

Repetitions in patterns are possessive (``{…}+``) or bounded: other programs write the text, and no text may make a
match slow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HIDDEN = "[hidden]"

MAX_ITEMS, MAX_DEPTH = 60, 20
"""The number of items of a list (the last ones) or an object, and of levels of a JSON value, that are kept."""

_KEY_END = re.compile(r"(-----END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----)")
_KEY_LINE = re.compile(r"[\s\d→│|>+-]{0,20}[0-9A-Za-z+/]{1,100}={0,2}[\s│|]{0,20}")
_LINE = re.compile(r"(\r?\n|\\+n)")


def redacted(text: str) -> str:
    """The text with everything hidden that looks like a secret."""
    from yolo_supervisor.redaction.table import SECRET_RULES  # building the rules takes a tenth of a command's start

    text = _without_key_tails(text)
    lowered = text.lower()
    for rule in SECRET_RULES:
        if rule.may_match(text, lowered):
            text = rule.hidden_in(text)
    return text


def shortened(text: str, limit: int) -> str:
    """The beginning of the text, up to a whole word, since half a secret is not recognised."""
    if len(text) <= limit:
        return text
    return re.sub(r"\S{1,200}\Z", "", text[:limit]) + "…"


def cut_fields(fields: Mapping[str, object], limit: int) -> dict[str, object]:
    """A JSON object with the limits of ``cut``."""
    return {key: cut(value, limit, MAX_DEPTH - 1) for key, value in list(fields.items())[:MAX_ITEMS]}


def cut(value: object, limit: int, depth: int = MAX_DEPTH) -> object:
    """A JSON value cut to ``limit`` characters a text, ``MAX_ITEMS`` and ``MAX_DEPTH``."""
    if isinstance(value, str):
        return shortened(value, limit)
    if isinstance(value, Mapping):
        return {key: cut(item, limit, depth - 1) for key, item in list(value.items())[:MAX_ITEMS]} if depth else "…"
    if isinstance(value, list | tuple):
        return [cut(item, limit, depth - 1) for item in value[-MAX_ITEMS:]] if depth else "…"
    return value


def redacted_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """A JSON object with the redaction of ``redacted_all``."""
    return {redacted(key): redacted_all(value, _names_a_secret(key, value)) for key, value in fields.items()}


def redacted_all(value: object, under_secret: bool = False) -> object:
    """A JSON value with every text redacted.

    A key that names a secret hides everything under it.
    """
    if isinstance(value, Mapping):
        return {
            redacted(str(key)): redacted_all(item, under_secret or _names_a_secret(str(key), item))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_all(item, under_secret) for item in value]
    if under_secret and value is not None and not isinstance(value, bool):
        return HIDDEN
    return redacted(value) if isinstance(value, str) else value


def _names_a_secret(key: str, value: object) -> bool:
    from yolo_supervisor.redaction.context import names_a_secret

    return names_a_secret(key, value)


def _without_key_tails(text: str) -> str:
    """The text without the lines of a private key whose BEGIN line has scrolled out of the screen."""
    parts = _KEY_END.split(text)
    for number in range(0, len(parts) - 1, 2):
        pieces = _LINE.split(parts[number])  # every second piece is a line break
        begin = len(pieces) - 1
        while begin >= 2 and _KEY_LINE.fullmatch(pieces[begin - 2]):
            begin -= 2
        if begin < len(pieces) - 1:
            parts[number] = "".join([*pieces[:begin], HIDDEN, *pieces[-2:]])
    return "".join(parts)
