"""Contracts as the plugin makes them: from real plans byte for byte, and from arbitrary ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.project import SAMPLES
from yolo_supervisor.formats.plugin import contracts, execution_state

HARD = b'{"v2_hard_contracts": true}'
LITE = b'{"v3_contract_lite": true}'
BOTH = b'{"v2_hard_contracts": true, "v3_contract_lite": true}'

PLAN = b"""---
phase: "05"
plan: 01
title: "S\xc3\xa9cond: a plan"
depends_on: [9, x, 10]
must_haves:
  - "It works"
  # by the way

  - 'It stays'
forbidden_paths: [".env", secrets]
verification_checks:
  - "make test"
other: - "no item"
---
# Plan
### Task 1: First
**Files:** `src/b.js` (new), `src/a.js`, `src/b.js`
## Task 2: Second
**Files:** `docs/x.md` (if exists), `src/c.js` (inline tests)
#### Task 3: not a heading of a task
"""

relaxed = settings(deadline=None, max_examples=200)
lines = st.sampled_from(
    ["---", "phase: 5", "plan: 1", "phase: 99999999999999999999", "must_haves:", "- a", "- ", "must_haves: [a, 'b']",
     "depends_on: [1, -2]", "title: 'x", "### Task 1", "## Task", "**Files:** `a`, (new)", "**Files:**", "# x", "\r"]
)  # fmt: skip
plans = st.binary(max_size=60) | st.lists(lines | st.text(max_size=12), max_size=14).map(
    lambda found: "\n".join(["---", "phase: 5", "plan: 1", *found]).encode("utf-8", "replace")
)
configs = st.sampled_from([HARD, LITE, BOTH, b"", b"{", b'{"v2_hard_contracts": true, "max_token_budget": -1}'])


def samples(pattern: str) -> list[Path]:
    found = sorted(SAMPLES.glob(pattern))
    assert found, f"no files {pattern} in {SAMPLES}"
    return found


def made(plan: bytes = PLAN, config: bytes = HARD) -> dict[str, Any]:
    data = contracts.contract(plan, config)
    assert data is not None
    found: dict[str, Any] = json.loads(data)
    return found


def under(head: str) -> dict[str, Any]:
    """The contract of a plan with these lines in its front matter."""
    return made(f"---\nphase: 5\nplan: 1\n{head}\n---\n### Task 1\n".encode())


# -- real ones ----------------------------------------------------------------------------------------------------


def test_every_real_contract_follows_from_its_plan_byte_for_byte() -> None:
    for path in samples("plugin-output/contracts/*.json"):
        *_, milestone, phases, phase, name = path.stem.split("__")
        plan = SAMPLES / "phases" / milestone / phases / phase / f"{name}.md"
        assert contracts.contract(plan.read_bytes(), HARD) == path.read_bytes(), path.name


@pytest.mark.parametrize("version", ["rust", "bash"])
def test_contracts_of_real_plans_equal_those_of_the_rust_version(version: str) -> None:
    (planning,) = samples(f"plugin-output/live-tree-{version}-before-stop")
    (rust,) = samples("plugin-output/live-tree-rust-before-stop/.contracts/5-1.json")
    plan, config = planning / "phases/05-demo-phase/05-01-PLAN.md", planning / "config.json"

    assert contracts.contract(plan.read_bytes(), config.read_bytes()) == rust.read_bytes()


def test_real_contracts_are_intact_but_for_those_of_the_bash_version() -> None:
    for path in samples("plugin-output/contracts/*.json") + samples("plugin-output/live-tree-*/.contracts/*.json"):
        assert contracts.intact(path.read_bytes()) == ("bash" not in str(path)), path


# -- the forms ----------------------------------------------------------------------------------------------------


def test_the_long_form_holds_every_field_of_the_plan() -> None:
    contract = made()

    assert len(contract.pop("contract_hash")) == 64
    assert contract == {
        "allowed_paths": ["docs/x.md", "src/a.js", "src/b.js", "src/c.js` (inline tests)"],
        "depends_on": [9, 10],
        "forbidden_paths": [".env", "secrets"],
        "max_token_budget": 50000,
        "must_haves": ["It works", "It stays"],
        "objective": "Sécond: a plan",
        "phase": 5,
        "phase_id": "phase-5",
        "plan": 1,
        "plan_id": "phase-5-plan-1",
        "task_count": 2,
        "task_ids": ["5-1-T1", "5-1-T2"],
        "timeout_seconds": 600,
        "verification_checks": ["make test"],
    }


def test_the_short_form_holds_five_fields() -> None:
    assert made(config=LITE) == {key: made()[key] for key in
                                 ("phase", "plan", "task_count", "must_haves", "allowed_paths")}  # fmt: skip


def test_with_both_forms_configured_the_hard_one_is_made() -> None:
    assert made(config=BOTH) == made(config=HARD)


@pytest.mark.parametrize("config", [b"", b"{}", b"{", b"[]", b'{"v2_hard_contracts": "true"}', b"\xff"])
def test_without_a_plain_true_there_are_no_contracts(config: bytes) -> None:
    assert contracts.contract(PLAN, config) is None


def test_budget_and_timeout_are_those_of_the_configuration_if_they_are_numbers() -> None:
    def budgets(budget: str) -> tuple[int, int]:
        found = made(
            config=f'{{"v2_hard_contracts":true,"max_token_budget":{budget},"task_timeout_seconds":7}}'.encode()
        )
        return found["max_token_budget"], found["timeout_seconds"]

    assert budgets("40000") == (40000, 7)
    assert {budgets(wrong) for wrong in ("-1", "1.5", "true", '"9"', "null", str(2**64))} == {(50000, 7)}


# -- plans --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        b"", b"# Plan\n### Task 1\n", b"---\nphase: 5\n---\n", b"---\nphase: 03b\nplan: 1\n---\n",
        b"---\nphase: -5\nplan: 1\n---\n", b"---\nphase: 5\nplan: 18446744073709551616\n---\n", PLAN + b"\xff",
        b"\0" * 99, b"---\nphase: ../5\nplan: 1\n---\n",
    ],
)  # fmt: skip
def test_a_plan_that_does_not_say_by_numbers_which_it_is_has_no_contract(plan: bytes) -> None:
    assert contracts.contract(plan, HARD) is None


def test_a_byte_order_mark_before_a_plan_does_no_harm() -> None:
    assert made(b"\xef\xbb\xbf" + PLAN) == made()


def test_a_plan_without_tasks_has_a_contract_without_tasks() -> None:
    contract = made(b"---\nphase: 5\nplan: 1\n---\n<task>\n  <name>First</name>\n</task>\n")

    assert (contract["task_count"], contract["task_ids"], contract["allowed_paths"]) == (0, [], [])


def test_must_haves_by_kind_are_none_for_the_plugin() -> None:
    assert under('must_haves:\n  truths:\n    - "It works"')["must_haves"] == []


@pytest.mark.parametrize(
    ("head", "listed"),
    [
        ("must_haves: []", []),
        ("must_haves:", []),
        ("must_haves: [a, 'b', \"c\", ]", ["a", "b", "c"]),
        ("must_haves:\n- a\n-b\n- c", ["a"]),
        ("must_haves:\n-\n- c", []),
        ("  must_haves:\n\t- a\r", ["a"]),
        ("must_haves:\n- a\nmust_haves: [b]\n- c", ["a", "b"]),
        ("must_haves:\n- [a, b]", ["[a, b]"]),
    ],
)
def test_lists_are_read_line_by_line(head: str, listed: list[str]) -> None:
    assert under(head)["must_haves"] == listed


def test_a_value_that_is_empty_is_passed_over_for_the_next_of_its_name() -> None:
    assert under('title: ""\ntitle: \'"x"\'')["objective"] == '"x"'


@pytest.mark.parametrize(
    ("word", "number"), [("5", 5), ("-05", -5), ("+7", 7), ("1.0", None), ("", None), (str(2**63), None), ("٣", None)]
)
def test_numbers_follow_the_plugins_rule(word: str, number: int | None) -> None:
    assert contracts.integer(word) == number


# -- intact -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(made()))
def test_a_contract_that_was_changed_anywhere_is_not_intact(key: str) -> None:
    assert contracts.intact(execution_state.dump(made()))
    assert not contracts.intact(execution_state.dump({**made(), key: "changed"}))


def test_a_contract_without_a_hash_has_none_to_be_checked() -> None:
    bare = {key: value for key, value in made().items() if key != "contract_hash"}

    assert contracts.intact(execution_state.dump(bare))
    assert contracts.intact(execution_state.dump({**bare, "contract_hash": ""}))


def test_a_contract_that_was_cut_off_anywhere_is_not_intact() -> None:
    data = contracts.contract(PLAN, HARD)
    assert data is not None

    assert contracts.intact(data)
    assert not any(contracts.intact(data[:size]) for size in range(len(data)))


def test_a_byte_order_mark_is_more_than_the_plugin_can_read() -> None:
    assert contracts.load(b"\xef\xbb\xbf{}") is None
    assert contracts.load(b"{}") == {}


def test_a_contract_is_named_by_bare_numbers() -> None:
    assert contracts.path_of(5, 1) == Path(".contracts/5-1.json")


@given(plans, configs)
@relaxed
def test_the_contract_of_any_plan_is_intact_and_deterministic(plan: bytes, config: bytes) -> None:
    data = contracts.contract(plan, config)

    assert data == contracts.contract(plan, config)
    if data is not None:
        assert contracts.intact(data)
        assert execution_state.dump(json.loads(data)) == data


@given(st.binary(max_size=40) | st.dictionaries(st.text(), st.none() | st.floats() | st.text()).map(
    lambda found: json.dumps(found).encode()
))  # fmt: skip
@relaxed
def test_integrity_is_decidable_for_any_input(data: bytes) -> None:
    assert contracts.intact(data) in (True, False)
