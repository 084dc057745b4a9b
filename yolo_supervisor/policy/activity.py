"""The activity of an agent, from the signs that its client leaves.

The signs and what they are worth are in docs/who-is-at-work.md. Processor time of the client is no sign: its spinner
uses up to a fifth of a core, and an idle prompt is never at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from yolo_supervisor.formats.turns import Phase, Turn
from yolo_supervisor.models import Liveness
from yolo_supervisor.policy.waiting import OPEN_DIALOG, WAITS_AFTER_FAILURE, WAITS_FOR_QUOTA_STATUS


class Activity(StrEnum):
    """The activity of an agent. Only ``idle`` and ``stalled`` have a limit."""

    WORKING = "working"
    WAITS_FOR_PERSON = "waits_for_person"
    WAITS_FOR_QUOTA = "waits_for_quota"
    WAITS_FOR_BACKGROUND = "waits_for_background"
    IDLE = "idle"
    """Its turn is over."""
    STALLED = "stalled"
    """A turn is under way, and there was no sign of work for ``stall_limit_s``."""
    SUSPENDED = "suspended"
    """Its process is stopped (SIGSTOP)."""
    DEAD = "dead"
    UNKNOWN = "unknown"
    """Nothing tells: the client is too old, or its files cannot be read."""

    @property
    def waits(self) -> bool:
        """Whether the agent waits on purpose: no clock runs."""
        return self in (Activity.WAITS_FOR_PERSON, Activity.WAITS_FOR_QUOTA, Activity.WAITS_FOR_BACKGROUND)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signs:
    """The signs of one agent at one moment. A sign that its version does not have is None."""

    liveness: Liveness
    suspended: bool = False
    """Whether the kernel shows its process as stopped."""
    turn: Turn | None = None
    """The end of its transcript."""
    active: bool | None = None
    """``isActive`` of a teammate. ``False`` is sure: its turn is over, or failed. ``True`` may be left over."""
    status: str | None = None
    """The status of its session: ``idle``, ``busy`` or ``waiting``."""
    leads: bool = False
    """Whether it has teammates: its client shows ``busy`` for as long as it has them, so only ``waiting`` counts."""
    mates_work: bool = False
    """Whether one of its teammates may be at work: the end of that work starts its next turn."""
    event: str | None = None
    """The newest hook event of its process."""
    event_at: datetime | None = None
    payload: Mapping[str, object] = field(default_factory=dict)
    """The payload of that event."""
    tool_runs: bool = False
    """Whether a process of one of its tools runs."""
    asks_lead: bool = False
    """Whether its lead shows a permission request of a teammate."""

    @property
    def newest_event(self) -> str | None:
        """The newest hook event, unless its transcript went on after it."""
        at = self.turn.at if self.turn is not None else None
        return None if at is not None and self.event_at is not None and at > self.event_at else self.event


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """The activity of an agent, and the sign that says so."""

    activity: Activity
    sign: str


def judge(signs: Signs, quiet_s: float, stall_limit_s: float) -> Judgement:
    """The activity of the agent.

    ``quiet_s`` is the time since any of its signs has changed, in monotonic seconds.
    """
    if signs.liveness is Liveness.DEAD:
        return Judgement(activity=Activity.DEAD, sign="its process has ended")
    if signs.liveness is Liveness.UNKNOWN:
        return Judgement(activity=Activity.UNKNOWN, sign="its process cannot be seen from here")
    if signs.suspended:
        return Judgement(activity=Activity.SUSPENDED, sign="its process is stopped")
    if (waits := _waits(signs)) is not None:
        return waits
    if (over := _over(signs)) is not None:
        return over
    if (sign := _busy(signs)) is None:
        return Judgement(activity=Activity.UNKNOWN, sign="no file of its client says what it is doing")
    if quiet_s >= stall_limit_s:
        return Judgement(activity=Activity.STALLED, sign=f"{sign}, and nothing has changed for {quiet_s:.0f} s")
    return Judgement(activity=Activity.WORKING, sign=sign)


def wait_of(signs: Signs) -> Activity | None:
    """The kind of the agent's wait, also while its client tries a failed request again; None if it does not wait."""
    if signs.liveness is not Liveness.ALIVE or signs.suspended:
        return None
    if (waits := _waits(signs)) is not None:
        return waits.activity
    return Activity.WAITS_FOR_QUOTA if signs.turn is not None and signs.turn.failing else None


def _waits(signs: Signs) -> Judgement | None:
    """The sign that the agent waits on purpose: for a person, its quota, or work that it has started."""
    if signs.status == "waiting":
        return Judgement(activity=Activity.WAITS_FOR_PERSON, sign="its session is waiting")
    event, kind = signs.newest_event, signs.payload.get("notification_type")
    if event == "Notification" and kind in OPEN_DIALOG:
        return Judgement(activity=Activity.WAITS_FOR_PERSON, sign=f"hook Notification: {kind}")
    tool = signs.turn is not None and signs.turn.phase is Phase.TOOL
    if tool and signs.asks_lead and not signs.leads and not signs.tool_runs:
        return Judgement(activity=Activity.WAITS_FOR_PERSON, sign="its lead shows a permission request")
    turn = signs.turn
    if turn is not None and _is_quota(turn.error, turn.status):
        failed = "its turn failed" if turn.phase is Phase.FAILED else "its last request failed and is tried again"
        return Judgement(activity=Activity.WAITS_FOR_QUOTA, sign=f"{failed}: {_error(turn)}")
    error = signs.payload.get("error")
    if event == "StopFailure" and signs.turn is None and error in WAITS_AFTER_FAILURE:
        return Judgement(activity=Activity.WAITS_FOR_QUOTA, sign=f"hook StopFailure: {error}")
    if event in ("Stop", "SubagentStop") and _has_background(signs.payload):
        return Judgement(activity=Activity.WAITS_FOR_BACKGROUND, sign=f"hook {event}: background work")
    if signs.leads and signs.mates_work and not _in_turn(signs):
        return Judgement(activity=Activity.WAITS_FOR_BACKGROUND, sign="it waits for its teammates")
    return None


def _over(signs: Signs) -> Judgement | None:
    """The sign that the agent's turn is over. Signs that contradict each other prove nothing."""
    turn = signs.turn
    if turn is not None and turn.phase is Phase.FAILED:
        return Judgement(activity=Activity.IDLE, sign=f"its turn failed: {_error(turn)}")
    if turn is not None and turn.phase is not Phase.ENDED:
        return None
    if signs.active is True or (signs.status == "busy" and not signs.leads):
        return None
    if turn is not None:
        return Judgement(activity=Activity.IDLE, sign="its turn is over")
    if signs.active is False:
        return Judgement(activity=Activity.IDLE, sign="its team's file says that it is not active")
    if signs.status == "idle":
        return Judgement(activity=Activity.IDLE, sign="its session is idle")
    return None


def _in_turn(signs: Signs) -> bool:
    return signs.turn is not None and signs.turn.phase in (Phase.MODEL, Phase.TOOL)


def _busy(signs: Signs) -> str | None:
    """The sign that a turn is under way, or None."""
    turn = signs.turn
    if turn is not None and turn.phase is Phase.TOOL:
        return f"it uses {', '.join(turn.tools)}"
    if turn is not None and turn.phase is Phase.MODEL:
        return "it waits for its model"
    if signs.active is True:
        return "its team's file says that it is active"
    if signs.status == "busy":
        return "its session is busy"
    return None


def _is_quota(error: str | None, status: int | None) -> bool:
    """Whether the client goes on by itself when a limit resets, the server is free again, or a person has logged in."""
    return error in WAITS_AFTER_FAILURE or status in WAITS_FOR_QUOTA_STATUS


def _error(turn: Turn) -> str:
    return " ".join(str(part) for part in (turn.error, turn.status) if part is not None) or "an API error"


def _has_background(payload: Mapping[str, object]) -> bool:
    """Whether work is under way that will wake the agent. A lead lists its living teammates there, too."""
    tasks = payload.get("background_tasks")
    own = (
        [task for task in tasks if not (isinstance(task, Mapping) and task.get("type") == "teammate")]
        if isinstance(tasks, list)
        else []
    )
    return bool(own or payload.get("session_crons"))
