"""The pace of all starts on a machine: it holds for all projects, over restarts, and whatever the file contains."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.disks import FaultyDisk, MemoryDisk, Mode, crash_states
from support.project import FakeClock, QuickDisk
from yolo_supervisor.clock import Instant
from yolo_supervisor.config import RestartConfig
from yolo_supervisor.formats.starts import MOST, Death, Moment, Starts, Storm, dump_starts, load_starts
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.start_ledger import BUSY_WAIT_S, LIMIT, StartLedger

RULES = RestartConfig()
PATH = Path("/state/yolo-supervisor/starts.json")
DAY = timedelta(days=1)


class Host:
    """A machine with its ledger, and the clock of its user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.boot = "machine/boot-1/1"
        self.ledger = self.restarted()

    def restarted(self) -> StartLedger:
        """The ledger of another supervisor, or of the same one after a restart."""
        self.ledger = StartLedger(self.path, QuickDisk(), self.clock, self.boot)
        return self.ledger

    def reboot(self, took_s: float = 0.0) -> StartLedger:
        self.boot += "'"
        self.clock.wait(took_s)
        self.clock.s = 10.0
        return self.restarted()

    def deaths(self, *lives: str, rules: RestartConfig = RULES) -> float:
        return self.ledger.record_deaths(lives, rules)

    def storm(self) -> None:
        assert self.deaths("a", "b", "c", "d", "e") == 60.0


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "yolo-supervisor" / "starts.json")


# -- starts -------------------------------------------------------------------------------------------------------


def test_a_start_waits_until_the_last_one_is_long_enough_ago(host: Host) -> None:
    assert host.ledger.take(RULES) == 0.0
    assert host.ledger.take(RULES) == 5.0
    host.clock.wait(4.0)
    assert host.ledger.take(RULES) == 1.0
    host.clock.wait(1.0)
    assert host.ledger.take(RULES) == 0.0
    assert host.ledger.ages() == (5.0, 0.0)


def test_starts_are_limited_in_a_period(host: Host) -> None:
    for _ in range(10):
        assert host.ledger.take(RULES) == 0.0
        host.clock.wait(5.0)

    assert host.ledger.take(RULES) == 250.0
    host.clock.wait(250.0)
    assert host.ledger.take(RULES) == 0.0


def test_start_that_has_to_wait_is_not_recorded(host: Host) -> None:
    host.ledger.take(RULES)
    for _ in range(20):
        host.clock.wait(0.1)
        assert host.ledger.take(RULES) > 0

    assert len(host.ledger.ages()) == 1


def test_projects_share_the_pace_and_each_has_its_limits(host: Host) -> None:
    host.ledger.take(RULES)
    host.clock.wait(3.0)

    assert host.restarted().take(RULES) == 2.0
    assert host.ledger.take(RestartConfig(host_pause_s=60.0)) == 57.0
    assert host.ledger.take(RestartConfig(host_pause_s=1.0)) == 0.0


def test_only_the_user_can_read_the_ledger(host: Host) -> None:
    host.ledger.take(RULES)

    assert {(each.name, each.stat().st_mode & 0o777) for each in host.path.parent.iterdir()} == {
        ("starts.json", 0o600), ("starts.lock", 0o600),
    }  # fmt: skip
    assert host.path.parent.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_writer_has_left_is_removed(host: Host) -> None:
    host.path.parent.mkdir(mode=0o700)
    (host.path.parent / ".starts.json.1.tmp").write_bytes(b"{")

    host.ledger.take(RULES)

    assert sorted(each.name for each in host.path.parent.iterdir()) == ["starts.json", "starts.lock"]


def test_a_look_sees_what_another_process_has_changed_and_reads_nothing_else() -> None:
    disk, clock = MemoryDisk(), FakeClock()
    ledger = memory_ledger(disk, clock)
    seen = [ledger.ages()]
    for _ in range(3):
        take_again(disk, clock)
        clock.wait(5.0)
        seen.append(ledger.ages())
    disk.log.clear()

    assert [len(ages) for ages in seen] == [0, 1, 2, 3]
    assert (ledger.ages(), ledger.storm_left_s()) == ((15.0, 10.0, 5.0), 0.0)
    assert {name for name, _ in disk.log} <= {"status"}


# -- other boots and clocks ---------------------------------------------------------------------------------------


def test_starts_before_a_reboot_count_by_wall_time(host: Host) -> None:
    host.ledger.take(RULES)

    assert host.reboot(took_s=2.0).ages() == (2.0,)
    assert host.ledger.take(RULES) == 3.0
    host.clock.wait(3.0)
    assert host.ledger.take(RULES) == 0.0


@pytest.mark.parametrize("by", [-400 * DAY, -DAY, DAY, 400 * DAY])
def test_a_step_of_the_wall_clock_changes_no_pace(host: Host, by: timedelta) -> None:
    host.ledger.take(RULES)
    host.clock.jump(by)
    host.clock.wait(1.0)

    assert host.ledger.take(RULES) == 4.0


def test_a_wall_clock_that_was_set_back_in_a_reboot_costs_one_pause(host: Host) -> None:
    host.ledger.take(RULES)
    host.clock.jump(-400 * DAY)

    assert host.reboot().take(RULES) == 5.0
    host.clock.wait(5.0)
    assert host.ledger.take(RULES) == 0.0


def test_two_boots_that_share_a_ledger_do_not_starve_each_other(host: Host) -> None:
    ours = host.ledger
    theirs = StartLedger(host.path, QuickDisk(), host.clock, "machine/boot-1/2")  # a container
    ours.take(RULES)
    host.clock.jump(-400 * DAY)
    waits = []
    for ledger in (theirs, ours) * 3:
        waits.append(ledger.take(RULES))
        host.clock.wait(1.0)

    assert waits == [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]


def test_a_monotonic_clock_that_began_again_is_another_boot(host: Host) -> None:
    host.ledger.take(RULES)
    host.clock.wait(2.0)
    host.clock.s = 1.0  # where the name of a boot does not change, as on systems without /proc

    assert host.restarted().take(RULES) == 3.0


# -- storms -------------------------------------------------------------------------------------------------------


def test_many_deaths_at_the_same_time_pause_all_starts(host: Host) -> None:
    assert host.deaths("a", "b") == 0.0
    host.clock.wait(9.0)
    assert host.deaths("c", "d") == 0.0
    assert host.ledger.storm_left_s() == 0.0
    assert host.deaths("e") == 60.0

    assert host.ledger.take(RULES) == 60.0
    host.clock.wait(59.0)
    assert host.ledger.storm_left_s() == 1.0
    host.clock.wait(1.0)
    assert host.ledger.take(RULES) == 0.0
    assert host.ledger.storm_left_s() == 0.0


def test_deaths_one_after_the_other_are_no_storm(host: Host) -> None:
    for life in "abcdefghijkl":
        assert host.deaths(life) == 0.0
        host.clock.wait(2.5)


def test_a_death_counts_once_however_often_it_is_recorded(host: Host) -> None:
    for _ in range(9):
        assert host.deaths("a", "b", "a") == 0.0
        assert host.restarted().record_deaths(["b", "c", "d"], RULES) == 0.0

    assert host.deaths("e") == 60.0


def test_a_storm_that_goes_on_is_prolonged(host: Host) -> None:
    host.storm()
    host.clock.wait(8.0)

    assert host.deaths("f") == 60.0
    host.clock.wait(10.0)
    assert host.deaths("g") == 50.0


def test_a_project_with_a_shorter_pause_does_not_shorten_a_storm(host: Host) -> None:
    host.storm()

    assert host.deaths("f", rules=RestartConfig(storm_pause_s=1.0)) == 60.0


def test_a_storm_outlasts_a_restart_and_a_reboot(host: Host) -> None:
    host.storm()
    host.clock.wait(10.0)

    assert host.restarted().storm_left_s() == 50.0
    assert host.reboot(took_s=20.0).storm_left_s() == 30.0
    host.clock.jump(-DAY)
    assert host.ledger.take(RULES) == 60.0
    host.clock.wait(60.0)
    assert host.ledger.take(RULES) == 0.0


# -- files that are not as they were written ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\0" * 900, b'{"version": 2, "starts": [], "deaths": [], "storm": null}', b" " * LIMIT],
)  # fmt: skip
def test_damaged_ledger_counts_as_empty_and_says_so(host: Host, content: bytes) -> None:
    host.ledger.take(RULES)
    assert host.ledger.damage is None
    host.path.write_bytes(content + b" ")

    assert (host.ledger.ages(), host.ledger.storm_left_s()) == ((), 0.0)
    assert host.ledger.damage is not None
    assert host.ledger.take(RULES) == 0.0
    assert host.ledger.damage is not None
    assert host.ledger.ages() == (0.0,)
    assert host.ledger.damage is None


def test_ledger_that_cannot_be_read_allows_no_start(host: Host, tmp_path: Path) -> None:
    host.path.parent.mkdir(mode=0o700)
    host.path.symlink_to(tmp_path / "elsewhere")

    assert host.ledger.ages() == ()
    assert "cannot be read" in (host.ledger.damage or "")
    with pytest.raises(OSError, match="symbolic link"):
        host.ledger.take(RULES)
    with pytest.raises(OSError, match="symbolic link"):
        host.deaths("a")
    assert not (tmp_path / "elsewhere").exists()


def test_folder_that_others_may_write_to_is_refused(host: Host) -> None:
    host.path.parent.mkdir()
    host.path.parent.chmod(0o777)

    with pytest.raises(Refused):
        host.ledger.take(RULES)


def test_ledger_that_another_process_holds_is_asked_for_later(host: Host) -> None:
    with host.restarted()._locked():
        other = host.restarted()
        assert other.take(RULES) == BUSY_WAIT_S
        with pytest.raises(Busy):
            other.record_deaths(["a"], RULES)

    assert other.take(RULES) == 0.0


def test_ledger_of_the_largest_size_can_be_read(host: Host) -> None:
    rules = RestartConfig(host_starts=1000, host_period_s=1.0)
    host.boot = "m" * 200
    host.restarted().take(rules)
    host.deaths(*(f"life-{n}" for n in range(2 * MOST)))
    full = load_starts(host.path.read_bytes())
    assert full is not None
    assert len(full.deaths) == MOST
    host.path.write_bytes(dump_starts(replace(full, starts=full.starts * MOST, storm=None)))
    host.clock.wait(70.0)

    assert host.ledger.take(rules) == 0.0
    assert (len(host.ledger.ages()), host.ledger.ages()[-2:]) == (MOST, (70.0, 0.0))
    assert host.ledger.damage is None


# -- crashes ------------------------------------------------------------------------------------------------------


def memory_ledger(disk: MemoryDisk, clock: FakeClock) -> StartLedger:
    return StartLedger(PATH, disk, clock, "boot")


def take_again(disk: MemoryDisk, clock: FakeClock) -> None:
    assert memory_ledger(disk, clock).take(RULES) == 0.0


def storm_again(disk: MemoryDisk, clock: FakeClock) -> None:
    assert memory_ledger(disk, clock).record_deaths(list("abcde"), RULES) == 60.0


def known(disk: MemoryDisk, clock: FakeClock) -> tuple[int, bool]:
    """What a later supervisor knows: the number of starts, and whether there is a storm."""
    ledger = memory_ledger(disk, clock)
    found = len(ledger.ages()), ledger.storm_left_s() > 0
    assert ledger.damage is None
    return found


@pytest.mark.parametrize(("change", "after"), [(take_again, (2, False)), (storm_again, (1, True))])
def test_after_a_power_cut_the_ledger_is_as_before_or_as_after(
    change: Callable[[MemoryDisk, FakeClock], None], after: tuple[int, bool]
) -> None:
    disk, clock = MemoryDisk(), FakeClock()
    take_again(disk, clock)
    disk.settle()
    clock.wait(5.0)
    disk.moments = []
    change(disk, clock)

    for moment in (*disk.moments, disk):
        for state in crash_states(moment, "posix", random.Random(0)):
            assert known(state.mount(), clock) in ([after] if moment is disk else [(1, False), after])
    assert disk.open_fds == 0


@pytest.mark.parametrize("mode", ["once", "on", "short"])
@pytest.mark.parametrize("change", [take_again, storm_again])
def test_start_is_recorded_or_refused_if_the_disk_fails(
    change: Callable[[MemoryDisk, FakeClock], None], mode: Mode
) -> None:
    for at in range(1, 1000):
        disk, clock = FaultyDisk(at, errno.ENOSPC, mode), FakeClock()
        take_again(disk, clock)
        clock.wait(5.0)
        before = known(disk, clock)
        disk.repaired = False
        failed = False
        try:
            change(disk, clock)
        except (OSError, Refused):
            failed = True
        disk.repaired = True
        if not disk.reached:
            break
        assert failed or known(disk, clock) != before
        clock.wait(60.0)
        assert memory_ledger(disk, clock).take(RULES) == 0.0
        assert disk.open_fds == 0
    assert at > 10


# -- the format ---------------------------------------------------------------------------------------------------

TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
MOMENTS = st.builds(Moment, st.builds(Instant, st.text(), st.floats(0, 1e9)), TIMES)
DEATHS = st.builds(Death, MOMENTS, st.text(min_size=1))
CONTENTS = st.builds(
    Starts, st.lists(MOMENTS, max_size=3).map(tuple), st.lists(DEATHS, max_size=3).map(tuple),
    st.none() | st.builds(Storm, MOMENTS, st.floats(0, 86400)),
)  # fmt: skip


@given(CONTENTS)
def test_content_is_read_as_it_was_written(content: Starts) -> None:
    assert load_starts(dump_starts(content)) == content


AT = {"since_s": 1.0, "boot": "b", "at": "2026-11-22T20:55:10Z"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just(AT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*AT, "mark", "pause_s"]), inner),
)


@given(st.fixed_dictionaries({"version": st.just(1) | VALUES, "starts": VALUES, "deaths": VALUES, "storm": VALUES}))
@example({"version": 1, "starts": [{**AT, "since_s": 10**400}], "deaths": [], "storm": None})
@example({"version": True, "starts": [], "deaths": [], "storm": None})
@example({"version": 1, "starts": [AT] * (MOST + 1), "deaths": [], "storm": None})
@example({"version": 1, "starts": [], "deaths": [], "storm": {**AT, "pause_s": 86401}})
@example({"version": 1, "starts": [], "deaths": [AT], "storm": None})
def test_no_other_content_is_taken_for_a_ledger(raw: dict[str, object]) -> None:
    loaded = load_starts(json.dumps(raw).encode())

    assert loaded is None or load_starts(dump_starts(loaded)) == loaded
    if loaded is not None:
        assert type(raw["version"]) is int
        assert [len(loaded.starts), len(loaded.deaths)] == [len(raw[key]) for key in ("starts", "deaths")]  # type: ignore[arg-type]
        assert (loaded.storm is None) == (raw["storm"] is None)


@given(st.binary(max_size=200))
def test_garbage_is_no_ledger(data: bytes) -> None:
    assert load_starts(data) is None
