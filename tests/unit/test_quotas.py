"""The quotas of folders that other programs fill, and the journal entries about removed files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from yolo_supervisor.actions.state import quarantine
from yolo_supervisor.formats.crash_report import Evidence, Report
from yolo_supervisor.fs.read import digest
from yolo_supervisor.models import Agent
from yolo_supervisor.policy.crash_rules import classify
from yolo_supervisor.store import crash_reports
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.history import history
from yolo_supervisor.store.index import VERSIONS
from yolo_supervisor.store.paths import quarantine_file
from yolo_supervisor.store.quotas import MOVED_LOCKS, Quota, QuotaFolder, prune_moved_locks
from yolo_supervisor.store.store import Outcome, Store

SINCE = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    opened = Store(project)
    opened.open()
    yield opened
    opened.close()


def put_aside(store: Store, content: bytes) -> str:
    path = quarantine_file(store.paths.quarantine, "config.json", content)
    action = quarantine(key="config.json", path=path, data=content, reason="broken")
    assert store.commit(action, "state") is Outcome.DONE
    return path.name


def pruned_entries(store: Store) -> list[tuple[str, int, int]]:
    entries = [entry for entry in history(store.paths.journal) if entry["action"] == "pruned"]
    return [(entry["key"], entry["evidence"]["files"], entry["evidence"]["bytes"]) for entry in entries]


def files(folder: Path, *sizes: int) -> list[str]:
    """Files with these sizes, the oldest first."""
    for number, size in enumerate(sizes):
        (folder / f"{number}").write_bytes(b"x" * size)
        while number and not _older(folder / f"{number - 1}", folder / f"{number}"):
            (folder / f"{number}").write_bytes(b"x" * size)  # until the clock of the file system has moved on
    return sorted(os.listdir(folder))


def _older(one: Path, other: Path) -> bool:
    return one.stat().st_ctime_ns < other.stat().st_ctime_ns


def test_good_versions_of_a_document_that_are_not_remembered_are_removed(store: Store) -> None:
    document = store.paths.planning / "STATE.md"
    for number in range(20):
        document.write_text(f"# {number}\n")
        store.keep(document, document.read_bytes())

    assert len(os.listdir(store.paths.backups)) == VERSIONS
    assert list(store.versions(document)) == [f"# {number}\n".encode() for number in range(19, 14, -1)]


@pytest.mark.parametrize("quota", [Quota(10_000, 3), Quota(300, 1000)])
def test_the_oldest_copies_leave_the_quarantine_and_the_removal_is_recorded(store: Store, quota: Quota) -> None:
    store._quotas[store.paths.quarantine] = QuotaFolder(store.disk, store.paths.quarantine, quota)

    names = [put_aside(store, bytes([65 + number]) * 100) for number in range(9)]

    left = set(os.listdir(store.paths.quarantine))
    assert left == set(names[-len(left) :])
    assert 2 <= len(left) <= 3
    removed = pruned_entries(store)
    assert {key for key, _, _ in removed} == {"quarantine"}
    assert sum(count for _, count, _ in removed) == 9 - len(left)
    assert sum(size for _, _, size in removed) == 100 * (9 - len(left))
    assert [note.key for note in store.take_pruned()] == ["quarantine"] * len(removed)
    assert store.take_pruned() == []


def test_a_large_removed_content_counts_for_the_quarantine(store: Store) -> None:
    store._quotas[store.paths.quarantine] = QuotaFolder(store.disk, store.paths.quarantine, Quota(2 * 2**20, 1000))
    document = store.paths.planning / "config.json"
    for number in range(4):
        path = quarantine_file(store.paths.quarantine, "config.json", b"%d" % number)
        document.write_bytes(b"%d" % number * 2**20)
        action = quarantine(key="config.json", path=path, data=document.read_bytes(), reason="broken")
        assert store.commit(action, "state") is Outcome.DONE

    assert sum(path.stat().st_size for path in store.paths.quarantine.iterdir()) <= 2 * 2**20


def test_the_newest_good_version_of_each_document_survives_the_quota(store: Store) -> None:
    store._quotas[store.paths.backups] = QuotaFolder(store.disk, store.paths.backups, Quota(1000, 2))
    documents = [store.paths.planning / f"{name}.md" for name in "abcd"]
    for content in (b"first", b"second"):
        for document in documents:
            store.keep(document, content + document.name.encode())

    newest = {str(digest(b"second" + document.name.encode())) for document in documents}
    assert newest <= set(os.listdir(store.paths.backups))
    assert len(os.listdir(store.paths.backups)) <= len(newest) + 1


def test_needed_files_the_newest_one_folders_and_links_stay(tmp_path: Path) -> None:
    names = files(tmp_path, 50, 50, 50, 50)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "0")

    pruned = QuotaFolder(Disk(), tmp_path, Quota(10, 1000)).prune({names[1]})

    assert pruned is not None
    assert (pruned.files, pruned.size) == (2, 100)
    assert sorted(os.listdir(tmp_path)) == ["1", "3", "folder", "link"]


def test_a_folder_within_its_quota_is_not_listed_again(tmp_path: Path) -> None:
    files(tmp_path, 50)
    folder = QuotaFolder(Disk(), tmp_path, Quota(100, 3))

    assert folder.added(50)
    assert folder.prune() is None
    assert not folder.added(50)
    assert folder.added(1)


def test_a_file_that_cannot_be_removed_stops_nothing(tmp_path: Path) -> None:
    class Stuck(Disk):
        def unlink(self, path: Path) -> None:
            if path.name == "0":
                raise PermissionError(path)
            super().unlink(path)

    files(tmp_path, 50, 50, 50)

    pruned = QuotaFolder(Stuck(), tmp_path, Quota(60, 1000)).prune()

    assert pruned is not None
    assert pruned.files == 1
    assert sorted(os.listdir(tmp_path)) == ["0", "2"]


def test_the_removal_of_crash_reports_above_the_quota_is_recorded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crash_reports, "CRASHES", Quota(2**20, 2, rest=1))
    agent = Agent(id="dev-1@red", name="dev-1", role="dev", team="red", source="test", since=SINCE)
    for second in range(4):
        evidence = Evidence(at=SINCE + timedelta(seconds=second))
        store.save_crash_report(Report(agent=agent, evidence=evidence, verdict=classify(evidence)), "agents")

    assert len(os.listdir(store.paths.crashes)) == 2
    assert [(key, count) for key, count, _ in pruned_entries(store)] == [("crashes", 1)] * 2
    assert len(store.take_pruned()) == 2


def test_moved_locks_in_a_repository_stay_within_their_quota(tmp_path: Path) -> None:
    others = ["commit.lock", "locks-1.json"]
    for name in others:
        (tmp_path / name).touch()
    for number in range(MOVED_LOCKS.files + 20):
        (tmp_path / f"index.lock-{number}").touch()

    prune_moved_locks(Disk(), tmp_path)

    left = sorted(os.listdir(tmp_path))
    assert len(left) <= MOVED_LOCKS.files + len(others)
    assert {*others, f"index.lock-{MOVED_LOCKS.files + 19}"} <= {*left}
