"""Random lives of agents that die and come back, in virtual time; an oracle judges each start."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.budget import budget
from support.restart_world import LIMITS, run

DEATHS = budget(quick=60, full=500, soak=20_000)


@pytest.mark.parametrize("limits", LIMITS)
def test_no_start_is_doubled_unwanted_or_too_early(limits: str, tmp_path: Path) -> None:
    starts = 0
    for seed in range(DEATHS // 30):
        world = run(tmp_path / str(seed), seed, 30, LIMITS[limits])
        assert world.violations == [], f"seed {seed}"
        starts += world.counts["starts"]
    assert starts > DEATHS // 4
