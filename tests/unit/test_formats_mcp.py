"""Frames of MCP: reading their fields and replacing one value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.formats import mcp

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text() | st.sampled_from(['"id":1', "{", "]", ",", ":", "\\", '\\"', "id", "params", 'x","id":7}', "\ud800"])
NAMES = st.sampled_from(["id", "params", "requestId", "result", "error", "jsonrpc"]) | TEXTS
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)
IDS = st.integers() | TEXTS | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def dumped(draw: st.DrawFn, message: Any) -> bytes:
    """The message as any program may write it: any key order, spaces anywhere, escaped or not, one line."""
    shuffled = dict(draw(st.permutations(list(message.items()))))
    space = st.text(" \t\r", max_size=2)
    separators = draw(space) + "," + draw(space), draw(space) + ":" + draw(space)
    text = json.dumps(shuffled, ensure_ascii=draw(st.booleans()), separators=separators)
    return draw(space).encode() + text.encode(errors="surrogatepass") + draw(space).encode() + b"\n"


def common_prefix(one: bytes, other: bytes) -> int:
    """The length of their common prefix in bytes."""
    return next(
        (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


# -- replacing a value ----------------------------------------------------------------------------------------------


@given(st.data(), OBJECTS, IDS, IDS)
def test_replacing_an_id_keeps_every_other_byte(
    data: st.DataObject, rest: dict[str, Any], old: object, new: object
) -> None:
    line = data.draw(dumped({**rest, "id": old}))

    changed = mcp.with_value(line, ("id",), new)

    assert json.loads(changed) == {**rest, "id": new}
    assert list(json.loads(changed)) == list(json.loads(line))
    assert common_prefix(line, changed) + common_prefix(line[::-1], changed[::-1]) >= len(changed) - len(
        json.dumps(new)
    )


@given(st.data(), OBJECTS, OBJECTS, IDS)
def test_nested_value_is_replaced_in_any_message(
    data: st.DataObject, outer: dict[str, Any], inner: dict[str, Any], new: object
) -> None:
    message = {**outer, "params": {**inner, "requestId": "old"}}
    line = data.draw(dumped(message))

    changed = mcp.with_value(line, ("params", "requestId"), new)

    assert json.loads(changed) == {**outer, "params": {**inner, "requestId": new}}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{ "id" :1 , "x":[ 1.0,1e400 ,-0]}\r\n', b'{ "id" :9 , "x":[ 1.0,1e400 ,-0]}\r\n'),
        (b'{"x":"\xc3\xa9\\u00e9\\/","id":"\xc3\xa9"}\n', b'{"x":"\xc3\xa9\\u00e9\\/","id":9}\n'),
        (b'{"x":{"id":1,"id":2},"id":{"id":3}}\n', b'{"x":{"id":1,"id":2},"id":9}\n'),
        (b'{"x":"\\",\\"id\\":1","\\u0069d":null}\n', b'{"x":"\\",\\"id\\":1","\\u0069d":9}\n'),
        (b'{"n":123456789012345678901234567890,"id":[]}\n', b'{"n":123456789012345678901234567890,"id":9}\n'),
        (b'{"id":1,"x":"\xed\xa0\xbd","id":2}\n', b'{"id":1,"x":"\xed\xa0\xbd","id":9}\n'),
    ],
)
def test_bytes_around_a_replaced_value_are_kept(before: bytes, after: bytes) -> None:
    assert mcp.with_value(before, ("id",), 9) == after


@given(st.data(), OBJECTS)
def test_replacing_a_missing_value_is_a_key_error(data: st.DataObject, message: dict[str, Any]) -> None:
    line = data.draw(dumped({name: value for name, value in message.items() if name != "id"}))

    with pytest.raises(KeyError):
        mcp.with_value(line, ("id",), 1)


@given(st.binary())
def test_every_loadable_line_can_be_changed(noise: bytes) -> None:
    line = noise + b'{"id":1}'
    try:
        message = mcp.load(line)
    except ValueError:
        return
    if isinstance(message, dict) and "id" in message:
        assert mcp.load(mcp.with_value(line, ("id",), 2)) == {**message, "id": 2}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_other_encodings_than_utf_8_are_refused(encoding: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        mcp.load('{"jsonrpc":"2.0","id":1}'.encode(encoding))


def test_byte_order_mark_is_accepted_and_kept() -> None:
    line = b'\xef\xbb\xbf{"id":1}'

    assert mcp.load(line) == {"id": 1}
    assert mcp.with_value(line, ("id",), 2) == b'\xef\xbb\xbf{"id":2}'


@pytest.mark.parametrize("line", [b"", b"\n", b"hello", b'{"id":1', b'{"id":"\xff"}', b"[" * 100_000])
def test_line_that_is_no_json_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        mcp.load(line)


def test_numbers_may_have_thousands_of_digits() -> None:
    assert "n" in mcp.load(b'{"id":1,"n":' + b"7" * 5000 + b"}")


# -- the request that a response answers ---------------------------------------------------------------------------


@given(st.data(), OBJECTS, IDS)
def test_answered_id_is_the_responses_id_or_none(data: st.DataObject, result: dict[str, Any], ident: object) -> None:
    line = data.draw(dumped({"jsonrpc": "2.0", "id": ident, "result": result}))

    assert mcp.answered_id(line) in (None, mcp.id_key(ident))


@given(st.data(), OBJECTS, IDS)
def test_request_of_the_server_has_no_answered_id(data: st.DataObject, params: dict[str, Any], ident: object) -> None:
    """Client and server both number their requests from 0."""
    line = data.draw(dumped({"jsonrpc": "2.0", "id": ident, "method": "sampling/createMessage", "params": params}))

    assert mcp.answered_id(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":7,"result":{"x":"X"}}\n',
        b'{"id": 7, "result": {"x":"X"}, "jsonrpc": "2.0"}\n',
        b'{"result":{"x":"X","id":1},"jsonrpc":"2.0","id":7}\n',
        b'{"jsonrpc":"2.0","result":{"x":"X"},"id":7}\r\n',
        b'{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"X"}}\n',
    ],
)
def test_answered_id_is_read_from_the_ends_of_a_large_response(line: bytes) -> None:
    assert mcp.answered_id(line) == "7"
    assert mcp.answered_id(line.replace(b"X", b"X" * mcp.LARGE)) == "7"


@pytest.mark.parametrize(
    "line", [b'{"id":7,"result":{"x":"X"}}\n', b'{"result":"X","id":7}\n', b'{"result":{"jsonrpc":"2.0"},"id":7}\n']
)
def test_line_without_a_version_answers_nothing(line: bytes) -> None:
    assert mcp.answered_id(line) is None
    assert not mcp.is_message(mcp.load(line))


def test_batch_is_a_message_if_any_of_its_items_is_one() -> None:
    assert mcp.is_message([1, {"id": 1}, {"jsonrpc": "2.0"}])
    assert not any(map(mcp.is_message, ([], [1, {"id": 1}], [["jsonrpc"]], {"jsonrpc": 2.0}, 42, "2.0", None)))


def test_id_keys_differ_by_type() -> None:
    assert (
        len({mcp.id_key(1), mcp.id_key("1"), mcp.id_key(1.0), mcp.id_key(None), mcp.id_key(True), mcp.id_key('"1"')})
        == 6
    )


# -- fields ---------------------------------------------------------------------------------------------------------


@given(OBJECTS | st.fixed_dictionaries({"method": st.just("tools/call"), "params": VALUES}), VALUES)
def test_field_accessors_accept_any_json(message: dict[str, Any], result: object) -> None:
    assert isinstance(mcp.params(message), dict)
    assert isinstance(mcp.called_tool(message), str | None)
    assert isinstance(mcp.progress_token({"params": {"_meta": result}}), str | None)
    assert isinstance(mcp.related_task({"_meta": result}), str | None)
    assert isinstance(mcp.is_message(result), bool)
    assert isinstance(mcp.begun_by("elicitation/create", message, {"result": result}), str | None)
    assert mcp.repeatable_tools(result)[0] == mcp.repeatable_tools({"tools": result})[0] == {} or isinstance(
        result, dict | list
    )


def test_repeatable_tools_are_those_declared_read_only_or_idempotent() -> None:
    tools = [
        {"name": "reads", "annotations": {"readOnlyHint": True}},
        {"name": "sets", "annotations": {"readOnlyHint": False, "idempotentHint": True}},
        {"name": "adds", "annotations": {"idempotentHint": False, "destructiveHint": False}},
        {"name": "odd", "annotations": {"readOnlyHint": "yes", "idempotentHint": 1}},
        {"name": "silent"},
        {"annotations": {"readOnlyHint": True}},
        "no tool",
    ]

    repeatable, cursor = mcp.repeatable_tools({"tools": tools, "nextCursor": "page 2"})

    assert repeatable == {"reads": True, "sets": True, "adds": False, "odd": False, "silent": False}
    assert cursor == "page 2"


@pytest.mark.parametrize("token", [1, 0, "", "a", 1.5])
def test_progress_token_is_read_from_meta(token: object) -> None:
    assert mcp.progress_token({"params": {"_meta": {"progressToken": token}}}) == mcp.id_key(token)


@pytest.mark.parametrize("params", [None, [], {}, {"_meta": None}, {"_meta": {}}, {"_meta": {"progressToken": None}}])
def test_request_without_a_token_has_no_progress_token(params: object) -> None:
    assert mcp.progress_token({"params": params}) is None


@given(IDS, TEXTS)
def test_relay_messages_are_one_line_of_json(ident: object, text: str) -> None:
    lines = [
        mcp.cancellation(ident, text),
        mcp.error_response(ident, 1, text, {"x": text}),
        mcp.request(text, "m", {"a": text}),
    ]

    assert [line.count(b"\n") for line in lines] == [1, 1, 1]
    assert json.loads(lines[0])["params"] == {"requestId": ident, "reason": text}
    assert json.loads(lines[1])["id"] == ident
    assert json.loads(lines[2]) == {"jsonrpc": "2.0", "id": text, "method": "m", "params": {"a": text}}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("npx -y @modelcontextprotocol/server-everything", "server-everything"),
        ("uvx --quiet mcp-server-git --repository .", "mcp-server-git"),
        ("python -m yolo_mcp", "yolo_mcp"),
        ("/usr/local/bin/yolo-mcp-server --stdio", "yolo-mcp-server"),
        ("docker run -i --rm mcp/fetch", "fetch"),
        ("node", "node"),
        ("./", "."),
        ("-x", "-x"),
    ],
)
def test_server_name_is_the_first_specific_argument(command: str, name: str) -> None:
    assert mcp.server_name(command.split()) == name


def test_server_name_of_an_inline_program_is_one_line() -> None:
    assert "\n" not in mcp.server_name(["python3", "-c", "import server\nserver.serve()\n"])
