"""The minimum content of the plugin's critical files, by which torn ones are recognised."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import PurePath

from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.plugin.execution_state import STATE_FILE
from yolo_supervisor.models import FlawCode


@dataclass(frozen=True, slots=True)
class Flaw:
    """Decisions compare ``code``; ``text`` is for people and the journal."""

    code: FlawCode
    text: str


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
