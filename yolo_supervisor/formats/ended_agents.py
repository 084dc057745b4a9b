"""A dead agent as it is remembered after its recovery, so that a person can start it again.

It contains how the agent was started, which may be secret: the file is private, and nothing of it is in the journal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.launch import Launch, dump_launch, load_launch
from yolo_supervisor.formats.launch_fields import SIZE_LIMIT
from yolo_supervisor.models import Agent, from_iso

LIMIT = SIZE_LIMIT + 2**16
"""The largest file, in bytes."""

TASKS = 20
"""The number of tasks that are remembered."""


class End(StrEnum):
    """The kind of an agent's end."""

    REBOOT = "reboot"
    """The machine was rebooted."""
    TMUX_SERVER = "tmux_server"
    """Its tmux server has ended."""
    SUPERVISOR = "supervisor"
    """The supervisor has ended it, by policy or by hand."""
    PERSON = "person"
    """A person has ended its session in the client."""
    OTHER = "other"

    @property
    def interrupted(self) -> bool:
        """Whether it went down with the machine or its tmux server, so that a person may want it back."""
        return self in (End.REBOOT, End.TMUX_SERVER)


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedAgent:
    record: str
    """The name of its record while it was known."""
    agent: Agent
    launch: Launch | None
    """How it was started; None if that is not known."""
    at: str
    """The time of its death, as far as it is known."""
    end: End
    why: str
    """The cause of its death, for people."""
    tasks: tuple[tuple[str, str], ...] = ()
    """Its tasks in progress at its death: ids and subjects."""


def dump(ended: EndedAgent) -> bytes:
    value = {
        "version": 1,
        "record": ended.record,
        "agent": json.loads(own_files.dump_agent(ended.agent)),
        "launch": json.loads(dump_launch(ended.launch)) if ended.launch is not None else None,
        "at": ended.at,
        "end": str(ended.end),
        "why": ended.why,
        "tasks": [list(task) for task in ended.tasks],
    }
    return json.dumps(value, indent=2).encode() + b"\n"


def load(data: bytes) -> EndedAgent | None:
    """The agent of a file; None if it cannot be read: then it cannot be started by its name."""
    raw = load_object(data)
    try:
        if raw is None or raw["version"] != 1:
            return None
        agent = own_files.load_agent(json.dumps(raw["agent"]).encode())
        launch = load_launch(json.dumps(raw["launch"]).encode()) if raw["launch"] is not None else None
        record, at, why = raw["record"], raw["at"], raw["why"]
        tasks = tuple((str(task), str(subject)) for task, subject in raw["tasks"])
        if agent is None or not isinstance(record, str) or not isinstance(why, str):
            return None
        from_iso(at)
        return EndedAgent(
            record=record, agent=agent, launch=launch, at=at, end=End(raw["end"]), why=why, tasks=tasks[:TASKS]
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
