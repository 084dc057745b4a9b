"""Leases between real processes: one holder, and an end that the daemon sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import traceback
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from support.cli import Cli
from support.daemon import StartDaemon
from support.processes import Children
from support.project import EPOCH, QuickDisk
from support.wait import LIMIT_S
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.formats.own import load_holder, load_seen_locks
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.leases import Held, Leases
from yolo_supervisor.models import iso
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, Store

DAY = timedelta(days=1)
FILE = "src/a1.js"
WIDE_AWAKE = "[leases]\ninterval_s = 86400\n[state]\ninterval_s = 86400\n[agents]\ninterval_s = 86400\n"
"""Intervals so long that everything in time is done because the daemon was woken."""


def as_plugin(owner: str, at: datetime = EPOCH, ttl: object = 60, resource: str = FILE) -> bytes:
    """A lease as ``yolo lease-lock acquire`` writes it."""
    said = {"acquired_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "owner": owner, "resource": resource, "ttl_secs": ttl}
    return json.dumps({**said, "type": "lease"}, indent=2, sort_keys=True, ensure_ascii=False).encode()


# -- competing processes --------------------------------------------------------------------------------------------


def _compete(project: Path, name: str, resources: int, output: int) -> None:
    """Try to get each lease, and write the ones that were granted to ``output``."""
    with closing(Store(project, disk=QuickDisk())) as store:
        with suppress(Busy):  # with so many at once; then it is caught up with at the first change
            store.open()
        leases = Leases(store, SystemClock(), "here")
        for number in range(resources):
            while True:
                action = leases.lend(str(number), name, 300, datetime.now(UTC))
                if isinstance(action, Held):
                    break
                if store.commit(action, name) is Outcome.DONE:
                    got = store.index.leases[str(action.path)].token
                    os.write(output, f"{number} {name} {got}\n".encode())
                    break


def _plugin_competes(locks: Path, name: str, resources: int, output: int) -> None:
    """Write each lease without a file, as the plugin does; here in one step, so that it errs only about our leases."""
    for number in range(resources):
        path, made = locks / f"{number}.lease", locks / name
        made.write_bytes(as_plugin(name, datetime.now(UTC), 300, str(number)))
        if not path.exists():
            with suppress(FileExistsError):
                os.link(made, path)
                os.write(output, f"{number} {name} 0\n".encode())
        made.unlink()


def race(*runners: Callable[[int], None]) -> list[tuple[str, str, int]]:
    """The claims that the runners write, each a separate process, if all start at the same moment."""
    start, go = os.pipe()
    reading, output = os.pipe()
    pids = []
    for run in runners:
        pid = os.fork()
        if pid == 0:
            signal.alarm(int(LIMIT_S))
            os.close(go)
            os.close(reading)
            os.read(start, 1)
            try:
                run(output)
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        pids.append(pid)
    for fd in (start, go, output):
        os.close(fd)
    with open(reading) as pipe:
        claims = [(number, name, int(got)) for number, name, got in (line.split() for line in pipe)]
    assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}
    return claims


@pytest.mark.system
def test_one_of_32_processes_gets_each_lease_with_a_unique_token(
    project: Path,
) -> None:
    locks, resources = project / ".yolo-planning" / ".locks", 60
    locks.mkdir()
    for each in range(0, resources, 2):
        (locks / f"{each}.lease").write_bytes(as_plugin("gone", EPOCH - 365 * DAY, 60, str(each)))
    with closing(Store(project)) as store:
        store.open()

    claims = race(*(lambda output, n=n: _compete(project, f"dev-{n}", resources, output) for n in range(32)))

    assert sorted(int(number) for number, _, _ in claims) == list(range(resources))
    assert len({got for _, _, got in claims}) == resources
    for number, name, _ in claims:
        assert json.loads((locks / f"{number}.lease").read_text())["owner"] == name
    assert sorted(locks.iterdir()) == sorted(locks / f"{number}.lease" for number in range(resources))


@pytest.mark.system
def test_a_lease_of_the_plugin_is_never_granted_by_us(project: Path) -> None:
    locks, resources = project / ".yolo-planning" / ".locks", 60
    locks.mkdir()
    with closing(Store(project)) as store:
        store.open()

    claims = race(
        *(lambda output, n=n: _compete(project, f"dev-{n}", resources, output) for n in range(8)),
        *(lambda output, n=n: _plugin_competes(locks, f"plugin-{n}", resources, output) for n in range(4)),
    )

    assert sorted(int(number) for number, _, _ in claims) == list(range(resources))
    for number, name, _ in claims:
        assert json.loads((locks / f"{number}.lease").read_text())["owner"] == name


# -- the daemon -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["is there", "comes later"])
def test_the_daemon_ends_a_lease_without_waiting_for_its_next_look(
    folder: str, project: Path, daemon: StartDaemon
) -> None:
    locks = project / ".yolo-planning" / ".locks"
    if folder == "is there":
        locks.mkdir()
    running = daemon(config=WIDE_AWAKE)

    assert Cli(project)("lease", "acquire", FILE, "--owner", "dev-1", "--ttl", "1").returncode == 0

    running.wait(lambda: running.did("released", FILE), "the lease to be ended")
    assert list(locks.iterdir()) == []


def test_the_daemon_ends_a_lease_of_the_plugin(project: Path, daemon: StartDaemon) -> None:
    (project / ".yolo-planning" / ".locks").mkdir()
    path = project / ".yolo-planning" / ".locks" / "src__a1.js.lease"
    running = daemon(config=WIDE_AWAKE)

    path.write_bytes(as_plugin("dev-1", datetime.now(UTC), 1))

    running.wait(lambda: running.did("released", FILE), "the lease to be ended")
    assert not path.exists()
    assert running.did("released")[0]["by"] == "leases"


def test_a_restarted_daemon_ends_leases_granted_before_its_crash(project: Path, daemon: StartDaemon) -> None:
    Cli(project)("lease", "acquire", FILE, "--owner", "dev-1", "--ttl", "1")
    daemon(config=WIDE_AWAKE).stop(9)

    running = daemon(config=WIDE_AWAKE)

    running.wait(lambda: running.did("released", FILE), "the lease to be ended")


def test_observe_mode_ends_no_lease_and_reports_the_release(project: Path, daemon: StartDaemon) -> None:
    (project / ".yolo-planning" / ".locks").mkdir()
    path = project / ".yolo-planning" / ".locks" / "src__a1.js.lease"
    path.write_bytes(as_plugin("dev-1"))
    before = iso(datetime.now(UTC))

    running = daemon("--observe", config=WIDE_AWAKE)

    (entry,) = running.wait(lambda: running.did("would_released", FILE), "the release to be reported")
    assert entry["at"] >= before
    assert path.read_bytes() == as_plugin("dev-1")
    assert running.did("released") == []


# -- locks of git's ---------------------------------------------------------------------------------------------------


def has_looked(project: Path) -> bool:
    holder = load_holder(read_or_none(Paths(project).holder) or b"")
    return any(w["name"] == "leases" and w["last_tick_at"] for w in (holder.watchers if holder else ()))


@pytest.mark.parametrize("where", ["main", "a new work tree"])
def test_the_holder_of_a_lock_is_seen_while_it_works(
    project: Path, daemon: StartDaemon, children: Children, tmp_path: Path, where: str
) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "first"], cwd=project, check=True)
    running = daemon(config=f"{WIDE_AWAKE}[sessions]\ninterval_s = 0.1\n")  # ticks are reported at this interval
    running.wait(lambda: has_looked(project), "its first look")
    folder, git_dir = project, project / ".git"
    if where == "a new work tree":
        folder, git_dir = tmp_path / "linked", project / ".git" / "worktrees" / "linked"
        subprocess.run(["git", "worktree", "add", "-q", str(folder)], cwd=project, check=True)

    git = children.start("git", "update-index", "--stdin", cwd=folder, stdin=subprocess.PIPE)

    def is_seen() -> bool:
        (git_dir / "nudge").touch()  # a new folder is watched from an unknown moment on
        (git_dir / "nudge").unlink()
        seen = load_seen_locks(read_or_none(Paths(project).seen_locks) or b"")
        return [holder.pid for lock in seen.values() for holder in lock.holders] == [git.pid]

    running.wait(is_seen, "the holder to be seen")
    assert (git_dir / "index.lock").exists()
