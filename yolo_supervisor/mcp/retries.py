"""Attempts of calls: sending them, limiting their time, repeating those that failed, giving up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import anyio
import anyio.abc

from yolo_supervisor.config import McpConfig
from yolo_supervisor.formats import mcp
from yolo_supervisor.mcp.call_clock import CallClock
from yolo_supervisor.mcp.call_table import WITH_SERVER, Call, CallState, CallTable
from yolo_supervisor.mcp.circuit_breaker import CircuitBreaker
from yolo_supervisor.mcp.journal_writer import JournalWriter, warn
from yolo_supervisor.mcp.pipes import PipeWriter
from yolo_supervisor.mcp.questions import Question, Questions
from yolo_supervisor.mcp.server import GRACE_S, Server, ServerProcess, ServerState, backoff_s

CHECK_S = 0.1
"""Interval at which deadlines are checked."""

OVERLAP_S = 0.1
"""Start times of processes do not distinguish calls that are closer together than this."""

SLOW_START_S = 10.0
"""A process that has not answered ``initialize`` after this time is reported as slow."""

SUSPENDED_S = 5.0
"""A pause of the relay above which the machine, or its container, was suspended or overloaded, in seconds."""

STOPPED_S = 5.0
"""A process that is stopped at both ends of this time does not go on by itself."""

MAX_TOOLS = 10_000
"""A list of more tools is not read further."""

FAILED, TIMED_OUT = -32000, -32001
"""JSON-RPC codes of the relay's own errors: no answer; no answer in time."""


class Retries:
    """Sends each call to the server, and repeats a failed attempt if the call may be repeated (see ``CallState``).

    A call may be repeated if its method is idempotent, or if it calls a tool that ``repeatable`` names or the server
    declares read-only or idempotent. ``unrepeatable`` overrides both. ``initialize`` is sent to each process once.

    The clock of the limits stands still while the server waits for an answer of the client, or the client for the
    answer to ``initialize``. Silence of a server ends a call at its limit, and never the server.
    """

    def __init__(
        self,
        server: Server,
        calls: CallTable,
        questions: Questions,
        client: PipeWriter,
        config: McpConfig,
        breaker: CircuitBreaker,
        journal: JournalWriter,
    ) -> None:
        self._server = server
        self._calls = calls
        self._questions = questions
        self._client = client
        self._config = config
        self._breaker = breaker
        self._journal = journal
        self.clock = CallClock()
        """The clock of all deadlines of calls."""
        self._initialize: Call | None = None
        """The client's ``initialize`` that was sent last."""
        self._declared: dict[str, bool] | None = None
        """Whether each tool is declared repeatable; None until the server has been asked."""
        self.undecided: list[tuple[Call, int, str]] = []
        """The calls in state UNDECIDED, each with the code and reason of its failure."""
        self._active = anyio.Event()
        self._last_end_s = float("-inf")
        """The time of the last end of a call, on the monotonic clock."""
        self._tasks: anyio.abc.TaskGroup | None = None

    # -- what may be repeated ----------------------------------------------------------------------------------------

    def may_repeat(self, call: Call) -> bool:
        if call.tool is None:
            return call.method in mcp.REPEATABLE or call.method == "initialize"  # to another process
        if call.tool in self._config.unrepeatable:
            return False
        return call.tool in self._config.repeatable or (self._declared or {}).get(call.tool, False)

    def learn_tools(self, result: object) -> None:
        """Take the tools' annotations from a result of ``tools/list`` that the client has asked for."""
        tools, _ = mcp.repeatable_tools(result)
        self._declared = {**(self._declared or {}), **tools}
        self._shorten_deadlines()

    def forget_tools(self) -> None:
        """The server has changed its tools."""
        self._declared = None

    def _list_tools(self, meta: Mapping[str, Any], cursor: str | None = None) -> None:
        """Ask the server for its tools, page after page; then decide about the calls that wait for that."""
        declared = self._declared = self._declared or {}

        def learn(message: Mapping[str, Any]) -> None:
            tools, next_cursor = mcp.repeatable_tools(message.get("result"))
            declared.update(tools)
            self._shorten_deadlines()
            if next_cursor is not None and self._declared is declared and len(declared) < MAX_TOOLS:
                self._list_tools(meta, next_cursor)
                return
            undecided, self.undecided = self.undecided, []
            for call, code, reason in undecided:
                if call.state is not CallState.DONE:
                    self.attempt_failed(call, code, reason)

        params = {**meta, **({"cursor": cursor} if cursor else {})}
        self._server.request(mcp.request(self._server.new_id(), "tools/list", params), learn)

    # -- an attempt --------------------------------------------------------------------------------------------------

    def accept(self, call: Call, message: Mapping[str, Any]) -> None:
        """Send a call of the client for the first time."""
        self._calls.add(call)
        self._active.set()
        if call.tool is not None and self._declared is None and self._server.state is ServerState.READY:
            self._list_tools(mcp.request_meta(message))
        self.send(call)

    def send(self, call: Call) -> None:
        """Begin an attempt, or queue the call until the server is ready."""
        process = self._server.process
        if self._server.state is not ServerState.READY or process is None:
            call.state = CallState.QUEUED
            self._server.enqueue(call)
            return
        call.attempt += 1
        call.state, call.sent_s = CallState.IN_FLIGHT, time.monotonic()
        if call.tool is not None:
            self._mark_overlaps(call)
        self.extend(call)
        call.offset = process.input.accepted
        if call.attempt == 1:
            self._calls.record_attempt(call, call.client_id, call.client_key)
            process.input.send(call.line)
        else:  # under another id, so that a late response to an earlier attempt is recognised
            retry_id = self._server.new_id()
            self._calls.record_attempt(call, retry_id, mcp.id_key(retry_id))
            process.input.send(mcp.with_value(call.line, ("id",), call.sent_id))
        if call.method == "initialize":
            self._initialize = call
            self.clock.hold()
            self.limit_start(process)

    def _mark_overlaps(self, call: Call) -> None:
        """Record which tool calls are with the server at the same time as others."""
        others = [o for o in self._calls if o.state in WITH_SERVER and o.tool is not None and o is not call]
        call.exclusive = not others and call.sent_s - self._last_end_s > OVERLAP_S
        for other in others:
            other.exclusive = False

    def attempt_limit_s(self, call: Call) -> float:
        """The time that an attempt may take. A call that may not be repeated has all the time until its deadline."""
        if self.may_repeat(call):
            return self._config.attempt_s if call.attempt == 1 else self._config.retry_s
        return self._config.cap_s if call.tool is not None else float("inf")

    def extend(self, call: Call) -> None:
        """Start the time limit of the attempt: it is sent, or has made progress."""
        call.attempt_deadline_s = min(call.deadline_s, self.clock.now_s() + self.attempt_limit_s(call))

    def _shorten_deadlines(self) -> None:
        """Apply the limit of an attempt to calls that were sent before it was known that they may be repeated."""
        for call in self._calls:
            if call.state in WITH_SERVER and call.attempt_deadline_s == call.deadline_s:
                self.extend(call)

    def unrepeatable_in_flight(self) -> list[Call]:
        """The calls with the server that would be lost with it."""
        return [call for call in self._calls.with_server() if call.bounded and not self.may_repeat(call)]

    def end(self, call: Call) -> None:
        """Wait for the call no longer: it is answered, refused, cancelled or given up."""
        self._last_end_s = time.monotonic()
        call.state = CallState.DONE
        self._calls.remove(call)
        if call is self._initialize and self._server.process is not None:
            self._server.process.initializing = False
        self.review_questions()

    # -- questions of the server -------------------------------------------------------------------------------------

    def review_questions(self) -> None:
        """Withdraw questions whose calls are over, and let the clock stand still exactly while one is open.

        An answer starts the time limits of the attempts again, as progress does: the call may not be cancelled, and the
        person asked again, because the answer came late.
        """
        if not self._questions and self._initialize is None and not self.clock.held:
            return
        for question in self._questions.take_orphans():
            self.withdraw(question, "the call that it belongs to is over")
        if self._initialize is not None and self._initialize.state not in WITH_SERVER:
            self._initialize = None
        if self._initialize is not None or self._questions.hold_clocks:
            self.clock.hold()
        elif self.clock.held:
            self.clock.release()
            for call in self._calls.with_server():
                self.extend(call)

    def withdraw(self, question: Question, reason: str) -> None:
        """Tell the client that a question of the server needs no answer any more."""
        self._client.send(mcp.cancellation(question.shown_id, reason))

    # -- after a failure ---------------------------------------------------------------------------------------------

    def attempt_failed(self, call: Call, code: int, reason: str, response: bytes | None = None) -> bool:
        """Repeat the call after a pause if that is allowed, else give it up; whether it is repeated.

        A call that is given up is answered with ``response``, the server's own error, or with an error of the relay.
        """
        if not self._record_failure(call, code, reason, response):
            return False
        call.state = CallState.RETRYING
        self.review_questions()
        assert self._tasks is not None
        self._tasks.start_soon(self._repeat, call)
        return True

    def server_died(self, process: ServerProcess, reason: str) -> None:
        """Repeat or give up every call that was with the server. A call that it has not read was no attempt."""
        self._declared = self._declared or None  # it may have died before it could list its tools
        for call in self._calls.with_server():
            if not process.received(call):
                call.attempt -= 1
                call.state = CallState.QUEUED
                self._server.enqueue(call)
            elif call.method in mcp.UNBOUNDED:
                call.attempt = 0  # it keeps the client's id, which later messages of the stream refer to
                call.state = CallState.QUEUED
                self._server.enqueue(call)
            elif call.tool is not None and self._declared is None and not self.may_repeat(call):
                call.state = CallState.UNDECIDED
                self.undecided.append((call, FAILED, f"the server died ({reason})"))
            elif self._record_failure(call, FAILED, f"the server died ({reason})"):
                call.state = CallState.QUEUED  # the pause before the restart is pause enough
                self._server.enqueue(call)
        self.review_questions()

    def server_ready(self) -> None:
        """List the tools of a new process if there are calls to decide about."""
        if self.undecided:
            self._list_tools(mcp.request_meta(mcp.load(self.undecided[0][0].line)))

    def _record_failure(self, call: Call, code: int, reason: str, response: bytes | None = None) -> bool:
        """Whether the call is to be repeated; if not, it has been given up."""
        call.failures.append(reason)
        if not self.may_repeat(call):
            reason = f"{reason}; it was not repeated, because it is not known to be idempotent"
        elif call.attempt > self._config.retries or self.clock.now_s() >= call.deadline_s:
            reason = f"{reason}, at the last of {call.attempt} attempts"
        else:
            return True
        self._give_up(call, code, reason, response)
        return False

    async def _repeat(self, call: Call) -> None:
        await anyio.sleep(backoff_s(self._config, call.attempt))
        if call.state is not CallState.DONE:
            self.send(call)

    def _give_up(self, call: Call, code: int, reason: str, response: bytes | None = None) -> None:
        if code == TIMED_OUT and call.state in WITH_SERVER and not self.may_repeat(call):
            assert self._server.process is not None
            self._server.process.unfinished.add(call.sent_keys[-1])
        self.end(call)
        if call.tool is not None:
            self._breaker.record_failure(call.tool, call.failures[-1])
        evidence = {"attempts": call.attempt, "failures": call.failures}
        self._journal.escalated(f"{call.label} of {self._server.name} failed: {reason}", evidence)
        if response is not None:
            self._client.send(response)
            return
        label = call.label[0].upper() + call.label[1:] if call.tool else f"The request {call.label}"
        text = f"{label} of the MCP server {self._server.name} failed: {reason}. {self._effect(call)}"
        self.refuse(call.client_id, code, text, evidence)

    def _effect(self, call: Call) -> str:
        """The known effect of a failed call, as text for a model."""
        if call.attempt == 0:
            return "This call was not sent."
        if call.method == "initialize":
            return "The server was ended."
        if self.may_repeat(call):
            return "This call may or may not have taken effect; it is safe to call it again."
        return "This call may or may not have taken effect. Check its effect before you call it again."

    def refuse(self, client_id: object, code: int, text: str, data: Mapping[str, Any]) -> None:
        """Answer a request of the client with an error of the relay."""
        data = {"by": "yolo-supervisor", "server": self._server.name, **data}
        self._client.send(mcp.error_response(client_id, code, text, data))

    def refuse_suspended(self, client_id: object, effect: str = "This call was not sent.") -> None:
        """Answer a request with the reason why there is no server for a while."""
        text = f"{self._server.suspension()}. {effect} Do something else until then, or continue without it."
        self.refuse(client_id, FAILED, text, {"circuit": "open"})

    def refuse_queued(self) -> None:
        """Refuse the calls that wait for a server that was suspended."""
        for call in self._server.queued_calls():
            if call.state is not CallState.DONE and call.method not in mcp.UNBOUNDED:
                self.end(call)
                self.refuse_suspended(call.client_id, self._effect(call))

    # -- time limits -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Repeat failed calls and end attempts at their deadlines, until cancelled."""
        async with anyio.create_task_group() as self._tasks:
            while True:
                if not self._calls:
                    self._active = anyio.Event()
                    await self._active.wait()
                slept_s = time.monotonic()
                await anyio.sleep(CHECK_S)
                slept_s = time.monotonic() - slept_s
                if slept_s > SUSPENDED_S:  # then the server could not work either, as far as is known
                    self.clock.skip(slept_s)
                now_s = self.clock.now_s()
                for call in self._calls:
                    if now_s >= min(call.attempt_deadline_s, call.deadline_s) and self._has_limit(call):
                        self._time_out(call, now_s)

    def _has_limit(self, call: Call) -> bool:
        if self.clock.held or call.method in mcp.UNBOUNDED:
            return False
        return call.state not in WITH_SERVER if call.method == "initialize" else call.bounded

    def _time_out(self, call: Call, now_s: float) -> None:
        if call.state not in WITH_SERVER:
            if now_s >= call.deadline_s:
                missing = "server was available" if call.state is CallState.QUEUED else "answer"
                reason = f"no {missing} within {self._config.cap_s:g} s"
                call.failures.append(reason)
                self._give_up(call, TIMED_OUT, reason)
            return
        if call.state is CallState.CANCELLING:
            return
        call.state = CallState.CANCELLING
        if self._server.state is ServerState.READY:
            self._server.send(mcp.cancellation(call.sent_id, f"no answer within {self.attempt_limit_s(call):g} s"))
        assert self._tasks is not None
        self._tasks.start_soon(self._clean_up, call, time.monotonic())

    async def _clean_up(self, call: Call, until_s: float) -> None:
        """End the processes that a timed-out attempt has started, then repeat the call or give it up."""
        process, limit_s, attempt = self._server.process, self.attempt_limit_s(call), call.attempt
        if process is not None and call.tool is not None and call.exclusive:
            await process.end_children(call.sent_s, until_s, GRACE_S)
        if call.state is not CallState.CANCELLING or call.attempt != attempt:
            return  # it was answered or cancelled meanwhile, or the server died
        self.attempt_failed(call, TIMED_OUT, f"no answer within {limit_s:g} s")
        if process is not None and process.stopped():
            await self._end_stopped(process)

    async def _end_stopped(self, process: ServerProcess) -> None:
        """End a process that a signal has stopped, if nothing is lost with it that may not be repeated."""
        await anyio.sleep(STOPPED_S)
        if process is not self._server.process or self._server.state is not ServerState.READY or not process.stopped():
            return
        name = self._server.name
        if process.failure:
            return
        if process.unfinished or self.unrepeatable_in_flight():
            reason = "it may be at work on a call that must not be repeated, so it is not restarted"
            warn(f"the MCP server {name} was stopped by a signal; {reason}: `kill -CONT {process.pid}` lets it go on")
            return
        process.failure = "it was stopped by a signal"
        self._server.state = ServerState.DRAINING
        await process.kill(GRACE_S)

    def limit_start(self, process: ServerProcess) -> None:
        """Limit the time until the process answers ``initialize``, which it is sent now."""
        process.initializing = True
        assert self._tasks is not None
        self._tasks.start_soon(self._limit_start, process)

    async def _limit_start(self, process: ServerProcess) -> None:
        name, limit_s = self._server.name, self._config.start_s
        passed_s, checked_s, slow = 0.0, time.monotonic(), False
        while process.initializing and process is self._server.process:
            await anyio.sleep(CHECK_S)
            now_s = time.monotonic()
            if not self._questions.hold_clocks and now_s - checked_s < SUSPENDED_S:
                passed_s += now_s - checked_s
            checked_s = now_s
            if passed_s >= limit_s:
                await self._give_up_start(process, f"it did not answer initialize within {limit_s:g} s")
                return
            if passed_s >= SLOW_START_S and not slow:
                slow = True
                silence = f"has not answered initialize for {passed_s:.0f} s"
                warn(f"the MCP server {name} starts slowly: it {silence} (it is ended after {limit_s:g} s)")
        if slow and process is self._server.process:
            warn(f"the MCP server {name} has started after {passed_s:.0f} s")

    async def _give_up_start(self, process: ServerProcess, reason: str) -> None:
        """End a process that does not start, and every call that was sent with the client's ``initialize``."""
        process.failure = reason
        self._server.state = ServerState.DRAINING  # what the client sends now is for the next process
        if self._initialize is not None:
            for call in self._calls:
                call.failures.append(reason)
                self._give_up(call, TIMED_OUT, reason)
        await process.kill(GRACE_S)
