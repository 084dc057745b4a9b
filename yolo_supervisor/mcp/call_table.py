"""The requests of an MCP client that are not answered yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from yolo_supervisor.formats import mcp


@dataclass(eq=False, slots=True)
class Call:
    """A request of the client that is not answered yet."""

    ident: object
    method: str
    line: bytes
    tool: str | None
    token: str | None
    cap_s: float
    """When it has had its time as a whole, by the monotonic clock."""
    sent_as: object = None
    names: list[str] = field(default_factory=list)
    """All ids (see ``mcp.key``) that it was sent under: an answer to any of them is one."""
    attempt: int = 0
    limit_s: float = float("inf")
    """When this attempt has had its time."""
    up: bool = False
    """Whether it is with the server now."""
    sent_s: float = 0.0
    """Since when."""
    alone: bool = True
    """Whether no other tool was being called meanwhile: then what the server has started since then is its."""
    cancelled: bool = False
    """Whether the server was told to forget this attempt: an error is no answer then."""
    over: bool = False
    progress: float = float("-inf")
    troubles: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        return f"the tool {self.tool}" if self.tool else self.method

    @property
    def bounded(self) -> bool:
        """Whether it ends in any case: it has a limit."""
        return self.tool is not None or self.method in mcp.REPEATABLE


class Calls:
    """All of them: by the client's own id, by each id that they were sent under, by the token of their progress."""

    def __init__(self) -> None:
        self._by_ident: dict[str, Call] = {}
        self._by_sent: dict[str, Call] = {}
        self._by_token: dict[str, Call] = {}

    def __iter__(self) -> Iterator[Call]:
        """In the order in which they came; some may be added or removed meanwhile."""
        return iter(list(self._by_ident.values()))

    def __len__(self) -> int:
        return len(self._by_ident)

    def up(self) -> list[Call]:
        """Those that are with the server now."""
        return [call for call in self._by_ident.values() if call.up]

    def of(self, ident: object) -> Call | None:
        """The one that the client knows by this id."""
        return self._by_ident.get(mcp.key(ident))

    def answered_by(self, key: str) -> Call | None:
        """The one that an answer with this id (see ``mcp.key``) is to."""
        return self._by_sent.get(key)

    def reporting(self, token: object) -> Call | None:
        """The one whose progress is told under this token."""
        return self._by_token.get(mcp.key(token))

    def add(self, call: Call) -> None:
        self._by_ident[mcp.key(call.ident)] = call
        if call.token is not None:
            self._by_token[call.token] = call

    def sent(self, call: Call, ident: object) -> None:
        """It was sent under this id, too: an answer to it is one."""
        call.sent_as = ident
        call.names.append(mcp.key(ident))
        self._by_sent[call.names[-1]] = call

    def unsend(self, key: str) -> None:
        """What comes under this id is no answer any more."""
        self._by_sent.pop(key, None)

    def remove(self, call: Call) -> None:
        """It is answered, or given up."""
        self._by_ident.pop(mcp.key(call.ident), None)
        for name in call.names:
            if self._by_sent.get(name) is call:
                del self._by_sent[name]
        if call.token is not None and self._by_token.get(call.token) is call:
            del self._by_token[call.token]
