"""What an MCP server has been told that the next one in its place has to be told again."""

from __future__ import annotations

from collections.abc import Iterator

from yolo_supervisor.formats import mcp


class Handshake:
    """The client's own lines, in the era that begins with ``initialize``; in the later one there are none."""

    def __init__(self) -> None:
        self.hello: bytes | None = None
        self.greeted: bytes | None = None
        """That the client has understood the answer to ``hello``."""
        self._level: bytes | None = None
        self._subscriptions: dict[object, bytes] = {}

    def learn(self, method: str, line: bytes) -> None:
        """Take in a request that the server has granted."""
        if method == "logging/setLevel":
            self._level = line
        elif method in ("resources/subscribe", "resources/unsubscribe"):
            uri = mcp.key(mcp.params(mcp.load(line)).get("uri"))
            self._subscriptions.pop(uri, None)
            if method == "resources/subscribe":
                self._subscriptions[uri] = line

    def rest(self) -> Iterator[bytes]:
        """All that comes after ``hello`` and its answer."""
        if self.greeted is not None:
            yield self.greeted
        if self._level is not None:
            yield self._level
        yield from self._subscriptions.values()
