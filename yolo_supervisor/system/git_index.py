"""Questions about git's index, asked of git without letting the repository run anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

LIMIT_S = 1.0
"""The longest time that git may take to answer."""


def is_unmerged(path: Path) -> bool | None:
    """Whether git's index shows a merge conflict in the file; None if git does not answer."""
    command = [
        "git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
        "ls-files", "--unmerged", "-z", "--", f":(literal){path.name}",
    ]  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        ended = subprocess.run(
            command, cwd=path.parent, env={**kept, "GIT_OPTIONAL_LOCKS": "0"}, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(ended.stdout) if ended.returncode == 0 else None
