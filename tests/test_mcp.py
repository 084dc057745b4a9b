"""The relay before an MCP server: invisible, but for healing. A real relay, between a client and a server that are the
test itself: it hears each byte that the relay lets through, and says what it wants."""

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
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import LIMIT_S, PROGRAM, Cli, wait_until
from upstream import effects
from yolo_supervisor.kernel import kernel
from yolo_supervisor.mcp.pipes import read_lines
from yolo_supervisor.processes import Processes
from yolo_supervisor.records import ProcessId
from yolo_supervisor.retry import pause_s

Json = dict[str, Any]

SCRATCH = """
import os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
socket.send_fds(line, [b"%d" % os.getpid()], [0, 1])
os.close(0)
os.close(1)
sys.exit(int(line.recv(9) or b"0"))
"""
"""A server that hands its input and output to the test, and ends when it is told to."""

UPSTREAM = [sys.executable, str(Path(__file__).with_name("upstream.py"))]
TOOLS = [
    {"name": "read", "annotations": {"readOnlyHint": True}},
    {"name": "again", "annotations": {"idempotentHint": True}},
    {"name": "once", "annotations": {"readOnlyHint": False}},
    {"name": "plain"},
]


class Wire:
    """One end of a line: what the other end says, and what it is told."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self._part: list[bytes] = []
        self._lines: deque[bytes] = deque()
        os.set_blocking(write, False)

    def say(self, *messages: Json | bytes) -> None:
        for message in messages:
            left = memoryview(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
            while left:
                assert select.select([], [self.write], [], LIMIT_S)[1], "nobody listens"
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(self.write, left[: 1 << 16]) :]

    def hear_line(self) -> bytes:
        """The next line. EOFError if there will be none."""
        while not self._lines:
            assert select.select([self.read], [], [], LIMIT_S)[0], f"nothing was said but {self._part!r:.500}"
            part = os.read(self.read, 1 << 20)
            if not part:
                raise EOFError(self._part)
            *ends, rest = part.split(b"\n")
            for end in ends:
                self._lines.append(b"".join([*self._part, end, b"\n"]))
                self._part = []
            self._part.append(rest)
        return self._lines.popleft()

    def hear(self) -> Json:
        message: Json = json.loads(self.hear_line())
        return message

    def hear_end(self) -> None:
        with pytest.raises(EOFError):
            self.hear_line()

    def all_read(self) -> bool:
        """Whether the other end has read all that was said."""
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
    """One life of the server."""

    def __init__(self, line: socket.socket) -> None:
        pid, fds, _, _ = socket.recv_fds(line, 64, 2)
        super().__init__(*fds)
        self.pid = int(pid)
        self._line = line

    def die(self, code: int = 3) -> None:
        """As a process dies: its pipes end, and it is gone."""
        self._line.send(str(code).encode())
        self.end()

    def end(self) -> None:
        self._line.close()
        self.close()

    def lists(self) -> Server:
        """Say which tools there are, to whom has asked."""
        asked = self.hear()
        assert asked["method"] == "tools/list"
        self.say(result(asked, {"tools": TOOLS}))
        return self


class Client(Wire):
    """The client, and the relay that it has started."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int, errors: Path) -> None:
        super().__init__(read, write)
        self.process = process
        self._errors = errors

    def ask(self, ident: object, method: str, **params: Any) -> None:
        self.say({"jsonrpc": "2.0", "id": ident, "method": method, "params": params})

    def call(self, ident: object, tool: str = "read", **more: Any) -> None:
        self.ask(ident, "tools/call", name=tool, **more)

    def told(self) -> str:
        return self._errors.read_text()

    def notice(self, server: Server) -> None:
        """The server dies; returns when the relay has noticed."""
        before = self.told().count("is down")
        server.die()
        wait_until(lambda: self.told().count("is down") > before, "the relay to notice")

    def ended(self) -> int:
        return self.process.wait(LIMIT_S)


def socket_pair() -> tuple[int, int]:
    """A line as node makes it."""
    one, other = socket.socketpair()
    return one.detach(), other.detach()


class World:
    def __init__(self, folder: Path, project: Path) -> None:
        self.project = project
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "line"))
        self._socket.listen()
        self._socket.settimeout(LIMIT_S)
        (folder / "scratch").write_text(SCRATCH)
        self.scratch = [sys.executable, "-S", "-E", str(folder / "scratch"), str(folder / "line")]
        self._clients: list[Client] = []
        self._servers: list[Server] = []
        self._minded: list[ProcessId] = []

    def relay(
        self,
        config: str = "",
        server: list[str] | None = None,
        sockets: bool = False,
        stderr: IO[bytes] | None = None,
    ) -> Client:
        """A client that speaks through a relay, over pipes or over sockets."""
        number = len(self._clients)
        settings, errors = self._folder / f"{number}.toml", self._folder / f"{number}.errors"
        settings.write_text(f"[mcp]\n{config}\n" + ("" if "backoff_s" in config else "backoff_s = 0.01\n"))
        shared = ["--project", str(self.project), "--config", str(settings)]
        command = [*PROGRAM, *shared, "mcp", "--", *(server or self.scratch)]
        line = socket_pair if sockets else os.pipe
        (from_us, to_relay), (from_relay, to_us) = line(), line()
        with contextlib.nullcontext(stderr) if stderr else errors.open("wb") as told:
            process = subprocess.Popen(command, stdin=from_us, stdout=to_us, stderr=told)
        os.close(from_us)
        os.close(to_us)
        client = Client(process, from_relay, to_relay, errors)
        self._clients.append(client)
        return client

    def server(self) -> Server:
        """The server that a relay has started."""
        server = Server(self._socket.accept()[0])
        self._servers.append(server)
        return server

    def talk(self, config: str = "", **options: Any) -> tuple[Client, Server]:
        """A client and a server that know each other's tools."""
        client = self.relay(config, **options)
        server = self.server()
        client.ask("list", "tools/list")
        server.lists()
        client.hear()
        return client, server

    def mind(self, pid: int) -> ProcessId:
        """Who that is; and see to it that it ends with the test."""
        process = Processes(kernel()).identify(pid)
        assert process is not None
        self._minded.append(process)
        return process

    def end(self) -> None:
        for client in self._clients:
            client.process.kill()
            client.process.wait()
            client.close()
        for server in self._servers:
            server.end()
        for process in self._minded:
            if (handle := kernel().hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()
        self._socket.close()


@pytest.fixture
def world(tmp_path: Path, project: Path, claude_home: Path) -> Iterator[World]:
    made = World(tmp_path, project)
    yield made
    made.end()


def gone(process: ProcessId) -> bool:
    return not Processes(kernel()).sweep().has(process)


def result(request: Json, value: Any = None) -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "result": {} if value is None else value}


def error(request: Json, code: int, message: str = "trouble") -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}


def notification(method: str, **params: Any) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


MARK = notification("mark")
"""Whoever hears it next has heard nothing else since."""


def progress(token: object, value: float) -> Json:
    return notification("notifications/progress", progressToken=token, progress=value)


def cancelled(ident: object) -> Json:
    return notification("notifications/cancelled", requestId=ident)


# -- what needs no change -------------------------------------------------------------------------------------------

ODD_LINES = [
    b'{"jsonrpc":"2.0","id":1,"method":"x/unknown","params":{"a":[1,2.50,-0,1e400]},"extra":null}\n',
    b'  { "jsonrpc" : "2.0" ,\t"method":"x/told" , "params" :{ } }  \r\n',
    '{"jsonrpc":"2.0","method":"x","params":{"é":"日本\\u00e9\\/ 🙂"}}\n'.encode(),
    b'{"jsonrpc":"2.0","method":"x","params":{"n":123456789012345678901234567890123456789012345678901234567890}}\n',
    b'{"jsonrpc":"2.0","method":"x","params":{"n":' + b"7" * 5000 + b"}}\n",
    b'{"method":"x","method":"y","params":{"a":1,"a":2},"jsonrpc":"2.0"}\n',
    b'{"id":"nobody asked for this","result":{"x":1.0},"jsonrpc":"2.0"}\n',
    b'{"jsonrpc":"2.0","id":99,"error":{"code":-32603,"message":"nor for this"}}\n',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}\n',
    b'[{"jsonrpc":"2.0","method":"x"}, {"jsonrpc":"2.0","id":7,"method":"y"}]\n',
    b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"nobody\'s"}}\n',
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"nobody\'s","progress":1}}\n',
    b'{"jsonrpc":"2.0","id":0,"method":"sampling/createMessage","params":{"x":' + b'"y"' + b"}}\n",
    b'{"jsonrpc":"2.0","id":0,"method":"elicitation/create","params":{"x":"' + b"y" * 100_000 + b'"}}\n',
]


def test_server_lines_are_forwarded_byte_for_byte(world: World) -> None:
    client, server = world.relay(), world.server()

    server.say(*ODD_LINES)

    assert [client.hear_line() for _ in ODD_LINES] == ODD_LINES


def test_client_lines_are_forwarded_byte_for_byte(world: World) -> None:
    client, server = world.relay(), world.server()
    lines = [*ODD_LINES[:-2], b"this is no JSON\n", b'{"broken": "\xff\xfe"}\n', b"\n", b"null\n", b'{"id":1}\n']

    client.say(*lines)

    assert [server.hear_line() for _ in lines] == lines


def test_calls_and_responses_are_forwarded_byte_for_byte(world: World) -> None:
    client, server = world.talk()
    call = b'{ "params":{"name":"read", "x":1e2,"x":"\\u00e9"},"id" : 12345678901234567890 ,"method":"tools/call"}\n'
    answer = b'{"x-more":[],  "result" : {"content":[], "n":1.10} ,"id":12345678901234567890,"jsonrpc":"2.0" }\n'

    client.say(call)
    assert server.hear_line() == call

    server.say(answer)
    assert client.hear_line() == answer


def test_any_json_value_is_accepted_as_an_id(world: World) -> None:
    client, server = world.talk()

    for ident in (0, -1, "", "a", 'é\n"', 1.5, 10**30):
        client.call(ident)
        server.say(error(server.hear(), -32603))
        again = server.hear()
        assert again["id"] != ident
        server.say(result(again, {"x": 1}))

        assert client.hear() == result({"id": ident}, {"x": 1})


def test_server_may_write_before_the_client(world: World) -> None:
    client, server = world.relay(), world.server()

    server.say(MARK)

    assert client.hear() == MARK


def test_fifty_megabytes_are_forwarded_in_both_directions(world: World) -> None:
    client, server = world.talk()
    text = os.urandom(25 * 2**20).hex().encode()
    call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"once","x":"' + text + b'"}}\n'
    answer = b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + text + b'"}}\n'

    up = threading.Thread(target=client.say, args=(call,))
    up.start()
    assert server.hear_line() == call
    up.join()
    down = threading.Thread(target=server.say, args=(answer,))
    down.start()
    assert client.hear_line() == answer
    down.join()


def test_slow_reader_loses_no_line(world: World) -> None:
    client, server = world.talk()
    line = json.dumps(notification("x", text="x" * 100_000)).encode() + b"\n"

    flood = threading.Thread(target=server.say, args=(line * 200,))
    flood.start()
    client.call(1, "once")
    server.hear()

    assert all(client.hear_line() == line for _ in range(200))
    flood.join()


def test_line_written_in_pieces_is_forwarded_whole(world: World) -> None:
    client, server = world.talk()
    line = '{"jsonrpc":"2.0","method":"x","params":"é"}\n'.encode()

    for start in (0, 9, 40):
        server.say(line[start : {0: 9, 9: 40, 40: None}[start]])
        wait_until(server.all_read, "the piece to be read")
    assert client.hear_line() == line


@given(st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"") + b"\n"), max_size=6), st.data())
def test_read_lines_does_not_depend_on_how_the_data_is_split(said: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(said) + data.draw(st.sampled_from([b"", b"an end is missing"]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    heard: list[bytes] = []

    async def listen(read: int, write: int) -> None:
        async def hear() -> None:
            heard.extend([line async for line in read_lines(read)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                os.write(write, whole[start:end])
                while select.select([read], [], [], 0)[0]:
                    await anyio.sleep(0)
            os.close(write)

    read, write = os.pipe()
    anyio.run(listen, read, write)
    os.close(read)
    assert b"".join(heard) == whole
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in heard[: len(said)])


def test_server_lines_that_are_no_message_are_not_forwarded(world: World) -> None:
    client, server = world.talk()

    for number, noise in enumerate([b"npm warn\n", b"\n", b"\xff\xfe\x00\n", b'{"half": \n', b"{}{}\n", b"42\n"]):
        client.call(number)
        server.say(noise, result(server.hear()), noise, MARK)

        assert client.hear()["id"] == number
        assert client.hear() == MARK
    assert client.told().count("no JSON-RPC message") == 10  # an empty line is not worth telling


def test_closed_stderr_does_not_stop_the_relay(world: World) -> None:
    read, write = os.pipe()
    with open(write, "wb") as stderr:
        client, server = world.talk(stderr=stderr)
    os.close(read)

    server.say(b"chatter\n", MARK)

    assert client.hear() == MARK


def test_two_requests_with_one_id_and_their_responses_are_forwarded(world: World) -> None:
    client, server = world.talk()

    client.call(1, x="first")
    client.call(1, x="second")
    first, second = server.hear(), server.hear()
    server.say(result(first, "a"), result(second, "b"))

    assert (first["params"]["x"], second["params"]["x"]) == ("first", "second")
    assert [client.hear()["result"] for _ in range(2)] == ["a", "b"]


def test_batch_of_responses_completes_its_calls(world: World) -> None:
    client, server = world.talk("attempt_s = 0.3\ncap_s = 0.5")
    client.call(1)
    client.call(2)
    answers = json.dumps([result(server.hear()), result(server.hear())]).encode() + b"\n"

    server.say(answers)
    assert client.hear_line() == answers

    client.call(3)  # which is not answered, unlike the others
    server.hear()
    assert server.hear()["params"]["requestId"] == 3


# -- what is tried again --------------------------------------------------------------------------------------------


def deed(client: Client, tool: str, **arguments: Any) -> Json:
    """The answer of the upstream to a call of one of its tools."""
    client.call(tool, tool, arguments=arguments)
    while (told := client.hear()).get("id") != tool:
        pass
    return told


@pytest.mark.parametrize("how", ["error", "exit", "kill", "hang"])
def test_only_repeatable_calls_are_made_again(world: World, tmp_path: Path, how: str) -> None:
    done = tmp_path / "effects"
    client = world.relay("attempt_s = 0.5\ncap_s = 3", [*UPSTREAM, "--effects", str(done)])

    for tool in ("read_echo", "again_echo"):
        told = deed(client, tool, text="hello", fails=1, how=how)
        assert told["result"]["content"][0]["text"] == "hello"
        assert effects(done).count(f"{tool} hello") == 2

    told = deed(client, "once_echo", text="hello", fails=1, how=how)
    assert "result" not in told
    assert effects(done).count("once_echo hello") == 1


def test_transient_error_is_retried(world: World) -> None:
    client, server = world.talk()

    for code in (-32603, -32000, -32001):
        client.call(code)
        server.say(error(server.hear(), code))
        server.say(result(server.hear(), "well"))

        assert client.hear() == result({"id": code}, "well")


def test_other_errors_are_not_retried(world: World) -> None:
    client, server = world.talk()

    for code in (-32600, -32601, -32602, -32700, -32002, -32042, 0, 1):
        client.call(code)
        server.say(error(server.hear(), code))

        assert client.hear() == error({"id": code}, code)
    client.say(MARK)
    assert server.hear() == MARK


def test_tool_result_with_is_error_is_no_failure(world: World) -> None:
    """A lock that somebody else holds is not a failure of the lock."""
    client, server = world.talk("failures = 1")

    for number in range(3):
        client.call(number)
        server.say(result(server.hear(), {"isError": True}))
        assert client.hear() == {"jsonrpc": "2.0", "id": number, "result": {"isError": True}}


def test_last_server_error_is_forwarded_after_three_retries(world: World) -> None:
    client, server = world.talk()
    client.call("mine")

    asked = []
    for number in range(4):
        asked.append(server.hear())
        server.say(error(asked[-1], -32603, f"trouble {number}"))

    assert client.hear() == error({"id": "mine"}, -32603, "trouble 3")
    assert [each["params"] for each in asked] == [{"name": "read"}] * 4
    assert len({each["id"] for each in asked}) == 4
    client.say(MARK)
    assert server.hear() == MARK


def test_error_of_an_unrepeatable_call_is_forwarded(world: World) -> None:
    client, server = world.talk()

    for tool in ("once", "plain", "unheard of"):
        client.call(tool, tool)
        server.say(error(server.hear(), -32603))

        assert client.hear() == error({"id": tool}, -32603)
    client.say(MARK)
    assert server.hear() == MARK


def test_unrepeatable_call_is_refused_with_a_warning_when_the_server_dies(world: World) -> None:
    client, server = world.talk()
    client.call(1, "once")
    server.hear()

    server.die(7)

    told = client.hear()
    assert told["id"] == 1
    assert told["error"]["code"] == -32000
    assert "once" in told["error"]["message"]
    assert "not repeated" in told["error"]["message"]
    client.say(MARK)
    assert world.server().hear() == MARK


def test_configuration_overrides_tool_annotations_and_unrepeatable_wins(world: World) -> None:
    client, server = world.talk('repeatable = ["plain", "again"]\nunrepeatable = ["again", "read"]')

    client.call(1, "plain")
    server.say(error(server.hear(), -32603))
    server.say(result(server.hear(), "well"))
    assert client.hear()["result"] == "well"

    for tool in ("again", "read"):
        client.call(2, tool)
        server.say(error(server.hear(), -32603))
        assert client.hear()["error"]["code"] == -32603


def test_tools_of_the_plugin_are_repeatable_by_default(world: World) -> None:
    client, server = world.talk()

    for tool in ("acquire_lock", "release_lock", "compile_context", "run_test_suite"):
        client.call(1, tool)
        server.say(error(server.hear(), -32603))
        server.say(result(server.hear(), "well"))

        assert client.hear()["result"] == "well"


def test_relay_lists_the_tools_itself_if_the_client_has_not(world: World) -> None:
    client, server = world.relay(), world.server()
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "progressToken": 1}
    client.call(1, _meta=meta)

    asked = server.hear()
    assert asked["method"] == "tools/list"
    server.say(result(asked, {"tools": [], "nextCursor": "2"}))
    call, asked = server.hear(), server.hear()
    assert asked["params"]["cursor"] == "2"
    server.say(result(asked, {"tools": TOOLS}), error(call, -32603))
    server.say(result(server.hear(), "well"))

    assert client.hear()["result"] == "well"


def test_relays_own_request_carries_the_clients_meta(world: World) -> None:
    """In the later era no request stands without its version."""
    client, server = world.relay(), world.server()
    told = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "me"},
    }

    client.call(1, _meta={**told, "progressToken": 1})

    assert server.hear()["params"]["_meta"] == told


def test_idempotent_methods_are_retried(world: World) -> None:
    client, server = world.relay(), world.server()

    for method in ("resources/read", "prompts/get", "tools/list", "completion/complete", "ping"):
        client.ask(method, method)
        server.say(error(server.hear(), -32603))
        server.say(result(server.hear(), {"x": 1}))

        assert client.hear() == result({"id": method}, {"x": 1})


def test_unknown_methods_are_not_retried(world: World) -> None:
    client, server = world.relay(), world.server()
    client.ask(1, "x/unknown")

    server.say(error(server.hear(), -32603))

    assert client.hear() == error({"id": 1}, -32603)


@given(st.floats(0.001, 3600), st.integers(1, 1000), st.floats(0, 3600), st.floats(0, 1))
def test_backoff_doubles_with_up_to_half_of_it_random(
    first_s: float, number: int, most_s: float, chance: float
) -> None:
    pause, whole = pause_s(first_s, number, most_s, chance), pause_s(first_s, number, most_s, 1)

    assert whole / 2 <= pause <= whole <= most_s
    assert pause_s(first_s, number + 1, most_s, 1) == min(most_s, 2 * whole)


def test_backoff_begins_with_backoff_s() -> None:
    assert [pause_s(0.1, number, 30, 1) for number in (1, 2, 3)] == [0.1, 0.2, 0.4]


def test_recovered_and_failed_calls_are_in_the_journal(world: World) -> None:
    client, server = world.talk("retries = 1")
    for number in range(3):  # one that fails, one that is healed, and one that needs no help
        client.call(number)
        for _ in range(2 - number):
            server.say(error(server.hear(), -32603, "the disk is full"))
        if number:
            server.say(result(server.hear()))
        client.hear()
    client.close(read=False)
    server.die(0)
    client.ended()

    told = [json.loads(line) for line in Cli(world.project)("history", "--json").stdout.splitlines()]

    assert [entry["action"] for entry in told] == ["escalated", "recovered"]
    assert all("the disk is full" in entry["reason"] and entry["key"] == "scratch" for entry in told)


def test_last_journal_entry_is_written_before_the_relay_exits(world: World) -> None:
    client, server = world.talk()
    client.call(1)
    server.say(error(server.hear(), -32603))
    again = server.hear()

    client.close(read=False)
    server.say(result(again))
    client.hear()
    server.die(0)
    client.ended()

    assert '"recovered"' in Cli(world.project)("history", "--json").stdout


# -- limits ---------------------------------------------------------------------------------------------------------


def test_timed_out_attempt_is_cancelled_and_retried(world: World) -> None:
    client, server = world.talk("attempt_s = 0.3")
    client.call(1)
    server.hear()

    assert server.hear() | {"params": None} == {**cancelled(1), "params": None}
    server.say(result(server.hear(), "well"))

    assert client.hear() == result({"id": 1}, "well")


def test_error_for_a_cancelled_attempt_is_no_response(world: World) -> None:
    client, server = world.talk("attempt_s = 0.3")

    for code in (0, -32000, -32800):
        client.call(code)
        first = server.hear()
        server.hear()
        server.say(error(first, code, "Request cancelled"))
        server.say(result(server.hear(), "well"))

        assert client.hear() == result({"id": code}, "well")
    client.say(MARK)
    assert server.hear() == MARK


def test_late_result_completes_the_call_and_cancels_the_retry(world: World) -> None:
    client, server = world.talk("attempt_s = 0.3")
    client.call(1)
    first = server.hear()
    server.hear()
    second = server.hear()

    server.say(result(first, "late"))
    assert client.hear() == result({"id": 1}, "late")

    assert server.hear()["params"]["requestId"] == second["id"]
    server.say(result(second, "too late"), error(second, -32000), MARK)
    assert client.hear() == MARK


def test_progress_restarts_the_time_limit_of_its_attempt(world: World) -> None:
    """Both begin together; only the one that gets on is left at it."""
    client, server = world.talk("attempt_s = 1")
    client.call("gets on", _meta={"progressToken": "a"})
    client.call("does not")
    server.hear()
    server.hear()

    count = 0
    while not select.select([server.read], [], [], 0.05)[0]:
        count += 1
        server.say(progress("a", count))

    assert server.hear()["params"]["requestId"] == "does not"
    assert [client.hear() for _ in range(count)] == [progress("a", number) for number in range(1, count + 1)]


def test_progress_does_not_extend_the_deadline_of_the_call(world: World) -> None:
    client, server = world.talk("attempt_s = 0.5\ncap_s = 0.7")
    client.call(1, _meta={"progressToken": "a"})
    server.hear()

    count = 0
    while (told := client.hear() if select.select([client.read], [], [], 0.05)[0] else MARK).get("id") != 1:
        count += 1
        server.say(progress("a", count))

    assert told["error"]["code"] == -32001
    assert server.hear()["params"]["requestId"] == 1


def test_progress_of_a_retry_is_forwarded_once_it_exceeds_the_earlier(world: World) -> None:
    client, server = world.talk()
    client.call(1, _meta={"progressToken": "a"})

    call = server.hear()
    server.say(progress("a", 1), progress("a", 5), error(call, -32603))
    again = server.hear()
    server.say(*(progress("a", value) for value in (1, 4.5, 5, 5.5, 5.2, 7)), result(again))

    assert [client.hear()["params"]["progress"] for _ in range(4)] == [1, 5, 5.5, 7]
    assert client.hear() == result({"id": 1})


def test_progress_of_a_first_attempt_is_forwarded_unchecked(world: World) -> None:
    client, server = world.talk()
    client.call(1, _meta={"progressToken": "a"})
    server.hear()

    server.say(*(progress("a", value) for value in (5, 1, 1)))

    assert [client.hear()["params"]["progress"] for _ in range(3)] == [5, 1, 1]


def test_queued_call_is_refused_at_its_deadline(world: World) -> None:
    client, server = world.relay("cap_s = 0.5"), world.server()
    greet(client, server)
    client.notice(server)
    world.server().hear()  # is greeted, and does not answer

    client.call(1)

    assert client.hear()["error"]["code"] == -32001


def test_unrepeatable_call_may_take_until_its_deadline(world: World) -> None:
    client, server = world.talk("attempt_s = 0.2\nretry_s = 0.2\nretries = 0\ncap_s = 1")
    client.call("once", "once")
    client.call("read")
    server.hear()
    server.hear()

    assert [server.hear()["params"]["requestId"], server.hear()["params"]["requestId"]] == ["read", "once"]
    told = [client.hear(), client.hear()]
    assert [(each["id"], each["error"]["code"]) for each in told] == [("read", -32001), ("once", -32001)]


def test_unbounded_requests_have_no_time_limit(world: World) -> None:
    client, server = world.talk("attempt_s = 0.2\nretry_s = 0.2\nretries = 0\ncap_s = 0.4")
    for method in ("subscriptions/listen", "tasks/result", "x/unknown"):
        client.ask(method, method)
        server.hear()
    client.call(1, "once")
    server.hear()

    assert server.hear()["params"]["requestId"] == 1
    assert client.hear()["id"] == 1
    client.say(MARK)
    assert server.hear() == MARK


@pytest.mark.parametrize("soon", [False, True])
def test_processes_of_a_timed_out_call_are_ended_if_they_are_certainly_its(
    world: World, tmp_path: Path, soon: bool
) -> None:
    """Where one call comes soon after another, it is not known whose a process is: then it is left alone."""
    done = tmp_path / "effects"
    client = world.relay("cap_s = 1", [*UPSTREAM, "--effects", str(done)])
    older = world.mind(int(deed(client, "read_spawn")["result"]["content"][0]["text"]))
    if not soon:
        wait_until(lambda: time.time() - kernel().started_at(older.started) > 0.3, "some time to be in between")

    told = deed(client, "once_spawn", then="hang")

    newer = [int(line.split()[1]) for line in effects(done) if line.startswith("spawned")][1]
    left = Processes(kernel()).identify(newer) and world.mind(newer)
    assert told["error"]["code"] == -32001
    assert not gone(older)
    assert soon or left is None
    assert len([line for line in effects(done) if line.startswith("cancelled")]) == 1
    deed(client, "read_echo")
    assert len({line.split()[0] for line in done.read_text().splitlines()}) == 1  # it is the same server still


# -- cancellation ---------------------------------------------------------------------------------------------------


def test_cancellation_is_forwarded_byte_for_byte(world: World) -> None:
    client, server = world.talk()
    client.call(1)
    server.hear()
    line = b'{"method": "notifications/cancelled","params":{"reason":"\\u00e9", "requestId":1},"jsonrpc":"2.0"}\n'

    client.say(line)

    assert server.hear_line() == line


def test_cancellation_of_a_retry_names_the_retrys_id(world: World) -> None:
    client, server = world.talk()
    client.call(1)
    server.say(error(server.hear(), -32603))
    again = server.hear()

    client.say(notification("notifications/cancelled", reason="enough", requestId=1))

    assert server.hear()["params"] == {"reason": "enough", "requestId": again["id"]}
    server.say(result(again), error(again, -32603), MARK)
    assert client.hear() == MARK
    client.say(MARK)
    assert server.hear() == MARK


def test_call_cancelled_during_its_backoff_is_not_repeated(world: World) -> None:
    client, server = world.talk("backoff_s = 0.2")
    client.call("cancelled")
    server.say(error(server.hear(), -32603))
    client.say(cancelled("cancelled"), MARK)
    wait_until(lambda: server.hear() == MARK, "the cancellation to be known")

    client.call("later", "again")
    for _ in range(3):  # its two pauses are longer than the one of the other
        asked = server.hear()
        assert asked["params"]["name"] == "again"
        server.say(error(asked, -32603))


def test_call_cancelled_while_queued_is_not_sent(world: World) -> None:
    client, server = world.talk("backoff_s = 1")
    client.call(1)
    server.hear()
    client.notice(server)

    client.say(cancelled(1), MARK)

    assert world.server().hear() == MARK


# -- another life of the server -------------------------------------------------------------------------------------

HELLO = (
    b'{ "jsonrpc":"2.0", "id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25","x":"\xc3\xa9"}}\n'
)
GREETED = b'{"method":"notifications/initialized",  "jsonrpc":"2.0"}\n'


def greet(client: Client, server: Server) -> None:
    client.say(HELLO)
    server.say(result(server.hear(), {"capabilities": {}}))
    client.hear()
    client.say(GREETED)
    server.hear()


def greeted(server: Server) -> Server:
    """The relay has told the server what the one before it knew."""
    asked = server.hear()
    assert asked["method"] == "initialize"
    server.say(result(asked, {"capabilities": {}}))
    assert server.hear_line() == GREETED
    return server


def test_session_is_replayed_to_a_restarted_server(world: World) -> None:
    client, server = world.relay(), world.server()
    greet(client, server)
    for number, (method, params) in enumerate([
        ("logging/setLevel", {"level": "debug"}),
        ("logging/setLevel", {"level": "error"}),
        ("resources/subscribe", {"uri": "file:///a"}),
        ("resources/subscribe", {"uri": "file:///b"}),
        ("resources/unsubscribe", {"uri": "file:///a"}),
    ]):  # fmt: skip
        client.ask(number, method, **params)
        server.say(result(server.hear()))
        client.hear()

    server.die()
    server = world.server()

    hello = server.hear_line()
    ident = json.loads(hello)["id"]
    assert hello == HELLO.replace(b'"hello"', json.dumps(ident).encode())
    assert ident != "hello"
    server.say(result({"id": ident}))
    assert server.hear_line() == GREETED
    told = [server.hear(), server.hear()]
    assert [each["params"] for each in told] == [{"level": "error"}, {"uri": "file:///b"}]
    server.say(*map(result, told), MARK)
    assert client.hear() == MARK
    client.say(MARK)
    assert server.hear() == MARK


def test_lines_sent_during_a_restart_are_queued_for_the_next_process(world: World) -> None:
    client, server = world.relay(), world.server()
    greet(client, server)
    client.notice(server)
    client.ask(1, "prompts/get")
    client.say(MARK)

    server = greeted(world.server())

    assert [server.hear()["method"], server.hear()["method"]] == ["prompts/get", "mark"]


def test_initialize_without_response_is_sent_again(world: World) -> None:
    client, server = world.relay(), world.server()
    client.say(HELLO)
    server.hear()
    server.die()

    server = world.server()
    server.say(result(server.hear(), {"capabilities": {"x": 1}}))

    assert client.hear() == result({"id": "hello"}, {"capabilities": {"x": 1}})
    client.say(MARK)
    assert server.hear() == MARK


def test_nothing_is_replayed_without_initialize(world: World) -> None:
    client, server = world.talk()
    client.notice(server)
    client.say(MARK)

    assert world.server().hear() == MARK


def test_stream_is_reopened_under_the_clients_id(world: World) -> None:
    """All that comes on it names the request by its id."""
    client, server = world.relay(), world.server()
    client.ask("stream", "subscriptions/listen", notifications={})
    first = server.hear_line()

    server.die()

    assert world.server().hear_line() == first


@pytest.mark.parametrize("size", [10, 100_000])
def test_truncated_response_does_not_complete_a_call(world: World, size: int) -> None:
    client, server = world.talk()
    client.call(1)
    server.hear()

    server.say(b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"x" * size + b'"}')
    server.die()
    server = world.server()
    server.say(result(server.hear(), "whole"))

    assert client.hear() == result({"id": 1}, "whole")


def test_requests_of_two_processes_with_one_id_are_told_apart(world: World) -> None:
    client, server = world.talk()
    asks = {"jsonrpc": "2.0", "id": 0, "method": "roots/list"}
    server.say(asks)
    first = client.hear()
    assert first == asks

    server.die()
    assert client.hear()["params"]["requestId"] == 0  # nobody waits for that answer any more
    server = world.server()
    server.say(asks)
    second = client.hear()
    client.say(result(first, "to the dead"), result(second, "to the living"))

    assert second["id"] != first["id"]
    assert server.hear() == result(asks, "to the living")


def test_response_to_a_dead_process_is_not_sent_to_the_next(world: World) -> None:
    client, server = world.talk()
    server.say({"jsonrpc": "2.0", "id": 0, "method": "roots/list"})
    asked = client.hear()

    server.die()
    client.hear()
    client.say(result(asked, "to the dead"), MARK)

    assert world.server().hear() == MARK


def test_large_request_of_the_server_is_not_taken_for_a_response(world: World) -> None:
    """Both number their requests alike."""
    client, server = world.talk()
    client.notice(server)
    server = world.server()
    client.call(5)
    call = server.hear()

    server.say({"method": "sampling/createMessage", "params": {"x": "y" * 100_000}, "jsonrpc": "2.0", "id": 5})
    asked = client.hear()
    client.say(result(asked, "yes"))
    assert server.hear() == result({"id": 5}, "yes")

    server.say(error(call, -32603))
    server.say(result(server.hear(), "well"))
    assert client.hear() == result({"id": 5}, "well")


def test_restarted_server_can_cancel_its_own_request(world: World) -> None:
    client, server = world.talk()
    server.die()
    server = world.server()

    server.say({"jsonrpc": "2.0", "id": "q", "method": "roots/list"}, cancelled("q"))

    assert client.hear()["id"] == client.hear()["params"]["requestId"]


def test_server_cancellation_without_request_id_is_forwarded(world: World) -> None:
    client, server = world.talk()
    server.die()
    server = world.server()

    odd: list[Any] = [{}, {"taskId": "t"}, [], None]
    for params in odd:
        told = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        server.say(told)

        assert client.hear() == told


def test_server_that_closes_its_input_is_restarted(world: World, tmp_path: Path) -> None:
    done = tmp_path / "effects"
    client = world.relay("", [*UPSTREAM, "--effects", str(done)])
    deed(client, "read_close_stdin")

    assert "result" in deed(client, "read_echo", text="hello")
    assert effects(done).count("read_echo hello") == 1


def test_server_death_with_a_full_pipe_does_not_block_the_relay(world: World) -> None:
    client, server = world.talk()
    talking = threading.Thread(target=client.say, args=(notification("x", text="x" * 20_000_000), MARK))
    talking.start()
    select.select([server.read], [], [], LIMIT_S)

    server.close(read=False)
    server._line.close()

    talking.join()
    assert world.server().hear() == MARK


def test_failed_restart_is_retried(world: World, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    client, server = world.talk(server=[str(program), *world.scratch[1:]])
    program.unlink()
    server.die()
    wait_until(lambda: "cannot be started" in client.told(), "the relay to try")

    program.symlink_to(sys.executable)
    client.say(MARK)

    assert world.server().hear() == MARK


def test_server_runs_in_a_separate_session(world: World) -> None:
    """Ctrl-C at the client's terminal is the client's business."""
    _, server = world.talk()

    assert os.getsid(server.pid) == server.pid


# -- the end --------------------------------------------------------------------------------------------------------


def test_call_in_flight_is_answered_after_the_client_closed_its_input(world: World) -> None:
    client, server = world.talk()
    client.call(1, "once")
    call = server.hear()

    client.close(read=False)
    server.say(result(call, "well"))

    assert client.hear() == result({"id": 1}, "well")
    server.hear_end()
    server.die(0)
    assert client.ended() == 0


@pytest.mark.parametrize("trouble", ["error", "death"])
def test_call_is_retried_after_the_client_closed_its_input(world: World, trouble: str) -> None:
    client, server = world.talk()
    client.call(1)
    call = server.hear()
    client.close(read=False)

    if trouble == "error":
        server.say(error(call, -32603))
    else:
        server.die()
        server = world.server()
    server.say(result(server.hear(), "well"))

    assert client.hear() == result({"id": 1}, "well")
    server.hear_end()
    server.die(0)
    assert client.ended() == 0


def test_open_stream_does_not_keep_the_relay_running(world: World) -> None:
    client, server = world.talk()
    client.ask("stream", "subscriptions/listen")
    server.hear()

    client.close(read=False)
    server.hear_end()
    server.die(0)

    assert client.ended() == 0


STUBBORN = """
import os, signal, subprocess, sys
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen(["sleep", "60"], start_new_session=True, **quiet)
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"method":"ready","params":[%d,%d]}' % (os.getpid(), child.pid), flush=True)
signal.alarm(60)
while True:
    signal.pause()
"""


def stubborn(world: World, *how: str, **options: Any) -> tuple[Client, list[ProcessId]]:
    """A client before a server that does not read, nor leave, and has started what is not of its session."""
    client = world.relay("", [sys.executable, "-c", STUBBORN, *how], **options)
    return client, [world.mind(pid) for pid in client.hear()["params"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_server_processes(world: World, number: int) -> None:
    client, processes = stubborn(world, "deaf")

    client.process.send_signal(number)

    client.ended()
    assert all(map(gone, processes))


def test_end_of_input_ends_all_server_processes(world: World) -> None:
    client, processes = stubborn(world, "deaf")

    client.close(read=False)

    client.ended()
    assert all(map(gone, processes))


@pytest.mark.parametrize("sockets", [False, True])
def test_death_of_the_client_ends_all_server_processes(world: World, sockets: bool) -> None:
    """Over sockets, too, as node has them: no answer is waited for that nobody will hear."""
    client, processes = stubborn(world, sockets=sockets)
    client.ask(1, "x/for ever")

    client.close()

    client.ended()
    assert all(map(gone, processes))


def test_death_of_the_relay_ends_the_server(world: World) -> None:
    client, (server, _) = stubborn(world)

    client.process.kill()

    wait_until(lambda: gone(server), "the server to leave")


def test_closed_client_output_does_not_block_the_relay(world: World) -> None:
    client, server = world.talk()
    client.close(write=False)

    server.say(*[notification("x", text="x" * 100_000)] * 100)
    client.say(MARK)
    assert server.hear() == MARK

    client.close()
    server.hear_end()
    server.die(0)
    client.ended()


def test_descendants_of_a_dead_server_are_ended_before_the_restart(world: World) -> None:
    """Whatever it has started, in a session of its own or not, ends before another takes its place."""
    client, (server, child) = stubborn(world)

    kernel().hold(server).signal(signal.SIGKILL)  # type: ignore[union-attr]

    for pid in client.hear()["params"]:
        world.mind(pid)
    assert gone(child)


@pytest.mark.parametrize("kind", ["missing", "not executable", "no program", "a folder"])
def test_unstartable_server_is_reported_in_one_sentence(world: World, tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program"
    if kind == "a folder":
        program.mkdir()
    elif kind != "missing":
        program.write_text("hello")
        program.chmod(0o755 if kind == "no program" else 0o644)

    client = world.relay(server=[str(program)])

    assert client.ended() == 69
    (sentence,) = client.told().splitlines()
    assert str(program) in sentence


# -- what is switched off -------------------------------------------------------------------------------------------

OFF = "failures = 2\nretries = 0\n"


def fail(client: Client, server: Server, tool: str = "read", times: int = 2) -> None:
    for _ in range(times):
        client.call("fails", tool)
        server.say(error(server.hear(), -32603))
        client.hear()


def passes(client: Client, server: Server, ident: str = "call", tool: str = "read") -> bool:
    """Whether a call reaches the server. It is not answered yet."""
    client.call(ident, tool)
    client.say(MARK)
    if server.hear() != MARK:
        assert server.hear() == MARK
        return True
    told = client.hear()
    assert told["id"] == ident
    assert told["error"]["data"]["circuit"] == "open"
    return False


def test_open_tool_circuit_is_obeyed_by_all_relays_of_the_project(world: World) -> None:
    one, its = world.talk(OFF)
    other, others = world.talk(OFF)

    fail(one, its)

    assert not passes(one, its)
    assert not passes(other, others)
    assert passes(one, its, tool="again")


def test_circuits_of_projects_are_independent(world: World, tmp_path: Path) -> None:
    one, its = world.talk(OFF)
    fail(one, its)
    world.project = tmp_path / "another"
    (world.project / ".yolo-planning").mkdir(parents=True)

    assert passes(*world.talk(OFF))


def test_relay_outside_a_project_keeps_circuits_in_memory(world: World, tmp_path: Path) -> None:
    world.project = tmp_path / "none"
    world.project.mkdir()
    client, server = world.talk(OFF)
    fail(client, server)

    assert not passes(client, server)
    assert list(world.project.iterdir()) == []


def test_one_call_of_all_relays_probes_after_the_cool_down(world: World) -> None:
    one, its = world.talk(OFF + "cool_down_s = 0.3")
    other, others = world.talk(OFF + "cool_down_s = 0.3")
    fail(one, its)

    wait_until(lambda: passes(one, its, "probe"), "the tool to have cooled down")
    assert not passes(one, its)
    assert not passes(other, others)

    its.say(result({"id": "probe"}))
    assert one.hear()["id"] == "probe"
    assert passes(one, its)
    assert passes(other, others)


def test_calls_are_refused_while_the_server_circuit_is_open(world: World) -> None:
    client, server = world.talk("failures = 2")
    client.call(1)
    server.hear()
    server.die()
    server = world.server()
    server.hear()

    server.die()

    told = client.hear()
    assert (told["id"], told["error"]["data"]["circuit"]) == (1, "open")
    client.call(2)
    assert client.hear()["error"]["data"]["circuit"] == "open"


def test_calls_are_refused_when_the_restart_limit_is_reached(world: World) -> None:
    client, server = world.talk("restarts = 1\nfailures = 100")
    for number in range(2):
        client.call(number, "again")
        server.hear()
        server.die()
        if number == 0:
            server = world.server()
            server.say(result(server.hear()))
            assert "result" in client.hear()

    assert client.hear()["error"]["data"]["circuit"] == "open"


def test_server_is_restarted_after_the_cool_down(world: World) -> None:
    client, server = world.talk("failures = 1\nretries = 0\ncool_down_s = 0.5")
    client.call(1)
    server.hear()
    server.die()
    client.hear()

    server = world.server()
    client.call(2)
    server.say(result(server.hear()))

    assert client.hear() == result({"id": 2})


def test_new_client_can_initialize_while_the_server_circuit_is_open(world: World) -> None:
    """A client that is refused then gives the server up for good."""
    client, server = world.talk("failures = 1\nretries = 0")
    client.call(1)
    server.hear()
    server.die()
    client.hear()

    client, server = world.relay("failures = 1\nretries = 0"), world.server()
    greet(client, server)
    client.ask(2, "tools/list")
    server.lists()

    assert client.hear()["result"] == {"tools": TOOLS}
    assert not passes(client, server)


def test_queued_call_is_refused_once_although_the_restart_fails_again(world: World, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    config = "failures = 1\nretries = 3\ncool_down_s = 0.3\n"
    client, server = world.talk(config, server=[str(program), *world.scratch[1:]])
    client.call(1)
    server.hear()
    program.unlink()
    server.die()
    assert client.hear()["id"] == 1
    wait_until(lambda: client.told().count("cannot be started") > 1, "the relay to try twice")

    program.symlink_to(sys.executable)
    server = world.server()
    server.say(MARK)

    assert client.hear() == MARK
