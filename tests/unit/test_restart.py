"""Which dead agents are started again, when, and when never."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.config import RestartConfig
from yolo_supervisor.formats.crash_report import CrashCause
from yolo_supervisor.policy.restart import (
    RestartCode,
    RestartDecision,
    RestartFacts,
    Verdict,
    crash_of,
    decide,
    policy_for,
    restarts_on_stall,
)

START, WAIT, NEVER, PERSON = Verdict.START, Verdict.WAIT, Verdict.NEVER, Verdict.PERSON

KILLED = RestartFacts(
    name="dev-1", role="dev", died_s=0.0, signal=signal.SIGKILL, cause=CrashCause.SIGNAL, transcript="ok",
    launch_known=True,
)  # fmt: skip
SEGFAULT = {"signal": signal.SIGSEGV}
EXIT_1 = {"signal": None, "status": 1, "cause": CrashCause.UNKNOWN}
EXIT_0 = {"signal": None, "status": 0, "cause": CrashCause.CLEAN_EXIT}
LIMITED = {"signal": None, "status": 1, "cause": CrashCause.RATE_LIMITED}
STALLED = {"signal": signal.SIGTERM, "by_supervisor": True, "stalled": True}
OVERFLOW = {"signal": None, "status": 1, "cause": CrashCause.CONTEXT_OVERFLOW}
ALWAYS = {"policy": "always"}


def decided(facts: dict[str, Any], rules: dict[str, Any] | None = None, chance: float = 1.0) -> RestartDecision:
    """The decision about a killed agent whose facts and rules differ in this."""
    config = RestartConfig(**{"policy": "on-crash", **(rules or {})})
    return decide(replace(KILLED, **facts), config, chance, poison_s=60.0)


# -- which end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["on-crash", "always"])
@pytest.mark.parametrize("name", ["KILL", "SEGV", "ABRT", "BUS", "ILL", "FPE", "TRAP", "SYS", "XCPU", "XFSZ"])
def test_agent_that_a_crash_signal_ended_is_started(name: str, policy: str) -> None:
    assert decided({"signal": signal.Signals[f"SIG{name}"]}, {"policy": policy}).verdict is START


@pytest.mark.parametrize("policy", ["on-crash", "always"])
@pytest.mark.parametrize("status", [1, 2, 3, 64, 75, 126, 127, 132, 134, 137, 139, 255])
def test_agent_that_ended_with_an_exit_code_of_a_failure_is_started(status: int, policy: str) -> None:
    assert decided({**EXIT_1, "status": status}, {"policy": policy}).verdict is START


@pytest.mark.parametrize("policy", ["on-crash", "always"])
@pytest.mark.parametrize(
    "end",
    [
        *({"signal": number} for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)),
        *({**EXIT_1, "status": status} for status in (129, 130, 131, 143)),
    ],
)
def test_agent_that_was_asked_to_end_is_not_started(end: dict[str, Any], policy: str) -> None:
    found = decided({**end, "headless": True, "has_work": True}, {"policy": policy})

    assert (found.verdict, found.code) == (NEVER, RestartCode.DELIBERATE_SIGNAL)


@pytest.mark.parametrize("policy", ["on-crash", "always"])
@pytest.mark.parametrize(
    "end",
    [
        {"signal": None},
        {"signal": None, "oom": True},
        {"signal": None, "status": -9},
        {"signal": None, "status": 256},
        {"signal": signal.SIGUSR1},
        {"signal": signal.SIGPIPE},
        {"signal": 64},
    ],
)
def test_agent_whose_end_is_not_understood_is_not_started(end: dict[str, Any], policy: str) -> None:
    found = decided(end, {"policy": policy})

    assert (found.verdict, found.code) == (NEVER, RestartCode.UNKNOWN_END)


@pytest.mark.parametrize(
    ("policy", "headless", "has_work", "expected"),
    [
        ("on-crash", True, True, NEVER),
        ("always", True, True, START),
        ("always", True, False, NEVER),
        ("always", False, True, NEVER),
    ],
)
def test_exit_0_is_followed_by_a_start_only_of_a_headless_agent_with_work(
    policy: str, headless: bool, has_work: bool, expected: Verdict
) -> None:
    found = decided({**EXIT_0, "headless": headless, "has_work": has_work}, {"policy": policy})

    assert found.verdict is expected
    assert (found.code is RestartCode.CLEAN_EXIT) == (expected is NEVER)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"in_process": True}, RestartCode.IN_PROCESS),
        ({"hosted": True}, RestartCode.HOSTED),
        ({"held": True}, RestartCode.HELD),
        ({"deliberate": True}, RestartCode.STOPPED_IN_CLIENT),
        ({"by_supervisor": True}, RestartCode.ENDED_BY_SUPERVISOR),
        ({"stalled": True}, RestartCode.ENDED_BY_SUPERVISOR),
        (STALLED, RestartCode.ENDED_BY_SUPERVISOR),
        ({"status": 0}, RestartCode.CLEAN_EXIT),
        ({"overflows": 2}, RestartCode.OVERFLOW_TWICE),
        ({**OVERFLOW, "overflows": 2}, RestartCode.OVERFLOW_TWICE),
        ({"session": False}, RestartCode.NO_SESSION),
        ({"folder_exists": False}, RestartCode.NO_FOLDER),
        ({"transcript": "missing"}, RestartCode.NO_TRANSCRIPT),
        ({"transcript": "no_turn"}, RestartCode.NO_TURN),
        ({"replaced": True}, RestartCode.REPLACED),
        ({"lead_gone": True}, RestartCode.LEAD_GONE),
        ({"work_taken": True}, RestartCode.WORK_TAKEN),
    ],
)
@pytest.mark.parametrize("policy", ["on-crash", "always"])
def test_agent_is_never_started(facts: dict[str, Any], code: RestartCode, policy: str) -> None:
    found = decided(facts, {"policy": policy})

    assert (found.verdict, found.code, found.wait_s) == (NEVER, code, 0.0)


def test_exit_0_and_a_signal_contradict_each_other() -> None:
    found = decided({"status": 0, "headless": True, "has_work": True}, ALWAYS)

    assert (found.verdict, found.code) == (NEVER, RestartCode.CLEAN_EXIT)


def test_first_context_overflow_is_followed_by_a_start() -> None:
    assert decided({**OVERFLOW, "overflows": 1}).verdict is START


# -- whose policy -------------------------------------------------------------------------------------------------


def test_without_a_policy_no_agent_is_started() -> None:
    found = decide(KILLED, RestartConfig(), 0.0, poison_s=60.0)

    assert (found.verdict, found.code) == (NEVER, RestartCode.NEVER_BY_POLICY)


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        ({}, "on-crash"),
        ({"dev": "always"}, "always"),
        ({"dev": "always", "dev-1": "never"}, "never"),
        ({"dev-2": "never"}, "on-crash"),
    ],
)
def test_policy_of_a_name_wins_over_that_of_a_role(agents: dict[str, Any], expected: str) -> None:
    rules = RestartConfig(policy="on-crash", agents=agents)

    assert policy_for("dev-1", "dev", rules) == expected
    assert (decide(KILLED, rules, 0.0, poison_s=60.0).verdict is NEVER) == (expected == "never")


@pytest.mark.parametrize("named", ["dev", "dev-1"])
def test_stalled_agent_that_was_ended_is_started_if_the_user_names_it(named: str) -> None:
    assert decided(STALLED, {"on_stall": (named,)}).verdict is START
    assert decided({**STALLED, "signal": None}, {"on_stall": (named,)}).verdict is START
    assert decided({**STALLED, "stalled": False}, {"on_stall": (named,)}).code is RestartCode.ENDED_BY_SUPERVISOR
    assert decided({**STALLED, "held": True}, {"on_stall": (named,)}).code is RestartCode.HELD


def test_stalled_agent_is_left_where_its_policy_is_never() -> None:
    rules = RestartConfig(on_stall=("dev",))

    assert not restarts_on_stall("dev-1", "dev", rules)
    assert decide(replace(KILLED, **STALLED), rules, 0.0, poison_s=60.0).code is RestartCode.NEVER_BY_POLICY


# -- a person is needed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "rules", "code"),
    [
        ({"launch_known": False}, {}, RestartCode.NO_LAUNCH),
        ({"context_tokens": 101}, {"max_resume_tokens": 100}, RestartCode.TOO_LARGE),
        ({"starts": (3.0, 2.0, 1.0)}, {}, RestartCode.TOO_MANY),
        ({"starts": (1.0,)}, {"max_starts": 1}, RestartCode.TOO_MANY),
        ({**SEGFAULT, "last_crash": (CrashCause.SIGNAL, 59.0)}, {}, RestartCode.SAME_CRASH),
        ({**EXIT_1, "last_crash": (CrashCause.UNKNOWN, 0.0)}, {}, RestartCode.SAME_CRASH),
        ({"cause": CrashCause.OOM, "last_crash": (CrashCause.OOM, 30.0)}, {}, RestartCode.SAME_CRASH),
    ],
)
def test_person_has_to_decide(facts: dict[str, Any], rules: dict[str, Any], code: RestartCode) -> None:
    found = decided(facts, rules)

    assert (found.verdict, found.code, found.wait_s) == (PERSON, code, 0.0)


@pytest.mark.parametrize(
    "facts",
    [
        {**SEGFAULT, "last_crash": (CrashCause.SIGNAL, 60.0)},
        {**SEGFAULT, "last_crash": (CrashCause.OOM, 1.0)},
        {"last_crash": (CrashCause.SIGNAL, 1.0)},
        {"signal": None, "status": 137, "last_crash": (CrashCause.SIGNAL, 1.0)},
        {**LIMITED, "last_crash": (CrashCause.RATE_LIMITED, 1.0)},
    ],
)
def test_other_or_earlier_crash_is_not_the_same(facts: dict[str, Any]) -> None:
    assert decided(facts).verdict is START


def test_crash_is_remembered_unless_it_came_from_outside() -> None:
    def remembered(**facts: Any) -> CrashCause | None:
        return crash_of(replace(KILLED, **facts))

    assert remembered() is None
    assert remembered(status=137, signal=None) is None
    assert remembered(cause=None) is None
    assert remembered(**LIMITED) is None
    assert remembered(**EXIT_0) is None
    assert remembered(**SEGFAULT, by_supervisor=True) is None
    assert remembered(**SEGFAULT) is CrashCause.SIGNAL
    assert remembered(status=139, signal=None) is CrashCause.SIGNAL
    assert remembered(cause=CrashCause.OOM) is CrashCause.OOM
    assert remembered(cause=CrashCause.API_ERROR) is CrashCause.API_ERROR


def test_large_conversation_is_started_without_it_if_the_rules_say_so() -> None:
    fresh = {"max_resume_tokens": 100, "when_too_large": "fresh"}

    for tokens, expected in ((101, True), (100, False), (None, False)):
        found = decided({"context_tokens": tokens}, fresh)
        assert (found.verdict, found.fresh) == (START, expected)
    assert decided({"context_tokens": 10**9}).verdict is START


# -- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "code", "wait_s"),
    [
        ({"hold_s": 1800.0}, RestartCode.QUOTA, 1800.0),
        ({**LIMITED, "hold_s": 0.5}, RestartCode.QUOTA, 0.5),
        ({"storm_left_s": 42.0}, RestartCode.STORM, 42.0),
        ({"host_starts": (400.0, 2.0)}, RestartCode.HOST_PACE, 3.0),
        ({"host_starts": tuple(range(290, 190, -10))}, RestartCode.HOST_PACE, 10),
        ({"starts": (1.0,)}, RestartCode.BACKOFF, 5.0),
        ({"starts": (20.0,), "died_s": 3.0}, RestartCode.BACKOFF, 2.0),
        ({"starts": (20.0, 15.0), "died_s": 3.0}, RestartCode.BACKOFF, 7.0),
        ({"starts": (1.0,), "died_s": 30.0}, RestartCode.BACKOFF, 4.0),  # that start brought up no process
        ({"free_mib": 255}, RestartCode.MEMORY, 5.0),
        ({"folder_exists": None}, RestartCode.NO_FOLDER, 5.0),
        ({"transcript": "unknown"}, RestartCode.NO_TRANSCRIPT, 5.0),
        ({"live_elsewhere": None}, RestartCode.LIVE_ELSEWHERE, 5.0),
        ({"live_elsewhere": True}, RestartCode.LIVE_ELSEWHERE, 5.0),
    ],
)
def test_start_has_to_wait(facts: dict[str, Any], code: RestartCode, wait_s: float) -> None:
    found = decided(facts)

    assert (found.verdict, found.code, found.wait_s) == (WAIT, code, wait_s)


@pytest.mark.parametrize(
    "facts",
    [
        LIMITED,  # the window is over
        {**LIMITED, "hold_s": 0.0},
        {"host_starts": (400.0, 5.0)},
        {"starts": (20.0,), "died_s": 5.0},
        {"starts": (700.0,), "progressed_s": 600.0},
        {"free_mib": 256},
        {"free_mib": None},
    ],
)
def test_start_is_due(facts: dict[str, Any]) -> None:
    assert decided(facts).verdict is START


def test_the_longest_of_several_pauses_counts() -> None:
    found = decided({"starts": (1.0,), "storm_left_s": 30.0, "hold_s": 7.0, "free_mib": 0})

    assert (found.code, found.wait_s) == (RestartCode.STORM, 30.0)


def test_pauses_double_up_to_a_limit_and_up_to_half_is_left_out() -> None:
    starts = tuple(float(age) for age in range(4000, 0, -400))  # far enough apart for the intensity

    waits = [decided({"starts": starts[: n + 1], "died_s": 0.0}).wait_s for n in range(len(starts))]

    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 300.0]
    assert decided({"starts": (1.0,)}, chance=0.0).wait_s == 2.5


def test_progress_sets_the_pauses_back() -> None:
    facts = {"starts": (2000.0, 1500.0, 1000.0)}

    assert decided({**facts, "progressed_s": 599.0}).code is RestartCode.BACKOFF
    assert decided({**facts, "progressed_s": 600.0}).verdict is START


def test_a_person_is_needed_until_there_is_a_reset() -> None:
    starts = (30.0, 20.0, 10.0)
    for later_s in (0.0, 300.0, 86400.0):
        found = decided({"died_s": 5.0 + later_s, "starts": tuple(age + later_s for age in starts)})
        assert found.code is RestartCode.TOO_MANY
        assert decided({"died_s": 5.0 + later_s}).verdict is START


def test_attempts_are_counted_in_the_period() -> None:
    def attempt(*starts: float) -> tuple[int, int]:
        found = decided({"starts": starts})
        return found.attempt, found.of

    assert [attempt(), attempt(300.0), attempt(299.0), attempt(300.0, 200.0, 100.0)] == [(1, 3), (1, 3), (2, 3), (3, 3)]


# -- in general ---------------------------------------------------------------------------------------------------

NUMBERS = st.none() | st.sampled_from([0, 1, 2, 3, 9, 11, 13, 15, 129, 130, 131, 137, 139, 143, 255])
AGES = st.floats(0, 2000)
SEVERAL = st.lists(AGES, max_size=6).map(lambda ages: tuple(sorted(ages, reverse=True)))
MAYBE = st.none() | st.booleans()
SELDOM = st.sampled_from([False] * 7 + [True])

FACTS = st.builds(
    RestartFacts,
    name=st.sampled_from(["dev-1", "qa"]), role=st.sampled_from(["dev", "lead"]), died_s=AGES,
    status=NUMBERS, signal=NUMBERS, oom=st.booleans(), cause=st.none() | st.sampled_from(CrashCause),
    by_supervisor=SELDOM, stalled=SELDOM, held=SELDOM, deliberate=SELDOM, hosted=SELDOM, in_process=SELDOM,
    headless=st.booleans(), has_work=st.booleans(), hold_s=st.none() | st.just(0.0) | AGES,
    overflows=st.integers(0, 2), last_crash=st.none() | st.tuples(st.sampled_from(CrashCause), AGES),
    folder_exists=st.sampled_from([True, True, True, None, False]), session=st.sampled_from([True, True, False]),
    transcript=st.sampled_from(["ok", "ok", "ok", "missing", "no_turn", "unknown"]),
    launch_known=st.sampled_from([True, True, False]), live_elsewhere=st.sampled_from([False, False, None, True]),
    context_tokens=st.none() | st.integers(0, 10**6), free_mib=st.none() | st.integers(0, 1000),
    starts=st.just(()) | SEVERAL, progressed_s=st.none() | AGES, host_starts=st.just(()) | SEVERAL,
    storm_left_s=st.just(0.0) | AGES,
)  # fmt: skip
GOOD = st.builds(
    replace, st.just(KILLED), starts=SEVERAL, host_starts=SEVERAL, died_s=AGES, progressed_s=st.none() | AGES,
    signal=st.sampled_from([9, 11]), stalled=st.booleans(),
    last_crash=st.none() | st.tuples(st.just(CrashCause.SIGNAL), AGES),
)  # fmt: skip
"""Facts of which many lead to a start."""

RULES = st.builds(
    RestartConfig,
    policy=st.sampled_from(["on-crash", "always", "never"]),
    agents=st.dictionaries(st.sampled_from(["dev-1", "dev", "lead"]), st.sampled_from(["never", "always"]), max_size=1),
    on_stall=st.sampled_from([(), (), ("dev",)]), max_starts=st.integers(1, 4), period_s=st.floats(1, 1000),
    backoff_s=st.floats(0, 100), backoff_max_s=st.floats(0, 1000), reset_s=st.floats(1, 1000),
    host_pause_s=st.floats(0, 60), host_starts=st.integers(1, 10), host_period_s=st.floats(1, 1000),
    max_resume_tokens=st.sampled_from([0, 1000]), when_too_large=st.sampled_from(["ask", "fresh"]),
    min_free_mib=st.integers(0, 1000),
)  # fmt: skip
CHANCES = st.floats(0, 1)

RESTRICTIONS: dict[str, Callable[[RestartFacts], dict[str, Any]]] = {
    "exit not known": lambda f: {"status": None, "signal": None},
    "asked to end": lambda f: {"status": None, "signal": 15},
    "by the supervisor": lambda f: {"by_supervisor": True},
    "held": lambda f: {"held": True},
    "by a person": lambda f: {"deliberate": True},
    "hosted": lambda f: {"hosted": True},
    "in its lead": lambda f: {"in_process": True},
    "with a screen": lambda f: {"headless": False},
    "without work": lambda f: {"has_work": False},
    "later": lambda f: {"hold_s": (f.hold_s or 0.0) + 100.0},
    "overflow": lambda f: {"overflows": f.overflows + 1},
    "folder unknown": lambda f: {"folder_exists": f.folder_exists and None},
    "no folder": lambda f: {"folder_exists": False},
    "no session": lambda f: {"session": False},
    "no transcript": lambda f: {"transcript": "missing"},
    "unknown transcript": lambda f: {"transcript": "unknown" if f.transcript == "ok" else f.transcript},
    "launch not known": lambda f: {"launch_known": False},
    "replaced": lambda f: {"replaced": True},
    "no lead": lambda f: {"lead_gone": True},
    "work taken": lambda f: {"work_taken": True},
    "lives elsewhere": lambda f: {"live_elsewhere": True},
    "may live elsewhere": lambda f: {"live_elsewhere": f.live_elsewhere or None},
    "large": lambda f: {"context_tokens": 10**9},
    "no memory": lambda f: {"free_mib": 0},
    "more starts": lambda f: {"starts": (*f.starts, 0.0)},
    "no progress": lambda f: {"progressed_s": None},
    "more starts on the host": lambda f: {"host_starts": (*f.host_starts, 0.0)},
    "storm": lambda f: {"storm_left_s": f.storm_left_s + 10.0},
}


@given(FACTS | GOOD, RULES, CHANCES)
def test_no_start_follows_an_end_that_is_not_known(facts: RestartFacts, rules: RestartConfig, chance: float) -> None:
    unknown = replace(facts, status=None, signal=None, stalled=False)

    assert decide(unknown, rules, chance, poison_s=60.0).verdict is NEVER


@given(FACTS | GOOD, RULES, CHANCES, st.sampled_from(["held", "deliberate", "signal", "status"]), st.data())
def test_no_start_follows_an_end_that_was_wanted(
    facts: RestartFacts, rules: RestartConfig, chance: float, how: str, data: st.DataObject
) -> None:
    wanted: dict[str, Any] = {how: True}
    if how == "signal":
        wanted = {"signal": data.draw(st.sampled_from([1, 2, 3, 15])), "stalled": False}
    if how == "status":
        wanted = {"status": data.draw(st.sampled_from([129, 130, 131, 143])), "stalled": False}

    assert decide(replace(facts, **wanted), rules, chance, poison_s=60.0).verdict is NEVER


@given(FACTS | GOOD, RULES, CHANCES)
def test_decision_says_how_long_to_wait_and_which_try_it_is(
    facts: RestartFacts, rules: RestartConfig, chance: float
) -> None:
    found = decide(facts, rules, chance, poison_s=60.0)

    assert (found.wait_s > 0) == (found.verdict is WAIT)
    assert (found.code is RestartCode.START) == (found.verdict is START)
    assert 1 <= found.attempt <= found.of == rules.max_starts
    assert found.text
    assert "\n" not in found.text


@pytest.mark.parametrize("name", RESTRICTIONS)
@given(facts=FACTS | GOOD, rules=RULES, chance=CHANCES)
def test_more_restrictive_facts_never_bring_about_a_start(
    name: str, facts: RestartFacts, rules: RestartConfig, chance: float
) -> None:
    restricted = replace(facts, **RESTRICTIONS[name](facts))

    if decide(facts, rules, chance, poison_s=60.0).verdict is not START:
        assert decide(restricted, rules, chance, poison_s=60.0).verdict is not START


@given(FACTS | GOOD, RULES, CHANCES)
def test_stricter_policy_never_brings_about_a_start(facts: RestartFacts, rules: RestartConfig, chance: float) -> None:
    rules = msgspec.structs.replace(rules, agents={})
    looser = [msgspec.structs.replace(rules, policy=policy) for policy in ("never", "on-crash", "always")]

    starts = [decide(facts, each, chance, poison_s=60.0).verdict is START for each in looser]

    assert starts == sorted(starts)


@given(GOOD, RULES, CHANCES)
def test_waiting_long_enough_ends_each_pause(facts: RestartFacts, rules: RestartConfig, chance: float) -> None:
    found = decide(facts, rules, chance, poison_s=60.0)
    if found.verdict is WAIT:
        by_s = found.wait_s + 1e-6
        later = replace(
            facts,
            died_s=facts.died_s + by_s,
            starts=tuple(age + by_s for age in facts.starts),
            host_starts=tuple(age + by_s for age in facts.host_starts),
        )
        assert decide(later, rules, chance, poison_s=60.0).verdict is START


@given(RULES, st.lists(st.tuples(st.floats(0, 500), st.floats(0, 50), CHANCES), max_size=30))
def test_no_agent_is_started_more_often_than_the_rules_allow(
    rules: RestartConfig, lives: list[tuple[float, float, float]]
) -> None:
    rules = msgspec.structs.replace(rules, policy="on-crash", agents={})
    now_s, starts, progressed_s = 0.0, list[float](), None
    for lived_s, noticed_s, chance in lives:
        now_s = died_at_s = now_s + lived_s
        now_s += noticed_s
        for _ in range(5):
            facts = replace(
                KILLED,
                died_s=now_s - died_at_s,
                starts=tuple(now_s - at_s for at_s in starts),
                host_starts=tuple(now_s - at_s for at_s in starts),
                progressed_s=progressed_s,
            )
            found = decide(facts, rules, chance, poison_s=60.0)
            if found.verdict is not WAIT:
                break
            now_s += found.wait_s
        if found.verdict is PERSON:
            assert found.code is RestartCode.TOO_MANY
            starts = []  # a person resets it
        elif found.verdict is START:
            starts.append(now_s)
            assert sum(now_s - at_s < rules.period_s for at_s in starts) <= rules.max_starts
            assert sum(now_s - at_s < rules.host_period_s for at_s in starts) <= rules.host_starts
            progressed_s = lived_s
