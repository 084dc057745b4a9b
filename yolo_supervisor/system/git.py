"""Git, asked in one work tree: under limits, never interactive, never taken for whole where its answer is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats.git_messages import Cause, Failure, failure
from yolo_supervisor.system import subprocesses

LIMIT_S, NETWORK_LIMIT_S = 60.0, 120.0

BOUND = 256 * 2**20
"""How much git may answer, in bytes: the names of millions of files, or the largest file that is compared."""

ELSEWHERE = ("GIT_DIR", "GIT_COMMON_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
"""By these git is told which work tree is the user's; a checkout of our own must not hear of them."""


class Said(Exception):
    """Git has said no."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.said)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Places:
    """Where a work tree's things are: its own git folder (index, HEAD), the repository that it shares with linked ones,
    and its files."""

    own: Path
    common: Path
    root: Path

    def hold(self, lock: Path) -> bool:
        """Whether a lock of this name would be git's own, not some file of a project that is called so."""
        return lock.name.endswith(".lock") and any(
            lock.is_relative_to(place) and ".." not in lock.parts for place in (self.own, self.common)
        )


class Git:
    """Asks git in a folder; ``environment`` is the caller's."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.environment = dict(environment)

    def elsewhere(self, folder: Path) -> Git:
        """The same for a checkout of our own."""
        return Git(folder, {key: value for key, value in self.environment.items() if key not in ELSEWHERE})

    def having(self, **environment: str) -> Git:
        """The same with something else in its environment: another index in the place of the user's, say."""
        return Git(self.folder, {**self.environment, **environment})

    async def __call__(self, *words: str, limit_s: float = LIMIT_S) -> str:
        """What git answers. ``Said`` if it says no."""
        answer = await self.bytes(*words, limit_s=limit_s)
        return answer.decode(errors="surrogateescape").removesuffix("\n")

    async def names(self, *words: str) -> list[str]:
        """What git lists; it is asked for ``-z`` in the words, since any byte but that one may be in a name."""
        answer = await self.bytes(*words)
        return answer.decode(errors="surrogateescape").split("\0")[:-1]

    async def perhaps(self, *words: str) -> str | None:
        """What git answers; None if it says no."""
        try:
            return await self(*words)
        except Said:
            return None

    async def bytes(self, *words: str, limit_s: float = LIMIT_S) -> bytes:
        environment = {**self.environment, "GIT_OPTIONAL_LOCKS": "0"}
        result = await subprocesses.run(["git", *words], limit_s, environment, self.folder, subprocesses.GRACE_S, BOUND)
        if result.exit != 0:
            said = (result.stderr + result.stdout).decode(errors="replace")
            raise Said(failure(result.exit, said, "push" if words[0] == "push" else ""))
        if result.cut:
            raise Said(Failure(Cause.UNKNOWN, 0, f"git {words[0]} answers more than {BOUND} bytes"))
        return result.stdout

    async def places(self) -> Places:
        """``Said`` where there is no work tree."""
        asked = ("--path-format=absolute", "--git-dir", "--git-common-dir", "--show-toplevel")
        own, common, root = [Path(await self("rev-parse", asked[0], each)).resolve() for each in asked[1:]]
        return Places(own, common, root)
