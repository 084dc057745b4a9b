"""A fake coding agent: it claims a task as Claude Code does, and runs a tool in a separate session.

    python -m yolo_supervisor.drill.fake_agent --agent-id dev-1@team --agent-name dev-1 --team-name team \\
        --task=FILE --ready=FILE [--ignore-sigterm] [--busy] [--dies=WAY] [--resumable] [--fails-to-resume]

With ``--dies`` it dies in that way when it gets SIGUSR1. With ``--resumable`` it keeps a transcript, and ``--resume
SESSION [PROMPT]`` goes on with that. Each claim of its task adds a line to ``FILE.claims``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.formats import transcripts


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--agent-id", "--agent-name", "--team-name"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--dies", choices=WAYS)
    parser.add_argument("--resumable", action="store_true")
    parser.add_argument("--fails-to-resume", action="store_true")
    parser.add_argument("--resume", default="")
    parser.add_argument("--permission-mode")
    parser.add_argument("prompt", nargs="?", default="work")
    options = parser.parse_args()
    if options.resume and options.fails_to_resume:
        sys.exit(3)
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, lambda *_: None)  # to ignore it would say that it shall outlive its terminal
    if options.dies:
        signal.signal(signal.SIGUSR1, lambda *_: WAYS[options.dies](options))
    if not (options.resume and owns(options.task, options.agent_name)):
        claim(options.task, options.agent_name)
    if options.resumable:
        converse(options, options.resume or str(uuid.uuid4()))
    tool = subprocess.Popen(
        ["sleep", "3600"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    temporary = options.ready.with_suffix(".tmp")
    temporary.write_text(json.dumps({"pid": os.getpid(), "tool": tool.pid}))
    temporary.rename(options.ready)
    while True:
        time.sleep(0.1 if options.busy else 3600)
        if options.busy:
            write_turn(options.agent_name, options.team_name, Path.cwd(), ended=False)


def write_turn(name: str, team: str, folder: Path, *, ended: bool, home: Path | None = None) -> None:
    """Write the transcript of a teammate that works in ``folder`` and uses a tool, or has ended its turn."""
    home = home or Path(os.environ["CLAUDE_CONFIG_DIR"])
    path = home / "projects" / transcripts.slug(Path(os.path.realpath(folder))) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    block = {"type": "text", "text": "done"} if ended else {"type": "tool_use", "id": "t", "name": "Bash", "input": {}}
    record = {
        "type": "assistant", "agentName": name, "teamName": team, "timestamp": datetime.now(UTC).isoformat(),
        "message": {"content": [block], "stop_reason": "end_turn" if ended else "tool_use"},
    }  # fmt: skip
    path.write_text(json.dumps(record) + "\n")


def converse(options: argparse.Namespace, session: str) -> None:
    """Add the prompt and the model's answer to the transcript of the session."""
    home = Path(os.environ["CLAUDE_CONFIG_DIR"])
    path = home / "projects" / transcripts.slug(Path(os.path.realpath(Path.cwd()))) / f"{session}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    sender = {
        "isSidechain": False, "sessionId": session, "teamName": options.team_name, "agentName": options.agent_name,
        "timestamp": datetime.now(UTC).isoformat(),
    }  # fmt: skip
    turns = [
        {"type": "user", "message": {"role": "user", "content": options.prompt}},
        {
            "type": "assistant",
            "message": {
                "role": "assistant", "stop_reason": "tool_use",
                "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}],
            },
        },
    ]  # fmt: skip
    with path.open("a") as file:
        file.writelines(json.dumps({**sender, **turn}) + "\n" for turn in turns)


def owns(path: Path, owner: str) -> bool:
    """Whether the task is in progress and the agent's."""
    task = json.loads(path.read_text())
    return (task["status"], task.get("owner")) == ("in_progress", owner)


def claims_file(task: Path) -> Path:
    """The file that has a line for each claim of the task."""
    return task.with_suffix(".claims")


def claim(path: Path, owner: str) -> None:
    """Claim the task as Claude Code does: under a lock folder beside the file, which is written in place."""
    lock = path.with_name(path.name + ".lock")
    while True:
        with contextlib.suppress(FileExistsError):
            lock.mkdir()
            break
        time.sleep(0.01)
    try:
        task = json.loads(path.read_text())
        path.write_text(json.dumps({**task, "status": "in_progress", "owner": owner}, indent=2))
        with claims_file(path).open("a") as claims:
            claims.write(f"{owner}\n")
    finally:
        lock.rmdir()


# -- ways to die --------------------------------------------------------------------------------------------------


def segfault(_: argparse.Namespace) -> None:
    """Die by a segmentation fault, without a core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def run_out_of_memory(_: argparse.Namespace) -> None:
    """Allocate more memory than a limit of this process allows."""
    limit = 512 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    bytearray(2 * limit)


def fail_on_overload(options: argparse.Namespace) -> None:
    """Give up because the API is overloaded."""
    _give_up(options, "API Error: 529 Overloaded. This is a server-side issue, usually temporary", "server_error", 529)


def fail_on_rate_limit(options: argparse.Namespace) -> None:
    """Give up because a rate limit is reached."""
    _give_up(options, "API Error: Request rejected (429) · Please try again later.", "rate_limit", 429)


def _give_up(options: argparse.Namespace, text: str, error: str, status: int) -> None:
    """Exit as Claude Code does: the error is the last line of the transcript."""
    folder = Path(os.environ["CLAUDE_CONFIG_DIR"]) / "projects" / transcripts.slug(Path.cwd())
    folder.mkdir(parents=True, exist_ok=True)
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    sender = {"isSidechain": False, "timestamp": at, "teamName": options.team_name, "agentName": options.agent_name}
    turns = [
        {**sender, "type": "user", "message": {"role": "user", "content": "fix the bug"}},
        {
            **sender, "type": "assistant", "error": error, "isApiErrorMessage": True, "apiErrorStatus": status,
            "message": {"role": "assistant", "content": [{"type": "text", "text": text}]},
        },
    ]  # fmt: skip
    lines = "".join(json.dumps(turn, separators=(",", ":")) + "\n" for turn in turns)
    (folder / f"{options.agent_name}.jsonl").write_text(lines)
    os._exit(1)


WAYS: dict[str, Callable[[argparse.Namespace], None]] = {
    "segfault": segfault,
    "oom": run_out_of_memory,
    "api-errors": fail_on_overload,
    "rate-limited": fail_on_rate_limit,
}


if __name__ == "__main__":
    main()
