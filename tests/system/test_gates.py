"""The plugin's gates, evaluated and repaired by us: passes, failures, repairs and alerts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.cli import PROGRAM, Cli
from support.processes import Children
from support.project import SAMPLES
from support.wait import LIMIT_S, wait_until
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import contracts, event_log, execution_state
from yolo_supervisor.gates.gates import Answer, Gates, Question, Repair
from yolo_supervisor.store.history import history
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend
from yolo_supervisor.system.processes import Processes

ON = {"v2_hard_gates": True, "v2_hard_contracts": True, "v3_event_log": True, "autonomy": "standard"}

PLAN = """---
phase: {phase}
plan: {plan}
title: "Demo"
forbidden_paths: [.env, "secrets/"]
verification_checks: {checks}
---
### Task 1: First
**Files:** `src/a.js`
### Task 2: Second
"""


class World:
    """A project with one phase, its plan and its contract."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.planning = project / plugin.PLANNING
        self.contract = self.planning / ".contracts" / "5-1.json"
        self.cli = Cli(project)
        self.configure()

    def configure(self, **more: Any) -> None:
        (self.planning / "config.json").write_text(json.dumps({**ON, **more}))

    def plan(self, name: str = "phases/05-demo/05-01-PLAN.md", **said: Any) -> bytes:
        """Write a plan; the contract that the plugin makes of it."""
        path = self.planning / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLAN.format(**{"phase": 5, "plan": 1, "checks": "[]", **said}))
        made = contracts.contract(path.read_bytes(), (self.planning / "config.json").read_bytes())
        assert made is not None
        return made

    def sign(self, **more: Any) -> bytes:
        """Write the plan's contract with these changes: a valid one, without a hash."""
        data = self.plan()
        if more:
            bare = {key: value for key, value in json.loads(data).items() if key != "contract_hash"}
            data = execution_state.dump({**bare, **more})
        self.contract.parent.mkdir(exist_ok=True)
        self.contract.write_bytes(data)
        return data

    async def ask(self, gate: str, task: str = "1", phase: int = 5, plan: int = 1) -> Answer:
        with closing(Store(self.project)) as store:
            return await Gates(store, SystemClock()).ask(Question(gate=gate, phase=phase, plan=plan, task=task))

    async def says(self, gate: str, **question: Any) -> tuple[str, str]:
        answer = await self.ask(gate, **question)
        return answer.result, answer.evidence

    async def repair(self, gate: str = "contract_compliance", task: str = "1") -> Repair:
        with closing(Store(self.project)) as store:
            return await Gates(store, SystemClock()).repair(Question(gate=gate, phase=5, plan=1, task=task))

    def history(self) -> list[tuple[str, str, str]]:
        path = self.planning / ".supervisor" / "journal.jsonl"
        return [(each["kind"], each["action"], each["key"]) for each in history(path)] if path.exists() else []

    def events(self) -> list[dict[str, Any]]:
        path = self.planning / event_log.EVENT_LOG
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def git(self, *words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *words], cwd=self.project, check=True, capture_output=True, timeout=LIMIT_S)


@pytest.fixture
def world(project: Path, claude_home: Path) -> World:
    return World(project)


@pytest.fixture
def repository(world: World) -> World:
    """The same project under git, without a commit."""
    world.git("init", "-q")
    return world


# -- the answer ---------------------------------------------------------------------------------------------------


def test_a_gate_answers_with_the_plugins_keys_in_its_order(world: World) -> None:
    world.sign()

    document = world.cli.json("gate", "check", "contract_compliance", "5", "1", "2")

    assert list(document) == ["gate", "result", "evidence", "autonomy", "ts"]
    assert document | {"ts": ""} == {
        "gate": "contract_compliance", "result": "pass", "evidence": "hash verified, task in range",
        "autonomy": "standard", "ts": "",
    }  # fmt: skip
    assert len(document["ts"]) == len("2026-11-22T20:55:10Z")


def test_phase_plan_and_task_may_be_written_with_zeros(world: World) -> None:
    world.sign()

    assert world.cli.json("gate", "check", "contract_compliance", "05", "01", "02")["result"] == "pass"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("config", ['{"v2_hard_gates": false}', '{"v2_hard_gates": "true"}', "{}", None])
def test_gates_that_are_switched_off_are_skipped_and_nothing_is_written(world: World, config: str | None) -> None:
    if config is None:
        (world.planning / "config.json").unlink()
    else:
        (world.planning / "config.json").write_text(config)

    asked = world.cli.json("gate", "check", "no-such-gate", "5", "1", "1")
    repaired = world.cli.json("gate", "repair", "contract_compliance", "5", "1", "1")

    assert (asked["result"], asked["evidence"], asked["autonomy"]) == ("skip", "v2_hard_gates=false", "unknown")
    assert {key: repaired[key] for key in ("attempts", "gate", "reason", "repaired")} == {
        "attempts": 0, "gate": "contract_compliance", "reason": "v2_hard_gates=false", "repaired": False,
    }  # fmt: skip
    assert {path.name for path in world.planning.iterdir()} <= {"config.json"}


def test_a_broken_configuration_does_not_disable_gates(world: World) -> None:
    (world.planning / "config.json").write_text('{"v2_hard_ga')

    result = world.cli("gate", "check", "commit_hygiene", "5", "1", "1", "--json")

    assert (result.returncode, result.stdout) == (65, "")


def test_a_gate_that_does_not_exist_is_not_passed(world: World) -> None:
    document = world.cli.json("gate", "check", "no-such-gate", "5", "1", "1", code=1)

    assert (document["result"], document["evidence"]) == ("fail", "unknown gate type: no-such-gate")


@pytest.mark.parametrize("number", ["..", "../1", "1/2", "-1", "", "x", "1.5", "٣/..", "1" * 40])
def test_a_phase_and_a_plan_are_nothing_but_numbers(world: World, number: str) -> None:
    for numbers in ((number, "1"), ("1", number)):
        result = world.cli("gate", "check", "contract_compliance", *numbers, "1")
        assert (result.returncode, result.stdout) == (2, "")
        assert "gate check" in result.stderr


def test_in_words_an_answer_is_one_line(world: World) -> None:
    world.sign()

    result = world.cli("gate", "check", "contract_compliance", "5", "1", "3")

    assert (result.returncode, result.stdout) == (1, "contract_compliance: fail: task 3 outside range 1-2\n")


# -- contract_compliance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "evidence"),
    [("3", "task 3 outside range 1-2"), ("0", "task 0 outside range 1-2"), ("T1", "task 0 outside range 1-2"),
     ("", "task 0 outside range 1-2"), ("-1", "task -1 outside range 1-2")],
)  # fmt: skip
async def test_a_task_must_be_one_of_the_contracts(world: World, task: str, evidence: str) -> None:
    world.sign()

    assert await world.says("contract_compliance", task=task) == ("fail", evidence)


def empty(data: bytes) -> bytes:
    return b""


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def no_object(data: bytes) -> bytes:
    return b"[1]"


def changed(data: bytes) -> bytes:
    return data.replace(b'"task_count": 2', b'"task_count": 9')


def of_bash(data: bytes) -> bytes:
    path = SAMPLES / "plugin-output/live-tree-bash-before-stop/.contracts/5-1.json"
    return path.read_bytes()


DAMAGES: dict[Callable[[bytes], bytes], str] = {
    empty: "invalid contract JSON", torn: "invalid contract JSON", no_object: "invalid contract JSON",
    changed: "contract hash mismatch", of_bash: "contract hash mismatch",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_broken_contract_is_regenerated_and_the_old_one_kept(
    world: World, damage: Callable[[bytes], bytes]
) -> None:
    whole = world.sign()
    broken = damage(whole)
    world.contract.write_bytes(broken)
    assert await world.says("contract_compliance") == ("fail", DAMAGES[damage])

    outcome = await world.repair()

    assert (outcome.repaired, outcome.attempts, outcome.reason) == (True, 1, None)
    assert world.contract.read_bytes() == whole
    assert world.history()[-1] == ("gate", "repaired", "contract_compliance/5-1-T1")
    kept = [path.read_bytes() for path in (world.planning / ".supervisor" / "quarantine").iterdir()]
    assert kept == ([broken] if broken else [])
    assert world.events() == []


def test_a_missing_contract_is_generated_from_its_plan(world: World) -> None:
    whole = world.plan()

    document = world.cli.json("gate", "repair", "contract_compliance", "5", "1", "2")

    assert {key: document.get(key) for key in ("attempts", "gate", "repaired", "reason", "result")} == {
        "attempts": 1, "gate": "contract_compliance", "repaired": True, "reason": None, "result": "pass",
    }  # fmt: skip
    assert world.contract.read_bytes() == whole


async def test_a_passing_gate_changes_nothing(world: World) -> None:
    world.sign(task_count=7)  # differs from the plan, but valid
    before = world.contract.read_bytes()

    outcome = await world.repair(task="7")

    assert (outcome.repaired, outcome.attempts) == (True, 0)
    assert world.contract.read_bytes() == before
    assert world.history() == []


async def test_a_task_that_the_plan_does_not_have_either_is_no_reason_to_write(world: World) -> None:
    world.sign()
    world.contract.write_bytes(changed(world.contract.read_bytes()))
    before = world.contract.read_bytes()

    outcome = await world.repair(task="9")

    assert (outcome.repaired, outcome.attempts) == (False, 2)
    assert outcome.reason == "max retries exhausted, escalated to lead"
    assert outcome.hindrance == "by the plan, too: task 9 outside range 1-2"
    assert world.contract.read_bytes() == before


async def test_a_plan_without_tasks_takes_nothing_from_its_contract(world: World) -> None:
    world.sign()
    path = world.planning / "phases/05-demo/05-01-PLAN.md"
    path.write_text("---\nphase: 5\nplan: 1\n---\n<task><name>First</name></task>\n")
    before = world.contract.read_bytes()

    outcome = await world.repair(task="3")

    assert not outcome.repaired
    assert world.contract.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["phases/05-demo/01-PLAN.md", "phases/5-demo/5-1-PLAN.md", "milestones/shop/phases/05-demo/05-01-PLAN.md",
     "milestones/shop/phases/05-demo/01-PLAN.md"],
)  # fmt: skip
async def test_a_plan_is_found_however_it_is_spelled_and_in_the_active_milestone(world: World, name: str) -> None:
    (world.planning / "ACTIVE").write_text("shop\n")
    whole = world.plan(name)

    assert (await world.repair()).repaired
    assert world.contract.read_bytes() == whole


async def test_the_active_milestone_goes_before_the_phases_folder(world: World) -> None:
    world.plan("phases/05-demo/01-PLAN.md", checks='["old"]')
    current = world.plan("milestones/shop/phases/05-demo/01-PLAN.md", checks='["new"]')
    (world.planning / "ACTIVE").write_text("shop")

    assert (await world.repair()).repaired
    assert world.contract.read_bytes() == current


@pytest.mark.parametrize("slug", ["../..", ".", "..", "shop/../shop", "/", "no such", "\0", "a" * 9999, "shop\nshop"])
async def test_an_active_milestone_that_is_no_name_leads_nowhere(world: World, slug: str) -> None:
    for elsewhere in ("milestones/shop", "milestones", ".."):
        world.plan(f"{elsewhere}/phases/05-demo/01-PLAN.md", checks='["elsewhere"]')
    whole = world.plan()
    (world.planning / "ACTIVE").write_text(slug)

    assert (await world.repair()).repaired
    assert world.contract.read_bytes() == whole


@pytest.mark.parametrize(
    "name",
    ["phases/05-demo/05-02-PLAN.md", "phases/05b-demo/01-PLAN.md", "phases/15-x/01-PLAN.md",
     "phases/05-demo/06-01-PLAN.md", "milestones/shop/phases/05-demo/01-PLAN.md"],
)  # fmt: skip
async def test_a_contract_is_not_made_from_another_plan(world: World, name: str) -> None:
    world.plan(name)

    outcome = await world.repair()

    assert (outcome.repaired, outcome.hindrance) == (False, "there is no file of plan 5-1")
    assert not world.contract.exists()


async def test_a_plan_file_with_other_numbers_is_not_used(world: World) -> None:
    world.plan(plan=2)

    outcome = await world.repair()

    assert outcome.hindrance == "05-01-PLAN.md does not contain the numbers of plan 5-1"
    assert not world.contract.parent.exists()


async def test_neither_of_two_different_plans_is_chosen(world: World) -> None:
    world.plan("phases/05-demo/01-PLAN.md")
    world.plan("phases/05-other/05-01-PLAN.md", checks='["true"]')

    outcome = await world.repair()

    assert outcome.hindrance is not None
    assert outcome.hindrance.startswith("there are 2 files of plan 5-1, and they differ")
    assert not world.contract.exists()


async def test_no_contract_is_made_if_contracts_are_disabled(world: World) -> None:
    world.plan()
    world.configure(v2_hard_contracts=False)

    assert not (await world.repair()).repaired
    assert not world.contract.exists()


async def test_a_contract_that_is_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    world.plan()
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text("{}")
    world.contract.parent.mkdir()
    world.contract.symlink_to(elsewhere)

    outcome = await world.repair()

    assert not outcome.repaired
    assert "symbolic link" in str(outcome.hindrance)
    assert elsewhere.read_text() == "{}"
    assert world.contract.is_symlink()
    assert [action for _, action, _ in world.history()] == ["escalated"]


async def test_a_folder_of_contracts_that_is_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    world.plan()
    (tmp_path / "elsewhere").mkdir()
    world.contract.parent.symlink_to(tmp_path / "elsewhere")

    assert "symbolic link" in str((await world.repair()).hindrance)
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_contract_that_is_no_file_ends_in_a_sentence(world: World) -> None:
    world.plan()
    world.contract.mkdir(parents=True)

    outcome = await world.repair()

    assert outcome.answer.evidence == "invalid contract JSON"
    assert "not an ordinary file" in str(outcome.hindrance)


# -- alerts ------------------------------------------------------------------------------------------------------


def test_an_unrepairable_gate_is_reported_to_the_lead_in_the_plugins_format(world: World) -> None:
    world.sign()

    document = world.cli.json("gate", "repair", "contract_compliance", "05", "01", "9", code=1)

    assert {key: document[key] for key in ("attempts", "gate", "reason", "repaired")} == {
        "attempts": 2, "gate": "contract_compliance", "reason": "max retries exhausted, escalated to lead",
        "repaired": False,
    }  # fmt: skip
    assert ("gate", "escalated", "contract_compliance/5-1-T9") in world.history()
    (event,) = world.events()
    assert (event["event"], event["phase"], event["plan"]) == ("task_blocked", 5, 1)
    assert event.keys() == {"correlation_id", "data", "event", "event_id", "phase", "plan", "ts"}
    assert event["data"] == {
        "attempts": "2", "gate": "contract_compliance", "next_action": "investigate_and_fix", "owner": "lead",
        "reason": "task 9 outside range 1-2 (by the plan, too: task 9 outside range 1-2)", "task": "9",
        "task_id": "5-1-T9",
    }  # fmt: skip


@pytest.mark.parametrize("gate", ["verification_threshold", "no-such-gate"])
async def test_a_gate_that_cannot_be_repaired_is_reported_at_once(world: World, gate: str) -> None:
    world.plan()

    outcome = await world.repair(gate)

    assert (outcome.repaired, outcome.attempts) == (False, 0)
    assert outcome.reason == "not repairable, escalated to lead"
    assert world.history() == [("gate", "escalated", f"{gate}/5-1-T1")]
    assert [event["data"]["next_action"] for event in world.events()] == ["manual_intervention"]


async def test_the_event_log_hears_nothing_where_the_plugin_keeps_none(world: World) -> None:
    world.configure(v3_event_log=False)

    assert not (await world.repair()).repaired
    assert world.history() == [("gate", "escalated", "contract_compliance/5-1-T1")]
    assert not (world.planning / ".events").exists()


def test_an_answer_is_given_also_where_nothing_can_be_written_down(world: World) -> None:
    world.sign()
    folder = Paths(world.planning.parent).folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("in the way")

    result = world.cli("gate", "repair", "contract_compliance", "5", "1", "9", "--json")

    assert result.returncode == 1
    assert json.loads(result.stdout)["repaired"] is False
    assert "the failure could not be reported" in result.stderr


# -- required_checks ----------------------------------------------------------------------------------------------


async def test_checks_that_all_succeed_are_passed(world: World) -> None:
    world.sign(verification_checks=["true", "test -d .yolo-planning", 7])

    answer = await world.ask("required_checks")

    assert (answer.result, answer.evidence) == ("pass", "all verification checks passed")
    assert [(each.check, each.exit) for each in answer.checks] == [("true", 0), ("test -d .yolo-planning", 0)]


async def test_failed_checks_are_named_with_their_output(world: World) -> None:
    world.sign(verification_checks=["true", "echo no >&2; exit 3", "a\0b", "kill -9 $$"])

    answer = await world.ask("required_checks")

    assert answer.evidence == "checks failed: echo no >&2; exit 3; a\0b; kill -9 $$;"
    assert [each.exit for each in answer.checks] == [0, 3, None, -signal.SIGKILL]
    assert answer.checks[1].said == "no"
    assert "cannot be run" in answer.checks[2].said


def test_output_of_checks_is_kept_out_of_the_answer(world: World) -> None:
    megabytes = f"{sys.executable} -c \"import sys; print('o' * 6_000_000); sys.exit('e' * 6_000_000)\""
    world.sign(verification_checks=[megabytes, "cd src && pwd"])

    result = world.cli("gate", "check", "required_checks", "5", "1", "1", "--json")

    assert result.returncode == 1
    assert json.loads(result.stdout)["result"] == "fail"
    assert len(result.stdout) < 10_000


def gone(pid: int) -> bool:
    return Processes(backend()).identify(pid) is None


async def test_a_check_that_hangs_and_does_not_listen_is_ended_with_all_that_it_started(world: World) -> None:
    world.configure(command_timeout_ms=1000)
    written = world.project / "pids"
    world.sign(verification_checks=[f"trap '' TERM; sleep 600 & echo $$ $! > {written}; wait; sleep 600", "true"])

    answer = await world.ask("required_checks")

    assert answer.result == "fail"
    assert answer.evidence.endswith("(took longer than 1 s);")
    assert [each.timed_out for each in answer.checks] == [True, False]
    wait_until(lambda: all(gone(int(pid)) for pid in written.read_text().split()), "all that it started to end")


async def test_a_check_that_took_too_long_has_twice_the_time_at_the_second_attempt(world: World) -> None:
    world.configure(command_timeout_ms=1000)
    world.sign(verification_checks=["test -e slow || { touch slow; sleep 600; }"])

    outcome = await world.repair("required_checks")

    assert (outcome.repaired, outcome.attempts) == (True, 2)
    assert [each.limit_s for each in outcome.answer.checks] == [2.0]


async def test_checks_without_a_limit_have_half_a_minute_and_then_a_whole(world: World) -> None:
    world.sign(verification_checks=["false"])

    assert [each.limit_s for each in (await world.ask("required_checks")).checks] == [30.0]
    assert [each.limit_s for each in (await world.repair("required_checks")).answer.checks] == [60.0]


@pytest.mark.parametrize(("needed", "repaired", "runs"), [(1, True, 1), (2, True, 2), (3, False, 2)])
async def test_checks_are_run_again_twice_at_most(world: World, needed: int, repaired: bool, runs: int) -> None:
    world.sign(verification_checks=[f"echo run >> runs; test $(wc -l < runs) -ge {needed}"])

    outcome = await world.repair("required_checks")

    assert (outcome.repaired, outcome.attempts) == (repaired, runs)
    assert (world.project / "runs").read_text().split() == ["run"] * runs
    assert len(world.events()) == (0 if repaired else 1)


def test_ending_the_gate_ends_its_check(world: World, children: Children) -> None:
    written = world.project / "pid"
    world.sign(verification_checks=[f"echo $$ > {written}.new; mv {written}.new {written}; sleep 600"])
    ours = children.start(*PROGRAM, "gate", "check", "required_checks", "5", "1", "1", cwd=world.project)
    wait_until(written.exists, "the check to run")

    ours.send_signal(signal.SIGTERM)

    assert ours.wait(LIMIT_S) == 128 + signal.SIGTERM
    wait_until(lambda: gone(int(written.read_text())), "the check to end")


@pytest.mark.parametrize("gate", ["required_checks", "protected_file", "forbidden_commands"])
async def test_without_a_contract_that_can_be_read_these_are_passed_as_by_the_plugin(world: World, gate: str) -> None:
    assert await world.says(gate) == ("pass", "no contract, fail-open")
    world.contract.parent.mkdir()
    world.contract.write_bytes(b'{"verification_che')
    assert await world.says(gate) == ("pass", "invalid contract JSON, fail-open")
    world.contract.write_bytes(b'{"verification_checks": "false", "forbidden_paths": 7}')
    assert (await world.says(gate))[0] == "pass"


# -- protected_file -----------------------------------------------------------------------------------------------


def stage(world: World, *names: str) -> None:
    for name in names:
        path = world.project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    world.git("add", "--force", *names)


@pytest.mark.parametrize("name", [".env", "secrets/key", "secrets/deep/ke y"])
async def test_a_forbidden_file_that_is_staged_is_found(repository: World, name: str) -> None:
    repository.sign()
    stage(repository, name, "src/a.js")

    assert await repository.says("protected_file") == ("fail", f"forbidden files staged: {name}")


async def test_files_beside_the_forbidden_ones_may_be_staged(repository: World) -> None:
    repository.sign()
    stage(repository, ".envrc", "src/.env", "secrets.md")
    (repository.project / ".env").write_text("not staged")

    assert await repository.says("protected_file") == ("pass", "no forbidden files staged")


async def test_a_forbidden_file_that_is_moved_away_is_found(repository: World) -> None:
    repository.sign()
    stage(repository, ".env")
    repository.git("commit", "-qm", "feat(x): y")
    repository.git("mv", ".env", "harmless")

    assert await repository.says("protected_file") == ("fail", "forbidden files staged: .env")


async def test_a_forbidden_file_is_found_in_a_project_below_its_repository(repository: World) -> None:
    below = repository.project / "apps" / "shop"
    (below / plugin.PLANNING).mkdir(parents=True)
    shop = World(below)
    shop.sign(forbidden_paths=[".env", "infra/"])
    stage(repository, "apps/shop/.env", "apps/other/.env", "infra/key")

    assert await shop.says("protected_file") == ("fail", "forbidden files staged: apps/shop/.env infra/key")


async def test_without_a_repository_nothing_is_staged_and_nothing_committed(world: World) -> None:
    world.sign()

    assert await world.says("protected_file") == ("pass", "no forbidden files staged")
    assert await world.says("commit_hygiene") == ("pass", "no commits to check")


async def test_a_gate_fails_when_git_gives_no_answer(
    repository: World, shadow: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.sign()
    shadow("git", "echo 'fatal: bad index' >&2; exit 128")
    assert await repository.says("protected_file") == ("fail", "git cannot list the staged files: fatal: bad index")
    assert await repository.says("commit_hygiene") == ("fail", "git cannot show the last commit: fatal: bad index")

    monkeypatch.setenv("PATH", "/nowhere")
    assert (await repository.says("protected_file"))[1].startswith(
        "git cannot list the staged files: git cannot be run"
    )


# -- commit_hygiene -----------------------------------------------------------------------------------------------


async def test_in_an_empty_repository_there_are_no_commits_to_check(repository: World) -> None:
    assert await repository.says("commit_hygiene") == ("pass", "no commits to check")


@pytest.mark.parametrize(
    ("subject", "evidence"),
    [
        ("feat(api): add it", "commit format valid"),
        ("chore(ünïcode): ja", "commit format valid"),
        ("add it", "commit format invalid: add it"),
        ("feat: add it", "commit format invalid: feat: add it"),
        ("Feat(api): add it", "commit format invalid: Feat(api): add it"),
    ],
)
async def test_the_last_commit_must_name_its_type(repository: World, subject: str, evidence: str) -> None:
    repository.git("commit", "-q", "--allow-empty", "-m", "fix(first): fine")
    repository.git("commit", "-q", "--allow-empty", "-m", f"{subject}\n\nfeat(not): the subject")

    assert (await repository.says("commit_hygiene"))[1] == evidence


SIGNER = """#!/bin/sh
cat > /dev/null
case "$*" in
    *--verify*) echo 'fix(signature): it is good' >&2; echo '[GNUPG:] GOODSIG t' ;;
    *) printf '\\n[GNUPG:] SIG_CREATED \\n' >&2; echo '-----BEGIN PGP SIGNATURE-----' ;;
esac
"""


async def test_signature_lines_are_not_taken_for_the_subject(repository: World, tmp_path: Path) -> None:
    signer = tmp_path / "signer"
    signer.write_text(SIGNER)
    signer.chmod(0o755)
    repository.git("config", "gpg.program", str(signer))
    repository.git("config", "log.showSignature", "true")
    repository.git("commit", "-q", "--allow-empty", "-S", "-m", "no form")

    assert await repository.says("commit_hygiene") == ("fail", "commit format invalid: no form")


# -- artifact_persistence -----------------------------------------------------------------------------------------


def write(world: World, *names: str, text: str = "Done.\n") -> None:
    for name in names:
        path = world.planning / "phases" / "05-demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("summaries", [("01-SUMMARY.md", "02-SUMMARY.md"), ("05-01-SUMMARY.md", "5-2-SUMMARY.md")])
async def test_plans_before_this_one_must_have_summaries_however_spelled(
    world: World, summaries: tuple[str, str]
) -> None:
    write(world, "01-PLAN.md", "05-02-PLAN.md", "05-03-PLAN.md", summaries[0])
    assert await world.says("artifact_persistence", plan=3) == ("fail", "missing SUMMARY.md for: plan-2")

    write(world, summaries[1])
    assert await world.says("artifact_persistence", plan=3) == ("pass", "all prior plan artifacts present")


async def test_a_summary_with_nothing_in_it_is_none(world: World) -> None:
    write(world, "01-PLAN.md")
    write(world, "01-SUMMARY.md", text=" \n")

    assert await world.says("artifact_persistence", plan=2) == ("fail", "missing SUMMARY.md for: plan-1")


@pytest.mark.parametrize("gate", ["artifact_persistence", "verification_threshold"])
async def test_a_phase_without_a_folder_has_nothing_to_show(world: World, gate: str) -> None:
    (world.planning / "phases" / "15-other").mkdir(parents=True)
    (world.planning / "phases" / "05-notes.md").write_text("no folder")

    assert await world.says(gate) == ("pass", "phase dir not found")


# -- verification_threshold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("---\nresult: PASS\n---\n161 passed; 2 failed, as before\n", "pass"),
        ("---\nstatus: fail\nchecks_passed: 3\n---\nMost pass.\n", "fail"),
        ("---\nresult: PARTIAL\n---\n2 fail\n", "pass"),
        ("---\nphase: 5\nchecks_passed: 0\n---\n0 passed, 3 failed\n", "fail"),
        ("12 passed, 0 failed\n", "pass"),
        ("3 checks, 0 failed\n", "pass"),
        ("All is well.\n", "pass"),
        ("", "pass"),
    ],
)
@pytest.mark.parametrize("name", ["VERIFICATION.md", "05-VERIFICATION.md"])
async def test_a_verification_is_believed_for_its_verdict(world: World, name: str, text: str, result: str) -> None:
    write(world, name, text=text)

    assert (await world.says("verification_threshold"))[0] == result


@pytest.mark.parametrize(("tier", "result"), [("quick", "pass"), ("skip", "pass"), ("standard", "fail"), (7, "fail")])
async def test_a_verification_may_only_be_missing_where_none_is_wanted(world: World, tier: object, result: str) -> None:
    write(world, "01-PLAN.md", "04-VERIFICATION.md")
    world.configure(verification_tier=tier)

    assert (await world.says("verification_threshold"))[0] == result


# -- forbidden_commands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("later", "result"), [(4, "fail"), (5, "pass")])
async def test_a_destructive_command_counts_while_it_is_among_the_last_five_lines(
    world: World, later: int, result: str
) -> None:
    world.sign(forbidden_commands=["rm -rf"])
    blocked = '{"event":"bash_guard_block","command_preview":"rm -rf /"}\n'
    (world.planning / ".event-log.jsonl").write_text(blocked + '{"event":"x"}\n' * later)

    answer = await world.says("forbidden_commands")

    assert answer[0] == result
    assert ("rm -rf /" in answer[1]) == (result == "fail")


async def test_no_command_is_searched_for_if_none_is_forbidden(world: World) -> None:
    world.sign()
    (world.planning / ".event-log.jsonl").write_text('{"event":"bash_guard_block"}\n')

    assert await world.says("forbidden_commands") == ("pass", "no forbidden commands defined")
