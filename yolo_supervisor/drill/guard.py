"""Clean up after a drill that was killed.

    python -m yolo_supervisor.drill.guard FOLDER

It waits for the end of its input, a pipe from the drill, and does nothing if the drill wrote that it has cleaned up
itself.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from yolo_supervisor.drill.sandbox import LIMIT_S, end_all_in
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes


def main(folder: Path) -> None:
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read():
        return
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["tmux", "-S", str(folder / "tmux.sock"), "kill-server"], check=False, timeout=LIMIT_S)
    end_all_in(folder, Processes(backend()))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
