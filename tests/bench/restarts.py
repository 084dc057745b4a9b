"""Injected deaths in virtual time, and how often a start broke a rule: real decision, index and ledger.

python tests/bench/restarts.py [--deaths 1000] [--seed 1]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.restart_world import LIMITS, run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deaths", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    broken = False
    for name, rules in LIMITS.items():
        counts: Counter[str] = Counter()
        violations: list[str] = []
        number = 0
        while counts["deaths"] < options.deaths:
            with tempfile.TemporaryDirectory() as folder:
                world = run(Path(folder), options.seed + number, min(50, options.deaths - counts["deaths"]), rules)
            counts += world.counts
            violations += world.violations
            number += 1
        print(f"{name} limits, seeds {options.seed} to {options.seed + number - 1}")
        for what, count in sorted(counts.items()):
            print(f"  {what:<36} {count:>7}")
        print(f"  {'violations':<36} {len(violations):>7}")
        for violation in violations[:10]:
            print(f"    {violation}")
        broken |= bool(violations)
    sys.exit(broken)


if __name__ == "__main__":
    main()
