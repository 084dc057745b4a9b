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
"""Tells a hook that commits, too, that its turn is ours."""

NEVER_ASK = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_EDITOR": "true", "GIT_SEQUENCE_EDITOR": "true"}
"""What makes git say no where it would ask, and speak English."""

KEPT = 64 * 1024


class Words:
    """The command line: options of our own come before git's."""

    def __init__(self, words: Sequence[str]) -> None:
        self.json = self.push = self.help = False
        self.limit_s = LIMIT_S
        self.folder = os.getcwd()
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
                if option == "--project":
                    self.folder = os.path.join(self.folder, value)
                elif option == "--timeout":
                    self._limit(value)
            elif named:
                self.git = [word, *rest]
                break
            else:
                self.wrong = word
                break

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
    common = _common_dir(words.folder)
    with Turn(common) as turn:
        if turn.waited_out:
            _end(75, words, {"result": "busy"}, f"others have been committing in {common} for {TURN_S:g} s: try again")
        if common is not None and _left_behind(common):
            from pathlib import Path

            from yolo_supervisor import rescue

            rescue.tidy(Path(words.folder), turn.environment)
        code, said = run(words, turn.environment)
        push = words.push or _pushes(words.folder)
        if code == 0 and not push:
            _end(0, words, {"result": "committed"})
        from pathlib import Path

        from yolo_supervisor import rescue

        again = functools.partial(run, words, turn.environment)
        rescue.main(Path(words.folder), words.json, push, again, (code, said), turn.environment)


def run(words: Words, environment: dict[str, str]) -> tuple[int | None, str]:
    """Run ``git commit``; its exit code (None: it took too long) and the end of what it wrote, which is passed on."""
    try:
        child = subprocess.Popen(
            ["git", "commit", *words.git], cwd=words.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        _end(69, words, {"result": "failed", "cause": "no git"}, "git is not installed")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.killpg(child.pid, number))  # its own session: ours to pass on to
    said = b""
    deadline = time.monotonic() + words.limit_s
    outputs = {pipe.fileno(): fd for pipe, fd in ((child.stdout, 1), (child.stderr, 2)) if pipe is not None}
    while outputs:
        ready, _, _ = select.select(list(outputs), [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            import anyio

            from yolo_supervisor.commands import GRACE_S, end

            anyio.run(end, child.pid, GRACE_S)
            child.wait()
            return None, said.decode(errors="replace")
        for fd in ready:
            part = os.read(fd, KEPT)
            if not part:
                del outputs[fd]
            said = (said + part)[-KEPT:]
            if not words.json:
                os.write(outputs.get(fd, 2), part)
    return child.wait(), said.decode(errors="replace")


class Turn:
    """Our turn to commit in a repository: one at a time, in whichever of its work trees."""

    def __init__(self, common: str | None) -> None:
        self._common = common
        self._fd = -1
        self.waited_out = False
        self.environment = {**os.environ, **NEVER_ASK}
        if common is not None:
            self.environment[INSIDE] = common

    def __enter__(self) -> Turn:
        if self._common is None or os.environ.get(INSIDE) == self._common:
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
                if time.monotonic() > deadline:
                    self.waited_out = True
                    return self
                time.sleep(pause_s)
                pause_s = min(0.05, pause_s * 1.5)

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _common_dir(folder: str) -> str | None:
    """The repository that the folder's work tree belongs to; None where git has to find it otherwise."""
    if "GIT_DIR" in os.environ:
        return None
    while not os.path.lexists(os.path.join(folder, ".git")):
        if folder == (folder := os.path.dirname(folder)):
            return None
    git = os.path.join(folder, ".git")
    try:
        if os.path.isfile(git):
            with open(git) as pointer:
                git = os.path.join(folder, pointer.read().removeprefix("gitdir:").strip())
        with open(os.path.join(git, "commondir")) as pointer:
            git = os.path.join(git, pointer.read().strip())
    except OSError:
        pass
    return os.path.realpath(git)


def _left_behind(common: str) -> bool:
    """Whether a run that was killed has left something in the middle. Our turn proves that it runs no more."""
    try:
        return any(name.startswith(("move-", "tree-")) for name in os.listdir(os.path.join(common, "yolo-supervisor")))
    except OSError:
        return False


def _pushes(folder: str) -> bool:
    """Whether the plugin's ``auto_push`` wants every commit pushed."""
    while not os.path.isdir(os.path.join(folder, ".yolo-planning")):
        if folder == (folder := os.path.dirname(folder)):
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
