"""Power cuts at every operation on the disk, and a failure of every operation, for each action."""

from __future__ import annotations

import contextlib
import errno
import inspect
import itertools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args, get_type_hints
from unittest.mock import Mock

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from support.budget import TIER, cases
from support.project import QuickDisk
from yolo_supervisor.actions import agents, base, circuits, flags, leases, notes, state, tasks
from yolo_supervisor.actions.agents import Register, Restart, SaveWork, UpdateRecord
from yolo_supervisor.actions.base import Edit, Kind, Note, Verb
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.state import DropHealth, DropPids, Restore, SaveSnapshot, SetMarker
from yolo_supervisor.actions.tasks import Claim, Complete, MoveToDeadLetters, Requeue, WriteDeadLetter
from yolo_supervisor.commits.salvage import Saved, SaveOutcome
from yolo_supervisor.daemon.alerts import AlertLog, FailureLog
from yolo_supervisor.daemon.salvage import WorkSaver
from yolo_supervisor.formats import crash_report
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.crash_report import CrashCause, Evidence, Report, Verdict
from yolo_supervisor.formats.launch import Launch
from yolo_supervisor.fs.read import digest
from yolo_supervisor.inventory.saved_work import SavedWork
from yolo_supervisor.models import Agent, Task
from yolo_supervisor.store.history import history
from yolo_supervisor.store.lines import RestartState
from yolo_supervisor.store.store import Outcome, Store


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, if there is such a file system, for the thousands of projects of a test."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="yolo-supervisor-tests-", dir="/dev/shm") as folder:
        yield Path(folder)


# -- the disks ---------------------------------------------------------------------------------------------------


class CountingDisk(QuickDisk):
    """A disk that calls ``interfere`` before its n-th operation."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps = 0

    @property
    def reached(self) -> bool:
        return self.steps >= self.at

    def step(self) -> None:
        self.steps += 1
        if self.reached:
            self.interfere()

    def interfere(self) -> None:
        raise NotImplementedError

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self.step()
        return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes) -> int:
        try:
            self.step()
        except BaseException:
            super().write(fd, data[: len(data) // 2])
            raise
        return super().write(fd, data)

    def truncate(self, fd: int, size: int) -> None:
        self.step()
        super().truncate(fd, size)

    def sync(self, fd: int) -> None:
        self.step()
        super().sync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self.step()
        super().rename(old, new)

    def exchange(self, one: Path, other: Path) -> None:
        self.step()
        super().exchange(one, other)

    def link(self, old: Path, new: Path) -> None:
        self.step()
        super().link(old, new)

    def write_at(self, fd: int, data: bytes, at: int) -> int:
        self.step()
        return super().write_at(fd, data, at)

    def unlink(self, path: Path) -> None:
        self.step()
        super().unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self.step()
        super().mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        self.step()
        super().rmdir(path)


class PowerCut(BaseException):
    """The end of a process by a power cut."""


Loss = Literal["nothing", "data", "names"]


class MortalDisk(CountingDisk):
    """A disk with a power cut at its n-th operation, a write half done; nothing reaches it afterwards.

    ``lose`` then takes what was never flushed, as the weakest file systems may: the data of files (they become as
    short as they were at their last flush) or the names in folders (files come back, go again, get their old content).
    """

    def __init__(self, at: int) -> None:
        super().__init__(at)
        self._unflushed: dict[int, tuple[int, int]] = {}
        self._unnamed: list[tuple[Path, Callable[[], object]]] = []

    def interfere(self) -> None:
        raise PowerCut

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        made = not path.exists()
        fd = super().open(path, flags, mode)
        if made:
            self._unnamed.append((path.parent, lambda: path.unlink(missing_ok=True)))
        return fd

    def write(self, fd: int, data: bytes) -> int:
        found = os.fstat(fd)
        if found.st_ino not in self._unflushed:
            self._unflushed[found.st_ino] = os.dup(fd), found.st_size
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            self._unnamed = [(f, undo) for f, undo in self._unnamed if f.stat().st_ino != found.st_ino]
        elif found.st_ino in self._unflushed:
            os.close(self._unflushed.pop(found.st_ino)[0])

    def rename(self, old: Path, new: Path) -> None:
        before = new.read_bytes() if new.is_file() else None
        super().rename(old, new)
        if new.is_file():
            self._unnamed.append((new.parent, lambda: self._rename_back(old, new, before)))

    def exchange(self, one: Path, other: Path) -> None:
        super().exchange(one, other)
        self._unnamed.append((other.parent, lambda: self._exchange_back(one, other)))

    def _exchange_back(self, one: Path, other: Path) -> None:
        now = other.with_name("now")
        other.rename(now)
        if one.exists():
            one.rename(other)
        now.rename(one)

    def _rename_back(self, old: Path, new: Path, before: bytes | None) -> None:
        new.rename(old)
        if before is not None:
            new.write_bytes(before)

    def link(self, old: Path, new: Path) -> None:
        super().link(old, new)
        self._unnamed.append((new.parent, lambda: new.unlink(missing_ok=True)))

    def unlink(self, path: Path) -> None:
        before = path.read_bytes() if path.is_file() else b""
        super().unlink(path)
        self._unnamed.append((path.parent, lambda: path.write_bytes(before)))

    def lose(self, what: Loss) -> None:
        if what == "data":
            for fd, size in self._unflushed.values():
                os.ftruncate(fd, size)
        if what == "names":
            for _, undo in reversed(self._unnamed):
                undo()
        for fd, _ in self._unflushed.values():
            os.close(fd)


class FailingDisk(CountingDisk):
    """A disk whose n-th operation fails, and all later ones too unless it fails ``once``, until ``repaired`` is set."""

    def __init__(self, at: int, number: int, once: bool) -> None:
        super().__init__(at)
        self.repaired = False
        self._number = number
        self._once = once

    def interfere(self) -> None:
        if not self.repaired and (self.steps == self.at or not self._once):
            raise OSError(self._number, os.strerror(self._number))


# -- changes: one for each edit of a document --------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """An action, and the content of its document before and after it."""

    action: Edit
    before: bytes | None
    after: bytes | None

    @property
    def now(self) -> bytes | None:
        return self.action.path.read_bytes() if self.action.path.exists() else None

    def begin(self) -> None:
        if not self.action.makes_folder:
            self.action.path.parent.mkdir(parents=True, exist_ok=True)
        self.action.path.unlink(missing_ok=True)
        if self.before is not None:
            self.action.path.write_bytes(self.before)

    def time_passes(self) -> None:
        """Let the lock that the crash left become stale, and its owners break it."""
        if self.action.lock and self.action.lock[0].is_dir():
            self.action.lock[0].rmdir()


SINCE = datetime(2026, 11, 22, 20, 31, 56, tzinfo=UTC)
AGENT = Agent(id="dev-1@team", name="dev-1", role="dev", team="team", source="test", since=SINCE)
LEASE = b'{\n  "acquired_at": "2026-02-01T00:00:00Z",\n  "owner": "dev-1",\n  "resource": "r",\n  "ttl_secs": 300\n}'


def _register(p: Path) -> Change:
    path = p / ".supervisor" / "agents" / own_files.agent_file(AGENT)
    return Change(Register(key=AGENT.id, path=path, agent=AGENT, reason="seen"), None, own_files.dump_agent(AGENT))


def _update_record(p: Path) -> Change:
    path = p / ".supervisor" / "agents" / own_files.agent_file(AGENT)
    more = replace(AGENT, lists=("red",))
    action = UpdateRecord(key=AGENT.id, path=path, agent=more, reason="more is known")
    return Change(action, own_files.dump_agent(AGENT), own_files.dump_agent(more))


def _forget(p: Path) -> Change:
    path = p / ".supervisor" / "agents" / own_files.agent_file(AGENT)
    return Change(agents.forget(key=AGENT.id, path=path, reason="all is healed"), own_files.dump_agent(AGENT), None)


def _requeue(p: Path) -> Change:
    task = Task(list="team", number="1", status="in_progress", owner="dev-1", path=p / "tasks" / "1.json")
    return Change(
        Requeue(key="team/1", task=task, owner="dev-1", cause="died", reason="dev-1 is dead"),
        b'{\n  "id": "1",\n  "status": "in_progress",\n  "more": "Gr\xc3\xb6\xc3\x9fe",\n  "owner": "dev-1"\n}',
        b'{\n  "id": "1",\n  "status": "pending",\n  "more": "Gr\xc3\xb6\xc3\x9fe"\n}',
    )


def _requeue_plan(p: Path) -> Change:
    path = p / ".execution-state.json"
    plan = Task(list="execution-state", number="05-01", status="running", owner=None, path=path)
    return Change(
        Requeue(key=plan.id, task=plan, owner=None, cause="died", reason="dead"),
        b'{"phase":5,"plans":[{"id":"05-01","status":"running"}]}',
        b'{"phase":5,"plans":[{"id":"05-01","status":"pending"}]}',
    )


def _release(p: Path) -> Change:
    return Change(Release(key="r", path=p / ".locks" / "r.lease", owner="dev-1", reason="dead"), LEASE, None)


def _drop_pids(p: Path) -> Change:
    gone, lock = frozenset({4242}), p / "pid-lock"
    action = DropPids(key="pids", path=p / ".agent-pids", pids=gone, pid_lock=lock, reason="dead")
    return Change(action, b"4242\n4243\n", b"4243\n")


def _drop_health(p: Path) -> Change:
    action = DropHealth(key="dev", path=p / ".agent-health" / "dev.json", pid=4242, reason="dead")
    return Change(action, b'{"pid":4242,"role":"dev"}', None)


def _set_mark(p: Path) -> Change:
    path = p / ".active-agent-count"
    action = SetMarker(key="count", path=path, expected_digest=digest(b"2"), data=b"1", reason="one is dead")
    return Change(action, b"2", b"1")


def _remove_mark(p: Path) -> Change:
    action = SetMarker(key="agent", path=p / ".active-agent", expected_digest=digest(b"dev"), data=None, reason="dead")
    return Change(action, b"dev", None)


def _lend(p: Path) -> Change:
    path = p / ".locks" / "r.lease"
    action = leases.grant("acquired", key="r", path=path, expected_digest=None, data=LEASE, reason="asked")
    return Change(action, None, LEASE)


def _take_over(p: Path) -> Change:
    path, taken = p / ".locks" / "r.lease", LEASE.replace(b"dev-1", b"dev-2")
    return Change(
        leases.grant("taken_over", key="r", path=path, expected_digest=digest(LEASE), data=taken, reason="it ran out"),
        LEASE,
        taken,
    )


def _quarantine(p: Path) -> Change:
    path = p / ".supervisor" / "quarantine" / "config.json-1"
    return Change(state.quarantine(key="config.json", path=path, data=b"\xff\0", reason="it is torn"), None, b"\xff\0")


def _restore(p: Path) -> Change:
    torn, good = b'{"status":', b'{"status":"running"}'
    path = p / ".execution-state.json"
    return Change(
        Restore(key="state", path=path, expected_digest=digest(torn), data=good, flaw=None, reason="it is torn"),
        torn,
        good,
    )


def _restore_one_that_is_empty(p: Path) -> Change:
    good = b"# State\n"
    return Change(
        Restore(key="md", path=p / "STATE.md", expected_digest=digest(b""), data=good, flaw=None, reason="it is empty"),
        b"",
        good,
    )


def _restore_one_too_large_for_the_journal(p: Path) -> Change:
    good = b'{"status":"' + b"x" * 2**19 + b'"}'
    path = p / ".execution-state.json"
    return Change(
        Restore(key="state", path=path, expected_digest=digest(b"{"), data=good, flaw=None, reason="it is torn"),
        b"{",
        good,
    )


def _put_away(p: Path) -> Change:
    path = p / ".locks" / "s.lease"
    return Change(
        Restore(key="s", path=path, expected_digest=digest(b"{"), data=None, flaw=None, reason="it is torn"), b"{", None
    )


def _cut_tail(p: Path) -> Change:
    whole, torn = b'{"event":"plan_start"}\n', b'{"event":"plan_start"}\n{"ev'
    path = p / ".events" / "event-log.jsonl"
    action = state.cut_tail(key="log", path=path, expected_digest=str(digest(torn)), data=whole, reason="it is torn")
    return Change(action, torn, whole)


def _snap(p: Path) -> Change:
    data, path = b'{"phase":"5"}', p / ".snapshots" / "5-20261122T205510.json"
    action = SaveSnapshot(key="5", path=path, expected_digest=None, data=data, reason="it has changed")
    return Change(action, None, data)


def _drop_snapshot(p: Path) -> Change:
    path = p / ".snapshots" / "5-20261122T205510.json"
    return Change(state.drop_snapshot(key="5", path=path, reason="it is old"), b'{"phase":"5"}', None)


PENDING = b'{"id":"2","status":"pending"}'
AT_WORK = b'{"id":"2","status":"in_progress","owner":"dev-1"}'
FINISHED = b'{"id":"2","status":"completed","owner":"dev-1"}'
ASIDE = b'{"id":"2","status":"pending","owner":"dead-letter"}'


def _task(p: Path) -> Task:
    return Task(list="tasks", number="2", status="", owner=None, path=p / "tasks" / "2.json")


def _claim(p: Path) -> Change:
    return Change(Claim(key="tasks/2", task=_task(p), owner="dev-1", reason="asked"), PENDING, AT_WORK)


@dataclass(frozen=True)
class Claimed(Change):
    """The change of a task with a claim, which the third line of the journal records."""

    def begin(self) -> None:
        claim = _claim(self.action.path.parents[1])
        claim.begin()
        with closing(Store(self.action.path.parents[2], disk=QuickDisk())) as store:
            store.open()
            evidence = {"owner": "dev-1"}
            assert store.commit(replace(claim.action, evidence=evidence), "setup") is Outcome.DONE
            assert store.index.claims["tasks/2"].token == 3


def _complete(p: Path) -> Change:
    action = Complete(key="tasks/2", task=_task(p), owner="dev-1", token=3, reason="done")
    return Claimed(action, AT_WORK, FINISHED)


def _set_aside(p: Path) -> Change:
    return Change(
        MoveToDeadLetters(key="tasks/2", task=_task(p), owner="dev-1", cause="died", reason="it failed"), AT_WORK, ASIDE
    )


def _redrive(p: Path) -> Change:
    return Change(tasks.redrive(_task(p), "a person said so"), ASIDE, PENDING)


def _hand(p: Path) -> Change:
    task, why = _task(p), "a person said so"
    action = Requeue(key="tasks/2", task=task, owner=None, cause="by hand", by_hand=True, reason=why)
    return Change(action, AT_WORK, PENDING)


def _give_up(p: Path) -> Change:
    return Change(tasks.drop(_task(p), "a person said so"), ASIDE, None)


def _letter(p: Path) -> Change:
    path = p / ".supervisor" / "dead-letters" / "tasks__2.json"
    return Change(
        WriteDeadLetter(key="tasks/2", path=path, data=b'{"id":"tasks/2"}', reason="it failed"),
        None,
        b'{"id":"tasks/2"}',
    )


def _put_letter_away(p: Path) -> Change:
    path = p / ".supervisor" / "dead-letters" / "tasks__2.json"
    return Change(
        tasks.remove_dead_letter(key="tasks/2", path=path, reason="it was redriven"), b'{"id":"tasks/2"}', None
    )


def _regenerate(p: Path) -> Change:
    path = p / ".contracts" / "5-1.json"
    return Change(
        notes.regenerate_contract(
            key="contract_compliance/5-1-T1",
            path=path,
            expected_digest=digest(b"{"),
            data=b"{}",
            reason="it is broken",
        ),
        b"{",
        b"{}",
    )


OPEN, TRIED = b'{"tool": "echo"}', b'{"tool": "echo", "probed_s": 1.0}'


def _circuit(p: Path, now: bytes | None) -> circuits.Target:
    path = p / ".supervisor" / "circuits" / "1-2.json"
    return {"key": "server/echo", "path": path, "expected_digest": digest(now)}


def _trip(p: Path) -> Change:
    return Change(circuits.opened(_circuit(p, None), OPEN, "it keeps failing", {}), None, OPEN)


def _probe(p: Path) -> Change:
    return Change(circuits.half_opened(_circuit(p, OPEN), TRIED, "one call probes"), OPEN, TRIED)


def _close(p: Path) -> Change:
    return Change(circuits.closed(_circuit(p, TRIED), "the probe succeeded"), TRIED, None)


def _disable(p: Path) -> Change:
    return Change(flags.disable(key="f", path=p / "config.json", reason="it fails"), b'{"f": true, "g": 1}', F_OFF)


def _enable(p: Path) -> Change:
    return Change(
        flags.enable(key="f", path=p / "config.json", reason="a person said so"), F_OFF, b'{"f": true, "g": 1}'
    )


F_OFF = b'{"f": false, "g": 1}'
MakeChange = Callable[[Path], Change]
CHANGES: tuple[MakeChange, ...] = (
    _register, _update_record, _forget, _requeue, _requeue_plan, _release, _drop_pids, _drop_health, _set_mark,
    _remove_mark, _lend, _take_over, _quarantine, _restore, _restore_one_that_is_empty,
    _restore_one_too_large_for_the_journal, _put_away,
    _cut_tail, _snap, _drop_snapshot, _claim, _complete, _set_aside, _redrive, _hand, _give_up, _letter,
    _put_letter_away, _regenerate, _trip, _probe, _close, _disable, _enable,
)  # fmt: skip
every_action = pytest.mark.parametrize("make_change", CHANGES, ids=lambda make_change: make_change.__name__)
ACTIONS = (base, agents, circuits, flags, leases, notes, state, tasks)


def made_by(constructor: Callable[..., Edit]) -> Edit:
    """Call the constructor with arguments that do not matter."""
    hints = get_type_hints(constructor)
    given = {name: _circuit(Path(), None) if hint is circuits.Target else Mock() for name, hint in hints.items()}
    del given["return"]
    return constructor(**given | ({"verb": get_args(hints["verb"])[0]} if "verb" in hints else {}))


def test_every_edit_has_a_change_here() -> None:
    own = [
        member
        for module in ACTIONS
        for name, member in vars(module).items()
        if getattr(member, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    classes = [each for each in own if isinstance(each, type) and issubclass(each, Edit) and not each.__subclasses__()]
    constructors = [each for each in own if inspect.isfunction(each) and get_type_hints(each)["return"] is not Note]
    edits = [make_change(Path()).action for make_change in CHANGES]

    assert {*classes} <= {type(action) for action in edits}
    made = {(action.kind, action.verb) for action in map(made_by, constructors)}
    assert made
    assert made <= {(action.kind, action.verb) for action in edits}


# -- the projects --------------------------------------------------------------------------------------------------


def recorded(store: Store) -> list[tuple[str, str]]:
    found = history(store.paths.journal)
    return [(entry["action"], entry["key"]) for entry in found if entry["by"] != "setup"]


def projects(
    tmp_path: Path, make_change: MakeChange, first: int = 1, step: int = 1
) -> Iterator[tuple[int, Path, Change]]:
    """Make a project for each n, with a store in which another change was acknowledged before."""
    for n in itertools.count(first, step):
        project = tmp_path / str(n)
        (project / ".yolo-planning").mkdir(parents=True)
        with closing(Store(project, disk=QuickDisk())) as store:
            store.open()
            commit_another(store, "earlier")
        change = make_change(project / ".yolo-planning")
        change.begin()
        yield n, project, change
        shutil.rmtree(project)


def commit_another(store: Store, name: str) -> None:
    """Commit a change of another document; it is acknowledged, so it must never be lost."""
    path = store.paths.planning / ".locks" / f"{name}.lease"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(LEASE)
    assert store.commit(Release(key=name, path=path, owner="dev-1", reason="dead"), "test") is Outcome.DONE


def cut_off(project: Path, work: Callable[[Store], object], at: int, loss: Loss = "nothing") -> bool:
    """Do the work on a store with a power cut at its n-th operation; whether the work ended before."""
    disk = MortalDisk(at)
    store = Store(project, disk=disk)
    try:
        store.open()
        work(store)
    except PowerCut:
        return False
    else:
        return True
    finally:
        store.close()
        disk.lose(loss)


def recovered(project: Path) -> Store:
    """The store of the next run."""
    store = Store(project, disk=QuickDisk())
    store.open()
    store.recover()
    return store


LOSSES: tuple[Loss, ...] = ("nothing", "data", "names")
"""The losses at a power cut. A quick run has one of these at each operation, any other run all."""


@every_action
@pytest.mark.parametrize("loss", LOSSES)
def test_a_power_cut_at_any_moment_leaves_the_document_unchanged_or_changed(
    make_change: MakeChange, loss: Loss, tmp_path: Path
) -> None:
    acknowledged: list[Outcome] = []
    first, step = (1 + LOSSES.index(loss), len(LOSSES)) if TIER == "quick" else (1, 1)
    for n, project, change in projects(tmp_path, make_change, first, step):

        def work(store: Store, change: Change = change) -> None:
            acknowledged.append(store.commit(change.action, "test"))
            store.note(DIED, "test")

        ended = cut_off(project, work, n, loss)
        assert change.now in (change.before, change.after), "between the crash and the recovery"
        change.time_passes()

        with closing(recovered(project)) as store:
            found, lines = change.now, store.paths.journal.read_bytes()
            assert found in (change.before, change.after)
            if acknowledged:
                assert acknowledged == [Outcome.DONE]
                assert found == change.after
            assert recorded(store)[0] == ("released", "earlier")
            assert recorded(store).count((change.action.verb, change.action.key)) == (found == change.after)

            assert not store.recover()
            assert (change.now, store.paths.journal.read_bytes()) == (found, lines)

            expected = Outcome.DONE if found == change.before else Outcome.STALE
            assert store.commit(change.action, "test") is expected
            assert change.now == change.after
            commit_another(store, "later")
        acknowledged.clear()
        if ended:
            break
    assert n > 5


DIED = agents.Died(key=AGENT.id, reason="its process has ended")


@pytest.mark.sampled(10)
@every_action
def test_a_power_cut_in_the_middle_of_a_recovery_is_recovered_from(make_change: MakeChange, tmp_path: Path) -> None:
    in_recovery = 0
    for n, project, change in projects(tmp_path, make_change):
        promised = _cut_off_right_after_the_promise(project, change)
        assert promised
        change.time_passes()

        ended = cut_off(project, lambda store: store.recover(), n)
        in_recovery += not ended
        assert change.now in (change.before, change.after)
        change.time_passes()

        with closing(recovered(project)) as store:
            assert change.now == change.after
            assert recorded(store)[:2] == [("released", "earlier"), (change.action.verb, change.action.key)]
            assert not store.recover()
            commit_another(store, "later")
        if ended:
            break
    assert in_recovery > 3


def _cut_off_right_after_the_promise(project: Path, change: Change) -> bool:
    """Crash after the change was written to the journal, and before it was made to the document."""

    class CutBeforeTheDocument(QuickDisk):
        def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
            beside = path.parent == change.action.path.parent and path.name.startswith(f".{change.action.path.name}")
            if beside or path == change.action.path:
                raise PowerCut
            return super().open(path, flags, mode)

        def rename(self, old: Path, new: Path) -> None:
            if old == change.action.path:
                raise PowerCut
            super().rename(old, new)

        def rmdir(self, path: Path) -> None:
            raise PowerCut

    with closing(Store(project, disk=CutBeforeTheDocument())) as store:
        store.open()
        with pytest.raises(PowerCut):
            store.commit(change.action, "test")
    return change.now == change.before


def test_a_store_can_be_made_after_a_power_cut_while_it_was_made(tmp_path: Path) -> None:
    for n in itertools.count(1):
        project = tmp_path / str(n)
        (project / ".yolo-planning").mkdir(parents=True)

        ended = cut_off(project, lambda store: None, n, "data")

        with closing(recovered(project)) as store:
            assert own_files.load_enrolment(store.paths.enrolment.read_bytes()) is not None
            commit_another(store, "first")
        shutil.rmtree(project)
        if ended:
            break
    assert n > 10


def test_an_acknowledged_first_change_survives_any_power_cut(tmp_path: Path) -> None:
    (tmp_path / ".yolo-planning").mkdir()

    cut_off(tmp_path, lambda store: commit_another(store, "first"), at=10_000, loss="names")

    with closing(recovered(tmp_path)) as store:
        assert recorded(store) == [("released", "first")]


@pytest.mark.parametrize("loss", LOSSES)
def test_after_a_power_cut_the_checksum_file_matches_the_document(loss: Loss, tmp_path: Path) -> None:
    for n, project, change in projects(tmp_path, _requeue_plan):
        side = change.action.path.with_name(".execution-state.json.sha256")
        side.write_text(str(digest(change.before)))

        def work(store: Store, change: Change = change) -> None:
            store.commit(change.action, "test")

        ended = cut_off(project, work, n, loss)

        with closing(recovered(project)):
            assert side.read_text() == digest(change.now)
        if ended:
            break


# -- starts of agents: what limits them must outlast a power cut ------------------------------------------------------

LAUNCH = Launch(agent=AGENT.id, name=AGENT.name, session="s-1", argv=("claude", "--secret"), folder="/project")


def _restart(attempt: int, by_hand: bool = False) -> Restart:
    evidence = {"record": "dev-1.json", "session": "s-1", "since_s": 5.0, "boot": "here", "attempt": attempt}
    return Restart(
        key=AGENT.id, agent=AGENT, record="dev-1.json", attempt=attempt, launch=LAUNCH, note="go on", reason="it died",
        evidence=evidence | ({"by_hand": True} if by_hand else {}),
    )  # fmt: skip


def _start(store: Store, attempt: int) -> None:
    begun = store.begin(_restart(attempt), "agents")
    store.end(begun, _restart(attempt), "agents", {"result": "up", "pid": 400 + attempt, "started": 9, "boot": "here"})


def _abandoned(store: Store) -> None:
    store.abandon(store.begin(_restart(9), "agents"), "it is held by hand")


STEPS: tuple[tuple[str, Callable[[Store], object]], ...] = (
    ("started", lambda store: _start(store, 1)),
    ("resumed", lambda store: store.note(agents.resumed(key=AGENT.id, reason="it answers", evidence={}), "agents")),
    ("started again", lambda store: _start(store, 2)),
    (
        "given up",
        lambda store: store.note(
            agents.restart_given_up(key=AGENT.id, reason="too often", evidence={"code": "too_many"}), "agents"
        ),
    ),
    ("held", lambda store: store.note(agents.held(key=AGENT.id, reason="a person said so"), "cli")),
    ("abandoned", _abandoned),
)
"""What may happen to one agent, in this order."""


def _restarts_after(steps: int, folder: Path, size: int) -> RestartState:
    """The state after so many of the steps, without a power cut."""
    (folder / ".yolo-planning").mkdir(parents=True)
    with closing(Store(folder, disk=QuickDisk(), journal_size=size)) as store:
        store.open()
        for _, step in STEPS[:steps]:
            step(store)
        state = store.index.restarts.get(AGENT.id, RestartState())
    shutil.rmtree(folder)
    return _timeless(state)


def _timeless(state: RestartState) -> RestartState:
    """The state without numbers of lines, and wall times."""
    return msgspec.structs.replace(
        state, starts=tuple(msgspec.structs.replace(start, seq=0, at="") for start in state.starts)
    )


@pytest.mark.parametrize("size", [2**20, 1500], ids=["one segment", "many segments"])
@pytest.mark.parametrize("loss", LOSSES)
def test_starts_and_holds_are_known_after_a_power_cut_at_any_moment(loss: Loss, size: int, tmp_path: Path) -> None:
    known = [_restarts_after(steps, tmp_path / "whole", size) for steps in range(len(STEPS) + 1)]
    assert [start.result for start in known[3].starts] == ["up", "up"]
    assert known[3].starts[0].resumed
    assert known[-1] == known[-2], "a start that a hold has prevented leaves no trace"
    assert known[-1].held
    for n in itertools.count(1, 3 if TIER == "quick" else 1):
        project = tmp_path / str(n)
        (project / ".yolo-planning").mkdir(parents=True)
        with closing(Store(project, disk=QuickDisk())) as store:
            store.open()
        done: list[str] = []

        disk = MortalDisk(n)
        store = Store(project, disk=disk, journal_size=size)
        begun = 0
        try:
            store.open()
            for name, step in STEPS:
                begun += 1
                step(store)
                done.append(name)
        except PowerCut:
            pass
        finally:
            store.close()
            disk.lose(loss)

        with closing(recovered(project)) as after:
            state = _timeless(after.index.restarts.get(AGENT.id, RestartState()))
            before, next_one = known[len(done)], known[min(begun, len(STEPS))]
            assert before.held <= state.held <= next_one.held
            assert state.given_up in (before.given_up, next_one.given_up)
            for at, start in enumerate(before.starts):  # one that is forgotten limits nothing
                assert state.starts[at] in (start, next_one.starts[at])
            assert len(state.starts) <= len(next_one.starts) + (begun == len(STEPS)), "a start that never was"
            after.journal.rotate()
            again = _timeless(after.index.restarts.get(AGENT.id, RestartState()))
        with closing(recovered(project)) as after:
            assert _timeless(after.index.restarts.get(AGENT.id, RestartState())) == again == state
        shutil.rmtree(project)
        if len(done) == len(STEPS):
            break
    assert n > 10


def test_recovery_cuts_a_log_in_place(tmp_path: Path) -> None:
    _, project, change = next(projects(tmp_path, _cut_tail))
    _cut_off_right_after_the_promise(project, change)
    inode = change.action.path.stat().st_ino

    with closing(recovered(project)):
        assert (change.now, change.action.path.stat().st_ino) == (change.after, inode)


# -- promises that a crash left, and changes by other programs meanwhile --------------------------------------------


def _crashed(tmp_path: Path) -> tuple[Path, Change]:
    """A project whose supervisor crashed after its promise to requeue a task; its lock is stale."""
    _, project, change = next(projects(tmp_path, _requeue))
    _cut_off_right_after_the_promise(project, change)
    change.time_passes()
    return project, change


def test_a_promise_is_kept_by_the_next_run_and_reported(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)

    with closing(Store(project)) as store:
        store.open()
        recovery = store.recover()

    assert recovery.finished == ("requeued team/1",)
    assert change.now == change.after


def test_a_document_that_was_changed_since_is_left_alone_and_reported(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)
    change.action.path.write_bytes(b'{"id":"1","status":"completed","owner":"dev-1"}')

    with closing(Store(project)) as store:
        store.open()
        recovery = store.recover()

        assert recovery.overtaken == ("requeued team/1",)
        assert change.now == b'{"id":"1","status":"completed","owner":"dev-1"}'
        assert recorded(store) == [("released", "earlier")]
        assert not store.recover()


def test_a_promise_about_a_task_list_that_is_gone_does_not_stop_the_recovery(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)
    for path in change.action.path.parent.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    change.action.path.parent.rmdir()

    with closing(recovered(project)) as store:
        assert not change.action.path.parent.exists()
        assert not store.recover()
        commit_another(store, "later")


def test_a_promise_about_an_unreadable_document_does_not_stop_the_recovery(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)
    change.action.path.unlink()
    change.action.path.mkdir()

    with closing(recovered(project)) as store:
        assert change.action.path.is_dir()
        commit_another(store, "later")


def test_a_promise_about_a_document_that_is_a_link_now_does_not_stop_the_recovery(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)
    target = change.action.path.rename(tmp_path / "target")
    change.action.path.symlink_to(target)

    with closing(recovered(project)) as store:
        assert target.read_bytes() == change.before
        commit_another(store, "later")


def test_a_promise_whose_document_is_locked_is_left_for_later(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)
    _client_takes_the_lock(change)

    with closing(recovered(project)) as store:
        assert change.now == change.before
        change.time_passes()
        store.recover()

    assert change.now == change.after


def test_a_promise_that_a_later_change_has_overtaken_is_never_kept(tmp_path: Path) -> None:
    project, change = _crashed(tmp_path)
    _client_takes_the_lock(change)
    with closing(recovered(project)) as store:
        change.time_passes()
        assert store.commit(change.action, "test") is Outcome.DONE
    change.begin()  # an agent of the same name, alive, claims the task: byte for byte the expected content

    with closing(recovered(project)):
        assert change.now == change.before


def _client_takes_the_lock(change: Change) -> None:
    assert change.action.lock is not None
    lock = change.action.lock[0]
    if lock.is_dir():
        lock.rmdir()
    lock.mkdir()
    now = time.time() + 1  # later than any lock of ours, however coarse the file system's clock
    os.utime(lock, (now, now))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\0", "Größe \u2028 \U0001f600".encode(), b"a\r\nb\rc\n\x85\x1c", b"\xed\xa0\x80", b"x" * 300_000],
    ids=["empty", "binary", "unicode", "line ends", "surrogate", "long"],
)
def test_recovery_writes_exactly_the_promised_bytes(content: bytes, tmp_path: Path) -> None:
    def make_change(planning: Path) -> Change:
        return Change(Put(key="k", path=planning / "document", content=content), b"before", content)

    _, project, change = next(projects(tmp_path, make_change))
    _cut_off_right_after_the_promise(project, change)

    with closing(recovered(project)):
        assert change.now == content


# -- a disk that fails -------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


FAILURES = list(itertools.product((errno.EIO, errno.ENOSPC), (True, False)))


@pytest.mark.sampled(10)
@every_action
@pytest.mark.parametrize(
    ("number", "once"),
    cases(FAILURES, [(errno.EIO, True), (errno.ENOSPC, False)]),
    ids=lambda value: ("once" if value else "from there on") if isinstance(value, bool) else errno.errorcode[value],
)
def test_a_disk_failure_at_any_operation_loses_nothing_and_is_recovered(
    make_change: MakeChange, number: int, once: bool, tmp_path: Path
) -> None:
    descriptors, failures = open_descriptors(), list[int | None]()
    first, step = (2 - once, 2) if TIER == "quick" else (1, 1)
    for n, project, change in projects(tmp_path, make_change, first, step):
        disk = FailingDisk(n, number, once)
        with closing(Store(project, disk=disk)) as store:
            opened = False
            try:
                store.open()
                opened = True
                assert store.commit(change.action, "test") is Outcome.DONE
                assert change.now == change.after
            except OSError as error:
                failures.append(error.errno)
                assert change.now in (change.before, change.after)
            ended = not disk.reached
            disk.repaired = True
            change.time_passes()

            if not opened:
                store.close()
                store.open()
            found = change.now
            assert store.commit(change.action, "test") is (Outcome.DONE if found == change.before else Outcome.STALE)
            assert change.now == change.after
            commit_another(store, "later")
        with closing(recovered(project)) as store:
            outside = [path for path in project.rglob("*") if ".supervisor" not in path.parts]
            left = [path for path in outside if path.suffix in (".tmp", ".stale", ".lock")]
            assert not left or not once
            assert change.now == change.after
            assert recorded(store) == [
                ("released", "earlier"), (change.action.verb, change.action.key), ("released", "later"),
            ]  # fmt: skip
        if ended:
            break
    assert len(failures) > 5
    assert set(failures) == {number}
    assert open_descriptors() == descriptors


# -- a process that is killed ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Put(Edit):
    """Make ``content`` the document."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "a test wants it so"
    content: bytes

    def holds(self, before: bytes | None) -> bool:
        return before is not None

    def edit(self, before: bytes | None) -> bytes | None:
        return self.content


# -- the work of a dead agent: an entry and a crash report, about a ref that exists already ------------------------


WORK = SaveWork(key=AGENT.id, name="dev-1", record="dev-1.json", folder=Path("/work"), reason="dev-1 is dead")
SAVED = Saved(outcome=SaveOutcome.SAVED, ref="refs/yolo-supervisor/rescue/1-agent-dev-1", files=1, reason="it is saved")
VERDICT = Verdict(cause=CrashCause.SIGNAL, confidence=0.9, reason="SIGSEGV ended it")
REPORT = Report(agent=AGENT, evidence=Evidence(at=SINCE, signal=11), verdict=VERDICT)


def record_work(store: Store) -> None:
    log = structlog.get_logger()
    saver = WorkSaver(store, SavedWork(), Mock(), AlertLog(log), FailureLog(log), lambda: None)
    saver.record(WORK, SAVED, "agents", REPORT)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_power_cut_while_saved_work_is_recorded_leaves_whole_files(loss: Loss, tmp_path: Path) -> None:
    for n, project, _ in projects(tmp_path, _requeue):
        with closing(Store(project, disk=QuickDisk())) as store:
            store.open()
            store.save_crash_report(REPORT, "agents")

        with capture_logs():
            ended = cut_off(project, record_work, n, loss)

        with closing(recovered(project)) as store:
            entries = [entry for entry in history(store.paths.journal) if entry["action"] == "work_saved"]
            assert [entry["evidence"]["ref"] for entry in entries] == [SAVED.ref] * len(entries)
            assert len(entries) == 1 if ended else len(entries) <= 1
            (path,) = store.paths.crashes.glob("[!.]*")
            report = crash_report.load(path.read_bytes())
            assert report is None or report.work.get("ref") in (SAVED.ref, None)
            assert report is not None or loss == "data", "a report is not flushed"
            with capture_logs():
                record_work(store)  # the next supervisor saves the work again
            again = crash_report.load(path.read_bytes())
            assert again is not None
            assert again.work["ref"] == SAVED.ref
            assert recorded(store)[-1] == ("work_saved", AGENT.id)
        if ended:
            break
    assert n > 5


def test_a_disk_that_fails_once_keeps_no_saved_work_from_its_entry(tmp_path: Path) -> None:
    for n, project, _ in projects(tmp_path, _requeue):
        with closing(Store(project, disk=QuickDisk())) as store:
            store.open()
        disk = FailingDisk(n, errno.ENOSPC, once=True)
        with capture_logs(), closing(Store(project, disk=disk)) as store:
            with contextlib.suppress(OSError):
                store.open()
                record_work(store)
            disk.repaired = True
            store.open()
            record_work(store)
            assert ("work_saved", AGENT.id) in recorded(store)
        if not disk.reached:
            break
    assert n > 5
