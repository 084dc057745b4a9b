"""Agents that no session leads any more, and those that were promised and never came. A person decides about each.

No absence here proves a death: nothing is ended or requeued because of what this module says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from yolo_supervisor.formats import claude
from yolo_supervisor.models import Agent


class StrayCode(StrEnum):
    """The kind of a stray."""

    UNLISTED = "unlisted"
    """A teammate whose team does not list it any more: its lead was resumed, or replaced."""
    TEAM_GONE = "team_gone"
    """A teammate whose team's folder was removed: its lead has ended in order."""
    NO_LEAD = "no_lead"
    """A teammate whose team has no lead that runs here: the lead was killed, or a resumed one leads another team."""
    SHARED_SESSION = "shared_session"
    """A session that more than one process runs."""
    NEVER_CAME = "never_came"
    """A teammate that its team lists, and of which there is neither a process nor a transcript."""
    NO_HOST = "no_host"
    """A session of ``claude --bg`` whose daemon has ended: it is not resumed after a crash."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stray:
    """One stray, as far as one look shows it."""

    code: StrayCode
    key: str
    """The id of the agent, or of the session."""
    pids: tuple[int, ...]
    reason: str

    @property
    def identity(self) -> tuple[StrayCode, str, tuple[int, ...]]:
        """Equal for the same stray in the next look."""
        return self.code, self.key, self.pids


@dataclass(frozen=True, kw_only=True, slots=True)
class TeamFacts:
    """A team of living teammates, or of one that was promised."""

    name: str
    team: claude.Team | None
    """What its file says; None if it has none."""
    led: bool
    """Whether a session that runs here leads it, or may: a session that leads no known team may lead any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StrayFacts:
    """The facts of one look. A team whose file cannot be read is left out: nothing is known of it."""

    teammates: Sequence[Agent] = ()
    """The living teammates that have a separate process."""
    sessions: Sequence[Agent] = ()
    """The living leads and lone sessions."""
    teams: Mapping[str, TeamFacts] = field(default_factory=dict)
    absent: Sequence[tuple[claude.Team, claude.Member]] = ()
    """The members with a pane of which there is neither a process nor a transcript."""
    unhosted: Sequence[Agent] = ()
    """The living sessions of ``claude --bg`` whose daemon has ended."""


def strays(facts: StrayFacts) -> list[Stray]:
    """The strays that these facts show."""
    return [*_teammates(facts), *_shared_sessions(facts), *_absent(facts), *_unhosted(facts)]


def _teammates(facts: StrayFacts) -> Iterator[Stray]:
    for agent in facts.teammates:
        known = facts.teams.get(agent.team or "")
        if known is None or agent.pid is None:
            continue
        if known.team is None:
            code, why = StrayCode.TEAM_GONE, f"its team {known.name} is gone"
        elif all(member.agent_id != agent.id or member.in_process for member in known.team.members):
            code, why = StrayCode.UNLISTED, f"its team {known.name} does not list it any more"
        elif not known.led:
            code, why = StrayCode.NO_LEAD, f"no session that runs here leads its team {known.name}"
        else:
            continue
        reason = f"{agent.name} goes on, but {why}: no lead reaches it. To end it: {_stop(agent.id, agent.pid, facts)}"
        yield Stray(code=code, key=agent.id, pids=(agent.pid,), reason=reason)


def _stop(ident: str, pid: int, facts: StrayFacts) -> str:
    """The command that ends the agent, by its pid where another one has the same id."""
    same = [agent for agent in (*facts.teammates, *facts.sessions) if agent.id == ident]
    return f"yolo-supervisor agent stop {ident if len(same) == 1 else pid}"


def _shared_sessions(facts: StrayFacts) -> Iterator[Stray]:
    by_session: dict[str, list[int]] = {}
    for agent in facts.sessions:
        if agent.session and agent.pid is not None:
            by_session.setdefault(agent.session, []).append(agent.pid)
    for session, pids in by_session.items():
        if len(pids) > 1:
            listed = " and ".join(str(pid) for pid in sorted(pids))
            reason = f"the processes {listed} run one session: each overwrites what the other one writes. To end one: "
            reason += "yolo-supervisor agent stop PID"
            yield Stray(code=StrayCode.SHARED_SESSION, key=session, pids=tuple(sorted(pids)), reason=reason)


def _absent(facts: StrayFacts) -> Iterator[Stray]:
    for team, member in facts.absent:
        reason = f"the team {team.name} lists {member.name}, but it never came: no process and no transcript is its own"
        yield Stray(code=StrayCode.NEVER_CAME, key=member.agent_id, pids=(), reason=reason)


def _unhosted(facts: StrayFacts) -> Iterator[Stray]:
    for agent in facts.unhosted:
        if agent.pid is not None:
            reason = (
                f"the daemon of Claude Code that ran {agent.id} has ended: the session is not resumed if it crashes"
            )
            yield Stray(code=StrayCode.NO_HOST, key=agent.id, pids=(agent.pid,), reason=reason)
