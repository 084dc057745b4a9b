"""No file makes an agent of another project one of this project, and no signal reaches it, whatever the source."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from support.processes import Children
from support.project import agent_of
from support.wait import wait_until
from yolo_supervisor.actions.agents import Terminate
from yolo_supervisor.daemon.terminations import terminate
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import Agent, Liveness, ProcessId
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes


class World:
    """A project with the parts that find its agents and end them, and an agent that works elsewhere."""

    def __init__(self, project: Path, claude: Path, children: Children) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.claude = claude
        self.children = children
        self.processes = Processes(backend())
        self.scanner = ProcessScanner(self.processes)
        self.store = Store(project)
        self.store.open()
        self.registry = AgentRegistry(self.store.paths, self.processes, self.scanner, [claude])
        elsewhere = project.parent / "elsewhere"
        elsewhere.mkdir()
        self.foreign = self.agent(elsewhere)

    def agent(self, folder: Path) -> ProcessId:
        """A client at work in the folder; only its program says that it is an agent."""
        link = self.project.parent / "claude"
        if not link.exists():
            link.symlink_to("/bin/sleep")
        child = self.children.start(str(link), "600", cwd=folder)
        wait_until(lambda: self.processes.backend.argv(child.pid)[:1] == [str(link)], "its command line")
        process = self.processes.identify(child.pid)
        assert process is not None
        return process

    def found(self) -> set[ProcessId]:
        """The processes of the agents that any source shows."""
        self.scanner.sample()
        assert self.foreign in self.scanner.agents, "it does not look like an agent"
        sightings = self.registry.sightings(self.registry.snapshot())
        return {agent.process for agents in sightings.values() for agent in agents if agent.process}

    async def end(self, process: ProcessId) -> str | None:
        """Ask the kill gate to end the process; the objection."""
        action = Terminate(key="claude", roots=(process,), grace_s=0.1, reason="test", evidence={})

        async def agree(action: Terminate) -> str | None:
            return None

        _, ending = await terminate(
            action, "test", self.store, self.processes, self.scanner, self.registry.is_foreign, agree
        )
        return ending.spared


@pytest.fixture
def world(project: Path, claude_home: Path, children: Children) -> World:
    return World(project, claude_home, children)


def in_agent_pids(world: World, process: ProcessId) -> None:
    (world.planning / ".agent-pids").write_text(f"{process.pid}\n")


def in_agent_health(world: World, process: ProcessId) -> None:
    (world.planning / ".agent-health").mkdir()
    health = {"pid": process.pid, "role": "dev"}
    (world.planning / ".agent-health" / "dev.json").write_text(json.dumps(health))


def in_hook_note(world: World, process: ProcessId) -> None:
    world.store.paths.hooks.mkdir(exist_ok=True)
    hook = f"{process.pid + 1}:1:sh:{process.pid + 1} {process.pid}:{process.started}:claude:1"
    (world.store.paths.hooks / f"SessionStart.{process.pid}.1-1").write_text(f'{hook}\n{{"session_id": "s"}}')


def in_session_file(world: World, process: ProcessId) -> None:
    (world.claude / "sessions").mkdir()
    cwd = os.readlink(f"/proc/{process.pid}/cwd")
    session = {"pid": process.pid, "sessionId": "s", "cwd": cwd, "startedAt": 1795379572760,
               "procStart": str(process.started), "kind": "interactive", "status": "busy"}  # fmt: skip
    (world.claude / "sessions" / f"{process.pid}.json").write_text(json.dumps(session))


SOURCES = [in_agent_pids, in_agent_health, in_hook_note, in_session_file]


@pytest.mark.parametrize("claim", SOURCES)
def test_a_source_shows_the_agents_that_work_in_the_project_only(
    claim: Callable[[World, ProcessId], None], world: World
) -> None:
    claim(world, world.foreign)

    assert world.foreign not in world.found()


@pytest.mark.parametrize("claim", SOURCES)
def test_a_source_shows_an_agent_that_works_in_the_project(
    claim: Callable[[World, ProcessId], None], world: World
) -> None:
    own = world.agent(world.project)
    claim(world, own)

    assert own in world.found()


def test_a_command_line_names_no_project(world: World) -> None:
    child = world.children.agent("dev-1", "red", world.project.parent / "elsewhere")
    own = world.children.agent("dev-1", "red", world.project)

    assert {child.pid, own.pid} & {process.pid for process in world.found()} == {own.pid}


async def test_the_kill_gate_asks_again(world: World) -> None:
    own = world.agent(world.project)
    world.scanner.sample()

    assert await world.end(world.foreign) == f"process {world.foreign.pid} is no agent of this project"
    assert world.processes.liveness(world.foreign) is Liveness.ALIVE
    assert await world.end(own) is None
    assert world.processes.liveness(own) is Liveness.DEAD


@pytest.mark.parametrize("source", ["agent-pids", "hook", "process"])
async def test_a_record_of_an_earlier_version_does_not_open_the_gate(source: str, world: World) -> None:
    record(world, agent_of("dev", "red", world.foreign), source)

    assert await world.end(world.foreign) is not None
    assert world.processes.liveness(world.foreign) is Liveness.ALIVE


async def test_a_recorded_agent_whose_program_does_not_look_like_one_is_asked_about_too(world: World) -> None:
    child = world.children.start("sleep", "600", cwd=world.project.parent / "elsewhere")
    process = world.processes.identify(child.pid)
    assert process is not None
    assert not world.registry.is_foreign(process)
    record(world, agent_of("dev", "red", process), "process")

    assert await world.end(process) is not None
    assert world.processes.liveness(process) is Liveness.ALIVE


async def test_an_agent_that_was_registered_by_hand_belongs(world: World) -> None:
    record(world, agent_of("dev", "red", world.foreign), "registered")

    assert world.foreign in world.found()
    assert await world.end(world.foreign) is None


def record(world: World, agent: Agent, source: str) -> None:
    path = world.store.paths.agents / own_files.agent_file(agent)
    path.write_bytes(own_files.dump_agent(replace(agent, source=source)))
