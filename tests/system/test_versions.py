"""Files of another version of the program: an older one's are taken up, a newer one's are left alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.processes import Children
from support.project import given_back, write_task
from support.team import Team
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.trust import TooNew
from yolo_supervisor.models import ProcessId
from yolo_supervisor.store.history import History
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store


class Older:
    """The folder of the very first version: no version, no checkpoint, less in each line and record."""

    def __init__(self, project: Path) -> None:
        self.paths = Paths(project)
        self.paths.agents.mkdir(parents=True)
        self.paths.folder.chmod(0o700)
        (self.paths.folder / ".gitignore").write_text("*\n")
        self._seq = 0

    def line(self, **record: Any) -> int:
        """One line of the journal, with its seal."""
        self._seq += 1
        body = json.dumps({"seq": self._seq, **record}, separators=(",", ":")).encode()[:-1]
        with self.paths.journal.open("ab") as journal:
            journal.write(body + b',"crc":"%08x"}\n' % zlib.crc32(body))
        return self._seq

    def entry(self, kind: str, key: str, action: str, write: Mapping[str, Any]) -> int:
        return self.line(
            at="2026-11-22T20:55:10.000000Z", kind=kind, key=key, action=action, by="agents", reason="it was so",
            evidence={}, project=str(self.paths.project), write=write,
        )  # fmt: skip

    def requeued(self, key: str, task: Path) -> None:
        """A requeued task, with the mark of the outcome."""
        write = {"path": str(task), "before": "0" * 64, "after": "1" * 64, "lock": [f"{task}.lock", 10.0]}
        self.line(done=self.entry("task", key, "requeued", {**write, "content": "{}"}))

    def agent(self, name: str, process: ProcessId, claude: Path) -> None:
        record = {
            "version": 1, "id": f"{name}@red", "name": name, "role": "dev", "team": "red", "source": "argv",
            "since": "2026-11-22T20:55:10Z", "pane": None, "lead": None, "session": None, "claude_dir": str(claude),
            "process": {"pid": process.pid, "started": process.started, "boot": process.boot},
        }  # fmt: skip
        (self.paths.agents / f"{name}@red~{process.pid}-{process.started}.json").write_text(json.dumps(record))


@pytest.fixture
def gone(team: Team, children: Children) -> ProcessId:
    """The identity of a process that has ended."""
    child = children.agent("dev-1", "red", team.project)
    process = team.identity(child.pid)
    child.kill()
    child.wait()
    return process


def test_an_interrupted_action_of_an_older_version_is_completed(team: Team, gone: ProcessId) -> None:
    task = write_task(team.claude, "red", 1, owner="dev-1", status="in_progress")
    older = Older(team.project)
    older.requeued("red/1", task)
    older.agent("dev-1", gone, team.claude)

    running = team.supervise("[tasks]\nbackoff_s = 0.0\n[agents]\ninterval_s = 0.3\n")

    team.wait_given_back(task)
    team.wait_healed("dev-1")
    (again,) = [entry for entry in running.did("requeued", "red/1") if entry["seq"] > 2]
    assert again["evidence"]["attempt"] == 2
    assert own_files.load_version((team.own.folder / own_files.VERSION_FILE).read_bytes()) == own_files.VERSION


def test_an_agent_that_an_older_version_knew_goes_on(team: Team) -> None:
    child = team.children.agent("dev-1", "red", team.project)
    Older(team.project).agent("dev-1", team.identity(child.pid), team.claude)
    task = team.task("dev-1")

    running = team.supervise()

    team.wait_looks()
    assert running.did("registered", "dev-1@red") == []
    assert not given_back(task)
    child.kill()
    team.wait_given_back(task)


COMMANDS = """
status, check, history, explain task red/1, doctor, run, agent list, task list, task claim red/1 --owner a,
task requeue red/1, dead-letter list, lease acquire a --owner b, lease list, flag list, flag record a ok,
flag disable a,
state verify, state recover, snapshot save, gate check contract_compliance 1 1 1, crash list
"""


@pytest.mark.sampled(4)
@pytest.mark.parametrize("command", [each.strip() for each in COMMANDS.split(",")])
def test_files_of_a_newer_version_are_neither_read_nor_changed(cli: Cli, project: Path, command: str) -> None:
    store = Store(project)
    store.open()
    store.close()
    folder = Paths(project).folder
    (folder / own_files.VERSION_FILE).write_text(json.dumps({"version": own_files.VERSION + 1}))
    (folder / "journal.jsonl").write_text('{"seq":1,"all":"is another now"}\n')
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}

    result = cli(*command.split())

    assert result.returncode == (1 if command == "doctor" else 65), result.stdout + result.stderr
    assert f"{folder} was written by a newer yolo-supervisor" in result.stdout + result.stderr
    assert "upgrade" in result.stdout + result.stderr
    after = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path.name != "supervisor.lock"} == before


def test_a_hook_goes_well_in_a_newer_versions_folder(cli: Cli, project: Path) -> None:
    Store(project).open()
    (Paths(project).folder / own_files.VERSION_FILE).write_text('{"version": 99}')

    assert cli("hook", "Stop", input="{}", stdin=None).returncode == 0


@pytest.mark.parametrize("garbage", [b"", b"{", b"\x00" * 20, b'{"version": "x"}', b'{"version": true}', b"[1]"])
def test_a_garbage_version_file_is_rewritten(project: Path, garbage: bytes) -> None:
    path = Paths(project).folder / own_files.VERSION_FILE
    Store(project).open()
    path.write_bytes(garbage)

    Store(project).open()

    assert own_files.load_version(path.read_bytes()) == own_files.VERSION
    assert list(History(Paths(project).journal).new_entries()) == []


def test_the_version_is_there_before_anything_that_it_is_about(project: Path) -> None:
    """An older program must refuse records that it would misread."""
    folder = Paths(project).folder
    folder.mkdir(mode=0o700, parents=True)
    (folder / own_files.VERSION_FILE).write_text('{"version": 99}')

    with pytest.raises(TooNew, match="nothing was changed"):
        Store(project).open()

    assert [path.name for path in folder.iterdir()] == [own_files.VERSION_FILE]


def test_program_of_0_1_0_refuses_the_folder() -> None:
    """0.1.0 knows format 1 and refuses every greater number."""
    assert own_files.VERSION > 1
