"""The minimum content of the plugin's critical files, by which torn ones are recognised."""

from __future__ import annotations

import codecs
import json
import math
from dataclasses import dataclass
from pathlib import PurePath

from yolo_supervisor.formats.json import dump_like, load_object, text_or_none
from yolo_supervisor.formats.plugin.execution_state import STATE_FILE
from yolo_supervisor.models import FlawCode

PERSONS_OWN = frozenset({
    FlawCode.BYTE_ORDER_MARK, FlawCode.NOT_UTF8, FlawCode.LONE_SURROGATE, FlawCode.DUPLICATE_KEY,
    FlawCode.NOT_A_NUMBER, FlawCode.TOO_DEEP, FlawCode.UNMERGED,
})  # fmt: skip
"""The flaws of a content that a person may mean as it is: an older content never replaces it."""

DEPTH_LIMIT = 127
"""The number of arrays and objects inside each other that serde_json reads."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Decisions compare ``code``; ``text`` is for people and the journal."""

    code: FlawCode
    text: str
    rewritten: bytes | None = None
    """The same content as every reader understands it, if there is one: nothing is lost by it."""


def flaw(name: str, data: bytes) -> Flaw | None:
    """The flaw of a critical file of this name, or None if it is whole.

    External programs and people write these files in more ways than their schema describes, so the rules are few: an
    object where the plugin reads one, a ``status`` in the execution state (the one key that its schema requires; the
    layout before it had ``phases`` only), text in markdown. In a ``.jsonl`` only a half-written last line counts, and a
    file of zeros.
    """
    suffix = PurePath(name).suffix
    if suffix == ".jsonl":
        return Flaw(FlawCode.HALF_WRITTEN, "its last line is half written") if torn_at(data) is not None else None
    if not data.strip():
        return Flaw(FlawCode.EMPTY, "it is empty")
    if not data.strip(b"\0"):
        return Flaw(FlawCode.ONLY_ZEROS, "it holds nothing but zeros")
    return _text_flaw(data) if suffix == ".md" else _object_flaw(name, data)


def _text_flaw(data: bytes) -> Flaw | None:
    if b"\0" in data:
        return Flaw(FlawCode.HAS_ZEROS, "it holds zeros")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return Flaw(FlawCode.NOT_TEXT, f"it is no text at byte {error.start}")
    return None


def _object_flaw(name: str, data: bytes) -> Flaw | None:
    raw = load_object(data)
    if (flaw := strictness_flaw(data)) is not None:
        return flaw
    if raw is None:
        try:
            json.loads(data)
        except (ValueError, RecursionError) as error:
            return Flaw(FlawCode.NOT_JSON, f"it is no JSON: {error}")
        return Flaw(FlawCode.NOT_AN_OBJECT, "it is no JSON object")
    if PurePath(name).name == STATE_FILE:
        if not isinstance(raw.get("phases"), dict) and text_or_none(raw.get("status")) is None:
            return Flaw(FlawCode.NO_STATUS, "it has no status")
        if not isinstance(raw.get("plans", []), list):
            return Flaw(FlawCode.PLANS_NOT_A_LIST, "its plans are no list")
    return None


def strictness_flaw(data: bytes) -> Flaw | None:
    """The flaw of an object that lenient readers understand, and the strictest does not; None if there is none.

    The plugin reads with serde_json and Claude Code with ``JSON.parse``: both refuse a byte order mark and numbers such
    as ``NaN``; serde_json also refuses lone surrogates, numbers beyond 64-bit floats, more than 127 levels, and
    repeated keys of a known structure.
    """
    try:
        text = data.decode(json.detect_encoding(data))
        pairs = _Pairs()
        value = json.loads(text, object_pairs_hook=pairs.add, parse_constant=pairs.refuse, parse_float=pairs.number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    if pairs.constant is not None:
        return Flaw(FlawCode.NOT_A_NUMBER, f"the plugin refuses {pairs.constant}: put another number or null there")
    if _depth(value) > DEPTH_LIMIT:
        return Flaw(FlawCode.TOO_DEEP, f"it is nested more than {DEPTH_LIMIT} levels deep: the plugin refuses it")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Flaw(FlawCode.LONE_SURROGATE, "it holds half a character, such as \\ud800: the plugin refuses it")
    if pairs.different is not None:
        return Flaw(FlawCode.DUPLICATE_KEY, f"it holds the key {pairs.different!r} twice, with different values")
    if pairs.repeated is not None:
        return Flaw(FlawCode.DUPLICATE_KEY, f"it holds the key {pairs.repeated!r} twice", dump_like(data, value))
    if data.startswith(codecs.BOM_UTF8):
        what = "it begins with a byte order mark, which the plugin refuses"
        return Flaw(FlawCode.BYTE_ORDER_MARK, what, text.encode())
    if not json.detect_encoding(data).startswith("utf-8"):
        return Flaw(FlawCode.NOT_UTF8, "it is not written in UTF-8, which the plugin expects", text.encode())
    return None


class _Pairs:
    """The values in a JSON text that strict readers refuse, collected by a parser."""

    def __init__(self) -> None:
        self.constant: str | None = None
        self.repeated: str | None = None
        """A key that stands twice in one object, with equal values."""
        self.different: str | None = None
        """A key that stands twice in one object, with different values."""

    def add(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, value in pairs:
            if key in found:
                if found[key] == value:
                    self.repeated = key
                else:
                    self.different = key
            found[key] = value
        return found

    def refuse(self, constant: str) -> float:
        self.constant = constant
        return 0.0

    def number(self, text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else self.refuse(text)


def _depth(value: object) -> int:
    """The number of arrays and objects inside each other."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    return depth


def torn_at(data: bytes) -> int | None:
    """The offset of the half-written end of a ``.jsonl``, or None if it has none.

    A last line that lacks only its newline is whole.
    """
    start = data.rfind(b"\n") + 1
    last = data[start:]
    if not last.strip():
        return start if b"\0" in last else None
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return start
    return None
