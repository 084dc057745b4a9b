"""``state`` and ``snapshot`` as people and scripts call them, with no daemon running."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.processes import Children
from support.project import SAMPLES, new_store
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store

SOUND: dict[str, Any] = {"phase": 5, "status": "running", "plans": [{"id": "05-01", "status": "pending"}]}
OTHER: dict[str, Any] = {"phase": 5, "status": "complete", "plans": [{"id": "05-01", "status": "complete"}]}


@pytest.fixture
def planning(project: Path) -> Path:
    return project / ".yolo-planning"


@pytest.fixture
def state(planning: Path) -> Path:
    path = planning / ".execution-state.json"
    path.write_text(json.dumps(SOUND))
    return path


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def snap(
    planning: Path, second: int, content: dict[str, Any], role: str = "unknown", folder: str = ".snapshots"
) -> str:
    name = f"5-2026112{second // 10 + 1}T2055{second % 10:02d}.json"
    (planning / folder).mkdir(exist_ok=True)
    (planning / folder / name).write_text(
        json.dumps({"execution_state": content, "phase": "5", "agent_role": role, "snapshot_ts": name[2:17]})
    )
    return name


# -- state verify -------------------------------------------------------------------------------------------------


def test_verify_accepts_sound_files_and_changes_nothing(cli: Cli, project: Path, state: Path) -> None:
    before = everything(project)

    document = cli.json("state", "verify")

    assert document == {
        "version": 2,
        "project": str(project),
        "sound": True,
        "files": [{"file": ".execution-state.json", "flaw": None, "would": None}],
        "journal": [],
    }
    assert everything(project) == before


def test_verify_names_each_broken_file_its_flaw_and_the_recovery(cli: Cli, planning: Path, state: Path) -> None:
    for name, data in (
        (".execution-state.json", b""),
        ("config.json", b"{torn"),
        ("STATE.md", b"# State\n"),
        (".events/event-log.jsonl", b'{"event":"x"}\n{"torn'),
        (".locks/a.lease", b"\0\0"),
    ):
        (planning / name).parent.mkdir(exist_ok=True)
        (planning / name).write_bytes(data)
    name = snap(planning, 1, SOUND)

    files = {each["file"]: (each["flaw"], each["would"]) for each in cli.json("state", "verify", code=1)["files"]}

    assert files[".execution-state.json"] == ("it is empty", f"restore it from the snapshot {name}")
    assert files["config.json"][0].startswith("it is no JSON")
    assert files["config.json"][1].startswith("ask you")
    assert files["STATE.md"] == (None, None)
    assert files[".events/event-log.jsonl"][1] == "cut off its last line, with a copy in quarantine/"
    assert files[".locks/a.lease"][1].startswith("remove it")


def test_verify_is_for_people_too(cli: Cli, state: Path) -> None:
    state.write_bytes(b"")

    result = cli("state", "verify")

    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "BROKEN  .execution-state.json: it is empty",
        "        recover would ask you: there is nothing to restore it from",
    ]


@pytest.mark.parametrize("saved", [True, False])
def test_verify_names_the_recovery_of_a_log_without_a_whole_line(
    cli: Cli, project: Path, planning: Path, saved: bool
) -> None:
    log = planning / ".events" / "event-log.jsonl"
    log.parent.mkdir()
    store = Store(project)
    store.open()
    if saved:
        log.write_bytes(b'{"event":"x"}\n')
        store.keep(log, log.read_bytes())
    store.close()
    log.write_bytes(b'{"torn')

    (forecast,) = cli.json("state", "verify", code=1)["files"]
    (result,) = cli.json("state", "recover")["files"]

    if saved:
        assert forecast["would"] == "restore it from the last good version"
        assert (result["result"], log.read_bytes()) == ("restored", b'{"event":"x"}\n')
    else:
        assert forecast["would"] == "cut off its last line, with a copy in quarantine/"
        assert (result["result"], log.read_bytes()) == ("repaired", b"")


def test_verify_checks_the_journal(cli: Cli, project: Path) -> None:
    new_store(project)
    Paths(project).journal.write_bytes(b"junk\n")

    document = cli.json("state", "verify", code=1)

    assert (document["sound"], document["journal"]) == (False, ["a line of 5 bytes cannot be read"])


def test_verify_reports_unreadable_files(cli: Cli, state: Path) -> None:
    with state.open("wb") as file:
        file.truncate(100 * 2**20)

    (file,) = cli.json("state", "verify", code=1)["files"]

    assert file["flaw"].startswith("cannot be read: larger than")


def test_a_project_without_critical_files_has_no_broken_ones(cli: Cli) -> None:
    assert cli("state", "verify").stdout == f"no critical files in {cli.folder}\n"
    assert cli.json("state", "recover")["files"] == []


# -- state recover ------------------------------------------------------------------------------------------------


def test_recover_restores_the_files_that_verify_names_and_verify_accepts_them(
    cli: Cli, project: Path, planning: Path, state: Path
) -> None:
    name = snap(planning, 1, OTHER)
    state.write_bytes(b"{torn")
    (planning / ".events").mkdir()
    (planning / ".events" / "event-log.jsonl").write_bytes(b'{"event":"x"}\n{"torn')

    files = {each["file"]: each for each in cli.json("state", "recover")["files"]}

    assert files[".execution-state.json"]["result"] == "restored"
    assert name in files[".execution-state.json"]["reason"]
    assert files[".events/event-log.jsonl"]["result"] == "repaired"
    assert json.loads(state.read_bytes()) == OTHER
    assert (planning / ".events" / "event-log.jsonl").read_bytes() == b'{"event":"x"}\n'
    assert {path.read_bytes() for path in Paths(project).quarantine.iterdir()} == {b"{torn", b'{"torn'}
    assert cli.json("state", "verify")["sound"]
    assert [(e["action"], e["by"]) for e in history(Paths(project).journal)] == [
        ("quarantined", "cli"), ("restored", "cli"), ("quarantined", "cli"), ("repaired", "cli"),
    ]  # fmt: skip


def test_recover_reports_files_that_it_cannot_repair(cli: Cli, planning: Path) -> None:
    (planning / "config.json").write_bytes(b"{torn")

    result = cli("state", "recover")

    assert result.returncode == 1
    assert result.stdout.startswith("left      config.json: it is no JSON")
    assert (planning / "config.json").read_bytes() == b"{torn"


def test_recover_follows_no_link(cli: Cli, planning: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"{torn")
    (planning / ".execution-state.json").symlink_to(tmp_path / "precious")
    snap(planning, 1, SOUND)

    cli("state", "recover")

    assert (tmp_path / "precious").read_bytes() == b"{torn"
    assert (planning / ".execution-state.json").is_symlink()


# -- doctor, check ------------------------------------------------------------------------------------------------


def test_doctor_reports_broken_files_and_their_repair(cli: Cli, project: Path, state: Path) -> None:
    new_store(project)
    state.write_bytes(b"")

    result = cli("doctor")

    assert result.returncode == 1
    assert "BAD   .execution-state.json: it is empty\n      yolo-supervisor state recover\n" in result.stdout


def test_doctor_reports_unreadable_files(cli: Cli, project: Path, state: Path) -> None:
    new_store(project)
    with state.open("wb") as file:
        file.truncate(100 * 2**20)

    result = cli("doctor")

    assert result.returncode == 1
    assert ".execution-state.json" in result.stdout


@pytest.mark.parametrize(
    ("on", "off"),
    [
        ("v3_event_recovery", "v3_event_log"),
        ("v3_lease_locks", "v3_lock_lite"),
        ("v2_hard_gates", "v2_hard_contracts"),
    ],
)
def test_doctor_reports_a_flag_that_has_no_effect(cli: Cli, planning: Path, on: str, off: str) -> None:
    for value, reported in ((False, True), ("true", True), (True, False)):
        (planning / "config.json").write_text(json.dumps({on: True, off: value}))
        assert (f"{on} is on while {off} is off" in cli("doctor").stdout) == reported


def test_doctor_reports_the_plugins_watchdog(cli: Cli, planning: Path, children: Children) -> None:
    file = planning / ".watchdog-pid"
    child = children.python("print('ready', flush=True); import time; time.sleep(600)", "tmux-watchdog")
    file.write_text(str(child.pid))
    named = f"(process {child.pid} in .watchdog-pid)"

    assert f"note  the plugin's watchdog runs {named}: detached sessions are left to it\n" in cli("doctor").stdout
    child.kill()
    child.wait()
    dead = f"note  the plugin's watchdog is dead {named}: detached sessions are the supervisor's\n"
    assert dead in cli("doctor").stdout
    file.unlink()
    assert "watchdog" not in cli("doctor").stdout


def test_check_shows_the_repairs_and_makes_none(cli: Cli, project: Path, planning: Path, state: Path) -> None:
    snap(planning, 1, SOUND)
    state.write_bytes(b"{torn")
    before = everything(project)

    document = [(each["action"], each["key"]) for each in cli.json("check")["actions"] if each["by"] == "state"]

    assert document == [
        ("would_quarantined", ".execution-state.json"),
        ("would_restored", ".execution-state.json"),
    ]
    assert everything(project) == before


# -- snapshot -----------------------------------------------------------------------------------------------------


def test_saved_snapshots_are_listed_and_restored(cli: Cli, state: Path) -> None:
    saved = cli.json("snapshot", "save", "--role", "dev")
    state.write_text(json.dumps(OTHER))

    (listed,) = cli.json("snapshot", "list")["snapshots"]
    assert (listed["id"], listed["role"], listed["trigger"]) == (saved["id"], "dev", "manual")
    assert (listed["phase"], listed["plans"], listed["done"]) == ("5", 1, 0)
    assert cli.json("snapshot", "restore")["id"] == saved["id"]
    assert json.loads(state.read_bytes()) == SOUND


def test_restore_saves_the_file_that_it_overwrites(cli: Cli, planning: Path, state: Path) -> None:
    name = snap(planning, 1, OTHER)

    cli.json("snapshot", "restore", name)

    before, _ = cli.json("snapshot", "list")["snapshots"]
    assert before["trigger"] == f"before {name} was restored"
    assert json.loads(Path(before["path"]).read_bytes())["execution_state"] == SOUND


def test_restore_saves_the_file_despite_a_snapshot_of_the_same_second(cli: Cli, planning: Path, state: Path) -> None:
    contents = [SOUND | {"n": n} for n in range(4)]
    for content in contents:
        state.write_text(json.dumps(content))
        cli.json("snapshot", "restore", snap(planning, 1, OTHER))

    kept = [json.loads(Path(each["path"]).read_bytes()) for each in cli.json("snapshot", "list")["snapshots"]]

    assert [each["execution_state"] for each in kept if each["execution_state"] in contents] == contents[::-1]


def test_restore_keeps_a_broken_file_that_it_overwrites(cli: Cli, project: Path, planning: Path, state: Path) -> None:
    state.write_bytes(b"{broken, but a person may want it")

    cli.json("snapshot", "restore", snap(planning, 1, OTHER))

    kept = [path.read_bytes() for path in Paths(project).folder.rglob("*") if path.is_file()]
    assert any(b"{broken, but a person may want it" in each for each in kept)


def test_without_a_name_the_roles_own_newest_is_restored_else_the_newest(cli: Cli, planning: Path, state: Path) -> None:
    for second, role in ((1, "yolo-dev-01"), (2, "lead")):
        snap(planning, second, SOUND | {"n": second}, role)
    for words, expected in (
        ((), 2),
        (("--role", "dev"), 1),
        (("--role", "qa", "--phase", "05"), 2),
    ):
        state.unlink(missing_ok=True)
        cli.json("snapshot", "restore", *words)
        assert json.loads(state.read_bytes())["n"] == expected


def test_the_role_defaults_to_that_of_the_active_agent(cli: Cli, planning: Path) -> None:
    (planning / ".active-agent").write_text("dev")
    for second, role in ((1, "dev"), (2, "lead")):
        snap(planning, second, SOUND | {"n": second}, role)

    cli.json("snapshot", "restore")

    assert json.loads((planning / ".execution-state.json").read_bytes())["n"] == 1


@pytest.mark.parametrize("words", [("5-20200101T000000.json",), ("../../etc/passwd",), (), ("--phase", "77")])
def test_restore_of_a_missing_snapshot_is_refused(cli: Cli, state: Path, words: tuple[str, ...]) -> None:
    result = cli("snapshot", "restore", *words)

    assert (result.returncode, result.stdout) == (1, "")
    assert "no snapshot" in result.stderr
    assert json.loads(state.read_bytes()) == SOUND


@pytest.mark.parametrize("data", [None, b"", b"{torn", b"[]"])
def test_d31_a_state_that_is_missing_or_broken_is_not_saved(cli: Cli, state: Path, data: bytes | None) -> None:
    state.unlink() if data is None else state.write_bytes(data)

    result = cli("snapshot", "save")

    assert result.returncode == 65
    assert cli.json("snapshot", "list")["snapshots"] == []


def test_ten_of_a_phase_are_kept(cli: Cli, planning: Path, state: Path) -> None:
    names = [snap(planning, second, SOUND) for second in range(12)]

    cli.json("snapshot", "save")

    left = [each["id"] for each in cli.json("snapshot", "list")["snapshots"]]
    assert len(left) == 10
    assert left[1:] == sorted(names)[:2:-1]


def test_restoring_through_a_link_is_refused_with_a_sentence(cli: Cli, planning: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text(json.dumps(SOUND))
    (planning / ".execution-state.json").symlink_to(tmp_path / "precious")

    result = cli("snapshot", "restore", snap(planning, 1, OTHER))

    assert result.returncode == 1
    assert "symbolic link" in result.stderr
    assert json.loads((tmp_path / "precious").read_bytes()) == SOUND


def test_real_snapshots_are_listed_the_newest_first_and_each_is_restored_as_it_was(cli: Cli, planning: Path) -> None:
    real = sorted((SAMPLES / "snapshots").glob("*.json"))
    assert real
    (planning / "snapshots").mkdir()
    for path in real:
        (planning / "snapshots" / path.name).write_bytes(path.read_bytes())

    listed = cli.json("snapshot", "list")["snapshots"]

    assert {each["id"] for each in listed} == {path.name for path in real}
    assert [each["at"] for each in listed] == sorted((each["at"] for each in listed), reverse=True)
    for path in (real[0], real[len(real) // 2], real[-1]):
        cli.json("snapshot", "restore", path.stem)
        state = json.loads((planning / ".execution-state.json").read_bytes())
        assert state == json.loads(path.read_bytes())["execution_state"]
    assert cli.json("state", "verify")["sound"]


def test_the_newest_commits_are_noted_as_by_the_plugin(cli: Cli, project: Path, state: Path) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    for words in (("init", "-q"), (*identity, "commit", "-qm", "Gates hold", "--allow-empty")):
        subprocess.run(["git", *words], cwd=project, check=True, env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull})

    saved = json.loads(Path(cli.json("snapshot", "save")["path"]).read_bytes())

    assert [line.partition(" ")[2] for line in saved["recent_commits"]] == ["Gates hold"]


@pytest.mark.parametrize("words", [("state",), ("snapshot",), ("state", "verify"), ("state", "recover"),
                                   ("snapshot", "save"), ("snapshot", "list"), ("snapshot", "restore")])  # fmt: skip
def test_every_help_has_an_example(cli: Cli, words: tuple[str, ...]) -> None:
    result = cli(*words, "--help")

    assert result.returncode == 0
    assert f"yolo-supervisor {words[0]}" in result.stdout
