"""A stand-in for Claude Code's client as a teammate: it keeps a transcript, and goes on with it after ``--resume``.

    python stub_client.py --agent-id dev-1@red --agent-name dev-1 --team-name red [--resume SESSION [NOTE]]

``$CLAUDE_CONFIG_DIR/stub-NAME.json`` tells it how to behave: ``answers`` (default true), ``exits``, a code with which
it ends at once, and ``forks``, to have a child with the same command line.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def main(words: list[str]) -> None:
    options = {word: value for word, value in zip(words, words[1:], strict=False) if word.startswith("--")}
    positional = [
        w for i, w in enumerate(words) if not w.startswith("--") and not (i and words[i - 1].startswith("--"))
    ]
    home = Path(os.environ.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude")
    name = options["--agent-name"]
    behaviour = _behaviour(home / f"stub-{name}.json")
    if "exits" in behaviour:
        sys.exit(behaviour["exits"])
    session = options.get("--resume") or str(uuid.uuid4())
    slug = re.sub(r"[^0-9A-Za-z]", "-", os.path.realpath(Path.cwd()))
    transcript = home / "projects" / slug / f"{session}.jsonl"
    transcript.parent.mkdir(parents=True, exist_ok=True)
    facts = {"agentName": name, "teamName": options["--team-name"], "sessionId": session, "isSidechain": False}

    def say(kind: str, text: str, **more: Any) -> None:
        message = {"role": kind, "content": [{"type": "text", "text": text}], **more}
        record = {**facts, "type": kind, "timestamp": datetime.now(UTC).isoformat(), "message": message}
        with transcript.open("a") as file:
            file.write(json.dumps(record) + "\n")

    say("user", " ".join(positional) or "work")
    if behaviour.get("answers", True):
        say("assistant", "I work", stop_reason="pause_turn")
    if behaviour.get("forks") and os.fork() == 0:
        parent = os.getppid()
        while os.getppid() == parent:
            time.sleep(0.05)
        os._exit(0)
    print(f"{name} is at work on {session}", flush=True)
    while True:
        time.sleep(600)


def _behaviour(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
