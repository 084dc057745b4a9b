"""Streamable HTTP in front of an MCP server on stdio: each session of a client gets a process."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LOCAL = ("localhost", "127.0.0.1")
SESSION = "Mcp-Session-Id"


class Session:
    """A server process. What it sends goes to the request that was made last, its responses to their requests."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._streams: dict[str, queue.Queue[bytes]] = {}
        self._writing = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            ident = json.dumps(message.get("id"))
            if "method" not in message and ident in self._streams:
                self._streams.pop(ident).put(line)
            elif self._streams:
                list(self._streams.values())[-1].put(line)

    def send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with self._writing:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def request(self, ident: str, line: bytes) -> Iterator[bytes]:
        """Everything that the server sends up to its response."""
        stream = self._streams[ident] = queue.Queue()
        self.send(line)
        while ident in self._streams or not stream.empty():
            yield stream.get()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()


class Handler(BaseHTTPRequestHandler):
    server: Bridge

    def do_POST(self) -> None:
        if not self._local():
            self._respond(403)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = json.loads(body)
        line = json.dumps(message).encode()
        if message.get("method") == "initialize":
            key = uuid.uuid4().hex
            self.server.sessions[key] = Session(self.server.argv)
        else:
            key = self.headers.get(SESSION, "")
        session = self.server.sessions.get(key)
        if session is None:
            self._respond(404)
        elif "id" not in message or "method" not in message:
            session.send(line)
            self._respond(202)
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header(SESSION, key)
            self.end_headers()
            for event in session.request(json.dumps(message["id"]), line):
                self.wfile.write(b"data: " + event.rstrip() + b"\n\n")
                self.wfile.flush()

    def do_GET(self) -> None:
        self._respond(405)

    do_DELETE = do_GET  # noqa: N815 - the name is given

    def _local(self) -> bool:
        origin = self.headers.get("Origin")
        hosts = [urlsplit(f"//{self.headers['Host']}").hostname, *([urlsplit(origin).hostname] if origin else [])]
        return all(host in LOCAL for host in hosts)

    def _respond(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Bridge(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.argv = argv
        self.sessions: dict[str, Session] = {}

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}/mcp"


@contextlib.contextmanager
def served_over_http(argv: Sequence[str]) -> Iterator[str]:
    """The URL under which the server on stdio can be reached."""
    bridge = Bridge(argv)
    serving = threading.Thread(target=bridge.serve_forever)
    serving.start()
    try:
        yield bridge.url
    finally:
        bridge.shutdown()
        serving.join()
        bridge.server_close()
        for session in bridge.sessions.values():
            session.end()
