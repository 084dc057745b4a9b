"""The phase of a turn, from the end of a transcript."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.formats.turns import Phase, Turn, agent_turn, turn

Record = dict[str, Any]

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def at(seconds: float) -> str:
    return (NOON + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def request(seconds: float, source: str = "repl_main_thread") -> Record:
    return {"type": "api-request", "timestamp": at(seconds), "querySource": source}


def says(seconds: float, stop: str | None = "end_turn") -> Record:
    message = {"role": "assistant", "content": [{"type": "text", "text": "done"}], "stop_reason": stop}
    return {"type": "assistant", "timestamp": at(seconds), "message": message}


def uses(seconds: float, tool: str = "Bash", ident: str = "t1") -> Record:
    content = [{"type": "tool_use", "id": ident, "name": tool, "input": {}}]
    message = {"role": "assistant", "content": content, "stop_reason": "tool_use"}
    return {"type": "assistant", "timestamp": at(seconds), "message": message}


def result(seconds: float, ident: str = "t1") -> Record:
    content = [{"type": "tool_result", "tool_use_id": ident, "content": "ok"}]
    return {"type": "user", "timestamp": at(seconds), "message": {"role": "user", "content": content}}


def prompt(seconds: float, text: str = "go on", **more: object) -> Record:
    return {"type": "user", "timestamp": at(seconds), "message": {"role": "user", "content": text}, **more}


def failure(seconds: float, error: str, status: int | None) -> Record:
    message = {"role": "assistant", "content": [{"type": "text", "text": "API Error"}], "stop_reason": "stop_sequence"}
    return {
        "type": "assistant", "timestamp": at(seconds), "message": message,
        "isApiErrorMessage": True, "error": error, "apiErrorStatus": status,
    }  # fmt: skip


def lines(*records: Record) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


UNTIMED = [{"type": kind, "sessionId": "x"} for kind in ("last-prompt", "mode", "tools-used", "cost-state")]
STOPPED = prompt(2, "[Request interrupted by user for tool use]")
OVERLOAD = failure(9, "server_error", 529)
RETRIED = {"type": "system", "subtype": "api_error", "timestamp": at(4)}
COMMAND = prompt(3, "<command-name>/context</command-name>")


@pytest.mark.parametrize(
    ("records", "phase", "seconds"),
    [
        pytest.param([prompt(1)], Phase.MODEL, 1, id="a prompt waits for the model"),
        pytest.param([prompt(1), request(2)], Phase.MODEL, 2, id="a request without an answer"),
        pytest.param([request(2), prompt(1)], Phase.MODEL, 2, id="the prompt is written after its request"),
        pytest.param([request(1), says(2)], Phase.ENDED, 2, id="the model ended its turn"),
        pytest.param([says(2), request(1)], Phase.ENDED, 2, id="a request that was written late"),
        pytest.param([says(2), request(3, "generate_title")], Phase.ENDED, 2, id="a request for a title"),
        pytest.param([says(2), request(3)], Phase.MODEL, 3, id="a request of the next turn"),
        pytest.param([says(2, None)], Phase.MODEL, 2, id="a part of an answer"),
        pytest.param([uses(1)], Phase.TOOL, 1, id="a tool without a result"),
        pytest.param([uses(1), result(2)], Phase.MODEL, 2, id="the result goes to the model"),
        pytest.param([uses(1), uses(1, "Read", "t2"), result(2)], Phase.TOOL, 2, id="one of two tools has no result"),
        pytest.param([uses(1), request(2)], Phase.MODEL, 2, id="the request comes before the result"),
        pytest.param([request(1), request(2), request(6)], Phase.MODEL, 6, id="the client tries again"),
        pytest.param([failure(9, "rate_limit", 429)], Phase.FAILED, 9, id="its retries are used up"),
        pytest.param([OVERLOAD, prompt(10)], Phase.MODEL, 10, id="a prompt after a failure"),
        pytest.param([uses(1), STOPPED], Phase.ENDED, 2, id="a person stopped it"),
        pytest.param([says(2), COMMAND], Phase.ENDED, 3, id="a command of the client"),
        pytest.param([says(2), prompt(3, "Caveat", isMeta=True)], Phase.ENDED, 3, id="a note of the client"),
        pytest.param(
            [{"type": "system", "subtype": "api_error", "timestamp": at(4)}],
            Phase.MODEL,
            4,
            id="an error that is retried",
        ),
    ],
)
def test_the_phase_follows_from_the_last_records(records: list[Record], phase: Phase, seconds: float) -> None:
    found = turn(lines(*records, *UNTIMED))

    assert found is not None
    assert (found.phase, found.at) == (phase, NOON + timedelta(seconds=seconds))


def test_a_failed_turn_names_its_error() -> None:
    assert turn(lines(failure(9, "rate_limit", 429))) == Turn(
        phase=Phase.FAILED, at=NOON + timedelta(seconds=9), failing=True, error="rate_limit", status=429
    )


@pytest.mark.parametrize(
    ("records", "failing", "status"),
    [
        pytest.param([prompt(1), request(2)], False, None, id="a first request"),
        pytest.param([request(1), request(2)], True, None, id="a request is repeated"),
        pytest.param([{**RETRIED, "error": {"status": 429}}], True, 429, id="the client waits for a retry"),
        pytest.param([OVERLOAD, prompt(10), request(11)], True, 529, id="a request after a failed turn"),
        pytest.param([OVERLOAD, request(10), says(11)], False, None, id="an answer"),
        pytest.param([OVERLOAD, says(11), request(12)], False, None, id="a request after an answer"),
        pytest.param([OVERLOAD, STOPPED], False, None, id="a person stopped it"),
        pytest.param([request(1), uses(2), request(3), result(3)], False, None, id="a request for each answer"),
    ],
)
def test_requests_fail_from_the_first_one_to_the_next_answer(
    records: list[Record], failing: bool, status: int | None
) -> None:
    found = turn(lines(*records))

    assert found is not None
    assert (found.failing, found.status) == (failing, status)


def test_the_last_answer_is_dated_and_an_error_is_none() -> None:
    found = turn(lines(says(2), request(3), OVERLOAD))

    assert found is not None
    assert found.answered_at == NOON + timedelta(seconds=2)


def test_an_open_tool_is_named() -> None:
    found = turn(lines(uses(1, "WebFetch")))

    assert found is not None
    assert found.tools == ("WebFetch",)


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"no json\n", b'{"type":"mode"}\n', b'{"type":"assistant","message":3}\n']
)
def test_a_transcript_without_a_phase_is_unknown(data: bytes) -> None:
    assert turn(data) is None


def test_records_of_subagents_are_no_turn_of_the_session() -> None:
    records = [says(1), {**request(2), "isSidechain": True}, {**uses(3), "isSidechain": True}]

    found, alone = turn(lines(*records)), agent_turn(lines(*records))

    assert found is not None
    assert alone is not None
    assert (found.phase, alone.phase) == (Phase.ENDED, Phase.TOOL)


def test_a_cut_first_line_and_a_torn_last_line_are_skipped() -> None:
    data = lines(prompt(1), request(2), says(3), prompt(4))

    found = turn(data[10:-10])

    assert found is not None
    assert found.phase is Phase.ENDED


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([lines(uses(1)), lines(says(2)), lines(result(3))]))))
def test_no_content_makes_it_fail(parts: list[bytes]) -> None:
    turn(b"\n".join(parts))
    agent_turn(b"\n".join(parts))
