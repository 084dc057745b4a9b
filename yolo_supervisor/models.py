"""Plain frozen facts that the packages exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple

RestoredFrom = Literal["good_version", "snapshot", "rebuilt", "lease", "itself"]
"""The source of a broken file's new content; ``lease`` means that an unreadable lease is removed."""


class FlawCode(StrEnum):
    """The kind of damage of a critical file."""

    HALF_WRITTEN = "half_written"
    """The last line of a ``.jsonl`` is incomplete."""
    LINES_GONE = "lines_gone"
    """A ``.jsonl`` that had lines has none."""
    EMPTY = "empty"
    ONLY_ZEROS = "only_zeros"
    HAS_ZEROS = "has_zeros"
    NOT_TEXT = "not_text"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_STATUS = "no_status"
    PLANS_NOT_A_LIST = "plans_not_a_list"
    BYTE_ORDER_MARK = "byte_order_mark"
    NOT_UTF8 = "not_utf8"
    LONE_SURROGATE = "lone_surrogate"
    DUPLICATE_KEY = "duplicate_key"
    NOT_A_NUMBER = "not_a_number"
    TOO_DEEP = "too_deep"
    UNMERGED = "unmerged"
    """Git has left a merge conflict in it."""


class Liveness(StrEnum):
    """The answers of a probe. UNKNOWN is never treated as DEAD: nothing is done."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, order=True, slots=True)
class ProcessId:
    """A process identity. Unlike a bare pid it is never reused.

    ``started`` is field 22 of ``/proc/PID/stat`` (clock ticks since boot; elsewhere the start time in hundredths
    of a second). ``boot`` names the machine, boot and pid namespace in which pid and ticks are comparable.
    """

    pid: int
    started: int
    boot: str


class LockStamp(NamedTuple):
    """One lock file. A later one may get the same inode, but not with the same time of its last change."""

    device: int
    inode: int
    changed_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenLock:
    """The processes that were seen with a lock file."""

    stamp: LockStamp
    holders: tuple[ProcessId, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pane:
    """The tmux pane of an agent, by its environment (``TMUX``, ``TMUX_PANE``)."""

    socket: str
    server_pid: int
    pane: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Agent:
    """One coding agent from any source.

    ``team`` names the task list it works on. ``process`` is None if no identity could be proven: then ``pid`` is
    only a number in a file, and never gets a signal. An in-process teammate has neither, and lives as long as its
    ``lead``.
    """

    id: str
    name: str
    role: str
    team: str | None
    source: str
    since: datetime
    process: ProcessId | None = None
    pid: int | None = None
    pane: Pane | None = None
    lead: str | None = None
    session: str | None = None
    claude_dir: Path | None = None
    lists: tuple[str, ...] = ()
    """The names of further task lists that evidence has ever tied it to: of earlier sessions, of its environment."""
    aliases: tuple[str, ...] = ()
    """Further names that a task may use for it: a session that has founded a team is its ``team-lead``, too."""
    hosted: bool = False
    """Whether the client's own daemon runs it (``claude --bg``), and resumes it after a crash."""
    home: int | None = field(default=None, compare=False)
    """The inode of the folder in which its record was written, since a copied project contains copies of records."""

    def bears(self, owner: str | None) -> bool:
        """Whether this owner of a task, plan or lease is the agent, by one of its names or by its id."""
        return owner in (self.name, self.id, *self.aliases)

    @property
    def is_session(self) -> bool:
        """Whether it is a session that a person started: a lead, or one that works alone. Its tasks name no owner."""
        return self.lead is None and self.role == "lead"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task as it is in its file. ``list`` is the folder's name, or ``execution-state``."""

    list: str
    number: str
    status: str
    owner: str | None
    path: Path
    subject: str = ""
    blocked_by: tuple[str, ...] = ()
    """The numbers of the tasks in its list that must be finished before it."""

    @property
    def id(self) -> str:
        return f"{self.list}/{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A lease on a resource in the plugin's ``.locks/``.

    ``expires_at`` is None for a lock without a time limit.
    """

    resource: str
    owner: str
    path: Path
    expires_at: datetime | None
    ttl_s: float = 0.0


def iso(moment: datetime) -> str:
    """The moment as ISO 8601 in UTC with ``Z``, to the microsecond, as in all our JSON."""
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # the first or last day of the calendar: the zone does not matter
        moment = moment.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_iso(text: str) -> datetime:
    """The time of an ISO 8601 text, UTC if it names no zone. ValueError if it is no time."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
