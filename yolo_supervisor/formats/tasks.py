"""A task wherever it lives: in a file of Claude Code's task list, or as a plan in the plugin's execution state."""

from __future__ import annotations

from yolo_supervisor.formats import claude
from yolo_supervisor.formats.json import dump_like, load_object, text_or_none
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.models import Task

PENDING, AT_WORK, DONE = "pending", "in_progress", "completed"

SET_ASIDE = "dead-letter"
"""The owner of a task that nobody shall claim. The client (2.1.197) gives a task with an owner to nobody else, and its
dependents go on waiting for it; the plugin takes up no plan that has ``failed``."""

ASIDE = frozenset({PENDING, "failed"})
"""What a task that was set aside is: otherwise somebody has done something about it since."""


def state(task: Task, data: bytes) -> tuple[str, str | None] | None:
    """The task's status, in the client's words, and its owner; None if the document does not tell."""
    if task.list != execution_state.EXECUTION_STATE:
        found = claude.task(data, task.list, task.path)
        return (found.status, found.owner) if found else None
    listed = execution_state.plans(data, task.path) or []
    plan = next((each for each in listed if each.number == task.number), None)
    return (_AS_TASK.get(plan.status, plan.status), plan.owner) if plan else None


def is_done(task: Task) -> bool:
    """Whether it is finished, in its own neighbour's words."""
    return task.status == DONE if task.list != execution_state.EXECUTION_STATE else _AS_TASK.get(task.status) == DONE


def with_state(task: Task, data: bytes, status: str, owner: str | None) -> bytes:
    """The document with this task's status and owner, all else as it was. ValueError if it does not hold the task."""
    raw = load_object(data)
    if raw is None:
        raise ValueError(f"{task.path} holds no JSON object")
    if task.list != execution_state.EXECUTION_STATE:
        changed = {key: status if key == "status" else value for key, value in raw.items() if key != "owner"}
        return dump_like(data, changed | ({"owner": owner} if owner else {}))
    listed = raw.get("plans")
    for plan in listed if isinstance(listed, list) else ():
        if isinstance(plan, dict) and plan.get("id") == task.number and text_or_none(plan.get("status")):
            plan["status"] = "failed" if owner == SET_ASIDE else _AS_PLAN[status]
            plan.pop("owner", None)
            plan.update({"owner": owner} if owner else {})
            return dump_like(data, raw)
    raise ValueError(f"{task.path} has no plan {task.number}")


_AS_PLAN = {PENDING: "pending", AT_WORK: "running", DONE: "complete"}
_AS_TASK = dict.fromkeys(execution_state.COMPLETE, DONE) | dict.fromkeys(execution_state.RUNNING, AT_WORK)
