"""How long to wait before something is tried again: twice as long each time, and never all at one moment."""

from __future__ import annotations


def pause_s(first_s: float, number: int, most_s: float, chance: float) -> float:
    """The pause before retry ``number`` (from 1): up to half of it is left out, as ``chance`` (from 0 to 1) says."""
    return min(most_s, first_s * 2.0 ** min(number - 1, 100)) * (0.5 + chance / 2)
