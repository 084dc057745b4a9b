"""Agents that went down with their host, and the places in which they may be started again."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.project import EPOCH
from yolo_supervisor.formats.ended_agents import End, EndedAgent
from yolo_supervisor.fs.trust import Refused, own_socket_place
from yolo_supervisor.inventory.interrupted import interrupted
from yolo_supervisor.models import Agent, ProcessId
from yolo_supervisor.store.lines import RestartState
from yolo_supervisor.system.panes import PlaceCode, Unplaced, is_in_service, refuse_own_unit
from yolo_supervisor.system.tmux_servers import has_ended, named_sockets

DEV = Agent(
    id="dev-1@red", name="dev-1", role="dev", team="red", source="tmux", since=EPOCH, session="s-1",
    process=ProcessId(401, 7, "here"), pid=401,
)  # fmt: skip
LEAD = replace(DEV, id="lead@red", name="lead", role="lead", session="s-0")


def ended(agent: Agent = DEV, end: End = End.REBOOT, **more: Any) -> EndedAgent:
    record = f"{agent.id}-{more.get('at', '')}.json"
    return EndedAgent(record=record, agent=agent, launch=None, at="2026-11-22T12:00:00Z", end=end, why="", **more)


@pytest.mark.parametrize("end", list(End))
def test_only_an_end_with_its_host_interrupts_an_agent(end: End) -> None:
    found = interrupted([ended(end=end)], [], {})

    assert bool(found) == (end in (End.REBOOT, End.TMUX_SERVER))


def test_an_agent_that_runs_again_under_any_name_is_left_out() -> None:
    by_hand = replace(LEAD, id="other@red", session=DEV.session)

    assert interrupted([ended()], [DEV], {}) == interrupted([ended()], [by_hand], {}) == []
    assert interrupted([ended()], [LEAD], {}) == [ended()]


def test_only_the_last_end_of_an_agent_and_of_its_session_counts() -> None:
    by_hand = replace(LEAD, id="other@red", session=DEV.session)

    assert interrupted([ended(), ended(end=End.PERSON)], [], {}) == []
    assert interrupted([ended(), ended(by_hand, End.PERSON)], [], {}) == []
    assert interrupted([ended(end=End.PERSON), ended()], [], {}) == [ended()]


def test_a_held_agent_is_left_out() -> None:
    assert interrupted([ended()], [], {DEV.id: RestartState(held=True)}) == []


def test_leads_come_first() -> None:
    assert [one.agent.id for one in interrupted([ended(), ended(LEAD)], [], {})] == [LEAD.id, DEV.id]


# -- the tmux server ------------------------------------------------------------------------------------------------


def a_process(proc: Path, pid: int, unit: str, privileges: int = 0) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_text(f"0::{unit}\n")
    (proc / str(pid) / "status").write_text(f"Name:\tx\nNoNewPrivs:\t{privileges}\n")


@pytest.mark.parametrize(
    ("ours", "theirs", "refused"),
    [
        ("/user.slice/yolo-supervisor.service", "/user.slice/yolo-supervisor.service", True),
        ("/user.slice/yolo-supervisor.service", "/user.slice/yolo-supervisor.service/below", True),
        ("/user.slice/yolo-supervisor.service", "/user.slice/yolo-tmux@agents.service", False),
        ("/user.slice/session-1.scope", "/user.slice/session-1.scope", False),
    ],
)
def test_a_tmux_server_in_the_unit_of_the_supervisor_is_refused(
    tmp_path: Path, ours: str, theirs: str, refused: bool
) -> None:
    a_process(tmp_path, 1, ours)
    a_process(tmp_path, 2, theirs)

    try:
        refuse_own_unit(2, 1, tmp_path)
        code = None
    except Unplaced as error:
        code = error.code

    assert code == (PlaceCode.INSIDE_UNIT if refused else None)
    assert is_in_service(1, tmp_path) == ours.endswith(".service")


def test_a_tmux_server_with_the_restrictions_of_the_supervisor_is_refused(tmp_path: Path) -> None:
    a_process(tmp_path, 1, "/yolo-supervisor.service", privileges=1)
    a_process(tmp_path, 2, "/other.service", privileges=1)

    with pytest.raises(Unplaced):
        refuse_own_unit(2, 1, tmp_path)


def test_a_socket_is_made_in_a_folder_of_this_user_alone(tmp_path: Path) -> None:
    place = tmp_path / "tmux-1" / "default"

    assert own_socket_place(str(place)) == place
    assert place.parent.stat().st_mode & 0o777 == 0o700  # made, as after a reboot
    place.parent.chmod(0o1777)
    with pytest.raises(Refused):
        own_socket_place(str(place))
    place.parent.chmod(0o700)
    place.write_text("no socket")
    with pytest.raises(Refused):
        own_socket_place(str(place))


def test_a_server_that_listens_has_not_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert has_ended(path)
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(path)
        server.listen()
        assert not has_ended(path)
    assert has_ended(path)


def test_a_named_server_is_looked_for_where_tmux_has_it() -> None:
    uid = os.geteuid()

    assert named_sockets("agents", {}, uid) == [f"/tmp/tmux-{uid}/agents"]
    assert named_sockets("agents", {"TMUX_TMPDIR": "/run/x"}, uid)[0] == f"/run/x/tmux-{uid}/agents"
