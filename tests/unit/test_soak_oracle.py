"""The oracle of the soak finds what it is there to find."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from soak.oracle import Oracle
from soak.team import Task


class World:
    """One task and its worker, by files alone."""

    def __init__(self, folder: Path) -> None:
        original = {"id": "1", "status": "pending", "x_soak": {"n": 1}}
        self.task = Task(folder / "1.json", "red/1", original)
        self.worker: Any = SimpleNamespace(name="dev-1", alive=True, task=None, command=None, asked="")
        self.oracle = Oracle(SimpleNamespace(teams=[], bystanders=[]))  # type: ignore[arg-type]
        self.write()

    def write(self, **changes: object) -> None:
        document = {**self.task.original, **changes}
        self.task.path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))

    @property
    def is_wrong(self) -> bool:
        return self.oracle.complaint(self.task) is not None

    @property
    def is_settled(self) -> bool:
        return self.oracle.is_settled(self.task)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_task_without_a_worker_has_to_be_free(world: World) -> None:
    assert world.is_settled
    world.write(status="in_progress", owner="dev-9")
    assert not world.is_settled


def test_a_task_of_a_living_worker_stays_with_it(world: World) -> None:
    world.task.owner = world.worker
    world.write(status="in_progress", owner="dev-1")
    assert (world.is_wrong, world.is_settled) == (False, True)
    world.write(status="pending")
    assert (world.is_wrong, world.is_settled) == (True, False)


def test_a_task_of_a_dead_worker_has_to_be_free_again(world: World) -> None:
    world.task.owner, world.worker.alive = world.worker, False
    world.write(status="in_progress", owner="dev-1")
    assert (world.is_wrong, world.is_settled) == (False, False)  # it may still be given back
    world.write(status="pending")
    assert world.is_settled


@pytest.mark.parametrize("state", [("pending", None), ("in_progress", "dev-1"), ("completed", "dev-2")])
def test_a_reported_task_stays_done_by_whom_it_was(world: World, state: tuple[str, str | None]) -> None:
    world.task.owner, world.task.reported = world.worker, True
    world.write(status="completed", owner="dev-1")
    assert (world.is_wrong, world.is_settled) == (False, True)
    world.write(status=state[0], owner=state[1])
    assert (world.is_wrong, world.is_settled) == (True, False)


def test_after_a_command_that_was_cut_off_either_end_is_right(world: World) -> None:
    world.task.owner, world.task.uncertain = world.worker, True
    for status, owner in (("pending", None), ("in_progress", "dev-1"), ("completed", "dev-1")):
        world.write(status=status, owner=owner)
        assert world.is_settled
    world.write(status="in_progress", owner="dev-2")
    assert not world.is_settled


@pytest.mark.parametrize("content", [b"", b'{"id": "1", "sta', b"[]"])
def test_a_torn_task_is_lost(world: World, content: bytes) -> None:
    world.task.path.write_bytes(content)
    assert (world.is_wrong, world.is_settled) == (True, False)


def test_a_key_that_only_others_know_is_not_to_be_lost(world: World) -> None:
    world.write(x_soak=None)
    assert world.is_wrong
