"""The relay restarts its server, ends with its client, and opens circuits."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
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


def test_requests_of_two_processes_with_one_id_are_distinguished(testbed: RelayTestbed) -> None:
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
    """Client and server may use the same ids."""
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


@pytest.mark.thorough
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


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")

DAEMONS = """
import subprocess, sys
script = '''
for how in setsid nohup env; do echo $($how sh -c 'echo $$; exec sleep 600 >/dev/null' &); done
'''
started = subprocess.run(["sh", "-c", f"exec 2>/dev/null; {script}"], capture_output=True, text=True)
print('{"jsonrpc":"2.0","method":"ready","params":[%s]}' % ",".join(started.stdout.split()), flush=True)
"""
"""The tool of this server has started three processes; each prints its pid once it is what it is going to be."""

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
def test_daemons_of_a_tool_live_on_when_an_idle_server_exits(testbed: RelayTestbed) -> None:
    answer = 'any("ping" in line for line in sys.stdin); print(\'{"jsonrpc":"2.0","id":1,"result":{}}\')'
    client = testbed.relay("", [sys.executable, "-c", DAEMONS + answer])
    own_session, ignores_hangup, background = (testbed.track(pid) for pid in client.receive()["params"])

    client.ask(1, "ping")

    assert client.receive() == result({"id": 1})
    wait_until(lambda: gone(background), "the relay to notice")
    client.send(MARK)
    for pid in client.receive()["params"]:  # of the next process, which gets no request and stays
        testbed.track(pid)
    assert [gone(own_session), gone(ignores_hangup)] == [False, False]


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


@pytest.mark.sampled(2)
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
