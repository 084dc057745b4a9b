"""Strays are told once, and ended by hand only; healthy teams have none. In virtual time, with the client's files."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from support.client_files import Member
from support.judgement import Actor, JudgedWorld

Story = Callable[[JudgedWorld], Awaitable[object]]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JudgedWorld:
    if sys.platform != "linux":
        pytest.skip("the machine is made of Linux's descriptors")
    world = JudgedWorld(0, tmp_path)
    world.enter(monkeypatch, tmp_path)
    return world


def told(world: JudgedWorld, story: Story, fact: str = "stray") -> list[tuple[str, str]]:
    """The strays that the journal tells of, by key and kind, some minutes after the story; or another fact."""

    async def life() -> None:
        await world.pass_s(1.0)
        await story(world)
        await world.pass_s(400.0)

    world.run(life)
    assert not world.wrongs, world.report()
    lines: list[dict[str, Any]] = [json.loads(line) for line in world.paths.journal.read_bytes().splitlines()]
    return [(line["key"], line["evidence"][fact]) for line in lines if fact in line.get("evidence", {})]


def lead_of(world: JudgedWorld) -> Actor:
    lead = world.lone()
    lead.process.environment.clear()
    world.found_team(lead)
    return lead


async def team(world: JudgedWorld) -> tuple[Actor, Actor]:
    lead = lead_of(world)
    mate = world.hire(lead, in_process=False, name="dev-1")
    assert mate is not None
    await world.pass_s(90.0)
    return lead, mate


def test_a_healthy_team_has_no_stray(world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        lead, _ = await team(world)
        world.hire(lead, in_process=True, name="dev-2")
        world.clear(lead)

    assert told(world, story) == []


def test_a_teammate_whose_lead_was_killed_is_told_once(world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        lead, _ = await team(world)
        world.die(lead, "KILL")

    ((key, kind),) = told(world, story)
    assert (key.partition("@")[0], kind) == ("dev-1", "no_lead")


def test_a_teammate_whose_lead_has_ended_in_order_is_told_once(world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        lead, _ = await team(world)
        world.die(lead, "exit")

    assert [kind for _, kind in told(world, story)] == ["team_gone"]


def test_a_teammate_whose_lead_was_resumed_is_told_once(world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        lead, _ = await team(world)
        world.die(lead, "KILL")
        await world.pass_s(2.0)
        world.resume(lead)

    assert [kind for _, kind in told(world, story)] == ["unlisted"]


def test_two_processes_on_one_session_are_told_once(world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        session = world.lone()
        await world.pass_s(20.0)
        world.resume(session)

    assert [kind for _, kind in told(world, story)] == ["shared_session"]


@pytest.mark.parametrize("came", [False, True])
def test_a_teammate_that_was_promised_and_never_came_is_told_once(came: bool, world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        lead, mate = await team(world)
        assert lead.team is not None
        if came:
            world.die(mate, "KILL")  # its record, and its transcript, say that it did
        else:
            lead.team.members.append(Member("dev-2", active=True))
            world.files.write_team(lead.team)

    assert [kind for _, kind in told(world, story)] == ([] if came else ["never_came"])


def test_a_session_whose_daemon_has_ended_is_told_once(world: JudgedWorld) -> None:
    async def story(world: JudgedWorld) -> None:
        world.start_daemon()
        world.lone(hosted=True)
        await world.pass_s(20.0)
        world.end_daemon()

    assert [kind for _, kind in told(world, story)] == ["no_host"]


@pytest.mark.parametrize("first", ["the daemon", "the session"])
def test_the_task_of_a_session_that_its_ended_daemon_cannot_resume_is_back_and_that_is_told(
    first: str, world: JudgedWorld
) -> None:
    async def story(world: JudgedWorld) -> None:
        world.start_daemon()
        session = world.lone(hosted=True)
        world.begin_task(session)
        await world.pass_s(20.0)
        if first == "the daemon":
            world.end_daemon()
        world.die(session, "KILL")
        await world.pass_s(3.0)
        world.end_daemon()
        await world.pass_s(3.0)
        assert world.figures.taken == {"dead": 1}

    assert [fact for _, fact in told(world, story, "host")] == ["ended"]
