"""The plugin's bookkeeping of agents: ``.agent-pids``, ``.agent-panes``, ``.agent-health/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none

PID_LOCK = Path("/tmp/yolo-agent-pid-lock")
"""The plugin's lock over every ``.agent-pids`` on the machine: a folder, and no holder ever breaks a stale one."""

PID_LOCK_STALE_S = 30.0
"""The hooks that take the locks below are killed after at most 15 s, so an older one was left by a killed hook."""

MAX_PID = 2**22
"""The kernel's own limit; a larger number in a file is no pid, whatever a cast would make of it."""


def normal_role(name: str) -> str:
    """The role behind any spelling of it: ``yolo:yolo-dev``, ``@team-dev-01`` and ``Dev`` are all ``dev``."""
    role = name.strip().lower().lstrip("@")
    while (bare := re.sub(r"^(yolo|vbw)[:-]|^team-", "", role)) != role:
        role = bare
    role = re.sub(r"-\d+$", "", role)
    return {"leader": "lead", "team-lead": "lead", "arch": "architect", "debug": "debugger"}.get(role, role) or "agent"


# -- agents -----------------------------------------------------------------------------------------------------


def is_pid(value: object) -> bool:
    """Whether the number can name a process other than init: 0, 1, negative and oversized ones never do."""
    return type(value) is int and 1 < value <= MAX_PID


def agent_pids(data: bytes) -> list[int]:
    """The pids in an ``.agent-pids``, junk lines passed over."""
    words = (line.strip() for line in data.splitlines())
    return [pid for word in words if word.isdigit() and len(word) < 12 and is_pid(pid := int(word))]


def without_pids(data: bytes, gone: frozenset[int]) -> bytes:
    """An ``.agent-pids`` or ``.agent-panes`` without the lines whose first word is one of ``gone``."""
    wanted = {str(pid).encode() for pid in gone}
    return b"".join(
        line for line in data.splitlines(keepends=True) if (line.split() or [b""])[0].lstrip(b"0") not in wanted
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
    """An ``.agent-health/<stem>.json``; the pid is a string in files of the bash version. None without a sound pid."""
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
        int(pid),  # type: ignore[arg-type]  # is_pid has said that it is an int
        normal_role(text_or_none(raw.get("role")) or stem),
        time_or_none(raw.get("started_at")),
        idle if type(idle) is int else 0,
    )
