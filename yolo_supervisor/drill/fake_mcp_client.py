"""A minimal MCP client."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any


class McpClient:
    """Speaks to a server, or to the relay in front of it, over the pipes of its process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._process = process
        self._read = b""
        self._number = 0
        self._responses: dict[int, dict[str, Any]] = {}

    def request(self, method: str, **params: Any) -> int:
        """Send a request; the number is its id for ``response``."""
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        return self._number

    def notify(self, method: str) -> None:
        """Send a notification."""
        self._send({"jsonrpc": "2.0", "method": method})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def response(self, number: int) -> dict[str, Any] | None:
        """The response to a request; None if it has not come yet."""
        assert self._process.stdout is not None
        while part := self._process.stdout.read(65536):
            *lines, self._read = (self._read + part).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "id" in message and "method" not in message:
                    self._responses[message["id"]] = message
        return self._responses.get(number)

    def succeeded(self, number: int) -> bool:
        """Whether the response to a request is a result."""
        return "result" in (self.response(number) or {})
