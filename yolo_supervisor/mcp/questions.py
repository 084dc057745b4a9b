"""The server's requests that the client has not answered: most of them ask a person or a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolo_supervisor.formats import mcp
from yolo_supervisor.mcp.call_table import WITH_SERVER, Call

MAX_OPEN = 1000
"""Of more unanswered requests the oldest is forgotten."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call that was with the server when it asked."""

    call: Call
    number: int

    @property
    def over(self) -> bool:
        return self.call.state not in WITH_SERVER or self.call.attempt != self.number


@dataclass(eq=False, slots=True)
class Question:
    """A request of the server.

    Nothing in a request says which call it belongs to. It belongs to one of the calls that were with the server when it
    asked; when all of those are over, the call that it belongs to certainly is.
    """

    server_id: object
    shown_id: object
    """The id under which the client sees it."""
    method: str
    params: Mapping[str, Any]
    attempts: Sequence[Attempt] = ()
    """Those that were with the server when it asked, and are not over."""
    nested: bool = False
    """Whether it certainly belongs to a call."""
    withdrawn: bool = False
    """Whether the client knows that no answer is needed. A late answer is forwarded nevertheless."""

    @classmethod
    def asked(cls, message: Mapping[str, Any], shown_id: object, calls: Sequence[Call]) -> Question:
        """The request that the server has made while it had these calls."""
        method, params = str(message["method"]), mcp.params(message)
        attempts = [Attempt(call, call.attempt) for call in calls if call.method not in mcp.UNBOUNDED]
        nested = bool(attempts) and method in mcp.NESTED and mcp.related_task(params) is None
        return cls(message["id"], shown_id, method, params, attempts, nested)

    @property
    def holds_clocks(self) -> bool:
        """Whether a call waits for the answer, as far as is known."""
        return self.method != "ping" and not self.withdrawn and not all(attempt.over for attempt in self.attempts)


class Questions:
    """All requests of the server process that runs now, and what their answers have only begun.

    An answer can begin something that lasts: a person follows a link (an elicitation by URL, until
    ``notifications/elicitation/complete``), or the client works on a task (until its result is fetched).
    """

    def __init__(self) -> None:
        self._open: dict[str, Question] = {}
        """By the id that the client knows, as a key (see ``mcp.id_key``)."""
        self._begun: dict[str, Question] = {}
        """By the key of what was begun (see ``mcp.begun_by``)."""

    def __bool__(self) -> bool:
        return bool(self._open or self._begun)

    def __iter__(self) -> Iterator[Question]:
        return iter(list(self._open.values()))

    @property
    def hold_clocks(self) -> bool:
        """Whether any call may be waiting for an answer."""
        return any(question.holds_clocks for question in (*self._open.values(), *self._begun.values()))

    def add(self, question: Question) -> None:
        if len(self._open) >= MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[mcp.id_key(question.shown_id)] = question

    def answer(self, key: str, message: Mapping[str, Any]) -> Question | None:
        """The question that this response of the client answers; None if there is none."""
        question = self._open.pop(key, None)
        if question is not None:
            if question.method == "tasks/result":
                self._begun.pop(mcp.task_key(question.params.get("taskId")), None)
            if (begun := mcp.begun_by(question.method, question.params, message)) is not None:
                self._begun[begun] = question
        return question

    def cancel(self, key: str) -> Question | None:
        """The question that the server does not ask any more."""
        return self._open.pop(key, None)

    def detach(self, call: Call) -> None:
        """Withdraw no question that may belong to this call: it is not known when the call ends."""
        for question in (*self._open.values(), *self._begun.values()):
            if any(attempt.call is call for attempt in question.attempts):
                question.nested = False

    def complete(self, elicitation_id: object) -> None:
        """The person has done what an elicitation by URL asked for."""
        self._begun.pop(mcp.elicitation_key(elicitation_id), None)

    def take_orphans(self) -> list[Question]:
        """The open questions whose calls are over; they count as withdrawn from now on."""
        orphans = []
        for question in (*self._open.values(), *self._begun.values()):
            question.attempts = [attempt for attempt in question.attempts if not attempt.over]
            if question.nested and not question.attempts and not question.withdrawn:
                question.withdrawn = True
                orphans.append(question)
        self._begun = {key: question for key, question in self._begun.items() if question.attempts}
        return [question for question in orphans if mcp.id_key(question.shown_id) in self._open]

    def take_all(self) -> list[Question]:
        """All open questions, which are forgotten."""
        questions = list(self)
        self._open.clear()
        self._begun.clear()
        return questions
