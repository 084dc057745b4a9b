"""The program that copies the uncommitted work of a dead agent; ``salvage`` starts it and ends it at its time limit.

It reports on its standard output, one JSON object a line: the temporary files, which remain if it is killed, and the
result, which is repeated when more is known.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from yolo_supervisor.commits.backup import (
    RESCUE_REFS,
    Backup,
    Places,
    add_names,
    copy_file,
    head_commit,
    keep,
    places,
)
from yolo_supervisor.commits.quick_git import QuickGit, QuickGitError
from yolo_supervisor.commits.rescue_refs import prune
from yolo_supervisor.system.git_files import find_root
from yolo_supervisor.system.subreaper import adopt_orphans

SALVAGE_FILE = "salvage-"
"""The prefix of our temporary files."""

OF_AGENT = "agent-"
"""The beginning of the last part of a ref's name, before the agent's name: other copies have a pid there."""

STALE_S = 600.0
"""The age at which a temporary file is no longer in use, in seconds."""

RESERVE_S = 0.7
"""The time that is kept for the commit of the copy, in seconds: files that could not be added before are left out."""

PORTION_BYTES, PORTION_FILES = 32 * 2**20, 5000
"""The files that one command adds: those that are added before the time is over are in the copy."""

LINGER_S = 5.0
"""The time in which a program whose git was killed is itself ended, with all that git has started, in seconds."""

PRUNE_S = 1.0
"""The time for the removal of old copies, in seconds: the agent is not started before. Commits remove them, too."""

NESTED, DEPTH = 20, 3
"""The number of repositories inside the work tree that are copied, too, and how deep they are looked for."""

NAMED = 20
"""The number of files that are named as left out."""

GITLINK = b"160000"
"""The mode of a submodule."""

SETTINGS = {
    "core.hooksPath": os.devnull,  # index changes and refs have hooks, too
    "core.fsmonitor": "false",  # it names a program
    "core.splitIndex": "false",  # a shared index would be written into the repository
    "core.safecrlf": "false",
    "core.logAllRefUpdates": "false",
}
"""Settings with which git runs no program, and writes nothing but objects and the ref."""

ALONE = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
"""Environment variables with which git asks neither the network nor a person, and whose messages are English."""

OF_THE_USER = {"GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH"}
"""Environment variables of git's that name no repository."""


class SaveOutcome(StrEnum):
    SAVED = "saved"
    CLEAN = "clean"
    """There is no uncommitted work."""
    SAME = "same"
    """An earlier copy has the same content."""
    NO_REPOSITORY = "no_repository"
    """The folder is gone, or in no work tree of git's."""
    TOO_LARGE = "too_large"
    TOO_SLOW = "too_slow"
    FAILED = "failed"

    @property
    def is_kept(self) -> bool:
        """Whether a ref holds the work."""
        return self in (SaveOutcome.SAVED, SaveOutcome.SAME)

    @property
    def is_failure(self) -> bool:
        """Whether there may be work that no ref holds."""
        return self in (SaveOutcome.TOO_LARGE, SaveOutcome.TOO_SLOW, SaveOutcome.FAILED)


class Result(NamedTuple):
    """The result for one work tree, as JSON between the two programs."""

    outcome: str
    reason: str
    root: str = ""
    ref: str | None = None
    files: int = 0
    omitted: list[str] = []  # noqa: RUF012 - never changed
    left: int = 0
    """The number of files that are not in the copy."""
    nested: dict[str, str] = {}  # noqa: RUF012 - never changed


class Listing(NamedTuple):
    """The files of a work tree that may have uncommitted changes, and the repositories in it."""

    sizes: dict[str, int]
    """The size of each file in bytes, 0 for one that is gone; the smallest first."""
    nested: list[str]
    """Submodules, and untracked folders that are repositories."""


class Salvage:
    """One run for one folder."""

    def __init__(self, name: str, deadline: float, max_bytes: int) -> None:
        self._suffix = OF_AGENT + (re.sub(r"[^A-Za-z0-9_]+", "-", name)[:60].strip("-") or "unnamed")
        self._deadline = deadline
        self._reserve_s = min(RESERVE_S, max(0.0, deadline - time.monotonic()) / 4)
        self._max_bytes = max_bytes
        self._bytes = 0
        """The size of the files that are copied so far."""
        self._common_dirs: set[str] = set()
        """The repositories of the work trees so far. Other work trees of them are not the agent's."""
        self._runs = 0
        self.was_slow = False
        """Whether git was killed since the time was over."""

    def run(self, folder: str) -> Iterator[Result]:
        """Copy the work tree of the folder, then the repositories in it; the result so far, after each step."""
        result, nested = self._save(folder)
        yield result
        queue = [(os.path.join(result.root, path), 1) for path in nested]
        while queue and self._runs <= NESTED:
            inner, depth = queue.pop(0)
            if os.path.islink(inner) or not os.path.lexists(os.path.join(inner, ".git")):
                continue
            found, below = self._save(inner)
            if depth < DEPTH:
                queue += [(os.path.join(inner, path), depth + 1) for path in below]
            if found.outcome not in (SaveOutcome.CLEAN, SaveOutcome.NO_REPOSITORY):
                result = _with_nested(result, os.path.relpath(inner, result.root), found)
                yield result
        if result.outcome == SaveOutcome.SAVED and result.ref:
            with contextlib.suppress(QuickGitError, OSError):
                self._deadline = min(self._deadline, time.monotonic() + PRUNE_S)
                said = prune(self._git(result.root), result.ref)
                yield result._replace(reason="; ".join((result.reason, *said)))

    def _git(self, folder: str) -> QuickGit:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in OF_THE_USER
        }
        git = QuickGit(folder, {**environment, **ALONE, **_settings(SETTINGS)}, self._deadline)
        listed = git.or_none("config", "--null", "--name-only", "--get-regexp", r"^filter\.") or ""
        drivers = {name.rpartition(".")[0] for name in listed.split("\0") if name}
        no_filters = {
            f"{driver}.{key}": value
            for driver in sorted(drivers)
            for key, value in (("clean", ""), ("process", ""), ("required", "false"))
        }
        return git.at(folder, **_settings({**SETTINGS, **no_filters}))

    def _save(self, folder: str) -> tuple[Result, list[str]]:
        """Copy one work tree; also the repositories in it."""
        root = find_root(os.path.realpath(folder)) if os.path.isdir(folder) else None
        if root is None:
            return Result(SaveOutcome.NO_REPOSITORY, f"{folder} is in no work tree of a git repository"), []
        self._runs += 1
        try:
            if _is_foreign(root, os.path.join(root, ".git")):
                return _failed(root, "the repository belongs to another user"), []
            git = self._git(root)
            if git("rev-parse", "--is-inside-work-tree") != "true":
                return Result(SaveOutcome.NO_REPOSITORY, f"{root} is a repository without a work tree"), []
            where = places(git)
            if os.path.realpath(where.root) != root:
                return _failed(root, f"the repository's work tree is {where.root}"), []
            if _is_foreign(where.git_dir, where.common_dir):
                return _failed(root, "the repository belongs to another user"), []
            if where.common_dir in self._common_dirs:
                return Result(SaveOutcome.NO_REPOSITORY, f"{root} is another work tree of the repository"), []
            self._common_dirs.add(where.common_dir)
            if os.path.exists(where.index_file) and os.stat(where.index_file).st_size > self._max_bytes:
                return Result(SaveOutcome.TOO_LARGE, f"the index of {root} is too large to be copied", root), []
            with self._temporary_index(where) as copy:
                return self._copy(git, where, copy)
        except QuickGitError as error:
            if error.exit is None:
                self.was_slow = True
                return Result(SaveOutcome.TOO_SLOW, f"the work in {root} could not be copied in time", root), []
            return _failed(root, _complaint(error.output)), []
        except OSError as error:
            return _failed(root, f"{error.strerror}: {error.filename}"), []

    @contextlib.contextmanager
    def _temporary_index(self, where: Places) -> Iterator[str]:
        folder = where.own_folder
        os.makedirs(folder, exist_ok=True)
        remove(os.path.join(folder, name) for name in os.listdir(folder) if _is_stale(folder, name))
        copy = os.path.join(folder, f"{SALVAGE_FILE}{os.getpid()}-{self._runs}")
        _report({"temporary": [copy, f"{copy}.lock"]})
        try:
            yield copy
        finally:
            remove([copy, f"{copy}.lock"])

    def _copy(self, git: QuickGit, where: Places, copy: str) -> tuple[Result, list[str]]:
        root = where.root
        copy_file(where.index_file, copy)
        index = git.at(root, GIT_INDEX_FILE=copy)
        index_tree = index.or_none("write-tree")  # None while files are unmerged
        head_tree = git.or_none("rev-parse", "--verify", "--quiet", "HEAD^{tree}")
        head = head_commit(git) if head_tree is not None else ""
        head_tree = head_tree or git("hash-object", "-t", "tree", "--stdin")  # the empty tree
        listing = _listing(index, tracked_only=_holds_home(root))
        left = self._add(index, listing.sizes)
        backup = Backup("", index("write-tree"), index_tree, head, [name for names in left.values() for name in names])
        result = Result(SaveOutcome.SAVED, "", root, omitted=backup.omitted[:NAMED], left=len(backup.omitted))
        if {backup.tree, index_tree or head_tree} == {head_tree}:
            outcome = next(iter(left), SaveOutcome.CLEAN)
            return result._replace(
                outcome=outcome, reason=_nothing_copied(outcome, root, backup.omitted)
            ), listing.nested
        ref = self._same(git, backup)
        if ref is None:
            ref = keep(git, backup, self._suffix).ref
        else:
            result = result._replace(outcome=SaveOutcome.SAME)
        changed = git.changed(head_tree, backup.tree) | git.changed(head_tree, index_tree or head_tree)
        result = result._replace(ref=ref, files=len(changed))
        return result._replace(reason=_copied(result)), listing.nested

    def _add(self, index: QuickGit, sizes: dict[str, int]) -> dict[SaveOutcome, list[str]]:
        """Add the files, the smallest first; those that are left out, by their reasons."""
        left: dict[SaveOutcome, list[str]] = {}
        portion: list[str] = []
        portions, size_of_portion = [portion], 0
        for name, size in sizes.items():
            if self._bytes + size > self._max_bytes:
                left.setdefault(SaveOutcome.TOO_LARGE, []).append(name)
                continue
            self._bytes += size
            size_of_portion += size
            if len(portion) >= PORTION_FILES or size_of_portion > PORTION_BYTES:
                portions.append(portion := [])
                size_of_portion = size
            portion.append(name)
        hasty = QuickGit(index.folder, index.environment, self._deadline - self._reserve_s)
        for number, names in enumerate(portions):
            try:
                if refused := add_names(hasty, names):
                    left.setdefault(SaveOutcome.FAILED, []).extend(refused)
            except QuickGitError as error:
                if error.exit is not None:
                    raise
                self.was_slow = True
                remove([f"{index.environment['GIT_INDEX_FILE']}.lock"])  # git was killed
                return {SaveOutcome.TOO_SLOW: [name for rest in portions[number:] for name in rest], **left}
        return left

    def _same(self, git: QuickGit, backup: Backup) -> str | None:
        """The newest copy of an agent's work that has the same content."""
        listed = git("for-each-ref", "--sort=-refname", "--format=%(refname) %(tree) %(parent)", RESCUE_REFS)
        for line in listed.splitlines():
            ref, tree, *parents = line.split()[:4] if line.count(" ") > 1 else (line, "")
            if f"-{OF_AGENT}" not in ref or tree != backup.tree:
                continue
            if backup.index_tree is None:
                is_same = len(parents) == bool(backup.head)
            else:
                last = git.or_none("rev-parse", "--verify", "--quiet", f"{parents[-1]}^{{tree}}") if parents else None
                is_same = last == backup.index_tree
            if is_same:
                return ref
        return None


def _is_stale(folder: str, name: str) -> bool:
    """Whether the file is one of ours that is no longer in use."""
    try:  # its content has the time of the user's index, so by the time of its last change
        return name.startswith(SALVAGE_FILE) and time.time() - os.lstat(os.path.join(folder, name)).st_ctime > STALE_S
    except FileNotFoundError:
        return False


def remove(paths: Iterable[str]) -> None:
    """Remove temporary files."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _settings(settings: dict[str, str]) -> dict[str, str]:
    """The environment variables that give git these settings, before those of all files."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def _listing(index: QuickGit, tracked_only: bool) -> Listing:
    untracked = () if tracked_only else ("-o", "--exclude-standard")
    sizes, nested = dict[str, int](), list[str]()
    for name in dict.fromkeys(index.names("ls-files", "-z", "-m", *untracked)):
        if name.endswith("/"):
            nested.append(name.removesuffix("/"))
            continue
        try:
            sizes[name] = os.lstat(os.path.join(index.folder, name)).st_size
        except OSError:  # it is gone
            sizes[name] = 0
    staged = index.output("ls-files", "-z", "--stage").split(b"\0")
    nested += [os.fsdecode(line.partition(b"\t")[2]) for line in staged if line.startswith(GITLINK)]
    return Listing(dict(sorted(sizes.items(), key=lambda item: item[1])), nested)


def _is_foreign(*paths: str) -> bool:
    """Whether one of these belongs to another user: what we wrote there could not be removed by its owner."""
    return any(os.lstat(path).st_uid != os.geteuid() for path in paths)


def _holds_home(root: str) -> bool:
    """Whether the user's home is in the work tree: then its untracked files are not the agent's work."""
    home = os.path.realpath(os.path.expanduser("~"))
    return os.path.commonpath((home, root)) == root


def _with_nested(result: Result, path: str, found: Result) -> Result:
    """The result with that of a repository inside the work tree."""
    nested = {**result.nested, path: found.ref} if found.ref else result.nested
    outcome = result.outcome
    if outcome == SaveOutcome.CLEAN or (outcome == SaveOutcome.SAME and found.outcome == SaveOutcome.SAVED):
        outcome = found.outcome
    omitted = [*result.omitted, *(os.path.join(path, name) for name in found.omitted)][:NAMED]
    reason = found.reason if result.outcome == SaveOutcome.CLEAN else f"{result.reason}; {found.reason}"
    files, left = result.files + found.files, result.left + found.left
    return result._replace(outcome=outcome, reason=reason, files=files, omitted=omitted, left=left, nested=nested)


def _failed(root: str, reason: str) -> Result:
    return Result(SaveOutcome.FAILED, f"the work in {root} was not copied: {reason}", root)


def _complaint(output: str) -> str:
    """The line of git's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "no reason")


def _nothing_copied(outcome: SaveOutcome, root: str, omitted: list[str]) -> str:
    match outcome:
        case SaveOutcome.TOO_LARGE:
            return f"the work in {root} was not copied: {_some(omitted)} too large"
        case SaveOutcome.TOO_SLOW:
            return f"the work in {root} was not copied: {_some(omitted)} not added in time"
        case SaveOutcome.FAILED:
            return f"the work in {root} was not copied: git cannot add {omitted[0]}"
    return f"there is no uncommitted work in {root}"


def _copied(result: Result) -> str:
    files = f"{result.files} changed files" if result.files != 1 else "1 changed file"
    again = " already" if result.outcome == SaveOutcome.SAME else ""
    but = f"; {_some(result.omitted, result.left)} not in it" if result.left else ""
    return f"{files} of {result.root} are in {result.ref}{again}{but}"


def _some(names: list[str], number: int = 0) -> str:
    number = number or len(names)
    return f"{names[0]} is" if number == 1 else f"{number} files ({names[0]}, …) are"


def _report(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def main() -> None:
    adopt_orphans()
    folder, name, deadline, max_bytes = sys.argv[1:]
    salvage = Salvage(name, float(deadline), int(max_bytes))
    for result in salvage.run(folder):
        _report(result._asdict())
    if salvage.was_slow:
        time.sleep(LINGER_S)


if __name__ == "__main__":
    main()
