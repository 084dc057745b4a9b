"""Which agents are strays, by the facts of one look."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import pytest

from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.actions.base import Escalate
from yolo_supervisor.config import RestartConfig
from yolo_supervisor.formats.claude import Member, Team, team_of_session
from yolo_supervisor.models import Agent, Liveness, ProcessId
from yolo_supervisor.policy.strays import Stray, StrayCode, StrayFacts, TeamFacts, strays
from yolo_supervisor.store.lines import RestartState, StartState
from yolo_supervisor.watchers.strays import STRAY_S, decide, teams_of_returned_leads, to_be_ended

DAWN = datetime(2026, 11, 29, 6, tzinfo=UTC)


def agent(name: str, pid: int, **more: object) -> Agent:
    kind = {"id": f"{name}@red", "role": "dev", "team": "red", "source": "tmux", **more}
    return Agent(name=name, since=DAWN, pid=pid, **kind)  # type: ignore[arg-type]


def session(pid: int, ident: str = "s-1") -> Agent:
    return agent("session", pid, id=f"session-{pid}", role="lead", team=None, source="session", session=ident)


def member(name: str, pane: str = "%1") -> Member:
    return Member(f"{name}@red", name, None, "/project", pane, None)


def red(*members: Member) -> Team:
    return Team("red", "team-lead@red", "s-1", members)


def found(team: Team | None, *, led: bool = True, teammates: tuple[Agent, ...] = (agent("dev-1", 7),)) -> list[Stray]:
    return strays(StrayFacts(teammates=teammates, teams={"red": TeamFacts(name="red", team=team, led=led)}))


@pytest.mark.parametrize(
    ("team", "led", "codes"),
    [
        pytest.param(red(member("dev-1")), True, [], id="listed and led"),
        pytest.param(red(member("dev-1")), False, [StrayCode.NO_LEAD], id="no session leads the team"),
        pytest.param(red(member("dev-2")), True, [StrayCode.UNLISTED], id="not listed"),
        pytest.param(red(member("dev-1", "in-process")), True, [StrayCode.UNLISTED], id="another one has its name"),
        pytest.param(None, False, [StrayCode.TEAM_GONE], id="the team is gone"),
    ],
)
def test_a_teammate_is_a_stray_without_its_team_or_lead(team: Team | None, led: bool, codes: list[StrayCode]) -> None:
    assert [stray.code for stray in found(team, led=led)] == codes


def test_nothing_is_said_of_a_teammate_whose_teams_file_cannot_be_read() -> None:
    assert strays(StrayFacts(teammates=[agent("dev-1", 7)])) == []


def test_a_stray_is_ended_by_its_id_and_by_its_pid_where_another_agent_has_that_id() -> None:
    (alone,) = found(None)
    both = found(None, teammates=(agent("dev-1", 7), agent("dev-1", 8)))

    assert alone.reason.endswith("agent stop dev-1@red")
    assert [stray.reason.rsplit(None, 1)[1] for stray in both] == ["7", "8"]


def test_a_session_that_two_processes_run_is_one_stray() -> None:
    (stray,) = strays(StrayFacts(sessions=[session(9), session(3), session(4, "s-2")]))

    assert (stray.code, stray.key, stray.pids) == (StrayCode.SHARED_SESSION, "s-1", (3, 9))


def test_a_promised_teammate_and_a_session_without_its_daemon_are_strays() -> None:
    promised = strays(StrayFacts(absent=[(red(member("dev-2")), member("dev-2"))]))
    unhosted = strays(StrayFacts(unhosted=[session(5)]))

    assert [(stray.code, stray.key) for stray in promised] == [(StrayCode.NEVER_CAME, "dev-2@red")]
    assert [(stray.code, stray.pids) for stray in unhosted] == [(StrayCode.NO_HOST, (5,))]


def test_a_stray_is_ended_only_where_that_was_decided_and_after_it_was_seen_for_long() -> None:
    (stray,) = found(None)
    dev = agent("dev-1", 7, process=ProcessId(7, 1, "here"))
    alert, end = decide([(stray, STRAY_S)], {(7,): dev}, 3.0)

    assert isinstance(alert[0], Escalate)
    assert isinstance(end[0], Terminate)
    assert end[0].roots == (dev.process,)
    assert [type(steps[0]) for steps in decide([(stray, STRAY_S)])] == [Escalate]
    assert decide([(stray, STRAY_S - 1)], {(7,): dev}, 3.0) == []


@pytest.mark.parametrize(
    ("policy", "session", "ended"),
    [
        pytest.param("stop", "red-lead-1", True, id="its lead came back"),
        pytest.param("notify", "red-lead-1", False, id="by default"),
        pytest.param("stop", "another-1", False, id="another lead came back"),
    ],
)
def test_teammates_of_a_lead_that_came_back_are_ended_where_the_settings_say_so(
    policy: Literal["stop", "notify"], session: str, ended: bool
) -> None:
    dev = agent("dev-1", 7, process=ProcessId(7, 1, "here"), team=team_of_session("red-lead-1"))
    stray = Stray(code=StrayCode.UNLISTED, key=dev.id, pids=(7,), reason="")
    start = StartState(seq=1, record="lead.json", session=session, result="up", resumed=True)
    teams = teams_of_returned_leads({"team-lead": RestartState(starts=(start,))})
    rules = RestartConfig(strays=policy)

    assert bool(to_be_ended([stray], [(dev, Liveness.ALIVE)], teams, rules)) is ended
