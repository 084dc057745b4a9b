"""``exec``: a command with a hard limit."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from pathlib import Path

import click

from yolo_supervisor.cli import Shared, fail, printable, shared
from yolo_supervisor.files import Busy, Refused, glance
from yolo_supervisor.formats import yolo
from yolo_supervisor.kernel import adopt_orphans
from yolo_supervisor.system.subprocesses import Attempt, run_attached

TIMED_OUT, NOT_EXECUTABLE, NOT_FOUND = 124, 126, 127
"""The exit codes of ``timeout`` and of shells."""


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--timeout",
    "limit_s",
    type=click.FloatRange(0.001, 86400),
    metavar="S",
    help="The limit in seconds (default: command_timeout_ms of the plugin's config.json, else 30).",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=0,
    metavar="N",
    help="How often it is run again after a timeout, with twice the limit: only if it is safe to repeat.",
)
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@shared
@click.pass_obj
def command(options: Shared, limit_s: float | None, retries: int, words: tuple[str, ...]) -> None:
    """Run a command with a hard limit. It has our input and output; its exit code is ours, 124 if it took too long.

    When the limit is over, all that it has started is asked to leave (SIGTERM) and after 5 s killed, also what has gone
    into a session of its own. What it leaves in the background within the limit is left alone.

    \b
    Examples:
      yolo-supervisor exec -- npm test
      yolo-supervisor exec --timeout 120 --retries 1 -- pytest -x tests
    """  # fmt: skip
    if limit_s is not None and math.isnan(limit_s):  # which is in any range
        raise click.BadParameter("nan is no number of seconds", param_hint="'--timeout'")
    project = options.project()
    limit_s = limit_s or yolo.command_limit_s(glance(project / yolo.PLANNING / "config.json") or b"")
    adopt_orphans()
    _restore_locale()
    attempts: list[Attempt] = []
    again = True
    try:
        while again:
            attempts.append(run_attached(words, limit_s if not attempts else 2 * limit_s))
            again = attempts[-1].exit is None and not attempts[-1].given_up and len(attempts) <= retries
            if attempts[-1].exit is None:
                _tell(project, words, attempts[-1], again)
    except FileNotFoundError:
        fail(NOT_FOUND, f"{words[0]}: there is no such program")
    except OSError as error:
        fail(NOT_EXECUTABLE, f"{words[0]}: cannot be run: {error.strerror or error}")
    code = attempts[-1].exit if attempts[-1].exit is not None else TIMED_OUT
    if options.json:
        rows = [
            {"timeout_s": a.limit_s, "exit": a.exit, "timed_out": a.exit is None, "duration_s": round(a.duration_s, 3)}
            for a in attempts
        ]
        click.echo(json.dumps({"attempts": rows, "exit": code}), err=True)
    sys.exit(code)


def _restore_locale() -> None:
    """Take back what Python has told its children in the C locale (PEP 538): the command sees what we were given."""
    told = glance(Path("/proc/self/environ"))  # as it was at our start
    if told is None or "LC_CTYPE" not in os.environ:
        return
    given = {name: value for name, _, value in (each.partition(b"=") for each in told.split(b"\0"))}
    if (value := given.get(b"LC_CTYPE")) is None:
        del os.environ["LC_CTYPE"]
    else:
        os.environb[b"LC_CTYPE"] = value


def _tell(project: Path, words: tuple[str, ...], attempt: Attempt, again: bool) -> None:
    """Say, on stderr and in the project's journal, that the command was ended."""
    assert attempt.ending is not None
    ending = attempt.ending
    counts = {
        "terminated": len(ending.terminated), "killed": len(ending.killed),
        "survived": len(ending.survived), "refused": len(ending.refused),
    }  # fmt: skip
    told = ", ".join(f"{count} {how}" for how, count in counts.items() if count) or "they were gone already"
    text = f"{shlex.join(words)}: took longer than {attempt.limit_s:g} s; its processes: {told}"
    click.echo(f"yolo-supervisor: {printable(text)}{'; it is run again' if again else ''}", err=True)
    if not (project / yolo.PLANNING).is_dir():
        return
    from yolo_supervisor.actions import Overran  # only now: most commands end in time
    from yolo_supervisor.store import note_down

    pids = [process.pid for process in (*ending.terminated, *ending.killed, *ending.survived)]
    evidence = {"command": list(words), "limit_s": attempt.limit_s, **counts, "pids": pids}
    note = Overran(key=words[0], reason=f"it took longer than {attempt.limit_s:g} s", evidence=evidence)
    try:
        note_down(project, note, "cli")
    except (OSError, Busy, Refused) as error:
        click.echo(f"yolo-supervisor: that could not be written into the journal: {error}", err=True)
