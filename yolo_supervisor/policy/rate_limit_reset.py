"""The end of a rate-limit window, as Claude Code's error texts name it.

The forms are those that the client prints: ``…|1795438800`` (epoch seconds), ``resets at 2026-11-23T12:30:00Z``,
``try again in 1h 5m``, ``resets 3pm (Europe/Berlin)``, ``resets Nov 23, 3pm (UTC)``. General date parsers accept too
much: a number in an error text is rarely a time.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime, timedelta

from yolo_supervisor.formats.crash_report import Evidence
from yolo_supervisor.formats.json import text_or_none, time_or_none
from yolo_supervisor.formats.transcripts import ApiError
from yolo_supervisor.models import from_iso

_EPOCH = re.compile(r"\|(\d{10})\b")
_ISO = re.compile(r"reset\w*(?: at)?:? (\d{4}-\d\d-\d\dT[0-9:.]{4,15}(?:Z|[+-]\d\d:\d\d)?)", re.IGNORECASE)
_LENGTH = r"(\d{1,6}) ?(days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])"
_DURATION = re.compile(
    rf"(?:resets?|try again|retry) (?:in|after) ((?:{_LENGTH}(?:, | and | )?){{1,4}})", re.IGNORECASE
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_CLOCK = re.compile(
    rf"(?:resets?|try again)(?: at| on)?:? (?:({'|'.join(_MONTHS)})[a-z]{{0,6}} (\d{{1,2}})(?:,| at)? )?"
    r"(\d{1,2})(?::(\d\d))?(?: ?(am|pm))?(?![\w:-])"
    r"(?: \(([A-Za-z0-9_+-]{1,30}(?:/[A-Za-z0-9_+-]{1,30}){0,2})\)|(?! \())",
    re.IGNORECASE,
)


def window_end(e: Evidence, hold_s: float, hold_max_s: float) -> datetime:
    """The end of the window that the last API error names.

    ``hold_s`` after the error if it names none. It is at most ``hold_max_s`` after the death was noticed: a longer time
    is not believed.
    """
    event, payload = e.last_hook
    error = e.tail.error
    if error is None and event == "StopFailure":
        error = ApiError(text=f"{text_or_none(payload.get('error_details'))}", at=time_or_none(payload.get("at")))
    since = min((error.at if error else None) or e.at, e.at)
    named = reset_time(error.text, since) if error else None
    earliest, latest = since + timedelta(seconds=hold_s), e.at + timedelta(seconds=hold_max_s)
    return min(named if named is not None and named > since else earliest, latest)


def reset_time(text: str, since: datetime) -> datetime | None:
    """The time at which the window resets, by an error text of ``since``.

    None if it names none that is understood.
    """
    try:
        if match := _EPOCH.search(text):
            return datetime.fromtimestamp(int(match[1]), UTC)
        if match := _ISO.search(text):
            return from_iso(match[1])
        if match := _DURATION.search(text):
            lengths = {unit[0].lower(): int(number) for number, unit in re.findall(f"(?i){_LENGTH}", match[1])}
            days, hours, minutes, seconds = (lengths.get(unit, 0) for unit in "dhms")
            return since + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if (match := _CLOCK.search(text)) and (match[4] or match[5]):
            return _clock_time(match, since)
    except (ValueError, OverflowError, OSError, KeyError):  # no such hour, no such zone
        return None
    return None


def _clock_time(match: re.Match[str], since: datetime) -> datetime | None:
    """The next time at which a clock shows this; with a date, the nearest such day, past or future.

    Raises ValueError or KeyError if there is none.
    """
    from zoneinfo import ZoneInfo  # slow to import, and rarely needed

    month, day, hour, minute, half, zone_name = match.groups()
    zone = ZoneInfo(zone_name) if zone_name else None  # without a name it is this machine's
    local = since.astimezone(zone).replace(tzinfo=None)
    if half and not 1 <= int(hour) <= 12:
        return None
    hours = int(hour) % 12 + 12 * (half.lower() == "pm") if half else int(hour)
    then = local.replace(hour=hours, minute=int(minute or 0), second=0, microsecond=0)
    if month is None:
        days = [then if then > local else then + timedelta(days=1)]
    else:
        years, number = (local.year - 1, local.year, local.year + 1), _MONTHS.index(month.lower()) + 1
        days = [then.replace(year=y, month=number, day=int(day)) for y in years if int(day) <= monthrange(y, number)[1]]
    nearest = min(days, key=lambda candidate: abs(candidate - local))
    return nearest.replace(tzinfo=zone).astimezone(UTC)
