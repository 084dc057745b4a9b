"""The real Claude Code client, offline, as a team in a private tmux server; a scripted model answers it on loopback.

The processes, panes, hooks, tasks and MCP calls are the client's; only the model's replies are scripted, so that no
account and no network is needed. The client itself is installed with npm, once on a machine.
"""

import json
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from support.guard import CHILD_MARK, MARK, kill_all, new_mark
from support.npm import installed
from support.wait import LIMIT_S, wait_until

VERSION: Final = os.environ.get("CLIENT_VERSION", "2.1.332")
API_KEY: Final = "offline-key-00000000000000000000"
ARCHITECTURES: Final = {"x86_64": "x64", "aarch64": "arm64"}

Block = dict[str, Any]
"""What a model says: ``text``, or ``tool_use`` with its ``name`` and ``input``."""
Reply = list[Block]
Model = tuple[str, list[Reply]]
"""The prompt of a session, and the replies that its model gives in turn; after the last one it says "done"."""


def executable() -> Path:
    """The client. The native package, because with an older node the wrapper falls back to an old client silently."""
    machine = platform.machine()
    package = f"@anthropic-ai/claude-code-linux-{ARCHITECTURES.get(machine, machine)}"
    return installed(f"{package}@{VERSION}") / package / "claude"


class FakeModel(ThreadingHTTPServer):
    """Answers the sessions of a client: each by the first script whose prompt's first word is in its first message."""

    daemon_threads = True

    def __init__(self, models: Iterable[Model]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self._scripts = [(prompt.split()[0], list(replies)) for prompt, replies in models]
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def next_reply(self, request: dict[str, Any]) -> Reply:
        """The blocks to answer with. A request without tools (for a title, a summary) uses up no reply."""
        if request.get("tools") and request.get("messages"):
            first = json.dumps(request["messages"][0])
            replies = next((replies for word, replies in self._scripts if word in first), [])
            with self._lock:
                if replies:
                    return replies.pop(0)
        return [{"type": "text", "text": "done"}]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed drops its connections."""

    def __enter__(self) -> Self:
        return self


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeModel

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the base class names it
        pass

    def do_GET(self) -> None:
        self._send({})

    do_HEAD = do_GET  # noqa: N815  # as the base class looks for it

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if "count_tokens" in self.path:
            self._send({"input_tokens": 10})
        elif self.path.startswith("/v1/messages"):
            self._answer(request, self.server.next_reply(request))
        else:
            self._send({})

    def _answer(self, request: dict[str, Any], reply: Reply) -> None:
        blocks = [block if block["type"] == "text" else {**block, "id": identifier("toolu")} for block in reply]
        stop = "tool_use" if any(block["type"] == "tool_use" for block in blocks) else "end_turn"
        usage = {"input_tokens": 10, "output_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        message = {
            "id": identifier("msg"), "type": "message", "role": "assistant", "model": request.get("model", "fake"),
            "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        if not request.get("stream"):
            self._send({**message, "content": blocks, "stop_reason": stop})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self._event("message_start", message=message)
        for index, block in enumerate(blocks):
            start: Block
            if block["type"] == "text":
                start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
            else:
                start = {**block, "input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            self._event("content_block_start", index=index, content_block=start)
            self._event("content_block_delta", index=index, delta=delta)
            self._event("content_block_stop", index=index)
        self._event("message_delta", delta={"stop_reason": stop, "stop_sequence": None}, usage={"output_tokens": 5})
        self._event("message_stop")
        self.close_connection = True

    def _event(self, kind: str, **data: Any) -> None:
        self.wfile.write(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode())
        self.wfile.flush()

    def _send(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def identifier(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"


class RealClient:
    """A lead in a private tmux server. Its state lies in ``home/.claude``, its git repository in ``project``."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.project = scratch / "project"
        self.claude = scratch / "home" / ".claude"
        self._model: FakeModel | None = None
        self._mark = new_mark()

    def start(self, *models: Model, prompt: str, mode: str) -> None:
        """Start the lead and give it the prompt. ``mode`` says where its teammates live: ``tmux``, ``in-process``."""
        client = executable()
        self._model = FakeModel(models)
        self._prepare()
        environment = {
            "HOME": str(self.claude.parent), "PATH": os.environ["PATH"], "TERM": "xterm-256color", "SHELL": "/bin/bash",
            "USER": os.environ.get("USER", "root"), "IS_SANDBOX": "1", "CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS": "1",
            "CLAUDE_CODE_ENABLE_TASKS": "1", "CLAUDE_CODE_ENABLE_TODO_TOOLS": "1", "DISABLE_TELEMETRY": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "ANTHROPIC_API_KEY": API_KEY,
            MARK: os.environ.get(MARK, ""), CHILD_MARK: self._mark, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{self._model.server_port}",
        }  # fmt: skip
        command = f"'{client}' --dangerously-skip-permissions --teammate-mode {mode}"
        self.tmux(
            "-f", "/dev/null", "new-session", "-d", "-s", "team", "-x", "200", "-y", "50", "-c", str(self.project),
            command, env=environment,
        )  # fmt: skip
        wait_until(lambda: "bypass permissions on" in self.screen(), "the client to be ready", LIMIT_S)
        self.tmux("send-keys", "-t", "=team:", "-l", prompt)
        time.sleep(1)  # the client takes an Enter that comes with the text for a part of it
        self.tmux("send-keys", "-t", "=team:", "Enter")

    def _prepare(self) -> None:
        """Answer what the client would ask a person at its first start."""
        self.claude.mkdir(parents=True, exist_ok=True)
        self.project.mkdir(exist_ok=True)
        subprocess.run(["git", "init", "-q", str(self.project)], check=True)
        trust = {"hasTrustDialogAccepted": True, "enableAllProjectMcpServers": True}
        state = {
            "hasCompletedOnboarding": True, "bypassPermissionsModeAccepted": True,
            "customApiKeyResponses": {"approved": [API_KEY[-20:]], "rejected": []},
            "projects": {str(self.project): trust},
        }  # fmt: skip
        settings = {"skipDangerousModePermissionPrompt": True, "enableAllProjectMcpServers": True}
        for path, values in ((self.claude.parent / ".claude.json", state), (self.claude / "settings.json", settings)):
            present = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**present, **values}))

    def tmux(self, *argv: str, check: bool = True, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-S", str(self.scratch / "tmux.sock"), *argv]
        return subprocess.run(command, env=env, check=check, capture_output=True, text=True, timeout=LIMIT_S).stdout

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", "=team:", check=False)

    def end(self) -> None:
        self.tmux("kill-server", check=False)
        if self._model is not None:
            self._model.shutdown()
            self._model.server_close()
        kill_all(CHILD_MARK, self._mark)  # a tool outlives its client
