"""The real Claude Code client, offline, as a team in tmux: the main job where it counts."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import RunningDaemon, wait_until

TOOLS = Path(__file__).parents[2] / "shared" / "tools"
LIMIT_S = 90.0

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not (TOOLS / "real_team.sh").exists(), reason="no real_team.sh: the real client is not driven"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in ("npm", "node", "tmux", "git")),
        reason="npm, node, tmux or git is missing: the real client is not driven",
    ),
]


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Path]:
    """A lead and its teammate dev-1, at work on task 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, scratch = TOOLS / "real_team.sh", tmp_path / "real"
    words = ["up", str(scratch), str(port), str(TOOLS / "team.example.json"), "BRAVO-LEAD start the team"]
    subprocess.run(["bash", str(script), *words], check=True, capture_output=True, timeout=LIMIT_S)
    yield scratch
    subprocess.run(["bash", str(script), "down", str(scratch)], check=False, capture_output=True, timeout=LIMIT_S)


def pane_pids(scratch: Path) -> dict[str, int]:
    answer = subprocess.run(
        ["tmux", "-S", str(scratch / "tmux.sock"), "list-panes", "-a", "-F", "#{pane_id} #{pane_pid}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {pane: int(pid) for pane, pid in (line.split() for line in answer.stdout.splitlines())}


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def lives(pid: int) -> bool:
    try:
        return stat(pid)[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children_of(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(stat(int(folder.name))[1]) == parent:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_a_killed_teammate_is_healed_and_its_lead_never_notices(
    team: Path, daemon: Callable[..., RunningDaemon]
) -> None:
    project, claude = team / "project", team / "home" / ".claude"
    task = wait_until(lambda: next(iter(claude.glob("tasks/*/1.json")), None), "the task", LIMIT_S)
    wait_until(lambda: '"in_progress"' in task.read_text(), "the teammate to claim it", LIMIT_S)
    lead, mate = pane_pids(team)["%0"], pane_pids(team)["%1"]
    wait_until(lambda: any(b"sleep 100" in command_line(p) for p in children_of(mate)), "the teammate's tool", LIMIT_S)
    tools = [pid for pid in children_of(mate) if b"sleep 100" in command_line(pid)]
    untouched = {p: p.read_bytes() for p in (*claude.glob("teams/*/config.json"), *claude.glob("settings.json"))}
    before = json.loads(task.read_text())
    (project / ".yolo-planning").mkdir(exist_ok=True)
    running = daemon(over=project)
    wait_until(lambda: all(running.sees(tool) for tool in tools), "the tool to be known")

    subprocess.run(["kill", "-9", str(mate)], check=True)
    wait_until(lambda: any(e["key"].startswith("dev-1@") for e in running.did("forgotten")), "dev-1 to be healed")

    after = json.loads(task.read_text())
    assert after == {**{key: value for key, value in before.items() if key != "owner"}, "status": "pending"}
    assert not any(lives(tool) for tool in tools)
    assert lives(lead)
    assert {p: p.read_bytes() for p in untouched} == untouched
    reasons = [e["reason"] for e in running.did("requeued")]
    assert reasons == ["its owner dev-1 is dead"]
    dirty = subprocess.run(
        ["git", "-C", str(project), "status", "--porcelain"], capture_output=True, text=True, check=True
    )
    assert ".yolo-planning" not in dirty.stdout
