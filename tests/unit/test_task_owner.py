"""The owner of a task in progress: known alive, known dead or unknown."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from yolo_supervisor.models import Agent, Liveness, ProcessId, Task
from yolo_supervisor.policy.task_owner import OwnerState, Worker, ownership

ALIVE, DEAD, UNKNOWN = Liveness.ALIVE, Liveness.DEAD, Liveness.UNKNOWN
DAWN = datetime(2026, 11, 29, 6, tzinfo=UTC)


def worker(name: str, liveness: Liveness, role: str = "dev", **more: object) -> Worker:
    process = ProcessId(100 + len(name), 1, "here")
    agent = Agent(
        id=f"{name}@red", name=name, role=role, team="red", source="tmux", since=DAWN, process=process, **more
    )  # type: ignore[arg-type]
    return Worker(agent=agent, liveness=liveness)


def lead(liveness: Liveness, name: str = "team-lead", **more: object) -> Worker:
    return worker(name, liveness, "lead", **more)


def lead_of(liveness: Liveness, *names: str) -> Worker:
    """The lead of teammates that have a process each."""
    return replace(lead(liveness), members=frozenset(names))


def task(owner: str | None) -> Task:
    return Task(list="red", number="1", status="in_progress", owner=owner, path=Path("/t/red/1.json"))


@pytest.mark.parametrize(
    ("owner", "workers", "expected"),
    [
        pytest.param("dev-1", [worker("dev-1", ALIVE)], OwnerState.ALIVE, id="named, alive"),
        pytest.param("dev-1@red", [worker("dev-1", ALIVE)], OwnerState.ALIVE, id="named by its id"),
        pytest.param("dev-1", [worker("dev-1", DEAD)], OwnerState.DEAD, id="named, dead"),
        pytest.param("dev-1", [worker("dev-1", UNKNOWN)], OwnerState.UNKNOWN, id="named, out of sight"),
        pytest.param("dev-1", [worker("dev-1", DEAD), worker("dev-1", ALIVE)], OwnerState.ALIVE, id="a namesake lives"),
        pytest.param("dev-1", [worker("dev-1", DEAD), worker("dev-1", UNKNOWN)], OwnerState.UNKNOWN,
                     id="a namesake is out of sight"),
        pytest.param("dev-1", [worker("dev-1", DEAD), lead(ALIVE)], OwnerState.DEAD, id="the lead lives"),
        pytest.param("dev-1", [], OwnerState.UNKNOWN, id="no agent is known"),
        pytest.param(None, [lead(ALIVE), worker("dev-1", DEAD)], OwnerState.ALIVE, id="no owner, the lead lives"),
        pytest.param(None, [lead(DEAD), worker("dev-1", ALIVE)], OwnerState.DEAD, id="no owner, the lead is dead"),
        pytest.param(None, [lead(DEAD), lead(ALIVE, "b")], OwnerState.ALIVE, id="no owner, a resumed lead lives"),
        pytest.param(None, [worker("dev-1", ALIVE)], OwnerState.UNKNOWN, id="no owner, no lead"),
        pytest.param("claude", [lead(ALIVE)], OwnerState.ALIVE, id="an owner in a model's words"),
        pytest.param("claude", [lead(DEAD), worker("dev-1", ALIVE)], OwnerState.DEAD, id="the same, the lead is dead"),
        pytest.param("claude", [lead(ALIVE), lead(ALIVE, "b")], OwnerState.UNKNOWN, id="one of two sessions"),
        pytest.param("claude", [lead(DEAD, "session-a"), lead(DEAD, "team-lead")], OwnerState.DEAD,
                     id="one session, also as the lead of its team"),
        pytest.param("dev-1", [lead_of(ALIVE, "dev-1")], OwnerState.UNKNOWN, id="a teammate out of sight"),
        pytest.param("dev-1", [lead_of(DEAD, "dev-1")], OwnerState.UNKNOWN, id="the same, its lead is dead"),
        pytest.param("claude", [lead_of(DEAD, "dev-1")], OwnerState.DEAD, id="no teammate has that name"),
        pytest.param("team-lead", [lead(ALIVE, "session", aliases=("team-lead",))], OwnerState.ALIVE, id="an alias"),
    ],
)  # fmt: skip
def test_only_a_proof_makes_an_owner_dead(owner: str | None, workers: list[Worker], expected: OwnerState) -> None:
    assert ownership(task(owner), workers).state is expected
