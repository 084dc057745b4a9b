"""The relay on real parts: the official servers, the official clients and the real Claude Code client speak through it,
message by message, as if it were not there."""

from __future__ import annotations

import base64
import fcntl
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

import test_real_team
from conftest import PROGRAM, wait_until
from test_real_team import LEAD, RealTeam, use
from upstream import effects

if TYPE_CHECKING:
    import mcp
    from mcp import types
else:
    mcp = pytest.importorskip("mcp", reason="the Python SDK (mcp) is not installed: the relay meets no real client")
    types = mcp.types

SERVER, INSPECTOR, CLIENT = (
    "@modelcontextprotocol/server-everything@2026.8.31",
    "@modelcontextprotocol/inspector-cli@1.0.3",
    "@anthropic-ai/claude-code@2.1.330",
)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo-supervisor-tests"
UPSTREAM = Path(__file__).with_name("upstream.py")
LIMIT_S = 30.0

pytestmark = pytest.mark.filterwarnings("ignore::mcp.MCPDeprecationWarning")  # the older era is half of what we pass on

# -- what is installed ----------------------------------------------------------------------------------------------


def installed(*packages: str) -> Path:
    """The folder in which the packages of npm are; what has once been fetched is used again."""
    folder = CACHE / "+".join(package.rpartition("/")[2] for package in packages)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            if shutil.which("npm") is None:
                pytest.skip(f"there is no npm here: the relay does not meet {', '.join(packages)}")
            words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
            told = subprocess.run(words, capture_output=True, text=True, timeout=100)
            if told.returncode:
                pytest.skip(f"npm cannot install {', '.join(packages)}: the relay does not meet them: {told.stderr}")
            (folder / "complete").touch()
    return folder / "node_modules"


@pytest.fixture(scope="session")
def npm() -> Path:
    return installed(SERVER, INSPECTOR)


@pytest.fixture
def everything(npm: Path) -> list[str]:
    """The official server that has everything the older era of the protocol knows."""
    return ["node", str(npm / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js")]


# -- two lines to one server ----------------------------------------------------------------------------------------

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
"""Passes on what client and server say, and writes down each line and who has said it."""

OURS = '"yolo-supervisor-'
"""What the relay asks a server by itself, and what it is answered: the client knows nothing of that."""


class Line:
    """A client's way to a server, directly or through the relay. ``script`` is a program for clients to start."""

    def __init__(self, folder: Path, server: Sequence[str], relay: Sequence[str] = ()) -> None:
        self._here, self._beyond = folder / "here", folder / "beyond"
        folder.mkdir()
        words = [*tee(self._here), *relay, *tee(self._beyond), *server]
        self.script = folder / "script"
        self.script.write_text(f"#!/bin/sh\nexec {shlex.join(words)}\n")
        self.script.chmod(0o755)

    def said(self) -> dict[str, list[str]]:
        """As the client heard it."""
        return alike(self._here.read_text().splitlines())

    def said_beyond(self) -> dict[str, list[str]]:
        """As the server heard it."""
        return alike(line for line in self._beyond.read_text().splitlines() if OURS not in json.loads(line)[1])


def tee(frames: Path) -> list[str]:
    return [sys.executable, "-c", TEE, str(frames)]


Lines = Callable[[Sequence[str]], tuple[Line, Line]]


@pytest.fixture
def lines(project: Path, claude_home: Path, tmp_path: Path) -> Lines:
    """A direct line to a server, and one through the relay."""

    def to(server: Sequence[str]) -> tuple[Line, Line]:
        relay = [*PROGRAM, "--project", str(project), "mcp", "--"]
        return Line(tmp_path / "direct", server), Line(tmp_path / "relayed", server, relay)

    return to


def assert_same(direct: Line, relayed: Line) -> None:
    assert relayed.said() == direct.said()
    assert relayed.said_beyond() == direct.said()


RANDOM = {
    r"\d{4}-\d\d-\d\dT[\d:.]+Z": "TIME",  # of a task: createdAt and lastUpdatedAt
    r"\d{1,2}:\d\d:\d\d\s[AP]M": "CLOCK",  # when a dynamic resource was made
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "UUID",  # of an elicitation that the server invents
    r'"taskId":"[0-9a-f]{32}"': '"taskId":"TASK"',
    r'"level":"\w+","data":"\w+[- ]level[- ]message': '"level":"LEVEL","data":"MESSAGE',  # it throws dice
    r'"requestState":"[^"]+"': '"requestState":"SEALED"',  # under a key that the server makes when it starts
    r'"listen-\d+"': '"listen-N"',  # the SDK numbers the streams of all its clients together
}
"""What is random by nature, and what it is taken for; nothing else is left out of the comparison."""


def alike(frames: Iterable[str]) -> dict[str, list[str]]:
    """What the client and what the server have said, each in its order, byte for byte but for what is random."""
    told: dict[str, list[str]] = {"client": [], "server": []}
    for who, line in map(json.loads, frames):
        line = re.sub(r'"blob":"(UmVzb3VyY2[^"]+)"', lambda b: f'"blob":"{base64.b64decode(b[1]).decode()}"', line)
        for pattern, name in RANDOM.items():
            line = re.sub(pattern, name, line)
        told[who].append(line)
    return told


# -- what is said on them -------------------------------------------------------------------------------------------


class Talk:
    """One of the SDK's clients, and the notifications that have reached it."""

    def __init__(self) -> None:
        self.client: mcp.Client
        self.heard: list[Any] = []
        self.people_say: list[types.ElicitResult | types.ErrorData] = []
        self.roots = ["file:///project", "file:///else/where"]

    async def hear(self, message: object) -> None:
        self.heard.append(message)

    async def sampling_callback(self, context: object, params: Any) -> types.CreateMessageResult:
        said = types.TextContent(text=f"sampled: {params.messages[0].content.text} \u00fc")
        return types.CreateMessageResult(role="assistant", content=said, model="ours", stop_reason="endTurn")

    async def elicitation_callback(self, context: object, params: Any) -> types.ElicitResult | types.ErrorData:
        return self.people_say.pop(0)

    async def list_roots_callback(self, context: object) -> types.ListRootsResult:
        return types.ListRootsResult(roots=[types.Root(uri=uri, name="ours") for uri in self.roots])

    async def until_heard(self, method: str, times: int = 1) -> None:
        with anyio.fail_after(LIMIT_S):
            while sum(getattr(message, "method", None) == method for message in self.heard) < times:
                await anyio.sleep(0.005)

    async def call(self, tool: str, **arguments: Any) -> Any:
        return await self.client.call_tool(tool, arguments)

    async def text(self, tool: str, **arguments: Any) -> str:
        """The first text that the tool answers."""
        return str((await self.call(tool, **arguments)).content[0].text)

    async def request(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a request that the SDK's own types have no room for."""
        return await self.client.session._dispatcher.send_raw_request(method, params, {})


@asynccontextmanager
async def talking(words: Sequence[str], *able: str) -> AsyncIterator[Talk]:
    """Talk with a server, able to answer for ``sampling``, ``elicitation`` or ``list_roots``."""
    ours = Talk()
    server = mcp.StdioServerParameters(command=words[0], args=list(words[1:]), env=dict(os.environ))
    callbacks = {f"{name}_callback": getattr(ours, f"{name}_callback") for name in able}
    async with mcp.Client(server, message_handler=ours.hear, cache=None, **callbacks) as ours.client:
        with anyio.fail_after(LIMIT_S):
            yield ours


async def refused(answer: Awaitable[object]) -> int:
    """The code of the error that a request is answered with."""
    with pytest.raises(mcp.MCPError) as told:
        await answer
    return int(told.value.code)


Same = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def same(lines: Lines) -> Same:
    """Has the same talk on both lines, with a client that is able to as much as is said; sees that all that was said is
    the same, and answers what the server said."""

    async def on(line: Line, talk: Callable[[Talk], Awaitable[None]], able: Sequence[str]) -> None:
        async with talking([str(line.script)], *able) as ours:
            if ours.client.server_info.name == "mcp-servers/everything":
                await ours.until_heard("notifications/tools/list_changed")  # it has taken in what we are able to
            await talk(ours)

    async def have(talk: Callable[[Talk], Awaitable[None]], server: Sequence[str], *able: str) -> list[str]:
        direct, relayed = lines(server)
        async with anyio.create_task_group() as both:
            both.start_soon(on, direct, talk, able)
            both.start_soon(on, relayed, talk, able)
        assert_same(direct, relayed)
        return direct.said()["server"]

    return have


# -- the older era: the official server, the Python SDK's client ----------------------------------------------------


async def test_handshake_is_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        info, told = our.client.server_info, our.client.server_capabilities
        assert info is not None
        assert info.name == "mcp-servers/everything"
        assert told.completions is not None
        assert "Everything" in (our.client.instructions or "")
        await our.client.send_ping()

    answers = await same(talk, everything)  # which begins with a question of the newer era, before the handshake
    assert "-32601" in answers[0]


async def test_tool_results_of_every_content_type_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        assert len((await our.client.list_tools()).tools) > 10
        assert await our.text("echo", message='ünïcode \u2028 \U0001f600 \\ " \x7f') != ""
        assert "8" in await our.text("get-sum", a=3.5, b=4.5)
        assert json.loads(await our.text("get-env"))["PATH"] == os.environ["PATH"]
        for kind in ("error", "success", "debug"):
            await our.call("get-annotated-message", messageType=kind, includeImage=True)
        image = await our.call("get-tiny-image")
        assert [block.type for block in image.content] == ["text", "image", "text"]
        links = await our.call("get-resource-links", count=4)
        assert [block.type for block in links.content] == ["text"] + ["resource_link"] * 4
        for kind in ("Text", "Blob"):
            found = await our.call("get-resource-reference", resourceType=kind, resourceId=7)
            assert found.content[1].type == "resource"
        for city in ("New York", "Chicago", "Los Angeles"):
            assert (await our.call("get-structured-content", location=city)).structured_content
        assert (await our.call("get-sum", a="no number")).is_error
        assert (await our.call("no-such-tool")).is_error

    await same(talk, everything)


async def test_prompts_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        client = our.client
        assert len((await client.list_prompts()).prompts) == 4
        await client.get_prompt("simple-prompt")
        await client.get_prompt("args-prompt", {"city": "Zürich", "state": "ZH"})
        await client.get_prompt("completable-prompt", {"department": "Sales", "name": "David"})
        for kind in ("Text", "Blob"):
            await client.get_prompt("resource-prompt", {"resourceType": kind, "resourceId": "3"})
        assert await refused(client.get_prompt("args-prompt", {})) == -32602
        assert await refused(client.get_prompt("no-such-prompt")) == -32602

    await same(talk, everything)


async def test_resources_and_templates_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        client = our.client
        listed = (await client.list_resources()).resources
        assert len(listed) > 3
        for resource in listed:
            await client.read_resource(resource.uri)
        assert len((await client.list_resource_templates()).resource_templates) == 2
        await client.read_resource("demo://resource/dynamic/text/1")
        await client.read_resource("demo://resource/dynamic/blob/2")
        assert await refused(client.read_resource("demo://resource/none")) == -32602

    await same(talk, everything)


async def test_completions_are_identical(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        prompt = types.PromptReference(name="completable-prompt")
        found = await our.client.complete(prompt, {"name": "department", "value": "S"})
        assert found.completion.values == ["Sales", "Support"]
        await our.client.complete(prompt, {"name": "name", "value": ""}, {"department": "Sales"})
        template = types.ResourceTemplateReference(uri="demo://resource/dynamic/text/{resourceId}")
        found = await our.client.complete(template, {"name": "resourceId", "value": "7"})
        assert found.completion.values == ["7"]

    await same(talk, everything)


async def test_resource_updates_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        for number in (1, 2, 3):
            await our.client.subscribe_resource(f"demo://resource/dynamic/text/{number}")
        await our.client.unsubscribe_resource("demo://resource/dynamic/text/2")
        await our.call("toggle-subscriber-updates")
        await our.until_heard("notifications/resources/updated", 2)
        await our.call("toggle-subscriber-updates")

    await same(talk, everything)


async def test_log_messages_are_forwarded_from_the_set_level(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        await our.client.set_logging_level("debug")
        await our.call("toggle-simulated-logging")
        await our.until_heard("notifications/message")
        await our.call("toggle-simulated-logging")
        await our.client.set_logging_level("emergency")
        await our.client.subscribe_resource("demo://resource/dynamic/text/1")  # which is told as information

    answers = await same(talk, everything)
    assert sum("notifications/message" in line for line in answers) == 1


async def test_progress_notifications_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        told: list[tuple[float, float | None]] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append((done, total))

        await our.client.call_tool(
            "trigger-long-running-operation", {"duration": 0.3, "steps": 5}, progress_callback=progress
        )
        assert told == [(step, 5) for step in range(1, 6)]

    await same(talk, everything)


async def test_cancelled_call_gets_no_response_and_affects_no_other(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        long = {"duration": 0.5, "steps": 1}
        async with anyio.create_task_group() as calls:
            calls.start_soon(our.client.call_tool, "trigger-long-running-operation", long)
            await our.client.send_ping()  # it is under way
            calls.cancel_scope.cancel()
        await our.call("trigger-long-running-operation", **long)  # begun later: the other would have answered before

    answers = await same(talk, everything)
    assert sum("Long running operation completed" in line for line in answers) == 1


async def test_list_changes_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        data = "data:text/plain;base64,SGVsbG8="
        link = await our.call("gzip-file-as-resource", name="a.gz", data=data, outputType="resourceLink")
        assert link.content[0].type == "resource_link"
        await our.call("gzip-file-as-resource", name="b.gz", data=data, outputType="resource")
        await our.until_heard("notifications/resources/list_changed", 2)
        assert {"a.gz", "b.gz"} <= {resource.name for resource in (await our.client.list_resources()).resources}
        await our.client.read_resource("demo://resource/session/a.gz")

    await same(talk, everything)


async def test_sampling_requests_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        for prompt in ("one", "two"):
            assert f"context: {prompt} \u00fc" in await our.text("trigger-sampling-request", prompt=prompt, maxTokens=5)
        async with anyio.create_task_group() as calls:
            for number in range(5):
                calls.start_soon(our.client.call_tool, "trigger-sampling-request", {"prompt": f"at once, {number}"})

    await same(talk, everything, "sampling")


async def test_elicitation_requests_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        our.people_say = [
            types.ElicitResult(action="accept", content={"name": "Ada", "check": True, "integer": 4, "number": 1.0}),
            types.ElicitResult(action="decline"),
            types.ElicitResult(action="cancel"),
            types.ErrorData(code=-32000, message="nobody is there"),
            types.ElicitResult(action="accept"),
            types.ElicitResult(action="accept"),
        ]
        for _ in range(4):
            await our.call("trigger-elicitation-request")
        url = {"url": "https://example.org/", "elicitationId": "of-ours"}
        assert "completed the URL" in await our.text("trigger-url-elicitation", **url)
        assert await refused(our.call("trigger-url-elicitation", **url, errorPath=True)) == -32042

    await same(talk, everything, "elicitation")


async def test_roots_requests_and_changes_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        await our.until_heard("notifications/message")  # the server has asked by itself, and says so
        assert "file:///else/where" in await our.text("get-roots-list")
        our.roots = ["file:///moved"]
        await our.client.send_roots_list_changed()
        await our.until_heard("notifications/message", 2)
        assert "file:///moved" in await our.text("get-roots-list")

    await same(talk, everything, "list_roots")


async def test_task_requests_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        our.people_say = [types.ElicitResult(action="accept", content={"interpretation": "snake"})]
        research = {"name": "simulate-research-query", "task": {"ttl": 60_000}}
        made = await our.request("tools/call", **research, arguments={"topic": "python", "ambiguous": True})
        task = made["task"]["taskId"]
        assert len((await our.request("tasks/list"))["tasks"]) == 1
        result = await our.request("tasks/result", taskId=task)
        assert "(snake)" in result["content"][0]["text"]
        assert (await our.request("tasks/get", taskId=task))["status"] == "completed"
        made = await our.request("tools/call", **research, arguments={"topic": "other"})
        await our.request("tasks/cancel", taskId=made["task"]["taskId"])
        assert await refused(our.request("tasks/get", taskId="none")) == -32602

    await same(talk, everything, "elicitation")


async def test_unknown_methods_and_fields_are_forwarded(same: Same, everything: list[str]) -> None:
    async def talk(our: Talk) -> None:
        assert await refused(our.request("x/unknown", some="thing", nested={"id": 1, "method": "x"})) == -32601
        await our.client.session.send_notification(
            types.Notification[dict[str, Any], str](method="notifications/x", params={"y": [None]})
        )
        meta = {"x.example/field": {"deep": ["\u00fc", 1.0, 10**30]}}
        await our.client.call_tool("echo", {"message": "hi", "unknown": {"kept": None}}, meta=meta)

    await same(talk, everything)


# -- the newer era: a server of the Python SDK ----------------------------------------------------------------------

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
    """A server of the era without a handshake, in which whoever is asked answers with another request."""
    return [sys.executable, "-c", MODERN]


async def test_version_without_handshake_is_forwarded(same: Same, modern: list[str]) -> None:
    async def talk(our: Talk) -> None:
        client = our.client
        assert client.protocol_version == "2026-07-28"
        assert len((await client.list_tools()).tools) == 6
        assert await our.text("add", a=1, b=2.5) == "3.5"
        assert (await our.call("no-such-tool")).is_error
        assert (await client.get_prompt("greet", {"name": "Ada"})).messages
        assert (await client.list_resources()).resources
        assert (await client.list_resource_templates()).resource_templates
        assert (await client.read_resource("note://of/Ada")).contents
        found = await client.complete(types.PromptReference(name="greet"), {"name": "name", "value": "A"})
        assert found.completion.values == ["Ax"]
        assert await refused(our.request("x/unknown", _meta={"io.modelcontextprotocol/protocolVersion": "2026-07-28"}))

    await same(talk, modern)


async def test_version_without_handshake_forwards_input_requests(same: Same, modern: list[str]) -> None:
    async def talk(our: Talk) -> None:
        our.people_say = [types.ElicitResult(action="accept", content={"colour": "red"})]
        assert await our.text("paint") == "painted red"
        assert "sampled: a word" in await our.text("compose")
        assert await our.text("look") == our.roots[0]

    answers = await same(talk, modern, "elicitation", "sampling", "list_roots")
    assert sum('"input_required"' in line for line in answers) == 3


async def test_version_without_handshake_forwards_progress_and_changes(same: Same, modern: list[str]) -> None:
    async def talk(our: Talk) -> None:
        steps: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            steps.append(done)

        await our.client.call_tool("climb", {"steps": 3}, progress_callback=progress)
        assert steps == [1, 2, 3]
        async with our.client.listen(tools_list_changed=True, resource_subscriptions=["note://a"]) as events:
            await our.call("change")
            assert "ToolsListChanged" in repr(await anext(events))
            assert "note://a" in repr(await anext(events))

    await same(talk, modern)


# -- a server's death -----------------------------------------------------------------------------------------------


async def test_session_is_replayed_after_the_server_was_killed(
    project: Path, claude_home: Path, tmp_path: Path, everything: list[str]
) -> None:
    pids = tmp_path / "pids"
    server = ["sh", "-c", 'echo $$ >>"$0"; exec "$@"', str(pids), *everything]
    async with talking([*PROGRAM, "--project", str(project), "mcp", "--", *server], "sampling", "list_roots") as our:
        await our.until_heard("notifications/message")  # the server has asked for the roots, and says so
        await our.client.list_tools()
        await our.client.set_logging_level("info")
        for number in (1, 2):
            await our.client.subscribe_resource(f"demo://resource/dynamic/text/{number}")
        await our.client.unsubscribe_resource("demo://resource/dynamic/text/2")
        our.heard.clear()

        os.kill(int(pids.read_text()), signal.SIGKILL)

        assert await our.text("echo", message="hi") == "Echo: hi"
        assert len(pids.read_text().split()) == 2
        await our.call("toggle-subscriber-updates")
        await our.until_heard("notifications/resources/updated")
        await our.call("toggle-subscriber-updates")
        assert "file:///else/where" in await our.text("get-roots-list")
        assert "sampled" in await our.text("trigger-sampling-request", prompt="hi")
        updated = [message.params.uri for message in our.heard if message.method == "notifications/resources/updated"]
        assert [str(uri) for uri in updated] == ["demo://resource/dynamic/text/1"]


@pytest.fixture
def scratch(project: Path, claude_home: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The way to a scratch server through the relay."""
    server = [sys.executable, str(UPSTREAM), "--effects", str(tmp_path / "effects")]
    return lambda *options: [*PROGRAM, "--project", str(project), "mcp", "--", *server, *options]


async def test_server_that_closes_its_input_is_restarted(scratch: Callable[..., list[str]]) -> None:
    async with talking(scratch()) as our:
        await our.client.list_tools()
        await our.call("once_close_stdin")

        assert await our.text("read_echo", text="hi") == "hi"


async def test_tool_annotations_are_known_although_the_server_died_listing_them(
    scratch: Callable[..., list[str]],
) -> None:
    async with talking(scratch("--dies-at", "tools/list")) as our:
        with suppress(mcp.MCPError):
            await our.request("tools/call", name="read_echo", arguments={"text": "the relay asks for the tools, too"})

        answer = await our.request("tools/call", name="again_echo", arguments={"text": "hi", "fails": 1, "how": "exit"})

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


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.partition(" --metadata")[0])
def test_inspector_output_is_identical(question: str, npm: Path, lines: Lines, everything: list[str]) -> None:
    both = lines(everything)
    inspector = [str(npm / ".bin" / "mcp-inspector-cli"), "--cli"]
    folder = npm / "@modelcontextprotocol" / "inspector-cli" / "build"  # from elsewhere it does not find its own files
    seen = [
        subprocess.Popen(
            [*inspector, str(line.script), "--method", *question.split()], stdout=subprocess.PIPE, cwd=folder
        )
        for line in both
    ]
    told = [inspecting.communicate(timeout=LIMIT_S)[0] for inspecting in seen]

    assert [inspecting.returncode for inspecting in seen] == [0, 0]
    assert isinstance(json.loads(told[0]), dict)
    assert told[1] == told[0]
    assert_same(*both)


# -- the real Claude Code client ------------------------------------------------------------------------------------


@pytest.fixture
def claude(tmp_path: Path, project: Path) -> Iterator[RealTeam]:
    """The real client over the scratch server, with the relay in between."""
    scratch = tmp_path / "real"
    (scratch / "project").mkdir(parents=True)
    (scratch / "client").symlink_to(installed(CLIENT).parent)
    upstream = [sys.executable, str(UPSTREAM), "--effects", str(tmp_path / "effects")]
    relay = {"command": PROGRAM[0], "args": [*PROGRAM[1:], "--project", str(project), "mcp", "--", *upstream]}
    (scratch / "project" / ".mcp.json").write_text(json.dumps({"mcpServers": {"scratch": relay}}))
    started = RealTeam(scratch)
    yield started
    started.end()


@pytest.mark.real
@pytest.mark.skipif(not test_real_team.TOOLS.exists(), reason="no real_team.sh: the real client is not driven")
@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux: the real client is not driven")
def test_claude_code_notices_a_server_death_only_at_an_unrepeatable_call(
    claude: RealTeam, tmp_path: Path, project: Path
) -> None:
    def call(tool: str, **arguments: Any) -> list[dict[str, Any]]:
        return use(f"mcp__scratch__{tool}", **arguments)

    claude.start((LEAD, [
        call("read_echo", text="all is well"),
        call("again_echo", text="heard again", fails=1, how="kill"),
        call("once_echo", text="heard once", fails=1, how="kill"),
        call("read_echo", text="as if nothing had been"),
    ]))  # fmt: skip
    wait_until(lambda: "as if nothing had been" in str(claude.told()), "the model to be told of the last call", LIMIT_S)

    first, again, once, last = dict.fromkeys(map(str, claude.told()))  # the client may write an answer down twice
    assert first == str([{"type": "text", "text": "all is well"}])
    assert again == str([{"type": "text", "text": "heard again"}])
    assert "This call may or may not have taken effect. Check its effect before you call it again." in once
    assert last == str([{"type": "text", "text": "as if nothing had been"}])
    assert effects(tmp_path / "effects") == [
        "read_echo all is well", "again_echo heard again", "again_echo heard again", "once_echo heard once",
        "read_echo as if nothing had been",
    ]  # fmt: skip
