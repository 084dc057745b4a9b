"""The places where agents are found, one class each, and the one rule about several sightings of one agent.

A new source is a class with a name, a rank and ``agents``, and a line in ``AgentRegistry``. All sightings of a process
come together in ``AgentRegistry.sightings``: evidence about an agent's state belongs there, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from yolo_supervisor.formats import claude
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.changes import listed
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.membership import Membership
from yolo_supervisor.inventory.process_scan import AgentProcess, ProcessScanner
from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.project_snapshot import (
    LiveSession,
    ProjectSnapshot,
    Records,
    Teammates,
    is_process_of,
    lists_of_agent,
    lists_of_session,
)
from yolo_supervisor.inventory.watched_lists import WatchedLists
from yolo_supervisor.models import Agent, Liveness, Pane, ProcessId
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import pane_of

SESSION_STARTERS = ("tmux", "screen", "sshd", "systemd", "login", "init")
"""Programs that start sessions for people: sessions that they start are not started by a hook."""


class Rank(IntEnum):
    """The order of the sources, those that say the most about an agent first.

    Of two sightings of one agent, that of the first source is used.
    """

    RECORD = 1
    """It holds what the supervisor, a person or a script has decided to call the agent."""
    COMMAND_LINE = 2
    """It names the agent, its team and its role."""
    SESSION_FILE = 3
    """It names the session, which ties the agent to a team and to task lists."""
    TEAM_FILE = 4
    """It names the teammates that live inside their lead's process."""
    HOOK_NOTE = 5
    """It names the session, but neither the team nor the agent."""
    AGENT_HEALTH = 6
    """It names a role and a bare pid."""
    AGENT_PIDS = 7
    """It names a bare pid."""


RANK_OF_SOURCE = {
    "registered": Rank.RECORD, "tmux": Rank.COMMAND_LINE, "process": Rank.COMMAND_LINE, "session": Rank.SESSION_FILE,
    "team": Rank.TEAM_FILE, "hook": Rank.HOOK_NOTE, "agent-health": Rank.AGENT_HEALTH, "agent-pids": Rank.AGENT_PIDS,
}  # fmt: skip
"""The rank of the source that named an agent, by ``Agent.source``."""

NAMING = (Rank.RECORD, Rank.COMMAND_LINE, Rank.SESSION_FILE)
"""The sources whose names for an agent a task may bear."""


class AgentSource(Protocol):
    """One place where agents of a project are found."""

    @property
    def name(self) -> str: ...

    @property
    def rank(self) -> Rank: ...

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        """The agents in this source. It may return the same object while nothing has changed."""


AgentKey = tuple[ProcessId | None, str | None]


def agent_key(agent: Agent) -> AgentKey:
    """Equal for all sightings of one agent: the process, and within it the id of a subagent."""
    return agent.process, None if agent.lead is None else agent.id


def merge(sightings: Mapping[Rank, Sequence[Agent]], known: Container[AgentKey] = frozenset()) -> list[Agent]:
    """One sighting of each agent, that of the first source in the order of ``Rank``. Known agents are left out."""
    first: dict[AgentKey, Agent] = {}
    for rank in sorted(sightings):
        for agent in sightings[rank]:
            if (key := agent_key(agent)) not in known:
                first.setdefault(key, agent)
    return list(first.values())


def combine(known: Agent, seen: Agent) -> Agent:
    """Combine what is known of an agent with another sighting of it.

    The better source names it. Evidence for its task lists and its names is kept for as long as it is known: the
    client removes a team's folder, and gives a session another id.
    """
    before, now = _rank(known), _rank(seen)
    base, other = (seen, known) if now < before else (known, seen)
    team = base.team or other.team
    session = seen.session if seen.session and now is Rank.SESSION_FILE else known.session or seen.session
    combined = replace(
        base,
        team=team,
        session=session,
        pane=base.pane or other.pane,
        claude_dir=base.claude_dir or other.claude_dir,
        hosted=known.hosted or seen.hosted,
        home=known.home,
        lists=(),
        aliases=(),
    )
    names = {*known.aliases, *seen.aliases}
    for agent, rank in ((known, before), (seen, now)):
        names |= {agent.id, agent.name} if rank in NAMING else set()
    return replace(
        combined,
        lists=tuple(sorted((lists_of_agent(known) | lists_of_agent(seen)) - lists_of_agent(combined))),
        aliases=tuple(sorted(names - {combined.id, combined.name})),
    )


def _rank(agent: Agent) -> Rank:
    return RANK_OF_SOURCE.get(agent.source, Rank.RECORD)


class ProcessDescriber:
    """Adds the facts of the process table to the sighting of an agent."""

    def __init__(self, processes: Processes, scanner: ProcessScanner, membership: Membership) -> None:
        self._processes = processes
        self._scanner = scanner
        self._membership = membership
        self._clients: dict[ProcessId, AgentProcess] = {}
        """The clients of live sessions whose command lines do not show that they are agents."""

    def agent(self, process: ProcessId, folder_id: int | None, **facts: object) -> Agent:
        """The agent in that process. ``folder_id`` is the folder of records that its record would be in."""
        since = datetime.fromtimestamp(self._processes.backend.started_at(process.started), UTC)
        return Agent(since=since, process=process, pid=process.pid, home=folder_id, **facts)  # type: ignore[arg-type]

    def teammate(self, seen: AgentProcess, flags: claude.Flags, folder_id: int | None) -> Agent:
        role = flags.role if flags.role != "general-purpose" else None  # the default; the name says more
        return self.agent(
            seen.process,
            folder_id,
            id=flags.agent_id,
            name=flags.name,
            role=plugin_agents.normal_role(role or flags.name),
            team=flags.team,
            source="tmux" if seen.pane else "process",
            pane=seen.pane,
            session=flags.session,
            claude_dir=seen.claude_dir,
            lists=(seen.task_list,) if seen.task_list else (),
        )

    def pane(self, process: ProcessId) -> Pane | None:
        seen = self._scanner.agents.get(process)
        if seen is not None:
            return seen.pane
        with contextlib.suppress(OSError):
            return pane_of(self._processes.backend.environment(process.pid))
        return None

    def proven(self, pid: int, path: Path, snapshot: ProjectSnapshot) -> ProcessId | None:
        """The process of a pid from a file, if it looks like an agent of the project and is older than the file."""
        process = self._processes.identify(pid)
        seen = self._scanner.agents.get(process) if process is not None else None
        if process is None or seen is None or not self._membership.belongs(process, snapshot.sessions, seen.folder):
            return None
        return process if self._processes.older_than_file(process, path) else None

    def belongs(self, process: ProcessId, snapshot: ProjectSnapshot) -> bool:
        """Whether the process is an agent of the project, whatever a file in it says."""
        return self._membership.belongs(process, snapshot.sessions)

    def agent_pids(self) -> set[int]:
        """The pids of processes that look like agents: only these are worth a question to the kernel."""
        return {process.pid for process in self._scanner.agents}

    def seen(self, process: ProcessId) -> AgentProcess | None:
        return self._scanner.agents.get(process) or self._scanner.read_now(process)

    def clients(self, processes: Iterable[ProcessId]) -> Mapping[ProcessId, AgentProcess]:
        """The clients in these processes, which session files name: their command lines may be those of a wrapper."""
        known: dict[ProcessId, AgentProcess] = {}
        for process in processes:
            seen = self._scanner.agents.get(process) or self._clients.get(process)
            if seen := seen or self._scanner.read_now(process, is_agent=True):
                known[process] = seen
        self._clients = {process: seen for process, seen in known.items() if process not in self._scanner.agents}
        return known


class RecordFiles:
    """The supervisor's records: of agents that were seen before, or registered by a person or a script."""

    name, rank = "record", Rank.RECORD

    def __init__(self, paths: Paths) -> None:
        self._folder = paths.agents
        self._files: dict[str, Agent | None] = {}
        self._last = Records(by_name={})

    def read(self, reread: Collection[str] = ()) -> Records:
        """The records now. Each is read once, except those that may have been updated (``reread``)."""
        known, there, folder_id = self._files, listed(self._folder), self.folder_id()
        unread = [name for name in there if known.get(name) is None or name in reread]
        if not unread and len(there) == len(known) and folder_id == self._last.folder_id:
            return self._last
        for name in known.keys() - set(there):
            del known[name]
        for name in unread:
            known[name] = own_files.load_agent(read_or_none(self._folder / name) or b"")
        self._last = Records(
            by_name={n: agent for n, agent in known.items() if agent is not None and agent.home in (None, folder_id)},
            damaged=tuple(name for name, agent in known.items() if agent is None and name.endswith(".json")),
            homes=tuple(dict.fromkeys(agent.claude_dir for agent in known.values() if agent and agent.claude_dir)),
            folder_id=folder_id,
        )
        return self._last

    def folder_id(self) -> int | None:
        """The inode of the folder of records, or None if there is none yet.

        A record carries it: a record from another folder, that of a copied project, does not count.
        """
        try:
            return self._folder.stat().st_ino
        except OSError:
            return None

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        return snapshot.records.agents


class CommandLines:
    """The process table: teammates whose command lines identify them."""

    name, rank = "command line", Rank.COMMAND_LINE

    def __init__(self, folders: ProjectFolders, scanner: ProcessScanner, describer: ProcessDescriber) -> None:
        self._folders = folders
        self._scanner = scanner
        self._describer = describer
        self._read: tuple[int, tuple[Path, ...]] = (-1, ())
        """The sample and the folders that the last answer was made of."""
        self._by_process: dict[ProcessId, tuple[AgentProcess, Agent]] = {}
        self._last = Teammates()

    def read(self, folder_id: int | None) -> Teammates:
        """The teammates in the latest sample of the process table."""
        now = self._scanner.generation, self._folders.roots
        if self._read != now:
            self._read = now
            everywhere = self._scanner.agents.values()
            here = [seen for seen in everywhere if self._folders.has(seen.folder)]
            before, self._by_process = self._by_process, {}
            for seen in here:
                if seen.flags:
                    known = before.get(seen.process)
                    same = known is not None and (known[0] is seen or known[0] == seen)
                    agent = known[1] if known and same else self._describer.teammate(seen, seen.flags, folder_id)
                    self._by_process[seen.process] = seen, agent
            inside = {seen.process for seen in here}
            self._last = Teammates(
                agents=tuple(agent for _, agent in self._by_process.values()),
                elsewhere=tuple(seen for seen in everywhere if seen.flags and seen.process not in inside),
                homes=tuple(dict.fromkeys(seen.claude_dir for seen in here if seen.claude_dir)),
            )
        return self._last

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        return snapshot.teammates.agents


class SessionFiles:
    """Claude Code's ``sessions/``: leads and lone sessions."""

    name, rank = "session file", Rank.SESSION_FILE

    def __init__(self, describer: ProcessDescriber, watched_lists: WatchedLists) -> None:
        self._describer = describer
        self._watched_lists = watched_lists

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        self._watched_lists.keep({live.process for live in snapshot.sessions})
        clients = self._describer.clients(live.process for live in snapshot.sessions)
        return list(self._agents(snapshot, (live for live in snapshot.sessions if live.in_project), clients))

    def elsewhere(self, snapshot: ProjectSnapshot, lists: frozenset[str]) -> Sequence[Agent]:
        """The agents of living sessions outside the project's folder that work on one of these task lists."""
        clients = self._describer.clients(live.process for live in snapshot.sessions)
        agents = self._agents(snapshot, (live for live in snapshot.sessions if not live.in_project), clients)
        return [agent for agent in agents if not lists_of_agent(agent).isdisjoint(lists)]

    def lost(self, snapshot: ProjectSnapshot, sessions: Iterable[LiveSession]) -> Sequence[Agent]:
        """The agents of the project's sessions whose process has ended."""
        return list(self._agents(snapshot, (live for live in sessions if live.in_project), {}))

    def _agents(
        self, snapshot: ProjectSnapshot, sessions: Iterable[LiveSession], clients: Mapping[ProcessId, AgentProcess]
    ) -> Iterator[Agent]:
        for live in sessions:
            session, seen = live.session, clients.get(live.process)
            team = snapshot.team_of_lead(live)
            named = (seen.task_list,) if seen and seen.task_list else ()
            yield self._describer.agent(
                live.process,
                snapshot.records.folder_id,
                id=team.lead_id if team and team.lead_id else f"session-{session.session_id[:8]}",
                name="team-lead" if team else session.name or "session",
                role="lead",
                team=team.name if team else None,
                source="session",
                pane=seen.pane if seen else None,
                session=session.session_id,
                claude_dir=live.home,
                hosted=session.hosted,
                lists=(*named, *self._watched_lists.of(live.process, live.home)),
            )


class TeamFiles:
    """Claude Code's ``teams/``: the teammates that live inside their lead's process, and die with it."""

    name, rank = "team file", Rank.TEAM_FILE

    def __init__(self, describer: ProcessDescriber) -> None:
        self._describer = describer

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        mates = [
            self._mate(live, team, member, snapshot)
            for live in snapshot.sessions
            if (team := snapshot.team_of_lead(live)) is not None
            for member in team.mates
        ]
        return [mate for mate in mates if not any(is_process_of(agent, mate) for agent in snapshot.teammates.agents)]

    def _mate(self, live: LiveSession, team: claude.Team, member: claude.Member, snapshot: ProjectSnapshot) -> Agent:
        agent = self._describer.agent(
            live.process, snapshot.records.folder_id, id=member.agent_id, name=member.name,
            role=plugin_agents.normal_role(member.role or member.name), team=team.name, source="team",
            lead=team.lead_id or live.session.session_id, claude_dir=live.home,
        )  # fmt: skip
        return replace(agent, since=member.joined_at) if member.joined_at else agent


class HookNotes:
    """The hook notes: sessions and subagents that reported their start."""

    name, rank = "hook note", Rank.HOOK_NOTE

    def __init__(
        self, paths: Paths, processes: Processes, scanner: ProcessScanner, describer: ProcessDescriber
    ) -> None:
        self._folder = paths.hooks
        self._processes = processes
        self._scanner = scanner
        self._describer = describer

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        notes = self._notes(snapshot, "SessionStart", "SubagentStart")
        return [agent for note in notes if (agent := self._agent(note, snapshot)) is not None]

    def stopped(self, snapshot: ProjectSnapshot) -> set[str]:
        """The ids of the subagents whose end a hook reported."""
        return {note.agent_id for note in self._notes(snapshot, "SubagentStop") if note.agent_id}

    def _notes(self, snapshot: ProjectSnapshot, *events: str) -> Iterator[own_files.HookNote]:
        for name in snapshot.hook_files:
            event = name.partition(".")[0]
            if event in events:
                yield own_files.hook_note(read_or_none(self._folder / name) or b"", event)

    def _agent(self, note: own_files.HookNote, snapshot: ProjectSnapshot) -> Agent | None:
        process = self.process(note)
        if process is None or not self._describer.belongs(process, snapshot):
            return None
        session = note.payload.get("session_id")
        kind, ident = note.payload.get("agent_type"), note.payload.get("agent_id")
        is_subagent = note.event == "SubagentStart"
        default = "agent" if is_subagent else "lead"
        role = plugin_agents.normal_role(kind) if isinstance(kind, str) and kind else default
        seen = self._describer.seen(process)
        if seen is not None and seen.flags is not None and not is_subagent:
            return self._describer.teammate(seen, seen.flags, snapshot.records.folder_id)
        return self._describer.agent(
            process,
            snapshot.records.folder_id,
            id=ident if isinstance(ident, str) and ident else f"{role}#{process.pid}",
            name=role,
            role=role,
            team=None,
            source="hook",
            pane=self._describer.pane(process),
            lead=f"process {process.pid}" if is_subagent else None,
            session=session if isinstance(session, str) and not is_subagent else None,
            claude_dir=seen.claude_dir if seen else None,
            lists=tuple(sorted(self._lists(process, seen, snapshot))) if is_subagent else (),
        )

    @staticmethod
    def _lists(process: ProcessId, seen: AgentProcess | None, snapshot: ProjectSnapshot) -> set[str]:
        """The task lists of the agent in this process, which its subagents share; none if its files name none."""
        lists = {seen.flags.team} if seen and seen.flags else set[str]()
        for live in snapshot.sessions:
            if live.process == process:
                team = snapshot.team_of_lead(live)
                lists |= lists_of_session(live.session.session_id) | ({team.name} if team else set())
        return lists | {seen.task_list} if lists and seen and seen.task_list else lists

    def process(self, note: own_files.HookNote) -> ProcessId | None:
        """The live process that ran the hook.

        It is the parent of the session that the client starts its hooks in.
        """
        ancestors = [ProcessId(pid, started, self._processes.boot) for pid, started, _, _ in note.ancestry]
        for process in ancestors[1:]:  # the first is the hook command itself
            if process in self._scanner.agents and self._processes.liveness(process) is Liveness.ALIVE:
                return process
        leader = next((i for i, (pid, _, _, sid) in enumerate(note.ancestry[:3]) if pid == sid), None)
        above = note.ancestry[leader + 1 : leader + 2] if leader is not None else ()
        if not above or above[0][0] <= 1 or above[0][2].startswith(SESSION_STARTERS):
            return None
        process = ancestors[1:][leader or 0]
        return process if self._processes.liveness(process) is Liveness.ALIVE else None


class AgentHealth:
    """The plugin's ``.agent-health/``."""

    name, rank = "agent-health", Rank.AGENT_HEALTH

    def __init__(self, describer: ProcessDescriber) -> None:
        self._describer = describer

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        pids = self._describer.agent_pids()
        return [
            self._describer.agent(
                process, snapshot.records.folder_id, id=f"{health.role}#{health.pid}", name=health.role,
                role=health.role, team=None, source="agent-health", pane=self._describer.pane(process),
            )
            for health, path in snapshot.health_files
            if health.pid in pids and (process := self._describer.proven(health.pid, path, snapshot))
        ]  # fmt: skip


class AgentPids:
    """The plugin's ``.agent-pids``."""

    name, rank = "agent-pids", Rank.AGENT_PIDS

    def __init__(self, paths: Paths, describer: ProcessDescriber) -> None:
        self._path = paths.agent_pids
        self._describer = describer

    def agents(self, snapshot: ProjectSnapshot) -> Sequence[Agent]:
        pids = self._describer.agent_pids()
        return [
            self._describer.agent(
                process, snapshot.records.folder_id, id=f"agent#{pid}", name="agent", role="agent", team=None,
                source="agent-pids", pane=self._describer.pane(process),
            )
            for pid in snapshot.listed_pids
            if pid in pids and (process := self._describer.proven(pid, self._path, snapshot))
        ]  # fmt: skip
