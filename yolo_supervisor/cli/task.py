"""``task``: list, claim, heartbeat, done, requeue."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NoReturn

import click

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.tasks import Claim, Complete, Requeue, TaskEdit
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, Shared, fail, out, out_json, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats import tasks
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Task, iso
from yolo_supervisor.store.store import Outcome

IDENT = click.argument("ident", metavar="ID")
OWNER = click.option("--owner", required=True, help="Who works on it: the name of an agent.")
TOKEN = click.option("--token", type=int, required=True, help="The fencing token that claim has given out.")

BY_HAND = "by hand"
"""The cause of a requeue that a person asked for."""


@click.group()
def command() -> None:
    """Tasks of Claude Code's lists and of the plugin's plans: claim one, show that you are at it, finish it.

    A claim has a fencing token. Whoever was thought to be dead, and whose task another has claimed since, cannot finish
    it any more: the token is too old.

    \b
    Examples:
      yolo-supervisor task list
      yolo-supervisor task claim 3 --owner dev-1
      yolo-supervisor task done 3 --owner dev-1 --token 41
    """


@command.command("list")
@shared
@click.pass_obj
def list_tasks(options: Shared) -> None:
    """The tasks of the project: where they live, who has them, which attempt it is.

    \b
    Example:
      yolo-supervisor task list --json
    """
    view = project_view(options)
    rows = view.tasks_json()
    if options.json:
        out_json({"version": 2, "project": str(view.project), "tasks": rows})
        return
    for row in rows:
        told = f"given back {row['attempts']} times" + (f", token {row['token']}" if row["token"] else "")
        out(f"{row['id']}  {row['status']}  {row['owner'] or '-'}  {told}  {row['subject']}")
    if not rows:
        out("there are no tasks")


@command.command("claim")
@IDENT
@OWNER
@shared
@click.pass_obj
def claim(options: Shared, ident: str, owner: str) -> None:
    """Claim a task that nobody has. Prints the fencing token. Exit code 1 if another has it, or it has to wait.

    \b
    Example:
      token=$(yolo-supervisor task claim 3 --owner dev-1)
    """
    view, task = _find(options, ident, owner)
    blockers = [other.id for other in view.tasks() if other.list == task.list and other.number in task.blocked_by
                and other.status not in (tasks.DONE, "deleted")]  # fmt: skip
    if task.blocked_by:
        torn = view.registry.task_lists.at_work(task.path.parent)[1]
        blockers += [f"{path}, which cannot be read now" for path in torn if path.stem in task.blocked_by]
    if blockers:
        _conflict(options, task, owner, f"it waits for {', '.join(blockers)}")
    clock = {"since_s": view.clock.monotonic(), "boot": view.processes.boot}
    action = Claim(
        key=task.id, task=task, owner=owner, reason=f"{owner} claimed it", evidence={"owner": owner, **clock}
    )
    if _commit(view, action) is Outcome.STALE:
        why = view.store.journal.memory.set_aside.get(task.id)
        _conflict(options, task, owner, f"it is a dead letter: {why}" if why else _whose(task))
    token = view.store.journal.memory.claims[task.id]["token"]
    until = iso(view.now + timedelta(seconds=view.lease_ttl_s()))
    answer = {"result": "claimed", "id": task.id, "owner": owner, "token": token, "lease_expires_at": until}
    out_json(answer) if options.json else out(str(token))


@command.command("heartbeat")
@IDENT
@OWNER
@TOKEN
@shared
@click.pass_obj
def heartbeat(options: Shared, ident: str, owner: str, token: int) -> None:
    """Show that you are still at it. Exit code 1 if the task is not yours any more: then stop working on it.

    \b
    Example:
      yolo-supervisor task heartbeat 3 --owner dev-1 --token 41
    """
    view, task = _find(options, ident, owner)
    view.store.open()
    claim = view.store.journal.memory.claims.get(task.id, {})
    its_own = claim.get("owner") == owner and tasks.state(task, read_or_none(task.path) or b"") == (
        tasks.AT_WORK,
        owner,
    )
    if not its_own or not view.store.beat(task.id, token, view.clock.monotonic(), view.processes.boot):
        _conflict(options, task, owner, f"the claim with token {token} is over: {_whose(task)}")
    until = iso(view.now + timedelta(seconds=view.lease_ttl_s()))
    answer = {"result": "alive", "id": task.id, "owner": owner, "token": token, "lease_expires_at": until}
    out_json(answer) if options.json else out(f"{task.id}: held by {owner}")


@command.command("done")
@IDENT
@OWNER
@TOKEN
@shared
@click.pass_obj
def done(options: Shared, ident: str, owner: str, token: int) -> None:
    """Finish a task. Late is accepted, too, as long as nobody has begun it anew. Exit code 1 if somebody has.

    \b
    Example:
      yolo-supervisor task done 3 --owner dev-1 --token 41
    """
    view, task = _find(options, ident, owner)
    action = Complete(key=task.id, task=task, owner=owner, token=token, reason=f"{owner} has finished it",
                      evidence={"owner": owner, "token": token})  # fmt: skip
    if _commit(view, action) is Outcome.STALE:
        newest = view.store.journal.memory.claims.get(task.id, {})
        if newest.get("token", 0) > token:
            other = f"{newest['owner']} works on it by token {newest['token']}"
            why = f"{owner} has finished it by token {token}, while {other}"
            _escalate(view, task, why, newest)
            _conflict(options, task, owner, why)
        found = tasks.state(task, read_or_none(task.path) or b"")
        if found is not None and found[0] in (tasks.AT_WORK, tasks.DONE) and found[1] not in (None, owner):
            why = f"{owner} has finished it by token {token}, while it is {found[0]}, by {found[1]}"
            _escalate(view, task, why, {})
            _conflict(options, task, owner, why)
        _conflict(options, task, owner, f"the claim with token {token} is not {owner}'s, or over: {_whose(task)}")
    answer = {"result": "done", "id": task.id, "owner": owner, "token": token}
    out_json(answer) if options.json else out(f"{task.id}: done")


def _escalate(view: ProjectView, task: Task, why: str, evidence: Mapping[str, Any]) -> None:
    code, reason = AlertCode.TASK_DONE_TWICE, f"{why}: look at both"
    view.store.note(Escalate(kind="task", code=code, key=task.id, reason=reason, evidence=evidence), "cli")


@command.command("requeue")
@IDENT
@shared
@click.pass_obj
def requeue(options: Shared, ident: str) -> None:
    """Give a task back, whoever has it. Whoever had it can still finish it, until somebody claims it anew.

    \b
    Example:
      yolo-supervisor task requeue 3
    """
    view, task = _find(options, ident, "-")
    action = Requeue(key=task.id, task=task, owner=task.owner, cause=BY_HAND, by_hand=True, reason="a person said so",
                     evidence={"owner": task.owner, "cause": BY_HAND})  # fmt: skip
    if _commit(view, action) is Outcome.STALE:
        _conflict(options, task, None, "nobody has it")
    answer = {"result": "requeued", "id": task.id}
    out_json(answer) if options.json else out(f"{task.id}: requeued")


def _find(options: Shared, ident: str, owner: str) -> tuple[ProjectView, Task]:
    if not owner.strip() or owner == tasks.SET_ASIDE:
        raise click.UsageError(f"--owner {owner!r} is no name of an agent")
    view = project_view(options)
    found = [task for task in view.tasks() if ident in (task.id, task.number)]
    if not found:
        fail(EX_NO, f"there is no task {ident}: yolo-supervisor task list shows those that there are")
    if len(found) > 1 and ident not in [task.id for task in found]:
        fail(EX_NO, f"{ident} may be {' or '.join(task.id for task in found)}: say which")
    return view, next((task for task in found if task.id == ident), found[0])


def _commit(view: ProjectView, action: TaskEdit) -> Outcome:
    view.store.open()
    outcome = view.store.commit(action, "cli")
    if outcome is Outcome.BUSY:
        fail(EX_TEMPFAIL, f"{action.key} is being written to: try again")
    return outcome


def _whose(task: Task) -> str:
    found = tasks.state(task, read_or_none(task.path) or b"")
    if found is None:
        return "it cannot be read now"
    status, owner = found
    return f"it is {status}" + (f", by {owner}" if owner else "")


def _conflict(options: Shared, task: Task, owner: str | None, why: str) -> NoReturn:
    if options.json:
        answer: dict[str, Any] = {"result": "conflict", "id": task.id, "owner": owner, "token": None, "reason": why}
        out_json(answer)
        raise SystemExit(EX_NO)
    fail(EX_NO, f"{task.id}: {why}")
