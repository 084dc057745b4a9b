"""Whether something fails too often: a sequential test, valid at whatever moment and however often one looks.

A threshold on a rate that is looked at again and again is crossed by chance sooner or later. An *e-process* is not: a
quantity that starts at 1 and, as long as each outcome fails with a probability of at most ``limit``, whatever came
before, is not expected to grow. Such a quantity ever reaches ``1 / alpha`` with a probability of at most ``alpha``
(Ville's inequality; Ramdas, Grünwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference, 2023).
Here it is a mixture of likelihood ratios of some higher rates against ``limit``.

What breaks after a long good time would have to make up for all of that. So another e-process is begun with every
portion of the outcomes, and their weighted sum is looked at; the weights add up to 1, so the sum is one, too. Those
begun before the window are left out: a sum without some of its terms, none of which is negative, is only smaller.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

PORTIONS = 20
"""A window is so many portions long, in outcomes and in time."""

FIRST = 0.85
"""The weight of the first e-process, from which what is broken from the start is known; the others share the rest."""

SHARE = (1 - FIRST) / 4.591582441177751
"""Of the j-th: ``j ** -1.2``, whose sum from the second on this is. Slower than 1 / j², since a flag lives long."""

ABOVE = (1 / 9, 2 / 9, 4 / 9, 6 / 9)
"""The higher rates, on the way from ``limit`` (0) to every time (1); for 10 % they are 20, 30, 50 and 70 %."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When it is too often: at more than ``limit``, with a risk of ``alpha`` to be wrong, ever."""

    limit: float = 0.1
    alpha: float = 0.01
    min_samples: int = 5
    window: int = 200
    """How many outcomes are looked at, the last ones."""
    window_s: float = 3600.0
    """How old they may be."""


@dataclass(slots=True)
class Portion:
    """Some outcomes in a row, the ``number``-th portion that there was; ``since_s`` is the time of the first."""

    number: int
    since_s: float
    samples: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class Strength:
    """How strong the evidence is, and on what it rests most: the last ``samples`` outcomes."""

    value: float
    errors: int
    samples: int


class Trail:
    """The outcomes of one thing in its window: small, however many there were. Times are seconds of one clock."""

    def __init__(self, begun: int = 0, portions: Iterable[Portion] = ()) -> None:
        self.begun = begun
        """How many portions there ever were."""
        self.portions = list(portions)
        self._samples = sum(portion.samples for portion in self.portions)

    def add(self, failed: bool, now_s: float, rule: Rule) -> None:
        """Take in one outcome more."""
        newest = self.portions[-1] if self.portions else None
        if (
            newest is None
            or newest.samples >= max(1, rule.window // PORTIONS)
            or now_s - newest.since_s >= rule.window_s / PORTIONS
        ):
            self.begun += 1
            newest = Portion(self.begun, now_s)
            self.portions.append(newest)
        newest.samples += 1
        newest.errors += failed
        self._samples += 1
        while self._samples > rule.window or self.portions[0].since_s < now_s - rule.window_s:
            self._samples -= self.portions.pop(0).samples

    def within(self, now_s: float, rule: Rule) -> list[Portion]:
        """The portions that are in the window now, the oldest first."""
        return [portion for portion in self.portions if portion.since_s >= now_s - rule.window_s]

    def strength(self, rule: Rule) -> Strength:
        """The evidence as it is right after an outcome was taken in."""
        value, best = 0.0, (0.0, 0, 0)
        samples = errors = 0
        for portion in reversed(self.portions):
            samples += portion.samples
            errors += portion.errors
            if samples >= rule.min_samples and errors > rule.limit * samples:
                term = weight(portion.number) * ratio(samples, errors, rule.limit)
                value += term
                best = max(best, (term, errors, samples))
        return Strength(value, best[1], best[2])


def weight(number: int) -> float:
    """What the e-process that was begun with the ``number``-th portion counts for."""
    return FIRST if number == 1 else SHARE * number**-1.2


@functools.lru_cache(maxsize=1 << 16)
def ratio(samples: int, errors: int, limit: float) -> float:
    """How much better so many errors fit to higher rates than to ``limit``: an e-value."""
    good = samples - errors
    return math.fsum(
        math.exp(min(700.0, errors * math.log1p((1 / limit - 1) * above) + good * math.log1p(-above)))
        for above in ABOVE
    ) / len(ABOVE)
