"""A fake MCP server whose first TIMES calls fail, counted over all its processes in the file COUNTER.

python -m yolo_supervisor.drill.fake_mcp_server COUNTER error|hang|crash TIMES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ECHO = {"name": "echo", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}


def main() -> None:
    counter, failure, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        if message["method"] != "tools/call":
            _respond(message["id"], result=_result(message["method"]))
            continue
        with counter.open("a") as calls:
            calls.write("call\n")
        if len(counter.read_text().splitlines()) > times:
            _respond(message["id"], result={"content": [{"type": "text", "text": "ok"}]})
        elif failure == "error":
            _respond(message["id"], error={"code": -32603, "message": "internal error"})
        elif failure == "crash":
            sys.exit(1)


def _result(method: str) -> dict[str, Any]:
    if method == "initialize":
        about = {"name": "drill", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about}
    return {"tools": [ECHO]} if method == "tools/list" else {}


def _respond(ident: object, **more: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", "id": ident, **more}), flush=True)


if __name__ == "__main__":
    main()
