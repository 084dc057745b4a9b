"""Packages of npm, installed once on a machine and cached."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo-supervisor-tests"


def installed(*packages: str) -> Path:
    """The folder with the packages. If they cannot be installed the test is skipped, which CI takes for a failure."""
    folder = CACHE / "+".join(package.rpartition("/")[2] for package in packages)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            if shutil.which("npm") is None:
                pytest.skip(f"npm is missing: not tested with {', '.join(packages)}")
            argv = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
            install = subprocess.run(argv, capture_output=True, text=True, timeout=500)
            if install.returncode:
                pytest.skip(f"npm cannot install {', '.join(packages)}: not tested: {install.stderr}")
            (folder / "complete").touch()
    return folder / "node_modules"
