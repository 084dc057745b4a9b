"""The prompt with which an agent goes on that was started again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from yolo_supervisor.models import Task

MAX_PART = 200
"""The longest part of the text that comes from elsewhere, in characters."""


def note_for(*, died_at: datetime, why: str, tool: str | None, tasks: Sequence[Task]) -> str:
    """What happened, that nothing new was said, what to check, and the agent's task."""
    how = f" ({_part(why)})" if why else ""
    cut_off = f" The call that was cut off ({_part(tool)}) may have taken effect." if tool else ""
    return (
        f"[yolo-supervisor] Your process ended at {died_at:%Y-%m-%d %H:%M:%S}Z{how}, and was started again with this "
        "conversation. Nothing new was said to you since. First check the branch, the work tree and what still runs: "
        f"an edit may be half done.{cut_off} Do not repeat a call before you know what it has done. {_work(tasks)}"
    )


def _work(tasks: Sequence[Task]) -> str:
    if not tasks:
        return (
            "No task in progress is yours now: what you were working on may have been given to another agent. Do not "
            "go on with it unless the task list says that it is yours."
        )
    named = "; ".join(f"{task.number} ({_part(task.subject)})" if task.subject else task.number for task in tasks[:5])
    return f"Your task in progress: {named}. It is still yours: go on with it."


def _part(text: str) -> str:
    """A text from elsewhere on one line, and not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= MAX_PART else f"{line[: MAX_PART - 1]}…"
