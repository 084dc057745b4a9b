"""Deaths of agents as the supervisor finds them, each with what a person would say it died of.

``BLIND`` was written before there were any rules, from the client's own files and from what such deaths are known to
look like; ``OTHERS`` afterwards, about the rules' edges; ``TALK`` is about agents that only spoke or
read of such things.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def _at(ago_s: float) -> str:
    return (NOW - timedelta(seconds=ago_s)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(ago_s: float, kind: str, **more: Any) -> str:
    told = {"parentUuid": None, "isSidechain": False, "type": kind, "timestamp": _at(ago_s), "userType": "external",
            "entrypoint": "cli", "cwd": "/home/me/shop", "version": "2.1.197", "gitBranch": "main",
            "teamName": "red", "agentName": "dev-1"}  # fmt: skip
    return json.dumps({**told, **more})


def asked(text: str, ago_s: float = 60) -> str:
    return _line(ago_s, "user", message={"role": "user", "content": text})


def said(text: str, ago_s: float = 30, stop: str | None = "end_turn") -> str:
    content = [{"type": "text", "text": text}]
    return _line(ago_s, "assistant", message={"role": "assistant", "content": content, "stop_reason": stop})


def used(tool: str, ago_s: float = 5, ident: str = "toolu_1", **given: Any) -> str:
    content = [{"type": "tool_use", "id": ident, "name": tool, "input": given}]
    return _line(ago_s, "assistant", message={"role": "assistant", "content": content, "stop_reason": "tool_use"})


def got(text: str, ago_s: float = 4, ident: str = "toolu_1", **more: Any) -> str:
    content = [{"tool_use_id": ident, "type": "tool_result", "content": text, **more}]
    return _line(ago_s, "user", message={"role": "user", "content": content})


def failed(text: str, error: str, status: int | None = None, ago_s: float = 5, **more: Any) -> str:
    """An error of the API as the client writes it once it has given up."""
    message = {"role": "assistant", "model": "<synthetic>", "stop_reason": "stop_sequence",
               "content": [{"type": "text", "text": text}]}  # fmt: skip
    told = {"error": error, "isApiErrorMessage": True, "apiErrorStatus": status, **more}
    return _line(ago_s, "assistant", message=message, **told)


def retried(status: int, attempt: int, ago_s: float = 5, retry_s: float = 8) -> str:
    """A try that failed and is repeated, as some versions of the client write it."""
    more = {"error": {"status": status}, "retryInMs": retry_s * 1000, "retryAttempt": attempt, "maxRetries": 10}
    return _line(ago_s, "system", subtype="api_error", level="error", **more)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    cause: str
    status: int | None = None
    signal: int | None = None
    oom: str | None = None
    pane: str = ""
    transcript: tuple[str, ...] = ()
    hooks: tuple[tuple[str, dict[str, Any]], ...] = ()
    """The notes of hooks about its process, the oldest first."""
    cut: bool = False
    """Whether the transcript's last line is torn."""


PROMPT = """● Bash(rm -rf build)
  ⎿  Waiting…
────────────────────────────────────────
 Bash command
   rm -rf build
 Do you want to proceed?
 ❯ 1. Yes
   2. Yes, and always allow access to project/ from this project
   3. No
 Esc to cancel · Tab to amend · ctrl+e to explain"""

RETRYING = """❯ fix the bug
✻ API error · Retrying in 8s · attempt 5/10
────────────────────────────────────────
❯
────────────────────────────────────────
  ⏵⏵ bypass permissions on (shift+tab to cycle) · esc to interrupt"""

V8_HEAP = """<--- Last few GCs --->
[4711:0x5e] 91234 ms: Mark-Compact 4043.1 (4130.2) -> 4041.9 (4131.0) MB, 1800.2 / 0.0 ms
<--- JS stacktrace --->
FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory
 1: 0xb9c310 node::Abort() [node]
 2: 0xaa27ee  [node]
Aborted (core dumped)"""

BUN_CRASH = """============================================================
Bun v1.3.0 (b0a6feca) Linux x64 (baseline)
panic(main thread): Segmentation fault at address 0x18
oh no: Bun has crashed. This indicates a bug in Bun, not your code."""

WORK = (asked("fix the bug"), used("Bash", 20, command="make test"), got("ok", 15))

BLIND = [
    Case(name="the kernel killed it for memory", cause="oom", signal=signal.SIGKILL,
         oom="the kernel log: Out of memory: Killed process 4711 (claude)", transcript=WORK),
    Case(name="V8 ran out of heap", cause="oom", signal=signal.SIGABRT, pane=V8_HEAP, transcript=WORK),
    Case(name="V8 ran out of heap under a shell", cause="oom", status=134, pane=V8_HEAP),
    Case(name="its container ran out of memory in the middle of a tool", cause="oom", signal=signal.SIGKILL,
         oom="its cgroup counts 1 OOM kill more", transcript=(asked("build"), used("Bash", 90, command="make -j64"))),
    Case(name="a segmentation fault", cause="signal", signal=signal.SIGSEGV, transcript=WORK),
    Case(name="Bun panicked", cause="signal", signal=signal.SIGILL, pane=BUN_CRASH),
    Case(name="killed with SIGKILL while it worked", cause="signal", signal=signal.SIGKILL,
         transcript=(asked("fix"), used("Bash", 2, command="make test"))),
    Case(name="its terminal was closed", cause="signal", signal=signal.SIGHUP, transcript=(*WORK, said("ok"))),
    Case(name="a shell tells of a kill", cause="signal", status=137),
    Case(name="the server was overloaded", cause="api_error", status=1, transcript=(asked("fix"), failed(
        "API Error: 529 Overloaded. This is a server-side issue, usually temporary", "server_error", 529))),
    Case(name="the server broke", cause="api_error", status=1, transcript=(
        asked("fix"), failed("API Error: 500 Internal server error.", "server_error", 500))),
    Case(name="the key was wrong", cause="api_error", status=1, transcript=(
        asked("fix"), failed("Invalid API key · Fix external API key", "authentication_failed", 401))),
    Case(name="the API did not understand", cause="api_error", status=1, transcript=(asked("fix"), failed(
        "API Error: 400 messages.1: tool_use ids were found without tool_result blocks", "unknown", 400))),
    Case(name="rate limited", cause="rate_limited", status=1, transcript=(asked("fix"), failed(
        "API Error: Request rejected (429) · This request would exceed your account's rate limit.",
        "rate_limit", 429))),
    Case(name="the subscription's hours were used up", cause="rate_limited", status=1, transcript=(
        asked("fix"), failed("You've hit your session limit · resets 3pm (Europe/Berlin)", "rate_limit", 429))),
    Case(name="an old client's words for it", cause="rate_limited", status=1, transcript=(
        asked("fix"), failed("Claude AI usage limit reached|1795446000", "unknown"))),
    Case(name="no credit left", cause="rate_limited", status=1, transcript=(
        asked("fix"), failed("Credit balance is too low", "billing_error", 400))),
    Case(name="rate limited, and then killed by somebody", cause="rate_limited", signal=signal.SIGKILL,
         transcript=(asked("fix"), failed("API Error: Request rejected (429)", "rate_limit", 429))),
    Case(name="the prompt was too long", cause="context_overflow", status=1, transcript=(asked("fix"), failed(
        "Prompt is too long · the request is ~210000 tokens (limit 200000)", "invalid_request", 400,
        errorDetails="400 prompt is too long: 210000 tokens > 200000 maximum"))),
    Case(name="the window was full in the middle of an answer", cause="context_overflow", status=1, transcript=(
        asked("fix"), said("so I", stop="model_context_window_exceeded"))),
    Case(name="killed after a tool had hung for an hour", cause="tool_hang", signal=signal.SIGKILL,
         transcript=(asked("fix"), used("Bash", 3600, command="npm start"))),
    Case(name="asked to leave while a fetch hung", cause="tool_hang", signal=signal.SIGTERM,
         transcript=(asked("fix"), used("WebFetch", 1200, url="http://example.org"))),
    Case(name="killed while it asked for permission", cause="permission_wait", signal=signal.SIGKILL, pane=PROMPT,
         transcript=(asked("fix"), used("Bash", 30, command="rm -rf build"))),
    Case(name="a hook told that it asked for permission", cause="permission_wait", signal=signal.SIGTERM, hooks=(
        ("PreToolUse", {"tool_name": "Bash"}), ("Notification", {"notification_type": "permission_prompt"}))),
    Case(name="it ended in good order", cause="clean_exit", status=0, transcript=(*WORK, said("all is done"))),
    Case(name="somebody typed /exit", cause="clean_exit", status=0, hooks=(
        ("SessionEnd", {"reason": "prompt_input_exit"}),)),
    Case(name="nothing is known", cause="unknown"),
    Case(name="it ended with an error that nobody wrote down", cause="unknown", status=1, transcript=WORK),
    Case(name="an agent that works on memory errors ended well", cause="clean_exit", status=0,
         pane="FATAL ERROR: JavaScript heap out of memory\n● fixed the test for that\n❯ ",
         transcript=(asked("fix the OOM"), said("fixed"))),
    Case(name="an agent that works on rate limits was killed", cause="signal", signal=signal.SIGKILL,
         transcript=(asked("handle 429 rate_limit errors, usage limit reached"), used("Bash", 3, command="grep 429"),
                     got("API Error: Request rejected (429)", 1))),
    Case(name="it had got over a rate limit", cause="signal", signal=signal.SIGSEGV, transcript=(
        asked("fix"), failed("API Error: Request rejected (429)", "rate_limit", 429, 900), asked("go on", 100), *WORK)),
]  # fmt: skip
OTHERS = [
    Case(name="Python ran out of memory", cause="oom", status=1,
         pane="Traceback (most recent call last):\n  File \"a.py\", line 1\nMemoryError"),
    Case(name="C++ ran out of memory", cause="oom", signal=signal.SIGABRT,
         pane="terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc"),
    Case(name="Go ran out of memory", cause="oom", status=2, pane="fatal error: runtime: out of memory"),
    Case(name="Bun ran out of memory", cause="oom", signal=signal.SIGILL,
         pane="panic(main thread): out of memory\noh no: Bun has crashed."),
    Case(name="the kernel killed it while it was rate limited", cause="oom", signal=signal.SIGKILL,
         oom="the kernel log: Killed process 4711", transcript=(failed("Request rejected (429)", "rate_limit", 429),)),
    Case(name="asked to leave while its screen talked of memory", cause="signal", signal=signal.SIGTERM,
         pane="MemoryError\n● that was the test's, fixed\n❯"),
    Case(name="a bus error", cause="signal", signal=signal.SIGBUS),
    Case(name="aborted", cause="signal", signal=signal.SIGABRT, transcript=WORK),
    Case(name="too much processor time", cause="signal", signal=signal.SIGXCPU),
    Case(name="a person pressed Ctrl-C", cause="signal", signal=signal.SIGINT),
    Case(name="a shell tells of a segmentation fault", cause="signal", status=139),
    Case(name="a shell tells of SIGTERM", cause="signal", status=143),
    Case(name="a signal without a name", cause="signal", signal=40),
    Case(name="killed between two tools", cause="signal", signal=signal.SIGKILL,
         transcript=(used("Read", 500), got("text", 400), said("let me think", 300, "tool_use"))),
    Case(name="killed two hours after its last tool had answered", cause="signal", signal=signal.SIGKILL,
         transcript=(used("Bash", 7300), got("ok", 7200), said("done", 7190))),
    Case(name="killed while a tool was young", cause="signal", signal=signal.SIGKILL,
         transcript=(used("Bash", 119, command="make"),)),
    Case(name="it broke while it asked for permission", cause="signal", signal=signal.SIGSEGV, pane=PROMPT),
    Case(name="it broke after an error of the API", cause="signal", signal=signal.SIGSEGV,
         transcript=(failed("API Error: 500", "server_error", 500),)),
    Case(name="killed while it tried again", cause="api_error", signal=signal.SIGKILL, pane=RETRYING,
         transcript=(asked("fix"),)),
    Case(name="a bad gateway", cause="api_error", status=1,
         transcript=(failed("API Error: 502 Bad Gateway", "server_error", 502),)),
    Case(name="no connection", cause="api_error", status=1,
         transcript=(failed("API Error: Connection error.", "unknown"),)),
    Case(name="the model is not there", cause="api_error", status=1,
         transcript=(failed("There's an issue with the selected model", "invalid_request", 404),)),
    Case(name="an error that only speaks of quotas", cause="api_error", status=1,
         transcript=(failed("API Error: 500 the quota service is down", "server_error", 500),)),
    Case(name="an older client's tries at an overloaded server", cause="api_error", signal=signal.SIGKILL,
         transcript=(asked("fix"), retried(529, 4))),
    Case(name="a hook told of an overloaded server", cause="api_error", status=1,
         hooks=(("StopFailure", {"error": "overloaded"}),)),
    Case(name="a hook told that nobody was logged in", cause="api_error", status=1,
         hooks=(("StopFailure", {"error": "authentication_failed"}),)),
    Case(name="the last line is torn, the one before it is an error", cause="api_error", status=1, cut=True,
         transcript=(failed("API Error: 500", "server_error", 500), said("and so"))),
    Case(name="an older client's tries at a rate limit", cause="rate_limited", signal=signal.SIGKILL,
         transcript=(asked("fix"), retried(429, 3))),
    Case(name="a hook told of the rate", cause="rate_limited", status=1,
         hooks=(("StopFailure", {"error": "rate_limit"}),)),
    Case(name="a hook told of the bill", cause="rate_limited", signal=signal.SIGHUP,
         hooks=(("StopFailure", {"error": "billing_error"}),)),
    Case(name="the week's limit", cause="rate_limited", status=1,
         transcript=(failed("You've hit your weekly limit · resets Nov 27, 3pm", "rate_limit", 429),)),
    Case(name="the month's spending", cause="rate_limited", status=1,
         transcript=(failed("You've hit your monthly spend limit.", "unknown", 400),)),
    Case(name="its terminal was closed while it was out of quota", cause="rate_limited", signal=signal.SIGHUP,
         transcript=(failed("Request rejected (429)", "rate_limit", 429),)),
    Case(name="too many tokens a minute", cause="rate_limited", status=1, transcript=(failed(
        "API Error: Request rejected (429) · exceeds your context window tokens per minute", "rate_limit", 429),)),
    Case(name="the input is too long for the model", cause="context_overflow", status=1, transcript=(failed(
        "API Error: 400 input length and `max_tokens` exceed context limit: 199999 + 21333 > 200000",
        "invalid_request", 400),)),
    Case(name="the conversation cannot be compacted", cause="context_overflow", status=1,
         transcript=(failed("Conversation too long. Press esc twice to go up", "unknown"),)),
    Case(name="the request is too large", cause="context_overflow", status=1,
         transcript=(failed("API Error: 413 request_too_large", "invalid_request", 413),)),
    Case(name="closed after its prompt was too long", cause="context_overflow", signal=signal.SIGHUP,
         transcript=(failed("Prompt is too long", "invalid_request", 400),)),
    Case(name="an MCP call that never answers", cause="tool_hang", signal=signal.SIGTERM,
         transcript=(used("mcp__db__query", 900, sql="select 1"),)),
    Case(name="the second of two tools hung", cause="tool_hang", signal=signal.SIGKILL,
         transcript=(used("Read", 800, "a"), got("x", 799, "a"), used("Bash", 700, "b", command="tail -f log"))),
    Case(name="nobody saw how it ended, and its tool had hung", cause="tool_hang",
         transcript=(used("Bash", 2000, command="npm start"),)),
    Case(name="asked to leave while it asked for an edit", cause="permission_wait", signal=signal.SIGTERM,
         pane="Do you want to make this edit to a.py?\n❯ 1. Yes\n  2. No", transcript=(used("Edit", 700),)),
    Case(name="its terminal was closed while it asked", cause="permission_wait", signal=signal.SIGHUP, pane=PROMPT),
    Case(name="a hook told that it needs a person", cause="permission_wait", signal=signal.SIGKILL,
         hooks=(("Notification", {"notification_type": "agent_needs_input"}),)),
    Case(name="it had got its permission", cause="signal", signal=signal.SIGKILL, hooks=(
        ("Notification", {"notification_type": "permission_prompt"}), ("PostToolUse", {"tool_name": "Bash"}))),
    Case(name="it only quoted a question", cause="signal", signal=signal.SIGKILL,
         pane="● The dialog says: Do you want to proceed?\n" + "line\n" * 20),
    Case(name="it was logged out", cause="clean_exit", hooks=(("SessionEnd", {"reason": "logout"}),)),
    Case(name="it ended well after an error that it got over", cause="clean_exit", status=0, transcript=(
        failed("API Error: 529", "server_error", 529, 500), asked("again", 400), said("done"))),
    Case(name="it ended well with an error on its mind", cause="clean_exit", status=0,
         transcript=(failed("API Error: 529 Overloaded", "server_error", 529),)),
    Case(name="closed with a question on its screen", cause="clean_exit", status=0, pane=PROMPT),
    Case(name="a status and an old question far up", cause="unknown", status=2, pane=PROMPT + "\nx" * 20),
    Case(name="an empty transcript", cause="unknown", status=1, transcript=("",)),
    Case(name="a transcript that is none", cause="unknown", transcript=("\0\1", "[1, 2]", '{"type": 7}')),
]  # fmt: skip
TALK = [
    Case(name="a person pressed Ctrl-C while it talked of memory", cause="signal", status=130,
         pane="● I grepped: Cannot allocate memory in the log\n> "),
    Case(name="it had read a page about memory", cause="unknown", status=1,
         pane="  12 errno 12 = Cannot allocate memory (documentation)\nError: not logged in"),
    Case(name="it had shown a numbered file about memory", cause="unknown", status=1,
         pane="  ⎿  std::bad_alloc\n     std::bad_alloc\n 12→MemoryError\nError: not logged in"),
    Case(name="killed while a chapter on memory was on its screen", cause="signal", signal=signal.SIGKILL,
         pane="Out of memory errors are described in chapter 3"),
    Case(name="a test that it ran was short of memory, and it lived on", cause="unknown", status=1,
         pane="MemoryError\n────────────────\n❯\n────────────────\n  ⏵⏵ bypass permissions on"),
    Case(name="interrupted with memory on its screen", cause="signal", signal=signal.SIGINT,
         pane="std::bad_alloc may be thrown"),
    Case(name="a shell under which V8 ran out of heap asks for more", cause="oom", status=134, pane=V8_HEAP + "\n❯ "),
    Case(name="it only quoted a question and its answers", cause="signal", signal=signal.SIGKILL,
         pane="● The README says: 'Do you want to proceed?'\n  1. Yes, definitely check the code\n● ok\n> "),
    Case(name="it had read a page with a question", cause="signal", signal=signal.SIGKILL,
         pane="  ⎿  # Dialogs\n     Do you want to proceed?\n     ❯ 1. Yes\n       2. No"),
    Case(name="it had written a question down", cause="signal", signal=signal.SIGKILL,
         pane="Do you want to proceed?\n1. Yes\n2. No"),
    Case(name="it had mended how errors of the API are told", cause="signal", signal=signal.SIGKILL,
         pane="● I fixed the message 'API Error: ' in client.py"),
    Case(name="it broke after it had mended how errors of the API are told", cause="unknown", status=1,
         pane="● I fixed the message 'API Error: ' in client.py\nSegmentation fault"),
    Case(name="its screen says that it gave up", cause="api_error", status=1,
         pane="  ⎿  API Error: 529 Overloaded\n❯ "),
]  # fmt: skip
