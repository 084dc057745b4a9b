"""The client's side of an MCP connection, as small as it can be."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any


class Client:
    """Speaks to a server, or to the relay before one, over the pipes of its process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._process = process
        self._read = b""
        self._number = 0
        self.answers: dict[int, dict[str, Any]] = {}

    def ask(self, method: str, **params: Any) -> int:
        """Send a request; its number is for ``answer``."""
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        return self._number

    def tell(self, method: str) -> None:
        self._send({"jsonrpc": "2.0", "method": method})

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, number: int) -> dict[str, Any] | None:
        """The answer to that request, if it has come."""
        assert self._process.stdout is not None
        while part := self._process.stdout.read(65536):
            *lines, self._read = (self._read + part).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "id" in message and "method" not in message:
                    self.answers[message["id"]] = message
        return self.answers.get(number)

    def well(self, number: int) -> bool:
        """Whether the request was answered with a result."""
        return "result" in (self.answer(number) or {})
