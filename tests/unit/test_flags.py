"""Feature flags: every outcome counts once, what fails too often is switched off, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cli import Cli
from support.daemon import RunningDaemon, StartDaemon
from support.processes import Children
from support.project import SAMPLES, FakeClock
from yolo_supervisor.actions.base import Action, Escalate
from yolo_supervisor.actions.flags import Disable, Enable, FlagFoundOn, FlagOutcome
from yolo_supervisor.actions.leases import GrantLease, Release
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config, FlagsConfig
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, execution_state, outcome_table
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.inventory.flag_outcomes import Crossed, Flag, Flags, Look, Off, Record, flag_file, load
from yolo_supervisor.policy.failure_rate import Rule
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.watchers.flags import decide

GATES, CONTRACTS = "v2_hard_gates", "v2_hard_contracts"
ROUTING = "v3_smart_routing"
CONFIG = Path("config.json")
ENOUGH = Crossed(1000.0, 5, 5, 5, 3621.0)


# -- decisions ----------------------------------------------------------------------------------------------------


def look(*flags: Flag, **more: Any) -> Look:
    return Look(**{"flags": flags, "config": CONFIG, "now_s": 1000.0, "boot": "here", "rule": Rule(), **more})


def what(remediations: list[tuple[Action, ...]]) -> list[tuple[type[Action], str]]:
    return [(type(action), action.key) for remediation in remediations for action in remediation]


def test_a_flag_that_fails_too_often_is_switched_off_and_somebody_is_told_with_the_counts() -> None:
    flag = Flag(name=ROUTING, enabled=True, errors=5, samples=7, crossed=ENOUGH)

    ((disable, escalate),) = decide(look(flag))

    assert isinstance(disable, Disable)
    assert (disable.key, disable.path) == (ROUTING, CONFIG)
    assert disable.reason.startswith("5 of its last 5 outcomes were errors")
    assert {"errors": 5, "samples": 5, "error_rate": 1.0, "of_window": [5, 7]}.items() <= disable.evidence.items()
    assert isinstance(escalate, Escalate)
    assert escalate.reason.endswith(f"yolo-supervisor flag enable {ROUTING}")


@pytest.mark.parametrize("enabled", [False, None])
def test_a_flag_that_is_not_on_is_left_alone(enabled: bool | None) -> None:
    assert decide(look(Flag(name=ROUTING, enabled=enabled, crossed=ENOUGH))) == []


def test_a_flag_that_fares_well_is_left_alone() -> None:
    assert decide(look(Flag(name=ROUTING, enabled=True, errors=3, samples=60))) == []


def test_what_needs_the_flag_is_switched_off_before_it() -> None:
    flags = (Flag(name=CONTRACTS, enabled=True, crossed=ENOUGH), Flag(name=GATES, enabled=True))

    assert what(decide(look(*flags))) == [(Disable, GATES), (Disable, CONTRACTS), (Escalate, CONTRACTS)]
    assert what(decide(look(flags[0], Flag(name=GATES, enabled=False))))[0] == (Disable, CONTRACTS)


@pytest.mark.parametrize("name", plugin_config.OURS)
def test_of_a_flag_that_the_supervisor_needs_itself_a_person_is_only_told(name: str) -> None:
    assert what(decide(look(Flag(name=name, enabled=True, crossed=ENOUGH)))) == [(Escalate, name)]


def test_if_the_configuration_cannot_be_read_a_person_is_told() -> None:
    flag = Flag(name=ROUTING, enabled=None, crossed=ENOUGH)

    assert what(decide(look(flag, readable=False))) == [(Escalate, ROUTING)]


def off(left_s: float | None = None, by: str = "flags") -> Off:
    return Off(by=by, at="2026-01-01T00:00:00Z", reason="5 of 5", left_s=left_s)


def test_a_flag_is_never_switched_on_again_by_itself_unless_a_probation_is_wanted_and_due() -> None:
    for left_s in (None, 0.1):
        assert what(decide(look(Flag(name=ROUTING, enabled=False, off=off(left_s))))) == [(Escalate, ROUTING)]

    assert what(decide(look(Flag(name=ROUTING, enabled=False, off=off(0.0))))) == [(Enable, ROUTING)]


def test_no_probation_begins_while_what_the_flag_needs_is_off() -> None:
    waiting, needed = Flag(name=GATES, enabled=False, off=off(0.0)), Flag(name=CONTRACTS, enabled=False)

    assert what(decide(look(needed, waiting))) == [(Escalate, GATES)]


def test_what_a_person_has_switched_off_is_nobody_elses_business() -> None:
    assert decide(look(Flag(name=ROUTING, enabled=False, off=off(by="cli")))) == []


def test_a_flag_that_somebody_has_switched_on_by_hand_is_judged_anew() -> None:
    assert what(decide(look(Flag(name=ROUTING, enabled=True, crossed=ENOUGH, off=off())))) == [(FlagFoundOn, ROUTING)]


# -- the one value in the configuration ---------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(), JSON, max_size=5), st.text(), st.booleans(), st.sampled_from([None, 1, "\t"]),
    st.booleans(), st.sampled_from(["", "\n", " \r\n"]),
)  # fmt: skip
def test_nothing_but_the_flags_value_changes(
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
def test_it_is_found_however_the_file_is_written(before: bytes, after: bytes) -> None:
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
def test_a_configuration_that_is_none_or_says_nothing_of_the_flag_is_left_alone(config: bytes) -> None:
    action = Disable(key="f", path=CONFIG, reason="it fails")

    assert not action.holds(config)
    with pytest.raises(ValueError, match="neither on nor off"):
        plugin_config.with_flag(config, "f", False)


def test_every_flag_of_every_real_configuration_can_be_switched_and_switched_back() -> None:
    configs = [path.read_bytes() for path in sorted((SAMPLES / "configs").glob("*.json"))]
    assert configs
    switched = 0
    for config in configs:
        for flag, on in plugin_config.wishes(config).items():
            other = plugin_config.with_flag(config, flag, not on)
            assert plugin_config.wishes(other) == {**plugin_config.wishes(config), flag: not on}
            assert plugin_config.with_flag(other, flag, on) == config
            switched += 1
    assert switched > 50


# -- documents ----------------------------------------------------------------------------------------------------


def record_of(word: str, name: str = ROUTING, now_s: float = 10.0) -> Record:
    record = Record(name)
    for number, letter in enumerate(word, 1):
        record.take(FlagOutcome(letter == "x", "log", number), now_s, Rule())
    return record


def test_what_is_known_of_a_flag_is_read_as_it_was_written() -> None:
    record = record_of("..x" * 50 + "xxxxx")
    record.failing = "1-2-3"

    found = load(record.dump("here"), "here", 10.0)

    assert found is not None
    assert found.dump("here") == record.dump("here")
    assert found.crossed == record.crossed is not None


def test_after_a_reboot_the_outcomes_do_not_count_but_they_are_not_counted_again_either() -> None:
    found = load(record_of("xxxxx").dump("yesterday"), "here", 10.0)

    assert found is not None
    assert (found.trail.buckets, found.crossed, found.counted) == ([], None, {"log": 5})


@pytest.mark.parametrize(
    "wrong",
    [
        {"portions": [[1, 5.0, -3, 0]]}, {"portions": [[1, 5.0, 3, -1]]}, {"portions": [[1, 5.0, 1, 2]]},
        {"portions": [[1, 5e9, 3, 0]]}, {"portions": [[1, 5.0]]}, {"portions": [[7, 5.0, 3, 0]]}, {"portions": 3},
        {"begun": -1}, {"begun": True}, {"counted": []}, {"counted": {"log": -4}}, {"flag": ""}, {"crossed": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_document_with_what_cannot_be_is_not_believed(wrong: dict[str, Any]) -> None:
    sound = json.loads(record_of("..x").dump("here"))

    assert load(json.dumps(sound).encode(), "here", 10.0) is not None
    assert load(json.dumps(sound | wrong).encode(), "here", 10.0) is None


@given(st.binary())
def test_no_garbage_is_taken_for_a_document(data: bytes) -> None:
    assert load(data, "here", 10.0) is None


@given(st.text(min_size=1), st.text(min_size=1))
def test_each_flag_has_a_document_of_its_own_that_can_be_a_file(name: str, other: str) -> None:
    assert (flag_file(name) == flag_file(other)) == (name == other)
    assert "/" not in flag_file(name)
    assert len(flag_file(name).encode()) < 200


def test_a_verdict_stands_as_long_as_its_evidence_is_in_the_window() -> None:
    rule, record = Rule(), record_of("xxxxx", now_s=10.0)

    assert record.verdict(10.0 + rule.window_s, rule) is not None
    assert record.verdict(10.0 + rule.window_s + 1, rule) is None
    for number in range(rule.window):
        assert record.verdict(10.0, rule) is not None
        record.take(FlagOutcome(False, "log", 6 + number), 10.0, rule)
    record.take(FlagOutcome(False), 10.0, rule)
    assert record.verdict(10.0, rule) is None


# -- counting -----------------------------------------------------------------------------------------------------


class World:
    """A project whose flags are all on, and somebody who looks at them."""

    def __init__(self, project: Path, **config: Any) -> None:
        self.planning = project / plugin.PLANNING
        self.clock = FakeClock()
        self.config = Config(flags=FlagsConfig(**config))
        self.store = Store(project, self.clock)
        self.store.open()
        names = (GATES, CONTRACTS, ROUTING, *plugin_config.OURS, "v3_lease_locks")
        (self.planning / CONFIG).write_bytes(execution_state.dump(dict.fromkeys(names, True)))
        self.metrics = self.planning / event_log.METRICS
        self.metrics.parent.mkdir(exist_ok=True)
        self.begin_anew()

    def begin_anew(self) -> None:
        """As after a restart."""
        self.flags = Flags(lambda: self.config, self.store, self.clock, "here")

    def look(self, write: bool = True) -> dict[str, tuple[int, int]]:
        """Errors and samples of the flags that have any, and what is new is written down."""
        found = self.flags.look(self.clock.now())
        if found.count is not None and write:
            assert self.flags.count(found.count)
        return {flag.name: (flag.errors, flag.samples) for flag in found.flags if flag.samples}

    def gates(self, word: str, first: int = 1) -> bytes:
        """Lines of the metrics, one for each letter: an ``x`` is a contract that was refused."""
        return b"".join(metric(letter == "x", first + number, self.clock.wall) for number, letter in enumerate(word))

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
    made.look()
    with closing(made.store):
        yield made


def test_the_plugins_metrics_tell_whether_contracts_and_gates_work(world: World) -> None:
    world.append(world.gates("..x"))

    assert world.look() == {CONTRACTS: (1, 3), GATES: (0, 2)}


def test_the_samples_of_the_plugins_own_logs_are_understood(world: World) -> None:
    logs = SAMPLES / "plugin-output" / "live-tree-rust-after-stop"
    for log in (event_log.METRICS, event_log.EVENT_LOG):
        (world.planning / log).parent.mkdir(exist_ok=True)
        shutil.copy(logs / log, world.planning / log)

    assert world.look() == {CONTRACTS: (1, 2), GATES: (1, 3)}


@pytest.mark.parametrize("line", [b"null\n", b"{}\n", b'{"event":"gate_pass"', b'"gate_pass"\n', b"\xff gate_fail\n",
                                  b'{"event":"gate_fail","data":[]}\n', b'{"event":["gate_pass"],"data":{"gate":{}}}\n',
                                  b'{"event":"task_blocked","data":{"gate":"contract_compliance","attempts":-2}}\n',
                                  b'{"event":"gate_fail","data":{"gate":"protected_file"}}\n'], ids=str)  # fmt: skip
def test_what_is_no_outcome_counts_for_none(world: World, line: bytes) -> None:
    world.append(line)

    assert world.look() == {}


def test_every_outcome_counts_once_over_looks_and_restarts(world: World) -> None:
    for begun in range(0, 30, 3):
        world.append(world.gates("..x", begun))
        assert world.look()[CONTRACTS] == (begun // 3 + 1, begun + 3)
        assert world.look()[CONTRACTS] == (begun // 3 + 1, begun + 3)
        world.begin_anew()


def test_an_outcome_that_could_not_be_written_down_is_not_lost(world: World) -> None:
    world.append(world.gates("..x"))

    for _ in range(3):
        assert world.look(write=False)[CONTRACTS] == (1, 3)
    world.begin_anew()
    assert world.look(write=False)[CONTRACTS] == (1, 3)


def test_a_crash_between_a_flags_document_and_the_mark_counts_nothing_twice(world: World) -> None:
    mark = world.flags.folder / "marks"
    before = mark.read_bytes()
    world.append(world.gates("..x"))
    world.look()
    mark.write_bytes(before)
    world.begin_anew()
    world.append(world.gates("x", 9))

    assert world.look() == {CONTRACTS: (2, 4), GATES: (0, 2)}


def test_one_and_the_same_failing_counts_once_however_often_it_is_tried(world: World) -> None:
    world.append(world.gates("x", 7) * 6)
    assert world.look() == {CONTRACTS: (1, 1)}
    world.append(world.gates("x", 7))
    assert world.look() == {CONTRACTS: (1, 1)}
    world.append(world.gates("x", 8) + world.gates("x", 7))

    assert world.look() == {CONTRACTS: (3, 3)}


def test_a_line_that_is_half_written_waits_for_its_end(world: World) -> None:
    line = world.gates("x")
    world.append(line[:30])
    assert world.look() == {}
    world.append(line[30:])

    assert world.look() == {CONTRACTS: (1, 1)}


def rotated(world: World) -> bytes:
    return world.gates("..x", 100)


def cut_at_its_beginning(world: World) -> bytes:
    return b"".join(world.metrics.read_bytes().splitlines(keepends=True)[-3:]) + world.gates("..x", 100)


def as_it_is(world: World) -> bytes:
    return world.metrics.read_bytes() + world.gates("..x", 100)


@pytest.mark.parametrize("change", [rotated, cut_at_its_beginning, as_it_is])
@pytest.mark.parametrize("new_file", [True, False], ids=["replaced", "in its place"])
def test_a_log_that_is_rotated_cut_or_copied_is_read_on_and_not_again(
    world: World, change: Callable[[World], bytes], new_file: bool
) -> None:
    world.append(world.gates("..x" * 4))
    assert world.look()[CONTRACTS] == (4, 12)
    data = change(world)
    if new_file:
        world.metrics.unlink()
        assert world.look()[CONTRACTS] == (4, 12)
    world.metrics.write_bytes(data)

    assert world.look()[CONTRACTS] == (5, 15)
    world.begin_anew()
    world.append(world.gates("x", 200))
    assert world.look()[CONTRACTS] == (6, 16)


@pytest.mark.parametrize("restarted", [True, False])
def test_a_log_that_somebody_edits_tells_nothing_twice(world: World, restarted: bool) -> None:
    for second, word in enumerate((".", "xx", "x.", "x")):
        world.append(world.gates(word, 10 * second))
        world.clock.wait(1.0)
    assert world.look()[CONTRACTS] == (4, 6)
    lines = world.metrics.read_bytes().splitlines(keepends=True)
    if restarted:
        world.begin_anew()
    world.metrics.write_bytes(b"".join(lines[1:-1]))

    assert world.look()[CONTRACTS] == (4, 6)
    world.append(world.gates("x", 90))
    assert world.look()[CONTRACTS] == (5, 7)


def test_what_logs_told_before_a_flag_was_switched_does_not_count(world: World) -> None:
    """Also if nobody has read it by then."""
    world.append(world.gates("xxxxx"))
    world.clock.wait(2.0)
    world.store.note(FlagFoundOn(key=CONTRACTS, reason="a person wants it to be judged anew"), "cli")
    assert CONTRACTS not in world.look()
    world.clock.wait(2.0)
    world.append(world.gates("x.", 10))

    assert world.look()[CONTRACTS] == (1, 2)


def test_a_switch_that_is_no_feature_flag_is_never_switched_off(project: Path) -> None:
    world = World(project)
    (world.planning / CONFIG).write_bytes(execution_state.dump({"auto_commit": True}))
    for _ in range(20):
        world.flags.record("auto_commit", True)
    assert world.look() == {"auto_commit": (20, 20)}

    assert decide(world.flags.look(world.clock.now())) == []


def test_a_document_under_the_name_of_anothers_counts_for_nobody(world: World) -> None:
    world.flags.record(ROUTING, True)
    path = world.flags.folder / flag_file(ROUTING)
    path.rename(path.with_name(flag_file("v4_other")))

    world.flags.record("v4_other", False)

    world.begin_anew()
    assert world.look() == {"v4_other": (0, 1)}


def test_a_log_that_is_put_back_as_it_once_was_is_not_read_again(world: World) -> None:
    world.append(world.gates("..x"))
    world.look()
    before = world.metrics.read_bytes()
    world.append(world.gates("..x", 10))
    world.look()
    world.metrics.write_bytes(before)

    assert world.look()[CONTRACTS] == (2, 6)
    world.append(world.gates("x", 20))
    assert world.look()[CONTRACTS] == (3, 7)


def test_what_was_there_before_anybody_looked_counts_as_far_as_it_says_that_it_is_recent(project: Path) -> None:
    world = World(project)
    old = world.clock.wall - timedelta(hours=2)
    world.append(metric(True, 1, old) + metric(True, 2, None) + world.gates("x.", 3))

    assert world.look() == {CONTRACTS: (1, 2), GATES: (0, 1)}


def test_an_outcome_from_the_future_counts_once_like_any_other(world: World) -> None:
    world.append(metric(True, 1, world.clock.wall + timedelta(days=400)))

    assert world.look() == {CONTRACTS: (1, 1)}
    world.clock.wall += timedelta(days=400)
    assert world.look() == {CONTRACTS: (1, 1)}


def test_what_was_told_while_no_supervisor_was_there_counts_unless_it_is_too_old(world: World) -> None:
    world.append(world.gates("xx"))
    world.clock.wall += timedelta(hours=2)
    world.append(world.gates("x.", 5))
    world.begin_anew()

    assert world.look() == {CONTRACTS: (1, 2), GATES: (0, 1)}


def test_a_long_log_is_read_in_portions_to_its_end(world: World) -> None:
    world.append(world.gates("." * 5000))
    seen = [world.look()[GATES]]
    while world.flags.behind:
        seen.append(world.look()[GATES])

    assert len(seen) > 2
    assert load_object((world.flags.folder / flag_file(GATES)).read_bytes() or b"") is not None
    assert json.loads((world.flags.folder / flag_file(GATES)).read_bytes())["ever"] == 5000


def test_a_line_longer_than_any_is_passed_over(world: World) -> None:
    world.append(b"gate_fail" * 100_000 + b"\n" + world.gates("x"))
    world.look()
    while world.flags.behind:
        world.look()

    assert world.look() == {CONTRACTS: (1, 1)}


def test_what_the_logs_tell_of_a_flag_that_is_off_does_not_count(world: World) -> None:
    (world.planning / CONFIG).write_bytes(execution_state.dump({CONTRACTS: False, GATES: True}))
    world.append(world.gates("..x"))

    assert world.look() == {GATES: (0, 2)}


def test_outcomes_of_an_hour_ago_are_in_the_window_and_older_ones_are_not(world: World) -> None:
    world.flags.record(ROUTING, True)
    world.clock.s += world.config.flags.window_s
    assert world.look() == {ROUTING: (1, 1)}
    world.clock.s += 1

    assert world.look() == {}


def test_only_the_last_outcomes_are_kept_however_many_there_were(world: World) -> None:
    path = world.flags.folder / flag_file(ROUTING)
    sizes = set()
    for number in range(600):
        world.flags.record(ROUTING, number % 20 == 0)
        sizes.add(len(path.read_bytes()) // 256)

    assert 190 < world.look()[ROUTING][1] <= 200
    assert max(sizes) <= 3


RECORDER = """
import sys
import time
from pathlib import Path
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.inventory.flag_outcomes import Flags
from yolo_supervisor.store.store import Store
store = Store(Path(sys.argv[1]), lock_limit_s=30.0)
store.open()
flags = Flags(Config, store, SystemClock(), "here")
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
for number in range(50):
    flags.record("v3_smart_routing", number % 5 == 0)
    flags.record(f"v3_own_{sys.argv[2]}", False)
"""


def test_many_processes_record_at_once_and_nothing_is_lost(world: World, children: Children, project: Path) -> None:
    go = project / "go"
    recorders = [children.python(RECORDER, str(project), str(number), str(go)) for number in range(6)]
    go.touch()
    assert [each.wait(60) for each in recorders] == [0] * 6

    told = json.loads((world.flags.folder / flag_file(ROUTING)).read_bytes())
    assert told["ever"] == 300
    found = load(json.dumps(told).encode(), "here", 1e9)
    assert found is not None
    assert all(5 * p.errors <= 2 * p.samples for p in found.trail.buckets)


def test_a_document_that_holds_garbage_is_begun_anew(world: World) -> None:
    world.flags.record(ROUTING, True)
    (world.flags.folder / flag_file(ROUTING)).write_bytes(b'{"flag":')

    world.flags.record(ROUTING, False)
    assert world.look() == {ROUTING: (0, 1)}


def test_a_document_that_cannot_be_read_is_not_taken_for_none(world: World) -> None:
    (world.flags.folder / flag_file(ROUTING)).mkdir()

    with pytest.raises(OSError, match="ordinary"):
        world.flags.record(ROUTING, False)


# -- what we did ourselves ----------------------------------------------------------------------------------------


def entry(kind: str, action: str, by: str = "leases", key: str = "src", **evidence: Any) -> Mapping[str, Any]:
    return {"kind": kind, "key": key, "action": action, "by": by, "evidence": evidence}


@pytest.mark.parametrize(
    ("told", "means"),
    [
        (entry("lease", "released", ttl_s=60.0, owner="dev-1"), [("v3_lease_locks", True)]),
        (entry("lease", "taken_over", by="cli", previous_owner="dev-1"), [("v3_lease_locks", True)]),
        (entry("lease", "released", by="cli", owner="dev-1"), [("v3_lease_locks", False)]),
        (entry("lease", "released", by="agents", owner="dev-1"), []),
        (entry("lease", "renewed", by="cli"), []),
        (entry("lease", "would_released", ttl_s=60.0), []),
        (entry("state", "restored", key=execution_state.STATE_FILE, source="the last good version"), []),
        (entry("state", "restored", key=execution_state.STATE_FILE, source="the snapshot 1-2.json"),
         [("v3_snapshot_resume", False)]),
        (entry("state", "restored", key=execution_state.STATE_FILE, source="plans, summaries and events"),
         [("v3_event_recovery", False), ("v3_snapshot_resume", True)]),
        (entry("state", "restored", key="STATE.md", source="the snapshot 1-2.json"), []),
    ],
)  # fmt: skip
def test_what_we_did_tells_of_a_flag_only_if_it_says_so(told: Mapping[str, Any], means: list[tuple[str, bool]]) -> None:
    assert outcome_table.in_journal_entry(told) == means


def write_lease(world: World, name: str) -> Path:
    path = world.planning / ".locks" / f"{name}.lease"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plugin_leases.dump_lease(name, "dev-1", world.clock.wall, 60))
    return path


def test_a_lease_that_runs_out_counts_against_leases_and_one_that_is_given_back_for_them(world: World) -> None:
    paths = [write_lease(world, name) for name in ("one", "two", "three")]
    world.look()
    over = Release(key="one", path=paths[0], owner="dev-1", reason="it ran out", evidence={"ttl_s": 60.0})
    assert world.store.commit(over, "leases") is Outcome.DONE
    paths[1].unlink()

    assert world.look() == {"v3_lease_locks": (1, 2)}
    world.begin_anew()
    assert world.look() == {"v3_lease_locks": (1, 2)}


def test_a_lease_of_a_dead_agent_tells_nothing_of_leases(world: World) -> None:
    path = write_lease(world, "one")
    world.look()
    world.store.commit(Release(key="one", path=path, owner="dev-1", reason="its holder is dead"), "agents")

    assert world.look() == {}


def test_what_the_journal_told_before_anybody_looked_is_history(world: World) -> None:
    def run_out(name: str) -> None:
        path = write_lease(world, name)
        over = Release(key=name, path=path, owner="dev-1", reason="it ran out", evidence={"ttl_s": 60.0})
        assert world.store.commit(over, "leases") is Outcome.DONE

    (world.flags.folder / "marks").unlink()
    run_out("one")
    world.begin_anew()
    assert world.look() == {}
    run_out("two")
    assert world.look() == {"v3_lease_locks": (1, 1)}


def test_what_follows_from_the_journal_survives_its_next_segment(world: World) -> None:
    lend = GrantLease(key="one", path=write_lease(world, "one"), verb="taken_over", judged=None, data=b"{}", reason="x")
    world.store.commit(lend, "cli")
    world.flags.record(ROUTING, True)
    world.store.commit(Disable(key=ROUTING, path=world.planning / CONFIG, reason="it fails",
                               evidence={"errors": 5, "samples": 5}), "flags")  # fmt: skip
    before = world.store.journal.memory
    world.store.journal.rotate()

    again = Store(world.store.paths.project)
    with closing(again):
        again.open()
        after = again.journal.memory
        assert after is not before
        assert (after.flags, after.outcomes, after.releases) == (before.flags, before.outcomes, before.releases)
        assert after.flags[ROUTING]["off"]


# -- switching ----------------------------------------------------------------------------------------------------


def switch(world: World, action: type[Disable] | type[Enable], by: str = "flags", **evidence: Any) -> None:
    made = action(key=ROUTING, path=world.planning / CONFIG, reason="because", evidence=evidence)
    assert world.store.commit(made, by) is Outcome.DONE


def flag_in(world: World, name: str = ROUTING) -> Flag:
    return next(flag for flag in world.flags.look(world.clock.now()).flags if flag.name == name)


def left_s(world: World) -> float | None:
    """How long it is until the flag that is off is tried again."""
    found = flag_in(world).off
    assert found is not None
    return found.left_s


def test_when_a_flag_is_switched_on_what_was_counted_before_does_not_count_any_more(world: World) -> None:
    for _ in range(5):
        world.flags.record(ROUTING, True)
    assert flag_in(world).crossed is not None
    switch(world, Disable, errors=5, samples=5, since_s=world.clock.s, boot="here")
    world.flags.record(ROUTING, True)
    switch(world, Enable, by="cli")

    assert (flag_in(world).samples, flag_in(world).crossed, flag_in(world).off) == (0, None, None)
    world.flags.record(ROUTING, True)
    assert (flag_in(world).errors, flag_in(world).samples) == (1, 1)


def test_what_another_process_has_switched_is_known(world: World, project: Path) -> None:
    with closing(Store(project)) as another:
        another.open()
        another.commit(Disable(key=ROUTING, path=world.planning / CONFIG, reason="a person said so"), "cli")

    found = flag_in(world)
    assert (found.enabled, found.off and found.off.by) == (False, "cli")


def test_each_probation_that_fails_is_followed_by_one_twice_as_long_until_a_person_decides(project: Path) -> None:
    with closing((world := World(project, probation_s=100.0)).store):
        waits = []
        for _ in range(3):
            switch(world, Disable, errors=5, samples=5, since_s=world.clock.s, boot="here")
            waits.append(left_s(world))
            switch(world, Enable, probation=True)
        assert waits == [100.0, 200.0, 400.0]
        switch(world, Disable, by="cli")
        assert left_s(world) is None
        switch(world, Enable, by="cli")
        switch(world, Disable, errors=5, samples=5, since_s=world.clock.s, boot="here")

        world.clock.s += 40.0
        assert left_s(world) == 60.0


def test_after_a_reboot_a_probation_is_waited_for_from_the_beginning(project: Path) -> None:
    with closing((world := World(project, probation_s=100.0)).store):
        switch(world, Disable, errors=5, samples=5, since_s=99.0, boot="yesterday")
        world.clock.s += 30.0
        assert left_s(world) == 100.0
        world.clock.s += 30.0
        assert left_s(world) == 70.0


class Interrupted(Disk):
    """Somebody saves the file just before it is replaced: when the journal has promised it already."""

    def __init__(self, path: Path, save: Callable[[Path], object]) -> None:
        self._path, self._save = path, save
        self.reads = 0

    def read(self, path: Path, limit: int = 2**24) -> bytes | None:
        if path == self._path:
            self.reads += 1
            if self.reads == 2:
                self._save(path)
        return super().read(path, limit)


def test_what_a_person_saves_at_the_same_moment_is_not_lost(project: Path) -> None:
    path = project / plugin.PLANNING / CONFIG
    path.write_text('{"v3_smart_routing": true}')
    mine = '{"v3_smart_routing": true, "effort": "fast"}'
    with closing(Store(project, disk=Interrupted(path, lambda path: path.write_text(mine)))) as store:
        store.open()
        disable = Disable(key=ROUTING, path=path, reason="it fails")

        assert store.commit(disable, "flags") is Outcome.STALE
        assert path.read_text() == mine
        assert store.journal.memory.flags == {}
        assert store.commit(disable, "flags") is Outcome.DONE
        assert path.read_text() == mine.replace("true", "false")


# -- the real daemon ----------------------------------------------------------------------------------------------

WRITTEN = '{\n  "v3_smart_routing":true, "x": 1.50,\n\t"v3_event_log": true, "v4_other": true}'


@pytest.fixture
def config(project: Path) -> Path:
    path = project / plugin.PLANNING / CONFIG
    path.write_text(WRITTEN)
    return path


def fail(project: Path, name: str, times: int = 6, failed: bool = True) -> None:
    """As the command does, many times over."""
    with closing(Store(project, lock_limit_s=10.0)) as store:
        store.open()
        flags = Flags(Config, store, SystemClock(), backend().boot())
        for _ in range(times):
            flags.record(name, failed)


def wait_for(running: RunningDaemon, action: str, key: str = ROUTING) -> dict[str, Any]:
    found: list[dict[str, Any]] = running.wait(lambda: running.did(action, key), f"{key} to be {action}")
    return found[-1]


def test_a_broken_flag_is_switched_off_and_nothing_else_changes(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    running = daemon()
    fail(project, "v4_other", 3, failed=False)
    fail(project, ROUTING)

    told = wait_for(running, "disabled")
    assert config.read_text() == WRITTEN.replace('routing":true', 'routing":false')
    assert (told["kind"], told["by"]) == ("flag", "flags")
    assert told["evidence"]["errors"] == told["evidence"]["samples"] >= 5
    assert "yolo-supervisor flag enable" in wait_for(running, "escalated")["reason"]
    (event,) = map(json.loads, (project / plugin.PLANNING / event_log.EVENT_LOG).read_text().splitlines())
    assert (event["event"], event["data"]["flag"]) == ("error", ROUTING)
    assert event["data"]["errors"] == str(told["evidence"]["errors"])


def test_a_flag_that_a_person_switches_on_again_is_judged_anew(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    cli, running = Cli(project), daemon()
    fail(project, ROUTING)
    wait_for(running, "disabled")
    assert cli("flag", "enable", ROUTING).returncode == 0
    fail(project, ROUTING, 4)
    fail(project, "v4_other", failed=False)

    (mine, _) = sorted(cli.json("flag", "list")["flags"], key=lambda flag: str(flag["name"]))[1:]
    assert (mine["name"], mine["errors"], mine["verdict"]) == (ROUTING, 4, "too few")
    assert config.read_text() == WRITTEN
    fail(project, ROUTING, 1)
    running.wait(lambda: len(running.did("disabled", ROUTING)) == 2, "it to be switched off again")


def test_a_flag_that_is_switched_on_in_the_file_by_hand_stays_on(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    cli, running = Cli(project), daemon()
    fail(project, ROUTING)
    wait_for(running, "disabled")
    config.write_text(WRITTEN)

    assert "by hand" in wait_for(running, "enabled")["reason"]
    assert config.read_text() == WRITTEN
    assert cli.json("flag", "list")["flags"][1]["samples"] == 0


def test_a_supervisor_that_observes_tells_once_what_it_would_do(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    running = daemon("--observe")
    fail(project, ROUTING)
    wait_for(running, "would_disabled")
    fail(project, ROUTING)
    fail(project, "v4_other")
    wait_for(running, "would_disabled", "v4_other")
    running.wait((running.folder / "flags" / "marks").exists, "it to be written down how far it has read")

    assert config.read_text() == WRITTEN
    assert len(running.did("would_disabled", ROUTING)) == 1


def test_a_flag_that_nobody_has_heard_of_is_counted_and_nothing_is_written(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    cli, running = Cli(project), daemon()
    fail(project, "v3_unheard/of ü")
    fail(project, ROUTING)
    wait_for(running, "escalated")

    assert "unheard" not in config.read_text()
    assert [entry["key"] for entry in running.history() if entry["kind"] == "flag"] == [ROUTING, ROUTING]
    (found,) = (flag for flag in cli.json("flag", "list")["flags"] if "unheard" in flag["name"])
    assert (found["name"], found["enabled"], found["errors"]) == ("v3_unheard/of ü", None, 6)


def test_the_plugins_own_metrics_switch_off_gates_that_let_nothing_through(project: Path, daemon: StartDaemon) -> None:
    path = project / plugin.PLANNING / CONFIG
    path.write_bytes(execution_state.dump({GATES: True, CONTRACTS: True}))
    metrics = project / plugin.PLANNING / event_log.METRICS
    running = daemon()
    running.wait((project / plugin.PLANNING / ".supervisor" / "flags" / "marks").exists, "it to have looked")
    metrics.parent.mkdir()
    metrics.write_bytes(b"".join(metric(True, number, datetime.now(UTC)) for number in range(8)))

    running.wait(
        lambda: plugin_config.wishes(path.read_bytes()) == {GATES: False, CONTRACTS: False}, "both to be switched off"
    )
    wait_for(running, "escalated", CONTRACTS)
    assert [entry["key"] for entry in running.did("disabled")] == [GATES, CONTRACTS]


def test_after_a_probation_the_flag_is_on_again(project: Path, daemon: StartDaemon, config: Path) -> None:
    running = daemon(config="[flags]\nprobation_s = 0.5\n")
    fail(project, ROUTING)
    wait_for(running, "disabled")

    assert "probation" in wait_for(running, "enabled")["reason"]
    assert config.read_text() == WRITTEN


def test_a_configuration_that_a_person_has_broken_is_left_to_those_who_mend_it(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    broken = WRITTEN.replace("{", "{ // mine", 1)
    config.write_text(broken)
    running = daemon()
    fail(project, ROUTING)

    assert "cannot be read" in wait_for(running, "escalated")["reason"]
    assert config.read_text() == broken
    assert running.did("disabled") == []
