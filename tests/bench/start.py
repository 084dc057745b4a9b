"""The time of `hook` and `status` as whole processes, beside `python3 -I -c pass` of the same interpreter.

python tests/bench/start.py [--runs 40]     (with the program installed beside that python, not editable)
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


def wall_ms(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, input=b'{"session_id":"x"}', stdout=subprocess.DEVNULL, check=True
    )
    return (time.perf_counter() - began) * 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=40)
    options = parser.parse_args()
    program = str(Path(sys.executable).with_name("yolo-supervisor"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / ".yolo-planning" / ".supervisor" / "hooks").mkdir(parents=True)
        environment = {**os.environ, "HOME": name, "XDG_CONFIG_HOME": name}
        commands = {
            "python -I -c pass": [sys.executable, "-I", "-c", "pass"],
            "hook": [program, "hook", "PreToolUse"],
            "status": [program, "status"],
            "status --json": [program, "status", "--json"],
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        for number in range(options.runs + 1):
            for what, command in commands.items():
                took = wall_ms(command, folder, environment)
                if number:
                    times[what].append(took)
        base = times["python -I -c pass"]
        for what, took in times.items():
            over = statistics.median(a - b for a, b in zip(took, base, strict=True))
            shown = f"median {statistics.median(took):6.1f} ms, over python {over:6.1f} ms, max {max(took):6.1f} ms"
            print(f"{what:<20} {shown}")


if __name__ == "__main__":
    main()
