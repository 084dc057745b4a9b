"""The program, started warm: one process has imported it all, and becomes the program in a copy of itself each time.

A call is a process of its own as ever, with its own folder, environment, outputs and exit code; only the quarter of a
second in which the interpreter would read the same modules again is left out. Run as a program this is that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FIXED = ("LANG", "LANGUAGE", "LC_", "PYTHON", "TZ")
"""What an interpreter takes from its environment once, when it starts."""


class Warm:
    """Starts the program for one who calls it, one call at a time."""

    def __init__(self) -> None:
        self._calls, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._fixed = _fixed()

    def fits(self) -> bool:
        """Whether the environment of now is one that it can be started warm in."""
        return _fixed() == self._fixed

    def run(self, words: tuple[str, ...], folder: Path, limit_s: float) -> subprocess.CompletedProcess[str]:
        """The program's outputs and exit code. TimeoutExpired if it takes too long: then it is ended."""
        sys.audit("subprocess.Popen", sys.executable, words, str(folder), None)  # it is one, for whoever counts them
        call = json.dumps({"words": words, "folder": str(folder), "environment": dict(os.environ)}).encode()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                socket.send_fds(self._calls, [call], [theirs.fileno(), out.fileno(), errors.fileno()])
                theirs.close()
                ours.settimeout(limit_s)
                answer = ours.makefile()
                pid = int(answer.readline())
                try:
                    code = int(answer.readline())
                except TimeoutError:
                    os.kill(pid, 9)  # nobody has waited for it: it is still the one
                    raise subprocess.TimeoutExpired(words, limit_s) from None
            told = []
            for file in (out, errors):
                file.seek(0)
                told.append(file.read().decode())
        return subprocess.CompletedProcess(words, code, *told)

    def close(self) -> None:
        self._calls.close()
        self._process.wait()


def _fixed() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(FIXED)}


def serve(calls: socket.socket) -> None:
    """Wait for calls, and see to it that each becomes a process. Returns in each of those, as it is to be."""
    while True:
        call, fds, _, _ = socket.recv_fds(calls, 1 << 20, 3)
        if not call:
            sys.exit(0)
        answer = socket.socket(fileno=fds[0])
        if (child := os.fork()) == 0:
            become(json.loads(call), fds)
            answer.close()
            calls.close()
            return
        with contextlib.suppress(OSError), answer:  # nobody may wait for it any more
            answer.send(b"%d\n" % child)
            answer.send(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        for fd in fds[1:]:
            os.close(fd)


def become(call: dict[str, object], fds: list[int]) -> None:
    """Be the process that the call asks for."""
    for fd, ours in zip(fds[1:], (1, 2), strict=True):
        os.dup2(fd, ours)
        os.close(fd)
    os.chdir(str(call["folder"]))
    os.environ.clear()
    os.environ.update(call["environment"])  # type: ignore[call-overload]
    tempfile.tempdir = None
    sys.argv = ["yolo_supervisor", *call["words"]]  # type: ignore[misc]


if __name__ == "__main__":
    import pkgutil

    import yolo_supervisor.cli.app

    for module in pkgutil.iter_modules(yolo_supervisor.cli.__path__, "yolo_supervisor.cli."):
        __import__(module.name)
    sys.path[0] = ""  # as for whoever starts a module
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("yolo_supervisor", run_name="__main__", alter_sys=True)
