"""``agent hold``, ``reset`` and ``start``: a person decides about an agent's starts. Real tmux, a stand-in client."""

from __future__ import annotations

import json
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from support.cli import PROGRAM
from support.daemon import QUICK
from support.team import Team
from support.teammates import RESTART, Teammates
from support.tmux import PrivateTmux
from support.wait import wait_until

DEV = f"dev-{os.getpid()}"
"""An agent that no other test on this machine has: one that runs anywhere is not started again."""

ID = f"{DEV}@red"

NEVER = QUICK + "\n[restart]\nhost_pause_s = 0\nhost_starts = 1000\n"


@pytest.fixture
def mates(team: Team, tmux: PrivateTmux) -> Teammates:
    return Teammates(team, tmux)


def kill(team: Team, pid: int, name: str = DEV) -> None:
    """End the agent by SIGKILL, and wait until it is forgotten."""
    os.kill(pid, signal.SIGKILL)
    team.wait_healed(name)


def by_person(team: Team, *words: str, code: int = 0) -> dict[str, Any]:
    """The JSON document that the command prints at a person's terminal."""
    result = team.cli.by_person(*words, "--json")
    assert result.returncode == code, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_forgotten_agent_is_started_by_hand_whatever_its_policy(team: Team, mates: Teammates) -> None:
    team.supervise(NEVER)
    kill(team, mates.start(DEV))

    document = by_person(team, "agent", "start", DEV)

    team.mind(document["pid"])
    assert (document["result"], document["id"]) == ("started", ID)
    assert team.alive(document["pid"])
    (started,) = team.running.did("restarted", ID)
    assert (started["by"], started["evidence"]["by_hand"]) == ("cli", True)


def test_an_agent_that_runs_is_not_started_beside_itself(team: Team, mates: Teammates) -> None:
    team.supervise(NEVER)
    pid = mates.start(DEV)

    assert by_person(team, "agent", "start", DEV, code=1)["code"] == "runs"

    kill(team, pid)
    first = by_person(team, "agent", "start", DEV)["pid"]
    team.mind(first)
    assert by_person(team, "agent", "start", DEV, code=1)["code"] in ("runs", "starting")


def test_a_held_agent_is_started_by_hand_only(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    pid = mates.start(DEV)
    assert team.cli.json("agent", "hold", DEV) == {"result": "held", "id": ID}

    kill(team, pid)

    (forgotten,) = team.running.did("forgotten", ID)
    assert forgotten["evidence"]["not_restarted"] == "held"
    assert not team.running.did("restarted")
    document = by_person(team, "agent", "start", DEV)
    team.mind(document["pid"])
    team.running.wait(lambda: len(team.running.did("registered", ID)) == 2, "it to be watched again")
    os.kill(document["pid"], signal.SIGKILL)
    mates.back(DEV, times=2)  # the start has ended the hold


def test_an_agent_that_was_stopped_by_hand_is_held_until_it_is_reset(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART)
    mates.start(DEV)

    by_person(team, "agent", "stop", DEV, "--yes")

    team.wait_healed(DEV)
    assert team.running.did("held", ID)
    assert team.cli.json("agent", "hold", DEV)["result"] == "known"
    assert by_person(team, "agent", "reset", DEV)["result"] == "reset"
    assert by_person(team, "agent", "reset", DEV)["result"] == "known"


def test_an_unknown_agent_is_neither_held_nor_reset_nor_started(team: Team) -> None:
    for word in ("hold", "reset", "start"):
        assert team.cli.json("agent", word, "no-such", code=1)["code"] == "not_found"


def test_an_agent_does_not_start_another_one(team: Team, mates: Teammates) -> None:
    team.supervise(NEVER)
    kill(team, mates.start(DEV))
    said = team.project.parent / "said"
    command = shlex.join([*PROGRAM, "agent", "start", DEV, "--project", str(team.project)])
    team.agent("dev-2", program=f"import os; os.system({f'{command} 2> {said}.new; mv {said}.new {said}'!r})")

    wait_until(said.exists, "the command to end")

    assert "needs a person" in said.read_text()
    assert not team.running.did("restarted")


def test_what_is_remembered_of_a_dead_agent_is_private(team: Team, mates: Teammates) -> None:
    team.supervise(NEVER)
    kill(team, mates.start(DEV))

    (path,) = (path for path in Path(team.own.ended).iterdir() if path.name.startswith(DEV))

    assert path.stat().st_mode & 0o777 == 0o600


def test_status_explain_and_doctor_name_an_agent_that_is_given_up(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART + "max_starts = 1\n")
    pid = mates.start(DEV)
    os.kill(pid, signal.SIGKILL)
    os.kill(mates.back(DEV)["evidence"]["pid"], signal.SIGKILL)
    team.running.wait(lambda: team.running.did("restart_given_up", ID), "it to be given up")
    team.running.wait(lambda: team.running.did("forgotten", ID), "its recovery")

    (shown,) = (a for a in team.cli.json("status")["projects"][0]["agents"] if a["id"] == ID)
    assert (shown["state"], shown["restart"]["state"], shown["restart"]["code"]) == ("dead", "given_up", "too_many")
    assert f"agent reset {ID}" in team.cli("status").stdout
    assert team.cli.json("explain", "agent", DEV)["restart"][ID]["state"] == "given_up"
    assert f"{ID} is not started again" in team.cli("doctor").stdout

    by_person(team, "agent", "reset", DEV)
    assert all(a["id"] != ID for a in team.cli.json("status")["projects"][0]["agents"])


def test_status_shows_which_start_waits_and_which_agent_is_held(team: Team, mates: Teammates) -> None:
    team.supervise(RESTART + "min_free_mib = 1000000\n")
    pid, other = mates.start(DEV), mates.start(f"{DEV}b")
    os.kill(pid, signal.SIGKILL)
    assert team.cli("agent", "hold", f"{DEV}b").returncode == 0

    def restarts() -> dict[str, dict[str, object] | None]:
        return {a["id"]: a["restart"] for a in team.cli.json("status")["projects"][0]["agents"]}

    wait_until(lambda: restarts().get(ID) is not None, "the start to be planned")
    shown = restarts()
    waits, is_held = shown[ID], shown[f"{ID.replace(DEV, DEV + 'b')}"]
    assert waits is not None
    assert is_held is not None
    assert (waits["state"], waits["code"], waits["try"], waits["of"]) == ("waiting", "memory", 1, 3)
    assert is_held["state"] == "held"
    assert team.alive(other)
