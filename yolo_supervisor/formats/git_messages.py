"""Git's error messages and their causes.

Git is always run with ``LC_MESSAGES=C``, so the patterns are English.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """The reason why a commit or a push failed. The value is the ``cause`` of ``commit --json``."""

    LOCKED = "locked"
    """Another git process holds a lock, or left one when it was killed."""
    REJECTED = "rejected"
    """The upstream has commits that are missing here."""
    DIVERGED = "diverged"
    """The branch that rejected the push is not the one that a pull would rebase onto, so trying again does not help."""
    NO_ACCESS = "no access"
    """The remote does not accept the key or password, or it is not the host that is known; a retry does not help."""
    UNREACHABLE = "unreachable"
    """The remote did not answer; a retry may succeed."""
    CONFLICT = "conflict"
    UNMERGED = "unmerged"
    IN_PROGRESS = "in progress"
    """An unfinished merge, for instance, that has to be concluded first."""
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
    """A rule of the remote forbids it."""
    NO_REPOSITORY = "no repository"
    TIMED_OUT = "timed out"
    USAGE = "usage"
    TAKEN_BACK = "taken back"
    """A commit that is upstream was amended or reset here: a rebase onto the upstream would bring it back."""
    MERGE = "merge"
    """A merge that was made by hand: a rebase cannot repeat it."""
    INTERRUPTED = "interrupted"
    UNKNOWN = "unknown"


TRANSIENT = frozenset({Cause.LOCKED, Cause.REJECTED, Cause.UNREACHABLE})
"""Causes that may be gone at the next attempt."""

_PATTERNS: tuple[tuple[Cause, str], ...] = (
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
    """A git command that failed. ``exit`` is None where the time limit ended it."""

    cause: Cause
    exit: int | None
    output: str
    """The end of its output."""

    @property
    def lock(self) -> str | None:
        """The lock that was in the way, if the output names one."""
        match = re.search(r"Unable to create '(.*\.lock)'", self.output)
        return match[1] if match else None


_NO_ACCESS = re.compile(
    r"Permission denied \(|Authentication failed|Host key verification failed|could not read (?:Username|Password)|"
    r"returned error: 40[134]|Permission to .* denied"
)
"""Messages of ssh, a server or git itself before git exits with 128. A hook cannot make it exit so."""

OUTPUT_LIMIT = 4000
"""Characters of the output that a failure keeps."""

PUSH_ONLY = frozenset({Cause.REJECTED, Cause.REFUSED, Cause.NO_UPSTREAM, Cause.UNREACHABLE, Cause.DETACHED})

EXIT_1_OF_COMMIT = frozenset({Cause.NOTHING, Cause.NO_MESSAGE, Cause.USAGE})
"""Causes for which ``git commit`` itself exits with 1. Any other 1 is a hook's, and its output is not git's."""

SIGXFSZ = 25

_REFUSED = re.compile(r"^!\t\S*\t\[(remote )?rejected\] \((.*)\)$", re.MULTILINE)
"""The line of ``git push --porcelain`` about a ref; the lines around it may be a hook's."""

_REJECTED_REF = re.compile(r"^!\t[^\t:]*:([^\t]*)\t\[rejected\]", re.MULTILINE)

_OVERTAKEN = re.compile(r"cannot lock ref|failed to update ref|incorrect old value|already exists")
"""Reasons of a remote that rejects a ref because another client pushes it at the same moment."""

_PUSH_ERRORS = ("fatal:", "ssh:", "error: RPC failed")
"""First words of git's lines in a push that exits with 1. A failed hook gives the same exit code."""


def classify(exit_code: int | None, output: str, command: str = "", excluded: Set[Cause] = frozenset()) -> Failure:
    """Find the cause of a failed git command by its exit code (None: time limit) and its output.

    ``command`` is ``commit`` or ``push`` (``--porcelain``) for the two that run hooks: where no line of the output is
    git's, a hook failed. ``excluded`` are causes that are known to be wrong.
    """
    if exit_code is None:
        return Failure(Cause.TIMED_OUT, None, output)
    if exit_code < 0:  # SIGXFSZ: the limit on the size of files
        cause = Cause.NO_ROOM if exit_code == -SIGXFSZ else Cause.UNKNOWN
        return Failure(cause, exit_code, f"{output}\nsignal {-exit_code}")
    end = output.strip()[-OUTPUT_LIMIT:]
    causes = {cause for cause, _ in _PATTERNS} - excluded
    if command == "commit":
        of_git = exit_code == 1 and "Error building trees" not in output
        causes &= EXIT_1_OF_COMMIT if of_git else causes - PUSH_ONLY
    elif command == "push":
        if match := _REFUSED.search(output):
            overtaken = not match[1] or _OVERTAKEN.search(match[2])
            return Failure(Cause.REJECTED if overtaken else Cause.REFUSED, exit_code, end)
        if exit_code != 1 and _NO_ACCESS.search(output):
            return Failure(Cause.NO_ACCESS, exit_code, end)
        causes -= {Cause.REJECTED, Cause.REFUSED}
        prefixes = _PUSH_ERRORS if exit_code == 1 else ("fatal:", "error:", "ssh:")
        output = "\n".join(line for line in output.splitlines() if line.startswith(prefixes))
    for cause, pattern in _PATTERNS:
        if cause in causes and re.search(pattern, output, re.MULTILINE):
            return Failure(cause, exit_code, end)
    return Failure(Cause.HOOK if command and exit_code == 1 else Cause.UNKNOWN, exit_code, end)


def rejected_ref(output: str) -> str | None:
    """The remote's ref that has commits which are missing here, by ``git push --porcelain``.

    None where the remote rejected it for another reason, such as another push at the same moment.
    """
    match = _REJECTED_REF.search(output)
    return match[1] if match else None


ADVICE = {
    Cause.LOCKED: "another git process is at work in the repository: wait for it, or end it, and try again",
    Cause.REJECTED: "the upstream has newer commits: try again, or git pull --rebase",
    Cause.DIVERGED: "the branch that git push goes to has newer commits and is not your branch's upstream: "
    "git pull --rebase REMOTE BRANCH, then git push",
    Cause.NO_ACCESS: "the commit is made; the remote refused the key or password: see the output of git push",
    Cause.UNREACHABLE: "the commit is made; push it when the remote can be reached: git push",
    Cause.CONFLICT: "your commit and the upstream's change the same lines: resolve the conflict by hand",
    Cause.UNMERGED: "resolve the files that git status shows as unmerged, git add them, and commit again",
    Cause.IN_PROGRESS: "finish or abort the operation that git status shows (a merge is committed without paths)",
    Cause.NOTHING: "nothing is staged: git add the changes to commit",
    Cause.NO_MESSAGE: "give a message: -m MESSAGE",
    Cause.NO_IDENTITY: "git config user.name NAME && git config user.email ADDRESS",
    Cause.HOOK: "a hook of the repository failed: see its output, correct the cause, and commit again",
    Cause.SIGNING: "the commit could not be signed: unlock the key, or see git config commit.gpgsign",
    Cause.NO_ROOM: "free space on the disk, and commit again; nothing was changed",
    Cause.NO_PERMISSION: "git may not write to its directory: check the owner of the files",
    Cause.CORRUPT: "git's files are damaged: run git fsck; a damaged index is rebuilt by: rm .git/index && git reset",
    Cause.NO_UPSTREAM: "the commit is made; set where to push it: git push --set-upstream REMOTE BRANCH",
    Cause.DETACHED: "the commit is made, on no branch: git switch -c NAME keeps it",
    Cause.REFUSED: "the commit is made; a rule of the remote forbids pushing it",
    Cause.NO_REPOSITORY: "git init makes this folder a repository",
    Cause.TIMED_OUT: "git took too long and was terminated; a hook may hang, or a key may wait for its password",
    Cause.USAGE: "see git commit -h",
    Cause.TAKEN_BACK: "a commit that is upstream was amended or reset here; decide which one counts: "
    "git pull --rebase brings the upstream's back, git push --force-with-lease --force-if-includes removes it for all",
    Cause.MERGE: "a merge with changes by hand cannot be repeated automatically: git pull --rebase=merges, or git pull",
    Cause.INTERRUPTED: "a signal interrupted it: the next commit finishes or undoes what was begun",
    Cause.UNKNOWN: "see git's output",
}
"""The advice for a person, one sentence for each cause."""
