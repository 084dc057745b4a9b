"""Everything about one project's agents that one decision is made on: read once, then fixed.

A tick that reads the same folder twice may see two different teams. So each tick takes one ``ProjectSnapshot``, and all
its questions are answered from that. Tasks, plans and leases are no part of it: what a dead agent held is read after
its death is known (``task_lists``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from yolo_supervisor.formats import claude
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.inventory.process_scan import AgentProcess
from yolo_supervisor.inventory.session_files import SessionFile
from yolo_supervisor.models import Agent, Liveness, ProcessId
from yolo_supervisor.policy.task_owner import Worker

JOINED_BEFORE = timedelta(seconds=60)
"""The largest difference between the start of a teammate's process and the time at which it joined its team."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """The supervisor's own records of agents. The same object is returned while they are unchanged."""

    by_name: Mapping[str, Agent]
    """The recorded agents by the names of their records."""
    damaged: tuple[str, ...] = ()
    """The names of records that cannot be read."""
    homes: tuple[Path, ...] = ()
    """The folders of Claude Code's state that recorded agents use."""
    folder_id: int | None = None
    """The inode of the folder of records; None if there is none yet."""

    @cached_property
    def agents(self) -> tuple[Agent, ...]:
        return tuple(self.by_name.values())


@dataclass(frozen=True, kw_only=True)
class Teammates:
    """The agents whose command lines identify them. The same object is returned while they are unchanged."""

    agents: tuple[Agent, ...] = ()
    elsewhere: tuple[AgentProcess, ...] = ()
    """Teammates that run outside the project's folder, in a work tree, for example. They are not watched here."""
    homes: tuple[Path, ...] = ()
    """The folders of Claude Code's state that agents in the project use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveSession:
    """A Claude Code session whose process runs."""

    session: claude.Session
    process: ProcessId
    home: Path
    in_project: bool


@dataclass(frozen=True, kw_only=True)
class ProjectSnapshot:
    """The agents of one project in every source, and what ties them to teams and task lists, at one moment."""

    records: Records
    teammates: Teammates
    homes: tuple[Path, ...]
    """The folders of Claude Code's state that the project's agents use."""
    sessions: tuple[LiveSession, ...]
    """The live sessions in these folders, in this project and elsewhere."""
    session_files: tuple[SessionFile, ...] = ()
    """All session files in these folders that can be read."""
    teams: tuple[claude.Team, ...]
    """The teams that have a member in this project."""
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By team, the names and ids of all teammates with a separate process that its file has named so far."""
    unreadable_teams: frozenset[Path]
    """Team files that cannot be read, perhaps only at present."""
    hook_files: tuple[str, ...]
    """The names of the hook notes."""
    health_files: tuple[tuple[plugin_agents.Health, Path], ...]
    """The plugin's readable health files."""
    listed_pids: tuple[int, ...]
    """The pids in the plugin's ``.agent-pids``."""
    plugin_files_partial: bool = False
    """Whether the health files or the list of pids were too many for one look, and others may follow."""

    @cached_property
    def plugin_pids(self) -> Mapping[int, str]:
        """All pids in the plugin's files, with the roles that the files name."""
        return dict.fromkeys(self.listed_pids, "agent") | {health.pid: health.role for health, _ in self.health_files}

    @cached_property
    def has_unknown_pids(self) -> bool:
        """Whether the plugin's files name a pid that is none of a recorded agent, or were read in part."""
        return self.plugin_files_partial or not self.plugin_pids.keys() <= {agent.pid for agent in self.records.agents}

    @cached_property
    def list_names(self) -> frozenset[str]:
        """The names of the task lists that are tied to the project: of its teams, agents and sessions."""
        lists = {team.name for team in self.teams}
        for agent in (*self.records.agents, *self.teammates.agents):
            lists |= lists_of_agent(agent)
        for live in self.sessions:
            if live.in_project:
                lists |= lists_of_session(live.session.session_id)
        return frozenset(lists)

    @cached_property
    def _notes(self) -> Mapping[str, list[str]]:
        by_pid: dict[str, list[str]] = {}
        for name in self.hook_files:
            by_pid.setdefault(name.partition(".")[2].partition(".")[0], []).append(name)
        return by_pid

    def notes_of(self, agent: Agent) -> list[str]:
        """The names of the hook notes about the agent's process."""
        return self._notes.get(str(agent.pid), [])

    @cached_property
    def _statuses(self) -> Mapping[int, str | None]:
        return {live.session.pid: live.session.status for live in self.sessions}

    def session_status(self, agent: Agent) -> str | None:
        """The client's status of the agent's session (``idle``, ``busy``, ``waiting``), or None if there is none."""
        return self._statuses.get(agent.pid) if agent.pid else None

    def team_of_lead(self, live: LiveSession) -> claude.Team | None:
        """The team that the session leads, by the session's id or by its process."""
        ident, process = live.session.session_id, (live.session.pid, live.session.started)
        return next((team for team in self.teams if team.lead_session == ident or team.lead_process == process), None)

    def is_lead(self, agent: Agent, team: claude.Team) -> bool:
        """Whether the agent is the team's lead, by one of the sessions that it has had, or by its process."""
        if agent.lead is not None:
            return False
        process = agent.process
        by_process = process is not None and team.lead_process == (process.pid, str(process.started))
        return by_process or team.lead_session in {agent.session, *agent.lists} - {None}

    def worker(self, agent: Agent, liveness: Liveness) -> Worker:
        """The agent as one that may own tasks of its lists."""
        teams = lists_of_agent(agent) if agent.is_session else ()
        members = frozenset[str]().union(*(self.members.get(team, ()) for team in teams))
        return Worker(agent=agent, liveness=liveness, members=members)

    def aliases(self, agent: Agent) -> list[Agent]:
        """The same agent as the lead of a team that was founded after the agent was found."""
        return [
            replace(agent, id=team.lead_id, name="team-lead", team=team.name)
            for team in self.teams
            if team.lead_id and self.is_lead(agent, team)
        ]

    def in_process(self, lead: Agent) -> list[Agent]:
        """The teammates that live inside this lead's process by its team file, and die with it.

        A tmux teammate looks like one while it is being started.
        """
        if lead.lead is not None:
            return []
        return [
            Agent(
                id=member.agent_id,
                name=member.name,
                role=plugin_agents.normal_role(member.role or member.name),
                team=team.name,
                source="team",
                since=member.joined_at or lead.since,
                process=lead.process,
                pid=lead.pid,
                pane=lead.pane,
                lead=lead.id,
                claude_dir=lead.claude_dir,
            )
            for team in self.teams
            if self.is_lead(lead, team)
            for member in team.mates
        ]


def is_process_of(teammate: Agent, mate: Agent) -> bool:
    """Whether a teammate in a separate process is this one, which its team's file shows in its lead's process.

    A tmux teammate looks so while it starts. A process from before it joined is a stray of the same name.
    """
    return teammate.id == mate.id and teammate.since > mate.since - JOINED_BEFORE


def lists_of_agent(agent: Agent) -> set[str]:
    """The names of the task lists that any evidence ties the agent to, none if there is no evidence."""
    lists = {*agent.lists, agent.team} if agent.team else {*agent.lists}
    return lists | lists_of_session(agent.session) if agent.session else lists


def lists_of_session(session_id: str) -> set[str]:
    return {session_id, claude.team_of_session(session_id)}
