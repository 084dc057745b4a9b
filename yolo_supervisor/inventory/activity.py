"""Collects the signs by which an agent is known to be at work, idle or waiting (``policy.activity``). Read-only.

Each reading has the signs of one moment and a trace: a value that differs whenever an agent has done something since.
What the signs are worth is said in docs/who-is-at-work.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.formats import claude
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.turns import Phase, Turn
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory import work_trees
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.project_snapshot import LiveSession, ProjectSnapshot, lists_of_session
from yolo_supervisor.inventory.session_files import SessionFile
from yolo_supervisor.inventory.transcripts import Transcripts, Version, version
from yolo_supervisor.models import Agent, Liveness, ProcessId, Task
from yolo_supervisor.policy.activity import Signs
from yolo_supervisor.policy.waiting import IDLE_PROMPT
from yolo_supervisor.store.paths import Paths

Trace = tuple[object, ...]

PERMISSION = "permission prompt"
"""``waitingFor`` of a session that shows a request for a permission, by itself or by a teammate."""

SILENT_EVENTS = ("TaskCompleted", "TeammateIdle")
"""Hook events that follow the end of each turn, whether its work is done or goes on in the background."""

EMPTY_INBOX = 3
"""The size of an inbox without messages, in bytes: its owner has emptied it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The signs of one agent at one moment, and the trace of its work."""

    signs: Signs
    trace: Trace


class ActivityReader:
    """Reads the signs of the agents of one project."""

    def __init__(self, paths: Paths, folders: ProjectFolders, scanner: ProcessScanner) -> None:
        self._paths = paths
        self._folders = folders
        self._scanner = scanner
        self._transcripts = Transcripts()
        self._of_files: dict[Path, Trace] = {}
        """The traces of sessions whose process cannot be seen, by the session's file, in this look."""

    def renew(self) -> None:
        """Begin a new look."""
        self._transcripts.renew()
        self._of_files.clear()

    def read(self, agent: Agent, liveness: Liveness, snapshot: ProjectSnapshot) -> Reading:
        """The signs of an agent that is known, dead or alive."""
        is_mate = agent.source == "team"
        paths = self._paths_of(agent, snapshot)
        turn = self._turn(paths, of_mate=is_mate)
        active = None if is_mate else _is_active(agent, snapshot)
        status = None if is_mate else snapshot.session_status(agent)
        team = next((team for team in snapshot.teams if snapshot.is_lead(agent, team)), None)
        leads = team is not None and len(team.members) > 1
        note, note_at, written = self._newest_note(agent, snapshot)
        tools = tuple(self._tools(agent)) if not is_mate else ()
        signs = Signs(
            liveness=liveness,
            suspended=self._is_stopped(agent),
            turn=turn,
            active=active,
            status=status,
            leads=leads,
            mates_work=team is not None and self._mates_work(agent, team, snapshot),
            event=note.event if note else None,
            event_at=note_at,
            payload=note.payload if note else {},
            tool_runs=bool(tools),
            asks_lead=_asks_lead(agent, snapshot),
        )
        tree = self._work_tree(agent, snapshot)
        reported = active, None if leads else status, signs.suspended, signs.asks_lead, signs.mates_work
        trace = (turn, *map(self._versions, paths), *reported, written, tools, tree)
        return Reading(signs=signs, trace=trace)

    def turn_under_way(self, agent: Agent, snapshot: ProjectSnapshot) -> bool:
        """Whether a lead or session is in a turn: by its transcript, and if there is none, by its status."""
        turn = self._turn(self._paths_of(agent, snapshot))
        if turn is not None:
            return turn.phase in (Phase.MODEL, Phase.TOOL)
        return snapshot.session_status(agent) == "busy"

    def trace_of_unknown(self, task: Task, snapshot: ProjectSnapshot) -> Trace:
        """The trace of every agent that may own the task although none is known: it may run where we cannot see it."""
        return (
            tuple(self._versions_by_name(task, snapshot)),
            tuple(self._members(task, snapshot)),
            tuple(self._trees_of_members(task, snapshot)),
            tuple(self._unseen_sessions(task, snapshot)),
            tuple(self._emptied_inboxes(task, snapshot)),
        )

    # -- transcripts -------------------------------------------------------------------------------------------------

    def _turn(self, paths: Sequence[Path], *, of_mate: bool = False) -> Turn | None:
        """The turn in the transcript that is being written; if that is not known, one that is under way in any."""
        current = self._transcripts.current(paths)
        turns = [self._transcripts.turn(path, of_mate=of_mate) for path in ([current] if current else paths)]
        known = [turn for turn in turns if turn is not None]
        return next((turn for turn in known if turn.phase in (Phase.MODEL, Phase.TOOL)), next(iter(known), None))

    def _paths_of(self, agent: Agent, snapshot: ProjectSnapshot) -> tuple[Path, ...]:
        """The transcripts that may be the agent's."""
        homes = (agent.claude_dir, *snapshot.homes) if agent.claude_dir else snapshot.homes
        seen = self._scanner.agents.get(agent.process) if agent.process else None
        live = _live_session(agent, snapshot)
        folders = [*([seen.folder] if seen else []), *([Path(live.session.cwd)] if live else []), *self._folders.roots]
        if agent.source == "team":
            lead = live.session.session_id if live else None
            path = self._transcripts.of_session(lead, homes, folders) if lead else None
            own = self._transcripts.of_mate(path, agent.name) if path else None
            return (own,) if own else ()
        session = live.session.session_id if live else agent.session
        if session is not None:
            path = self._transcripts.of_session(session, homes, folders)
            return (path,) if path else ()
        return self._transcripts.of_teammate(agent.name, agent.team, homes, folders) if agent.team else ()

    def _versions(self, path: Path) -> tuple[Version | None, Version | None]:
        """The versions of a transcript and of the newest one of its subagents."""
        subagents = self._transcripts.subagents(path)
        return version(path), version(subagents[0]) if subagents else None

    def _versions_by_name(self, task: Task, snapshot: ProjectSnapshot) -> Iterator[Version | None]:
        folders = [*self._folders.roots, *(Path(cwd) for cwd in _cwds(task, snapshot))]
        if task.owner:
            yield from map(version, self._transcripts.of_teammate(task.owner, task.list, snapshot.homes, folders))
        if path := self._transcripts.of_session(task.list, snapshot.homes, folders):
            yield from self._versions(path)

    # -- the client's other files ------------------------------------------------------------------------------------

    def _mates_work(self, lead: Agent, team: claude.Team, snapshot: ProjectSnapshot) -> bool:
        """Whether a teammate may be at work. One of which nothing is known may.

        A lead starts its tmux teammates beside itself: one without a process does not work, whatever the file says.
        """
        running = {agent.id for agent in snapshot.teammates.agents}
        running |= {seen.flags.agent_id for seen in snapshot.teammates.elsewhere if seen.flags}
        path = next(iter(self._paths_of(lead, snapshot)), None)
        for member in team.members:
            if member.agent_id == team.lead_id:
                continue
            if not member.in_process:
                if member.active is not False and member.agent_id in running:
                    return True
                continue
            own = self._transcripts.of_mate(path, member.name) if path else None
            turn: Turn | None = self._transcripts.turn(own, of_mate=True) if own else None
            if turn is None or turn.phase in (Phase.MODEL, Phase.TOOL):
                return True
        return False

    def _members(self, task: Task, snapshot: ProjectSnapshot) -> Iterator[claude.Member]:
        for team in snapshot.teams:
            if team.name == task.list:
                yield from (member for member in team.members if task.owner in (member.name, member.agent_id))

    def _trees_of_members(self, task: Task, snapshot: ProjectSnapshot) -> Iterator[work_trees.Trace]:
        """The traces of the work trees of the team's members that may own the task."""
        for member in self._members(task, snapshot):
            if member.cwd:
                others = [folder for owner, folder in self._places(snapshot) if owner != member.agent_id]
                yield work_trees.trace([member.cwd], others)

    def _unseen_sessions(self, task: Task, snapshot: ProjectSnapshot) -> Iterator[object]:
        """The files and transcripts of the sessions that may own the task and whose process cannot be seen.

        A session keeps its list when it gets another id, so each one of the project may, unless the task names a
        teammate with a separate process.
        """
        teams = [team for team in snapshot.teams if team.name == task.list]
        leads = {team.lead_session for team in teams}
        of_mate = any(not member.in_process for member in self._members(task, snapshot))
        for file in self._unseen(snapshot):
            ident = file.session.session_id
            is_tied = ident in leads or task.list in lists_of_session(ident)
            if is_tied or (not of_mate and self._folders.has(file.folder)):
                yield self._trace_of_file(file)

    def _unseen(self, snapshot: ProjectSnapshot) -> Iterator[SessionFile]:
        """The sessions whose process cannot be seen."""
        live = {(session.home, session.session.pid) for session in snapshot.sessions}
        return (file for file in snapshot.session_files if (file.home, file.session.pid) not in live)

    def read_sessions(self, snapshot: ProjectSnapshot) -> Iterator[None]:
        """Read the traces of the project's sessions whose process cannot be seen, each once in a look, in steps."""
        for file in self._unseen(snapshot):
            if file.path not in self._of_files and self._folders.has(file.folder):
                self._trace_of_file(file)
                yield

    def _trace_of_file(self, file: SessionFile) -> Trace:
        """The versions of a session's file and transcript in this look."""
        if file.path not in self._of_files:
            folders = (*self._folders.roots, file.folder)
            script = self._transcripts.of_session(file.session.session_id, [file.home], folders)
            versions = self._versions(script) if script else None
            self._of_files[file.path] = file.path.name, version(file.path), versions
        return self._of_files[file.path]

    def _emptied_inboxes(self, task: Task, snapshot: ProjectSnapshot) -> Iterator[Version]:
        """The inboxes that were emptied: only their owner does that, once a second while it lives."""
        owner = task.owner or "team-lead"
        if Path(owner).name != owner:
            return
        for home in snapshot.homes:
            inbox = version(home / "teams" / task.list / "inboxes" / f"{owner}.json")
            if inbox is not None and inbox.size <= EMPTY_INBOX:
                yield inbox

    # -- work trees --------------------------------------------------------------------------------------------------

    def _work_tree(self, agent: Agent, snapshot: ProjectSnapshot) -> work_trees.Trace:
        """The trace of the linked work tree that only this agent works in."""
        who = agent.id if agent.source == "team" else agent.process
        places = self._places(snapshot)
        return work_trees.trace(
            [folder for owner, folder in places if owner == who],
            [folder for owner, folder in places if owner != who],
        )

    def _places(self, snapshot: ProjectSnapshot) -> list[tuple[ProcessId | str | None, str | Path]]:
        """The folders in which agents work, by process, and by id for teammates inside a process."""
        places: list[tuple[ProcessId | str | None, str | Path]] = []
        places += [(process, seen.folder) for process, seen in self._scanner.agents.items()]
        places += [(live.process, live.session.cwd) for live in snapshot.sessions if live.session.cwd]
        mates = (member for team in snapshot.teams for member in team.mates)
        return [*places, *((mate.agent_id, mate.cwd) for mate in mates if mate.cwd)]

    # -- hooks and processes -----------------------------------------------------------------------------------------

    def _newest_note(
        self, agent: Agent, snapshot: ProjectSnapshot
    ) -> tuple[own_files.HookNote | None, datetime | None, int]:
        """The newest hook note that tells about the agent, its time, and that in nanoseconds (0 without one)."""
        dated = []
        for name in snapshot.notes_of(agent):
            with contextlib.suppress(OSError):
                dated.append(((self._paths.hooks / name).stat().st_mtime_ns, name))
        for written, name in sorted(dated, reverse=True):
            note = own_files.hook_note(read_or_none(self._paths.hooks / name) or b"", name.partition(".")[0])
            if _tells_nothing(note):
                continue
            is_of_mate = note.agent_id is not None
            if is_of_mate == (agent.source == "team") and (not is_of_mate or _names_mate(note, agent)):
                return note, datetime.fromtimestamp(written / 1e9, UTC), written
        return None, None, 0

    def _is_stopped(self, agent: Agent) -> bool:
        if agent.process is None:
            return False
        try:
            facts = self._scanner.processes.backend.facts(agent.process.pid)
        except OSError:
            return False
        return facts is not None and facts.started == agent.process.started and facts.stopped

    def _tools(self, agent: Agent) -> Iterator[tuple[int, int]]:
        """The running processes of the agent's tools, with the processor time of each in clock ticks.

        The client starts each tool in a separate session; what else it starts (MCP servers) stays in its session.
        """
        if agent.process is None:
            return
        backend = self._scanner.processes.backend
        with contextlib.suppress(OSError):
            own = backend.facts(agent.process.pid)
            for process, _ in self._scanner.trees.get(agent.process, ()):
                facts = backend.facts(process.pid)
                if own and facts and facts.started == process.started and facts.session != own.session:
                    yield process.pid, facts.cpu


def _live_session(agent: Agent, snapshot: ProjectSnapshot) -> LiveSession | None:
    """The live session in the agent's process; that of its lead for a teammate inside it."""
    return next((live for live in snapshot.sessions if live.process == agent.process), None)


def _is_active(agent: Agent, snapshot: ProjectSnapshot) -> bool | None:
    """``isActive`` of the agent in its team's file."""
    members = (member for team in snapshot.teams if team.name == agent.team for member in team.members)
    return next((member.active for member in members if member.agent_id == agent.id), None)


def _asks_lead(agent: Agent, snapshot: ProjectSnapshot) -> bool:
    """Whether the session of the agent's lead shows a request for a permission."""
    inside = agent.source == "team"
    for live in snapshot.sessions:
        team = snapshot.team_of_lead(live)
        if team is not None and team.name == agent.team and (live.process == agent.process) == inside:
            return live.session.status == "waiting" and live.session.waiting_for == PERMISSION
    return False


def _tells_nothing(note: own_files.HookNote) -> bool:
    """Whether the note leaves open what the agent does: it follows an event that tells, such as ``Stop``."""
    return note.event in SILENT_EVENTS or note.payload.get("notification_type") == IDLE_PROMPT


def _names_mate(note: own_files.HookNote, agent: Agent) -> bool:
    """Whether the note names this in-process teammate: its hooks carry its name as ``agent_type``."""
    return note.payload.get("agent_type") == agent.name or note.payload.get("teammate_name") == agent.name


def _cwds(task: Task, snapshot: ProjectSnapshot) -> list[str]:
    """The folders in which members of the task's team work."""
    members = (member for team in snapshot.teams if team.name == task.list for member in team.members)
    return list(dict.fromkeys(member.cwd for member in members if member.cwd))
