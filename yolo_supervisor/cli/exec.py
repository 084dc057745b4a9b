"""``exec``: run a command with a hard time limit."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from pathlib import Path

import click

from yolo_supervisor.cli.context import Shared, fail, printable, shared
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.fs.read import LOG_LIMIT, read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.system.subprocesses import AttachedRun, run_attached
from yolo_supervisor.system.subreaper import adopt_orphans

TIMED_OUT, NOT_EXECUTABLE, NOT_FOUND = 124, 126, 127
"""Exit codes, as of ``timeout`` and of shells."""

FOR_EVER_S = 365 * 86400.0


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--timeout",
    "limit_s",
    type=click.FloatRange(0.001, 86400),
    metavar="S",
    help="Time limit in seconds (default: command_timeout_ms of the plugin's config.json, else 30).",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=0,
    metavar="N",
    help="Retries after a timeout, with twice the limit. Use it only for commands that are safe to repeat.",
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@shared
@click.pass_obj
def command(options: Shared, limit_s: float | None, retries: int, argv: tuple[str, ...]) -> None:
    """Run a command with a hard time limit.

    Input, output and exit code are the command's; 124 means a timeout. At the limit its whole process tree gets
    SIGTERM, and SIGKILL after 5 s, including processes in other sessions. If the command exits in time, its background
    processes are left running. Time in which exec itself is stopped (Ctrl-Z) does not count.

    \b
    Examples:
      yolo-supervisor exec -- npm test
      yolo-supervisor exec --timeout 120 --retries 1 -- pytest -x tests
    """  # fmt: skip
    if limit_s is not None and math.isnan(limit_s):  # FloatRange accepts nan
        raise click.BadParameter("nan is not a number of seconds", param_hint="'--timeout'")
    project = options.project()
    limit_s = limit_s or plugin_config.command_limit_s(read_or_none(project / plugin.PLANNING / plugin.CONFIG) or b"")
    if not adopt_orphans():
        sys.exit(_run_in_a_child())
    _restore_locale()
    runs: list[AttachedRun] = []
    is_retried = True
    try:
        while is_retried:
            last = run_attached(argv, limit_s if not runs else 2 * limit_s)
            runs.append(last)
            is_retried = last.exit is None and not last.cancelled and len(runs) <= retries
            if last.exit is None:
                _report_timeout(project, argv, last, is_retried)
    except FileNotFoundError:
        fail(NOT_FOUND, f"{argv[0]}: program not found")
    except OSError as error:
        fail(NOT_EXECUTABLE, f"{argv[0]}: cannot be run: {error.strerror or error}")
    code = runs[-1].exit if runs[-1].exit is not None else TIMED_OUT
    if options.json:
        rows = [
            {"timeout_s": r.limit_s, "exit": r.exit, "timed_out": r.exit is None, "duration_s": round(r.duration_s, 3)}
            for r in runs
        ]
        click.echo(json.dumps({"attempts": rows, "exit": code}), err=True)
    sys.exit(code)


def _run_in_a_child() -> int:
    """Run this very command in a child, which has no children yet and can adopt orphans; the exit code."""
    again = run_attached([sys.executable, "-m", "yolo_supervisor", *sys.argv[1:]], FOR_EVER_S)
    return TIMED_OUT if again.exit is None else again.exit


def _restore_locale() -> None:
    """Give the command the original ``LC_CTYPE``: Python changes it in the C locale (PEP 538)."""
    environ = read_or_none(Path("/proc/self/environ"), LOG_LIMIT)  # as it was when this process started
    if environ is None or "LC_CTYPE" not in os.environ:
        return
    original = {name: value for name, _, value in (line.partition(b"=") for line in environ.split(b"\0"))}
    if (value := original.get(b"LC_CTYPE")) is None:
        del os.environ["LC_CTYPE"]
    else:
        os.environb[b"LC_CTYPE"] = value


def _report_timeout(project: Path, argv: tuple[str, ...], run: AttachedRun, is_retried: bool) -> None:
    """Report on stderr and in the journal that the command was ended at its time limit."""
    assert run.ending is not None
    ending = run.ending
    counts = {
        "terminated": len(ending.terminated), "killed": len(ending.killed),
        "survived": len(ending.survived), "refused": len(ending.refused),
    }  # fmt: skip
    summary = ", ".join(f"{count} {how}" for how, count in counts.items() if count) or "all had exited"
    left = sorted(process.pid for process in (*ending.survived, *ending.refused))
    if left:
        summary += f"; still running: {', '.join(map(str, left))}"
    text = f"{shlex.join(argv)}: time limit of {run.limit_s:g} s exceeded; processes: {summary}"
    click.echo(f"yolo-supervisor: {printable(text)}{'; retrying' if is_retried else ''}", err=True)
    if not (project / plugin.PLANNING).is_dir():
        return
    from yolo_supervisor.actions import circuits  # slow to import, and most commands end in time
    from yolo_supervisor.store.store import write_note

    pids = [process.pid for process in (*ending.terminated, *ending.killed, *ending.survived)]
    evidence = {"command": list(argv), "limit_s": run.limit_s, **counts, "pids": pids}
    if left:
        evidence["left_alone"] = left
    reason = f"it exceeded its time limit of {run.limit_s:g} s"
    note = circuits.command_timed_out(key=argv[0], reason=reason, evidence=evidence)
    try:
        write_note(project, note, "cli")
    except (OSError, Busy, Refused) as error:
        click.echo(f"yolo-supervisor: cannot write the journal: {error}", err=True)
