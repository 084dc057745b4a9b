"""The rate of sound flags that are disabled, and the time until failing ones are: the test in ``failure_rate`` beside
a threshold on the rate and a Wilson bound, all three asked after every outcome. Then the time and memory of an
observation after a million outcomes.

python tests/bench/flags.py [--runs 2000] [--outcomes 2000] [--million 1000000]
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import event_log, execution_state
from yolo_supervisor.inventory.flag_outcomes import FlagOutcomes
from yolo_supervisor.policy.failure_rate import EProcess, Rule
from yolo_supervisor.store.store import Store

RATES = (0.02, 0.05, 0.08, 0.10, 0.20, 0.30, 0.50, 1.00)
RULE = Rule()


def quantile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# -- three rules: each gets the outcomes one by one, and returns whether the evidence is enough -----------------------


def sequential() -> Callable[[bool], bool]:
    process = EProcess()

    def enough(failed: bool) -> bool:
        process.add(failed, 0.0, RULE)
        return failed and process.e_value(RULE).value >= 1 / RULE.alpha

    return enough


def of_all(least: int, too_many: Callable[[int, int], bool]) -> Callable[[bool], bool]:
    samples = errors = 0

    def enough(failed: bool) -> bool:
        nonlocal samples, errors
        samples, errors = samples + 1, errors + failed
        return failed and samples >= least and too_many(samples, errors)

    return enough


def naive() -> Callable[[bool], bool]:
    return of_all(20, lambda samples, errors: errors > RULE.limit * samples)


def wilson() -> Callable[[bool], bool]:
    def too_many(samples: int, errors: int) -> bool:
        z, rate = 1.96, errors / samples
        middle = rate + z * z / (2 * samples)
        spread = z * math.sqrt(rate * (1 - rate) / samples + z * z / (4 * samples * samples))
        return (middle - spread) / (1 + z * z / samples) > RULE.limit

    return of_all(20, too_many)


RULES = {"e-process": sequential, "naive": naive, "Wilson": wilson}


def stopped(task: tuple[str, float, int, int, int]) -> int | None:
    """The number of outcomes at this rate until it was enough; ``good`` ones at 2 % came before."""
    name, rate, outcomes, good, seed = task
    rng, enough = random.Random(f"{rate} {seed}"), RULES[name]()
    for number in range(1 - good, outcomes + 1):
        if enough(rng.random() < (rate if number > 0 else 0.02)):
            return number
    return None


def table(runs: int, outcomes: int) -> None:
    print(f"{runs} flags for each rate, {outcomes} outcomes, asked after each: disabled, after (median, p95)")
    print(f"{'true rate':>9}" + "".join(f"{name:>26}" for name in RULES) + f"{'e-process after 1000 at 2 %':>32}")
    with multiprocessing.Pool() as pool:
        for rate in RATES:
            cells = [cell(pool.map(stopped, [(name, rate, outcomes, 0, n) for n in range(runs)], 20)) for name in RULES]
            late = pool.map(stopped, [("e-process", rate, outcomes, 1000, n) for n in range(runs // 4)], 20)
            print(f"{rate:>9.0%}" + "".join(f"{text:>26}" for text in cells) + f"{cell(late):>32}", flush=True)


def cell(found: list[int | None]) -> str:
    times = [number for number in found if number is not None]
    share = len(times) / len(found)
    return f"{share:7.2%}" + (f"  {quantile(times, 0.5):>5} {quantile(times, 0.95):>6}" if times else " " * 14)


# -- a million outcomes -----------------------------------------------------------------------------------------------


def memory_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def million(total: int) -> None:
    """Outcomes from the plugin's metrics, with an observation after each 500."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name).resolve() / "project"
        planning = project / plugin.PLANNING
        (planning / event_log.METRICS).parent.mkdir(parents=True)
        (planning / "config.json").write_bytes(
            execution_state.dump(
                {"v2_hard_gates": True, "v2_hard_contracts": True, **{f"v3_{n}": True for n in range(20)}}
            )
        )
        with closing(Store(project)) as store:
            store.open()
            flags = FlagOutcomes(Config(), store, SystemClock(), "here")
            rng, busy, quiet = random.Random(1), [], []
            observe(flags)
            before = 0
            with (planning / event_log.METRICS).open("ab") as log:
                for begun in range(0, total, 500):
                    log.write(b"".join(line(begun + number, rng.random() < 0.05) for number in range(500)))
                    log.flush()
                    since = time.perf_counter()
                    observe(flags)
                    busy.append(time.perf_counter() - since)
                    while flags.behind:
                        observe(flags)
                    quiet.append(observe(flags))
                    before = before or (memory_kib() if begun >= total // 10 else 0)
            counted = {flag.name: flag.samples for flag in flags.observe(datetime.now(UTC)).flags if flag.samples}
    print(
        f"{total} outcomes: a quiet observation {ms(quiet[-500:], 0.5):.2f} ms (p99 {ms(quiet[-500:], 0.99):.2f}), "
        f"with 500 lines {ms(busy, 0.5):.1f} ms; memory {before / 1024:.1f} MiB after a tenth, "
        f"{memory_kib() / 1024:.1f} MiB at the end; in the windows {counted}"
    )


def ms(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000


def line(number: int, failed: bool) -> bytes:
    raw = {
        "data": {"gate": "contract_compliance", "task": str(number)},
        "event": "gate_fail" if failed else "gate_pass",
        "phase": 1,
        "plan": 1,
    }
    return json.dumps(raw, separators=(",", ":")).encode() + b"\n"


def observe(flags: FlagOutcomes) -> float:
    """Observe, and store the new outcomes; the time of the observation without the storing."""
    since = time.perf_counter()
    flags.observe(datetime.now(UTC))
    took = time.perf_counter() - since
    if not flags.save():
        raise SystemExit("another process holds the lock")
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--outcomes", type=int, default=2000)
    parser.add_argument("--million", type=int, default=1_000_000)
    options = parser.parse_args()
    table(options.runs, options.outcomes)
    million(options.million)


if __name__ == "__main__":
    main()
