"""Critical files: a broken one is quarantined, restored and reported; a sound one is never undone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.disks import use_disk
from support.project import SAMPLES
from yolo_supervisor.actions.base import AlertCode, Edit, Escalate, WriteFile, WriteMode
from yolo_supervisor.actions.state import Restore, SaveSnapshot, SaveVersion, quarantine
from yolo_supervisor.config import Config
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.read import digest
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.claude_homes import default_homes
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import FlawCode
from yolo_supervisor.policy.file_integrity import Flaw
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import FileId, backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.watchers import state
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.state import (
    Broken,
    Cure,
    Sound,
    StateObservation,
    StateWatcher,
    Unreadable,
    decide,
    meaning,
)

EPOCH = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)
Q = Path("/q")
STATE = Path("/p/.execution-state.json")
LOG = Path("/p/.events/event-log.jsonl")
SOUND = b'{"phase":5,"status":"running","plans":[{"id":"05-01","status":"pending"}]}'
OTHER = b'{"phase":5,"status":"running","plans":[{"id":"05-01","status":"complete"}]}'
EVENTS = b'{"event":"plan_start","phase":5,"plan":1}\n{"event":"plan_end","phase":5,"plan":1}\n'
EMPTY = Flaw(FlawCode.EMPTY, "it is empty")
NO_JSON = Flaw(FlawCode.NOT_JSON, "it is no JSON")
TORN = Flaw(FlawCode.HALF_WRITTEN, "it is torn")


def good(data: bytes) -> Cure:
    return Cure(data=data, source="good_version", text="the last good version")


# -- the decision -------------------------------------------------------------------------------------------------


def broken(data: bytes, *cures: Cure, path: Path = STATE, flaw: Flaw = EMPTY) -> StateObservation:
    key = str(path.relative_to("/p"))
    return StateObservation(broken=(Broken(path=path, key=key, data=data, flaw=flaw, cures=cures),))


def aside(data: bytes, flaw: Flaw, path: Path = STATE) -> WriteFile:
    name = f"{path.name.lstrip('.')}-{str(digest(data))[:12]}"
    return quarantine(
        key=str(path.relative_to("/p")),
        path=Q / name,
        data=data,
        reason=f"{flaw.text}, and unchanged in a second check",
        evidence={"file": str(path), "copy": f"quarantine/{name}", "bytes": len(data)},
    )


def test_no_change_gives_no_decision() -> None:
    assert decide(StateObservation(), Q) == []


def test_a_broken_file_is_quarantined_and_restored_with_a_diff() -> None:
    best, other = good(b'{"a":2}'), Cure(data=b"{}", source="snapshot", text="the snapshot x")

    assert decide(broken(b'{"a":', best, other, flaw=NO_JSON), Q) == [
        (
            aside(b'{"a":', NO_JSON),
            Restore(
                key=".execution-state.json",
                path=STATE,
                expected_digest=digest(b'{"a":'),
                data=b'{"a":2}',
                flaw=FlawCode.NOT_JSON,
                reason="it is no JSON: restored from the last good version",
                evidence={
                    "source": "the last good version",
                    "restored_from": "good_version",
                    "flaw": "it is no JSON",
                    "diff": ["--- broken", "+++ restored", "@@ -1 +1 @@", '-{"a":', '+{"a":2}'],
                },
            ),
        )
    ]


def test_an_empty_file_is_not_quarantined() -> None:
    ((action,),) = decide(broken(b"", good(SOUND)), Q)

    assert isinstance(action, Restore)


def test_inferred_values_of_a_repair_are_reported() -> None:
    ((action,),) = decide(
        broken(b"", Cure(data=SOUND, source="rebuilt", text="events", inferred=("plan 05-01 is pending",))), Q
    )

    assert action.evidence["inferred"] == ["plan 05-01 is pending"]


def test_a_file_without_a_repair_is_escalated_and_left() -> None:
    ((copy, asked),) = decide(broken(b"{", flaw=NO_JSON), Q)

    assert copy == aside(b"{", NO_JSON)
    assert asked == Escalate(
        kind="state",
        code=AlertCode.FILE_NOT_RESTORABLE,
        detail=FlawCode.NOT_JSON,
        key=".execution-state.json",
        reason="it is no JSON, and there is nothing to restore it from: repair it or remove it",
    )


def test_a_log_loses_its_half_written_line_and_nothing_else() -> None:
    torn = b'{"event":"pl'
    look = broken(EVENTS + torn, good(EVENTS), path=LOG, flaw=TORN)

    ((copy, cut),) = decide(look, Q)

    assert copy == aside(torn, TORN, LOG)
    assert isinstance(cut, WriteFile)
    assert (cut.verb, cut.write_mode) == ("repaired", WriteMode.TRUNCATE)
    assert (cut.expected_digest, cut.data) == (digest(EVENTS + torn), EVENTS)


def test_a_log_in_which_no_line_is_whole_is_restored_at_once_where_it_can_be() -> None:
    look = broken(b"\0" * 64, good(EVENTS), path=LOG, flaw=TORN)

    assert [action.verb for action in decide(look, Q)[0]] == ["quarantined", "restored"]


def test_a_sound_file_is_snapped_first_and_then_kept() -> None:
    snap = SaveSnapshot(key="s", path=Path("/s"), expected_digest=None, data=b"x", reason="new")

    assert decide(StateObservation(sound=(Sound(path=STATE, key="k", data=SOUND, snap=(snap,)),)), Q) == [
        (snap, SaveVersion(key="k", path=STATE, data=SOUND, reason="it is whole"))
    ]


def test_an_unreadable_file_raises_an_alert() -> None:
    unreadable = Unreadable(key="STATE.md", code="EACCES", text="Permission denied")

    assert decide(StateObservation(unreadable=(unreadable,)), Q) == [
        (
            Escalate(
                kind="state",
                code=AlertCode.FILE_UNREADABLE,
                detail="EACCES",
                key="STATE.md",
                reason="it cannot be read: Permission denied: repair it or remove it",
            ),
        )
    ]


@pytest.mark.parametrize("data", [b"x\n" * 40_000, b"".join(b"%d\n" % n for n in range(9999)), b"\0" * 10**6])
def test_a_long_difference_is_cut(data: bytes) -> None:
    ((_, restore),) = decide(broken(data, good(SOUND)), Q)

    assert len(restore.evidence["diff"]) <= 41
    assert all(len(line) <= 200 for line in restore.evidence["diff"])


def test_the_meaning_of_a_state_is_its_phase_its_status_and_its_plans() -> None:
    state = json.loads(SOUND)

    assert meaning(state) == meaning(state | {"wave": 7, "started_at": "now", "phase": "5"})
    changes: list[dict[str, Any]] = [{"phase": 6}, {"status": "complete"}, {"plans": []}, json.loads(OTHER)]
    for change in changes:
        assert meaning(state) != meaning(state | change)


@pytest.mark.parametrize("plans", [None, {}, [1, None, "x"], [{"id": []}, {"status": {}}]])
def test_any_state_means_something(plans: Any) -> None:
    assert meaning({"plans": plans}) == meaning({"plans": plans})


# -- looks at real files ------------------------------------------------------------------------------------------


class StillClock:
    """A clock that moves only when the test advances it."""

    s = 100.0

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.s

    def now(self) -> datetime:
        return EPOCH


class WatchedProject:
    """A project, its watcher, and the store that carries out the watcher's decisions."""

    def __init__(self, project: Path, claude: Path) -> None:
        self.clock = StillClock()
        self.config = Config()
        self.store = Store(project)
        self.paths = self.store.paths
        self.planning = self.paths.planning
        self.state = self.planning / ".execution-state.json"
        self.store.open()
        self.backend = backend()
        processes = Processes(self.backend)
        self.registry = AgentRegistry(
            self.paths,
            processes,
            ProcessScanner(processes),
            default_homes(self.config, {"HOME": str(claude.parent)}),
        )
        self.restart()

    def restart(self) -> None:
        """Start another watcher: it knows the journal, and nothing else."""
        self.watcher = StateWatcher(self.config, self.registry, self.store, self.clock, self.backend)

    def write(self, name: str, data: bytes) -> Path:
        path = self.planning / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def look(self, after_s: float = 0.0, settle_s: float = 0.3) -> StateObservation:
        self.clock.s += after_s
        return self.watcher.observe(EPOCH, settle_s)

    def heal(self, look: StateObservation) -> list[Outcome]:
        return self.carry_out(decide(look, self.paths.quarantine))

    def carry_out(self, remediations: Sequence[Remediation]) -> list[Outcome]:
        done = []
        for action in (each for remediation in remediations for each in remediation):
            if isinstance(action, Edit):
                done.append(self.store.commit(action, "state"))
            elif isinstance(action, SaveVersion):
                self.store.keep(action.path, action.data)
        return done

    def settle(self, looks: int = 6) -> StateObservation:
        """Look and heal until nothing is left to do; the last observation."""
        for _ in range(looks):
            self.heal(self.look(1.0))
        return self.look(1.0)

    def aside(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.paths.quarantine.iterdir())


@pytest.fixture
def watched(project: Path, claude_home: Path) -> Iterator[WatchedProject]:
    made = WatchedProject(project, claude_home)
    yield made
    made.store.close()


BROKEN: dict[str, bytes] = {
    "empty": b"", "zeros": b"\0" * 4096, "torn": SOUND[:31], "garbage": b"\xff\xfe\0 what", "a list": b"[1]",
    "no status": b"{}", "merged": b"<<<<<<< HEAD\n" + SOUND,
}  # fmt: skip
every_breakage = pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)


def test_a_whole_file_is_kept_once_as_a_good_version(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", SOUND)

    first = watched.look()
    assert [(each.key, each.data) for each in first.sound] == [(".execution-state.json", SOUND)]
    assert watched.look() == first, "the same answer until it is carried out"
    watched.heal(first)

    assert watched.look() == StateObservation()
    assert watched.store.good(watched.state) == digest(SOUND)


@every_breakage
def test_a_broken_file_is_left_alone_until_its_settle_time_has_passed(watched: WatchedProject, data: bytes) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", data)

    assert watched.look() == StateObservation()
    assert watched.look(0.29) == StateObservation()
    (found,) = watched.look(0.02).broken

    assert found.data == data
    assert found.cures[0].data == SOUND


def test_while_something_is_unsettled_the_next_look_is_soon(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", b"")
    watched.look()
    assert watched.watcher.rest_s() == 0.3

    watched.write(".execution-state.json", SOUND)
    watched.look()
    assert watched.watcher.rest_s() != 0.3


def test_every_write_restarts_the_settle_time(watched: WatchedProject) -> None:
    for end in (3, 9, 20, 40):
        watched.write(".execution-state.json", SOUND[:end])
        assert watched.look(0.2) == StateObservation()
    watched.write(".execution-state.json", SOUND)

    assert [each.data for each in watched.look(0.2).sound] == [SOUND]


@every_breakage
def test_a_broken_file_is_restored_and_quarantined(watched: WatchedProject, data: bytes) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", data)

    assert watched.settle() == StateObservation()

    assert watched.state.read_bytes() == SOUND
    assert watched.aside() == ([data] if data else [])


@every_breakage
def test_a_file_broken_while_no_daemon_ran_is_restored(watched: WatchedProject, data: bytes) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", data)
    watched.restart()

    assert watched.settle() == StateObservation()

    assert watched.state.read_bytes() == SOUND


@pytest.mark.parametrize("name", ["config.json", ".contracts/1-1.json"])
@pytest.mark.parametrize(
    "data", [b"", b"\0" * 64, b'{"v3_event_log":tr', b"[]"], ids=["empty", "zeros", "torn", "a list"]
)
def test_other_objects_are_restored_too(watched: WatchedProject, name: str, data: bytes) -> None:
    path = watched.write(name, b'{"v3_event_log":true}')
    watched.settle()
    path.write_bytes(data)

    assert watched.settle() == StateObservation()

    assert path.read_bytes() == b'{"v3_event_log":true}'


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 64, b"# State \xc3", b"# St\0\0\0\0"], ids=["empty", "zeros", "torn", "hole"]
)
def test_text_is_restored_too(watched: WatchedProject, data: bytes) -> None:
    path = watched.write("STATE.md", "# State\n\nGröße\n".encode())
    watched.settle()
    path.write_bytes(data)

    assert watched.settle() == StateObservation()

    assert path.read_bytes() == "# State\n\nGröße\n".encode()


@pytest.mark.parametrize(
    "data",
    [
        b'{"plans":[{"status":"pending","id":"05-01"}],"status":"running","phase":5}',
        b'{\n  "status": "complete"\n}\n',
        b'{"status":"a word of tomorrow","gr\xc3\xb6\xc3\x9fe":null}',
        b'{"phases":{"5":{"1":{"status":"pending"}}}}',
    ],
)
def test_a_foreign_write_that_can_be_read_is_the_new_good_version_and_is_never_undone(
    watched: WatchedProject, data: bytes
) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", data)

    assert watched.settle() == StateObservation()

    assert watched.state.read_bytes() == data
    assert [*watched.store.versions(watched.state)] == [data, SOUND]


def test_the_newest_whole_one_of_several_good_versions_is_restored(watched: WatchedProject) -> None:
    for data in (SOUND, OTHER):
        watched.write(".execution-state.json", data)
        watched.settle()
    (watched.paths.backups / str(digest(OTHER))).write_bytes(b"rotten")
    watched.write(".execution-state.json", b"")

    watched.settle()

    assert load_object(watched.state.read_bytes()) == load_object(SOUND)


def test_a_file_that_was_replaced_while_it_was_to_be_restored_is_left_as_its_writer_wanted_it(
    watched: WatchedProject,
) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", b"torn")
    watched.look()
    look = watched.look(1.0)
    assert look.broken
    watched.write(".execution-state.json", OTHER)

    assert watched.heal(look) == [Outcome.DONE, Outcome.STALE]

    assert watched.state.read_bytes() == OTHER


def test_a_missing_file_is_no_error(watched: WatchedProject) -> None:
    """The plugin's status line removes the state of a complete phase."""
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.state.unlink()

    assert watched.settle() == StateObservation()
    assert not watched.state.exists()


# -- a large or unreadable file -----------------------------------------------------------------------------------


def test_an_unreadable_file_is_reported_until_it_is_readable(watched: WatchedProject) -> None:
    with watched.state.open("wb") as file:
        file.truncate(100 * 2**20)

    looks = [watched.look(1.0).unreadable for _ in range(3)]

    assert [[each.key for each in look] for look in looks] == [[".execution-state.json"]] * 3
    watched.write(".execution-state.json", SOUND)
    assert watched.look(1.0).unreadable == ()


def test_one_file_that_cannot_be_read_stops_no_other(watched: WatchedProject) -> None:
    with (watched.planning / "config.json").open("wb") as file:
        file.truncate(100 * 2**20)
    watched.write(".execution-state.json", SOUND)

    assert [each.key for each in watched.look().sound] == [".execution-state.json"]


def test_an_unreadable_event_log_does_not_stop_the_rebuild_of_the_state(watched: WatchedProject) -> None:
    (watched.planning / "phases" / "05-gates").mkdir(parents=True)
    watched.write("phases/05-gates/05-01-PLAN.md", b"---\nphase: 5\nplan: 1\ntitle: Gates\n---\n")
    log = watched.write(".events/event-log.jsonl", EVENTS)
    with log.open("r+b") as file:
        file.truncate(100 * 2**20)
    watched.write(".execution-state.json", b"")

    watched.settle()

    assert load_object(watched.state.read_bytes()) is not None


# -- where no good version is left --------------------------------------------------------------------------------


def test_a_snapshot_is_the_second_best(watched: WatchedProject) -> None:
    folder = watched.planning / ".snapshots"
    folder.mkdir()
    watched.write(
        ".snapshots/5-20261122T205500.json",
        json.dumps({"execution_state": json.loads(SOUND), "phase": "5", "snapshot_ts": "20261122T205500"}).encode(),
    )
    watched.write(".execution-state.json", b"")

    watched.settle()

    assert watched.state.read_bytes() == execution_state.dump(json.loads(SOUND))


@pytest.mark.parametrize("state", [{"phase": 5}, {"status": "running", "plans": "lost"}])
def test_a_broken_snapshot_is_not_used_for_repair(watched: WatchedProject, state: dict[str, Any]) -> None:
    (watched.planning / ".snapshots").mkdir()
    for second, each in ((1, json.loads(SOUND)), (2, state)):
        text = json.dumps({"execution_state": each, "phase": "5", "snapshot_ts": f"20261122T20550{second}"})
        watched.write(f".snapshots/5-20261122T20550{second}.json", text.encode())
    watched.write(".execution-state.json", b"")

    assert watched.settle().broken == ()

    assert load_object(watched.state.read_bytes()) == json.loads(SOUND)


def test_d11_a_state_is_rebuilt_from_events_that_the_plugin_cannot_find(watched: WatchedProject) -> None:
    (watched.planning / "phases" / "05-gates").mkdir(parents=True)
    for plan in (1, 2):
        head = f"---\nphase: 5\nplan: {plan}\ntitle: Plan {plan}\nwave: {plan}\n---\n"
        watched.write(f"phases/05-gates/05-0{plan}-PLAN.md", head.encode())
    watched.write(
        ".events/event-log.jsonl",
        b'{"event":"plan_start","phase":5,"plan":1,"ts":"2026-11-22T20:00:00Z"}\n'
        b'{"data":{"status":"complete"},"event":"plan_end","phase":5,"plan":1,"ts":"2026-11-22T20:01:00Z"}\n',
    )
    watched.write(".execution-state.json", b"")
    watched.look()

    (found,) = watched.look(1.0).broken

    assert (found.cures[0].source, found.cures[0].text) == ("rebuilt", "plans, summaries and events")
    state = load_object(found.cures[0].data or b"")
    assert state is not None
    assert [(plan["id"], plan["status"]) for plan in state["plans"]] == [("05-01", "complete"), ("05-02", "pending")]
    assert any("05-02" in each for each in found.cures[0].inferred)
    assert not any("05-01" in each for each in found.cures[0].inferred)


def test_d20_finished_phases_whose_plans_and_summaries_are_spelled_differently_are_complete(
    watched: WatchedProject,
) -> None:
    real = sorted((SAMPLES / "phases").glob("*/phases/*")) + sorted((SAMPLES / "phases").glob("type-*/*-*"))
    assert real
    for phase in real:
        shutil.copytree(phase, watched.planning / "phases" / phase.name)
        watched.write(".execution-state.json", b"")
        watched.restart()
        watched.settle()

        state = load_object(watched.state.read_bytes())
        assert state is not None
        assert (phase.name, state["status"]) == (phase.name, "complete")
        shutil.rmtree(watched.planning / "phases")
        watched.state.unlink()
        shutil.rmtree(watched.planning / ".snapshots")
        watched.store.index.good_versions.clear()


def test_without_any_source_a_person_is_asked_once_and_the_file_stays(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", b"{torn")
    watched.heal(watched.look())
    first = decide(watched.look(1.0), watched.paths.quarantine)
    watched.carry_out(first)

    assert [action.verb for action in first[0]] == ["quarantined", "escalated"]
    assert decide(watched.look(1.0), watched.paths.quarantine) == first
    assert watched.state.read_bytes() == b"{torn"
    assert watched.aside() == [b"{torn"]


# -- leases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"{", b"\0" * 99, b"[]"])
def test_d31_a_broken_lease_that_the_plugin_would_leave_for_ever_is_put_aside(
    watched: WatchedProject, data: bytes
) -> None:
    lease = watched.write(".locks/src__a.js.lease", data)

    assert watched.settle() == StateObservation()

    assert not lease.exists()
    assert watched.aside() == ([data] if data else [])


def test_d31_a_corrupt_state_is_never_saved_as_a_snapshot(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", b"{")

    watched.settle()

    assert not (watched.planning / ".snapshots").exists()


def test_a_lease_is_not_kept_since_it_is_rewritten_all_the_time(watched: WatchedProject) -> None:
    lease = watched.write(".locks/a.lease", b'{"owner":"dev-1","ttl_secs":60}')

    watched.settle()

    assert watched.store.good(lease) is None


@pytest.mark.parametrize("name", ["two\nlines", "tab\tand\x1b[2J", "Größe", "-rf", "  ", "x" * 240, "#1", "*"])
@pytest.mark.parametrize(("folder", "suffix"), [(".locks", ".lease"), (".contracts", ".json")])
def test_a_file_with_any_name_is_repaired(watched: WatchedProject, folder: str, suffix: str, name: str) -> None:
    path = watched.write(f"{folder}/{name}{suffix}", b'{"owner":"dev-1"}')
    watched.settle()
    path.write_bytes(b"{torn")

    assert watched.settle().broken == ()

    assert not path.exists() or path.read_bytes() == b'{"owner":"dev-1"}'
    assert watched.aside() == [b"{torn"]


def test_a_name_that_is_no_text_is_healed_too(watched: WatchedProject) -> None:
    (folder := watched.planning / ".contracts").mkdir()
    path = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.json"))
    path.write_bytes(b'{"phase":5}')
    watched.settle()
    path.write_bytes(b"")

    assert watched.settle() == StateObservation()

    assert path.read_bytes() == b'{"phase":5}'


# -- logs ---------------------------------------------------------------------------------------------------------


def test_a_torn_end_is_truncated_in_place_for_open_writers(watched: WatchedProject) -> None:
    log = watched.write(".events/event-log.jsonl", EVENTS + b'{"event":"pl')
    with log.open("ab") as appender:
        watched.settle()
        appender.write(EVENTS)

    assert log.read_bytes() == EVENTS + EVENTS
    assert watched.aside() == [b'{"event":"pl']


def test_a_line_that_comes_while_the_end_is_being_cut_off_is_not_lost(watched: WatchedProject) -> None:
    log = watched.write(".events/event-log.jsonl", EVENTS + b'{"event":"pl')
    watched.look()
    look = watched.look(1.0)
    with log.open("ab") as appender:
        appender.write(b"\n" + EVENTS)

    watched.heal(look)

    assert log.read_bytes() == EVENTS + b'{"event":"pl\n' + EVENTS


@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"\n\n"])
def test_a_log_that_has_lost_all_its_lines_is_restored(watched: WatchedProject, data: bytes) -> None:
    log = watched.write(".events/event-log.jsonl", EVENTS)
    watched.settle()
    log.write_bytes(data)

    watched.settle()

    assert log.read_bytes() == EVENTS


def test_an_empty_log_is_intact(watched: WatchedProject) -> None:
    log = watched.write(".events/event-log.jsonl", b"")

    assert watched.settle() == StateObservation()
    assert log.read_bytes() == b""


def test_d35_a_growing_log_is_kept_when_it_has_grown_by_a_fourth_and_not_at_each_line(watched: WatchedProject) -> None:
    log = watched.write(".events/event-log.jsonl", EVENTS * 100)
    watched.settle()
    for grown, kept in ((124, 100), (125, 125), (126, 125)):
        log.write_bytes(EVENTS * grown)
        watched.settle()
        assert watched.store.good(log) == digest(EVENTS * kept)


def test_d35_an_unbounded_log_is_not_copied_repeatedly(watched: WatchedProject) -> None:
    log = watched.write(".events/event-log.jsonl", EVENTS * (2**20 // len(EVENTS) + 1))

    watched.settle()

    assert watched.store.good(log) is None
    assert list(watched.paths.backups.iterdir()) == []


# -- links, folders, junk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".execution-state.json", "config.json", ".contracts/1-1.json", ".locks/a.lease"])
def test_a_link_is_never_followed(watched: WatchedProject, tmp_path: Path, name: str) -> None:
    (outside := tmp_path / "outside").write_bytes(b"{torn")
    (watched.planning / name).parent.mkdir(exist_ok=True)
    (watched.planning / name).symlink_to(outside)

    watched.settle()

    assert outside.read_bytes() == b"{torn"
    assert (watched.planning / name).is_symlink()


@pytest.mark.parametrize("name", [".contracts", ".locks", ".events"])
def test_a_folder_that_is_a_link_is_not_entered(watched: WatchedProject, tmp_path: Path, name: str) -> None:
    (outside := tmp_path / "outside").mkdir()
    for each in ("1-1.json", "a.lease", "event-log.jsonl"):
        (outside / each).write_bytes(b"{torn")
    (watched.planning / name).symlink_to(outside)

    watched.settle()

    assert {path.read_bytes() for path in outside.iterdir()} == {b"{torn"}
    assert len(list(outside.iterdir())) == 3


def test_a_file_that_became_a_link_while_it_was_to_be_restored_is_not_written_through(
    watched: WatchedProject, tmp_path: Path
) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", b"{torn")
    watched.look()
    look = watched.look(1.0)
    watched.state.unlink()
    (outside := tmp_path / "outside").write_bytes(b"{torn")
    watched.state.symlink_to(outside)

    with pytest.raises(Exception, match="symbolic link"):
        watched.heal(look)

    assert outside.read_bytes() == b"{torn"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
def test_entries_that_are_no_files_stop_nothing(watched: WatchedProject, make: Callable[[Path], object]) -> None:
    make(watched.state)
    watched.write("config.json", b"{}")

    assert [each.key for each in watched.look().sound] == ["config.json"]


def test_a_state_nested_as_deep_as_can_be_read_stops_nothing(watched: WatchedProject) -> None:
    deep = b'{"status":"running","more":' + b"[" * 900 + b"]" * 900 + b"}"
    watched.write(".execution-state.json", deep)
    watched.write("config.json", b"{}")

    watched.settle()

    assert watched.store.good(watched.planning / "config.json") == digest(b"{}")


@pytest.mark.parametrize("phase", ["x" * 5000, "../../../x", ".", "a\nb"])
def test_a_state_with_an_impossible_phase_is_saved(watched: WatchedProject, phase: str) -> None:
    data = json.dumps({"status": "running", "phase": phase}).encode()
    watched.write(".execution-state.json", data)

    watched.settle()

    assert watched.store.good(watched.state) == digest(data)


# -- snapshots of changes -----------------------------------------------------------------------------------------


def saved(watched: WatchedProject) -> list[str]:
    return sorted(path.name for path in (watched.planning / ".snapshots").iterdir())


def test_a_change_that_means_something_is_saved_as_a_snapshot_and_no_other(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", SOUND + b"\n")
    watched.settle()
    assert len(saved(watched)) == 1

    watched.write(".execution-state.json", OTHER)
    watched.settle()

    assert len(saved(watched)) == 2


def test_a_state_that_nothing_changes_in_is_not_saved_again_by_the_next_program(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.restart()

    assert watched.look() == StateObservation()


@pytest.mark.parametrize("flags", [{}, {"v3_snapshot_resume": False, "v3_event_recovery": False}])
def test_flags_that_are_off_do_not_stop_snapshots_and_restorations(
    watched: WatchedProject, flags: dict[str, bool]
) -> None:
    (watched.planning / "phases" / "05-gates").mkdir(parents=True)
    watched.write("phases/05-gates/05-01-PLAN.md", b"---\nphase: 5\nplan: 1\n---\n")
    watched.write("config.json", json.dumps(flags).encode())
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", b"")
    watched.look()

    (broken,) = watched.look(1.0).broken
    assert [cure.source for cure in broken.cures] == ["good_version", "snapshot", "rebuilt"]


# -- observing ----------------------------------------------------------------------------------------------------


def test_observe_mode_saves_no_versions_until_it_ends(watched: WatchedProject) -> None:
    watched.watcher.config = msgspec.structs.replace(watched.config, mode="observe")
    watched.write(".execution-state.json", SOUND)
    assert watched.look() == StateObservation()

    watched.watcher.config = msgspec.structs.replace(watched.config, mode="heal")

    assert [each.data for each in watched.look().sound] == [SOUND]


# -- a disk that cannot be written --------------------------------------------------------------------------------


class ReadOnly(Disk):
    """A disk on which only our state folder can be written."""

    on = True

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if self.on and flags & (os.O_WRONLY | os.O_RDWR) and "yolo-supervisor" not in path.parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return super().open(path, flags, mode)


def test_on_a_read_only_disk_the_broken_file_stays_until_it_can_be_restored(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", b"{torn")
    disk = ReadOnly()
    use_disk(watched.store, disk)
    watched.look()

    with pytest.raises(OSError, match="Read-only"):
        watched.heal(watched.look(1.0))
    assert (watched.state.read_bytes(), watched.aside()) == (b"{torn", [b"{torn"])

    disk.on = False
    watched.settle()
    assert (watched.state.read_bytes(), watched.aside()) == (SOUND, [b"{torn"])


# -- contents that a person may intend --------------------------------------------------------------------------------


STRICT = {
    "a byte order mark": (b'\xef\xbb\xbf{"status": "running"}', FlawCode.BYTE_ORDER_MARK, b'{"status": "running"}'),
    "UTF-16": ('{"status": "läuft"}'.encode("utf-16"), FlawCode.NOT_UTF8, '{"status": "läuft"}'.encode()),
    "half a character": (b'{"status": "running", "phase": "\\ud800"}', FlawCode.LONE_SURROGATE, None),
    "a key twice": (b'{"status": "a", "status": "b"}', FlawCode.DUPLICATE_KEY, None),
    "a key twice, alike": (b'{"status": "a", "status": "a"}', FlawCode.DUPLICATE_KEY, b'{"status": "a"}'),
    "not a number": (b'{"status": "running", "n": NaN}', FlawCode.NOT_A_NUMBER, None),
    "infinity": (b'{"status": "running", "n": -Infinity}', FlawCode.NOT_A_NUMBER, None),
    "a number too large": (b'{"status": "running", "n": 1e999}', FlawCode.NOT_A_NUMBER, None),
    "nested too deep": (b'{"status": "running", "n": ' + b"[" * 127 + b"]" * 127 + b"}", FlawCode.TOO_DEEP, None),
}
"""Contents that strict readers refuse: their flaw, and what they are rewritten to by hand."""


@pytest.mark.parametrize("name", STRICT)
def test_content_that_strict_readers_refuse_is_reported_and_never_replaced_by_an_older_one(
    watched: WatchedProject, name: str
) -> None:
    data, code, _ = STRICT[name]
    watched.write(".execution-state.json", SOUND)
    watched.settle()

    watched.write(".execution-state.json", data)
    watched.look()
    (remediation,) = decide(watched.look(1.0), watched.paths.quarantine)

    (alert,) = remediation
    assert isinstance(alert, Escalate)
    assert (alert.code, alert.detail) == (AlertCode.FILE_NOT_STRICT, code)
    watched.settle()
    assert watched.state.read_bytes() == data
    assert watched.store.good(watched.state) == digest(SOUND)


@pytest.mark.parametrize("name", STRICT)
def test_content_that_strict_readers_refuse_is_rewritten_by_hand_if_nothing_is_lost(
    watched: WatchedProject, name: str
) -> None:
    data, _, rewritten = STRICT[name]
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.write(".execution-state.json", data)
    watched.look()

    for remediation in decide(watched.look(1.0), watched.paths.quarantine, by_hand=True):
        for action in remediation:
            if isinstance(action, Edit):
                assert watched.store.commit(action, "cli") is Outcome.DONE

    assert watched.state.read_bytes() == (data if rewritten is None else rewritten)
    assert watched.aside() == ([] if rewritten is None else [data])


@pytest.mark.parametrize(("answer", "left"), [(True, True), (None, True), (False, False)])
def test_file_in_a_merge_conflict_is_left_to_a_person(
    watched: WatchedProject, monkeypatch: pytest.MonkeyPatch, answer: bool | None, left: bool
) -> None:
    (watched.planning.parent / ".git").mkdir()
    (watched.planning.parent / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    monkeypatch.setattr(state, "is_unmerged", lambda path: answer)
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    conflict = b"{\n<<<<<<< HEAD\n" + SOUND + b"=======\n>>>>>>> theirs\n}"

    watched.write(".execution-state.json", conflict)
    watched.settle()
    watched.settle()

    assert watched.state.read_bytes() == (conflict if left else SOUND)


class Writing:
    """The backend where process 4711 has every file open for writing."""

    def pids(self) -> list[int]:
        return [4711]

    def writes_to(self, pid: int, path: Path, file: FileId) -> bool:
        return True


def test_slow_writer_is_waited_for_but_not_for_ever(watched: WatchedProject) -> None:
    watched.write(".execution-state.json", SOUND)
    watched.settle()
    watched.watcher._backend = Writing()  # type: ignore[assignment]
    watched.write(".execution-state.json", b"{half")

    seen = [watched.look(step).broken for step in (0.0, 1.0, 20.0, 8.0, 1.5)]

    assert [len(broken) for broken in seen] == [0, 0, 0, 0, 1]
    assert seen[-1][0].writer == 4711


# -- the real daemon ----------------------------------------------------------------------------------------------


def looks(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in the planning folder except our files."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
        if "yolo-supervisor" not in path.parts and path != folder
    }
