"""Status and owner of a task: of Claude Code's task file, or of a plan of the plugin."""

from __future__ import annotations

from yolo_supervisor.formats import claude
from yolo_supervisor.formats.json import dump_like, load_object, text_or_none
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.models import Task

PENDING, AT_WORK, DONE = "pending", "in_progress", "completed"

SET_ASIDE = "dead-letter"
"""The owner of a dead letter. The client (2.1.197) gives a task with an owner to no other agent, and its dependents
keep waiting for it; the plugin never resumes a plan that has ``failed``."""

ASIDE = frozenset({PENDING, "failed"})
"""The statuses of a dead letter: any other one shows that the task was changed since."""


def state(task: Task, data: bytes) -> tuple[str, str | None] | None:
    """The task's status, as the client spells it, and its owner.

    None if the document does not have the task.
    """
    if task.list != execution_state.EXECUTION_STATE:
        current = claude.task(data, task.list, task.path)
        return (current.status, current.owner) if current else None
    raw = load_object(data)
    plan = execution_state.plan(raw, task.number) if raw is not None else None
    return (_AS_TASK.get(plan["status"], plan["status"]), text_or_none(plan.get("owner"))) if plan else None


def is_done(task: Task) -> bool:
    """Whether the task is finished, by the spelling of the program that it belongs to."""
    return task.status == DONE if task.list != execution_state.EXECUTION_STATE else _AS_TASK.get(task.status) == DONE


def with_state(task: Task, data: bytes, status: str, owner: str | None) -> bytes:
    """The document with this status and owner of the task, all else unchanged.

    ValueError if it has no such task.
    """
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
