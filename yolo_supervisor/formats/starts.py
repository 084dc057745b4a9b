"""``starts.json`` in the user's state directory: the starts and deaths of agents on this machine, of all projects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from yolo_supervisor.clock import Instant
from yolo_supervisor.formats.json import load_object, text_or_none, time_or_none
from yolo_supervisor.models import iso

VERSION = 1
"""The version of the file. It grows when an older program would misread it."""

MOST = 1000
"""The number of starts, and of deaths, that are kept; no limit in the configuration is larger."""

PAUSE_MOST_S = 86400.0
"""The longest pause that is believed; no limit in the configuration is larger."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment by both clocks: the monotonic one counts within its boot, wall time across boots."""

    instant: Instant
    at: datetime


@dataclass(frozen=True, slots=True)
class Death:
    moment: Moment
    mark: str
    """A digest of the name of the agent's record, which no other agent has."""


@dataclass(frozen=True, slots=True)
class Storm:
    """A pause of all starts, since many agents died at the same time."""

    since: Moment
    pause_s: float


@dataclass(frozen=True, slots=True)
class Starts:
    """The content of the file. The oldest comes first."""

    starts: tuple[Moment, ...] = ()
    deaths: tuple[Death, ...] = ()
    storm: Storm | None = None


def dump_starts(content: Starts) -> bytes:
    storm = content.storm
    raw = {
        "version": VERSION,
        "starts": [_dump(moment) for moment in content.starts[-MOST:]],
        "deaths": [{**_dump(death.moment), "mark": death.mark} for death in content.deaths[-MOST:]],
        "storm": {**_dump(storm.since), "pause_s": storm.pause_s} if storm is not None else None,
    }
    return json.dumps(raw, separators=(",", ":")).encode() + b"\n"


def load_starts(data: bytes) -> Starts | None:
    """The content of the file; None if any part of it is not as it was written."""
    raw = load_object(data)
    if raw is None or type(raw.get("version")) is not int or raw["version"] != VERSION:
        return None
    starts, deaths, storm = raw.get("starts"), raw.get("deaths"), raw.get("storm")
    if not isinstance(starts, list) or not isinstance(deaths, list) or max(len(starts), len(deaths)) > MOST:
        return None
    moments, dead = [_moment(each) for each in starts], [_death(each) for each in deaths]
    stormy = _storm(storm) if storm is not None else None
    if None in moments or None in dead or (stormy is None) != (storm is None):
        return None
    return Starts(tuple(m for m in moments if m is not None), tuple(d for d in dead if d is not None), stormy)


def _dump(moment: Moment) -> dict[str, Any]:
    return {**moment.instant.fields(), "at": iso(moment.at)}


def _moment(raw: object) -> Moment | None:
    if not isinstance(raw, Mapping):
        return None
    instant, at = Instant.from_fields(raw), time_or_none(raw.get("at"))
    return Moment(instant, at) if instant is not None and at is not None else None


def _death(raw: object) -> Death | None:
    moment = _moment(raw)
    mark = text_or_none(raw.get("mark")) if isinstance(raw, Mapping) else None
    return Death(moment, mark) if moment is not None and mark is not None else None


def _storm(raw: object) -> Storm | None:
    moment = _moment(raw)
    pause_s = raw.get("pause_s") if isinstance(raw, Mapping) else None
    if moment is None or isinstance(pause_s, bool) or not isinstance(pause_s, int | float):
        return None
    return Storm(moment, float(pause_s)) if 0 <= pause_s <= PAUSE_MOST_S else None
