"""Status and owner of a task: of a file in Claude Code's task list, or of a plan in the plugin's execution state."""

from __future__ import annotations

from yolo_supervisor.formats import claude
from yolo_supervisor.formats.json import dump_like, load_object, text_or_none
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.models import Task

PENDING, AT_WORK, DONE = "pending", "in_progress", "completed"

SET_ASIDE = "dead-letter"
"""The owner of a dead letter. The client (2.1.197) gives a task with an owner to no other agent, and its dependents
go on waiting for it; the plugin takes up no plan that has ``failed``."""

ASIDE = frozenset({PENDING, "failed"})
"""The statuses of a dead letter: with any other one it was changed since."""


def state(task: Task, data: bytes) -> tuple[str, str | None] | None:
    """The task's status, in the client's words, and its owner; None if the document does not say."""
    if task.list != execution_state.EXECUTION_STATE:
        found = claude.task(data, task.list, task.path)
        return (found.status, found.owner) if found else None
    raw = load_object(data)
    plan = execution_state.plan(raw, task.number) if raw is not None else None
    return (_AS_TASK.get(plan["status"], plan["status"]), text_or_none(plan.get("owner"))) if plan else None


def is_done(task: Task) -> bool:
    """Whether the task is finished, in the words of the file's owner."""
    return task.status == DONE if task.list != execution_state.EXECUTION_STATE else _AS_TASK.get(task.status) == DONE


def with_state(task: Task, data: bytes, status: str, owner: str | None) -> bytes:
    """The document with this status and owner of the task, all else unchanged. ValueError if it has no such task."""
    raw = load_object(data)
    if raw is None:
        raise ValueError(f"{task.path} holds no JSON object")
    if task.list != execution_state.EXECUTION_STATE:
        changed = {key: status if key == "status" else value for key, value in raw.items() if key != "owner"}
        return dump_like(data, changed | ({"owner": owner} if owner else {}))
    plan = execution_state.plan(raw, task.number)
    if plan is None:
        raise ValueError(f"{task.path} has no plan {task.number}")
    plan["status"] = "failed" if owner == SET_ASIDE else _AS_PLAN[status]
    plan.pop("owner", None)
    plan.update({"owner": owner} if owner else {})
    return dump_like(data, raw)


_AS_PLAN = {PENDING: "pending", AT_WORK: "running", DONE: "complete"}
_AS_TASK = dict.fromkeys(execution_state.COMPLETE, DONE) | dict.fromkeys(execution_state.RUNNING, AT_WORK)
