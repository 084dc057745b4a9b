"""Claude Code's files and command lines, as version 2.1.197 writes them.

None of them is a published interface: everything is parsed leniently, unknown keys survive a rewrite, and what cannot
be read is unknown, never empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.formats.json import load_object, same_path, text_or_none
from yolo_supervisor.models import Task

TASK_LIST_VARIABLE = "CLAUDE_CODE_TASK_LIST_ID"
"""The environment variable that names a client's task list, whatever its session or team."""

CLIENT_VARIABLES = ("CLAUDE_PID", "CLAUDE_CODE_SESSION_ID")
"""The variables that name the client in the environment of its hooks and tools: its pid and its session."""

LOCK_STALE_S = 10.0
"""A ``<path>.lock`` folder whose holder has not refreshed it for this long is abandoned (proper-lockfile)."""


def config_dir(environment: Mapping[str, str]) -> Path | None:
    """The state folder of a client with this environment.

    None if the environment names neither it nor a home.
    """
    if folder := environment.get("CLAUDE_CONFIG_DIR"):
        return same_path(folder)
    home = environment.get("HOME")
    return same_path(f"{home.rstrip('/')}/.claude") if home else None


# -- command lines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Flags:
    """The options on a teammate's command line that identify it."""

    agent_id: str
    name: str
    team: str
    role: str | None
    parent: str | None = None
    """The session that has started it."""
    session: str | None = None
    """The session that it resumes; a new teammate's is not on its command line."""


def flags(argv: Sequence[str]) -> Flags | None:
    """The teammate's options on a command line; None if the process is no teammate."""
    options = {key: value for key, value in zip(argv, argv[1:], strict=False) if key.startswith("--") and value}
    agent_id, team = options.get("--agent-id"), options.get("--team-name")
    if not agent_id or not team:
        return None
    name = options.get("--agent-name") or agent_id.partition("@")[0]
    session = options.get("--resume") or options.get("--session-id")
    return Flags(agent_id, name, team, options.get("--agent-type"), options.get("--parent-session-id"), session)


def looks_like_agent(argv: Sequence[str], executable: str) -> bool:
    """Whether the process is a coding agent by its command line or executable.

    Newer clients run as binaries named by their version under ``…/claude/versions/``.
    """
    if flags(argv):
        return True
    interpreted = argv[1:2] if argv and Path(argv[0]).name in ("node", "bun") else []
    names = [executable, *argv[:1], *interpreted]
    return any(map(is_client_name, names)) and not is_client_daemon(argv)


def is_client_daemon(argv: Sequence[str]) -> bool:
    """Whether the process is the client's own daemon, or the host of a terminal of it.

    The daemon of 2.1.332 runs the sessions of ``claude --bg``, and resumes those that crash.
    """
    rest = argv[2:] if argv and Path(argv[0]).name in ("node", "bun") else argv[1:]
    command = next(iter(rest), "")
    return command in ("daemon", "bg-pty-host") and any(map(is_client_name, argv[:2]))


def is_client_name(name: str) -> bool:
    """Whether a program or script with this name or path is Claude Code."""
    return Path(name).name == "claude" or "/claude/versions/" in name or "claude-code/" in name


# -- sessions/<pid>.json ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    pid: int
    session_id: str
    cwd: str
    started: str
    """Start time in clock ticks since boot on Linux, ``lstart`` text on macOS."""
    name: str | None
    status: str | None
    waiting_for: str | None = None
    """The reason why it waits: ``permission prompt`` or ``input needed``."""
    hosted: bool = False
    """Whether the client's own daemon runs it (``claude --bg``)."""
    pid_domain: str | None = None
    """The machine and the pid namespace in which ``pid`` counts (2.1.332)."""


def session(data: bytes) -> Session | None:
    """The session of a ``sessions/<pid>.json``; None if its pid, id, folder or start is missing."""
    raw = load_object(data)
    if raw is None:
        return None
    pid, started = raw.get("pid"), raw.get("procStart")
    session_id, cwd = text_or_none(raw.get("sessionId")), text_or_none(raw.get("cwd"))
    if type(pid) is not int or pid <= 1 or not session_id or not cwd or not isinstance(started, str | int):
        return None
    return Session(
        pid,
        session_id,
        cwd,
        str(started),
        text_or_none(raw.get("name")),
        text_or_none(raw.get("status")),
        waiting_for=text_or_none(raw.get("waitingFor")),
        hosted=raw.get("kind") == "bg",
        pid_domain=text_or_none(raw.get("pidDomain")),
    )


def daemon_process(data: bytes) -> tuple[int, str] | None:
    """The pid and the start time of the client's own daemon, from a ``daemon.lock``; None if it names none."""
    return _process(load_object(data))


def team_of_session(session_id: str) -> str:
    """The name of the team that the session leads, and of the team's task list."""
    return f"session-{session_id[:8]}"


# -- teams/<team>/config.json (read only: the client rewrites it at any time) -----------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    agent_id: str
    name: str
    role: str | None
    cwd: str | None
    pane: str | None
    backend: str | None
    active: bool | None = None
    """``isActive``: False at the end of a turn. True says nothing once its process is gone."""
    joined_at: datetime | None = None

    @property
    def in_process(self) -> bool:
        """Whether the member runs inside its lead's process.

        It is also true of the lead, which is no teammate.
        """
        return self.backend == "in-process" or self.pane in ("in-process", "")


@dataclass(frozen=True, slots=True)
class Team:
    name: str
    lead_id: str | None
    lead_session: str | None
    members: tuple[Member, ...]
    lead_process: tuple[int, str] | None = None
    """The pid and the start time of the lead's process (2.1.332)."""
    lead_space: str | None = None
    """The host and the pid namespace in which that pid counts: ``host#pid:[4026531836]``."""

    @property
    def mates(self) -> tuple[Member, ...]:
        """The teammates inside the lead's process."""
        return tuple(member for member in self.members if member.in_process and member.agent_id != self.lead_id)


def team(data: bytes, name: str) -> Team | None:
    """The team of a ``config.json`` in the folder ``name``, without members that lack an id."""
    raw = load_object(data)
    if raw is None:
        return None
    listed, lead = raw.get("members"), raw.get("leadProcess")
    members = [
        Member(
            agent_id,
            text_or_none(m.get("name")) or agent_id.partition("@")[0],
            text_or_none(m.get("agentType")),
            text_or_none(m.get("cwd")),
            m.get("tmuxPaneId") if isinstance(m.get("tmuxPaneId"), str) else None,
            text_or_none(m.get("backendType")),
            m["isActive"] if isinstance(m.get("isActive"), bool) else None,
            _from_ms(m.get("joinedAt")),
        )
        for m in (listed if isinstance(listed, list) else ())
        if isinstance(m, dict) and (agent_id := text_or_none(m.get("agentId")))
    ]
    return Team(
        name,
        text_or_none(raw.get("leadAgentId")),
        text_or_none(raw.get("leadSessionId")),
        tuple(members),
        lead_process=_process(lead),
        lead_space=text_or_none(lead.get("pidSpace")) if isinstance(lead, dict) else None,
    )


def _from_ms(value: object) -> datetime | None:
    """The time that is so many milliseconds after the epoch; None if it is no number, or of no year."""
    try:
        return datetime.fromtimestamp(value / 1000, UTC) if isinstance(value, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def _process(raw: object) -> tuple[int, str] | None:
    """The pid and the start time in an object of the client's."""
    pid, started = (raw.get("pid"), raw.get("procStart")) if isinstance(raw, dict) else (None, None)
    return (pid, str(started)) if type(pid) is int and pid > 1 and isinstance(started, str | int) else None


# -- tasks/<list>/<n>.json --------------------------------------------------------------------------------------

_TASK_FILE = re.compile(r"[0-9A-Za-z_-]+\.json")


def is_task_file(name: str) -> bool:
    """Whether a file in a task folder is a task (not ``.lock``, for instance, or temporary)."""
    return _TASK_FILE.fullmatch(name) is not None


def is_task_path(path: Path) -> bool:
    """Whether the path is that of a task file of Claude Code."""
    return path.parent.parent.name == "tasks" and is_task_file(path.name)


def task(data: bytes, list_name: str, path: Path) -> Task | None:
    """The task in a file of the list.

    None if it cannot be read, half written for instance, or has no status.
    """
    raw = load_object(data)
    if raw is None or not isinstance(raw.get("status"), str):
        return None
    blockers = raw.get("blockedBy")
    return Task(
        list=list_name,
        number=path.stem,
        status=raw["status"],
        owner=text_or_none(raw.get("owner")),
        path=path,
        subject=text_or_none(raw.get("subject")) or "",
        blocked_by=tuple(number for number in blockers if isinstance(number, str))
        if isinstance(blockers, list)
        else (),
    )
