"""Call the program as a person at a terminal does."""

from __future__ import annotations

import functools
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.wait import LIMIT_S
from support.warm import Warm, WarmChild

PROGRAM = (sys.executable, "-m", "yolo_supervisor")


@functools.cache
def warm_program() -> Warm:
    """The warm program of this test process; it ends with this process."""
    return Warm()


def start_program(
    argv: tuple[str, ...], folder: Path, output: int, **environment: str
) -> subprocess.Popen[bytes] | WarmChild:
    """The program as a process that writes everything to the descriptor."""
    full = {**os.environ, **environment}
    if (warm := warm_program()).fits():
        return warm.start(argv, folder, output, output, full)
    return subprocess.Popen(
        [*PROGRAM, *argv], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=full, cwd=folder
    )


TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


def at_terminal(*argv: str) -> tuple[str, ...]:
    """The command line of a program whose standard input is a terminal, which it takes as a login shell does."""
    return sys.executable, "-c", TAKE_TERMINAL, *argv


class Cli:
    """Calls the program in a folder, as a person at a terminal there. No mistake may end in a traceback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if not options and (warm := warm_program()).fits():
            result = warm.run(words, self.folder, LIMIT_S)
        else:
            options = {"timeout": LIMIT_S, "cwd": self.folder, "stdin": subprocess.DEVNULL, **options}
            result = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, **options)
        assert "Traceback" not in result.stderr, result.stderr
        return result

    def by_person(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Call the program in the foreground of a terminal, as only a person does."""
        ours, theirs = pty.openpty()
        try:
            options = {"timeout": LIMIT_S, "cwd": self.folder, **options}
            return subprocess.run(
                at_terminal(*PROGRAM, *words), stdin=theirs, capture_output=True, text=True, start_new_session=True,
                **options,
            )  # fmt: skip
        finally:
            os.close(theirs)
            os.close(ours)

    def json(self, *words: str, code: int = 0) -> Any:
        """The one document that the command prints."""
        result = self(*words, "--json")
        assert result.returncode == code, result.stderr
        return json.loads(result.stdout)
