"""``drill``: run the fire drill and report."""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from yolo_supervisor.cli.context import EX_NO, EX_UNAVAILABLE, Shared, fail, out, out_json, shared

if TYPE_CHECKING:
    from yolo_supervisor.drill.trial import Trial


@click.command()
@click.option("--faults", metavar="A,B", help="Inject only these faults (default: all).")
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How often to inject each fault."
)
@click.option("--seed", type=int, help="Repeat the random choices of an earlier drill.")
@shared
@click.pass_obj
def command(options: Shared, faults: str | None, rounds: int, seed: int | None) -> None:
    """Run a fire drill: the real daemon on a scratch team in a private tmux, with injected faults.

    For each fault it reports after what time it was detected and healed, and what was lost. Nothing of yours is
    touched. Exit code 1 if a fault was not healed.

    \b
    Examples:
      yolo-supervisor drill
      yolo-supervisor drill --faults agent-killed,pid-reused --rounds 20 --json
    """
    if shutil.which("tmux") is None:
        fail(EX_UNAVAILABLE, "tmux is not installed: the drill needs it")
    for number in (signal.SIGTERM, signal.SIGHUP):  # also after a signal the sandbox is removed
        signal.signal(number, lambda arrived, _frame: sys.exit(128 + arrived))
    from libtmux.exc import LibTmuxException

    from yolo_supervisor.drill.faults import FAULTS
    from yolo_supervisor.drill.sandbox import new_sandbox
    from yolo_supervisor.drill.trial import run_trial

    names = [name.strip() for name in faults.split(",")] if faults else list(FAULTS)
    if unknown := [name for name in names if name not in FAULTS]:
        raise click.UsageError(f"no fault {', '.join(unknown)}; the faults are {', '.join(FAULTS)}")
    seed = random.randrange(2**32) if seed is None else seed
    rng = random.Random(seed)
    _progress(options, f"fire drill, seed {seed}: {len(names)} faults, {rounds} round{'s' * (rounds > 1)} each\n")
    rows = []
    for name in names:
        trials: list[Trial] = []
        try:
            with new_sandbox() as sandbox:
                _progress(options, f"  {name} …", last=False)
                sandbox.start_daemon()
                for _ in range(rounds):
                    trials.append(run_trial(sandbox, FAULTS[name], rng))
                    _progress(options, "." if not trials[-1].failure else "!", last=False)
        except LibTmuxException as error:
            fail(EX_UNAVAILABLE, f"the drill cannot use tmux here: {error}")
        _progress(options, "", wipe=True)
        rows.append(_row(name, trials))
        if not options.json:
            _show(rows[-1], FAULTS[name].__doc__ or "", [trial.failure for trial in trials if trial.failure])
    injected, healed = sum(row["injected"] for row in rows), sum(row["healed"] for row in rows)
    lost = sum(row["lost"] for row in rows)
    if options.json:
        rate = healed / injected
        out_json({"seed": seed, "rounds": rounds, "faults": rows, "healing_rate": rate, "lost": lost})
    else:
        out()
        out(f"{healed} of {injected} healed, {lost} lost")
    sys.exit(0 if healed == injected and not lost else EX_NO)


def _progress(options: Shared, text: str, last: bool = True, wipe: bool = False) -> None:
    if options.json:
        return
    if wipe and sys.stdout.isatty():
        click.echo("\r\033[K", nl=False)
    elif not wipe and (last or sys.stdout.isatty()):
        click.echo(text, nl=last)


def _row(name: str, trials: Sequence[Trial]) -> dict[str, Any]:
    return {
        "fault": name,
        "injected": len(trials),
        "detected": sum(trial.detect_s is not None for trial in trials),
        "healed": sum(trial.heal_s is not None and not trial.failure for trial in trials),
        "lost": sum(trial.lost for trial in trials),
        "detect_s": _quantiles([trial.detect_s for trial in trials if trial.detect_s is not None]),
        "heal_s": _quantiles([trial.heal_s for trial in trials if trial.heal_s is not None]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None}
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 4),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4),
    }


def _show(row: dict[str, Any], description: str, failures: Sequence[str]) -> None:
    good = row["healed"] == row["injected"] and not row["lost"]
    sign = click.style("healed", fg="green") if good else click.style("NOT HEALED", fg="red", bold=True)
    click.echo(
        f"  {row['fault']:<25} {sign}  detected after {_span(row['detect_s']['p50']):>7}, "
        f"healed after {_span(row['heal_s']['p50']):>7}, lost {row['lost']}   {description.splitlines()[0]}"
    )
    for failure in failures:
        out(f"      {failure}")


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
