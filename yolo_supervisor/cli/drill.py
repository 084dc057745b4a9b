"""``drill``: the fire drill."""

from __future__ import annotations

import random
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import click

from yolo_supervisor.cli.context import EX_NO, EX_UNAVAILABLE, Shared, fail, out, out_json, shared


@click.command()
@click.option("--faults", metavar="A,B", help="Only these faults (default: all).")
@click.option("--rounds", type=click.IntRange(1, 1000), default=1, show_default=True, help="How often each.")
@click.option("--seed", type=int, help="Repeat the choices of an earlier drill.")
@shared
@click.pass_obj
def command(options: Shared, faults: str | None, rounds: int, seed: int | None) -> None:
    """A fire drill: a scratch project with real processes in a private tmux, the real daemon, and faults on purpose.
    Tells for each fault when it was noticed, when it was healed and whether anything was lost. Nothing of yours is
    touched. Exit code 1 if anything was not healed.

    \b
    Examples:
      yolo-supervisor drill
      yolo-supervisor drill --faults agent-killed,pid-reused --rounds 20 --json
    """
    if shutil.which("tmux") is None:
        fail(EX_UNAVAILABLE, "tmux is not installed: the drill needs it")
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, a timeout: the stage is cleared all the same
        signal.signal(number, lambda got, _frame: sys.exit(128 + got))
    from libtmux.exc import LibTmuxException

    from yolo_supervisor.drill.faults import FAULTS
    from yolo_supervisor.drill.sandbox import scene
    from yolo_supervisor.drill.trial import Round, play

    names = [name.strip() for name in faults.split(",")] if faults else list(FAULTS)
    if unknown := [name for name in names if name not in FAULTS]:
        raise click.UsageError(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    seed = random.randrange(2**32) if seed is None else seed
    dice = random.Random(seed)
    _progress(options, f"fire drill, seed {seed}: {len(names)} faults, {rounds} round{'s' * (rounds > 1)} each\n")
    rows = []
    for name in names:
        played: list[Round] = []
        try:
            with scene() as stage:
                _progress(options, f"  {name} …", last=False)
                stage.start_daemon()
                for _ in range(rounds):
                    played.append(play(stage, FAULTS[name], dice))
                    _progress(options, "." if not played[-1].why else "!", last=False)
        except LibTmuxException as error:
            fail(EX_UNAVAILABLE, f"the drill cannot use tmux here: {error}")
        _progress(options, "", wipe=True)
        rows.append(_row(name, played))
        if not options.json:
            _show(rows[-1], FAULTS[name].__doc__ or "", [each.why for each in played if each.why])
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


def _row(name: str, played: Sequence[Any]) -> dict[str, Any]:
    return {
        "fault": name,
        "injected": len(played),
        "detected": sum(each.detect_s is not None for each in played),
        "healed": sum(each.heal_s is not None and not each.why for each in played),
        "lost": sum(each.lost for each in played),
        "detect_s": _quantiles([each.detect_s for each in played if each.detect_s is not None]),
        "heal_s": _quantiles([each.heal_s for each in played if each.heal_s is not None]),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p99": None}
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 4),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 4),
    }


def _show(row: dict[str, Any], story: str, troubles: Sequence[str]) -> None:
    good = row["healed"] == row["injected"] and not row["lost"]
    sign = click.style("healed", fg="green") if good else click.style("NOT HEALED", fg="red", bold=True)
    click.echo(
        f"  {row['fault']:<23} {sign}  noticed after {_span(row['detect_s']['p50']):>7}, "
        f"healed after {_span(row['heal_s']['p50']):>7}, lost {row['lost']}   {story.splitlines()[0]}"
    )
    for trouble in troubles:
        out(f"      {trouble}")


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
