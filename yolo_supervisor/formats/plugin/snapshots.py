"""The plugin's snapshots of its execution state, in both forms.

``snapshot-resume`` saves and restores ``.snapshots/{phase}-{YYYYmmddTHHMMSS}.json``, and keeps ten for each phase. The
PreCompact hook writes ``snapshots/snap-{phase}-{YYYYmmddHHMMSS}.json``. Neither of the two reads the other's files.
Here both are read alike, and only the first form is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.plugin.agents import normal_role

NO_NAME = "unknown"
"""The plugin's value for an unknown agent or trigger."""

_NAME = re.compile(r"(?:snap-)?(.+)-([0-9]{8}T?[0-9]{6})\.json")
_COMPACT = re.compile(r"^([0-9]{8})T?([0-9]{6})$")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An execution state at a time (UTC, whole seconds), for a role such as ``yolo-dev-01``."""

    name: str
    phase: str
    at: datetime
    role: str | None
    state: dict[str, Any]
    trigger: str | None
    commits: tuple[str, ...] = ()


def load(name: str, data: bytes) -> Snapshot | None:
    """The snapshot in a file of that name, of either shape, and of either version of the plugin.

    None if it is damaged: no JSON object, no phase or time in its text or name, or no state. The plugin saves ``{}`` if
    the state was unreadable, so an empty state counts as none.
    """
    raw = load_object(data) or {}
    state = raw.get("execution_state")
    named = _NAME.fullmatch(name)
    phase = raw.get("phase", named and named[1])
    at = _time(named and named[2]) or _time(raw.get("snapshot_ts")) or _time(raw.get("timestamp"))
    if not isinstance(state, dict) or not state or type(phase) not in (str, int) or phase == "" or at is None:
        return None
    commits = raw.get("recent_commits")
    return Snapshot(
        name,
        str(phase),
        at,
        _known(raw.get("agent_role")) or _known(raw.get("agent_name")),
        state,
        _known(raw.get("compaction_trigger")) or _known(raw.get("matcher")),
        tuple(line for line in (commits if isinstance(commits, list) else ()) if isinstance(line, str)),
    )


def _known(value: object) -> str | None:
    text = text_or_none(value)
    return None if text == NO_NAME else text


def _time(value: object) -> datetime | None:
    """A time in any form that snapshots contain: compact with or without the T, or ISO 8601."""
    at = time_or_none(_COMPACT.sub(r"\1T\2", value) if isinstance(value, str) else None)
    try:
        return at.astimezone(UTC).replace(microsecond=0) if at else None
    except OverflowError:
        return None


def dump(snapshot: Snapshot) -> bytes:
    """The snapshot as ``snapshot-resume save`` writes it."""
    raw = {
        "agent_role": snapshot.role or NO_NAME,
        "compaction_trigger": snapshot.trigger or NO_NAME,
        "execution_state": snapshot.state,
        "phase": snapshot.phase,
        "recent_commits": list(snapshot.commits),
        "snapshot_ts": _stamp(snapshot.at),
    }
    return execution_state.dump(raw)


def file_name(phase: str, at: datetime) -> str:
    """The name of a snapshot in ``.snapshots``.

    ValueError if the phase cannot be a part of a file's name.
    """
    if not phase or set(phase) & {"/", "\0"}:
        raise ValueError(f"{phase!r} cannot be a part of a file's name")
    return f"{phase}-{_stamp(at)}.json"


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("-", "").replace(":", "")[:15]


def best(snapshots: Iterable[Snapshot], phase: str | None, role: str | None) -> Snapshot | None:
    """The snapshot to restore: the role's newest of the phase (None: of any), else the newest.

    None without any. Phases are the same if their numbers are (``03`` and 3), roles if their plain names are
    (``yolo-dev``, ``dev-01``).
    """
    wanted = normal_role(role) if role else None
    of_phase = [snapshot for snapshot in snapshots if phase is None or _plain(snapshot.phase) == _plain(phase)]
    of_role = [snapshot for snapshot in of_phase if wanted and snapshot.role and normal_role(snapshot.role) == wanted]
    return max(of_role or of_phase, key=lambda snapshot: (snapshot.at, snapshot.name), default=None)


def _plain(phase: str) -> str:
    return phase.lstrip("0") if phase.isdigit() else phase


def surplus(names: Iterable[str], phase: str, keep: int = 10) -> list[str]:
    """The files of ``.snapshots`` above the limit of ``keep`` for the phase, the oldest first.

    Only names as ``file_name`` makes them for this phase are listed. Other files in the folder are not ours to remove.
    """
    ours = sorted(
        name
        for name in names
        if (match := _NAME.fullmatch(name)) and (at := _time(match[2])) and name == f"{phase}-{_stamp(at)}.json"
    )
    return ours[: max(0, len(ours) - keep)]
