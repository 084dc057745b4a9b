"""Random teams whose clients write their real files: no agent at work loses its task, no dead one keeps its task.

A seed is a scenario of some hours. The oracle (``support/judgement.py``) knows the truth from the script alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from support.budget import budget
from support.judgement import Actor, Doing, JudgedWorld
from support.judgement_script import SETTLE_S, Script

SCENARIOS = int(os.environ.get("JUDGED_SCENARIOS", "0")) or budget(quick=4, full=60, soak=300)


@pytest.fixture(autouse=True)
def on_linux() -> None:
    if sys.platform != "linux":
        pytest.skip("the machine is made of Linux's descriptors")


@pytest.mark.parametrize("seed", range(SCENARIOS))
def test_agents_at_work_keep_their_tasks_and_dead_ones_keep_none(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(seed, tmp_path)
    script.world.enter(monkeypatch, tmp_path)
    script.run()
    assert not script.world.wrongs, script.world.report()


# -- short versions of stories that it has found --------------------------------------------------------------------

WorldOf = Callable[..., JudgedWorld]


@pytest.fixture
def world_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorldOf:
    def make(**how: object) -> JudgedWorld:
        world = JudgedWorld(0, tmp_path, **how)  # type: ignore[arg-type]
        world.enter(monkeypatch, tmp_path)
        return world

    return make


def play(world: JudgedWorld, story: Callable[[], object], until_s: float = SETTLE_S) -> None:
    """Play the story, and a time above every limit in which nothing happens."""

    async def life() -> None:
        await world.pass_s(1.0)
        await story()  # type: ignore[misc]
        await world.pass_s(until_s)

    world.run(life)
    assert not world.wrongs, world.report()


def lead_of(world: JudgedWorld, **how: bool) -> Actor:
    lead = world.lone(**how)
    lead.process.environment.clear()
    lead.list = lead.session
    world.found_team(lead)
    return lead


def test_work_in_the_background_is_seen_although_other_events_follow_the_end_of_the_turn(world_of: WorldOf) -> None:
    world = world_of()

    async def story() -> None:
        session = world.lone()
        world.begin_task(session)
        await world.pass_s(20.0)
        world.turn(session, Doing.BACKGROUND)

    play(world, story)


def test_the_work_of_a_lead_out_of_sight_is_seen_in_its_transcript(world_of: WorldOf) -> None:
    world = world_of()

    async def story() -> None:
        lead = lead_of(world, unseen=True)
        world.begin_task(lead, "team-lead")
        mate = world.hire(lead, in_process=True)
        assert mate is not None
        world.begin_task(mate)

    play(world, story, 3 * SETTLE_S)


def test_a_teammate_in_its_leads_process_that_waits_for_a_permission_is_not_stalled(world_of: WorldOf) -> None:
    world = world_of(on_stall="requeue")

    async def story() -> None:
        mate = world.hire(lead_of(world), in_process=True)
        assert mate is not None
        world.begin_task(mate)
        await world.pass_s(40.0)
        world.turn(mate, Doing.PERSON)

    play(world, story)


def test_the_signs_of_both_processes_of_one_session_count_for_a_task_that_either_may_own(world_of: WorldOf) -> None:
    world = world_of(hooks=False)

    async def story() -> None:
        first = lead_of(world)
        world.begin_task(first, "claude")
        world.resume(first)
        await world.pass_s(850.0)
        world.turn(first, Doing.IDLE)

    play(world, story, 290.0)


def test_the_task_of_a_lead_that_was_known_as_a_session_before_is_back_at_once(world_of: WorldOf) -> None:
    world = world_of(hooks=False)

    async def story() -> None:
        session = world.lone()
        session.list = session.session
        session.process.environment.clear()
        world.begin_task(session, "claude")
        await world.pass_s(20.0)
        world.found_team(session)
        await world.pass_s(20.0)
        world.die(session, "KILL")

    play(world, story, 5.0)
    assert world.figures.taken == {"dead": 1}


def test_teammates_in_both_processes_of_one_session_keep_their_tasks(world_of: WorldOf) -> None:
    world = world_of()

    async def story() -> None:
        first = lead_of(world)
        await world.pass_s(20.0)
        mates = [world.hire(lead, in_process=True, name="dev-1") for lead in (first, world.resume(first))]
        assert mates[0] is not None
        assert mates[1] is not None
        world.begin_task(mates[0])
        await world.pass_s(40.0)
        world.turn(mates[0], Doing.SUSPENDED)
        world.turn(mates[1], Doing.IDLE)

    play(world, story)


def test_a_teammate_in_its_leads_process_keeps_its_task_beside_a_stray_of_its_name(world_of: WorldOf) -> None:
    world = world_of(on_stall="requeue")

    async def story() -> None:
        first = lead_of(world)
        stray = world.hire(first, in_process=False, name="dev-1")
        assert stray is not None
        await world.pass_s(100.0)
        world.die(first, "KILL")
        world.turn(stray, Doing.STALLED)
        await world.pass_s(20.0)
        mate = world.hire(world.resume(first), in_process=True, name="dev-1")
        assert mate is not None
        world.begin_task(mate)

    play(world, story, 3 * SETTLE_S)


def test_an_agent_that_goes_on_after_a_suspension_is_not_stalled(world_of: WorldOf) -> None:
    world = world_of(on_stall="requeue")

    async def story() -> None:
        session = world.lone()
        world.begin_task(session)
        await world.pass_s(20.0)
        world.turn(session, Doing.STALLED)
        world.turn(session, Doing.SUSPENDED)
        await world.pass_s(1000.0)
        world.turn(session, Doing.STALLED)

    play(world, story, 800.0)


def test_a_subagent_that_ends_takes_no_task_of_its_name_from_another_team(world_of: WorldOf) -> None:
    world = world_of()

    async def story() -> None:
        here, elsewhere = lead_of(world), lead_of(world, unseen=True)
        world.hire(here, in_process=True, name="qa")
        mate = world.hire(elsewhere, in_process=False, name="qa")
        assert mate is not None
        world.begin_task(mate)
        await world.pass_s(60.0)
        world.die(here, "KILL")

    play(world, story, 300.0)
