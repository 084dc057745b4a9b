"""The plugin's bookkeeping of agents: ``.agent-pids``, ``.agent-panes``, ``.agent-health/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none

PID_LOCK = Path("/tmp/yolo-agent-pid-lock")
"""The plugin's lock for all ``.agent-pids`` of the machine: a folder. The plugin never breaks a stale one."""

PID_LOCK_STALE_S = 30.0
"""The age at which a lock of the hooks is stale, in seconds: a hook is killed after at most 15 s."""

MAX_PID = 2**22
"""The kernel's limit. A larger number in a file is no pid, and must not become one by truncation."""


def normal_role(name: str) -> str:
    """The role in plain spelling: ``yolo:yolo-dev``, ``@team-dev-01``, ``Dev`` are ``dev``."""
    role = name.strip().lower().lstrip("@")
    while (bare := re.sub(r"^(yolo|vbw)[:-]|^team-", "", role)) != role:
        role = bare
    role = re.sub(r"-\d+$", "", role)
    return {"leader": "lead", "team-lead": "lead", "arch": "architect", "debug": "debugger"}.get(role, role) or "agent"


# -- agents -----------------------------------------------------------------------------------------------------


def is_pid(value: object) -> bool:
    """Whether the value is a number that can be the pid of a process other than init."""
    return type(value) is int and 1 < value <= MAX_PID


LIST_LIMIT = 256 * 1024
"""The largest ``.agent-pids`` or ``.agent-panes``, in bytes, from which lines are removed. A larger one is not the
plugin's work, and is left as it is."""


def agent_pids(data: bytes) -> list[int]:
    """The pids in an ``.agent-pids``, without lines that are no pids."""
    lines = (line.strip() for line in data.splitlines())
    return [pid for line in lines if line.isdigit() and len(line) < 12 and is_pid(pid := int(line))]


def without_pids(data: bytes, gone: frozenset[int]) -> bytes:
    """An ``.agent-pids`` or ``.agent-panes`` without lines that begin with a pid of ``gone``."""
    removed = {str(pid).encode() for pid in gone}
    return b"".join(
        line for line in data.splitlines(keepends=True) if (line.split() or [b""])[0].lstrip(b"0") not in removed
    )


def mentions_pid(data: bytes, pids: frozenset[int]) -> bool:
    """Whether ``without_pids`` would change the data."""
    return without_pids(data, pids) != data


@dataclass(frozen=True, slots=True)
class Health:
    pid: int
    role: str
    started_at: datetime | None
    idle_count: int


def health(data: bytes, stem: str) -> Health | None:
    """Parse an ``.agent-health/<stem>.json``; None without a valid pid.

    The bash version writes the pid as a string.
    """
    raw = load_object(data)
    if raw is None:
        return None
    pid = raw.get("pid")
    if isinstance(pid, str) and pid.isascii() and pid.isdigit() and len(pid) < 12:
        pid = int(pid)
    if not is_pid(pid):
        return None
    idle = raw.get("idle_count")
    return Health(
        int(pid),  # type: ignore[arg-type]  # is_pid has checked that it is an int
        normal_role(text_or_none(raw.get("role")) or stem),
        time_or_none(raw.get("started_at")),
        idle if type(idle) is int else 0,
    )
