"""A commit or a push that has failed: why, and what can be done about it without losing anything.

Nothing is tried in the user's own work tree. Commits are put on top of the upstream's in a checkout of our own; only
when that went well, and is pushed, the branch moves on, by the one step of git's that leaves every change of the user's
alone or refuses. So on a conflict everything is as it was, since nothing was touched.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import anyio

from yolo_supervisor.actions import AlertCode, BreakLock, Escalate, Note, Rebased
from yolo_supervisor.clock import pause_s
from yolo_supervisor.commits.branch_update import DOCUMENT, InTheWay, Move, Undone
from yolo_supervisor.files import Busy, Disk, LockAges, Refused, make_folder, put_aside
from yolo_supervisor.formats.git_messages import ADVICE, TRANSIENT, Cause, Failure, failure
from yolo_supervisor.formats.yolo import PLANNING
from yolo_supervisor.kernel import kernel
from yolo_supervisor.locks import INDEX_STALE_S, git_at_work
from yolo_supervisor.store import note_down
from yolo_supervisor.system.git import NETWORK_LIMIT_S, Git, Said
from yolo_supervisor.system.git_layout import WorkTree, checkouts

OWN_FOLDER = "yolo-supervisor"
"""Where, below the repository's own folder, we keep what is ours."""

ROUNDS = 3
WAIT_S = 60.0
"""How long a lock is waited for that somebody may hold."""

PRESERVE_S = 600.0
"""How long it may take to keep a copy of a work tree."""

RESCUE = "refs/yolo-supervisor/rescue/"
QUIET = frozenset({Cause.NOTHING, Cause.NO_MESSAGE, Cause.USAGE, Cause.HOOK, Cause.NO_REPOSITORY})
"""Answers to whoever has asked; no news for anybody else."""

UNCONFIGURED = ("-c", "rebase.updateRefs=false", "-c", "rebase.autoSquash=false", "-c", "rebase.autoStash=false")
"""What the user has configured for rebases by hand."""

UNHOOKED = ("-c", f"core.hooksPath={os.devnull}")
"""For a checkout of our own, which is no checkout of the user's: a hook after it has nothing to say, or to stop."""

CODES = {Cause.LOCKED: 75, Cause.UNREACHABLE: 75, Cause.REJECTED: 75, Cause.USAGE: 2}

OF_ERRORS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), Cause.NO_ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), Cause.NO_PERMISSION),
}

MADE = {
    "committed": "the commit is made, but not pushed",
    "pushed": "nothing was committed; what was committed before is pushed",
    "rebased": "nothing was committed; what was committed before is pushed",
}

OWN_LOCKS = frozenset({"index.lock", "HEAD.lock"})
"""The locks of one work tree; all others are of the repository, which linked ones share."""


def tidy(folder: Path, environment: Mapping[str, str]) -> None:
    """See to what a run that was killed has left."""
    repository = Repository(folder, environment)
    for _ in range(ROUNDS):
        try:
            return anyio.run(repository.tidy)
        except Said as no:
            if no.failure.cause is not Cause.LOCKED or not anyio.run(repository.wait_for, no.failure):
                return
        except OSError:
            return


@dataclass
class Conflict(Exception):
    """Our commits and the upstream's do not go together."""

    files: list[str]
    upstream: str


@dataclass
class Answer:
    """What has become of it."""

    result: str = "failed"
    commit: str | None = None
    cause: Cause | None = None
    message: str = ""
    rounds: int = 1
    rescue: str | None = None
    files: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    unkept: list[str] = field(default_factory=list)
    """Files of the work tree that are not in the rescue: git could not add them."""


def main(
    folder: Path,
    as_json: bool,
    push: bool,
    again: Callable[[], tuple[int | None, str]],
    first: tuple[int | None, str],
    environment: Mapping[str, str],
    made: Callable[[int | None, str], bool],
    nothing: Callable[[], bool | None],
    nested: bool,
) -> NoReturn:
    """Go on after ``git commit`` has ended like the ``first`` time, and end the process.

    ``made`` tells whether a commit that did not end well is there all the same, ``nothing`` whether there is nothing to
    be committed, ``nested`` that a hook of a commit to this repository runs us, which waits for our end."""
    repository, answer, told = Repository(folder, environment, nothing), Answer(), Told(folder, as_json)
    try:
        _commit(repository, answer, told, again, first, push, made, nested)
        if push:
            anyio.run(repository.push, answer)
    except Said as no:
        told.fail(answer, no.failure)
    except Conflict as conflict:
        answer.files = conflict.files
        answer.commands = [
            f"cd {shlex.quote(str(folder))}",
            f"git rebase --autostash {shlex.quote(conflict.upstream)}",
            "git status    # mend the files, git add them, git rebase --continue",
            "git push",
        ]
        told.fail(answer, Failure(Cause.CONFLICT, 1, ""))
    except (OSError, Refused, Busy) as error:
        told.fail(answer, Failure(OF_ERRORS.get(getattr(error, "errno", None) or 0, Cause.UNKNOWN), None, str(error)))
    except SystemExit as end:  # a signal, while nothing was under way that must not be cut off
        told.fail(answer, Failure(Cause.INTERRUPTED, None, ""), code=end.code if isinstance(end.code, int) else 1)
    if answer.cause is not None:
        told.fail(answer, Failure(answer.cause, 1, ""))
    told.end(0, answer)


def _commit(
    repository: Repository,
    answer: Answer,
    told: Told,
    again: Callable[[], tuple[int | None, str]],
    first: tuple[int | None, str],
    push: bool,
    made: Callable[[int | None, str], bool],
    nested: bool,
) -> None:
    """Try again what may go well the next time, until the commit is there."""
    code, said = first
    while code != 0:
        found = anyio.run(repository.why, code, said)
        if made(code, said):
            answer.result = "committed"
            told.fail(answer, found, "the commit is made, but git did not end well")
        if push and found.cause is Cause.NOTHING and anyio.run(repository.ahead):
            answer.cause = found.cause  # what was committed before is pushed all the same
            return
        waits = found.cause is Cause.LOCKED and not nested and answer.rounds <= ROUNDS
        if not waits or not anyio.run(repository.wait_for, found):
            told.fail(answer, found)
        answer.rounds += 1
        code, said = again()
    answer.result = "committed"


def branch_name(ref: str) -> str:
    return ref.removeprefix("refs/heads/")


class Repository:
    """A work tree, its locks, and its upstream."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], nothing: Callable[[], bool | None] = lambda: None
    ) -> None:
        self.folder = folder
        self.git = Git(folder, environment)
        self._nothing = nothing
        """Whether there is nothing that could be committed, whatever hooks say; None if that is not known."""

    async def why(self, code: int | None, said: str) -> Failure:
        """Why ``git commit`` has failed: where a hook may have put words into its mouth, it is asked again."""
        found = failure(code, said, "commit")
        if found.cause is Cause.LOCKED and found.lock is not None:
            with contextlib.suppress(Said):
                lock = Path(found.lock)
                if not (await self.git.places()).hold(lock.parent.resolve() / lock.name):
                    return failure(code, said, "commit", frozenset({Cause.LOCKED}))
        if found.cause in (Cause.NOTHING, Cause.HOOK) and (nothing := self._nothing()) is not None:
            return Failure(Cause.NOTHING if nothing else Cause.HOOK, code, found.said)
        return found

    # -- locks ---------------------------------------------------------------------------------------------------

    async def wait_for(self, found: Failure) -> bool:
        """Wait until the lock that was in the way is gone; one that nobody holds is put aside. False if neither."""
        lock = Path(found.lock) if found.lock else None
        if lock is None:
            await anyio.sleep(pause_s(0.2, 1, 1.0, random.random()))
            return True
        ages, deadline = LockAges(), time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                status = lock.lstat()
            except OSError:
                return True
            old = ages.age_s(lock, status) >= INDEX_STALE_S
            if old and await self._ownerless(lock) and await self._put_aside(lock, ages):
                return True
            await anyio.sleep(0.05)  # also where somebody else was quicker to put it aside
        return False

    async def _ownerless(self, lock: Path) -> bool:
        """Whether it is proven that no git holds this lock of the repository's."""
        try:
            places = await self.git.places()
        except Said:
            return False
        lock = lock.parent.resolve() / lock.name
        if not places.hold(lock):
            return False
        trees = {WorkTree(places.root, places.own), *checkouts(places.common)}
        if lock.name in OWN_LOCKS:
            trees = {tree for tree in trees if tree.own == lock.parent}
        return bool(trees) and all(git_at_work(kernel(), tree, lock) is None for tree in trees)

    async def _put_aside(self, lock: Path, ages: LockAges) -> bool:
        reason = f"it was left behind: untouched for {INDEX_STALE_S:g} s, and no git is at work that could hold it"
        aside = await self._own_folder() / f"{lock.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
        try:
            put_aside(Disk(), lock, aside, INDEX_STALE_S, ages)
        except (OSError, Busy, Refused):
            return False
        told = BreakLock(key=lock.name, path=lock, stale_s=INDEX_STALE_S, reason=reason, evidence={"kept": str(aside)})
        note(self.folder, told)
        return True

    async def _own_folder(self) -> Path:
        """Where we keep things in the repository: nobody sees them there."""
        folder = Path(await self.git("rev-parse", "--path-format=absolute", "--git-common-dir"), OWN_FOLDER)
        make_folder(Disk(), folder)
        return folder

    # -- pushing -------------------------------------------------------------------------------------------------

    async def push(self, answer: Answer) -> None:
        """Push the branch; where others were quicker, put our commits on top of theirs. ``Said``, ``Conflict``."""
        answer.commit = await self.git("rev-parse", "HEAD")
        branch = await self.git.perhaps("symbolic-ref", "HEAD") or ""
        new: str | None = None
        for number in range(1, ROUNDS + 1):
            answer.rounds = number
            try:
                await self._push(branch, new)
                break
            except Said as no:
                if no.failure.cause not in TRANSIENT or number == ROUNDS:
                    raise
                if no.failure.cause is Cause.REJECTED and not await self._pushes_to_upstream():
                    raise  # ours to put on top of that would not be
                await anyio.sleep(pause_s(0.2, number, 5.0, random.random()))
                if no.failure.cause is Cause.REJECTED:
                    new = await self._on_top(answer, answer.commit, branch)
        answer.result = "pushed"
        if new is not None:
            answer.result = "rebased"
            reason = f"others had pushed before: {answer.commit[:12]} became {new[:12]} and was pushed"
            note(self.folder, Rebased(key=str(self.folder), reason=reason, evidence={"rounds": answer.rounds}))
            before, answer.commit = answer.commit, new
            await self._move_on(answer, branch, before, new)

    async def ahead(self) -> bool:
        """Whether there are commits that the upstream has not."""
        return await self.git.perhaps("rev-list", "--count", "@{upstream}..HEAD") not in (None, "0")

    async def _pushes_to_upstream(self) -> bool:
        upstream = await self.git.perhaps("rev-parse", "--symbolic-full-name", "@{upstream}")
        return upstream is not None and upstream == await self.git.perhaps(
            "rev-parse", "--symbolic-full-name", "@{push}"
        )

    async def _push(self, branch: str, commit: str | None) -> None:
        to = []
        if commit is not None:
            remote, there = await self._upstream(branch)
            to = [remote, f"{commit}:{there}"]
        await self.git("push", "--porcelain", *to, limit_s=NETWORK_LIMIT_S)

    async def _upstream(self, branch: str) -> tuple[str, str]:
        """The remote, and the name that the branch has there."""
        branch = branch_name(branch)
        remote = await self.git("config", f"branch.{branch}.remote")
        return remote, await self.git("config", f"branch.{branch}.merge")

    async def _on_top(self, answer: Answer, ours: str, branch: str) -> str:
        """Our commits on top of the upstream's, made where nobody works; the new tip."""
        await self.git("fetch", (await self._upstream(branch))[0], limit_s=NETWORK_LIMIT_S)
        tracked = f"{branch_name(branch)}@{{upstream}}"
        upstream = await self.git("rev-parse", "--verify", f"{tracked}^{{commit}}")
        await self._refuse_to_guess(branch, ours, upstream)
        answer.rescue = answer.rescue or await self._preserve(answer)
        name = await self.git("rev-parse", "--abbrev-ref", tracked)
        own = await self._own_folder()
        tree, worktree = own / f"tree-{os.getpid()}", (*UNHOOKED, f"--git-dir={own.parent}", "worktree")
        ours_only, theirs = self.git.elsewhere(own), self.git.elsewhere(tree)
        try:
            await ours_only(*worktree, "add", "--quiet", "--detach", str(tree), ours, limit_s=PRESERVE_S)
            try:
                await theirs(*UNCONFIGURED, "rebase", "--quiet", "--rebase-merges", upstream, limit_s=PRESERVE_S)
            except Said:
                unmerged = await theirs.names("diff", "--name-only", "--diff-filter=U", "-z")
                if unmerged:
                    raise Conflict(unmerged, name) from None
                raise
            return await theirs("rev-parse", "HEAD")
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(Said):
                await ours_only(*worktree, "remove", "--force", "--force", str(tree))

    async def _refuse_to_guess(self, branch: str, ours: str, upstream: str) -> None:
        """``Said`` where putting our commits on top would undo what the user has done: take back a commit that is
        upstream by now (amend, reset), or merge by hand."""
        theirs = {*(await self.git("rev-list", f"{ours}..{upstream}")).split()}
        was = await self._tips(branch)
        tracked = await self.git("rev-parse", "--symbolic-full-name", f"{branch_name(branch)}@{{upstream}}")
        pushed = await self._tips(tracked)
        if back := next((commit for commit in was if commit in theirs and commit in pushed), None):
            raise Said(Failure(Cause.TAKEN_BACK, None, f"{back[:12]} is upstream, and was taken back here"))
        for merge in (await self.git("rev-list", "--merges", f"{upstream}..{ours}")).split():
            parents = (await self.git("rev-parse", f"{merge}^@")).split()
            again = await self.git.perhaps("merge-tree", "--write-tree", *parents) if len(parents) == 2 else None
            if again != await self.git("rev-parse", f"{merge}^{{tree}}"):
                raise Said(Failure(Cause.MERGE, None, f"the merge {merge[:12]} was made by hand"))

    async def _tips(self, ref: str) -> list[str]:
        """Where the ref has been, as its reflog tells."""
        return (await self.git.perhaps("rev-list", "--walk-reflogs", ref) or "").split()

    async def _preserve(self, answer: Answer) -> str:
        """A ref on a commit that holds the work tree, untracked files and index too, as they are now."""
        own = await self.git("rev-parse", "--path-format=absolute", "--git-path", "index")
        copy = await self._own_folder() / f"index-{os.getpid()}"
        beside = self.git.having(GIT_INDEX_FILE=str(copy))
        try:
            copy.write_bytes(Path(own).read_bytes() if Path(own).exists() else b"")
            if Path(own).exists():  # by its time git knows which files it has to look at, and which not
                written_ns = Path(own).stat().st_mtime_ns
                os.utime(copy, ns=(written_ns, written_ns))
            index_tree = await self.git.perhaps("write-tree")
            answer.unkept = await self._add_all(beside)
            tree = await beside("write-tree")
        finally:
            copy.unlink(missing_ok=True)
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        head = await self.git.perhaps("rev-parse", "--verify", "HEAD")
        parents = ["-p", head] if head else []
        ours = self.git.having(
            GIT_COMMITTER_NAME="yolo-supervisor", GIT_COMMITTER_EMAIL="yolo-supervisor@localhost",
            GIT_AUTHOR_NAME="yolo-supervisor", GIT_AUTHOR_EMAIL="yolo-supervisor@localhost",
        )  # fmt: skip
        if index_tree and parents:
            parents += ["-p", await ours("commit-tree", index_tree, *parents, "-m", f"index at {when}")]
        commit = await ours("commit-tree", tree, *parents, "-m", f"work tree at {when}")
        ref = f"{RESCUE}{when}-{os.getpid()}"
        await self.git("update-ref", ref, commit)
        return ref

    async def _add_all(self, git: Git) -> list[str]:
        """Add everything to an index that is nobody's; the files that cannot be added: one of them stops git."""
        careless = ("-c", "core.safecrlf=false", "--literal-pathspecs", "add")
        with contextlib.suppress(Said):
            await git(*careless, "--all", limit_s=PRESERVE_S)
            return []
        root = Git(Path(await git("rev-parse", "--show-toplevel")), git.environment)
        unkept = []
        for name in dict.fromkeys(await root.names("ls-files", "-z", "-m", "-o", "--exclude-standard")):
            try:
                await root(*careless, "--", name)
            except Said:
                unkept.append(name)
        return unkept

    async def _move_on(self, answer: Answer, branch: str, before: str, after: str) -> None:
        """Have the branch and the work tree follow; where that would touch a change of the user's, leave both."""
        try:
            await Move(self.git, branch, before, after, answer.rescue).make(await self._own_folder())
        except InTheWay as way:
            answer.message = f"pushed as {after[:12]}; your branch stays where it was: {way}"
            aside = "git status    # commit, or move away, what is in the way, and then:"
            if way.file is not None:
                aside = f"mv {shlex.quote(way.file)} {shlex.quote(f'{way.file}.mine')}    # git would replace it"
            answer.commands = [aside, "git pull --rebase --autostash"]
        except Said as no:
            undone = "and all is as it was" if isinstance(no, Undone) else "and the next commit here tries it again"
            answer.message = f"pushed as {after[:12]}; your branch could not follow, {undone}"
            answer.commands = ["git pull --rebase --autostash"]
            answer.cause = no.failure.cause
        else:
            if answer.rescue:
                await self.git.perhaps("update-ref", "-d", answer.rescue)
                answer.rescue = None

    # -- after a crash -------------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Finish, or clear away, what a run that was killed has left. Our turn proves that it runs no more."""
        own = await self._own_folder()
        for document in own.glob(f"{DOCUMENT}*.json"):
            if (move := Move.taken_up(self.git, document)) is None:
                document.unlink(missing_ok=True)
            elif not await move.go_on(document):
                why = f"a move of {move.branch} to {move.after[:12]} was cut off, and its files have been changed since"
                what = f"{why}: see git status in {move.git.folder}"
                code = AlertCode.BRANCH_UPDATE_CUT_OFF
                note(move.git.folder, Escalate(kind="commit", code=code, key=str(move.git.folder), reason=what))
                sys.stderr.write(f"yolo-supervisor: {what}\n")
        for tree in own.glob("tree-*"):
            await self.git.perhaps("worktree", "remove", "--force", "--force", str(tree))  # one that is locked, too
            shutil.rmtree(tree, ignore_errors=True)
        for copy in own.glob("index-*"):
            copy.unlink(missing_ok=True)
        await self.git.perhaps("worktree", "prune")


# -- telling -----------------------------------------------------------------------------------------------------------


def note(folder: Path, action: Note | BreakLock) -> None:
    """Write into the journal of the project, if it is one."""
    project = next((each for each in (folder, *folder.parents) if (each / PLANNING).is_dir()), None)
    if project is None:
        return
    try:
        note_down(project, action, "commit")
    except (OSError, Busy, Refused) as error:
        sys.stderr.write(f"yolo-supervisor: the journal cannot be written: {error}\n")


class Told:
    """How the caller is told: a document, or sentences."""

    def __init__(self, folder: Path, as_json: bool) -> None:
        self._folder = folder
        self._as_json = as_json

    def fail(self, answer: Answer, found: Failure, made: str = "", code: int | None = None) -> NoReturn:
        """Say why it has failed, here and, where that is news, in the journal, and end the process."""
        answer.cause = found.cause
        made = made or answer.message or MADE.get(answer.result, "nothing was committed")
        where = f" ({', '.join(answer.files)})" if answer.files else ""
        answer.message = f"{made}: {found.cause}{where}: {ADVICE[found.cause]}"
        if answer.rescue:
            but = f", but for {', '.join(map(shlex.quote, answer.unkept))}" if answer.unkept else ""
            kept = f"# your work tree as it was{but}, should you need it"
            answer.commands.append(f"git stash apply {answer.rescue}    {kept}")
        if found.cause not in QUIET:
            evidence = {
                "cause": str(found.cause), "said": found.said.strip().splitlines()[-10:], "files": answer.files,
                "rescue": answer.rescue, "commands": answer.commands, "rounds": answer.rounds,
            }  # fmt: skip
            told = Escalate(
                kind="commit", code=AlertCode.COMMIT_FAILED, key=str(self._folder), reason=answer.message,
                evidence=evidence,
            )  # fmt: skip
            note(self._folder, told)
        if answer.result == "committed" and found.said and not self._as_json:
            sys.stderr.write(found.said.rstrip() + "\n")
        self.end(CODES.get(found.cause, 1) if code is None else code, answer)

    def end(self, code: int, answer: Answer) -> NoReturn:
        if self._as_json:
            print(json.dumps({each: getattr(answer, each) for each in answer.__dataclass_fields__}))
        elif answer.message:
            lines = [answer.message, *(f"  {each}" for each in answer.commands)]
            sys.stderr.write("".join(f"yolo-supervisor: {line}\n" for line in lines))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
