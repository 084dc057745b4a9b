"""The client's session with an MCP server, to be replayed to the next process of that server."""

from __future__ import annotations

from collections.abc import Iterator

from yolo_supervisor.formats import mcp


class SessionReplay:
    """The client's own lines that set up its session. With version 2026-07-28 there are none."""

    def __init__(self) -> None:
        self.initialize: bytes | None = None
        self.initialized: bytes | None = None
        """The client's notification that it has received the response to ``initialize``."""
        self._log_level: bytes | None = None
        self._subscriptions: dict[object, bytes] = {}

    def record(self, method: str, line: bytes) -> None:
        """Record a request that the server has answered with a result."""
        if method == "initialize":
            self.initialize = line
        elif method == "logging/setLevel":
            self._log_level = line
        elif method in ("resources/subscribe", "resources/unsubscribe"):
            uri = mcp.id_key(mcp.params(mcp.load(line)).get("uri"))
            self._subscriptions.pop(uri, None)
            if method == "resources/subscribe":
                self._subscriptions[uri] = line

    def after_initialize(self) -> Iterator[bytes]:
        """The lines to send after the response to ``initialize``, in order."""
        if self.initialized is not None:
            yield self.initialized
        if self._log_level is not None:
            yield self._log_level
        yield from self._subscriptions.values()
