"""``commit [GIT-COMMIT-ARGS]``: git commit that recovers. This is its short way, when all goes well: it imports next to
nothing, and runs git as the user has it. What has failed is seen to in ``rescue``."""

from __future__ import annotations

import fcntl
import functools
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

TYPE_CHECKING = False  # ``typing`` takes longer to import than git to commit
if TYPE_CHECKING:
    from typing import NoReturn

LIMIT_S = 600.0
"""How long git and its hooks may take."""

TURN_S = 300.0
"""How long others that commit in the same repository are waited for."""

INSIDE = "YOLO_SUPERVISOR_COMMITS_IN"
"""Tells a hook that commits, too, that its turn is ours: a line ``PID REPOSITORY`` for each commit that it is inside.
What a hook has left in the background inherits it, and is inside none."""

NEVER_ASK = {"GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": "true", "GIT_SEQUENCE_EDITOR": "true"}
"""What makes git say no where it would ask."""

KEPT = 64 * 1024

ONLY_ASK = ("--dry-run", "--short", "--porcelain", "--long")

OUR_INPUT = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "-")
"""What the standard input is called on a command line."""

LOOK_S = 0.05
"""How often it is looked whether git has ended, though somebody else still has its outputs."""


class Words:
    """The command line: options of our own come before git's."""

    def __init__(self, words: Sequence[str]) -> None:
        self.json = self.push = self.help = False
        self.limit_s = LIMIT_S
        self.input = subprocess.DEVNULL
        try:
            self.folder = os.getcwd()
        except FileNotFoundError:
            self.folder = ""
        self.git: list[str] = []
        self.wrong: str | None = None
        rest = list(words)
        named = False
        while rest:
            word = rest.pop(0)
            option, _, value = word.partition("=")
            if word == "--json":
                self.json = True
            elif word == "commit" and not named:
                named = True
            elif named and word == "--push":
                self.push = True
            elif named and word in ("-h", "--help"):
                self.help = True
            elif option in ("--project", "--config", "--timeout") and (named or not self.git):
                value = value or (rest.pop(0) if rest else "")
                if not value:
                    self.wrong = word
                elif option == "--project":
                    self.folder = os.path.join(self.folder, value)
                elif option == "--timeout":
                    self._limit(value)
            elif named:
                self.git = [word, *rest]
                break
            else:
                self.wrong = word
                break
        self.folder = os.path.realpath(self.folder) if self.folder else ""

    @property
    def asks(self) -> bool:
        """Whether git is only asked what it would do."""
        git = self.git[: self.git.index("--")] if "--" in self.git else self.git
        return any(word == each or (len(word) > 4 and each.startswith(word)) for word in git for each in ONLY_ASK)

    def _limit(self, value: str) -> None:
        try:
            self.limit_s = float(value)
        except ValueError:
            self.limit_s = 0.0
        if not 0 < self.limit_s <= 86400:
            self.wrong = f"--timeout {value}"


def main() -> None:
    """Commit and end the process; return only if the command line is another's, or asks for help."""
    words = Words(sys.argv[1:])
    if words.wrong is not None or words.help or not os.path.isdir(words.folder):
        return
    own, common = _git_dirs(words.folder)
    if _asks_for_input(words.git):
        words.input = _kept_input()
    with Turn(common) as turn:
        if turn.waited_out:
            _end(75, words, {"result": "busy"}, f"others have been committing in {common} for {TURN_S:g} s: try again")
        if common is not None and not turn.nested and _left_behind(common):
            from pathlib import Path

            from yolo_supervisor.commits import recovery

            recovery.tidy(Path(words.folder), turn.environment)
        before = _tip(own, common)
        code, said = run(words, turn.environment)
        push = not words.asks and (words.push or _pushes(words.folder))
        moved = _tip(own, common) != before
        if code == 0 and not (push and moved):
            _end(0, words, {"result": "committed" if moved and not words.asks else "unchanged"})
        from pathlib import Path

        from yolo_supervisor.commits import recovery

        again = functools.partial(run, words, turn.environment)
        made = functools.partial(_made, own, common, before)
        nothing = functools.partial(_nothing, words, turn.environment)
        recovery.main(
            Path(words.folder), words.json, push, again, (code, said), turn.environment, made, nothing, turn.nested
        )


class Git:
    """``git commit`` while it runs, and the signals that are its."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.starting = False
        self.passed_on: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _: object) -> None:
        if self.pid is None and not self.starting:
            raise SystemExit(128 + number)
        self.passed_on.append(number)
        if self.pid is not None:
            os.killpg(self.pid, number)  # its own session, and not reaped yet

    def start(self, words: Words, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        if words.input >= 0:
            os.lseek(words.input, 0, os.SEEK_SET)
        self.starting = True
        child = subprocess.Popen(
            ["git", "commit", *words.git], cwd=words.folder, env=environment, stdin=words.input,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            close_fds=False,  # what was opened for it, by <(...) say; ours is never passed on
        )  # fmt: skip
        self.pid, self.starting = child.pid, False
        for number in self.passed_on:
            os.killpg(child.pid, number)
        return child

    def ended(self, wait: bool = False) -> bool:
        """Whether it has ended. It is not reaped: until then its pid is nobody else's."""
        assert self.pid is not None
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | (0 if wait else os.WNOHANG)) is None:
            return False
        self.pid = None
        return True


def run(words: Words, environment: dict[str, str]) -> tuple[int | None, str]:
    """Run ``git commit``; its exit code (None: it took too long) and the end of what it wrote, which is passed on."""
    git = Git()
    try:
        child = git.start(words, environment)
    except FileNotFoundError:
        _end(69, words, {"result": "failed", "cause": "no git"}, "git is not installed")
    said = b""
    deadline = time.monotonic() + words.limit_s
    outputs = {pipe.fileno(): fd for pipe, fd in ((child.stdout, 1), (child.stderr, 2)) if pipe is not None}
    ended = False
    while outputs:
        left_s = deadline - time.monotonic()
        if left_s <= 0 and not ended:
            _end_all_of(child.pid)
            child.wait()
            git.pid = None
            return None, said.decode(errors="replace")
        ready, _, _ = select.select(list(outputs), [], [], 0 if ended else min(left_s, LOOK_S))
        if ended and (not ready or left_s <= 0):
            break  # what a hook has left running, a server say, has our pipes: it is not waited for
        for fd in ready:
            part = os.read(fd, KEPT)
            if not words.json:
                _write(outputs[fd], part)
            if not part:
                del outputs[fd]
            said = (said + part)[-KEPT:]
        ended = ended or (not ready and git.ended())
    if not ended:
        git.ended(wait=True)
    if git.passed_on:  # a shell may not have heard it, between two of its commands
        _end_all_of(child.pid)
    code = child.wait()
    if code != 0 and git.passed_on:
        _end(128 + git.passed_on[0], words, {"result": "failed", "cause": "interrupted"}, "git was told to end")
    return code, said.decode(errors="replace")


def _end_all_of(pid: int) -> None:
    """End what git, which is not reaped yet, has started."""
    import anyio

    from yolo_supervisor.system.subprocesses import GRACE_S, end

    anyio.run(end, pid, GRACE_S)


def _write(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except OSError:
        pass  # nobody listens: git goes on all the same


class Turn:
    """Our turn to commit in a repository: one at a time, in whichever of its work trees."""

    def __init__(self, common: str | None) -> None:
        self._common = common
        self._fd = -1
        self.waited_out = False
        self.environment = {**os.environ, **NEVER_ASK, "LC_MESSAGES": "C"}  # git speaks English, in the user's letters
        self.environment.pop("LANGUAGE", None)
        if letters := self.environment.pop("LC_ALL", None):
            self.environment["LC_CTYPE"] = letters
        outer = [each.partition(" ") for each in os.environ.get(INSIDE, "").split("\n")]
        around = {pid for pid, _, each in outer if each == common and common is not None}
        self.nested = bool(around) and not around.isdisjoint(_ancestors())
        self._perhaps = any(not _exists(pid) for pid in around)
        """Whether a commit may be around us that we cannot see, from another namespace of processes say."""
        if common is not None:
            self.environment[INSIDE] = "\n".join(
                [*(" ".join(each[::2]) for each in outer if each[2]), f"{os.getpid()} {common}"]
            )

    def __enter__(self) -> Turn:
        if self._common is None or self.nested:
            return self
        try:
            path = os.path.join(self._common, "yolo-supervisor.lock")
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return self  # where we may not write, git says so better
        deadline, pause_s = time.monotonic() + TURN_S, 0.001
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                if self._perhaps:
                    self.nested = True  # it is the one that we would wait for in vain
                    return self
                if time.monotonic() > deadline:
                    self.waited_out = True
                    return self
                time.sleep(pause_s)
                pause_s = min(0.05, pause_s * 1.5)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _ancestors() -> set[str]:
    """The pids of the processes that we descend from."""
    found, pid = set[str](), str(os.getppid())
    while pid not in ("0", "1") and pid not in found:
        found.add(pid)
        pid = _parent(pid)
    return found


def _parent(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[1].decode()
    except OSError:
        pass  # there is no /proc, as on a Mac
    try:
        told = subprocess.run(["ps", "-o", "ppid=", "-p", pid], stdout=subprocess.PIPE, text=True, check=False)
    except OSError:
        return "0"
    return told.stdout.strip() or "0"


def _exists(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (OSError, ValueError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _git_dirs(folder: str) -> tuple[str | None, str | None]:
    """The git folder of the work tree's own, and the repository that it belongs to; None where only git can find it."""
    if "GIT_DIR" in os.environ:
        own = common = os.path.join(folder, os.environ["GIT_DIR"])
    else:
        while not os.path.lexists(os.path.join(folder, ".git")):
            if folder == (folder := os.path.dirname(folder)):
                return None, None
        own = common = os.path.join(folder, ".git")
    try:
        if os.path.isfile(own):
            with open(own) as pointer:
                own = common = os.path.join(folder, pointer.read().removeprefix("gitdir:").strip())
        with open(os.path.join(own, "commondir")) as pointer:
            common = os.path.join(own, pointer.read().strip())
    except OSError:
        pass
    return os.path.realpath(own), os.path.realpath(common)


def _asks_for_input(git: list[str]) -> bool:
    """Whether a message, or paths, are to be read from the standard input."""
    words = git[: git.index("--")] if "--" in git else git
    for before, word in zip(["", *words], words, strict=False):
        name = next((each for each in OUR_INPUT if word.endswith(each)), "")
        option, value = (before, word) if word == name else (word.removesuffix(name).removesuffix("="), name)
        if value and (option.startswith(("--fi", "--pathspec-fr")) or _is_short(option, "F")):
            return True
    return False


def _is_short(option: str, letter: str) -> bool:
    return option.endswith(letter) and option.startswith("-") and not option.startswith("--")


def _kept_input() -> int:
    """The standard input as a file: git may have to be asked more than once."""
    import tempfile

    fd, path = tempfile.mkstemp()
    os.unlink(path)
    while part := os.read(0, KEPT):
        os.write(fd, part)
    return fd


def _tip(own: str | None, common: str | None) -> str | None:
    """The commit that HEAD is at, as its files tell; something else each time where they do not."""
    try:
        with open(os.path.join(own or "", "HEAD")) as head:
            tip, told = head.read().strip(), ""
        while tip.startswith("ref: ") and len(told) < 4096:  # a branch may be another name of one
            told, tip = f"{told}{tip} ", _ref(tip.removeprefix("ref: "), own or "", common or "")
        return told + tip
    except OSError:
        return str(time.monotonic_ns())


def _ref(name: str, own: str, common: str) -> str:
    """What the ref says; nothing where it is not there yet."""
    for folder in (own, common):
        try:
            with open(os.path.join(folder, name)) as ref:
                return ref.read().strip()
        except FileNotFoundError:
            continue
    try:
        with open(os.path.join(common, "packed-refs")) as packed:
            return next((line.split()[0] for line in packed if line.rstrip().endswith(f" {name}")), "")
    except FileNotFoundError:
        return ""


def _made(own: str | None, common: str | None, before: str | None, code: int | None, said: str) -> bool:
    """Whether a commit that did not end well is there all the same: git says so, or was ended after it was made.

    That HEAD has moved is not enough: somebody else may have committed beside a hook of ours that said no.
    """
    ended = code is None or code < 0 or (code == 128 and "repository has been updated, but unable to write" in said)
    return ended and _tip(own, common) != before


def _nothing(words: Words, environment: dict[str, str]) -> bool | None:
    """Whether there is nothing to commit by these words, without any hook's word for it; None if git cannot tell."""
    if words.input >= 0:
        os.lseek(words.input, 0, os.SEEK_SET)
    command = ["git", "commit", "--dry-run", "--no-verify", *words.git]
    told = subprocess.run(
        command, cwd=words.folder, env=environment, stdin=words.input, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return {0: False, 1: True}.get(told.returncode)


def _left_behind(common: str) -> bool:
    """Whether a run that was killed has left something in the middle. Our turn proves that it runs no more."""
    try:
        return any(
            name.startswith(("move-", "tree-", "index-"))
            for name in os.listdir(os.path.join(common, "yolo-supervisor"))
        )
    except OSError:
        return False


def _pushes(folder: str) -> bool:
    """Whether the plugin's ``auto_push`` wants every commit pushed: a project's in this repository, not around it."""
    while not os.path.isdir(os.path.join(folder, ".yolo-planning")):
        if os.path.lexists(os.path.join(folder, ".git")) or folder == (folder := os.path.dirname(folder)):
            return False
    try:
        with open(os.path.join(folder, ".yolo-planning", "config.json"), "rb") as config:
            data = config.read(1 << 20)
    except OSError:
        return False
    if b"auto_push" not in data:
        return False
    import json

    try:
        return bool(json.loads(data).get("auto_push") == "always")
    except (ValueError, AttributeError):
        return False


def _end(code: int, words: Words, answer: dict[str, object], message: str = "") -> NoReturn:
    if words.json:
        import json

        print(json.dumps({**answer, **({"message": message} if message else {})}), flush=True)
    elif message:
        print(f"yolo-supervisor: {message}", file=sys.stderr, flush=True)
    os._exit(code)
