"""The task lists that are tied to a project, by a snapshot and by single agents."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.project import write_task
from yolo_supervisor.formats import claude
from yolo_supervisor.inventory.project_snapshot import LiveSession, ProjectSnapshot, Records, Teammates
from yolo_supervisor.inventory.task_lists import TaskLists
from yolo_supervisor.models import Agent, ProcessId
from yolo_supervisor.store.paths import Paths

EPOCH = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
SESSION = "85d6cfb4-e039"
NAMES = ("red", "blue", SESSION, "session-85d6cfb4", "of-no-one")


def agent(**facts: Any) -> Agent:
    return Agent(
        **{"id": "dev-1", "name": "dev-1", "role": "dev", "team": None, "source": "x", "since": EPOCH, **facts}
    )


def snapshot_of(home: Path, *recorded: Agent, **facts: Any) -> ProjectSnapshot:
    empty: dict[str, Any] = {
        "records": Records(by_name={each.id: each for each in recorded}),
        "teammates": Teammates(), "homes": (home,), "sessions": (), "teams": (), "unreadable_teams": frozenset(),
        "hook_files": (), "health_files": (), "listed_pids": (),
    }  # fmt: skip
    return ProjectSnapshot(**{**empty, **facts})


def session(home: Path, in_project: bool) -> LiveSession:
    client_session = claude.Session(400, SESSION, "/p", "7", None, "idle")
    return LiveSession(session=client_session, process=ProcessId(400, 7, "here"), home=home, in_project=in_project)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in NAMES:
        write_task(tmp_path, name, 1)
    return tmp_path


@pytest.fixture
def lists(tmp_path: Path) -> TaskLists:
    return TaskLists(Paths(tmp_path / "project"))


def names_of(folders: list[Path]) -> set[str]:
    return {folder.name for folder in folders}


def test_a_list_is_tied_by_a_team_an_agent_or_a_session_of_the_project(lists: TaskLists, home: Path) -> None:
    team = claude.Team("blue", None, None, ())
    sessions = (session(home, in_project=True),)

    assert names_of(lists.tied(snapshot_of(home))) == set()
    assert names_of(lists.tied(snapshot_of(home, teams=(team,)))) == {"blue"}
    assert names_of(lists.tied(snapshot_of(home, agent(team="red")))) == {"red"}
    assert names_of(lists.tied(snapshot_of(home, sessions=sessions))) == {SESSION, "session-85d6cfb4"}


def test_a_session_elsewhere_ties_no_list(lists: TaskLists, home: Path) -> None:
    assert lists.tied(snapshot_of(home, sessions=(session(home, in_project=False),))) == []


@pytest.mark.parametrize("team", ["", ".", "..", "../tasks/red", ".hidden", "/"])
def test_a_name_that_is_no_plain_name_ties_no_list(team: str, lists: TaskLists, home: Path) -> None:
    (home / "tasks" / ".hidden").mkdir()

    assert lists.of(agent(team=team, session="x"), snapshot_of(home)) == []


@pytest.mark.parametrize("worker", [agent(), agent(team="red"), agent(session=SESSION), agent(team="x")])
def test_an_agent_works_on_the_lists_that_it_has(worker: Agent, lists: TaskLists, home: Path, tmp_path: Path) -> None:
    snapshot = snapshot_of(home, worker, teams=(claude.Team("blue", None, None, ()),))
    folders = [home / "tasks" / name for name in NAMES]

    assert [folder for folder in folders if lists.works_on(worker, folder, snapshot)] == [
        folder for folder in folders if folder in lists.of(worker, snapshot)
    ]


def test_the_lists_of_an_agents_own_home_are_its_lists_too(lists: TaskLists, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    folder = write_task(other, "red", 1).parent
    worker = agent(team="red")

    assert folder not in lists.of(worker, snapshot_of(home))
    assert not lists.works_on(worker, folder, snapshot_of(home))
    worker = replace(worker, claude_dir=other)
    assert folder in lists.of(worker, snapshot_of(home))
    assert lists.works_on(worker, folder, snapshot_of(home))
