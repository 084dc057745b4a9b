"""While the server asks the client something, the clocks of the calls stand still."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from support.budget import cases
from support.relay_testbed import (
    MARK,
    Client,
    Json,
    RelayTestbed,
    Server,
    cancelled,
    error,
    notification,
    progress,
    result,
)

LIMITS = "attempt_s = 1\nretry_s = 1\ncap_s = 1.5\n"
"""A time limit in seconds in which a test on a busy machine can ask a question."""

ASKING = [
    (method, tool)
    for method in ("elicitation/create", "sampling/createMessage", "roots/list", "x/unknown")
    for tool in ("read", "once")
]


@pytest.fixture
def other(testbed: RelayTestbed) -> Client:
    """The client of another relay with the same limits, whose server answers no call."""
    return testbed.connect(LIMITS + "failures = 1000")[0]


def question(ident: object, method: str = "elicitation/create", **params: Any) -> Json:
    return {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}


def wait_for_all_limits(other: Client) -> None:
    """Wait until a call that begins now has reached every limit."""
    other.call("other")
    assert other.receive()["error"]["code"] == -32001


def assert_withdrawn(client: Client, ident: object) -> None:
    withdrawal = client.receive()
    assert (withdrawal["method"], withdrawal["params"]["requestId"]) == ("notifications/cancelled", ident)


def assert_received_nothing(client: Client, server: Server) -> None:
    client.send(MARK)
    assert server.receive() == MARK


@pytest.mark.parametrize(("method", "tool"), cases(ASKING, ASKING[:2]))
def test_call_is_not_limited_while_the_client_is_asked(
    testbed: RelayTestbed, other: Client, method: str, tool: str
) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1, tool, _meta={"progressToken": "p"})
    call = server.receive()
    asked = question("question", method)
    server.send(asked, progress("p", 1))
    assert [client.receive(), client.receive()] == [asked, progress("p", 1)]
    wait_for_all_limits(other)
    assert_received_nothing(client, server)

    client.send(result(asked, "yes"))
    assert server.receive() == result(asked, "yes")
    server.send(result(call))
    assert client.receive() == result(call)


@pytest.mark.thorough
def test_limit_goes_on_after_the_answer(testbed: RelayTestbed, other: Client) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1)
    server.receive()
    server.send(question("q"))
    asked = client.receive()
    wait_for_all_limits(other)

    client.send(result(asked))

    assert server.receive() == result(asked)
    assert server.receive()["params"]["requestId"] == 1


@pytest.mark.thorough
def test_limit_goes_on_after_the_server_has_withdrawn_its_question(testbed: RelayTestbed) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1)
    server.receive()

    server.send(question("q"), cancelled("q"))

    assert [client.receive()["method"] for _ in range(2)] == ["elicitation/create", "notifications/cancelled"]
    assert server.receive()["params"]["requestId"] == 1


def test_unanswered_ping_of_the_server_stops_no_clock(testbed: RelayTestbed) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1)
    server.receive()

    server.send(question("q", "ping"))

    assert server.receive()["params"]["requestId"] == 1


@pytest.mark.thorough
def test_clocks_stand_still_until_the_last_of_two_questions_is_answered(testbed: RelayTestbed, other: Client) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1, "once")
    client.call(2, "once")
    server.receive()
    server.receive()
    server.send(question("first"), question("second"))
    first, second = client.receive(), client.receive()

    client.send(result(first))
    assert server.receive() == result(first)
    wait_for_all_limits(other)
    assert_received_nothing(client, server)

    client.send(result(second))
    assert server.receive() == result(second)
    assert {server.receive()["params"]["requestId"] for _ in range(2)} == {1, 2}


@pytest.mark.thorough
def test_call_sent_during_a_question_waits_for_it_too(testbed: RelayTestbed, other: Client) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1, "once")
    server.receive()
    server.send(question("q"))
    client.receive()

    client.call(2)
    server.receive()
    wait_for_all_limits(other)

    assert_received_nothing(client, server)


@pytest.mark.thorough
def test_clocks_stand_still_until_a_visit_to_a_url_is_complete(testbed: RelayTestbed, other: Client) -> None:
    client, server = testbed.connect(LIMITS)
    client.call(1)
    server.receive()
    server.send(question("q", mode="url", elicitationId="visit", url="https://example.com"))
    asked = client.receive()

    client.send(result(asked, {"action": "accept"}))
    server.receive()
    wait_for_all_limits(other)
    assert_received_nothing(client, server)

    server.send(notification("notifications/elicitation/complete", elicitationId="visit"))
    assert client.receive()["method"] == "notifications/elicitation/complete"
    assert server.receive()["params"]["requestId"] == 1


@pytest.mark.thorough
def test_time_in_which_the_relay_was_suspended_does_not_count(testbed: RelayTestbed) -> None:
    """A paused container stops a relay like this. Another relay shows that the limit is over."""
    limits = "cap_s = 6"
    other, _ = testbed.connect(limits)
    client, server = testbed.connect(limits)
    client.call(1, "once")
    server.receive()
    os.kill(client.process.pid, signal.SIGSTOP)
    other.call("other", "once")
    assert other.receive()["error"]["code"] == -32001

    os.kill(client.process.pid, signal.SIGCONT)

    client.send(MARK)
    assert server.receive() == MARK


# -- withdrawn questions --------------------------------------------------------------------------------------------


def test_question_of_a_cancelled_call_is_withdrawn(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    server.receive()
    server.send(question("q"))
    client.receive()

    client.send(cancelled(1))

    assert server.receive() == cancelled(1)
    assert_withdrawn(client, "q")
    server.send(cancelled("q"), MARK)  # the client knows already
    assert client.receive() == MARK


def test_question_of_an_answered_call_is_withdrawn_and_a_late_answer_forwarded(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.lose(server)
    server = testbed.server()
    client.call(1)
    call = server.receive()
    server.send(question("q", "sampling/createMessage"))
    asked = client.receive()

    server.send(result(call))

    assert client.receive() == result(call)
    assert_withdrawn(client, asked["id"])
    client.send(result(asked, "late"))
    assert server.receive() == result({"id": "q"}, "late")


def test_question_is_withdrawn_before_a_retry_asks_it_again(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    call = server.receive()
    server.send(question("q"), error(call, -32603))

    client.receive()
    assert_withdrawn(client, "q")

    again = server.receive()
    server.send(question("again"))
    assert client.receive()["id"] == "again"
    server.send(result(again))
    assert client.receive() == result({"id": 1})
    assert_withdrawn(client, "again")


def test_question_that_any_unfinished_call_may_have_asked_stays(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    client.call(2)
    server.receive()
    server.receive()
    server.send(question("q"), question("roots", "roots/list"))
    client.receive()
    client.receive()

    client.send(cancelled(1), MARK)
    assert [server.receive(), server.receive()] == [cancelled(1), MARK]
    server.send(MARK)
    assert client.receive() == MARK

    client.send(cancelled(2))
    assert_withdrawn(client, "q")  # but the client is not asked for the roots


def test_question_of_a_task_outlives_the_calls(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    call = server.receive()
    task = {"io.modelcontextprotocol/related-task": {"taskId": "t"}}

    server.send(question("q", _meta=task), result(call), MARK)

    assert [client.receive().get("id"), client.receive(), client.receive()] == ["q", result(call), MARK]


def test_question_of_a_dead_server_is_withdrawn(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()
    client.call(1)
    server.receive()
    server.send(question("q"))
    client.receive()

    server.die()

    assert_withdrawn(client, "q")
    server = testbed.server()
    server.send(result(server.receive()))
    assert client.receive() == result({"id": 1})


# -- after the client has closed its input --------------------------------------------------------------------------


@pytest.mark.parametrize("asked_before", [True, False])
def test_question_that_the_client_cannot_answer_gets_an_error(testbed: RelayTestbed, asked_before: bool) -> None:
    client, server = testbed.connect()
    client.call(1, "once")
    call = server.receive()
    if asked_before:
        server.send(question("q"))
        client.receive()
        client.close(read=False)
    else:
        client.close(read=False)
        server.send(question("q"))

    answer = server.receive()
    assert (answer["id"], answer["error"]["code"]) == ("q", -32000)

    server.send(result(call, "no one could be asked"))
    while (response := client.receive()).get("id") != 1:
        assert response["method"] in ("elicitation/create", "notifications/cancelled")
    assert response == result(call, "no one could be asked")
    server.expect_end()
    server.die(0)
    assert client.ended() == 0
