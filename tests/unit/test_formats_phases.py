"""A phase rebuilt from its plans, summaries and events: real ones, and arbitrary ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.project import SAMPLES
from yolo_supervisor.formats.plugin import phases
from yolo_supervisor.formats.plugin.phases import Event, Rebuilt

AT = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)
PLAN = b'---\nphase: 5\nplan: 1\ntitle: "Demo"\nwave: 1\n---\n# Plan\n'
DONE = b"---\nphase: 5\nplan: 1\nstatus: complete\n---\nDone.\n"

relaxed = settings(deadline=None, max_examples=100)
names = st.from_regex(r"(0?[35]-)?0?[12]-(PLAN|SUMMARY)\.md", fullmatch=True) | st.text(max_size=8)
words = st.sampled_from(
    [b"---\n", b"status: ", b"complete\n", b"failed\n", b'""\n', b"plan: ", b"wave: ", b"\xff", b"\0"]
)
values = st.recursive(st.none() | st.text() | st.integers() | st.floats(), st.lists)
contents = st.binary(max_size=30) | st.lists(words, max_size=8).map(b"".join)


def samples(pattern: str) -> list[Path]:
    found = sorted(SAMPLES.glob(pattern))
    assert found, f"no files {pattern} in {SAMPLES}"
    return found


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def logged(*entries: Mapping[str, Any]) -> list[Event]:
    found, bad = phases.events("".join(json.dumps(entry) + "\n" for entry in entries).encode())
    assert bad == 0
    return found


def event(kind: str, plan: object = 1, phase: object = 5, **data: str) -> dict[str, Any]:
    return {"event": kind, "phase": phase, "plan": plan, "ts": "2026-11-22T20:55:10Z", "data": data}


def rebuilt_phase(
    files: Mapping[str, bytes], *entries: Mapping[str, Any], leases: Mapping[str, datetime | None] | None = None
) -> Rebuilt:
    return phases.rebuild("05-demo", files, logged(*entries), leases or {}, AT)


def statuses(rebuilt: Rebuilt) -> dict[str, str]:
    return {plan["id"]: plan["status"] for plan in rebuilt.state["plans"]}


def of_one(
    *entries: Mapping[str, Any], summary: bytes | None = None, leases: Mapping[str, datetime | None] | None = None
) -> str:
    """The status of the only plan."""
    files = {"05-01-PLAN.md": PLAN, **({"05-01-SUMMARY.md": summary} if summary is not None else {})}
    return statuses(rebuilt_phase(files, *entries, leases=leases))["05-01"]


# -- front matter -------------------------------------------------------------------------------------------------


def test_front_matter_is_read_line_by_line_and_unquoted() -> None:
    data = '\ufeff---\r\nphase: \'05\'\r\ntitle: "A: b"\r\nlist:\r\n  - x: 1\r\nempty: ""\r\n---\r\nstatus: failed\r\n'

    assert phases.front_matter(data.encode()) == {"phase": "05", "title": "A: b"}
    assert phases.front_matter(b"---\ntitle: erase\n---\n") == {"title": "erase"}


def test_a_nested_field_does_not_hide_one_of_the_document() -> None:
    data = b"---\ntasks:\n  status: failed\nstatus: complete\nstatus: partial\n---\n"

    assert phases.front_matter(data)["status"] == "complete"


def test_a_file_without_front_matter_is_read_whole() -> None:
    assert phases.front_matter(b'title: "Bootstrap"\nwave: 2\n') == {"title": "Bootstrap", "wave": "2"}


@given(contents)
@relaxed
def test_fields_of_any_plan_are_non_empty_text(data: bytes) -> None:
    assert all(value.strip() for value in phases.front_matter(data).values())


def everywhere(value: object) -> bytes:
    """An event with that value in every field."""
    return json.dumps({"event": "e", "phase": value, "plan": value, "ts": value, "data": {"task": value}}).encode()


# -- the event log ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        '{"event":"plan_end","phase":5,"plan":1}',
        '{"type":"plan_end","phase":5,"plan":"01"}',
        '{"event":"plan_end","phase":"5","plan":"1"}',
        '{"event":"plan_end","phase":"05","plan":"05-01"}',
        '{"event":"plan_end","phase":5,"data":{"plan":"05-01"}}',
        '{"event":"plan_end","phase":5,"data":{"plan":1}}',
    ],
)
def test_an_event_is_understood_in_every_spelling(line: str) -> None:
    [found], bad = phases.events(line.encode())

    assert (found.kind, found.phase, found.plan, found.at, bad) == ("plan_end", 5, 1, None, 0)


@pytest.mark.parametrize("phase", [0, -1, None, True, 5.5, "x", "03-01", "٥", 10**30, [5]])
def test_a_phase_that_is_no_number_is_none(phase: object) -> None:
    assert logged({"event": "error", "phase": phase})[0].phase is None


def test_an_events_time_task_and_data_are_kept_as_text() -> None:
    data = {"task_id": "5-1-T1", "attempts": 2, "ok": True, "more": {"left": "out"}}

    [found] = logged({"event": "task_blocked", "phase": 5, "plan": 1, "ts": "2026-11-22T20:55:10Z", "data": data})

    assert found == Event("task_blocked", 5, 1, "5-1-T1", {"task_id": "5-1-T1", "attempts": "2", "ok": "true"}, AT)


def test_bad_lines_are_counted_and_the_others_read() -> None:
    found, bad = phases.events(
        b'{"event":"a"}\n\nnull\n{"phase":5}\n\xff\n{"event":"b","plan":05-01}\n{"event":"c"}\n{"ev'
    )

    assert ([each.kind for each in found], bad) == (["a", "c"], 5)


@given(st.binary() | values.map(everywhere))
@relaxed
def test_every_line_of_any_log_is_an_event_or_bad(data: bytes) -> None:
    found, bad = phases.events(data)

    assert len(found) + bad == len([line for line in data.splitlines() if line.strip()])


def test_a_real_log_is_understood_to_the_last_line() -> None:
    found, bad = phases.events(samples("plugin-output/live-tree-rust-before-stop/.events/*")[0].read_bytes())

    blocked = [each for each in found if each.kind == "task_blocked"]
    review = next(each for each in found if each.kind == "review_loop_start")
    assert bad == 0
    assert [(each.phase, each.plan, each.task, each.at) for each in blocked] == [(5, 1, "9", None), (5, 1, "1", None)]
    assert (review.phase, review.plan) == (5, 2)


def test_only_the_broken_line_of_a_real_bash_log_is_bad() -> None:
    found, bad = phases.events(samples("plugin-output/live-tree-bash-before-stop/.events/*")[0].read_bytes())

    assert (len(found), bad) == (6, 1)


# -- a rebuilt phase ----------------------------------------------------------------------------------------------


def test_every_real_finished_phase_comes_out_complete() -> None:
    for folder in sorted({path.parent for path in samples("phases/**/*-SUMMARY.md")}):
        state = phases.rebuild(folder.name, contents_of(folder), [], {}, AT).state

        assert (state["status"], state["wave"]) == ("complete", 1), folder
        assert {plan["status"] for plan in state["plans"]} == {"complete"}, folder
        assert len(state["plans"]) == len(list(folder.glob("*-SUMMARY.md"))), folder


def test_a_rebuilt_state_agrees_with_the_plugins_recover_state() -> None:
    for path in samples("phases/recover-state/*.json"):
        theirs = json.loads(path.read_text())["delta"]
        name = f"{theirs['phase']:02d}-{theirs['phase_name']}"
        [milestone] = [each for each in (SAMPLES / "phases").iterdir() if f"_{each.name}_" in path.name]
        [folder] = milestone.rglob(name)

        ours = phases.rebuild(name, contents_of(folder), [], {}, AT).state

        assert (ours["phase"], ours["phase_name"]) == (theirs["phase"], theirs["phase_name"])
        for our, their in zip(ours["plans"], theirs["plans"], strict=bool(theirs["plans"])):
            assert (our["title"], our["wave"]) == (their["title"], their["wave"])
            assert our["id"].endswith(their["id"])
        if theirs["plans"]:
            assert ours["total_waves"] == theirs["total_waves"]
        if theirs["status"] == "complete":  # what it calls pending are summaries in the other spelling
            assert (ours["status"], ours["wave"], ours["plans"]) == (theirs["status"], theirs["wave"], theirs["plans"])


def test_a_real_interrupted_phase_is_rebuilt_as_it_was() -> None:
    tree = samples("plugin-output/live-tree-rust-before-stop")[0]
    events, _ = phases.events((tree / ".events" / "event-log.jsonl").read_bytes())
    files = contents_of(tree / "phases" / "05-demo-phase")

    rebuilt = phases.rebuild("05-demo-phase", files, events, {"5-2-T1": AT}, AT, "878802b3")

    assert rebuilt.state == {
        "phase": 5, "phase_name": "demo-phase", "status": "running", "wave": 2, "total_waves": 2,
        "correlation_id": "878802b3", "steps_completed": [],
        "plans": [
            {"id": "05-01", "title": "Demo plan 1", "wave": 1, "status": "complete"},
            {"id": "05-02", "title": "Demo plan 2", "wave": 2, "status": "running"},
        ],
    }  # fmt: skip
    assert rebuilt.inferred == ()


@pytest.mark.parametrize("plan", ["01-PLAN.md", "05-01-PLAN.md", "5-1-PLAN.md"])
@pytest.mark.parametrize("summary", ["01-SUMMARY.md", "05-01-SUMMARY.md", "5-1-SUMMARY.md"])
def test_a_plan_finds_its_summary_in_either_spelling(plan: str, summary: str) -> None:
    assert statuses(rebuilt_phase({plan: PLAN, summary: DONE})) == {"05-01": "complete"}


@pytest.mark.parametrize(
    ("line", "status", "certain"),
    [
        (b"status: complete", "complete", True),
        (b'status: "complete"', "complete", True),
        (b"status: completed", "complete", True),
        (b"status: done", "complete", True),
        (b"status: Complete # at last", "complete", True),
        (b"status: failed", "failed", True),
        (b"status: partial", "pending", False),
        (b"status: {complete|partial|failed}", "pending", False),
        (b"tasks_completed: 2", "complete", False),
        (b'status: " "', "complete", False),
    ],
)
def test_the_status_in_a_summary_counts(line: bytes, status: str, certain: bool) -> None:
    rebuilt = rebuilt_phase({"05-01-PLAN.md": PLAN, "05-01-SUMMARY.md": b"---\nplan: 1\n" + line + b"\n---\n"})

    sentences = rebuilt.known if certain else rebuilt.inferred
    assert statuses(rebuilt) == {"05-01": status}
    assert any(f"plan 05-01 is {status}" in each and "05-01-SUMMARY.md" in each for each in sentences)


@pytest.mark.parametrize("data", [b"", b" \n", b"\0\0\0\0", b"\xef\xbb\xbf", b"---\nphase: 5\npl"])
def test_a_summary_that_is_empty_or_cut_off_proves_nothing(data: bytes) -> None:
    assert of_one(summary=data) == "pending"
    assert of_one(event("plan_end", status="failed"), summary=data) == "failed"
    assert statuses(rebuilt_phase({"05-01-SUMMARY.md": data, "01-SUMMARY.md": DONE})) == {"05-01": "complete"}


def test_a_summary_without_proof_is_reported() -> None:
    assert [each for each in rebuilt_phase({"05-01-SUMMARY.md": b""}).inferred if "empty or cut off" in each]


def test_the_long_spelling_of_a_summary_counts() -> None:
    failed = DONE.replace(b"complete", b"failed")

    assert statuses(rebuilt_phase({"01-SUMMARY.md": DONE, "05-01-SUMMARY.md": failed})) == {"05-01": "failed"}


def test_a_real_summary_without_front_matter_finishes_its_plan() -> None:
    assert of_one(summary=b"# Plan 05 Summary: Security Filter\n\nStatus of all: done\n") == "complete"


def test_the_summary_of_the_whole_phase_does_not_finish_the_plan_of_that_number() -> None:
    whole = b"# Phase 5 Summary\n\n| Plans | 6 |\n"

    assert statuses(rebuilt_phase({"05-05-PLAN.md": PLAN, "05-SUMMARY.md": whole})) == {"05-05": "pending"}
    assert statuses(rebuilt_phase({"05-05-PLAN.md": PLAN, "05-SUMMARY.md": DONE})) == {"05-05": "complete"}
    assert statuses(rebuilt_phase({"05-PLAN.md": PLAN, "05-SUMMARY.md": whole})) == {"05-05": "complete"}


def test_events_of_unknown_plans_are_skipped_and_reported() -> None:
    rebuilt = rebuilt_phase({"05-01-PLAN.md": PLAN, "04-01-SUMMARY.md": DONE, "05-CONTEXT.md": b"x"})

    assert statuses(rebuilt) == {"05-01": "pending"}
    assert [each for each in rebuilt.inferred if "04-01-SUMMARY.md" in each]


def test_a_summary_without_a_plan_counts_as_a_plan() -> None:
    rebuilt = rebuilt_phase({"05-02-SUMMARY.md": b"---\ntitle: Late\nwave: 3\nstatus: complete\n---\n"})

    assert rebuilt.state["plans"] == [{"id": "05-02", "title": "Late", "wave": 3, "status": "complete"}]


def test_a_plan_that_was_started_runs_as_long_as_it_or_a_task_of_it_is_leased() -> None:
    start = event("plan_start")
    past = AT - timedelta(seconds=1)

    assert of_one(start, leases={"05-01": AT}) == "running"
    assert of_one(start, leases={"05-01": past}) == "stale"
    assert of_one(start, leases={"5-1-T1": past, "5-1-T2": None}) == "running"
    assert of_one(start, leases={"5-2-T1": None, "4-1-T1": None, "src__a.js": None}) == "stale"
    assert of_one(start) == "stale"


@pytest.mark.parametrize(
    ("entries", "status"),
    [
        ([event("plan_end", status="complete")], "complete"),
        ([event("plan_end", status="done")], "complete"),
        ([event("plan_end", plan="01", status="completed")], "complete"),
        ([event("plan_end")], "complete"),
        ([event("plan_end", status="failed")], "failed"),
        ([event("plan_end", status="partial")], "pending"),
        ([event("plan_end", status="failed"), event("plan_start")], "running"),
        ([event("plan_start"), event("plan_end", status="complete"), event("task_completed_confirmed")], "complete"),
        ([event("task_started", task_id="5-1-T1")], "running"),
        ([event("review_loop_start", plan="05-01")], "pending"),
        ([event("plan_end", phase=4), event("plan_end", plan=2), event("plan_end", phase=0)], "pending"),
    ],
)
def test_without_a_summary_the_latest_event_of_the_plan_decides(entries: list[dict[str, Any]], status: str) -> None:
    assert of_one(*entries, leases={"05-01": None}) == status


def test_a_summary_outranks_an_event_and_the_contradiction_is_reported() -> None:
    files = {"05-01-PLAN.md": PLAN, "05-01-SUMMARY.md": DONE}
    rebuilt = rebuilt_phase(files, event("plan_end", status="failed"))

    assert statuses(rebuilt) == {"05-01": "complete"}
    assert [each for each in rebuilt.inferred if "failed by the event log" in each]
    assert rebuilt_phase(files, event("plan_start")).inferred == ()


@pytest.mark.parametrize(
    ("given_plans", "status", "wave"),
    [
        ([], "pending", 1),
        ([(1, "complete"), (2, "complete")], "complete", 1),
        ([(1, "complete"), (2, "")], "running", 2),
        ([(1, ""), (2, "")], "pending", 1),
        ([(1, "complete"), (2, "failed"), (3, "")], "failed", 3),
    ],
)
def test_status_and_wave_of_the_phase_follow_from_its_plans(
    given_plans: list[tuple[int, str]], status: str, wave: int
) -> None:
    files = {f"05-{n:02d}-PLAN.md": b"---\nwave: %d\n---\n" % n for n, _ in given_plans}
    files |= {f"05-{n:02d}-SUMMARY.md": f"---\nstatus: {word}\n---\n".encode() for n, word in given_plans if word}

    state = rebuilt_phase(files).state

    assert (state["status"], state["wave"], state["total_waves"]) == (status, wave, len(given_plans) or 1)


def test_a_phase_with_a_plan_at_work_runs_and_one_with_a_stale_plan_is_stale() -> None:
    files = {"05-01-PLAN.md": PLAN, "05-02-PLAN.md": PLAN}

    assert rebuilt_phase(files, event("plan_start"), leases={"05-01": None}).state["status"] == "running"
    assert rebuilt_phase(files, event("plan_start")).state["status"] == "stale"


def test_a_phase_waits_for_its_stale_plans() -> None:
    files = {"05-01-PLAN.md": PLAN, "05-02-PLAN.md": PLAN.replace(b"wave: 1", b"wave: 2")}

    assert rebuilt_phase(files, event("plan_start")).state["wave"] == 1


def test_a_lettered_phase_takes_no_events_of_the_next_phase() -> None:
    files = {"03b-01-PLAN.md": PLAN, "02-PLAN.md": PLAN, "03b-02-SUMMARY.md": DONE, "03-01-SUMMARY.md": DONE}

    rebuilt = phases.rebuild("03b-cleanup", files, logged(event("plan_end", phase=3)), {}, AT)

    assert (rebuilt.state["phase"], rebuilt.state["phase_name"]) == (3, "cleanup")
    assert statuses(rebuilt) == {"03b-01": "pending", "03b-02": "complete"}


@pytest.mark.parametrize("name", ["", "demo", "05", "05-", "-demo", "x5-demo"])
def test_a_folder_that_is_no_phase_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not the name of a phase"):
        phases.rebuild(name, {}, [], {}, AT)


@given(
    st.dictionaries(names, contents, max_size=6),
    st.lists(st.builds(event, st.sampled_from(["plan_start", "plan_end", "task_started", "x"]), st.integers(0, 3))),
    st.dictionaries(st.sampled_from(["05-01", "5-2-T1"]) | st.text(max_size=5), st.none() | st.just(AT)),
)
@relaxed
def test_any_phase_folder_gives_a_writable_state(
    files: dict[str, bytes], entries: list[dict[str, Any]], leases: dict[str, datetime | None]
) -> None:
    rebuilt = rebuilt_phase(files, *entries, leases=leases)

    json.dumps(rebuilt.state).encode()
    assert len(statuses(rebuilt)) == len(rebuilt.state["plans"])
    assert set(statuses(rebuilt).values()) <= {"complete", "failed", "running", "stale", "pending"}
    for plan_id, status in statuses(rebuilt).items():
        assert [s for s in rebuilt.known + rebuilt.inferred if s.startswith(f"plan {plan_id} is {status}: ")]


# -- the phase at work --------------------------------------------------------------------------------------------


def test_the_phase_at_work_is_that_of_the_latest_event_that_has_one() -> None:
    dirs = {"01-a": {"01-01-PLAN.md": PLAN}, "02-b": {}, "02b-c": {}}
    entries = logged(event("plan_start", phase=1), event("plan_end", phase="02"), {"event": "rollout_advance"})

    assert phases.current_phase(dirs, entries) == "02-b"
    assert phases.current_phase({"02b-c": {}, "03-d": {}, "01-a": {}}, entries) == "01-a"


def test_without_events_the_first_incomplete_phase_counts_else_the_last() -> None:
    done, unfinished = {"01-SUMMARY.md": DONE}, {"01-PLAN.md": PLAN}

    assert phases.current_phase({"10-c": unfinished, "9-b": unfinished, "01-a": done}, []) == "9-b"
    assert phases.current_phase({"10-c": done, "9-b": done, "notes": {}}, []) == "10-c"
    assert phases.current_phase({"01-a": unfinished}, logged(event("plan_end", phase=7))) == "01-a"
    assert phases.current_phase({"notes": {}}, []) is None
