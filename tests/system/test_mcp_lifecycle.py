"""The relay restarts its server, ends with its client, and opens circuits."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.relay_testbed import (
    INITIALIZE,
    INITIALIZED,
    MARK,
    TOOLS,
    UPSTREAM,
    Client,
    RelayTestbed,
    Server,
    call_tool,
    cancelled,
    error,
    gone,
    initialize,
    notification,
    receive_session,
    result,
)
from support.upstream import effects
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.process_backend import backend


@pytest.fixture
def testbed(tmp_path: Path, project: Path, claude_home: Path) -> Iterator[RelayTestbed]:
    made = RelayTestbed(tmp_path, project)
    yield made
    made.end()


# -- restarts of the server -----------------------------------------------------------------------------------------


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


# -- the start of a server ------------------------------------------------------------------------------------------


def test_slow_initialize_is_neither_cancelled_nor_repeated(testbed: RelayTestbed) -> None:
    """Nor are requests that the client has sent meanwhile. Another relay shows that the limits are over."""
    limits = "attempt_s = 0.2\nretry_s = 0.2\ncap_s = 0.5"
    other, _ = testbed.connect(limits)
    client, server = testbed.relay(limits), testbed.server()
    client.send(INITIALIZE)
    client.ask(1, "tools/list")
    hello, listing = server.receive(), server.receive()
    other.call("other")
    assert other.receive()["error"]["code"] == -32001

    server.send(result(hello, {"capabilities": {}}), result(listing, {"tools": TOOLS}))

    assert [client.receive()["id"], client.receive()["id"]] == ["hello", 1]
    client.send(MARK)
    assert server.receive() == MARK


def test_server_that_does_not_start_is_ended_and_its_calls_are_refused(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("start_s = 0.3"), testbed.server()
    client.send(INITIALIZE)
    client.call(1)
    server.receive()
    server.receive()

    server.receive()  # the relay lists the tools
    refusals = [client.receive(), client.receive()]

    assert [refusal["id"] for refusal in refusals] == ["hello", 1]
    assert all("initialize within 0.3 s" in refusal["error"]["message"] for refusal in refusals)
    server.expect_end()
    wait_until(lambda: "initialize within 0.3 s" in client.stderr(), "the relay to tell")


@pytest.mark.thorough
def test_initialize_sent_again_after_a_failed_start_is_for_the_next_process(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("start_s = 4"), testbed.server()
    client.send(INITIALIZE)
    server.receive()
    assert client.receive()["id"] == "hello"

    client.send(INITIALIZE, MARK)

    server.expect_end()
    server = testbed.server()
    assert server.receive_line() == INITIALIZE  # once: what failed is not replayed
    assert server.receive() == MARK


def test_cancelled_initialize_has_no_limit(testbed: RelayTestbed) -> None:
    """Another relay shows that the limit is over."""
    other, server = testbed.relay("start_s = 0.5"), testbed.server()
    client, its_server = testbed.relay("start_s = 0.5"), testbed.server()
    client.send(INITIALIZE, cancelled("hello"))
    assert [its_server.receive()["method"] for _ in range(2)] == ["initialize", "notifications/cancelled"]
    other.send(INITIALIZE)
    server.receive()
    assert "error" in other.receive()

    client.send(MARK)

    assert its_server.receive() == MARK


@pytest.mark.thorough
def test_restarted_server_that_does_not_start_is_replaced(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("start_s = 4"), testbed.server()
    initialize(client, server)
    client.lose(server)
    client.call(1, "once")
    stuck = testbed.server()
    stuck.receive()
    stuck.expect_end()

    server = receive_session(testbed.server())
    asked = server.receive()

    assert asked["id"] == 1
    server.send(result(asked))
    assert client.receive() == result({"id": 1})


def test_question_is_answered_before_the_session_is_replayed(testbed: RelayTestbed) -> None:
    client, server = testbed.relay(), testbed.server()
    initialize(client, server)
    client.lose(server)
    server = testbed.server()
    hello = server.receive()

    server.send({"jsonrpc": "2.0", "id": "q", "method": "ping"})
    client.send(result(client.receive()))

    assert server.receive() == result({"id": "q"})
    server.send(result(hello))
    assert server.receive_line() == INITIALIZED


@pytest.mark.parametrize("code", [-32603, -32000, -32602])
def test_error_for_initialize_is_forwarded_and_it_is_not_sent_again(testbed: RelayTestbed, code: int) -> None:
    client, server = testbed.relay(), testbed.server()
    client.send(INITIALIZE)

    server.send(error(server.receive(), code))

    assert client.receive() == error({"id": "hello"}, code)
    client.send(MARK)
    assert server.receive() == MARK
    client.lose(server)
    client.send(MARK)
    assert testbed.server().receive() == MARK


# -- servers that are silent, stopped, or exit by themselves --------------------------------------------------------


def test_silent_server_is_left_alone(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("cap_s = 0.3\nretries = 0")
    client.call("once", "once")
    client.call("read")
    assert {client.receive()["id"], client.receive()["id"]} == {"once", "read"}

    client.send(MARK)

    for _ in range(4):  # two calls, two cancellations, and no ping
        assert server.receive()["method"] in ("tools/call", "notifications/cancelled")
    assert server.receive() == MARK


@pytest.mark.thorough
def test_stopped_server_is_restarted_and_its_call_repeated(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("attempt_s = 0.3")
    testbed.track(server.pid)
    os.kill(server.pid, signal.SIGSTOP)
    client.call(1)

    server = testbed.server()

    server.send(result(server.receive()))
    assert client.receive() == result({"id": 1})
    assert "stopped by a signal" in client.stderr()


@pytest.mark.thorough
def test_stopped_server_that_may_be_at_work_is_not_restarted(testbed: RelayTestbed) -> None:
    client, server = testbed.connect("cap_s = 0.3")
    testbed.track(server.pid)
    os.kill(server.pid, signal.SIGSTOP)
    client.call(1, "once")
    call = server.receive()
    assert client.receive()["error"]["code"] == -32001

    wait_until(lambda: f"kill -CONT {server.pid}" in client.stderr(), "the relay to tell")

    server.send(result(call))
    assert client.receive() == result({"id": 1})


def exit_and_wait_until_noticed(testbed: RelayTestbed, server: Server) -> None:
    process = testbed.track(server.pid)
    server.die(0)
    wait_until(lambda: gone(process), "the relay to notice")


def test_server_that_exits_with_0_while_idle_is_started_at_the_next_call(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("failures = 1\nrestarts = 1\nbackoff_s = 3600"), testbed.server()
    initialize(client, server)
    for number in range(3):
        exit_and_wait_until_noticed(testbed, server)
        client.send(cancelled("a call that is over"))

        client.call(number)
        server = receive_session(testbed.server())
        if (asked := server.receive())["method"] == "tools/list":
            server.send(result(asked, {"tools": TOOLS}))
            asked = server.receive()
        server.send(result(asked))
        assert client.receive() == result({"id": number})

    assert "is down" not in client.stderr()


def test_call_that_a_server_has_not_read_is_sent_to_the_next(testbed: RelayTestbed) -> None:
    """Also one that may not be repeated, and without an attempt; one that was read may have taken effect."""
    client, server = testbed.connect("retries = 0")
    client.call("read", "once")
    server.receive()
    client.call("unread", "once")
    client.call("repeatable")
    select.select([server.read], [], [], LIMIT_S)
    server.die()

    assert client.receive()["id"] == "read"
    server = testbed.server()
    for ident in ("unread", "repeatable"):
        call = server.receive()
        assert call["id"] == ident
        server.send(result(call))
        assert client.receive() == result(call)


def test_server_that_exits_with_0_after_each_answer_does_not_fail(testbed: RelayTestbed) -> None:
    """Although the next call is in its input already."""
    client, server = testbed.connect("failures = 1\nrestarts = 1\nbackoff_s = 3600")
    for number in range(4):
        client.call(number, "once")
    for number in range(4):
        call = json.loads(server_line := read_one_line(server))
        assert call["id"] == number, server_line
        server.send(result(call))
        server.die(0)
        assert client.receive() == result(call)
        if number < 3:
            server = testbed.server()

    assert "is down" not in client.stderr()


def read_one_line(server: Server) -> bytes:
    """Read one line and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        select.select([server.read], [], [], LIMIT_S)
        line += os.read(server.read, 1)
    return line


def test_server_that_exits_with_0_before_it_reads_a_call_is_not_started_without_end(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("failures = 3"), testbed.server()
    initialize(client, server)
    client.lose(server)
    client.call(1, "once")
    for _ in range(2):
        server = testbed.server()
        hello = json.loads(read_one_line(server))
        server.send(result(hello))
        assert read_one_line(server) == INITIALIZED
        select.select([server.read], [], [], LIMIT_S)
        server.die(0)

    assert client.receive()["error"]["data"]["circuit"] == "open"


def test_relay_of_an_idle_server_ends_with_its_client(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    server.die(0)

    client.close(read=False)

    assert client.ended() == 0


def test_server_that_exits_with_0_before_it_answers_a_call_has_failed(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1, "once")
    server.receive()

    server.die(0)

    assert client.receive()["error"]["code"] == -32000
    wait_until(lambda: "is down" in client.stderr(), "the relay to tell")


def test_server_that_exits_with_0_at_its_start_is_suspended(testbed: RelayTestbed) -> None:
    client = testbed.relay("failures = 3")
    for _ in range(3):
        testbed.server().die(0)
    wait_until(lambda: client.stderr().count("is down") == 3, "the relay to notice")

    client.call(1)

    assert client.receive()["error"]["data"]["circuit"] == "open"


@pytest.mark.thorough
def test_server_that_reads_no_more_may_finish_a_call_that_must_not_be_repeated(testbed: RelayTestbed) -> None:
    """The limit of another call shows that the server had more time than a restart waits for others."""
    client, server = testbed.connect("attempt_s = 4\nretries = 0")
    client.call("once", "once")
    call = server.receive()
    client.call("read")
    server.receive()
    server.close(write=False)
    client.send(MARK)
    assert client.receive()["id"] == "read"

    server.send(result(call))

    assert client.receive() == result({"id": "once"})


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
print('{"jsonrpc":"2.0","method":"ready","params":[%d,%d]}' % (os.getpid(), child.pid), flush=True)
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


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives orphans to those who ask for them")

DAEMONS = """
import subprocess, sys
script = '''
setsid sleep 600 >/dev/null & echo $!
nohup sleep 600 >/dev/null & echo $!
sleep 600 >/dev/null & echo $!
'''
started = subprocess.run(["sh", "-c", f"exec 2>/dev/null; {script}"], capture_output=True, text=True)
print('{"jsonrpc":"2.0","method":"ready","params":[%s]}' % ",".join(started.stdout.split()), flush=True)
"""

LEAVES = "sys.stdin.read()"
STAYS = "import time; time.sleep(600)"


@LINUX
@pytest.mark.parametrize("how", [LEAVES, STAYS], ids=["server that exits", "server that has to be ended"])
def test_daemons_of_a_tool_live_on_when_the_session_ends(testbed: RelayTestbed, how: str) -> None:
    client = testbed.relay("", [sys.executable, "-c", DAEMONS + how])
    own_session, ignores_hangup, background = (testbed.track(pid) for pid in client.receive()["params"])

    client.close(read=False)

    client.ended()
    assert [gone(own_session), gone(ignores_hangup), gone(background)] == [False, False, True]


@LINUX
def test_daemons_of_a_tool_live_on_when_the_relay_is_ended(testbed: RelayTestbed) -> None:
    client = testbed.relay("", [sys.executable, "-c", DAEMONS + STAYS])
    own_session, ignores_hangup, background = (testbed.track(pid) for pid in client.receive()["params"])

    client.process.send_signal(signal.SIGTERM)

    client.ended()
    assert [gone(own_session), gone(ignores_hangup), gone(background)] == [False, False, True]


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

    backend().hold(server).signal(signal.SIGKILL)  # type: ignore[union-attr]

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
