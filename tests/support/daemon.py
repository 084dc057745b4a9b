"""The real daemon as a separate process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.wait import LIMIT_S, wait_until
from support.warm import WarmChild
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths

QUICK = """
[processes]
grace_s = 0.5
sample_s = 0.1
[agents]
interval_s = 0.3
[sessions]
interval_s = 0.1
detach_grace_s = 0.5
on_detach = "terminate"
"""
"""The configuration of a daemon with short intervals."""


class RunningDaemon:
    """The real daemon as a separate process."""

    def __init__(self, project: Path, child: subprocess.Popen[bytes] | WarmChild, log: Path) -> None:
        self.project = project
        self.child = child
        self.log = log

    @property
    def folder(self) -> Path:
        return Paths(self.project).folder

    def history(self) -> list[dict[str, Any]]:
        """The journal's entries, oldest first."""
        return history(self.folder / "journal.jsonl")

    def did(self, action: str, key: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.history() if e["action"] == action and key in (None, e["key"])]

    def sees(self, pid: int) -> bool:
        """Whether the process is known as part of an agent's tree."""
        trees = self.folder / "trees.json"
        return trees.exists() and str(pid) in trees.read_text()

    def wait(self, seen: Callable[[], Any], what: str) -> Any:
        """Wait until ``seen`` is truthy; its value. If the time or the daemon ends, the error has the log."""
        try:
            found = wait_until(lambda: seen() or self.child.poll() is not None, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()[-3000:]}") from None
        assert self.child.poll() is None, f"the daemon ended\n{self.log.read_text()[-3000:]}"
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return self.child.wait(LIMIT_S)


StartDaemon = Callable[..., RunningDaemon]
