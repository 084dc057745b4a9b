"""Finding one value in a JSON text, so that all other characters can be kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolo_supervisor.formats.json_edit import value_span

KEYS = st.sampled_from(["id", "a", "b"]) | st.text(max_size=5)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10) | st.sampled_from(["{", "}", '"id":1', "\\", "]", ","])
)  # fmt: skip


class Members(list[tuple[str, Any]]):
    """The members of an object in order; a key may occur several times."""


VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4).map(Members)
)
OBJECTS = st.lists(st.tuples(KEYS, VALUES), max_size=5).map(Members)


def dump(value: Any, space: str) -> str:
    """The value as JSON with ``space`` between all tokens."""
    if isinstance(value, Members):
        items = [f"{space}{json.dumps(key)}{space}:{space}{dump(item, space)}{space}" for key, item in value]
        return "{" + (",".join(items) or space) + "}"
    if isinstance(value, list):
        return "[" + ",".join(f"{space}{dump(item, space)}{space}" for item in value) + "]"
    return json.dumps(value)


def paths(value: Any) -> list[tuple[str, ...]]:
    """The paths to all values within objects of a loaded document."""
    if not isinstance(value, dict):
        return []
    return [(key, *rest) for key, item in value.items() for rest in [(), *paths(item)]]


def replaced(value: dict[str, Any], path: tuple[str, ...], new: object) -> dict[str, Any]:
    key, *rest = path
    return {**value, key: replaced(value[key], tuple(rest), new) if rest else new}


@given(OBJECTS, st.sampled_from(["", " ", "\n\t", "\r "]))
def test_every_value_that_a_reader_sees_is_found_also_behind_double_keys(members: Members, space: str) -> None:
    text = space + dump(members, space) + space
    document = json.loads(text)

    for path in paths(document):
        start, end = value_span(text, path)

        assert json.loads(text[:start] + '"new"' + text[end:]) == replaced(document, path, "new")


@given(OBJECTS)
def test_a_missing_key_is_a_key_error(members: Members) -> None:
    text = dump(members, "")
    document = json.loads(text)

    with pytest.raises(KeyError):
        value_span(text, ("missing key",))
    for key, value in document.items():
        if not isinstance(value, dict):
            with pytest.raises(KeyError):
                value_span(text, (key, "id"))


def test_the_last_of_several_members_with_one_key_is_found() -> None:
    text = '{"id": 1, "x": {"id": 2}, "id": 3}'

    assert value_span(text, ("id",)) == (text.index("3"), text.index("3") + 1)


def test_numbers_of_any_length_are_passed_over() -> None:
    text = '{"n": ' + "7" * 5000 + ', "m": 1e999, "id": 1}'

    assert text[slice(*value_span(text, ("id",)))] == "1"
