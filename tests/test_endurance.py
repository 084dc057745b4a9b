"""The supervisor lasts: with few descriptors, over a day of faults, and when it is not given any time to run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import QUICK, Children, PrivateTmux, RunningDaemon, Team

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="there are no descriptors for processes here")


# -- few descriptors -----------------------------------------------------------------------------------------------

LIMIT, AGENTS = 64, 80
LIMITED = (
    f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
    "os.execv(sys.executable, [sys.executable, '-m', 'yolo_supervisor', 'run', *sys.argv[1:]])"
)


def descriptors(pid: int) -> list[str]:
    """What the process has open; what it closes while we look is left out."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return sorted(found)


def watched_by(pid: int) -> set[int]:
    """The processes whose end the kernel tells this one of."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= {int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("Pid:")}
    return found


@on_linux
def test_with_64_descriptors_and_more_agents_than_that_all_are_healed(
    team: Team, children: Children, tmux: PrivateTmux, tmp_path: Path
) -> None:
    (team.planning / "supervisor.toml").write_text(QUICK)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        daemon = children.start(sys.executable, "-c", LIMITED, "--project", str(team.project), stderr=stderr)
    team.running = running = RunningDaemon(team.project, daemon, log)
    running.wait(lambda: running.did("started"), "the daemon to start")
    team.wait_looks(1)
    before = descriptors(daemon.pid)

    crowd = start_crowd(children, team.project)
    running.wait(lambda: len(running.did("registered")) > AGENTS, "all of them to be found")
    pane = team.pane_agent(tmux, "work", "in-tmux")
    watched = running.wait(lambda: watched_by(daemon.pid), "some of them to be watched")
    names = {child.pid: name for name, child in crowd.items()}
    seen, unseen = min(names.keys() & watched), min(names.keys() - watched)
    assert LIMIT // 8 < len(watched) <= LIMIT // 2

    for pid, proof in (
        (seen, f"the kernel saw process {seen} end"),
        (unseen, f"there is no process {unseen} any more"),
    ):
        task = team.task(names[pid])
        crowd[names[pid]].kill()
        crowd[names[pid]].wait()
        team.wait_given_back(task)
        team.wait_healed(names[pid])
        (died,) = running.did("died", f"{names[pid]}@red")
        assert died["evidence"]["proof"] == proof
    client = tmux.person("work")
    team.wait_sessions_looked_at()
    tmux.leave(client)
    running.wait(lambda: not team.alive(pane), "tmux to be asked, and the agent in the session that was left to end")
    assert "the daemon has no file descriptors to spare" in team.cli("doctor").stdout

    for child in crowd.values():
        child.kill()
        child.wait()
    running.wait(lambda: len(running.did("forgotten")) == len(running.did("registered")), "all to be healed")
    running.wait(lambda: '"mended"' in log.read_text(), "that to be told")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["level"] for line in lines if line.get("where") == "descriptors"] == ["warning", "info"]
    assert [line for line in lines if line["level"] == "error"] == []
    running.wait(lambda: descriptors(daemon.pid) == before, "nothing more to be open than before")


def start_crowd(children: Children, project: Path) -> dict[str, subprocess.Popen[bytes]]:
    """Many agents, each the cheapest process that looks like one, by their names."""
    never = project.parent / "never"
    os.mkfifo(never)
    found = {}
    for name in (f"dev-{number}" for number in range(AGENTS)):
        flags = ("--agent-id", f"{name}@red", "--agent-name", name, "--team-name", "red")
        found[name] = children.start("sh", "-c", f"read x < {never}", "sh", *flags, cwd=project)
    return found
