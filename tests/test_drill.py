"""The fire drill: it heals what it breaks, and it says so when it does not."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from yolo_supervisor.drill import faults, scene

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: nothing is drilled")

FAULTS = [
    "agent-killed", "agent-ignores-sigterm", "session-killed", "session-detached", "tmux-server-killed",
    "supervisor-killed", "pid-reused",
]  # fmt: skip


def drill(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "yolo_supervisor", "drill", *words],
        capture_output=True, text=True, cwd=folder, timeout=110, check=False,
    )  # fmt: skip


def test_every_fault_is_noticed_and_healed_and_nothing_is_lost(tmp_path: Path) -> None:
    ended = drill("--json", "--seed", "7", folder=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    answer = json.loads(ended.stdout)
    assert (answer["seed"], answer["rounds"], answer["healing_rate"], answer["lost"]) == (7, 1, 1.0, 0)
    assert [row["fault"] for row in answer["faults"]] == FAULTS
    assert all(row["detected"] == row["healed"] == row["injected"] == 1 for row in answer["faults"])
    assert all(set(row["heal_s"]) == {"p50", "p99"} for row in answer["faults"])
    assert list(tmp_path.iterdir()) == []


def test_a_supervisor_killed_in_the_middle_of_healing_finishes_it_after_its_restart(tmp_path: Path) -> None:
    ended = drill("--json", "--faults", "supervisor-killed", "--rounds", "8", folder=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["faults"][0]["healed"] == 8


def test_a_supervisor_that_only_observes_fails_the_drill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "LIMIT_S", 3.0)
    with scene.scene() as stage:
        file = stage.project / ".yolo-planning" / "supervisor.toml"
        file.write_text("mode = 'observe'\n" + file.read_text())
        stage.start_daemon()
        played = faults.play(stage, faults.FAULTS["agent-killed"], random.Random(1))

    assert played.heal_s is None
    assert "not healed in time" in played.why


def test_an_unknown_fault_is_refused_with_those_there_are(tmp_path: Path) -> None:
    ended = drill("--faults", "agent-kiled", folder=tmp_path)

    assert ended.returncode == 2
    assert "agent-killed" in ended.stderr
