"""The agent registry of one project: reads all sources of agents. It treats unreadable things as unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.portions import FilePortions, FolderPortions
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.agent_sources import (
    AgentHealth,
    AgentPids,
    AgentSource,
    CommandLines,
    HookNotes,
    ProcessDescriber,
    Rank,
    RecordFiles,
    SessionFiles,
    TeamFiles,
)
from yolo_supervisor.inventory.claude_homes import ClaudeHomes
from yolo_supervisor.inventory.membership import Membership
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.project_snapshot import (
    LiveSession,
    ProjectSnapshot,
    is_process_of,
    lists_of_session,
)
from yolo_supervisor.inventory.task_lists import TaskLists
from yolo_supervisor.inventory.watched_lists import WatchedLists
from yolo_supervisor.models import Agent, Liveness, ProcessId
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.processes import Processes

PIDS_SIZE = 16 * 1024
"""The part of ``.agent-pids`` that one look reads, in bytes: some 2,000 agents. The next look goes on behind it."""

HEALTH_FILES = 500
"""The number of health files that one look reads."""


class AgentRegistry:
    """All sources of agents of one project. ``homes`` are read beside the folders that agents name."""

    def __init__(self, paths: Paths, processes: Processes, scanner: ProcessScanner, homes: Iterable[Path]) -> None:
        self.paths = paths
        self.task_lists = TaskLists(paths)
        self._processes = processes
        self.folders = ProjectFolders(paths.project)
        self._homes = ClaudeHomes(self.folders, processes, homes)
        self._records = RecordFiles(paths)
        self._membership = Membership(self.folders, processes, self._registered)
        self._describer = ProcessDescriber(processes, scanner, self._membership)
        self._pids = FilePortions(paths.agent_pids, PIDS_SIZE)
        self._health_names = FolderPortions(paths.agent_health, HEALTH_FILES)
        self._command_lines = CommandLines(self.folders, scanner, self._describer)
        self._hook_notes = HookNotes(paths, processes, scanner, self._describer)
        self._session_files = SessionFiles(self._describer, WatchedLists(processes.backend))
        self._sources: tuple[AgentSource, ...] = (
            self._records,
            self._command_lines,
            self._session_files,
            TeamFiles(self._describer),
            self._hook_notes,
            AgentHealth(self._describer),
            AgentPids(paths, self._describer),
        )

    def _registered(self) -> set[ProcessId]:
        """The processes that a person or a script has registered."""
        by_hand = (agent for agent in self.records().values() if agent.source == "registered")
        return {agent.process for agent in by_hand if agent.process}

    def is_foreign(self, process: ProcessId) -> bool:
        """Whether the process is an agent, and none of the project: the kill gate asks right before a signal."""
        known = any(agent.process == process for agent in self.records().values())
        if not known and self._describer.seen(process) is None:
            return False
        self.folders.refresh()
        sessions = self._homes.sessions(self._homes.session_files(self.homes()))
        return not self._membership.belongs(process, sessions)

    def use_homes(self, homes: Iterable[Path]) -> None:
        """From the next snapshot on read these homes beside the folders that agents name."""
        self._homes.defaults = tuple(homes)

    def read_ahead(self) -> Iterator[None]:
        """Read the work trees and session files, which may be many, in steps; ``snapshot`` finds little left."""
        yield from self.folders.read()
        yield from self._homes.read_ahead(self.homes())

    def snapshot(self, reread: Collection[str] = (), *, ahead: bool = False) -> ProjectSnapshot:
        """Read all that decisions about the project's agents depend on. OSError if the records cannot be listed.

        ``reread`` names records that may have been updated; the others are read once. ``ahead`` says that the work
        trees were read by ``read_ahead`` right before.
        """
        if not ahead:
            self.folders.refresh()
        records = self._records.read(reread)
        teammates = self._command_lines.read(records.folder_id)
        left = (Path(folder).parent.parent for folder in self.task_lists.left())
        homes = self._homes.with_those_of((*records.homes, *teammates.homes, *left))
        teams, unreadable_teams = self._homes.teams(homes)
        session_files = self._homes.session_files(homes)
        return ProjectSnapshot(
            records=records,
            teammates=teammates,
            homes=homes,
            sessions=tuple(self._homes.sessions(session_files)),
            session_files=session_files,
            teams=teams,
            members=self._homes.members(teams),
            unreadable_teams=unreadable_teams,
            hook_files=tuple(names(self.paths.hooks)),
            health_files=tuple(self._health_files()),
            listed_pids=tuple(dict.fromkeys(plugin_agents.agent_pids(self._pids.next()))),
            plugin_files_partial=self._pids.partial or self._health_names.partial,
        )

    def _health_files(self) -> Iterable[tuple[plugin_agents.Health, Path]]:
        folder = self.paths.agent_health
        for name in self._health_names.next():
            if name.endswith(".json"):
                health = plugin_agents.health(read_or_none(folder / name) or b"", name[:-5])
                if health is not None:
                    yield health, folder / name

    def sightings(self, snapshot: ProjectSnapshot) -> Mapping[Rank, Sequence[Agent]]:
        """The agents in every source: ``merge`` makes one of several sightings of one agent."""
        return {source.rank: source.agents(snapshot) for source in self._sources}

    def lost_sessions(self, snapshot: ProjectSnapshot) -> Iterator[Agent | None]:
        """Sessions that ended while no supervisor saw it, and that may own a task in progress.

        None is a step without a result.
        """
        there = {name for home in snapshot.homes for name in names(home / "tasks")}

        def has_list(session: LiveSession) -> bool:
            team = snapshot.team_of_lead(session)
            return not there.isdisjoint(lists_of_session(session.session.session_id) | ({team.name} if team else set()))

        for session in self._homes.lost_sessions(snapshot.session_files, snapshot.homes, has_list):
            lost = self._session_files.lost(snapshot, [session]) if session is not None else ()
            yield next((agent for agent in lost if self._may_own_work(agent, snapshot)), None)

    def _may_own_work(self, agent: Agent, snapshot: ProjectSnapshot) -> bool:
        at_work = (
            task for folder in self.task_lists.of(agent, snapshot) for task in self.task_lists.at_work(folder)[0]
        )
        return any(agent.bears(task.owner) or not task.owner for task in at_work)

    def may_be_resumed(self, agent: Agent, snapshot: ProjectSnapshot) -> bool:
        """Whether the client's own daemon lives that hosted the agent: it resumes a crashed session."""
        homes = (agent.claude_dir, *snapshot.homes) if agent.claude_dir else snapshot.homes
        return agent.hosted and any(self._homes.daemon_lives(home) for home in homes)

    def lead_has_ended(self, agent: Agent, snapshot: ProjectSnapshot) -> bool:
        """Whether the lead of this teammate has certainly ended."""
        team = next((team for team in snapshot.teams if team.name == agent.team), None)
        return team is not None and not agent.is_session and self._homes.lead_has_ended(team)

    def stopped_subagents(self, snapshot: ProjectSnapshot) -> set[str]:
        """The ids of the subagents whose end a hook reported."""
        return self._hook_notes.stopped(snapshot)

    def hook_process(self, note: own_files.HookNote) -> ProcessId | None:
        """The live process that ran the hook, or None if it is gone or unknown."""
        return self._hook_notes.process(note)

    def records(self) -> Mapping[str, Agent]:
        """The recorded agents by the names of their records. A record keeps its name when its agent gets another."""
        return self._records.read().by_name

    def records_folder_id(self) -> int | None:
        """The inode of the folder of records, or None if there is none yet."""
        return self._records.folder_id()

    def teammates(self) -> Sequence[Agent]:
        """The agents whose command lines identify them, in the latest sample of the process table."""
        return self._command_lines.read(self._records.folder_id()).agents

    def homes(self) -> tuple[Path, ...]:
        """The folders of Claude Code's state that the project's agents use."""
        here = self._command_lines.read(self._records.folder_id()).homes
        return self._homes.with_those_of((*self._records.read().homes, *here))

    def elsewhere(self, snapshot: ProjectSnapshot) -> list[Agent]:
        """Living agents outside the project's folder that may own its tasks: teammates, and sessions on its lists.

        They are not watched here: their lead may have been started in another folder, for example.
        """
        teammates = [
            self._describer.teammate(seen, seen.flags, snapshot.records.folder_id)
            for seen in snapshot.teammates.elsewhere
            if seen.flags and seen.claude_dir in snapshot.homes
        ]
        return [*teammates, *self._session_files.elsewhere(snapshot, self.task_lists.names(snapshot))]

    def in_process(self, leads: Iterable[Agent], known: Iterable[Agent], snapshot: ProjectSnapshot) -> list[Agent]:
        """The teammates that live inside these leads' processes. One of the known agents with a process does not."""
        mates = [mate for lead in leads if lead.session for mate in snapshot.in_process(lead)]
        ids = {mate.id for mate in mates}
        with_process = [
            agent
            for agent in (known if ids else ())
            if agent.id in ids
            and agent.lead is None
            and agent.process
            and self._processes.liveness(agent.process) is Liveness.ALIVE
        ]
        return [mate for mate in mates if not any(is_process_of(agent, mate) for agent in with_process)]

    def unproven(self, known: Iterable[Agent], snapshot: ProjectSnapshot) -> list[Agent]:
        """Pids in the plugin's files whose identity cannot be proven.

        They are shown, and never acted on.
        """
        pids = {agent.pid for agent in known}
        epoch = datetime.fromtimestamp(0, UTC)
        return [
            Agent(id=f"{role}#{pid}", name=role, role=role, team=None, source="agent-pids", since=epoch, pid=pid)
            for pid, role in snapshot.plugin_pids.items()
            if pid not in pids and self._may_exist(pid)
        ]

    def dangling_pids(self, snapshot: ProjectSnapshot) -> frozenset[int]:
        """Pids in the plugin's files that no process has."""
        return frozenset(pid for pid in snapshot.plugin_pids if not self._may_exist(pid))

    def _may_exist(self, pid: int) -> bool:
        try:
            facts = self._processes.backend.facts(pid)
        except OSError:
            return True
        return facts is not None and not facts.zombie
