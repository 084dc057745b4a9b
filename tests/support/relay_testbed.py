"""A relay process with a client and servers that are played by the test."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections import deque
from pathlib import Path
from typing import IO, Any

import pytest

from support.cli import PROGRAM
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

Json = dict[str, Any]

PIPE_SERVER = """
import os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
socket.send_fds(line, [b"%d" % os.getpid()], [0, 1])
os.close(0)
os.close(1)
line.send(b".")
sys.exit(int(line.recv(9) or b"0"))
"""
"""A server that passes its stdin and stdout to the test, says when it has closed its own, and exits with the code that
the test sends."""

UPSTREAM = [sys.executable, str(Path(__file__).with_name("upstream.py"))]
TOOLS = [
    {"name": "read", "annotations": {"readOnlyHint": True}},
    {"name": "again", "annotations": {"idempotentHint": True}},
    {"name": "once", "annotations": {"readOnlyHint": False}},
    {"name": "plain"},
]


class Wire:
    """Reads and writes lines on one end of a pair of pipes or sockets."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self._part: list[bytes] = []
        self._lines: deque[bytes] = deque()
        os.set_blocking(write, False)

    def send(self, *messages: Json | bytes) -> None:
        for message in messages:
            left = memoryview(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
            while left:
                assert select.select([], [self.write], [], LIMIT_S)[1], "the other end does not read"
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(self.write, left[: 1 << 16]) :]

    def receive_line(self) -> bytes:
        """The next line. EOFError at the end of the stream."""
        while not self._lines:
            assert select.select([self.read], [], [], LIMIT_S)[0], f"only this was received: {self._part!r:.500}"
            part = os.read(self.read, 1 << 20)
            if not part:
                raise EOFError(self._part)
            *ends, rest = part.split(b"\n")
            for end in ends:
                self._lines.append(b"".join([*self._part, end, b"\n"]))
                self._part = []
            self._part.append(rest)
        return self._lines.popleft()

    def receive(self) -> Json:
        message: Json = json.loads(self.receive_line())
        return message

    def expect_end(self) -> None:
        with pytest.raises(EOFError):
            self.receive_line()

    def all_read(self) -> bool:
        """Whether the other end has read everything."""
        left: int = struct.unpack("i", fcntl.ioctl(self.write, termios.FIONREAD, b"\0" * 4))[0]
        return left == 0

    def close(self, *, read: bool = True, write: bool = True) -> None:
        if read and self.read >= 0:
            os.close(self.read)
            self.read = -1
        if write and self.write >= 0:
            os.close(self.write)
            self.write = -1


class Server(Wire):
    """One process of the server."""

    def __init__(self, line: socket.socket) -> None:
        pid, fds, _, _ = socket.recv_fds(line, 64, 2)
        super().__init__(*fds)
        if not pid.endswith(b"."):  # until then a pipe that the test closes has another reader
            line.recv(1)
        self.pid = int(pid.rstrip(b"."))
        self._line = line

    def die(self, code: int = 3) -> None:
        """Close the pipes and let the process exit with ``code``."""
        self._line.send(str(code).encode())
        self.end()

    def end(self) -> None:
        self._line.close()
        self.close()

    def list_tools(self) -> Server:
        """Receive a ``tools/list`` request and answer it with ``TOOLS``."""
        asked = self.receive()
        assert asked["method"] == "tools/list"
        self.send(result(asked, {"tools": TOOLS}))
        return self


class Client(Wire):
    """The client and its relay process."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int, errors: Path) -> None:
        super().__init__(read, write)
        self.process = process
        self._errors = errors

    def ask(self, ident: object, method: str, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "id": ident, "method": method, "params": params})

    def call(self, ident: object, tool: str = "read", **more: Any) -> None:
        self.ask(ident, "tools/call", name=tool, **more)

    def stderr(self) -> str:
        return self._errors.read_text()

    def lose(self, server: Server) -> None:
        """Let the server die and wait until the relay has noticed."""
        before = self.stderr().count("is down")
        server.die()
        wait_until(lambda: self.stderr().count("is down") > before, "the relay to notice")

    def ended(self) -> int:
        return self.process.wait(LIMIT_S)


def socket_pair() -> tuple[int, int]:
    """A socket pair, as node uses for the stdio of its children."""
    one, other = socket.socketpair()
    return one.detach(), other.detach()


class RelayTestbed:
    def __init__(self, folder: Path, project: Path) -> None:
        self.project = project
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "line"))
        self._socket.listen()
        self._socket.settimeout(LIMIT_S)
        (folder / "scratch").write_text(PIPE_SERVER)
        self.scratch = [sys.executable, "-S", "-E", str(folder / "scratch"), str(folder / "line")]
        self._clients: list[Client] = []
        self._servers: list[Server] = []
        self._tracked: list[ProcessId] = []

    def relay(
        self,
        config: str = "",
        server: list[str] | None = None,
        sockets: bool = False,
        stderr: IO[bytes] | None = None,
    ) -> Client:
        """Start a relay, connected by pipes or by sockets."""
        number = len(self._clients)
        settings, errors = self._folder / f"{number}.toml", self._folder / f"{number}.errors"
        settings.write_text(f"[mcp]\n{config}\n" + ("" if "backoff_s" in config else "backoff_s = 0.01\n"))
        shared = ["--project", str(self.project), "--config", str(settings)]
        command = [*PROGRAM, *shared, "mcp", "--", *(server or self.scratch)]
        line = socket_pair if sockets else os.pipe
        (from_us, to_relay), (from_relay, to_us) = line(), line()
        with contextlib.nullcontext(stderr) if stderr else errors.open("wb") as errors_file:
            process = subprocess.Popen(command, stdin=from_us, stdout=to_us, stderr=errors_file)
        os.close(from_us)
        os.close(to_us)
        client = Client(process, from_relay, to_relay, errors)
        self._clients.append(client)
        return client

    def server(self) -> Server:
        """The next server process that a relay starts."""
        server = Server(self._socket.accept()[0])
        self._servers.append(server)
        return server

    def connect(self, config: str = "", **options: Any) -> tuple[Client, Server]:
        """Start a relay whose client has listed the server's tools."""
        client = self.relay(config, **options)
        server = self.server()
        client.ask("list", "tools/list")
        server.list_tools()
        client.receive()
        return client, server

    def track(self, pid: int) -> ProcessId:
        """The identity of the process, which is killed at the end of the test."""
        process = Processes(backend()).identify(pid)
        assert process is not None
        self._tracked.append(process)
        return process

    def end(self) -> None:
        for client in self._clients:
            client.process.kill()
            client.process.wait()
            client.close()
        for server in self._servers:
            server.end()
        for process in self._tracked:
            if (handle := backend().hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()
        self._socket.close()


def gone(process: ProcessId) -> bool:
    return not Processes(backend()).sweep().has(process)


def result(request: Json, value: Any = None) -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "result": {} if value is None else value}


def error(request: Json, code: int, message: str = "failed") -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}


def notification(method: str, **params: Any) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


MARK = notification("mark")
"""A side that receives it next has received nothing else since."""


def progress(token: object, value: float) -> Json:
    return notification("notifications/progress", progressToken=token, progress=value)


def cancelled(ident: object) -> Json:
    return notification("notifications/cancelled", requestId=ident)


def call_tool(client: Client, tool: str, **arguments: Any) -> Json:
    """Call a tool of ``upstream.py``; its response."""
    client.call(tool, tool, arguments=arguments)
    while (response := client.receive()).get("id") != tool:
        pass
    return response


INITIALIZE = (
    b'{ "jsonrpc":"2.0", "id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25","x":"\xc3\xa9"}}\n'
)
INITIALIZED = b'{"method":"notifications/initialized",  "jsonrpc":"2.0"}\n'


def initialize(client: Client, server: Server) -> None:
    client.send(INITIALIZE)
    server.send(result(server.receive(), {"capabilities": {}}))
    client.receive()
    client.send(INITIALIZED)
    server.receive()


def receive_session(server: Server) -> Server:
    """Receive the replayed session as a restarted server."""
    asked = server.receive()
    assert asked["method"] == "initialize"
    server.send(result(asked, {"capabilities": {}}))
    assert server.receive_line() == INITIALIZED
    return server
