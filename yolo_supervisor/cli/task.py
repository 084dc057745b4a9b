"""``task``: list, claim, heartbeat, done and requeue, for agents and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NoReturn

import click
import msgspec

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.tasks import Claim, Complete, Requeue, TaskEdit
from yolo_supervisor.cli.context import EX_NO, Shared, fail, out, out_json, print_result, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats import tasks
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.models import Task, iso
from yolo_supervisor.store.store import Outcome

IDENT = click.argument("ident", metavar="ID")
OWNER = click.option("--owner", required=True, help="The owner: the name of an agent.")
TOKEN = click.option("--token", type=int, required=True, help="The fencing token that claim printed.")

BY_HAND = "by hand"
"""The cause of a requeue that a person asked for."""


@click.group()
def command() -> None:
    """Tasks of Claude Code's task lists and of the plugin's plans: claim one, send heartbeats, finish it.

    A claim has a fencing token, which rejects stale owners: after a task was requeued and claimed again, the old token
    can no longer complete it.

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
    """List the tasks of the project, their owners and attempts.

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
        times = "once" if row["attempts"] == 1 else f"{row['attempts']} times"
        attempts = f"requeued {times}" if row["attempts"] else "not requeued"
        token = f", token {row['token']}" if row["token"] else ""
        out(f"{row['id']}  {row['status']}  {row['owner'] or '-'}  {attempts}{token}  {row['subject']}")
    if not rows:
        out(f"no tasks in {view.project}")


@command.command("claim")
@IDENT
@OWNER
@shared
@click.pass_obj
def claim(options: Shared, ident: str, owner: str) -> None:
    """Claim a pending task, and print the fencing token.

    Exit code 1 if another owner has the task, if it is blocked by other tasks, or if it is a dead letter.

    \b
    Example:
      token=$(yolo-supervisor task claim 3 --owner dev-1)
    """
    view, task = _find(options, ident, owner)
    blockers = [other.id for other in view.tasks() if other.list == task.list and other.number in task.blocked_by
                and other.status not in (tasks.DONE, "deleted")]  # fmt: skip
    if task.blocked_by:
        unreadable = view.registry.task_lists.at_work(task.path.parent)[1]
        blockers += [f"{path}, which cannot be read" for path in unreadable if path.stem in task.blocked_by]
    if blockers:
        _conflict(options, task, owner, f"it is blocked by {', '.join(blockers)}")
    clock = {"since_s": view.clock.monotonic(), "boot": view.processes.boot}
    action = Claim(
        key=task.id, task=task, owner=owner, reason=f"{owner} claimed it", evidence={"owner": owner, **clock}
    )
    if _commit(view, action) is Outcome.STALE:
        reason = view.store.index.dead_letters.get(task.id)
        _conflict(options, task, owner, f"it is a dead letter: {reason}" if reason else _state(task))
    token = view.store.index.claims[task.id].token
    until = iso(view.now + timedelta(seconds=view.lease_ttl_s()))
    document = {"result": "claimed", "id": task.id, "owner": owner, "token": token, "lease_expires_at": until}
    print_result(options, document, str(token))


@command.command("heartbeat")
@IDENT
@OWNER
@TOKEN
@shared
@click.pass_obj
def heartbeat(options: Shared, ident: str, owner: str, token: int) -> None:
    """Send a sign of life of a claim. Exit code 1 if the claim has ended: then stop working on the task.

    \b
    Example:
      yolo-supervisor task heartbeat 3 --owner dev-1 --token 41
    """
    view, task = _find(options, ident, owner)
    view.store.open()
    claim, state = view.store.index.claims.get(task.id), tasks.state(task, read_or_none(task.path) or b"")
    is_owner = claim is not None and claim.owner == owner and state == (tasks.AT_WORK, owner)
    if not is_owner or not view.store.beat(task.id, token, view.clock.monotonic(), view.processes.boot):
        _conflict(options, task, owner, f"the claim with token {token} has ended: {_state(task)}")
    until = iso(view.now + timedelta(seconds=view.lease_ttl_s()))
    document = {"result": "alive", "id": task.id, "owner": owner, "token": token, "lease_expires_at": until}
    print_result(options, document, f"{task.id}: held by {owner}")


@command.command("done")
@IDENT
@OWNER
@TOKEN
@shared
@click.pass_obj
def done(options: Shared, ident: str, owner: str, token: int) -> None:
    """Complete a task. Exit code 1 if it was claimed again meanwhile.

    A completion that comes after the task was requeued is accepted as long as no other owner has claimed it.

    \b
    Example:
      yolo-supervisor task done 3 --owner dev-1 --token 41
    """
    view, task = _find(options, ident, owner)
    action = Complete(key=task.id, task=task, owner=owner, token=token, reason=f"{owner} completed it",
                      evidence={"owner": owner, "token": token})  # fmt: skip
    if _commit(view, action) is Outcome.STALE:
        newest = view.store.index.claims.get(task.id)
        if newest is not None and newest.token > token:
            other = f"{newest.owner} works on it with token {newest.token}"
            reason = f"{owner} completed it with token {token}, while {other}"
            _escalate(view, task, reason, msgspec.to_builtins(newest))
            held = f"refused: {newest.owner} holds it with token {newest.token}; {owner}'s token {token} is not current"
            _conflict(options, task, owner, held)
        state = tasks.state(task, read_or_none(task.path) or b"")
        if state is not None and state[0] in (tasks.AT_WORK, tasks.DONE) and state[1] not in (None, owner):
            reason = f"{owner} completed it with token {token}, while it is {state[0]}, owned by {state[1]}"
            _escalate(view, task, reason, {})
            _conflict(options, task, owner, reason)
        _conflict(options, task, owner, f"{owner} has no claim with token {token}, or it has ended: {_state(task)}")
    document = {"result": "done", "id": task.id, "owner": owner, "token": token}
    print_result(options, document, f"{task.id}: done")


def _escalate(view: ProjectView, task: Task, reason: str, evidence: Mapping[str, Any]) -> None:
    code, text = AlertCode.TASK_DONE_TWICE, f"{reason}: compare the two results"
    view.carry_out(Escalate(kind="task", code=code, key=task.id, reason=text, evidence=evidence))


@command.command("requeue")
@IDENT
@shared
@click.pass_obj
def requeue(options: Shared, ident: str) -> None:
    """Requeue a task, also one that has an owner.

    The present owner can still complete it until it is claimed again.

    \b
    Example:
      yolo-supervisor task requeue 3
    """
    view, task = _find(options, ident, "-")
    action = Requeue(key=task.id, task=task, owner=task.owner, cause=BY_HAND, by_hand=True,
                     reason="requeued on the command line",
                     evidence={"owner": task.owner, "cause": BY_HAND})  # fmt: skip
    if _commit(view, action) is Outcome.STALE:
        _conflict(options, task, None, f"it has no owner: {_state(task)}")
    print_result(options, {"result": "requeued", "id": task.id}, f"{task.id}: requeued")


def _find(options: Shared, ident: str, owner: str) -> tuple[ProjectView, Task]:
    if not owner.strip() or owner == tasks.SET_ASIDE:
        raise click.UsageError(f"--owner {owner!r} cannot be the name of an agent")
    view = project_view(options)
    matches = [task for task in view.tasks() if ident in (task.id, task.number)]
    if not matches:
        fail(EX_NO, f"no task {ident}; see: yolo-supervisor task list")
    if len(matches) > 1 and ident not in [task.id for task in matches]:
        fail(EX_NO, f"{ident} is ambiguous: {' or '.join(task.id for task in matches)}")
    return view, next((task for task in matches if task.id == ident), matches[0])


def _commit(view: ProjectView, action: TaskEdit) -> Outcome:
    view.store.open()
    return view.carry_out(action)


def _state(task: Task) -> str:
    """The task's present status and owner, as a clause."""
    state = tasks.state(task, read_or_none(task.path) or b"")
    if state is None:
        return "it cannot be read"
    status, owner = state
    return f"it is {status}" + (f", owned by {owner}" if owner else "")


def _conflict(options: Shared, task: Task, owner: str | None, reason: str) -> NoReturn:
    if options.json:
        out_json({"result": "conflict", "id": task.id, "owner": owner, "token": None, "reason": reason})
        raise SystemExit(EX_NO)
    fail(EX_NO, f"{task.id}: {reason}")
