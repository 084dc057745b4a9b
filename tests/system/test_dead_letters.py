"""Tasks that kept failing: set aside with their story, out of every agent's reach, until a person decides."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.daemon import QUICK
from support.project import given_back, read_task, write_task, write_team
from support.team import Team
from support.wait import wait_until
from yolo_supervisor.actions.base import Edit
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config, TasksConfig
from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.tasks import SET_ASIDE
from yolo_supervisor.models import Task
from yolo_supervisor.policy.retry import RetryPolicy, requeue_or_dead_letter
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, Store


@pytest.fixture
def cli(cli_of_teams: Cli) -> Cli:
    return cli_of_teams


def fail(project: Path, path: Path, steps: int = 2) -> None:
    """Let the task's only attempt fail, and apply the first ``steps`` actions of the decision, as if killed then."""
    data = path.read_bytes()
    if path.name == execution_state.STATE_FILE:
        (found, *_) = execution_state.plans(data, path) or []
    else:
        task = claude.task(data, path.parent.name, path)
        assert task is not None
        found = task
    with closing(Store(project)) as store:
        store.open()
        queue = RetryPolicy(Config(tasks=TasksConfig(max_attempts=1)), store, SystemClock(), "here")
        letters = store.paths.folder / "dead-letters"
        actions = requeue_or_dead_letter(found, queue.decide(found, "died"), letters, "its owner dev-1 is dead", {})
        for action in actions[:steps]:
            assert isinstance(action, Edit)
            assert store.commit(action, "agents") is Outcome.DONE


def dead_letter(project: Path, claude_home: Path, team: str = "red", number: int = 3) -> Path:
    path = write_task(claude_home, team, number, "dev-1", "in_progress", metadata={"wave": 1})
    fail(project, path)
    return path


def plan_letter(project: Path) -> Path:
    path = project / ".yolo-planning" / execution_state.STATE_FILE
    path.write_text(json.dumps({"plans": [{"id": "05-01", "status": "running"}, {"id": "05-02", "status": "pending"}]}))
    fail(project, path)
    return path


def ids(cli: Cli) -> list[str]:
    """The dead letters; status counts the same."""
    found = [each["id"] for each in cli.json("dead-letter", "list")["dead_letters"]]
    (project,) = cli.json("status")["projects"]
    assert project["dead_letters"] == len(found)
    return found


def letters(project: Path) -> list[Path]:
    return list((Paths(project).folder / "dead-letters").iterdir())


def did(project: Path) -> list[str]:
    return [each["action"] for each in history(Paths(project).journal)]


# -- a dead letter ---------------------------------------------------------------------------------------------------


def test_a_dead_letter_stays_listed_and_cannot_be_claimed_or_requeued(cli: Cli, claude_home: Path) -> None:
    path = dead_letter(cli.folder, claude_home)
    write_task(claude_home, "red", 4, blockedBy=["3"])
    before = path.read_bytes()
    said = read_task(path)
    assert (said["status"], said["owner"], said["metadata"]) == ("pending", SET_ASIDE, {"wave": 1})
    assert ids(cli) == ["red/3"]

    answer = cli.json("task", "claim", "3", "--owner", "dev-2", code=1)
    assert "it is a dead letter: attempt 1 of 1 has failed" in answer["reason"]
    assert cli("task", "requeue", "3").returncode == 1
    assert cli("task", "claim", "4", "--owner", "dev-2").returncode == 1
    assert path.read_bytes() == before


def test_a_dead_letter_cannot_be_finished_by_the_token_of_its_last_claim(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3)
    token = str(cli.json("task", "claim", "3", "--owner", "dev-1")["token"])
    fail(cli.folder, path)
    before = path.read_bytes()

    assert cli("task", "heartbeat", "3", "--owner", "dev-1", "--token", token).returncode == 1
    assert cli("task", "done", "3", "--owner", "dev-1", "--token", token).returncode == 1
    assert path.read_bytes() == before
    (task,) = cli.json("task", "list")["tasks"]
    assert task["token"] is None


def test_a_dead_letter_holds_the_task_and_its_history(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)
    cli("task", "claim", "3", "--owner", "dev-1")
    fail(cli.folder, claude_home / "tasks" / "red" / "3.json")

    story = cli.json("dead-letter", "show", "3")
    assert (story["id"], story["subject"], story["last_owner"]) == ("red/3", "Fix bug", "dev-1")
    assert story["why"] == "attempt 1 of 1 has failed: its owner dev-1 is dead"
    assert [each["action"] for each in story["story"]] == ["claimed", "dead_lettered"]
    text = cli("dead-letter", "show", "red/3").stdout
    assert "dev-1 claimed it" in text
    assert "its owner dev-1 is dead" in text


@pytest.mark.sampled(4)
@pytest.mark.parametrize("word", ["show", "redrive", "drop"])
@pytest.mark.parametrize("ident", ["", "../../x", "red", "red/", "7", "blue/3"])
def test_an_unknown_dead_letter_is_not_found(cli: Cli, claude_home: Path, word: str, ident: str) -> None:
    path = dead_letter(cli.folder, claude_home)
    before = path.read_bytes()

    result = cli("dead-letter", word, ident)

    assert result.returncode == 1
    assert "no dead letter" in result.stderr
    assert path.read_bytes() == before


def test_an_ambiguous_short_name_of_a_dead_letter_is_reported(cli: Cli, claude_home: Path) -> None:
    for team in ("red", "blue"):
        dead_letter(cli.folder, claude_home, team)

    result = cli("dead-letter", "redrive", "3")

    assert result.returncode == 1
    assert "blue/3 or red/3" in result.stderr
    assert ids(cli) == ["blue/3", "red/3"]


def test_an_empty_list_of_dead_letters_is_reported(cli: Cli) -> None:
    assert ids(cli) == []
    assert cli("dead-letter", "list").stdout == f"no dead letters in {cli.folder}\n"


# -- redrive ---------------------------------------------------------------------------------------------------------


def test_a_redriven_task_has_all_its_attempts_again_and_is_claimed_and_finished(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3, "dev-1", "in_progress")
    assert cli("task", "requeue", "3").returncode == 0
    path = dead_letter(cli.folder, claude_home)
    (task,) = cli.json("task", "list")["tasks"]
    assert task["attempts"] == 1

    assert cli.json("dead-letter", "redrive", "3") == {"result": "redriven", "id": "red/3"}

    assert given_back(path)
    assert read_task(path)["metadata"] == {"wave": 1}
    assert ids(cli) == []
    assert not letters(cli.folder)
    (task,) = cli.json("task", "list")["tasks"]
    assert (task["attempts"], task["token"]) == (0, None)
    token = str(cli.json("task", "claim", "3", "--owner", "dev-2")["token"])
    assert cli("task", "done", "3", "--owner", "dev-2", "--token", token).returncode == 0


def test_a_plan_is_set_aside_as_failed_and_redriven(cli: Cli) -> None:
    path = plan_letter(cli.folder)
    first, second = json.loads(path.read_text())["plans"]
    assert first == {"id": "05-01", "status": "failed", "owner": SET_ASIDE}
    assert ids(cli) == ["execution-state/05-01"]

    assert cli("dead-letter", "redrive", "05-01").returncode == 0

    assert json.loads(path.read_text())["plans"] == [{"id": "05-01", "status": "pending"}, second]
    assert ids(cli) == []


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("owner", "status"), [("dev-2", "in_progress"), ("dev-2", "pending"), (None, "pending"),
                                               ("dev-2", "completed"), (SET_ASIDE, "completed")])  # fmt: skip
@pytest.mark.parametrize("word", ["redrive", "drop"])
def test_changes_by_the_lead_to_a_dead_letter_stand(
    cli: Cli, claude_home: Path, word: str, owner: str | None, status: str
) -> None:
    dead_letter(cli.folder, claude_home)
    path = write_task(claude_home, "red", 3, owner, status)
    before = path.read_bytes()

    result = cli("dead-letter", word, "3")

    assert result.returncode == 1
    assert "the task was not changed" in result.stderr
    assert path.read_bytes() == before
    assert ids(cli) == []
    assert not letters(cli.folder)


def test_a_dead_letter_freed_by_the_lead_is_claimable_once_its_report_is_removed(cli: Cli, claude_home: Path) -> None:
    dead_letter(cli.folder, claude_home)
    write_task(claude_home, "red", 3)
    assert cli("dead-letter", "redrive", "3").returncode == 1

    assert cli("task", "claim", "3", "--owner", "dev-2").returncode == 0


def test_a_dead_letter_of_a_deleted_list_is_removed(cli: Cli, claude_home: Path) -> None:
    path = dead_letter(cli.folder, claude_home)
    path.unlink()
    path.parent.rmdir()

    assert cli("dead-letter", "redrive", "3").returncode == 1
    assert not path.parent.exists()
    assert ids(cli) == []


# -- drop ------------------------------------------------------------------------------------------------------------


def test_a_dropped_task_is_gone_and_the_journal_keeps_its_content(cli: Cli, claude_home: Path) -> None:
    path = dead_letter(cli.folder, claude_home)
    write_task(claude_home, "red", 4, blockedBy=["3"])
    before, story = path.read_text(), letters(cli.folder)[0].read_text()

    assert cli.json("dead-letter", "drop", "3") == {"result": "dropped", "id": "red/3"}

    assert not path.exists()
    assert ids(cli) == []
    kept = [
        json.loads(line).get("write", {}).get("removed") for line in Paths(cli.folder).journal.read_text().splitlines()
    ]
    assert before in kept
    assert story in kept
    assert "dropped" in did(cli.folder)
    assert cli("task", "claim", "4", "--owner", "dev-2").returncode == 0, "no task waits for it any more"


def test_a_dropped_plan_stays_in_the_execution_state_as_failed(cli: Cli) -> None:
    path = plan_letter(cli.folder)
    before = path.read_bytes()

    assert cli("dead-letter", "drop", "05-01").returncode == 0

    assert path.read_bytes() == before
    assert ids(cli) == []


# -- interruptions ---------------------------------------------------------------------------------------------------


def test_a_task_completed_at_the_last_moment_is_no_dead_letter(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3, "dev-1", "in_progress")
    fail(cli.folder, path, steps=1)
    write_task(claude_home, "red", 3, "dev-1", "completed")

    assert ids(cli) == []


def test_a_task_that_fails_again_after_a_failed_dead_letter_gets_the_new_history(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3, "dev-1", "in_progress")
    fail(cli.folder, path, steps=1)
    write_task(claude_home, "red", 3, "dev-2", "in_progress")
    found = Task(list="red", number="3", status="in_progress", owner="dev-2", path=path)
    with closing(Store(cli.folder)) as store:
        store.open()
        queue = RetryPolicy(Config(tasks=TasksConfig(max_attempts=1)), store, SystemClock(), "here")
        folder = store.paths.folder / "dead-letters"
        for action in requeue_or_dead_letter(found, queue.decide(found, "died"), folder, "its owner dev-2 is dead", {}):
            store.commit(action, "agents")

    assert cli.json("dead-letter", "show", "3")["last_owner"] == "dev-2"


def test_a_damaged_dead_letter_affects_no_other_and_its_task_is_listed(cli: Cli, claude_home: Path) -> None:
    for team in ("red", "blue"):
        dead_letter(cli.folder, claude_home, team)
    (red,) = (path for path in letters(cli.folder) if "red" in path.name)
    red.write_text('{"id": "red')

    assert ids(cli) == ["blue/3", "red/3"]


def test_a_task_that_was_set_aside_outlasts_the_rotation_of_the_journal(cli: Cli, claude_home: Path) -> None:
    dead_letter(cli.folder, claude_home)
    with closing(Store(cli.folder)) as store:
        store.open()
        for _ in range(10):
            store.journal.rotate()

    assert ids(cli) == ["red/3"]
    assert "it is a dead letter" in cli("task", "claim", "3", "--owner", "dev-2").stderr


# -- all together ----------------------------------------------------------------------------------------------------


def test_a_task_that_three_agents_died_of_is_set_aside_redriven_claimed_and_finished(team: Team) -> None:
    path = write_task(team.claude, "red", 3)
    write_team(team.claude, "red", team.project)
    team.supervise(QUICK + "[tasks]\npoison_s = 0\nbackoff_s = 0.2\n")
    running = team.running

    def dies(name: str) -> None:
        child = team.agent(name)
        wait_until(lambda: team.cli("task", "claim", "3", "--owner", name).returncode == 0, "it to be claimed")
        child.kill()
        team.wait_healed(name)

    for name in ("dev-1", "dev-2"):
        dies(name)
        assert given_back(path)
    dies("dev-3")

    assert read_task(path)["owner"] == SET_ASIDE
    assert team.status()["dead_letters"] == 1
    assert [each["evidence"]["attempt"] for each in running.did("requeued", "red/3")] == [1, 2]
    (set_aside,) = running.did("dead_lettered", "red/3")
    assert set_aside["reason"] == "attempt 3 of 3 has failed: its owner dev-3 is dead"
    assert team.cli("task", "claim", "3", "--owner", "dev-4").returncode == 1

    assert team.cli("dead-letter", "redrive", "3").returncode == 0
    token = team.cli.json("task", "claim", "3", "--owner", "dev-4")["token"]
    claims: list[dict[str, Any]] = running.did("claimed", "red/3")
    assert [each["evidence"]["owner"] for each in claims] == ["dev-1", "dev-2", "dev-3", "dev-4"]
    assert token == claims[-1]["seq"]
    assert team.cli("task", "done", "3", "--owner", "dev-4", "--token", str(token)).returncode == 0
    assert tasks.state(Task(list="red", number="3", status="", owner=None, path=path), path.read_bytes()) == (
        "completed", "dev-4",
    )  # fmt: skip
    assert team.status()["dead_letters"] == 0
