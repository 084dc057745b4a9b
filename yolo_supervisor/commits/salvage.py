"""Save the uncommitted work of a dead agent: index, work tree and untracked files, as a rescue ref.

A separate program does it (``salvage_program``), so that the event loop never waits for git, and everything that git
has started can be ended at the time limit.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yolo_supervisor.commits.salvage_program import SaveOutcome, remove
from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.system import subprocesses

__all__ = ["LIMIT_S", "MAX_BYTES", "SaveOutcome", "Saved", "save_work"]

LIMIT_S = 5.0
"""The time limit, in seconds: the agent is not started again before."""

MAX_BYTES = 256 * 2**20
"""The most that is copied, in bytes of changed and untracked files."""

FINISH_S = 0.3
"""The time before the limit in which the program ends by itself, in seconds."""

PROGRAM = "yolo_supervisor.commits.salvage_program"


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What became of the uncommitted work in one folder."""

    outcome: SaveOutcome
    ref: str | None = None
    """The copy of the folder's work tree."""
    files: int = 0
    """The number of files in the copy that differ from HEAD."""
    reason: str = ""
    """One sentence for people."""
    root: Path | None = None
    """The root of the work tree."""
    omitted: tuple[str, ...] = ()
    """Files that are not in the copy, since they are too large, took too long or cannot be read."""
    nested: Mapping[str, str] = field(default_factory=dict)
    """The copies of submodules and repositories inside the work tree, by their paths: each ref is in its repository."""


async def save_work(folder: Path, name: str, limit_s: float = LIMIT_S, max_bytes: int = MAX_BYTES) -> Saved:
    """Copy the uncommitted work in the work tree of ``folder`` to a rescue ref that bears the ``name``.

    Nothing of the work tree, index, HEAD, reflogs or stash changes. No hook, filter or signing program runs.
    """
    deadline = time.monotonic() + limit_s - min(FINISH_S, limit_s / 4)  # the clock of all processes
    command = [sys.executable, "-P", "-m", PROGRAM, os.fspath(folder), name, repr(deadline), str(max_bytes)]
    try:
        ended = await subprocesses.run(command, limit_s, folder=Path("/"))
    except OSError as error:
        return Saved(outcome=SaveOutcome.FAILED, reason=f"no copy could be made: {error.strerror or error}")
    reports = [report for line in ended.stdout.splitlines() if (report := load_object(line)) is not None]
    if ended.exit != 0:  # it was killed
        for report in reports:
            remove(report.get("temporary", []))
    results = [report for report in reports if "outcome" in report]
    if results:
        return _saved(results[-1])
    if ended.exit is None:
        return Saved(outcome=SaveOutcome.TOO_SLOW, reason=f"no copy could be made within {limit_s:g} s")
    errors = ended.stderr.decode(errors="replace").strip().splitlines()
    return Saved(outcome=SaveOutcome.FAILED, reason=f"no copy could be made: {errors[-1] if errors else ended.exit}")


def _saved(report: Mapping[str, Any]) -> Saved:
    root = text_or_none(report.get("root"))
    return Saved(
        outcome=SaveOutcome(report["outcome"]), ref=text_or_none(report.get("ref")), files=report["files"],
        reason=report["reason"], root=Path(root) if root else None, omitted=tuple(report["omitted"]),
        nested=report["nested"],
    )  # fmt: skip
