"""``agent restore``: who went down with the machine or a tmux server is started again. Real tmux, a stand-in client."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.daemon import QUICK
from support.team import Team
from support.teammates import Teammates
from support.tmux import PrivateTmux
from support.wait import wait_until

DEV, QA = f"dev-{os.getpid()}r", f"qa-{os.getpid()}r"
"""Agents that no other test on this machine has: those that run anywhere are not started again."""

IDS = [f"{DEV}@red", f"{QA}@red"]

QUIET = QUICK + "\n[restart]\nhost_pause_s = 0\nhost_starts = 1000\n"


@pytest.fixture
def mates(team: Team, tmux: PrivateTmux) -> Teammates:
    return Teammates(team, tmux)


def two_at_work(team: Team, mates: Teammates, config: str = QUIET) -> None:
    """Two teammates of a supervised project; one has a task."""
    team.supervise(config)
    mates.task(DEV)
    for name in (DEV, QA):
        mates.start(name)


def sessions(mates: Teammates) -> dict[str, str]:
    """The sessions of the client, by teammate."""
    found = {name: mates.transcript(name) for name in (DEV, QA)}
    return {name: path.stem for name, path in found.items() if path is not None}


def end_server(tmux: PrivateTmux) -> None:
    tmux.server.kill()
    tmux.server.wait()


def wait_listed(team: Team, ids: list[str]) -> list[dict[str, Any]]:
    """The agents of the list, once it has these."""

    def listed() -> list[dict[str, Any]] | None:
        agents: list[dict[str, Any]] = team.cli.json("agent", "restore")["agents"]
        return agents if sorted(agent["id"] for agent in agents) == sorted(ids) else None

    found: list[dict[str, Any]] = wait_until(listed, f"{ids} to be listed")
    return found


def restore_all(team: Team) -> list[dict[str, Any]]:
    result = team.cli.by_person("agent", "restore", "--all", "--yes", "--json")
    assert result.returncode == 0, result.stderr
    ends: list[dict[str, Any]] = json.loads(result.stdout)["agents"]
    for end in ends:
        team.mind(end["pid"])
    return ends


def assert_back(team: Team, mates: Teammates, ends: list[dict[str, Any]], before: dict[str, str]) -> None:
    """Both run, each with its conversation."""
    assert sorted(end["id"] for end in ends) == sorted(IDS)
    assert {end["result"] for end in ends} == {"started"}
    for end in ends:
        name = end["id"].partition("@")[0]
        wait_until(lambda name=name: team.running.did("resumed", f"{name}@red"), f"{name} to go on")
    assert sessions(mates) == before
    assert team.cli.json("agent", "restore")["agents"] == []


def test_the_agents_of_a_killed_tmux_server_are_restored(team: Team, mates: Teammates, tmux: PrivateTmux) -> None:
    two_at_work(team, mates)
    before = sessions(mates)

    end_server(tmux)
    for name in (DEV, QA):
        team.wait_healed(name)
    found = {agent["id"]: agent for agent in wait_listed(team, IDS)}
    tmux.start()  # without any session

    assert {agent["end"] for agent in found.values()} == {"tmux_server"}
    assert {agent["code"] for agent in found.values()} == {None}
    assert [task["id"] for task in found[f"{DEV}@red"]["tasks"]] == ["red/101"]
    assert found[f"{DEV}@red"]["folder"] == str(team.project)
    assert "was at work on red/101" in team.cli("agent", "restore").stdout
    assert_back(team, mates, restore_all(team), before)
    assert tmux("list-sessions", "-F", "#{session_name}") == "red"  # both in a session of the old name


def test_a_server_is_started_where_the_old_one_is_gone(team: Team, mates: Teammates, tmux: PrivateTmux) -> None:
    two_at_work(team, mates)
    before = sessions(mates)
    end_server(tmux)
    wait_listed(team, IDS)

    ends = restore_all(team)

    server = int(tmux("display-message", "-p", "#{pid}"))
    team.mind(server)
    assert {end["tmux"] for end in ends} == {tmux.socket}
    assert tmux("show-options", "-sv", "exit-empty") == "on"
    assert_back(team, mates, ends, before)


def test_after_a_reboot_the_agents_are_restored(team: Team, mates: Teammates, tmux: PrivateTmux) -> None:
    two_at_work(team, mates)
    before = sessions(mates)
    team.running.stop()
    end_server(tmux)
    for path in Path(team.own.agents).iterdir():
        record = json.loads(path.read_text())
        machine, _, namespace = record["process"]["boot"].split("/")
        record["process"]["boot"] = f"{machine}/an-earlier-boot/{namespace}"
        path.write_text(json.dumps(record))

    (listed,) = {agent["end"] for agent in wait_listed(team, IDS)}  # no daemon has seen it yet
    assert listed == "reboot"
    team.supervise(QUIET)
    for name in (DEV, QA):
        team.wait_healed(name)
    tmux.start()

    assert_back(team, mates, restore_all(team), before)


def test_an_end_that_was_wanted_is_not_listed(team: Team, mates: Teammates, tmux: PrivateTmux) -> None:
    two_at_work(team, mates)
    held = f"{DEV}h"
    mates.start(held)
    os.kill(mates.start(f"{DEV}k"), signal.SIGKILL)
    assert team.cli.by_person("agent", "stop", DEV, "--yes").returncode == 0
    assert team.cli("agent", "hold", held).returncode == 0
    for name in (DEV, f"{DEV}k"):
        team.wait_healed(name)

    end_server(tmux)
    for name in (QA, held):
        team.wait_healed(name)

    wait_listed(team, [f"{QA}@red"])
    assert team.cli.json("agent", "restore", DEV, "--yes", code=1)["code"] == "not_found"


def test_nothing_to_restore_is_said_in_one_sentence(team: Team) -> None:
    for words in ((), ("--all", "--yes")):
        result = team.cli("agent", "restore", *words)
        assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)
    assert team.cli("agent", "restore", "--all", "dev-1").returncode == 2


def test_the_pace_of_the_machine_is_waited_for_and_told(team: Team, mates: Teammates, tmux: PrivateTmux) -> None:
    two_at_work(team, mates, QUIET.replace("host_pause_s = 0", "host_pause_s = 15"))
    before = sessions(mates)
    end_server(tmux)
    wait_listed(team, IDS)
    tmux.start()

    result = team.cli.by_person("agent", "restore", "--all", "--yes", "--json")

    ends = json.loads(result.stdout)["agents"]
    for end in ends:
        team.mind(end["pid"])
    assert "waits: other agents of this machine were started a moment ago" in result.stderr
    assert_back(team, mates, ends, before)


def test_the_daemon_says_once_who_can_be_restored(team: Team, mates: Teammates, tmux: PrivateTmux) -> None:
    two_at_work(team, mates)
    end_server(tmux)

    def told() -> list[dict[str, Any]]:
        return [e for e in team.running.did("escalated") if "agent restore" in e["reason"]]

    team.running.wait(told, "a person to be told")

    assert "2 agents were at work when the machine or a tmux server went down" in team.cli("status").stdout
    assert len(team.status()["interrupted_agents"]) == 2
    team.wait_looks(2)
    (alert,) = told()
    assert alert["reason"] == "2 agents were at work when their tmux server ended: yolo-supervisor agent restore"
    assert sorted(alert["evidence"]["agents"]) == sorted(IDS)
