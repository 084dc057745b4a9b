"""A sequential test of a failure rate, valid at every moment and however often it is asked.

A threshold on a rate that is checked again and again is crossed by chance sooner or later. An *e-process* is not: it
starts at 1, and its expected value does not grow as long as each outcome fails with a probability of at most
``limit``, whatever came before. By Ville's inequality it ever reaches ``1 / alpha`` with a probability of at most
``alpha``. Each e-process here is a mixture of likelihood ratios: of some higher failure rates against ``limit``.

After a long good period a single e-process is far below 1 and would react late. So another one is started with every
bucket of outcomes, and their weighted sum is tested. The weights add up to 1, so the sum is an e-process, too. Those
that were started before the window are left out: no term is negative, so a part of the sum is only smaller.

Source: Ramdas, Grünwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference, Statistical Science
38(4), 2023 (e-processes, Ville's inequality, mixtures). Decision 8 in docs/decisions says why this test was chosen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

BUCKETS = 20
"""The number of buckets in a window, by outcomes and by time."""

FIRST_WEIGHT = 0.85
"""The weight of the first e-process, which detects what fails from the start; the others share the rest."""

LATER_WEIGHT = (1 - FIRST_WEIGHT) / 4.591582441177751
"""The weight of the j-th e-process is this times ``j ** -1.2``; the divisor is the sum of that from j = 2 on.

It falls more slowly than ``1 / j ** 2``, because a flag is in use for long.
"""

ALTERNATIVES = (1 / 9, 2 / 9, 4 / 9, 6 / 9)
"""The higher rates, as positions between ``limit`` (0) and 1 (1); for 10 % they are 20, 30, 50 and 70 %."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The limit of a flag: a failure rate above ``limit``, with a probability of a false alarm of at most ``alpha``."""

    limit: float = 0.1
    alpha: float = 0.01
    min_samples: int = 5
    window: int = 200
    """The number of newest outcomes that count."""
    window_s: float = 3600.0
    """The greatest age of an outcome that counts."""


@dataclass(slots=True)
class Bucket:
    """Consecutive outcomes, counted together: ``number`` is its place among all buckets, from 1."""

    number: int
    since_s: float
    """The time of its first outcome."""
    samples: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class EValue:
    """The evidence for a failure rate above the limit, and the newest outcomes on which most of it rests."""

    value: float
    errors: int
    samples: int


class EProcess:
    """The evidence from the outcomes in a window, of bounded size. All times are seconds of one clock."""

    def __init__(self, started: int = 0, buckets: Iterable[Bucket] = ()) -> None:
        self.started = started
        """The number of buckets that were ever started."""
        self.buckets = list(buckets)
        self._samples = sum(bucket.samples for bucket in self.buckets)

    def add(self, failed: bool, now_s: float, rule: Rule) -> None:
        """Count one more outcome, and drop the buckets that are no longer in the window."""
        newest = self.buckets[-1] if self.buckets else None
        if (
            newest is None
            or newest.samples >= max(1, rule.window // BUCKETS)
            or now_s - newest.since_s >= rule.window_s / BUCKETS
        ):
            self.started += 1
            newest = Bucket(self.started, now_s)
            self.buckets.append(newest)
        newest.samples += 1
        newest.errors += failed
        self._samples += 1
        while self._samples > rule.window or self.buckets[0].since_s < now_s - rule.window_s:
            self._samples -= self.buckets.pop(0).samples

    def in_window(self, now_s: float, rule: Rule) -> list[Bucket]:
        """The buckets that are in the window now, the oldest first."""
        return [bucket for bucket in self.buckets if bucket.since_s >= now_s - rule.window_s]

    def e_value(self, rule: Rule) -> EValue:
        """The evidence right after an outcome was added."""
        total, strongest = 0.0, (0.0, 0, 0)
        samples = errors = 0
        for bucket in reversed(self.buckets):
            samples += bucket.samples
            errors += bucket.errors
            if samples >= rule.min_samples and errors > rule.limit * samples:
                term = start_weight(bucket.number) * likelihood_ratio(samples, errors, rule.limit)
                total += term
                strongest = max(strongest, (term, errors, samples))
        return EValue(total, strongest[1], strongest[2])


def start_weight(number: int) -> float:
    """The weight of the e-process that was started with bucket ``number``."""
    return FIRST_WEIGHT if number == 1 else LATER_WEIGHT * number**-1.2


@functools.lru_cache(maxsize=1 << 16)
def likelihood_ratio(samples: int, errors: int, limit: float) -> float:
    """The likelihood of the outcomes under the higher rates, on average, against that under ``limit``: an e-value."""
    successes = samples - errors
    return math.fsum(
        math.exp(min(700.0, errors * math.log1p((1 / limit - 1) * position) + successes * math.log1p(-position)))
        for position in ALTERNATIVES
    ) / len(ALTERNATIVES)
