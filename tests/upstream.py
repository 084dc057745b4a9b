"""A scratch MCP server for tests and benchmarks, all of whose failures are asked for. Newline-delimited JSON-RPC 2.0 on
stdio, the standard library only.

python tests/upstream.py [--effects FILE] [--seed N] [--start S] [--deaf] [--junk] [--dies-at METHOD]

Each deed is a tool three times, alike but for its annotations: ``read_echo`` says readOnlyHint, ``again_echo``
idempotentHint, ``once_echo`` nothing. Beside its own, every tool takes these arguments:

    text        what tells this call from others (default: "")
    fails       how often it fails before it succeeds
    rate        with which probability it fails (drawn from the seed, the text and the number of the attempt)
    how         in which way it fails: see ``FAILURES``

A call has had its effect before it fails: it is a line in the file of effects, ``PID TOOL TEXT``, by which attempts are
counted also over deaths of the server. A cancellation is the line ``PID cancelled ID``.
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


class Hangs(Exception):
    """There is no answer."""


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._writing = threading.Lock()
        self._memory: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._asked: dict[int, list[Json]] = {}
        self._answered = threading.Condition()
        self._cancelled: dict[object, threading.Event] = {}
        self._deeds: dict[str, Callable[[Json, Json], object]] = {
            "echo": self._echo, "slow": self._slow, "big": self._big, "spawn": self._spawn, "ask": self._ask,
            "tell": self._tell, "junk": self._junk, "close_stdin": self._close_stdin,
        }  # fmt: skip

    def serve(self) -> None:
        for line in sys.stdin.buffer:
            try:
                message = json.loads(line)
            except ValueError:
                self._send({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "Parse error"}})
                continue
            for each in message if isinstance(message, list) else [message]:
                self._receive(each)

    def _receive(self, message: Json) -> None:
        if "method" not in message:
            with self._answered:
                self._asked.setdefault(message.get("id", -1), []).append(message)
                self._answered.notify_all()
        elif "id" not in message:
            if message["method"] == "notifications/cancelled":
                ident = message["params"]["requestId"]
                self._note(f"cancelled {ident}")
                self._cancelled.setdefault(ident, threading.Event()).set()
        elif message["method"] == "tools/call" and self._deed_of(message) not in ("echo", "close_stdin"):
            threading.Thread(target=self._answer, args=(message,), daemon=True).start()
        else:
            self._answer(message)

    def _answer(self, request: Json) -> None:
        try:
            told: Json = {"result": self._result(request)}
        except Refusal as error:
            told = {"error": {"code": error.code, "message": str(error)}}
        except Hangs:
            return
        if not self._cancelled.get(request["id"], threading.Event()).is_set():
            self._send({"jsonrpc": "2.0", "id": request["id"], **told})
        if self._deed_of(request) == "close_stdin":
            os.close(0)
            wait_for_ever()

    def _result(self, request: Json) -> Json:
        method, params = request["method"], request.get("params") or {}
        if method == self._options.dies_at and self._note(f"died at {method}") == 1:
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
                {"name": f"{kind}_{deed}", "description": deed, "inputSchema": schema, "annotations": annotations}
                for deed in self._deeds for kind, annotations in ANNOTATIONS.items()
            ]}  # fmt: skip
        if method in ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
            return {}
        if method == "tools/call":
            return self._call(request, params)
        raise Refusal(-32601, f"Method not found: {method}")

    def _call(self, request: Json, params: Json) -> Json:
        deed, arguments = self._deed_of(request), params.get("arguments") or {}
        if deed not in self._deeds:
            raise Refusal(-32602, f"Unknown tool: {params.get('name')}")
        attempt = self._note(f"{params['name']} {arguments.get('text', '')}")
        chance = random.Random(f"{self._options.seed} {arguments.get('text')} {attempt}").random()
        if attempt <= arguments.get("fails", 0) or chance < arguments.get("rate", 0):
            self._fail(arguments.get("how", "error"))
        if arguments.get("how") == "tool_error":
            return {"content": [{"type": "text", "text": f"{deed} failed"}], "isError": True}
        answer = self._deeds[deed](arguments, request)
        return {"content": [{"type": "text", "text": answer if isinstance(answer, str) else json.dumps(answer)}]}

    def _fail(self, how: str) -> None:
        if how == "error":
            raise Refusal(-32603, "it fails, as it was asked to")
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            raise Hangs

    # -- deeds ----------------------------------------------------------------------------------------------------

    def _echo(self, arguments: Json, request: Json) -> object:
        return arguments.get("text", "")

    def _slow(self, arguments: Json, request: Json) -> object:
        """Take ``s`` seconds, in ``steps``, and tell how it gets on if that is wanted."""
        cancelled = self._cancelled.setdefault(request["id"], threading.Event())
        token = (request["params"].get("_meta") or {}).get("progressToken")
        steps = arguments.get("steps", 1)
        for number in range(1, steps + 1):
            if cancelled.wait(arguments.get("s", 1) / steps):
                raise Hangs
            if token is not None:
                self._tell({
                    "method": "notifications/progress",
                    "params": {"progressToken": token, "progress": number, "total": steps},
                }, request)  # fmt: skip
        return "slow but sure"

    def _big(self, arguments: Json, request: Json) -> object:
        return "x" * arguments.get("bytes", 10_000_000)

    def _spawn(self, arguments: Json, request: Json) -> object:
        """Start a process that leaves the group and never ends, say its pid, and hang if asked to."""
        nothing = subprocess.DEVNULL
        words = [sys.executable, "-c", ENDLESS_CHILD]
        child = subprocess.Popen(words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        self._note(f"spawned {child.pid}")
        if arguments.get("then") == "hang":
            raise Hangs
        return str(child.pid)

    def _ask(self, arguments: Json, request: Json) -> object:
        """Ask the client, and say what it answers."""
        ident = next(self._numbers)
        params = {"params": arguments["params"]} if "params" in arguments else {}
        self._send({"jsonrpc": "2.0", "id": ident, "method": arguments["method"], **params})
        with self._answered:
            self._answered.wait_for(lambda: ident in self._asked)
            answer = self._asked.pop(ident)[0]
        return answer.get("result", answer.get("error"))

    def _tell(self, arguments: Json, request: Json) -> object:
        """Send the client a notification, ``tools/list_changed`` say."""
        params = {"params": arguments["params"]} if "params" in arguments else {}
        self._send({"jsonrpc": "2.0", "method": arguments["method"], **params})
        return "told"

    def _junk(self, arguments: Json, request: Json) -> object:
        self._write(JUNK)
        return "junk"

    def _close_stdin(self, arguments: Json, request: Json) -> object:
        return "from now on nothing is read"

    # -- what they need -------------------------------------------------------------------------------------------

    @staticmethod
    def _deed_of(request: Json) -> str:
        name = str((request.get("params") or {}).get("name", ""))
        kind, _, deed = name.partition("_")
        return deed if kind in ANNOTATIONS else ""

    def _note(self, what: str) -> int:
        """How often this has happened, now included."""
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


def wait_for_ever() -> NoReturn:
    while True:
        signal.pause()


def effects(path: Path) -> list[str]:
    """What has happened, without the pids."""
    return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--effects", type=Path, help="the file that effects are counted in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=float, default=0, metavar="S", help="seconds that the start takes")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM and the end of the input")
    parser.add_argument("--dies-at", metavar="METHOD", help="die when this is asked for the first time")
    parser.add_argument("--junk", action="store_true", help="print what is no JSON before each message")
    options = parser.parse_args()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(options.start)
    Server(options).serve()
    if options.deaf:
        wait_for_ever()


if __name__ == "__main__":
    main()
