"""Commits that are in the way of others, or of a full disk."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable

from yolo_supervisor.drill.sandbox import Scene
from yolo_supervisor.drill.trial import Fault, Watch


def _change(scene: Scene, name: str, text: str, theirs: bool = False) -> str:
    """Change a file in the project, and have it staged; or, as somebody else, commit and push it."""
    folder = scene.other if theirs else scene.project
    if theirs:
        scene.git("pull", "-q", "--rebase", folder=folder)
    (folder / name).write_text(text)
    scene.git("add", name, folder=folder)
    if theirs:
        scene.git("commit", "-q", "-m", f"theirs: {text}", folder=folder)
        scene.git("push", "-q", folder=folder)
    return f"ours: {text}"


def _pushed(scene: Scene, message: str) -> int:
    """How often a commit with that message is upstream."""
    return scene.git("log", "--format=%s", folder=scene.upstream()).splitlines().count(message)


def _race(scene: Scene, dice: random.Random, theirs: str, ours: str) -> tuple[str, Callable[[], bool]]:
    """Somebody else has pushed a change of one file before, ours of another is staged, and a third is still being
    written. The message to commit with, and whether that third file is as it was."""
    scene.upstream()
    _change(scene, theirs, str(dice.random()), theirs=True)
    message = _change(scene, ours, str(dice.random()))
    unfinished, words = scene.project / "unfinished.txt", str(dice.random())
    unfinished.write_text(words)
    return message, lambda: unfinished.read_text() == words


def commit_index_lock(scene: Scene, dice: random.Random) -> Watch:
    """A killed git has left index.lock behind, and somebody wants to commit."""
    scene.repository()
    (scene.project / ".git" / "index.lock").touch()
    child = scene.begin("commit", "-q", "--allow-empty", "-m", "locked")
    return Watch(lambda: child.poll() == 0, frozenset({"index.lock"}), ("released",))


def commit_non_fast_forward(scene: Scene, dice: random.Random) -> Watch:
    """Somebody else was quicker to push: our commit goes on top of theirs, unfinished work stays as it is."""
    message, untouched = _race(scene, dice, "theirs.txt", "ours.txt")
    child = scene.begin("commit", "--push", "-q", "-m", message)
    return Watch(
        lambda: child.poll() == 0 and _pushed(scene, message) == 1 and untouched(),
        frozenset({str(scene.project)}), ("rebased",),
    )  # fmt: skip


def commit_conflict(scene: Scene, dice: random.Random) -> Watch:
    """Somebody else has pushed another change of the same line: everything stays as it was, and a person is told."""
    message, untouched = _race(scene, dice, "same.txt", "same.txt")
    child = scene.begin("commit", "--push", "-q", "-m", message)

    def settled() -> bool:
        if child.poll() is None:
            return False
        kept = scene.git("log", "-1", "--format=%s") == message and untouched()
        told = any(e["action"] == "escalated" and e["key"] == str(scene.project) for e in scene.entries())
        if kept and told:  # the person decides, so that the next fault finds a project that can be pushed
            scene.git("reset", "-q", "--hard", "@{upstream}")
        return child.returncode == 1 and kept and told

    return Watch(settled, frozenset({str(scene.project)}), ("escalated",))


def commit_killed_midway(scene: Scene, dice: random.Random) -> Watch:
    """The commit is killed in the middle of going on top of somebody else's, and made again."""
    message, untouched = _race(scene, dice, "theirs.txt", "ours.txt")
    first = scene.begin("commit", "--push", "-q", "-m", message)
    time.sleep(dice.random() * 0.4)  # not a wait: the random moment of the crash
    first.kill()
    first.wait()
    tries = [scene.begin("commit", "--push", "-q", "--allow-empty", "-m", "again")]

    def landed() -> bool:
        if tries[-1].poll() not in (None, 0):  # what the killed one had begun may still be ending
            tries.append(scene.begin("commit", "--push", "-q", "--allow-empty", "-m", "again"))
        done = tries[-1].poll() == 0 and untouched()
        return done and _pushed(scene, message) <= 1 and scene.git("diff", "HEAD", "@{upstream}") == ""

    return Watch(landed, frozenset({str(scene.project)}), ("rebased",))


def commit_disk_full(scene: Scene, dice: random.Random) -> Watch:
    """There is no room for the commit: nothing is half done, and it goes well when there is room again."""
    scene.repository()
    message = _change(scene, "ours.txt", str(dice.random()))
    tools = scene.workplace()
    narrow = tools / "git"
    narrow.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 0\nexec {shutil.which('git')} \"$@\"\n")
    narrow.chmod(0o755)
    before = scene.git("rev-parse", "HEAD")
    tries = [scene.begin("commit", "-q", "-m", message, tools=tools)]

    def healed() -> bool:
        if len(tries) == 1 and tries[0].poll() is not None:
            if scene.git("rev-parse", "HEAD") != before or tries[0].returncode == 0:
                return False
            tries.append(scene.begin("commit", "-q", "-m", message))
        return len(tries) == 2 and tries[1].poll() == 0 and scene.git("log", "-1", "--format=%s") == message

    return Watch(healed, frozenset({str(scene.project)}), ("escalated",))


FAULTS: tuple[Fault, ...] = (
    commit_index_lock,
    commit_non_fast_forward,
    commit_conflict,
    commit_killed_midway,
    commit_disk_full,
)
