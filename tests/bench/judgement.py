"""The figures of the simulated judgements: agents with a task by state, tasks that were given back by the right to it,
tasks that had to be back at once, and violations.

python tests/bench/judgement.py [--first 0] [--scenarios 300]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.judgement import Figures
from support.judgement_script import Script


def scenario(seed: int) -> Figures:
    """The figures of one scenario; its script is printed if anything was wrong with it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_STATE_HOME", str(Path(folder) / "state"))
        script = Script(seed, Path(folder))
        script.world.enter(monkeypatch, Path(folder))
        script.run()
        if script.world.wrongs:
            print(script.world.report())
        return script.world.figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--scenarios", type=int, default=300)
    options = parser.parse_args()
    total = Figures()
    for seed in range(options.first, options.first + options.scenarios):
        total.add(scenario(seed))
    print(f"{options.scenarios} scenarios, {total.judged} tasks begun, {total.wrong} violations")
    print(f"{total.dues} tasks of known-dead owners had to be back at once")
    for title, counts in (("agents with a task, by state", total.states), ("tasks given back, by right", total.taken)):
        print(f"{title}: {', '.join(f'{name} {number}' for name, number in counts.most_common())}")


if __name__ == "__main__":
    main()
