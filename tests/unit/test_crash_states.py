"""Power cuts with any loss of unflushed writes: every acknowledged change is there, once, and nothing else is."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import yolo_supervisor
from support.budget import budget
from support.disks import CHANCES, CrashState, MemoryDisk, Model, crash_states
from yolo_supervisor.actions import notes
from yolo_supervisor.actions.agents import Died, Terminate
from yolo_supervisor.actions.base import Edit, Kind, Verb, WriteMode
from yolo_supervisor.fs.read import digest
from yolo_supervisor.store import backups as backups_module
from yolo_supervisor.store import journal as journal_module
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import History
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, Store

PROJECT = Path("/p")
DOCS = PROJECT / "docs"
PATHS = (DOCS / "a.json", DOCS / "b.json", DOCS / "locked.json", DOCS / "log.jsonl", DOCS / "new.json")
LOG = DOCS / "log.jsonl"
SEGMENT = 1500
"""The size of a segment in bytes: a few actions fill it."""


class StillClock:
    def now(self) -> datetime:
        return datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return 0.0


pytestmark = pytest.mark.timeout(budget(quick=600, full=1200, soak=3600))


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few hundred bytes a large document, and no segment old enough to be removed."""
    monkeypatch.setattr(backups_module, "INLINE", 900)
    monkeypatch.setattr(journal_module, "SEGMENTS", 1000)


# -- a life of a store, and its rules --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Put(Edit):
    """Make ``content`` the document if it has the expected digest."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "a test wants it so"
    expected_digest: str | None
    content: bytes | None

    @property
    def lock(self) -> tuple[Path, float] | None:
        return (self.path.with_name(self.path.name + ".lock"), 0.0) if self.path.stem == "locked" else None

    def holds(self, before: bytes | None) -> bool:
        return digest(before) == self.expected_digest

    def edit(self, before: bytes | None) -> bytes | None:
        return self.content


@dataclass(frozen=True, eq=False)
class Expected:
    """The state that users may rely on at some moment."""

    documents: dict[Path, tuple[bytes | None, ...]]
    """The possible contents of each document: one, or two while an action on it is not acknowledged."""
    done: frozenset[str] = frozenset()
    """The keys of acknowledged entries: the journal has each once."""
    open: frozenset[str] = frozenset()
    """The keys of entries that are not acknowledged: the journal has each once or not at all."""
    loose: frozenset[str] = frozenset()
    """The keys of entries that are acknowledged but not flushed: as open, until the next flushed one."""
    undecided: dict[Path, tuple[str, bytes | None]] | None = None
    """The newest unacknowledged edit of each document: the journal has it if and only if it is made."""
    good: tuple[str | None, ...] = (None,)
    """The digests that the newest good version may have."""


class Life:
    """A store at work, and its expected state."""

    def __init__(self, disk: MemoryDisk, seed: int = 0) -> None:
        self.disk = disk
        self.chance = random.Random(seed)
        self.expected = Expected({path: (disk.content(path),) for path in PATHS})
        self.number = 0
        self.seed = seed
        self.kept: str | None = None
        """The digest of the newest good version that was kept."""
        self.disk.tag = self.expected

    def key(self) -> str:
        self.number += 1
        return f"{self.seed}-{self.number}"

    def expect(self, **changes: Any) -> None:
        self.expected = replace(self.expected, **changes)
        self.disk.tag = self.expected

    def acknowledged(self, *keys: str) -> None:
        expected = self.expected
        done = expected.done | expected.loose | set(keys)
        last = len(expected.good) - 1 - expected.good[::-1].index(self.kept) if self.kept in expected.good else 0
        good = expected.good[last:]
        self.expect(done=done, open=expected.open - done, loose=frozenset(), good=good)

    # -- steps -----------------------------------------------------------------------------------------------------

    def put(self, store: Store, path: Path, content: bytes | None) -> None:
        key, before = self.key(), self.disk.content(path)
        expected = self.expected
        self.expect(
            documents={**expected.documents, path: (*expected.documents[path], content)},
            open=expected.open | {key},
            undecided={**(expected.undecided or {}), path: (key, content)},
        )
        mode = WriteMode.TRUNCATE if path == LOG else WriteMode.REPLACE
        action = Put(key=key, path=path, expected_digest=digest(before), content=content, write_mode=mode)
        outcome = store.commit(action, "test")
        if outcome is Outcome.BUSY:
            self.expect(**vars(expected))
            raise Busy("the store is locked", path)
        assert outcome is Outcome.DONE, outcome
        self.expect(
            documents={**self.expected.documents, path: (content,)},
            undecided={p: each for p, each in (self.expected.undecided or {}).items() if p != path},
        )
        self.acknowledged(key)

    def note(self, store: Store) -> None:
        key = self.key()
        self.expect(open=self.expected.open | {key})
        store.note(notes.daemon("reloaded", key=key, reason="asked to"), "test")
        self.acknowledged(key)

    def loose_note(self, store: Store) -> None:
        key = self.key()
        self.expect(open=self.expected.open | {key})
        store.note(Died(key=key, reason="its process has ended"), "test")
        self.expect(open=self.expected.open - {key}, loose=self.expected.loose | {key})

    def termination(self, store: Store) -> None:
        key = self.key()
        self.expect(open=self.expected.open | {key})
        action = Terminate(key=key, reason="its session is gone", roots=(), grace_s=10)
        begun = store.begin(action, "test")
        self.acknowledged(key)  # from here on the journal has it: how it ended, or that it was interrupted
        store.end(begun, action, "test", {"killed": [4242]})

    def abandoned_termination(self, store: Store) -> None:
        key = self.key()
        self.expect(open=self.expected.open | {key})
        begun = store.begin(Terminate(key=key, reason="gone", roots=(), grace_s=10), "test")
        self.acknowledged()  # it counts as interrupted if a crash takes the mark, which is not flushed
        store.abandon(begun, "nothing was left to signal")

    def keep(self, store: Store) -> None:
        data = b'{"good":%d}' % self.number
        self.number += 1
        self.expect(good=(*self.expected.good, str(digest(data))))
        store.keep(PATHS[0], data)
        self.kept = str(digest(data))

    def rotate(self, store: Store) -> None:
        with store._locked():
            store.journal.catch_up()
            store.journal.rotate()

    def content(self, path: Path) -> bytes | None:
        """Something that the document has never been."""
        now, self.number = self.disk.content(path), self.number + 1
        if path == LOG and now and self.chance.random() < 0.7:
            whole = now.splitlines(keepends=True)
            if len(whole) > 1:
                return b"".join(whole[: self.chance.randrange(1, len(whole))])
        if now is not None and self.chance.random() < 0.2:
            return None
        size = self.chance.choice([1, 2, 3, 10, 40, 120])
        return b"".join(b'{"n":%d.%d}\n' % (self.number, line) for line in range(size))

    def step(self, store: Store) -> None:
        """Take a random step."""
        if self.chance.random() < 0.5:
            self.disk.write_back(self.chance)
        steps: list[tuple[Callable[[Store], object], int]] = [
            (self.note, 2), (self.loose_note, 1), (self.termination, 1), (self.abandoned_termination, 1),
            (self.keep, 2), (lambda store: store.recover() and None, 1), (self.rotate, 1),
        ]  # fmt: skip
        path = self.chance.choice(PATHS)
        steps.append((lambda store: self.put(store, path, self.content(path)), 6))
        self.chance.choices([step for step, _ in steps], [weight for _, weight in steps])[0](store)


def new_disk(disk: MemoryDisk | None = None) -> MemoryDisk:
    """A disk with a project in which the plugin is used, all of it flushed."""
    disk = disk or MemoryDisk()
    for folder in (PROJECT, PROJECT / ".yolo-planning", DOCS):
        disk.mkdir(folder)
    disk.put(PATHS[0], b'{"n":0}')
    disk.put(PATHS[0].with_name("a.json.sha256"), b"0")
    disk.put(PATHS[2], b'{"n":"locked"}')
    disk.put(LOG, b"".join(b'{"line":%d}\n' % n for n in range(8)))
    disk.settle()
    return disk


def opened(disk: Disk) -> Store:
    store = Store(PROJECT, StillClock(), disk)
    store.journal._segment = SEGMENT
    store.open()
    return store


def recorded(disk: Disk) -> list[str]:
    history = History(Paths(PROJECT).journal)
    history._disk = disk
    return [entry.key for entry in sorted(history.new_entries(), key=lambda entry: entry.seq)]


def wrongs(disk: MemoryDisk, expected: Expected, gone_is_wrong: bool = True) -> Iterator[str]:
    """Yield the mistakes of the store after a recovery on this disk."""
    try:
        with closing(opened(disk)) as store:
            recovery = store.recover()
            if gone_is_wrong:
                yield from (f"false report: {damage}" for damage in recovery.damage if "gone" in damage)
            keys = recorded(disk)
            for path, allowed in expected.documents.items():
                found = disk.content(path)
                if found not in allowed:
                    yield f"{path.name} is {found!r:.60}, which is none of {allowed!r:.200}"
                key, content = (expected.undecided or {}).get(path, (None, None))
                if key is not None and (key in keys) != (found == content):
                    yield f"{path.name} is {found!r:.60}; is its edit {key} in the journal? {key in keys}"
            yield from (f"{key} was acknowledged and is not in the journal" for key in expected.done.difference(keys))
            yield from (
                f"{key} is in the journal and was never done"
                for key in set(keys) - expected.done - expected.open - expected.loose
            )
            yield from (f"{key} is in the journal twice" for key in set(keys) if keys.count(key) > 1)
            good = store.good(PATHS[0])
            if good not in expected.good and not recovery.damage:  # it may be lost with others, then that is reported
                yield f"the newest good version is {good}, which is none of {expected.good}"
            if digest(next(store.versions(PATHS[0]), None)) != good:
                yield "the newest good version is not there"
            changes = disk.changes
            if store.recover() or store.journal.pending or disk.changes != changes:
                yield "recovering twice is more than recovering once"
    except (OSError, Busy, ValueError, KeyError, TypeError, AssertionError) as error:
        yield f"{type(error).__name__}: {error}"


def worked_on(disk: MemoryDisk, expected: Expected) -> Iterator[str]:
    """Yield the mistakes if the next run continues after the recovery, and everything unflushed is lost then."""
    life = Life(disk)
    life.seed = 10**6
    keys = frozenset(recorded(disk))
    documents = {path: (disk.content(path),) for path in PATHS}
    with closing(opened(disk)) as store:
        life.kept = store.good(PATHS[0])
        life.expect(documents=documents, done=expected.done, open=keys - expected.done, good=(life.kept,))
        life.put(store, PATHS[1], b"later")
        life.note(store)
    nothing = next(iter(crash_states(disk, "posix", random.Random(0), 0)))
    yield from (f"after another commit: {wrong}" for wrong in wrongs(nothing.mount(), life.expected))


class Exploration:
    """Counts the crash states that were checked, and collects their mistakes."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.enumerated = self.distinct = 0
        self.wrong: list[str] = []
        self._seen: set[tuple[Any, Any]] = set()

    def crash(self, moment: MemoryDisk, chances: int = 0, deeper: float = 0.0) -> None:
        """Check the states that a power cut at this moment may leave."""
        models: tuple[Model, Model] = ("posix", "ext4")
        for model in models:
            for state in crash_states(moment, model, self.chance, chances):
                self.enumerated += 1
                if (key := (state.key, moment.tag)) not in self._seen:
                    self._seen.add(key)
                    self.look(state, model, deeper)

    def look(self, state: CrashState, model: Model, deeper: float) -> None:
        self.distinct += 1
        disk, expected = state.mount(), state.disk.tag
        recording = self.chance.random() < deeper
        if recording:
            disk.moments = []
        found = list(wrongs(disk, expected))
        moments, disk.moments = disk.moments, None
        if not found and self.chance.random() < 0.05:
            found += worked_on(disk, expected)
        self.wrong += (f"[{model}] {each}" for each in found)
        for moment in moments or ():
            self.crash(moment)

    def kill(self, moment: MemoryDisk) -> None:
        """Kill the process at this moment, and cut the power while the next one recovers and continues."""
        disk = moment.copy()
        disk.moments = []
        life = Life(disk)
        life.seed = 10**7
        life.expect(**vars(moment.tag))
        try:
            with closing(opened(disk)) as store:
                store.recover()
                life.kept = store.good(PATHS[0])
                life.expect(good=(*life.expected.good, life.kept))
                life.note(store)
                life.put(store, PATHS[1], b"after the kill")
        except (OSError, Busy, ValueError, KeyError, TypeError, AssertionError) as error:
            self.wrong.append(f"[kill] {type(error).__name__}: {error}")
        for each in disk.moments:
            self.crash(each)


def lived(seed: int, steps: int = 10, disk: MemoryDisk | None = None) -> list[MemoryDisk]:
    """The moments of a random life, from the making of the store on."""
    disk = new_disk(disk)
    life = Life(disk, seed)
    disk.moments = []
    stores: list[Store] = []
    for step in range(steps):
        if step == 0 or life.chance.random() < 0.15:  # another program, the first one stays open
            stores.append(opened(disk))
        life.step(life.chance.choice(stores))
    for store in stores:
        store.close()
    return disk.moments


def explored(budget: int, thorough: float = 0.0, deeper: float = 0.0, kills: float = 0.0) -> Exploration:
    """Cut the power at every moment of random lives, until ``budget`` states were checked.

    ``thorough``, ``deeper`` and ``kills`` are the shares of the moments at which every kind of loss is tried, of the
    recoveries that are cut themselves, and of the moments at which the process is killed and the power is cut later.
    """
    exploration = Exploration(412)
    for seed in itertools.count():
        for moment in lived(seed):
            cut_in_every_way = exploration.chance.random() < thorough
            exploration.crash(moment, CHANCES if cut_in_every_way else 0, deeper)
            if exploration.chance.random() < kills:
                exploration.kill(moment)
        if exploration.enumerated >= budget or len(exploration.wrong) > 100:
            break
    print(f"\n{exploration.enumerated} crash states of {seed + 1} lives, {exploration.distinct} distinct")
    return exploration


def test_power_cuts_lose_nothing_acknowledged_and_invent_nothing() -> None:
    exploration = explored(budget(quick=2_500, full=100_000, soak=1_000_000), thorough=0.03, deeper=0.002)

    assert exploration.wrong[:5] == []


def test_power_cut_during_recovery_loses_nothing() -> None:
    exploration = explored(budget(quick=1_000, full=50_000, soak=1_000_000), kills=0.1)

    assert exploration.wrong[:5] == []


# -- writes of other programs meanwhile ------------------------------------------------------------------------------


def test_external_writes_after_a_crash_are_never_overwritten() -> None:
    foreign = b"written by another program"
    for moment in lived(3)[::5]:
        for state in crash_states(moment, "posix", random.Random(1), 0):
            disk = state.mount()
            for path in PATHS:
                disk.put(path, foreign)
            with closing(opened(disk)) as store:
                store.recover()
            assert {disk.content(path) for path in PATHS} == {foreign}


# -- the disk in memory is like the real one -------------------------------------------------------------------------


@pytest.fixture(params=[Disk, MemoryDisk])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, Path]:
    """A disk, and an empty folder on it."""
    disk: Disk = request.param()
    if isinstance(disk, MemoryDisk):
        disk.mkdir(Path("/w"))
        return disk, Path("/w")
    return disk, tmp_path


def refused(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # which one is the answer
        call()
    return caught.value.errno


def new_file(disk: Disk, path: Path, data: bytes) -> None:
    fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert disk.write(fd, data) == len(data)
    disk.close(fd)


def test_files_are_written_read_cut_and_overwritten(world: tuple[Disk, Path]) -> None:
    disk, folder = world
    path = folder / "file"
    new_file(disk, path, b"0123456789")
    fd = disk.open(path, os.O_RDWR | os.O_APPEND)
    assert disk.write(fd, b"abc") == 3
    assert (disk.read_at(fd, 4, 8), disk.read_at(fd, 9, 13), disk.status_of(fd).st_size) == (b"89ab", b"", 13)
    disk.truncate(fd, 5)
    disk.sync(fd)
    assert disk.read(path) == b"01234"
    disk.truncate(fd, 7)
    assert disk.read(path) == b"01234\0\0"
    disk.close(fd)

    fd = disk.open(path, os.O_RDWR)
    assert disk.write_at(fd, b"xy", 1) == 2
    assert disk.write_at(fd, b"end", 9) == 3
    disk.chmod(fd, 0o640)
    assert disk.read(path) == b"0xy34\0\0\0\0end"
    assert stat.S_IMODE(disk.status_of(fd).st_mode) == 0o640
    disk.close(fd)

    assert refused(lambda: disk.read(path, limit=11)) == errno.EFBIG
    assert refused(lambda: disk.close(fd)) == errno.EBADF
    new_file(disk, path, b"")
    assert disk.read(path) == b""


def test_names_are_made_moved_linked_and_removed(world: tuple[Disk, Path]) -> None:
    disk, folder = world
    one, two, three = (folder / name for name in ("one", "two", "three"))
    new_file(disk, one, b"1")
    new_file(disk, two, b"2")
    disk.link(one, three)
    first, third = disk.status(one), disk.status(three)
    assert first is not None
    assert third is not None
    assert os.path.samestat(first, third)
    disk.rename(one, two)
    assert (disk.read(two), disk.read(three), disk.read(one), disk.status(one)) == (b"1", b"1", None, None)
    disk.rename(two, three)  # two names of one file: both stay, by POSIX
    assert sorted(disk.names(folder)) == ["three", "two"]

    held = disk.open(two, os.O_RDONLY)
    disk.unlink(two)
    disk.unlink(three)
    assert disk.read_at(held, 10, 0) == b"1"
    disk.close(held)

    disk.mkdir(one)
    new_file(disk, one / "in", b"")
    made = disk.status(one)
    assert made is not None
    assert stat.S_ISDIR(made.st_mode)
    assert refused(lambda: disk.rmdir(one)) == errno.ENOTEMPTY
    disk.rename(one, two)
    assert disk.names(two) == ["in"]
    disk.unlink(two / "in")
    disk.rmdir(two)
    assert disk.names(folder) == disk.names(two) == []
    fd = disk.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    disk.sync(fd)
    disk.close(fd)


def test_the_memory_disk_refuses_with_the_errno_of_a_real_disk(world: tuple[Disk, Path]) -> None:
    disk, folder = world
    file, sub, gone = folder / "file", folder / "sub", folder / "gone"
    new_file(disk, file, b"x")
    disk.mkdir(sub)
    reading = disk.open(file, os.O_RDONLY)

    calls: list[tuple[Callable[[], object], int]] = [
        (lambda: disk.open(gone, os.O_RDONLY), errno.ENOENT),
        (lambda: disk.open(gone / "x", os.O_RDWR | os.O_CREAT), errno.ENOENT),
        (lambda: disk.open(file / "x", os.O_RDWR | os.O_CREAT), errno.ENOTDIR),
        (lambda: disk.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL), errno.EEXIST),
        (lambda: disk.open(file, os.O_RDONLY | os.O_DIRECTORY), errno.ENOTDIR),
        (lambda: disk.open(sub, os.O_RDWR), errno.EISDIR),
        (lambda: disk.write(reading, b"x"), errno.EBADF),
        (lambda: disk.read(sub), errno.EINVAL),
        (lambda: disk.mkdir(sub), errno.EEXIST),
        (lambda: disk.mkdir(gone / "x"), errno.ENOENT),
        (lambda: disk.rmdir(gone), errno.ENOENT),
        (lambda: disk.rmdir(file), errno.ENOTDIR),
        (lambda: disk.unlink(gone), errno.ENOENT),
        (lambda: disk.rename(gone, file), errno.ENOENT),
        (lambda: disk.rename(file, sub), errno.EISDIR),
        (lambda: disk.rename(sub, file), errno.ENOTDIR),
        (lambda: disk.link(file, sub), errno.EEXIST),
        (lambda: disk.link(gone, folder / "new"), errno.ENOENT),
        (lambda: disk.link(sub, folder / "new"), errno.EPERM),
        (lambda: disk.names(file), errno.ENOTDIR),
    ]
    assert [refused(call) for call, _ in calls] == [number for _, number in calls]
    assert disk.status(file / "x") is None
    assert disk.read(file / "x") is None
    disk.close(reading)


def test_a_lock_is_held_by_one_until_it_lets_go_or_closes(world: tuple[Disk, Path]) -> None:
    disk, folder = world
    new_file(disk, folder / "lock", b"")
    one, two = (disk.open(folder / "lock", os.O_RDWR) for _ in range(2))

    disk.lock(one)
    disk.lock(one)
    assert refused(lambda: disk.lock(two)) == errno.EAGAIN
    disk.unlock(one)
    disk.lock(two)
    assert refused(lambda: disk.lock(one)) == errno.EAGAIN
    disk.close(two)
    disk.lock(one)
    disk.close(one)


def test_every_write_and_every_new_folder_has_a_unique_stamp(world: tuple[Disk, Path]) -> None:
    disk, folder = world
    stamps = set()
    for n in range(5):
        new_file(disk, folder / f"new-{n}", b"%d" % n)
        disk.rename(folder / f"new-{n}", folder / "file")
        found = disk.status(folder / "file")
        assert found is not None
        stamps.add((found.st_ino, found.st_mtime_ns))

    assert len(stamps) == 5


def test_only_a_flush_of_the_file_and_one_of_its_folder_make_a_new_file_durable() -> None:
    found = {}
    for file, folder in ((True, True), (True, False), (False, True), (False, False)):
        disk = MemoryDisk()
        fd = disk.open(Path("/f"), os.O_RDWR | os.O_CREAT)
        disk.write(fd, b"x")
        for flushed, path in ((file, Path("/f")), (folder, Path("/"))):
            if flushed:
                disk.sync(disk.open(path, os.O_RDONLY))
        found[file, folder] = {
            state.mount().content(Path("/f")) for state in crash_states(disk, "posix", random.Random(0))
        }

    assert found == {
        (True, True): {b"x"},
        (True, False): {b"x", None},
        (False, True): {b"x", b"\0", b""},
        (False, False): {b"x", b"\0", b"", None},
    }


def test_a_later_flush_does_not_restore_pages_of_a_failed_one() -> None:
    disk = MemoryDisk()
    fd = disk.open(Path("/f"), os.O_RDWR | os.O_CREAT)
    disk.write(fd, b"lost,")
    disk.lose(disk.nodes[2])
    disk.write(fd, b"kept")
    disk.sync(fd)

    assert disk.content(Path("/f")) == b"lost,kept"
    assert {state.mount().content(Path("/f")) for state in crash_states(disk, "posix", random.Random(0))} == {
        None, b"\0\0\0\0\0kept",
    }  # fmt: skip


# -- no other part writes ----------------------------------------------------------------------------------------------

PACKAGE = Path(yolo_supervisor.__file__).parent

OF_ANYTHING = {
    "write_text", "write_bytes", "touch", "unlink", "mkdir", "rmdir", "rename", "symlink_to", "hardlink_to", "chmod",
}  # fmt: skip
"""Methods that change files, whatever object they belong to."""

OF_MODULES = {
    "os": OF_ANYTHING | {"open", "write", "pwrite", "replace", "remove", "removedirs", "renames", "makedirs", "link",
                         "symlink", "truncate", "ftruncate", "fchmod", "utime"},
    "shutil": {"rmtree", "move", "copy", "copy2", "copyfile", "copytree"},
    "tempfile": {"mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile"},
}  # fmt: skip

SEAM = {"store/atomic.py", "store/disk.py", "store/locks.py", "fs/owner.py", "fs/read.py"}
"""The modules through which every durable change and every bounded read goes."""

EXCEPTIONS = {
    ("hook.py", "_write_note", "os.open"),  # a hook must be quick: it imports no other part
    ("hook.py", "_write_note", "os.write"),
    ("hook.py", "_write_note", "os.rename"),
    ("daemon/status_files.py", "remove_holder", "self._store.paths.holder.unlink"),  # an observation
    ("daemon/status_files.py", "prune", "outdated.unlink"),  # hooks' notes that were read
    ("cli/consent.py", "_adopter", "os.write"),  # a pipe
    ("fs/trust.py", "own_socket_place", "folder.mkdir"),  # the folder of a tmux socket, which no recovery needs
    ("log.py", "_put", "os.write"),  # the standard error
    ("log.py", "_open_terminal", "os.open"),
    ("log.py", "_append", "os.write"),  # the log file: it reports a failing disk, and is never read back
    ("log.py", "_append", "os.ftruncate"),
    ("log.py", "_append", "os.replace"),
    ("log.py", "_open", "os.open"),
    ("log.py", "_copy_for_the_user", "os.makedirs"),
    ("cli/app.py", "program", "os.open"),  # /dev/null, for a pipe that is gone
    ("commits/fast_path.py", "_open_lock", "os.open"),  # the commit lock: the store is not imported yet
    ("commits/fast_path.py", "_buffered_stdin", "tempfile.mkstemp"),  # the standard input, for a second run of git
    ("commits/fast_path.py", "_buffered_stdin", "os.unlink"),
    ("commits/fast_path.py", "_buffered_stdin", "os.write"),
    ("commits/fast_path.py", "_write", "os.write"),  # git's output
    ("commits/branch_update.py", "apply", "document.unlink"),  # the step is complete: nothing to recover
    ("commits/branch_update.py", "recover", "document.unlink"),
    ("commits/recovery.py", "_finish_interrupted", "document.unlink"),
    ("commits/branch_update.py", "index_locked", "lock.touch"),
    ("commits/branch_update.py", "index_locked", "lock.unlink"),
    ("commits/branch_update.py", "_step_once", "copy.rename"),
    ("commits/branch_update.py", "_step_once", "lock.unlink"),
    ("commits/branch_update.py", "copy_of", "self._copy.write_bytes"),  # a temporary index
    ("commits/branch_update.py", "copy_of", "self._copy.chmod"),
    ("commits/branch_update.py", "copy_of", "self._copy.unlink"),
    ("commits/branch_update.py", "copy_of", "self._document.unlink"),
    ("commits/branch_update.py", "copy_of", "os.utime"),
    ("commits/branch_update.py", "recover", "lock.unlink"),
    ("commits/branch_update.py", "_roll_back", "path.unlink"),  # the user's files, rolled back
    ("commits/branch_update.py", "_remove_empty", "folder.rmdir"),
    ("commits/backup.py", "copy_file", "open"),  # a temporary index
    ("commits/backup.py", "copy_file", "os.utime"),
    ("commits/backup.py", "copy_file", "os.unlink"),
    ("commits/push.py", "_back_up", "Path(copy).unlink"),
    ("commits/salvage_program.py", "_temporary_index", "os.makedirs"),  # another temporary index
    ("commits/salvage_program.py", "remove", "os.unlink"),
    ("commits/work_copy.py", "make", "os.makedirs"),  # each commit with hooks: the store is not imported
    ("commits/work_copy.py", "_write_record", "open"),  # a power cut leaves the ref
    ("commits/work_copy.py", "git_started", "open"),
    ("commits/work_copy.py", "resume_operation", "open"),
    ("commits/work_copy.py", "forget", "os.unlink"),
    ("commits/hidden_work.py", "_put_back", "os.unlink"),  # the user's files, as they were
    ("commits/hidden_work.py", "_restore_index", "new.rename"),  # git's own convention
    ("commits/hidden_work.py", "_restore_index", "lock.unlink"),
    ("commits/hidden_work.py", "_restore_index", "document.unlink"),
    ("commits/recovery.py", "_finish_hooks", "record.unlink"),
    ("commits/recovery.py", "_finish_hooks", "path.unlink"),
    ("commits/recovery.py", "_finish_interrupted", "copy.unlink"),
    ("commits/recovery.py", "_finish_interrupted", "shutil.rmtree"),  # the temporary checkout
    ("daemon/starts.py", "_place", "path.unlink"),  # the start document of a start that was not made
    ("launch.py", "lock", "os.makedirs"),  # the launcher imports no store; its lock holds nothing
    ("launch.py", "lock", "os.open"),
    ("launch.py", "take_document", "os.unlink"),  # a start document is used once
    ("mcp/pipes.py", "_write", "os.write"),  # a pipe
    ("store/state_folder.py", "_move", "shutil.copytree"),  # to another file system: complete before it gets its name
    ("store/state_folder.py", "_move", "shutil.rmtree"),
    ("cli/doctor.py", "_store", "folder.chmod"),  # its only repair
}
"""The writers around ``Disk``, with reasons. The drill is left out: its sandbox belongs to no user."""


def writes(call: ast.Call) -> bool:
    """Whether the call changes files around ``Disk``."""
    match call.func:
        case ast.Name("open"):
            return _for_writing(call.args[1:2] + [word.value for word in call.keywords if word.arg == "mode"])
        case ast.Attribute(ast.Name("os"), "open"):
            return "O_WRONLY" in ast.dump(call) or "O_RDWR" in ast.dump(call) or "O_CREAT" in ast.dump(call)
        case ast.Attribute(ast.Name(module), name) if module in OF_MODULES:
            return name in OF_MODULES[module]
        case ast.Attribute(owner, "open"):
            return not _is_disk(owner) and _for_writing(
                call.args[:1] + [word.value for word in call.keywords if word.arg == "mode"]
            )
        case ast.Attribute(owner, name):
            return name in OF_ANYTHING and not _is_disk(owner)
    return False


def _for_writing(modes: list[ast.expr]) -> bool:
    return any(isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") for mode in modes)


def _is_disk(owner: ast.expr) -> bool:
    return ast.unparse(owner) in (
        "disk",
        "self.disk",
        "self._disk",
        "Disk()",
        "store.disk",
        "self.store.disk",
        "self._store.disk",
    )


def test_all_writes_go_through_the_disk() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [each for each in ast.walk(function) if isinstance(each, ast.Call) and writes(each)]
                found |= {
                    (path.relative_to(PACKAGE).as_posix(), function.name, ast.unparse(each.func)) for each in calls
                }
    ours = {each for each in found if each[0] not in SEAM}

    assert {each for each in ours if not each[0].startswith("drill/")} - EXCEPTIONS == set()
    assert EXCEPTIONS - ours == set(), "no longer needed"
