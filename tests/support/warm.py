"""The program, started warm: one process has imported it all, and becomes the program in a copy of itself each time.

A call is a process as ever, with a folder, an environment, outputs and an exit code; only the half second in which an
interpreter would read the same modules again is left out. Run as a program, this module is that process.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

FIXED = ("LANG", "LANGUAGE", "LC_", "PYTHON", "TZ")
"""The environment variables that an interpreter reads once, when it starts."""


class WarmChild:
    """A process that was started warm, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, argv: tuple[str, ...], answers: socket.socket) -> None:
        self.args = argv
        self.returncode: int | None = None
        self._answers = answers
        self._received = b""
        while b"\n" not in self._received:
            self._receive()
        first, _, self._received = self._received.partition(b"\n")
        self.pid = int(first)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. TimeoutExpired if the process lives for so long."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self._ended(None if deadline is None else max(0.0, deadline - time.monotonic()))) is None:
            if deadline is not None and timeout is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _ended(self, limit_s: float | None) -> int | None:
        if self.returncode is None:
            if not self._received.endswith(b"\n") and select.select([self._answers], [], [], limit_s)[0]:
                self._receive()
            if self._received.endswith(b"\n"):
                self.returncode = int(self._received)
                self._answers.close()
        return self.returncode

    def _receive(self) -> None:
        data = self._answers.recv(64)
        assert data, f"the process that starts the program has ended: {self.args}"
        self._received += data


class Warm:
    """Starts the program for its caller."""

    def __init__(self) -> None:
        self._calls, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._fixed = _fixed()

    def fits(self) -> bool:
        """Whether it can be started warm in the present environment."""
        return _fixed() == self._fixed

    def start(
        self, argv: tuple[str, ...], folder: Path, out: int, errors: int, environment: Mapping[str, str] = os.environ
    ) -> WarmChild:
        """The program as a process that writes to these descriptors."""
        sys.audit("subprocess.Popen", sys.executable, argv, str(folder), None)  # for audit hooks
        call = json.dumps({"argv": argv, "folder": str(folder), "environment": dict(environment)}).encode()
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._calls, [call], [theirs.fileno(), out, errors])
        return WarmChild(argv, ours)

    def run(self, argv: tuple[str, ...], folder: Path, limit_s: float) -> subprocess.CompletedProcess[str]:
        """The program's outputs and exit code. TimeoutExpired if it takes too long: then it is ended."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            child = self.start(argv, folder, out.fileno(), errors.fileno())
            try:
                code = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                raise
            written = []
            for file in (out, errors):
                file.seek(0)
                written.append(file.read().decode())
        return subprocess.CompletedProcess(argv, code, *written)

    def close(self) -> None:
        self._calls.close()
        self._process.wait()


def flush_nothing() -> None:
    """Leave out the flushes of this process: several milliseconds each, and only a power cut shows the difference."""
    os.fsync = os.fdatasync = lambda fd: None


def _fixed() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(FIXED)}


def serve(calls: socket.socket) -> None:
    """Make each call a process, and send its exit code to the caller. Returns in each of those processes."""
    woken, wakes = socket.socketpair()
    woken.setblocking(False)
    wakes.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakes.fileno())
    answers: dict[int, socket.socket] = {}
    while True:
        if woken in select.select([calls, woken], [], [])[0]:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
            report_ended(answers)
            continue
        call, fds, _, _ = socket.recv_fds(calls, 1 << 20, 3)
        if not call:
            sys.exit(0)
        answer = socket.socket(fileno=fds[0])
        if (child := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for opened in (calls, woken, wakes, answer, *answers.values()):
                opened.close()
            become(json.loads(call), fds[1:])
            return
        for fd in fds[1:]:
            os.close(fd)
        answers[child] = answer
        with contextlib.suppress(OSError):  # the caller may have gone
            answer.send(b"%d\n" % child)


def report_ended(answers: dict[int, socket.socket]) -> None:
    while answers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
        with contextlib.suppress(OSError), answers.pop(ended[0]) as answer:
            answer.send(b"%d\n" % os.waitstatus_to_exitcode(ended[1]))


def become(call: dict[str, object], fds: list[int]) -> None:
    """Be the process that the call asks for."""
    for fd, ours in zip(fds, (1, 2), strict=True):
        os.dup2(fd, ours)
        os.close(fd)
    for name, fd in (("stdout", 1), ("stderr", 2)):  # a new one knows whether it is a terminal, and whether it can seek
        old, by_line = getattr(sys, name), fd == 2 or os.isatty(fd)
        raw = open(fd, "wb", closefd=False)  # noqa: SIM115
        new = io.TextIOWrapper(raw, encoding=old.encoding, errors=old.errors, line_buffering=by_line)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    os.chdir(str(call["folder"]))
    os.environ.clear()
    os.environ.update(call["environment"])  # type: ignore[call-overload]
    tempfile.tempdir = None
    sys.argv = ["yolo_supervisor", *call["argv"]]  # type: ignore[misc]


def import_everything() -> None:
    """Import the modules that the commands and the daemon import when they need them."""
    import pkgutil

    import yolo_supervisor

    for module in pkgutil.walk_packages(yolo_supervisor.__path__, "yolo_supervisor."):
        if not module.name.startswith(("yolo_supervisor.drill.", "yolo_supervisor.__main__")):
            __import__(module.name)


if __name__ == "__main__":
    flush_nothing()
    import_everything()
    gc.collect()
    gc.freeze()  # a collection in a copy would touch, and so copy, all pages
    sys.path[0] = ""  # as at the start of a module
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("yolo_supervisor", run_name="__main__", alter_sys=True)
