"""Recover a failed commit: find the cause, clear a stale lock, run git again, and push."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import random
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.leases import BreakLock
from yolo_supervisor.clock import pause_s
from yolo_supervisor.commits.branch_update import BranchUpdate, own_folder
from yolo_supervisor.commits.fast_path import (
    CHECKOUT,
    HOOKS_RECORD,
    INDEX_COPY,
    UPDATE_DOCUMENT,
    CommitAttempt,
    Ending,
)
from yolo_supervisor.commits.hidden_work import give_back, left_by_killed, report_missing
from yolo_supervisor.commits.push import Conflict, Push, upstream_of
from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError
from yolo_supervisor.commits.rescue_refs import prune
from yolo_supervisor.commits.result import (
    EXIT_CODES,
    CommitResult,
    missing_work,
    project_of,
    write_to_journal,
)
from yolo_supervisor.commits.work_copy import RECORD, WorkCopy
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.git_messages import Cause, Failure, classify
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.lock_holders import LockHolder, LockHolders
from yolo_supervisor.inventory.stale_locks import INDEX_STALE_S
from yolo_supervisor.models import Liveness
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy, LockAges, put_aside
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.quotas import prune_moved_locks
from yolo_supervisor.system.git import Git, GitError
from yolo_supervisor.system.git_files import LOCKS_DOCUMENT
from yolo_supervisor.system.git_layout import WorkTree, checkouts
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

ROUNDS = 3
"""The number of retries in a locked repository."""

WAIT_S = 60.0
"""The time limit of waiting for a lock that another process may hold, in seconds."""

CAUSES_OF_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), Cause.NO_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), Cause.NO_PERMISSION),
}

LOOK_S = 0.5
"""The pause between two looks for the holder of a lock, in seconds."""


def recover(attempt: CommitAttempt) -> Ending:
    """Go on after the first run of ``git commit``: retry what may succeed, push, and report."""
    folder, result, exit_code = Path(attempt.folder), CommitResult(), None
    git = Git(folder, attempt.environment)
    failure: Failure | None
    try:
        try:
            _commit(attempt, git, result)
        finally:
            _settle(attempt, result)
        attempt.heed_signals()
        if attempt.push:
            anyio.run(Push(git, result, attempt.deadline, attempt.has_hooks).run)
        failure = Failure(result.cause, 1, "") if result.cause is not None else None
    except GitError as error:
        failure = error.failure
        if attempt.signal is not None and failure.cause is Cause.INTERRUPTED:
            exit_code = 128 + attempt.signal
    except Conflict as conflict:
        result.files = conflict.files
        result.commands += [
            f"cd {shlex.quote(attempt.folder)}",
            conflict.command,
            "git status    # resolve the files, git add them, git rebase --continue",
            "git push",
        ]
        failure = Failure(Cause.CONFLICT, 1, "")
    except (OSError, Refused, Busy) as error:
        cause = CAUSES_OF_ERRNO.get(getattr(error, "errno", None) or 0, Cause.UNKNOWN)
        failure = Failure(cause, None, str(error))
    except SystemExit as end:  # a signal, outside of the sections that must be finished
        failure = Failure(Cause.INTERRUPTED, None, "")
        exit_code = end.code if isinstance(end.code, int) else 1
    _prune(git, result)
    if failure is None:
        return result.ending(0)
    result.fail(failure, folder, attempt.as_json)
    return result.ending(EXIT_CODES.get(failure.cause, 1) if exit_code is None else exit_code)


def _commit(attempt: CommitAttempt, git: Git, result: CommitResult) -> None:
    """Run the commit again while its failure may be gone; ``GitError`` if it cannot be made."""
    while attempt.exit_code != 0:
        attempt.heed_signals()
        if attempt.signal is not None:
            failure = Failure(Cause.INTERRUPTED, attempt.exit_code, "")
        else:
            failure = anyio.run(_find_cause, attempt, git)
        if attempt.committed_despite_failure:
            result.result, result.message = "committed", "the commit is made, but git did not exit normally"
            raise GitError(failure)
        if attempt.push and failure.cause is Cause.NOTHING and anyio.run(_is_ahead, git):
            result.cause = failure.cause  # earlier commits are pushed all the same
            return
        is_retryable = failure.cause is Cause.LOCKED and not attempt.is_nested and result.rounds <= ROUNDS
        if not is_retryable:
            raise GitError(failure)
        if (blocked := anyio.run(_clear_lock, git, failure, attempt.deadline)) is not None:
            _explain(result, failure, blocked)
            raise GitError(failure)
        result.rounds += 1
        attempt.run()
    result.result = "unchanged" if attempt.tip_moved is False else "committed"


def _settle(attempt: CommitAttempt, result: CommitResult) -> None:
    """Look what the hooks of the commit have hidden."""
    if attempt.copy is not None:
        give_back(attempt.copy, result, result.result == "committed", attempt.was_ended)


def _prune(git: Git, result: CommitResult) -> None:
    """Remove old copies, since this one stays."""
    if result.rescue is not None:
        with contextlib.suppress(QuickGitError, OSError):
            result.notes += prune(QuickGit(str(git.folder), git.environment), result.rescue)


async def _find_cause(attempt: CommitAttempt, git: Git) -> Failure:
    """The cause of a failed ``git commit``.

    A hook may print anything, so what it may have printed is checked.
    """
    failure = classify(attempt.exit_code, attempt.output, "commit")
    if failure.cause is Cause.LOCKED and failure.lock is not None:
        with contextlib.suppress(GitError):
            lock = Path(failure.lock)
            if not (await git.paths()).contains_lock(lock.parent.resolve() / lock.name):
                return classify(attempt.exit_code, attempt.output, "commit", frozenset({Cause.LOCKED}))
    if failure.cause in (Cause.NOTHING, Cause.HOOK) and (nothing := attempt.nothing_to_commit()) is not None:
        return Failure(Cause.NOTHING if nothing else Cause.HOOK, attempt.exit_code, failure.output)
    return failure


async def _is_ahead(git: Git) -> bool:
    """Whether there are commits that the upstream does not have."""
    count = await git.or_none("rev-list", "--count", "@{upstream}..HEAD")
    if count is not None:
        return count != "0"
    upstream = await upstream_of(git, await git.or_none("symbolic-ref", "HEAD") or "")
    if upstream is None:
        return False
    listed = await git.or_none("ls-remote", upstream.remote, upstream.ref)
    there = (listed or "").partition("\t")[0]
    return bool(there) and await git.or_none("merge-base", "--is-ancestor", "HEAD", there) is None


# -- locks -----------------------------------------------------------------------------------------------------------


async def _clear_lock(git: Git, failure: Failure, deadline: float = math.inf) -> str | None:
    """Wait until ``deadline`` for the lock that was in the way, or move it aside if its holder was seen and is dead.

    Returns None once it is gone, else what is known of its holder.
    """
    if failure.lock is None:
        await anyio.sleep(pause_s(0.2, 1, 1.0, random.random()))
        return None
    return await _clear_locks(git, [Path(failure.lock)], deadline)


async def _clear_locks(git: Git, locks: Sequence[Path], deadline: float = math.inf) -> str | None:
    """The same for several locks. What is returned is about the first of those that are left."""
    holders, ages, known = LockHolders(Processes(backend())), LockAges(), ""
    left = {lock: await _work_trees(git, lock) for lock in locks}
    if any(trees is not None for trees in left.values()):
        await _recall(git, holders)
    deadline, look_s = min(deadline, time.monotonic() + WAIT_S), 0.0
    while time.monotonic() < deadline:
        if is_time := time.monotonic() >= look_s:
            look_s, known = time.monotonic() + LOOK_S, ""
        for lock, trees in [*left.items()]:
            try:
                is_stale = ages.age_s(lock, lock.lstat()) >= INDEX_STALE_S
            except OSError:
                del left[lock]
                continue
            if trees is None or not is_time or (holder := holders.look(lock, trees)) is None:
                continue
            known = known or holder.describe()
            if holder.state is Liveness.DEAD and is_stale and await _move_aside(git, lock, ages, holder):
                del left[lock]
        if not left:
            return None
        await anyio.sleep(0.05)  # also after another program has moved one first
    return known


async def _recall(git: Git, holders: LockHolders) -> None:
    """Ask those who may have seen the holder: the project's daemon, and a commit that was killed."""
    documents = [*(await own_folder(git)).glob(f"{LOCKS_DOCUMENT}*.json")]
    if (project := project_of(git.folder)) is not None:
        documents.append(Paths(project).seen_locks)
    for document in documents:
        holders.recall(own_files.load_seen_locks(read_or_none(document) or b""))


async def _work_trees(git: Git, lock: Path) -> set[WorkTree] | None:
    """The work trees in which this lock is taken; None if it is no lock of the repository, or that is unknown."""
    try:
        paths = await git.paths()
    except GitError:
        return None
    lock = lock.parent.resolve() / lock.name
    if not paths.contains_lock(lock):
        return None
    return {WorkTree(paths.root, paths.git_dir), *checkouts(paths.common_dir)}


async def _move_aside(git: Git, lock: Path, ages: LockAges, holder: LockHolder) -> bool:
    """Move the stale lock into our folder, and journal that; False if it could not be moved."""
    reason = f"stale lock: unchanged for {INDEX_STALE_S:g} s, and {holder.describe()}"
    kept = await own_folder(git) / f"{lock.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
    try:
        put_aside(Disk(), lock, kept, INDEX_STALE_S, ages)
        prune_moved_locks(Disk(), kept.parent)
    except (OSError, Busy, Refused):
        return False
    evidence = {"kept": str(kept), "pids": holder.pids}
    action = BreakLock(key=lock.name, path=lock, stale_s=INDEX_STALE_S, reason=reason, evidence=evidence)
    write_to_journal(git.folder, action)
    return True


def _explain(result: CommitResult, failure: Failure, known: str) -> None:
    """Say who holds the lock that was in the way, and how a person removes it."""
    assert failure.lock is not None
    if known:
        result.blocked_by = f"{failure.lock} exists: {known}"
        result.commands.append(f"rm {shlex.quote(failure.lock)}    # if no git is at work there")


# -- after a crash ---------------------------------------------------------------------------------------------------


def finish_interrupted(folder: str, environment: Mapping[str, str]) -> list[str]:
    """Finish or roll back what killed runs have begun, and remove their temporary files.

    Returns what the user has to know, which is said at once as well.

    The caller holds the commit lock, which proves that none of them is still running.
    """
    git, notes = Git(Path(folder), environment), list[str]()
    for _ in range(ROUNDS):
        try:
            anyio.run(_finish_interrupted, git, notes)
            break
        except GitError as error:
            if error.failure.cause is not Cause.LOCKED or anyio.run(_clear_lock, git, error.failure) is not None:
                break
        except OSError:
            break
    return notes


async def _finish_interrupted(git: Git, notes: list[str]) -> None:
    folder = await own_folder(git)
    notes += _finish_hooks(folder, git.environment)
    for document in folder.glob(f"{LOCKS_DOCUMENT}*.json"):
        locks = [*own_files.load_seen_locks(read_or_none(document) or b"")]  # that the killed run held
        if locks and await _clear_locks(git, locks) is not None:
            return  # another git holds one: the next commit tries again
        document.unlink(missing_ok=True)
    for document in folder.glob(f"{UPDATE_DOCUMENT}*.json"):
        if (update := BranchUpdate.from_document(git, document)) is None:
            document.unlink(missing_ok=True)
        elif not await update.recover(document):
            _report_incomplete(update)
    for tree in folder.glob(f"{CHECKOUT}*"):
        await git.or_none("worktree", "remove", "--force", "--force", str(tree))  # twice: also a locked one
        shutil.rmtree(tree, ignore_errors=True)
    for copy in folder.glob(f"{INDEX_COPY}*"):
        copy.unlink(missing_ok=True)
    await git.or_none("worktree", "prune")


def _finish_hooks(folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Say what killed commits, and their hooks, have left hidden."""
    notes = []
    for record in sorted(folder.glob(f"{HOOKS_RECORD}*{RECORD}")):
        copy = WorkCopy.from_record(str(record), environment)
        if copy is None:
            record.unlink(missing_ok=True)
        elif not _is_at_work(copy):
            try:
                findings = left_by_killed(copy)
            except (QuickGitError, OSError):
                continue  # the next commit tries again
            if findings.commands:
                report_missing(copy, findings)
                lines = [missing_work(findings.missing), *(f"  {command}" for command in findings.commands)]
                sys.stderr.write("".join(f"yolo-supervisor: {line}\n" for line in lines))
                notes += lines
            copy.forget(keep_ref=bool(findings.commands))
    known = {record.stem for record in folder.glob(f"{HOOKS_RECORD}*{RECORD}")}
    for path in folder.glob(f"{HOOKS_RECORD}*"):
        if path.stem not in known:
            path.unlink(missing_ok=True)
    return notes


def _is_at_work(copy: WorkCopy) -> bool:
    """Whether the commit that made the copy, or a hook of it, is still running."""
    facts = Processes(backend()).sweep().facts.values()
    return any(
        (each.pid == copy.maker or (copy.git_pid and each.session == copy.git_pid)) and not each.zombie
        for each in facts
    )


def _report_incomplete(update: BranchUpdate) -> None:
    """Report that files of an interrupted update could not be restored."""
    root = update.git.folder
    what = f"an update of {update.branch} to {update.after[:12]} was interrupted, and its files have been changed since"
    reason = f"{what}: see git status in {root}"
    code = AlertCode.BRANCH_UPDATE_CUT_OFF
    write_to_journal(root, Escalate(kind="commit", code=code, key=str(root), reason=reason))
    sys.stderr.write(f"yolo-supervisor: {reason}\n")
