"""A branch moves on to commits that are upstream already, and the work tree with it: every change of the user's stays
as it is, or nothing moves. What was cut off in the middle is put back by whoever comes next."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio

from yolo_supervisor.files import Disk, replace
from yolo_supervisor.formats import load_object
from yolo_supervisor.formats.git_messages import Cause, Failure, failure
from yolo_supervisor.system.git import LIMIT_S, Git, Said
from yolo_supervisor.system.subprocesses import undisturbed

DOCUMENT = "move-"
"""How the document's name begins that says where a branch is being moved."""

WAIT_S = 60.0
"""How long a lock is waited for that another git holds meanwhile."""

AT_ONCE = 500
"""How many files git is told of in one command line."""

CLOSE_S = 2.0
"""How long after the last file that a step has finished the one may have been written that it was at when it was cut
off: files are written one after the other."""


class InTheWay(Exception):
    """What the user has done meanwhile stands against the move; nothing was moved. Its text says what."""

    def __init__(self, why: str, file: str | None = None) -> None:
        super().__init__(why)
        self.file = file
        """The file, where it is one that git does not know, and would replace."""


class Undone(Said):
    """Git could not, and all is as it was before."""


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
        keys = ("root", "git_dir", "branch", "before", "after")
        told = [str(raw[key]) for key in keys if isinstance(raw.get(key), str)]
        if len(told) < len(keys) or not os.path.isdir(told[0]) or not os.path.isdir(told[1]):
            return None
        root, own, branch, before, after = told
        there = git.elsewhere(Path(root)).having(GIT_DIR=own, GIT_WORK_TREE=root)
        return cls(there, branch, before, after, str(raw["rescue"]) if raw.get("rescue") else None)

    async def make(self, folder: Path) -> None:
        """Move. ``InTheWay`` if that would touch a change of the user's; ``Undone`` if git could not, and all is as it
        was; ``Said`` if something could not be put back: the document in ``folder`` stays, for whoever comes next."""
        await self._refuse_to_touch()
        if not await self.stands():
            raise InTheWay("the branch has moved meanwhile")
        try:
            await self.git("read-tree", "--dry-run", "-m", "-u", self.before, self.after)
        except Said as no:
            if no.failure.cause is not Cause.LOCKED:
                raise InTheWay(no.failure.said.partition("\n")[0].removeprefix("error: ")) from None
        places = await self.git.places()
        document = folder / f"{DOCUMENT}{os.getpid()}.json"
        told = {"root": str(places.root), "git_dir": str(places.own), "branch": self.branch, "rescue": self.rescue}
        replace(Disk(), document, json.dumps({**told, "before": self.before, "after": self.after}).encode())
        try:
            await self._step()
        except InTheWay:
            document.unlink(missing_ok=True)
            raise
        except Said as no:
            if not await self._put_back(document.stat().st_mtime):
                raise
            document.unlink(missing_ok=True)
            raise Undone(no.failure) from None
        document.unlink(missing_ok=True)

    async def go_on(self, document: Path) -> bool:
        """See to what a killed run has left: its files are put back; where the branch has moved already, the index
        follows. False if something could not be, since the user has changed it meanwhile. ``Said`` if another git is at
        work there: then it is for the next time."""
        with _locked(await self._index()) as lock:  # nobody is at work there, and nothing of the killed one is left
            lock.unlink()
        well = True
        if await self.stands():
            well = await self._put_back(document.stat().st_mtime)
        elif await self._stands_at(self.after):
            try:
                await self.git("read-tree", "-i", "-m", self.before, self.after)  # the files are there already
            except Said as no:
                if no.failure.cause is Cause.LOCKED:
                    raise
                well = False
        document.unlink(missing_ok=True)
        return well

    async def stands(self) -> bool:
        """Whether the user is still where we started from."""
        return await self._stands_at(self.before)

    async def _stands_at(self, commit: str) -> bool:
        there = [await self.git.perhaps("symbolic-ref", "HEAD"), await self.git.perhaps("rev-parse", self.branch)]
        return there == [self.branch, commit]

    # -- before --------------------------------------------------------------------------------------------------

    async def _changes(self) -> list[tuple[str, str]]:
        """What is done to which file: ``A`` added, ``M`` changed, ``T`` become something else, ``D`` deleted."""
        raw = await self.git.names("diff-tree", "-r", "-z", "--name-status", "--no-renames", self.before, self.after)
        return list(zip(raw[::2], raw[1::2], strict=True))

    async def _top(self) -> Git:
        """Git, asked where names are as it lists them."""
        return Git(Path(await self.git("rev-parse", "--show-toplevel")), self.git.environment)

    async def _refuse_to_touch(self) -> None:
        """``InTheWay`` where git would replace what it has not in its index, ignored files say, or bring back what the
        user has deleted or put something else in the place of."""
        top = await self._top()
        listed = [each.partition(" ") for each in await top.names("ls-files", "-t", "-z")]
        tracked = {name for _, _, name in listed}
        sparse = {name for tag, _, name in listed if tag.upper() == "S"}
        for change, name in await self._changes():
            if change == "A":
                ways = [each for each in (name, *map(str, Path(name).parents)) if each != "." and each not in tracked]
                if any(_has_strange(top.folder, each, name, tracked) for each in ways):
                    raise InTheWay(f"{name} is in the way", name)
            elif name in tracked and name not in sparse:
                gone = change != "D" and not os.path.lexists(top.folder / name)
                if gone or _is_behind_link(top.folder, name):
                    raise InTheWay(f"{name} is in the way")

    # -- the step ------------------------------------------------------------------------------------------------

    async def _step(self) -> None:
        """Files, branch and index, in one turn of git's: its locks on the index, the branch and HEAD are held, so that
        nobody comes between. A kill leaves the index as it was, or the branch moved already."""
        deadline = time.monotonic() + WAIT_S
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
        index = await self._index()
        with _locked(index) as lock:
            transaction = _Transaction(self.git, f"{self.branch} {self.after} {self.before}")
            try:
                beside = self.git.having(GIT_INDEX_FILE=str(lock))
                await beside("read-tree", "-m", "-u", self.before, self.after, limit_s=10 * LIMIT_S)
                transaction.commit()
            finally:
                transaction.close()
            lock.rename(index)

    async def _index(self) -> Path:
        return Path(await self.git("rev-parse", "--path-format=absolute", "--git-path", "index"))

    # -- after a step that was cut off -----------------------------------------------------------------------------

    async def _put_back(self, since_s: float) -> bool:
        """Put the files back that a step which was cut off has changed already; whether all are as they were.

        Only those are ours to put back of which the index still says what it said before, which their user had not
        changed before, and which hold what the step has written, or the beginning of it. ``Said`` if the index is
        locked by another git.
        """
        top, changes = await self._top(), await self._changes()
        names = [name for _, name in changes]
        staged = await self._differ("--cached", self.before, names)
        mine = [(c, name) for c, name in changes if name not in staged and not _is_behind_link(top.folder, name)]
        written = {name: state for c, name in mine if (state := await self._written(top.folder / name, name))}
        whole = [path.lstat().st_mtime for name, (path, all_of_it) in written.items() if all_of_it]
        until_s = max([since_s, *whole]) + CLOSE_S
        back = []
        for change, name in mine:
            path = top.folder / name
            if not os.path.lexists(path):
                if change != "A" and await self._untouched(name):
                    back.append(name)
            elif name in written and since_s - 1.0 <= path.lstat().st_mtime <= until_s and await self._untouched(name):
                if change == "A":
                    path.unlink()
                    _remove_empty(path.parent, top.folder)
                else:
                    back.append(name)
        for portion in _portions(back):
            await top("--literal-pathspecs", "checkout-index", "--force", "--index", "--", *portion)
        left = {c for c, name in mine if c == "A" and os.path.lexists(top.folder / name)}
        return not staged and not left and not await self._differ("", "", names)

    async def _differ(self, how: str, commit: str, names: Sequence[str]) -> set[str]:
        """Which of the files differ between the index and the commit (``--cached``), or the work tree and the index."""
        top = await self._top()
        await top.perhaps("update-index", "-q", "--refresh")
        words = ("diff-index", how, commit) if how else ("diff-files",)
        return {*await top.names(words[0], "--name-only", "-z", *words[1:])} & {*names}

    async def _written(self, path: Path, name: str) -> tuple[Path, bool] | None:
        """The file, if it is as the step writes it, and whether all of it; None if it is not."""
        try:
            there = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
            wanted = await self.git.bytes("cat-file", "--filters", f"{self.after}:{name}")
        except (Said, OSError):
            return None
        return (path, there == wanted) if wanted.startswith(there) else None

    async def _untouched(self, name: str) -> bool:
        """Whether the user had not changed the file before."""
        return self.rescue is None or await self._has(self.rescue, name) == await self._has(self.before, name)

    async def _has(self, commit: str, name: str) -> str | None:
        return await self.git.perhaps("rev-parse", "--verify", "--quiet", f"{commit}:{name}")


@contextlib.contextmanager
def _locked(index: Path) -> Iterator[Path]:
    """Git's own lock on the index, with a copy of the index in it: what is renamed in its place is the next one.

    ``Said`` if another git has it."""
    lock = index.with_name(f"{index.name}.lock")
    try:
        with lock.open("xb") as copy:
            copy.write(index.read_bytes())
    except FileExistsError:
        raise Said(Failure(Cause.LOCKED, None, f"Unable to create '{lock}': File exists")) from None
    try:
        lock.with_name(f"{lock.name}.lock").unlink(missing_ok=True)  # of one who had the lock, and was killed
        written = index.stat()  # by its time git knows which files it has to look at, and which not
        os.utime(lock, ns=(written.st_mtime_ns, written.st_mtime_ns))
        lock.chmod(stat.S_IMODE(written.st_mode))
        yield lock
    except BaseException:
        lock.unlink(missing_ok=True)
        raise  # else it is the caller's to rename or remove: another git may have its own by then


class _Transaction:
    """``git update-ref --stdin`` with a branch locked, and HEAD with it. ``Said`` if it cannot be."""

    def __init__(self, git: Git, update: str) -> None:
        words = ["git", "update-ref", "-m", "yolo-supervisor: on top of what others pushed", "--stdin"]
        self._git = subprocess.Popen(
            words, cwd=git.folder, env=git.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="surrogateescape",
        )  # fmt: skip
        try:
            self._tell("start", f"update {update}\nprepare")
        except Said:
            self.close()
            raise

    def commit(self) -> None:
        self._tell("commit")

    def _tell(self, *words: str) -> None:
        """Say each, and read that it is well."""
        assert self._git.stdin is not None
        assert self._git.stdout is not None
        assert self._git.stderr is not None
        for word in words:
            with contextlib.suppress(BrokenPipeError):
                self._git.stdin.write(f"{word}\n")
                self._git.stdin.flush()
            if not self._git.stdout.readline().rstrip().endswith(": ok"):
                said = self._git.stderr.read()
                raise Said(failure(self._git.wait() or 128, said)) from None

    def close(self) -> None:
        """Without a commit the branch stays as it was."""
        with contextlib.suppress(BrokenPipeError):
            self._git.communicate()


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE))


def _remove_empty(folder: Path, root: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _is_behind_link(root: Path, name: str) -> bool:
    """Whether the way to the file leads through a link: then it is another file that stands there."""
    return any((root / each).is_symlink() for each in Path(name).parents)


def _has_strange(root: Path, way: str, name: str, tracked: set[str]) -> bool:
    """Whether on the way to a new file there is something that git does not know."""
    path = root / way
    if path.is_dir() and not path.is_symlink():
        if way != name:
            return False
        found = (os.path.relpath(os.path.join(at, each), root) for at, _, files in os.walk(path) for each in files)
        return any(each not in tracked for each in found)
    return os.path.lexists(path)
