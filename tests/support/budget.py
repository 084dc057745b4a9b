"""How much the searches of the tests do, by tier.

``YOLO_BUDGET`` names the tier: ``quick`` (the default), ``full`` (``.ci/run``) or ``soak`` (``.ci/soak``).
"""

import os
from typing import Final, Literal, cast, get_args

Tier = Literal["quick", "full", "soak"]

TIER: Final = cast(Tier, "soak" if "YOLO_SOAK" in os.environ else os.environ.get("YOLO_BUDGET", "quick"))
if TIER not in get_args(Tier):
    raise ValueError(f"YOLO_BUDGET={TIER}: use one of {', '.join(get_args(Tier))}")
SOAK: Final = TIER == "soak"


def budget(*, quick: int, full: int, soak: int) -> int:
    """The count for the tier of this run."""
    return {"quick": quick, "full": full, "soak": soak}[TIER]
