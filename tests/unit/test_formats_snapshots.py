"""The plugin's snapshots, of both its stores and both its versions, and arbitrary ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.project import SAMPLES
from yolo_supervisor.formats.plugin import snapshots as plugin_snapshots
from yolo_supervisor.formats.plugin.snapshots import Snapshot

AT = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)
STATE = {"phase": 5, "status": "running"}

relaxed = settings(deadline=None, max_examples=100)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
contents = st.binary() | st.fixed_dictionaries(
    {"execution_state": st.dictionaries(st.text(max_size=4), values) | values, "phase": st.integers() | values},
    optional={
        key: st.sampled_from(["20261122T205510", "2026-11-22T20:55:10Z"]) | values
        for key in ("snapshot_ts", "timestamp", "agent_role", "agent_name", "recent_commits", "matcher")
    },
).map(lambda value: json.dumps(value).encode())  # fmt: skip
names = st.sampled_from(["5-20261122T205510.json", "snap-5-20261122205510.json", "5-00010101T000000.json"]) | st.text()


def samples(pattern: str) -> list[Path]:
    found = sorted(SAMPLES.glob(pattern))
    assert found, f"no files {pattern} in {SAMPLES}"
    return found


def loaded(path: Path) -> Snapshot:
    found = plugin_snapshots.load(path.name, path.read_bytes())
    assert found is not None
    return found


def snapshot(phase: str = "5", seconds: int = 0, role: str | None = None, name: str = "x") -> Snapshot:
    return Snapshot(name, phase, AT + timedelta(seconds=seconds), role, dict(STATE), None)


# -- load and dump ------------------------------------------------------------------------------------------------


def test_every_real_snapshot_of_the_hook_is_understood() -> None:
    for path in samples("snapshots/*.json"):
        found, raw = loaded(path), json.loads(path.read_text())

        assert (found.phase, found.state, found.trigger) == (raw["phase"], raw["execution_state"], "auto")
        assert path.name == f"snap-{found.phase}-{found.at:%Y%m%d%H%M%S}.json"
        assert found.role == (raw["agent_name"] or None)


def test_real_snapshots_of_both_stores_say_the_same() -> None:
    [saved] = samples("plugin-output/live-tree-rust-before-stop/.snapshots/*")
    [hooked] = samples("plugin-output/live-tree-rust-before-stop/snapshots/*")

    assert (loaded(saved).at, loaded(saved).phase) == (AT, "5") == (loaded(hooked).at, loaded(hooked).phase)
    assert (loaded(saved).role, loaded(hooked).role) == ("dev", "yolo-dev-01")
    assert loaded(saved).state == loaded(hooked).state
    assert (loaded(saved).commits, loaded(hooked).commits) == (("2940073 feat(demo): init",), ())


def test_a_real_snapshot_of_the_bash_version_is_understood() -> None:
    found = loaded(samples("plugin-output/live-tree-bash-before-stop/.snapshots/*")[0])

    assert (found.phase, found.role, found.trigger) == ("5", "dev", "auto")
    assert found.at == AT + timedelta(seconds=1)


def test_a_snapshot_is_written_byte_for_byte_as_the_plugin_does() -> None:
    for path in samples("plugin-output/live-tree-rust-*/.snapshots/*"):
        found = loaded(path)

        assert plugin_snapshots.dump(found) == path.read_bytes()
        assert plugin_snapshots.file_name(found.phase, found.at) == path.name


def test_a_snapshot_without_a_role_is_written_as_unknown() -> None:
    found = Snapshot("x", "5", AT, None, {"title": "Sécond", "status": "running"}, None)

    raw = json.loads(plugin_snapshots.dump(found))
    assert (raw["agent_role"], raw["compaction_trigger"], raw["recent_commits"]) == ("unknown", "unknown", [])
    assert "Sécond".encode() in plugin_snapshots.dump(found)
    assert list(raw["execution_state"]) == ["status", "title"]


def test_text_that_is_no_utf_8_is_written_as_escapes() -> None:
    found = Snapshot("x", "5", AT, None, {"title": "\ud800"}, None)

    assert json.loads(plugin_snapshots.dump(found))["execution_state"] == found.state


@pytest.mark.parametrize("key", ["snapshot_ts", "timestamp"])
@pytest.mark.parametrize("text", ["20261122T205510", "20261122205510", "2026-11-22T21:55:10.5+01:00"])
def test_the_text_supplies_the_time_that_the_name_lacks(key: str, text: str) -> None:
    data = json.dumps({"execution_state": STATE, "phase": 5, key: text}).encode()

    copy, named = plugin_snapshots.load("a-copy.json", data), plugin_snapshots.load("5-20261122T205511.json", data)
    assert copy is not None
    assert named is not None
    assert (copy.at, named.at) == (AT, AT + timedelta(seconds=1))


def test_the_name_supplies_fields_that_the_text_lacks() -> None:
    found = plugin_snapshots.load("snap-10-20261122205510.json", json.dumps({"execution_state": STATE}).encode())

    assert found == Snapshot("snap-10-20261122205510.json", "10", AT, None, STATE, None)


@pytest.mark.parametrize("state", ["{}", "null", "[]", '"{}"', "[{}]"])
def test_a_snapshot_without_a_state_is_damaged(state: str) -> None:
    assert (
        plugin_snapshots.load("5-20261122T205510.json", f'{{"execution_state":{state},"phase":"5"}}'.encode()) is None
    )


@pytest.mark.parametrize("data", [b"", b"\0" * 9, b"[]", b"{}", b'{"execution_state":{"phase":5},"phase":"5"'])
def test_junk_is_no_snapshot(data: bytes) -> None:
    assert plugin_snapshots.load("5-20261122T205510.json", data) is None


@pytest.mark.parametrize("name", ["5.json", "5-2026.json", "5-20269922T205510.json"])
@pytest.mark.parametrize("time", [5, "", "soon", "2026-99-22T20:55:10Z", "0001-01-01T00:00:00+23:00"])
def test_a_snapshot_without_any_time_is_damaged(name: str, time: object) -> None:
    assert (
        plugin_snapshots.load(name, json.dumps({"execution_state": STATE, "phase": 5, "timestamp": time}).encode())
        is None
    )


@given(names, contents)
@relaxed
def test_any_parsed_snapshot_survives_a_round_trip(name: str, data: bytes) -> None:
    found = plugin_snapshots.load(name, data)

    if found is not None:
        again = plugin_snapshots.load("a-copy.json", plugin_snapshots.dump(found))
        assert again == Snapshot("a-copy.json", *(getattr(found, key) for key in Snapshot.__slots__[1:]))


# -- names --------------------------------------------------------------------------------------------------------


def test_a_snapshot_name_holds_the_time_in_utc() -> None:
    there = AT.astimezone(timezone(timedelta(hours=2)))

    assert plugin_snapshots.file_name("03b", there) == "03b-20261122T205510.json"


@pytest.mark.parametrize("phase", ["", "../5", "a/b", "\0"])
def test_a_phase_that_cannot_stand_in_a_name_is_refused(phase: str) -> None:
    with pytest.raises(ValueError, match="cannot be a part"):
        plugin_snapshots.file_name(phase, AT)


# -- which to restore, which to remove ----------------------------------------------------------------------------


def test_the_newest_of_the_role_is_the_best_else_the_newest_at_all() -> None:
    old, dev, lead = snapshot(role="dev"), snapshot(seconds=1, role="yolo-dev-01"), snapshot(seconds=2, role="lead")
    unnamed = snapshot(seconds=3)

    assert plugin_snapshots.best([old, unnamed, dev, lead], "5", "yolo:dev") == dev
    assert plugin_snapshots.best([old, unnamed, dev, lead], "5", "qa") == unnamed
    for role in (None, "", "unknown"):
        assert plugin_snapshots.best([old, unnamed, dev, lead], "5", role) == unnamed


def test_only_snapshots_of_the_phase_are_restored_however_it_is_written() -> None:
    five, ten = snapshot("5"), snapshot("10", seconds=9)

    assert plugin_snapshots.best([five, ten], "05", None) == five
    assert plugin_snapshots.best([five, ten], None, None) == ten
    assert plugin_snapshots.best([five, ten], "1", None) is None
    assert plugin_snapshots.best([five, snapshot("5b", seconds=1)], "5", None) == five


def test_the_oldest_of_the_phase_are_surplus() -> None:
    names = [plugin_snapshots.file_name("1", AT + timedelta(seconds=n)) for n in range(12)]

    assert plugin_snapshots.surplus(reversed(names), "1") == names[:2]
    assert plugin_snapshots.surplus(names[:10], "1") == plugin_snapshots.surplus(names[:9], "1") == []
    assert plugin_snapshots.surplus(names, "1", keep=0) == names


@pytest.mark.parametrize(
    "name",
    ["10-20261122T205510.json", "1-2-20261122T205510.json", "01-20261122T205510.json", "1-20261122T205510.json.tmp",
     "1-20261122205510.json", "snap-1-20261122205510.json", "1-20269922T205510.json", "1-notes.json", "1-.json",
     "1-20261122T205510.json\n"],
)  # fmt: skip
def test_only_exact_snapshots_of_the_phase_are_removed(name: str) -> None:
    assert plugin_snapshots.surplus([name], "1", keep=0) == []
    assert plugin_snapshots.surplus(["1-20261122T205510.json", name], "1", keep=0) == ["1-20261122T205510.json"]


@given(
    st.lists(st.text() | st.from_regex(r"\A1(-2)?-2026112[0-9]T20551[0-9]\.json\Z"), unique=True),
    st.text() | st.just("1"),
)
@relaxed
def test_removals_in_any_folder_belong_to_the_phase(lying: list[str], phase: str) -> None:
    gone = plugin_snapshots.surplus(lying, phase, keep=1)

    assert gone == sorted(gone)
    assert all(name.startswith(f"{phase}-") and name in lying for name in gone)
    assert not gone or any(name > gone[-1] and name.startswith(f"{phase}-") for name in lying)
