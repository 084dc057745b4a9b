"""The relay as a real process. The test is both its client and its server, and compares what passes byte for byte."""

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

PIPE_SERVER = """
import os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
socket.send_fds(line, [b"%d" % os.getpid()], [0, 1])
os.close(0)
os.close(1)
sys.exit(int(line.recv(9) or b"0"))
"""
"""A server that passes its stdin and stdout to the test, and exits with the code that the test sends."""

UPSTREAM = [sys.executable, str(Path(__file__).with_name("upstream.py"))]
TOOLS = [
    {"name": "read", "annotations": {"readOnlyHint": True}},
    {"name": "again", "annotations": {"idempotentHint": True}},
    {"name": "once", "annotations": {"readOnlyHint": False}},
    {"name": "plain"},
]


class Wire:
    """Reads and writes lines on one end of a pair of pipes or sockets."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write = read, write
        self._part: list[bytes] = []
        self._lines: deque[bytes] = deque()
        os.set_blocking(write, False)

    def send(self, *messages: Json | bytes) -> None:
        for message in messages:
            left = memoryview(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
            while left:
                assert select.select([], [self.write], [], LIMIT_S)[1], "the other end does not read"
                with contextlib.suppress(BlockingIOError):
                    left = left[os.write(self.write, left[: 1 << 16]) :]

    def receive_line(self) -> bytes:
        """The next line. EOFError at the end of the stream."""
        while not self._lines:
            assert select.select([self.read], [], [], LIMIT_S)[0], f"only this was received: {self._part!r:.500}"
            part = os.read(self.read, 1 << 20)
            if not part:
                raise EOFError(self._part)
            *ends, rest = part.split(b"\n")
            for end in ends:
                self._lines.append(b"".join([*self._part, end, b"\n"]))
                self._part = []
            self._part.append(rest)
        return self._lines.popleft()

    def receive(self) -> Json:
        message: Json = json.loads(self.receive_line())
        return message

    def expect_end(self) -> None:
        with pytest.raises(EOFError):
            self.receive_line()

    def all_read(self) -> bool:
        """Whether the other end has read everything."""
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
    """One process of the server."""

    def __init__(self, line: socket.socket) -> None:
        pid, fds, _, _ = socket.recv_fds(line, 64, 2)
        super().__init__(*fds)
        self.pid = int(pid)
        self._line = line

    def die(self, code: int = 3) -> None:
        """Close the pipes and let the process exit with ``code``."""
        self._line.send(str(code).encode())
        self.end()

    def end(self) -> None:
        self._line.close()
        self.close()

    def list_tools(self) -> Server:
        """Receive a ``tools/list`` request and answer it with ``TOOLS``."""
        asked = self.receive()
        assert asked["method"] == "tools/list"
        self.send(result(asked, {"tools": TOOLS}))
        return self


class Client(Wire):
    """The client and its relay process."""

    def __init__(self, process: subprocess.Popen[bytes], read: int, write: int, errors: Path) -> None:
        super().__init__(read, write)
        self.process = process
        self._errors = errors

    def ask(self, ident: object, method: str, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "id": ident, "method": method, "params": params})

    def call(self, ident: object, tool: str = "read", **more: Any) -> None:
        self.ask(ident, "tools/call", name=tool, **more)

    def stderr(self) -> str:
        return self._errors.read_text()

    def lose(self, server: Server) -> None:
        """Let the server die and wait until the relay has noticed."""
        before = self.stderr().count("is down")
        server.die()
        wait_until(lambda: self.stderr().count("is down") > before, "the relay to notice")

    def ended(self) -> int:
        return self.process.wait(LIMIT_S)


def socket_pair() -> tuple[int, int]:
    """A socket pair, as node uses for the stdio of its children."""
    one, other = socket.socketpair()
    return one.detach(), other.detach()


class RelayTestbed:
    def __init__(self, folder: Path, project: Path) -> None:
        self.project = project
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "line"))
        self._socket.listen()
        self._socket.settimeout(LIMIT_S)
        (folder / "scratch").write_text(PIPE_SERVER)
        self.scratch = [sys.executable, "-S", "-E", str(folder / "scratch"), str(folder / "line")]
        self._clients: list[Client] = []
        self._servers: list[Server] = []
        self._tracked: list[ProcessId] = []

    def relay(
        self,
        config: str = "",
        server: list[str] | None = None,
        sockets: bool = False,
        stderr: IO[bytes] | None = None,
    ) -> Client:
        """Start a relay, connected by pipes or by sockets."""
        number = len(self._clients)
        settings, errors = self._folder / f"{number}.toml", self._folder / f"{number}.errors"
        settings.write_text(f"[mcp]\n{config}\n" + ("" if "backoff_s" in config else "backoff_s = 0.01\n"))
        shared = ["--project", str(self.project), "--config", str(settings)]
        command = [*PROGRAM, *shared, "mcp", "--", *(server or self.scratch)]
        line = socket_pair if sockets else os.pipe
        (from_us, to_relay), (from_relay, to_us) = line(), line()
        with contextlib.nullcontext(stderr) if stderr else errors.open("wb") as errors_file:
            process = subprocess.Popen(command, stdin=from_us, stdout=to_us, stderr=errors_file)
        os.close(from_us)
        os.close(to_us)
        client = Client(process, from_relay, to_relay, errors)
        self._clients.append(client)
        return client

    def server(self) -> Server:
        """The next server process that a relay starts."""
        server = Server(self._socket.accept()[0])
        self._servers.append(server)
        return server

    def connect(self, config: str = "", **options: Any) -> tuple[Client, Server]:
        """Start a relay whose client has listed the server's tools."""
        client = self.relay(config, **options)
        server = self.server()
        client.ask("list", "tools/list")
        server.list_tools()
        client.receive()
        return client, server

    def track(self, pid: int) -> ProcessId:
        """The identity of the process, which is killed at the end of the test."""
        process = Processes(kernel()).identify(pid)
        assert process is not None
        self._tracked.append(process)
        return process

    def end(self) -> None:
        for client in self._clients:
            client.process.kill()
            client.process.wait()
            client.close()
        for server in self._servers:
            server.end()
        for process in self._tracked:
            if (handle := kernel().hold(process)) is not None:
                handle.signal(signal.SIGKILL)
                handle.close()
        self._socket.close()


@pytest.fixture
def testbed(tmp_path: Path, project: Path, claude_home: Path) -> Iterator[RelayTestbed]:
    made = RelayTestbed(tmp_path, project)
    yield made
    made.end()


def gone(process: ProcessId) -> bool:
    return not Processes(kernel()).sweep().has(process)


def result(request: Json, value: Any = None) -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "result": {} if value is None else value}


def error(request: Json, code: int, message: str = "failed") -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}


def notification(method: str, **params: Any) -> Json:
    return {"jsonrpc": "2.0", "method": method, "params": params}


MARK = notification("mark")
"""A side that receives it next has received nothing else since."""


def progress(token: object, value: float) -> Json:
    return notification("notifications/progress", progressToken=token, progress=value)


def cancelled(ident: object) -> Json:
    return notification("notifications/cancelled", requestId=ident)


# -- forwarding ----------------------------------------------------------------------------------------------------

ODD_LINES = [
    b'{"jsonrpc":"2.0","id":1,"method":"x/unknown","params":{"a":[1,2.50,-0,1e400]},"extra":null}\n',
    b'  { "jsonrpc" : "2.0" ,\t"method":"x/notified" , "params" :{ } }  \r\n',
    '{"jsonrpc":"2.0","method":"x","params":{"é":"日本\\u00e9\\/ 🙂"}}\n'.encode(),
    b'{"jsonrpc":"2.0","method":"x","params":{"n":123456789012345678901234567890123456789012345678901234567890}}\n',
    b'{"jsonrpc":"2.0","method":"x","params":{"n":' + b"7" * 5000 + b"}}\n",
    b'{"method":"x","method":"y","params":{"a":1,"a":2},"jsonrpc":"2.0"}\n',
    b'{"id":"not a request of the client","result":{"x":1.0},"jsonrpc":"2.0"}\n',
    b'{"jsonrpc":"2.0","id":99,"error":{"code":-32603,"message":"not requested either"}}\n',
    b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"Parse error"}}\n',
    b'[{"jsonrpc":"2.0","method":"x"}, {"jsonrpc":"2.0","id":7,"method":"y"}]\n',
    b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"unknown"}}\n',
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"unknown","progress":1}}\n',
    b'{"jsonrpc":"2.0","id":0,"method":"sampling/createMessage","params":{"x":' + b'"y"' + b"}}\n",
    b'{"jsonrpc":"2.0","id":0,"method":"elicitation/create","params":{"x":"' + b"y" * 100_000 + b'"}}\n',
]


def test_server_lines_are_forwarded_byte_for_byte(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()

    server.send(*ODD_LINES)

    assert [client.receive_line() for _ in ODD_LINES] == ODD_LINES


def test_client_lines_are_forwarded_byte_for_byte(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    lines = [*ODD_LINES[:-2], b"this is no JSON\n", b'{"broken": "\xff\xfe"}\n', b"\n", b"null\n", b'{"id":1}\n']

    client.send(*lines)

    assert [server.receive_line() for _ in lines] == lines


def test_calls_and_responses_are_forwarded_byte_for_byte(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    call = b'{ "params":{"name":"read", "x":1e2,"x":"\\u00e9"},"id" : 12345678901234567890 ,"method":"tools/call"}\n'
    answer = b'{"x-more":[],  "result" : {"content":[], "n":1.10} ,"id":12345678901234567890,"jsonrpc":"2.0" }\n'

    client.send(call)
    assert server.receive_line() == call

    server.send(answer)
    assert client.receive_line() == answer


def test_any_json_value_is_accepted_as_an_id(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for ident in (0, -1, "", "a", 'é\n"', 1.5, 10**30):
        client.call(ident)
        server.send(error(server.receive(), -32603))
        again = server.receive()
        assert again["id"] != ident
        server.send(result(again, {"x": 1}))

        assert client.receive() == result({"id": ident}, {"x": 1})


def test_server_may_write_before_the_client(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()

    server.send(MARK)

    assert client.receive() == MARK


def test_fifty_megabytes_are_forwarded_in_both_directions(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    text = os.urandom(25 * 2**20).hex().encode()
    call = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"once","x":"' + text + b'"}}\n'
    answer = b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + text + b'"}}\n'

    up = threading.Thread(target=client.send, args=(call,))
    up.start()
    assert server.receive_line() == call
    up.join()
    down = threading.Thread(target=server.send, args=(answer,))
    down.start()
    assert client.receive_line() == answer
    down.join()


def test_slow_reader_loses_no_line(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    line = json.dumps(notification("x", text="x" * 100_000)).encode() + b"\n"

    flood = threading.Thread(target=server.send, args=(line * 200,))
    flood.start()
    client.call(1, "once")
    server.receive()

    assert all(client.receive_line() == line for _ in range(200))
    flood.join()


def test_line_written_in_pieces_is_forwarded_whole(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    line = '{"jsonrpc":"2.0","method":"x","params":"é"}\n'.encode()

    for start in (0, 9, 40):
        server.send(line[start : {0: 9, 9: 40, 40: None}[start]])
        wait_until(server.all_read, "the piece to be read")
    assert client.receive_line() == line


@given(st.lists(st.binary(max_size=20).map(lambda text: text.replace(b"\n", b"") + b"\n"), max_size=6), st.data())
def test_read_lines_does_not_depend_on_how_the_data_is_split(written: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(written) + data.draw(st.sampled_from([b"", b"no newline"]))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    received: list[bytes] = []

    async def listen(read: int, write: int) -> None:
        async def receive() -> None:
            received.extend([line async for line in read_lines(read)])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
                os.write(write, whole[start:end])
                while select.select([read], [], [], 0)[0]:
                    await anyio.sleep(0)
            os.close(write)

    read, write = os.pipe()
    anyio.run(listen, read, write)
    os.close(read)
    assert b"".join(received) == whole
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in received[: len(written)])


def test_server_lines_that_are_no_message_are_not_forwarded(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for number, noise in enumerate([b"npm warn\n", b"\n", b"\xff\xfe\x00\n", b'{"half": \n', b"{}{}\n", b"42\n"]):
        client.call(number)
        server.send(noise, result(server.receive()), noise, MARK)

        assert client.receive()["id"] == number
        assert client.receive() == MARK
    assert client.stderr().count("no JSON-RPC message") == 10  # an empty line is ignored


def test_closed_stderr_does_not_stop_the_relay(testbed: RelayTestbed) -> None:
    read, write = os.pipe()
    with open(write, "wb") as stderr:
        client, server = testbed.connect(stderr=stderr)
    os.close(read)

    server.send(b"chatter\n", MARK)

    assert client.receive() == MARK


def test_two_requests_with_one_id_and_their_responses_are_forwarded(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    client.call(1, x="first")
    client.call(1, x="second")
    first, second = server.receive(), server.receive()
    server.send(result(first, "a"), result(second, "b"))

    assert (first["params"]["x"], second["params"]["x"]) == ("first", "second")
    assert [client.receive()["result"] for _ in range(2)] == ["a", "b"]


def test_batch_of_responses_completes_its_calls(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.3\ncap_s = 0.5")
    client.call(1)
    client.call(2)
    answers = json.dumps([result(server.receive()), result(server.receive())]).encode() + b"\n"

    server.send(answers)
    assert client.receive_line() == answers

    client.call(3)  # not answered, unlike the others
    server.receive()
    assert server.receive()["params"]["requestId"] == 3


# -- retries --------------------------------------------------------------------------------------------------------


def call_tool(client: Client, tool: str, **arguments: Any) -> Json:
    """Call a tool of ``upstream.py``; its response."""
    client.call(tool, tool, arguments=arguments)
    while (response := client.receive()).get("id") != tool:
        pass
    return response


@pytest.mark.parametrize("how", ["error", "exit", "kill", "hang"])
def test_only_repeatable_calls_are_made_again(testbed: RelayTestbed, tmp_path: Path, how: str) -> None:
    effects_file = tmp_path / "effects"
    client = testbed.relay("attempt_s = 0.5\ncap_s = 3", [*UPSTREAM, "--effects", str(effects_file)])

    for tool in ("read_echo", "again_echo"):
        response = call_tool(client, tool, text="hello", fails=1, how=how)
        assert response["result"]["content"][0]["text"] == "hello"
        assert effects(effects_file).count(f"{tool} hello") == 2

    response = call_tool(client, "once_echo", text="hello", fails=1, how=how)
    assert "result" not in response
    assert effects(effects_file).count("once_echo hello") == 1


def test_transient_error_is_retried(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for code in (-32603, -32000, -32001):
        client.call(code)
        server.send(error(server.receive(), code))
        server.send(result(server.receive(), "ok"))

        assert client.receive() == result({"id": code}, "ok")


def test_other_errors_are_not_retried(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for code in (-32600, -32601, -32602, -32700, -32002, -32042, 0, 1):
        client.call(code)
        server.send(error(server.receive(), code))

        assert client.receive() == error({"id": code}, code)
    client.send(MARK)
    assert server.receive() == MARK


@pytest.mark.parametrize("code", [[], {}, "-32603", None, True])
def test_error_with_an_invalid_code_is_forwarded(testbed: RelayTestbed, code: Any) -> None:
    client, server = testbed.connect()
    client.call(1)

    server.send(error(server.receive(), code))

    assert client.receive() == error({"id": 1}, code)


def test_tool_result_with_is_error_is_no_failure(testbed: RelayTestbed) -> None:
    """A lock tool that reports that the lock is taken works correctly."""
    client, server = testbed.connect("failures = 1")

    for number in range(3):
        client.call(number)
        server.send(result(server.receive(), {"isError": True}))
        assert client.receive() == {"jsonrpc": "2.0", "id": number, "result": {"isError": True}}


def test_last_server_error_is_forwarded_after_three_retries(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call("mine")

    asked = []
    for number in range(4):
        asked.append(server.receive())
        server.send(error(asked[-1], -32603, f"error {number}"))

    assert client.receive() == error({"id": "mine"}, -32603, "error 3")
    assert [request["params"] for request in asked] == [{"name": "read"}] * 4
    assert len({request["id"] for request in asked}) == 4
    client.send(MARK)
    assert server.receive() == MARK


def test_error_of_an_unrepeatable_call_is_forwarded(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for tool in ("once", "plain", "unheard of"):
        client.call(tool, tool)
        server.send(error(server.receive(), -32603))

        assert client.receive() == error({"id": tool}, -32603)
    client.send(MARK)
    assert server.receive() == MARK


def test_unrepeatable_call_is_refused_with_a_warning_when_the_server_dies(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1, "once")
    server.receive()

    server.die(7)

    response = client.receive()
    assert response["id"] == 1
    assert response["error"]["code"] == -32000
    assert "once" in response["error"]["message"]
    assert "not repeated" in response["error"]["message"]
    client.send(MARK)
    assert testbed.server().receive() == MARK


def test_configuration_overrides_tool_annotations_and_unrepeatable_wins(testbed: RelayTestbed) -> None:
    client, server = testbed.connect('repeatable = ["plain", "again"]\nunrepeatable = ["again", "read"]')

    client.call(1, "plain")
    server.send(error(server.receive(), -32603))
    server.send(result(server.receive(), "ok"))
    assert client.receive()["result"] == "ok"

    for tool in ("again", "read"):
        client.call(2, tool)
        server.send(error(server.receive(), -32603))
        assert client.receive()["error"]["code"] == -32603


def test_tools_of_the_plugin_are_repeatable_by_default(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for tool in ("acquire_lock", "release_lock", "compile_context", "run_test_suite"):
        client.call(1, tool)
        server.send(error(server.receive(), -32603))
        server.send(result(server.receive(), "ok"))

        assert client.receive()["result"] == "ok"


def test_relay_lists_the_tools_itself_if_the_client_has_not(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "progressToken": 1}
    client.call(1, _meta=meta)

    asked = server.receive()
    assert asked["method"] == "tools/list"
    server.send(result(asked, {"tools": [], "nextCursor": "2"}))
    call, asked = server.receive(), server.receive()
    assert asked["params"]["cursor"] == "2"
    server.send(result(asked, {"tools": TOOLS}), error(call, -32603))
    server.send(result(server.receive(), "ok"))

    assert client.receive()["result"] == "ok"


def test_relays_own_request_carries_the_clients_meta(testbed: RelayTestbed) -> None:
    """Since 2026-07-28 every request carries its protocol version."""
    client, server = testbed.relay(), testbed.server()
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "me"},
    }

    client.call(1, _meta={**meta, "progressToken": 1})

    assert server.receive()["params"]["_meta"] == meta


def test_idempotent_methods_are_retried(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()

    for method in ("resources/read", "prompts/get", "tools/list", "completion/complete", "ping"):
        client.ask(method, method)
        server.send(error(server.receive(), -32603))
        server.send(result(server.receive(), {"x": 1}))

        assert client.receive() == result({"id": method}, {"x": 1})


def test_unknown_methods_are_not_retried(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    client.ask(1, "x/unknown")

    server.send(error(server.receive(), -32603))

    assert client.receive() == error({"id": 1}, -32603)


@given(st.floats(0.001, 3600), st.integers(1, 1000), st.floats(0, 3600), st.floats(0, 1))
def test_backoff_doubles_with_up_to_half_of_it_random(
    first_s: float, number: int, most_s: float, chance: float
) -> None:
    pause, whole = pause_s(first_s, number, most_s, chance), pause_s(first_s, number, most_s, 1)

    assert whole / 2 <= pause <= whole <= most_s
    assert pause_s(first_s, number + 1, most_s, 1) == min(most_s, 2 * whole)


def test_backoff_begins_with_backoff_s() -> None:
    assert [pause_s(0.1, number, 30, 1) for number in (1, 2, 3)] == [0.1, 0.2, 0.4]


def test_recovered_and_failed_calls_are_in_the_journal(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("retries = 1")
    for number in range(3):  # it fails, recovers, and succeeds at once
        client.call(number)
        for _ in range(2 - number):
            server.send(error(server.receive(), -32603, "the disk is full"))
        if number:
            server.send(result(server.receive()))
        client.receive()
    client.close(read=False)
    server.die(0)
    client.ended()

    entries = [json.loads(line) for line in Cli(testbed.project)("history", "--json").stdout.splitlines()]

    assert [entry["action"] for entry in entries] == ["escalated", "recovered"]
    assert all("the disk is full" in entry["reason"] and entry["key"] == "scratch" for entry in entries)


def test_last_journal_entry_is_written_before_the_relay_exits(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    server.send(error(server.receive(), -32603))
    again = server.receive()

    client.close(read=False)
    server.send(result(again))
    client.receive()
    server.die(0)
    client.ended()

    assert '"recovered"' in Cli(testbed.project)("history", "--json").stdout


# -- time limits ----------------------------------------------------------------------------------------------------


def test_timed_out_attempt_is_cancelled_and_retried(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.3")
    client.call(1)
    server.receive()

    assert server.receive() | {"params": None} == {**cancelled(1), "params": None}
    server.send(result(server.receive(), "ok"))

    assert client.receive() == result({"id": 1}, "ok")


def test_error_for_a_cancelled_attempt_is_no_response(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.3")

    for code in (0, -32000, -32800):
        client.call(code)
        first = server.receive()
        server.receive()
        server.send(error(first, code, "Request cancelled"))
        server.send(result(server.receive(), "ok"))

        assert client.receive() == result({"id": code}, "ok")
    client.send(MARK)
    assert server.receive() == MARK


def test_late_result_completes_the_call_and_cancels_the_retry(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.3")
    client.call(1)
    first = server.receive()
    server.receive()
    second = server.receive()

    server.send(result(first, "late"))
    assert client.receive() == result({"id": 1}, "late")

    assert server.receive()["params"]["requestId"] == second["id"]
    server.send(result(second, "too late"), error(second, -32000), MARK)
    assert client.receive() == MARK


def test_progress_restarts_the_time_limit_of_its_attempt(testbed: RelayTestbed) -> None:
    """Two calls begin together; only the one that makes progress is not cancelled."""
    client, server = testbed.connect("attempt_s = 1")
    client.call("progressing", _meta={"progressToken": "a"})
    client.call("silent")
    server.receive()
    server.receive()

    count = 0
    while not select.select([server.read], [], [], 0.05)[0]:
        count += 1
        server.send(progress("a", count))

    assert server.receive()["params"]["requestId"] == "silent"
    assert [client.receive() for _ in range(count)] == [progress("a", number) for number in range(1, count + 1)]


def test_progress_does_not_extend_the_deadline_of_the_call(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.5\ncap_s = 0.7")
    client.call(1, _meta={"progressToken": "a"})
    server.receive()

    count = 0
    while (response := client.receive() if select.select([client.read], [], [], 0.05)[0] else MARK).get("id") != 1:
        count += 1
        server.send(progress("a", count))

    assert response["error"]["code"] == -32001
    assert server.receive()["params"]["requestId"] == 1


def test_progress_of_a_retry_is_forwarded_once_it_exceeds_the_earlier(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1, _meta={"progressToken": "a"})

    call = server.receive()
    server.send(progress("a", 1), progress("a", 5), error(call, -32603))
    again = server.receive()
    server.send(*(progress("a", value) for value in (1, 4.5, 5, 5.5, 5.2, 7)), result(again))

    assert [client.receive()["params"]["progress"] for _ in range(4)] == [1, 5, 5.5, 7]
    assert client.receive() == result({"id": 1})


def test_progress_of_a_first_attempt_is_forwarded_unchecked(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1, _meta={"progressToken": "a"})
    server.receive()

    server.send(*(progress("a", value) for value in (5, 1, 1)))

    assert [client.receive()["params"]["progress"] for _ in range(3)] == [5, 1, 1]


def test_queued_call_is_refused_at_its_deadline(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("cap_s = 0.5"), testbed.server()
    initialize(client, server)
    client.lose(server)
    testbed.server().receive()  # receives the replayed initialize and does not answer

    client.call(1)

    assert client.receive()["error"]["code"] == -32001


def test_unrepeatable_call_may_take_until_its_deadline(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.2\nretry_s = 0.2\nretries = 0\ncap_s = 1")
    client.call("once", "once")
    client.call("read")
    server.receive()
    server.receive()

    assert [server.receive()["params"]["requestId"], server.receive()["params"]["requestId"]] == ["read", "once"]
    responses = [client.receive(), client.receive()]
    assert [(response["id"], response["error"]["code"]) for response in responses] == [
        ("read", -32001),
        ("once", -32001),
    ]


def test_unbounded_requests_have_no_time_limit(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.2\nretry_s = 0.2\nretries = 0\ncap_s = 0.4")
    for method in ("subscriptions/listen", "tasks/result", "x/unknown"):
        client.ask(method, method)
        server.receive()
    client.call(1, "once")
    server.receive()

    assert server.receive()["params"]["requestId"] == 1
    assert client.receive()["id"] == 1
    client.send(MARK)
    assert server.receive() == MARK


@pytest.mark.parametrize("soon", [False, True])
def test_processes_of_a_timed_out_call_are_ended_if_they_are_certainly_its(
    testbed: RelayTestbed, tmp_path: Path, soon: bool
) -> None:
    """A call right after another one may not own the processes started meanwhile: they are left alone."""
    effects_file = tmp_path / "effects"
    client = testbed.relay("cap_s = 1", [*UPSTREAM, "--effects", str(effects_file)])
    older = testbed.track(int(call_tool(client, "read_spawn")["result"]["content"][0]["text"]))
    if not soon:
        wait_until(lambda: time.time() - kernel().started_at(older.started) > 0.3, "some time to pass")

    response = call_tool(client, "once_spawn", then="hang")

    newer = [int(line.split()[1]) for line in effects(effects_file) if line.startswith("spawned")][1]
    left = Processes(kernel()).identify(newer) and testbed.track(newer)
    assert response["error"]["code"] == -32001
    assert not gone(older)
    assert soon or left is None
    assert len([line for line in effects(effects_file) if line.startswith("cancelled")]) == 1
    call_tool(client, "read_echo")
    assert (
        len({line.split()[0] for line in effects_file.read_text().splitlines()}) == 1
    )  # it is still the same server process


# -- cancellation ---------------------------------------------------------------------------------------------------


def test_cancellation_is_forwarded_byte_for_byte(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    server.receive()
    line = b'{"method": "notifications/cancelled","params":{"reason":"\\u00e9", "requestId":1},"jsonrpc":"2.0"}\n'

    client.send(line)

    assert server.receive_line() == line


def test_cancellation_of_a_retry_names_the_retrys_id(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    server.send(error(server.receive(), -32603))
    again = server.receive()

    client.send(notification("notifications/cancelled", reason="enough", requestId=1))

    assert server.receive()["params"] == {"reason": "enough", "requestId": again["id"]}
    server.send(result(again), error(again, -32603), MARK)
    assert client.receive() == MARK
    client.send(MARK)
    assert server.receive() == MARK


def test_call_cancelled_during_its_backoff_is_not_repeated(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("backoff_s = 0.2")
    client.call("cancelled")
    server.send(error(server.receive(), -32603))
    client.send(cancelled("cancelled"), MARK)
    wait_until(lambda: server.receive() == MARK, "the cancellation to be known")

    client.call("later", "again")
    for _ in range(3):  # its two pauses are longer than the pause of the other
        asked = server.receive()
        assert asked["params"]["name"] == "again"
        server.send(error(asked, -32603))


def test_call_cancelled_while_queued_is_not_sent(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("backoff_s = 1")
    client.call(1)
    server.receive()
    client.lose(server)

    client.send(cancelled(1), MARK)

    assert testbed.server().receive() == MARK


# -- restarts of the server -----------------------------------------------------------------------------------------

INITIALIZE = (
    b'{ "jsonrpc":"2.0", "id":"hello","method":"initialize","params":{"protocolVersion":"2025-11-25","x":"\xc3\xa9"}}\n'
)
INITIALIZED = b'{"method":"notifications/initialized",  "jsonrpc":"2.0"}\n'


def initialize(client: Client, server: Server) -> None:
    client.send(INITIALIZE)
    server.send(result(server.receive(), {"capabilities": {}}))
    client.receive()
    client.send(INITIALIZED)
    server.receive()


def receive_session(server: Server) -> Server:
    """Receive the replayed session as a restarted server."""
    asked = server.receive()
    assert asked["method"] == "initialize"
    server.send(result(asked, {"capabilities": {}}))
    assert server.receive_line() == INITIALIZED
    return server


def test_session_is_replayed_to_a_restarted_server(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    initialize(client, server)
    for number, (method, params) in enumerate([
        ("logging/setLevel", {"level": "debug"}),
        ("logging/setLevel", {"level": "error"}),
        ("resources/subscribe", {"uri": "file:///a"}),
        ("resources/subscribe", {"uri": "file:///b"}),
        ("resources/unsubscribe", {"uri": "file:///a"}),
    ]):  # fmt: skip
        client.ask(number, method, **params)
        server.send(result(server.receive()))
        client.receive()

    server.die()
    server = testbed.server()

    hello = server.receive_line()
    ident = json.loads(hello)["id"]
    assert hello == INITIALIZE.replace(b'"hello"', json.dumps(ident).encode())
    assert ident != "hello"
    server.send(result({"id": ident}))
    assert server.receive_line() == INITIALIZED
    replayed = [server.receive(), server.receive()]
    assert [request["params"] for request in replayed] == [{"level": "error"}, {"uri": "file:///b"}]
    server.send(*map(result, replayed), MARK)
    assert client.receive() == MARK
    client.send(MARK)
    assert server.receive() == MARK


def test_lines_sent_during_a_restart_are_queued_for_the_next_process(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    initialize(client, server)
    client.lose(server)
    client.ask(1, "prompts/get")
    client.send(MARK)

    server = receive_session(testbed.server())

    assert [server.receive()["method"], server.receive()["method"]] == ["prompts/get", "mark"]


def test_initialize_without_response_is_sent_again(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    client.send(INITIALIZE)
    server.receive()
    server.die()

    server = testbed.server()
    server.send(result(server.receive(), {"capabilities": {"x": 1}}))

    assert client.receive() == result({"id": "hello"}, {"capabilities": {"x": 1}})
    client.send(MARK)
    assert server.receive() == MARK


def test_nothing_is_replayed_without_initialize(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.lose(server)
    client.send(MARK)

    assert testbed.server().receive() == MARK


def test_stream_is_reopened_under_the_clients_id(testbed: RelayTestbed) -> None:
    """Everything in the stream refers to the id of the request."""
    client, server = testbed.relay(), testbed.server()
    client.ask("stream", "subscriptions/listen", notifications={})
    first = server.receive_line()

    server.die()

    assert testbed.server().receive_line() == first


@pytest.mark.parametrize("size", [10, 100_000])
def test_truncated_response_does_not_complete_a_call(testbed: RelayTestbed, size: int) -> None:
    client, server = testbed.connect()
    client.call(1)
    server.receive()

    server.send(b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"x" * size + b'"}')
    server.die()
    server = testbed.server()
    server.send(result(server.receive(), "whole"))

    assert client.receive() == result({"id": 1}, "whole")


def test_requests_of_two_processes_with_one_id_are_told_apart(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    request = {"jsonrpc": "2.0", "id": 0, "method": "roots/list"}
    server.send(request)
    first = client.receive()
    assert first == request

    server.die()
    assert client.receive()["params"]["requestId"] == 0  # the process that asked is dead
    server = testbed.server()
    server.send(request)
    second = client.receive()
    client.send(result(first, "to the first process"), result(second, "to the second process"))

    assert second["id"] != first["id"]
    assert server.receive() == result(request, "to the second process")


def test_response_to_a_dead_process_is_not_sent_to_the_next(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    server.send({"jsonrpc": "2.0", "id": 0, "method": "roots/list"})
    asked = client.receive()

    server.die()
    client.receive()
    client.send(result(asked, "to the first process"), MARK)

    assert testbed.server().receive() == MARK


def test_large_request_of_the_server_is_not_taken_for_a_response(testbed: RelayTestbed) -> None:
    """Client and server number their requests alike."""
    client, server = testbed.connect()
    client.lose(server)
    server = testbed.server()
    client.call(5)
    call = server.receive()

    server.send({"method": "sampling/createMessage", "params": {"x": "y" * 100_000}, "jsonrpc": "2.0", "id": 5})
    asked = client.receive()
    client.send(result(asked, "yes"))
    assert server.receive() == result({"id": 5}, "yes")

    server.send(error(call, -32603))
    server.send(result(server.receive(), "ok"))
    assert client.receive() == result({"id": 5}, "ok")


def test_restarted_server_can_cancel_its_own_request(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    server.die()
    server = testbed.server()

    server.send({"jsonrpc": "2.0", "id": "q", "method": "roots/list"}, cancelled("q"))

    assert client.receive()["id"] == client.receive()["params"]["requestId"]


def test_server_cancellation_without_request_id_is_forwarded(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    server.die()
    server = testbed.server()

    odd: list[Any] = [{}, {"taskId": "t"}, [], None]
    for params in odd:
        line = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
        server.send(line)

        assert client.receive() == line


def test_server_that_closes_its_input_is_restarted(testbed: RelayTestbed, tmp_path: Path) -> None:
    effects_file = tmp_path / "effects"
    client = testbed.relay("", [*UPSTREAM, "--effects", str(effects_file)])
    call_tool(client, "read_close_stdin")

    assert "result" in call_tool(client, "read_echo", text="hello")
    assert effects(effects_file).count("read_echo hello") == 1


def test_server_death_with_a_full_pipe_does_not_block_the_relay(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    talking = threading.Thread(target=client.send, args=(notification("x", text="x" * 20_000_000), MARK))
    talking.start()
    select.select([server.read], [], [], LIMIT_S)

    server.close(read=False)
    server._line.close()

    talking.join()
    assert testbed.server().receive() == MARK


def test_failed_restart_is_retried(testbed: RelayTestbed, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    client, server = testbed.connect(server=[str(program), *testbed.scratch[1:]])
    program.unlink()
    server.die()
    wait_until(lambda: "cannot be started" in client.stderr(), "the relay to try")

    program.symlink_to(sys.executable)
    client.send(MARK)

    assert testbed.server().receive() == MARK


def test_server_that_stops_reading_during_the_replay_is_sent_no_calls(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    initialize(client, server)
    client.lose(server)
    server = testbed.server()
    request = server.receive()
    server.close(write=False)
    client.send(MARK)
    client.call("once", "once")

    server.send(result(request, {"capabilities": {}}))
    server.end()
    server = receive_session(testbed.server())

    assert server.receive() == MARK
    assert server.receive()["id"] == "once"


def test_thousand_failed_restarts_do_not_end_the_relay(testbed: RelayTestbed, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    config = "failures = 1000\nrestarts = 1000\nbackoff_s = 0"
    client, server = testbed.connect(config, server=[str(program), *testbed.scratch[1:]])
    program.unlink()
    server.die()
    wait_until(lambda: client.stderr().count("cannot be started") > 980, "the relay to try often")

    program.symlink_to(sys.executable)
    client.send(MARK)

    assert testbed.server().receive() == MARK


def test_server_runs_in_a_separate_session(testbed: RelayTestbed) -> None:
    """Ctrl-C at the client's terminal must reach the client only."""
    _, server = testbed.connect()

    assert os.getsid(server.pid) == server.pid


# -- exit -----------------------------------------------------------------------------------------------------------


def test_call_in_flight_is_answered_after_the_client_closed_its_input(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1, "once")
    call = server.receive()

    client.close(read=False)
    server.send(result(call, "ok"))

    assert client.receive() == result({"id": 1}, "ok")
    server.expect_end()
    server.die(0)
    assert client.ended() == 0


@pytest.mark.parametrize("failure", ["error", "death"])
def test_call_is_retried_after_the_client_closed_its_input(testbed: RelayTestbed, failure: str) -> None:
    client, server = testbed.connect()
    client.call(1)
    call = server.receive()
    client.close(read=False)

    if failure == "error":
        server.send(error(call, -32603))
    else:
        server.die()
        server = testbed.server()
    server.send(result(server.receive(), "ok"))

    assert client.receive() == result({"id": 1}, "ok")
    server.expect_end()
    server.die(0)
    assert client.ended() == 0


def test_open_stream_does_not_keep_the_relay_running(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.ask("stream", "subscriptions/listen")
    server.receive()

    client.close(read=False)
    server.expect_end()
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


def stubborn(testbed: RelayTestbed, *how: str, **options: Any) -> tuple[Client, list[ProcessId]]:
    """Start a relay to a server that neither reads nor exits, and has a child in another session."""
    client = testbed.relay("", [sys.executable, "-c", STUBBORN, *how], **options)
    return client, [testbed.track(pid) for pid in client.receive()["params"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all_server_processes(testbed: RelayTestbed, number: int) -> None:
    client, processes = stubborn(testbed, "deaf")

    client.process.send_signal(number)

    client.ended()
    assert all(map(gone, processes))


def test_end_of_input_ends_all_server_processes(testbed: RelayTestbed) -> None:
    client, processes = stubborn(testbed, "deaf")

    client.close(read=False)

    client.ended()
    assert all(map(gone, processes))


@pytest.mark.parametrize("sockets", [False, True])
def test_death_of_the_client_ends_all_server_processes(testbed: RelayTestbed, sockets: bool) -> None:
    """Over sockets, too, as node uses them: the relay does not wait for responses that cannot be delivered."""
    client, processes = stubborn(testbed, sockets=sockets)
    client.ask(1, "x/unanswered")

    client.close()

    client.ended()
    assert all(map(gone, processes))


def test_death_of_the_relay_ends_the_server(testbed: RelayTestbed) -> None:
    client, (server, _) = stubborn(testbed)

    client.process.kill()

    wait_until(lambda: gone(server), "the server to exit")


def test_closed_client_output_does_not_block_the_relay(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.close(write=False)

    server.send(*[notification("x", text="x" * 100_000)] * 100)
    client.send(MARK)
    assert server.receive() == MARK

    client.close()
    server.expect_end()
    server.die(0)
    client.ended()


def test_descendants_of_a_dead_server_are_ended_before_the_restart(testbed: RelayTestbed) -> None:
    """Children of the server end before the restart, also those in another session."""
    client, (server, child) = stubborn(testbed)

    kernel().hold(server).signal(signal.SIGKILL)  # type: ignore[union-attr]

    for pid in client.receive()["params"]:
        testbed.track(pid)
    assert gone(child)


@pytest.mark.parametrize("kind", ["missing", "not executable", "no program", "a folder"])
def test_unstartable_server_is_reported_in_one_sentence(testbed: RelayTestbed, tmp_path: Path, kind: str) -> None:
    program = tmp_path / "program"
    if kind == "a folder":
        program.mkdir()
    elif kind != "missing":
        program.write_text("hello")
        program.chmod(0o755 if kind == "no program" else 0o644)

    client = testbed.relay(server=[str(program)])

    assert client.ended() == 69
    (sentence,) = client.stderr().splitlines()
    assert str(program) in sentence


# -- circuits -------------------------------------------------------------------------------------------------------

OPENS_SOON = "failures = 2\nretries = 0\n"


def fail(client: Client, server: Server, tool: str = "read", times: int = 2) -> None:
    for _ in range(times):
        client.call("fails", tool)
        server.send(error(server.receive(), -32603))
        client.receive()


def passes(client: Client, server: Server, ident: str = "call", tool: str = "read") -> bool:
    """Whether a call reaches the server, where it stays unanswered."""
    client.call(ident, tool)
    client.send(MARK)
    if server.receive() != MARK:
        assert server.receive() == MARK
        return True
    response = client.receive()
    assert response["id"] == ident
    assert response["error"]["data"]["circuit"] == "open"
    return False


def test_open_tool_circuit_is_obeyed_by_all_relays_of_the_project(testbed: RelayTestbed) -> None:
    one, its_server = testbed.connect(OPENS_SOON)
    other, other_server = testbed.connect(OPENS_SOON)

    fail(one, its_server)

    assert not passes(one, its_server)
    assert not passes(other, other_server)
    assert passes(one, its_server, tool="again")


def test_circuits_of_projects_are_independent(testbed: RelayTestbed, tmp_path: Path) -> None:
    one, its_server = testbed.connect(OPENS_SOON)
    fail(one, its_server)
    testbed.project = tmp_path / "another"
    (testbed.project / ".yolo-planning").mkdir(parents=True)

    assert passes(*testbed.connect(OPENS_SOON))


def test_relay_outside_a_project_keeps_circuits_in_memory(testbed: RelayTestbed, tmp_path: Path) -> None:
    testbed.project = tmp_path / "none"
    testbed.project.mkdir()
    client, server = testbed.connect(OPENS_SOON)
    fail(client, server)

    assert not passes(client, server)
    assert list(testbed.project.iterdir()) == []


def test_one_call_of_all_relays_probes_after_the_cool_down(testbed: RelayTestbed) -> None:
    one, its_server = testbed.connect(OPENS_SOON + "cool_down_s = 0.3")
    other, other_server = testbed.connect(OPENS_SOON + "cool_down_s = 0.3")
    fail(one, its_server)

    wait_until(lambda: passes(one, its_server, "probe"), "the tool to have cooled down")
    assert not passes(one, its_server)
    assert not passes(other, other_server)

    its_server.send(result({"id": "probe"}))
    assert one.receive()["id"] == "probe"
    assert passes(one, its_server)
    assert passes(other, other_server)


def test_calls_are_refused_while_the_server_circuit_is_open(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("failures = 2")
    client.call(1)
    server.receive()
    server.die()
    server = testbed.server()
    server.receive()

    server.die()

    response = client.receive()
    assert (response["id"], response["error"]["data"]["circuit"]) == (1, "open")
    client.call(2)
    assert client.receive()["error"]["data"]["circuit"] == "open"


def test_calls_are_refused_when_the_restart_limit_is_reached(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("restarts = 1\nfailures = 100")
    for number in range(2):
        client.call(number, "again")
        server.receive()
        server.die()
        if number == 0:
            server = testbed.server()
            server.send(result(server.receive()))
            assert "result" in client.receive()

    assert client.receive()["error"]["data"]["circuit"] == "open"


def test_server_is_restarted_after_the_cool_down(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("failures = 1\nretries = 0\ncool_down_s = 0.5")
    client.call(1)
    server.receive()
    server.die()
    client.receive()

    server = testbed.server()
    client.call(2)
    server.send(result(server.receive()))

    assert client.receive() == result({"id": 2})


def test_new_client_can_initialize_while_the_server_circuit_is_open(testbed: RelayTestbed) -> None:
    """A client whose initialize is refused does not try again."""
    client, server = testbed.connect("failures = 1\nretries = 0")
    client.call(1)
    server.receive()
    server.die()
    client.receive()

    client, server = testbed.relay("failures = 1\nretries = 0"), testbed.server()
    initialize(client, server)
    client.ask(2, "tools/list")
    server.list_tools()

    assert client.receive()["result"] == {"tools": TOOLS}
    assert not passes(client, server)


def test_queued_call_is_refused_once_although_the_server_is_suspended_again(
    testbed: RelayTestbed, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    config = "failures = 1\nrestarts = 2\ncool_down_s = 0.3"
    client, server = testbed.connect(config, server=[str(program), *testbed.scratch[1:]])
    client.call(1)
    server.receive()
    program.unlink()
    server.die()
    assert client.receive()["id"] == 1

    wait_until(lambda: client.stderr().count("cannot be started") > 1, "the relay to try twice")
    client.call(2)

    assert client.receive()["id"] == 2
