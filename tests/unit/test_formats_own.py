"""Our own documents: they are read back as they were written, and no other content is taken for one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.models import Agent, LockStamp, Pane, ProcessId, SeenLock

BOOT = "8e4d0a6c:4026531836"
SINCE = datetime(2026, 11, 22, 20, 55, 10, 250_000, tzinfo=UTC)
DEV = Agent(
    id="dev-1@session-85d6cfb4", name="dev-1", role="dev", team="session-85d6cfb4", source="tmux", since=SINCE,
    process=ProcessId(412, 154701, BOOT), pid=412, pane=Pane(socket="/tmp/tmux-0/default", server_pid=400, pane="%1"),
    session="85d6cfb4-e039", claude_dir=Path("/home/u/.claude"),
)  # fmt: skip
words = st.text(min_size=1, max_size=20)
pids = st.integers(2, plugin_agents.MAX_PID)
ids = st.builds(ProcessId, pids, st.integers(0, 2**63), words)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
agents = st.builds(
    Agent,
    id=words, name=words, role=words, team=st.none() | words, source=words, since=moments,
    process=st.none() | ids, pid=st.none(),
    pane=st.none() | st.builds(Pane, socket=words, server_pid=st.integers(0), pane=words),
    lead=st.none() | words, session=st.none() | words, claude_dir=st.none() | words.map(Path),
).map(lambda agent: replace(agent, pid=agent.process.pid if agent.process else None))  # fmt: skip
trees = st.dictionaries(ids, st.lists(st.tuples(pids, st.integers(0, 2**63), pids), max_size=4), max_size=4)
relaxed = settings(deadline=None, max_examples=60)
WRITTEN: dict[str, bytes] = {
    "agent": own_files.dump_agent(DEV),
    "holder": own_files.dump_holder(own_files.Holder(ProcessId(7, 8, BOOT), "2026-11-22T20:55:10Z", "heal")),
    "trees": own_files.dump_trees({ProcessId(412, 154701, BOOT): ((ProcessId(413, 154702, BOOT), 412),)}),
}
PARSERS: dict[str, Callable[[bytes], object]] = {
    "agent": own_files.load_agent,
    "holder": own_files.load_holder,
    "trees": lambda data: own_files.load_trees(data) or None,
}


# -- agents -------------------------------------------------------------------------------------------------------


@given(agents)
@relaxed
def test_an_agent_is_read_back_as_it_was_written(agent: Agent) -> None:
    assert own_files.load_agent(own_files.dump_agent(agent)) == agent


@pytest.mark.parametrize("name", ["dev", "yolo-", "team-", "@", "-1", "yolo:team-"])
def test_an_agent_of_any_role_is_read_back(name: str) -> None:
    agent = replace(DEV, role=plugin_agents.normal_role(name))

    assert own_files.load_agent(own_files.dump_agent(agent)) == agent


def test_a_record_with_keys_of_a_later_version_is_read() -> None:
    raw = json.loads(own_files.dump_agent(DEV))

    assert own_files.load_agent(json.dumps({**raw, "version": 2, "mood": "fine"}).encode()) == DEV


@pytest.mark.parametrize("key", ["id", "name", "role", "since"])
@pytest.mark.parametrize("value", [None, "", 7, []])
def test_a_record_without_an_agent_is_unreadable(key: str, value: object) -> None:
    raw = json.loads(own_files.dump_agent(DEV))

    assert own_files.load_agent(json.dumps({**raw, key: value}).encode()) is None


@pytest.mark.parametrize(
    "process",
    [
        None,
        412,
        {"pid": 412},
        {"pid": 412, "started": None, "boot": BOOT},
        {"pid": 412, "started": 154701, "boot": None},
        {"pid": "412", "started": 154701, "boot": BOOT},
        {"pid": 412, "started": True, "boot": BOOT},
        *({"pid": pid, "started": 154701, "boot": BOOT} for pid in (0, 1, -1, True)),
    ],
)
def test_a_process_is_identified_by_all_three_or_not_at_all(process: object) -> None:
    raw = json.loads(own_files.dump_agent(DEV))

    assert own_files.load_agent(json.dumps({**raw, "process": process}).encode()) == replace(
        DEV, process=None, pid=None
    )


@pytest.mark.parametrize("pane", [None, "%1", {}, {"socket": "/s", "pane": "%1"}, {"socket": "", "server_pid": 4}])
def test_a_pane_is_known_by_all_three_or_not_at_all(pane: object) -> None:
    raw = json.loads(own_files.dump_agent(DEV))

    assert own_files.load_agent(json.dumps({**raw, "pane": pane}).encode()) == replace(DEV, pane=None)


@given(ident=st.text(min_size=1) | st.sampled_from([".", "..", "../x", "a/b", "~", "é" * 300]))
@relaxed
def test_the_record_of_any_agent_name_is_an_ordinary_file_name(
    ident: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("agents")
    path = folder / own_files.agent_file(replace(DEV, id=ident))

    path.write_bytes(own_files.dump_agent(DEV))

    assert os.listdir(folder) == [path.name]
    assert path.name.endswith(".json")


def test_an_agent_whose_name_was_cut_inside_an_emoji_has_a_record(tmp_path: Path) -> None:
    agent = replace(DEV, id="dev-\ud83d@t", name="dev-\ud83d")

    (tmp_path / own_files.agent_file(agent)).write_bytes(own_files.dump_agent(agent))

    assert [own_files.load_agent(path.read_bytes()) for path in tmp_path.iterdir()] == [agent]


def test_every_process_has_a_separate_record() -> None:
    successors = [
        replace(DEV, process=ProcessId(413, 154701, BOOT)),
        replace(DEV, process=ProcessId(412, 154702, BOOT)),
        replace(DEV, id="dev-2@session-85d6cfb4"),
        replace(DEV, id="dev/1@session-85d6cfb4"),
        replace(DEV, process=None),
    ]

    assert len({own_files.agent_file(agent) for agent in (DEV, *successors)}) == 6


def test_teammates_of_one_lead_have_separate_records_even_with_long_names() -> None:
    team = [replace(DEV, id=f"データベース移行を担当するエンジニア{number}@t") for number in ("一号", "二号")]

    assert len({own_files.agent_file(agent) for agent in team}) == 2


# -- trees --------------------------------------------------------------------------------------------------------


@given(trees)
@relaxed
def test_trees_are_read_back_as_they_were_written(sampled: dict[ProcessId, list[tuple[int, int, int]]]) -> None:
    written = {
        agent: tuple((ProcessId(pid, started, agent.boot), parent) for pid, started, parent in tree)
        for agent, tree in sampled.items()
    }

    assert own_files.load_trees(own_files.dump_trees(written)) == written


@pytest.mark.parametrize(
    "listed",
    [
        None,
        7,
        "trees",
        {},
        [None],
        ["boot"],
        [{"boot": BOOT}],
        [{"boot": BOOT, "agents": 7}],
        [{"boot": BOOT, "agents": [412]}],
        [{"boot": BOOT, "agents": [[412, 154701]]}],
        [{"boot": BOOT, "agents": [[412, 154701, [[413]]]]}],
        [{"boot": BOOT, "agents": [[412, "long ago", []]]}],
        [{"boot": BOOT, "agents": [[412, None, []]]}],
        [{"boot": BOOT, "agents": [[412, float("inf"), []]]}],
        [{"boot": BOOT, "agents": [[float("nan"), 154701, []]]}],
    ],
)
def test_trees_that_make_no_sense_are_none(listed: object) -> None:
    assert own_files.load_trees(json.dumps({"version": 1, "trees": listed}).encode()) == {}


# -- locks of git's -----------------------------------------------------------------------------------------------


def test_seen_locks_survive_a_round_trip() -> None:
    seen = {Path("/a/.git/index.lock"): SeenLock(stamp=LockStamp(1, 2, 3), holders=(ProcessId(7, 8, BOOT),))}

    assert own_files.load_seen_locks(own_files.dump_seen_locks(seen)) == seen


LOCK = {"path": "/a", "device": 1, "inode": 2, "changed_ns": 3, "holders": [{"pid": 7, "started": 8, "boot": BOOT}]}


@pytest.mark.parametrize(
    "listed",
    [
        None, 7, [7], [{}], [{**LOCK, "path": 7}], [{**LOCK, "inode": "2"}], [{**LOCK, "holders": []}],
        [{**LOCK, "holders": [*LOCK["holders"], {"pid": 7}]}],
    ],
)  # fmt: skip
def test_seen_locks_that_cannot_be_read_are_none(listed: object) -> None:
    assert own_files.load_seen_locks(json.dumps({"locks": listed}).encode()) == {}


# -- the daemon ---------------------------------------------------------------------------------------------------


@given(st.builds(own_files.Holder, ids, words, words, st.tuples(st.fixed_dictionaries({"name": words}))))
@relaxed
def test_the_supervisor_file_survives_a_round_trip(holder: own_files.Holder) -> None:
    assert own_files.load_holder(own_files.dump_holder(holder)) == holder


@pytest.mark.parametrize("process", [None, 7, {}, {"pid": 1, "started": 8, "boot": BOOT}, {"pid": 7, "started": 8}])
def test_a_supervisor_without_identity_is_unreadable(process: object) -> None:
    raw = json.loads(WRITTEN["holder"])

    assert own_files.load_holder(json.dumps({**raw, "process": process}).encode()) is None


# -- hook notes ---------------------------------------------------------------------------------------------------


def test_a_note_without_ancestors_or_payload_is_only_an_event() -> None:
    assert own_files.hook_note(b"", "Stop") == own_files.HookNote("Stop", (), {})


@given(st.binary())
@example(b"9" * 5000 + b":154701:node:7\n{}")
@example(b"412:154701:\xff\xfe:7\n[]")
@relaxed
def test_any_note_can_be_looked_at(data: bytes) -> None:
    note = own_files.hook_note(data, "Stop")

    assert all(pid >= 0 for pid, *_ in note.ancestry)


# -- anything else ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.binary())
@relaxed
def test_garbage_is_unreadable_and_raises_nothing_else(kind: str, data: bytes) -> None:
    assume(not data.lstrip().startswith(b"{"))

    assert PARSERS[kind](data) is None


@pytest.mark.parametrize("kind", PARSERS)
def test_a_half_written_file_is_unreadable_wherever_it_ends(kind: str) -> None:
    whole = WRITTEN[kind].rstrip()

    assert [PARSERS[kind](whole[:end]) for end in range(len(whole))] == [None] * len(whole)
    assert PARSERS[kind](whole) is not None


@pytest.mark.parametrize("kind", PARSERS)
@given(data=st.data())
@relaxed
def test_any_value_in_any_place_can_be_looked_at(kind: str, data: st.DataObject) -> None:
    raw: dict[str, Any] = json.loads(WRITTEN[kind])
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    raw[data.draw(st.sampled_from(sorted(raw)))] = data.draw(
        plain | st.lists(plain) | st.dictionaries(st.sampled_from(["pid", "started", "boot", "socket"]), plain)
    )

    PARSERS[kind](json.dumps(raw).encode())
