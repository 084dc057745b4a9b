"""The cost of `exec`: the time of `exec -- true` beside `true` itself and beside the bare interpreter, each as a whole
process, in turns; and the memory that it takes while its command runs.

python tests/bench/exec.py [--runs 40]     (with the program installed beside that python)
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

PROGRAM = str(Path(sys.executable).with_name("yolo-supervisor"))
TRUE = shutil.which("true") or "true"


def wall_ms(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True)
    return (time.perf_counter() - began) * 1000


def rss_mib(folder: Path) -> float:
    """The resident memory of ``exec`` in MiB after its command has written a gigabyte."""
    command = [PROGRAM, "exec", "--", "sh", "-c", "head -c 1000000000 /dev/zero; sleep 60"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        passed = 0
        while passed < 1_000_000_000:
            passed += len(os.read(child.stdout.fileno(), 1 << 20))
        size: int = psutil.Process(child.pid).memory_info().rss
        child.terminate()
    return size / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    commands = {
        "true": [TRUE],
        "python -I -c pass": [sys.executable, "-I", "-c", "pass"],
        "exec -- true": [PROGRAM, "exec", "--", TRUE],
    }
    times: dict[str, list[float]] = {what: [] for what in commands}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.runs + 1):
            for what, command in commands.items():
                ms = wall_ms(command, Path(name))
                if number:  # the first finds cold caches
                    times[what].append(ms)
        memory = rss_mib(Path(name))
    for what, took in times.items():
        over = statistics.median(a - b for a, b in zip(took, times["true"], strict=True))
        shown = f"median {statistics.median(took):6.1f} ms, over true {over:6.1f} ms, max {max(took):6.1f} ms"
        print(f"{what:<20} {shown}")
    print(f"memory while its command runs: {memory:.1f} MiB")


if __name__ == "__main__":
    main()
