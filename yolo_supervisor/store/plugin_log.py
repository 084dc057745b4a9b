"""Events in the plugin's event log about what the supervisor did, if the plugin keeps one (``v3_event_log``).

The journal is the proof. These events are for readers of the plugin's log: writing them may fail, and is silent then.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, execution_state
from yolo_supervisor.fs.read import LIMIT
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import from_iso
from yolo_supervisor.store.atomic import make_folder, refuse_links
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.lines import Entry

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
"""The plugin's name for an action. The plugin's ``lease-lock reassign`` reports leases by the same name."""

OWN = (("lease", "released"), ("flag", "disabled"))
"""Actions that are not reported if a person or a holder does them."""

TAIL = 64 * 1024
"""The distance from the end, in bytes, in which the event is searched for, so that it is written once."""


def append_event(disk: Disk, planning: Path, entry: Entry) -> None:
    """Add the event that follows from an entry, once: also after a crash in between."""
    name = NAMES.get((entry.kind, entry.action))
    if name is None or ((entry.kind, entry.action) in OWN and entry.by == "cli"):
        return
    if entry.kind == "state" and entry.key != execution_state.STATE_FILE:
        return
    with contextlib.suppress(OSError, Refused):
        if not plugin_config.enabled(disk.read(planning / plugin.CONFIG, LIMIT) or b"", plugin_config.EVENT_LOG):
            return
        state = disk.read(planning / execution_state.STATE_FILE, LIMIT) or b""
        ident = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{entry.project}#{entry.seq}"))
        line = event_log.dump_event(
            name, from_iso(entry.at), ident, event_log.correlation(state), _place(entry, state), _data(entry)
        )
        _append(disk, planning / event_log.EVENT_LOG, line, ident.encode())


def _place(entry: Entry, state: bytes) -> tuple[int, int | None]:
    if entry.kind == "gate":
        return entry.evidence.get("phase", 0), entry.evidence.get("plan")
    return event_log.place(state, entry.key.partition("/")[2] if entry.kind == "task" else None)


def _data(entry: Entry) -> dict[str, object]:
    if entry.kind == "gate":
        more = {key: value for key, value in entry.evidence.items() if key not in ("phase", "plan")}
        return {**more, "reason": entry.reason}
    subjects = {"task": "task", "lease": "resource", "flag": "flag"}
    evidence, subject = entry.evidence, subjects.get(entry.kind, "file")
    was = evidence.get("previous_owner", evidence.get("owner"))
    who = {"owner": was} if entry.action in ("claimed", "completed") else {"previous_owner": was}
    return {subject: entry.key, **who, "attempt": evidence.get("attempt"), "reason": entry.reason,
            **({name: evidence.get(name) for name in ("errors", "samples")} if subject == "flag" else {})}  # fmt: skip


def _append(disk: Disk, path: Path, line: bytes, ident: bytes) -> None:
    """Append in one write, as the plugin does; a half-written last line is ended first."""
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
