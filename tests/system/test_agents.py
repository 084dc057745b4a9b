"""Dead agents and their held resources: the decision alone, then looks at real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.processes import Children, watching
from support.project import new_store, read_task, write_task
from support.wait import wait_until
from yolo_supervisor.actions.agents import Died, Register, Terminate
from yolo_supervisor.actions.agents import forget as forget_action
from yolo_supervisor.actions.base import Action, AlertCode, Edit, Escalate, Note, RemoveFile
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.actions.state import DropHealth, DropPids, SetMarker
from yolo_supervisor.actions.tasks import Requeue
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.claude_homes import default_homes
from yolo_supervisor.inventory.held_resources import HeldResources, HeldTask, StaleMarker
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot
from yolo_supervisor.models import Agent, Lease, Liveness, ProcessId, Task
from yolo_supervisor.policy.retry import RetryDecision, RetryPolicy
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.death_watch import DeathWatch
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Leftovers, Processes
from yolo_supervisor.watchers.agents import AgentsObservation, AgentsWatcher, decide
from yolo_supervisor.watchers.base import Remediation
from yolo_supervisor.watchers.dead_agents import (
    RECOVERY_PHASES,
    Phase,
    Sighting,
    announce,
    clean_registry_files,
    deregister,
    hold,
    kill_leftovers,
    release,
    report_crash,
    report_unreadable,
    requeue,
    wait_for_tasks,
)

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RECORDS = Path("/records")
GRACE_S = 3.0
MASS_MIN = 5

ALIVE, DEAD, UNKNOWN = Liveness.ALIVE, Liveness.DEAD, Liveness.UNKNOWN


# -- the decision by itself ---------------------------------------------------------------------------------------


def agent(name: str = "dev-1", number: int = 1) -> Agent:
    return Agent(
        id=f"{name}@red", name=name, role="dev", team="red", source="process", since=EPOCH,
        process=ProcessId(400 + number, 7, "here"), pid=400 + number,
    )  # fmt: skip


DEV = agent()


def sighting(of: Agent = DEV, state: Liveness = DEAD, held: HeldResources | None = None, **more: Any) -> Sighting:
    return Sighting(agent=of, record=f"{of.name}.json", state=state, proof="gone", held=held or HeldResources(), **more)


def decided(*sightings: Sighting, **more: Any) -> list[Remediation]:
    return decide(
        AgentsObservation(sightings=sightings, **{"known": len(sightings), **more}), RECORDS, GRACE_S, MASS_MIN
    )


def evidence(of: Agent = DEV) -> Mapping[str, Any]:
    return {"agent": of.id, "proof": "gone", "pid": of.pid}


def died(of: Agent = DEV) -> Note:
    identity = {"role": "dev", "team": "red", "source": "process", "pid": of.pid, "started": 7, "boot": "here"}
    return Died(
        key=of.id, reason=f"{of.name} is dead: gone", evidence={**identity, "proof": "gone"}, process=of.process
    )


def forget(of: Agent = DEV, rest: str = "", **more: Any) -> RemoveFile:
    return forget_action(
        key=of.id, path=RECORDS / f"{of.name}.json", reason=f"its recovery is complete{rest}",
        evidence={**evidence(of), **more},
    )  # fmt: skip


def task(number: int, owner: str = "dev-1") -> Task:
    return Task(list="red", number=str(number), status="in_progress", owner=owner, path=Path(f"/red/{number}.json"))


def requeued(number: int) -> Requeue:
    return Requeue(
        key=f"red/{number}", task=task(number), owner="dev-1", cause="", reason="its owner dev-1 is dead",
        evidence={"owner": "dev-1", **evidence()},
    )  # fmt: skip


TOOL, DAEMON = ProcessId(501, 8, "here"), ProcessId(502, 9, "here")


def test_a_dead_agent_is_healed_in_order_and_its_record_goes_last() -> None:
    plan = Task(list="execution-state", number="05-01", status="running", owner=None, path=Path("/state.json"))
    held = HeldResources(
        tasks=(HeldTask(task=task(1)), HeldTask(task=task(2))),
        plans=(HeldTask(task=plan),),
        leases=(Lease(resource="src", owner="dev-1", path=Path("/src.lease"), expires_at=EPOCH),),
        health=Path("/.agent-health/dev.json"),
        panes=Path("/.agent-panes"),
        pids=Path("/.agent-pids"),
        markers=(StaleMarker(path=Path("/.active-agent"), expected_digest="digest", word="qa"),),
    )
    books: dict[str, Any] = {"reason": "dev-1 is dead", "evidence": evidence()}
    pids = frozenset({401})

    assert decided(sighting(held=held)) == [
        (
            died(),
            requeued(1),
            requeued(2),
            Requeue(key=plan.id, task=plan, owner=None, cause="", reason="its owner dev-1 is dead",
                    evidence={"owner": None, **evidence()}),
            Release(key="src", path=Path("/src.lease"), owner="dev-1", reason="its holder dev-1 is dead",
                    evidence={"owner": "dev-1", **evidence()}),
            DropHealth(key=".agent-health/dev.json", path=Path("/.agent-health/dev.json"), pid=401, **books),
            DropPids(key=".agent-panes", path=Path("/.agent-panes"), pids=pids, pid_lock=None, **books),
            SetMarker(key=".active-agent", path=Path("/.active-agent"), expected_digest="digest", data=b"qa", **books),
            DropPids(key=".agent-pids", path=Path("/.agent-pids"), pids=pids, **books),
            forget(),
        )
    ]  # fmt: skip


def test_live_and_unknown_agents_need_no_action() -> None:
    assert decided(sighting(state=ALIVE), sighting(agent("qa"), UNKNOWN)) == []


def test_an_unrecorded_working_agent_is_registered() -> None:
    (remediation,) = decided(sighting(state=ALIVE, recorded=False))

    assert remediation == (
        Register(
            key="dev-1@red", path=RECORDS / "dev-1.json", agent=DEV, reason="a dev at work was found by its process",
            evidence={"role": "dev", "team": "red", "source": "process", "pid": 401, "started": 7, "boot": "here"},
        ),
    )  # fmt: skip


def test_a_dead_agent_without_a_record_is_recorded_first() -> None:
    ((first,),) = decided(sighting(recorded=False))

    assert isinstance(first, Register)
    assert first.agent == DEV


def test_a_death_is_reported_even_if_nothing_can_be_recorded() -> None:
    assert decided(sighting(recorded=False), observing=True) == [(died(), forget())]


def test_an_agent_of_unknown_state_is_not_registered() -> None:
    assert decided(sighting(state=UNKNOWN, recorded=False)) == []


def test_a_death_is_reported_once() -> None:
    assert decided(sighting(death_recorded=True)) == [(forget(),)]


def test_while_leftovers_live_the_record_stands() -> None:
    held = HeldResources(
        tasks=(HeldTask(task=task(1)),),
        leftovers=Leftovers(roots=(TOOL,), uncertain=(DAEMON,)),
        pids=Path("/pids"),
    )

    assert decided(sighting(held=held)) == [
        (
            died(),
            requeued(1),
            Terminate(
                key="dev-1@red", roots=(TOOL,), grace_s=GRACE_S, reason="a leftover process of dev-1, which is dead",
                evidence={**evidence(), "left": [501]},
            ),
        )
    ]  # fmt: skip


def test_background_processes_of_a_dead_agent_are_reported_and_left_running() -> None:
    held = HeldResources(leftovers=Leftovers(uncertain=(DAEMON,)))

    rest = "; processes that it had started and that still run: 1"
    assert decided(sighting(held=held)) == [(died(), forget(rest=rest, left_alone=[502]))]


def test_while_one_of_its_task_files_cannot_be_read_the_record_stands() -> None:
    held = HeldResources(tasks=(HeldTask(task=task(1)),), unreadable=(Path("/red/2.json"),), pids=Path("/pids"))

    ((*done, last),) = decided(sighting(held=held))

    assert done == [died(), requeued(1)]
    assert isinstance(last, Escalate)
    assert (last.kind, last.key) == ("task", "2.json")
    assert "/red/2.json" in last.reason


def position(phase: Phase) -> int:
    return RECOVERY_PHASES.index(phase)


def test_the_record_is_removed_last() -> None:
    assert RECOVERY_PHASES[-1] is deregister


def test_tasks_and_leases_are_released_before_any_signal() -> None:
    assert max(map(position, (requeue, release, hold))) < position(kill_leftovers)


def test_the_crash_report_is_written_before_any_cleanup() -> None:
    assert position(report_crash) < min(map(position, (kill_leftovers, clean_registry_files, deregister)))


def test_the_agent_stays_registered_until_all_waiting_is_over() -> None:
    waiting = (report_crash, kill_leftovers, wait_for_tasks, report_unreadable)
    assert max(map(position, waiting)) < min(map(position, (clean_registry_files, deregister)))


def test_the_death_is_announced_before_everything_that_refers_to_it() -> None:
    assert RECOVERY_PHASES[0] is announce


def test_each_phase_runs_once() -> None:
    assert len(set(RECOVERY_PHASES)) == len(RECOVERY_PHASES)


WAITING: Mapping[str, Mapping[str, Any]] = {
    "a leftover process": {"leftovers": Leftovers(roots=(TOOL,))},
    "a task that may not be requeued yet": {"tasks": (HeldTask(task=task(1), decision=RetryDecision(wait_s=1.0)),)},
    "a plan that may not be requeued yet": {"plans": (HeldTask(task=task(1), decision=RetryDecision(wait_s=1.0)),)},
    "an unreadable task": {"unreadable": (Path("/red/2.json"),)},
}


@pytest.mark.parametrize("held", WAITING.values(), ids=WAITING)
def test_nothing_is_cleaned_up_while_something_remains_to_be_done(held: Mapping[str, Any]) -> None:
    dead = sighting(held=HeldResources(**{"pids": Path("/.agent-pids"), **held}))

    ((*steps,),) = decided(dead)

    assert not [step for step in steps if step.verb == "forgotten" or isinstance(step, DropPids)]


def test_a_task_of_a_possibly_living_namesake_is_escalated_not_requeued() -> None:
    held = HeldResources(tasks=(HeldTask(task=task(1), doubt="a dev-1 is alive"), HeldTask(task=task(2))))

    assert decided(sighting(held=held)) == [
        (
            died(),
            Escalate(kind="task", code=AlertCode.TASK_OWNER_UNCLEAR, key="red/1",
                     reason="its owner dev-1 is dead, but a dev-1 is alive", evidence=evidence()),
            requeued(2),
            forget(),
        )
    ]  # fmt: skip


def test_a_subagent_that_stopped_in_good_order_is_forgotten_without_a_death() -> None:
    (remediation,) = decided(sighting(state=ALIVE, stopped=True))

    assert remediation == (replace(forget(), reason="it stopped"),)


def test_a_subagent_that_stopped_before_registration_is_ignored() -> None:
    assert decided(sighting(state=ALIVE, stopped=True, recorded=False)) == []


def healed(remediations: list[Remediation]) -> list[str]:
    """The ids of the agents that are forgotten."""
    return [action.key for remediation in remediations for action in remediation if action.verb == "forgotten"]


def team_of(absent: int, certain: int = 0) -> list[Sighting]:
    """Agents that seem to be gone, and agents that certainly are."""
    gone = [sighting(agent(f"gone-{n}", n), certain=False) for n in range(absent)]
    return gone + [sighting(agent(f"dead-{n}", 50 + n), certain=True) for n in range(certain)]


@pytest.mark.parametrize(
    ("absent", "known", "inconclusive"), [(3, 5, True), (2, 5, False), (4, 6, True), (3, 6, False), (4, 4, False)]
)
def test_when_more_than_half_of_at_least_five_seem_gone_another_look_is_needed(
    absent: int, known: int, inconclusive: bool
) -> None:
    gone = team_of(absent)
    everyone = [each.agent.id for each in gone]

    first = decided(*gone, known=known, confirmed=False)
    assert healed(first) == ([] if inconclusive else everyone)
    alerts = [action for remediation in first for action in remediation if isinstance(action, Escalate)]
    assert [(note.key, note.evidence) for note in alerts] == ([("all", {"absent": everyone})] if inconclusive else [])

    assert healed(decided(*gone, known=known, confirmed=True)) == everyone


def test_proven_deaths_are_never_held_back() -> None:
    assert healed(decided(*team_of(absent=0, certain=5), confirmed=False)) == [f"dead-{n}@red" for n in range(5)]
    assert healed(decided(*team_of(absent=4, certain=1), confirmed=False)) == ["dead-0@red"]


def test_proven_deaths_do_not_make_a_look_inconclusive() -> None:
    assert healed(decided(*team_of(absent=2, certain=3), confirmed=False)) == [
        *(f"gone-{n}@red" for n in range(2)), *(f"dead-{n}@red" for n in range(3)),
    ]  # fmt: skip


def test_an_inconclusive_look_still_registers_new_agents() -> None:
    remediations = decided(*team_of(absent=5), sighting(state=ALIVE, recorded=False), known=6, confirmed=False)

    assert [type(action) for remediation in remediations for action in remediation] == [Register, Escalate]


def test_an_idle_agent_is_reported_and_left_running() -> None:
    ((note,),) = decided(idle=(("dev", 3),))

    assert isinstance(note, Escalate)
    assert (note.kind, note.key) == ("agent", "role dev")


def test_pids_that_no_process_has_are_reported_once() -> None:
    ((alert,),) = decided(
        dangling=frozenset({9, 8}), dangling_files=(Path("/.agent-pids"), Path("/.agent-health/qa.json"))
    )

    assert isinstance(alert, Escalate)
    assert (alert.code, alert.key, alert.evidence) == (AlertCode.PIDS_UNKNOWN, ".agent-pids", {"pids": [8, 9]})
    assert "8, 9 in .agent-pids, qa.json" in alert.reason


# -- looks at real processes --------------------------------------------------------------------------------------

NO_PROCESS = 2**22 - 1
"""A pid that no process has."""


class World:
    """A project, a client's folder, and the daemon's parts over them."""

    def __init__(self, project: Path, claude: Path) -> None:
        self.project = project
        self.planning = project / ".yolo-planning"
        self.claude = claude
        self.processes = Processes(backend())
        self.scanner = ProcessScanner(self.processes)
        self.store = Store(project)
        self.store.open()
        self.paths = self.store.paths
        self.deaths = DeathWatch(self.processes.backend)
        self.registry = AgentRegistry(self.paths, self.processes, self.scanner, default_homes(Config(), os.environ))
        queue = RetryPolicy(Config(), self.store, SystemClock(), self.processes.boot)
        self.watcher = AgentsWatcher(
            Config(), self.registry, self.store, self.processes, self.scanner, self.deaths, queue
        )

    def look(self) -> AgentsObservation:
        self.scanner.sample()
        return self.watcher.observe()

    def found(self) -> dict[str, Sighting]:
        """The agents that need attention now, by their ids."""
        look = self.look()
        assert len({s.agent.id for s in look.sightings}) == len(look.sightings)
        return {s.agent.id: s for s in look.sightings}

    def turn(self) -> list[Action]:
        """Look, and apply the decisions except signals."""
        remediations = decide(self.look(), self.paths.agents, GRACE_S, MASS_MIN)
        for remediation in remediations:
            for action in remediation:
                if isinstance(action, Edit):
                    assert self.store.commit(action, "agents") is not Outcome.BUSY
                elif isinstance(action, Note):
                    self.store.note(action, "agents")
        return [action for remediation in remediations for action in remediation]

    def shown(self) -> dict[str, tuple[str, Liveness]]:
        """All agents as people see them: by id the source and the state."""
        self.scanner.sample()
        return {each.id: (each.source, state) for each, state in self.watcher.agents()}

    def records(self) -> set[str]:
        loaded = [own_files.load_agent(path.read_bytes()) for path in self.paths.agents.iterdir()]
        return {each.id for each in loaded if each}

    def record(self, name: str, process: ProcessId) -> Agent:
        """An agent that an earlier daemon recorded."""
        found = Agent(
            id=f"{name}@red", name=name, role="dev", team="red", source="process", since=EPOCH, process=process,
            pid=process.pid, claude_dir=self.claude,
        )  # fmt: skip
        path = self.paths.agents / own_files.agent_file(found)
        assert self.store.commit(Register(key=found.id, path=path, agent=found, reason="test"), "test") is Outcome.DONE
        return found

    def identify(self, child: subprocess.Popen[bytes]) -> ProcessId:
        process = self.processes.identify(child.pid)
        assert process is not None
        return process

    def plugin(self, name: str, text: str, age_s: float = 0.0) -> Path:
        """Write a file of the plugin's, dated ``age_s`` seconds ago."""
        path = self.planning / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        dated(path, -age_s)
        return path

    def session(
        self,
        child: subprocess.Popen[bytes],
        session: str,
        started: int | None = None,
        cwd: Path | None = None,
        **more: object,
    ) -> None:
        """The client's own note of a session, with the right start of its process unless given."""
        folder = self.claude / "sessions"
        folder.mkdir(exist_ok=True)
        said = {
            "pid": child.pid, "sessionId": session, "cwd": str(cwd or self.project), "startedAt": 1795379572760,
            "procStart": str(started or self.identify(child).started), "kind": "interactive", "status": "busy",
            **more,
        }  # fmt: skip
        (folder / f"{child.pid}.json").write_text(json.dumps(said))

    def team(self, lead_session: str, folder: str = "red", cwd: Path | None = None, **backends: str) -> Path:
        """The file of a team: its lead, and a member for each backend."""
        lead: dict[str, object] = {
            "agentId": f"team-lead@{folder}",
            "name": "team-lead",
            "agentType": "team-lead",
            "tmuxPaneId": "leader",
        }
        members: list[dict[str, object]] = [
            {"agentId": f"{name}@{folder}", "name": name, "agentType": "general-purpose", "tmuxPaneId": "in-process",
             "joinedAt": 1795379581270, "backendType": backend} for name, backend in backends.items()
        ]  # fmt: skip
        members = [{**member, "cwd": str(cwd or self.project)} for member in (lead, *members)]
        said = {"name": folder, "leadAgentId": lead["agentId"], "leadSessionId": lead_session, "members": members}
        path = self.claude / "teams" / folder / "config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(said))
        return path

    def close(self) -> None:
        for process in self.watcher.processes():
            self.deaths.discard(process)
        self.store.close()


def dated(path: Path, s: float) -> None:
    """Date the file so many seconds later."""
    at = path.stat().st_mtime + s
    os.utime(path, (at, at))


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


@contextlib.contextmanager
def torn(path: Path) -> Iterator[None]:
    """Leave the file half written meanwhile."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    yield
    path.write_bytes(whole)


@pytest.fixture(autouse=True)
def pid_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin's lock over its pids is the whole machine's: here it is a separate one."""
    defaults = DropPids.__init__.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "pid_lock", tmp_path / "pid-lock")


@pytest.fixture
def open_world(project: Path, claude_home: Path) -> Iterator[Callable[[], World]]:
    """Open the same world again, as a restarted daemon does."""
    opened: list[World] = []

    def make() -> World:
        opened.append(World(project, claude_home))
        return opened[-1]

    yield make
    for world in opened:
        world.close()


@pytest.fixture
def world(open_world: Callable[[], World]) -> World:
    return open_world()


def client(children: Children, world: World) -> subprocess.Popen[bytes]:
    """A process that looks like a client by nothing but its name."""
    return children.start("claude", "600", executable=shutil.which("sleep"), cwd=world.project)


# -- the sources of agents ----------------------------------------------------------------------------------------


def test_a_teammate_is_found_by_its_command_line(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project)

    (seen,) = world.look().sightings

    assert (seen.state, seen.recorded) == (ALIVE, False)
    assert replace(seen.agent, since=EPOCH) == Agent(
        id="dev-1@red", name="dev-1", role="dev", team="red", source="process", since=EPOCH,
        process=world.identify(child), pid=child.pid, claude_dir=world.claude,
    )  # fmt: skip
    assert abs(seen.agent.since - datetime.now(UTC)) < timedelta(minutes=1)


def test_agents_outside_the_project_are_ignored(world: World, children: Children) -> None:
    inside = world.project / "src"
    beside = world.project.with_name(world.project.name + "-2")
    inside.mkdir()
    beside.mkdir()
    children.agent("inside", "red", cwd=inside)
    children.agent("beside", "red", cwd=beside)

    assert world.found().keys() == {"inside@red"}


def further_in(world: World, supervised: bool) -> Path:
    """A project within the project; another daemon has ``supervised`` it or has not."""
    inner = world.project / "packages" / "shop"
    (inner / ".yolo-planning").mkdir(parents=True)
    (inner / "src").mkdir()
    if supervised:
        new_store(inner)
    return inner / "src"


@pytest.mark.parametrize("supervised", [False, True])
def test_agents_in_a_nested_project_are_ours_unless_that_is_supervised(
    world: World, children: Children, supervised: bool
) -> None:
    inner = further_in(world, supervised)
    children.agent("dev-1", "red", cwd=inner)
    world.session(children.start("sleep", "600"), "85d6cfb4-e039", cwd=inner)

    assert world.found().keys() == (set() if supervised else {"dev-1@red", "session-85d6cfb4"})


@pytest.mark.parametrize("supervised", [False, True])
def test_the_teams_and_lists_of_a_project_further_in_are_ours_unless_that_is_supervised(
    world: World, children: Children, supervised: bool
) -> None:
    inner = further_in(world, supervised)
    world.session(children.start("sleep", "600"), "85d6cfb4-e039", cwd=inner)
    world.team("ffffffff-e039", cwd=inner)
    lists = {write_task(world.claude, name, 1).parent for name in ("red", "85d6cfb4-e039")}

    snapshot = world.registry.snapshot()
    assert [team.name for team in snapshot.teams] == ([] if supervised else ["red"])
    assert set(world.registry.task_lists.tied(snapshot)) == (set() if supervised else lists)


def test_a_session_is_found_by_its_file_if_that_names_its_very_process(world: World, children: Children) -> None:
    lead, other = children.start("sleep", "600"), children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.session(other, "ffffffff-e039", started=world.identify(other).started - 1)

    (found,) = world.look().sightings

    assert (found.agent.id, found.agent.role, found.agent.source) == ("session-85d6cfb4", "lead", "session")
    assert found.agent.process == world.identify(lead)


def test_the_lead_of_a_team_bears_its_name_there(world: World, children: Children) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.team("85d6cfb4-e039")

    (found,) = world.look().sightings

    assert (found.agent.id, found.agent.name, found.agent.team) == ("team-lead@red", "team-lead", "red")


def test_a_pid_that_the_plugin_wrote_down_counts_if_its_process_looks_like_an_agent_and_was_there_before(
    world: World, children: Children
) -> None:
    agent, bystander = client(children, world), children.start("sleep", "600")
    world.plugin(".agent-pids", f"{agent.pid}\n{bystander.pid}\njunk\n-1\n0\n1\n4294967295\n")

    assert {a.agent.pid for a in world.look().sightings} == {agent.pid}
    assert world.shown() == {
        f"agent#{agent.pid}": ("agent-pids", ALIVE), f"agent#{bystander.pid}": ("agent-pids", UNKNOWN),
    }  # fmt: skip


def test_a_process_that_came_after_its_pid_was_written_down_is_unknown(world: World, children: Children) -> None:
    later = client(children, world)
    world.plugin(".agent-pids", f"{later.pid}\n", age_s=60)
    world.plugin(".agent-health/dev.json", json.dumps({"pid": later.pid, "role": "dev"}), age_s=60)

    assert world.look().sightings == ()
    assert set(world.shown().values()) == {("agent-pids", UNKNOWN)}


@pytest.mark.parametrize("spelled", [int, str])
def test_a_role_is_found_by_its_health_file(spelled: type, world: World, children: Children) -> None:
    child = client(children, world)
    world.plugin(".agent-health/dev.json", json.dumps({"pid": spelled(child.pid), "role": "dev", "idle_count": 0}))

    (found,) = world.look().sightings

    assert (found.agent.id, found.agent.role, found.agent.source) == (f"dev#{child.pid}", "dev", "agent-health")
    assert found.agent.process == world.identify(child)


def with_hook(event: str, *payloads: Mapping[str, Any], after: str = "") -> str:
    """The program of an agent that runs a hook as the client does: in a shell in a separate session."""
    command = f"{shlex.quote(sys.executable)} -m yolo_supervisor hook {event}{after}"
    return "import subprocess\n" + "".join(
        f"subprocess.run(['sh', '-c', {command!r}], input={json.dumps(payload).encode()!r}, check=True,"
        " start_new_session=True)\n"
        for payload in payloads
    )


@pytest.mark.parametrize("after", ["", "; true"], ids=["the shell becomes the hook", "the shell waits for the hook"])
def test_a_session_is_found_by_the_hook_it_ran(after: str, world: World, children: Children) -> None:
    program = with_hook("SessionStart", {"session_id": "85d6cfb4-e039"}, after=after)
    body = f"{program}\nprint('ready', flush=True)\nimport time\ntime.sleep(600)"
    child = children.python(body, cwd=world.project)

    (found,) = world.look().sightings

    assert (found.agent.role, found.agent.source, found.agent.session) == ("lead", "hook", "85d6cfb4-e039")
    assert found.agent.process == world.identify(child)


def subagents(event: str, *idents: str) -> str:
    return with_hook(event, *({"session_id": "85d6", "agent_id": i, "agent_type": "yolo:yolo-dev"} for i in idents))


def test_a_subagent_is_found_by_its_hook_beside_the_agent_it_lives_in(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project, program=subagents("SubagentStart", "sub-1"))

    found = world.found()

    assert found.keys() == {"dev-1@red", "sub-1"}
    assert found["sub-1"].agent.process == found["dev-1@red"].agent.process == world.identify(child)
    assert (found["sub-1"].agent.role, found["sub-1"].agent.source) == ("dev", "hook")


def test_two_subagents_of_one_session_are_two(world: World, children: Children) -> None:
    children.agent("dev-1", "red", cwd=world.project, program=subagents("SubagentStart", "sub-1", "sub-2"))

    assert world.found().keys() == {"dev-1@red", "sub-1", "sub-2"}


@pytest.fixture
def busy_session(world: World, children: Children, tmp_path: Path) -> Callable[[], subprocess.Popen[bytes]]:
    """An agent with a subagent; a call ends the subagent and starts another one."""
    flag = tmp_path / "go on"
    wait = (
        f"import os, time\nprint('started', flush=True)\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.005)\n"
    )
    program = subagents("SubagentStart", "sub-1") + wait + subagents("SubagentStop", "sub-1")
    child = children.agent("dev-1", "red", cwd=world.project, program=program + subagents("SubagentStart", "sub-2"))

    def go_on() -> subprocess.Popen[bytes]:
        flag.touch()
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    return go_on


def test_a_subagent_that_stopped_is_forgotten_while_its_session_goes_on(
    world: World, busy_session: Callable[[], object]
) -> None:
    world.turn()
    assert world.records() == {"dev-1@red", "sub-1"}

    busy_session()
    actions = world.turn()

    assert [each.key for each in actions if each.verb == "forgotten"] == ["sub-1"]
    assert not any(each.verb == "died" for each in actions)
    assert "dev-1@red" in world.records()
    assert "sub-1" not in world.records()


def test_the_next_subagent_of_a_session_is_found_too(world: World, busy_session: Callable[[], object]) -> None:
    world.turn()
    busy_session()
    world.turn()
    world.turn()

    assert world.records() == {"dev-1@red", "sub-2"}


def test_a_subagent_whose_session_dies_is_dead(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project, program=subagents("SubagentStart", "sub-1"))
    world.turn()
    end(child)

    assert {ident: seen.state for ident, seen in world.found().items()} == {"dev-1@red": DEAD, "sub-1": DEAD}


def test_when_a_session_with_a_stopped_subagent_ends_all_is_settled(
    world: World, children: Children, busy_session: Callable[[], subprocess.Popen[bytes]]
) -> None:
    world.turn()
    child = busy_session()
    for _ in range(3):
        world.turn()

    end(child)
    world.turn()

    assert world.turn() == []
    assert world.records() == set()


def test_a_dead_agent_without_a_record_is_recovered_too(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project)
    assert world.found().keys() == {"dev-1@red"}
    end(child)
    world.turn()
    world.turn()

    assert world.turn() == []


def test_a_registered_agent_is_watched_under_any_name(world: World, children: Children) -> None:
    child = children.start("sleep", "600")
    command = ["agent", "register", "--pid", str(child.pid), "--role", "dev", "--name", "dev-9", "--team", "red"]
    subprocess.run(
        [sys.executable, "-m", "yolo_supervisor", "--project", str(world.project), *command], check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    path = write_task(world.claude, "red", 1, owner="dev-9", status="in_progress")
    assert world.turn() == []
    assert world.shown() == {"dev-9@red": ("registered", ALIVE)}

    end(child)
    world.turn()

    assert read_task(path)["status"] == "pending"
    assert world.records() == set()


def test_one_agent_seen_by_several_sources_is_one(world: World, children: Children) -> None:
    program = with_hook("SessionStart", {"session_id": "85d6cfb4-e039"})
    child = children.agent("dev-1", "red", cwd=world.project, program=program)
    world.session(child, "85d6cfb4-e039")
    world.plugin(".agent-pids", f"{child.pid}\n")
    world.plugin(".agent-health/dev.json", json.dumps({"pid": child.pid, "role": "dev"}))

    assert world.found().keys() == {"dev-1@red"}
    world.turn()
    assert world.look().sightings == ()
    assert world.shown() == {"dev-1@red": ("process", ALIVE)}


def test_a_recorded_agent_is_not_found_again_by_another_source(world: World, children: Children) -> None:
    child = children.start("sleep", "600")
    world.record("dev-1", world.identify(child))
    world.session(child, "85d6cfb4-e039")

    assert world.found().keys() == {"dev-1@red"}
    world.turn()
    assert world.look().sightings == ()


@pytest.mark.parametrize("source", ["session", "command line"])
def test_a_forgotten_agent_is_discovered_again_by_its_command_line(
    source: str, world: World, children: Children
) -> None:
    if source == "session":
        world.session(children.start("sleep", "600"), "85d6cfb4-e039")
    else:
        children.agent("dev-1", "red", cwd=world.project)
    world.turn()
    assert world.look().sightings == ()
    (record,) = world.paths.agents.iterdir()
    known = own_files.load_agent(record.read_bytes())
    assert known is not None

    assert (
        world.store.commit(forget_action(key=known.id, path=record, reason="a person said so"), "cli") is Outcome.DONE
    )

    assert world.look().sightings == (), "an agent that was just forgotten is not found at once"
    assert [seen.agent.id for seen in world.look().sightings] == [known.id]


# -- proofs of a death --------------------------------------------------------------------------------------------


def deaths(world: World) -> list[tuple[str, str, bool]]:
    """The dead agents, the proof of each death, and whether it is certain."""
    return [(s.agent.name, s.proof, s.certain) for s in world.look().sightings if s.state is DEAD]


def test_the_end_of_a_process_that_was_watched_is_certain(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project)
    world.turn()
    assert world.look().sightings == ()

    end(child)

    proof = ("dev-1", f"the kernel reported the exit of process {child.pid}", True)
    assert deaths(world) == [proof]
    assert deaths(world) == [proof], "the same answer again"


def test_a_zombie_counts_as_dead(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project)
    world.turn()

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert deaths(world) == [("dev-1", f"the kernel reported the exit of process {child.pid}", True)]


def test_a_process_that_is_only_missing_is_concluded_to_be_dead(world: World) -> None:
    world.record("dev-1", ProcessId(NO_PROCESS, 7, world.processes.boot))

    assert deaths(world) == [("dev-1", f"process {NO_PROCESS} no longer exists", False)]


def test_an_agent_whose_pid_belongs_to_another_process_is_certainly_dead(world: World, children: Children) -> None:
    bystander = world.identify(children.start("sleep", "600"))
    world.record("dev-1", replace(bystander, started=bystander.started - 1))

    assert deaths(world) == [("dev-1", f"pid {bystander.pid} belongs to another process now", True)]


def test_an_agent_of_an_earlier_boot_is_certainly_dead(world: World, children: Children) -> None:
    process = world.identify(children.start("sleep", "600"))
    machine, _, namespace = process.boot.split("/")
    world.record("dev-1", replace(process, boot=f"{machine}/another-boot/{namespace}"))

    assert deaths(world) == [("dev-1", "the machine was rebooted since", True)]


@pytest.mark.parametrize("changed", [0, 2], ids=["another machine", "another pid namespace"])
def test_an_agent_of_another_world_is_unknown(changed: int, world: World) -> None:
    parts = world.processes.boot.split("/")
    parts[changed] = "elsewhere"
    world.record("dev-1", ProcessId(NO_PROCESS, 7, "/".join(parts)))

    assert world.look().sightings == ()
    assert world.shown() == {"dev-1@red": ("process", UNKNOWN)}


def test_many_that_are_missing_at_once_are_looked_at_twice(world: World) -> None:
    for n in range(5):
        dead_dev(world, f"dev-{n}", n)

    assert [type(action) for action in world.turn()] == [Escalate]
    assert len(world.records()) == 5

    world.turn()
    assert world.records() == set()


def test_when_still_more_are_missing_at_the_second_look_a_third_is_needed(world: World) -> None:
    for n in range(5):
        dead_dev(world, f"dev-{n}", n)
    assert not world.look().confirmed

    dead_dev(world, "dev-5", 5)

    assert not world.look().confirmed
    assert world.look().confirmed


# -- held resources -----------------------------------------------------------------------------------------------


def dead_dev(world: World, name: str = "dev-1", number: int = 0) -> Agent:
    """Record an agent that died while no daemon ran."""
    return world.record(name, ProcessId(NO_PROCESS - number, 7, world.processes.boot))


def claimed(world: World) -> dict[str, bool]:
    """The dead agent's tasks, and whether its ownership is doubtful."""
    (dead,) = [seen for seen in world.look().sightings if seen.state is DEAD]
    return {held.task.id: held.doubt is not None for held in dead.held.tasks}


def test_dead_agent_owns_in_progress_tasks_under_its_name_in_its_list(world: World) -> None:
    dead_dev(world)
    write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    write_task(world.claude, "red", 2, owner="dev-1@red", status="in_progress")
    write_task(world.claude, "red", 3, owner="dev-1", status="completed")
    write_task(world.claude, "red", 4, owner="dev-2", status="in_progress")
    write_task(world.claude, "red", 5, owner="dev-1")
    write_task(world.claude, "blue", 1, owner="dev-1", status="in_progress")

    assert claimed(world) == {"red/1": False, "red/2": False}


def test_a_task_is_doubtful_while_a_namesake_lives_at_any_time_of_its_file(world: World, children: Children) -> None:
    dead_dev(world)
    before = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    after = write_task(world.claude, "red", 2, owner="dev-1", status="in_progress")
    children.agent("dev-1", "red", cwd=world.project)
    dated(before, -60)
    dated(after, +60)

    assert claimed(world) == {"red/1": True, "red/2": True}


def test_a_namesake_in_another_team_raises_no_doubt(world: World, children: Children) -> None:
    dead_dev(world)
    path = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    children.agent("dev-1", "blue", cwd=world.project)
    dated(path, +60)

    assert claimed(world) == {"red/1": False}


def test_a_task_file_that_cannot_be_read_keeps_the_record_until_it_can(world: World) -> None:
    dead_dev(world)
    path = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    with torn(path):
        assert world.found()["dev-1@red"].held.unreadable == (path,)
        world.turn()
    assert world.records() == {"dev-1@red"}

    world.turn()

    assert read_task(path)["status"] == "pending"
    assert world.records() == set()


def test_in_process_teammates_die_with_their_lead(world: World, children: Children) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.team("85d6cfb4-e039", mate="in-process")
    leads = write_task(world.claude, "red", 1, owner="team-lead", status="in_progress")
    mates = write_task(world.claude, "red", 2, owner="mate", status="in_progress")
    world.turn()
    assert world.records() == {"team-lead@red", "mate@red"}
    assert world.shown() == {"team-lead@red": ("session", ALIVE), "mate@red": ("team", ALIVE)}

    end(lead)
    world.turn()

    assert [read_task(path)["status"] for path in (leads, mates)] == ["pending", "pending"]


def test_while_a_leads_team_file_cannot_be_read_its_record_stands(world: World, children: Children) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    team = world.team("85d6cfb4-e039", mate="in-process")
    path = write_task(world.claude, "red", 1, owner="mate", status="in_progress")
    world.turn()

    end(lead)
    with torn(team):
        world.turn()
    world.turn()

    assert read_task(path)["status"] == "pending"


def test_lead_registered_before_its_team_keeps_its_tasks(world: World, children: Children) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.turn()
    assert world.records() == {"session-85d6cfb4"}
    world.team("85d6cfb4-e039", folder="session-85d6cfb4")
    path = write_task(world.claude, "session-85d6cfb4", 1, owner="team-lead", status="in_progress")

    end(lead)
    world.turn()

    assert read_task(path)["status"] == "pending"


def test_the_snapshot_is_newer_than_the_death(
    world: World, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.turn()
    take_snapshot = world.registry.snapshot

    def with_a_death_at_once(reread: Collection[str] = (), *, ahead: bool = False) -> ProjectSnapshot:
        snapshot = take_snapshot(reread, ahead=ahead)
        if lead.poll() is None:
            world.team("85d6cfb4-e039")
            write_task(world.claude, "red", 1, owner="team-lead", status="in_progress")
            end(lead)
        return snapshot

    monkeypatch.setattr(world.registry, "snapshot", with_a_death_at_once)

    assert claimed(world) == {"red/1": False}


def test_a_teammate_with_a_process_that_looks_in_process_for_a_moment_is_no_second_agent(
    world: World, children: Children
) -> None:
    lead = children.start("sleep", "600")
    children.agent("dev-1", "red", cwd=world.project)
    world.session(lead, "85d6cfb4-e039")
    world.team("85d6cfb4-e039", **{"dev-1": "in-process"})
    path = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    world.turn()
    assert world.shown() == {"team-lead@red": ("session", ALIVE), "dev-1@red": ("process", ALIVE)}

    end(lead)
    world.turn()

    assert world.records() == {"dev-1@red"}
    assert read_task(path)["status"] == "in_progress"


def state(world: World, **statuses: str) -> Path:
    """Write the plugin's execution state, with plans of phase 5."""
    plans = [{"id": f"05-{name[1:]}", "title": "T", "wave": 1, "status": status} for name, status in statuses.items()]
    return world.plugin(".execution-state.json", json.dumps({"phase": 5, "status": "running", "plans": plans}))


def plans(path: Path) -> dict[str, str]:
    return {plan["id"]: plan["status"] for plan in read_task(path)["plans"]}


def test_a_dead_devs_plan_is_the_one_with_its_number(world: World) -> None:
    path = state(world, p01="running", p02="running", p03="complete")
    for number in (2, 3):
        dead_dev(world, f"dev-0{number}", number)

    world.turn()

    assert plans(path) == {"05-01": "running", "05-02": "pending", "05-03": "complete"}


def test_a_plan_stays_with_a_living_dev_of_its_number(world: World, children: Children) -> None:
    path = state(world, p02="running")
    dead_dev(world, "dev-02")
    children.agent("dev-02", "red", cwd=world.project)

    world.turn()

    assert plans(path) == {"05-02": "running"}


def test_while_the_execution_state_cannot_be_read_a_dead_devs_record_stands(world: World) -> None:
    path = state(world, p02="running")
    dead_dev(world, "dev-02")
    with torn(path):
        world.turn()

    world.turn()

    assert plans(path) == {"05-02": "pending"}


def lease(world: World, owner: str) -> Path:
    said = {"resource": "src", "owner": owner, "acquired_at": "2026-11-22T20:38:34Z", "ttl_secs": 300}
    return world.plugin(".locks/src.lease", json.dumps(said))


def test_a_dead_holders_lease_is_released(world: World) -> None:
    path = lease(world, "dev-1")
    dead_dev(world)

    world.turn()

    assert not path.exists()


def test_a_lease_stays_while_an_agent_with_its_holders_name_lives(world: World, children: Children) -> None:
    path = lease(world, "dev-1")
    dead_dev(world)
    children.agent("dev-1", "blue", cwd=world.project)

    world.turn()

    assert path.exists()
    assert world.records() == {"dev-1@blue"}


# -- leftover processes -------------------------------------------------------------------------------------------


@pytest.fixture
def lifeline() -> Iterator[int]:
    """A pipe for the input of processes that must end with the test."""
    reading, writing = os.pipe()
    yield reading
    os.close(reading)
    os.close(writing)


def with_tools(lifeline: int) -> str:
    """The program of an agent that starts a tool as the client does, and has sent another process to the background."""
    return f"""
import subprocess
print("started", flush=True)
tool = subprocess.Popen(["cat"], stdin={lifeline}, start_new_session=True)
sent = subprocess.run(["sh", "-c", "cat <&{lifeline} >/dev/null & echo $!"], pass_fds=({lifeline},), stdout=-1)
print(tool.pid, int(sent.stdout), flush=True)
"""


def tools(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    assert child.stdout is not None
    tool, background = child.stdout.readline().split()
    return int(tool), int(background)


def left(world: World) -> Leftovers:
    (dead,) = [seen for seen in world.look().sightings if seen.state is DEAD]
    return dead.held.leftovers


def test_an_orphaned_tool_is_terminated_an_earlier_background_process_is_not(
    world: World, children: Children, lifeline: int
) -> None:
    child = children.agent("dev-1", "red", cwd=world.project, program=with_tools(lifeline), pass_fds=(lifeline,))
    tool, background = tools(child)
    world.turn()
    world.scanner.sample()

    end(child)

    assert [root.pid for root in left(world).roots] == [tool]
    assert background not in [process.pid for process in left(world).uncertain]
    assert left(world) == left(world), "the same answer again"


def in_a_tools_session(script: str, lifeline: int) -> str:
    """The program of an agent with a tool that is a shell script in a separate session."""
    return f"""
import subprocess
print("started", flush=True)
subprocess.Popen(["sh", "-c", {"exec 3<&0; " + script!r}], stdin={lifeline}, start_new_session=True)
"""


def test_a_process_that_a_tool_forked_before_it_exited_is_a_leftover(
    world: World, children: Children, lifeline: int, tmp_path: Path
) -> None:
    script = f"cat <&3 & echo $! > {tmp_path}/pid; until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    program = in_a_tools_session(script, lifeline)
    child = children.agent("dev-1", "red", cwd=world.project, program=program, pass_fds=(lifeline,))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the tool to fork")
    forked = int((tmp_path / "pid").read_text())
    world.turn()
    world.scanner.sample()
    (tmp_path / "go").touch()
    wait_until(lambda: parent_of(forked) != child.pid and parent_of(parent_of(forked)) != child.pid, "the tool to exit")
    world.scanner.sample()

    end(child)

    assert [root.pid for root in left(world).roots] == [forked]
    assert left(world).uncertain == ()


DAEMONS = {"setsid": "setsid cat <&3 &", "nohup": "nohup cat <&3 >/dev/null 2>&1 &"}


@pytest.mark.parametrize("how", DAEMONS)
def test_a_daemon_that_a_tool_has_started_is_reported_and_left_running(
    how: str, world: World, children: Children, lifeline: int, tmp_path: Path
) -> None:
    script = f"{DAEMONS[how]} echo $! > {tmp_path}/pid; until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    program = in_a_tools_session(script, lifeline)
    child = children.agent("dev-1", "red", cwd=world.project, program=program, pass_fds=(lifeline,))
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the tool to fork")
    daemon = int((tmp_path / "pid").read_text())
    wait_until(lambda: world.processes.backend.argv(daemon) == ["cat"], "the daemon to run its program")
    world.turn()
    world.scanner.sample()
    tool = parent_of(daemon)
    (tmp_path / "go").touch()
    wait_until(lambda: parent_of(daemon) != tool, "the tool to exit")

    end(child)

    assert left(world).roots == ()
    assert [process.pid for process in left(world).uncertain] == [daemon]


def test_the_tree_of_a_new_agent_is_read_at_once(world: World, children: Children, lifeline: int) -> None:
    child = children.agent("dev-1", "red", cwd=world.project, program=with_tools(lifeline), pass_fds=(lifeline,))
    tool, _ = tools(child)
    world.turn()

    assert world.scanner.catch_up()

    assert tool in [process.pid for process, _ in world.scanner.trees[world.identify(child)]]
    assert not world.scanner.catch_up(), "nothing is new"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_tmux_server_that_a_tool_started_is_no_leftover_nor_are_its_panes(
    world: World, children: Children, lifeline: int, tmp_path: Path
) -> None:
    script = (
        f"tmux -S {tmp_path}/socket -f /dev/null new-session -d 'sleep 600'; "
        f"tmux -S {tmp_path}/socket list-panes -F '#{{pid}} #{{pane_pid}}' > {tmp_path}/pids; exec cat <&3"
    )
    program = in_a_tools_session(script, lifeline)
    child = children.agent("dev-1", "red", cwd=world.project, program=program, pass_fds=(lifeline,))
    wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), "tmux to start")
    world.turn()
    world.scanner.sample()

    hosted = [world.processes.identify(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
    seen = {process.pid: process.started for process in hosted if process}  # a sample at the moment of the start
    world.scanner.descent._leaders[world.identify(child)] |= seen

    end(child)
    roots = [root.pid for root in left(world).roots]
    subprocess.run(["tmux", "-S", f"{tmp_path}/socket", "kill-server"], check=True)

    assert roots
    assert len(seen) == 2
    assert not seen.keys() & {*roots}


def test_a_process_tree_recorded_by_the_previous_daemon_counts(
    open_world: Callable[[], World], children: Children, lifeline: int
) -> None:
    last = open_world()
    child = children.agent("dev-1", "red", cwd=last.project, program=with_tools(lifeline), pass_fds=(lifeline,))
    tool, _ = tools(child)
    last.turn()
    last.scanner.sample()
    last.paths.trees.write_bytes(own_files.dump_trees(last.scanner.trees))
    end(child)

    assert [root.pid for root in left(open_world()).roots] == [tool]


def test_processes_never_seen_in_the_agents_tree_are_left_running(
    open_world: Callable[[], World], children: Children, lifeline: int
) -> None:
    last = open_world()
    child = children.agent("dev-1", "red", cwd=last.project, program=with_tools(lifeline), pass_fds=(lifeline,))
    tools(child)
    last.turn()
    last.paths.trees.write_bytes(b"{garbage")
    end(child)

    assert left(open_world()) == Leftovers()


# -- the plugin's registry files ------------------------------------------------------------------------------------


def test_a_dead_agent_is_struck_from_the_plugins_books(world: World, children: Children) -> None:
    child, other = (children.agent(f"dev-{n}", "red", cwd=world.project) for n in (1, 2))
    pids = world.plugin(".agent-pids", f"{child.pid}\n{other.pid}\n")
    panes = world.plugin(".agent-panes", f"{child.pid} %1\n{other.pid} %2\n")
    health = world.plugin(".agent-health/dev.json", json.dumps({"pid": child.pid, "role": "dev"}))
    world.turn()

    end(child)
    world.turn()

    assert pids.read_text() == f"{other.pid}\n"
    assert panes.read_text() == f"{other.pid} %2\n"
    assert not health.exists()


def test_the_living_one_of_two_agents_of_one_role_keeps_the_health_file(world: World, children: Children) -> None:
    first, second = (children.agent(f"dev-{n}", "red", cwd=world.project) for n in (1, 2))
    health = world.plugin(".agent-health/dev.json", json.dumps({"pid": second.pid, "role": "dev"}))
    world.turn()
    assert world.records() == {"dev-1@red", "dev-2@red"}

    end(first)
    world.turn()

    assert world.records() == {"dev-2@red"}
    assert read_task(health)["pid"] == second.pid


def test_pids_in_the_plugins_files_that_no_process_has_stay(world: World, children: Children) -> None:
    """Such pids may belong to agents in another pid namespace."""
    other = children.start("sleep", "600")
    pids = world.plugin(".agent-pids", f"{NO_PROCESS}\n{other.pid}\njunk\n")
    health = world.plugin(".agent-health/qa.json", json.dumps({"pid": str(NO_PROCESS), "role": "qa"}))
    before = pids.read_bytes(), health.read_bytes()

    (alert,) = world.turn()

    assert (pids.read_bytes(), health.read_bytes()) == before
    assert isinstance(alert, Escalate)
    assert alert.evidence == {"pids": [NO_PROCESS]}


def test_an_agent_counts_as_idle_from_three_idle_turns_on(world: World, children: Children) -> None:
    pid = children.start("sleep", "600").pid
    for role, count in (("dev", 2), ("qa", 3)):
        world.plugin(f".agent-health/{role}.json", json.dumps({"pid": pid, "role": role, "idle_count": count}))

    assert world.look().idle == (("qa", 3),)


def marks(world: World, role: str, count: int) -> Callable[[], tuple[str | None, str | None]]:
    paths = world.plugin(".active-agent", role), world.plugin(".active-agent-count", str(count))

    def read() -> tuple[str | None, str | None]:
        first, second = (path.read_text() if path.exists() else None for path in paths)
        return first, second

    return read


def test_with_the_last_agent_the_plugins_marks_go(world: World) -> None:
    read = marks(world, "dev", 1)
    dead_dev(world)

    world.turn()

    assert read() == (None, None)


def test_the_plugins_marks_stay_while_its_files_name_unknown_pids(world: World) -> None:
    """Such pids may belong to agents in a container."""
    read = marks(world, "dev", 1)
    world.plugin(".agent-pids", f"{NO_PROCESS - 1}\n")
    dead_dev(world)

    world.turn()

    assert read() == ("dev", "1")


def test_the_plugins_marks_follow_the_living_agents(world: World, children: Children) -> None:
    dev, qa = (children.agent(name, "red", cwd=world.project) for name in ("dev-1", "qa"))
    world.plugin(".agent-pids", f"{dev.pid}\n{qa.pid}\n")
    read = marks(world, "dev", 2)
    world.turn()

    end(dev)
    world.turn()

    assert read() == ("qa", "1")


def lost_session(world: World, children: Children, **more: object) -> Path:
    """The file of a session that was killed while no supervisor ran, and a task of it."""
    child = children.start("sleep", "600")
    process = world.identify(child)
    machine, _, namespace = process.boot.split("/")
    domain = {"pidDomain": f"linux:{machine}:pid:[{namespace}]"}
    world.session(child, "85d6cfb4-e039", **{**domain, **more})
    end(child)
    return write_task(world.claude, "85d6cfb4-e039", 1, owner=None, status="in_progress")


def test_a_session_that_ended_unseen_is_recovered_by_its_file(world: World, children: Children) -> None:
    task = lost_session(world, children)

    world.turn()
    world.turn()

    assert read_task(task)["status"] == "pending"
    assert world.records() == set()
    assert world.turn() == [], "the client's file stays, and changes nothing more"


@pytest.mark.parametrize(
    "why", ["no pid domain", "another pid namespace", "of an earlier boot", "no local file system"]
)
def test_a_session_file_that_proves_nothing_is_no_death(
    why: str, world: World, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    domains: dict[str, object] = {"no pid domain": None, "another pid namespace": "linux:x:pid:[1]"}
    task = lost_session(world, children, **({"pidDomain": domains[why]} if why in domains else {}))
    if why == "of an earlier boot":
        for path in (world.claude / "sessions").iterdir():
            os.utime(path, (1.0, 1.0))
    if why == "no local file system":
        monkeypatch.setattr("yolo_supervisor.inventory.claude_homes.is_local", lambda _: False)

    world.turn()
    world.turn()

    assert read_task(task)["status"] == "in_progress"


def test_a_record_of_an_earlier_boot_proves_nothing_on_a_shared_file_system(
    world: World, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _, namespace = world.processes.boot.split("/")
    world.record("dev-1", ProcessId(4711, 1, f"{machine}/another-boot/{namespace}"))
    task = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    monkeypatch.setattr("yolo_supervisor.watchers.agents.is_local", lambda _: False)

    world.turn()

    assert read_task(task)["status"] == "in_progress"
    assert world.shown() == {"dev-1@red": ("process", Liveness.UNKNOWN)}


def test_a_better_source_renames_an_agent_for_as_long_as_it_lives(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project)
    process = world.identify(child)
    worse = Agent(
        id=f"general-purpose#{child.pid}", name="general-purpose", role="dev", team=None, source="hook", since=EPOCH,
        process=process, pid=child.pid, session="85d6cfb4-e039", home=world.registry.records_folder_id(),
    )  # fmt: skip
    (world.paths.agents / own_files.agent_file(worse)).write_bytes(own_files.dump_agent(worse))
    task = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")

    world.turn()
    assert world.records() == {"dev-1@red"}
    end(child)
    world.turn()

    assert read_task(task)["status"] == "pending"
    assert world.records() == set()


def test_a_sessions_tasks_are_found_after_the_client_has_removed_its_files(world: World, children: Children) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.team("85d6cfb4-e039", mate="in-process")
    own = write_task(world.claude, "red", 1, owner=None, status="in_progress")
    mates = write_task(world.claude, "red", 2, owner="mate", status="in_progress")
    world.turn()

    shutil.rmtree(world.claude / "teams")
    shutil.rmtree(world.claude / "sessions")
    world.turn()
    end(lead)
    world.turn()

    assert [read_task(path)["status"] for path in (own, mates)] == ["pending", "pending"]


def test_the_task_list_of_an_earlier_session_stays_an_agents(world: World, children: Children) -> None:
    session = children.start("sleep", "600")
    world.session(session, "11111111-aaaa")
    world.turn()
    old = write_task(world.claude, "11111111-aaaa", 1, owner=None, status="in_progress")
    world.session(session, "22222222-bbbb")
    world.turn()

    end(session)
    world.turn()

    assert read_task(old)["status"] == "pending"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: inotify")
def test_the_task_list_that_a_sessions_process_watches_is_its_own(world: World, children: Children) -> None:
    task = write_task(world.claude, "session-22222222", 1, owner=None, status="in_progress")
    session = children.python(watching(task.parent))
    world.session(session, "11111111-aaaa")
    world.turn()

    end(session)
    world.turn()

    assert read_task(task)["status"] == "pending"


def test_a_task_without_owner_stays_with_a_session_that_lives(world: World, children: Children) -> None:
    lead, other = children.start("sleep", "600"), children.agent("dev-1", "red", cwd=world.project)
    world.session(lead, "85d6cfb4-e039")
    world.team("85d6cfb4-e039")
    task = write_task(world.claude, "red", 1, owner=None, status="in_progress")
    world.turn()

    end(other)
    world.turn()

    assert read_task(task)["status"] == "in_progress"


def test_the_task_list_that_the_environment_names_is_the_agents(world: World, children: Children) -> None:
    named = {**os.environ, "CLAUDE_CODE_TASK_LIST_ID": "board"}
    child = children.agent("dev-1", "red", cwd=world.project, env=named)
    task = write_task(world.claude, "board", 1, owner="dev-1", status="in_progress")
    world.turn()

    end(child)
    world.turn()

    assert read_task(task)["status"] == "pending"


def test_a_teammate_that_looked_in_process_while_it_started_is_no_namesake_of_itself(
    world: World, children: Children
) -> None:
    lead = children.start("sleep", "600")
    world.session(lead, "85d6cfb4-e039")
    world.team("85d6cfb4-e039", **{"dev-1": "in-process"})
    world.turn()
    assert world.records() == {"team-lead@red", "dev-1@red"}
    child = children.agent("dev-1", "red", cwd=world.project)
    config = world.team("85d6cfb4-e039", **{"dev-1": "tmux"})
    config.write_text(config.read_text().replace('"in-process"', '"%1"'))
    task = write_task(world.claude, "red", 1, owner="dev-1", status="in_progress")
    world.look()

    end(child)
    world.turn()
    world.turn()

    assert read_task(task)["status"] == "pending"
    assert world.records() == {"team-lead@red"}


def test_a_renamed_agent_can_be_forgotten_by_its_new_id(world: World, children: Children) -> None:
    child = children.agent("dev-1", "red", cwd=world.project)
    process = world.identify(child)
    worse = Agent(
        id=f"general-purpose#{child.pid}", name="general-purpose", role="dev", team=None, source="hook", since=EPOCH,
        process=process, pid=child.pid, home=world.registry.records_folder_id(),
    )  # fmt: skip
    (world.paths.agents / own_files.agent_file(worse)).write_bytes(own_files.dump_agent(worse))
    world.turn()
    assert world.records() == {"dev-1@red"}

    forgotten = Cli(world.project)("agent", "forget", "dev-1@red")

    assert (forgotten.returncode, world.records()) == (0, set())


class SteppedClock(SystemClock):
    """A monotonic clock that moves only when the test advances it."""

    s = 1000.0

    def awake(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return self.s


@pytest.fixture
def stepped(world: World) -> SteppedClock:
    world.store.clock = clock = SteppedClock()
    return clock


def hosted_task(world: World, children: Children, daemon: subprocess.Popen[bytes]) -> Path:
    """A task of a session under the client's own daemon that has just been killed."""
    started = world.identify(daemon).started
    (world.claude / "daemon.lock").write_text(json.dumps({"pid": daemon.pid, "procStart": str(started)}))
    session = children.start("sleep", "600")
    world.session(session, "85d6cfb4-e039", kind="bg")
    task = write_task(world.claude, "85d6cfb4-e039", 1, owner=None, status="in_progress")
    world.turn()
    end(session)
    return task


def test_a_crashed_session_keeps_its_task_while_its_client_may_resume_it(
    world: World, children: Children, stepped: SteppedClock
) -> None:
    task = hosted_task(world, children, children.start("sleep", "600"))

    world.turn()
    stepped.s += 29.9
    world.turn()
    assert read_task(task)["status"] == "in_progress"

    stepped.s += 0.1
    world.turn()
    assert read_task(task)["status"] == "pending"
    assert world.records() == set()


def test_a_resumed_session_goes_on_with_its_task(world: World, children: Children, stepped: SteppedClock) -> None:
    task = hosted_task(world, children, children.start("sleep", "600"))
    world.turn()

    world.session(children.start("sleep", "600"), "85d6cfb4-e039", kind="bg")
    world.turn()
    stepped.s += 60.0
    world.turn()

    assert read_task(task)["status"] == "in_progress"
    assert world.records() == {"session-85d6cfb4"}


def test_a_session_that_crashes_again_soon_after_it_was_resumed_keeps_its_task(
    world: World, children: Children, stepped: SteppedClock
) -> None:
    task = hosted_task(world, children, children.start("sleep", "600"))
    world.turn()
    successor = children.start("sleep", "600")
    world.session(successor, "85d6cfb4-e039", kind="bg")
    stepped.s += 15.0
    world.turn()
    end(successor)
    world.turn()

    stepped.s += 15.0
    world.turn()
    assert read_task(task)["status"] == "in_progress"

    stepped.s += 15.0
    world.turn()
    assert read_task(task)["status"] == "pending"
    assert world.records() == set()


def test_no_client_resumes_a_session_whose_daemon_is_dead(
    world: World, children: Children, stepped: SteppedClock
) -> None:
    daemon = children.start("sleep", "600")
    task = hosted_task(world, children, daemon)
    end(daemon)

    world.turn()

    assert read_task(task)["status"] == "pending"


def test_a_teammate_that_has_just_joined_is_not_recorded_as_in_process_yet(
    world: World, children: Children, stepped: SteppedClock
) -> None:
    world.session(children.start("sleep", "600"), "85d6cfb4-e039")
    path = world.team("85d6cfb4-e039", mate="in-process")
    path.write_text(path.read_text().replace("1795379581270", str(int(time.time() * 1000))))

    world.turn()
    stepped.s += 4.9
    world.turn()
    assert world.records() == {"team-lead@red"}
    assert world.shown().keys() == {"team-lead@red", "mate@red"}

    stepped.s += 0.1
    world.turn()
    assert world.records() == {"team-lead@red", "mate@red"}
