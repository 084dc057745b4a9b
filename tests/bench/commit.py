"""Compare a successful `commit` with plain `git commit`, in turn, in the same repository.

python tests/bench/commit.py [--runs 40]     (with the program installed beside that python, not editable)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {"10 files": (10, ""), "5,000 files": (5_000, ""), "50,000 files": (50_000, ""), "a hook": (10, "sleep 0.1")}


def repository(folder: Path, number: int, hook: str) -> Path:
    """Create a repository with `number` files and a pre-commit hook."""
    git(folder.parent, "init", "-q", str(folder))
    for index in range(number):
        path = folder / f"folder-{index % 100}" / str(index)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{index}\n")
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "first")
    if hook:
        path = folder / ".git" / "hooks" / "pre-commit"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{hook}\n")
        path.chmod(0o755)
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def commit_ms(folder: Path, command: list[str], number: int) -> float:
    """The time of one commit of one changed file."""
    (folder / "folder-0" / "0").write_text(f"changed {number}\n")
    git(folder, "add", "folder-0/0")
    began = time.perf_counter()
    subprocess.run([*command, "-qm", "message"], cwd=folder, check=True)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    program = str(Path(sys.executable).with_name("yolo-supervisor"))
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve()
        (home / "gitconfig").write_text("[user]\nname = Person\nemail = person@localhost\n[gc]\nauto = 0\n")
        os.environ |= {"HOME": name, "GIT_CONFIG_GLOBAL": str(home / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1"}
        for what, (number, hook) in CASES.items():
            folder = repository(home / what, number, hook)
            plain, ours = [], []
            for run in range(options.runs + 1):
                taken = (
                    commit_ms(folder, ["git", "commit"], 2 * run),
                    commit_ms(folder, [program, "commit"], 2 * run + 1),
                )
                if run:  # the first one fills the caches
                    plain.append(taken[0])
                    ours.append(taken[1])
            base, took = statistics.median(plain), statistics.median(ours)
            print(f"{what:<13} git commit {base:6.1f} ms, ours {took:6.1f} ms (p50), {took / base:.2f} times as long")


if __name__ == "__main__":
    main()
