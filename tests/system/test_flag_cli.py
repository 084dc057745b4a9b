"""The ``flag`` commands, and where flags are shown elsewhere."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from support.cli import Cli
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import event_log
from yolo_supervisor.inventory.flag_outcomes import FlagOutcomes
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend

ROUTING, LOCKS, LEASES = "v3_smart_routing", "v3_lock_lite", "v3_lease_locks"
WRITTEN = (
    '{"v3_smart_routing": true,"v3_lock_lite":false,\n "v3_lease_locks" : false, "auto_commit": true, "v3_odd": 1}'
)


@pytest.fixture
def config(project: Path) -> Path:
    path = project / plugin.PLANNING / "config.json"
    path.write_text(WRITTEN)
    return path


@pytest.fixture
def cli(project: Path, claude_home: Path, config: Path) -> Cli:
    return Cli(project)


def record(cli: Cli, outcomes: str) -> None:
    """As the command does; an ``x`` is an error."""
    with closing(Store(cli.folder)) as store:
        store.open()
        flags = FlagOutcomes(Config(), store, SystemClock(), backend().boot())
        for outcome in outcomes:
            flags.record(ROUTING, outcome == "x")


def test_list_shows_every_feature_flag_with_its_failure_rate(cli: Cli) -> None:
    record(cli, "..x")

    answer = cli.json("flag", "list")
    found = {flag["name"]: flag for flag in answer["flags"]}
    assert list(found) == sorted([ROUTING, LOCKS, LEASES])
    assert (answer["version"], answer["project"], answer["next_look_at"]) == (2, str(cli.folder), None)
    mine = found[ROUTING]
    assert (mine["enabled"], mine["errors"], mine["samples"], mine["error_rate"]) == (True, 1, 3, 0.3333)
    assert (mine["verdict"], mine["why"], mine["probation_in_s"]) == ("too few", None, None)
    assert (found[LOCKS]["enabled"], found[LOCKS]["error_rate"], found[LOCKS]["verdict"]) == (False, 0.0, "off")


@pytest.mark.parametrize(("outcomes", "verdict"), [(".....", "ok"), ("..x.x", "unsure"), ("xxxxx", "failing")])
def test_the_verdict_follows_from_the_outcomes(cli: Cli, outcomes: str, verdict: str) -> None:
    record(cli, outcomes)

    (mine,) = (flag for flag in cli.json("flag", "list")["flags"] if flag["name"] == ROUTING)
    assert mine["verdict"] == verdict


def test_list_prints_a_table_with_bars(cli: Cli) -> None:
    cli("flag", "record", ROUTING, "error")

    head, *lines, _, last = cli("flag", "list").stdout.splitlines()
    assert head.split() == ["flag", "failed", "rate", "window", "verdict"]
    assert [line.split()[:2] for line in lines] == [[LEASES, "off"], [LOCKS, "off"], [ROUTING, "on"]]
    assert lines[2].endswith("█")
    assert "no daemon is running" in last


def test_list_reports_a_project_without_flags(cli: Cli, config: Path) -> None:
    config.unlink()

    assert cli("flag", "list").stdout.startswith("there are no feature flags")
    assert cli.json("flag", "list")["flags"] == []


def test_record_accepts_any_name_and_leaves_the_configuration_alone(cli: Cli, config: Path) -> None:
    names = ("auto_commit", "../odd /näme\n", "x" * 300, "\\", "marks")
    for name in names:
        answer = cli.json("flag", "record", name, "error")
        assert (answer["result"], answer["name"], answer["errors"], answer["samples"]) == ("recorded", name, 1, 1)

    assert config.read_text() == WRITTEN
    assert set(names) < {flag["name"] for flag in cli.json("flag", "list")["flags"]}


@pytest.mark.parametrize("arguments", [["", "ok"], [" ", "ok"], [ROUTING, "maybe"], [ROUTING], []])
def test_record_refuses_an_empty_name_and_an_unknown_outcome(cli: Cli, arguments: list[str]) -> None:
    assert cli("flag", "record", *arguments).returncode == 2


def test_disable_and_enable_change_only_the_value_of_the_flag(cli: Cli, config: Path) -> None:
    assert cli.json("flag", "disable", ROUTING) == {"result": "disabled", "name": ROUTING, "notes": []}
    assert config.read_text() == WRITTEN.replace("true", "false", 1)
    assert cli.json("flag", "disable", ROUTING)["result"] == "disabled"
    assert cli.json("flag", "enable", ROUTING)["result"] == "enabled"

    assert config.read_text() == WRITTEN
    story = cli.json("explain", "flag", ROUTING)["story"]
    assert [(entry["action"], entry["by"]) for entry in story] == [("disabled", "cli"), ("enabled", "cli")]


def test_enabling_an_enabled_flag_starts_an_epoch(cli: Cli, config: Path) -> None:
    cli("flag", "record", ROUTING, "error")
    assert cli("flag", "enable", ROUTING).returncode == 0

    (mine,) = (flag for flag in cli.json("status")["projects"][0]["flags"] if flag["name"] == ROUTING)
    assert mine == {"name": ROUTING, "enabled": True, "errors": 0, "samples": 0, "error_rate": 0.0}
    assert config.read_text() == WRITTEN


def test_a_note_names_the_flag_that_an_enabled_flag_needs(cli: Cli) -> None:
    (note,) = cli.json("flag", "enable", LEASES)["notes"]

    assert note.startswith(f"{LEASES} is on while {LOCKS} is off")
    assert "note: " in cli("flag", "enable", LEASES).stderr
    assert cli.json("flag", "enable", LOCKS)["notes"] == []
    assert len(cli.json("flag", "disable", LOCKS)["notes"]) == 1


@pytest.mark.parametrize("verb", ["enable", "disable"])
@pytest.mark.parametrize("name", ["v3_smart_routin", "v3_odd", "v9_new"])
def test_a_flag_that_is_not_in_the_configuration_is_not_added(cli: Cli, config: Path, verb: str, name: str) -> None:
    result = cli("flag", verb, name)

    assert result.returncode == 1
    assert f"{name} is neither true nor false in" in result.stderr
    assert (f"did you mean {ROUTING}?" in result.stderr) == (name == "v3_smart_routin")
    assert config.read_text() == WRITTEN


def test_an_unreadable_configuration_is_left_alone(cli: Cli, config: Path) -> None:
    config.write_text("{ // mine\n" + WRITTEN[1:])
    before = config.read_bytes()

    assert cli("flag", "disable", ROUTING).returncode == 65
    assert config.read_bytes() == before
    config.unlink()
    assert cli("flag", "disable", ROUTING).returncode == 1
    assert not config.exists()


def test_check_shows_which_flag_would_be_disabled(cli: Cli, config: Path) -> None:
    record(cli, "xxxxx")

    actions = [action for action in cli.json("check")["actions"] if action["kind"] == "flag"]
    assert [(action["action"], action["key"], action["by"]) for action in actions] == [
        ("would_disabled", ROUTING, "flags"),
        ("would_escalated", ROUTING, "flags"),
    ]
    assert actions[0]["evidence"]["errors"] == 5
    assert config.read_text() == WRITTEN


def test_commands_that_only_show_write_nothing(cli: Cli, project: Path) -> None:
    metrics = project / plugin.PLANNING / event_log.METRICS
    metrics.parent.mkdir()
    metrics.write_text(json.dumps({"event": "gate_pass", "data": {}}) + "\n")
    before = sorted(project.rglob("*"))

    for argv in (["flag", "list"], ["status"], ["check"], ["doctor"]):
        cli(*argv)

    assert sorted(project.rglob("*")) == before


# -- commands that stand for a verb of the plugin ---------------------------------------------------------------------

OF_THE_PLUGIN = [
    pytest.param(("lease", "acquire", "src/a.py", "--owner", "dev-1"), "v3_lock_lite", id="lease"),
    pytest.param(("snapshot", "save"), "v3_snapshot_resume", id="snapshot"),
    pytest.param(("state", "recover"), "v3_event_recovery", id="state"),
    pytest.param(("gate", "check", "commit_hygiene", "5", "1", "1"), "v2_hard_gates", id="gate"),
]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("words", "flag"), OF_THE_PLUGIN)
def test_a_command_says_in_one_line_that_its_flag_is_off_and_works(
    cli: Cli, config: Path, words: tuple[str, ...], flag: str
) -> None:
    config.with_name(".execution-state.json").write_text('{"phase": 5, "plans": [], "status": "running"}')
    for content in ({flag: False}, {}, {flag: "true"}):
        config.write_text(json.dumps(content))

        answer = cli(*words)

        assert answer.returncode == 0
        (line,) = answer.stderr.splitlines()
        assert line.startswith(f"yolo-supervisor: note: {flag} is off: ")
        assert answer.stdout

    config.write_text(json.dumps({flag: True}))
    assert cli(*words).stderr == ""
    config.unlink()  # no plugin rules here
    assert cli(*words).stderr == ""


def test_a_failed_repair_says_that_the_plugins_event_log_does_not_have_it(cli: Cli, config: Path) -> None:
    config.write_text('{"v2_hard_gates": true, "v2_hard_contracts": true, "v3_event_log": false}')

    answer = cli("gate", "repair", "contract_compliance", "5", "1", "1")

    assert answer.returncode == 1
    assert [line.split(" is off")[0] for line in answer.stderr.splitlines()] == ["yolo-supervisor: note: v3_event_log"]


def test_doctor_lists_the_flags_that_are_off_and_their_effects(cli: Cli, config: Path) -> None:
    config.write_text('{"v3_lock_lite": false, "v3_snapshot_resume": true, "v3_metrics": false, "auto_commit": false}')

    findings = [(finding["level"], finding["what"]) for finding in cli.json("doctor")["findings"]]

    notes = [
        what.split(": ")[0] for level, what in findings if level == "note" and what.startswith("the plugin's flag")
    ]
    off = ["v3_lock_lite", "v2_hard_gates", "v2_hard_contracts", "v3_event_log", "v3_event_recovery"]
    assert notes == [f"the plugin's flag {flag} is off" for flag in off]
    (others,) = [what for _, what in findings if what.startswith("other flags")]
    assert others.endswith(": v3_metrics")
