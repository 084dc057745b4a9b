"""The relay forwards lines byte for byte, retries calls, limits their time and cancels them."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.cli import Cli
from support.relay_testbed import (
    MARK,
    TOOLS,
    UPSTREAM,
    RelayTestbed,
    call_tool,
    cancelled,
    error,
    gone,
    initialize,
    notification,
    progress,
    result,
)
from support.upstream import effects
from support.wait import wait_until
from yolo_supervisor.clock import pause_s
from yolo_supervisor.mcp.pipes import read_lines
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

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


NOISE = [
    b"npm warn\n",
    b"\n",
    b"\xff\xfe\x00\n",
    b'{"half": \n',
    b"{}{}\n",
    b"42\n",
    b'{"level":"info","msg":"listening"}\n',
    b'{"level":"error","id":7,"error":"taken for an answer to call 7"}\n',
    b'{"method":"GET","id":8,"path":"/"}\n',
    b'{"id":9,"result":"' + b"x" * 100_000 + b'"}\n',
    b'[{"level":"info"}]\n',
]


def test_server_lines_that_are_no_message_are_dropped_and_reported_once(testbed: RelayTestbed) -> None:
    client, server = testbed.connect()

    for number, noise in enumerate(NOISE):
        client.call(number)
        call = server.receive()
        server.send(noise, result(call), noise, MARK)

        assert client.receive()["id"] == number
        assert client.receive() == MARK
    assert client.stderr().count("no JSON-RPC message") == 1


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


@pytest.mark.sampled(2)
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


@pytest.mark.sampled(1)
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
        wait_until(lambda: time.time() - backend().started_at(older.started) > 0.3, "some time to pass")

    response = call_tool(client, "once_spawn", then="hang")

    newer = [int(line.split()[1]) for line in effects(effects_file) if line.startswith("spawned")][1]
    left = Processes(backend()).identify(newer) and testbed.track(newer)
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
