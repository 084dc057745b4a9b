"""MCP servers that fail behind the relay."""

from __future__ import annotations

import random
import sys

from yolo_supervisor.drill.fake_mcp_client import Client
from yolo_supervisor.drill.sandbox import Scene
from yolo_supervisor.drill.trial import Fault, Watch

SERVER = "yolo_supervisor.drill.fake_mcp_server"
"""What the relay calls the scratch server, by its command."""


def _mcp(scene: Scene, dice: random.Random, trouble: str, times: int) -> Client:
    notebook = scene.folder / f"notebook-{dice.randrange(10**9)}"
    notebook.touch()
    return scene.client(sys.executable, "-m", SERVER, str(notebook), trouble, str(times))


def _call(client: Client) -> Watch:
    number = client.ask("tools/call", name="echo", arguments={})
    return Watch(lambda: client.well(number), frozenset({SERVER}), ("recovered",))


def mcp_error(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server answers one to three times in a row that something went wrong inside it."""
    return _call(_mcp(scene, dice, "error", dice.randint(1, 3)))


def mcp_hang(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server does not answer a call at all."""
    return _call(_mcp(scene, dice, "hang", 1))


def mcp_crash(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server dies in the middle of a call."""
    return _call(_mcp(scene, dice, "crash", dice.randint(1, 3)))


def mcp_flapping(scene: Scene, dice: random.Random) -> Watch:
    """An MCP server dies at every call: it is switched off, tried again later, and is well by then."""
    client = _mcp(scene, dice, "crash", 5)
    numbers = [client.ask("tools/call", name="echo", arguments={})]

    def healed() -> bool:
        if (answer := client.answer(numbers[-1])) is not None and "error" in answer:
            numbers.append(client.ask("tools/call", name="echo", arguments={}))
        return client.well(numbers[-1])

    return Watch(healed, frozenset({SERVER, f"{SERVER}/echo"}), ("circuit_opened",))


FAULTS: tuple[Fault, ...] = (
    mcp_error,
    mcp_hang,
    mcp_crash,
    mcp_flapping,
)
