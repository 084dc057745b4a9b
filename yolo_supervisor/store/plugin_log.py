"""What the plugin's own event log is told of what we did, if it keeps one (``v3_event_log``). The journal is the proof;
this is for the plugin's readers, so it may fail, and is silent then."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, execution_state
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import from_iso
from yolo_supervisor.store.atomic import make_folder, refuse_links
from yolo_supervisor.store.disk import Disk

NAMES = {
    ("task", "claimed"): "task_claimed",
    ("task", "completed"): "task_completed_candidate",
    ("task", "requeued"): "task_reassigned",
    ("task", "redriven"): "task_reassigned",
    ("task", "dead_lettered"): "task_blocked",
    ("lease", "released"): "task_reassigned",
    ("lease", "taken_over"): "task_reassigned",
    ("state", "restored"): "state_recovered",
    ("gate", "escalated"): "task_blocked",
    ("flag", "disabled"): "error",
}
"""The plugin's word for an action of ours. Its own ``lease-lock reassign`` tells of leases in the same way."""

OWN = (("lease", "released"), ("flag", "disabled"))
"""What is nobody else's if a person or a holder does it."""

TAIL = 64 * 1024
"""How far back, in bytes, an event is looked for that may have been told already."""


def tell(disk: Disk, planning: Path, record: Mapping[str, Any], seq: int) -> None:
    """Add the event that follows from a line of the journal, once: also after a crash in between."""
    name = NAMES.get((record["kind"], record["action"]))
    if name is None or ((record["kind"], record["action"]) in OWN and record["by"] == "cli"):
        return
    if record["kind"] == "state" and record["key"] != execution_state.STATE_FILE:
        return
    with contextlib.suppress(OSError, Refused):
        if not plugin_config.enabled(disk.read(planning / "config.json") or b"", "v3_event_log"):
            return
        state = disk.read(planning / execution_state.STATE_FILE) or b""
        ident = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{record['project']}#{seq}"))
        line = event_log.dump_event(
            name, from_iso(record["at"]), ident, event_log.correlation(state), _place(record, state), _data(record)
        )
        _append(disk, planning / event_log.EVENT_LOG, line, ident.encode())


def _place(record: Mapping[str, Any], state: bytes) -> tuple[int, int | None]:
    if record["kind"] == "gate":
        return record["evidence"].get("phase", 0), record["evidence"].get("plan")
    return event_log.place(state, record["key"].partition("/")[2] if record["kind"] == "task" else None)


def _data(record: Mapping[str, Any]) -> dict[str, object]:
    if record["kind"] == "gate":
        more = {key: value for key, value in record["evidence"].items() if key not in ("phase", "plan")}
        return {**more, "reason": record["reason"]}
    subjects = {"task": "task", "lease": "resource", "flag": "flag"}
    evidence, subject = record["evidence"], subjects.get(record["kind"], "file")
    was = evidence.get("previous_owner", evidence.get("owner"))
    who = {"owner": was} if record["action"] in ("claimed", "completed") else {"previous_owner": was}
    return {subject: record["key"], **who, "attempt": evidence.get("attempt"), "reason": record["reason"],
            **({name: evidence.get(name) for name in ("errors", "samples")} if subject == "flag" else {})}  # fmt: skip


def _append(disk: Disk, path: Path, line: bytes, ident: bytes) -> None:
    """In one write at the end, as the plugin does; a last line that was torn off is not made longer."""
    make_folder(disk, path.parent, 0o777)
    refuse_links(disk, path)
    fd = disk.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = disk.status_of(fd).st_size
        tail = disk.read_at(fd, TAIL, max(0, size - TAIL))
        if ident not in tail:
            disk.write(fd, line if tail[-1:] in (b"", b"\n") else b"\n" + line)
    finally:
        disk.close(fd)
