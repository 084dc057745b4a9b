"""The journal: damage of its file never falsifies an entry, and every unreadable part is reported."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.journal import an_entry
from yolo_supervisor.actions.agents import Died
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import History, history
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.journal import SEGMENTS, SIZE, Damage, Journal, segments
from yolo_supervisor.store.lines import Entry, GoodVersion, Version, Write, dump, entry, fields, load, seal, unseal

AT = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)
TASK = "session-85d6cfb4/1"
relaxed = settings(deadline=None, max_examples=60)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
records = st.builds(
    lambda seq, rest: {"seq": seq, **rest},
    st.integers(1, 2**53),
    st.dictionaries(st.text(max_size=8).filter(lambda key: key != "seq"), values, max_size=4),
)


def entry_of(action: str, key: str = TASK, kind: str = "task", **more: Any) -> Entry:
    return an_entry(action, key, kind, **more)


PROMISE: dict[str, Any] = {"write": Write(path="/x", before=None, after=None, replay=True)}


class World:
    """A folder with a journal, and the programs that write to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"
        self.quarantine = folder / "quarantine"
        self.quarantine.mkdir()
        self._opened: list[Journal] = []

    def journal(self, disk: Disk | None = None, size: int = SIZE) -> Journal:
        """The journal as another program that has read everything."""
        journal = Journal(self.path, disk or Disk(), self.quarantine, size)
        self._opened.append(journal)
        journal.catch_up()
        return journal

    def reader(self) -> Journal:
        journal = Journal(self.path, Disk(), self.quarantine)
        journal.load()
        return journal

    def seqs(self) -> list[int]:
        return [entry["seq"] for entry in history(self.path)]

    def close(self) -> None:
        for journal in self._opened:
            journal.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


# -- a line -------------------------------------------------------------------------------------------------------


@given(records)
@example({"seq": 1, "crc": "0" * 8, "text": ',"crc":"12345678"}\n\r\u2028\ud83d'})
@relaxed
def test_a_record_survives_a_round_trip(record: dict[str, Any]) -> None:
    line = seal(record)

    assert line.endswith(b"\n")
    assert line.splitlines(keepends=True) == [line]
    assert json.loads(unseal(line[:-1]) or b"") == record


@given(records.filter(lambda record: "crc" not in record))
@relaxed
def test_a_journal_line_is_plain_json(record: dict[str, Any]) -> None:
    raw = json.loads(seal(record))

    assert len(raw.pop("crc")) == 8
    assert raw == record


def test_values_unknown_to_json_are_written_as_text() -> None:
    assert json.loads(unseal(seal({"seq": 1, "path": Path("/x")})[:-1]) or b"") == {"seq": 1, "path": "/x"}


@given(st.binary() | records.map(lambda record: json.dumps(record).encode()))
@example(b"")
@example(b'{"seq":1,"crc":"zzzzzzzz"}')
@example(b'{"seq":1,"crc":"\xff\xff\xff\xff\xff\xff\xff\xff"}')
@relaxed
def test_an_unsealed_line_is_ignored(line: bytes) -> None:
    assert unseal(line) is None


@pytest.mark.parametrize("record", [{}, {"seq": "1"}, {"seq": True}, {"seq": 1.0}, {"seq": None}, {"sequence": 1}])
def test_a_line_without_a_number_is_none(record: dict[str, Any]) -> None:
    assert load(seal({"x": 1, **record})[:-1]) is None


@given(record=records, at=st.integers(0))
@relaxed
def test_a_cut_line_is_noticed(record: dict[str, Any], at: int) -> None:
    line = seal(record)[:-1]

    assert unseal(line[: at % len(line)]) is None


def test_any_single_flipped_bit_of_a_line_is_noticed() -> None:
    for seq in range(1, 30):  # together their checksums have every digit at many places
        line = dump(entry_of("requeued", seq=seq))[:-1]
        unnoticed = [flipped for _, flipped in _flips(line) if unseal(flipped) is not None]
        assert unnoticed == []


def _flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bit // 8, bytes(flipped)


# -- a damaged journal --------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_flipped_bit_costs_only_its_lines_and_is_reported(world: World) -> None:
    journal = world.journal()
    for action in ("requeued", "died", "requeued"):
        journal.append(entry_of(action), durable=False)
    data = world.path.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]

    for at, flipped in _flips(data):
        world.path.write_bytes(flipped)
        hit = next(n for n, end in enumerate(ends) if at < end)
        touched = {hit + 1, hit + 2} if at == ends[hit] - 1 else {hit + 1}  # a line without a newline swallows the next
        reader = world.reader()
        found = {entry["seq"]: entry for entry in history(world.path)}
        assert {1, 2, 3} - touched <= found.keys()
        assert all(
            entry == fields(entry_of("died" if seq == 2 else "requeued", seq=seq)) for seq, entry in found.items()
        )
        assert found.keys() == {1, 2, 3} or reader.damage or not flipped.endswith(b"\n")


def test_every_cut_of_a_journal_leaves_a_true_beginning_and_keeps_the_rest_aside(tmp_path: Path) -> None:
    whole = b"".join(dump(entry_of("requeued", seq=n)) for n in (1, 2))
    for end in range(len(whole) + 1):
        (folder := tmp_path / str(end)).mkdir()
        world = World(folder)
        world.path.write_bytes(whole[:end])
        kept = whole[: whole.rfind(b"\n", 0, end) + 1]

        journal = world.journal()

        assert world.path.read_bytes() == kept
        assert journal.seq == journal.index.requeues[TASK] == kept.count(b"\n")
        assert journal.damage == []
        assert b"".join(path.read_bytes() for path in world.quarantine.iterdir()) == whole[len(kept) : end]
        assert journal.append(entry_of("died"), durable=False) == journal.seq
        assert world.seqs() == [*range(1, kept.count(b"\n") + 2)]
        world.close()


def test_lines_torn_at_the_same_place_are_all_kept_aside(world: World) -> None:
    for torn in (b'{"seq":1,"first"', b'{"seq":1,"second"'):
        with world.path.open("ab") as file:
            file.write(torn)
        world.journal()

    assert {path.read_bytes() for path in world.quarantine.iterdir()} == {b'{"seq":1,"first"', b'{"seq":1,"second"'}


def test_a_damaged_line_is_reported_and_later_lines_are_kept(world: World) -> None:
    lines = [dump(entry_of("requeued", seq=n)) for n in (1, 2, 3)]
    world.path.write_bytes(lines[0] + b"\0" * 50 + b"\n" + lines[2])

    journal = world.journal()

    assert journal.damage == [Damage(len(lines[0]), "a line of 51 bytes cannot be read")]
    assert (journal.seq, journal.index.requeues[TASK], world.seqs()) == (3, 2, [1, 3])
    assert world.path.stat().st_size == 2 * len(lines[0]) + 51


def test_each_program_reports_damage_once(world: World) -> None:
    world.path.write_bytes(b"junk\n")
    journal = world.journal()

    journal.append(entry_of("died"), durable=False)
    journal.catch_up()

    assert journal.damage == world.reader().damage == [Damage(0, "a line of 5 bytes cannot be read")]


@given(st.lists(st.binary(max_size=30) | st.integers(1, 5).map(lambda n: dump(entry_of("requeued", seq=n)))))
@relaxed
def test_any_file_can_be_opened_and_written_on(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    world = World(tmp_path_factory.mktemp("journal"))
    world.path.write_bytes(b"".join(parts))

    journal = world.journal()
    before = world.seqs()
    journal.append(entry_of("redriven"), durable=False)

    assert world.seqs() == [*before, journal.seq]
    assert journal.seq not in before
    world.close()


# -- several writers ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), max_size=20))
@relaxed
def test_programs_that_take_turns_see_each_others_lines(
    tmp_path_factory: pytest.TempPathFactory, turns: list[int]
) -> None:
    world = World(tmp_path_factory.mktemp("journal"))
    journals = [world.journal() for _ in range(3)]

    for number, turn in enumerate(turns, 1):
        journals[turn].catch_up()
        assert journals[turn].append(entry_of("requeued"), durable=False) == number

    for journal in journals:
        journal.catch_up()
        assert (journal.seq, journal.index.requeues[TASK], journal.damage) == (len(turns), len(turns), [])
    world.close()


# -- the index ----------------------------------------------------------------------------------------------------


def test_requeues_are_counted_since_the_task_was_redriven(world: World) -> None:
    journal = world.journal()
    for action in ("requeued", "requeued", "redriven", "requeued"):
        journal.append(entry_of(action), durable=False)
    journal.append(entry_of("requeued", "session-85d6cfb4/2"), durable=False)

    assert journal.index.requeues == world.reader().index.requeues == {TASK: 1, "session-85d6cfb4/2": 1}


def test_a_promised_requeue_counts_when_it_is_done_and_only_then(world: World) -> None:
    journal = world.journal()
    kept, broken, open_ = (journal.append(entry_of("requeued", **PROMISE), durable=False) for _ in range(3))
    assert journal.index.requeues[TASK] == 0

    journal.mark(kept, "done")
    journal.mark(broken, "failed", "no room")

    for each in (journal, world.reader()):
        assert each.index.requeues[TASK] == 1
        assert each.pending.keys() == {open_}


@pytest.mark.parametrize("begun", [PROMISE, {"begun": True}])
@pytest.mark.parametrize("ending", ["done", "failed"])
def test_a_begun_action_is_pending_until_it_ends(world: World, begun: dict[str, Any], ending: Any) -> None:
    journal = world.journal()
    seq = journal.append(entry_of("terminated", **begun), durable=False)
    assert world.reader().pending == journal.pending == {seq: entry_of("terminated", seq=seq, **begun)}

    journal.mark(seq, ending)

    assert world.reader().pending == journal.pending == {}


def test_a_death_is_known_until_the_agent_is_registered_again(world: World) -> None:
    journal = world.journal()
    seen = []
    for action in ("registered", "died", "registered", "died"):
        journal.append(entry_of(action, "dev-1", "agent"), durable=False)
        seen.append(journal.index.recorded("dev-1", "died", since="registered"))

    assert seen == [False, True, False, True]
    assert not journal.index.recorded("dev-2", "died", since="registered")


def test_a_line_that_stands_in_two_segments_counts_once() -> None:
    index = Index()
    for _ in range(2):
        index.apply(entry_of("requeued", seq=1))

    assert index.requeues[TASK] == 1


def test_alerts_of_an_agent_are_dropped_with_it(world: World) -> None:
    journal = world.journal()
    for action in ("registered", "died", "forgotten"):
        journal.append(entry_of(action, "dev-1", "agent"), durable=False)

    assert not journal.index.recorded("dev-1", "died", since="registered")


def test_the_newest_line_of_an_action_is_its_end(world: World) -> None:
    journal = world.journal()
    begun = journal.append(entry_of("terminated", "dev-1", "agent", begun=True), durable=False)
    journal.append(entry_of("registered", "dev-1", "agent"), durable=False)
    journal.append(entry_of("terminated", "dev-1", "agent"), durable=False)
    journal.mark(begun, "done")

    assert journal.index.recorded("dev-1", "terminated", since="registered")


@pytest.mark.parametrize(
    ("actions", "ours"),
    [
        (["registered", "begun", "died", "ended"], [False, True, True, True]),
        (["registered", "died", "begun", "ended"], [False, False, False, False]),
        (["registered", "begun", "ended", "died", "registered"], [False, True, True, True, False]),
    ],
    ids=["ended by us", "leftovers of a dead agent", "registered again"],
)
def test_an_agent_was_ended_by_us_if_that_began_before_its_death(
    world: World, actions: list[str], ours: list[bool]
) -> None:
    journal, seen, begun = world.journal(), [], 0
    for action in actions:
        match action:
            case "begun":
                line = entry_of("terminated", "dev-1", "agent", begun=True)
            case "ended":
                line = entry_of("terminated", "dev-1", "agent", done=begun)
            case _:
                line = entry_of(action, "dev-1", "agent")
        number = journal.append(line, durable=False)
        begun = number if action == "begun" else begun
        seen.append(journal.index.terminated("dev-1"))

    assert seen == ours
    assert world.reader().index.terminated("dev-1") == ours[-1]


def test_an_old_promise_kept_late_does_not_hide_a_newer_line(world: World) -> None:
    journal = world.journal()
    old = journal.append(entry_of("died", "dev-1", "agent", **PROMISE), durable=False)
    journal.append(entry_of("registered", "dev-1", "agent"), durable=False)
    journal.append(entry_of("died", "dev-1", "agent"), durable=False)
    journal.mark(old, "done")

    assert journal.index.recorded("dev-1", "died", since="registered")


# -- a disk that refuses, a file that goes ------------------------------------------------------------------------


class FullDisk(Disk):
    """A disk with room for ``room`` more bytes."""

    room = 10**6

    def write(self, fd: int, data: bytes) -> int:
        written = super().write(fd, data[: self.room])
        self.room -= written
        return written


def test_a_failed_write_leaves_the_journal_unchanged(world: World) -> None:
    disk = FullDisk()
    journal = world.journal(disk)
    journal.append(entry_of("died"), durable=False)
    before = world.path.read_bytes()

    disk.room = 20
    with pytest.raises(OSError, match="No space left"):
        journal.append(entry_of("requeued"))
    assert (world.path.read_bytes(), journal.seq, journal.index.requeues[TASK]) == (before, 1, 0)

    disk.room = 10**6
    assert journal.append(entry_of("requeued")) == 2
    assert world.seqs() == [1, 2]


def test_a_mark_for_which_there_is_no_room_is_done_without(world: World) -> None:
    disk = FullDisk()
    journal = world.journal(disk)
    seq = journal.append(entry_of("requeued", **PROMISE), durable=False)
    disk.room = 0

    journal.mark(seq, "done")

    assert journal.pending == {}
    assert world.reader().pending.keys() == {seq}, "the next recovery finds out by looking"


class TearingDisk(Disk):
    """A disk on which the next write is cut short and cannot be taken back."""

    tearing = False

    def write(self, fd: int, data: bytes) -> int:
        return super().write(fd, data[: len(data) // 2] if self.tearing else data)

    def truncate(self, fd: int, size: int) -> None:
        if self.tearing:
            self.tearing = False
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().truncate(fd, size)


def test_nothing_is_written_after_a_half_written_line_that_could_not_be_cut_off(world: World) -> None:
    disk = TearingDisk()
    journal = world.journal(disk)
    kept = journal.append(entry_of("requeued", **PROMISE), durable=False)
    disk.tearing = True

    journal.mark(kept, "done")
    journal.append(entry_of("died"), durable=False)
    journal.rotate()

    for each in (journal, world.journal(), world.reader()):
        assert (each.damage, each.pending, each.index.requeues[TASK]) == ([], {}, 1)
    assert [entry["action"] for entry in history(world.path)] == ["requeued", "died"]


def _replace(path: Path) -> None:
    path.with_name("other").write_bytes(b"".join(dump(entry_of("died", seq=seq)) for seq in range(1, 41)))
    path.with_name("other").rename(path)


def _cut(path: Path) -> None:
    path.write_bytes(dump(entry_of("requeued", seq=1)))


@pytest.mark.parametrize(("change", "seq", "requeues"), [(_replace, 40, 0), (_cut, 1, 1)])
def test_a_replaced_journal_is_read_again(
    world: World, change: Callable[[Path], None], seq: int, requeues: int
) -> None:
    world.path.write_bytes(b"junk\n")
    journal = world.journal()
    for _ in range(3):
        journal.append(entry_of("requeued"), durable=False)
    journal.append(entry_of("requeued", **PROMISE), durable=False)

    change(world.path)
    journal.catch_up()

    assert (journal.seq, journal.index.requeues[TASK], journal.pending, journal.damage) == (seq, requeues, {}, [])
    assert journal.append(entry_of("died"), durable=False) == seq + 1
    assert world.seqs()[-1] == seq + 1


def test_a_journal_deleted_underneath_is_not_written_to_any_more(world: World) -> None:
    journal = world.journal()
    journal.append(entry_of("requeued"), durable=False)

    world.path.unlink()
    with pytest.raises(FileNotFoundError):
        journal.catch_up()

    journal.catch_up()
    assert (journal.seq, journal.index.requeues) == (0, {})
    assert journal.append(entry_of("died"), durable=False) == 1
    assert world.seqs() == [1]


def test_a_journal_whose_folder_is_gone_is_an_error(world: World) -> None:
    journal = world.journal()

    world.path.parent.rename(world.path.parent.with_name("moved"))

    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            journal.catch_up()


def test_a_link_is_no_journal(world: World) -> None:
    (target := world.path.with_name("precious")).write_bytes(b"torn")
    world.path.symlink_to(target)

    with pytest.raises(OSError, match="symbolic link"):
        world.journal()
    assert target.read_bytes() == b"torn"


# -- readers ------------------------------------------------------------------------------------------------------


def test_a_reader_changes_nothing(world: World) -> None:
    data = dump(entry_of("requeued", seq=1)) + b"junk\n" + b'{"seq":2,"torn'
    world.path.write_bytes(data)

    reader = world.reader()

    assert (reader.seq, len(reader.damage), world.seqs()) == (1, 1, [1])
    assert world.path.read_bytes() == data
    assert list(world.quarantine.iterdir()) == []


def test_without_a_journal_there_is_nothing_to_read(world: World) -> None:
    assert (world.reader().seq, world.seqs()) == (0, [])
    assert not world.path.exists()


def test_a_reader_that_looks_again_reads_on(world: World) -> None:
    journal = world.journal()
    journal.append(entry_of("requeued"), durable=False)
    reader = world.reader()

    journal.append(entry_of("requeued"), durable=False)
    reader.load()

    assert (reader.seq, reader.index.requeues[TASK]) == (2, 2)


# -- history ------------------------------------------------------------------------------------------------------


def test_history_lists_completed_actions_only(world: World) -> None:
    journal = world.journal()
    done = journal.append(entry_of("requeued", **PROMISE), durable=False)
    failed = journal.append(entry_of("released", **PROMISE), durable=False)
    journal.mark(failed, "failed", "no room")
    journal.mark(done, "done")
    begun = journal.append(entry_of("terminated", begun=True), durable=False)
    ended = journal.append(entry_of("terminated", evidence={"gone": [412]}), durable=False)
    journal.mark(begun, "done")

    assert history(world.path) == [
        fields(entry_of("requeued", seq=done)),
        fields(entry_of("terminated", seq=ended, evidence={"gone": [412]})),
    ]


def test_history_can_be_followed_from_where_it_was_left(world: World) -> None:
    journal = world.journal()
    followed = History(world.path)
    seen = []
    for action in ("requeued", "died", "requeued"):
        journal.append(entry_of(action), durable=False)
        seen.append([entry.seq for entry in followed.new_entries()])

    assert seen == [[1], [2], [3]]
    assert [*followed.new_entries()] == []


def test_a_follower_hears_of_a_promise_when_it_is_kept(world: World) -> None:
    journal = world.journal()
    followed = History(world.path)
    promised = journal.append(entry_of("requeued", **PROMISE), durable=False)
    journal.append(entry_of("died"), durable=False)
    before = [entry.seq for entry in followed.new_entries()]

    journal.mark(promised, "done")

    assert (before, [entry.seq for entry in followed.new_entries()]) == ([2], [1])


def test_an_entry_has_the_keys_that_history_promises() -> None:
    action = Died(key="dev-1", reason="its process is over", evidence={"pid": 412})

    assert fields(entry(action, "agents", AT, Path("/x"), prefix="would_")) == {
        "seq": 0,
        "at": "2026-11-22T20:55:10.000000Z",
        "kind": "agent",
        "key": "dev-1",
        "action": "would_died",
        "by": "agents",
        "reason": "its process is over",
        "evidence": {"pid": 412},
        "project": "/x",
    }


# -- segments -----------------------------------------------------------------------------------------------------


def remembered(journal: Journal) -> tuple[object, ...]:
    """The state that must survive every rotation."""
    return (
        journal.seq,
        journal.pending,
        journal.index.requeues,
        journal.index.good_versions,
        journal.index.recorded("a", "died", "x"),
    )


def live(journal: Journal, lines: int = 30) -> list[dict[str, Any]]:
    """Write lines of every kind; the entries that ``history`` must show."""
    entries = []
    for n in range(lines):
        match n % 6:
            case 0:
                entries.append({"seq": journal.append(entry_of("requeued", f"red/{n % 4}"), durable=False)})
            case 1:
                journal.append(GoodVersion(good=Version(f"/x/{n % 4}", f"{n:064x}")), durable=False)
            case 2:
                seq = journal.append(entry_of("released", **PROMISE), durable=False)
                journal.mark(seq, "done")
                entries.append({"seq": seq})
            case 3:
                journal.append(entry_of("restored", **PROMISE), durable=False)
            case 4:
                entries.append({"seq": journal.append(entry_of("died", "a", "agent"), durable=False)})
            case 5:
                journal.append(entry_of("terminated", "b", "agent", begun=True), durable=False)
    return entries


@pytest.mark.parametrize("segment", [1, 60, 200, 500, 1000, 3000, 10**6])
def test_small_segments_lose_nothing(world: World, segment: int) -> None:
    whole, parted = World(world.path.parent / "quarantine"), world.journal(size=8 * segment)
    expected = whole.journal()
    live(expected), live(parted)

    for journal in (parted, world.journal(), world.reader()):
        assert journal.index.requeues == expected.index.requeues
        assert journal.index.good_versions == expected.index.good_versions
        assert journal.index.recorded("a", "died", "x")
        assert [line.action for line in journal.pending.values()] == ["restored", "terminated"] * 5
        assert journal.damage == []
    whole.close()


@pytest.mark.parametrize("segment", [700, 1500, 10**6])
def test_history_covers_all_remaining_segments(world: World, segment: int) -> None:
    journal = world.journal(size=8 * segment)

    entries = [entry["seq"] for entry in live(journal)]

    assert world.seqs()[-3:] == entries[-3:]
    assert world.seqs() == entries[-len(world.seqs()) :]
    assert len(segments(Disk(), world.path)) > 1 or segment == 10**6


def test_a_follower_misses_nothing_and_hears_nothing_twice_over_the_segments(world: World) -> None:
    journal, followed = world.journal(size=8 * 300), History(world.path)
    heard, written = [], []
    for _ in range(40):
        written.append(journal.append(entry_of("died"), durable=False))
        if journal.seq % 3 == 0:
            heard += [entry.seq for entry in followed.new_entries()]

    assert heard + [entry.seq for entry in followed.new_entries()] == written
    assert len(segments(Disk(), world.path)) > 2


def test_a_follower_that_reads_in_the_very_moment_of_a_rotation_misses_nothing(world: World) -> None:
    journal, followed = world.journal(), History(world.path)
    journal.append(entry_of("died"), durable=False)
    heard = [entry.seq for entry in followed.new_entries()]

    class Meanwhile(Disk):
        def read(self, path: Path, limit: int = 0) -> bytes | None:
            if self is followed._disk:
                followed._disk = Disk()
                for _ in range(3):
                    journal.append(entry_of("died"), durable=False)
                journal.rotate()
                for _ in range(3):
                    journal.append(entry_of("died"), durable=False)
            return super().read(path, limit or 2**32)

    followed._disk = Meanwhile()
    for _ in range(2):
        heard += [entry.seq for entry in followed.new_entries()]

    assert heard == world.seqs()
    assert len(heard) == 7


def test_a_promise_survives_segments_and_keeps_its_number(world: World) -> None:
    journal = world.journal()
    promised = journal.append(entry_of("requeued", **PROMISE), durable=False)
    for _ in range(3):
        journal.rotate()

    other = world.journal()
    assert other.pending[promised] == entry_of("requeued", seq=promised, **PROMISE)
    other.mark(promised, "done")

    assert (world.reader().index.requeues[TASK], world.reader().pending) == (1, {})
    assert world.seqs() == [promised]


def test_closed_segments_are_bounded_and_the_oldest_go(world: World) -> None:
    journal = world.journal(size=8 * 500)

    for _ in range(200):
        journal.append(entry_of("died"), durable=False)

    closed = segments(Disk(), world.path)
    assert len(closed) == SEGMENTS
    assert all(path.stat().st_size < 1000 for path in [*closed, world.path])
    assert world.seqs()[-1] == journal.seq
    numbers = world.seqs()
    assert numbers == sorted(numbers)


def test_writers_notice_that_another_has_begun_a_new_segment(world: World) -> None:
    one, other = world.journal(), world.journal()
    for n in range(6):
        (one, other)[n % 2].catch_up()
        (one, other)[n % 2].append(entry_of("requeued"), durable=False)
        (one, other)[n % 2].rotate()

    one.catch_up()
    assert remembered(one) == remembered(other)
    assert one.index.requeues[TASK] == 6
    assert len(world.seqs()) == 6


class CutOff(BaseException):
    """The end of a process."""


class MortalDisk(Disk):
    """A disk whose process ends at its n-th operation from now on."""

    left = 10**9

    def _live(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CutOff

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._live()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes) -> int:
        self._live()
        return super().write(fd, data)

    def write_at(self, fd: int, data: bytes, at: int) -> int:
        self._live()
        return super().write_at(fd, data, at)

    def link(self, old: Path, new: Path) -> None:
        self._live()
        super().link(old, new)

    def rename(self, old: Path, new: Path) -> None:
        self._live()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._live()
        super().unlink(path)


@pytest.mark.parametrize("operations", range(14))
def test_a_crash_at_any_moment_of_a_rotation_costs_nothing(world: World, operations: int) -> None:
    disk = MortalDisk()
    journal = world.journal(disk)
    entries = [entry["seq"] for entry in live(journal)]
    before = remembered(journal)[1:]
    disk.left = operations

    try:
        journal.rotate()
    except CutOff:
        pass
    journal._fd = -1  # its process is gone

    for each in (world.reader(), world.journal()):
        assert remembered(each)[1:] == before
        assert each.damage == []
    assert sorted(world.seqs()) == entries
    assert list(world.path.parent.glob("journal.jsonl")) == [world.path]
    again = world.journal()
    again.append(entry_of("died"), durable=False)
    again.rotate()
    assert sorted(world.seqs()) == [*entries, world.seqs()[-1]]
    assert remembered(again)[1:] == before


class NoSecondName(Disk):
    """A disk on which nothing can be renamed."""

    on = True

    def rename(self, old: Path, new: Path) -> None:
        if self.on:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().rename(old, new)


def test_a_rotation_that_fails_leaves_the_segment_in_use(world: World) -> None:
    disk = NoSecondName()
    journal = world.journal(disk, size=8 * 100)
    for n in range(1, 4):
        assert journal.append(entry_of("requeued"), durable=False) == n
    assert world.seqs() == [1, 2, 3]

    disk.on = False
    for _ in range(3):
        journal.append(entry_of("requeued"), durable=False)

    assert len(world.seqs()) == world.journal().index.requeues[TASK] == 6
    assert len(segments(Disk(), world.path)) > 1


def test_an_unreadable_checkpoint_is_reported_and_replaced_from_older_segments(
    world: World,
) -> None:
    journal = world.journal()
    live(journal)
    journal.rotate()
    journal.append(entry_of("requeued"), durable=False)
    expected = remembered(journal)
    data = bytearray(world.path.read_bytes())
    data[5] ^= 1
    world.path.write_bytes(data)

    for each in (world.reader(), world.journal()):
        assert len(each.damage) == 1
        assert remembered(each) == expected


@pytest.mark.parametrize("twice", [1, 2, 3])
def test_every_damaged_journal_is_kept(world: World, twice: int) -> None:
    junk = [b"junk %d\n" % n for n in range(twice)]
    for data in junk:
        world.path.write_bytes(data)
        world.journal().rotate()

    closed = [path.read_bytes() for path in segments(Disk(), world.path)]

    assert [data for data in junk if data not in closed] == []


def test_a_journal_that_was_restored_from_an_older_copy_loses_no_line_at_its_next_rotation(world: World) -> None:
    journal = world.journal()
    for _ in range(3):
        journal.append(entry_of("died"))
    copy = world.path.read_bytes()
    journal.append(entry_of("died"))
    journal.rotate()
    world.path.write_bytes(copy)

    after = world.journal()
    new = after.append(entry_of("requeued"))
    after.rotate()

    assert new in world.seqs()
    assert world.reader().index.requeues[TASK] == 1


# -- the watermark ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_journal_whose_end_was_cut_off_is_damaged_and_gives_no_number_twice(world: World, kept: int) -> None:
    journal = world.journal()
    for _ in range(5):
        journal.append(entry_of("died"))
    lines = world.path.read_bytes().splitlines(keepends=True)
    world.path.write_bytes(b"".join(lines[:kept]))

    for each in (world.reader(), world.journal()):
        assert [damage.what for damage in each.damage] == [f"lines {kept + 1} to 5 were written and are gone"]
        assert each.seq == 5
    again = world.journal()
    assert again.append(entry_of("died")) == 6
    assert world.seqs() == [*range(1, kept + 1), 6]


def test_a_journal_replaced_by_an_older_copy_is_reported(world: World) -> None:
    journal = world.journal()
    journal.append(entry_of("requeued"))
    copy = world.path.read_bytes()
    journal.append(entry_of("requeued"))
    world.path.with_name("copy").write_bytes(copy)
    world.path.with_name("copy").rename(world.path)

    journal.catch_up()

    assert [damage.what for damage in journal.damage] == ["lines 2 to 2 were written and are gone"]


def test_lines_without_durability_may_be_lost_silently(world: World) -> None:
    journal = world.journal()
    journal.append(entry_of("requeued"))
    journal.append(entry_of("died"), durable=False)
    world.path.write_bytes(world.path.read_bytes().splitlines(keepends=True)[0])

    assert world.journal().damage == []


@pytest.mark.parametrize("mark", [b"", b"junk", b"\0" * 48, seal({"seq": "5"}), b"\xff"])
def test_an_unreadable_mark_is_ignored(world: World, mark: bytes) -> None:
    journal = world.journal()
    journal.append(entry_of("requeued"))
    world.path.with_name("journal.mark").write_bytes(mark)

    again = world.journal()

    assert (again.damage, again.seq) == ([], 1)
    assert again.append(entry_of("requeued")) == 2


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/nowhere")])
def test_writes_succeed_without_a_watermark_file(world: World, make: Callable[[Path], object]) -> None:
    make(world.path.with_name("journal.mark"))

    journal = world.journal()

    assert journal.append(entry_of("requeued")) == 1
    assert world.reader().index.requeues[TASK] == 1


# -- a flush that fails -------------------------------------------------------------------------------------------


class UnflushingDisk(Disk):
    """A disk whose next flushes of files fail."""

    failing = 0

    def sync(self, fd: int) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_after_a_flush_that_failed_nothing_is_written_to_that_segment_any_more(world: World) -> None:
    disk = UnflushingDisk()
    journal = world.journal(disk)
    journal.append(entry_of("requeued"))
    disk.failing = 1
    with pytest.raises(OSError, match="could not be flushed"):
        journal.append(entry_of("requeued"))
    spoiled = world.path.stat().st_ino

    assert journal.append(entry_of("requeued")) > 1

    assert world.path.stat().st_ino != spoiled
    assert len(world.seqs()) == world.journal().index.requeues[TASK] == 2


def test_failing_flushes_acknowledge_nothing_and_later_ones_do(world: World) -> None:
    disk = UnflushingDisk()
    journal = world.journal(disk)
    journal.append(entry_of("requeued"))
    disk.failing = 10**6
    for _ in range(5):
        with pytest.raises(OSError, match=r"flushed|Input/output"):
            journal.append(entry_of("requeued"))
        assert world.seqs() == [1]

    disk.failing = 0

    journal.append(entry_of("requeued"))
    assert len(world.seqs()) == world.journal().index.requeues[TASK] == 2
    assert world.journal().damage == []
