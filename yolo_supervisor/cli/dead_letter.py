"""``dead-letter``: tasks that were set aside because they kept failing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click

from yolo_supervisor.actions import tasks as task_actions
from yolo_supervisor.actions.base import Edit
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, Shared, entries, fail, out, out_json, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Task
from yolo_supervisor.policy.retry import letter_file
from yolo_supervisor.store.history import History
from yolo_supervisor.store.store import Outcome

OWN_ACTIONS = ("dead_letter_written", "dead_letter_removed", "told", "put_away")
"""The journal's verbs for the report itself, which are no part of the task's history; the last two are of 0.1.0."""


@click.group()
def command() -> None:
    """Tasks that were set aside because they kept failing. Nobody can claim them; nothing happens to them by itself.

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
    """All dead letters, and why each is one.

    \b
    Example:
      yolo-supervisor dead-letter list --json
    """
    view = project_view(options)
    letters = [{"id": each["id"], "subject": each.get("subject"), "why": each.get("why")} for each in _letters(view)]
    if options.json:
        out_json({"version": 2, "project": str(view.project), "dead_letters": letters})
        return
    for letter in letters:
        out(f"{letter['id']}  {letter['subject']}: {letter['why']}")
    if not letters:
        out("there are no dead letters")


@command.command("show")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def show(options: Shared, ident: str) -> None:
    """The story of one: its attempts, their owners, how they ended.

    \b
    Example:
      yolo-supervisor dead-letter show my-team/3
    """
    view = project_view(options)
    letter = _letter(view, ident)
    told = [entry for entry in entries(History(view.store.paths.journal)) if entry["action"] not in OWN_ACTIONS]
    story = [entry for entry in told if (entry["kind"], entry["key"]) == ("task", letter["id"])]
    if options.json:
        out_json({**letter, "story": story})
        return
    out(f"{letter['id']}  {letter.get('subject')}")
    out(f"  {letter.get('why')}")
    for entry in story:
        out(f"  {entry['at']}  {entry['action']}: {entry['reason']}")
    for report in letter.get("evidence", {}).get("reports", ()):
        out(f"  what it died of: yolo-supervisor crash show {report}")
    out(f"  give it back: yolo-supervisor dead-letter redrive {letter['id']}")


@command.command("redrive")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def redrive(options: Shared, ident: str) -> None:
    """Put it back into the queue, as if it had never failed.

    \b
    Example:
      yolo-supervisor dead-letter redrive my-team/3
    """
    view = project_view(options)
    letter = _letter(view, ident)
    task = _task(letter)
    view.store.open()
    action = task_actions.redrive(task, "a person said so")
    if (outcome := view.store.commit(action, "cli")) is Outcome.BUSY:
        fail(EX_TEMPFAIL, f"{task.id} is being written to: try again")
    _remove(view, task, "it was redriven" if outcome is Outcome.DONE else "somebody has taken it up already")
    if outcome is Outcome.STALE:
        _not_any_more(task)
    answer = {"result": "redriven", "id": task.id}
    out_json(answer) if options.json else out(f"{task.id}: back in the queue")


@command.command("drop")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def drop(options: Shared, ident: str) -> None:
    """Give the task up: it is removed from its list, and what waits for it waits no more.

    The journal keeps what it was. A plan of the plugin stays in the execution state, as failed.

    \b
    Example:
      yolo-supervisor dead-letter drop my-team/3
    """
    view = project_view(options)
    task = _task(_letter(view, ident))
    view.store.open()
    there = read_or_none(task.path) is not None
    outcome = Outcome.DONE
    if task.list != execution_state.EXECUTION_STATE:
        outcome = _commit(view, task_actions.drop(task, "a person gave it up"))
    _remove(view, task, "a person gave it up")
    if outcome is Outcome.STALE and there:
        _not_any_more(task)
    answer = {"result": "dropped", "id": task.id}
    out_json(answer) if options.json else out(f"{task.id}: dropped")


def _remove(view: ProjectView, task: Task, why: str) -> None:
    path = _folder(view) / letter_file(task.id)
    _commit(view, task_actions.remove_dead_letter(key=task.id, path=path, reason=why))


def _not_any_more(task: Task) -> NoReturn:
    fail(EX_NO, f"{task.id} was not set aside any more: it is left as it is, and the letter is put away")


def _commit(view: ProjectView, action: Edit) -> Outcome:
    if (outcome := view.store.commit(action, "cli")) is Outcome.BUSY:
        fail(EX_TEMPFAIL, f"{action.key} is being written to: try again")
    return outcome


def _letters(view: ProjectView) -> list[dict[str, Any]]:
    """The stories of all that is set aside; of one whose story cannot be read, what the task itself tells.

    A story without a dead letter is left by a task that was finished, or taken up, in the last moment.
    """
    found = [load_object(read_or_none(path) or b"") for path in sorted(_folder(view).glob("*.json"))]
    stories = {each["id"]: each for each in found if each is not None and isinstance(each.get("id"), str)}
    aside = view.store.journal.memory.set_aside
    for task in view.tasks():
        if task.id in aside and task.id not in stories:
            stories[task.id] = {
                "id": task.id, "list": task.list, "number": task.number, "path": str(task.path),
                "subject": task.subject, "why": aside[task.id],
            }  # fmt: skip
    return [stories[ident] for ident in sorted(stories) if ident in aside]


def _letter(view: ProjectView, ident: str) -> dict[str, Any]:
    found = [each for each in _letters(view) if ident in (each["id"], each["id"].rpartition("/")[2])]
    if len(found) != 1:
        several = f"{ident} may be {' or '.join(each['id'] for each in found)}: say which"
        fail(
            EX_NO, several if found else f"there is no dead letter {ident}: yolo-supervisor dead-letter list shows all"
        )
    return found[0]


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
    return view.store.paths.folder / "dead-letters"
