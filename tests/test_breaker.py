"""Circuit breakers: what keeps failing is left alone for a while, then one call tries it for all."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from conftest import Children, Cli
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import McpConfig
from yolo_supervisor.kernel import kernel
from yolo_supervisor.mcp.circuit_breaker import UPSTREAM, Breaker, circuits, describe, load
from yolo_supervisor.store import Paths, Store

CONFIG = McpConfig(failures=5, cool_down_s=60.0, cap_s=240.0)
BEGIN_S = 1000.0


class Clock:
    """Two clocks that stand still until they are told."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
        self.passed_s = BEGIN_S

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.passed_s

    def sleep(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.passed_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


Meet = Callable[..., Breaker]


@pytest.fixture
def meet(project: Path, clock: Clock) -> Meet:
    """Another relay of the project, before the same server."""

    def another(*, server: str = "server", boot: str = "boot", config: McpConfig = CONFIG) -> Breaker:
        return Breaker([server], server, config, clock, boot, Store(project))

    return another


@pytest.fixture(params=["shared", "alone"])
def breaker(request: pytest.FixtureRequest, meet: Meet, clock: Clock) -> Breaker:
    """With a project, and without one: to its own relay it is the same."""
    return meet() if request.param == "shared" else Breaker(["server"], "server", CONFIG, clock, "boot", None)


def fail(breaker: Breaker, tool: str, times: int = 5) -> None:
    for number in range(times):
        breaker.failed(tool, f"trouble {number + 1}")


def documents(project: Path) -> list[Path]:
    return [path for path in (Paths(project).folder / "circuits").iterdir() if load(path.read_bytes()) is not None]


# -- one relay ------------------------------------------------------------------------------------------------------


def test_a_tool_is_switched_off_by_its_fifth_failure_in_a_row(breaker: Breaker) -> None:
    fail(breaker, "build", 4)
    assert breaker.refusal("build") is None

    fail(breaker, "build", 1)
    assert breaker.refusal("build") is not None


def test_one_success_begins_the_count_anew(breaker: Breaker) -> None:
    fail(breaker, "build", 4)
    breaker.succeeded("build")
    fail(breaker, "build", 4)

    assert breaker.refusal("build") is None


def test_a_bad_tool_does_not_switch_off_the_others(breaker: Breaker) -> None:
    fail(breaker, "build")

    assert breaker.refusal("test") is None
    assert breaker.refusal(None) is None


def test_a_server_that_is_switched_off_is_so_with_all_its_tools(breaker: Breaker) -> None:
    fail(breaker, UPSTREAM)

    assert breaker.refusal("build") is not None
    assert breaker.left_s() == 60


def test_an_answer_of_any_tool_speaks_for_the_server_only(breaker: Breaker) -> None:
    fail(breaker, UPSTREAM, 4)
    fail(breaker, "build", 4)
    breaker.succeeded("test")
    fail(breaker, UPSTREAM, 1)
    assert breaker.refusal(None) is None

    fail(breaker, "build", 1)
    assert breaker.refusal("build") is not None


def test_a_model_learns_what_is_off_since_when_why_and_until_when(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(18)

    why = breaker.refusal("build") or ""

    for word in ("build", "server", "2026-11-22T12:00:00", "after 5 failures", "trouble 5", "again in 42 s"):
        assert word in why


def test_after_the_cool_down_one_call_tries(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(59.9)
    assert breaker.refusal("build") is not None

    clock.sleep(0.1)
    assert breaker.refusal("build") is None
    assert breaker.refusal("build") is not None


def test_if_that_goes_well_the_tool_is_back(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")

    breaker.succeeded("build")

    assert [breaker.refusal("build") for _ in range(3)] == [None] * 3
    fail(breaker, "build", 4)
    assert breaker.refusal("build") is None


def test_if_it_fails_the_tool_is_off_for_as_long_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")

    fail(breaker, "build", 1)

    clock.sleep(59.9)
    assert breaker.refusal("build") is not None
    clock.sleep(0.1)
    assert breaker.refusal("build") is None


def test_if_it_is_cancelled_the_next_may_try(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")

    breaker.given_up("build")

    assert breaker.refusal("build") is None
    assert breaker.refusal("build") is not None


def test_any_tool_can_try_whether_the_server_is_well(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, UPSTREAM)
    clock.sleep(60)
    assert breaker.refusal("build") is None
    assert breaker.refusal("test") is not None

    breaker.succeeded("build")

    assert breaker.refusal("test") is None


def test_a_tool_that_fails_while_it_tries_the_server_leaves_that_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, UPSTREAM)
    clock.sleep(60)
    breaker.refusal("build")

    fail(breaker, "build", 1)

    assert breaker.refusal("test") is None
    assert breaker.refusal("lint") is not None


def test_a_call_that_is_refused_for_its_tool_does_not_try_the_server(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, UPSTREAM)
    clock.sleep(30)
    fail(breaker, "build")
    clock.sleep(30)

    assert "the tool build" in (breaker.refusal("build") or "")
    assert breaker.refusal("test") is None


def test_a_wall_clock_that_jumps_changes_nothing(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, "build")

    for jump in (timedelta(days=400), -timedelta(days=900)):
        clock.wall += jump
        assert "again in 60 s" in (breaker.refusal("build") or "")


# -- several relays -------------------------------------------------------------------------------------------------


def test_all_relays_before_a_server_heed_what_one_has_found_out(meet: Meet) -> None:
    one, other = meet(), meet()
    assert other.refusal("build") is None

    fail(one, "build")

    assert other.refusal("build") is not None
    assert meet().refusal("build") is not None


def test_another_server_has_circuits_of_its_own(meet: Meet) -> None:
    fail(meet(), "build")
    fail(meet(), UPSTREAM)

    assert meet(server="other").refusal("build") is None


def test_of_all_relays_one_tries(meet: Meet, clock: Clock) -> None:
    relays = [meet() for _ in range(5)]
    fail(relays[0], "build")
    clock.sleep(60)

    assert [each.refusal("build") is None for each in relays] == [True, False, False, False, False]


def test_what_one_has_tried_holds_for_all(meet: Meet, clock: Clock) -> None:
    one, other = meet(), meet()
    fail(one, "build")
    clock.sleep(60)
    other.refusal("build")
    other.failed("build", "worse")
    assert "again in 60 s" in (one.refusal("build") or "")

    clock.sleep(60)
    one.refusal("build")
    one.succeeded("build")
    assert other.refusal("build") is None


def test_what_somebody_else_has_found_well_begins_anew(meet: Meet, clock: Clock) -> None:
    one, other = meet(), meet()
    fail(one, "build")
    clock.sleep(60)
    other.refusal("build")
    other.succeeded("build")

    fail(one, "build", 4)

    assert one.refusal("build") is None


def test_calls_that_were_under_way_do_not_make_it_longer(meet: Meet, clock: Clock) -> None:
    breaker = meet()
    fail(breaker, "build")
    clock.sleep(30)

    fail(breaker, "build", 2)

    assert "again in 30 s" in (breaker.refusal("build") or "")


def test_since_when_it_fails_and_how_often_is_told_by_all_who_tried(meet: Meet, clock: Clock) -> None:
    fail(meet(), "build")
    clock.sleep(60)
    prober = meet()
    prober.refusal("build")

    prober.failed("build", "worse")

    why = prober.refusal("build") or ""
    assert "since 2026-11-22T12:00:00" in why
    assert "after 6 failures" in why


def test_who_tries_and_dies_is_followed_by_another(meet: Meet, clock: Clock) -> None:
    fail(meet(), "build")
    clock.sleep(60)
    assert meet().refusal("build") is None  # and is never heard of again

    clock.sleep(239.9)
    assert meet().refusal("build") is not None
    clock.sleep(0.1)
    assert [meet().refusal("build") is None for _ in range(3)] == [True, False, False]


def test_after_a_reboot_it_is_tried_at_once(meet: Meet, clock: Clock) -> None:
    fail(meet(), "build")
    clock.passed_s = 5

    assert [meet(boot="next").refusal("build") is None for _ in range(2)] == [True, False]


def test_who_tries_after_a_reboot_and_gives_up_is_followed_at_once(meet: Meet, clock: Clock) -> None:
    """The clock began anew: a time of the life before must not be taken for one of this."""
    fail(meet(), "build")
    clock.passed_s = 5
    prober = meet(boot="next")
    prober.refusal("build")

    prober.given_up("build")

    assert meet(boot="next").refusal("build") is None


def test_who_tries_after_a_reboot_and_dies_is_followed_by_another(meet: Meet, clock: Clock) -> None:
    fail(meet(), "build")
    clock.passed_s = 5
    meet(boot="next").refusal("build")

    clock.sleep(240)

    assert meet(boot="next").refusal("build") is None


RACER = """
import fcntl, sys
from pathlib import Path
from yolo_supervisor.mcp.circuit_breaker import Breaker
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import McpConfig
from yolo_supervisor.kernel import kernel
from yolo_supervisor.store import Store
project, gate = sys.argv[1:]
config = McpConfig(failures=1, cool_down_s=0.001)
breaker = Breaker(["server"], "server", config, SystemClock(), kernel().boot(), Store(Path(project)))
breaker.left_s()
print("ready", flush=True)
fcntl.flock(open(gate), fcntl.LOCK_SH)
print(breaker.refusal("build") is None, flush=True)
"""


def test_of_many_processes_one_tries(project: Path, tmp_path: Path, children: Children) -> None:
    config = McpConfig(failures=1, cool_down_s=0.001)
    fail(Breaker(["server"], "server", config, SystemClock(), kernel().boot(), Store(project)), "build", 1)
    with (tmp_path / "gate").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        racers = [children.python(RACER, str(project), gate.name) for _ in range(8)]

    told = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
    assert sorted(told) == [b"False"] * 7 + [b"True"]


# -- the documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b'{"version": 1, "tool": "build"}'],
)
def test_what_cannot_be_read_switches_nothing_off(meet: Meet, project: Path, garbage: bytes) -> None:
    fail(meet(), "build")
    (document,) = documents(project)
    document.unlink()
    document.write_bytes(garbage)

    assert meet().refusal("build") is None
    assert circuits(Paths(project).folder) == []


@pytest.mark.parametrize("key", ["server", "tool", "why", "opened_at", "since_s", "boot", "cool_down_s", "failures"])
def test_a_value_of_the_wrong_kind_switches_nothing_off(meet: Meet, project: Path, key: str) -> None:
    fail(meet(), "build")
    (document,) = documents(project)
    told = json.loads(document.read_bytes())
    document.unlink()
    document.write_text(json.dumps({**told, key: []}))

    assert meet().refusal("build") is None


def test_what_is_broken_is_replaced_when_it_is_time_to_switch_off(meet: Meet, project: Path) -> None:
    fail(meet(), "build")
    (document,) = documents(project)
    document.unlink()
    document.write_text("{")
    breaker = meet()

    fail(breaker, "build")

    assert breaker.refusal("build") is not None


def test_a_document_of_a_later_version_is_heeded_tried_and_removed(meet: Meet, project: Path, clock: Clock) -> None:
    fail(meet(), "build")
    (document,) = documents(project)
    told = json.loads(document.read_bytes())
    document.unlink()
    document.write_text(json.dumps({**told, "version": 2, "new": True}))
    later = meet()
    assert later.refusal("build") is not None

    clock.sleep(60)
    assert later.refusal("build") is None
    later.succeeded("build")

    assert documents(project) == []


def test_where_nothing_can_be_written_a_relay_heeds_its_own(project: Path, meet: Meet) -> None:
    Paths(project).folder.symlink_to(project)
    breaker = meet()

    fail(breaker, "build")

    assert breaker.refusal("build") is not None
    assert meet().refusal("build") is None


def test_what_could_not_be_written_holds_whatever_else_is(meet: Meet, project: Path, clock: Clock) -> None:
    (Paths(project).folder / "circuits").mkdir(parents=True)
    (Paths(project).folder / "store.lock").mkdir()
    breaker = meet()

    fail(breaker, "build")
    (Paths(project).folder / "circuits" / "another").touch()
    assert breaker.refusal("build") is not None

    clock.sleep(60)
    assert breaker.refusal("build") is None
    assert breaker.refusal("build") is not None
    breaker.succeeded("build")
    assert breaker.refusal("build") is None


def test_what_could_not_be_written_holds_until_somebody_else_finds_out(meet: Meet, project: Path, clock: Clock) -> None:
    lock = Paths(project).folder / "store.lock"
    lock.mkdir(parents=True)
    breaker = meet()
    fail(breaker, "build")
    lock.rmdir()
    clock.sleep(30)
    fail(meet(), "build")

    clock.sleep(30)

    assert "again in 30 s" in (breaker.refusal("build") or "")


def test_a_relay_goes_on_when_the_folder_is_removed(meet: Meet, project: Path, clock: Clock) -> None:
    breaker = meet()
    fail(breaker, "build")
    shutil.rmtree(Paths(project).folder)

    for tool in ("build", "test"):
        fail(breaker, tool)

    assert meet().refusal("test") is not None


def test_status_shows_what_is_off(meet: Meet, project: Path, claude_home: Path) -> None:
    real = Breaker(["server"], "server", CONFIG, SystemClock(), kernel().boot(), Store(project))
    fail(real, "build")

    (shown,) = Cli(project).json("status")["projects"][0]["circuits"]

    assert (shown["server"], shown["tool"], shown["failures"], shown["why"]) == ("server", "build", 5, "trouble 5")
    assert shown["state"] == "open"


def test_status_tells_when_it_is_time_to_try(meet: Meet, project: Path, clock: Clock) -> None:
    fail(meet(), UPSTREAM)
    (circuit,) = circuits(Paths(project).folder)

    assert describe(circuit, clock, "boot")["state"] == "open"
    assert describe(circuit, clock, "boot")["retry_in_s"] == 60
    clock.sleep(60)
    assert describe(circuit, clock, "boot")["state"] == "half-open"
    assert describe(circuit, clock, "boot")["tool"] is None


def test_every_turn_is_in_the_journal(meet: Meet, project: Path, clock: Clock, claude_home: Path) -> None:
    breaker = meet()
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")
    breaker.succeeded("build")

    told = [json.loads(line) for line in Cli(project)("history", "--json").stdout.splitlines()]

    assert [(e["key"], e["action"]) for e in told] == [
        ("server/build", action) for action in ("circuit_opened", "circuit_half_opened", "circuit_closed")
    ]


# -- any life of several relays -------------------------------------------------------------------------------------


NOBODY = -1
"""Who tried, and is no more."""


class Lives:
    """Two relays of a project before a server with a tool. They call, fail, succeed, cancel and die, while time passes
    and the wall clock jumps; ``asks`` compares with what has to be."""

    config = McpConfig(failures=2, cool_down_s=60.0, cap_s=240.0)

    def __init__(self, project: Path) -> None:
        self._project = project
        self.clock = Clock()
        self.breakers = [self._begin(), self._begin()]
        self.failures = [0, 0]
        self.open_until_s: float | None = None
        self.prober: int | None = None
        self.probed_s = 0.0

    def _begin(self) -> Breaker:
        return Breaker(["server"], "server", self.config, self.clock, "boot", Store(self._project))

    def asks(self, relay: int) -> None:
        now_s = self.clock.passed_s
        is_open = self.open_until_s is not None
        cool = self.open_until_s is None or now_s >= self.open_until_s
        tried = self.prober is not None and now_s < self.probed_s + self.config.cap_s

        assert (self.breakers[relay].refusal("build") is None) == (cool and not tried)

        if is_open and cool and not tried:
            self.prober, self.probed_s = relay, now_s

    def fails(self, relay: int) -> None:
        if self.open_until_s is None or self.prober == relay:  # else nobody has asked it anything
            self.failures[relay] += 1
            self.breakers[relay].failed("build", "trouble")
            if self.prober == relay or self.failures[relay] == self.config.failures:
                self.open_until_s = self.clock.passed_s + self.config.cool_down_s
                self.prober, self.failures[relay] = None, 0

    def succeeds(self, relay: int) -> None:
        self.failures[relay] = 0
        self.breakers[relay].succeeded("build")
        if self.prober == relay:
            self.open_until_s = self.prober = None

    def cancels(self, relay: int) -> None:
        self.breakers[relay].given_up("build")
        if self.prober == relay:
            self.prober = None

    def dies(self, relay: int) -> None:
        self.breakers[relay] = self._begin()
        self.failures[relay] = 0
        if self.prober == relay:
            self.prober = NOBODY

    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        if self.prober in (0, 1) and self.clock.passed_s >= self.probed_s + self.config.cap_s:
            self.cancels(self.prober)  # no call lasts longer

    def the_wall_clock_jumps(self, days: int) -> None:
        self.clock.wall += timedelta(days=days)


@pytest.mark.parametrize("seed", range(8))
def test_in_any_life_one_call_at_a_time_tries_what_is_off(project: Path, seed: int) -> None:
    chance, lives = Random(seed), Lives(project)
    deeds = [lives.asks] * 5 + [lives.fails] * 3 + [lives.succeeds, lives.cancels, lives.dies]
    for _ in range(150):
        if chance.random() < 0.3:
            lives.time_passes(chance.choice([0.5, 59.5, 60, 239.5, 240]))
            lives.the_wall_clock_jumps(chance.randint(-500, 500))
        chance.choice(deeds)(chance.randrange(2))
        assert len(circuits(Paths(project).folder)) == (lives.open_until_s is not None)
