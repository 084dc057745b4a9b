"""Deaths of agents with the evidence that the supervisor collects, and the cause that a person would name.

``BLIND`` was written before the rules, from files of the client and known forms of such deaths; ``OTHERS`` later, at
the edges of the rules; ``TALK`` has agents whose screens only mention a failure.
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
    fields = {"parentUuid": None, "isSidechain": False, "type": kind, "timestamp": _at(ago_s), "userType": "external",
            "entrypoint": "cli", "cwd": "/home/me/shop", "version": "2.1.197", "gitBranch": "main",
            "teamName": "red", "agentName": "dev-1"}  # fmt: skip
    return json.dumps({**fields, **more})


def asked(text: str, ago_s: float = 60) -> str:
    return _line(ago_s, "user", message={"role": "user", "content": text})


def said(text: str, ago_s: float = 30, stop: str | None = "end_turn") -> str:
    content = [{"type": "text", "text": text}]
    return _line(ago_s, "assistant", message={"role": "assistant", "content": content, "stop_reason": stop})


def used(tool: str, ago_s: float = 5, ident: str = "toolu_1", **tool_input: Any) -> str:
    content = [{"type": "tool_use", "id": ident, "name": tool, "input": tool_input}]
    return _line(ago_s, "assistant", message={"role": "assistant", "content": content, "stop_reason": "tool_use"})


def got(text: str, ago_s: float = 4, ident: str = "toolu_1", **more: Any) -> str:
    content = [{"tool_use_id": ident, "type": "tool_result", "content": text, **more}]
    return _line(ago_s, "user", message={"role": "user", "content": content})


def failed(text: str, error: str, status: int | None = None, ago_s: float = 5, **more: Any) -> str:
    """An API error as the client writes it when it gives up."""
    message = {"role": "assistant", "model": "<synthetic>", "stop_reason": "stop_sequence",
               "content": [{"type": "text", "text": text}]}  # fmt: skip
    fields = {"error": error, "isApiErrorMessage": True, "apiErrorStatus": status, **more}
    return _line(ago_s, "assistant", message=message, **fields)


def retried(status: int, attempt: int, ago_s: float = 5, retry_s: float = 8) -> str:
    """A failed request that will be retried, as some versions of the client write it."""
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
    """The hook events of its process, the oldest first."""
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
    Case(name="OOM kill in the kernel log", cause="oom", signal=signal.SIGKILL,
         oom="the kernel log: Out of memory: Killed process 4711 (claude)", transcript=WORK),
    Case(name="V8 out of heap", cause="oom", signal=signal.SIGABRT, pane=V8_HEAP, transcript=WORK),
    Case(name="V8 out of heap under a shell", cause="oom", status=134, pane=V8_HEAP),
    Case(name="OOM kill in its container during a tool", cause="oom", signal=signal.SIGKILL,
         oom="its cgroup counts 1 OOM kill more", transcript=(asked("build"), used("Bash", 90, command="make -j64"))),
    Case(name="segmentation fault", cause="signal", signal=signal.SIGSEGV, transcript=WORK),
    Case(name="Bun panic", cause="signal", signal=signal.SIGILL, pane=BUN_CRASH),
    Case(name="SIGKILL during work", cause="signal", signal=signal.SIGKILL,
         transcript=(asked("fix"), used("Bash", 2, command="make test"))),
    Case(name="terminal closed", cause="signal", signal=signal.SIGHUP, transcript=(*WORK, said("ok"))),
    Case(name="shell status of SIGKILL", cause="signal", status=137),
    Case(name="API overloaded", cause="api_error", status=1, transcript=(asked("fix"), failed(
        "API Error: 529 Overloaded. This is a server-side issue, usually temporary", "server_error", 529))),
    Case(name="API internal error", cause="api_error", status=1, transcript=(
        asked("fix"), failed("API Error: 500 Internal server error.", "server_error", 500))),
    Case(name="invalid API key", cause="api_error", status=1, transcript=(
        asked("fix"), failed("Invalid API key · Fix external API key", "authentication_failed", 401))),
    Case(name="API request invalid", cause="api_error", status=1, transcript=(asked("fix"), failed(
        "API Error: 400 messages.1: tool_use ids were found without tool_result blocks", "unknown", 400))),
    Case(name="rate limited", cause="rate_limited", status=1, transcript=(asked("fix"), failed(
        "API Error: Request rejected (429) · This request would exceed your account's rate limit.",
        "rate_limit", 429))),
    Case(name="session limit reached", cause="rate_limited", status=1, transcript=(
        asked("fix"), failed("You've hit your session limit · resets 3pm (Europe/Berlin)", "rate_limit", 429))),
    Case(name="usage limit in the words of an old client", cause="rate_limited", status=1, transcript=(
        asked("fix"), failed("Claude AI usage limit reached|1795446000", "unknown"))),
    Case(name="credit balance too low", cause="rate_limited", status=1, transcript=(
        asked("fix"), failed("Credit balance is too low", "billing_error", 400))),
    Case(name="rate limited, then killed", cause="rate_limited", signal=signal.SIGKILL,
         transcript=(asked("fix"), failed("API Error: Request rejected (429)", "rate_limit", 429))),
    Case(name="prompt too long", cause="context_overflow", status=1, transcript=(asked("fix"), failed(
        "Prompt is too long · the request is ~210000 tokens (limit 200000)", "invalid_request", 400,
        errorDetails="400 prompt is too long: 210000 tokens > 200000 maximum"))),
    Case(name="context window full during an answer", cause="context_overflow", status=1, transcript=(
        asked("fix"), said("so I", stop="model_context_window_exceeded"))),
    Case(name="SIGKILL after a tool hung for an hour", cause="tool_hang", signal=signal.SIGKILL,
         transcript=(asked("fix"), used("Bash", 3600, command="npm start"))),
    Case(name="SIGTERM while a fetch hung", cause="tool_hang", signal=signal.SIGTERM,
         transcript=(asked("fix"), used("WebFetch", 1200, url="http://example.org"))),
    Case(name="SIGKILL at a permission prompt", cause="permission_wait", signal=signal.SIGKILL, pane=PROMPT,
         transcript=(asked("fix"), used("Bash", 30, command="rm -rf build"))),
    Case(name="SIGTERM after a permission_prompt hook", cause="permission_wait", signal=signal.SIGTERM, hooks=(
        ("PreToolUse", {"tool_name": "Bash"}), ("Notification", {"notification_type": "permission_prompt"}))),
    Case(name="exit code 0", cause="clean_exit", status=0, transcript=(*WORK, said("all is done"))),
    Case(name="a person typed /exit", cause="clean_exit", status=0, hooks=(
        ("SessionEnd", {"reason": "prompt_input_exit"}),)),
    Case(name="no evidence", cause="unknown"),
    Case(name="exit code 1 without an error", cause="unknown", status=1, transcript=WORK),
    Case(name="exit code 0 of an agent that works on memory errors", cause="clean_exit", status=0,
         pane="FATAL ERROR: JavaScript heap out of memory\n● fixed the test for that\n❯ ",
         transcript=(asked("fix the OOM"), said("fixed"))),
    Case(name="SIGKILL of an agent that works on rate limits", cause="signal", signal=signal.SIGKILL,
         transcript=(asked("handle 429 rate_limit errors, usage limit reached"), used("Bash", 3, command="grep 429"),
                     got("API Error: Request rejected (429)", 1))),
    Case(name="segmentation fault after a rate limit had passed", cause="signal", signal=signal.SIGSEGV, transcript=(
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
    Case(name="SIGTERM with a MemoryError on the screen", cause="signal", signal=signal.SIGTERM,
         pane="MemoryError\n● that was the test's, fixed\n❯"),
    Case(name="bus error", cause="signal", signal=signal.SIGBUS),
    Case(name="abort", cause="signal", signal=signal.SIGABRT, transcript=WORK),
    Case(name="processor time limit", cause="signal", signal=signal.SIGXCPU),
    Case(name="Ctrl-C by a person", cause="signal", signal=signal.SIGINT),
    Case(name="shell status of a segmentation fault", cause="signal", status=139),
    Case(name="shell status of SIGTERM", cause="signal", status=143),
    Case(name="signal without a name", cause="signal", signal=40),
    Case(name="SIGKILL between two tools", cause="signal", signal=signal.SIGKILL,
         transcript=(used("Read", 500), got("text", 400), said("let me think", 300, "tool_use"))),
    Case(name="SIGKILL two hours after the last tool result", cause="signal", signal=signal.SIGKILL,
         transcript=(used("Bash", 7300), got("ok", 7200), said("done", 7190))),
    Case(name="SIGKILL during a tool of 119 s", cause="signal", signal=signal.SIGKILL,
         transcript=(used("Bash", 119, command="make"),)),
    Case(name="segmentation fault at a permission prompt", cause="signal", signal=signal.SIGSEGV, pane=PROMPT),
    Case(name="segmentation fault after an API error", cause="signal", signal=signal.SIGSEGV,
         transcript=(failed("API Error: 500", "server_error", 500),)),
    Case(name="SIGKILL during a retry", cause="api_error", signal=signal.SIGKILL, pane=RETRYING,
         transcript=(asked("fix"),)),
    Case(name="bad gateway", cause="api_error", status=1,
         transcript=(failed("API Error: 502 Bad Gateway", "server_error", 502),)),
    Case(name="connection error", cause="api_error", status=1,
         transcript=(failed("API Error: Connection error.", "unknown"),)),
    Case(name="model not found", cause="api_error", status=1,
         transcript=(failed("There's an issue with the selected model", "invalid_request", 404),)),
    Case(name="API error that only mentions a quota", cause="api_error", status=1,
         transcript=(failed("API Error: 500 the quota service is down", "server_error", 500),)),
    Case(name="retries of an older client at an overloaded API", cause="api_error", signal=signal.SIGKILL,
         transcript=(asked("fix"), retried(529, 4))),
    Case(name="StopFailure hook: overloaded", cause="api_error", status=1,
         hooks=(("StopFailure", {"error": "overloaded"}),)),
    Case(name="StopFailure hook: authentication_failed", cause="api_error", status=1,
         hooks=(("StopFailure", {"error": "authentication_failed"}),)),
    Case(name="torn last line after an API error", cause="api_error", status=1, cut=True,
         transcript=(failed("API Error: 500", "server_error", 500), said("and so"))),
    Case(name="retries of an older client at a rate limit", cause="rate_limited", signal=signal.SIGKILL,
         transcript=(asked("fix"), retried(429, 3))),
    Case(name="StopFailure hook: rate_limit", cause="rate_limited", status=1,
         hooks=(("StopFailure", {"error": "rate_limit"}),)),
    Case(name="StopFailure hook: billing_error", cause="rate_limited", signal=signal.SIGHUP,
         hooks=(("StopFailure", {"error": "billing_error"}),)),
    Case(name="weekly limit", cause="rate_limited", status=1,
         transcript=(failed("You've hit your weekly limit · resets Nov 27, 3pm", "rate_limit", 429),)),
    Case(name="monthly spend limit", cause="rate_limited", status=1,
         transcript=(failed("You've hit your monthly spend limit.", "unknown", 400),)),
    Case(name="terminal closed while rate limited", cause="rate_limited", signal=signal.SIGHUP,
         transcript=(failed("Request rejected (429)", "rate_limit", 429),)),
    Case(name="tokens per minute", cause="rate_limited", status=1, transcript=(failed(
        "API Error: Request rejected (429) · exceeds your context window tokens per minute", "rate_limit", 429),)),
    Case(name="input too long for the model", cause="context_overflow", status=1, transcript=(failed(
        "API Error: 400 input length and `max_tokens` exceed context limit: 199999 + 21333 > 200000",
        "invalid_request", 400),)),
    Case(name="conversation too long to compact", cause="context_overflow", status=1,
         transcript=(failed("Conversation too long. Press esc twice to go up", "unknown"),)),
    Case(name="request too large", cause="context_overflow", status=1,
         transcript=(failed("API Error: 413 request_too_large", "invalid_request", 413),)),
    Case(name="terminal closed after a prompt too long", cause="context_overflow", signal=signal.SIGHUP,
         transcript=(failed("Prompt is too long", "invalid_request", 400),)),
    Case(name="MCP call without an answer", cause="tool_hang", signal=signal.SIGTERM,
         transcript=(used("mcp__db__query", 900, sql="select 1"),)),
    Case(name="second of two tools hung", cause="tool_hang", signal=signal.SIGKILL,
         transcript=(used("Read", 800, "a"), got("x", 799, "a"), used("Bash", 700, "b", command="tail -f log"))),
    Case(name="unknown exit after a tool hung", cause="tool_hang",
         transcript=(used("Bash", 2000, command="npm start"),)),
    Case(name="SIGTERM at an edit prompt", cause="permission_wait", signal=signal.SIGTERM,
         pane="Do you want to make this edit to a.py?\n❯ 1. Yes\n  2. No", transcript=(used("Edit", 700),)),
    Case(name="terminal closed at a permission prompt", cause="permission_wait", signal=signal.SIGHUP, pane=PROMPT),
    Case(name="Notification hook: agent_needs_input", cause="permission_wait", signal=signal.SIGKILL,
         hooks=(("Notification", {"notification_type": "agent_needs_input"}),)),
    Case(name="SIGKILL after a permission was given", cause="signal", signal=signal.SIGKILL, hooks=(
        ("Notification", {"notification_type": "permission_prompt"}), ("PostToolUse", {"tool_name": "Bash"}))),
    Case(name="SIGKILL with a quoted question on the screen", cause="signal", signal=signal.SIGKILL,
         pane="● The dialog says: Do you want to proceed?\n" + "line\n" * 20),
    Case(name="SessionEnd hook: logout", cause="clean_exit", hooks=(("SessionEnd", {"reason": "logout"}),)),
    Case(name="exit code 0 after an earlier API error", cause="clean_exit", status=0, transcript=(
        failed("API Error: 529", "server_error", 529, 500), asked("again", 400), said("done"))),
    Case(name="exit code 0 right after an API error", cause="clean_exit", status=0,
         transcript=(failed("API Error: 529 Overloaded", "server_error", 529),)),
    Case(name="exit code 0 at a permission prompt", cause="clean_exit", status=0, pane=PROMPT),
    Case(name="exit code 2 with an old question above", cause="unknown", status=2, pane=PROMPT + "\nx" * 20),
    Case(name="empty transcript", cause="unknown", status=1, transcript=("",)),
    Case(name="transcript of other content", cause="unknown", transcript=("\0\1", "[1, 2]", '{"type": 7}')),
]  # fmt: skip
TALK = [
    Case(name="Ctrl-C while the screen mentions memory", cause="signal", status=130,
         pane="● I grepped: Cannot allocate memory in the log\n> "),
    Case(name="documentation about memory on the screen", cause="unknown", status=1,
         pane="  12 errno 12 = Cannot allocate memory (documentation)\nError: not logged in"),
    Case(name="numbered file about memory on the screen", cause="unknown", status=1,
         pane="  ⎿  std::bad_alloc\n     std::bad_alloc\n 12→MemoryError\nError: not logged in"),
    Case(name="SIGKILL with a chapter on memory on the screen", cause="signal", signal=signal.SIGKILL,
         pane="Out of memory errors are described in chapter 3"),
    Case(name="MemoryError of a test that the agent survived", cause="unknown", status=1,
         pane="MemoryError\n────────────────\n❯\n────────────────\n  ⏵⏵ bypass permissions on"),
    Case(name="SIGINT with bad_alloc on the screen", cause="signal", signal=signal.SIGINT,
         pane="std::bad_alloc may be thrown"),
    Case(name="V8 out of heap, then a shell prompt", cause="oom", status=134, pane=V8_HEAP + "\n❯ "),
    Case(name="SIGKILL with a quoted question and its answers on the screen", cause="signal", signal=signal.SIGKILL,
         pane="● The README says: 'Do you want to proceed?'\n  1. Yes, definitely check the code\n● ok\n> "),
    Case(name="SIGKILL with a page of questions on the screen", cause="signal", signal=signal.SIGKILL,
         pane="  ⎿  # Dialogs\n     Do you want to proceed?\n     ❯ 1. Yes\n       2. No"),
    Case(name="SIGKILL with a written question on the screen", cause="signal", signal=signal.SIGKILL,
         pane="Do you want to proceed?\n1. Yes\n2. No"),
    Case(name="SIGKILL with an API error in code on the screen", cause="signal", signal=signal.SIGKILL,
         pane="● I fixed the message 'API Error: ' in client.py"),
    Case(name="exit code 1 with an API error in code on the screen", cause="unknown", status=1,
         pane="● I fixed the message 'API Error: ' in client.py\nSegmentation fault"),
    Case(name="API error as the last output", cause="api_error", status=1,
         pane="  ⎿  API Error: 529 Overloaded\n❯ "),
]  # fmt: skip
