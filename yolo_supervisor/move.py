"""A branch moves on to commits that are upstream already, and the work tree with it: every change of the user's stays
as it is, or nothing moves. Cut off in the middle it is finished, or undone, by whoever comes next."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio

from yolo_supervisor.commands import undisturbed
from yolo_supervisor.files import Disk, replace
from yolo_supervisor.formats import load_object
from yolo_supervisor.formats.git import Cause
from yolo_supervisor.git import LIMIT_S, Git, Said

DOCUMENT = "move-"
"""How the document's name begins that says where a branch is being moved."""

WAIT_S = 60.0
"""How long a lock is waited for that another git holds meanwhile."""

AT_ONCE = 500
"""How many files git is told of in one command line."""


class InTheWay(Exception):
    """What the user has done meanwhile stands against the move; nothing was moved. Its text says what."""


class Move:
    """The way of ``branch`` from one commit to another. ``rescue`` is a ref on the work tree as it was before."""

    def __init__(self, git: Git, branch: str, before: str, after: str, rescue: str | None) -> None:
        self.git = git
        self.branch = branch
        self.before = before
        self.after = after
        self.rescue = rescue

    @classmethod
    def taken_up(cls, git: Git, document: Path) -> Move | None:
        """The move that a killed run had begun; None if that cannot be told."""
        raw = load_object(document.read_bytes()) or {}
        told = [raw.get(key) for key in ("folder", "branch", "before", "after", "rescue")]
        if not all(isinstance(each, str) for each in told[:4]) or not Path(str(told[0])).is_dir():
            return None
        folder, branch, before, after = map(str, told[:4])
        return cls(Git(Path(folder), git.environment), branch, before, after, str(told[4]) if told[4] else None)

    async def make(self, folder: Path) -> None:
        """Move. ``InTheWay`` if that would touch a change of the user's; ``Undone`` if git could not, and all is as it
        was; ``Said`` if something could not be undone: the document in ``folder`` stays, for whoever comes next."""
        await self._refuse_to_touch()
        if not await self.stands():
            raise InTheWay("the branch has moved meanwhile")
        try:
            await self.git("read-tree", "--dry-run", "-m", "-u", self.before, self.after)
        except Said as no:
            if no.failure.cause is not Cause.LOCKED:
                raise InTheWay(no.failure.said.partition("\n")[0].removeprefix("error: ")) from None
        document = folder / f"{DOCUMENT}{os.getpid()}.json"
        told = {"folder": str(self.git.folder), "branch": self.branch, "before": self.before, "after": self.after}
        replace(Disk(), document, json.dumps({**told, "rescue": self.rescue}).encode())
        try:
            await self._step(WAIT_S)
        except InTheWay:
            document.unlink(missing_ok=True)
            raise
        except Said as no:
            if not await self.undo(document.stat().st_mtime):
                raise
            document.unlink(missing_ok=True)
            raise Undone(no.failure) from None
        document.unlink(missing_ok=True)

    async def go_on(self, document: Path) -> None:
        """Finish what a killed run had begun, or undo it where the user has gone on meanwhile. ``Said`` if another git
        is at work there: then it is for the next time."""
        since_s = document.stat().st_mtime
        if await self.stands():
            index = Path(await self.git("rev-parse", "--path-format=absolute", "--git-path", "index"))
            kept = index.read_bytes() if index.exists() else None
            try:
                await self._take_up(since_s)
                await self._refuse_to_touch(killed=True)
                await self._step(0.0)  # another git is waited for by whoever calls: its lock may be nobody's
            except (Said, InTheWay) as no:
                if isinstance(no, Said) and no.failure.cause is Cause.LOCKED:
                    raise
                if kept is not None:
                    _put_back(index, kept)
                await self.undo(since_s)
        document.unlink(missing_ok=True)

    async def stands(self) -> bool:
        """Whether the user is still where we started from."""
        there = [await self.git.perhaps("symbolic-ref", "HEAD"), await self.git.perhaps("rev-parse", self.branch)]
        return there == [self.branch, self.before]

    # -- before --------------------------------------------------------------------------------------------------

    async def _changes(self) -> list[tuple[str, str]]:
        """What is done to which file: ``A`` added, ``M`` changed, ``T`` become something else, ``D`` deleted."""
        raw = await self.git.names("diff-tree", "-r", "-z", "--name-status", "--no-renames", self.before, self.after)
        return list(zip(raw[::2], raw[1::2], strict=True))

    async def _root(self) -> Path:
        return Path(await self.git("rev-parse", "--show-toplevel"))

    async def _refuse_to_touch(self, killed: bool = False) -> None:
        """``InTheWay`` where git would replace what it has not in its index, ignored files say, or bring back what the
        user has deleted or put something else in the place of. After a move that was ``killed`` a file may be missing
        that we took away."""
        root = await self._root()
        listed = [each.partition(" ") for each in await Git(root, self.git.environment).names("ls-files", "-t", "-z")]
        tracked = {name for _, _, name in listed}
        sparse = {name for tag, _, name in listed if tag.upper() == "S"}
        for change, name in await self._changes():
            if change == "A":
                ways = [each for each in (name, *map(str, Path(name).parents)) if each != "." and each not in tracked]
                if any(_has_strange(root, each, name, tracked) for each in ways):
                    raise InTheWay(f"{name} is in the way")
            elif name in tracked and name not in sparse:
                gone = change != "D" and not killed and not os.path.lexists(root / name)
                if gone or any((root / each).is_symlink() for each in Path(name).parents):
                    raise InTheWay(f"{name} is in the way")

    # -- the step ------------------------------------------------------------------------------------------------

    async def _step(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            if not await self.stands():
                raise InTheWay("the branch has moved meanwhile")
            try:
                with undisturbed():  # half a step is what nobody wants
                    await self._step_now()
                return
            except Said as no:
                if no.failure.cause is not Cause.LOCKED or time.monotonic() >= deadline:
                    raise
                await anyio.sleep(0.1)

    async def _step_now(self) -> None:
        await self.git("read-tree", "-m", "-u", self.before, self.after, limit_s=10 * LIMIT_S)
        message = "yolo-supervisor: on top of what others pushed"
        try:
            await self.git("update-ref", "-m", message, self.branch, self.after, self.before)
        except Said:
            await self.git.perhaps("read-tree", "-m", "-u", self.after, self.before)
            raise

    # -- after a step that was cut off -----------------------------------------------------------------------------

    async def undo(self, since_s: float) -> bool:
        """Put the files back that a step which was cut off has changed already; whether all are as they were.

        Only those are ours to put back which hold what the step has written, or the beginning of it, and which their
        user had not changed before.
        """
        root = await self._root()
        git = Git(root, self.git.environment)
        back = []
        changes = await self._changes()
        for change, name in changes:
            path = root / name
            if change == "A":
                if os.path.lexists(path) and await self._ours(path, name, since_s):
                    path.unlink()
                    _remove_empty(path.parent, root)
            elif await self._untouched(name) and (
                not os.path.lexists(path) or (change != "D" and await self._ours(path, name, since_s))
            ):
                back.append(name)
        for names in _portions(back):
            with contextlib.suppress(Said):
                await git("--literal-pathspecs", "checkout-index", "--force", "--index", "--", *names)
        await git.perhaps("update-index", "-q", "--refresh")
        changed = {*await git.names("diff-files", "--name-only", "-z")} & {name for _, name in changes}
        return not changed and not any(c == "A" and os.path.lexists(root / name) for c, name in changes)

    async def _take_up(self, since_s: float) -> None:
        """Have the index know of the files that are already as they shall be, and finish those that were being written:
        their user had not changed them when we began. All others stay as they are."""
        root = await self._root()
        git = Git(root, self.git.environment)
        for change, name in await self._changes():
            path = root / name
            with contextlib.suppress(Said, OSError):
                if change == "D":
                    if not os.path.lexists(path):
                        await git("--literal-pathspecs", "rm", "--cached", "--quiet", "--", name)
                elif os.path.lexists(path) and await self._ours(path, name, since_s):
                    await git("--literal-pathspecs", "checkout", self.after, "--", name)

    async def _ours(self, path: Path, name: str, since_s: float) -> bool:
        """Whether the file is as the step writes it: wholly, or as far as it had come when it was cut off."""
        try:
            there = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
            wanted = await self.git.bytes("cat-file", "--filters", f"{self.after}:{name}")
            written_s = path.lstat().st_mtime
        except (Said, OSError):
            return False
        if there == wanted:
            return True
        at_that_time = since_s - 1.0 <= written_s <= since_s + 10 * LIMIT_S
        return wanted.startswith(there) and at_that_time and await self._untouched(name)

    async def _untouched(self, name: str) -> bool:
        """Whether the user had not changed the file before."""
        return self.rescue is None or await self._has(self.rescue, name) == await self._has(self.before, name)

    async def _has(self, commit: str, name: str) -> str | None:
        return await self.git.perhaps("rev-parse", "--verify", "--quiet", f"{commit}:{name}")


class Undone(Said):
    """Git could not, and all is as it was before."""


def _put_back(index: Path, content: bytes) -> None:
    """By git's own convention: whoever has the lock may replace the index."""
    lock = index.with_name(f"{index.name}.lock")
    with contextlib.suppress(FileExistsError):
        with lock.open("xb") as file:
            file.write(content)
        lock.rename(index)


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE))


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _has_strange(root: Path, way: str, name: str, tracked: set[str]) -> bool:
    """Whether on the way to a new file there is something that git does not know."""
    path = root / way
    if path.is_dir() and not path.is_symlink():
        if way != name:
            return False
        found = (os.path.relpath(os.path.join(at, each), root) for at, _, files in os.walk(path) for each in files)
        return any(each not in tracked for each in found)
    return os.path.lexists(path)
