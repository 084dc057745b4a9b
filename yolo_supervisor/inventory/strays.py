"""Reads the facts that show strays: teammates without a lead, shared sessions, teammates that never came. Read-only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from yolo_supervisor.formats import claude
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot
from yolo_supervisor.inventory.transcripts import Transcripts
from yolo_supervisor.models import Agent, Liveness
from yolo_supervisor.policy.strays import StrayFacts, TeamFacts

STARTING = timedelta(seconds=60)
"""The age below which an agent or a member of a team may still be starting."""


class StrayReader:
    """Reads the facts about the strays of one project."""

    def __init__(self, registry: AgentRegistry, scanner: ProcessScanner, was_seen: Callable[[str], bool]) -> None:
        self._registry = registry
        self._scanner = scanner
        self._was_seen = was_seen
        """Whether an agent with this id was ever recorded."""
        self._transcripts = Transcripts()

    def read_ahead(self) -> Iterator[None]:
        """Read what may be much, in steps (``AgentRegistry.read_ahead``)."""
        yield from self._registry.read_ahead()

    def read(self, known: Sequence[tuple[Agent, Liveness]], now: datetime, *, ahead: bool = False) -> StrayFacts:
        """The facts now. ``known`` are all known agents; ``ahead`` says that ``read_ahead`` was called right before."""
        snapshot = self._registry.snapshot(ahead=ahead)
        self._transcripts.renew()
        living = [agent for agent, state in known if state is Liveness.ALIVE and agent.lead is None]
        sessions = [agent for agent in living if agent.is_session]
        mates = [agent for agent in living if agent.team and self._has_parent(agent)]
        teams = {team.name: team for team in snapshot.teams}
        names = {mate.team for mate in mates if mate.team} | teams.keys()
        known_teams = {
            name: TeamFacts(name=name, team=teams.get(name), led=self._is_led(teams.get(name), sessions, snapshot))
            for name in names
            if name in teams or not self._has_file(name, snapshot)
        }
        return StrayFacts(
            teammates=[mate for mate in mates if now - mate.since >= STARTING],
            sessions=sessions,
            teams=known_teams,
            absent=list(self._absent(known_teams, snapshot, now)),
            unhosted=[a for a in sessions if a.hosted and not self._registry.may_be_resumed(a, snapshot)],
        )

    def _has_parent(self, agent: Agent) -> bool:
        """Whether a client has started it as a teammate. Another program that starts one may keep no team file."""
        seen = self._scanner.agents.get(agent.process) if agent.process else None
        return seen is not None and seen.flags is not None and seen.flags.parent is not None

    def _is_led(self, team: claude.Team | None, sessions: Sequence[Agent], snapshot: ProjectSnapshot) -> bool:
        """Whether one of the sessions leads the team, or may: one that leads no known team may lead any."""
        if team is None:
            return False
        return any(
            snapshot.is_lead(session, team) or not any(snapshot.is_lead(session, other) for other in snapshot.teams)
            for session in sessions
        )

    def _has_file(self, team: str, snapshot: ProjectSnapshot) -> bool:
        return any(os.path.lexists(home / "teams" / team / "config.json") for home in snapshot.homes)

    def _absent(
        self, teams: dict[str, TeamFacts], snapshot: ProjectSnapshot, now: datetime
    ) -> Iterator[tuple[claude.Team, claude.Member]]:
        running = {agent.id for agent in snapshot.teammates.agents}
        running |= {seen.flags.agent_id for seen in snapshot.teammates.elsewhere if seen.flags}
        for facts in teams.values():
            team = facts.team
            if team is None or not facts.led:
                continue  # its teammates may be where its lead is
            for member in team.members:
                came = member.in_process or member.agent_id == team.lead_id or member.agent_id in running
                if came or member.joined_at is None or now - member.joined_at < STARTING:
                    continue
                if not self._was_seen(member.agent_id) and not self._has_transcript(member, team, snapshot):
                    yield team, member

    def _has_transcript(self, member: claude.Member, team: claude.Team, snapshot: ProjectSnapshot) -> bool:
        return bool(self._transcripts.of_teammate(member.name, team.name, snapshot.homes, self._registry.folders.roots))
