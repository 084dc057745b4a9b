"""``task``, and tasks in ``status``, as scripts and agents use them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.project import given_back, read_task, write_task
from yolo_supervisor.formats.tasks import SET_ASIDE
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths


@pytest.fixture
def cli(cli_of_teams: Cli) -> Cli:
    return cli_of_teams


def write_plans(project: Path, *plans: dict[str, Any]) -> Path:
    path = project / ".yolo-planning" / ".execution-state.json"
    path.write_text(json.dumps({"phase": 5, "status": "running", "plans": plans}, indent=2))
    return path


def shown(cli: Cli, ident: str) -> dict[str, Any]:
    """The task as the list shows it."""
    (found,) = (task for task in cli.json("task", "list")["tasks"] if task["id"] == ident)
    return {key: found[key] for key in ("status", "owner", "attempts", "token")}


def claim(cli: Cli, ident: str, owner: str = "dev-1") -> int:
    token = cli.json("task", "claim", ident, "--owner", owner)["token"]
    assert isinstance(token, int)
    return token


def alerts(cli: Cli) -> list[dict[str, Any]]:
    """The alerts in the journal."""
    return [each for each in history(Paths(cli.folder).journal) if each["action"] == "escalated"]


# -- the life of a task -----------------------------------------------------------------------------------------------


def test_a_task_is_claimed_shown_to_be_alive_and_finished(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3, metadata={"wave": 1})
    before = read_task(path)

    claimed = cli.json("task", "claim", "3", "--owner", "dev-1")
    token = claimed["token"]
    assert {key: claimed[key] for key in ("result", "id", "owner")} == {
        "result": "claimed", "id": "red/3", "owner": "dev-1",
    }  # fmt: skip
    assert claimed["lease_expires_at"].endswith("Z")
    assert read_task(path) == before | {"status": "in_progress", "owner": "dev-1"}
    assert shown(cli, "red/3") == {"status": "in_progress", "owner": "dev-1", "attempts": 0, "token": token}

    alive = cli.json("task", "heartbeat", "3", "--owner", "dev-1", "--token", str(token))
    assert (alive["result"], alive["token"]) == ("alive", token)

    done = cli.json("task", "done", "red/3", "--owner", "dev-1", "--token", str(token))
    assert done == {"result": "done", "id": "red/3", "owner": "dev-1", "token": token}
    assert read_task(path) == before | {"status": "completed", "owner": "dev-1"}
    assert shown(cli, "red/3") == {"status": "completed", "owner": "dev-1", "attempts": 0, "token": None}
    assert not list(path.parent.glob("*.lock"))


def test_claim_prints_the_bare_token_for_a_script(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)

    token = cli("task", "claim", "3", "--owner", "dev-1").stdout

    assert cli("task", "done", "3", "--owner", "dev-1", "--token", token.strip()).returncode == 0


def test_status_shows_attempts_and_claim_token_of_each_task(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)
    write_plans(cli.folder, {"id": "05-01", "status": "pending"})
    claim(cli, "3")
    assert cli("task", "requeue", "3").returncode == 0
    token = claim(cli, "3", "dev-2")

    (project,) = cli.json("status")["projects"]

    red, plan = project["tasks"]
    assert project["dead_letters"] == 0
    assert {key: red[key] for key in ("id", "status", "owner", "attempts", "token", "list")} == {
        "id": "red/3", "status": "in_progress", "owner": "dev-2", "attempts": 1, "token": token, "list": "red",
    }  # fmt: skip
    assert {key: plan[key] for key in ("id", "status", "owner", "attempts", "token", "list")} == {
        "id": "execution-state/05-01", "status": "pending", "owner": None, "attempts": 0, "token": None,
        "list": "execution-state",
    }  # fmt: skip


def test_one_of_many_concurrent_claims_gets_the_task(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: (n, cli("task", "claim", "3", "--owner", f"dev-{n}")), range(6)))

    (winner,) = (n for n, answer in answers if answer.returncode == 0)
    assert {answer.returncode for _, answer in answers} <= {0, 1, 75}
    assert read_task(path)["owner"] == f"dev-{winner}"


# -- claims that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "status"),
    [("dev-2", "in_progress"), ("dev-2", "pending"), (None, "completed"), (None, "deleted"), (SET_ASIDE, "pending")],
)
def test_a_task_that_is_taken_or_over_is_a_conflict(
    cli: Cli, claude_home: Path, owner: str | None, status: str
) -> None:
    path = write_task(claude_home, "red", 3, owner, status)
    before = path.read_bytes()

    answer = cli.json("task", "claim", "3", "--owner", "dev-1", code=1)

    assert (answer["result"], answer["id"], answer["token"]) == ("conflict", "red/3", None)
    assert status in answer["reason"]
    assert path.read_bytes() == before


def test_a_task_waits_for_all_that_it_is_blocked_by(cli: Cli, claude_home: Path) -> None:
    for number, status in ((1, "completed"), (2, "in_progress")):
        write_task(claude_home, "red", number, "dev-2", status)
    path = write_task(claude_home, "red", 3, blockedBy=["1", "2", "77"])

    answer = cli.json("task", "claim", "3", "--owner", "dev-1", code=1)

    assert answer["reason"] == "it is blocked by red/2"
    assert read_task(path)["status"] == "pending"
    write_task(claude_home, "red", 2, "dev-2", "completed")
    assert claim(cli, "3") > 0


def test_deleted_tasks_and_other_lists_block_no_task(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 1, status="deleted")
    write_task(claude_home, "blue", 2)
    write_task(claude_home, "red", 3, blockedBy=["1", "2"])

    assert claim(cli, "red/3") > 0


def test_a_blocker_whose_file_is_torn_just_now_is_not_taken_for_none(cli: Cli, claude_home: Path) -> None:
    blocker = write_task(claude_home, "red", 1)
    path = write_task(claude_home, "red", 3, blockedBy=["1"])
    blocker.write_text(blocker.read_text()[:30])

    assert cli("task", "claim", "3", "--owner", "dev-1").returncode in (1, 75)
    assert read_task(path)["status"] == "pending"


def test_dependency_cycles_are_reported(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 1, blockedBy=["2"])
    write_task(claude_home, "red", 2, blockedBy=["1"])
    write_task(claude_home, "red", 3, blockedBy=["3"])

    for number, other in ((1, 2), (2, 1), (3, 3)):
        answer = cli.json("task", "claim", str(number), "--owner", "dev-1", code=1)
        assert answer["reason"] == f"it is blocked by red/{other}"


def test_a_dead_letters_dependents_wait_for_it(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 1, SET_ASIDE)
    write_task(claude_home, "red", 3, blockedBy=["1"])

    assert "is blocked by red/1" in cli("task", "claim", "3", "--owner", "dev-1").stderr


@pytest.mark.parametrize("owner", ["", "  ", SET_ASIDE])
def test_an_empty_owner_is_a_usage_error(cli: Cli, claude_home: Path, owner: str) -> None:
    path = write_task(claude_home, "red", 3)

    assert cli("task", "claim", "3", "--owner", owner).returncode == 2
    assert given_back(path)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ident", ["", "../../x", "red/../red/3", "red/", "/3", "red/3.json", "4", "\udcff"])
def test_a_name_that_no_task_has_is_not_found(cli: Cli, claude_home: Path, ident: str) -> None:
    path = write_task(claude_home, "red", 3)
    before = path.read_bytes()

    result = cli("task", "claim", ident, "--owner", "dev-1")

    assert result.returncode == 1
    assert "no task" in result.stderr
    assert path.read_bytes() == before


def test_an_ambiguous_short_name_is_reported_and_the_full_name_accepted(cli: Cli, claude_home: Path) -> None:
    red, blue = (write_task(claude_home, team, 3) for team in ("red", "blue"))

    result = cli("task", "claim", "3", "--owner", "dev-1")
    assert result.returncode == 1
    assert "blue/3 or red/3" in result.stderr
    assert given_back(red)
    assert given_back(blue)

    assert claim(cli, "red/3") > 0
    assert read_task(red)["owner"] == "dev-1"
    assert given_back(blue)


def test_two_owners_of_one_name_in_two_teams_do_not_meet(cli: Cli, claude_home: Path) -> None:
    red, blue = (write_task(claude_home, team, 3) for team in ("red", "blue"))
    tokens = {team: claim(cli, f"{team}/3") for team in ("red", "blue")}

    assert cli("task", "done", "red/3", "--owner", "dev-1", "--token", str(tokens["blue"])).returncode == 1
    assert cli("task", "done", "red/3", "--owner", "dev-1", "--token", str(tokens["red"])).returncode == 0
    assert read_task(red)["status"] == "completed"
    assert read_task(blue)["status"] == "in_progress"


# -- late completions -------------------------------------------------------------------------------------------------


def test_a_late_completion_is_accepted_without_a_newer_claim(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3)
    token = str(claim(cli, "3"))
    assert cli("task", "requeue", "3").returncode == 0

    assert cli("task", "heartbeat", "3", "--owner", "dev-1", "--token", token).returncode == 1
    assert cli("task", "done", "3", "--owner", "dev-1", "--token", token).returncode == 0
    assert read_task(path)["status"] == "completed"
    assert not alerts(cli)


def test_completion_after_a_newer_claim_is_refused_naming_both(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3)
    old = claim(cli, "3")
    assert cli("task", "requeue", "3").returncode == 0
    new = claim(cli, "3", "dev-2")
    before = path.read_bytes()

    answer = cli.json("task", "done", "3", "--owner", "dev-1", "--token", str(old), code=1)

    assert answer["result"] == "conflict"
    (entry,) = alerts(cli)
    assert (entry["kind"], entry["key"]) == ("task", "red/3")
    for word in ("dev-1", "dev-2", str(old), str(new)):
        assert word in entry["reason"]
        assert word in answer["reason"]
    assert path.read_bytes() == before
    assert cli("task", "done", "3", "--owner", "dev-2", "--token", str(new)).returncode == 0


def test_completion_after_another_completion_is_refused_naming_both(cli: Cli, claude_home: Path) -> None:
    path = write_task(claude_home, "red", 3)
    old = claim(cli, "3")
    assert cli("task", "requeue", "3").returncode == 0
    new = claim(cli, "3", "dev-2")
    assert cli("task", "done", "3", "--owner", "dev-2", "--token", str(new)).returncode == 0

    assert cli("task", "done", "3", "--owner", "dev-1", "--token", str(old)).returncode == 1
    (entry,) = alerts(cli)
    assert "dev-1" in entry["reason"]
    assert "dev-2" in entry["reason"]
    assert read_task(path)["owner"] == "dev-2"


def test_completion_after_a_claim_by_the_client_is_refused_naming_both(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)
    old = claim(cli, "3")
    assert cli("task", "requeue", "3").returncode == 0
    path = write_task(claude_home, "red", 3, "dev-2", "in_progress")

    assert cli("task", "done", "3", "--owner", "dev-1", "--token", str(old)).returncode == 1
    (entry,) = alerts(cli)
    assert "dev-1" in entry["reason"]
    assert "dev-2" in entry["reason"]
    assert read_task(path)["owner"] == "dev-2"


def test_a_repeated_completion_by_the_same_owner_raises_no_alert(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)
    token = str(claim(cli, "3"))
    assert cli("task", "done", "3", "--owner", "dev-1", "--token", token).returncode == 0

    assert cli("task", "done", "3", "--owner", "dev-1", "--token", token).returncode == 1
    assert not alerts(cli)


@pytest.mark.parametrize("word", ["heartbeat", "done"])
@pytest.mark.parametrize(("owner", "more"), [("dev-1", 1000), ("dev-1", -1000), ("dev-2", 0)])
def test_a_token_that_is_not_the_owners_is_refused(
    cli: Cli, claude_home: Path, word: str, owner: str, more: int
) -> None:
    path = write_task(claude_home, "red", 3)
    token = claim(cli, "3")
    before = path.read_bytes()

    answer = cli.json("task", word, "3", "--owner", owner, "--token", str(token + more), code=1)

    assert answer["result"] == "conflict"
    assert path.read_bytes() == before


def test_a_heartbeat_reports_that_the_lead_reassigned_the_task(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)
    token = str(claim(cli, "3"))
    write_task(claude_home, "red", 3, "dev-2", "in_progress")

    result = cli("task", "heartbeat", "3", "--owner", "dev-1", "--token", token)

    assert result.returncode == 1
    assert "dev-2" in result.stderr


def test_a_token_that_is_no_number_is_a_wrong_use(cli: Cli, claude_home: Path) -> None:
    write_task(claude_home, "red", 3)

    assert cli("task", "done", "3", "--owner", "dev-1", "--token", "").returncode == 2
    assert cli("task", "heartbeat", "3", "--owner", "dev-1").returncode == 2


# -- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("owner", "status"), [("dev-2", "in_progress"), ("dev-2", "pending"), (None, "in_progress")])
def test_a_person_can_requeue_any_task(cli: Cli, claude_home: Path, owner: str | None, status: str) -> None:
    path = write_task(claude_home, "red", 3, owner, status)

    assert cli.json("task", "requeue", "3") == {"result": "requeued", "id": "red/3"}
    assert given_back(path)
    (entry,) = history(Paths(cli.folder).journal)
    assert (entry["action"], entry["by"]) == ("requeued", "cli")


@pytest.mark.parametrize(
    ("owner", "status"), [(None, "pending"), (SET_ASIDE, "pending"), ("dev-1", "completed"), (None, "deleted")]
)
def test_unowned_and_completed_tasks_are_not_requeued(
    cli: Cli, claude_home: Path, owner: str | None, status: str
) -> None:
    path = write_task(claude_home, "red", 3, owner, status)
    before = path.read_bytes()

    assert cli("task", "requeue", "3").returncode == 1
    assert path.read_bytes() == before


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_plan_is_claimed_requeued_claimed_again_and_completed(cli: Cli) -> None:
    path = write_plans(cli.folder, {"id": "05-01", "status": "pending", "title": "Grüße"}, {"id": "05-02"})

    def plan() -> dict[str, Any]:
        first, second = json.loads(path.read_text())["plans"]
        assert second == {"id": "05-02"}
        return {key: value for key, value in first.items() if key not in ("id", "title")}

    old = claim(cli, "05-01")
    assert plan() == {"status": "running", "owner": "dev-1"}
    assert cli("task", "claim", "execution-state/05-01", "--owner", "dev-2").returncode == 1
    assert cli("task", "requeue", "05-01").returncode == 0
    assert plan() == {"status": "pending"}
    new = claim(cli, "05-01", "dev-2")
    assert cli("task", "done", "05-01", "--owner", "dev-1", "--token", str(old)).returncode == 1
    assert cli("task", "heartbeat", "05-01", "--owner", "dev-2", "--token", str(new)).returncode == 0
    assert cli("task", "done", "05-01", "--owner", "dev-2", "--token", str(new)).returncode == 0
    assert plan() == {"status": "complete", "owner": "dev-2"}


@pytest.mark.parametrize("status", ["running", "in_progress", "executing", "complete", "done", "completed", "failed"])
def test_a_plan_that_is_not_pending_cannot_be_claimed(cli: Cli, status: str) -> None:
    path = write_plans(cli.folder, {"id": "05-01", "status": status})
    before = path.read_bytes()

    assert cli("task", "claim", "05-01", "--owner", "dev-1").returncode == 1
    assert path.read_bytes() == before
