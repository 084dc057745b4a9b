"""Circuit breakers: open after consecutive failures, shared by all relays, closed by one successful probe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from yolo_supervisor.clock import Instant
from yolo_supervisor.config import McpConfig
from yolo_supervisor.mcp.circuit_breaker import (
    WHOLE_SERVER,
    CircuitBreaker,
    circuit_status,
    load_circuit,
    open_circuits,
)
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store

CONFIG = McpConfig(failures=5, cool_down_s=60.0, cap_s=240.0)
BEGIN_S = 1000.0


class Clock:
    """A wall clock and a monotonic clock that move only in ``sleep``."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
        self.passed_s = BEGIN_S

    def now(self) -> datetime:
        return self.wall

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.passed_s

    def sleep(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.passed_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


MakeBreaker = Callable[..., CircuitBreaker]


@pytest.fixture
def make_breaker(project: Path, clock: Clock) -> MakeBreaker:
    """Makes the breaker of another relay of the project, for the same server."""

    def make(*, server: str = "server", boot: str = "boot", config: McpConfig = CONFIG) -> CircuitBreaker:
        return CircuitBreaker([server], server, config, clock, boot, Store(project))

    return make


@pytest.fixture(params=["shared", "alone"])
def breaker(request: pytest.FixtureRequest, make_breaker: MakeBreaker, clock: Clock) -> CircuitBreaker:
    """One breaker with a project and one without: the behaviour towards its relay is the same."""
    return (
        make_breaker()
        if request.param == "shared"
        else CircuitBreaker(["server"], "server", CONFIG, clock, "boot", None)
    )


def fail(breaker: CircuitBreaker, tool: str, times: int = 5) -> None:
    for number in range(times):
        breaker.record_failure(tool, f"error {number + 1}")


def documents(project: Path) -> list[Path]:
    return [
        path for path in (Paths(project).folder / "circuits").iterdir() if load_circuit(path.read_bytes()) is not None
    ]


# -- one relay ------------------------------------------------------------------------------------------------------


def test_circuit_opens_after_the_configured_number_of_consecutive_failures(breaker: CircuitBreaker) -> None:
    fail(breaker, "build", 4)
    assert breaker.refusal("build") is None

    fail(breaker, "build", 1)
    assert breaker.refusal("build") is not None


def test_success_resets_the_failure_count(breaker: CircuitBreaker) -> None:
    fail(breaker, "build", 4)
    breaker.record_success("build")
    fail(breaker, "build", 4)

    assert breaker.refusal("build") is None


def test_circuit_of_one_tool_leaves_other_tools_and_the_server_closed(breaker: CircuitBreaker) -> None:
    fail(breaker, "build")

    assert breaker.refusal("test") is None
    assert breaker.refusal(None) is None


def test_open_server_circuit_refuses_every_tool(breaker: CircuitBreaker) -> None:
    fail(breaker, WHOLE_SERVER)

    assert breaker.refusal("build") is not None
    assert breaker.remaining_s() == 60


def test_success_of_one_tool_resets_the_server_but_not_other_tools(breaker: CircuitBreaker) -> None:
    fail(breaker, WHOLE_SERVER, 4)
    fail(breaker, "build", 4)
    breaker.record_success("test")
    fail(breaker, WHOLE_SERVER, 1)
    assert breaker.refusal(None) is None

    fail(breaker, "build", 1)
    assert breaker.refusal("build") is not None


def test_refusal_names_tool_server_start_reason_and_remaining_time(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(18)

    why = breaker.refusal("build") or ""

    for word in ("build", "server", "2026-11-22T12:00:00", "after 5 failures", "error 5", "again in 42 s"):
        assert word in why


def test_exactly_one_call_probes_after_the_cool_down(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(59.9)
    assert breaker.refusal("build") is not None

    clock.sleep(0.1)
    assert breaker.refusal("build") is None
    assert breaker.refusal("build") is not None


def test_successful_probe_closes_the_circuit(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")

    breaker.record_success("build")

    assert [breaker.refusal("build") for _ in range(3)] == [None] * 3
    fail(breaker, "build", 4)
    assert breaker.refusal("build") is None


def test_failed_probe_reopens_the_circuit_for_a_full_cool_down(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")

    fail(breaker, "build", 1)

    clock.sleep(59.9)
    assert breaker.refusal("build") is not None
    clock.sleep(0.1)
    assert breaker.refusal("build") is None


def test_cancelled_probe_lets_the_next_call_probe(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, "build")
    clock.sleep(60)
    breaker.refusal("build")

    breaker.release_probe("build")

    assert breaker.refusal("build") is None
    assert breaker.refusal("build") is not None


def test_any_tool_can_probe_the_server_circuit(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, WHOLE_SERVER)
    clock.sleep(60)
    assert breaker.refusal("build") is None
    assert breaker.refusal("test") is not None

    breaker.record_success("build")

    assert breaker.refusal("test") is None


def test_tool_failure_during_a_server_probe_passes_the_probe_on(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, WHOLE_SERVER)
    clock.sleep(60)
    breaker.refusal("build")

    fail(breaker, "build", 1)

    assert breaker.refusal("test") is None
    assert breaker.refusal("lint") is not None


def test_call_refused_for_its_tool_does_not_use_up_the_server_probe(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, WHOLE_SERVER)
    clock.sleep(30)
    fail(breaker, "build")
    clock.sleep(30)

    assert "the tool build" in (breaker.refusal("build") or "")
    assert breaker.refusal("test") is None


def test_wall_clock_jumps_do_not_change_the_cool_down(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, "build")

    for jump in (timedelta(days=400), -timedelta(days=900)):
        clock.wall += jump
        assert "again in 60 s" in (breaker.refusal("build") or "")


# -- several relays -------------------------------------------------------------------------------------------------


def test_open_circuit_is_shared_by_all_relays_of_a_server(make_breaker: MakeBreaker) -> None:
    one, other = make_breaker(), make_breaker()
    assert other.refusal("build") is None

    fail(one, "build")

    assert other.refusal("build") is not None
    assert make_breaker().refusal("build") is not None


def test_circuits_of_different_servers_are_independent(make_breaker: MakeBreaker) -> None:
    fail(make_breaker(), "build")
    fail(make_breaker(), WHOLE_SERVER)

    assert make_breaker(server="other").refusal("build") is None


def test_one_relay_of_many_probes(make_breaker: MakeBreaker, clock: Clock) -> None:
    relays = [make_breaker() for _ in range(5)]
    fail(relays[0], "build")
    clock.sleep(60)

    assert [relay.refusal("build") is None for relay in relays] == [True, False, False, False, False]


def test_probe_outcome_is_shared_by_all_relays(make_breaker: MakeBreaker, clock: Clock) -> None:
    one, other = make_breaker(), make_breaker()
    fail(one, "build")
    clock.sleep(60)
    other.refusal("build")
    other.record_failure("build", "worse")
    assert "again in 60 s" in (one.refusal("build") or "")

    clock.sleep(60)
    one.refusal("build")
    one.record_success("build")
    assert other.refusal("build") is None


def test_circuit_closed_by_another_relay_resets_the_failure_count(make_breaker: MakeBreaker, clock: Clock) -> None:
    one, other = make_breaker(), make_breaker()
    fail(one, "build")
    clock.sleep(60)
    other.refusal("build")
    other.record_success("build")

    fail(one, "build", 4)

    assert one.refusal("build") is None


def test_failures_of_calls_in_flight_do_not_extend_the_cool_down(make_breaker: MakeBreaker, clock: Clock) -> None:
    breaker = make_breaker()
    fail(breaker, "build")
    clock.sleep(30)

    fail(breaker, "build", 2)

    assert "again in 30 s" in (breaker.refusal("build") or "")


def test_reopened_circuit_keeps_its_start_and_counts_every_failure(make_breaker: MakeBreaker, clock: Clock) -> None:
    fail(make_breaker(), "build")
    clock.sleep(60)
    prober = make_breaker()
    prober.refusal("build")

    prober.record_failure("build", "worse")

    why = prober.refusal("build") or ""
    assert "since 2026-11-22T12:00:00" in why
    assert "after 6 failures" in why


def test_probe_of_a_dead_relay_expires_after_cap_s(make_breaker: MakeBreaker, clock: Clock) -> None:
    fail(make_breaker(), "build")
    clock.sleep(60)
    assert make_breaker().refusal("build") is None  # its outcome is never recorded

    clock.sleep(239.9)
    assert make_breaker().refusal("build") is not None
    clock.sleep(0.1)
    assert [make_breaker().refusal("build") is None for _ in range(3)] == [True, False, False]


def test_probe_is_allowed_at_once_after_a_reboot(make_breaker: MakeBreaker, clock: Clock) -> None:
    fail(make_breaker(), "build")
    clock.passed_s = 5

    assert [make_breaker(boot="next").refusal("build") is None for _ in range(2)] == [True, False]


def test_probe_cancelled_after_a_reboot_lets_the_next_call_probe(make_breaker: MakeBreaker, clock: Clock) -> None:
    """Monotonic time restarts at boot: a time of the previous boot must not be compared with one of this boot."""
    fail(make_breaker(), "build")
    clock.passed_s = 5
    prober = make_breaker(boot="next")
    prober.refusal("build")

    prober.release_probe("build")

    assert make_breaker(boot="next").refusal("build") is None


def test_probe_of_a_dead_relay_expires_after_a_reboot_too(make_breaker: MakeBreaker, clock: Clock) -> None:
    fail(make_breaker(), "build")
    clock.passed_s = 5
    make_breaker(boot="next").refusal("build")

    clock.sleep(240)

    assert make_breaker(boot="next").refusal("build") is None


# -- the documents --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b'{"version": 1, "tool": "build"}'],
)
def test_unreadable_document_counts_as_closed(make_breaker: MakeBreaker, project: Path, garbage: bytes) -> None:
    fail(make_breaker(), "build")
    (document,) = documents(project)
    document.unlink()
    document.write_bytes(garbage)

    assert make_breaker().refusal("build") is None
    assert open_circuits(Paths(project).circuits) == []


@pytest.mark.parametrize("key", ["server", "tool", "why", "opened_at", "since_s", "boot", "cool_down_s", "failures"])
def test_document_with_a_value_of_the_wrong_type_counts_as_closed(
    make_breaker: MakeBreaker, project: Path, key: str
) -> None:
    fail(make_breaker(), "build")
    (document,) = documents(project)
    stored = json.loads(document.read_bytes())
    document.unlink()
    document.write_text(json.dumps({**stored, key: []}))

    assert make_breaker().refusal("build") is None


def test_broken_document_is_replaced_when_the_circuit_opens(make_breaker: MakeBreaker, project: Path) -> None:
    fail(make_breaker(), "build")
    (document,) = documents(project)
    document.unlink()
    document.write_text("{")
    breaker = make_breaker()

    fail(breaker, "build")

    assert breaker.refusal("build") is not None


def test_document_of_a_later_version_is_obeyed_probed_and_removed(
    make_breaker: MakeBreaker, project: Path, clock: Clock
) -> None:
    fail(make_breaker(), "build")
    (document,) = documents(project)
    stored = json.loads(document.read_bytes())
    document.unlink()
    document.write_text(json.dumps({**stored, "version": 2, "new": True}))
    later = make_breaker()
    assert later.refusal("build") is not None

    clock.sleep(60)
    assert later.refusal("build") is None
    later.record_success("build")

    assert documents(project) == []


STORED = b"""{
  "boot": "boot",
  "cool_down_s": 60.0,
  "failures": 5,
  "opened_at": "2026-11-22T12:00:00.000000Z",
  "probed_s": null,
  "server": "server",
  "since_s": 1000.0,
  "tool": "build",
  "version": 1,
  "why": "error 5"
}"""


def test_document_format_is_stable(make_breaker: MakeBreaker, project: Path, clock: Clock) -> None:
    fail(make_breaker(), "build")
    (document,) = documents(project)

    circuit = load_circuit(STORED)

    assert document.read_bytes() == STORED
    assert circuit is not None
    assert circuit.dump() == STORED
    assert circuit.remaining_s(Instant("boot", clock.monotonic())) == 60
    assert circuit.remaining_s(Instant("another", 5.0)) == 0


def test_circuit_that_cannot_be_written_holds_for_its_relay(project: Path, make_breaker: MakeBreaker) -> None:
    Paths(project).folder.symlink_to(project)
    breaker = make_breaker()

    fail(breaker, "build")

    assert breaker.refusal("build") is not None
    assert make_breaker().refusal("build") is None


def test_unwritten_circuit_survives_unrelated_changes_of_the_folder(
    make_breaker: MakeBreaker, project: Path, clock: Clock
) -> None:
    (Paths(project).folder / "circuits").mkdir(parents=True)
    (Paths(project).folder / "store.lock").mkdir()
    breaker = make_breaker()

    fail(breaker, "build")
    (Paths(project).folder / "circuits" / "another").touch()
    assert breaker.refusal("build") is not None

    clock.sleep(60)
    assert breaker.refusal("build") is None
    assert breaker.refusal("build") is not None
    breaker.record_success("build")
    assert breaker.refusal("build") is None


def test_unwritten_circuit_is_replaced_by_another_relays_document(
    make_breaker: MakeBreaker, project: Path, clock: Clock
) -> None:
    lock = Paths(project).folder / "store.lock"
    lock.mkdir(parents=True)
    breaker = make_breaker()
    fail(breaker, "build")
    lock.rmdir()
    clock.sleep(30)
    fail(make_breaker(), "build")

    clock.sleep(30)

    assert "again in 30 s" in (breaker.refusal("build") or "")


def test_circuits_work_after_the_state_folder_was_removed(
    make_breaker: MakeBreaker, project: Path, clock: Clock
) -> None:
    breaker = make_breaker()
    fail(breaker, "build")
    shutil.rmtree(Paths(project).folder)

    for tool in ("build", "test"):
        fail(breaker, tool)

    assert make_breaker().refusal("test") is not None


def test_status_reports_half_open_after_the_cool_down(make_breaker: MakeBreaker, project: Path, clock: Clock) -> None:
    fail(make_breaker(), WHOLE_SERVER)
    (circuit,) = open_circuits(Paths(project).circuits)

    assert circuit_status(circuit, Instant("boot", clock.monotonic()))["state"] == "open"
    assert circuit_status(circuit, Instant("boot", clock.monotonic()))["retry_in_s"] == 60
    clock.sleep(60)
    assert circuit_status(circuit, Instant("boot", clock.monotonic()))["state"] == "half-open"
    assert circuit_status(circuit, Instant("boot", clock.monotonic()))["tool"] is None


# -- any life of several relays -------------------------------------------------------------------------------------

DEAD_RELAY = -1
"""The relay that began the probe has died."""


class RelayModel:
    """Two relays of a project in front of one server with one tool, beside a model of the circuit. They call, fail,
    succeed, cancel and die while time passes and the wall clock jumps; ``asks`` compares both."""

    config = McpConfig(failures=2, cool_down_s=60.0, cap_s=240.0)

    def __init__(self, project: Path) -> None:
        self._project = project
        self.clock = Clock()
        self.breakers = [self._start_relay(), self._start_relay()]
        self.failures = [0, 0]
        self.open_until_s: float | None = None
        self.prober: int | None = None
        self.probed_s = 0.0

    def _start_relay(self) -> CircuitBreaker:
        return CircuitBreaker(["server"], "server", self.config, self.clock, "boot", Store(self._project))

    def asks(self, relay: int) -> None:
        now_s = self.clock.passed_s
        is_open = self.open_until_s is not None
        cool = self.open_until_s is None or now_s >= self.open_until_s
        tried = self.prober is not None and now_s < self.probed_s + self.config.cap_s

        assert (self.breakers[relay].refusal("build") is None) == (cool and not tried)

        if is_open and cool and not tried:
            self.prober, self.probed_s = relay, now_s

    def fails(self, relay: int) -> None:
        if self.open_until_s is None or self.prober == relay:  # otherwise no call has reached the tool
            self.failures[relay] += 1
            self.breakers[relay].record_failure("build", "error")
            if self.prober == relay or self.failures[relay] == self.config.failures:
                self.open_until_s = self.clock.passed_s + self.config.cool_down_s
                self.prober, self.failures[relay] = None, 0

    def succeeds(self, relay: int) -> None:
        self.failures[relay] = 0
        self.breakers[relay].record_success("build")
        if self.prober == relay:
            self.open_until_s = self.prober = None

    def cancels(self, relay: int) -> None:
        self.breakers[relay].release_probe("build")
        if self.prober == relay:
            self.prober = None

    def dies(self, relay: int) -> None:
        self.breakers[relay] = self._start_relay()
        self.failures[relay] = 0
        if self.prober == relay:
            self.prober = DEAD_RELAY

    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)
        if self.prober in (0, 1) and self.clock.passed_s >= self.probed_s + self.config.cap_s:
            self.cancels(self.prober)  # a call lasts at most cap_s

    def the_wall_clock_jumps(self, days: int) -> None:
        self.clock.wall += timedelta(days=days)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(8))
def test_at_most_one_probe_in_any_sequence_of_events(project: Path, seed: int) -> None:
    rng, model = Random(seed), RelayModel(project)
    events = [model.asks] * 5 + [model.fails] * 3 + [model.succeeds, model.cancels, model.dies]
    for _ in range(150):
        if rng.random() < 0.3:
            model.time_passes(rng.choice([0.5, 59.5, 60, 239.5, 240]))
            model.the_wall_clock_jumps(rng.randint(-500, 500))
        rng.choice(events)(rng.randrange(2))
        assert len(open_circuits(Paths(project).circuits)) == (model.open_until_s is not None)


def test_a_document_with_a_lone_surrogate_in_a_key_counts_as_closed() -> None:
    assert load_circuit(b'{"\\ud800": 1}') is None
