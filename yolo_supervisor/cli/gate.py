"""``gate``: ask the plugin's gates, mend what one complains of."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import anyio
import click

from yolo_supervisor.cli.context import EX_DATAERR, EX_NO, Shared, fail, out, out_json, printable, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.fs.read import read
from yolo_supervisor.gates.gates import Answer, Gates, Question, Repair

T = TypeVar("T")


@click.group()
def command() -> None:
    """The plugin's hard gates: ask one, or mend what it complains of, in two attempts at most.

    GATE is contract_compliance, protected_file, required_checks, commit_hygiene, artifact_persistence,
    verification_threshold or forbidden_commands; PHASE, PLAN and TASK are numbers, also written as 01.

    \b
    Examples:
      yolo-supervisor gate check required_checks 1 2 3
      yolo-supervisor gate repair contract_compliance 01 02 3 --json
    """


NUMBER = click.IntRange(0, 10**9 - 1)
"""A phase or a plan: it names files, so nothing else may stand in it."""

GATE = click.argument("gate")
PHASE = click.argument("phase", type=NUMBER)
PLAN = click.argument("plan", type=NUMBER)
TASK = click.argument("task")


@command.command("check")
@GATE
@PHASE
@PLAN
@TASK
@shared
@click.pass_obj
def check(options: Shared, gate: str, phase: int, plan: int, task: str) -> None:
    """What a gate says. Exit code 1 if it is not passed; 0 also if the gates are switched off (v2_hard_gates).

    \b
    Example:
      yolo-supervisor gate check required_checks 1 2 3 && git commit
    """
    gates = _gates(project_view(options))
    answer = _heeding(lambda: gates.ask(Question(gate=gate, phase=phase, plan=plan, task=task)))
    if options.json:
        out_json(_as_json(answer))
    else:
        out(f"{answer.gate}: {answer.result}: {answer.evidence}")
    if answer.result == "fail":
        raise SystemExit(EX_NO)


@command.command("repair")
@GATE
@PHASE
@PLAN
@TASK
@shared
@click.pass_obj
def repair(options: Shared, gate: str, phase: int, plan: int, task: str) -> None:
    """Mend what a gate complains of, and ask it again: a contract is generated anew from its plan, checks run again.

    What cannot be mended, or not in two attempts, is told to the lead: in the journal and the plugin's event log, and
    the exit code is 1. It is 0 if the gate is passed now, or if the gates are switched off (v2_hard_gates).

    \b
    Examples:
      yolo-supervisor gate repair contract_compliance 1 2 3
      yolo-supervisor gate repair required_checks 01 02 3 --json
    """
    gates = _gates(project_view(options))
    outcome = _heeding(lambda: gates.repair(Question(gate=gate, phase=phase, plan=plan, task=task)))
    if outcome.untold is not None:
        click.echo(f"yolo-supervisor: nobody could be told: {printable(outcome.untold)}", err=True)
    if options.json:
        out_json(_repair_as_json(outcome))
    else:
        _tell(outcome)
    if outcome.answer.result == "fail":
        raise SystemExit(EX_NO)


def _tell(outcome: Repair) -> None:
    answer = outcome.answer
    how = "repaired" if outcome.repaired and outcome.attempts else answer.result
    tries = f" after {outcome.attempts} attempt{'s' if outcome.attempts > 1 else ''}" if outcome.attempts else ""
    out(f"{answer.gate}: {how}{tries}: {answer.evidence}")
    if outcome.hindrance is not None:
        out(f"  {outcome.hindrance}")
    if answer.result == "fail" and outcome.reason is not None:
        out(f"  {outcome.reason}")


def _as_json(answer: Answer) -> dict[str, Any]:
    told = asdict(answer)
    return told if answer.checks else {key: value for key, value in told.items() if key != "checks"}


def _repair_as_json(outcome: Repair) -> dict[str, Any]:
    told = {"attempts": outcome.attempts, "repaired": outcome.repaired}
    more = {"reason": outcome.reason, "hindrance": outcome.hindrance}
    return _as_json(outcome.answer) | told | {key: value for key, value in more.items() if value is not None}


def _gates(view: ProjectView) -> Gates:
    """Ends the program if the plugin's ``config.json`` is broken: it does not say then whether there are any gates."""
    path = view.store.paths.planning / "config.json"
    data = read(path)
    if data is not None and load_object(data) is None:
        fail(EX_DATAERR, f"{path} is broken: yolo-supervisor state verify tells more")
    return Gates(view.store, view.clock)


def _heeding(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work; whoever ends us meanwhile ends what we have started, too."""
    told: list[int] = []
    done: list[T] = []
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]

    async def main() -> None:
        with anyio.open_signal_receiver(*wanted) as signals:
            async with anyio.create_task_group() as tasks:

                async def listen() -> None:
                    told.append(await anext(signals))
                    tasks.cancel_scope.cancel()

                tasks.start_soon(listen)
                done.append(await work())
                tasks.cancel_scope.cancel()

    try:
        anyio.run(main)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # as it would be without the listener
    if not done:
        raise SystemExit(128 + told[0])
    return done[0]
