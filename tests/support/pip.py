"""Programs from PyPI, installed once on a machine and cached, each in a separate environment."""

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from support.npm import CACHE


def installed(package: str) -> Path:
    """The folder of the package's programs. A test that cannot have it is skipped, which CI takes for a failure."""
    folder = CACHE / f"pip-{package}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            for argv in (
                [sys.executable, "-m", "venv", str(folder / "venv")],
                [str(folder / "venv" / "bin" / "pip"), "install", "--quiet", package],
            ):
                done = subprocess.run(argv, capture_output=True, text=True, timeout=500, check=False)
                if done.returncode:
                    pytest.skip(f"pip cannot install {package}: not tested: {done.stderr}")
            (folder / "complete").touch()
    return folder / "venv" / "bin"
