"""The result of a recovery: the document of ``--json``, the message, the journal entry."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from yolo_supervisor.actions.base import AlertCode, Escalate, Note
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.commits.fast_path import EX_TEMPFAIL, Ending
from yolo_supervisor.formats.git_messages import ADVICE, Cause, Failure
from yolo_supervisor.formats.plugin import PLANNING
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import write_note

EXIT_CODES = {Cause.LOCKED: EX_TEMPFAIL, Cause.UNREACHABLE: EX_TEMPFAIL, Cause.REJECTED: EX_TEMPFAIL, Cause.USAGE: 2}
"""The exit codes of failures; 1 for all other causes."""

NOT_ESCALATED = frozenset({Cause.NOTHING, Cause.NO_MESSAGE, Cause.USAGE, Cause.HOOK, Cause.NO_REPOSITORY})
"""Causes that only the caller needs to know."""

SHOWN_FILES = 10
"""The number of files that a message names."""

STATES = {
    "unchanged": "nothing was committed",
    "failed": "nothing was committed",
    "committed": "the commit is made, but not pushed",
    "pushed": "nothing was committed; what was committed before is pushed",
    "rebased": "nothing was committed; what was committed before is pushed",
}
"""The beginning of a failure's message, by the result so far."""


@dataclass
class CommitResult:
    """The result of a commit. The fields are the keys of ``commit --json``."""

    result: str = "failed"
    commit: str | None = None
    cause: Cause | None = None
    message: str = ""
    rounds: int = 1
    rescue: str | None = None
    """A ref on a copy of the work tree."""
    files: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    """Commands for the user to go on with."""
    blocked_by: str | None = None
    """The lock that was in the way, and what is known of its holder."""
    unkept: list[str] = field(default_factory=list)
    """Files of the work tree that are missing in the copy: git could not add them."""
    notes: list[str] = field(default_factory=list)
    """Sentences about changes of the user that a hook had hidden."""
    restored: list[str] = field(default_factory=list)
    """Files whose changes a hook had hidden, and that are as before again."""
    missing: list[str] = field(default_factory=list)
    """Files with changes of the user that are not in the work tree any more; the copy has them."""

    def fail(self, failure: Failure, folder: Path, as_json: bool) -> None:
        """Describe the failure in the message and, if it is escalated, in the journal."""
        self.cause = failure.cause
        state = self.message or STATES[self.result]
        where = f" ({', '.join(self.files)})" if self.files else ""
        self.message = f"{state}: {failure.cause}{where}: {self.blocked_by or ADVICE[failure.cause]}"
        if self.rescue and not self.notes:
            without = f" without {', '.join(map(shlex.quote, self.unkept))}" if self.unkept else ""
            self.commands.append(f"git stash apply {self.rescue}    # restores a copy of your work tree{without}")
        is_own_end = failure.cause is Cause.INTERRUPTED and self.result == "failed"
        if failure.cause not in NOT_ESCALATED and not is_own_end:
            evidence = {
                "cause": str(failure.cause), "said": failure.output.strip().splitlines()[-10:], "files": self.files,
                "rescue": self.rescue, "commands": self.commands, "rounds": self.rounds,
            }  # fmt: skip
            alert = Escalate(
                kind="commit", code=AlertCode.COMMIT_FAILED, key=str(folder), reason=self.message, evidence=evidence
            )
            write_to_journal(folder, alert)
        if self.result == "committed" and failure.output and not as_json:
            sys.stderr.write(failure.output.rstrip() + "\n")

    def ending(self, code: int) -> Ending:
        """The end of the program with this result."""
        lines = [*([self.message] if self.message else []), *self.notes, *(f"  {command}" for command in self.commands)]
        return Ending(code, asdict(self), lines)


def project_of(folder: Path) -> Path | None:
    """The project that the folder is in, or None if there is none."""
    return next((parent for parent in (folder, *folder.parents) if (parent / PLANNING).is_dir()), None)


def restored_work(files: list[str]) -> str:
    """The sentence about changes that were put back."""
    return f"a hook had hidden changes of yours, and they are in the work tree again: {_names(files)}"


def missing_work(files: list[str]) -> str:
    """The sentence about changes that are not in the work tree."""
    what = f"in the work tree any more: {_names(files)}" if files else "in the index any more"
    return f"a hook has hidden changes of yours, and they are not {what}"


def _names(files: list[str]) -> str:
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(map(shlex.quote, files[:SHOWN_FILES])) + more


def write_to_journal(folder: Path, action: Note | BreakLock) -> None:
    """Write the action into the journal of the project that the folder is in, if there is one."""
    project = project_of(folder)
    if project is None:
        return
    try:
        write_note(project, action, "commit")
    except (OSError, Busy, Refused) as error:
        sys.stderr.write(f"yolo-supervisor: cannot write the journal: {error}\n")
