"""The relay before an MCP server: it forwards every frame as it is, and tries again what may be repeated.

A call goes up under the client's own id; only a retry gets one of ours, so that its answer is known from a late one.
What comes from the server goes down unchanged, but for requests of a server that was started again, whose ids would be
mistaken for those of the server before.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio
import anyio.abc

from yolo_supervisor.config import McpConfig
from yolo_supervisor.formats import mcp
from yolo_supervisor.mcp.call_table import Call, Calls
from yolo_supervisor.mcp.circuit_breaker import WHOLE_SERVER, CircuitBreaker
from yolo_supervisor.mcp.server import Endless, Outlet, Upstream, lines
from yolo_supervisor.mcp.session_replay import Handshake
from yolo_supervisor.retry import pause_s

LOOK_S = 0.1
"""How often it is seen to whether a call has had its time."""

LEAVE_S, GRACE_S = 2.0, 2.0
"""How long the server may take to leave when nothing more comes, and how long when it is asked to."""

NEAR_S = 0.1
"""What is closer together cannot be told apart by when the kernel says that a process was started."""

PING_S = 5.0
RESTARTS_IN_S = 60.0
MOST_PAUSE_S = 30.0

FAILED, TIMED_OUT = -32000, -32001
"""The codes of our own errors: nothing was answered; nothing was answered in time."""


class Relay:
    """Stands between one client and one server until the client has gone."""

    def __init__(
        self,
        words: Sequence[str],
        name: str,
        config: McpConfig,
        breaker: CircuitBreaker,
        tell: Callable[[str, str, Any], None],
    ) -> None:
        self._words = words
        self._name = name
        self._config = config
        self._breaker = breaker
        self._tell = tell
        """Is told what was healed, or not: a verb of the journal, a sentence, evidence."""
        self._client = Outlet(1)
        self._upstream: Upstream | None = None
        self._ready = False
        """Whether the server may be sent what the client sends: it has been started, and knows what it has to."""
        self._generation = 1
        self._waiting: list[Call | bytes] = []
        """What is to be sent when it may be."""
        self._calls = Calls()
        self._own: dict[str, Callable[[Mapping[str, Any]], None]] = {}
        """Requests of our own, and what becomes of their answers."""
        self._asked: dict[str, object] = {}
        """Requests of the server that the client has not answered: the id that it knows, and the server's own."""
        self._numbers = 0
        self._handshake = Handshake()
        self._hints: dict[str, bool] | None = None
        self._undecided: list[tuple[Call, int, str]] = []
        """Calls that have failed before the server could tell whether they may be repeated: the next one tells."""
        self._starts: list[float] = []
        self._deaths = 0
        """In a row, without an answer in between."""
        self._away: tuple[float, str] | None = None
        """Until when there is no server, by the monotonic clock, and why; None if it comes back soon."""
        self._heard_s = 0.0
        self._ended_s = float("-inf")
        """When a call was answered, or given up, the last time."""
        self._busy = anyio.Event()
        self._eof = False
        self._tasks: anyio.abc.TaskGroup | None = None
        self.code = 0

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until the client has gone; the exit code. FileNotFoundError, PermissionError if there is no such server."""
        self._upstream = Upstream(self._words)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._client.run)
                tasks.start_soon(self._watch_time)
                tasks.start_soon(self._serve)
                async for line in lines(0):
                    self._from_client(line)
                    await self._room()
                self._eof = True
                await self._finish()
                tasks.cancel_scope.cancel()
        finally:  # also when we are asked to leave: nothing of the server stays behind
            with anyio.CancelScope(shield=True):
                if self._upstream is not None:
                    await self._upstream.end(0.0, GRACE_S)
            self._client.close()
        return self.code

    async def _room(self) -> None:
        if self._upstream is not None:
            await self._upstream.input.room()

    async def _finish(self) -> None:
        """The client sends no more. What it still waits for is answered, if it is still there to hear it."""
        while any(call.bounded for call in self._calls) and not self._gone():
            await anyio.sleep(LOOK_S)  # its input stays open meanwhile: what fails may have to be tried again
        while self._upstream is not None and self._waiting and not self._gone():
            await anyio.sleep(LOOK_S)
        if self._upstream is not None:
            with anyio.move_on_after(LEAVE_S):
                await self._upstream.input.empty()
            self._upstream.finish()
        while self._upstream is not None and self._calls and not self._gone():
            await anyio.sleep(LOOK_S)
        with anyio.move_on_after(LEAVE_S):
            while self._upstream is not None and not self._gone():
                await anyio.sleep(0.01)
        with anyio.move_on_after(LEAVE_S):
            await self._client.empty()

    def _gone(self) -> bool:
        """Whether nobody is there any more to read what we write."""
        if self._client.broken:
            return True
        poll = select.poll()
        poll.register(1, 0)
        return any(event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) for _, event in poll.poll(0))

    async def _serve(self) -> None:
        """Keep a server there, for as long as the client wants one."""
        assert self._tasks is not None
        while True:
            upstream = self._upstream
            assert upstream is not None
            self._begin()
            writer = anyio.CancelScope()
            why = "it ended"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, upstream, writer)
                try:
                    async for line in upstream.lines():
                        self._from_server(line)
                        await self._client.room()
                except Endless:
                    why = "it sent a line without an end"
                writer.cancel()
            self._ready = False
            code = await upstream.end(LEAVE_S if self._eof else 0.2, GRACE_S)
            self._upstream = None
            why = f"{why} with exit code {code}" if code is not None else why
            self._lost(why)
            if self._eof and all(call.method in mcp.ENDLESS for call in self._calls):
                self.code = code if code is not None and code >= 0 else 0
                return
            if not await self._restart(why):
                return

    async def _write(self, upstream: Upstream, scope: anyio.CancelScope) -> None:
        with scope:
            await upstream.input.run()
            if self._eof:
                return
            # it reads no more, so it can be asked nothing: it may finish what it is at, then another takes its place
            self._ready = False
            with anyio.move_on_after(LEAVE_S):
                while self._calls.up():
                    await anyio.sleep(LOOK_S)
            self._note(f"the MCP server {self._name} reads no more: it is started again")
            await upstream.condemn(GRACE_S)

    async def _restart(self, why: str) -> bool:
        """Begin another life of the server; False if there will be none."""
        self._deaths += 1
        self._note(f"the MCP server {self._name} has died: {why}")
        if not self._eof:
            self._breaker.record_failure(WHOLE_SERVER, why)
        now_s = time.monotonic()
        self._starts = [at_s for at_s in self._starts if now_s - at_s < RESTARTS_IN_S]
        pause = pause_s(self._config.backoff_s, self._deaths, MOST_PAUSE_S, random.random())
        off_s = self._breaker.remaining_s()
        if len(self._starts) >= self._config.restarts:
            off_s = max(off_s, RESTARTS_IN_S - (now_s - self._starts[0]))
        if off_s > 0:
            self._stay_away(now_s + off_s, why)
        await anyio.sleep(max(pause, off_s))
        self._away = None
        self._starts.append(time.monotonic())
        try:
            self._upstream = Upstream(self._words)
        except OSError as error:
            return await self._restart(f"it cannot be started: {error}")
        self._tell("recovered", f"{self._name} was started again after {why}", {"deaths": self._deaths})
        return True

    def _stay_away(self, until_s: float, why: str) -> None:
        """The server has died too often: nobody is left to wait for it."""
        self._away = until_s, f"the MCP server {self._name} has died {self._deaths} times in a row ({why})"
        for call in [each for each in self._waiting if isinstance(each, Call) and each.method not in mcp.ENDLESS]:
            self._drop(call)
            self._refuse_away(call.ident)

    def _refuse_away(self, ident: object) -> None:
        assert self._away is not None
        until_s, why = self._away
        then = f"it is started again in {max(0.0, until_s - time.monotonic()):.0f} s"
        words = f"{why}; {then}. Do something else until then, or go on without it."
        self._refuse(ident, FAILED, words, {"circuit": "open"})

    def _lost(self, why: str) -> None:
        """The server is gone with all that it was asked."""
        self._generation += 1
        self._own.clear()
        if not self._eof:
            for shown in self._asked:
                self._client.send(mcp.cancelled(_value(shown), "the server was started again"))
        self._asked.clear()
        self._hints = self._hints or None  # it may have died before it could say anything
        for call in self._calls.up():
            call.up = False
            if call.method in mcp.ENDLESS:
                call.attempt = 0  # under its own id, which the server names in all that belongs to it
                self._waiting.append(call)
            else:
                self._failed(call, FAILED, f"the server died ({why})", may_wait=True)

    # -- the beginning of a server's life ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Tell a server that was started again what the one before it knew."""
        hello = self._handshake.hello
        if self._generation == 1 or hello is None or any(call.method == "initialize" for call in self._calls):
            self._go()
        else:
            self._ask(mcp.with_value(hello, ("id",), self._number()), lambda _: self._remind())

    def _remind(self) -> None:
        assert self._upstream is not None
        for line in self._handshake.rest():
            if "id" in mcp.load(line):
                self._ask(mcp.with_value(line, ("id",), self._number()), lambda _: None)
            else:
                self._upstream.input.send(line)
        self._go()

    def _go(self) -> None:
        self._ready = True
        if self._undecided:
            self._ask_hints(mcp.manner(mcp.load(self._undecided[0][0].line)))
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if isinstance(each, bytes):
                self._send(each)
            elif not each.over:
                self._try(each)

    def _number(self) -> str:
        self._numbers += 1
        return f"yolo-supervisor-{os.getpid()}-{self._numbers}"

    def _ask(self, line: bytes, then: Callable[[Mapping[str, Any]], None]) -> None:
        """Ask the server something ourselves: the client never hears of it."""
        assert self._upstream is not None
        self._own[mcp.key(mcp.load(line)["id"])] = then
        self._upstream.input.send(line)

    def _send(self, line: bytes) -> None:
        if self._ready and self._upstream is not None:
            self._upstream.input.send(line)
        else:
            self._waiting.append(line)

    # -- from the client ---------------------------------------------------------------------------------------------

    def _from_client(self, line: bytes) -> None:
        line = _whole(line)
        try:
            message = mcp.load(line)
        except ValueError:
            message = None
        if not isinstance(message, dict) or "id" not in message or message["id"] is None:
            if isinstance(message, dict) and message.get("method") == "notifications/cancelled":
                self._cancel(line, message)
                return
            if isinstance(message, dict) and message.get("method") == "notifications/initialized":
                self._handshake.greeted = line
            self._send(line)
        elif isinstance(message.get("method"), str):
            self._request(line, message)
        else:
            self._answer(line, message)

    def _request(self, line: bytes, message: Mapping[str, Any]) -> None:
        method = message["method"]
        if method == "initialize":
            self._handshake.hello = line
        tool = mcp.tool_of(message)
        if (twin := self._calls.of(message["id"])) is not None:  # nobody can tell their answers apart: left alone
            self._drop(twin)
            self._send(line)
            return
        if self._away is not None and method not in mcp.ENDLESS:
            self._refuse_away(message["id"])
            return
        if tool is not None and (why := self._breaker.refusal(tool)) is not None:
            self._refuse(message["id"], FAILED, why, {"circuit": "open"})
            return
        token = mcp.progress_token(message)
        call = Call(message["id"], method, line, tool, token, time.monotonic() + self._config.cap_s)
        self._calls.add(call)
        self._busy.set()
        if tool is not None and self._hints is None and self._ready:
            self._ask_hints(mcp.manner(message))
        self._try(call)

    def _ask_hints(self, manner: Mapping[str, Any], cursor: str | None = None) -> None:
        """Which tools may be called twice, as the server says itself."""
        known = self._hints = self._hints or {}

        def learn(message: Mapping[str, Any]) -> None:
            found, more = mcp.hints(message.get("result"))
            known.update(found)
            self._limit_anew()
            if more is not None and self._hints is known and len(known) < 10_000:
                self._ask_hints(manner, more)
                return
            undecided, self._undecided = self._undecided, []
            for call, code, why in undecided:
                if not call.over:
                    self._failed(call, code, why)

        params = {**manner, **({"cursor": cursor} if cursor else {})}
        self._ask(mcp.request(self._number(), "tools/list", params), learn)

    def _limit_anew(self) -> None:
        """A call was quicker than the news that it may be repeated: it need not wait for its cap."""
        for call in self._calls:
            if call.up and call.limit_s == call.cap_s:
                call.limit_s = min(call.cap_s, call.sent_s + self._patience_s(call))

    def _cancel(self, line: bytes, message: Mapping[str, Any]) -> None:
        wanted = mcp.params(message).get("requestId")
        call = self._calls.of(wanted)
        if call is None:
            self._send(line)
            return
        if call.up:
            same = call.sent_as == call.ident
            self._send(line if same else mcp.with_value(line, ("params", "requestId"), call.sent_as))
        self._breaker.release_probe(call.tool or WHOLE_SERVER)
        self._drop(call)

    def _answer(self, line: bytes, message: Mapping[str, Any]) -> None:
        """An answer to something that the server has asked."""
        ident = mcp.key(message["id"])
        if ident not in self._asked:
            if self._generation == 1:
                self._send(line)  # it is not ours to judge
            return  # else it is to a server that is no more
        own = self._asked.pop(ident)
        self._send(line if mcp.key(own) == ident else mcp.with_value(line, ("id",), own))

    # -- an attempt --------------------------------------------------------------------------------------------------

    def _try(self, call: Call) -> None:
        if not self._ready or self._upstream is None:
            if call not in self._waiting:
                self._waiting.append(call)
            return
        call.attempt += 1
        call.up, call.cancelled, call.sent_s = True, False, time.monotonic()
        if call.tool is not None:
            others = [each for each in self._calls if each.up and each.tool is not None and each is not call]
            call.alone = not others and call.sent_s - self._ended_s > NEAR_S
            for each in others:
                each.alone = False
        call.limit_s = min(call.cap_s, time.monotonic() + self._patience_s(call))
        self._calls.sent(call, call.ident if call.attempt == 1 else self._number())
        again = call.attempt > 1
        self._upstream.input.send(mcp.with_value(call.line, ("id",), call.sent_as) if again else call.line)

    def _patience_s(self, call: Call) -> float:
        """How long an attempt may take. What must not be repeated has all the time there is."""
        if call.method in mcp.REPEATABLE or (call.tool is not None and self._repeatable(call)):
            return self._config.attempt_s if call.attempt == 1 else self._config.retry_s
        return self._config.cap_s if call.tool is not None else float("inf")

    def _repeatable(self, call: Call) -> bool:
        """Whether the call may be made twice: configuration, the server's own word, else no."""
        if call.tool is None:
            return call.method in mcp.REPEATABLE
        if call.tool in self._config.unrepeatable:
            return False
        return call.tool in self._config.repeatable or (self._hints or {}).get(call.tool, False)

    def _failed(self, call: Call, code: int, why: str, may_wait: bool = False, answer: bytes | None = None) -> None:
        """An attempt has failed: try again if that is safe, else tell the client."""
        call.up = False
        if may_wait and call.tool is not None and self._hints is None and not self._repeatable(call):
            self._undecided.append((call, code, why))
            return
        call.troubles.append(why)
        if not self._repeatable(call):
            why = f"{why}; it is not known to be safe to repeat, so it was not repeated"
            self._give_up(call, code, f"{why}: find out what became of it before you call it again", answer)
        elif call.attempt > self._config.retries or time.monotonic() >= call.cap_s:
            self._give_up(call, code, f"{why}, as the last of {call.attempt} attempts", answer)
        elif may_wait and not self._ready:
            self._waiting.append(call)  # the pause is that before the server is started again
        else:
            assert self._tasks is not None
            self._tasks.start_soon(self._again, call)

    async def _again(self, call: Call) -> None:
        await anyio.sleep(pause_s(self._config.backoff_s, call.attempt, MOST_PAUSE_S, random.random()))
        if not call.over:
            self._try(call)

    def _give_up(self, call: Call, code: int, why: str, answer: bytes | None) -> None:
        self._drop(call)
        if call.tool is not None:
            self._breaker.record_failure(call.tool, call.troubles[-1])
        evidence = {"attempts": call.attempt, "troubles": call.troubles}
        self._tell("escalated", f"{call.what} of {self._name} failed: {why}", evidence)
        if answer is not None:
            self._client.send(answer)
        else:
            self._refuse(call.ident, code, f"{call.what} of the MCP server {self._name} failed: {why}.", evidence)

    def _refuse(self, ident: object, code: int, why: str, data: Mapping[str, Any]) -> None:
        self._client.send(mcp.error(ident, code, why, {"by": "yolo-supervisor", "server": self._name, **data}))

    def _drop(self, call: Call) -> None:
        """It is no longer waited for."""
        self._ended_s = time.monotonic()
        call.over = True
        call.up = False
        self._calls.remove(call)

    # -- from the server ---------------------------------------------------------------------------------------------

    def _from_server(self, line: bytes) -> None:
        self._heard_s = time.monotonic()
        if len(line) > mcp.LARGE and (ident := mcp.answered(line)) is not None:
            call = self._calls.answered_by(ident)
            if call is not None and call.sent_as == call.ident and call.method != "tools/list":
                self._done(call, line, None)  # it can go down without anybody having read it
                return
        try:
            message = mcp.load(line)
        except ValueError:
            if line.strip():
                self._chatter(line)
            return
        line = _whole(line)
        if not isinstance(message, dict):
            self._batch(line, message)
        elif "method" not in message and "id" in message:
            self._reply(line, message)
        elif message.get("id") is not None:
            self._asks(line, message)
        else:
            self._tells(line, message)

    def _batch(self, line: bytes, messages: object) -> None:
        """Of several messages in one line none is changed; those that were waited for have come."""
        if isinstance(messages, list):
            for each in messages:
                if isinstance(each, dict) and (call := self._calls.answered_by(mcp.key(each.get("id")))) is not None:
                    self._drop(call)
            self._client.send(line)
        else:
            self._chatter(line)

    def _chatter(self, line: bytes) -> None:
        self._note(f"{self._name} wrote something that is no message: {line[:200]!r}")

    def _reply(self, line: bytes, message: Mapping[str, Any]) -> None:
        ident = mcp.key(message["id"])
        if (then := self._own.pop(ident, None)) is not None:
            then(message)
            return
        call = self._calls.answered_by(ident)
        if call is None:
            if not ident.startswith('"yolo-supervisor-'):  # else it is a late answer, to an attempt given up
                self._client.send(line)
            return
        error = message.get("error")
        if error is not None and (call.cancelled or ident != mcp.key(call.sent_as)):
            return  # of an attempt that was given up: another is on its way
        code = error.get("code") if isinstance(error, dict) else None
        if code in mcp.TRANSIENT:
            told = error.get("message") if isinstance(error, dict) else None
            self._calls.unsend(ident)
            own = mcp.with_value(line, ("id",), call.ident) if message["id"] != call.ident else line
            self._failed(call, int(code or 0), f"it answered {told!s:.200} ({code})", answer=own)
            return
        self._done(call, line, message)

    def _done(self, call: Call, line: bytes, message: Mapping[str, Any] | None) -> None:
        """An answer has come, whatever it is."""
        if message is not None and mcp.key(message["id"]) != mcp.key(call.ident):
            line = mcp.with_value(line, ("id",), call.ident)
        self._client.send(line)
        if call.up and message is not None and mcp.key(message["id"]) != mcp.key(call.sent_as):
            self._send(mcp.cancelled(call.sent_as, "an earlier attempt was answered after all"))
        self._drop(call)
        self._deaths = 0
        self._breaker.record_success(call.tool or WHOLE_SERVER)
        if message is not None and "result" in message:
            self._learn(call, message)
        if call.troubles:
            how = (
                f"{call.what} of {self._name} was answered at attempt {call.attempt}, after: {'; '.join(call.troubles)}"
            )
            self._tell("recovered", how, {"attempts": call.attempt})

    def _learn(self, call: Call, message: Mapping[str, Any]) -> None:
        """What the server will have to be told again, and which of its tools may be called twice."""
        if call.method == "tools/list":
            found, _ = mcp.hints(message["result"])
            self._hints = {**(self._hints or {}), **found}
            self._limit_anew()
        else:
            self._handshake.learn(call.method, call.line)

    def _asks(self, line: bytes, message: Mapping[str, Any]) -> None:
        """A request of the server: the client must not take it for one of the server before."""
        own = message["id"]
        shown = self._shown(own)
        self._asked[mcp.key(shown)] = own
        self._client.send(line if shown is own else mcp.with_value(line, ("id",), shown))

    def _shown(self, own: object) -> object:
        """The id by which the client knows a request of the server."""
        return own if self._generation == 1 else f"{self._generation}:{mcp.key(own)}"

    def _tells(self, line: bytes, message: Mapping[str, Any]) -> None:
        method, params = message.get("method"), mcp.params(message)
        if method == "notifications/progress":
            call = self._calls.reporting(params.get("progressToken"))
            progress = params.get("progress")
            if call is not None and isinstance(progress, int | float):
                call.limit_s = min(call.cap_s, time.monotonic() + self._patience_s(call))
                if call.attempt > 1 and progress <= call.progress:
                    return  # it begins anew, and progress only ever grows
                call.progress = max(call.progress, progress)
        elif method == "notifications/tools/list_changed":
            self._hints = None
        elif method == "notifications/cancelled" and "requestId" in params:
            shown = self._shown(params["requestId"])
            self._asked.pop(mcp.key(shown), None)
            if shown != params["requestId"]:
                line = mcp.with_value(line, ("params", "requestId"), shown)
        self._client.send(line)

    # -- time --------------------------------------------------------------------------------------------------------

    async def _watch_time(self) -> None:
        """End the attempts that have had their time."""
        while True:
            if not self._calls:
                self._busy = anyio.Event()
                await self._busy.wait()
            await anyio.sleep(LOOK_S)
            now_s = time.monotonic()
            for call in [call for call in self._calls if now_s >= min(call.limit_s, call.cap_s)]:
                if call.method in mcp.ENDLESS or (call.tool is None and not self._repeatable(call)):
                    continue
                self._timed_out(call, now_s)

    def _timed_out(self, call: Call, now_s: float) -> None:
        if not call.up:
            if now_s >= call.cap_s:  # it waits for a server that does not come
                call.troubles.append("the server was not there in time")
                self._give_up(call, TIMED_OUT, "the server was not there in time", None)
            return
        if call.cancelled:
            return
        call.cancelled = True
        if self._ready:
            self._send(mcp.cancelled(call.sent_as, f"no answer within {self._patience_s(call):g} s"))
        assert self._tasks is not None
        self._tasks.start_soon(self._tidy, call, now_s)

    async def _tidy(self, call: Call, now_s: float) -> None:
        """End what an attempt that has had its time has left running, before it is tried again."""
        upstream, limit_s, attempt = self._upstream, self._patience_s(call), call.attempt
        if upstream is not None and call.tool is not None and call.alone:
            await upstream.end_children(call.sent_s, now_s, GRACE_S)
        if call.up and call.attempt == attempt:  # else it has been answered, or cancelled, or the server has died
            self._failed(call, TIMED_OUT, f"no answer within {limit_s:g} s")
            if call.over and self._heard_s < call.sent_s:
                await self._suspect(call.sent_s)

    async def _suspect(self, since_s: float) -> None:
        """A server that has said nothing since then, nor answers when it is only asked whether it is there, hangs."""
        generation = self._generation
        if not self._ready or self._calls.up():
            return
        self._ask(mcp.request(self._number(), "ping"), lambda _: None)
        await anyio.sleep(PING_S)
        upstream = self._upstream
        busy = bool(self._calls.up())
        if upstream is None or busy or self._generation != generation or self._heard_s >= since_s:
            return
        self._note(f"the MCP server {self._name} hangs: it is started again")
        await upstream.condemn(GRACE_S)

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError, AttributeError):  # nobody reads it, or there is none
            sys.stderr.write(f"yolo-supervisor: {text}\n")


def _value(key: str) -> object:
    found: object = mcp.load(key.encode())
    return found


def _whole(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"
