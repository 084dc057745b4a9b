"""Lines of a journal, as short as a test needs them."""

from __future__ import annotations

from typing import Any

from yolo_supervisor.store.lines import Begun, Ended, Entry, Promise, Write


def an_entry(
    action: str,
    key: str = "red/3",
    kind: str = "task",
    by: str = "agents",
    evidence: dict[str, Any] | None = None,
    write: Write | None = None,
    begun: bool = False,
    done: int | None = None,
    seq: int = 0,
) -> Entry:
    """An entry, a promise (with ``write``), a beginning (with ``begun``) or the end of one (with ``done``)."""
    entry = {
        "seq": seq, "at": "2026-11-22T20:55:10.000000Z", "kind": kind, "key": key, "action": action, "by": by,
        "reason": "it was so", "evidence": evidence or {}, "project": "/x",
    }  # fmt: skip
    if write is not None:
        return Promise(**entry, write=write)
    if done is not None:
        return Ended(**entry, done=done)
    return Begun(**entry) if begun else Entry(**entry)
