"""Call the program as a person at a terminal does."""

from __future__ import annotations

import functools
import json
import os
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

    def json(self, *words: str, code: int = 0) -> Any:
        """The one document that the command prints."""
        result = self(*words, "--json")
        assert result.returncode == code, result.stderr
        return json.loads(result.stdout)
