"""An MCP server for tests and benchmarks that fails on request. Newline-delimited JSON-RPC 2.0 on stdio, standard
library only.

python tests/support/upstream.py [--effects FILE] [--seed N] [--start S] [--deaf] [--junk] [--dies-at METHOD]

Each function is offered as three tools with different annotations: ``read_echo`` declares readOnlyHint, ``again_echo``
idempotentHint, ``once_echo`` nothing. Beside the arguments of its function, every tool takes:

    text        identifies the call (default: "")
    fails       number of failures before it succeeds
    rate        probability of a failure (drawn from the seed, the text and the number of the attempt)
    how         kind of failure: see ``FAILURES``

A call takes effect before it fails. The effect is a line in the effects file, ``PID TOOL TEXT``; attempts are counted
by it, also across restarts of the server. A cancellation is the line ``PID cancelled ID``.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

Json = dict[str, Any]

ANNOTATIONS = {"read": {"readOnlyHint": True}, "again": {"idempotentHint": True}, "once": {}}
VERSION = "2025-11-25"
JUNK = b"warning: this is no JSON\n\n\xff\xfe\n[1, 2\n"
FAILURES = ("error", "tool_error", "exit", "kill", "hang")
ENDLESS_CHILD = "import time\nwhile True: time.sleep(600)"


class Refusal(Exception):
    """Answered as a JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class NoResponse(Exception):
    """The request is never answered."""


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._writing = threading.Lock()
        self._memory: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._asked: dict[int, list[Json]] = {}
        self._answered = threading.Condition()
        self._cancelled: dict[object, threading.Event] = {}
        self._functions: dict[str, Callable[[Json, Json], object]] = {
            "echo": self._echo, "slow": self._slow, "big": self._big, "spawn": self._spawn, "ask": self._ask,
            "notify": self._notify, "junk": self._junk, "close_stdin": self._close_stdin,
        }  # fmt: skip

    def serve(self) -> None:
        for line in sys.stdin.buffer:
            try:
                message = json.loads(line)
            except ValueError:
                self._send({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "Parse error"}})
                continue
            for item in message if isinstance(message, list) else [message]:
                self._receive(item)

    def _receive(self, message: Json) -> None:
        if "method" not in message:
            with self._answered:
                self._asked.setdefault(message.get("id", -1), []).append(message)
                self._answered.notify_all()
        elif "id" not in message:
            if message["method"] == "notifications/cancelled":
                ident = message["params"]["requestId"]
                self._record(f"cancelled {ident}")
                self._cancelled.setdefault(ident, threading.Event()).set()
        elif message["method"] == "tools/call" and self._function_of(message) not in ("echo", "close_stdin"):
            threading.Thread(target=self._answer, args=(message,), daemon=True).start()
        else:
            self._answer(message)

    def _answer(self, request: Json) -> None:
        try:
            outcome: Json = {"result": self._result(request)}
        except Refusal as error:
            outcome = {"error": {"code": error.code, "message": str(error)}}
        except NoResponse:
            return
        closes_stdin = self._function_of(request) == "close_stdin"
        if closes_stdin:  # before the response: a line sent after the response must not reach the pipe unread
            os.close(0)
        if not self._cancelled.get(request["id"], threading.Event()).is_set():
            self._send({"jsonrpc": "2.0", "id": request["id"], **outcome})
        if closes_stdin:
            wait_forever()

    def _result(self, request: Json) -> Json:
        method, params = request["method"], request.get("params") or {}
        if method == self._options.dies_at and self._record(f"died at {method}") == 1:
            os._exit(3)
        if method == "initialize":
            return {
                "protocolVersion": params.get("protocolVersion", VERSION),
                "capabilities": {"tools": {"listChanged": True}, "logging": {}, "x-unknown": {"kept": True}},
                "serverInfo": {"name": "upstream", "version": "1"},
            }
        if method == "tools/list":
            schema = {"type": "object", "properties": {"text": {"type": "string"}}}
            return {"tools": [
                {"name": f"{kind}_{name}", "description": name, "inputSchema": schema, "annotations": annotations}
                for name in self._functions for kind, annotations in ANNOTATIONS.items()
            ]}  # fmt: skip
        if method in ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
            return {}
        if method == "tools/call":
            return self._call(request, params)
        raise Refusal(-32601, f"Method not found: {method}")

    def _call(self, request: Json, params: Json) -> Json:
        function, arguments = self._function_of(request), params.get("arguments") or {}
        if function not in self._functions:
            raise Refusal(-32602, f"Unknown tool: {params.get('name')}")
        attempt = self._record(f"{params['name']} {arguments.get('text', '')}")
        chance = random.Random(f"{self._options.seed} {arguments.get('text')} {attempt}").random()
        if attempt <= arguments.get("fails", 0) or chance < arguments.get("rate", 0):
            self._fail(arguments.get("how", "error"))
        if arguments.get("how") == "tool_error":
            return {"content": [{"type": "text", "text": f"{function} failed"}], "isError": True}
        answer = self._functions[function](arguments, request)
        return {"content": [{"type": "text", "text": answer if isinstance(answer, str) else json.dumps(answer)}]}

    def _fail(self, how: str) -> None:
        if how == "error":
            raise Refusal(-32603, "it fails as requested")
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            raise NoResponse

    # -- functions ------------------------------------------------------------------------------------------------

    def _echo(self, arguments: Json, request: Json) -> object:
        return arguments.get("text", "")

    def _slow(self, arguments: Json, request: Json) -> object:
        """Take ``s`` seconds in ``steps`` and send a progress notification after each if there is a token."""
        cancelled = self._cancelled.setdefault(request["id"], threading.Event())
        token = (request["params"].get("_meta") or {}).get("progressToken")
        steps = arguments.get("steps", 1)
        for number in range(1, steps + 1):
            if cancelled.wait(arguments.get("s", 1) / steps):
                raise NoResponse
            if token is not None:
                self._notify({
                    "method": "notifications/progress",
                    "params": {"progressToken": token, "progress": number, "total": steps},
                }, request)  # fmt: skip
        return "slow but sure"

    def _big(self, arguments: Json, request: Json) -> object:
        return "x" * arguments.get("bytes", 10_000_000)

    def _spawn(self, arguments: Json, request: Json) -> object:
        """Start a process in a new session that never ends; return its pid, or hang if ``then`` says so."""
        nothing = subprocess.DEVNULL
        argv = [sys.executable, "-c", ENDLESS_CHILD]
        child = subprocess.Popen(argv, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        self._record(f"spawned {child.pid}")
        if arguments.get("then") == "hang":
            raise NoResponse
        return str(child.pid)

    def _ask(self, arguments: Json, request: Json) -> object:
        """Send the client a request and return its response."""
        ident = next(self._numbers)
        params = {"params": arguments["params"]} if "params" in arguments else {}
        self._send({"jsonrpc": "2.0", "id": ident, "method": arguments["method"], **params})
        with self._answered:
            self._answered.wait_for(lambda: ident in self._asked)
            answer = self._asked.pop(ident)[0]
        return answer.get("result", answer.get("error"))

    def _notify(self, arguments: Json, request: Json) -> object:
        """Send the client a notification, such as ``tools/list_changed``."""
        params = {"params": arguments["params"]} if "params" in arguments else {}
        self._send({"jsonrpc": "2.0", "method": arguments["method"], **params})
        return "sent"

    def _junk(self, arguments: Json, request: Json) -> object:
        self._write(JUNK)
        return "junk"

    def _close_stdin(self, arguments: Json, request: Json) -> object:
        return "nothing is read from now on"

    # -- support --------------------------------------------------------------------------------------------------

    @staticmethod
    def _function_of(request: Json) -> str:
        name = str((request.get("params") or {}).get("name", ""))
        kind, _, function = name.partition("_")
        return function if kind in ANNOTATIONS else ""

    def _record(self, what: str) -> int:
        """Record an effect; how often it has happened, this time included."""
        if self._options.effects is None:
            self._memory[what] += 1
            return self._memory[what]
        with self._writing:
            fd = os.open(self._options.effects, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            with open(fd, "rb+", buffering=0) as file:
                file.write(f"{os.getpid()} {what}\n".encode())
                file.seek(0)
                return sum(line.partition(b" ")[2] == what.encode() for line in file.read().splitlines())

    def _send(self, message: Json) -> None:
        self._write((JUNK if self._options.junk else b"") + json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        with self._writing, contextlib.suppress(BrokenPipeError):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def wait_forever() -> NoReturn:
    while True:
        signal.pause()


def effects(path: Path) -> list[str]:
    """The recorded effects, without the pids."""
    return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--effects", type=Path, help="the effects file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=float, default=0, metavar="S", help="seconds before it answers")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM and the end of the input")
    parser.add_argument("--dies-at", metavar="METHOD", help="exit at the first request of this method")
    parser.add_argument("--junk", action="store_true", help="print lines that are no JSON before each message")
    options = parser.parse_args()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(options.start)
    Server(options).serve()
    if options.deaf:
        wait_forever()


if __name__ == "__main__":
    main()
