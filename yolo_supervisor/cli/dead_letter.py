"""``dead-letter``: tasks that kept failing, and that no agent can claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click

from yolo_supervisor.actions import tasks as task_actions
from yolo_supervisor.cli.context import EX_NO, Shared, entries, fail, out, out_json, print_result, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Task
from yolo_supervisor.policy.retry import letter_file
from yolo_supervisor.store.history import History
from yolo_supervisor.store.lines import fields
from yolo_supervisor.store.store import Outcome

OWN_ACTIONS = ("dead_letter_written", "dead_letter_removed", "told", "put_away")
"""The journal's verbs for the document of a dead letter, which ``show`` leaves out; the last two are of 0.1.0."""


@click.group()
def command() -> None:
    """Dead letters: tasks that kept failing. No agent can claim one until you redrive it.

    \b
    Examples:
      yolo-supervisor dead-letter list
      yolo-supervisor dead-letter show my-team/3
      yolo-supervisor dead-letter redrive my-team/3
    """


@command.command("list")
@shared
@click.pass_obj
def list_letters(options: Shared) -> None:
    """List the dead letters, and the reason for each.

    \b
    Example:
      yolo-supervisor dead-letter list --json
    """
    view = project_view(options)
    letters = [{key: letter.get(key) for key in ("id", "subject", "why")} for letter in _letters(view)]
    if options.json:
        out_json({"version": 2, "project": str(view.project), "dead_letters": letters})
        return
    for letter in letters:
        out(f"{letter['id']}  {letter['subject']}: {letter['why']}")
    if not letters:
        out(f"no dead letters in {view.project}")


@command.command("show")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def show(options: Shared, ident: str) -> None:
    """Show one dead letter: its attempts, and how they ended.

    \b
    Example:
      yolo-supervisor dead-letter show my-team/3
    """
    view = project_view(options)
    letter = _letter(view, ident)
    story = [
        entry
        for entry in entries(History(view.store.paths.journal))
        if (entry.kind, entry.key) == ("task", letter["id"]) and entry.action not in OWN_ACTIONS
    ]
    if options.json:
        out_json({**letter, "story": [fields(entry) for entry in story]})
        return
    out(f"{letter['id']}  {letter.get('subject')}")
    out(f"  {letter.get('why')}")
    for entry in story:
        out(f"  {entry.at}  {entry.action}: {entry.reason}")
    for report in letter.get("evidence", {}).get("reports", ()):
        out(f"  crash report: yolo-supervisor crash show {report}")
    out(f"  to requeue it: yolo-supervisor dead-letter redrive {letter['id']}")


@command.command("redrive")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def redrive(options: Shared, ident: str) -> None:
    """Put a dead letter back into the queue, with its attempts reset.

    \b
    Example:
      yolo-supervisor dead-letter redrive my-team/3
    """
    view = project_view(options)
    letter = _letter(view, ident)
    task = _task(letter)
    view.store.open()
    outcome = view.carry_out(task_actions.redrive(task, "redriven on the command line"))
    _remove(view, task, "it was redriven" if outcome is Outcome.DONE else "its task is no dead letter any more")
    if outcome is Outcome.STALE:
        _fail_stale(task)
    print_result(options, {"result": "redriven", "id": task.id}, f"{task.id}: back in the queue")


@command.command("drop")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def drop(options: Shared, ident: str) -> None:
    """Give a task up: remove it from its task list.

    Tasks that it blocks are not blocked any more. The journal keeps its content. A plan of the plugin stays in the
    execution state, as failed.

    \b
    Example:
      yolo-supervisor dead-letter drop my-team/3
    """
    view = project_view(options)
    task = _task(_letter(view, ident))
    view.store.open()
    exists = read_or_none(task.path) is not None
    outcome = Outcome.DONE
    if task.list != execution_state.EXECUTION_STATE:
        outcome = view.carry_out(task_actions.drop(task, "dropped on the command line"))
    _remove(view, task, "it was dropped")
    if outcome is Outcome.STALE and exists:
        _fail_stale(task)
    print_result(options, {"result": "dropped", "id": task.id}, f"{task.id}: dropped")


def _remove(view: ProjectView, task: Task, reason: str) -> None:
    """Remove the document of a dead letter."""
    path = _folder(view) / letter_file(task.id)
    view.carry_out(task_actions.remove_dead_letter(key=task.id, path=path, reason=reason))


def _fail_stale(task: Task) -> NoReturn:
    fail(EX_NO, f"{task.id} is no dead letter any more: the task was not changed, and its dead letter was removed")


def _letters(view: ProjectView) -> list[dict[str, Any]]:
    """The documents of all dead letters, made from the task where the document cannot be read.

    A document without a dead letter belongs to a task that was completed or claimed while it was written.
    """
    loaded = [load_object(read_or_none(path) or b"") for path in sorted(_folder(view).glob("*.json"))]
    letters = {letter["id"]: letter for letter in loaded if letter is not None and isinstance(letter.get("id"), str)}
    reasons = view.store.index.dead_letters
    for task in view.tasks():
        if task.id in reasons and task.id not in letters:
            letters[task.id] = {
                "id": task.id, "list": task.list, "number": task.number, "path": str(task.path),
                "subject": task.subject, "why": reasons[task.id],
            }  # fmt: skip
    return [letters[ident] for ident in sorted(letters) if ident in reasons]


def _letter(view: ProjectView, ident: str) -> dict[str, Any]:
    matches = [letter for letter in _letters(view) if ident in (letter["id"], letter["id"].rpartition("/")[2])]
    if not matches:
        fail(EX_NO, f"no dead letter {ident}; see: yolo-supervisor dead-letter list")
    if len(matches) > 1:
        fail(EX_NO, f"{ident} is ambiguous: {' or '.join(letter['id'] for letter in matches)}")
    return matches[0]


def _task(letter: dict[str, Any]) -> Task:
    return Task(
        list=str(letter.get("list")),
        number=str(letter.get("number")),
        status="pending",
        owner=None,
        path=Path(str(letter.get("path"))),
        subject=str(letter.get("subject")),
    )


def _folder(view: ProjectView) -> Path:
    return view.store.paths.dead_letters
