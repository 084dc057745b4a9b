"""The fire drill: it heals every fault that it injects, and reports a fault that is not healed."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.budget import TIER, budget
from support.cli import PROGRAM
from support.processes import Children
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.drill import faults, sandbox, trial
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: nothing is drilled")

ROUNDS = budget(quick=1, full=8, soak=50)
FAULTS = {
    "agents": [
        "agent-killed", "agent-segfault", "agent-oom", "agent-api-errors", "agent-rate-limited",
        "agent-ignores-sigterm",
    ],
    "teams": ["pid-reused", "mass-death", "session-killed", "session-detached", "tmux-server-killed"],
    "restarts": ["agent-restarted", "agent-restart-loop", "agent-stopped-on-purpose", "resumed-twice"],
    "supervisor": ["supervisor-killed", "supervisor-upgraded", "supervisor-oom", "clock-jump"],
    "tasks": [
        "task-orphaned", "owner-idle", "poison-task", "late-completion", "lease-abandoned", "lock-ownerless",
        "state-emptied", "contract-broken", "flag-broken",
    ],
    "mcp": ["mcp-error", "mcp-hang", "mcp-crash", "mcp-flapping"],
    "commands": [
        "command-hangs", "command-ignores-sigterm", "commit-index-lock", "commit-non-fast-forward", "commit-conflict",
        "commit-killed-midway", "commit-disk-full",
    ],
}  # fmt: skip


def drill(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "drill", *words], env={**os.environ, **environment},
        capture_output=True, text=True, cwd=folder, timeout=LIMIT_S * 4, check=False,
    )  # fmt: skip


class DrillFolder:
    """The temporary folder in which drills make their sandboxes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes = Processes(backend())

    def wait_until_an_agent_is_killed(self) -> None:
        wait_until(lambda: any('"died"' in log.read_text() for log in self.folder.glob("*/daemon.log")), "a death")

    def daemon(self) -> int:
        (planning,) = self.folder.glob("*/project/.yolo-planning")
        holder = own_files.load_holder(
            Paths(planning.parent, {"HOME": str(planning.parents[1] / "home")}).holder.read_bytes()
        )
        assert holder is not None
        return holder.process.pid

    def at_work(self) -> dict[int, str]:
        """The processes with the folder as working directory, or in their command lines."""
        all_processes = {int(path.name): _described(path) for path in Path("/proc").glob("[0-9]*")}
        return {pid: text for pid, text in all_processes.items() if str(self.folder) in text}

    def descriptions(self) -> str:
        return "\n".join(self.at_work().values())

    def clear(self) -> None:
        for pid in self.at_work():
            process = self._processes.identify(pid)
            if process and (handle := self._processes.backend.hold(process)):
                handle.signal(signal.SIGKILL)
                handle.close()


def _described(process: Path) -> str:
    try:
        return f"{os.readlink(process / 'cwd')}\0{(process / 'cmdline').read_bytes().decode(errors='replace')}"
    except OSError:
        return ""


@pytest.fixture
def drill_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DrillFolder]:
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    made = DrillFolder(folder)
    yield made
    made.clear()


def test_these_are_all_faults() -> None:
    assert list(faults.FAULTS) == [name for group in FAULTS.values() for name in group]


QUICK = (
    "agent-killed", "agent-restarted", "pid-reused", "supervisor-killed", "lease-abandoned", "mcp-error",
    "command-hangs",
)  # fmt: skip
DRILLED = FAULTS if TIER != "quick" else {group: [*set(names) & {*QUICK}] for group, names in FAULTS.items()}
"""A quick run drills one fault of each group: most faults have separate tests."""


@pytest.mark.parametrize("group", DRILLED)
def test_every_fault_is_detected_and_recovered(tmp_path: Path, group: str) -> None:
    ended = drill("--json", "--seed", "7", "--faults", ",".join(DRILLED[group]), folder=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    answer = json.loads(ended.stdout)
    assert (answer["seed"], answer["rounds"], answer["healing_rate"], answer["lost"]) == (7, 1, 1.0, 0)
    assert [row["fault"] for row in answer["faults"]] == DRILLED[group]
    assert all(row["detected"] == row["healed"] == row["injected"] == 1 for row in answer["faults"])
    assert all(set(row["heal_s"]) == {"p50", "p99"} for row in answer["faults"])
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_killed_in_the_middle_of_healing_finishes_it_after_its_restart(tmp_path: Path) -> None:
    ended = drill("--json", "--faults", "supervisor-killed", "--rounds", str(ROUNDS), folder=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["faults"][0]["healed"] == ROUNDS


def test_a_supervisor_that_only_observes_fails_the_drill() -> None:
    with sandbox.new_sandbox() as scratch:
        file = scratch.project / ".yolo-planning" / "supervisor.toml"
        file.write_text("mode = 'observe'\n" + file.read_text())  # no longer trusted, it only restricts
        scratch.start_daemon()
        result = trial.run_trial(scratch, faults.FAULTS["agent-killed"], random.Random(1), limit_s=3.0)

    assert result.heal_s is None
    assert "not recovered in time" in result.failure


def test_an_unknown_fault_is_refused_with_those_there_are(tmp_path: Path) -> None:
    ended = drill("--faults", "agent-kiled", folder=tmp_path)

    assert ended.returncode == 2
    assert "agent-killed" in ended.stderr


def test_a_killed_drill_leaves_no_process_and_no_folder(drill_folder: DrillFolder, children: Children) -> None:
    running = children.start(*PROGRAM, "drill", "--faults", "agent-killed", "--rounds", "9")
    drill_folder.wait_until_an_agent_is_killed()

    running.kill()

    wait_until(lambda: not any(drill_folder.folder.iterdir()), "the folder to be removed")
    wait_until(lambda: not drill_folder.at_work(), "the processes of the drill to be gone")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["a timeout", "a closed terminal"])
def test_a_drill_that_is_ended_leaves_nothing(drill_folder: DrillFolder, children: Children, number: int) -> None:
    running = children.start(*PROGRAM, "drill", "--faults", "agent-killed", "--rounds", "9")
    drill_folder.wait_until_an_agent_is_killed()
    assert len(drill_folder.at_work()) >= 4  # the daemon, tmux, the other agent and its tool

    running.send_signal(number)

    assert running.wait(LIMIT_S) == 128 + number
    assert list(drill_folder.folder.iterdir()) == []
    wait_until(lambda: not drill_folder.at_work(), "those that were killed to be gone")


@pytest.mark.thorough
def test_a_drill_that_is_ended_while_an_agent_starts_leaves_nothing(
    drill_folder: DrillFolder, children: Children
) -> None:
    running = children.start(*PROGRAM, "drill", "--faults", "agent-killed")
    wait_until(lambda: "drill.fake_agent" in drill_folder.descriptions(), "an agent to start")
    running.send_signal(signal.SIGSTOP)  # it does not learn which process it has started
    wait_until(lambda: any(drill_folder.folder.glob("*/dev-*.ready")), "the agent's tool to be there")

    running.terminate()
    running.send_signal(signal.SIGCONT)

    assert running.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert list(drill_folder.folder.iterdir()) == []
    wait_until(lambda: not drill_folder.at_work(), "those that were killed to be gone")


def is_stopped(pid: int) -> bool:
    """Whether every thread of the process is stopped: none takes a signal any more."""
    threads = Path(f"/proc/{pid}/task").glob("*/status")
    return all(re.search(r"^State:\s*T", thread.read_text(), re.MULTILINE) for thread in threads)


def is_asked_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a process that is stopped."""
    pending = re.search(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return pending is not None and bool(int(pending[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.thorough
def test_an_impatient_ctrl_c_leaves_nothing_either(drill_folder: DrillFolder, children: Children) -> None:
    running = children.start(*PROGRAM, "drill", "--faults", "agent-killed", "--rounds", "9", start_new_session=True)
    drill_folder.wait_until_an_agent_is_killed()

    daemon = drill_folder.daemon()
    os.kill(daemon, signal.SIGSTOP)  # it cannot end sooner, and the drill waits for its end
    wait_until(lambda: is_stopped(daemon), "the daemon to stand still")

    os.killpg(running.pid, signal.SIGINT)
    wait_until(lambda: is_asked_to_end(daemon), "the daemon to be asked to end")
    os.killpg(running.pid, signal.SIGINT)
    os.kill(daemon, signal.SIGCONT)

    running.wait(LIMIT_S)
    assert list(drill_folder.folder.iterdir()) == []
    wait_until(lambda: not drill_folder.at_work(), "those that were killed to be gone")


@pytest.mark.thorough
def test_a_user_without_a_shell_may_drill(tmp_path: Path) -> None:
    nologin = tmp_path / "nologin"
    nologin.write_text("#!/bin/sh\nexit 1\n")
    nologin.chmod(0o755)

    ended = drill("--json", "--faults", "agent-killed", folder=tmp_path, SHELL=str(nologin))

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["faults"][0]["healed"] == 1


def test_a_temporary_folder_too_deep_for_tmux_is_reported_in_one_sentence(
    drill_folder: DrillFolder, tmp_path: Path
) -> None:
    deep = drill_folder.folder / ("x" * 100)
    deep.mkdir()

    ended = drill("--json", folder=tmp_path, TMPDIR=str(deep))

    assert (ended.returncode, ended.stdout) == (69, "")
    (sentence,) = ended.stderr.splitlines()
    assert sentence.startswith("yolo-supervisor: the drill cannot use tmux here: ")
    assert list(deep.iterdir()) == []
    assert drill_folder.at_work() == {}
