"""Commands that do not end."""

from __future__ import annotations

import random
import sys

from yolo_supervisor.drill.sandbox import Scene
from yolo_supervisor.drill.trial import Fault, Watch


def _command(scene: Scene, program: str) -> Watch:
    """The command works in a folder of its own: whoever is still there afterwards was left behind."""
    folder = scene.workplace()
    child = scene.begin("exec", "--timeout", "1", "--", sys.executable, "-c", program, folder=folder)
    return Watch(
        lambda: child.poll() == 124 and not scene.anybody_in(folder), frozenset({sys.executable}), ("terminated",)
    )


def command_hangs(scene: Scene, dice: random.Random) -> Watch:
    """A command hangs, and so does what it has started in a session of its own."""
    return _command(scene, "import subprocess as s; s.Popen(['setsid', 'sleep', '3600']); s.run(['sleep', '3600'])")


def command_ignores_sigterm(scene: Scene, dice: random.Random) -> Watch:
    """A command takes too long, and ignores SIGTERM."""
    return _command(scene, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)")


FAULTS: tuple[Fault, ...] = (
    command_hangs,
    command_ignores_sigterm,
)
