"""Push a branch; if others pushed first, rebase our commits onto theirs.

The rebase is made in a temporary checkout. Nothing is tried in the user's work tree, so a conflict leaves everything as
it was. The user's branch follows only after the push has succeeded (see ``branch_update``).
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex

import anyio

from yolo_supervisor.actions import notes
from yolo_supervisor.clock import pause_s
from yolo_supervisor.commits.backup import LIMIT_S, back_up, own_folder
from yolo_supervisor.commits.branch_update import Blocked, BranchUpdate, RolledBack
from yolo_supervisor.commits.fast_path import CHECKOUT
from yolo_supervisor.commits.result import CommitResult, write_to_journal
from yolo_supervisor.formats.git_messages import TRANSIENT, Cause, Failure
from yolo_supervisor.system.git import NETWORK_LIMIT_S, Git, GitError

ROUNDS = 3
"""How often a push is tried."""

DEFAULT_REBASE = ("-c", "rebase.updateRefs=false", "-c", "rebase.autoSquash=false", "-c", "rebase.autoStash=false")
"""Overrides what the user has configured for rebases by hand."""

NO_HOOKS = ("-c", f"core.hooksPath={os.devnull}")
"""The temporary checkout is not one of the user's: a post-checkout hook must neither see nor stop it."""


class Conflict(Exception):
    """Our commits and the upstream's change the same lines of ``files``."""

    def __init__(self, files: list[str], upstream: str) -> None:
        super().__init__(upstream)
        self.files = files
        self.upstream = upstream


class Push:
    """The push of the current branch; ``result`` is filled in on the way."""

    def __init__(self, git: Git, result: CommitResult) -> None:
        self._git = git
        self._result = result

    async def run(self) -> None:
        """Push, and update the user's branch if its commits were rebased.

        ``GitError``, ``Conflict`` if it cannot be pushed.
        """
        result, git = self._result, self._git
        result.commit = await git("rev-parse", "HEAD")
        branch = await git.or_none("symbolic-ref", "HEAD") or ""
        rebased: str | None = None
        for number in range(1, ROUNDS + 1):
            result.rounds = number
            try:
                await self._push(branch, rebased)
                break
            except GitError as error:
                cause = error.failure.cause
                if cause not in TRANSIENT or number == ROUNDS:
                    raise
                if cause is Cause.REJECTED and not await self._pushes_to_upstream():
                    raise  # the commits would be rebased onto another branch than the one that rejected them
                await anyio.sleep(pause_s(0.2, number, 5.0, random.random()))
                if cause is Cause.REJECTED:
                    rebased = await self._rebase(result.commit, branch)
        result.result = "pushed"
        if rebased is not None:
            result.result = "rebased"
            reason = f"others had pushed first: {result.commit[:12]} became {rebased[:12]} and was pushed"
            rounds = {"rounds": result.rounds}
            write_to_journal(git.folder, notes.rebased(key=str(git.folder), reason=reason, evidence=rounds))
            before, result.commit = result.commit, rebased
            await self._update_branch(branch, before, rebased)

    async def _push(self, branch: str, commit: str | None) -> None:
        target = []
        if commit is not None:
            remote, there = await self._upstream(branch)
            target = [remote, f"{commit}:{there}"]
        await self._git("push", "--porcelain", *target, limit_s=NETWORK_LIMIT_S)

    async def _pushes_to_upstream(self) -> bool:
        git = self._git
        upstream = await git.or_none("rev-parse", "--symbolic-full-name", "@{upstream}")
        return upstream is not None and upstream == await git.or_none("rev-parse", "--symbolic-full-name", "@{push}")

    async def _upstream(self, branch: str) -> tuple[str, str]:
        """The remote, and the ref of the branch there."""
        name = _branch_name(branch)
        return await self._git("config", f"branch.{name}.remote"), await self._git("config", f"branch.{name}.merge")

    async def _rebase(self, ours: str, branch: str) -> str:
        """Rebase our commits onto the upstream in a temporary checkout; the new tip."""
        git = self._git
        await git("fetch", (await self._upstream(branch))[0], limit_s=NETWORK_LIMIT_S)
        tracked = f"{_branch_name(branch)}@{{upstream}}"
        upstream = await git("rev-parse", "--verify", f"{tracked}^{{commit}}")
        await self._refuse_unsafe(branch, ours, upstream)
        if not self._result.rescue:
            self._result.rescue, self._result.unkept = await back_up(git)
        name = await git("rev-parse", "--abbrev-ref", tracked)
        folder = await own_folder(git)
        tree = folder / f"{CHECKOUT}{os.getpid()}"
        worktree = (*NO_HOOKS, f"--git-dir={folder.parent}", "worktree")
        in_folder, in_tree = git.in_checkout(folder), git.in_checkout(tree)
        try:
            await in_folder(*worktree, "add", "--quiet", "--detach", str(tree), ours, limit_s=LIMIT_S)
            try:
                await in_tree(*DEFAULT_REBASE, "rebase", "--quiet", "--rebase-merges", upstream, limit_s=LIMIT_S)
            except GitError:
                unmerged = await in_tree.names("diff", "--name-only", "--diff-filter=U", "-z")
                if unmerged:
                    raise Conflict(unmerged, name) from None
                raise
            return await in_tree("rev-parse", "HEAD")
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(GitError):
                await in_folder(*worktree, "remove", "--force", "--force", str(tree))

    async def _refuse_unsafe(self, branch: str, ours: str, upstream: str) -> None:
        """``GitError`` if a rebase would undo what the user did.

        It would bring back an upstream commit that was amended or reset here, and lose what was changed by hand in a
        merge.
        """
        git = self._git
        theirs = {*(await git("rev-list", f"{ours}..{upstream}")).split()}
        previous = await self._reflog(branch)
        tracked = await git("rev-parse", "--symbolic-full-name", f"{_branch_name(branch)}@{{upstream}}")
        pushed = await self._reflog(tracked)
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
        update = BranchUpdate(self._git, branch, before, after, result.rescue)
        try:
            await update.apply(await own_folder(self._git))
        except Blocked as blocked:
            result.message = f"pushed as {after[:12]}; your branch stays where it was: {blocked}"
            aside = "git status    # commit or move what is in the way, then:"
            if blocked.file is not None:
                moved = shlex.quote(f"{blocked.file}.mine")
                aside = f"mv {shlex.quote(blocked.file)} {moved}    # git would overwrite it"
            result.commands = [aside, "git pull --rebase --autostash"]
        except GitError as error:
            state = "nothing was changed" if isinstance(error, RolledBack) else "the next commit here tries again"
            result.message = f"pushed as {after[:12]}; your branch could not be updated, and {state}"
            result.commands = ["git pull --rebase --autostash"]
            result.cause = error.failure.cause
        else:
            if result.rescue:
                await self._git.or_none("update-ref", "-d", result.rescue)
                result.rescue = None


def _branch_name(ref: str) -> str:
    return ref.removeprefix("refs/heads/")
