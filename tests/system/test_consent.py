"""The consent of a person: no agent can give it, in its process tree or out of it; a script from before can."""

from __future__ import annotations

import os
import pty
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import PROGRAM, Cli, at_terminal
from support.processes import Children
from support.project import new_store
from support.tmux import PrivateTmux
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.own import Descent
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

LEAVE = """
import os
pid = os.getpid()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvpe("sh", ["sh", "-c", {script!r}], {{**os.environ, **{marks}}})
    os._exit(0)
os.wait()
"""
"""A program that starts a shell outside of its process tree."""

PTY = "import pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))".replace(
    "import pty", "import os, pty"
)
"""A program that runs another one at a terminal that it makes, as script(1) does."""


@pytest.fixture
def answer(tmp_path: Path) -> Path:
    return tmp_path / "answer"


def trust(project: Path, answer: Path, *around: str) -> str:
    """A shell command that trusts the project, and writes what was said and the exit code."""
    command = shlex.join([*around, *PROGRAM, "trust", "--project", str(project)])
    return f"{command} > {answer}.new 2>&1; echo $? >> {answer}.new; mv {answer}.new {answer}"


def said(answer: Path) -> tuple[str, int]:
    wait_until(answer.exists, "the answer")
    *text, code = answer.read_text().splitlines()
    return "\n".join(text), int(code)


def is_trusted(project: Path) -> bool:
    return Paths(project).trusted.exists()


# -- a person ----------------------------------------------------------------------------------------------------------


def test_a_person_at_a_terminal_consents(cli: Cli, project: Path) -> None:
    result = cli.by_person("trust")

    assert (result.returncode, is_trusted(project)) == (0, True), result.stderr


@pytest.mark.parametrize(("typed", "code"), [(b"n\n", 1), (b"y\n", 0)])
def test_on_a_terminal_the_person_is_asked(
    typed: bytes, code: int, project: Path, claude_home: Path, children: Children
) -> None:
    child = children.agent("dev-1", "red", project)
    ours, theirs = pty.openpty()
    command = at_terminal(*PROGRAM, "agent", "stop", "dev-1", "--project", str(project))
    asking = children.start(*command, stdin=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(ours, 4096)

    os.write(ours, typed)

    assert asking.wait(LIMIT_S) == code
    os.close(ours)
    assert f"process {child.pid}".encode() in shown
    assert (child.poll() is None) is (code == 1)
    if code == 0:
        wait_until(lambda: child.poll() is not None, "the agent to end")


# -- an agent ----------------------------------------------------------------------------------------------------------


def test_an_agent_cannot_consent_for_a_person(
    project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    """Nor at a terminal that it makes."""
    shell = trust(project, answer, sys.executable, "-c", PTY)

    agent = children.agent("dev-2", "red", project, program=f"import subprocess; subprocess.run({shell!r}, shell=True)")

    text, code = said(answer)
    assert (code, is_trusted(project)) == (1, False)
    assert f"below the agent in process {agent.pid}" in text


@pytest.mark.parametrize("at_a_terminal", [False, True])
@pytest.mark.parametrize("known_by", ["the environment", "the daemon"])
def test_a_process_that_has_left_the_tree_of_an_agent_is_known(
    known_by: str, at_a_terminal: bool, project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    started = answer.with_name("started")
    waits = f"echo $$ > {started}; until [ -e {started}.go ]; do sleep 0.05; done"
    around = [sys.executable, "-c", PTY] if at_a_terminal else []
    command = trust(project, answer, *around)
    if known_by == "the daemon":
        command = f"unset CLAUDE_PID; {command}"
    marks = "{'CLAUDE_PID': str(pid)}" if known_by == "the environment" else "{}"
    agent = children.agent("dev-2", "red", project, LEAVE.format(script=f"{waits}; {command}", marks=marks))
    wait_until(lambda: started.exists() and started.read_text(), "the process to start")
    if known_by == "the daemon":
        processes = Processes(backend())
        of, orphan = processes.identify(agent.pid), processes.identify(int(started.read_text()))
        assert of is not None
        assert orphan is not None
        new_store(project)
        Paths(project).trees.write_bytes(own_files.dump_trees({}, {of: Descent(orphans=(orphan,))}))
    started.with_name("started.go").touch()

    text, code = said(answer)

    assert (code, is_trusted(project)) == (1, False)
    assert f"below the agent in process {agent.pid}" in text


@pytest.mark.parametrize("command", ["trust", "state adopt --new", "agent stop dev-2 --yes"])
def test_a_process_without_a_terminal_of_which_nothing_is_known_cannot_consent(
    command: str, project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    words = shlex.join([*PROGRAM, *command.split(), "--project", str(project)])
    shell = f"{words} > {answer}.new 2>&1; echo $? >> {answer}.new; mv {answer}.new {answer}"
    agent = children.agent("dev-2", "red", project, LEAVE.format(script=f"unset CLAUDE_PID; {shell}", marks="{}"))

    text, code = said(answer)

    assert (code, is_trusted(project), agent.poll()) == (1, False, None)
    assert "needs a person at a terminal" in text


def test_in_the_background_of_a_terminal_no_person_consents(
    project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    in_background = shlex.join(["sh", "-c", f"set -m; ({trust(project, answer)}) & wait"])
    script = f"unset CLAUDE_PID; exec {shlex.join([sys.executable, '-c', PTY])} {in_background}"
    children.agent("dev-2", "red", project, LEAVE.format(script=script, marks="{}"))

    text, code = said(answer)

    assert (code, is_trusted(project)) == (1, False)
    assert "needs a person at a terminal" in text


def test_a_command_in_the_process_group_of_an_agent_is_the_agents(
    project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    """A server that the client has started has left the tree, and still has its terminal."""
    leave = LEAVE.format(script=trust(project, answer), marks="{}").replace("os.setsid()", "pass")
    flags = "--agent-id dev-2@red --agent-name dev-2 --team-name red"
    agent = f"{sys.executable} -c {shlex.quote(leave + 'import time; time.sleep(600)')} {flags}"
    ours, theirs = pty.openpty()
    children.start(*at_terminal("/bin/sh", "-c", f"cd {project}; exec {agent}"), stdin=theirs, start_new_session=True)

    text, code = said(answer)

    os.close(theirs)
    os.close(ours)
    assert (code, is_trusted(project)) == (1, False)
    assert "whose terminal it uses" in text


# -- tmux --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def servers_of_an_agent(tmp_path: Path, project: Path, children: Children) -> Iterator[PrivateTmux]:
    """A tmux server with the environment of an agent."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    agent = children.agent("dev-2", "red", project)
    tmux = PrivateTmux(tmp_path, {**os.environ, "CLAUDE_PID": str(agent.pid)})
    yield tmux
    tmux.end()


@pytest.mark.parametrize("attached", [False, True])
def test_in_tmux_a_person_is_one_who_is_attached(
    attached: bool, project: Path, claude_home: Path, answer: Path, servers_of_an_agent: PrivateTmux
) -> None:
    """Also to a server that an agent has started: everything in it has the agent's environment."""
    go = answer.with_name("go")
    shell = f"until [ -e {go} ]; do sleep 0.05; done; {trust(project, answer)}; sleep 600"
    servers_of_an_agent.session("work", shell)
    if attached:
        servers_of_an_agent.person("work")
    go.touch()

    text, code = said(answer)

    assert (code, is_trusted(project)) == ((0, True) if attached else (1, False)), text
    assert ("none is attached" in text) is not attached


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_a_script_that_is_older_than_all_agents_consents(
    project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    """On a CI runner for instance: it descends from no agent, since no process is older than its parent."""
    go = answer.with_name("go")
    script = f"until [ -e {go} ]; do sleep 0.05; done; {trust(project, answer)}"
    children.start("/bin/sh", "-c", script, start_new_session=True)
    children.agent("dev-2", "red", project)
    go.touch()

    text, code = said(answer)

    assert (code, is_trusted(project)) == (0, True), text


@pytest.mark.parametrize("adopts", [False, True])
def test_an_ancestor_that_adopts_processes_proves_nothing(
    adopts: bool, project: Path, claude_home: Path, children: Children, answer: Path
) -> None:
    """What has left the tree of an agent below ``exec``, which is older, is a child of ``exec``."""
    flags = "--agent-id dev-2@red --agent-name dev-2 --team-name red"
    leave = LEAVE.format(script=trust(project, answer), marks="{}") + "\nimport time; time.sleep(600)"
    agent = f"cd {project} && exec {sys.executable} -c {shlex.quote(leave)} {flags}"
    around = [*PROGRAM, "exec", "--"] if adopts else []
    children.start(*around, "/bin/sh", "-c", agent, start_new_session=True)

    text, code = said(answer)

    assert (code, is_trusted(project)) == (1, False)
    assert "needs a person at a terminal" in text
