"""The plugin's ``.execution-state.json``: phases, plans and the agents that work on them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.models import Task

STATE_FILE = ".execution-state.json"
EXECUTION_STATE = "execution-state"
"""The name of the task list whose tasks are the plans of ``.execution-state.json``."""


# -- .execution-state.json --------------------------------------------------------------------------------------

COMPLETE = frozenset({"complete", "completed", "done"})
"""The spellings of a finished plan in real files."""

RUNNING = frozenset({"running", "in_progress", "executing"})
"""The spellings of a plan in progress in real files."""

_PLAN_TEAM = re.compile(r"yolo-phase-(\d{1,9})")
_PLAN_DEV = re.compile(r"(?:yolo[:-])?dev-(\d{1,9})")
PLAN_ID = re.compile(r"(\d{1,9})-(\d{1,9})")


def plans(data: bytes, path: Path) -> list[Task] | None:
    """The plans of an execution state as tasks, owner unknown; None if the file cannot be read."""
    raw = load_object(data)
    if raw is None:
        return None
    return [
        Task(
            list=EXECUTION_STATE,
            number=str(plan["id"]),
            status=status,
            owner=text_or_none(plan.get("owner")),
            path=path,
            subject=text_or_none(plan.get("title")) or "",
        )
        for plan in _plan_objects(raw)
        if (status := text_or_none(plan.get("status")))
    ]


def _plan_objects(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = raw.get("plans")
    return [
        p for p in (listed if isinstance(listed, list) else ()) if isinstance(p, dict) and text_or_none(p.get("id"))
    ]


def plan(raw: Mapping[str, Any], plan_id: str) -> dict[str, Any] | None:
    """The plan in an execution state; the first at work if several have the id."""
    same = [p for p in _plan_objects(raw) if p["id"] == plan_id and text_or_none(p.get("status"))]
    return next((p for p in same if p["status"] in RUNNING), same[0] if same else None)


def may_have_plans(agent_name: str) -> bool:
    """Whether an agent of this name can have a plan by the plugin's naming."""
    return bool(_PLAN_DEV.fullmatch(agent_name))


def works_on(agent_name: str, team: str | None, plan_id: str) -> bool:
    """Whether the plan is the agent's by the plugin's naming.

    ``dev-02`` has plan ``05-02``, in a team ``yolo-phase-NN`` only if NN is 5. Newer clients name teams after sessions:
    then only the number of the plan is compared.
    """
    dev, phase = _PLAN_DEV.fullmatch(agent_name), _PLAN_TEAM.fullmatch(team or "")
    plan = PLAN_ID.fullmatch(plan_id)
    return bool(dev and plan and int(dev[1]) == int(plan[2]) and (not phase or int(phase[1]) == int(plan[1])))


def dump(value: dict[str, Any]) -> bytes:
    """An object in the plugin's style: sorted, two spaces, no final newline, no escapes."""
    try:
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates can only be written as escapes
        return json.dumps(value, indent=2, sort_keys=True).encode()
