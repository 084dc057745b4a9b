"""The modules that touch the disk: bounded reads, appends and replacements that lose nothing, locks."""

from __future__ import annotations

import errno
import itertools
import os
import posix
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support.wait import wait_until
from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.fs.read import digest, read, read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import append, make_folder, remove, write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy, LockAges, file_lock, folder_lock


class FailingDisk(Disk):
    """A disk that fails at its n-th operation, and records all operations."""

    def __init__(self, fails_at: int = 0, number: int = errno.EIO) -> None:
        self.asked: list[str] = []
        self._fails_at = fails_at
        self._number = number

    @property
    def failed(self) -> bool:
        return 0 < self._fails_at <= len(self.asked)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if len(self.asked) == self._fails_at:
            raise OSError(self._number, os.strerror(self._number))

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        self._ask("open")
        return super().open(path, flags, mode)

    def write(self, fd: int, data: bytes) -> int:
        self._ask("write")
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._ask("sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync")
        super().sync(fd)

    def rename(self, old: Path, new: Path) -> None:
        self._ask("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._ask("unlink")
        super().unlink(path)


class NarrowDisk(Disk):
    """A disk that takes a few bytes at a time, as the kernel may."""

    def write(self, fd: int, data: bytes) -> int:
        return super().write(fd, data[:7])


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Run as another user than root, which may read everything."""
    us = os.geteuid()
    if us == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(us)


# -- reading ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")

    assert read(tmp_path / "missing") is None
    assert read(tmp_path / "missing" / "file") is None
    assert read(tmp_path / "file" / "below") is None


def _folder(path: Path) -> None:
    path.mkdir()


def _endless_link(path: Path) -> None:
    path.symlink_to(path)


def _link(path: Path) -> None:
    (path.parent / "target").write_bytes(b"x")
    path.symlink_to(path.parent / "target")


def _link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_folder, os.mkfifo, _endless_link, _link, _link_to_a_device])
def test_an_existing_unreadable_file_is_an_error_never_none(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "thing"
    make(path)

    with pytest.raises(OSError, match="thing"):
        read(path)
    assert read_or_none(path) is None


def test_a_file_that_we_may_not_read_is_an_error_and_never_none(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    path.chmod(0)

    with as_an_ordinary_user():
        with pytest.raises(PermissionError):
            read(path)
        assert read_or_none(path) is None


def test_a_file_larger_than_the_limit_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"12345")

    assert read(path, limit=5) == b"12345"
    with pytest.raises(OSError, match="larger than 4 bytes"):
        read(path, limit=4)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="needs a file of unknown size")
def test_a_file_that_hides_its_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    assert os.stat("/proc/self/pagemap").st_size == 0

    with pytest.raises(OSError, match="larger than 4095 bytes"):
        read(Path("/proc/self/pagemap"), limit=4095)  # reads are of 8 bytes each


@pytest.mark.parametrize("make", [os.mkfifo, _folder, _link_to_a_device])
def test_a_link_is_followed_on_demand_to_an_ordinary_file_only(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    make(tmp_path / "other")
    (tmp_path / "bad").symlink_to(tmp_path / "other")

    assert read_regular(tmp_path / "good", 4, follow=True) == b"text"
    with pytest.raises(OSError, match="not an ordinary file"):
        read_regular(tmp_path / "bad", 4, follow=True)


READ_OTHERWISE = {
    "commits/backup.py": "the index of git, which may have any size",
    "commits/branch_update.py": "the index of git, which may have any size",
    "commits/fast_path.py": "/proc",
    "commits/work_copy.py": "its record in the folder of this program in git's",
    "fs/bounded.py": "the bounded reader",
    "fs/mounts.py": "/proc",
    "fs/owner.py": "opens for store/disk.py and commits/fast_path.py",
    "inventory/session_processes.py": "the lock of a session, which is only tried",
    "launch.py": "/proc and /etc, and the lock of a session, without the import",
    "hook.py": "/proc, and one bounded read, without the import",
    "log.py": "/etc, and the terminal",
    "mcp/pipes.py": "/proc",
    "service/manager.py": "files of this package",
    "store/disk.py": "files of the supervisor, never through a link",
    "system/cgroups.py": "/proc and /sys",
    "system/freeze.py": "/proc",
    "system/oom.py": "/proc and /sys",
    "system/panes.py": "/proc",
    "system/procfs.py": "/proc and /etc",
    "system/subprocesses.py": "the terminal",
    "cli/app.py": "the null device",
    "cli/consent.py": "the terminal, and a pipe",
}
"""The modules that open or read files without the bounded reader, and the reasons."""


def test_files_of_other_programs_are_read_by_the_bounded_reader_only() -> None:
    package = Path(__file__).parents[2] / "yolo_supervisor"
    pattern = re.compile(r"(?<![\w.])open\((?!self)|\.read_text\(|\.read_bytes\(|\bos\.open\(")
    found = {
        path.relative_to(package).as_posix()
        for path in package.glob("**/*.py")
        if "drill" not in path.parts and pattern.search(path.read_text())
    }

    assert found <= READ_OTHERWISE.keys(), "read them with yolo_supervisor.fs, or add them here with the reason"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_a_folder_in_the_place_of_a_file_costs_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")

    for _ in range(5):
        read_or_none(tmp_path)

    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_digest_is_the_one_of_the_plugins_side_files() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(b"") is not None
    assert digest(None) is None


# -- appending --------------------------------------------------------------------------------------------------


class FullDisk(Disk):
    """A disk with room for half of what is written."""

    def write(self, fd: int, data: bytes) -> int:
        return super().write(fd, data[: len(data) // 2])


class FailingAfterHalf(Disk):
    """A disk that takes half of it and then reports an error."""

    def write(self, fd: int, data: bytes) -> int:
        super().write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


class UnsyncableDisk(Disk):
    """A disk that cannot flush what it took."""

    def sync(self, fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("disk", [FullDisk(), FailingAfterHalf(), UnsyncableDisk(), FailingDisk(1, errno.EDQUOT)])
def test_an_append_that_fails_leaves_the_file_as_it_was(disk: Disk, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"first\n")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)

    with pytest.raises(OSError, match=r"space|error|quota"):
        append(disk, fd, b"second\n", 6)

    assert path.read_bytes() == b"first\n"
    append(Disk(), fd, b"third\n", 6)
    assert path.read_bytes() == b"first\nthird\n"
    os.close(fd)


def test_an_append_is_flushed_before_it_counts_as_written(tmp_path: Path) -> None:
    disk = FailingDisk()
    fd = disk.open(tmp_path / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    append(disk, fd, b"line\n", 0)

    assert disk.asked == ["open", "write", "sync"]
    os.close(fd)


def test_a_flush_that_the_kernel_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fdatasync", posix.fdatasync)  # not the one of the tests, which does nothing
    reading, writing = os.pipe()  # a descriptor that cannot be flushed

    with pytest.raises(OSError, match="Invalid argument"):
        Disk().sync(writing)

    os.close(reading)
    os.close(writing)


# -- replacing --------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_by_a_flushed_one_and_its_name_is_flushed_too(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    disk = FailingDisk()

    write_atomic(disk, path, b"new")

    assert path.read_bytes() == b"new"
    assert disk.asked == ["open", "write", "sync", "rename", "open", "sync folder"]


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_all_of_them(tmp_path: Path) -> None:
    write_atomic(NarrowDisk(), tmp_path / "file", b"0123456789" * 10)

    assert (tmp_path / "file").read_bytes() == b"0123456789" * 10


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400, 0o755])
def test_a_replaced_file_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)

    write_atomic(Disk(), path, b"new")

    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        write_atomic(Disk(), tmp_path / "file", b"new")
    finally:
        os.umask(umask)

    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_replacement_that_fails_anywhere_leaves_a_whole_file_and_nothing_else(number: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for n in itertools.count(1):
        path.write_bytes(b"old")
        disk = FailingDisk(n, number)
        try:
            write_atomic(disk, path, b"new")
        except OSError:
            renamed = "sync folder" in disk.asked or disk.asked.count("open") == 2
            assert path.read_bytes() == (b"new" if renamed else b"old")
        else:
            assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["file"]
        if not disk.failed:
            break
    assert n == 7


def test_a_new_file_that_cannot_be_made_is_not_there(tmp_path: Path) -> None:
    for n in range(1, 5):
        with pytest.raises(OSError, match="Input/output error"):
            write_atomic(FailingDisk(n), tmp_path / "file", b"new")
        assert os.listdir(tmp_path) == []


def test_a_reader_sees_the_old_or_the_new_and_never_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = [bytes([letter]) * 50_000 for letter in b"ab"]
    path.write_bytes(whole[0])
    over, seen = threading.Event(), set()

    def look() -> None:
        while not over.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(300):
        write_atomic(NarrowDisk() if turn % 50 == 0 else Disk(), path, whole[turn % 2], durable=False)
    over.set()
    reader.join()

    assert seen == set(whole)


@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_a_link_is_neither_followed_nor_replaced_nor_removed(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a person's")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    before = sorted(os.listdir(tmp_path))

    with pytest.raises(Refused, match="symbolic link"):
        write_atomic(Disk(), link, b"ours")
    with pytest.raises(Refused, match="symbolic link"):
        remove(Disk(), link)

    assert os.readlink(link) == str(tmp_path / target)
    assert (tmp_path / "file").read_bytes() == b"a person's"
    assert sorted(os.listdir(tmp_path)) == before


def test_a_removed_file_is_gone_durably_and_removing_it_again_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    disk = FailingDisk()

    remove(disk, tmp_path / "file")
    assert disk.asked == ["unlink", "open", "sync folder"]
    remove(disk, tmp_path / "file")

    assert os.listdir(tmp_path) == []


def test_a_folder_is_made_with_its_parents_and_only_once(tmp_path: Path) -> None:
    make_folder(Disk(), tmp_path / "a" / "b" / "c")
    make_folder(Disk(), tmp_path / "a" / "b" / "c")

    assert stat.S_IMODE((tmp_path / "a" / "b" / "c").stat().st_mode) == 0o700


def test_a_folder_that_another_process_makes_first_is_as_good(tmp_path: Path) -> None:
    class Overtaken(Disk):
        def mkdir(self, path: Path, mode: int = 0o700) -> None:
            os.mkdir(path)
            super().mkdir(path, mode)

    make_folder(Overtaken(), tmp_path / "folder")

    assert (tmp_path / "folder").is_dir()


# -- the lock of a file ------------------------------------------------------------------------------------------


def test_a_lock_that_comes_free_within_the_limit_is_had(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    had, refused = threading.Event(), threading.Event()

    def wait() -> None:
        try:
            with file_lock(Disk(), second, tmp_path / "lock", 30.0):
                had.set()
        except Busy:
            refused.set()

    waiter = threading.Thread(target=wait)
    with file_lock(Disk(), first, tmp_path / "lock", 0.0):
        waiter.start()
        assert not had.is_set()
    waiter.join()

    assert had.is_set()
    assert not refused.is_set()
    os.close(first)
    os.close(second)


def test_a_lock_is_given_up_when_the_work_under_it_fails(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))

    with pytest.raises(ZeroDivisionError), file_lock(Disk(), first, tmp_path / "lock", 0.0):
        raise ZeroDivisionError

    with file_lock(Disk(), second, tmp_path / "lock", 0.0):
        os.close(first)
    os.close(second)


# -- the lock that is a folder -----------------------------------------------------------------------------------

STALE_S = 10.0


def _left_behind(lock: Path, age_s: float) -> Path:
    """A lock that its holder refreshed for the last time so many seconds ago."""
    lock.mkdir()
    then = time.time() - age_s
    os.utime(lock, (then, then))
    return lock


def test_the_lock_is_a_folder_while_it_is_held_and_gone_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "1.json.lock"

    with folder_lock(Disk(), lock, STALE_S):
        assert os.listdir(tmp_path) == ["1.json.lock"]
        assert lock.is_dir()
    assert os.listdir(tmp_path) == []

    with pytest.raises(ZeroDivisionError), folder_lock(Disk(), lock, STALE_S):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_fresh_lock_is_busy_and_a_stale_one_is_taken_over(tmp_path: Path) -> None:
    fresh = _left_behind(tmp_path / "fresh.lock", STALE_S / 2)
    stale = _left_behind(tmp_path / "stale.lock", STALE_S * 1.01)

    with pytest.raises(Busy), folder_lock(Disk(), fresh, STALE_S):
        pass
    with folder_lock(Disk(), stale, STALE_S):
        assert time.time() - stale.stat().st_mtime < STALE_S

    assert os.listdir(tmp_path) == ["fresh.lock"]


def test_a_lock_taken_over_keeps_others_out_as_any_other(tmp_path: Path) -> None:
    lock = _left_behind(tmp_path / "1.json.lock", 3600)

    with folder_lock(Disk(), lock, STALE_S), pytest.raises(Busy), folder_lock(Disk(), lock, STALE_S):
        pass


def test_a_lock_that_is_watched_is_stale_when_it_was_seen_unchanged_for_long_enough(tmp_path: Path) -> None:
    lock, ages = _left_behind(tmp_path / "1.json.lock", 3600), LockAges()

    def had() -> bool:
        with suppress(Busy), folder_lock(Disk(), lock, 0.02, ages):
            return True
        return False

    assert not had(), "its time stamp is old, but we see it for the first time"
    wait_until(had, "the lock to be taken over")
    assert os.listdir(tmp_path) == []


def test_a_lock_that_is_refreshed_while_it_is_watched_is_busy_for_ever(tmp_path: Path) -> None:
    lock, ages = _left_behind(tmp_path / "1.json.lock", 3600), LockAges()

    for age_s in range(100):
        os.utime(lock, (age_s, age_s))
        with pytest.raises(Busy), folder_lock(Disk(), lock, 1e-9, ages):
            pass


class SlowDisk(Disk):
    """A disk that calls functions right before and right after the first rename."""

    def __init__(self, before: Callable[[], None], after: Callable[[], None] | None = None) -> None:
        self._meanwhile = [before, after or (lambda: None)]

    def rename(self, old: Path, new: Path) -> None:
        before, after = self._meanwhile or (lambda: None, lambda: None)
        self._meanwhile = []
        before()
        super().rename(old, new)
        after()


def test_a_stale_lock_taken_over_by_another_process_is_busy(tmp_path: Path) -> None:
    lock = _left_behind(tmp_path / "1.json.lock", 3600)

    def taken_over() -> None:
        lock.rmdir()
        lock.mkdir()

    with pytest.raises(Busy), folder_lock(SlowDisk(taken_over), lock, STALE_S):
        pass

    assert os.listdir(tmp_path) == ["1.json.lock"]


def test_a_stale_lock_of_a_resumed_holder_is_busy(tmp_path: Path) -> None:
    lock = _left_behind(tmp_path / "1.json.lock", 3600)

    with pytest.raises(Busy), folder_lock(SlowDisk(lambda: os.utime(lock)), lock, STALE_S):
        pass

    assert os.listdir(tmp_path) == ["1.json.lock"]


def test_a_lock_that_was_taken_from_us_is_not_removed_by_us(tmp_path: Path) -> None:
    lock = tmp_path / "1.json.lock"

    with folder_lock(Disk(), lock, STALE_S):
        lock.rmdir()  # after such a pause it is another holder's
        lock.mkdir()
        os.utime(lock, (later := time.time() + STALE_S, later))

    assert os.listdir(tmp_path) == ["1.json.lock"]


def test_a_stale_lock_with_something_in_it_is_no_error_and_loses_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "1.json.lock"
    for turn in range(2):
        lock.mkdir(exist_ok=True)
        (lock / f"note-{turn}").write_text("a person's")
        os.utime(lock, (0, 0))
        with suppress(Busy), folder_lock(Disk(), lock, STALE_S):
            pass

    assert sorted(path.name for path in tmp_path.rglob("note-*")) == ["note-0", "note-1"]


def test_a_file_in_the_place_of_a_lock_is_busy_and_stays_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / "1.json.lock"
    file.write_text("a person's")
    os.utime(file, (0, 0))

    with pytest.raises(Busy), folder_lock(Disk(), file, STALE_S):
        pass

    assert os.listdir(tmp_path) == ["1.json.lock"]
    assert file.read_text() == "a person's"


def test_one_of_three_takers_of_a_stale_lock_wins_and_two_are_busy(tmp_path: Path) -> None:
    lock, holders = _left_behind(tmp_path / "1.json.lock", 3600), []
    with ExitStack() as held:

        def come(disk: Disk) -> None:
            with suppress(Busy):
                held.enter_context(folder_lock(disk, lock, STALE_S))
                holders.append(disk)

        come(SlowDisk(before=lambda: come(Disk()), after=lambda: come(Disk())))

        assert len(holders) == 1
