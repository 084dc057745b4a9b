"""Signs of work in the linked git work tree of one agent."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from yolo_supervisor.formats import claude
from yolo_supervisor.inventory import work_trees
from yolo_supervisor.inventory.activity import ActivityReader
from yolo_supervisor.inventory.process_scan import AgentProcess, ProcessScanner
from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.project_snapshot import ProjectSnapshot, Records, Teammates
from yolo_supervisor.models import Agent, Liveness, ProcessId, Task
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.git_layout import linked_tree
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

SINCE = datetime(2026, 11, 29, tzinfo=UTC)


class Repository:
    """A repository with linked work trees, as git lays it out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / ".git").mkdir(parents=True)

    def git_dir(self, name: str) -> Path:
        return self.root / ".git" / "worktrees" / name

    def add(self, name: str) -> Path:
        tree, git_dir = self.root.parent / name, self.git_dir(name)
        (git_dir / "logs").mkdir(parents=True)
        (git_dir / "commondir").write_text("../..\n")
        (git_dir / "gitdir").write_text(f"{tree / '.git'}\n")
        for file in ("HEAD", "index", "logs/HEAD"):
            (git_dir / file).write_text("before")
        (tree / "src").mkdir(parents=True)
        (tree / ".git").write_text(f"gitdir: {git_dir}\n")
        return tree


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "shop")


@pytest.mark.parametrize("file", ["index", "HEAD", "logs/HEAD", "COMMIT_EDITMSG"])
def test_every_change_by_git_in_the_agents_work_tree_is_a_sign(repository: Repository, file: str) -> None:
    tree = repository.add("dev-1")
    before = work_trees.trace([tree / "src"], [])
    assert work_trees.trace([tree / "src"], []) == before

    (repository.git_dir("dev-1") / file).write_text("changed by a commit")

    assert work_trees.trace([tree / "src"], []) != before


def test_a_work_tree_that_others_share_is_no_sign(repository: Repository, tmp_path: Path) -> None:
    tree = repository.add("dev-1")
    (tmp_path / "link").symlink_to(tree)

    assert work_trees.trace([tree], [repository.root, repository.add("dev-10")])
    for other in (tree, tree / "src", tmp_path / "link"):
        assert work_trees.trace([tree], [other]) == ()


def test_only_a_linked_work_tree_is_one_agents(repository: Repository, tmp_path: Path) -> None:
    (submodule := tmp_path / "shop" / "sub").mkdir()
    (repository.root / ".git" / "modules" / "sub").mkdir(parents=True)
    (submodule / ".git").write_text("gitdir: ../.git/modules/sub\n")
    (junk := tmp_path / "junk").mkdir()
    (junk / ".git").write_bytes(b"gitdir: \xff\0")
    os.mkfifo(pipe := tmp_path / "pipe.git")
    (blocked := tmp_path / "blocked").mkdir()
    (blocked / ".git").symlink_to(pipe)

    assert [linked_tree(folder) for folder in (repository.root, submodule, junk, blocked)] == [None] * 4
    assert linked_tree(repository.add("dev-1") / "src") is not None
    assert work_trees.trace([repository.root, submodule, junk, blocked, "src"], []) == ()


class Look:
    """The agents of a project as one look finds them."""

    def __init__(self, project: Path) -> None:
        (project / ".yolo-planning").mkdir()
        self.scanner = ProcessScanner(Processes(backend()))
        self.reader = ActivityReader(Paths(project), ProjectFolders(project), self.scanner)
        self.teams: tuple[claude.Team, ...] = ()

    def works_in(self, pid: int, folder: Path) -> Agent:
        process = ProcessId(pid, 1, "elsewhere")
        self.scanner.agents[process] = AgentProcess(
            process=process, flags=None, folder=folder, claude_dir=None, pane=None
        )
        return Agent(id=f"dev-{pid}", name="dev", role="dev", team="t", source="tmux", since=SINCE, process=process)

    @property
    def snapshot(self) -> ProjectSnapshot:
        return ProjectSnapshot(
            records=Records(by_name={}), teammates=Teammates(), homes=(), sessions=(), teams=self.teams,
            unreadable_teams=frozenset(), hook_files=(), health_files=(), listed_pids=(),
        )  # fmt: skip

    def trace(self, agent: Agent) -> tuple[object, ...]:
        return self.reader.read(agent, Liveness.ALIVE, self.snapshot).trace


def test_a_commit_in_its_work_tree_is_a_sign_of_work_of_this_agent_only(repository: Repository) -> None:
    look = Look(repository.root)
    agent, other = look.works_in(2, repository.add("dev-2")), look.works_in(3, repository.add("dev-3"))
    before = look.trace(agent), look.trace(other)

    (repository.git_dir("dev-2") / "index").write_text("staged")

    assert look.trace(agent) != before[0]
    assert look.trace(other) == before[1]


def test_a_commit_in_a_shared_work_tree_is_no_sign_of_work(repository: Repository) -> None:
    look, tree = Look(repository.root), repository.add("both")
    agents = [look.works_in(pid, tree) for pid in (2, 3)]
    before = [look.trace(agent) for agent in agents]

    (repository.git_dir("both") / "index").write_text("staged")

    assert [look.trace(agent) for agent in agents] == before


def test_teammates_inside_a_process_have_the_work_trees_of_the_teams_file(repository: Repository) -> None:
    look = Look(repository.root)
    lead = look.works_in(2, repository.root)
    mates = tuple(
        claude.Member(f"{name}@t", name, None, str(repository.add(name)), "in-process", "in-process")
        for name in ("ann", "bob")
    )
    look.teams = (claude.Team("t", "team-lead@t", None, mates),)
    ann, bob = (
        Agent(id=mate.agent_id, name=mate.name, role="dev", team="t", source="team", since=SINCE, process=lead.process)
        for mate in mates
    )
    before = look.trace(ann), look.trace(bob)

    (repository.git_dir("ann") / "logs" / "HEAD").write_text("committed")

    assert (look.trace(ann) != before[0], look.trace(bob) == before[1]) == (True, True)


def test_a_commit_is_a_sign_of_an_unknown_owner(repository: Repository) -> None:
    look, tree = Look(repository.root), repository.add("dev-1")
    member = claude.Member("dev-1@t", "dev-1", None, str(tree), "%1", "tmux")
    look.teams = (claude.Team("t", "team-lead@t", None, (member,)),)
    task = Task(list="t", number="1", status="in_progress", owner="dev-1", path=repository.root / "1.json")
    before = look.reader.trace_of_unknown(task, look.snapshot)

    (repository.git_dir("dev-1") / "HEAD").write_text("ref: refs/heads/next")

    assert look.reader.trace_of_unknown(task, look.snapshot) != before
