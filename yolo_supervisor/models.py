"""What the rooms hand to each other: plain frozen facts, no behaviour beyond naming them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

RestoredFrom = Literal["good_version", "snapshot", "rebuilt", "lease"]
"""Where the new content of a broken file comes from: ``lease`` removes a lease that cannot be read."""


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


class Liveness(StrEnum):
    """What a probe may answer. UNKNOWN is never read as DEAD: it makes us do nothing."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, order=True, slots=True)
class ProcessId:
    """One process, for ever: a bare pid gets reused, this does not.

    ``started`` is field 22 of ``/proc/PID/stat`` (clock ticks since boot; elsewhere the start time in hundredths
    of a second). ``boot`` names the world in which pid and ticks mean something: machine, boot and pid namespace.
    """

    pid: int
    started: int
    boot: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pane:
    """Where in tmux an agent lives, as its own environment tells (``TMUX``, ``TMUX_PANE``)."""

    socket: str
    server_pid: int
    pane: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Agent:
    """One coding agent, however it was found.

    ``team`` names the task list it works on. ``process`` is None where no identity could be proven: then ``pid`` is
    only a number somebody wrote down, and nothing is ever sent to it. An in-process teammate has neither; its life
    is that of ``lead``.
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
    home: int | None = field(default=None, compare=False)
    """The inode of the folder that its record was made in: a copied project has other records' copies in it."""

    def bears(self, owner: str | None) -> bool:
        """Whether a task, plan or lease with this owner names the agent: by its short name, or by its id."""
        return owner in (self.name, self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task as its file tells it: ``list`` is the folder's name, or ``execution-state``."""

    list: str
    number: str
    status: str
    owner: str | None
    path: Path
    subject: str = ""
    blocked_by: tuple[str, ...] = ()
    """The numbers of the tasks in its list that have to be finished before."""

    @property
    def id(self) -> str:
        return f"{self.list}/{self.number}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A claim on a resource in the plugin's ``.locks/``; ``expires_at`` is None for a lock without a time limit."""

    resource: str
    owner: str
    path: Path
    expires_at: datetime | None
    ttl_s: float = 0.0


def iso(moment: datetime) -> str:
    """The moment as ISO 8601 in UTC with ``Z``, to the microsecond, as all our JSON tells times."""
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # the first or last day there is: nobody minds the zone
        moment = moment.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_iso(text: str) -> datetime:
    """The moment that ``iso`` or a neighbour wrote; ValueError if it is no time. One without a zone is UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
