"""``gate``: check the plugin's hard gates, and repair what one reports."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import anyio
import click

from yolo_supervisor.cli.context import EX_DATAERR, EX_NO, Shared, fail, out, out_json, print_result, printable, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.cli.signals import TERMINATING, cancelled_by_signal
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.fs.read import read
from yolo_supervisor.gates.gates import Answer, Gates, Question, Repair

T = TypeVar("T")


@click.group()
def command() -> None:
    """Check the plugin's hard gates, and repair what one reports, in two attempts at most.

    GATE is contract_compliance, protected_file, required_checks, commit_hygiene, artifact_persistence,
    verification_threshold or forbidden_commands. PHASE, PLAN and TASK are numbers, also written as 01.

    \b
    Examples:
      yolo-supervisor gate check required_checks 1 2 3
      yolo-supervisor gate repair contract_compliance 01 02 3 --json
    """


NUMBER = click.IntRange(0, 10**9 - 1)
"""A phase or a plan: file names contain it, so it must be nothing but a number."""

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
    """Check a gate. Exit code 1 if it fails, 0 if it passes or the gates are disabled (v2_hard_gates).

    \b
    Example:
      yolo-supervisor gate check required_checks 1 2 3 && git commit
    """
    gates = _gates(project_view(options))
    result = _run(lambda: gates.ask(Question(gate=gate, phase=phase, plan=plan, task=task)))
    print_result(options, _answer_document(result), f"{result.gate}: {result.result}: {result.evidence}")
    if result.result == "fail":
        raise SystemExit(EX_NO)


@command.command("repair")
@GATE
@PHASE
@PLAN
@TASK
@shared
@click.pass_obj
def repair(options: Shared, gate: str, phase: int, plan: int, task: str) -> None:
    """Repair what a gate reports, and check it again.

    A broken contract is generated again from its plan; failed checks are run again. What cannot be repaired in two
    attempts is reported in the journal and in the plugin's event log. Exit code 1 if the gate still fails, 0 if it
    passes or the gates are disabled (v2_hard_gates).

    \b
    Examples:
      yolo-supervisor gate repair contract_compliance 1 2 3
      yolo-supervisor gate repair required_checks 01 02 3 --json
    """
    view = project_view(options)
    gates = _gates(view)
    outcome = _run(lambda: gates.repair(Question(gate=gate, phase=phase, plan=plan, task=task)))
    if outcome.answer.result == "fail":
        view.note_flags_off(plugin_config.EVENT_LOG)
    if outcome.report_error is not None:
        click.echo(f"yolo-supervisor: the failure could not be reported: {printable(outcome.report_error)}", err=True)
    if options.json:
        out_json(_repair_document(outcome))
    else:
        _print_repair(outcome)
    if outcome.answer.result == "fail":
        raise SystemExit(EX_NO)


def _print_repair(outcome: Repair) -> None:
    answer = outcome.answer
    result = "repaired" if outcome.repaired and outcome.attempts else answer.result
    attempts = f" after {outcome.attempts} attempt{'s' if outcome.attempts > 1 else ''}" if outcome.attempts else ""
    out(f"{answer.gate}: {result}{attempts}: {answer.evidence}")
    if outcome.hindrance is not None:
        out(f"  {outcome.hindrance}")
    if answer.result == "fail" and outcome.reason is not None:
        out(f"  {outcome.reason}")


def _answer_document(answer: Answer) -> dict[str, Any]:
    document = asdict(answer)
    return document if answer.checks else {key: value for key, value in document.items() if key != "checks"}


def _repair_document(outcome: Repair) -> dict[str, Any]:
    document = {**_answer_document(outcome.answer), "attempts": outcome.attempts, "repaired": outcome.repaired}
    optional = {"reason": outcome.reason, "hindrance": outcome.hindrance}
    return document | {key: value for key, value in optional.items() if value is not None}


def _gates(view: ProjectView) -> Gates:
    """The gates; ends the program if the plugin's ``config.json``, which enables them, is broken."""
    path = view.store.paths.plugin_config
    data = read(path)
    if data is not None and load_object(data) is None:
        fail(EX_DATAERR, f"{path} is broken; see: yolo-supervisor state verify")
    view.note_flags_off(plugin_config.HARD_GATES)
    return Gates(view.store, view.clock)


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Do the work. A terminating signal cancels it, which ends the commands that it has started."""
    # an ignored signal stays ignored: a shell in the background, or nohup, asked for that
    numbers = [number for number in TERMINATING if signal.getsignal(number) is not signal.SIG_IGN]
    results: list[T] = []
    arrived: list[int] = []

    async def main() -> None:
        async with cancelled_by_signal(numbers) as signals:
            results.append(await work())
        arrived.extend(signals)

    anyio.run(main)
    if not results:
        raise SystemExit(128 + arrived[0])
    return results[0]
