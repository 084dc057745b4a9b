"""What git says when it says no (in English: it is always asked with ``LC_ALL=C``), and what that means for us."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why a commit or a push has failed."""

    LOCKED = "locked"
    """Another git is at work, or has left its lock behind."""
    REJECTED = "rejected"
    """The upstream has commits that we do not have."""
    UNREACHABLE = "unreachable"
    """The other side did not answer: it may the next time."""
    CONFLICT = "conflict"
    UNMERGED = "unmerged"
    IN_PROGRESS = "in progress"
    """A merge, say, that has to be concluded first."""
    NOTHING = "nothing to commit"
    NO_MESSAGE = "no message"
    NO_IDENTITY = "no identity"
    HOOK = "hook"
    SIGNING = "signing"
    NO_ROOM = "no room"
    NO_PERMISSION = "no permission"
    CORRUPT = "corrupt"
    NO_UPSTREAM = "no upstream"
    DETACHED = "detached"
    REFUSED = "refused"
    """The other side has rules that forbid it."""
    NO_REPOSITORY = "no repository"
    TIMED_OUT = "timed out"
    USAGE = "usage"
    TAKEN_BACK = "taken back"
    """A commit that is upstream was amended or reset here: to put what is left on top of it would bring it back."""
    MERGE = "merge"
    """A merge made by hand, which nobody can make again on top of others' commits."""
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


TRANSIENT = frozenset({Cause.LOCKED, Cause.REJECTED, Cause.UNREACHABLE})
"""What may be over the next time."""

_TELLTALES: tuple[tuple[Cause, str], ...] = (
    (Cause.NO_ROOM, r"No space left on device|File too large|Disk quota exceeded|file write error|"
                    r"unable to write (?:loose|new|file)"),
    (Cause.NO_PERMISSION, r"\.lock': (?:Permission denied|Read-only file system)|insufficient permission"),
    (Cause.LOCKED, r"\.lock': File exists|Another git process seems to be running|cannot lock ref|could not lock|"
                   r"is already checked out"),
    (Cause.IN_PROGRESS, r"cannot do a partial commit during|You are in the middle of a"),
    (Cause.UNMERGED, r"you have unmerged files|unmerged paths|Unmerged paths|is not possible because you have"),
    (Cause.NO_IDENTITY, r"Please tell me who you are|unable to auto-detect email|empty ident name|no email was given"),
    (Cause.SIGNING, r"gpg failed to sign|failed to write commit object|signing failed|Couldn't load public key|"
                    r"error: gpg|user\.signingkey"),
    (Cause.CORRUPT, r"index file (?:corrupt|smaller)|bad (?:index file|signature)|bad object|object file .* is empty|"
                    r"unable to read tree|is corrupt|invalid object"),
    (Cause.REJECTED, r"\[rejected\]|non-fast-forward|fetch first|tip of your current branch is behind"),
    (Cause.REFUSED, r"\[remote rejected\]|pre-receive hook declined|protected branch|GH0\d\d"),
    (Cause.NO_UPSTREAM, r"has no upstream branch|[Nn]o configured push destination|"
                        r"does not appear to be a git repository|couldn't find remote ref|Repository not found|"
                        r"does not exist"),
    (Cause.UNREACHABLE, r"Could not resolve host|Connection (?:refused|timed out|reset)|unable to access|"
                        r"Could not read from remote|early EOF|the remote end hung up|HTTP 5\d\d"),
    (Cause.NO_MESSAGE, r"empty commit message|you did not edit the message|there was a problem with the editor"),
    (Cause.NOTHING, r"nothing to commit|nothing added to commit|no changes added to commit|"
                    r"Changes not staged for commit"),
    (Cause.DETACHED, r"You are not currently on a branch|not currently on a branch"),
    (Cause.NO_REPOSITORY, r"not a git repository|must be run in a work tree"),
    (Cause.USAGE, r"^usage: git|^error: unknown (?:option|switch)|pathspec '.*' did not match"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Failure:
    """A command of git's that said no."""

    cause: Cause
    exit: int | None
    said: str
    """What it said, as far as it says why."""

    @property
    def lock(self) -> str | None:
        """The lock that was in its way, where it says so."""
        found = re.search(r"Unable to create '(.*\.lock)'", self.said)
        return found[1] if found else None


OF_PUSHES = frozenset({Cause.REJECTED, Cause.REFUSED, Cause.NO_UPSTREAM, Cause.UNREACHABLE, Cause.DETACHED})
MILD = frozenset({Cause.NOTHING, Cause.NO_MESSAGE, Cause.USAGE})
"""What ``git commit`` itself ends for with 1; else it is a hook's no, whose words are not git's."""


_REFUSED = re.compile(r"^!\t\S*\t\[(remote )?rejected\] \((.*)\)$", re.MULTILINE)
"""How ``git push --porcelain`` tells of a ref: hooks may say what they like around it."""

_OVERTAKEN = re.compile(r"cannot lock ref|failed to update ref|incorrect old value|already exists")
"""Why the other side rejects a ref that somebody else is pushing at the same moment."""


_GITS_OWN = ("fatal:", "ssh:", "error: RPC failed")
"""How what a push says begins where no hook has said it: one that says no has the exit code 1, as some of git's own."""


def failure(exit_code: int | None, said: str, command: str = "", without: Set[Cause] = frozenset()) -> Failure:
    """What has failed. ``commit`` and ``push`` (``--porcelain``) have hooks: where git itself says nothing, one of them
    has said no. ``without`` are causes that it is known not to be."""
    if exit_code is None:
        return Failure(Cause.TIMED_OUT, None, said)
    if exit_code < 0:  # XFSZ, say: a limit on the size of files
        return Failure(Cause.NO_ROOM if exit_code == -25 else Cause.UNKNOWN, exit_code, f"{said}\nsignal {-exit_code}")
    told = said.strip()[-4000:]
    causes = {cause for cause, _ in _TELLTALES} - without
    if command == "commit":
        causes &= {*MILD} if exit_code == 1 and "Error building trees" not in said else causes - OF_PUSHES
    elif command == "push":
        if found := _REFUSED.search(said):
            overtaken = not found[1] or _OVERTAKEN.search(found[2])
            return Failure(Cause.REJECTED if overtaken else Cause.REFUSED, exit_code, told)
        causes -= {Cause.REJECTED, Cause.REFUSED}
        own = _GITS_OWN if exit_code == 1 else ("fatal:", "error:", "ssh:")
        said = "\n".join(line for line in said.splitlines() if line.startswith(own))
    found_cause = next((c for c, words in _TELLTALES if c in causes and re.search(words, said, re.MULTILINE)), None)
    if found_cause is None:
        found_cause = Cause.HOOK if command and exit_code == 1 else Cause.UNKNOWN
    return Failure(found_cause, exit_code, told)


ADVICE = {
    Cause.LOCKED: "another git is at work there: wait for it, or end it, and try again",
    Cause.REJECTED: "others have pushed there before: try again, or git pull --rebase",
    Cause.UNREACHABLE: "the commit is made; push it when the other side is there again: git push",
    Cause.CONFLICT: "your commit and the upstream's change the same lines: somebody has to decide",
    Cause.UNMERGED: "resolve the files that git status shows as unmerged, git add them, and commit again",
    Cause.IN_PROGRESS: "conclude what git status tells of (a merge is committed without paths), or abort it",
    Cause.NOTHING: "nothing is staged: git add what shall be committed",
    Cause.NO_MESSAGE: "say what it is about: -m MESSAGE",
    Cause.NO_IDENTITY: "git config user.name NAME && git config user.email ADDRESS",
    Cause.HOOK: "a hook of the repository said no: see what it wrote, mend that, and commit again",
    Cause.SIGNING: "the commit could not be signed: unlock the key, or see git config commit.gpgsign",
    Cause.NO_ROOM: "make room on the disk, and commit again; nothing was changed",
    Cause.NO_PERMISSION: "git may not write to its own folder: see whose it is",
    Cause.CORRUPT: "git's own files are damaged: git fsck; a damaged index is made anew by: rm .git/index && git reset",
    Cause.NO_UPSTREAM: "the commit is made; say where to push it: git push --set-upstream REMOTE BRANCH",
    Cause.DETACHED: "the commit is made, on no branch: git switch -c NAME keeps it",
    Cause.REFUSED: "the commit is made; the other side has a rule against pushing it",
    Cause.NO_REPOSITORY: "git init makes this folder a repository",
    Cause.TIMED_OUT: "it took too long, and was ended: a hook, or a key that asks for its password?",
    Cause.USAGE: "see git commit -h",
    Cause.TAKEN_BACK: "a commit that is upstream was amended or reset here; somebody has to decide which one counts: "
    "git pull --rebase brings theirs back, git push --force-with-lease --force-if-includes takes it away for all",
    Cause.MERGE: "a merge that was made by hand has to be made again by hand: git pull --rebase=merges, or git pull",
    Cause.INTERRUPTED: "somebody wanted an end of it: the next commit here takes it up",
    Cause.UNKNOWN: "see what git said",
}
