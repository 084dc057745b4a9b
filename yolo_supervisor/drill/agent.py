"""A process that plays a coding agent: it claims a task as the client does, and runs a tool in a session of its own.

    python -m yolo_supervisor.drill.agent --agent-id dev-1@team --agent-name dev-1 --team-name team \\
        --task FILE --ready FILE [--ignore-sigterm] [--busy]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--agent-id", "--agent-name", "--team-name"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    claim(options.task, options.agent_name)
    tool = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    temporary = options.ready.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "tool": tool.pid}))
    temporary.rename(options.ready)
    while True:
        time.sleep(0.1 if options.busy else 3600)
        began = time.process_time()
        while options.busy and time.process_time() - began < 0.02:
            pass


def claim(path: Path, owner: str) -> None:
    """Take the task under the client's own lock: a folder beside the file, written in place as the client does."""
    lock = path.with_name(path.name + ".lock")
    while True:
        with contextlib.suppress(FileExistsError):
            lock.mkdir()
            break
        time.sleep(0.01)
    try:
        task = json.loads(path.read_text())
        path.write_text(json.dumps({**task, "status": "in_progress", "owner": owner}, indent=2))
    finally:
        lock.rmdir()


if __name__ == "__main__":
    main()
