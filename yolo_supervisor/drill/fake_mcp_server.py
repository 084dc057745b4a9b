"""A scratch MCP server whose first calls go wrong, over all its lives, in the way that it is told to.

python -m yolo_supervisor.drill.fake_mcp_server NOTEBOOK error|hang|crash TIMES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ECHO = {"name": "echo", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}


def main() -> None:
    notebook, trouble, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message or "method" not in message:
            continue
        if message["method"] != "tools/call":
            _answer(message["id"], result=_other(message["method"]))
            continue
        with notebook.open("a") as book:
            book.write("call\n")
        if len(notebook.read_text().splitlines()) > times:
            _answer(message["id"], result={"content": [{"type": "text", "text": "well"}]})
        elif trouble == "error":
            _answer(message["id"], error={"code": -32603, "message": "it hiccuped"})
        elif trouble == "crash":
            sys.exit(1)


def _other(method: str) -> dict[str, Any]:
    if method == "initialize":
        about = {"name": "drill", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": about}
    return {"tools": [ECHO]} if method == "tools/list" else {}


def _answer(ident: object, **more: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", "id": ident, **more}), flush=True)


if __name__ == "__main__":
    main()
