"""The descent of processes from agents, by their births."""

from __future__ import annotations

import pytest

from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.births import Lineages
from yolo_supervisor.system.process_backend import ProcessFacts
from yolo_supervisor.system.process_table import Sweep

pytestmark = pytest.mark.unit

AGENT = ProcessId(100, 10, "boot")


def lineages() -> Lineages:
    followed = Lineages()
    followed.add(AGENT, (), lambda process: True)
    return followed


def sweep(*processes: tuple[int, int, int]) -> Sweep:
    """The process table: pid, parent and start time of each."""
    return Sweep("boot", {pid: ProcessFacts(pid, parent, started, False, "x") for pid, parent, started in processes})


def found(followed: Lineages, now: Sweep) -> list[int]:
    return sorted(process.pid for process in followed.by_agent(now).get(AGENT, ()))


def test_a_process_descends_from_the_agent_although_all_in_between_have_ended() -> None:
    followed = lineages()

    followed.forked(100, 101, 20)
    followed.forked(101, 102, 21)
    followed.forked(102, 103, 22)

    assert found(followed, sweep((100, 1, 10), (103, 1, 22))) == [103]


def test_children_of_other_processes_are_not_followed() -> None:
    followed = lineages()

    followed.forked(7, 8, 20)

    assert found(followed, sweep((8, 7, 20))) == []


def test_another_process_with_a_descendants_pid_is_none() -> None:
    followed = lineages()
    followed.forked(100, 101, 20)

    assert found(followed, sweep((101, 7, 21))) == [], "it was started later than the birth"

    followed.forked(7, 101, 30)
    followed.forked(101, 102, 31)

    assert found(followed, sweep((101, 7, 30), (102, 101, 31))) == []


def test_only_the_agents_own_children_lead_sessions_of_tools() -> None:
    followed = lineages()

    followed.forked(100, 101, 20)
    followed.forked(101, 102, 21)

    assert followed.tools == {AGENT: {101}}


def test_a_link_lasts_until_all_births_before_a_sweep_were_read() -> None:
    followed = lineages()
    followed.forked(100, 101, 20)
    before = frozenset(followed.links)
    followed.forked(101, 102, 21)
    now = sweep((100, 1, 10), (102, 1, 21))

    followed.prune(now, before)

    assert sorted(followed.links) == [100, 102]
    assert found(followed, now) == [102]


def test_the_link_of_a_dead_agent_stays_until_it_is_discarded() -> None:
    followed = lineages()
    followed.forked(100, 101, 20)

    followed.prune(sweep((101, 1, 20)), frozenset(followed.links))
    assert found(followed, sweep((101, 1, 20))) == [101]

    followed.discard(AGENT)
    assert (followed.links, followed.tools) == ({}, {})


def test_after_a_loss_only_processes_that_run_are_kept() -> None:
    followed = lineages()
    followed.forked(100, 101, 20)
    followed.forked(101, 102, 21)

    followed.keep(lambda pid, born: pid != 101)

    assert sorted(followed.links) == [100, 102]
