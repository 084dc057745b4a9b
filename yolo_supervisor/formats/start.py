"""The document with which the launcher starts an agent again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from yolo_supervisor.formats.launch_fields import (
    a_path,
    a_session,
    a_text,
    a_text_or_none,
    all_names,
    all_texts,
    all_variables,
    dump_document,
    load_document,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What the launcher needs: the program, and the session of which no process may live."""

    argv: tuple[str, ...]
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Variables that are removed from the launcher's environment."""
    session: str
    agent: str
    """The agent's id, as in ``--agent-id``."""
    team: str | None = None
    homes: tuple[str, ...] = ()
    """The folders of the client's state in which the session may be."""
    lock: str
    """The path of the session's lock."""
    pane: str | None = None
    """The tmux pane that the launcher must find itself in; None for any."""


def dump_start(start: Start) -> bytes:
    return dump_document(
        {
            "argv": list(start.argv),
            "folder": start.folder,
            "environment": dict(sorted(start.environment.items())),
            "absent": list(start.absent),
            "session": start.session,
            "agent": start.agent,
            "team": start.team,
            "homes": list(start.homes),
            "lock": start.lock,
            "pane": start.pane,
        }
    )


def load_start(data: bytes) -> Start | None:
    """The start of a document; None if anything in it is not as ``dump_start`` writes it."""
    try:
        raw = load_document(data)
        argv = all_texts(raw["argv"], empty=True)
        if not argv or not argv[0]:
            return None
        return Start(
            argv=argv,
            folder=a_path(raw["folder"]),
            environment=all_variables(raw["environment"]),
            absent=all_names(raw["absent"]),
            session=a_session(raw["session"]),
            agent=a_text(raw["agent"]),
            team=a_text_or_none(raw["team"]),
            homes=tuple(a_path(home) for home in all_texts(raw["homes"])),
            lock=a_path(raw["lock"]),
            pane=a_text_or_none(raw["pane"]),
        )
    except (KeyError, ValueError):
        return None
