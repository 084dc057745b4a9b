"""How an agent was started, and the command line that starts it again.

A command line may hold secrets, so it is not copied into the journal, a report or a notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from yolo_supervisor.formats.launch_fields import (
    a_flag,
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
class Launch:
    """How an agent was started. Bytes that are no UTF-8 are lone surrogates in the texts, as by ``os.fsdecode``."""

    agent: str
    """The agent's id."""
    name: str
    session: str | None
    """The client's id of its conversation."""
    argv: tuple[str, ...]
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables of ``ENVIRONMENT`` that it had."""
    absent: tuple[str, ...] = ()
    """The variables of ``ENVIRONMENT`` that it did not have: a tmux server may give them to a successor."""
    claude_dir: str | None = None
    mode: str | None = None
    """Its last known permission mode."""
    tmux_session: str | None = None
    """The name of its tmux session."""
    window: str | None = None
    """The name of its tmux window."""
    headless: bool = False
    """Whether it answers one prompt and ends (``--print``)."""


def dump_launch(launch: Launch) -> bytes:
    return dump_document(
        {
            "agent": launch.agent,
            "name": launch.name,
            "session": launch.session,
            "argv": list(launch.argv),
            "folder": launch.folder,
            "environment": dict(sorted(launch.environment.items())),
            "absent": list(launch.absent),
            "claude_dir": launch.claude_dir,
            "mode": launch.mode,
            "tmux_session": launch.tmux_session,
            "window": launch.window,
            "headless": launch.headless,
        }
    )


def load_launch(data: bytes) -> Launch | None:
    """The launch of a document; None if anything in it is not as ``dump_launch`` writes it."""
    try:
        raw = load_document(data)
        return Launch(
            agent=a_text(raw["agent"]),
            name=a_text(raw["name"]),
            session=a_session(raw["session"]) if raw["session"] is not None else None,
            argv=all_texts(raw["argv"], empty=True),
            folder=a_path(raw["folder"]),
            environment=all_variables(raw["environment"]),
            absent=all_names(raw["absent"]),
            claude_dir=a_path(raw["claude_dir"]) if raw["claude_dir"] is not None else None,
            mode=a_text_or_none(raw["mode"]),
            tmux_session=a_text_or_none(raw["tmux_session"]),
            window=a_text_or_none(raw["window"]),
            headless=a_flag(raw["headless"]),
        )
    except (KeyError, ValueError):
        return None


class LaunchCode(StrEnum):
    """The reason why an agent cannot be started again."""

    NO_PROGRAM = "no_program"
    """Its command line is empty, or it was overwritten."""
    NO_SESSION = "no_session"
    """Its session is not known."""
    AMBIGUOUS = "ambiguous"
    """An unknown option is followed by a word that may be its value or a prompt."""
    NOT_SAVED = "not_saved"
    """It does not save its conversation."""
    NO_NOTE = "no_note"
    """It is headless, and ends without a prompt."""
    DRIVEN = "driven"
    """Another program drives it through its standard input."""


@dataclass(frozen=True, slots=True)
class LaunchProblem:
    """Decisions compare ``code``; ``text`` is for people and the journal."""

    code: LaunchCode
    text: str


def resume_argv(launch: Launch, note: str | None, fresh: bool = False) -> tuple[str, ...] | LaunchProblem:
    """The command line that resumes the conversation with ``note`` as the next prompt, or begins one (``fresh``)."""
    raise NotImplementedError
