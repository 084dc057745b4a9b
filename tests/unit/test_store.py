"""The journaled store: outcomes, good versions, full disks, and concurrent writers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.disks import use_disk
from support.project import new_store, read_task, write_task
from yolo_supervisor.actions import notes
from yolo_supervisor.actions.agents import Died, Register, Terminate, forget
from yolo_supervisor.actions.base import Edit, Kind, Verb, WriteMode
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.state import DropHealth, SetMarker
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import Agent, Task
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.lines import load
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, Store

SINCE = datetime(2026, 11, 22, 20, 31, 56, tzinfo=UTC)
REPLACE, TRUNCATE = WriteMode


@dataclass(frozen=True, kw_only=True)
class Put(Edit):
    """Make ``content`` the document, from any content."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "a test wants it so"
    content: bytes | None

    def holds(self, before: bytes | None) -> bool:
        return True

    def edit(self, before: bytes | None) -> bytes | None:
        return self.content


def requeue(path: Path, owner: str = "dev-1") -> Requeue:
    task = Task(list="team", number=path.stem, status="in_progress", owner=owner, path=path)
    return Requeue(key=task.id, task=task, owner=owner, cause="died", reason="dev-1 is dead")


def register(store: Store, name: str) -> Register:
    agent = Agent(id=f"{name}@team", name=name, role="dev", team="team", source="test", since=SINCE)
    path = store.paths.agents / own_files.agent_file(agent)
    return Register(key=agent.id, path=path, agent=agent, reason="first seen")


def recorded(store: Store) -> list[tuple[str, str]]:
    """Each journal entry's action and key."""
    return [(entry["action"], entry["key"]) for entry in history(store.paths.journal)]


def journal_lines(store: Store) -> list[dict[str, Any]]:
    lines = store.paths.journal.read_bytes().splitlines()
    assert None not in map(load, lines), "a line of the journal cannot be read"
    return [json.loads(line) for line in lines]


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    opened = Store(project)
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def task(claude_home: Path) -> Path:
    return write_task(claude_home, "team", 1, "dev-1", "in_progress")


# -- done, stale, busy -------------------------------------------------------------------------------------------


def test_a_valid_decision_is_applied_and_journaled(store: Store, task: Path) -> None:
    assert store.commit(requeue(task), "agents") is Outcome.DONE

    assert read_task(task)["status"] == "pending"
    assert "owner" not in read_task(task)
    [entry] = history(store.paths.journal)
    assert (entry["kind"], entry["key"], entry["action"], entry["by"]) == ("task", "team/1", "requeued", "agents")
    assert (entry["reason"], entry["project"]) == ("dev-1 is dead", str(store.paths.project))
    assert os.listdir(task.parent) == ["1.json"]


class EditorsDisk(Disk):
    """A disk on which another program saves the document while the store flushes for the n-th time."""

    def __init__(self, path: Path, at: int) -> None:
        self._path, self._at = path, at

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self._at -= 1
        if self._at == 0:
            saved = self._path.with_name("saved")
            saved.write_bytes(b"theirs")
            saved.rename(self._path)


@pytest.mark.parametrize(
    ("after", "at", "mode"),
    [(b'{"ours": 1}', 1, REPLACE), (b'{"ours": 1}', 2, REPLACE), (b'{\n  "id"', 1, TRUNCATE), (None, 1, REPLACE)],
    ids=["replaced, journaled", "replaced, written", "shortened, journaled", "removed, journaled"],
)  # fmt: skip
def test_a_concurrent_save_by_another_program_is_preserved(
    store: Store, task: Path, after: bytes | None, at: int, mode: WriteMode
) -> None:
    use_disk(store, EditorsDisk(task, at))

    assert store.commit(Put(key="it", path=task, content=after, write_mode=mode), "test") is Outcome.STALE

    assert task.read_bytes() == b"theirs"
    assert recorded(store) == []
    assert os.listdir(task.parent) == ["1.json"]


@pytest.mark.parametrize(
    ("mode", "after", "in_place"),
    [(REPLACE, b"one\n", False), (TRUNCATE, b"one\n", True), (TRUNCATE, b"", True), (TRUNCATE, b"two\n", False)],
)
def test_a_document_is_cut_in_place_only_if_the_action_says_so(
    store: Store, mode: WriteMode, after: bytes, in_place: bool
) -> None:
    path = store.paths.planning / "lines"
    path.write_bytes(b"one\ntwo\n")
    inode = path.stat().st_ino

    assert store.commit(Put(key="it", path=path, content=after, write_mode=mode), "test") is Outcome.DONE

    assert path.read_bytes() == after
    assert (path.stat().st_ino == inode) is in_place
    (promise,) = [line["write"] for line in journal_lines(store) if "write" in line]
    assert promise.get("mode") == (None if mode is REPLACE else "truncate")


@pytest.mark.parametrize("meanwhile", [{"status": "completed"}, {"owner": "dev-2"}, {"status": "pending"}])
def test_a_decision_that_others_have_overtaken_is_stale(store: Store, task: Path, meanwhile: dict[str, str]) -> None:
    task.write_text(json.dumps({**read_task(task), **meanwhile}))
    before = task.read_bytes()

    assert store.commit(requeue(task), "agents") is Outcome.STALE

    assert task.read_bytes() == before
    assert recorded(store) == []


def test_a_decision_about_a_task_that_is_gone_is_stale(store: Store, task: Path) -> None:
    task.unlink()

    assert store.commit(requeue(task), "agents") is Outcome.STALE

    assert os.listdir(task.parent) == []


def test_a_decision_about_a_task_list_that_is_gone_is_stale(store: Store, task: Path) -> None:
    shutil.rmtree(task.parent)

    assert store.commit(requeue(task), "agents") is Outcome.STALE

    assert not task.parent.exists()


def test_a_decision_is_made_once(store: Store, task: Path) -> None:
    outcomes = [store.commit(requeue(task), "agents") for _ in range(3)]

    assert outcomes == [Outcome.DONE, Outcome.STALE, Outcome.STALE]
    assert recorded(store) == [("requeued", "team/1")]


@pytest.mark.parametrize("torn", [b"", b'{"id":"1","status":"in_pro', b"\0" * 200])
def test_a_task_that_a_killed_client_left_half_written_is_left_as_it_is(store: Store, task: Path, torn: bytes) -> None:
    task.write_bytes(torn)

    assert store.commit(requeue(task), "agents") is Outcome.STALE

    assert task.read_bytes() == torn


def test_a_document_that_cannot_be_read_is_an_error_and_stays(store: Store, task: Path) -> None:
    task.unlink()
    task.mkdir()

    with pytest.raises(OSError, match=r"1\.json"):
        store.commit(requeue(task), "agents")

    assert sorted(os.listdir(task.parent)) == ["1.json"]
    assert recorded(store) == []


# -- good versions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [{"indent": 2}, {"separators": (",", ":")}, {}])
@pytest.mark.parametrize("end", ["", "\n"])
def test_keys_that_we_do_not_know_survive_and_the_style_too(
    store: Store, task: Path, style: dict[str, Any], end: str
) -> None:
    raw = {"zebra": [1, {"a": None}], **read_task(task), "subject": "Größe ✓", "metadata": {"owner": "x"}, "n": 1e300}
    task.write_text(json.dumps(raw, ensure_ascii=False, **style) + end)

    store.commit(requeue(task), "agents")

    del raw["owner"]
    raw["status"] = "pending"
    assert task.read_text() == json.dumps(raw, ensure_ascii=False, **style) + end


def test_requeueing_a_plan_leaves_the_rest_of_the_state(store: Store) -> None:
    path = store.paths.planning / ".execution-state.json"
    plans = [{"id": "05-01", "status": "running", "note": "kept"}, {"id": "05-02", "status": "running"}, "junk"]
    state = {"phase": 5, "plans": plans, "status": "running", "unknown": {"deep": [1.0]}}
    path.write_text(json.dumps(state, indent=2))

    plan = Task(list="execution-state", number="05-01", status="running", owner=None, path=path)
    action = Requeue(key=plan.id, task=plan, owner=None, cause="died", reason="its dev is dead")
    assert store.commit(action, "agents") is Outcome.DONE

    plans[0] = {"id": "05-01", "status": "pending", "note": "kept"}
    assert path.read_text() == json.dumps(state, indent=2)


LEASE = b'{\n  "acquired_at": "2026-02-01T00:00:00Z",\n  "owner": "dev-1",\n  "resource": "r",\n  "ttl_secs": 300\n}'


def _removals(planning: Path) -> list[tuple[Edit, bytes]]:
    lease, health = planning / ".locks" / "r.lease", planning / ".agent-health" / "dev.json"
    mark, agent, odd = planning / ".active-agent", planning / ".supervisor" / "agents" / "dev.json", planning / "odd"
    return [
        (Release(key="r", path=lease, owner="dev-1", reason="it is dead"), LEASE),
        (DropHealth(key="dev", path=health, pid=4242, reason="it is dead"), b'{"pid":4242,"role":"dev"}'),
        (SetMarker(key="dev", path=mark, expected_digest=digest(b"dev"), data=None, reason="it is dead"), b"dev"),
        (forget(key="dev", path=agent, reason="it is dead"), b"{}"),
        (Put(key="odd", path=odd, content=None), "Größe\r\n\u2028\0".encode()),
    ]


@pytest.mark.parametrize("which", range(5))
def test_removed_content_is_kept_in_the_journal(store: Store, which: int) -> None:
    removal, held = _removals(store.paths.planning)[which]
    removal.path.parent.mkdir(exist_ok=True)
    removal.path.write_bytes(held)

    assert store.commit(removal, "agents") is Outcome.DONE

    assert not removal.path.exists()
    assert journal_lines(store)[0]["write"]["removed"].encode() == held


def test_bytes_that_are_no_text_are_kept_too_when_they_are_removed(store: Store) -> None:
    path = store.paths.planning / "odd"
    path.write_bytes(b"\xff\xfe\0")

    store.commit(Put(key="odd", path=path, content=None), "agents")

    assert journal_lines(store)[0]["write"]["removed_base64"] == "//4A"


def test_a_side_file_with_the_digest_is_refreshed_where_there_is_one_and_made_nowhere(store: Store) -> None:
    with_one, without = store.paths.planning / "with", store.paths.planning / "without"
    for path in (with_one, without):
        path.write_bytes(b"old")
    side = with_one.with_name("with.sha256")
    side.write_text(str(digest(b"old")))

    for path in (with_one, without):
        store.commit(Put(key=path.name, path=path, content=b"new"), "agents")

    assert side.read_text() == digest(b"new")
    assert not without.with_name("without.sha256").exists()


def test_a_document_keeps_its_mode(store: Store, task: Path) -> None:
    task.chmod(0o640)

    store.commit(requeue(task), "agents")

    assert stat.S_IMODE(task.stat().st_mode) == 0o640


# -- links, modes, git -------------------------------------------------------------------------------------------


def test_a_folder_of_ours_that_is_a_link_is_refused_and_nothing_is_written_there(project: Path, tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", Paths(project).folder
    elsewhere.mkdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(elsewhere)

    with pytest.raises(Refused, match="symbolic link"):
        Store(project).open()

    assert os.listdir(elsewhere) == []


def test_a_linked_planning_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "one" / ".yolo-planning").mkdir(parents=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / ".yolo-planning").symlink_to("../one/.yolo-planning")

    with pytest.raises(Refused, match="is a symbolic link: supervise the project that it leads to"):
        Store(tmp_path / "two").open()

    assert list((tmp_path / "one" / ".yolo-planning").iterdir()) == []


def test_a_journal_that_is_a_link_is_an_error_and_its_target_is_not_written(project: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"a person's")
    new_store(project)
    store = Store(project)
    store.paths.journal.unlink()
    store.paths.journal.symlink_to(target)

    with pytest.raises(OSError, match=r"journal\.jsonl"):
        store.open()

    store.close()
    assert target.read_bytes() == b"a person's"


def test_a_document_that_is_a_link_is_refused_and_never_tried_again(store: Store, tmp_path: Path) -> None:
    target, link = tmp_path / "target", store.paths.planning / "link"
    target.write_bytes(b"a person's")
    link.symlink_to(target)

    with pytest.raises(Refused, match="symbolic link"):
        store.commit(Put(key="link", path=link, content=b"ours"), "agents")

    assert target.read_bytes() == b"a person's"
    assert not store.recover()
    assert recorded(store) == []


def test_our_files_are_for_the_user_alone_under_any_umask(project: Path) -> None:
    umask = os.umask(0)
    store = Store(project)
    try:
        store.open()
        store.commit(register(store, "dev-1"), "agents")
        with store.paths.journal.open("ab") as journal:
            journal.write(b"a torn tail")
        store.recover()
    finally:
        os.umask(umask)
        store.close()

    ours = [store.paths.folder, *store.paths.folder.rglob("*")]
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in ours} == {
        path.name: "0o700" if path.is_dir() else "0o600" for path in ours
    }
    assert len(ours) > 10


# -- notes and signals ---------------------------------------------------------------------------------------------

DIED = Died(key="dev-1@team", reason="its process has ended", evidence={"pid": 4242})
TERMINATE = Terminate(key="dev-1@team", reason="its session is gone", evidence={"pane": "%1"}, roots=(), grace_s=10)


def test_a_note_is_listed_with_a_would_prefix_in_observe_mode(store: Store) -> None:
    store.note(DIED, "agents")
    store.note(DIED, "agents", "would_")

    assert recorded(store) == [("died", "dev-1@team"), ("would_died", "dev-1@team")]


def test_an_action_is_listed_only_once_it_ended(store: Store) -> None:
    begun = store.begin(TERMINATE, "agents")
    assert recorded(store) == []

    store.end(begun, TERMINATE, "agents", {"killed": [4242]})

    [entry] = history(store.paths.journal)
    assert entry["action"] == "terminated"
    assert entry["evidence"] == {"pane": "%1", "killed": [4242]}


def test_an_action_without_effect_is_not_listed(store: Store) -> None:
    store.abandon(store.begin(TERMINATE, "agents"), "nothing was left to signal")

    assert recorded(store) == []
    assert not store.recover()


def test_an_interrupted_action_is_closed_by_the_first_recovery_only(project: Path) -> None:
    crashed, next_run = Store(project), Store(project)
    crashed.open()
    crashed.begin(TERMINATE, "agents")
    crashed.close()

    next_run.open()
    next_run.recover()
    once = next_run.paths.journal.read_bytes()
    next_run.recover()

    assert next_run.paths.journal.read_bytes() == once
    assert next_run.journal.pending == {}
    next_run.close()


def test_a_promise_on_a_changed_document_is_marked_overtaken(project: Path, task: Path) -> None:
    class Dying(Disk):
        def exchange(self, one: Path, other: Path) -> None:
            raise KeyboardInterrupt

    crashed, next_run = Store(project, disk=Dying()), Store(project)
    crashed.open()
    with pytest.raises(KeyboardInterrupt):
        crashed.commit(requeue(task), "agents")
    crashed.close()
    task.unlink()
    task.mkdir()

    next_run.open()
    recovery = next_run.recover()

    assert recovery.overtaken == (f"requeued team/{task.stem}",)
    assert next_run.journal.pending == {}
    next_run.close()


def test_recovery_of_a_store_that_is_well_changes_nothing(store: Store, task: Path) -> None:
    store.commit(requeue(task), "agents")
    store.note(DIED, "agents")
    before = store.paths.journal.read_bytes(), task.read_bytes()

    assert not store.recover()

    assert (store.paths.journal.read_bytes(), task.read_bytes()) == before


def test_a_line_that_a_crash_left_half_written_is_cut_off_and_kept_aside(project: Path, store: Store) -> None:
    store.note(DIED, "agents")
    whole = store.paths.journal.read_bytes()
    with store.paths.journal.open("ab") as journal:
        journal.write(whole[:30])

    with closing(Store(project)) as next_run:
        next_run.open()

    assert store.paths.journal.read_bytes() == whole
    [kept] = (store.paths.folder / "quarantine").iterdir()
    assert kept.read_bytes() == whole[:30]


def test_a_change_that_failed_is_not_made_up_for_later(project: Path, task: Path) -> None:
    class Unrenamable(Disk):
        def exchange(self, one: Path, other: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

    failing, next_run, before = Store(project, disk=Unrenamable()), Store(project), task.read_bytes()
    failing.open()
    with pytest.raises(OSError, match="Input/output error"):
        failing.commit(requeue(task), "agents")
    failing.close()

    next_run.open()
    assert not next_run.recover()
    assert recorded(next_run) == []
    next_run.close()
    assert task.read_bytes() == before
    assert os.listdir(task.parent) == ["1.json"]


# -- a folder that goes and comes --------------------------------------------------------------------------------


def test_a_store_whose_project_is_gone_says_so_and_does_not_bring_it_back(store: Store, task: Path) -> None:
    shutil.rmtree(store.paths.project)

    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            store.commit(requeue(task), "agents")

    assert not store.paths.project.exists()
    assert read_task(task)["status"] == "in_progress"


# -- several writers ---------------------------------------------------------------------------------------------


def test_a_writer_sees_the_entries_of_another_at_once(project: Path, store: Store) -> None:
    other = Store(project)
    other.open()
    store.note(notes.daemon("started", reason="asked to"), "daemon")
    other.note(notes.daemon("reloaded", reason="SIGHUP"), "cli")
    store.note(notes.daemon("stopped", reason="asked to"), "daemon")
    other.close()

    assert [line["seq"] for line in journal_lines(store)] == [1, 2, 3]
    with closing(Store(project)) as reader:
        reader.journal.load()
        assert reader.journal.seq == 3


# -- exchanges of a document -------------------------------------------------------------------------------------------


class EditorAtTheExchange(Disk):
    """A disk on which other programs save the document right before each exchange, one content each time."""

    def __init__(self, path: Path, *saves: bytes) -> None:
        self._path, self._saves = path, list(saves)

    def exchange(self, one: Path, other: Path) -> None:
        if other == self._path and self._saves:
            saved = self._path.with_name("saved")
            saved.write_bytes(self._saves.pop(0))
            saved.rename(self._path)
        super().exchange(one, other)


@pytest.mark.parametrize("saves", [[b"first"], [b"first", b"second"], [b"first", b"second", b"third"]])
def test_save_at_the_very_moment_of_a_change_is_put_back(store: Store, task: Path, saves: list[bytes]) -> None:
    use_disk(store, EditorAtTheExchange(task, *saves))

    assert store.commit(Put(key="it", path=task, content=b'{"ours": 1}'), "test") is Outcome.STALE

    assert task.read_bytes() == saves[-1]
    assert os.listdir(task.parent) == ["1.json"]


def test_save_is_never_lost_if_it_cannot_be_put_back(project: Path, task: Path) -> None:
    class Dying(EditorAtTheExchange):
        def exchange(self, one: Path, other: Path) -> None:
            if not self._saves:
                raise KeyboardInterrupt
            super().exchange(one, other)

    with closing(Store(project, disk=Dying(task, b"theirs"))) as crashed:
        crashed.open()
        with pytest.raises(KeyboardInterrupt):
            crashed.commit(requeue(task), "test")

    with closing(Store(project)) as store:
        store.open()
        recovery = store.recover()
        (copy,) = store.paths.quarantine.iterdir()

    assert copy.read_bytes() == b"theirs"
    assert any(str(copy) in text for text in recovery.overtaken)
    assert os.listdir(task.parent) == ["1.json"]


class EditorAtTheRemoval(Disk):
    """A disk on which another program saves the document right before it is moved aside, and perhaps right after."""

    def __init__(self, path: Path, *, again: bool = False) -> None:
        self._path, self._again = path, again

    def rename(self, old: Path, new: Path) -> None:
        if old != self._path:
            super().rename(old, new)
            return
        old.write_bytes(b"theirs")
        super().rename(old, new)
        if self._again:
            old.write_bytes(b"theirs again")


def test_save_at_the_very_moment_of_a_removal_is_put_back(store: Store, task: Path) -> None:
    use_disk(store, EditorAtTheRemoval(task))

    assert store.commit(Put(key="it", path=task, content=None), "test") is Outcome.STALE

    assert task.read_bytes() == b"theirs"
    assert os.listdir(task.parent) == ["1.json"]


def test_save_that_a_later_one_keeps_from_being_put_back_is_copied_to_the_quarantine(store: Store, task: Path) -> None:
    use_disk(store, EditorAtTheRemoval(task, again=True))
    assert store.commit(Put(key="it", path=task, content=None), "test") is Outcome.STALE
    use_disk(store, Disk())

    assert store.commit(Put(key="it", path=task, content=b"{}"), "test") is Outcome.DONE

    assert [copy.read_bytes() for copy in store.paths.quarantine.iterdir()] == [b"theirs"]
    assert os.listdir(task.parent) == ["1.json"]


def test_change_on_a_system_without_exchange_replaces_the_document(store: Store, task: Path) -> None:
    class Exchangeless(Disk):
        def exchange(self, one: Path, other: Path) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(one))

    use_disk(store, Exchangeless())

    assert store.commit(Put(key="it", path=task, content=b'{"ours": 1}'), "test") is Outcome.DONE

    assert task.read_bytes() == b'{"ours": 1}'
    assert os.listdir(task.parent) == ["1.json"]


def test_a_document_keeps_its_extended_attributes(store: Store, task: Path) -> None:
    try:
        os.setxattr(task, "user.note", b"mine")
    except OSError:
        pytest.skip("this file system has no extended attributes")

    store.commit(requeue(task), "agents")

    assert os.getxattr(task, "user.note") == b"mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another group")
def test_a_document_keeps_its_owner_and_group(store: Store, task: Path) -> None:
    os.chown(task, 1234, 60_000)
    task.chmod(0o664)

    store.commit(requeue(task), "agents")

    found = task.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 60_000, 0o664)


def test_a_document_whose_owner_cannot_be_kept_is_left_as_it_is(store: Store, task: Path) -> None:
    class Foreign(Disk):
        def status(self, path: Path) -> os.stat_result | None:
            found = super().status(path)
            if found is None or path != task:
                return found
            return os.stat_result([*found[:4], found.st_uid + 1, *found[5:10]])

        def chown(self, fd: int, user: int, group: int) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    before = task.read_bytes()
    use_disk(store, Foreign())

    with pytest.raises(OSError, match="could not keep its owner"):
        store.commit(requeue(task), "agents")

    assert task.read_bytes() == before
    assert os.listdir(task.parent) == ["1.json"]
