"""Actions on agents: register, report a death, terminate, forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from yolo_supervisor.actions.base import Action, Edit, Kind, Note, Remove
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.crash_report import Report
from yolo_supervisor.models import Agent, ProcessId

# -- agents -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Register(Edit):
    """Begin to watch an agent."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "registered"
    agent: Agent

    def holds(self, before: bytes | None) -> bool:
        return before is None or own_files.load_agent(before) is None

    def edit(self, before: bytes | None) -> bytes | None:
        return own_files.dump_agent(self.agent)


@dataclass(frozen=True, kw_only=True)
class Died(Note):
    """An agent's process is proven to be over."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "died"
    durable: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class WriteCrashReport(Action):
    """Write the crash report of an agent. The journal mentions it in the entry of the death."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "crash_reported"
    report: Report


@dataclass(frozen=True, kw_only=True)
class PaneDied(Note):
    """tmux tells how the process in an agent's pane ended."""

    kind: ClassVar[Kind] = "session"
    verb: ClassVar[str] = "died"
    distinct_by: ClassVar[tuple[str, ...]] = ("agent", "pane")
    agent: str
    pane: str


@dataclass(frozen=True, kw_only=True)
class Forget(Remove):
    """End the watch over an agent: the last step, its record is the proof that something is left to do."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "forgotten"


@dataclass(frozen=True, kw_only=True)
class Terminate(Action):
    """Ask the roots and all that is in their trees to leave, and kill what stays after the grace period."""

    kind: ClassVar[Kind] = "agent"
    verb: ClassVar[str] = "terminated"
    distinct_by: ClassVar[tuple[str, ...]] = ("roots",)
    roots: tuple[ProcessId, ...]
    grace_s: float
