"""Descendants of an agent that its process tree does not show: by their births, their sessions and their marks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Children
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.formats.own import Descent
from yolo_supervisor.inventory import descent as module
from yolo_supervisor.inventory.descent import Descendants
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import ProcessId
from yolo_supervisor.system.births import Births
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.procfs import signal_sessions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

NESTED = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if os.fork() == 0:
            open("pid", "w").write(str(os.getpid()))
            os.dup2({lifeline}, 0)
            os.execvp("cat", ["cat"])
        os._exit(0)
    os._exit(0)
os.wait()
"""
"""A tool that leads a session; after some milliseconds only a grandchild of it is left."""

CHAIN = """
import os, time
open("session.new", "w").write(str(os.getpid()))
os.rename("session.new", "session")
until = time.monotonic() + 120
while time.monotonic() < until:
    time.sleep(0.2)
    if os.fork():
        os._exit(0)
"""
"""A tool whose processes fork and exit."""

WITH_CHAIN = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {CHAIN!r}], start_new_session=True).wait()"
)


@pytest.fixture
def lifeline() -> Iterator[int]:
    reading, writing = os.pipe()
    yield reading
    os.close(writing)
    os.close(reading)


def agent_that_waits(children: Children, project: Path, lifeline: int) -> subprocess.Popen[bytes]:
    """An agent that starts its tool when it is told to (``start_tool``)."""
    program = f"import sys; print('ready', flush=True); sys.stdin.readline()\n{NESTED.format(lifeline=lifeline)}"
    return children.agent("dev-1", "red", project, program, pass_fds=(lifeline,), stdin=subprocess.PIPE)


def start_tool(child: subprocess.Popen[bytes]) -> None:
    """Let an agent that waits start its tool."""
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()


def last_of_the_tool(scanner: ProcessScanner, project: Path) -> int:
    wait_until(lambda: (project / "pid").exists() and (project / "pid").read_text(), "the last of the tool")
    last = int((project / "pid").read_text())
    wait_until(lambda: scanner.processes.backend.argv(last) == ["cat"], "its program")
    return last


def known(scanner: ProcessScanner, child: subprocess.Popen[bytes]) -> ProcessId:
    process = scanner.processes.identify(child.pid)
    assert process is not None
    return process


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait(LIMIT_S)


def descendants(scanner: ProcessScanner, agent: ProcessId) -> Descendants:
    return scanner.find_descendants(agent, None, Descent())


@pytest.fixture
def informed() -> Iterator[ProcessScanner]:
    """A scanner to which the kernel reports births."""
    births = Births()
    yield ProcessScanner(Processes(backend()), births)
    births.close()


def test_a_process_is_followed_from_its_birth(
    informed: ProcessScanner, children: Children, project: Path, lifeline: int
) -> None:
    scanner = informed
    child = agent_that_waits(children, project, lifeline)
    agent = known(scanner, child)
    scanner.track(agent)
    if not scanner.births.is_open:
        pytest.skip("the kernel does not report births here")
    scanner.sample()

    start_tool(child)
    last = last_of_the_tool(scanner, project)
    end(child)
    found = descendants(scanner, agent)

    assert [process.pid for process in found.processes] == [last]
    assert found.sweep.facts[last].session in found.sessions, "it is in the session of a tool"


def test_a_tool_that_starts_during_a_sample_is_known_after_it(
    informed: ProcessScanner, children: Children, project: Path, lifeline: int
) -> None:
    """A supervisor that ends before its next sample leaves nothing but this to its successor."""
    scanner = informed
    child = agent_that_waits(children, project, lifeline)
    agent = known(scanner, child)
    scanner.track(agent)
    if not scanner.births.is_open:
        pytest.skip("the kernel does not report births here")
    sweep = scanner.processes.sweep()
    start_tool(child)
    last = last_of_the_tool(scanner, project)

    scanner._take(sweep)

    assert last in [process.pid for process in scanner.descent.known[agent].orphans]


def test_births_are_read_for_as_long_as_an_agent_is_tracked(
    informed: ProcessScanner, children: Children, project: Path
) -> None:
    scanner = informed
    agent = known(scanner, children.agent("dev-1", "red", project))
    scanner.track(agent)
    if not scanner.births.is_open:
        pytest.skip("the kernel does not report births here")

    scanner.drop(agent)

    assert not scanner.births.is_open


def test_without_births_an_environment_ties_an_orphan_to_its_agent(
    children: Children, project: Path, lifeline: int
) -> None:
    scanner = ProcessScanner(Processes(backend()))
    program = NESTED.format(lifeline=lifeline)
    child = children.agent("dev-1", "red", project, program, pass_fds=(lifeline,))
    last = last_of_the_tool(scanner, project)
    agent = known(scanner, child)
    scanner.track(agent)
    scanner.sample()

    end(child)
    found = descendants(scanner, agent)

    assert last in [process.pid for process in found.processes]
    assert found.sweep.facts[last].session not in found.sessions, "it may be a daemon"


def test_an_environment_that_two_agents_have_proves_no_chain(
    children: Children, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanner, chain, agents = chained(children, project, monkeypatch, "dev-1", "dev-2")

    assert descendants(scanner, agents[0]).sessions.isdisjoint({chain})
    signal_sessions([chain], 9)


def test_a_chain_of_processes_is_no_daemon(children: Children, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanner, chain, agents = chained(children, project, monkeypatch, "dev-1")

    wait_until(lambda: chain in descendants(scanner, agents[0]).sessions, "its chain to be found")
    signal_sessions([chain], 9)


def chained(
    children: Children, project: Path, monkeypatch: pytest.MonkeyPatch, *names: str
) -> tuple[ProcessScanner, int, list[ProcessId]]:
    """Agents, of which the first is dead and has left a chain; and the chain's session."""
    monkeypatch.setattr(module, "CHAIN_SEEN_S", 0.1)
    monkeypatch.setattr(module, "CHAIN_AGE_S", LIMIT_S)
    scanner = ProcessScanner(Processes(backend()))
    started = [children.agent(name, "red", project, WITH_CHAIN if name == "dev-1" else "") for name in names]
    agents = [known(scanner, child) for child in started]
    wait_until((project / "session").exists, "the chain to begin")
    chain = int((project / "session").read_text())
    wait_until(lambda: not Path(f"/proc/{chain}").exists(), "its first process to end")
    for agent in agents:
        scanner.track(agent)

    def seen() -> bool:  # a look may come between the end of one process and the begin of the next
        scanner.sample()
        return chain in scanner.descent._leaderless

    wait_until(seen, "the session to be seen")
    begun_s = time.monotonic()
    wait_until(lambda: time.monotonic() - begun_s > 0.1, "the session to be old")
    end(started[0])
    return scanner, chain, agents
