"""The budgets of the searches in the tests, by tier.

``YOLO_BUDGET`` names the tier: ``quick`` (the default), ``full`` (``.ci/run``) or ``soak`` (``.ci/soak``).
"""

import os
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeVar, cast, get_args

T = TypeVar("T")

Tier = Literal["quick", "full", "soak"]

TIER: Final = cast(Tier, "soak" if "YOLO_SOAK" in os.environ else os.environ.get("YOLO_BUDGET", "quick"))
if TIER not in get_args(Tier):
    raise ValueError(f"YOLO_BUDGET={TIER}: use one of {', '.join(get_args(Tier))}")
SOAK: Final = TIER == "soak"


def budget(*, quick: int, full: int, soak: int) -> int:
    """The count for the tier of this run."""
    return {"quick": quick, "full": full, "soak": soak}[TIER]


def cases(every: Iterable[T], quick: Sequence[T]) -> list[T]:
    """The cases of a parametrized test: every one, or in a quick run those that have found mistakes before."""
    every = list(every)
    assert all(case in every for case in quick), "a quick case must be one of all"
    return list(quick) if TIER == "quick" else every
