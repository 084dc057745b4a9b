"""The sequential test of a failure rate: false alarms are rare however often it is asked, and detection is quick."""

from __future__ import annotations

import itertools
import math
import random
from statistics import median

import pytest

from yolo_supervisor.policy.failure_rate import (
    ALTERNATIVES,
    BUCKETS,
    FIRST_WEIGHT,
    LATER_WEIGHT,
    EProcess,
    Rule,
    likelihood_ratio,
    start_weight,
)

RULE = Rule()
ENOUGH = 1 / RULE.alpha


def process_of(outcomes: str, rule: Rule = RULE) -> EProcess:
    """The e-process of these outcomes, all at one moment; an ``x`` is an error."""
    process = EProcess()
    for outcome in outcomes:
        process.add(outcome == "x", 0.0, rule)
    return process


def value_of(outcomes: str, rule: Rule = RULE) -> float:
    return process_of(outcomes, rule).e_value(rule).value


def detected_after(rate: float, limit: int, seed: int, good: int = 0) -> int | None:
    """The number of outcomes at this rate of errors until detection, None if ``limit`` of them do not suffice.

    ``good`` outcomes with 2 % errors come first. The test is asked after each outcome.
    """
    rng, process = random.Random(seed), EProcess()
    for number in range(1 - good, limit + 1):
        failed = rng.random() < (rate if number > 0 else 0.02)
        process.add(failed, 0.0, RULE)
        if failed and process.e_value(RULE).value >= ENOUGH:
            return number
    return None


def runs(rate: float, number: int, limit: int = 1000, good: int = 0) -> list[int | None]:
    return [detected_after(rate, limit, seed, good) for seed in range(number)]


def test_one_error_of_three_is_never_enough() -> None:
    assert all(value_of(outcomes) < ENOUGH for outcomes in ("x..", ".x.", "..x"))


def test_five_errors_in_a_row_are_enough_and_four_are_not() -> None:
    assert value_of("xxxxx") >= ENOUGH
    assert value_of("xxxx") < ENOUGH


def test_no_decision_below_the_minimum_number_of_outcomes() -> None:
    rule = Rule(min_samples=8)

    assert value_of("x" * 7, rule) == 0.0
    assert value_of("x" * 8, rule) >= ENOUGH


@pytest.mark.parametrize("samples", [1, 2, 7, 40])
def test_the_expected_ratio_is_one_at_the_limit_and_smaller_below_it(samples: int) -> None:
    def expected(rate: float) -> float:
        return math.fsum(
            math.comb(samples, errors)
            * rate**errors
            * (1 - rate) ** (samples - errors)
            * likelihood_ratio(samples, errors, 0.1)
            for errors in range(samples + 1)
        )

    assert expected(0.1) == pytest.approx(1.0)
    assert expected(0.05) < 1.0


def test_the_weights_add_up_to_one() -> None:
    first_part = math.fsum(start_weight(number) for number in range(1, 10_001))
    rest = LATER_WEIGHT * 10_000.5**-0.2 / 0.2  # the integral over all later ones

    assert first_part + rest == pytest.approx(1.0, abs=1e-6)
    assert start_weight(1) == FIRST_WEIGHT
    assert all(0 < position < 1 for position in ALTERNATIVES)


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_failure_rate_below_the_limit_raises_no_alarm_over_long_runs(rate: float) -> None:
    assert runs(rate, 200) == [None] * 200


def test_a_failure_rate_at_the_limit_rarely_raises_an_alarm() -> None:
    assert sum(number is not None for number in runs(0.1, 300)) <= 3


def test_a_failure_rate_of_three_in_ten_is_detected_soon() -> None:
    detected = [number for number in runs(0.3, 1000) if number is not None]

    assert len(detected) == 1000
    assert median(detected) <= 34
    assert sorted(detected)[949] <= 85


def test_half_of_the_sequences_with_a_failure_rate_of_one_half_are_detected_within_nine_outcomes() -> None:
    sequences = ["".join(outcomes) for outcomes in itertools.product(".x", repeat=9)]
    detected = [sequence for sequence in sequences if any(alarm_after(sequence[:end]) for end in range(1, 10))]

    assert len(detected) >= len(sequences) / 2


def alarm_after(outcomes: str) -> bool:
    return outcomes.endswith("x") and value_of(outcomes) >= ENOUGH


def test_a_failure_after_a_long_good_period_is_detected() -> None:
    assert all(1 < (number or 0) <= 12 for number in runs(1.0, 20, good=5000))
    assert all(1 < (number or 0) <= 400 for number in runs(0.3, 20, good=5000))


def test_the_reported_counts_are_those_of_the_evidence() -> None:
    evidence = process_of("." * 60 + "x" * 10).e_value(RULE)

    assert (evidence.errors, evidence.samples) == (10, 10)


def test_only_the_window_is_kept() -> None:
    process = EProcess()
    for number in range(50_000):
        process.add(number % 50 == 0, number * 0.01, RULE)

    assert RULE.window * 0.9 < sum(bucket.samples for bucket in process.buckets) <= RULE.window
    assert len(process.buckets) <= BUCKETS + 1


def test_outcomes_older_than_the_window_do_not_count() -> None:
    process = process_of("xxxx")

    assert process.in_window(RULE.window_s, RULE) == process.buckets
    assert process.in_window(RULE.window_s + 1, RULE) == []
    process.add(True, RULE.window_s + 1, RULE)
    assert process.e_value(RULE).value == 0.0


def test_rare_outcomes_need_no_more_buckets_than_frequent_ones() -> None:
    process = EProcess()
    for number in range(1000):
        process.add(False, number * RULE.window_s / 100, RULE)

    assert len(process.buckets) <= BUCKETS + 1
    assert 90 <= sum(bucket.samples for bucket in process.buckets) <= 101


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.5, 0.9])
def test_any_limit_can_be_computed(limit: float) -> None:
    rule = Rule(limit=limit, window=100_000)

    assert value_of("x" * 5000, rule) >= ENOUGH
    assert value_of("." * 5000, rule) == 0.0
