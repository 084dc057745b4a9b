"""Fast-forward a branch and its work tree to commits that are upstream already.

The user's changes are not touched: either everything moves, or nothing does. A document in the repository records an
update that is under way, so that the next commit rolls back one that was killed, or finishes it if the branch has moved
already.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import anyio

from yolo_supervisor.commits.fast_path import INDEX_COPY, UPDATE_DOCUMENT
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.git_messages import Cause, Failure, classify
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.fs.read import read
from yolo_supervisor.inventory.lock_holders import lock_stamp
from yolo_supervisor.models import SeenLock
from yolo_supervisor.store.atomic import make_folder, write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.git import LIMIT_S, Git, GitError, GitPaths
from yolo_supervisor.system.git_files import LOCKS_DOCUMENT, OWN_FOLDER
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.subprocesses import undisturbed

WAIT_S = 60.0
"""The time that the update waits for a lock that another git holds, in seconds."""

NAMES_PER_COMMAND = 500

STEP_END_S = 2.0
"""The longest time between the last complete file and the interrupted one, in seconds, by their modification times.

Git writes one file after the other, so a file with a later time was written by the user.
"""


class Blocked(Exception):
    """A change of the user prevents the update; nothing was moved. Its text says which."""

    def __init__(self, reason: str, file: str | None = None) -> None:
        super().__init__(reason)
        self.file = file
        """The file, if git does not track it and would overwrite it."""


class RolledBack(GitError):
    """Git could not make the update, and everything is as it was before."""


class BranchUpdate:
    """The fast-forward of ``branch`` between two commits.

    ``rescue`` is a ref on a copy of the work tree as it was before.
    """

    def __init__(self, git: Git, branch: str, before: str, after: str, rescue: str | None) -> None:
        self.git = git
        self.branch = branch
        self.before = before
        self.after = after
        self.rescue = rescue

    @classmethod
    def from_document(cls, git: Git, document: Path) -> BranchUpdate | None:
        """The update that a killed run had begun.

        None if the document is incomplete or its work tree is gone.
        """
        raw = load_object(read(document) or b"") or {}
        keys = ("root", "git_dir", "branch", "before", "after")
        values = [str(raw[key]) for key in keys if isinstance(raw.get(key), str)]
        if len(values) < len(keys) or not os.path.isdir(values[0]) or not os.path.isdir(values[1]):
            return None
        root, git_dir, branch, before, after = values
        there = git.in_checkout(Path(root)).with_environment(GIT_DIR=git_dir, GIT_WORK_TREE=root)
        return cls(there, branch, before, after, str(raw["rescue"]) if raw.get("rescue") else None)

    async def apply(self, folder: Path) -> None:
        """Make the update; its document is kept in ``folder`` meanwhile.

        ``Blocked`` if it would touch a change of the user; ``RolledBack`` if git failed and everything is as it was;
        ``GitError`` if a file could not be rolled back: the document stays for the next commit.
        """
        await self._refuse_overwriting()
        if not await self.is_at_start():
            raise Blocked("the branch has moved meanwhile")
        try:
            await self.git("read-tree", "--dry-run", "-m", "-u", self.before, self.after)
        except GitError as error:
            if error.failure.cause is not Cause.LOCKED:
                raise Blocked(error.failure.output.partition("\n")[0].removeprefix("error: ")) from None
        paths = await self.git.paths()
        document = folder / f"{UPDATE_DOCUMENT}{os.getpid()}.json"
        place = {"root": str(paths.root), "git_dir": str(paths.git_dir), "branch": self.branch, "rescue": self.rescue}
        write_atomic(Disk(), document, json.dumps({**place, "before": self.before, "after": self.after}).encode())
        try:
            await self._step(HeldLocks(folder, paths, self.branch))
        except Blocked:
            document.unlink(missing_ok=True)
            raise
        except GitError as error:
            if not await self._roll_back(document.stat().st_mtime):
                raise
            document.unlink(missing_ok=True)
            raise RolledBack(error.failure) from None
        document.unlink(missing_ok=True)

    async def recover(self, document: Path) -> bool:
        """Roll back an update that was killed, or finish it if the branch has moved already.

        To finish it, only the index has to follow. False if a file stays as it is because the user changed it
        meanwhile. ``GitError`` if another git is at work there: then the next commit tries again.
        """
        with index_locked(await self._index()) as lock:  # proves that no git is at work there
            lock.unlink()
        complete = True
        if await self.is_at_start():
            complete = await self._roll_back(document.stat().st_mtime)
        elif await self._is_at(self.after):
            try:
                await self.git("read-tree", "-i", "-m", self.before, self.after)  # the files are written already
            except GitError as error:
                if error.failure.cause is Cause.LOCKED:
                    raise
                complete = False
        document.unlink(missing_ok=True)
        return complete

    async def is_at_start(self) -> bool:
        """Whether HEAD is still the branch, and the branch still at the first commit."""
        return await self._is_at(self.before)

    async def _is_at(self, commit: str) -> bool:
        there = [await self.git.or_none("symbolic-ref", "HEAD"), await self.git.or_none("rev-parse", self.branch)]
        return there == [self.branch, commit]

    # -- before --------------------------------------------------------------------------------------------------

    async def _changes(self) -> list[tuple[str, str]]:
        """The changed files and their status: ``A``dded, ``M``odified, ``T``ype changed, ``D``eleted."""
        raw = await self.git.names("diff-tree", "-r", "-z", "--name-status", "--no-renames", self.before, self.after)
        return list(zip(raw[::2], raw[1::2], strict=True))

    async def _at_root(self) -> Git:
        """Git in the root of the work tree, to which the names in its lists are relative."""
        return Git(Path(await self.git("rev-parse", "--show-toplevel")), self.git.environment)

    async def _refuse_overwriting(self) -> None:
        """``Blocked`` if git would overwrite an untracked file or bring back a deleted one.

        Untracked includes ignored. A deleted file is also one that the user replaced by something else, such as a link.
        """
        git = await self._at_root()
        listed = [line.partition(" ") for line in await git.names("ls-files", "-t", "-z")]
        tracked = {name for _, _, name in listed}
        sparse = {name for tag, _, name in listed if tag.upper() == "S"}
        for change, name in await self._changes():
            if change == "A":
                untracked = [
                    path for path in (name, *map(str, Path(name).parents)) if path != "." and path not in tracked
                ]
                if any(_has_untracked(git.folder, path, name, tracked) for path in untracked):
                    raise Blocked(f"{name} is in the way", name)
            elif name in tracked and name not in sparse:
                deleted = change != "D" and not os.path.lexists(git.folder / name)
                if deleted or _is_behind_link(git.folder, name):
                    raise Blocked(f"{name} is in the way")

    # -- the step ------------------------------------------------------------------------------------------------

    async def _step(self, held: HeldLocks) -> None:
        """Update files, branch and index under git's locks on the index, the branch and HEAD.

        The locks keep other git processes out. After a kill, the index is as it was, or the branch has moved already.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            if not await self.is_at_start():
                raise Blocked("the branch has moved meanwhile")
            try:
                with undisturbed():  # a signal to the group would end git between two files
                    await self._step_once(held)
                return
            except GitError as error:
                if error.failure.cause is not Cause.LOCKED or time.monotonic() >= deadline:
                    raise
                await anyio.sleep(0.1)

    async def _step_once(self, held: HeldLocks) -> None:
        index = await self._index()
        with index_locked(index) as lock, held.copy_of(index) as copy:
            transaction = _RefTransaction(self.git, f"{self.branch} {self.after} {self.before}")
            try:
                held.write(lock, transaction)
                git = self.git.with_environment(GIT_INDEX_FILE=str(copy))
                await git("read-tree", "-m", "-u", self.before, self.after, limit_s=10 * LIMIT_S)
                transaction.commit()
            finally:
                transaction.close()
            copy.rename(index)
            lock.unlink()

    async def _index(self) -> Path:
        return Path(await self.git("rev-parse", "--path-format=absolute", "--git-path", "index"))

    # -- after an interrupted step ---------------------------------------------------------------------------------

    async def _roll_back(self, since_s: float) -> bool:
        """Restore the files that an interrupted step changed; whether all files are as before.

        A file is restored only if (1) its index entry is unchanged, (2) the user had not modified it before, and
        (3) its content is a prefix of what the step was writing. ``GitError`` if another git has locked the index.
        """
        git, changes = await self._at_root(), await self._changes()
        names = [name for _, name in changes]
        staged = await self._differing(names, "--cached", self.before)
        ours = [(c, name) for c, name in changes if name not in staged and not _is_behind_link(git.folder, name)]
        written = {name: state for c, name in ours if (state := await self._written(git.folder / name, name))}
        complete = [path.lstat().st_mtime for name, (path, is_complete) in written.items() if is_complete]
        until_s = max([since_s, *complete]) + STEP_END_S
        restore = []
        for change, name in ours:
            path = git.folder / name
            if not os.path.lexists(path):
                if change != "A" and await self._was_unmodified(name):
                    restore.append(name)
            elif (
                name in written
                and since_s - 1.0 <= path.lstat().st_mtime <= until_s
                and await self._was_unmodified(name)
            ):
                if change == "A":
                    path.unlink()
                    _remove_empty(path.parent, git.folder)
                else:
                    restore.append(name)
        for chunk in _chunks(restore):
            await git("--literal-pathspecs", "checkout-index", "--force", "--index", "--", *chunk)
        left = {c for c, name in ours if c == "A" and os.path.lexists(git.folder / name)}
        return not staged and not left and not await self._differing(names)

    async def _differing(self, names: Sequence[str], *against: str) -> set[str]:
        """Those of the files that differ between work tree and index.

        With ``--cached`` and a commit as ``against``, between the index and that commit.
        """
        git = await self._at_root()
        await git.or_none("update-index", "-q", "--refresh")
        command, *arguments = ("diff-index", *against) if against else ("diff-files",)
        return {*await git.names(command, "--name-only", "-z", *arguments)} & {*names}

    async def _written(self, path: Path, name: str) -> tuple[Path, bool] | None:
        """The file and whether it is complete; None if its content is not a prefix of ours."""
        try:
            expected = await self.git.bytes("cat-file", "--filters", f"{self.after}:{name}")
            content = os.fsencode(os.readlink(path)) if path.is_symlink() else read_regular(path, len(expected))
        except (GitError, OSError):
            return None
        return (path, content == expected) if expected.startswith(content) else None

    async def _was_unmodified(self, name: str) -> bool:
        """Whether the user had not modified the file before the update."""
        return self.rescue is None or await self._blob(self.rescue, name) == await self._blob(self.before, name)

    async def _blob(self, commit: str, name: str) -> str | None:
        return await self.git.or_none("rev-parse", "--verify", "--quiet", f"{commit}:{name}")


async def own_folder(git: Git) -> Path:
    """Our folder in the repository's common directory, created if it is missing."""
    folder = Path(await git("rev-parse", "--path-format=absolute", "--git-common-dir"), OWN_FOLDER)
    make_folder(Disk(), folder)
    return folder


@contextlib.contextmanager
def index_locked(index: Path) -> Iterator[Path]:
    """Hold git's lock on the index, which the caller removes at the end. ``GitError`` if another git holds it."""
    lock = index.with_name(f"{index.name}.lock")
    try:
        lock.touch(exist_ok=False)
    except FileExistsError:
        raise GitError(Failure(Cause.LOCKED, None, f"Unable to create '{lock}': File exists")) from None
    try:
        yield lock
    except BaseException:
        lock.unlink(missing_ok=True)
        raise  # after a success the caller has removed it, and a lock there may be another git's


class _RefTransaction:
    """``git update-ref --stdin`` that holds the locks of a branch and of HEAD.

    ``GitError`` if another git holds them.
    """

    def __init__(self, git: Git, update: str) -> None:
        command = ["git", "update-ref", "-m", "yolo-supervisor: rebased onto the upstream", "--stdin"]
        self._git = subprocess.Popen(
            command, cwd=git.folder, env=git.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, errors="surrogateescape",
        )  # fmt: skip
        self.pid = self._git.pid
        try:
            self._send("start", f"update {update}\nprepare")
        except GitError:
            self.close()
            raise

    def commit(self) -> None:
        """Move the branch."""
        self._send("commit")

    def _send(self, *commands: str) -> None:
        """Send each command and wait for its ``ok``."""
        assert self._git.stdin is not None
        assert self._git.stdout is not None
        assert self._git.stderr is not None
        for command in commands:
            with contextlib.suppress(BrokenPipeError):
                self._git.stdin.write(f"{command}\n")
                self._git.stdin.flush()
            if not self._git.stdout.readline().rstrip().endswith(": ok"):
                output = self._git.stderr.read()
                raise GitError(classify(self._git.wait() or 128, output)) from None

    def close(self) -> None:
        """End the transaction. Without a commit the branch stays where it was."""
        with contextlib.suppress(BrokenPipeError):
            self._git.communicate()


class HeldLocks:
    """The document in ``folder`` about the locks that the update of a branch holds.

    If the update is killed, it proves to the next commit whose these locks are.
    """

    def __init__(self, folder: Path, paths: GitPaths, branch: str) -> None:
        self._document = folder / f"{LOCKS_DOCUMENT}{os.getpid()}.json"
        self._copy = folder / f"{INDEX_COPY}{os.getpid()}-step"
        self._refs = (paths.git_dir / "HEAD.lock", paths.common_dir / f"{branch}.lock")

    def write(self, index_lock: Path, transaction: _RefTransaction) -> None:
        """Write down the locks that exist, with their holders: this process, and the git that has locked the refs."""
        write_held(self._document, {index_lock: os.getpid(), **dict.fromkeys(self._refs, transaction.pid)})

    @contextlib.contextmanager
    def copy_of(self, index: Path) -> Iterator[Path]:
        """A copy of the index to work on; the lock itself has to stay the file that was written down."""
        try:
            self._copy.write_bytes(index.read_bytes())
            status = index.stat()  # by its time git knows which files it has to compare
            os.utime(self._copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
            self._copy.chmod(stat.S_IMODE(status.st_mode))
            yield self._copy
        finally:
            self._copy.unlink(missing_ok=True)
            self._document.unlink(missing_ok=True)  # the locks are released


def write_held(document: Path, pids: Mapping[Path, int]) -> None:
    """Write down which process holds which of the locks, as far as they exist."""
    processes = Processes(backend())
    held = {path: (lock_stamp(path), processes.identify(pid)) for path, pid in pids.items()}
    seen = {path: SeenLock(stamp=stamp, holders=(p,)) for path, (stamp, p) in held.items() if stamp and p}
    write_atomic(Disk(), document, own_files.dump_seen_locks(seen))


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[at : at + NAMES_PER_COMMAND] for at in range(0, len(names), NAMES_PER_COMMAND))


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove the folder and its parents below ``root`` as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _is_behind_link(root: Path, name: str) -> bool:
    """Whether a folder of the path is a symbolic link, so that the file is not git's."""
    return any((root / parent).is_symlink() for parent in Path(name).parents)


def _has_untracked(root: Path, part: str, name: str, tracked: set[str]) -> bool:
    """Whether an untracked file is in the way of the new file ``name``.

    It may be at ``part``, the path itself or one of its parents, or in a folder at the end of the path.
    """
    path = root / part
    if path.is_dir() and not path.is_symlink():
        if part != name:
            return False
        paths = (os.path.join(folder, file) for folder, _, files in os.walk(path) for file in files)
        return any(os.path.relpath(file, root) not in tracked for file in paths)
    return os.path.lexists(path)
