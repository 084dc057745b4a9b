"""A private tmux server and clients that attach to it."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.wait import LIMIT_S, wait_until


class PrivateTmux:
    """A tmux server of our own, and people who attach to it.

    ``environment`` is that of its panes, if it is not ours; ``within`` is a command that starts the server.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, *, within: Sequence[str] = ()
    ) -> None:
        self.socket = str(folder / "tmux")
        self._panes, self._within = environment, within
        outside = {key: value for key, value in os.environ.items() if key not in ("TMUX", "TMUX_PANE")}
        self._environment = {**outside, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self._started: list[subprocess.Popen[bytes]] = []
        self._terminals: list[int] = []
        self.server = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start a server, in the place of one that has ended."""
        Path(self.socket).unlink(missing_ok=True)
        environment = {**self._environment, **self._panes} if self._panes is not None else self._environment
        command = [*self._within, "tmux", "-S", self.socket, "-D", "-f", "/dev/null"]
        self.server = self._start(command, environment, stdin=subprocess.DEVNULL)
        wait_until(self._listens, "the tmux server to listen")
        return self.server

    def _listens(self) -> bool:
        """Whether the server accepts clients: its socket is there a moment before."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.socket) == 0

    def __call__(self, *words: str) -> str:
        """Run a command of tmux; its output."""
        command = ["tmux", "-S", self.socket, *words]
        result = subprocess.run(command, env=self._environment, capture_output=True, check=True, timeout=LIMIT_S)
        return result.stdout.decode().strip()

    def session(self, name: str, program: str = "sleep 600") -> int:
        """A new session; the pid of the program in its pane."""
        return int(self("new-session", "-d", "-P", "-F", "#{pane_pid}", "-s", name.replace("#", "##"), program))

    def person(self, session: str, *options: str) -> subprocess.Popen[bytes]:
        """A person who attaches to the session at a terminal; ``-CC`` is the control mode of terminals."""
        terminal, other_end = pty.openpty()
        self._terminals.append(terminal)
        client = self._run(*options, "attach", "-t", f"={session}", stdin=other_end, stdout=other_end, stderr=other_end)
        os.close(other_end)
        return self._attached(client)

    def program(self, session: str) -> subprocess.Popen[bytes]:
        """A program that attaches in control mode."""
        return self._attached(
            self._run("-C", "attach", "-t", f"={session}", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )

    def popup(self, client: subprocess.Popen[bytes], program: str) -> None:
        """A program in a popup at the client."""
        self._run("display-popup", "-c", self.terminal(client), "-E", program, stdin=subprocess.DEVNULL)

    def leave(self, client: subprocess.Popen[bytes]) -> None:
        client.terminate()
        client.wait(LIMIT_S)
        wait_until(lambda: client.pid not in self._clients(), "the client to be detached")

    def terminal(self, client: subprocess.Popen[bytes]) -> str:
        """The terminal of a person's client."""
        terminals = dict(
            line.split(" ") for line in self("list-clients", "-F", "#{client_pid} #{client_tty}").splitlines()
        )
        return terminals[str(client.pid)]

    def ends(self, session: str) -> list[str]:
        """``status/signal`` of each pane; at times tmux misses an end, and learns of it with the next."""
        self.server.send_signal(signal.SIGCHLD)
        return self("list-panes", "-s", "-t", f"={session}", "-F", "#{pane_dead_status}/#{pane_dead_signal}").split()

    def end(self) -> None:
        for child in reversed(self._started):
            if child.poll() is None:
                child.kill()  # panes are hung up with their server
            child.wait()
            if child.stdin:
                child.stdin.close()
        for terminal in self._terminals:
            os.close(terminal)

    def _run(self, *words: str, **streams: Any) -> subprocess.Popen[bytes]:
        return self._start(["tmux", "-S", self.socket, *words], self._environment, **streams)

    def _start(self, command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> subprocess.Popen[bytes]:
        child: subprocess.Popen[bytes]
        child = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        self._started.append(child)
        return child

    def _attached(self, client: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        wait_until(lambda: client.pid in self._clients(), "the client to be attached")
        return client

    def _clients(self) -> set[int]:
        return {int(pid) for pid in self("list-clients", "-F", "#{client_pid}").split()}
