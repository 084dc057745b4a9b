"""Messages to systemd (sd_notify), reloads, and other processes in the daemon's cgroup."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from yolo_supervisor.formats.json import load_object
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.system.cgroups import unit_members
from yolo_supervisor.system.process_backend import ProcessBackend

ANSWER = "reload.json"
"""The file in the service's runtime folder with the result of the last reload."""


class Notifier:
    """Sends messages to systemd; without systemd every call does nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        watchdog = environment.get("WATCHDOG_USEC", "")
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        valid = watchdog.isascii() and watchdog.isdigit() and len(watchdog) < 16  # longer ones never expire
        self.watchdog_s = int(watchdog) / 1e6 if valid and for_us and self._address else None
        """The time within which systemd expects a ping, in seconds; None if it expects none."""
        self._last = ""
        folder = environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        self._answer = Path(folder) / ANSWER if folder and main_of_unit(environment, os.getpid()) else None
        self._began_ns = 0

    def ready(self, status: str) -> None:
        self._last = status
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        self._began_ns = time.monotonic_ns()
        self._send(f"RELOADING=1\nMONOTONIC_USEC={self._began_ns // 1000}")

    def reloaded(self, status: str, refused: str = "") -> None:
        """Report the end of a reload; ``refused`` is the reason if nothing has changed."""
        self.ready(status)
        if self._answer is not None:
            answer = json.dumps({"began_ns": self._began_ns, "refused": refused}).encode()
            with contextlib.suppress(OSError):  # the process that waits for it has a time limit
                write_atomic(Disk(), self._answer, answer, durable=False)

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=stopping")

    def status(self, text: str) -> None:
        if text != self._last:
            self._last = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.settimeout(1)
            sender.sendto(message.encode("utf-8", "replace"), address)


def reload_and_wait(pid: int, folder: Path, limit_s: float) -> str | None:
    """Have the daemon read its configuration again.

    Return the error in it, None if it is in force now. OSError if the daemon is gone. TimeoutError if it does not
    answer.
    """
    asked_ns = time.monotonic_ns()  # one clock for all processes: a reload that begins later reads the present files
    os.kill(pid, signal.SIGHUP)
    while time.monotonic_ns() - asked_ns < limit_s * 1e9:
        answer = load_object(read_or_none(folder / ANSWER) or b"") or {}
        began_ns, refused = answer.get("began_ns"), answer.get("refused")
        if isinstance(began_ns, int) and began_ns > asked_ns:
            return str(refused) if refused else None
        os.kill(pid, 0)
        time.sleep(0.02)
    raise TimeoutError(f"the daemon (process {pid}) has not answered within {limit_s:g} s")


# -- processes that would be killed with the unit ----------------------------------------------------------------


def main_of_unit(environment: Mapping[str, str], pid: int) -> bool:
    """Whether the process with this environment is the main process of a systemd unit."""
    return environment.get("SYSTEMD_EXEC_PID") == str(pid)


def endangered(backend: ProcessBackend, daemon: int, agents: Collection[int]) -> Iterator[tuple[int, str]]:
    """The tmux servers and agents in the daemon's cgroup: stopping its unit would kill them."""
    try:
        if not main_of_unit(backend.environment(daemon), daemon):
            return
        members = unit_members(daemon)
    except OSError:
        return
    for pid in members:
        with contextlib.suppress(OSError):
            facts = backend.facts(pid)
            if pid != daemon and facts is not None and facts.comm.startswith("tmux: server"):
                yield pid, "tmux server"
            elif pid != daemon and facts is not None and pid in agents:
                yield pid, "agent"
