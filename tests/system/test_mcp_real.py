"""The relay with real software: official MCP servers, official clients and the Claude Code client. Each exchange is the
same, frame by frame, as without the relay."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from support import upstream
from support.budget import cases
from support.cli import PROGRAM
from support.npm import installed
from support.real_team import RealTeam, use
from support.upstream import effects
from support.wait import LIMIT_S, wait_until

if TYPE_CHECKING:
    import mcp
    from mcp import types
else:
    mcp = pytest.importorskip("mcp", reason="the Python SDK (mcp) is not installed")
    types = mcp.types

SERVER, INSPECTOR = "@modelcontextprotocol/server-everything@2026.8.31", "@modelcontextprotocol/inspector-cli@1.0.3"
UPSTREAM = Path(upstream.__file__)

pytestmark = pytest.mark.filterwarnings(
    "ignore::mcp.MCPDeprecationWarning"
)  # versions with a handshake are tested, too

# -- what is installed ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def npm() -> Path:
    return installed(SERVER, INSPECTOR)


@pytest.fixture
def everything(npm: Path) -> list[str]:
    """The official server with every feature of the protocol up to 2025-11-25."""
    return ["node", str(npm / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js")]


# -- two connections to one server ----------------------------------------------------------------------------------

TEE = """
import json, subprocess, sys, threading
frames = open(sys.argv[1], "a", buffering=1)
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def pass_on(who, source, target):
    for line in source:
        frames.write(json.dumps([who, line.decode()]) + "\\n")
        target.write(line)
        target.flush()
    target.close()
back = threading.Thread(target=pass_on, args=("server", server.stdout, sys.stdout.buffer))
back.start()
pass_on("client", sys.stdin.buffer, server.stdin)
back.join()
sys.exit(server.wait())
"""
"""Forwards the lines of client and server, and records each with its sender."""

OURS = '"yolo-supervisor-'
"""Marks the relay's own requests and their responses, which the client never sees."""


class Connection:
    """A connection to a server, direct or through the relay. ``script`` is the program that a client starts."""

    def __init__(self, folder: Path, server: Sequence[str], relay: Sequence[str] = ()) -> None:
        self._here, self._beyond = folder / "here", folder / "beyond"
        folder.mkdir()
        argv = [*tee(self._here), *relay, *tee(self._beyond), *server]
        self.script = folder / "script"
        self.script.write_text(f"#!/bin/sh\nexec {shlex.join(argv)}\n")
        self.script.chmod(0o755)

    def client_frames(self) -> dict[str, list[str]]:
        """The frames at the client's end."""
        return by_sender(self._here.read_text().splitlines())

    def server_frames(self) -> dict[str, list[str]]:
        """The frames at the server's end, without the relay's own."""
        return by_sender(line for line in self._beyond.read_text().splitlines() if OURS not in json.loads(line)[1])


def tee(frames: Path) -> list[str]:
    return [sys.executable, "-c", TEE, str(frames)]


Connections = Callable[[Sequence[str]], tuple[Connection, Connection]]


@pytest.fixture
def lines(project: Path, claude_home: Path, tmp_path: Path) -> Connections:
    """A direct connection to a server, and one through the relay."""

    def to(server: Sequence[str]) -> tuple[Connection, Connection]:
        relay = [*PROGRAM, "--project", str(project), "mcp", "--"]
        return Connection(tmp_path / "direct", server), Connection(tmp_path / "relayed", server, relay)

    return to


def assert_same(direct: Connection, relayed: Connection) -> None:
    assert relayed.client_frames() == direct.client_frames()
    assert relayed.server_frames() == direct.client_frames()


RANDOM = {
    r"\d{4}-\d\d-\d\dT[\d:.]+Z": "TIME",  # of a task: createdAt and lastUpdatedAt
    r"\d{1,2}:\d\d:\d\d\s[AP]M": "CLOCK",  # when a dynamic resource was made
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "UUID",  # of an elicitation that the server makes
    r'"taskId":"[0-9a-f]{32}"': '"taskId":"TASK"',
    r'"level":"\w+","data":"\w+[- ]level[- ]message': '"level":"LEVEL","data":"MESSAGE',  # a random level
    r'"requestState":"[^"]+"': '"requestState":"SEALED"',  # under a key that the server makes when it starts
    r'"listen-\d+"': '"listen-N"',  # the SDK numbers the streams of all its clients together
}
"""Random parts of frames and their replacement; everything else is compared."""


def by_sender(frames: Iterable[str]) -> dict[str, list[str]]:
    """The frames of the client and of the server, each in order, with the random parts replaced."""
    split: dict[str, list[str]] = {"client": [], "server": []}
    for who, line in map(json.loads, frames):
        line = re.sub(r'"blob":"(UmVzb3VyY2[^"]+)"', lambda b: f'"blob":"{base64.b64decode(b[1]).decode()}"', line)
        for pattern, name in RANDOM.items():
            line = re.sub(pattern, name, line)
        split[who].append(line)
    return split


# -- the exchange ---------------------------------------------------------------------------------------------------


class Exchange:
    """A client of the SDK and the notifications that it has received."""

    def __init__(self) -> None:
        self.client: mcp.Client
        self.notifications: list[Any] = []
        self.person_answers: list[types.ElicitResult | types.ErrorData] = []
        self.roots = ["file:///project", "file:///else/where"]

    async def hear(self, message: object) -> None:
        self.notifications.append(message)

    async def sampling_callback(self, context: object, params: Any) -> types.CreateMessageResult:
        said = types.TextContent(text=f"sampled: {params.messages[0].content.text} \u00fc")
        return types.CreateMessageResult(role="assistant", content=said, model="test", stop_reason="endTurn")

    async def elicitation_callback(self, context: object, params: Any) -> types.ElicitResult | types.ErrorData:
        return self.person_answers.pop(0)

    async def list_roots_callback(self, context: object) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=uri, name="test") for uri in self.roots])

    async def until_notified(self, method: str, times: int = 1) -> None:
        with anyio.fail_after(LIMIT_S):
            while sum(getattr(message, "method", None) == method for message in self.notifications) < times:
                await anyio.sleep(0.005)

    async def call(self, tool: str, **arguments: Any) -> Any:
        return await self.client.call_tool(tool, arguments)

    async def text(self, tool: str, **arguments: Any) -> str:
        """The first text of the tool's result."""
        return str((await self.call(tool, **arguments)).content[0].text)

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a request for which the SDK has no type."""
        return await self.client.session._dispatcher.send_raw_request(method, params, {})


@asynccontextmanager
async def connected(argv: Sequence[str], *capabilities: str) -> AsyncIterator[Exchange]:
    """Connect to a server with a client that supports ``sampling``, ``elicitation`` or ``list_roots``."""
    exchange = Exchange()
    server = mcp.StdioServerParameters(command=argv[0], args=list(argv[1:]), env=dict(os.environ))
    callbacks = {f"{name}_callback": getattr(exchange, f"{name}_callback") for name in capabilities}
    async with mcp.Client(server, message_handler=exchange.hear, cache=None, **callbacks) as exchange.client:
        with anyio.fail_after(LIMIT_S):
            yield exchange


async def refused(answer: Awaitable[object]) -> int:
    """The code of the error response to a request."""
    with pytest.raises(mcp.MCPError) as error:
        await answer
    return int(error.value.code)


Same = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def same(lines: Connections) -> Same:
    """Runs one exchange on both connections, asserts that all frames are the same, and returns the server's."""

    async def on(line: Connection, talk: Callable[[Exchange], Awaitable[None]], capabilities: Sequence[str]) -> None:
        async with connected([str(line.script)], *capabilities) as exchange:
            assert exchange.client.server_info is not None
            if exchange.client.server_info.name == "mcp-servers/everything":
                await exchange.until_notified(
                    "notifications/tools/list_changed"
                )  # it has processed the client's capabilities
            await talk(exchange)

    async def have(talk: Callable[[Exchange], Awaitable[None]], server: Sequence[str], *capabilities: str) -> list[str]:
        direct, relayed = lines(server)
        async with anyio.create_task_group() as both:
            both.start_soon(on, direct, talk, capabilities)
            both.start_soon(on, relayed, talk, capabilities)
        assert_same(direct, relayed)
        return direct.client_frames()["server"]

    return have


# -- up to 2025-11-25: the official server, the Python SDK's client --------------------------------------------------


async def test_handshake_is_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        info, capabilities = exchange.client.server_info, exchange.client.server_capabilities
        assert info is not None
        assert info.name == "mcp-servers/everything"
        assert capabilities.completions is not None
        assert "Everything" in (exchange.client.instructions or "")
        await exchange.client.send_ping()

    answers = await same(talk, everything)  # the SDK first probes for 2026-07-28, before the handshake
    assert "-32601" in answers[0]


@pytest.mark.thorough
async def test_tool_results_of_every_content_type_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        assert len((await exchange.client.list_tools()).tools) > 10
        assert await exchange.text("echo", message='ünïcode \u2028 \U0001f600 \\ " \x7f') != ""
        assert "8" in await exchange.text("get-sum", a=3.5, b=4.5)
        assert json.loads(await exchange.text("get-env"))["PATH"] == os.environ["PATH"]
        for kind in ("error", "success", "debug"):
            await exchange.call("get-annotated-message", messageType=kind, includeImage=True)
        image = await exchange.call("get-tiny-image")
        assert [block.type for block in image.content] == ["text", "image", "text"]
        links = await exchange.call("get-resource-links", count=4)
        assert [block.type for block in links.content] == ["text"] + ["resource_link"] * 4
        for kind in ("Text", "Blob"):
            reference = await exchange.call("get-resource-reference", resourceType=kind, resourceId=7)
            assert reference.content[1].type == "resource"
        for city in ("New York", "Chicago", "Los Angeles"):
            assert (await exchange.call("get-structured-content", location=city)).structured_content
        assert (await exchange.call("get-sum", a="no number")).is_error
        assert (await exchange.call("no-such-tool")).is_error

    await same(talk, everything)


@pytest.mark.thorough
async def test_prompts_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        client = exchange.client
        assert len((await client.list_prompts()).prompts) == 4
        await client.get_prompt("simple-prompt")
        await client.get_prompt("args-prompt", {"city": "Zürich", "state": "ZH"})
        await client.get_prompt("completable-prompt", {"department": "Sales", "name": "David"})
        for kind in ("Text", "Blob"):
            await client.get_prompt("resource-prompt", {"resourceType": kind, "resourceId": "3"})
        assert await refused(client.get_prompt("args-prompt", {})) == -32602
        assert await refused(client.get_prompt("no-such-prompt")) == -32602

    await same(talk, everything)


@pytest.mark.thorough
async def test_resources_and_templates_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        client = exchange.client
        listed = (await client.list_resources()).resources
        assert len(listed) > 3
        for resource in listed:
            await client.read_resource(resource.uri)
        assert len((await client.list_resource_templates()).resource_templates) == 2
        await client.read_resource("demo://resource/dynamic/text/1")
        await client.read_resource("demo://resource/dynamic/blob/2")
        assert await refused(client.read_resource("demo://resource/none")) == -32602

    await same(talk, everything)


@pytest.mark.thorough
async def test_completions_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        prompt = types.PromptReference(name="completable-prompt")
        completed = await exchange.client.complete(prompt, {"name": "department", "value": "S"})
        assert completed.completion.values == ["Sales", "Support"]
        await exchange.client.complete(prompt, {"name": "name", "value": ""}, {"department": "Sales"})
        template = types.ResourceTemplateReference(uri="demo://resource/dynamic/text/{resourceId}")
        completed = await exchange.client.complete(template, {"name": "resourceId", "value": "7"})
        assert completed.completion.values == ["7"]

    await same(talk, everything)


@pytest.mark.thorough
async def test_resource_updates_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        for number in (1, 2, 3):
            await exchange.client.subscribe_resource(f"demo://resource/dynamic/text/{number}")
        await exchange.client.unsubscribe_resource("demo://resource/dynamic/text/2")
        await exchange.call("toggle-subscriber-updates")
        await exchange.until_notified("notifications/resources/updated", 2)
        await exchange.call("toggle-subscriber-updates")

    await same(talk, everything)


@pytest.mark.thorough
async def test_log_messages_are_forwarded_from_the_set_level(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        await exchange.client.set_logging_level("debug")
        await exchange.call("toggle-simulated-logging")
        await exchange.until_notified("notifications/message")
        await exchange.call("toggle-simulated-logging")
        await exchange.client.set_logging_level("emergency")
        await exchange.client.subscribe_resource("demo://resource/dynamic/text/1")  # reported at level info

    answers = await same(talk, everything)
    assert sum("notifications/message" in line for line in answers) == 1


@pytest.mark.thorough
async def test_progress_notifications_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        steps: list[tuple[float, float | None]] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            steps.append((done, total))

        await exchange.client.call_tool(
            "trigger-long-running-operation", {"duration": 0.3, "steps": 5}, progress_callback=progress
        )
        assert steps == [(step, 5) for step in range(1, 6)]

    await same(talk, everything)


@pytest.mark.thorough
async def test_cancelled_call_gets_no_response_and_affects_no_other(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        long = {"duration": 0.5, "steps": 1}
        async with anyio.create_task_group() as calls:
            calls.start_soon(exchange.client.call_tool, "trigger-long-running-operation", long)
            await exchange.client.send_ping()  # the call is in flight
            calls.cancel_scope.cancel()
        await exchange.call(
            "trigger-long-running-operation", **long
        )  # sent later: the cancelled one would have been answered first

    answers = await same(talk, everything)
    assert sum("Long running operation completed" in line for line in answers) == 1


@pytest.mark.thorough
async def test_list_changes_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        data = "data:text/plain;base64,SGVsbG8="
        link = await exchange.call("gzip-file-as-resource", name="a.gz", data=data, outputType="resourceLink")
        assert link.content[0].type == "resource_link"
        await exchange.call("gzip-file-as-resource", name="b.gz", data=data, outputType="resource")
        await exchange.until_notified("notifications/resources/list_changed", 2)
        assert {"a.gz", "b.gz"} <= {resource.name for resource in (await exchange.client.list_resources()).resources}
        await exchange.client.read_resource("demo://resource/session/a.gz")

    await same(talk, everything)


@pytest.mark.thorough
async def test_sampling_requests_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        for prompt in ("one", "two"):
            assert f"context: {prompt} \u00fc" in await exchange.text(
                "trigger-sampling-request", prompt=prompt, maxTokens=5
            )
        async with anyio.create_task_group() as calls:
            for number in range(5):
                calls.start_soon(
                    exchange.client.call_tool, "trigger-sampling-request", {"prompt": f"at once, {number}"}
                )

    await same(talk, everything, "sampling")


@pytest.mark.thorough
async def test_elicitation_requests_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        exchange.person_answers = [
            types.ElicitResult(action="accept", content={"name": "Ada", "check": True, "integer": 4, "number": 1.0}),
            types.ElicitResult(action="decline"),
            types.ElicitResult(action="cancel"),
            types.ErrorData(code=-32000, message="no person is there"),
            types.ElicitResult(action="accept"),
            types.ElicitResult(action="accept"),
        ]
        for _ in range(4):
            await exchange.call("trigger-elicitation-request")
        url = {"url": "https://example.org/", "elicitationId": "test"}
        assert "completed the URL" in await exchange.text("trigger-url-elicitation", **url)
        assert await refused(exchange.call("trigger-url-elicitation", **url, errorPath=True)) == -32042

    await same(talk, everything, "elicitation")


@pytest.mark.thorough
async def test_roots_requests_and_changes_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        await exchange.until_notified("notifications/message")  # the server has asked on its own, and logs that
        assert "file:///else/where" in await exchange.text("get-roots-list")
        exchange.roots = ["file:///moved"]
        await exchange.client.send_roots_list_changed()
        await exchange.until_notified("notifications/message", 2)
        assert "file:///moved" in await exchange.text("get-roots-list")

    await same(talk, everything, "list_roots")


@pytest.mark.thorough
async def test_task_requests_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        exchange.person_answers = [types.ElicitResult(action="accept", content={"interpretation": "snake"})]
        research = {"name": "simulate-research-query", "task": {"ttl": 60_000}}
        made = await exchange.request("tools/call", **research, arguments={"topic": "python", "ambiguous": True})
        task = made["task"]["taskId"]
        assert len((await exchange.request("tasks/list"))["tasks"]) == 1
        result = await exchange.request("tasks/result", taskId=task)
        assert "(snake)" in result["content"][0]["text"]
        assert (await exchange.request("tasks/get", taskId=task))["status"] == "completed"
        made = await exchange.request("tools/call", **research, arguments={"topic": "other"})
        await exchange.request("tasks/cancel", taskId=made["task"]["taskId"])
        assert await refused(exchange.request("tasks/get", taskId="none")) == -32602

    await same(talk, everything, "elicitation")


@pytest.mark.thorough
async def test_unknown_methods_and_fields_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        assert await refused(exchange.request("x/unknown", some="thing", nested={"id": 1, "method": "x"})) == -32601
        await exchange.client.session.send_notification(
            types.Notification[dict[str, Any], str](method="notifications/x", params={"y": [None]})
        )
        meta = {"x.example/field": {"deep": ["\u00fc", 1.0, 10**30]}}
        await exchange.client.call_tool("echo", {"message": "hi", "unknown": {"kept": None}}, meta=meta)

    await same(talk, everything)


# -- 2026-07-28: a server of the Python SDK -------------------------------------------------------------------------

MODERN = """
from typing import Annotated
from mcp.server.mcpserver import Context, Elicit, ListRoots, MCPServer, Resolve, Sample
from mcp.types import Completion, CreateMessageResult, ListRootsResult, SamplingMessage, TextContent, ToolAnnotations
from pydantic import BaseModel

server = MCPServer("modern", instructions="ask me", version="7")

class Wish(BaseModel):
    colour: str

def a_wish() -> Elicit[Wish]:
    return Elicit("Which colour?", Wish)

def a_word() -> Sample:
    return Sample([SamplingMessage(role="user", content=TextContent(text="a word"))], max_tokens=9)

def the_roots() -> ListRoots:
    return ListRoots()

@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: float, b: float) -> float:
    return a + b

@server.tool()
def paint(wish: Annotated[Wish, Resolve(a_wish)]) -> str:
    return f"painted {wish.colour}"

@server.tool()
def compose(word: Annotated[CreateMessageResult, Resolve(a_word)]) -> str:
    return f"composed: {word.content.text}"

@server.tool()
def look(roots: Annotated[ListRootsResult, Resolve(the_roots)]) -> list[str]:
    return [str(root.uri) for root in roots.roots]

@server.tool()
async def climb(steps: int, ctx: Context) -> str:
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, f"step {step + 1}")
    return "up"

@server.tool()
async def change(ctx: Context) -> str:
    await ctx.notify_tools_changed()
    await ctx.notify_resource_updated("note://a")
    return "changed"

@server.resource("note://a")
def note() -> str:
    return "a note"

@server.resource("note://of/{name}")
def note_of(name: str) -> str:
    return f"a note of {name}"

@server.prompt()
def greet(name: str) -> str:
    return f"Greet {name}"

@server.completion()
async def complete(ref, argument, context):
    return Completion(values=[argument.value + "x"])

server.run()
"""


@pytest.fixture
def modern() -> list[str]:
    """A server of version 2026-07-28, without a handshake: it asks for input in its results."""
    return [sys.executable, "-c", MODERN]


@pytest.mark.thorough
async def test_version_without_handshake_is_forwarded(same: Same, modern: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        client = exchange.client
        assert client.protocol_version == "2026-07-28"
        assert len((await client.list_tools()).tools) == 6
        assert await exchange.text("add", a=1, b=2.5) == "3.5"
        assert (await exchange.call("no-such-tool")).is_error
        assert (await client.get_prompt("greet", {"name": "Ada"})).messages
        assert (await client.list_resources()).resources
        assert (await client.list_resource_templates()).resource_templates
        assert (await client.read_resource("note://of/Ada")).contents
        completed = await client.complete(types.PromptReference(name="greet"), {"name": "name", "value": "A"})
        assert completed.completion.values == ["Ax"]
        assert await refused(
            exchange.request("x/unknown", _meta={"io.modelcontextprotocol/protocolVersion": "2026-07-28"})
        )

    await same(talk, modern)


@pytest.mark.thorough
async def test_version_without_handshake_forwards_input_requests(same: Same, modern: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        exchange.person_answers = [types.ElicitResult(action="accept", content={"colour": "red"})]
        assert await exchange.text("paint") == "painted red"
        assert "sampled: a word" in await exchange.text("compose")
        assert await exchange.text("look") == exchange.roots[0]

    answers = await same(talk, modern, "elicitation", "sampling", "list_roots")
    assert sum('"input_required"' in line for line in answers) == 3


@pytest.mark.thorough
async def test_version_without_handshake_forwards_progress_and_changes(same: Same, modern: list[str]) -> None:
    async def talk(exchange: Exchange) -> None:
        steps: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            steps.append(done)

        await exchange.client.call_tool("climb", {"steps": 3}, progress_callback=progress)
        assert steps == [1, 2, 3]
        async with exchange.client.listen(tools_list_changed=True, resource_subscriptions=["note://a"]) as events:
            await exchange.call("change")
            assert "ToolsListChanged" in repr(await anext(events))
            assert "note://a" in repr(await anext(events))

    await same(talk, modern)


# -- a server's death -----------------------------------------------------------------------------------------------


async def test_session_is_replayed_after_the_server_was_killed(
    project: Path, claude_home: Path, tmp_path: Path, everything: list[str]
) -> None:
    pids = tmp_path / "pids"
    server = ["sh", "-c", 'echo $$ >>"$0"; exec "$@"', str(pids), *everything]
    async with connected(
        [*PROGRAM, "--project", str(project), "mcp", "--", *server], "sampling", "list_roots"
    ) as exchange:
        await exchange.until_notified("notifications/message")  # the server has asked for the roots, and logs that
        await exchange.client.list_tools()
        await exchange.client.set_logging_level("info")
        for number in (1, 2):
            await exchange.client.subscribe_resource(f"demo://resource/dynamic/text/{number}")
        await exchange.client.unsubscribe_resource("demo://resource/dynamic/text/2")
        exchange.notifications.clear()

        os.kill(int(pids.read_text()), signal.SIGKILL)

        assert await exchange.text("echo", message="hi") == "Echo: hi"
        assert len(pids.read_text().split()) == 2
        await exchange.call("toggle-subscriber-updates")
        await exchange.until_notified("notifications/resources/updated")
        await exchange.call("toggle-subscriber-updates")
        assert "file:///else/where" in await exchange.text("get-roots-list")
        assert "sampled" in await exchange.text("trigger-sampling-request", prompt="hi")
        updated = [
            message.params.uri
            for message in exchange.notifications
            if message.method == "notifications/resources/updated"
        ]
        assert [str(uri) for uri in updated] == ["demo://resource/dynamic/text/1"]


@pytest.fixture
def scratch(project: Path, claude_home: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of ``upstream.py`` behind the relay."""
    server = [sys.executable, str(UPSTREAM), "--effects", str(tmp_path / "effects")]
    return lambda *options: [*PROGRAM, "--project", str(project), "mcp", "--", *server, *options]


@pytest.mark.thorough
async def test_server_that_closes_its_input_is_restarted(scratch: Callable[..., list[str]]) -> None:
    async with connected(scratch()) as exchange:
        await exchange.client.list_tools()
        await exchange.call("once_close_stdin")

        assert await exchange.text("read_echo", text="hi") == "hi"


@pytest.mark.thorough
async def test_tool_annotations_are_known_although_the_server_died_listing_them(
    scratch: Callable[..., list[str]],
) -> None:
    async with connected(scratch("--dies-at", "tools/list")) as exchange:
        with suppress(mcp.MCPError):
            await exchange.request("tools/call", name="read_echo", arguments={"text": "the relay lists the tools, too"})

        answer = await exchange.request(
            "tools/call", name="again_echo", arguments={"text": "hi", "fails": 1, "how": "exit"}
        )

        assert answer["content"][0]["text"] == "hi"


# -- the inspector --------------------------------------------------------------------------------------------------

QUESTIONS = (
    "tools/list",
    "tools/call --tool-name echo --tool-arg message=hi",
    "tools/call --tool-name get-tiny-image --metadata trace=1",
    "resources/list",
    "resources/read --uri demo://resource/static/document/features.md",
    "resources/templates/list",
    "prompts/list",
    "prompts/get --prompt-name args-prompt --prompt-args city=Basel",
    "logging/setLevel --log-level debug",
)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "question", cases(QUESTIONS, QUESTIONS[2:3]), ids=lambda question: question.partition(" --metadata")[0]
)
def test_inspector_output_is_identical(question: str, npm: Path, lines: Connections, everything: list[str]) -> None:
    both = lines(everything)
    inspector = [str(npm / ".bin" / "mcp-inspector-cli"), "--cli"]
    folder = npm / "@modelcontextprotocol" / "inspector-cli" / "build"  # it finds its files only from there
    seen = [
        subprocess.Popen(
            [*inspector, str(line.script), "--method", *question.split()], stdout=subprocess.PIPE, cwd=folder
        )
        for line in both
    ]
    output = [inspecting.communicate(timeout=LIMIT_S)[0] for inspecting in seen]

    assert [inspecting.returncode for inspecting in seen] == [0, 0]
    assert isinstance(json.loads(output[0]), dict)
    assert output[1] == output[0]
    assert_same(*both)


# -- the real Claude Code client ------------------------------------------------------------------------------------


@pytest.fixture
def claude(tmp_path: Path, project: Path) -> Iterator[RealTeam]:
    """Claude Code connected to ``upstream.py`` through the relay."""
    scratch = tmp_path / "real"
    (scratch / "project").mkdir(parents=True)
    upstream = [sys.executable, str(UPSTREAM), "--effects", str(tmp_path / "effects")]
    relay = {"command": PROGRAM[0], "args": [*PROGRAM[1:], "--project", str(project), "mcp", "--", *upstream]}
    (scratch / "project" / ".mcp.json").write_text(json.dumps({"mcpServers": {"scratch": relay}}))
    started = RealTeam(scratch)
    yield started
    started.end()


@pytest.mark.real
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is missing: not tested with Claude Code")
def test_claude_code_notices_a_server_death_only_at_an_unrepeatable_call(
    claude: RealTeam, tmp_path: Path, project: Path
) -> None:
    def call(tool: str, **arguments: Any) -> list[dict[str, Any]]:
        return use(f"mcp__scratch__{tool}", **arguments)

    claude.begin(("LEAD call the tools", [
        call("read_echo", text="hello"),
        call("again_echo", text="made again", fails=1, how="kill"),
        call("once_echo", text="made once", fails=1, how="kill"),
        call("read_echo", text="last"),
    ]))  # fmt: skip
    wait_until(lambda: "last" in str(claude.told()), "the model to see the last result", LIMIT_S)

    first, again, once, last = dict.fromkeys(map(str, claude.told()))  # the client may record a result twice
    assert first == str([{"type": "text", "text": "hello"}])
    assert again == str([{"type": "text", "text": "made again"}])
    assert "This call may or may not have taken effect. Check its effect before you call it again." in once
    assert last == str([{"type": "text", "text": "last"}])
    assert effects(tmp_path / "effects") == [
        "read_echo hello", "again_echo made again", "again_echo made again", "once_echo made once",
        "read_echo last",
    ]  # fmt: skip
