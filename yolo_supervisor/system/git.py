"""Run git in one work tree with a time limit; a truncated answer is an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats.git_messages import Cause, Failure, classify
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.git_files import LOCAL_VARIABLES

LIMIT_S = 60.0
"""The default time limit of one command."""

ANSWER_LIMIT = 256 * 2**20
"""The most that git may answer, in bytes: the names of millions of files, or the largest file that is compared."""


class GitError(Exception):
    """A git command failed; ``failure`` has the cause."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.output)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class GitPaths:
    """The root, the git directory (index, HEAD) and the common directory of a work tree."""

    root: Path
    git_dir: Path
    common_dir: Path

    def contains_lock(self, lock: Path) -> bool:
        """Whether the path is a lock of git's, not a file of the project with the same suffix."""
        return lock.name.endswith(".lock") and any(
            lock.is_relative_to(folder) and ".." not in lock.parts for folder in (self.git_dir, self.common_dir)
        )


class Git:
    """Git commands in ``folder``, with the caller's ``environment``."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)

    def in_checkout(self, folder: Path) -> Git:
        """The same for another checkout: variables that describe the user's work tree are left out."""
        return Git(folder, {key: value for key, value in self.environment.items() if key not in LOCAL_VARIABLES})

    def with_environment(self, **variables: str) -> Git:
        """The same with these variables set, for another index file for instance."""
        return Git(self.folder, {**self.environment, **variables})

    async def __call__(self, *arguments: str, limit_s: float = LIMIT_S) -> str:
        """The output of the command, without its last newline. ``GitError`` if it fails."""
        output = await self.bytes(*arguments, limit_s=limit_s)
        return output.decode(errors="surrogateescape").removesuffix("\n")

    async def names(self, *arguments: str) -> list[str]:
        """The names that the command lists.

        Its arguments must include ``-z``: a name may contain every byte except that one.
        """
        output = await self.bytes(*arguments)
        return output.decode(errors="surrogateescape").split("\0")[:-1]

    async def or_none(self, *arguments: str) -> str | None:
        """The output of the command, without its last newline; None if it fails."""
        try:
            return await self(*arguments)
        except GitError:
            return None

    async def bytes(self, *arguments: str, limit_s: float = LIMIT_S) -> bytes:
        """The output of the command. ``GitError`` if it fails, or writes more than ``ANSWER_LIMIT``."""
        environment = {**self.environment, "GIT_OPTIONAL_LOCKS": "0"}
        result = await subprocesses.run(
            ["git", *arguments], limit_s, environment, self.folder, subprocesses.GRACE_S, ANSWER_LIMIT,
            interrupt=arguments[0] == "push",  # it runs hooks
        )  # fmt: skip
        if result.exit != 0:
            output = (result.stderr + result.stdout).decode(errors="replace")
            raise GitError(classify(result.exit, output, "push" if arguments[0] == "push" else ""))
        if result.truncated:
            text = f"git {arguments[0]} answered more than {ANSWER_LIMIT} bytes"
            raise GitError(Failure(Cause.UNKNOWN, 0, text))
        return result.stdout

    async def paths(self) -> GitPaths:
        """The work tree and its git directories. ``GitError`` if there is no work tree."""
        options = ("--show-toplevel", "--git-dir", "--git-common-dir")
        return GitPaths(
            *[Path(await self("rev-parse", "--path-format=absolute", option)).resolve() for option in options]
        )
