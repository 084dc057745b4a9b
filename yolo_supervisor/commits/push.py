"""Push a branch; if others pushed first, rebase our commits onto theirs.

The rebase is made in a temporary checkout. Nothing is tried in the user's work tree, so a conflict leaves everything as
it was. The user's branch follows only after the push has succeeded (see ``branch_update``).
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import anyio

from yolo_supervisor.actions import notes
from yolo_supervisor.clock import pause_s
from yolo_supervisor.commits.backup import back_up, places
from yolo_supervisor.commits.branch_update import Blocked, BranchUpdate, RolledBack, own_folder
from yolo_supervisor.commits.fast_path import CHECKOUT, INDEX_COPY
from yolo_supervisor.commits.hidden_work import give_back
from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError
from yolo_supervisor.commits.result import CommitResult, write_to_journal
from yolo_supervisor.commits.work_copy import WorkCopy
from yolo_supervisor.formats.git_messages import TRANSIENT, Cause, Failure, classify, rejected_ref
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.git import Git, GitError

ROUNDS = 3
"""The number of attempts to push."""

DEFAULT_REBASE = ("-c", "rebase.updateRefs=false", "-c", "rebase.autoSquash=false", "-c", "rebase.autoStash=false")
"""Overrides what the user has configured for rebases by hand."""

FETCHED_REF = "refs/yolo-supervisor/fetched"
"""A ref on fetched commits that no ref of the user follows. It is deleted at once."""

NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")
"""The temporary checkout is not one of the user's: a post-checkout hook must neither see nor stop it."""


class Conflict(Exception):
    """Our commits and the upstream's change the same lines of ``files``."""

    def __init__(self, files: list[str], command: str) -> None:
        super().__init__(command)
        self.files = files
        self.command = command
        """The command with which the user rebases by hand."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The branch that ``git pull`` of the current branch takes from: its remote, and its ref there."""

    remote: str
    ref: str
    tracking: str | None
    """The ref here that follows it; None if no other than the branch does, as in a bare repository."""


async def upstream_of(git: Git, branch: str) -> Upstream | None:
    """The upstream of the branch (a full ref); None if none is configured."""
    remote = await git.or_none("config", f"branch.{_branch_name(branch)}.remote")
    ref = await git.or_none("config", f"branch.{_branch_name(branch)}.merge")
    if not remote or not ref:
        return None
    tracking = await git.or_none("rev-parse", "--symbolic-full-name", "@{upstream}")
    return Upstream(remote, ref, None if tracking == branch else tracking)  # a mirror follows into the branch itself


class Push:
    """The push of the current branch, until ``deadline``; ``result`` is filled in on the way."""

    def __init__(self, git: Git, result: CommitResult, deadline: float, has_hooks: bool) -> None:
        self._git = git
        self._result = result
        self._deadline = deadline
        self._has_hooks = has_hooks
        self._rescue: str | None = None
        """A ref on a copy of the work tree as it was before the branch is moved."""

    async def run(self) -> None:
        """Push, and update the user's branch if its commits were rebased.

        ``GitError``, ``Conflict`` if it cannot be pushed.
        """
        result, git = self._result, self._git
        result.commit = await git("rev-parse", "HEAD")
        branch = await git.or_none("symbolic-ref", "HEAD") or ""
        upstream = await upstream_of(git, branch)
        rebased: str | None = None
        for number in range(1, ROUNDS + 1):
            result.rounds = number
            try:
                target = [upstream.remote, f"{rebased}:{upstream.ref}"] if upstream and rebased else []
                await self._push(*target)
                break
            except GitError as error:
                cause = error.failure.cause
                onto = await self._to_rebase_onto(upstream, branch, error) if cause is Cause.REJECTED else None
                if cause not in TRANSIENT or number == ROUNDS:
                    raise
                await anyio.sleep(pause_s(0.2, number, 5.0, random.random()))
                if onto is not None:
                    rebased = await self._rebase(result.commit, branch, onto)
        result.result = "pushed"
        if rebased is not None:
            result.result = "rebased"
            reason = f"others had pushed first: {result.commit[:12]} became {rebased[:12]} and was pushed"
            rounds = {"rounds": result.rounds}
            write_to_journal(git.folder, notes.rebased(key=str(git.folder), reason=reason, evidence=rounds))
            before, result.commit = result.commit, rebased
            await self._update_branch(branch, before, rebased)

    async def _push(self, *target: str) -> None:
        """Push once; what a hook has hidden and not given back is put back."""
        git, was_ended = self._git, True
        copy = WorkCopy.make(str(git.folder), git.environment, self._deadline, "push") if self._has_hooks else None
        try:
            await self._limited(git, "push", "--porcelain", *target)
            was_ended = False
        except GitError as error:
            was_ended = error.failure.exit is None or error.failure.exit < 0
            raise
        finally:
            if copy is not None and not was_ended and copy.is_intact:
                copy.forget()
            elif copy is not None:
                give_back(copy, self._result, committed=False, was_ended=was_ended)

    async def _limited(self, git: Git, *arguments: str) -> str:
        """Run a command of git that the user's time limit holds for, since it waits for hooks or the network."""
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise GitError(Failure(Cause.TIMED_OUT, None, f"no time was left for git {arguments[0]}"))
        return await git(*arguments, limit_s=left_s)

    async def _to_rebase_onto(self, upstream: Upstream | None, branch: str, rejection: GitError) -> Upstream:
        """The upstream, if it is the branch that rejected the push: a rebase onto another one would not help.

        ``GitError`` if it is not.
        """
        git = self._git
        rejected = rejected_ref(rejection.failure.output)
        if upstream is not None and upstream.tracking is not None:
            if upstream.tracking == await git.or_none("rev-parse", "--symbolic-full-name", "@{push}"):
                return upstream
        elif upstream is not None and rejected in (upstream.ref, None):
            keys = (f"branch.{_branch_name(branch)}.pushRemote", "remote.pushDefault")
            pushed = [remote for key in keys if (remote := await git.or_none("config", key))]
            if pushed[:1] in ([], [upstream.remote]):
                return upstream
        if rejected is None:
            raise rejection  # another push at the same moment
        raise GitError(Failure(Cause.DIVERGED, rejection.failure.exit, rejection.failure.output)) from None

    async def _rebase(self, ours: str, branch: str, onto: Upstream) -> str:
        """Rebase our commits onto the upstream in a temporary checkout; the new tip."""
        git = self._git
        upstream = await self._fetch(onto)
        await self._refuse_unsafe(branch, ours, upstream, onto.tracking)
        if self._rescue is None:
            self._back_up()
        folder = await own_folder(git)
        tree = folder / f"{CHECKOUT}{os.getpid()}"
        worktree = (*NO_HOOKS, f"--git-dir={folder.parent}", "worktree")
        in_folder, in_tree = git.in_checkout(folder), git.in_checkout(tree)
        try:
            await self._limited(in_folder, *worktree, "add", "--quiet", "--detach", str(tree), ours)
            try:
                await self._limited(in_tree, *DEFAULT_REBASE, "rebase", "--quiet", "--rebase-merges", upstream)
            except GitError:
                unmerged = await in_tree.names("diff", "--name-only", "--diff-filter=U", "-z")
                if unmerged:
                    raise Conflict(unmerged, await self._rebase_by_hand(onto)) from None
                raise
            return await in_tree("rev-parse", "HEAD")
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(GitError):
                await in_folder(*worktree, "remove", "--force", "--force", str(tree))

    def _back_up(self) -> None:
        """Copy the work tree: the branch, and with it files, may be moved."""
        quick = QuickGit(str(self._git.folder), self._git.environment)
        copy = ""
        try:
            where = places(quick)
            make_folder(Disk(), Path(where.own_folder))
            copy = os.path.join(where.own_folder, f"{INDEX_COPY}{os.getpid()}")
            backup = back_up(quick, where, copy)
        except QuickGitError as error:
            raise GitError(classify(error.exit, error.output)) from None
        finally:
            Path(copy).unlink(missing_ok=True) if copy else None
        self._rescue = backup.ref
        if self._result.rescue is None:
            self._result.rescue, self._result.unkept = backup.ref, backup.omitted

    async def _fetch(self, upstream: Upstream) -> str:
        """Fetch the upstream's commits; its tip."""
        if upstream.tracking is not None:
            await self._limited(self._git, "fetch", upstream.remote)
            return await self._git("rev-parse", "--verify", f"{upstream.tracking}^{{commit}}")
        await self._limited(self._git, "fetch", "--refmap=", upstream.remote, f"+{upstream.ref}:{FETCHED_REF}")
        tip = await self._git("rev-parse", "--verify", f"{FETCHED_REF}^{{commit}}")
        await self._git("update-ref", "-d", FETCHED_REF)
        return tip

    async def _rebase_by_hand(self, onto: Upstream) -> str:
        """The command with which the user rebases onto the upstream."""
        if onto.tracking is None:
            return "git pull --rebase --autostash"
        return f"git rebase --autostash {shlex.quote(await self._git('rev-parse', '--abbrev-ref', onto.tracking))}"

    async def _refuse_unsafe(self, branch: str, ours: str, upstream: str, tracking: str | None) -> None:
        """``GitError`` if a rebase would undo what the user did.

        It would bring back an upstream commit that was amended or reset here, and lose what was changed by hand in a
        merge.
        """
        git = self._git
        theirs = {*(await git("rev-list", f"{ours}..{upstream}")).split()}
        previous = await self._reflog(branch)
        pushed = await self._reflog(tracking) if tracking is not None else previous
        if taken_back := next((commit for commit in previous if commit in theirs and commit in pushed), None):
            text = f"{taken_back[:12]} is upstream, and was amended or reset here"
            raise GitError(Failure(Cause.TAKEN_BACK, None, text))
        for merge in (await git("rev-list", "--merges", f"{upstream}..{ours}")).split():
            parents = (await git("rev-parse", f"{merge}^@")).split()
            repeated = await git.or_none("merge-tree", "--write-tree", *parents) if len(parents) == 2 else None
            if repeated != await git("rev-parse", f"{merge}^{{tree}}"):
                raise GitError(Failure(Cause.MERGE, None, f"the merge {merge[:12]} was made by hand"))

    async def _reflog(self, ref: str) -> list[str]:
        """The commits that the ref has been at."""
        return (await self._git.or_none("rev-list", "--walk-reflogs", ref) or "").split()

    async def _update_branch(self, branch: str, before: str, after: str) -> None:
        """Let branch and work tree follow; where that would touch a change of the user, leave both."""
        result = self._result
        update = BranchUpdate(self._git, branch, before, after, self._rescue)
        try:
            await update.apply(await own_folder(self._git))
        except Blocked as blocked:
            result.message = f"pushed as {after[:12]}; your branch stays where it was: {blocked}"
            aside = "git status    # commit or move what is in the way, then:"
            if blocked.file is not None:
                moved = shlex.quote(f"{blocked.file}.mine")
                aside = f"mv {shlex.quote(blocked.file)} {moved}    # git would overwrite it"
            result.commands += [aside, "git pull --rebase --autostash"]
        except GitError as error:
            state = "nothing was changed" if isinstance(error, RolledBack) else "the next commit here tries again"
            result.message = f"pushed as {after[:12]}; your branch could not be updated, and {state}"
            result.commands += ["git pull --rebase --autostash"]
            result.cause = error.failure.cause
        else:
            if self._rescue:
                await self._git.or_none("update-ref", "-d", self._rescue)
                result.rescue = None if result.rescue == self._rescue else result.rescue


def _branch_name(ref: str) -> str:
    return ref.removeprefix("refs/heads/")
