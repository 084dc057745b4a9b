"""Critical files under the real daemon: a broken one is restored, and every readable one is kept."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.cli import PROGRAM, Cli
from support.daemon import StartDaemon
from support.processes import Children
from support.wait import wait_until
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.fs.read import digest
from yolo_supervisor.models import FlawCode
from yolo_supervisor.policy.file_integrity import Flaw
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.watchers.state import (
    Broken,
    Cure,
    StateObservation,
)

STATE = Path("/p/.execution-state.json")
SOUND = b'{"phase":5,"status":"running","plans":[{"id":"05-01","status":"pending"}]}'
OTHER = b'{"phase":5,"status":"running","plans":[{"id":"05-01","status":"complete"}]}'
EVENTS = b'{"event":"plan_start","phase":5,"plan":1}\n{"event":"plan_end","phase":5,"plan":1}\n'
EMPTY = Flaw(FlawCode.EMPTY, "it is empty")


# -- the decision -------------------------------------------------------------------------------------------------


def broken(data: bytes, *cures: Cure, path: Path = STATE, flaw: Flaw = EMPTY) -> StateObservation:
    key = str(path.relative_to("/p"))
    return StateObservation(broken=(Broken(path=path, key=key, data=data, flaw=flaw, cures=cures),))


# -- the real daemon ----------------------------------------------------------------------------------------------

EDGES_ONLY = """
[state]
interval_s = 600
settle_s = 0.2
"""
"""Intervals so long that every action follows from an observed change."""
OFTEN = """
[state]
interval_s = 0.2
settle_s = 0.1
"""


class Watched:
    """A project under the real daemon, whose critical files a test may write and break."""

    def __init__(self, project: Path, start: StartDaemon) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.state = self.planning / ".execution-state.json"
        self.own = Paths(project)
        self.cli = Cli(project)
        self._start = start
        self._looks = 0

    def supervise(self, config: str = EDGES_ONLY, *more: str) -> None:
        self.running = self._start(*more, config=config)

    def write(self, name: str, data: bytes) -> Path:
        path = self.planning / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    def replace(self, name: str, data: bytes) -> Path:
        """Replace the file, as ``jq … > tmp && mv tmp name`` does."""
        (self.planning / "other.tmp").write_bytes(data)
        return (self.planning / "other.tmp").replace(self.planning / name)

    def wait_kept(self, path: Path) -> None:
        """Wait until the file's content is a good version, which its checksum file shows."""
        side = path.with_name(path.name + ".sha256")
        self.running.wait(
            lambda: side.is_file() and side.read_text() == digest(path.read_bytes()), f"{path.name} to be kept"
        )

    def wait_looked(self) -> None:
        """Wait for a look at all files, which a sound change of another one shows."""
        for _ in range(2):  # the first look may have begun before
            self._looks += 1
            data = json.dumps({"looks": self._looks}).encode()
            self.wait_kept(self.replace("config.json", data))

    def wait_restored(self, path: Path, data: bytes) -> None:
        self.running.wait(lambda: path.read_bytes() == data, f"{path.name} to be restored")

    def undone(self) -> list[dict[str, Any]]:
        return [e for verb in ("restored", "quarantined", "repaired", "escalated") for e in self.running.did(verb)]


@pytest.fixture
def watched(project: Path, daemon: StartDaemon) -> Watched:
    return Watched(project, daemon)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [".execution-state.json", "config.json", "STATE.md"])
def test_a_damaged_file_is_restored_and_reported(watched: Watched, name: str) -> None:
    watched.supervise()
    watched.wait_kept(watched.replace(name, SOUND))
    path = watched.planning / name
    broken = [b"", SOUND[:40] if name != "STATE.md" else "Grö".encode()[:-1], b"\0" * len(SOUND), b"\xff\xfe\0 what"]

    for data in broken:
        path.write_bytes(data)
        watched.wait_restored(path, SOUND)

    watched.running.wait(lambda: len(watched.running.did("restored", name)) == 4, "all to be recorded")
    assert sorted(each.read_bytes() for each in watched.own.quarantine.iterdir()) == sorted(broken[1:])
    for entry in watched.cli("history", "--json", "state", name).stdout.splitlines():
        document = json.loads(entry)
        assert document["kind"] == "state"
        if document["action"] == "restored":
            assert "+" + SOUND.decode() in document["evidence"]["diff"]
    story = watched.cli("explain", "file", name).stdout
    assert "the last good version" in story
    assert "+" + SOUND.decode() in story


def test_foreign_writes_of_every_kind_are_accepted_and_never_undone(watched: Watched) -> None:
    watched.supervise(OFTEN)
    watched.wait_kept(watched.replace(".execution-state.json", SOUND))
    turned = json.dumps(dict(reversed(json.loads(SOUND).items())), indent=2).encode()

    for data in (OTHER, turned, b'{"status":"complete"}\n', SOUND):
        watched.wait_kept(watched.write(".execution-state.json", data))
        watched.wait_looked()
        assert watched.state.read_bytes() == data
        watched.wait_kept(watched.replace(".execution-state.json", data + b"\n"))
        watched.wait_looked()
        assert watched.state.read_bytes() == data + b"\n"

    assert watched.undone() == []


def _folder(side: Path) -> None:
    side.unlink()
    side.mkdir()


def _link(side: Path) -> None:
    side.unlink()
    (side.parent / "precious").write_text("precious")
    side.symlink_to("precious")


@pytest.mark.parametrize(
    "tamper",
    [lambda side: side.write_text("0" * 64), lambda side: side.write_bytes(b"\0"), Path.unlink, _folder, _link],
    ids=["stale", "junk", "gone", "a folder", "a link"],
)
def test_a_damaged_checksum_file_does_not_break_its_document(
    watched: Watched, tamper: Callable[[Path], object]
) -> None:
    watched.supervise(OFTEN)
    watched.wait_kept(watched.replace(".execution-state.json", SOUND))

    tamper(watched.planning / ".execution-state.json.sha256")
    watched.replace(".execution-state.json", OTHER)
    watched.wait_looked()

    assert watched.state.read_bytes() == OTHER
    assert watched.undone() == []
    assert {path.read_text() for path in watched.planning.glob("precious")} <= {"precious"}


def test_half_a_write_that_is_finished_in_time_is_left_alone(watched: Watched) -> None:
    watched.supervise(OFTEN.replace("0.1", "30"))
    watched.wait_kept(watched.replace(".execution-state.json", SOUND))

    with watched.state.open("wb", buffering=0) as writer:
        for part in (b"", OTHER[:30]):
            writer.write(part)
            watched.wait_looked()
        writer.write(OTHER[30:])
    watched.wait_kept(watched.state)

    assert watched.state.read_bytes() == OTHER
    assert watched.undone() == []


APPENDER = """
import os, sys, time
def append(data):
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
    os.write(fd, data)
    os.close(fd)
print("ready", flush=True)
for n in range(40):
    append(b'{"n":%d}\\n' % n)
    if n % 4 == 3:
        append(b'{"torn":')
        time.sleep(0.05 * (n // 4))
"""


def test_a_torn_end_is_cut_off_while_others_go_on_appending_and_no_line_of_theirs_is_lost(
    watched: Watched, children: Children
) -> None:
    log = watched.write(".events/event-log.jsonl", EVENTS)
    inode = log.stat().st_ino
    watched.supervise(OFTEN)

    appender = children.python(APPENDER, str(log))
    watched.running.wait(lambda: appender.poll() == 0, "all to be appended")
    watched.running.wait(lambda: log.read_bytes().endswith(b"\n"), "the last torn end to be cut off")

    assert [n for n in range(40) if b'{"n":%d}\n' % n not in log.read_bytes()] == []
    assert log.stat().st_ino == inode
    assert watched.running.did("repaired", ".events/event-log.jsonl")
    assert {path.read_bytes() for path in watched.own.quarantine.iterdir()} == {b'{"torn":'}


def test_a_log_in_a_folder_that_is_only_made_later_is_watched_too(watched: Watched) -> None:
    watched.supervise()
    (watched.planning / ".events").mkdir()
    watched.wait_looked()

    log = watched.write(".events/event-log.jsonl", EVENTS + b"{torn")

    watched.wait_restored(log, EVENTS)


def test_a_state_without_versions_is_rebuilt_or_escalated(
    watched: Watched,
) -> None:
    watched.write(".execution-state.json", b"{torn")
    watched.supervise(OFTEN)
    watched.running.wait(lambda: watched.running.did("escalated", ".execution-state.json"), "a person to be asked")
    assert watched.state.read_bytes() == b"{torn"
    watched.wait_looked()

    (watched.planning / "phases" / "05-gates").mkdir(parents=True)
    (watched.planning / "phases" / "05-gates" / "05-01-PLAN.md").write_bytes(b"---\nphase: 5\nplan: 1\n---\n")

    (restored,) = watched.running.wait(lambda: watched.running.did("restored"), "the state to be rebuilt")
    assert restored["evidence"]["source"] == "plans, summaries and events"
    assert restored["evidence"]["restored_from"] == "rebuilt"
    assert restored["evidence"]["inferred"]
    watched.wait_kept(watched.state)
    assert json.loads(watched.state.read_bytes())["phase"] == 5
    assert [path.read_bytes() for path in watched.own.quarantine.iterdir()] == [b"{torn"]
    assert len(watched.running.did("escalated")) == 1


def test_without_a_good_version_the_roles_own_snapshot_is_restored(watched: Watched) -> None:
    for second, role, data in ((1, "yolo-dev-01", SOUND), (2, "lead", OTHER)):
        text = {"execution_state": json.loads(data), "phase": "5", "agent_role": role}
        watched.write(f".snapshots/5-20261122T20550{second}.json", json.dumps(text).encode())
    watched.write(".active-agent", b"dev")
    watched.write(".execution-state.json", b"")

    watched.supervise(OFTEN)

    watched.wait_restored(watched.state, execution_state.dump(json.loads(SOUND)))
    (restored,) = watched.running.wait(lambda: watched.running.did("restored"), "it to be recorded")
    assert restored["evidence"]["source"] == "the snapshot 5-20261122T205501.json"
    assert restored["evidence"]["restored_from"] == "snapshot"


def test_a_state_that_broke_before_the_daemon_starts_is_restored_and_the_daemon_goes_on(watched: Watched) -> None:
    watched.supervise()
    watched.wait_kept(watched.replace(".execution-state.json", SOUND))
    assert watched.running.stop() == 0
    watched.write(".execution-state.json", b"\0" * 512)

    watched.supervise()

    watched.wait_restored(watched.state, SOUND)
    watched.wait_looked()


def test_d10_a_restored_state_has_a_numeric_phase_and_a_right_checksum_file(watched: Watched) -> None:
    (watched.planning / "phases" / "05-gates").mkdir(parents=True)
    for name in ("PLAN", "SUMMARY"):
        data = b"---\nphase: 5\nplan: 1\nstatus: complete\n---\n"
        (watched.planning / "phases" / "05-gates" / f"05-01-{name}.md").write_bytes(data)
    watched.write(".execution-state.json", b"")
    watched.write(".execution-state.json.sha256", b"0" * 64)

    watched.supervise()

    watched.wait_kept(watched.state)
    state = json.loads(watched.state.read_bytes())
    assert (state["phase"], state["status"]) == (5, "complete")


NAMES = (b"two\nlines", b"\xff\xfe", b"\x1b[2J", b"-rf", b"x" * 240)


def test_names_of_every_kind_are_healed_and_every_command_can_speak_of_them(watched: Watched) -> None:
    watched.supervise(OFTEN)
    leases = [Path(os.fsdecode(os.fsencode(watched.planning) + b"/.locks/" + name + b".lease")) for name in NAMES]
    (watched.planning / ".locks").mkdir()

    for lease in leases:
        lease.write_bytes(b"{torn")

    watched.running.wait(lambda: not any(lease.exists() for lease in leases), "all to be put aside")
    for words in (
        ("state", "verify"),
        ("history",),
        ("history", "--json"),
        ("doctor",),
        ("explain", "file", "-rf.lease"),
    ):
        result = watched.cli(*words)
        assert result.returncode in (0, 1, 2), result.stderr
        assert "\x1b[2J" not in result.stdout


def resident(pid: int) -> int:
    """The most memory that the process ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells here how much memory a process had")
def test_a_huge_file_is_reported_at_bounded_cost(watched: Watched) -> None:
    watched.supervise()
    watched.wait_kept(watched.replace(".execution-state.json", SOUND))
    watched.wait_looked()
    before = resident(watched.running.child.pid)

    with watched.state.open("r+b") as file:
        file.truncate(100 * 2**20)
    watched.running.wait(lambda: watched.running.did("escalated", ".execution-state.json"), "the alert to be recorded")
    watched.wait_looked()

    assert resident(watched.running.child.pid) < before + 30 * 2**20
    assert watched.cli("state", "verify").returncode == 1
    watched.replace(".execution-state.json", OTHER)
    watched.wait_kept(watched.state)


def looks(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything in the planning folder except our files."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
        if ".supervisor" not in path.parts and path != folder
    }


def test_observe_mode_reports_the_repair_and_touches_nothing(watched: Watched) -> None:
    watched.supervise()
    watched.wait_kept(watched.replace(".execution-state.json", SOUND))
    watched.write(".events/event-log.jsonl", EVENTS)
    watched.running.wait(lambda: len(list(watched.own.backups.iterdir())) > 1, "the log to be kept")
    watched.running.stop()
    watched.write(".execution-state.json", b"{torn")
    watched.write(".events/event-log.jsonl", EVENTS + b"{torn")
    watched.write(".locks/a.lease", b"{torn")
    watched.write("config.json", b"{}")
    watched.write("supervisor.toml", EDGES_ONLY.encode())
    before = looks(watched.planning)

    watched.supervise("", "--observe")

    def reported() -> set[str]:
        return {entry["key"] for verb in ("would_restored", "would_repaired") for entry in watched.running.did(verb)}

    watched.running.wait(
        lambda: reported() == {".execution-state.json", ".events/event-log.jsonl", ".locks/a.lease"}, "all repairs"
    )
    assert looks(watched.planning) == before
    assert list(watched.own.quarantine.iterdir()) == []


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
    result = subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )  # fmt: skip
    return result.stdout


@pytest.mark.sampled(1)
@pytest.mark.parametrize("where", ["root", "subfolder", "linked work tree"])
def test_git_status_stays_clean_at_every_action(
    tmp_path: Path, daemon: StartDaemon, claude_home: Path, where: str
) -> None:
    (root := tmp_path / "repo").mkdir()
    git(root, "init", "-q")
    git(root, "commit", "-qm", "x", "--allow-empty")
    project = {"root": root, "subfolder": root / "a b" / "c", "linked work tree": tmp_path / "tree"}[where]
    if where == "linked work tree":
        git(root, "worktree", "add", "-q", "-b", "other", str(project))
    (project / ".yolo-planning").mkdir(parents=True, exist_ok=True)
    watched = Watched(project.resolve(), lambda *more, **options: daemon(*more, over=project.resolve(), **options))
    for name, data in ((".execution-state.json", SOUND), ("STATE.md", b"# State\n"), ("config.json", b"{}")):
        watched.write(name, data)
    watched.write("supervisor.toml", EDGES_ONLY.encode())
    git(project, "add", "-A")
    git(project, "commit", "-qm", "y")

    watched.supervise()
    watched.wait_kept(watched.state)
    assert git(project, "status", "--porcelain", "-uall") == ""

    watched.write(".execution-state.json", b"{torn")
    watched.wait_restored(watched.state, SOUND)
    watched.wait_kept(watched.state)
    assert git(project, "status", "--porcelain", "-uall") == ""
    assert ".execution-state.json.sha256" in [path.name for path in watched.planning.iterdir()]


@pytest.mark.thorough
def test_d32_writers_commands_and_the_daemon_on_one_file_at_once_never_show_a_reader_a_torn_one(
    watched: Watched, children: Children
) -> None:
    watched.supervise(OFTEN)
    versions = [json.dumps({"status": "running", "n": n, "fill": "x" * 20_000}).encode() for n in range(15)]
    garbage = [b"", b"\0" * 100, b"{torn"]
    watched.wait_kept(watched.replace(".execution-state.json", versions[0]))
    known = {*versions, *garbage}
    seen, over = set[bytes](), threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(watched.state.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    commands = [
        children.start("/bin/sh", "-c", "for n in 1 2; do " + shlex.join([*PROGRAM, *words]) + "; done",
                       cwd=watched.project)
        for words in (("state", "recover"), ("state", "recover"), ("snapshot", "save"))
    ]  # fmt: skip
    for number, data in enumerate(versions):
        watched.replace(".execution-state.json", data)
        watched.replace(".execution-state.json", garbage[number % 3])
        wait_until(lambda: watched.state.read_bytes() not in garbage, "the garbage to be replaced")
    for command in commands:
        assert command.stdout is not None
        command.stdout.read()
        command.wait()
    watched.replace(".execution-state.json", OTHER)
    watched.wait_kept(watched.state)
    watched.wait_looked()
    over.set()
    reader.join()

    assert seen - known - {OTHER} == set()
    assert watched.state.read_bytes() == OTHER
