"""Actions on agents: register, record a death, terminate, forget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from yolo_supervisor.actions.base import NO_EVIDENCE, Action, Edit, Kind, Note, RemoveFile, Verb
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.crash_report import Report
from yolo_supervisor.formats.launch import Launch
from yolo_supervisor.models import Agent, ProcessId


@dataclass(frozen=True, kw_only=True)
class Register(Edit):
    """Begin to watch an agent."""

    kind: Kind = "agent"
    verb: Verb = "registered"
    agent: Agent

    def holds(self, before: bytes | None) -> bool:
        return before is None or own_files.load_agent(before) is None

    def edit(self, before: bytes | None) -> bytes | None:
        return own_files.dump_agent(self.agent)


@dataclass(frozen=True, kw_only=True)
class UpdateRecord(Edit):
    """Write down what is known better of an agent: its name, its sessions, its task lists."""

    kind: Kind = "agent"
    verb: Verb = "updated"
    agent: Agent

    def holds(self, before: bytes | None) -> bool:
        recorded = own_files.load_agent(before) if before is not None else None
        return recorded is not None and recorded.process == self.agent.process and recorded != self.agent

    def edit(self, before: bytes | None) -> bytes | None:
        return own_files.dump_agent(self.agent)


@dataclass(frozen=True, kw_only=True)
class WriteCrashReport(Action):
    """Write the crash report of an agent. The journal mentions it in the entry of the death."""

    kind: Kind = "agent"
    verb: Verb = "crash_reported"
    report: Report


@dataclass(frozen=True, kw_only=True)
class SaveWork(Action):
    """Copy the uncommitted work of a dead agent to a rescue ref, before the agent is started again."""

    distinct_by: ClassVar[tuple[str, ...]] = ("record",)
    kind: Kind = "agent"
    verb: Verb = "work_saved"
    name: str
    """The agent's name, for the name of the ref."""
    record: str
    """The name of the agent's record."""
    folder: Path
    shared_with: tuple[str, ...] = ()
    """The living agents in the same work tree: some of the changes may be theirs."""


@dataclass(frozen=True, kw_only=True)
class PaneDied(Note):
    """Record how the process in an agent's pane ended, as tmux reports it."""

    distinct_by: ClassVar[tuple[str, ...]] = ("agent", "pane")
    kind: Kind = "session"
    verb: Verb = "died"
    agent: str
    pane: str


@dataclass(frozen=True, kw_only=True)
class ShowMessage(Note):
    """Show the reason to a person at a tmux client, once as long as it is decided again."""

    distinct_by: ClassVar[tuple[str, ...]] = ("socket", "client", "about")
    kind: Kind = "session"
    verb: Verb = "announced"
    durable: bool = False
    socket: str
    client: str
    """The client's terminal."""
    about: str
    """The subject, ``countdown`` or ``ended``: two messages to one client."""
    agents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Terminate(Action):
    """End the roots and their process trees: SIGTERM, and SIGKILL after the grace period."""

    distinct_by: ClassVar[tuple[str, ...]] = ("roots",)
    kind: Kind = "agent"
    verb: Verb = "terminated"
    roots: tuple[ProcessId, ...]
    grace_s: float
    sessions: tuple[int, ...] = ()
    """Sessions in which everything is to be ended, also what is started meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Restart(Action):
    """Start a dead agent's client again, with its conversation."""

    distinct_by: ClassVar[tuple[str, ...]] = ("record", "attempt")
    kind: Kind = "agent"
    verb: Verb = "restarted"
    agent: Agent
    record: str
    """The name of its record."""
    attempt: int
    launch: Launch
    note: str
    """The prompt with which the agent goes on."""
    fresh: bool = False
    """Whether it begins with an empty conversation."""


@dataclass(frozen=True, kw_only=True)
class Died(Note):
    """Record that an agent's process is proven to be gone. A successor with the same id dies apart."""

    distinct_by: ClassVar[tuple[str, ...]] = ("process",)
    kind: Kind = "agent"
    verb: Verb = "died"
    durable: bool = False
    process: ProcessId | None = None


def forget(*, key: str, path: Path, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE) -> RemoveFile:
    """Stop watching an agent. It is the last step: the agent's record is the evidence that work remains."""
    return RemoveFile(kind="agent", verb="forgotten", key=key, path=path, reason=reason, evidence=evidence)


def resumed(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that the model of an agent that was started again has answered."""
    return Note(kind="agent", verb="resumed", key=key, reason=reason, evidence=evidence)


def restart_given_up(*, key: str, reason: str, evidence: Mapping[str, Any]) -> Note:
    """Record that a dead agent is not started again by itself: a person is needed."""
    return Note(kind="agent", verb="restart_given_up", key=key, reason=reason, evidence=evidence)


def held(*, key: str, reason: str) -> Note:
    """Record that a person wants no start of the agent."""
    return Note(kind="agent", verb="held", key=key, reason=reason)


def restart_reset(*, key: str, reason: str) -> Note:
    """Record that the starts of the agent so far, and a hold, do not count any more."""
    return Note(kind="agent", verb="restart_reset", key=key, reason=reason)
