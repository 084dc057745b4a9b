"""The prompt with which an agent goes on that was started again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from yolo_supervisor.models import Task

TURNS = 6
"""The number of last turns in a handoff."""

MAX_PART = 200
"""The longest part of the text that comes from elsewhere, in characters."""


def note_for(
    *,
    died_at: datetime,
    why: str,
    tool: str | None,
    tasks: Sequence[Task],
    team: Sequence[tuple[str, Sequence[Task]]] = (),
) -> str:
    """What happened, that nothing new was said, what to check, the agent's task, and what its teammates were doing."""
    cut_off = f" The call that was cut off ({_part(tool)}) may have taken effect." if tool else ""
    return (
        f"yolo-supervisor: your process ended at {_ended(died_at, why)}, and was started again with this "
        "conversation. Nothing new was said to you since. First check the branch, the work tree and what still runs: "
        f"an edit may be half done.{cut_off} Do not repeat a call before you know what it has done. {_work(tasks)}"
        f"{_team(team)}"
    )


def handoff_for(*, died_at: datetime, why: str, tasks: Sequence[Task], turns: Sequence[str], saved: str | None) -> str:
    """The prompt of an agent whose conversation was too long to be resumed: its task, its work, its last turns."""
    work = f" A copy of the uncommitted work is in {saved}." if saved else ""
    last = " / ".join(_part(turn) for turn in turns[-TURNS:])
    return (
        f"yolo-supervisor: an agent with your role and name ended at {_ended(died_at, why)}. Its conversation was too "
        f"long to be resumed, so you begin with an empty one. {_work(tasks)} Begin with the work tree: git status and "
        f"git diff show what it left unfinished.{work}" + (f" Its last turns: {last}" if last else "")
    )


def _ended(died_at: datetime, why: str) -> str:
    return f"{died_at:%Y-%m-%d %H:%M:%S}Z" + (f" ({_part(why)})" if why else "")


def _team(team: Sequence[tuple[str, Sequence[Task]]]) -> str:
    if not team:
        return ""
    doing = "; ".join(_doing(name, tasks) for name, tasks in team[:20])
    return (
        f" Your teammates were: {doing}. You and they cannot reach each other any more, and their processes may still "
        "run: spawn new ones for what is left. You read your inbox again only after you have spawned one."
    )


def _doing(name: str, tasks: Sequence[Task]) -> str:
    numbers = ", ".join(task.number for task in tasks)
    return f"{_part(name)} (task {numbers})" if numbers else _part(name)


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
