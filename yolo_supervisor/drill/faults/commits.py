"""Commits that meet a lock, another user's push, a crash or a full disk."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable

from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, send


def _change(sandbox: Sandbox, name: str, text: str, theirs: bool = False) -> str:
    """Change and stage a file in the project; or, as another user, commit and push it."""
    folder = sandbox.other_clone if theirs else sandbox.project
    if theirs:
        sandbox.git("pull", "-q", "--rebase", folder=folder)
    (folder / name).write_text(text)
    sandbox.git("add", name, folder=folder)
    if theirs:
        sandbox.git("commit", "-q", "-m", f"theirs: {text}", folder=folder)
        sandbox.git("push", "-q", folder=folder)
    return f"ours: {text}"


def _pushed(sandbox: Sandbox, message: str) -> int:
    """The number of commits with this message upstream."""
    return sandbox.git("log", "--format=%s", folder=sandbox.upstream()).splitlines().count(message)


def _race(sandbox: Sandbox, rng: random.Random, theirs: str, ours: str) -> tuple[str, Callable[[], bool]]:
    """Let another user push a change of one file, stage a change of another, and begin a third.

    Returns the message for the commit, and a function that checks that the third file is unchanged.
    """
    sandbox.upstream()
    _change(sandbox, theirs, str(rng.random()), theirs=True)
    message = _change(sandbox, ours, str(rng.random()))
    unfinished, content = sandbox.project / "unfinished.txt", str(rng.random())
    unfinished.write_text(content)
    return message, lambda: unfinished.read_text() == content


def commit_index_lock(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A killed git has left an index.lock, and a commit meets it."""
    sandbox.configure(leases={"interval_s": 0.25})
    killed, _ = sandbox.git_with_index_lock(sandbox.repository())
    send(killed, signal.SIGKILL)
    child = sandbox.start_command("commit", "-q", "--allow-empty", "-m", "locked")
    return Expectation(lambda: child.poll() == 0, frozenset({"index.lock"}), ("released",))


def commit_non_fast_forward(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """Another user has pushed first: the commit is rebased onto theirs, uncommitted changes stay."""
    message, untouched = _race(sandbox, rng, "theirs.txt", "ours.txt")
    child = sandbox.start_command("commit", "--push", "-q", "-m", message)
    return Expectation(
        lambda: child.poll() == 0 and _pushed(sandbox, message) == 1 and untouched(),
        frozenset({str(sandbox.project)}), ("rebased",),
    )  # fmt: skip


def commit_conflict(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """Another user has pushed a conflicting change: nothing is changed, and a person is alerted."""
    message, untouched = _race(sandbox, rng, "same.txt", "same.txt")
    child = sandbox.start_command("commit", "--push", "-q", "-m", message)

    def settled() -> bool:
        if child.poll() is None:
            return False
        kept = sandbox.git("log", "-1", "--format=%s") == message and untouched()
        alerted = any(e["action"] == "escalated" and e["key"] == str(sandbox.project) for e in sandbox.entries())
        if kept and alerted:  # the person decides, so that the next fault finds a project that can be pushed
            sandbox.git("reset", "-q", "--hard", "@{upstream}")
        return child.returncode == 1 and kept and alerted

    return Expectation(settled, frozenset({str(sandbox.project)}), ("escalated",))


def commit_killed_midway(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A commit is killed while it is rebased onto another user's, and made again."""
    message, untouched = _race(sandbox, rng, "theirs.txt", "ours.txt")
    first = sandbox.start_command("commit", "--push", "-q", "-m", message)
    time.sleep(rng.random() * 0.4)  # not a wait: the random moment of the crash
    first.kill()
    first.wait()
    tries = [sandbox.start_command("commit", "--push", "-q", "--allow-empty", "-m", "again")]

    def landed() -> bool:
        if tries[-1].poll() not in (None, 0):  # a git of the killed commit may still be running
            tries.append(sandbox.start_command("commit", "--push", "-q", "--allow-empty", "-m", "again"))
        done = tries[-1].poll() == 0 and untouched()
        return done and _pushed(sandbox, message) <= 1 and sandbox.git("diff", "HEAD", "@{upstream}") == ""

    return Expectation(landed, frozenset({str(sandbox.project)}), ("rebased",))


def commit_disk_full(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """The disk is full: the commit fails without a trace, and succeeds when there is room."""
    sandbox.repository()
    message = _change(sandbox, "ours.txt", str(rng.random()))
    tools = sandbox.new_folder()
    limited_git = tools / "git"
    limited_git.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 0\nexec {shutil.which('git')} \"$@\"\n")
    limited_git.chmod(0o755)
    before = sandbox.git("rev-parse", "HEAD")
    tries = [sandbox.start_command("commit", "-q", "-m", message, tools=tools)]

    def healed() -> bool:
        if len(tries) == 1 and tries[0].poll() is not None:
            if sandbox.git("rev-parse", "HEAD") != before or tries[0].returncode == 0:
                return False
            tries.append(sandbox.start_command("commit", "-q", "-m", message))
        return len(tries) == 2 and tries[1].poll() == 0 and sandbox.git("log", "-1", "--format=%s") == message

    return Expectation(healed, frozenset({str(sandbox.project)}), ("escalated",))


FAULTS: tuple[Fault, ...] = (
    commit_index_lock,
    commit_non_fast_forward,
    commit_conflict,
    commit_killed_midway,
    commit_disk_full,
)
