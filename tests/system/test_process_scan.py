"""The process scan: coding agents, their trees, and the cheap check that no process was started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from support.processes import Children
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats.claude import Flags
from yolo_supervisor.inventory.process_scan import AgentProcess, ProcessScanner
from yolo_supervisor.inventory.project_folders import within
from yolo_supervisor.models import Pane, ProcessId
from yolo_supervisor.system import subprocesses
from yolo_supervisor.system.process_backend import ProcessFacts, backend
from yolo_supervisor.system.processes import Processes

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes of other users")
counts_pids = pytest.mark.skipif(backend().newest() is None, reason="this kernel does not say which pid was the last")

FLAGS = ("--agent-id", "dev-2@red", "--team-name", "red")

IDLE = ("sh", "-c", "kill -STOP $$")
"""A program that takes any arguments, starts no other and stays."""

FORK = """
import os
if os.fork() == 0:
    os.read(int({lifeline}), 1)
    os._exit(0)
"""


@pytest.fixture
def scanner() -> ProcessScanner:
    return ProcessScanner(Processes(backend()))


@pytest.fixture
def lifeline() -> Iterator[tuple[int, int]]:
    """A pipe on which grandchildren wait, so that they end with the test."""
    read, write = os.pipe()
    yield read, write
    os.close(write)
    os.close(read)


def process_of(scanner: ProcessScanner, child: subprocess.Popen[bytes]) -> ProcessId:
    process = scanner.processes.identify(child.pid)
    assert process is not None
    return process


def found(scanner: ProcessScanner, *children: subprocess.Popen[bytes]) -> set[int]:
    """The pids of the agents among these children and their descendants: others may run on this machine."""
    sweep = scanner.processes.sweep()
    roots = [sweep.id(child.pid) for child in children]
    ours = {p.pid for root in roots for p in (root, *(below for below, _ in sweep.tree(root)))}
    return {process.pid for process in scanner.agents} & ours


# -- agents -----------------------------------------------------------------------------------------------------


def test_an_agent_is_known_by_its_command_line(scanner: ProcessScanner, children: Children, project: Path) -> None:
    surroundings = {"CLAUDE_CONFIG_DIR": "/state", "TMUX": "/tmp/of,me/default,77,0", "TMUX_PANE": "%5"}
    child = children.agent("dev-1", "red", project, env=surroundings)
    process = process_of(scanner, child)

    scanner.sample()

    assert scanner.agents[process] == AgentProcess(
        process=process,
        flags=Flags(agent_id="dev-1@red", name="dev-1", team="red", role=None),
        folder=project,
        claude_dir=Path("/state"),
        pane=Pane(socket="/tmp/of,me/default", server_pid=77, pane="%5"),
    )


def test_an_agent_outside_tmux_has_no_pane(scanner: ProcessScanner, children: Children, project: Path) -> None:
    child = children.agent("dev-1", "red", project, env={"HOME": "/home/dev"})

    scanner.sample()

    seen = scanner.agents[process_of(scanner, child)]
    assert (None, Path("/home/dev/.claude")) == (seen.pane, seen.claude_dir)


def test_a_process_that_only_speaks_of_agents_is_none(
    scanner: ProcessScanner, children: Children, project: Path
) -> None:
    child = children.start(*IDLE, "--agent-id", "dev-1@red", "claude", cwd=project)

    scanner.sample()

    assert found(scanner, child) == set()


@as_root
def test_an_agent_of_another_user_is_not_ours(scanner: ProcessScanner, children: Children) -> None:
    theirs = children.start(*IDLE, *FLAGS, user=65534)
    ours = children.start(*IDLE, *FLAGS)
    wait_until(lambda: scanner.processes.backend.argv(theirs.pid)[-1] == "red", "their agent to be started")

    scanner.sample()

    assert found(scanner, theirs, ours) == {ours.pid}


def test_a_copy_that_an_agent_forked_is_no_second_agent(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    program = FORK.format(lifeline=lifeline[0])
    agents = [children.agent(f"dev-{n}", "red", project, program, pass_fds=lifeline[:1]) for n in range(6)]

    scanner.sample()
    assert found(scanner, *agents) == {agent.pid for agent in agents}

    scanner.sample()
    assert found(scanner, *agents) == {agent.pid for agent in agents}


def test_a_copy_of_a_copy_is_no_agent_either(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    program = FORK.replace("os.read", "os.fork(); os.read").format(lifeline=lifeline[0])
    agents = [children.agent(f"dev-{n}", "red", project, program, pass_fds=lifeline[:1]) for n in range(6)]
    roots = [process_of(scanner, agent) for agent in agents]
    wait_until(lambda: all(len(scanner.processes.sweep().tree(root)) == 2 for root in roots), "the copies to be made")

    scanner.sample()
    scanner.sample()

    assert found(scanner, *agents) == {agent.pid for agent in agents}


def test_a_late_copy_of_an_old_copy_is_no_agent_either(
    scanner: ProcessScanner,
    children: Children,
    project: Path,
    lifeline: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("yolo_supervisor.inventory.process_scan.YOUNG_S", 0.0)  # each process counts as old
    program = FORK.replace("os.read", "os.read({lifeline}, 1); os.fork(); os.read").format(lifeline=lifeline[0])
    agent = children.agent("dev-1", "red", project, program, pass_fds=lifeline[:1])
    root = process_of(scanner, agent)
    scanner.sample()

    os.write(lifeline[1], b"!")
    wait_until(lambda: len(scanner.processes.sweep().tree(root)) == 2, "the late copy to be made")
    scanner.sample()

    assert found(scanner, agent) == {agent.pid}


def test_a_program_that_only_starts_the_agent_is_not_the_agent(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    words = [sys.executable, "-c", f"import os; print('ready', flush=True); os.read({lifeline[0]}, 1)", *FLAGS]
    wrapper = children.start("timeout", "600", *words, cwd=project, pass_fds=lifeline[:1])
    assert wrapper.stdout is not None
    wrapper.stdout.readline()

    scanner.sample()

    [(agent, _)] = scanner.processes.sweep().tree(process_of(scanner, wrapper))
    assert found(scanner, wrapper) == {agent.pid}


def test_a_tmux_server_is_no_agent_though_it_was_started_with_one(scanner: ProcessScanner, tmp_path: Path) -> None:
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux here")
    tmux = ("tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null")
    words = [sys.executable, "-c", "import time; time.sleep(600)", *FLAGS]
    subprocess.run([*tmux, "new-session", "-d", "-s", "agent", *words], check=True)
    try:
        subprocess.run([*tmux, "new-session", "-d", "-s", "other", "sleep 600"], check=True)
        subprocess.run([*tmux, "kill-session", "-t", "=agent"], check=True)
        server = int(subprocess.run([*tmux, "list-sessions", "-F", "#{pid}"], check=True, capture_output=True).stdout)

        scanner.sample()

        assert scanner.processes.backend.argv(server)[-len(words) :] == words
        assert server not in {process.pid for process in scanner.agents}
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def test_a_process_that_becomes_an_agent_soon_after_its_start_is_found(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    words = [*IDLE, *FLAGS]
    child = children.python(
        f"print('ready', flush=True); import os; os.read({lifeline[0]}, 1); os.execvp('sh', {words})",
        cwd=project, pass_fds=lifeline[:1],
    )  # fmt: skip
    scanner.sample()
    assert found(scanner, child) == set()

    os.write(lifeline[1], b"!")
    wait_until(lambda: scanner.processes.backend.argv(child.pid) == words, "the other program to run")
    scanner.sample()

    assert found(scanner, child) == {child.pid}


def test_a_copy_that_turns_into_another_agent_is_found(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    words = [sys.executable, "-c", f"import os; os.read({lifeline[0]}, 1)", *FLAGS]
    program = f"import os\nif os.fork() == 0:\n    os.read({lifeline[0]}, 1)\n    os.execv({words[0]!r}, {words})"
    agent = children.agent("dev-1", "red", project, program, pass_fds=lifeline[:1])
    scanner.sample()
    [(copy, _)] = scanner.processes.sweep().tree(process_of(scanner, agent))

    os.write(lifeline[1], b"!")
    wait_until(lambda: scanner.processes.backend.argv(copy.pid) == words, "the other program to run")
    scanner.sample()

    assert found(scanner, agent) == {agent.pid, copy.pid}


def test_an_agent_that_ended_is_gone_and_its_going_is_a_change(
    scanner: ProcessScanner, children: Children, project: Path
) -> None:
    agent = children.agent("dev-1", "red", project)
    process = process_of(scanner, agent)
    before = scanner.generation

    scanner.sample()
    appeared = scanner.generation
    agent.kill()
    wait_until(lambda: scanner.processes.identify(agent.pid) is None, "the agent to end")
    scanner.sample()  # a zombie is no agent

    assert before < appeared < scanner.generation
    assert process not in scanner.agents


# -- trees ------------------------------------------------------------------------------------------------------


def test_the_tree_of_a_tracked_agent_outlives_it(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    tool = f"import subprocess; subprocess.Popen(['cat'], stdin={lifeline[0]})"
    agent = children.agent("dev-1", "red", project, tool, pass_fds=lifeline[:1])
    process = process_of(scanner, agent)
    scanner.track(process)
    scanner.sample()

    agent.kill()
    agent.wait()
    scanner.sample()
    [(orphan, parent)] = scanner.trees[process]

    assert parent == agent.pid
    assert scanner.processes.leftovers(process, scanner.trees[process]).roots == (orphan,)


def test_a_death_in_the_middle_of_a_look_loses_nothing_of_the_tree(
    scanner: ProcessScanner,
    children: Children,
    project: Path,
    lifeline: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool = f"import subprocess; subprocess.Popen(['cat'], stdin={lifeline[0]})"
    agent = children.agent("dev-1", "red", project, tool, pass_fds=lifeline[:1])
    process = process_of(scanner, agent)
    scanner.track(process)
    scanner.sample()
    before = scanner.trees[process]
    backend, facts, pids = scanner.processes.backend, scanner.processes.backend.facts, scanner.processes.backend.pids

    def dying(pid: int) -> ProcessFacts | None:
        found = facts(pid)
        if pid == agent.pid:
            agent.kill()
            agent.wait()
        return found

    monkeypatch.setattr(backend, "facts", dying)
    monkeypatch.setattr(backend, "pids", lambda: sorted(pids(), key=lambda pid: pid != agent.pid))  # the agent first
    scanner.sample()

    assert len(before) == 1
    assert scanner.trees[process] == before


def test_the_tree_of_an_agent_ends_where_another_agents_begins(
    scanner: ProcessScanner, children: Children, project: Path, lifeline: tuple[int, int]
) -> None:
    tool = f"import os; os.fork() or print('ready', flush=True); os.read({lifeline[0]}, 1)"
    words = [sys.executable, "-c", tool, *FLAGS]
    mate = f"import subprocess; subprocess.Popen({words}, pass_fds=[{lifeline[0]}], stdout=-1).stdout.readline()"
    lead = process_of(scanner, children.agent("lead", "red", project, mate, pass_fds=lifeline[:1]))
    scanner.track(lead)

    scanner.sample()

    assert len(scanner.processes.sweep().tree(lead)) == 2
    assert scanner.trees[lead] == ()


def test_a_dropped_process_leaves_no_state(scanner: ProcessScanner, children: Children, project: Path) -> None:
    process = process_of(scanner, children.agent("dev-1", "red", project))
    scanner.track(process)
    scanner.sample()
    assert process in scanner.trees

    scanner.drop(process)
    scanner.drop(process)
    scanner.sample()

    assert process not in scanner.trees


def test_a_folder_is_within_a_project_or_beside_it() -> None:
    project = Path("/work/project")

    assert within(project, project)
    assert within(project / "src" / "deep", project)
    assert not within(Path("/work/project-2"), project)
    assert not within(project.parent, project)


# -- the check for new processes ----------------------------------------------------------------------------------


@counts_pids
def test_the_process_table_is_quiet_without_a_start(scanner: ProcessScanner) -> None:
    assert not scanner.quiet(), "without an earlier look it is unknown"

    wait_until(scanner.quiet, "a moment in which this machine starts nothing")


@counts_pids
def test_the_process_table_is_not_quiet_after_a_start(scanner: ProcessScanner, children: Children) -> None:
    wait_until(scanner.quiet, "a moment in which this machine starts nothing")

    children.start("true")

    assert not scanner.quiet()


@counts_pids
async def test_the_supervisors_own_commands_do_not_disturb_the_quiet(scanner: ProcessScanner) -> None:
    async def quiet_after_a_command() -> bool:
        scanner.quiet()
        await subprocesses.run(["true"], LIMIT_S)
        return scanner.quiet()

    with anyio.fail_after(LIMIT_S):
        while not await quiet_after_a_command():
            pass  # another program has started a process


@counts_pids
async def test_a_start_beside_the_supervisors_own_commands_is_not_overheard(
    scanner: ProcessScanner, children: Children
) -> None:
    scanner.quiet()

    await subprocesses.run(["true"], LIMIT_S)
    children.start("true")

    assert not scanner.quiet()


@counts_pids
def test_the_process_table_is_not_quiet_while_a_young_process_may_become_an_agent(
    scanner: ProcessScanner, children: Children
) -> None:
    children.start("sleep", "600")
    scanner.sample()

    scanner.quiet()

    assert not scanner.quiet()


@counts_pids
def test_the_process_table_is_not_quiet_while_a_tree_is_unread(scanner: ProcessScanner, children: Children) -> None:
    process = process_of(scanner, children.start("sleep", "600"))
    wait_until(scanner.quiet, "a moment in which this machine starts nothing")

    scanner.track(process)

    assert not scanner.quiet()


async def test_a_new_agent_wakes_those_waiting_for_agents(
    scanner: ProcessScanner, children: Children, project: Path
) -> None:
    scanner.sample()
    process = process_of(scanner, children.agent("dev-1", "red", project))
    woken = anyio.Event()

    def sampled(changed: bool) -> None:
        if changed and process in scanner.agents:
            woken.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(scanner.run, lambda: 0.02, sampled)
        with anyio.fail_after(LIMIT_S):
            await woken.wait()
        tasks.cancel_scope.cancel()


def test_a_process_with_a_malformed_environment_hides_no_agent(
    scanner: ProcessScanner, children: Children, project: Path
) -> None:
    agent = children.agent("dev-1", "red", project)
    children.agent("dev-2", "red", project, env={"TMUX": "/tmp/x,²,0", "TMUX_PANE": "%1"})
    children.agent("dev-3", "red", project, env={"TMUX": f"/tmp/x,{'9' * 5000},0", "TMUX_PANE": "%1"})

    scanner.sample()

    assert agent.pid in {process.pid for process in scanner.agents}
