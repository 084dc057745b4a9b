"""Snapshots on the disk: saving, dropping and finding them among other files."""

from __future__ import annotations

import json
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.project import SAMPLES, new_store
from yolo_supervisor.actions.base import RemoveFile, WriteFile
from yolo_supervisor.formats.plugin import snapshots as formats
from yolo_supervisor.inventory.snapshots import Snapshots
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, Store

AT = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)


def state(done: int = 0, phase: Any = 5) -> dict[str, Any]:
    return {
        "phase": phase,
        "status": "running",
        "plans": [{"id": f"05-{n:02d}", "status": "done"} for n in range(done)],
    }


class World:
    """A project, its store, and its snapshots as a new program sees them."""

    def __init__(self, project: Path) -> None:
        new_store(project)
        self.paths = Paths(project)
        self.ours = self.paths.folder / "snapshots"
        self.theirs = self.paths.planning / ".snapshots"

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self.paths)

    def save(self, done: int = 0, seconds: float = 0, phase: Any = 5, role: str | None = None) -> list[Outcome]:
        remediation = self.snapshots.save(state(done, phase), AT + timedelta(seconds=seconds), "test", role)
        with closing(Store(self.paths.project)) as store:
            store.open()
            return [store.commit(action, "test") for action in remediation]

    def done(self) -> list[int]:
        """The number of plans in each snapshot, the oldest first."""
        return [len(each.state["plans"]) for _, each in self.snapshots.all()]

    def best(self, phase: str | None = None, role: str | None = None) -> int | None:
        found = self.snapshots.best(phase, role)
        return len(found.state["plans"]) if found else None


@pytest.fixture
def world(project: Path) -> World:
    return World(project)


# -- saving -------------------------------------------------------------------------------------------------------


def test_a_snapshot_has_the_plugins_format(world: World) -> None:
    (world.paths.planning / ".active-agent").write_text("dev")

    (action,) = world.snapshots.save(state(1), AT, "state changed", commits=("9721c34 Gates",))

    assert isinstance(action, WriteFile)
    assert action.path == world.theirs / "5-20261122T205510.json"
    assert json.loads(action.data) == {
        "agent_role": "dev",
        "compaction_trigger": "state changed",
        "execution_state": state(1),
        "phase": "5",
        "recent_commits": ["9721c34 Gates"],
        "snapshot_ts": "20261122T205510",
    }


def test_snapshots_are_stored_where_the_plugin_can_restore_them(world: World) -> None:
    world.save()

    assert [path.name for path in world.theirs.iterdir()] == ["5-20261122T205510.json"]
    assert list(world.ours.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_of_snapshots_is_left_alone(world: World) -> None:
    world.theirs.write_bytes(b"what")

    world.save(1)

    assert (world.theirs.read_bytes(), world.done()) == (b"what", [1])


def test_a_folder_of_snapshots_that_is_a_link_is_not_written_to(world: World, tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (world.paths.planning / ".snapshots").symlink_to(outside)

    world.save()

    assert list(outside.iterdir()) == []
    assert world.done() == [0]


def test_ten_of_a_phase_are_kept_and_the_oldest_go(world: World) -> None:
    world.save(0, phase=4)
    for n in range(13):
        world.save(n, seconds=n)

    assert world.done() == [0, *range(3, 13)]


def test_a_dropped_snapshot_is_kept_in_the_journal(world: World) -> None:
    for n in range(10):
        world.save(n, seconds=n)
    (world.theirs / "5-20261122T205510.json").write_bytes(b"the oldest")

    world.save(10, seconds=10)

    assert not (world.theirs / "5-20261122T205510.json").exists()
    assert b'"removed":"the oldest"' in world.paths.journal.read_bytes()


@pytest.mark.parametrize("back_s", [3600, 86400 * 400])
def test_a_snapshot_is_the_newest_though_the_clock_was_set_back_before_it(world: World, back_s: float) -> None:
    world.save(1)

    world.save(2, seconds=-back_s)

    assert world.done() == [1, 2]
    assert world.best() == 2


def test_a_new_snapshot_is_never_the_one_too_many_though_the_clock_was_set_back(world: World) -> None:
    for n in range(10):
        world.save(n, seconds=n)

    world.save(10, seconds=-3600)

    assert world.done() == [*range(1, 11)]


def test_two_states_of_one_second_are_two_snapshots(world: World) -> None:
    world.save(1)

    assert world.save(2, seconds=0.5) == [Outcome.DONE]
    assert world.done() == [1, 2]


@pytest.mark.parametrize(
    "phase", ["", "../../x", "/etc", "\0", "a\nb", ".", "..", "\ud800", "x" * 5000, None, [1], 1e300, True]
)
def test_a_state_with_any_phase_name_can_be_saved_and_found(world: World, phase: Any) -> None:
    assert world.save(3, phase=phase) == [Outcome.DONE]

    assert world.done() == [3]
    assert [path.parent for path, _ in world.snapshots.all()] == [world.theirs]


def test_a_state_that_is_nested_as_deep_as_can_be_read_can_be_saved(world: World) -> None:
    deep = state(1) | {"more": json.loads("[" * 900 + "]" * 900)}

    (action,) = world.snapshots.save(deep, AT, "test")

    assert isinstance(action, WriteFile)


# -- finding ------------------------------------------------------------------------------------------------------


def test_without_any_folder_there_are_no_snapshots(project: Path) -> None:
    found = Snapshots(Paths(project))

    assert (found.all(), found.best(None, "dev")) == ([], None)


def test_d15_the_snapshots_of_both_stores_are_one_history(world: World) -> None:
    hook = world.paths.planning / "snapshots" / "snap-5-20261122205600.json"
    hook.parent.mkdir()
    hook.write_text(
        json.dumps({"agent_name": "lead", "execution_state": state(7), "matcher": "auto", "phase": "5",
                    "timestamp": "20261122205600"})
    )  # fmt: skip
    theirs = world.paths.planning / ".snapshots" / "5-20261122T205530.json"
    theirs.parent.mkdir()
    theirs.write_text(json.dumps({"execution_state": state(6), "phase": "5", "snapshot_ts": "20261122T205530"}))
    (world.ours / "5-20261122T205500.json").write_text(
        json.dumps({"execution_state": state(5), "phase": "5", "snapshot_ts": "20261122T205500"})
    )

    assert world.done() == [5, 6, 7]
    assert world.best("5") == 7


def test_d15_the_hooks_own_store_is_never_pruned_by_us_since_it_may_be_in_git(world: World) -> None:
    folder = world.paths.planning / "snapshots"
    folder.mkdir()
    for n in range(12):
        (folder / f"snap-5-2026112220{n:02d}00.json").write_text(
            json.dumps({"execution_state": state(n), "phase": "5"})
        )

    world.save(99)

    assert len(list(folder.iterdir())) == 12


def test_the_roles_own_newest_is_restored_else_the_newest(world: World) -> None:
    world.save(1, seconds=1, role="yolo-dev-01")
    world.save(2, seconds=2, role="lead")

    assert [world.best("5", role) for role in ("dev", "lead", "qa", None)] == [1, 2, 2, 2]


def test_an_older_phase_is_never_restored_because_its_agent_had_the_role(world: World) -> None:
    world.save(1, phase=3, seconds=1, role="dev")
    world.save(2, phase=5, seconds=2, role="lead")

    assert world.best(role="dev") == 2


JUNK: dict[str, Any] = {
    "empty.json": b"",
    "5-20261122T999999.json": b"{}",
    "5-20261122T205511.json": b'{"execution_state":{},"phase":"5"}',
    "5-20261122T205512.json": b'{"execution_state":{"phase":5',
    "5-20261122T205513.json": b"\0" * 4096,
    "5-99999999T999999.json": b'{"execution_state":{"status":"running"},"phase":"5"}',
    "new\nline-20261122T205514.json": b"[]",
    "huge.json": b"[" * 100_000,
}


@pytest.mark.parametrize("folder", ["snapshots", ".snapshots", ".supervisor/snapshots"])
def test_junk_in_any_folder_of_snapshots_is_passed_over(world: World, folder: str) -> None:
    world.save(1)
    junk = world.paths.planning / folder
    junk.mkdir(exist_ok=True)
    for name, data in JUNK.items():
        (junk / name).write_bytes(data)
    Path(os.fsdecode(os.fsencode(junk) + b"/\xff\xfe-20261122T205514.json")).write_bytes(b"{}")
    (junk / "folder.json").mkdir()
    os.mkfifo(junk / "pipe.json")
    (junk / "loop.json").symlink_to("loop.json")
    (junk / "gone.json").symlink_to("/nowhere/at/all")
    with (junk / "5-20261122T205515.json").open("wb") as sparse:
        sparse.truncate(100 * 2**20)

    assert world.done() == [1]
    assert world.save(2, seconds=60) == [Outcome.DONE]
    assert world.best() == 2
    assert len(list(junk.iterdir())) >= len(JUNK)


def test_a_folder_of_snapshots_that_is_a_file_holds_none(world: World) -> None:
    (world.paths.planning / "snapshots").write_bytes(b"what")

    assert world.done() == []


def test_a_snapshot_that_was_overwritten_is_read_again(world: World) -> None:
    world.save(1)
    found = world.snapshots
    assert [len(each.state["plans"]) for _, each in found.all()] == [1]
    ((path, _),) = found.all()

    path.write_bytes(formats.dump(formats.Snapshot(path.name, "5", AT, None, state(2), None)))
    os.utime(path, ns=(0, 7))

    assert [len(each.state["plans"]) for _, each in found.all()] == [2]


def test_every_real_snapshot_is_found_and_the_newest_of_a_phase_is_the_best(world: World) -> None:
    real = sorted((SAMPLES / "snapshots").glob("*.json"))
    assert real
    folder = world.paths.planning / "snapshots"
    folder.mkdir()
    for path in real:
        (folder / path.name).write_bytes(path.read_bytes())

    assert {path.name for path, _ in world.snapshots.all()} == {path.name for path in real}
    for phase in {path.name.split("-")[1] for path in real}:
        newest = max(path for path in real if path.name.split("-")[1] == phase)
        best = world.snapshots.best(phase, None)
        assert best is not None
        assert best.state == json.loads(newest.read_text())["execution_state"]


def test_only_surplus_snapshots_are_dropped_and_no_others(world: World) -> None:
    for n in range(10):
        world.save(n, seconds=n)

    remediation = world.snapshots.save(state(10), AT + timedelta(seconds=10), "test")

    assert [action.verb for action in remediation] == ["snapshotted", "pruned"]
    assert isinstance(remediation[1], RemoveFile)
    assert remediation[1].path == world.theirs / "5-20261122T205510.json"
