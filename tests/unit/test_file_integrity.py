"""The rule for broken critical files: every real file is sound, and every torn one is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.project import SAMPLES
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.models import FlawCode
from yolo_supervisor.policy.file_integrity import Flaw, flaw, torn_at

STATE, LOG, LEASE = ".execution-state.json", ".events/event-log.jsonl", ".locks/a.lease"

relaxed = settings(deadline=None, max_examples=100)
plain = st.none() | st.booleans() | st.integers() | st.text(max_size=8)
objects = st.dictionaries(st.text(max_size=6), st.recursive(plain, st.lists, max_leaves=5), max_size=4)
lines = st.lists(objects.map(lambda value: json.dumps(value).encode()), max_size=5)


def samples(pattern: str) -> list[Path]:
    found = sorted(path for path in SAMPLES.glob(pattern) if path.is_file())
    assert found, f"no files {pattern} in {SAMPLES}"
    return found


# -- real files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("execution-states/*.json", STATE),
        ("configs/*.json", "config.json"),
        ("plugin-output/*/config.json", "config.json"),
        ("phases/*/STATE.md", "STATE.md"),
        ("plugin-output/*/STATE.md", "STATE.md"),
        ("plugin-output/contracts/*.json", ".contracts/1-1.json"),
        ("**/*.jsonl", LOG),
        ("**/*.lease", LEASE),
    ],
)
def test_every_real_file_is_whole(pattern: str, name: str) -> None:
    assert {path.name: flaw(name, path.read_bytes()) for path in samples(pattern)} == {
        path.name: None for path in samples(pattern)
    }


def test_every_state_in_a_real_snapshot_is_whole() -> None:
    for path in samples("snapshots/*.json"):
        state = json.loads(path.read_text())["execution_state"]

        assert flaw(STATE, json.dumps(state).encode()) is None, path.name


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("execution-states/*.json", STATE),
        ("configs/*.json", "config.json"),
        ("plugin-output/contracts/*.json", "c.json"),
    ],
)
def test_truncated_real_objects_are_broken(pattern: str, name: str) -> None:
    for path in samples(pattern)[:5]:
        data = path.read_bytes().rstrip()

        assert [end for end in range(len(data)) if flaw(name, data[:end]) is None] == [], path.name


@pytest.mark.parametrize("pattern", ["execution-states/*.json", "phases/*/STATE.md"])
def test_real_files_with_unwritten_blocks_are_broken(pattern: str) -> None:
    name = STATE if "state" in pattern.partition("/")[0] else "STATE.md"
    for path in samples(pattern)[:5]:
        data = path.read_bytes()

        assert flaw(name, b"\0" * len(data)) == Flaw(FlawCode.ONLY_ZEROS, "it holds nothing but zeros")
        assert flaw(name, data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2)) is not None


# -- objects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [STATE, "config.json", "STATE.md", LEASE, ".contracts/1-1.json"])
@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t"])
def test_a_file_with_nothing_in_it_is_empty(name: str, data: bytes) -> None:
    assert flaw(name, data) == Flaw(FlawCode.EMPTY, "it is empty")


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"null",
        b'"text"',
        b"7",
        b"<<<<<<< HEAD\n{}",
        b"\xff\xfe{\0}\0",
        b'{"a":1}{"b":2}',
        b'{"a":NaN}',
        b"{" * 9999,
    ],
)
def test_anything_but_a_json_object_is_broken(data: bytes) -> None:
    for name in (STATE, "config.json", LEASE, ".contracts/1-1.json"):
        assert flaw(name, data) is not None


@pytest.mark.parametrize(
    "data",
    [
        b'{"status":"running"}',
        b'{"status":"awaiting_approval","plans":[]}',
        b'{"status":"executing","step":"x","steps":{}}',
        b'{"phases":{"1":{"1":{"status":"pending"}}}}',
        b'{"phase":"5","status":"some word of tomorrow","more":null,"plans":["?"]}',
        b'{"status":"running","gr\xc3\xb6\xc3\x9fe":"\\ud83d\\ude00"}\n\n',
    ],
)
def test_a_state_with_unknown_values_is_sound(data: bytes) -> None:
    assert flaw(STATE, data) is None


@pytest.mark.parametrize("data", [b"{}", b'{"phase":5}', b'{"status":7}', b'{"status":""}', b'{"phases":[]}'])
def test_a_state_without_a_status_is_broken(data: bytes) -> None:
    assert flaw(STATE, data) == Flaw(FlawCode.NO_STATUS, "it has no status")


@pytest.mark.parametrize("plans", ["null", "{}", '"05-01"', "3"])
def test_a_state_whose_plans_are_no_list_is_broken(plans: str) -> None:
    assert flaw(STATE, f'{{"status":"running","plans":{plans}}}'.encode()) == Flaw(
        FlawCode.PLANS_NOT_A_LIST, "its plans are no list"
    )


@given(objects)
@relaxed
def test_any_object_is_a_whole_configuration(value: dict[str, object]) -> None:
    assert flaw("config.json", json.dumps(value).encode()) is None


@given(st.binary())
@example(b"[" * 100_000)
@relaxed
def test_an_intact_file_can_be_parsed(data: bytes) -> None:
    assert (flaw("config.json", data) is None) == (load_object(data) is not None)


# -- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"x", "# Größe\n".encode(), b"a\r\n\x0b\x85"[:4], "\ufeff# State".encode()])
def test_any_text_is_whole_markdown(data: bytes) -> None:
    assert flaw("STATE.md", data) is None


def test_text_that_ends_in_the_middle_of_a_letter_is_broken() -> None:
    assert flaw("STATE.md", "# Größe".encode()[:5]) == Flaw(FlawCode.NOT_TEXT, "it is no text at byte 4")


def test_text_with_a_block_of_zeros_is_broken() -> None:
    assert flaw("STATE.md", b"# State\n" + b"\0" * 500 + b"the rest\n") == Flaw(FlawCode.HAS_ZEROS, "it holds zeros")


# -- logs ---------------------------------------------------------------------------------------------------------


@given(lines, st.booleans())
@example([], False)
@relaxed
def test_a_log_of_whole_lines_is_whole_with_or_without_its_last_newline(found: list[bytes], newline: bool) -> None:
    assert torn_at(b"\n".join(found) + (b"\n" if newline else b"")) is None


@given(lines, objects.filter(bool), st.integers(1))
@relaxed
def test_a_log_is_torn_where_its_last_line_begins_wherever_that_was_cut(
    found: list[bytes], last: dict[str, object], at: int
) -> None:
    whole = b"".join(line + b"\n" for line in found)
    torn = json.dumps(last).encode()
    torn = torn[: 1 + at % (len(torn) - 1)]

    assert torn_at(whole + torn) == len(whole)
    assert flaw(LOG, whole + torn) == Flaw(FlawCode.HALF_WRITTEN, "its last line is half written")


@pytest.mark.parametrize("zeros", [1, 4096])
def test_a_log_that_ends_in_zeros_is_torn_where_they_begin(zeros: int) -> None:
    assert torn_at(b'{"a":1}\n' + b"\0" * zeros) == 8
    assert torn_at(b"\0" * zeros) == 0


def test_a_damaged_line_in_the_middle_of_a_log_is_left_to_its_readers() -> None:
    assert flaw(LOG, b'{"a":1}\nwhat\n{"a":2}\n') is None
