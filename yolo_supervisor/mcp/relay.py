"""The relay between an MCP client and its server: it forwards every frame and repeats calls that may be repeated.

A call keeps the client's id for its first attempt; only a retry gets an id of the relay, so that a late response is
recognised. Lines of the server pass unchanged, except for the ids of requests from a restarted server: the client would
take them for requests of the process before.
"""

from __future__ import annotations

import select
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from yolo_supervisor.config import McpConfig
from yolo_supervisor.formats import mcp
from yolo_supervisor.mcp.call_table import WITH_SERVER, Call, CallState, CallTable
from yolo_supervisor.mcp.circuit_breaker import WHOLE_SERVER, CircuitBreaker
from yolo_supervisor.mcp.journal_writer import JournalWriter, warn
from yolo_supervisor.mcp.pipes import MAX_LINE, LineTooLongError, PipeWriter, read_lines
from yolo_supervisor.mcp.questions import Question, Questions
from yolo_supervisor.mcp.retries import FAILED, Retries
from yolo_supervisor.mcp.server import (
    EXIT_S,
    GRACE_S,
    ID_PREFIX,
    Server,
    ServerProcess,
    ServerState,
)
from yolo_supervisor.mcp.session_replay import SessionReplay

POLL_S = 0.1
"""Interval at which the end of calls is checked after the client has closed its input."""

READ_RESULTS = frozenset({"initialize", "tools/list"})
"""Methods whose results the relay reads, however large."""


class Relay:
    """Connects one client (stdin and stdout) to one server until the client has gone.

    It routes lines. ``ServerState`` says what may be sent to the server and what moves it; ``CallState`` says the same
    for a call. The events that move them:

    - a line of the client: a request is sent, queued or refused (server READY, other states, SUSPENDED); a cancellation
      ends its call; anything else is sent or queued.
    - a line of the server: a result ends its call; a transient error ends the attempt; any other error ends the call.
    - a deadline (``Retries.run``): the attempt is cancelled, or the call is given up.
    - a request of the server: the clocks of the calls stand still until the client has answered (``Questions``).
    - the end of the server's output or input, or a line that is too long: DRAINING, then BACKING_OFF; every call that
      was with the server is queued again or given up, and the server's requests are withdrawn.
    - the server's exit with code 0 while no call is open: DRAINING, then IDLE until the client sends something.
    - the end of the backoff pause: STARTING, the session is replayed; READY, the queue is sent.
    - no answer to ``initialize`` within ``start_s``: the server is ended.
    - the end of the client's input: bounded calls still end as above, then the server's input is closed; CLOSED.
    """

    def __init__(
        self, argv: Sequence[str], name: str, config: McpConfig, breaker: CircuitBreaker, journal: JournalWriter
    ) -> None:
        self._config = config
        self._breaker = breaker
        self._journal = journal
        self._client = PipeWriter(1)
        self._calls = CallTable()
        self._server = Server(argv, name, config, breaker)
        self._questions = Questions()
        self._retries = Retries(self._server, self._calls, self._questions, self._client, config, breaker, journal)
        self._session = SessionReplay()
        self._chatter_reported = False
        self._exit_code = 0

    # -- life cycle --------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Relay until the client has gone; the exit code.

        FileNotFoundError, PermissionError, OSError if the server cannot be started at first.
        """
        self._server.start()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._client.run)
                tasks.start_soon(self._retries.run)
                tasks.start_soon(self._run_server)
                async for line in read_lines(0):
                    self._from_client(line)
                    if self._server.process is not None:
                        await self._server.process.input.drain()
                self._server.input_ended = True
                for question in self._questions.take_all():
                    if question.method != "ping":
                        self._answer_for_client(question)
                self._retries.review_questions()
                await self._finish()
                tasks.cancel_scope.cancel()
        finally:  # on cancellation, too: no process of the server may outlive the relay, except daemons
            with anyio.CancelScope(shield=True):
                if self._server.process is not None:
                    await self._server.process.end(0.0, GRACE_S, spares_daemons=True)
            self._client.restore_blocking()
        return self._exit_code

    async def _finish(self) -> None:
        """Answer what the client still waits for, as long as it reads; then let the server exit."""
        server = self._server
        while any(call.bounded for call in self._calls) and not self._client_gone():
            await anyio.sleep(POLL_S)  # the server's input stays open: a failed call may have to be repeated
        while server.process is not None and server.has_queue and not self._client_gone():
            await anyio.sleep(POLL_S)
        if server.process is not None:
            with anyio.move_on_after(EXIT_S):
                await server.process.input.flush()
            server.process.close_input()
        while server.process is not None and self._calls and not self._client_gone():
            await anyio.sleep(POLL_S)
        with anyio.move_on_after(EXIT_S):
            while server.process is not None and not self._client_gone():
                await anyio.sleep(0.01)
        with anyio.move_on_after(EXIT_S):
            await self._client.flush()

    def _client_gone(self) -> bool:
        """Whether nothing reads the relay's output any more."""
        if self._client.broken:
            return True
        poll = select.poll()
        poll.register(1, 0)
        return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))

    async def _run_server(self) -> None:
        """Keep a server process running until the client needs none."""
        while True:
            process = self._server.process
            assert process is not None
            self._start_session(process)
            too_long = await self._forward_output(process)
            code = await self._server.stop_process(idle=not self._calls.with_server())
            if too_long:
                process.failure = f"it sent a line of more than {MAX_LINE // 2**20} MiB"
            reason = process.failure or _exit_reason(code)
            idle = code == 0 and not process.failure and self._was_idle(process)
            self._server_died(process, reason)
            if self._server.input_ended and all(call.method in mcp.UNBOUNDED for call in self._calls):
                self._server.state = ServerState.CLOSED
                self._exit_code = code if code is not None and code >= 0 else 0
                return
            if idle and not self._server.input_ended:
                await self._server.wait_until_needed()
                try:
                    self._server.start()
                    continue
                except OSError as error:
                    reason = f"it cannot be started: {error}"
            await self._restart_server(reason)

    def _was_idle(self, process: ServerProcess) -> bool:
        """Whether nothing was lost with a process that has ended.

        A call that it has not read is for the next process; but one that answers nothing would be started without end.
        """
        calls = self._calls.with_server()
        if self._retries.undecided or any(process.received(call) for call in calls):
            return False
        return process.served if calls else process.answered

    async def _forward_output(self, process: ServerProcess) -> bool:
        """Forward the server's lines until its output ends; whether it ended with a line that is too long."""
        too_long = False
        writer = anyio.CancelScope()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write_input, process, writer)
            try:
                with process.reading:
                    async for line in process.lines():
                        self._from_server(line)
                        await self._client.drain()
            except LineTooLongError:
                too_long = True
            writer.cancel()
        return too_long

    async def _write_input(self, process: ServerProcess, scope: anyio.CancelScope) -> None:
        """Write what is sent to the server; replace the process if it does not read any more."""
        with scope:
            await process.input.run()
            if self._server.input_ended:
                return
            self._server.state = ServerState.DRAINING  # it cannot be sent anything: let it finish its calls first
            with anyio.move_on_after(EXIT_S):
                while self._calls.with_server():
                    await anyio.sleep(POLL_S)
            while self._retries.unrepeatable_in_flight():
                await anyio.sleep(POLL_S)
            warn(f"the MCP server {self._server.name} does not read its input any more: restarting it")
            await process.kill(GRACE_S)

    def _server_died(self, process: ServerProcess, reason: str) -> None:
        for question in self._questions.take_all():
            if not self._server.input_ended and not question.withdrawn:
                self._retries.withdraw(question, "the server has ended")
        self._retries.server_died(process, reason)

    async def _restart_server(self, reason: str) -> None:
        while True:
            pause = self._server.back_off(reason)
            if self._server.state is ServerState.SUSPENDED:
                self._retries.refuse_queued()
            await anyio.sleep(pause)
            try:
                self._server.restart()
            except OSError as error:
                reason = f"it cannot be started: {error}"
                continue
            evidence = {"deaths": self._server.deaths_in_a_row}
            self._journal.recovered(f"{self._server.name} was restarted: {reason}", evidence)
            return

    # -- the beginning of a process ----------------------------------------------------------------------------------

    def _start_session(self, process: ServerProcess) -> None:
        """Replay the client's session to a restarted server, then send what is queued."""
        initialize = self._session.initialize
        initializing = any(call.method == "initialize" for call in self._calls)  # then it is queued, and sent again
        if self._server.generation == 1 or initialize is None or initializing:
            self._session_ready()
        else:
            line = mcp.with_value(initialize, ("id",), self._server.new_id())
            self._server.request(line, lambda _: self._replay_session(process))
            self._retries.limit_start(process)

    def _replay_session(self, process: ServerProcess) -> None:
        process.initializing = False
        for line in self._session.after_initialize():
            if "id" in mcp.load(line):
                self._server.request(mcp.with_value(line, ("id",), self._server.new_id()), lambda _: None)
            else:
                process.input.send(line)
        self._session_ready()

    def _session_ready(self) -> None:
        assert self._server.process is not None
        if self._server.state is not ServerState.STARTING or self._server.process.input.broken:
            return  # it does not read: what is queued is for the next process
        self._server.state = ServerState.READY
        self._retries.server_ready()
        for item in self._server.take_queue():
            if isinstance(item, bytes):
                self._server.send(item)
            elif item.state is not CallState.DONE:
                self._retries.send(item)

    # -- lines of the client -----------------------------------------------------------------------------------------

    def _from_client(self, line: bytes) -> None:
        line = _with_newline(line)
        try:
            message = mcp.load(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            self._server.send(line)
        elif message.get("id") is None:
            self._client_notification(line, message)
        elif isinstance(message.get("method"), str):
            self._client_request(line, message)
        else:
            self._client_response(line, message)

    def _client_notification(self, line: bytes, message: Mapping[str, Any]) -> None:
        method = message.get("method")
        if method == "notifications/cancelled":
            self._cancel(line, message)
            return
        if method == "notifications/initialized":
            self._session.initialized = line
            if self._session.initialize is not None and self._server.state is not ServerState.READY:
                return  # the replay sends it
        self._server.send(line)

    def _cancel(self, line: bytes, message: Mapping[str, Any]) -> None:
        call = self._calls.by_client_key(mcp.id_key(mcp.params(message).get("requestId")))
        if call is None:
            if self._server.state is ServerState.READY or self._server.has_queue:
                self._server.send(line)  # else the next process could not know what is cancelled
            return
        if call.state in WITH_SERVER:
            if call.sent_id != call.client_id:
                line = mcp.with_value(line, ("params", "requestId"), call.sent_id)
            self._server.send(line)
        self._breaker.release_probe(call.tool or WHOLE_SERVER)
        self._retries.end(call)

    def _client_request(self, line: bytes, message: Mapping[str, Any]) -> None:
        method, ident, key = message["method"], message["id"], mcp.id_key(message["id"])
        tool = mcp.called_tool(message)
        if (twin := self._calls.by_client_key(key)) is not None:
            self._questions.detach(twin)
            self._retries.end(twin)  # two calls with one id: their responses look alike, so both just pass
            self._server.send(line)
            return
        if self._server.state is ServerState.SUSPENDED and method not in mcp.UNBOUNDED:
            self._retries.refuse_suspended(ident)
            return
        if tool is not None and (refusal := self._breaker.refusal(tool)) is not None:
            self._retries.refuse(ident, FAILED, refusal, {"circuit": "open"})
            return
        deadline_s = self._retries.clock.now_s() + self._config.cap_s
        call = Call(ident, key, method, line, tool, mcp.progress_token(message), deadline_s)
        self._retries.accept(call, message)

    def _client_response(self, line: bytes, message: Mapping[str, Any]) -> None:
        """A response to a request of the server; one to a process that has ended is dropped."""
        key = mcp.id_key(message["id"])
        question, process = self._questions.answer(key, message), self._server.process
        if question is None or process is None:
            if self._server.generation == 1:
                self._server.send(line)
            return
        if mcp.id_key(question.server_id) != key:
            line = mcp.with_value(line, ("id",), question.server_id)
        process.input.send(line)  # in any state: the server may need the answer to become ready
        self._retries.review_questions()

    # -- lines of the server -----------------------------------------------------------------------------------------

    def _from_server(self, line: bytes) -> None:
        if len(line) > mcp.LARGE and (key := mcp.answered_id(line)) is not None:
            call = self._calls.by_sent_key(key)
            if call is not None and call.sent_id == call.client_id and call.method not in READ_RESULTS:
                self._mark_answered(of_client=True)
                self._complete(call, line, key, None)  # forwarded without parsing it
                return
        try:
            message = mcp.load(line)
        except ValueError:
            if line.strip():
                self._warn_no_message(line)
            return
        if not mcp.is_message(message):
            self._warn_no_message(line)
            return
        line = _with_newline(line)
        if isinstance(message, list):
            self._server_batch(line, message)
        elif "method" not in message and "id" in message:
            self._server_response(line, message)
        elif message.get("id") is not None:
            self._server_request(line, message)
        else:
            self._server_notification(line, message)

    def _server_batch(self, line: bytes, messages: Sequence[object]) -> None:
        """Forward a JSON-RPC batch unchanged and end the calls that it answers."""
        for message in messages:
            if isinstance(message, dict):
                call = self._calls.by_sent_key(mcp.id_key(message.get("id")))
                if call is not None:
                    self._mark_answered(of_client=True)
                    self._retries.end(call)
        self._client.send(line)

    def _warn_no_message(self, line: bytes) -> None:
        if not self._chatter_reported:
            self._chatter_reported = True
            name = self._server.name
            warn(f"{name} wrote a line that is no JSON-RPC message (later ones are not reported): {line[:200]!r}")

    def _server_response(self, line: bytes, message: Mapping[str, Any]) -> None:
        key = mcp.id_key(message["id"])
        self._mark_answered()
        if (handler := self._server.take_handler(key)) is not None:
            handler(message)
            return
        call = self._calls.by_sent_key(key)
        if call is None:
            if self._server.process is not None:
                self._server.process.unfinished.discard(key)
            if not key.startswith(f'"{ID_PREFIX}'):  # a late response to a retry that was given up
                self._client.send(line)
            return
        error = message.get("error")
        if error is not None and (call.state is not CallState.IN_FLIGHT or key != call.sent_keys[-1]):
            return  # an error counts only for the current attempt, and not once that was cancelled
        self._mark_answered(of_client=True)
        if call.method == "initialize":
            error = None  # whatever it is, the client gets it: no process is sent initialize twice
        code = error.get("code") if isinstance(error, dict) else None
        if isinstance(error, dict) and isinstance(code, int | float) and code in mcp.TRANSIENT_ERRORS:
            self._calls.forget_attempt(key)
            response = line if key == call.client_key else mcp.with_value(line, ("id",), call.client_id)
            self._retries.attempt_failed(call, int(code), f"error {int(code)}: {error.get('message')!s:.200}", response)
            return
        self._complete(call, line, key, message)

    def _complete(self, call: Call, line: bytes, key: str, message: Mapping[str, Any] | None) -> None:
        """Forward the response to a call and end it. ``key`` is its id; ``message`` is None if it was not parsed."""
        self._client.send(line if key == call.client_key else mcp.with_value(line, ("id",), call.client_id))
        if call.state in WITH_SERVER and key != call.sent_keys[-1]:
            self._server.send(mcp.cancellation(call.sent_id, "an earlier attempt has been answered"))
        self._retries.end(call)
        self._server.deaths_in_a_row = 0
        self._breaker.record_success(call.tool or WHOLE_SERVER)
        if message is not None and "result" in message:
            if call.method == "tools/list":
                self._retries.learn_tools(message["result"])
            else:
                self._session.record(call.method, call.line)
        if call.failures:
            failures = "; ".join(call.failures)
            text = f"{call.label} of {self._server.name} was answered at attempt {call.attempt}, after: {failures}"
            self._journal.recovered(text, {"attempts": call.attempt})

    def _mark_answered(self, of_client: bool = False) -> None:
        """Record that the process has answered a request, of the client or of the relay."""
        if self._server.process is not None:
            self._server.process.answered = True
            self._server.process.served |= of_client

    def _server_request(self, line: bytes, message: Mapping[str, Any]) -> None:
        server_id = message["id"]
        shown_id = self._shown_id(server_id)
        question = Question.asked(message, shown_id, self._calls.with_server())
        if self._server.input_ended and question.method != "ping":
            self._answer_for_client(question)
            return
        self._questions.add(question)
        self._retries.review_questions()
        self._client.send(line if shown_id is server_id else mcp.with_value(line, ("id",), shown_id))

    def _answer_for_client(self, question: Question) -> None:
        """Answer a question with an error, because the client can send no answer any more."""
        if self._server.process is not None:
            text = "the client has closed its input: it can answer nothing any more"
            error = mcp.error_response(question.server_id, FAILED, text, {"by": "yolo-supervisor"})
            self._server.process.input.send(error)

    def _shown_id(self, server_id: object) -> object:
        """The id under which the client sees a request of the server: unique over all its processes."""
        generation = self._server.generation
        return server_id if generation == 1 else f"{generation}:{mcp.id_key(server_id)}"

    def _server_notification(self, line: bytes, message: Mapping[str, Any]) -> None:
        method, params = message.get("method"), mcp.params(message)
        if method == "notifications/progress" and not self._progress(params):
            return
        if method == "notifications/tools/list_changed":
            self._retries.forget_tools()
        elif method == "notifications/cancelled" and "requestId" in params:
            shown_id = self._shown_id(params["requestId"])
            question = self._questions.cancel(mcp.id_key(shown_id))
            self._retries.review_questions()
            if question is not None and question.withdrawn:
                return  # the client knows
            if shown_id != params["requestId"]:
                line = mcp.with_value(line, ("params", "requestId"), shown_id)
        elif method == "notifications/elicitation/complete":
            self._questions.complete(params.get("elicitationId"))
            self._retries.review_questions()
        self._client.send(line)

    def _progress(self, params: Mapping[str, Any]) -> bool:
        """Extend the attempt's time limit; whether to forward the progress. A retry must not make it decrease."""
        call, progress = self._calls.by_progress_token(params.get("progressToken")), params.get("progress")
        if call is None or not isinstance(progress, int | float):
            return True
        self._retries.extend(call)
        if call.attempt > 1 and progress <= call.progress:
            return False
        call.progress = max(call.progress, progress)
        return True


def _exit_reason(code: int | None) -> str:
    if code is None:
        return "it ended with an unknown exit code"
    return f"it exited with code {code}" if code >= 0 else f"it was ended by signal {-code}"


def _with_newline(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"
