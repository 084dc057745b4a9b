"""Several sightings: those of one agent, and those of different agents."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from yolo_supervisor.inventory.agent_sources import Rank, agent_key, merge
from yolo_supervisor.models import Agent, ProcessId

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PROCESS = ProcessId(400, 7, "here")


def sighting(source: str, process: ProcessId = PROCESS, lead: str | None = None, ident: str = "") -> Agent:
    return Agent(
        id=ident or f"by-{source}", name=source, role="dev", team=None, source=source, since=EPOCH, process=process,
        pid=process.pid, lead=lead,
    )  # fmt: skip


@pytest.mark.parametrize(("better", "worse"), list(itertools.combinations(Rank, 2)))
def test_the_source_that_says_more_wins(better: Rank, worse: Rank) -> None:
    sightings = {worse: [sighting("worse")], better: [sighting("better")]}

    assert merge(sightings) == [sighting("better")]


def test_the_order_of_the_sources_is_this() -> None:
    assert list(Rank) == [
        Rank.RECORD,
        Rank.COMMAND_LINE,
        Rank.SESSION_FILE,
        Rank.TEAM_FILE,
        Rank.HOOK_NOTE,
        Rank.AGENT_HEALTH,
        Rank.AGENT_PIDS,
    ]


def test_known_agents_are_left_out() -> None:
    known = {agent_key(sighting("any"))}
    other = sighting("health", process=replace(PROCESS, pid=401))

    assert merge({Rank.AGENT_HEALTH: [sighting("health"), other]}, known) == [other]


def test_a_reused_pid_is_another_agent() -> None:
    agents = [sighting("process"), sighting("process", process=replace(PROCESS, started=8))]

    assert merge({Rank.COMMAND_LINE: agents}) == agents


def test_subagents_share_a_process_and_are_separate_agents() -> None:
    session = sighting("session")
    subagents = [sighting("hook", lead="process 400", ident=name) for name in ("a", "b", "a")]

    assert merge({Rank.HOOK_NOTE: [session, *subagents]}) == [session, *subagents[:2]]
