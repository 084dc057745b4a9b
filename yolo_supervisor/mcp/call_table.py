"""The client's requests that have no response yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from yolo_supervisor.formats import mcp


class CallState(Enum):
    """The state of a call.

    ===========  ==================================================  ==================================================
    state        meaning                                             next state, and the event that leads to it
    ===========  ==================================================  ==================================================
    QUEUED       not with the server: it is not ready                IN_FLIGHT: the server is ready
    IN_FLIGHT    sent, no response yet                               CANCELLING: the attempt's time limit is reached ·
                                                                     RETRYING: transient error ·
                                                                     QUEUED, UNDECIDED: the server died, or ended
                                                                     before it read the call
    CANCELLING   the server was asked to cancel the attempt, and     RETRYING: that is done ·
                 the processes it started are being ended            QUEUED, UNDECIDED: the server died
    UNDECIDED    failed by the server's death before the server      RETRYING: the next server process has listed its
                 said whether the tool may be called twice           tools
    RETRYING     waits for its backoff pause to end                  IN_FLIGHT or QUEUED: the pause has ended
    DONE         answered, refused, cancelled or given up            none
    ===========  ==================================================  ==================================================

    Every state also leads to DONE: by a result of any attempt (also of a cancelled one), by the client's cancellation,
    at the call's deadline, or by a failure if the call may not be repeated or no attempts are left. An error response
    counts only for the attempt that is IN_FLIGHT: any other belongs to an attempt that was given up.

    The clock of the limits stands still while the server waits for an answer of the client (see ``Retries``). To
    ``initialize`` neither CANCELLING nor RETRYING applies: while it is IN_FLIGHT its process has a limit, ``start_s``.
    """

    QUEUED = "queued"
    IN_FLIGHT = "in flight"
    CANCELLING = "cancelling"
    UNDECIDED = "undecided"
    RETRYING = "retrying"
    DONE = "done"


WITH_SERVER = (CallState.IN_FLIGHT, CallState.CANCELLING)


@dataclass(eq=False, slots=True)
class Call:
    """A request of the client that has no response yet. Deadlines are moments of the calls' clock, in seconds."""

    client_id: object
    client_key: str
    """The client's id as a key (see ``mcp.id_key``)."""
    method: str
    line: bytes
    tool: str | None
    progress_token: str | None
    deadline_s: float
    state: CallState = CallState.QUEUED
    attempt: int = 0
    sent_id: object = None
    """The id of the last attempt."""
    sent_keys: list[str] = field(default_factory=list)
    """The ids of all attempts as keys, the last one last: a result for any of them answers the call."""
    sent_s: float = 0.0
    """The time of the last attempt, on the monotonic clock."""
    offset: int = 0
    """The position of its last attempt in the input of the server process, in bytes."""
    attempt_deadline_s: float = float("inf")
    exclusive: bool = True
    """Whether no other tool was called at the same time: only then do processes started meanwhile belong to it."""
    progress: float = float("-inf")
    failures: list[str] = field(default_factory=list)
    """The reason of each failed attempt."""

    @property
    def label(self) -> str:
        return f"the tool {self.tool}" if self.tool else self.method

    @property
    def bounded(self) -> bool:
        """Whether it has a time limit, so that it certainly ends."""
        return self.tool is not None or self.method in mcp.REPEATABLE or self.method == "initialize"


class CallTable:
    """All calls: by the client's id, by the id of each attempt, by progress token."""

    def __init__(self) -> None:
        self._by_client_key: dict[str, Call] = {}
        self._by_sent_key: dict[str, Call] = {}
        self._by_token: dict[str, Call] = {}

    def __iter__(self) -> Iterator[Call]:
        """Iterate in the order of arrival; calls may be added and removed meanwhile."""
        return iter(list(self._by_client_key.values()))

    def __len__(self) -> int:
        return len(self._by_client_key)

    def with_server(self) -> list[Call]:
        return [call for call in self._by_client_key.values() if call.state in WITH_SERVER]

    def by_client_key(self, key: str) -> Call | None:
        """The call that the client knows by this id (see ``mcp.id_key``)."""
        return self._by_client_key.get(key)

    def by_sent_key(self, key: str) -> Call | None:
        """The call that a response with this id (see ``mcp.id_key``) answers."""
        return self._by_sent_key.get(key)

    def by_progress_token(self, token: object) -> Call | None:
        return self._by_token.get(mcp.id_key(token))

    def add(self, call: Call) -> None:
        self._by_client_key[call.client_key] = call
        if call.progress_token is not None:
            self._by_token[call.progress_token] = call

    def record_attempt(self, call: Call, ident: object, key: str) -> None:
        """Record the id under which the call is sent."""
        call.sent_id = ident
        call.sent_keys.append(key)
        self._by_sent_key[key] = call

    def forget_attempt(self, key: str) -> None:
        """Accept no further response with this id: the attempt has been answered with an error."""
        self._by_sent_key.pop(key, None)

    def remove(self, call: Call) -> None:
        self._by_client_key.pop(call.client_key, None)
        for key in call.sent_keys:
            if self._by_sent_key.get(key) is call:
                del self._by_sent_key[key]
        if call.progress_token is not None and self._by_token.get(call.progress_token) is call:
            del self._by_token[call.progress_token]
