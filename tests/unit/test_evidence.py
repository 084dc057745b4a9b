"""The sequential test behind the flags: hardly ever wrong, however often one looks, and does not take for ever."""

from __future__ import annotations

import itertools
import math
import random
from statistics import median

import pytest

from yolo_supervisor.policy.failure_rate import ABOVE, FIRST, PORTIONS, SHARE, Rule, Trail, ratio, weight

RULE = Rule()
ENOUGH = 1 / RULE.alpha


def trail_of(word: str, rule: Rule = RULE) -> Trail:
    """A trail of these outcomes, an ``x`` is an error, all at once."""
    trail = Trail()
    for letter in word:
        trail.add(letter == "x", 0.0, rule)
    return trail


def stopped_after(rate: float, outcomes: int, seed: int, good: int = 0) -> int | None:
    """After how many outcomes at this rate of errors the evidence is enough, looked at all the time; None if never."""
    dice, trail = random.Random(seed), Trail()
    for number in range(1 - good, outcomes + 1):
        failed = dice.random() < (rate if number > 0 else 0.02)
        trail.add(failed, 0.0, RULE)
        if failed and trail.strength(RULE).value >= ENOUGH:
            return number
    return None


def runs(rate: float, number: int, outcomes: int = 1000, good: int = 0) -> list[int | None]:
    return [stopped_after(rate, outcomes, seed, good) for seed in range(number)]


def test_one_error_of_three_is_never_enough() -> None:
    assert all(trail_of(word).strength(RULE).value < ENOUGH for word in ("x..", ".x.", "..x", "x" + 2 * "."))


def test_five_errors_in_a_row_are_enough_and_four_are_not() -> None:
    assert trail_of("xxxxx").strength(RULE).value >= ENOUGH
    assert trail_of("xxxx").strength(RULE).value < ENOUGH


def test_no_decision_below_the_minimum_number_of_outcomes() -> None:
    rule = Rule(min_samples=8)

    assert trail_of("x" * 7, rule).strength(rule).value == 0.0
    assert trail_of("x" * 8, rule).strength(rule).value >= ENOUGH


@pytest.mark.parametrize("samples", [1, 2, 7, 40])
def test_at_the_limit_the_evidence_is_not_expected_to_grow_and_below_it_shrinks(samples: int) -> None:
    def expected(rate: float) -> float:
        return math.fsum(
            math.comb(samples, errors) * rate**errors * (1 - rate) ** (samples - errors) * ratio(samples, errors, 0.1)
            for errors in range(samples + 1)
        )

    assert expected(0.1) == pytest.approx(1.0)
    assert expected(0.05) < 1.0


def test_all_weights_together_are_one() -> None:
    most = math.fsum(weight(number) for number in range(1, 10_001))
    rest = SHARE * 10_000.5**-0.2 / 0.2  # the integral over all that come

    assert most + rest == pytest.approx(1.0, abs=1e-6)
    assert weight(1) == FIRST
    assert all(0 < above < 1 for above in ABOVE)


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_failure_rate_below_the_limit_raises_no_alarm_over_long_runs(rate: float) -> None:
    assert runs(rate, 200) == [None] * 200


def test_a_failure_rate_at_the_limit_rarely_raises_an_alarm() -> None:
    found = runs(0.1, 300)

    assert sum(each is not None for each in found) <= 3


def test_a_failure_rate_of_three_in_ten_is_detected_soon() -> None:
    found = [each for each in runs(0.3, 1000) if each is not None]

    assert len(found) == 1000
    assert median(found) <= 34
    assert sorted(found)[949] <= 85


def test_of_all_that_fail_every_other_time_half_are_found_out_after_nine_outcomes() -> None:
    words = ["".join(letters) for letters in itertools.product(".x", repeat=9)]
    found = [word for word in words if any(enough(word[:end]) for end in range(1, 10))]

    assert len(found) >= len(words) / 2


def enough(word: str) -> bool:
    return word.endswith("x") and trail_of(word).strength(RULE).value >= ENOUGH


def test_a_failure_after_a_long_good_period_is_detected() -> None:
    assert all(1 < (each or 0) <= 12 for each in runs(1.0, 20, good=5000))
    assert all(1 < (each or 0) <= 400 for each in runs(0.3, 20, good=5000))


def test_the_reported_counts_are_those_of_the_evidence() -> None:
    found = trail_of("." * 60 + "x" * 10).strength(RULE)

    assert (found.errors, found.samples) == (10, 10)


def test_only_the_window_is_kept() -> None:
    trail = Trail()
    for number in range(50_000):
        trail.add(number % 50 == 0, number * 0.01, RULE)

    assert RULE.window * 0.9 < sum(portion.samples for portion in trail.portions) <= RULE.window
    assert len(trail.portions) <= PORTIONS + 1


def test_outcomes_older_than_the_window_do_not_count() -> None:
    trail = trail_of("xxxx")

    assert trail.within(RULE.window_s, RULE) == trail.portions
    assert trail.within(RULE.window_s + 1, RULE) == []
    trail.add(True, RULE.window_s + 1, RULE)
    assert trail.strength(RULE).value == 0.0


def test_rare_outcomes_stay_few() -> None:
    trail = Trail()
    for number in range(1000):
        trail.add(False, number * RULE.window_s / 100, RULE)

    assert len(trail.portions) <= PORTIONS + 1
    assert 90 <= sum(portion.samples for portion in trail.portions) <= 101


@pytest.mark.parametrize("limit", [0.001, 0.01, 0.5, 0.9])
def test_any_limit_can_be_computed(limit: float) -> None:
    rule = Rule(limit=limit, window=100_000)

    assert trail_of("x" * 5000, rule).strength(rule).value >= ENOUGH
    assert trail_of("." * 5000, rule).strength(rule).value == 0.0
