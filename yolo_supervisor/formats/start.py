"""The document with which the launcher starts an agent again. The launcher imports this module: it imports little."""

from __future__ import annotations

from typing import NamedTuple

from yolo_supervisor.formats.launch_fields import (
    a_flag,
    a_number,
    a_path,
    a_text,
    a_text_or_none,
    all_names,
    all_texts,
    all_variables,
    dump_document,
    load_document,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Start(NamedTuple):
    """What the launcher needs: the program, and the session of which no process may live."""

    argv: tuple[str, ...]
    folder: str
    session: str
    """The client's id of the session; of an agent without one, its own id."""
    agent: str
    """The agent's id, as in ``--agent-id``."""
    lock: str
    """The path of the session's lock."""
    team: str | None = None
    homes: tuple[str, ...] = ()
    """The folders of the client's state in which the session may be."""
    environment: Mapping[str, str] = {}  # it is never changed
    absent: tuple[str, ...] = ()
    """Variables that are removed from the launcher's environment."""
    pane: str | None = None
    """The tmux pane that the launcher must find itself in; None for any."""
    program: int = 1
    """The number of words in ``argv`` that name the program."""
    script: str | None = None
    """The path among them that an interpreter runs."""
    is_client: bool = False
    """Whether the program is Claude Code: if it is gone, ``claude`` on the PATH takes its place."""


def dump_start(start: Start) -> bytes:
    return dump_document({**start._asdict(), "environment": dict(sorted(start.environment.items()))})


def load_start(data: bytes) -> Start | None:
    """The start of a document; None if anything in it is not as ``dump_start`` writes it."""
    try:
        raw = load_document(data)
        argv, program = all_texts(raw["argv"], empty=True), a_number(raw["program"])
        if not argv or not argv[0] or not 1 <= program <= len(argv):
            return None
        return Start(
            argv=argv,
            folder=a_path(raw["folder"]),
            session=a_text(raw["session"]),
            agent=a_text(raw["agent"]),
            lock=a_path(raw["lock"]),
            team=a_text_or_none(raw["team"]),
            homes=tuple(map(a_path, all_texts(raw["homes"]))),
            environment=all_variables(raw["environment"]),
            absent=all_names(raw["absent"]),
            pane=a_text_or_none(raw["pane"]),
            program=program,
            script=a_text_or_none(raw["script"]),
            is_client=a_flag(raw["is_client"]),
        )
    except (KeyError, ValueError):
        return None
