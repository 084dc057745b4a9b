"""``lease``, and leases in other commands, as scripts and agents use them: exit codes and JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.cli import PROGRAM, Cli
from support.project import SAMPLES
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.models import from_iso

FILE = "src/a1.js"


@pytest.fixture
def cli(project: Path, claude_home: Path) -> Cli:
    (project / ".yolo-planning" / ".locks").mkdir()
    return Cli(project)


def lease_file(cli: Cli, name: str = "src__a1.js") -> Path:
    return cli.folder / ".yolo-planning" / ".locks" / f"{name}.lease"


def plugin(cli: Cli, owner: str, acquired_at: str, ttl: object = 60) -> bytes:
    """Write a lease in the plugin's format."""
    said = {"acquired_at": acquired_at, "owner": owner, "resource": FILE, "ttl_secs": ttl, "type": "lease"}
    data = json.dumps(said, indent=2, sort_keys=True).encode()
    lease_file(cli).write_bytes(data)
    return data


def just_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def written(cli: Cli) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lease_file(cli).read_text())
    return found


# -- one after the other --------------------------------------------------------------------------------------------


def test_a_lease_is_acquired_renewed_released_and_acquired_by_the_next(cli: Cli) -> None:
    first = cli.json("lease", "acquire", FILE, "--owner", "dev-1", "--ttl", "60")
    assert first.keys() >= {"result", "resource", "owner", "expires_at", "token"}
    assert (first["result"], first["resource"], first["owner"]) == ("acquired", FILE, "dev-1")

    again = cli.json("lease", "renew", FILE, "--owner", "dev-1", "--ttl", "600")
    assert (again["result"], again["token"]) == ("renewed", first["token"])
    assert from_iso(again["expires_at"]) > from_iso(first["expires_at"])

    assert cli.json("lease", "acquire", FILE, "--owner", "dev-1")["result"] == "renewed"
    assert cli.json("lease", "release", FILE, "--owner", "dev-1")["result"] == "released"
    assert not lease_file(cli).exists()

    following = cli.json("lease", "acquire", FILE, "--owner", "dev-2")
    assert following["result"] == "acquired"
    assert following["token"] > first["token"]


def test_the_expiry_shown_is_that_of_the_file(cli: Cli) -> None:
    document = cli.json("lease", "acquire", FILE, "--owner", "dev-1", "--ttl", "60")

    said = written(cli)
    assert (said["owner"], said["resource"], said["ttl_secs"], said["type"]) == ("dev-1", FILE, 60, "lease")
    assert (from_iso(document["expires_at"]) - from_iso(said["acquired_at"])).total_seconds() == 60
    assert document["expires_at"].endswith("Z")


def test_an_expired_lease_is_acquired_and_the_journal_names_the_previous_owner(cli: Cli) -> None:
    plugin(cli, "dev-1", "2026-01-01T00:00:00Z")

    assert cli.json("lease", "acquire", FILE, "--owner", "dev-2")["result"] == "acquired"

    (entry,) = [json.loads(line) for line in cli("history", "lease", FILE, "--json").stdout.splitlines()]
    assert (entry["action"], entry["by"], entry["evidence"]["previous_owner"]) == ("taken_over", "cli", "dev-1")


def test_a_lease_from_the_future_is_not_stolen(cli: Cli) -> None:
    data = plugin(cli, "dev-1", "2100-01-01T00:00:00Z")

    assert cli.json("lease", "acquire", FILE, "--owner", "dev-2", code=1)["held_by"] == "dev-1"
    assert lease_file(cli).read_bytes() == data


def test_a_broken_lease_is_free(cli: Cli) -> None:
    lease_file(cli).write_bytes(b'{"acquired_at": "2026-')
    os.utime(lease_file(cli), (0, 0))  # so old that no program is writing it

    assert cli.json("lease", "acquire", FILE, "--owner", "dev-1")["result"] == "acquired"


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_lease_of_the_plugin_is_a_conflict_for_all_but_its_owner(cli: Cli) -> None:
    at = just_now()
    data = plugin(cli, "dev-01", at, 3600)

    refused = cli.json("lease", "acquire", FILE, "--owner", "dev-02", code=1)

    assert {key: refused[key] for key in ("result", "resource", "owner", "held_by")} == {
        "result": "conflict", "resource": FILE, "owner": "dev-02", "held_by": "dev-01",
    }  # fmt: skip
    assert (from_iso(refused["expires_at"]) - from_iso(at)).total_seconds() == 3600
    assert cli("lease", "renew", FILE, "--owner", "dev-02").returncode == 1
    assert cli("lease", "release", FILE, "--owner", "dev-02").returncode == 1
    assert lease_file(cli).read_bytes() == data
    assert cli("lease", "renew", FILE, "--owner", "dev-01").returncode == 0
    assert cli("lease", "release", FILE, "--owner", "dev-01").returncode == 0
    assert not lease_file(cli).exists()


@pytest.mark.parametrize("verb", ["renew", "release"])
def test_a_free_lease_cannot_be_renewed_or_released(verb: str, cli: Cli) -> None:
    document = cli.json("lease", verb, FILE, "--owner", "dev-1", code=1)

    assert (document["resource"], document["owner"], document["expires_at"]) == (FILE, "dev-1", None)
    assert not lease_file(cli).exists()


def test_a_conflict_names_the_holder(cli: Cli) -> None:
    plugin(cli, "dev-1", just_now(), 3600)

    result = cli("lease", "acquire", FILE, "--owner", "dev-2")

    assert (result.returncode, result.stdout) == (1, "")
    assert "src/a1.js is held by dev-1 until" in result.stderr


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "words",
    [
        ("acquire", FILE),
        ("acquire", "--owner", "dev-1"),
        ("acquire", FILE, "--owner", ""),
        ("acquire", FILE, "--owner", "  "),
        ("acquire", "", "--owner", "dev-1"),
        ("acquire", "..", "--owner", "dev-1"),
        ("acquire", "x" * 201, "--owner", "dev-1"),
        ("release", "", "--owner", "dev-1"),
        ("renew", "..", "--owner", "dev-1"),
        *(("acquire", FILE, "--owner", "dev-1", "--ttl", ttl) for ttl in ("0", "-1", "soon", "1.5", "", f"{10**12}")),
        ("list", FILE),
        ("steal", FILE),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_invalid_arguments_are_usage_errors_and_change_nothing(words: Sequence[str], cli: Cli) -> None:
    result = cli("lease", *words)

    assert (result.returncode, result.stdout) == (2, "")
    assert list(lease_file(cli).parent.iterdir()) == []


def test_a_lease_that_is_a_link_is_not_followed(cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    lease_file(cli).symlink_to(target)

    result = cli("lease", "acquire", FILE, "--owner", "dev-1")

    assert result.returncode != 0
    assert "symbolic link" in result.stderr
    assert target.read_text() == "precious"


# -- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resource", ["../../x", "a\nb", "two words", "Größe 😀", "x" * 200], ids=lambda name: name[:12]
)
def test_a_lease_on_any_name_is_acquired_listed_and_released(resource: str, cli: Cli) -> None:
    assert cli.json("lease", "acquire", resource, "--owner", "dev-1")["resource"] == resource
    assert cli.json("lease", "acquire", resource, "--owner", "dev-2", code=1)["held_by"] == "dev-1"
    assert [row["resource"] for row in cli.json("lease", "list")["leases"]] == [resource]
    assert len(cli("lease", "list").stdout.splitlines()) == 1
    assert cli.json("lease", "release", resource, "--owner", "dev-1")["result"] == "released"
    assert list(lease_file(cli).parent.iterdir()) == []


def test_a_name_that_is_not_utf8_is_leased_as_it_is(cli: Cli) -> None:
    def lease(verb: str, owner: bytes) -> int:
        words: list[str | bytes] = [*PROGRAM, "lease", verb, b"src/\xff\xfe.py", "--owner", owner, "--json"]
        result = subprocess.run(words, cwd=cli.folder, capture_output=True, timeout=LIMIT_S, check=False)
        assert b"Traceback" not in result.stderr
        json.loads(result.stdout)
        return result.returncode

    assert lease("acquire", b"dev-\xff") == 0
    assert lease("acquire", b"dev-2") == 1
    assert lease("renew", b"dev-\xff") == 0
    assert lease("release", b"dev-\xff") == 0
    assert list(lease_file(cli).parent.iterdir()) == []


def test_two_names_in_one_file_are_distinguished(cli: Cli) -> None:
    cli("lease", "acquire", "a/b", "--owner", "dev-1")

    result = cli("lease", "acquire", "a__b", "--owner", "dev-2")

    assert result.returncode == 1
    assert "as a/b" in result.stderr
    assert cli.json("lease", "list")["leases"][0]["resource"] == "a/b"


def test_a_lease_cannot_be_released_under_another_name(cli: Cli) -> None:
    cli("lease", "acquire", "a/b", "--owner", "dev-1")

    assert cli("lease", "release", "a__b", "--owner", "dev-1").returncode == 1
    assert cli.json("lease", "list")["leases"][0]["resource"] == "a/b"


# -- the time to live ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "ttl_s"),
    [(None, 300), ('{"task_lease_ttl_secs": 42}', 42), ('{"task_lease_ttl_secs": 0}', 300), ("{", 300)],
    ids=["no configuration", "it says so", "it says nonsense", "it is broken"],
)
def test_without_a_ttl_the_plugins_configuration_sets_the_time(config: str | None, ttl_s: int, cli: Cli) -> None:
    if config is not None:
        (cli.folder / ".yolo-planning" / "config.json").write_text(config)

    cli("lease", "acquire", FILE, "--owner", "dev-1")

    assert written(cli)["ttl_secs"] == ttl_s


def test_a_ttl_that_is_given_wins(cli: Cli) -> None:
    (cli.folder / ".yolo-planning" / "config.json").write_text('{"task_lease_ttl_secs": 42}')

    cli("lease", "acquire", FILE, "--owner", "dev-1", "--ttl", "300")

    assert written(cli)["ttl_secs"] == 300


# -- leases in other commands --------------------------------------------------------------------------------------


def test_a_list_without_leases_is_reported(cli: Cli) -> None:
    assert cli.json("lease", "list")["leases"] == []
    assert cli("lease", "list").stdout == f"no leases in {cli.folder}\n"


def test_list_shows_our_leases_and_the_plugins_and_changes_nothing(cli: Cli) -> None:
    mine = cli.json("lease", "acquire", "mine", "--owner", "dev-1", "--ttl", "3600")
    plugin(cli, "dev-2", just_now(), 3600)
    lease_file(cli, "broken").write_bytes(b"{")
    before = {path: path.read_bytes() for path in cli.folder.rglob("*") if path.is_file()}

    ours, theirs = cli.json("lease", "list")["leases"]

    assert (ours["resource"], ours["owner"], ours["token"], ours["expires_at"]) == (
        "mine", "dev-1", mine["token"], mine["expires_at"],
    )  # fmt: skip
    assert (theirs["resource"], theirs["owner"], theirs["token"]) == (FILE, "dev-2", None)
    assert 3500 < ours["left_s"] <= 3600
    assert 3500 < theirs["left_s"] <= 3601  # the plugin counts whole seconds
    assert {path: path.read_bytes() for path in cli.folder.rglob("*") if path.is_file()} == before


def test_the_token_of_one_is_not_shown_as_that_of_the_next_whom_the_plugin_gave_it(cli: Cli) -> None:
    cli("lease", "acquire", FILE, "--owner", "dev-1")
    plugin(cli, "dev-2", just_now())

    (row,) = cli.json("lease", "list")["leases"]

    assert (row["owner"], row["token"]) == ("dev-2", None)


def test_the_list_of_a_project_that_was_never_supervised_makes_nothing(cli: Cli) -> None:
    plugin(cli, "dev-1", just_now(), 3600)

    assert [row["owner"] for row in cli.json("lease", "list")["leases"]] == ["dev-1"]
    assert not (cli.folder / ".yolo-planning" / ".supervisor").exists()


def test_status_shows_a_lease(cli: Cli) -> None:
    document = cli.json("lease", "acquire", FILE, "--owner", "dev-1")

    (row,) = cli.json("status")["projects"][0]["leases"]

    assert (row["resource"], row["owner"], row["expires_at"]) == (FILE, "dev-1", document["expires_at"])


def test_check_lists_leases_that_would_be_ended_and_ends_none(cli: Cli) -> None:
    data = plugin(cli, "dev-1", "2026-01-01T00:00:00Z")
    cli("lease", "acquire", "another", "--owner", "dev-2")

    document = [each for each in cli.json("check")["actions"] if each["kind"] == "lease" and each["by"] == "leases"]

    assert [(each["action"], each["key"]) for each in document] == [("would_released", FILE)]
    assert lease_file(cli).read_bytes() == data


def test_explain_shows_the_history_of_a_lease(cli: Cli) -> None:
    cli("lease", "acquire", FILE, "--owner", "dev-1")
    cli("lease", "release", FILE, "--owner", "dev-1")

    result = cli("explain", "lease", FILE)

    assert result.returncode == 0
    assert result.stdout.index("dev-1 asked for it") < result.stdout.index("dev-1 released it")


def test_a_lease_ends_at_its_time_without_any_daemon(cli: Cli) -> None:
    first = cli.json("lease", "acquire", FILE, "--owner", "dev-1", "--ttl", "1")

    def acquired() -> Any:
        attempt = cli("lease", "acquire", FILE, "--owner", "dev-2", "--json")
        return json.loads(attempt.stdout) if attempt.returncode != 1 else None

    answer = wait_until(acquired, "the lease to run out")
    assert answer["result"] == "acquired"
    assert answer["token"] > first["token"]


# -- the plugin's own ------------------------------------------------------------------------------------------------


def test_a_lease_of_ours_has_the_fields_and_the_form_of_the_plugins_own(cli: Cli) -> None:
    path = SAMPLES / "plugin-output/live-tree-rust-after-stop/.locks/src__a1.js.lease"
    theirs = path.read_text()
    said = json.loads(theirs)
    cli("lease", "acquire", said["resource"], "--owner", said["owner"], "--ttl", str(said["ttl_secs"]))

    ours = lease_file(cli).read_text()

    assert ours.replace(json.loads(ours)["acquired_at"], said["acquired_at"]) == theirs
