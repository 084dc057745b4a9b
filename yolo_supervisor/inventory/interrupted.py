"""The agents that were at work when the machine, or their tmux server, went down, and have not come back since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from yolo_supervisor.formats.ended_agents import EndedAgent
from yolo_supervisor.models import Agent
from yolo_supervisor.store.lines import RestartState


def interrupted(
    ended: Iterable[EndedAgent], living: Iterable[Agent], restarts: Mapping[str, RestartState]
) -> list[EndedAgent]:
    """These agents, leads first. ``ended`` has the one that died last at the end; ``living`` are all but the dead.

    Only the last end of an agent and of its session counts: one that came back and was ended since is not meant. One
    that a person holds is left out.
    """
    ended, living = list(ended), list(living)
    last = {one.agent.id: one for one in ended}
    last_of_session = {one.agent.session: one for one in ended}
    ids = {agent.id for agent in living}
    sessions = {agent.session for agent in living if agent.session is not None}
    found = [
        one
        for one in last.values()
        if one.end.interrupted
        and one.agent.id not in ids
        and one.agent.session not in sessions
        and (one.agent.session is None or last_of_session[one.agent.session] is one)
        and not restarts.get(one.agent.id, RestartState()).held
    ]
    return sorted(found, key=lambda one: not one.agent.is_session)
