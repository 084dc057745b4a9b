"""The real Claude Code client, offline, as a team in a private tmux server; a scripted model answers it on loopback.

The processes, panes, hooks, tasks and MCP calls are the client's; only the model's replies are scripted, so that no
account and no network is needed. The client itself is installed with npm, once on a machine.
"""

import json
import os
import platform
import shlex
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self

from support.guard import CHILD_MARK, MARK, kill_all, new_mark
from support.npm import installed
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until

NEWEST: Final = "2.1.332"
VERSIONS: Final = (NEWEST, "2.1.197")
"""The versions that are tested, which differ in the files that they leave."""
API_KEY: Final = "offline-key-00000000000000000000"
ARCHITECTURES: Final = {"x86_64": "x64", "aarch64": "arm64"}

Block = dict[str, Any]
"""What a model says: ``text``, or ``tool_use`` with its ``name`` and ``input``."""
Fault = int | None
"""A model that fails: it answers each request with this HTTP status, or (None) never."""
Reply = list[Block] | Fault
Model = tuple[str, list[Reply]]
"""The prompt of a session, and the replies that its model gives in turn; after the last one it says "done"."""


def executable(version: str) -> Path:
    """The client of that version.

    It is the native package, because with an older node the wrapper falls back to an old client silently.
    """
    machine = platform.machine()
    package = f"@anthropic-ai/claude-code-linux-{ARCHITECTURES.get(machine, machine)}"
    return installed(f"{package}@{version}") / package / "claude"


class FakeModel(ThreadingHTTPServer):
    """Answers the sessions of a client: each by the first script whose prompt's first word is in its first message."""

    daemon_threads = True

    def __init__(self, models: Iterable[Model]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self._scripts = [(prompt.split()[0], list(replies)) for prompt, replies in models]
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self.said_at: dict[str, datetime] = {}
        """When the model has last said something, by the first word of the prompt; a fault counts, too."""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def next_reply(self, request: dict[str, Any]) -> Reply:
        """The reply that is due. A request without tools (for a title, a summary) uses up none, nor does a fault."""
        if request.get("tools") and request.get("messages"):
            first = json.dumps(request["messages"][0])
            spoken_to, replies = next((script for script in self._scripts if script[0] in first), ("", []))
            with self._lock:
                self.said_at[spoken_to] = datetime.now(UTC)
                if replies:
                    return replies.pop(0) if isinstance(replies[0], list) else replies[0]
        return [{"type": "text", "text": "done"}]

    def say(self, prompt: str, replies: Iterable[Reply]) -> None:
        """Add replies for the sessions with this prompt."""
        with self._lock:
            next(known for word, known in self._scripts if word == prompt.split(maxsplit=1)[0]).extend(replies)

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
            reply = self.server.next_reply(request)
            if isinstance(reply, list):
                self._answer(request, reply)
            elif reply is None:
                self.server.closing.wait()
            else:
                self._send({"type": "error", "error": {"type": "api_error", "message": "refused by the test"}}, reply)
        else:
            self._send({})

    def _answer(self, request: dict[str, Any], reply: list[Block]) -> None:
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

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def identifier(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"


class RealClient:
    """A lead in a private tmux server. Its state lies in ``home/.claude``, its git repository in ``project``."""

    def __init__(self, scratch: Path, version: str = NEWEST) -> None:
        self.scratch = scratch
        self.version = version
        self.project = scratch / "project"
        self.claude = scratch / "home" / ".claude"
        self.variables: dict[str, str] = {}
        """The variables of its environment beside the usual ones."""
        self.within: tuple[str, ...] = ()
        """The command that starts the tmux server: that of a container, for instance."""
        self._server: PrivateTmux | None = None
        self._model: FakeModel | None = None
        self._mark = new_mark()

    def start(self, *models: Model, prompt: str, mode: str) -> None:
        """Start the lead and give it the prompt. ``mode`` says where its teammates live: ``tmux``, ``in-process``."""
        self.serve(*models)
        self.open("team", "--teammate-mode", mode, prompt=prompt)

    def serve(self, *models: Model) -> None:
        """Have the model answer the sessions that are started from now on."""
        self._model = FakeModel(models)

    def say(self, prompt: str, *replies: Reply) -> None:
        """Have the model of the sessions with this prompt say more."""
        assert self._model is not None
        self._model.say(prompt, replies)

    def said_at(self, prompt: str) -> datetime:
        """When the model of the sessions with this prompt has last said something."""
        assert self._model is not None
        return self._model.said_at[prompt.split(maxsplit=1)[0]]

    def open(
        self, name: str, *flags: str, prompt: str | None = None, folder: Path | None = None, in_shell: bool = False
    ) -> None:
        """Start a client in a tmux session of its own and give it the prompt."""
        command = self.command(*flags, folder=folder) + ("; true" if in_shell else "")
        self.people()(
            "new-session", "-d", "-s", name, "-x", "200", "-y", "50", "-c", str(folder or self.project), command
        )
        wait_until(lambda: "bypass permissions on" in self.screen(name), "the client to be ready", LIMIT_S)
        if prompt is not None:
            self.type(prompt, name)

    def command(self, *flags: str, folder: Path | None = None) -> str:
        """The shell command that starts a client in the folder."""
        self._prepare(folder or self.project)
        return shlex.join([str(executable(self.version)), "--dangerously-skip-permissions", *flags])

    def people(self) -> PrivateTmux:
        """The tmux server, and the people at it."""
        if self._server is None:
            self._server = PrivateTmux(self.scratch, self.environment(), within=self.within)
        return self._server

    def background(self, prompt: str) -> None:
        """Have the client's own daemon start a session with this prompt."""
        command = shlex.split(self.command("--bg", prompt))
        subprocess.run(
            command, cwd=self.project, env=self.environment(), check=True, capture_output=True, timeout=LIMIT_S
        )

    def environment(self) -> dict[str, str]:
        """The environment of a client that asks our model."""
        assert self._model is not None
        return {
            "HOME": str(self.claude.parent), "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"],
            "PATH": os.environ["PATH"], "TERM": "xterm-256color", "SHELL": "/bin/bash",
            "USER": os.environ.get("USER", "root"), "IS_SANDBOX": "1", "CLAUDE_CODE_EXPERIMENTAL_AGENT_TEAMS": "1",
            "CLAUDE_CODE_ENABLE_TASKS": "1", "CLAUDE_CODE_ENABLE_TODO_TOOLS": "1", "DISABLE_TELEMETRY": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "ANTHROPIC_API_KEY": API_KEY,
            MARK: os.environ.get(MARK, ""), CHILD_MARK: self._mark, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{self._model.server_port}",
            **self.variables,
        }  # fmt: skip

    def _prepare(self, folder: Path) -> None:
        """Answer what the client would ask a person at its first start, and at its first start in a folder."""
        self.claude.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        if not (folder / ".git").exists():
            subprocess.run(["git", "init", "-q", str(folder)], check=True)
        config = self.claude.parent / ".claude.json"
        folders = read_object(config).get("projects", {})
        trust = {"hasTrustDialogAccepted": True, "enableAllProjectMcpServers": True}
        state = {
            "hasCompletedOnboarding": True, "bypassPermissionsModeAccepted": True,
            "customApiKeyResponses": {"approved": [API_KEY[-20:]], "rejected": []},
            "projects": {**folders, str(folder): {**folders.get(str(folder), {}), **trust}},
        }  # fmt: skip
        settings = {"skipDangerousModePermissionPrompt": True, "enableAllProjectMcpServers": True}
        for path, values in ((config, state), (self.claude / "settings.json", settings)):
            path.write_text(json.dumps({**read_object(path), **values}))

    def type(self, text: str, session: str = "team") -> None:
        """Type a line into the client, as a person does."""
        self.tmux("send-keys", "-t", f"={session}:", "-l", text)
        time.sleep(1)  # the client takes an Enter that comes with the text for a part of it
        self.press("Enter", session)

    def press(self, key: str, session: str = "team") -> None:
        self.tmux("send-keys", "-t", f"={session}:", key)

    def tmux(self, *argv: str, check: bool = True) -> str:
        command = ["tmux", "-S", str(self.scratch / "tmux"), *argv]
        return subprocess.run(command, check=check, capture_output=True, text=True, timeout=LIMIT_S).stdout

    def screen(self, session: str = "team") -> str:
        return self.tmux("capture-pane", "-p", "-t", f"={session}:", check=False)

    def end(self) -> None:
        if self._server is not None:
            self._server.end()
        if self._model is not None:
            self._model.closing.set()
            self._model.shutdown()
            self._model.server_close()
        kill_all(CHILD_MARK, self._mark)  # a tool outlives its client


def read_object(path: Path) -> dict[str, Any]:
    """The object in a file of the client; empty if there is no such file."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
