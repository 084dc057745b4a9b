"""The plugin's event log gets each of our actions once, in the plugin's format, and only if there is a log."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.project import write_task
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import event_log, execution_state
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.models import Task
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.store import Outcome, Store

KEYS = ["correlation_id", "data", "event", "event_id", "phase", "ts"]


def write_state(project: Path, **more: Any) -> Path:
    path = project / plugin.PLANNING / execution_state.STATE_FILE
    state = {"phase": 5, "status": "running", "correlation_id": "c-1", "plans": [{"id": "05-02", "status": "running"}]}
    path.write_bytes(execution_state.dump({**state, **more}))
    return path


def switch(project: Path, value: object) -> None:
    (project / plugin.PLANNING / "config.json").write_text(json.dumps({"v3_event_log": value}))


def log_of(project: Path) -> Path:
    return project / plugin.PLANNING / event_log.EVENT_LOG


def events_of(project: Path) -> list[dict[str, Any]]:
    path = log_of(project)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def requeue_or_dead_letter(project: Path, claude: Path, number: int = 1) -> Requeue:
    path = write_task(claude, "team", number, owner="dev-1", status="in_progress")
    task = Task(list="team", number=str(number), status="in_progress", owner="dev-1", path=path)
    return Requeue(key=task.id, task=task, owner="dev-1", cause="died", reason="its owner dev-1 is dead",
                   evidence={"owner": "dev-1", "attempt": 1})  # fmt: skip


@pytest.fixture
def store(project: Path) -> Any:
    with closing(Store(project)) as store:
        store.open()
        yield store


def test_a_requeue_is_logged_in_the_plugins_format(store: Store, project: Path, claude_home: Path) -> None:
    write_state(project)
    switch(project, True)

    store.commit(requeue_or_dead_letter(project, claude_home), "agents")

    (event,) = events_of(project)
    assert list(event) == KEYS
    assert (event["event"], event["phase"], event["correlation_id"]) == ("task_reassigned", 5, "c-1")
    assert event["data"] == {
        "task": "team/1", "previous_owner": "dev-1", "attempt": "1", "reason": "its owner dev-1 is dead",
    }  # fmt: skip
    assert datetime.fromisoformat(event["ts"]).tzinfo == UTC
    assert log_of(project).read_bytes() == (json.dumps(event, separators=(",", ":"), sort_keys=True).encode() + b"\n")


def test_a_plan_is_named_by_numbers(store: Store, project: Path) -> None:
    path = write_state(project, phase=7)
    switch(project, True)

    plan = Task(list="execution-state", number="05-02", status="running", owner=None, path=path)
    store.commit(Requeue(key=plan.id, task=plan, owner=None, cause="died", reason="r"), "agents")

    (event,) = events_of(project)
    assert (event["phase"], event["plan"]) == (5, 2)


@pytest.mark.parametrize("value", [False, "true", 1, None])
def test_a_log_that_the_plugin_does_not_keep_is_not_begun(
    store: Store, project: Path, claude_home: Path, value: object
) -> None:
    switch(project, value)

    store.commit(requeue_or_dead_letter(project, claude_home), "agents")

    assert not log_of(project).exists()


def test_a_released_lease_is_no_event_an_expired_one_is(store: Store, project: Path) -> None:
    switch(project, True)
    lease = project / plugin.PLANNING / ".locks" / "a.lease"
    lease.parent.mkdir()
    for by in ("cli", "leases"):
        lease.write_bytes(plugin_leases.dump_lease("a", "dev-1", datetime.now(UTC), 60))
        store.commit(Release(key="a", path=lease, owner="dev-1", reason=by), by)

    (event,) = events_of(project)
    assert (event["event"], event["phase"], event["data"]["resource"]) == ("task_reassigned", 0, "a")
    assert event["data"]["reason"] == "leases"


def test_lines_are_appended_even_if_the_last_line_was_torn(store: Store, project: Path, claude_home: Path) -> None:
    switch(project, True)
    log_of(project).parent.mkdir()
    log_of(project).write_text('{"event":"a"}\n{"event":"b"}')

    store.commit(requeue_or_dead_letter(project, claude_home), "agents")

    assert [event["event"] for event in events_of(project)] == ["a", "b", "task_reassigned"]


class Cut(BaseException):
    """The end of the process."""


class Mortal(Disk):
    """A disk whose user is killed at the event log: before it is written to, or after."""

    def __init__(self, log: Path, after: bool) -> None:
        self._log, self._after, self._fd = log, after, -1

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        if path == self._log and not self._after:
            raise Cut
        fd = super().open(path, flags, mode)
        self._fd = fd if path == self._log else self._fd
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        if fd == self._fd:
            raise Cut


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_the_event_logs_it_once(project: Path, claude_home: Path, after: bool) -> None:
    switch(project, True)
    log_of(project).parent.mkdir()
    store = Store(project, disk=Mortal(log_of(project), after))
    store.open()
    with pytest.raises(Cut):
        store.commit(requeue_or_dead_letter(project, claude_home), "agents")

    for _ in range(2):
        with closing(Store(project)) as next_store:
            next_store.open()
            next_store.recover()

    assert len(events_of(project)) == 1


@pytest.mark.parametrize("obstacle", ["a folder", "a link"])
def test_a_log_that_cannot_be_written_stops_nothing(
    store: Store, project: Path, claude_home: Path, obstacle: str, tmp_path: Path
) -> None:
    switch(project, True)
    log_of(project).parent.mkdir()
    if obstacle == "a folder":
        log_of(project).mkdir()
    else:
        log_of(project).symlink_to(tmp_path / "elsewhere")

    assert store.commit(requeue_or_dead_letter(project, claude_home), "agents") is Outcome.DONE
    assert not (tmp_path / "elsewhere").exists()


def test_malformed_text_never_makes_an_unreadable_line(store: Store, project: Path, claude_home: Path) -> None:
    switch(project, True)
    path = write_task(claude_home, "team", 1, owner="x", status="in_progress")
    task = Task(list="team", number="1", status="in_progress", owner="x", path=path)

    requeue = Requeue(key="team/1", task=task, owner="x", cause="by hand", by_hand=True, reason="so\ud800\n",
                      evidence={"owner": "\udfff"})  # fmt: skip
    store.commit(requeue, "cli")

    assert len(events_of(project)) == 1
