"""The relay starts its server: a slow one, on demand, and again after a stop or an exit."""

from __future__ import annotations

import json
import os
import select
import signal

import pytest

from support.relay_testbed import (
    INITIALIZE,
    INITIALIZED,
    MARK,
    TOOLS,
    RelayTestbed,
    Server,
    cancelled,
    error,
    gone,
    initialize,
    receive_session,
    result,
)
from support.wait import LIMIT_S, wait_until

# -- the start of a server ------------------------------------------------------------------------------------------


def test_slow_initialize_is_neither_cancelled_nor_repeated(testbed: RelayTestbed) -> None:
    """Requests that the client sends meanwhile wait, too. Another relay shows that the limits are over."""
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
    wait_until(lambda: "initialize within 0.3 s" in client.stderr(), "the relay to report it")


@pytest.mark.thorough
def test_initialize_sent_again_after_a_failed_start_is_for_the_next_process(testbed: RelayTestbed) -> None:
    client, server = testbed.relay("start_s = 4"), testbed.server()
    client.send(INITIALIZE)
    server.receive()
    assert client.receive()["id"] == "hello"

    client.send(INITIALIZE, MARK)

    server.expect_end()
    server = testbed.server()
    assert server.receive_line() == INITIALIZE  # once: the failed one is not replayed
    assert server.receive() == MARK


@pytest.mark.thorough
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

    wait_until(lambda: f"kill -CONT {server.pid}" in client.stderr(), "the relay to report it")

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


def read_one_line(server: Server) -> bytes:
    """Read one line and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        select.select([server.read], [], [], LIMIT_S)
        line += os.read(server.read, 1)
    return line


def test_call_that_a_server_has_not_read_is_sent_to_the_next(testbed: RelayTestbed) -> None:
    """An unread call is sent again without an attempt, even if it may not be repeated: it has had no effect."""
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
    """The next call is in its input already."""
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
    wait_until(lambda: "is down" in client.stderr(), "the relay to report it")


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
