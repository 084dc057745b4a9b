"""A commit or a push that has failed: why, and what can be done about it without losing anything.

Nothing is tried in the user's own work tree. Commits are put on top of the upstream's in a checkout of our own; only
when that went well, and is pushed, the branch moves on, by the one step of git's that leaves every change of the user's
alone or refuses. So on a conflict everything is as it was, since nothing was touched.
"""

from __future__ import annotations

import contextlib
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

from yolo_supervisor import commands
from yolo_supervisor.actions import BreakLock, Escalate, Note, Rebased
from yolo_supervisor.files import Busy, Disk, LockAges, Refused, make_folder, put_aside, replace
from yolo_supervisor.formats import load_object
from yolo_supervisor.formats.git import ADVICE, TRANSIENT, Cause, Failure, failure
from yolo_supervisor.formats.yolo import PLANNING
from yolo_supervisor.kernel import kernel
from yolo_supervisor.locks import INDEX_STALE_S, git_at_work
from yolo_supervisor.repository import work_trees
from yolo_supervisor.retry import pause_s
from yolo_supervisor.store import note_down

OWN_FOLDER = "yolo-supervisor"
"""Where, below the repository's own folder, we keep what is ours."""

ROUNDS = 3
LIMIT_S, NETWORK_LIMIT_S = 60.0, 120.0
WAIT_S = 60.0
"""How long a lock is waited for that somebody may hold."""

MOVE = "move-"
"""A document that says where a branch is being moved."""

RESCUE = "refs/yolo-supervisor/rescue/"
QUIET = frozenset({Cause.NOTHING, Cause.NO_MESSAGE, Cause.USAGE, Cause.HOOK, Cause.NO_REPOSITORY})
"""Answers to whoever has asked; no news for anybody else."""

ELSEWHERE = ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
"""By these git is told which work tree is the user's; a checkout of our own must not hear of them."""

UNCONFIGURED = ("-c", "rebase.updateRefs=false", "-c", "rebase.autoSquash=false", "-c", "rebase.autoStash=false")
"""What the user has configured for rebases by hand."""

CODES = {Cause.LOCKED: 75, Cause.UNREACHABLE: 75, Cause.REJECTED: 75, Cause.USAGE: 2}


def tidy(folder: Path, environment: Mapping[str, str]) -> None:
    """See to what a run that was killed has left."""
    repository = Repository(folder, environment)
    for _ in range(ROUNDS):
        try:
            return anyio.run(repository.tidy)
        except Said as no:
            if no.failure.cause is not Cause.LOCKED or not repository.wait_for(no.failure):
                return
        except OSError:
            return


class Said(Exception):
    """Git has said no."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.said)
        self.failure = failure


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


def main(
    folder: Path,
    as_json: bool,
    push: bool,
    again: Callable[[], tuple[int | None, str]],
    first: tuple[int | None, str],
    environment: Mapping[str, str],
    made: Callable[[], bool],
    nested: bool,
) -> NoReturn:
    """Go on after ``git commit`` has ended like the ``first`` time, and end the process.

    ``made`` tells whether the commit is there all the same; ``nested`` that a hook of a commit to this repository runs
    us, which will not go on before we end."""
    repository, answer, told = Repository(folder, environment), Answer(), Told(folder, as_json)
    code, said = first
    while code != 0:
        found = failure(code, said, "commit")
        if made():
            answer.result = "committed"
            told.fail(answer, found, "the commit is made, but git did not end well")
        if push and found.cause is Cause.NOTHING and anyio.run(repository.ahead):
            break  # it was committed before, and we were ended
        if found.cause is not Cause.LOCKED or nested or answer.rounds > ROUNDS or not repository.wait_for(found):
            told.fail(answer, found)
        answer.rounds += 1
        code, said = again()
    answer.result = "committed"
    if not push:
        told.end(0, answer)
    try:
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
    told.end(0, answer)


class Repository:
    """A work tree, and what is asked of git there: under limits, never interactive."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = dict(environment)

    # -- locks ---------------------------------------------------------------------------------------------------

    def wait_for(self, found: Failure) -> bool:
        """Wait until the lock that was in the way is gone; one that nobody holds is put aside. False if neither."""
        lock = Path(found.lock) if found.lock else None
        if lock is None:
            time.sleep(pause_s(0.2, 1, 1.0, random.random()))
            return True
        ages, deadline = LockAges(), time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                status = lock.lstat()
            except OSError:
                return True
            if ages.age_s(lock, status) >= INDEX_STALE_S and self._ownerless(lock) and self._put_aside(lock, ages):
                return True
            time.sleep(0.05)  # also where somebody else was quicker to put it aside
        return False

    def _ownerless(self, lock: Path) -> bool:
        trees = [*work_trees(self.folder)]
        own = [tree for tree in trees if lock == tree.index_lock or lock == tree.own / "HEAD.lock"] or trees
        return bool(own) and all(git_at_work(kernel(), tree, lock) is None for tree in own)

    def _put_aside(self, lock: Path, ages: LockAges) -> bool:
        reason = f"it was left behind: untouched for {INDEX_STALE_S:g} s, and no git is at work that could hold it"
        aside = anyio.run(self._own_folder) / f"{lock.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}"
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

    # -- git -----------------------------------------------------------------------------------------------------

    async def git(self, *words: str) -> str:
        """What git answers. ``Said`` if it says no."""
        return await self._git(words)

    async def _git(
        self,
        words: tuple[str, ...],
        limit_s: float = LIMIT_S,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        answer = await self._bytes(words, limit_s, folder, environment)
        return answer.decode(errors="surrogateescape").strip("\n")

    async def _bytes(
        self,
        words: tuple[str, ...],
        limit_s: float = LIMIT_S,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bytes:
        around = {key: each for key, each in self._environment.items() if folder is None or key not in ELSEWHERE}
        result = await commands.run(
            ["git", *words], limit_s, {**around, "GIT_OPTIONAL_LOCKS": "0", **(environment or {})},
            folder or self.folder, commands.GRACE_S,
        )  # fmt: skip
        if result.exit != 0:
            said = (result.stderr + result.stdout).decode(errors="replace")
            raise Said(failure(result.exit, said, "push" if words[0] == "push" else ""))
        return result.stdout

    async def _answers(self, *words: str) -> str | None:
        try:
            return await self.git(*words)
        except Said:
            return None

    # -- pushing -------------------------------------------------------------------------------------------------

    async def push(self, answer: Answer) -> None:
        """Push the branch; where others were quicker, put our commits on top of theirs. ``Said``, ``Conflict``."""
        answer.commit = await self.git("rev-parse", "HEAD")
        branch = await self._answers("symbolic-ref", "HEAD") or ""
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
            await self._move_on(answer, branch, answer.commit, new)
            answer.commit = new

    async def ahead(self) -> bool:
        """Whether there are commits that the upstream has not."""
        return await self._answers("rev-list", "--count", "@{upstream}..HEAD") not in (None, "0")

    async def _pushes_to_upstream(self) -> bool:
        upstream = await self._answers("rev-parse", "--symbolic-full-name", "@{upstream}")
        return upstream == await self._answers("rev-parse", "--symbolic-full-name", "@{push}")

    async def _push(self, branch: str, commit: str | None) -> None:
        if commit is None:
            await self._git(("push",), NETWORK_LIMIT_S)
            return
        remote, there = await self._upstream(branch)
        await self._git(("push", remote, f"{commit}:{there}"), NETWORK_LIMIT_S)

    async def _upstream(self, branch: str) -> tuple[str, str]:
        """The remote, and the name that the branch has there."""
        branch = branch.removeprefix("refs/heads/")
        remote = await self.git("config", f"branch.{branch}.remote")
        return remote, await self.git("config", f"branch.{branch}.merge")

    async def _on_top(self, answer: Answer, ours: str, branch: str) -> str:
        """Our commits on top of the upstream's, made where nobody works; the new tip."""
        answer.rescue = answer.rescue or await self._preserve()
        await self._git(("fetch", (await self._upstream(branch))[0]), NETWORK_LIMIT_S)
        tracked = f"{branch.removeprefix('refs/heads/')}@{{upstream}}"
        upstream = await self.git("rev-parse", "--verify", f"{tracked}^{{commit}}")
        name = await self.git("rev-parse", "--abbrev-ref", tracked)
        own = await self._own_folder()
        tree, worktree = own / f"tree-{os.getpid()}", (f"--git-dir={own.parent}", "worktree")
        await self._git((*worktree, "add", "--quiet", "--detach", str(tree), ours), folder=own)
        try:
            try:
                await self._git((*UNCONFIGURED, "rebase", "--quiet", "--rebase-merges", upstream), folder=tree)
            except Said:
                unmerged = await self._git(("diff", "--name-only", "--diff-filter=U", "-z"), folder=tree)
                if unmerged:
                    raise Conflict([each for each in unmerged.split("\0") if each], name) from None
                raise
            return await self._git(("rev-parse", "HEAD"), folder=tree)
        finally:
            with anyio.CancelScope(shield=True), contextlib.suppress(Said):
                await self._git((*worktree, "remove", "--force", str(tree)), folder=own)

    async def _preserve(self) -> str:
        """A ref on a commit that holds the work tree, untracked files and index too, as they are now."""
        own = await self.git("rev-parse", "--path-format=absolute", "--git-path", "index")
        copy = await self._own_folder() / f"index-{os.getpid()}"
        try:
            copy.write_bytes(Path(own).read_bytes() if Path(own).exists() else b"")
            index_tree = await self._answers("write-tree")
            with contextlib.suppress(Said):  # what cannot be added, a repository without a commit say, nobody touches
                await self._git(("add", "--all", "--ignore-errors"), environment={"GIT_INDEX_FILE": str(copy)})
            tree = await self._git(("write-tree",), environment={"GIT_INDEX_FILE": str(copy)})
        finally:
            copy.unlink(missing_ok=True)
        when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        head = await self._answers("rev-parse", "--verify", "HEAD")
        parents = ["-p", head] if head else []
        plain = {"GIT_COMMITTER_NAME": "yolo-supervisor", "GIT_COMMITTER_EMAIL": "yolo-supervisor@localhost",
                 "GIT_AUTHOR_NAME": "yolo-supervisor", "GIT_AUTHOR_EMAIL": "yolo-supervisor@localhost"}  # fmt: skip
        if index_tree and parents:
            staged = await self._git(("commit-tree", index_tree, *parents, "-m", f"index at {when}"), environment=plain)
            parents += ["-p", staged]
        commit = await self._git(("commit-tree", tree, *parents, "-m", f"work tree at {when}"), environment=plain)
        ref = f"{RESCUE}{when}-{os.getpid()}"
        await self.git("update-ref", ref, commit)
        return ref

    async def _move_on(self, answer: Answer, branch: str, before: str, after: str) -> None:
        """Have the branch and the work tree follow; where that would touch a change of the user's, leave both."""
        move = await self._own_folder() / f"{MOVE}{os.getpid()}.json"
        told = {"folder": str(self.folder), "branch": branch, "before": before, "after": after, "rescue": answer.rescue}
        try:
            await self._refuse_to_touch(before, after)
            replace(Disk(), move, json.dumps(told).encode())  # should we be killed in the middle of it
            await self._step(branch, before, after)
        except Said as no:
            move.unlink(missing_ok=True)
            answer.message = (
                f"pushed as {after[:12]}; your branch stays where it was, since its next files have changes that are "
                f"not committed ({no.failure.said.splitlines()[0] if no.failure.said else 'git says no more'})"
            )
            answer.commands = ["git stash && git pull --rebase && git stash pop"]
            return
        move.unlink(missing_ok=True)
        if answer.rescue:
            await self._answers("update-ref", "-d", answer.rescue)
            answer.rescue = None

    async def _refuse_to_touch(self, before: str, after: str, killed: bool = False) -> None:
        """``Said`` where git would replace what it has not in its index, ignored files say, or bring back what the user
        has deleted. After a move that was ``killed`` a file may be missing that we took away."""
        root = Path(await self.git("rev-parse", "--show-toplevel"))
        tracked = {*(await self.git("-C", str(root), "ls-files", "-z")).split("\0")}
        raw = (await self.git("diff-tree", "-r", "-z", "--name-status", "--no-renames", before, after)).split("\0")
        for change, name in zip(raw[::2], raw[1::2], strict=False):
            if change == "A":
                ways = [each for each in (name, *map(str, Path(name).parents)) if each != "." and each not in tracked]
                strange = [each for each in ways if _has_strange(root, each, name, tracked)]
            else:
                strange = [name] if change == "M" and not killed and not os.path.lexists(root / name) else []
            if strange and (change == "A" or name in tracked):
                raise Said(Failure(Cause.UNKNOWN, None, f"{strange[0]} is in the way"))

    async def _stands(self, branch: str, before: str) -> bool:
        """Whether the user is still where we started from."""
        return [branch, before] == [
            await self._answers("symbolic-ref", "HEAD"),
            await self._answers("rev-parse", branch),
        ]

    async def _step(self, branch: str, before: str, after: str) -> None:
        if not await self._stands(branch, before):
            raise Said(Failure(Cause.UNKNOWN, None, "the branch has moved meanwhile"))
        await self.git("read-tree", "-m", "-u", before, after)
        try:
            await self.git("update-ref", "-m", "yolo-supervisor: on top of what others pushed", branch, after, before)
        except Said:
            await self._answers("read-tree", "-m", "-u", after, before)
            raise

    # -- after a crash -------------------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Finish, or clear away, what a run that was killed has left. Our turn proves that it runs no more."""
        own = await self._own_folder()
        for move in own.glob(f"{MOVE}*.json"):
            raw = load_object(move.read_bytes()) or {}
            try:
                there = Repository(Path(raw["folder"]), self._environment)
                if await there._stands(raw["branch"], raw["before"]):
                    await there._take_up(raw["before"], raw["after"], raw["rescue"])
                    await there._refuse_to_touch(raw["before"], raw["after"], killed=True)
                    await there._step(raw["branch"], raw["before"], raw["after"])
            except (KeyError, TypeError, OSError):
                pass  # no such work tree any more
            except Said as no:
                if no.failure.cause is Cause.LOCKED:
                    raise
            move.unlink(missing_ok=True)
        for tree in own.glob("tree-*"):
            await self._answers("worktree", "remove", "--force", str(tree))
            shutil.rmtree(tree, ignore_errors=True)
        for copy in own.glob("index-*"):
            copy.unlink(missing_ok=True)
        await self._answers("worktree", "prune")

    async def _take_up(self, before: str, after: str, rescue: str) -> None:
        """Have the index know of the files that are already as they shall be, and finish those that were being written:
        their user had not changed them when we began. All others stay as they are."""
        self.folder = Path(await self.git("rev-parse", "--show-toplevel"))
        changed = await self.git("diff-tree", "-r", "-z", "--name-only", "--no-renames", before, after)
        for name in filter(None, changed.split("\0")):
            path = self.folder / name
            if not await self._has(after, name):
                if not os.path.lexists(path):
                    await self._answers("--literal-pathspecs", "rm", "--cached", "--quiet", "--", name)
                continue
            with contextlib.suppress(Said, OSError):
                wanted = await self._bytes(("cat-file", "--filters", f"{after}:{name}"))
                there = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
                untouched = await self._has(rescue, name) == await self._has(before, name)
                if there == wanted or (untouched and wanted.startswith(there)):
                    await self.git("--literal-pathspecs", "checkout", after, "--", name)

    async def _has(self, commit: str, name: str) -> str | None:
        return await self._answers("rev-parse", "--verify", "--quiet", f"{commit}:{name}")


def _has_strange(root: Path, way: str, name: str, tracked: set[str]) -> bool:
    """Whether on the way to a new file there is something that git does not know."""
    path = root / way
    if path.is_dir() and not path.is_symlink():
        if way != name:
            return False
        found = (os.path.relpath(os.path.join(at, each), root) for at, _, files in os.walk(path) for each in files)
        return any(each not in tracked for each in found)
    return os.path.lexists(path)


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

    def fail(self, answer: Answer, found: Failure, made: str = "") -> NoReturn:
        """Say why it has failed, here and, where that is news, in the journal, and end the process."""
        answer.cause = found.cause
        made = made or (
            "the commit is made, but not pushed" if answer.result == "committed" else "nothing was committed"
        )
        where = f" ({', '.join(answer.files)})" if answer.files else ""
        answer.message = f"{made}: {found.cause}{where}: {ADVICE[found.cause]}"
        if answer.rescue:
            answer.commands.append(f"git stash apply {answer.rescue}    # your work tree as it was, should you need it")
        if found.cause not in QUIET:
            evidence = {
                "cause": str(found.cause), "said": found.said.strip().splitlines()[-10:], "files": answer.files,
                "rescue": answer.rescue, "commands": answer.commands, "rounds": answer.rounds,
            }  # fmt: skip
            told = Escalate(kind="commit", key=str(self._folder), reason=answer.message, evidence=evidence)
            note(self._folder, told)
        if answer.result == "committed" and found.said and not self._as_json:
            sys.stderr.write(found.said.rstrip() + "\n")
        self.end(CODES.get(found.cause, 1), answer)

    def end(self, code: int, answer: Answer) -> NoReturn:
        if self._as_json:
            print(json.dumps({each: getattr(answer, each) for each in answer.__dataclass_fields__}))
        elif answer.message:
            lines = [answer.message, *(f"  {each}" for each in answer.commands)]
            sys.stderr.write("".join(f"yolo-supervisor: {line}\n" for line in lines))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
