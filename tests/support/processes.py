"""Child processes of a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.guard import CHILD_MARK, kill_all, new_mark


class Children:
    """Real processes that a test starts, and ends in any case."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []
        self._mark = new_mark()

    def start(self, *argv: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        marked = {**os.environ, CHILD_MARK: self._mark}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "env": marked, **options}
        child = subprocess.Popen(argv, cwd=cwd or self._folder, **options)
        self._started.append(child)
        return child

    def python(self, program: str, *arguments: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        """A Python child; returns when it has printed its first line, ``ready`` say."""
        child = self.start(sys.executable, "-c", program, *arguments, cwd=cwd, **options)
        assert child.stdout is not None
        assert child.stdout.readline(), "the child ended before it was ready"
        return child

    def agent(self, name: str, team: str, cwd: Path, program: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """A process that looks like a teammate: it runs ``program``, says ready and sleeps."""
        body = f"{program}\nprint('ready', flush=True)\nimport time\ntime.sleep(600)\n"
        flags = ("--agent-id", f"{name}@{team}", "--agent-name", name, "--team-name", team)
        return self.python(body, *flags, cwd=cwd, **options)

    def end(self) -> None:
        """Kill the processes and all that they have started."""
        for child in self._started:
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream is not None:
                    stream.close()
        if self._started and sys.platform == "linux":
            kill_all(CHILD_MARK, self._mark)


def watching(folder: Path) -> str:
    """A Python program that has the kernel report the changes in a folder, says ready and sleeps."""
    return f"""
import ctypes, time
libc = ctypes.CDLL(None)
assert libc.inotify_add_watch(libc.inotify_init(), {os.fsencode(folder)!r}, 0x100) == 1
print('ready', flush=True)
time.sleep(600)
"""
