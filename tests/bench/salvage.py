"""Measure how long it takes to save the uncommitted work of a dead agent, and how long the event loop waits meanwhile.

python tests/bench/salvage.py [--runs 5]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import anyio

from yolo_supervisor.commits.salvage import Saved, save_work

CASES = {
    "30 files, 5 changed": (30, 5, 0),
    "10,000 files, 50 changed": (10_000, 50, 0),
    "100,000 files, 50 changed": (100_000, 50, 0),
    "30 files, 5,000 untracked": (30, 5000, 0),
    "30 files, 300 MiB untracked": (30, 5, 300),
}
"""The number of committed files, of changed or untracked ones, and the size of large untracked ones in MiB."""


def repository(folder: Path, number: int) -> Path:
    """A repository with ``number`` files."""
    git(folder.parent, "init", "-q", str(folder))
    for index in range(number):
        path = folder / f"folder-{index % 100}" / str(index)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{index}\n")
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "first")
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True)


def change(folder: Path, changed: int, large_mib: int, run: int) -> None:
    for index in range(changed):
        (folder / f"folder-{index % 30}" / str(index)).write_text(f"changed {index} {run}\n" * 100)
    for index in range(large_mib):
        (folder / f"large-{index}").write_bytes(os.urandom(2**20))


async def timed(folder: Path) -> tuple[Saved, float, float]:
    """The result, its seconds, and the longest pause of the event loop in seconds."""
    longest_s, began = 0.0, time.perf_counter()

    async def look() -> None:
        nonlocal longest_s
        while True:
            before = time.perf_counter()
            await anyio.sleep(0.001)
            longest_s = max(longest_s, time.perf_counter() - before - 0.001)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        saved = await save_work(folder, "dev-1")
        took_s = time.perf_counter() - began
        tasks.cancel_scope.cancel()
    return saved, took_s, longest_s


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name).resolve() / "home"
        home.mkdir()
        (home / "gitconfig").write_text("[user]\nname = Person\nemail = person@localhost\n[gc]\nauto = 0\n")
        os.environ |= {"HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1"}
        for what, (number, changed, large_mib) in CASES.items():
            folder = repository(home.parent / what, number)
            runs, pauses, cpus = [], [], []
            for run in range(options.runs):
                change(folder, changed, large_mib, run)
                before = cpu_s()
                saved, took_s, pause_s = anyio.run(timed, folder)
                runs.append(took_s)
                pauses.append(pause_s)
                cpus.append(cpu_s() - before)
            print(
                f"{what:30} median {statistics.median(runs):6.3f} s, worst {max(runs):6.3f} s, processor "
                f"{statistics.median(cpus):6.3f} s, loop waited {max(pauses) * 1000:5.1f} ms, "
                f"{saved.outcome}, left out {len(saved.omitted)}"
            )


if __name__ == "__main__":
    main()
