"""Run git without the event loop, whose import takes longer than the commands that ``commit`` runs before its hooks."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping

LIMIT_S = 600.0
"""The time limit of git that reads a whole work tree, or checks one out, in seconds."""


class QuickGitError(Exception):
    """A git command failed; ``exit`` is None at the time limit."""

    def __init__(self, exit_code: int | None, output: str) -> None:
        super().__init__(output)
        self.exit = exit_code
        self.output = output


class QuickGit:
    """Git commands in ``folder``, with the caller's ``environment``. ``QuickGitError`` if one fails."""

    def __init__(self, folder: str, environment: Mapping[str, str], deadline: float | None = None) -> None:
        self.folder = folder
        self.environment = {**environment, "GIT_OPTIONAL_LOCKS": "0"}
        self._deadline = deadline

    def at(self, folder: str, **variables: str) -> "QuickGit":
        """The same in another folder, or with these variables set."""
        return QuickGit(folder, {**self.environment, **variables}, self._deadline)

    def __call__(self, *arguments: str, given: bytes = b"") -> str:
        """The output of the command, which reads ``given``, without its last newline."""
        return os.fsdecode(self.output(*arguments, given=given)).removesuffix("\n")

    def names(self, *arguments: str) -> list[str]:
        """The names that the command lists. Its arguments must include ``-z``."""
        return os.fsdecode(self.output(*arguments)).split("\0")[:-1]

    def or_none(self, *arguments: str) -> str | None:
        """The output of the command, without its last newline; None if it fails."""
        done = self._run(arguments, b"")
        return os.fsdecode(done.stdout).removesuffix("\n") if done.returncode == 0 else None

    def output(self, *arguments: str, given: bytes = b"") -> bytes:
        """The output of the command, which reads ``given``."""
        done = self._run(arguments, given)
        if done.returncode != 0:
            raise QuickGitError(done.returncode, (done.stderr + done.stdout).decode(errors="replace"))
        return done.stdout

    def _run(self, arguments: tuple[str, ...], given: bytes) -> subprocess.CompletedProcess[bytes]:
        limit_s = LIMIT_S if self._deadline is None else max(0.0, min(LIMIT_S, self._deadline - time.monotonic()))
        with subprocess.Popen(
            ["git", *arguments], cwd=self.folder, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        ) as child:  # fmt: skip
            try:
                output, errors = child.communicate(given, limit_s)
            except BaseException as error:  # git, or a filter that it has started, hangs; or a signal ends us
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # not reaped yet and a session leader, so the group is git's
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise QuickGitError(None, f"git {arguments[0]} took longer than {limit_s:g} s") from None
        return subprocess.CompletedProcess(arguments, child.returncode, output, errors)

    def changed(self, before: str, after: str, filters: str = "") -> set[str]:
        """The files, from the root of the work tree, that differ between two trees."""
        chosen = (f"--diff-filter={filters}",) if filters else ()
        return {*self.names("diff-tree", "-r", "-z", "--no-renames", "--name-only", *chosen, before, after)}


def null_separated(names: Iterable[str]) -> bytes:
    """The names as git reads them with ``-z --stdin``."""
    return b"".join(os.fsencode(name) + b"\0" for name in names)
