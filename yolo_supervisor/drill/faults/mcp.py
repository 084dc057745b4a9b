"""MCP servers that fail behind the relay."""

from __future__ import annotations

import random
import sys

from yolo_supervisor.drill.fake_mcp_client import McpClient
from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault

SERVER = "yolo_supervisor.drill.fake_mcp_server"
"""The relay's name for the fake server, from its command."""


def _connect(sandbox: Sandbox, rng: random.Random, failure: str, times: int) -> McpClient:
    counter = sandbox.folder / f"calls-{rng.randrange(10**9)}"
    counter.touch()
    return sandbox.mcp_client(sys.executable, "-m", SERVER, str(counter), failure, str(times))


def _call(client: McpClient) -> Expectation:
    number = client.request("tools/call", name="echo", arguments={})
    return Expectation(lambda: client.succeeded(number), frozenset({SERVER}), ("recovered",))


def mcp_error(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An MCP server returns an internal error one to three times in a row."""
    return _call(_connect(sandbox, rng, "error", rng.randint(1, 3)))


def mcp_hang(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An MCP server does not answer a call."""
    return _call(_connect(sandbox, rng, "hang", 1))


def mcp_crash(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An MCP server dies during a call, one to three times in a row."""
    return _call(_connect(sandbox, rng, "crash", rng.randint(1, 3)))


def mcp_flapping(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """An MCP server dies at every call: its circuit opens, and a later probe succeeds."""
    client = _connect(sandbox, rng, "crash", 5)
    numbers = [client.request("tools/call", name="echo", arguments={})]

    def healed() -> bool:
        if (answer := client.response(numbers[-1])) is not None and "error" in answer:
            numbers.append(client.request("tools/call", name="echo", arguments={}))
        return client.succeeded(numbers[-1])

    return Expectation(healed, frozenset({SERVER, f"{SERVER}/echo"}), ("circuit_opened",))


FAULTS: tuple[Fault, ...] = (
    mcp_error,
    mcp_hang,
    mcp_crash,
    mcp_flapping,
)
