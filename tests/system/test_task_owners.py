"""The owners of tasks as the whole project is read: agents beside the project, suspended ones, lists of forgotten ones.

The processes are real and the time is virtual.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from support.cli import Cli
from support.processes import Children
from support.project import FakeClock, agent_of, given_back, read_task, write_record, write_task
from support.wait import wait_until
from yolo_supervisor.actions.base import Edit, Note
from yolo_supervisor.config import Config
from yolo_supervisor.daemon.wiring import HostServices, ProjectParts
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.models import ProcessId
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Tmux

SESSION = "85d6cfb4-e039-4e27-ad22-f3bfa65d65f7"
TEAM = "session-85d6cfb4"
LIMITS = Config().tasks
LONG_S = 2 * LIMITS.unknown_limit_s


class Looks:
    """A project that is looked at: both watchers of agents and tasks, with what they decide, in virtual time."""

    def __init__(self, project: Path, claude: Path) -> None:
        self.project, self.claude, self.clock = project, claude, FakeClock()
        self.processes = Processes(backend())
        self.scanner = ProcessScanner(self.processes)
        self.store = Store(project, self.clock)
        self.store.open()
        services = HostServices(self.clock, self.processes, self.scanner, Tmux(self.clock))
        self.parts = ProjectParts(self.store, services, Config(), os.environ, writes_reports=False)

    def look(self, after_s: float = 0.0) -> None:
        """Look once, ``after_s`` later, and apply the decisions except signals."""
        self.clock.wait(after_s)
        self.scanner.sample()
        for watcher in (self.parts.agents, self.parts.tasks):
            for remediation in anyio.run(watcher.tick, self.clock.now()):
                for action in remediation:
                    if isinstance(action, Edit):
                        assert self.store.commit(action, watcher.name) is not Outcome.BUSY
                    elif isinstance(action, Note):
                        self.store.note(action, watcher.name)

    def look_long(self, s: float = LONG_S, looks: int = 6) -> None:
        """Look several times in so many seconds."""
        for _ in range(looks):
            self.look(s / looks)

    def client(
        self,
        children: Children,
        session: str = SESSION,
        cwd: Path | None = None,
        domain: str | None = None,
        **variables: str,
    ) -> subprocess.Popen[bytes]:
        """A session of a client whose command line is that of a wrapper."""
        folder = cwd or self.project
        child = children.start("sleep", "600", cwd=folder, env={**os.environ, **variables})
        process = self.processes.identify(child.pid)
        assert process is not None
        said = {
            "pid": child.pid, "sessionId": session, "cwd": str(folder), "procStart": str(process.started),
            "kind": "interactive", "status": "busy", "pidDomain": domain,
        }  # fmt: skip
        (self.claude / "sessions").mkdir(exist_ok=True)
        (self.claude / "sessions" / f"{child.pid}.json").write_text(json.dumps(said))
        return child

    def team(self, lead_cwd: Path) -> Path:
        """A team whose lead works in another folder than its teammate."""
        lead = {"agentId": f"team-lead@{TEAM}", "name": "team-lead", "tmuxPaneId": "leader", "cwd": str(lead_cwd)}
        mate = {
            "agentId": f"dev-1@{TEAM}", "name": "dev-1", "tmuxPaneId": "%1", "cwd": str(self.project),
            "backendType": "tmux", "isActive": True,
        }  # fmt: skip
        said = {"name": TEAM, "leadAgentId": lead["agentId"], "leadSessionId": SESSION, "members": [lead, mate]}
        folder = self.claude / "teams" / TEAM
        folder.mkdir(parents=True)
        path = folder / "config.json"
        path.write_text(json.dumps(said))
        return path

    def transcript(self, name: str, team: str, *records: dict[str, object]) -> None:
        """The transcript of a teammate."""
        slug = "".join(letter if letter.isalnum() else "-" for letter in str(self.project))
        path = self.claude / "projects" / slug / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"agentName": name, "teamName": team, **each}) + "\n" for each in records))


@pytest.fixture
def looks(project: Path, claude_home: Path) -> Iterator[Looks]:
    opened = Looks(project, claude_home)
    yield opened
    for process in opened.parts.agents.processes():
        opened.parts.deaths.discard(process)
    opened.store.close()


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder outside the project."""
    folder = tmp_path / "beside"
    folder.mkdir()
    return folder


def at_work(task: Path) -> bool:
    return str(read_task(task)["status"]) == "in_progress"


@pytest.mark.parametrize("owner", [None, "team-lead", "claude"])
def test_a_lead_that_was_started_in_another_folder_keeps_its_tasks(
    owner: str | None, looks: Looks, children: Children, beside: Path
) -> None:
    looks.team(beside)
    looks.client(children, cwd=beside)
    children.agent("dev-1", TEAM, cwd=looks.project)
    task = write_task(looks.claude, TEAM, 1, owner=owner, status="in_progress")

    looks.look_long()

    assert at_work(task)


def test_a_session_in_another_folder_keeps_the_task_of_a_list_that_it_shares(
    looks: Looks, children: Children, beside: Path
) -> None:
    here = looks.client(children, CLAUDE_CODE_TASK_LIST_ID="board")
    beside_it = looks.client(children, "2" + SESSION[1:], beside, CLAUDE_CODE_TASK_LIST_ID="board")
    task = write_task(looks.claude, "board", 1, status="in_progress")
    looks.look()
    looks.look()

    here.kill()
    here.wait()
    looks.look_long()
    assert at_work(task)

    beside_it.kill()
    beside_it.wait()
    looks.look_long()
    assert given_back(task)


def test_a_task_that_a_forgotten_agent_left_is_still_seen_and_can_be_requeued(
    looks: Looks, children: Children, cli: Cli
) -> None:
    agent = children.agent("dev-1", "red", cwd=looks.project)
    task = write_task(looks.claude, "red", 1, owner="dev-1", status="in_progress")
    other = write_task(looks.claude, "red", 2, owner="dev-1", status="in_progress")
    looks.look()
    looks.store.close()
    agent.kill()
    agent.wait()

    assert cli("agent", "forget", "dev-1@red").returncode == 0
    assert {listed["id"] for listed in cli.json("task", "list")["tasks"]} == {"red/1", "red/2"}
    assert cli("task", "requeue", "red/1").returncode == 0
    assert (given_back(task), at_work(other)) == (True, True)


@pytest.mark.parametrize("in_order", [False, True])
def test_the_task_of_a_teammate_out_of_sight_is_not_that_of_its_dead_lead(
    in_order: bool, looks: Looks, children: Children
) -> None:
    looks.team(looks.project)
    lead = looks.client(children)
    theirs = write_task(looks.claude, TEAM, 1, owner="dev-1", status="in_progress")
    own = write_task(looks.claude, TEAM, 2, status="in_progress")
    looks.look()
    looks.look()

    if in_order:  # the client removes its files
        shutil.rmtree(looks.claude / "teams" / TEAM)
        (looks.claude / "sessions" / f"{lead.pid}.json").unlink()
        looks.look()
    lead.kill()
    lead.wait()
    looks.look()
    looks.look()

    assert given_back(own)
    assert at_work(theirs)


def test_a_list_that_the_environment_names_is_known_whatever_the_command_line(looks: Looks, children: Children) -> None:
    client = looks.client(children, CLAUDE_CODE_TASK_LIST_ID="board")
    task = write_task(looks.claude, "board", 1, status="in_progress")
    looks.look()

    client.kill()
    client.wait()
    looks.look()

    assert given_back(task)


def test_the_silence_of_an_agent_that_was_suspended_begins_when_it_goes_on(looks: Looks, children: Children) -> None:
    agent = children.agent("dev-1", "red", cwd=looks.project)
    process = looks.processes.identify(agent.pid)
    assert process is not None
    looks.transcript("dev-1", "red", {"type": "assistant", "message": {"stop_reason": "end_turn", "content": []}})
    task = write_task(looks.claude, "red", 1, owner="dev-1", status="in_progress")
    looks.look()

    agent.send_signal(signal.SIGSTOP)
    wait_until(lambda: (facts := looks.processes.backend.facts(agent.pid)) and facts.stopped, "it to be stopped")
    looks.look_long()
    agent.send_signal(signal.SIGCONT)
    wait_until(lambda: (facts := looks.processes.backend.facts(agent.pid)) and not facts.stopped, "it to go on")
    looks.look(LIMITS.idle_limit_s / 2)
    looks.look(LIMITS.idle_limit_s / 2 - 1)

    assert at_work(task)
    looks.look_long(2 * LIMITS.idle_limit_s)
    assert given_back(task)


@pytest.mark.parametrize(
    ("host", "mtime", "is_proof"),
    [
        pytest.param(os.uname().nodename, None, True, id="this pid namespace"),
        pytest.param("elsewhere", None, False, id="another machine"),
        pytest.param(os.uname().nodename, 1.0, False, id="an earlier boot"),
    ],
)
def test_the_file_of_its_team_proves_that_a_lead_has_ended_unseen(
    host: str, mtime: float | None, is_proof: bool, looks: Looks, children: Children
) -> None:
    path = looks.team(looks.project)
    lead = looks.client(children)
    (looks.claude / "sessions" / f"{lead.pid}.json").unlink()
    process = looks.processes.identify(lead.pid)
    assert process is not None
    space = f"{host}#pid:[{process.boot.rpartition('/')[2]}]"
    claim = {"pid": process.pid, "procStart": str(process.started), "pidSpace": space, "claimedAt": 1}
    path.write_text(json.dumps({**json.loads(path.read_text()), "leadProcess": claim}))
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    task = write_task(looks.claude, TEAM, 1, status="in_progress")
    lead.kill()
    lead.wait()

    looks.look()
    looks.look()

    assert given_back(task) is is_proof


def test_tasks_are_listed_and_requeued_after_their_team_is_gone_and_its_agents_were_forgotten(
    cli: Cli, project: Path, claude_home: Path
) -> None:
    for number, name in enumerate(("dev-1", "dev-2")):
        elsewhere = ProcessId(2**22 + number, 1, "another/boot/of-another-machine")
        write_record(project, replace(agent_of(name, "red", elsewhere), claude_dir=claude_home))
    held = write_task(claude_home, "red", 1, owner="dev-1", status="in_progress")
    write_task(claude_home, "red", 2, owner="dev-2", status="completed")
    write_task(claude_home, "blue", 1, status="in_progress")

    for name in ("dev-1", "dev-2"):
        assert cli.json("agent", "forget", f"{name}@red")["result"] == "forgotten"

    assert [task["id"] for task in cli.json("task", "list")["tasks"]] == ["red/1", "red/2"]
    assert cli.json("task", "requeue", "1") == {"result": "requeued", "id": "red/1"}
    assert read_task(held)["status"] == "pending"
    assert "red/1" in [task["id"] for task in cli.json("task", "list")["tasks"]], "it is not finished yet"


@pytest.mark.parametrize("is_here", [True, False])
def test_a_session_of_another_pid_namespace_is_none_of_a_process_with_that_pid(
    is_here: bool, looks: Looks, children: Children
) -> None:
    namespace = looks.processes.boot.rpartition("/")[2] if is_here else "1"
    looks.client(children, domain=f"linux:machine:pid:[{namespace}]")

    looks.look()

    assert bool(looks.parts.agents.living()) is is_here
