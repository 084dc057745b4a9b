"""Read the JSON of other programs leniently, and write it in their style."""

from __future__ import annotations

import functools
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from yolo_supervisor.models import from_iso


def load_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in ``data``.

    None if it is anything else: empty, torn, binary, too deep, another type. None means *unreadable*. A caller must
    never treat it as an empty object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} cannot be written again")
    return value


def dump_like(data: bytes, value: dict[str, Any]) -> bytes:
    """``value`` as JSON in the style of ``data``: its indentation and its final newline."""
    text = data.decode("utf-8", "replace")
    ascii_only = text.isascii() or "\\ud" in text.lower()  # lone surrogates can only be written as escapes
    compact = "\n" not in text.strip()
    separators = (",", ":") if compact and '": ' not in text else (", ", ": ") if compact else (",", ": ")
    body = json.dumps(value, indent=None if compact else 2, separators=separators, ensure_ascii=ascii_only)
    return (body + ("\n" if text.endswith("\n") else "")).encode()


@functools.lru_cache(maxsize=256)
def same_path(text: str) -> Path:
    """The path of a text: the same object for equal texts, to save memory.

    A thousand agents name the same few folders.
    """
    return Path(text)


def time_or_none(value: object) -> datetime | None:
    """The time of an ISO 8601 text, UTC if it names no zone; None for every other value."""
    try:
        return from_iso(value) if isinstance(value, str) else None
    except (ValueError, OverflowError):
        return None


def text_or_none(value: object) -> str | None:
    """``value`` if it is a non-empty string, else None."""
    return value if isinstance(value, str) and value else None
