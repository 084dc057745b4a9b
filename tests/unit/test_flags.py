"""Feature flags: every outcome counts once, a flag that fails too often is disabled, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.journal import an_entry
from support.project import SAMPLES, FakeClock
from yolo_supervisor.actions import flags as flag_actions
from yolo_supervisor.actions.base import Action, Escalate
from yolo_supervisor.actions.flags import Switch
from yolo_supervisor.actions.leases import Release, grant
from yolo_supervisor.clock import Instant
from yolo_supervisor.config import Config, FlagsConfig
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, execution_state, outcome_table
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.inventory.flag_outcomes import Disabled, Flag, FlagOutcomes, FlagsObservation
from yolo_supervisor.inventory.flag_record import (
    Detection,
    FlagOutcome,
    FlagRecord,
    FlagRecords,
    dump_record,
    flag_file,
    load_positions,
    load_record,
)
from yolo_supervisor.policy.failure_rate import Rule
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.lines import Entry
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.watchers.flags import decide

GATES, CONTRACTS = "v2_hard_gates", "v2_hard_contracts"
ROUTING = "v3_smart_routing"
CONFIG = Path("config.json")
DETECTED = Detection(1000.0, 5, 5, 5, 3621.0)


# -- decisions ----------------------------------------------------------------------------------------------------


def observed(*flags: Flag, readable: bool = True) -> FlagsObservation:
    now = Instant("here", 1000.0)
    return FlagsObservation(flags=flags, config_file=CONFIG, now=now, rule=Rule(), readable=readable)


def steps(remediations: list[tuple[Action, ...]]) -> list[tuple[str, str]]:
    return [(action.verb, action.key) for remediation in remediations for action in remediation]


def test_a_flag_that_fails_too_often_is_disabled_with_an_alert_that_gives_the_counts() -> None:
    flag = Flag(name=ROUTING, enabled=True, errors=5, samples=7, detection=DETECTED)

    ((disable, escalate),) = decide(observed(flag))

    assert isinstance(disable, Switch)
    assert not disable.on
    assert (disable.key, disable.path) == (ROUTING, CONFIG)
    assert disable.reason.startswith("5 of its last 5 outcomes were errors")
    assert {"errors": 5, "samples": 5, "error_rate": 1.0, "of_window": [5, 7]}.items() <= disable.evidence.items()
    assert isinstance(escalate, Escalate)
    assert escalate.reason.endswith(f"yolo-supervisor flag enable {ROUTING}")


@pytest.mark.parametrize("enabled", [False, None])
def test_a_flag_that_is_not_enabled_is_left_alone(enabled: bool | None) -> None:
    assert decide(observed(Flag(name=ROUTING, enabled=enabled, detection=DETECTED))) == []


def test_a_flag_with_a_low_failure_rate_is_left_alone() -> None:
    assert decide(observed(Flag(name=ROUTING, enabled=True, errors=3, samples=60))) == []


def test_dependent_flags_are_disabled_first() -> None:
    flags = (Flag(name=CONTRACTS, enabled=True, detection=DETECTED), Flag(name=GATES, enabled=True))

    assert steps(decide(observed(*flags))) == [("disabled", GATES), ("disabled", CONTRACTS), ("escalated", CONTRACTS)]
    assert steps(decide(observed(flags[0], Flag(name=GATES, enabled=False))))[0] == ("disabled", CONTRACTS)


@pytest.mark.parametrize("name", plugin_config.NEEDED_BY_SUPERVISOR)
def test_a_flag_that_the_supervisor_needs_is_only_reported(name: str) -> None:
    assert steps(decide(observed(Flag(name=name, enabled=True, detection=DETECTED)))) == [("escalated", name)]


def test_an_unreadable_configuration_raises_an_alert() -> None:
    flag = Flag(name=ROUTING, enabled=None, detection=DETECTED)

    assert steps(decide(observed(flag, readable=False))) == [("escalated", ROUTING)]


def disabled(probation_in_s: float | None = None, by: str = "flags") -> Disabled:
    return Disabled(by=by, at="2026-01-01T00:00:00Z", reason="5 of 5", probation_in_s=probation_in_s)


def test_a_disabled_flag_is_enabled_only_when_its_probation_is_due() -> None:
    for wait_s in (None, 0.1):
        assert steps(decide(observed(Flag(name=ROUTING, enabled=False, disabled=disabled(wait_s))))) == [
            ("escalated", ROUTING)
        ]

    assert steps(decide(observed(Flag(name=ROUTING, enabled=False, disabled=disabled(0.0))))) == [("enabled", ROUTING)]


def test_no_probation_begins_while_a_needed_flag_is_disabled() -> None:
    waiting, needed = Flag(name=GATES, enabled=False, disabled=disabled(0.0)), Flag(name=CONTRACTS, enabled=False)

    assert steps(decide(observed(needed, waiting))) == [("escalated", GATES)]


def test_a_flag_that_a_person_disabled_is_left_alone() -> None:
    assert decide(observed(Flag(name=ROUTING, enabled=False, disabled=disabled(by="cli")))) == []


def test_a_flag_that_is_enabled_by_hand_starts_an_epoch() -> None:
    assert steps(decide(observed(Flag(name=ROUTING, enabled=True, detection=DETECTED, disabled=disabled())))) == [
        ("enabled", ROUTING)
    ]


# -- the value in config.json -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), JSON, max_size=5), st.text(), st.booleans(), st.sampled_from([None, 1, "\t"]),
    st.booleans(), st.sampled_from(["", "\n", " \r\n"]),
)  # fmt: skip
def test_only_the_value_of_the_flag_changes(
    rest: dict[str, Any], flag: str, on: bool, indent: Any, ascii_only: bool, end: str
) -> None:
    def dump(value: bool) -> bytes:
        return (json.dumps({**rest, flag: value}, indent=indent, ensure_ascii=ascii_only) + end).encode()

    assert plugin_config.with_flag(dump(not on), flag, on) == dump(on)
    assert plugin_config.with_flag(dump(on), flag, on) == dump(on)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'\xef\xbb\xbf{"f":true}', b'\xef\xbb\xbf{"f":false}'),
        (b'{"g":{"f":true},"f" :\n\ttrue , "h":1.50}', b'{"g":{"f":true},"f" :\n\tfalse , "h":1.50}'),
        (b'{"f":false, "f":true}', b'{"f":false, "f":false}'),
        (b'{"\\u0066":true,"a":"\\u00fc \xc3\xbc"}', b'{"\\u0066":false,"a":"\\u00fc \xc3\xbc"}'),
    ],
    ids=["byte order mark", "of the same name deeper down", "twice", "escaped"],
)
def test_a_flag_is_found_in_every_style_of_json(before: bytes, after: bytes) -> None:
    assert plugin_config.with_flag(before, "f", False) == after


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"{",
        b"[true]",
        b'{"f":"true"}',
        b'{"f":1}',
        b'{"g":true}',
        b'{\n// a comment\n"f":true}',
        b'{"f":true}\xff',
    ],
)
def test_a_configuration_without_the_flag_or_without_json_is_left_alone(config: bytes) -> None:
    action = flag_actions.disable(key="f", path=CONFIG, reason="it fails")

    assert not action.holds(config)
    with pytest.raises(ValueError, match="neither on nor off"):
        plugin_config.with_flag(config, "f", False)


def test_every_flag_of_the_real_configurations_can_be_switched_there_and_back() -> None:
    configs = [path.read_bytes() for path in sorted((SAMPLES / "configs").glob("*.json"))]
    assert configs
    switched = 0
    for config in configs:
        for flag, on in plugin_config.switches(config).items():
            other = plugin_config.with_flag(config, flag, not on)
            assert plugin_config.switches(other) == {**plugin_config.switches(config), flag: not on}
            assert plugin_config.with_flag(other, flag, on) == config
            switched += 1
    assert switched > 50


# -- stored records -----------------------------------------------------------------------------------------------


def record_of(outcomes: str, now_s: float = 10.0) -> FlagRecord:
    record = FlagRecord(ROUTING)
    for number, outcome in enumerate(outcomes, 1):
        record.add(FlagOutcome(outcome == "x", "log", number), now_s, Rule())
    return record


def test_a_record_is_loaded_as_it_was_dumped() -> None:
    record = record_of("..x" * 50 + "xxxxx")
    record.failing = "1-2-3"

    found = load_record(dump_record(record, "here"), "here", 10.0)

    assert found is not None
    assert dump_record(found, "here") == dump_record(record, "here")
    assert found.detection == record.detection is not None


def test_a_reboot_drops_the_outcomes_and_keeps_the_positions() -> None:
    found = load_record(dump_record(record_of("xxxxx"), "yesterday"), "here", 10.0)

    assert found is not None
    assert (found.e_process.buckets, found.detection, found.counted) == ([], None, {"log": 5})


@pytest.mark.parametrize(
    "wrong",
    [
        {"portions": [[1, 5.0, -3, 0]]}, {"portions": [[1, 5.0, 3, -1]]}, {"portions": [[1, 5.0, 1, 2]]},
        {"portions": [[1, 5e9, 3, 0]]}, {"portions": [[1, 5.0]]}, {"portions": [[7, 5.0, 3, 0]]}, {"portions": 3},
        {"begun": -1}, {"begun": True}, {"counted": []}, {"counted": {"log": -4}}, {"flag": ""}, {"crossed": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_with_impossible_values_is_refused(wrong: dict[str, Any]) -> None:
    sound = json.loads(dump_record(record_of("..x"), "here"))

    assert load_record(json.dumps(sound).encode(), "here", 10.0) is not None
    assert load_record(json.dumps(sound | wrong).encode(), "here", 10.0) is None


@given(st.binary())
def test_garbage_is_no_record(data: bytes) -> None:
    assert load_record(data, "here", 10.0) is None


@given(st.text(min_size=1), st.text(min_size=1))
def test_file_names_are_unique_and_valid_for_every_flag_name(name: str, other: str) -> None:
    assert (flag_file(name) == flag_file(other)) == (name == other)
    assert "/" not in flag_file(name)
    assert len(flag_file(name).encode()) < 200


def test_a_detection_lasts_while_its_evidence_is_in_the_window() -> None:
    rule, record = Rule(), record_of("xxxxx", now_s=10.0)

    assert record.detected(10.0 + rule.window_s, rule) is not None
    assert record.detected(10.0 + rule.window_s + 1, rule) is None
    for number in range(rule.window):
        assert record.detected(10.0, rule) is not None
        record.add(FlagOutcome(False, "log", 6 + number), 10.0, rule)
    record.add(FlagOutcome(False), 10.0, rule)
    assert record.detected(10.0, rule) is None


# -- counting -----------------------------------------------------------------------------------------------------


class World:
    """A project whose flags are all enabled, and the collector of its outcomes."""

    def __init__(self, project: Path, **config: Any) -> None:
        self.planning = project / plugin.PLANNING
        self.clock = FakeClock()
        self.config = Config(flags=FlagsConfig(**config))
        self.store = Store(project, self.clock)
        self.store.open()
        names = (GATES, CONTRACTS, ROUTING, *plugin_config.NEEDED_BY_SUPERVISOR, "v3_lease_locks")
        (self.planning / CONFIG).write_bytes(execution_state.dump(dict.fromkeys(names, True)))
        self.metrics = self.planning / event_log.METRICS
        self.metrics.parent.mkdir(exist_ok=True)
        self.folder = self.store.paths.folder / "flags"
        self.restart()

    def restart(self) -> None:
        """Read the log as a new process does."""
        self.flags = FlagOutcomes(self.config, self.store, self.clock, "here")

    def observe(self) -> FlagsObservation:
        return self.flags.observe(self.clock.now())

    def count(self, save: bool = True) -> dict[str, tuple[int, int]]:
        """Errors and samples of each flag with outcomes, after an observation."""
        observation = self.observe()
        if save:
            assert self.flags.save()
        return {flag.name: (flag.errors, flag.samples) for flag in observation.flags if flag.samples}

    def gates(self, outcomes: str, first: int = 1) -> bytes:
        """Lines of the metrics, one for each outcome: an ``x`` is a contract that was refused."""
        return b"".join(
            metric(outcome == "x", first + number, self.clock.wall) for number, outcome in enumerate(outcomes)
        )

    def append(self, data: bytes) -> None:
        with self.metrics.open("ab") as log:
            log.write(data)


def metric(failed: bool, task: int, at: datetime | None) -> bytes:
    raw = {
        "data": {"gate": "contract_compliance", "task": str(task)}, "event": "gate_fail" if failed else "gate_pass",
        "phase": 5, "plan": 1, **({"ts": f"{at:%Y-%m-%dT%H:%M:%SZ}"} if at else {}),
    }  # fmt: skip
    return json.dumps(raw, separators=(",", ":")).encode() + b"\n"


@pytest.fixture
def world(project: Path) -> Iterator[World]:
    made = World(project)
    made.count()
    with closing(made.store):
        yield made


def test_outcomes_of_contracts_and_gates_come_from_the_plugins_metrics(world: World) -> None:
    world.append(world.gates("..x"))

    assert world.count() == {CONTRACTS: (1, 3), GATES: (0, 2)}


def test_real_logs_of_the_plugin_are_understood(world: World) -> None:
    logs = SAMPLES / "plugin-output" / "live-tree-rust-after-stop"
    for log in (event_log.METRICS, event_log.EVENT_LOG):
        (world.planning / log).parent.mkdir(exist_ok=True)
        shutil.copy(logs / log, world.planning / log)

    assert world.count() == {CONTRACTS: (1, 2), GATES: (1, 3)}


@pytest.mark.parametrize("line", [b"null\n", b"{}\n", b'{"event":"gate_pass"', b'"gate_pass"\n', b"\xff gate_fail\n",
                                  b'{"event":"gate_fail","data":[]}\n', b'{"event":["gate_pass"],"data":{"gate":{}}}\n',
                                  b'{"event":"task_blocked","data":{"gate":"contract_compliance","attempts":-2}}\n',
                                  b'{"event":"gate_fail","data":{"gate":"protected_file"}}\n'], ids=str)  # fmt: skip
def test_other_lines_are_no_outcomes(world: World, line: bytes) -> None:
    world.append(line)

    assert world.count() == {}


def test_an_outcome_counts_once_across_observations_and_restarts(world: World) -> None:
    for begun in range(0, 30, 3):
        world.append(world.gates("..x", begun))
        assert world.count()[CONTRACTS] == (begun // 3 + 1, begun + 3)
        assert world.count()[CONTRACTS] == (begun // 3 + 1, begun + 3)
        world.restart()


def test_an_outcome_that_is_not_saved_stays_pending(world: World) -> None:
    world.append(world.gates("..x"))

    for _ in range(3):
        assert world.count(save=False)[CONTRACTS] == (1, 3)
    world.restart()
    assert world.count(save=False)[CONTRACTS] == (1, 3)


def test_a_held_lock_postpones_the_save_and_loses_nothing(world: World) -> None:
    world.append(world.gates("..x"))
    with FlagRecords(world.store, world.clock, "here").locked(1.0):
        for _ in range(2):
            assert world.observe().flags
            assert not world.flags.save()

    assert world.count()[CONTRACTS] == (1, 3)
    world.restart()
    assert world.count()[CONTRACTS] == (1, 3)


def test_a_crash_between_record_and_positions_counts_nothing_twice(world: World) -> None:
    mark = world.folder / "marks"
    before = mark.read_bytes()
    world.append(world.gates("..x"))
    world.count()
    mark.write_bytes(before)
    world.restart()
    world.append(world.gates("x", 9))

    assert world.count() == {CONTRACTS: (2, 4), GATES: (0, 2)}


def test_retries_of_one_failure_count_once(world: World) -> None:
    world.append(world.gates("x", 7) * 6)
    assert world.count() == {CONTRACTS: (1, 1)}
    world.append(world.gates("x", 7))
    assert world.count() == {CONTRACTS: (1, 1)}
    world.append(world.gates("x", 8) + world.gates("x", 7))

    assert world.count() == {CONTRACTS: (3, 3)}


def test_a_half_written_line_counts_when_it_is_complete(world: World) -> None:
    line = world.gates("x")
    world.append(line[:30])
    assert world.count() == {}
    world.append(line[30:])

    assert world.count() == {CONTRACTS: (1, 1)}


def rotated(world: World) -> bytes:
    return world.gates("..x", 100)


def cut_at_its_beginning(world: World) -> bytes:
    return b"".join(world.metrics.read_bytes().splitlines(keepends=True)[-3:]) + world.gates("..x", 100)


def as_it_is(world: World) -> bytes:
    return world.metrics.read_bytes() + world.gates("..x", 100)


@pytest.mark.parametrize("change", [rotated, cut_at_its_beginning, as_it_is])
@pytest.mark.parametrize("new_file", [True, False], ids=["replaced", "in its place"])
def test_a_rotated_truncated_or_copied_log_counts_nothing_twice(
    world: World, change: Callable[[World], bytes], new_file: bool
) -> None:
    world.append(world.gates("..x" * 4))
    assert world.count()[CONTRACTS] == (4, 12)
    data = change(world)
    if new_file:
        world.metrics.unlink()
        assert world.count()[CONTRACTS] == (4, 12)
    world.metrics.write_bytes(data)

    assert world.count()[CONTRACTS] == (5, 15)
    world.restart()
    world.append(world.gates("x", 200))
    assert world.count()[CONTRACTS] == (6, 16)


@pytest.mark.parametrize("restarted", [True, False])
def test_an_edited_log_counts_nothing_twice(world: World, restarted: bool) -> None:
    for second, outcomes in enumerate((".", "xx", "x.", "x")):
        world.append(world.gates(outcomes, 10 * second))
        world.clock.wait(1.0)
    assert world.count()[CONTRACTS] == (4, 6)
    lines = world.metrics.read_bytes().splitlines(keepends=True)
    if restarted:
        world.restart()
    world.metrics.write_bytes(b"".join(lines[1:-1]))

    assert world.count()[CONTRACTS] == (4, 6)
    world.append(world.gates("x", 90))
    assert world.count()[CONTRACTS] == (5, 7)


def test_log_lines_from_before_the_epoch_do_not_count(world: World) -> None:
    """Outcomes before a switch do not count, even if they are read after it."""
    world.append(world.gates("xxxxx"))
    world.clock.wait(2.0)
    world.store.note(flag_actions.found_on(key=CONTRACTS, reason="a person enabled it"), "cli")
    assert CONTRACTS not in world.count()
    world.clock.wait(2.0)
    world.append(world.gates("x.", 10))

    assert world.count()[CONTRACTS] == (1, 2)


def test_a_setting_that_is_no_feature_flag_is_never_disabled(project: Path) -> None:
    world = World(project)
    (world.planning / CONFIG).write_bytes(execution_state.dump({"auto_commit": True}))
    for _ in range(20):
        world.flags.record("auto_commit", True)
    assert world.count() == {"auto_commit": (20, 20)}

    assert decide(world.observe()) == []


def test_a_record_under_another_flags_file_name_is_ignored(world: World) -> None:
    world.flags.record(ROUTING, True)
    path = world.folder / flag_file(ROUTING)
    path.rename(path.with_name(flag_file("v4_other")))

    world.flags.record("v4_other", False)

    world.restart()
    assert world.count() == {"v4_other": (0, 1)}


def test_a_restored_log_counts_nothing_twice(world: World) -> None:
    world.append(world.gates("..x"))
    world.count()
    before = world.metrics.read_bytes()
    world.append(world.gates("..x", 10))
    world.count()
    world.metrics.write_bytes(before)

    assert world.count()[CONTRACTS] == (2, 6)
    world.append(world.gates("x", 20))
    assert world.count()[CONTRACTS] == (3, 7)


def test_lines_from_before_the_first_read_count_only_with_a_recent_time(project: Path) -> None:
    world = World(project)
    old = world.clock.wall - timedelta(hours=2)
    world.append(metric(True, 1, old) + metric(True, 2, None) + world.gates("x.", 3))

    assert world.count() == {CONTRACTS: (1, 2), GATES: (0, 1)}


def test_an_outcome_from_the_future_counts_once(world: World) -> None:
    world.append(metric(True, 1, world.clock.wall + timedelta(days=400)))

    assert world.count() == {CONTRACTS: (1, 1)}
    world.clock.wall += timedelta(days=400)
    assert world.count() == {CONTRACTS: (1, 1)}


def test_recent_outcomes_from_a_time_without_supervisor_count(world: World) -> None:
    world.append(world.gates("xx"))
    world.clock.wall += timedelta(hours=2)
    world.append(world.gates("x.", 5))
    world.restart()

    assert world.count() == {CONTRACTS: (1, 2), GATES: (0, 1)}


def test_a_long_log_is_read_in_parts_to_its_end(world: World) -> None:
    world.append(world.gates("." * 5000))
    seen = [world.count()[GATES]]
    while world.flags.behind:
        seen.append(world.count()[GATES])

    assert len(seen) > 2
    assert load_object((world.folder / flag_file(GATES)).read_bytes() or b"") is not None
    assert json.loads((world.folder / flag_file(GATES)).read_bytes())["ever"] == 5000


def test_an_oversized_line_is_skipped(world: World) -> None:
    world.append(b"gate_fail" * 100_000 + b"\n" + world.gates("x"))
    world.count()
    while world.flags.behind:
        world.count()

    assert world.count() == {CONTRACTS: (1, 1)}


def test_outcomes_of_a_disabled_flag_do_not_count(world: World) -> None:
    (world.planning / CONFIG).write_bytes(execution_state.dump({CONTRACTS: False, GATES: True}))
    world.append(world.gates("..x"))

    assert world.count() == {GATES: (0, 2)}


def test_outcomes_older_than_the_window_do_not_count(world: World) -> None:
    world.flags.record(ROUTING, True)
    world.clock.s += world.config.flags.window_s
    assert world.count() == {ROUTING: (1, 1)}
    world.clock.s += 1

    assert world.count() == {}


def test_a_record_stays_small(world: World) -> None:
    path = world.folder / flag_file(ROUTING)
    sizes = set()
    for number in range(600):
        world.flags.record(ROUTING, number % 20 == 0)
        sizes.add(len(path.read_bytes()) // 256)

    assert 190 < world.count()[ROUTING][1] <= 200
    assert max(sizes) <= 3


def test_a_garbled_record_is_replaced(world: World) -> None:
    world.flags.record(ROUTING, True)
    (world.folder / flag_file(ROUTING)).write_bytes(b'{"flag":')

    world.flags.record(ROUTING, False)
    assert world.count() == {ROUTING: (0, 1)}


def test_an_unreadable_record_is_an_error_and_not_an_empty_one(world: World) -> None:
    (world.folder / flag_file(ROUTING)).mkdir()

    with pytest.raises(OSError, match="ordinary"):
        world.flags.record(ROUTING, False)


# -- outcomes among our actions and leases ------------------------------------------------------------------------


def journal_entry(kind: str, action: str, by: str = "leases", key: str = "src", **evidence: Any) -> Entry:
    return an_entry(action, key, kind, by, evidence)


@pytest.mark.parametrize(
    ("entry", "results"),
    [
        (journal_entry("lease", "released", ttl_s=60.0, owner="dev-1"), [("v3_lease_locks", True)]),
        (journal_entry("lease", "taken_over", by="cli", previous_owner="dev-1"), [("v3_lease_locks", True)]),
        (journal_entry("lease", "released", by="cli", owner="dev-1"), [("v3_lease_locks", False)]),
        (journal_entry("lease", "released", by="agents", owner="dev-1"), []),
        (journal_entry("lease", "renewed", by="cli"), []),
        (journal_entry("lease", "would_released", ttl_s=60.0), []),
        (journal_entry("state", "restored", key=execution_state.STATE_FILE, source="the last good version"), []),
        (journal_entry("state", "restored", key=execution_state.STATE_FILE, source="the snapshot 1-2.json"),
         [("v3_snapshot_resume", False)]),
        (journal_entry("state", "restored", key=execution_state.STATE_FILE, source="plans, summaries and events"),
         [("v3_event_recovery", False), ("v3_snapshot_resume", True)]),
        (journal_entry("state", "restored", key="STATE.md", source="the snapshot 1-2.json"), []),
    ],
)  # fmt: skip
def test_journal_entries_are_outcomes_as_the_table_lists(entry: Entry, results: list[tuple[str, bool]]) -> None:
    assert outcome_table.in_journal_entry(entry) == results


def write_lease(world: World, name: str) -> Path:
    path = world.planning / ".locks" / f"{name}.lease"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plugin_leases.dump_lease(name, "dev-1", world.clock.wall, 60))
    return path


def test_an_expired_lease_is_a_failure_and_a_returned_one_a_success(world: World) -> None:
    paths = [write_lease(world, name) for name in ("one", "two", "three")]
    world.count()
    over = Release(key="one", path=paths[0], owner="dev-1", reason="it ran out", evidence={"ttl_s": 60.0})
    assert world.store.commit(over, "leases") is Outcome.DONE
    paths[1].unlink()

    assert world.count() == {"v3_lease_locks": (1, 2)}
    world.restart()
    assert world.count() == {"v3_lease_locks": (1, 2)}


def test_a_released_lease_of_a_dead_agent_is_no_outcome(world: World) -> None:
    path = write_lease(world, "one")
    world.count()
    world.store.commit(Release(key="one", path=path, owner="dev-1", reason="its holder is dead"), "agents")

    assert world.count() == {}


def test_journal_entries_from_before_the_first_observation_do_not_count(world: World) -> None:
    def run_out(name: str) -> None:
        path = write_lease(world, name)
        over = Release(key=name, path=path, owner="dev-1", reason="it ran out", evidence={"ttl_s": 60.0})
        assert world.store.commit(over, "leases") is Outcome.DONE

    (world.folder / "marks").unlink()
    run_out("one")
    world.restart()
    assert world.count() == {}
    run_out("two")
    assert world.count() == {"v3_lease_locks": (1, 1)}


def test_switches_and_outcomes_survive_a_rotation_of_the_journal(world: World) -> None:
    path = write_lease(world, "one")
    lend = grant("taken_over", key="one", path=path, expected_digest=None, data=b"{}", reason="x")
    world.store.commit(lend, "cli")
    world.flags.record(ROUTING, True)
    world.store.commit(flag_actions.disable(key=ROUTING, path=world.planning / CONFIG, reason="it fails",
                               evidence={"errors": 5, "samples": 5}), "flags")  # fmt: skip
    before = world.store.index
    world.store.journal.rotate()

    again = Store(world.store.paths.project)
    with closing(again):
        again.open()
        after = again.index
        assert after is not before
        assert after.checkpoint() == before.checkpoint()
        assert after.flags[ROUTING].off


# -- switches and epochs ------------------------------------------------------------------------------------------


def switch(world: World, action: Callable[..., Switch], by: str = "flags", **evidence: Any) -> None:
    made = action(key=ROUTING, path=world.planning / CONFIG, reason="because", evidence=evidence)
    assert world.store.commit(made, by) is Outcome.DONE


def flag_in(world: World, name: str = ROUTING) -> Flag:
    return next(flag for flag in world.observe().flags if flag.name == name)


def probation_in_s(world: World) -> float | None:
    found = flag_in(world).disabled
    assert found is not None
    return found.probation_in_s


def test_enabling_a_flag_starts_an_epoch(world: World) -> None:
    for _ in range(5):
        world.flags.record(ROUTING, True)
    assert flag_in(world).detection is not None
    switch(world, flag_actions.disable, errors=5, samples=5, since_s=world.clock.s, boot="here")
    world.flags.record(ROUTING, True)
    switch(world, flag_actions.enable, by="cli")

    assert (flag_in(world).samples, flag_in(world).detection, flag_in(world).disabled) == (0, None, None)
    world.flags.record(ROUTING, True)
    assert (flag_in(world).errors, flag_in(world).samples) == (1, 1)


def test_a_switch_by_another_process_is_noticed(world: World, project: Path) -> None:
    with closing(Store(project)) as another:
        another.open()
        another.commit(
            flag_actions.disable(key=ROUTING, path=world.planning / CONFIG, reason="a person said so"), "cli"
        )

    found = flag_in(world)
    assert (found.enabled, found.disabled and found.disabled.by) == (False, "cli")


def test_each_failed_probation_doubles_the_wait_until_a_person_decides(project: Path) -> None:
    with closing((world := World(project, probation_s=100.0)).store):
        waits = []
        for _ in range(3):
            switch(world, flag_actions.disable, errors=5, samples=5, since_s=world.clock.s, boot="here")
            waits.append(probation_in_s(world))
            switch(world, flag_actions.enable, probation=True)
        assert waits == [100.0, 200.0, 400.0]
        switch(world, flag_actions.disable, by="cli")
        assert probation_in_s(world) is None
        switch(world, flag_actions.enable, by="cli")
        switch(world, flag_actions.disable, errors=5, samples=5, since_s=world.clock.s, boot="here")

        world.clock.s += 40.0
        assert probation_in_s(world) == 60.0


def test_a_reboot_restarts_the_wait_for_probation(project: Path) -> None:
    with closing((world := World(project, probation_s=100.0)).store):
        switch(world, flag_actions.disable, errors=5, samples=5, since_s=99.0, boot="yesterday")
        world.clock.s += 30.0
        assert probation_in_s(world) == 100.0
        world.clock.s += 30.0
        assert probation_in_s(world) == 70.0


class Interrupted(Disk):
    """Save the file just before it is replaced, when the journal has promised it already."""

    def __init__(self, path: Path, save: Callable[[Path], object]) -> None:
        self._path, self._save = path, save
        self.reads = 0

    def read(self, path: Path, limit: int = 2**24) -> bytes | None:
        if path == self._path:
            self.reads += 1
            if self.reads == 2:
                self._save(path)
        return super().read(path, limit)


def test_a_concurrent_save_by_a_person_is_not_lost(project: Path) -> None:
    path = project / plugin.PLANNING / CONFIG
    path.write_text('{"v3_smart_routing": true}')
    mine = '{"v3_smart_routing": true, "effort": "fast"}'
    with closing(Store(project, disk=Interrupted(path, lambda path: path.write_text(mine)))) as store:
        store.open()
        disable = flag_actions.disable(key=ROUTING, path=path, reason="it fails")

        assert store.commit(disable, "flags") is Outcome.STALE
        assert path.read_text() == mine
        assert store.index.flags == {}
        assert store.commit(disable, "flags") is Outcome.DONE
        assert path.read_text() == mine.replace("true", "false")


# -- the real daemon ----------------------------------------------------------------------------------------------

WRITTEN = '{\n  "v3_smart_routing":true, "x": 1.50,\n\t"v3_event_log": true, "v4_other": true}'


@pytest.fixture
def config(project: Path) -> Path:
    path = project / plugin.PLANNING / CONFIG
    path.write_text(WRITTEN)
    return path


def test_documents_with_a_lone_surrogate_in_a_key_are_unreadable() -> None:
    hostile = b'{"\\ud800": 1}'

    assert load_record(hostile, "boot", 1.0) is None
    assert load_positions(hostile) is None
