"""The plugin's files: real ones of both its versions, and arbitrary ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from support.project import SAMPLES
from yolo_supervisor.formats import tasks
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.models import Lease, Task, iso

STATE = Path(".yolo-planning/.execution-state.json")
LEASE = Path(".yolo-planning/.locks/src__a1.js.lease")
LOCK = LEASE.with_suffix(".lock")
AT = datetime(2026, 11, 22, 20, 55, 10, tzinfo=UTC)
HELD = {"acquired_at": "2026-11-22T20:55:10Z", "owner": "dev-01", "resource": "src/a1.js", "ttl_secs": 60}
HEALTH = {"idle_count": 1, "last_event": "idle", "pid": 15, "role": "dev", "started_at": "2026-11-22T20:55:10Z"}
RUN = {
    "phase": 5, "phase_name": "05-demo", "status": "running", "wave": 1, "unheard_of": {"by": ["us"]},
    "plans": [
        {"id": "05-01", "title": "First", "wave": 1, "status": "complete", "commits": ["4ecc6c1"]},
        {"id": "05-02", "title": "Sécond", "wave": 1, "status": "running", "dept": "uiux"},
    ],
}  # fmt: skip

wild = st.text(max_size=12)
plain = st.none() | st.booleans() | st.integers() | st.floats() | wild
objects = st.dictionaries(
    st.sampled_from(["id", "status", "owner", "title", "pid", "role", "started_at", "ttl_secs", "acquired_at"]) | wild,
    plain | st.lists(plain, max_size=2),
    max_size=6,
)
states = objects.flatmap(lambda o: st.lists(objects | plain, max_size=3).map(lambda plans: {**o, "plans": plans}))
relaxed = settings(deadline=None, max_examples=60)


def dumped(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")


def samples(pattern: str) -> list[Path]:
    found = sorted(SAMPLES.glob(pattern))
    assert found, f"no files {pattern} in {SAMPLES}"
    return found


# -- roles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "role"),
    [
        ("dev", "dev"),
        ("yolo-dev", "dev"),
        ("yolo:dev", "dev"),
        ("yolo:yolo-dev", "dev"),
        ("vbw:vbw-dev", "dev"),
        ("vbw-dev", "dev"),
        ("team-dev-1", "dev"),
        ("@team-dev-01", "dev"),
        ("Yolo:Yolo-Dev-02", "dev"),
        (" dev \n", "dev"),
        ("leader", "lead"),
        ("team-lead", "lead"),
        ("yolo:yolo-lead", "lead"),
        ("arch", "architect"),
        ("yolo-debug", "debugger"),
        ("docs", "docs"),
        ("devops", "devops"),
        ("general-purpose", "general-purpose"),
    ],
)
def test_a_role_is_known_in_every_spelling(spelling: str, role: str) -> None:
    assert plugin_agents.normal_role(spelling) == role


@given(
    at=st.sampled_from(["", "@"]),
    prefixes=st.lists(st.sampled_from(["yolo-", "yolo:", "vbw-", "vbw:", "team-"]), max_size=3).map("".join),
    role=st.sampled_from(["lead", "dev", "debugger", "architect", "docs", "researcher", "reviewer", "qa"]),
    number=st.sampled_from(["", "-1", "-01", "-12"]),
    upper=st.booleans(),
)
@relaxed
def test_repeated_role_prefixes_are_stripped(at: str, prefixes: str, role: str, number: str, upper: bool) -> None:
    spelling = at + prefixes + role + number

    assert plugin_agents.normal_role(spelling.upper() if upper else spelling) == role


# -- .agent-pids, .agent-panes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    ["0", "1", "-1", "-148", "4294967295", "4294967297", "2147483648", "99999999999999999999", "4194305", "",
     " ", "148 149", "14.8", "0x94", "1e3", "١٤٨", "²", "pid", "\0", "null"],
)  # fmt: skip
def test_only_ordinary_pids_are_pids(line: str) -> None:
    assert plugin_agents.agent_pids(f"9\n{line}\n10\n".encode()) == [9, 10]


@given(st.binary() | st.lists(st.integers() | wild).map(lambda lines: "\n".join(map(str, lines)).encode()))
@relaxed
def test_any_pid_file_gives_only_safe_pids(data: bytes) -> None:
    assert all(type(pid) is int and 1 < pid <= plugin_agents.MAX_PID for pid in plugin_agents.agent_pids(data))


@pytest.mark.parametrize("data", [b"15\n16\n", b"15\n16", b"15\r\n16\r\n", b"\n\n15\n16\n\n", b"  15\n\t16 \n"])
def test_pids_are_read_however_their_lines_end(data: bytes) -> None:
    assert plugin_agents.agent_pids(data) == [15, 16]


def test_dead_pids_are_struck_out_and_every_other_line_stays_as_it_is() -> None:
    assert plugin_agents.without_pids(b"15\n150\njunk\n\n-1\n16", frozenset({15})) == b"150\njunk\n\n-1\n16"
    assert plugin_agents.without_pids(b"15 %3\n16 %15\n15 %4\n", frozenset({15})) == b"16 %15\n"
    assert plugin_agents.without_pids(b"15\n", frozenset({15})) == b""


@given(
    lines=st.lists(st.tuples(st.sampled_from(["", " ", "0", "000"]), st.integers(2, 12), st.sampled_from(["", " "]))),
    gone=st.frozensets(st.integers(2, 12)),
)
@example(lines=[("00", 9, "")], gone=frozenset({9}))
@relaxed
def test_a_pid_that_was_struck_out_is_not_read_again(lines: list[tuple[str, int, str]], gone: frozenset[int]) -> None:
    data = "".join(f"{before}{pid}{after}\n" for before, pid, after in lines).encode()

    after = plugin_agents.agent_pids(plugin_agents.without_pids(data, gone))

    assert after == [pid for pid in plugin_agents.agent_pids(data) if pid not in gone]


@given(data=st.binary(), gone=st.frozensets(st.integers(2, 50)))
@relaxed
def test_a_pid_file_mentions_the_pids_that_would_be_removed(data: bytes, gone: frozenset[int]) -> None:
    assert plugin_agents.mentions_pid(
        data, frozenset(plugin_agents.agent_pids(data)) | gone
    ) or not plugin_agents.agent_pids(data)
    assert not plugin_agents.mentions_pid(plugin_agents.without_pids(data, gone), gone)
    assert not plugin_agents.mentions_pid(data, frozenset())


def test_the_pid_files_of_both_versions_can_be_read() -> None:
    for path in samples("plugin-output/*/.agent-pids"):
        assert plugin_agents.agent_pids(path.read_bytes()) == ([148] if "bash" in path.parent.name else [15, 16])


# -- .agent-health ------------------------------------------------------------------------------------------------


def test_the_health_files_of_both_versions_can_be_read() -> None:
    expected = {
        "dev": plugin_agents.Health(15, "dev", AT, idle_count=1),
        "qa": plugin_agents.Health(16, "qa", AT, idle_count=0),
        "vbw-dev": plugin_agents.Health(148, "dev", AT, idle_count=0),
    }
    for path in samples("plugin-output/*/.agent-health/*.json"):
        assert plugin_agents.health(path.read_bytes(), path.stem) == expected[path.stem]


@pytest.mark.parametrize(
    "pid", [0, 1, -1, 4294967295, 4194305, True, 15.0, None, [], "", "0", "1", "-15", "15 ", "²", "१५²", "9" * 5000]
)
def test_health_of_no_ordinary_process_is_none(pid: object) -> None:
    assert plugin_agents.health(dumped({**HEALTH, "pid": pid}), "dev") is None


@pytest.mark.parametrize("role", [{}, {"role": ""}, {"role": None}, {"role": 7}])
def test_health_that_names_no_role_has_that_of_its_file(role: dict[str, object]) -> None:
    found = plugin_agents.health(dumped({"pid": 15, **role}), "yolo-dev")

    assert found == plugin_agents.Health(15, "dev", None, idle_count=0)


@pytest.mark.parametrize("started_at", ["", "yesterday", 1795379572, None, "2026-13-01T00:00:00Z"])
def test_health_with_no_sound_time_has_none(started_at: object) -> None:
    found = plugin_agents.health(dumped({**HEALTH, "started_at": started_at}), "dev")

    assert found == plugin_agents.Health(15, "dev", None, idle_count=1)


# -- .locks -------------------------------------------------------------------------------------------------------


def lease(path: Path = LEASE, **changes: object) -> Lease:
    found = plugin_leases.lease(dumped({**HELD, **changes}), path)
    assert found is not None
    return found


def expiry(**changes: object) -> datetime:
    found = lease(**changes).expires_at  # type: ignore[arg-type]
    assert found is not None, "a lease has a time limit"
    return found


def test_the_leases_and_locks_of_both_versions_can_be_read() -> None:
    expected = {
        "5-1-T1.lease": ("5-1-T1", "dev-01", AT + timedelta(seconds=300)),
        "5-2-T1.lease": ("5-2-T1", "dev-02", datetime(2026, 2, 24, 9, 5, tzinfo=UTC)),
        "src__a1.js.lease": ("src/a1.js", "dev-01", AT + timedelta(seconds=60)),
        "src__b1.js.lock": ("src/b1.js", "dev-02", None),
    }
    for path in samples("plugin-output/*/.locks/*"):
        found = plugin_leases.lease(path.read_bytes(), path)
        if "bash" in str(path):
            assert found is None, "a lock of the bash version names no owner"
        else:
            assert found is not None
            assert (found.resource, found.owner, found.expires_at) == expected[path.name]


def test_a_lease_expires_with_its_ttl() -> None:
    assert expiry(ttl_secs=60) == AT + timedelta(seconds=60)


def test_a_lock_has_no_time_limit() -> None:
    assert lease(LOCK).expires_at is None


def test_a_lease_without_a_name_is_named_by_its_file() -> None:
    assert lease(resource=None).resource == "src__a1.js"


@pytest.mark.parametrize("ttl", [{}, {"ttl_secs": "60"}, {"ttl_secs": None}, {"ttl_secs": []}])
def test_a_lease_without_a_time_to_live_has_five_minutes(ttl: dict[str, object]) -> None:
    held = {key: value for key, value in HELD.items() if key != "ttl_secs"}

    found = plugin_leases.lease(dumped({**held, **ttl}), LEASE)

    assert found is not None
    assert found.expires_at == AT + timedelta(seconds=300)


@pytest.mark.parametrize("acquired_at", [None, "", "dev-01", 1795379710, []])
def test_a_lease_without_a_time_is_expired(acquired_at: object) -> None:
    assert expiry(acquired_at=acquired_at) < datetime(1971, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "spelling", ["2026-11-22T20:55:10+00:00", "2026-11-22T21:55:10+01:00", "2026-11-22T20:55:10.000000001Z"]
)
def test_a_time_is_understood_in_every_zone_and_precision(spelling: str) -> None:
    assert expiry(acquired_at=spelling) == AT + timedelta(seconds=60)


def test_a_lease_from_the_future_does_not_expire_early() -> None:
    assert expiry(acquired_at="2036-11-22T20:55:10Z") > AT + timedelta(days=3652)


@pytest.mark.parametrize("ttl", [10**11, 10**12, 10**15, 2**63, 1e300])
def test_a_lease_with_a_time_to_live_of_ages_is_not_over(ttl: float) -> None:
    expires_at = lease(ttl_secs=ttl).expires_at

    assert expires_at is None or expires_at > AT + timedelta(days=365_000)


@pytest.mark.parametrize("acquired_at", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_the_expiry_of_any_lease_can_be_computed(acquired_at: str) -> None:
    expires_at = lease(acquired_at=acquired_at, ttl_secs=0).expires_at

    assert expires_at is None or iso(expires_at).endswith("Z")


@pytest.mark.parametrize("owner", [None, "", 7, ["dev-01"]])
def test_a_lease_without_owner_is_left_alone(owner: object) -> None:
    assert plugin_leases.lease(dumped({**HELD, "owner": owner}), LEASE) is None


# -- .execution-state.json ----------------------------------------------------------------------------------------


def test_every_plan_of_every_real_run_is_a_task() -> None:
    for path in samples("execution-states/*.json"):
        written = json.loads(path.read_bytes()).get("plans", [])
        found = execution_state.plans(path.read_bytes(), STATE)
        assert found is not None
        assert [(task.id, task.status) for task in found] == [
            (f"execution-state/{plan['id']}", plan["status"]) for plan in written
        ]


def test_a_plan_is_a_task_of_the_execution_state() -> None:
    found = execution_state.plans(dumped(RUN), STATE)

    assert found is not None
    assert found[1] == Task(
        list="execution-state", number="05-02", status="running", owner=None, path=STATE, subject="Sécond"
    )


def test_a_run_without_plans_has_none_and_an_unreadable_one_is_unknown() -> None:
    assert execution_state.plans(b"{}", STATE) == []
    assert execution_state.plans(b"", STATE) is None
    assert execution_state.plans(b'{"plans": [', STATE) is None


def test_plans_that_make_no_sense_are_left_out() -> None:
    nonsense: list[Any] = [
        None,
        7,
        "05-01",
        [],
        {},
        {"id": "05-01"},
        {"id": 7, "status": "running"},
        {"id": "", "status": "x"},
    ]

    found = execution_state.plans(dumped({"plans": [*nonsense, {"id": "05-02", "status": "running"}]}), STATE)

    assert found is not None
    assert [task.number for task in found] == ["05-02"]


@pytest.mark.parametrize("plans", [None, 7, "05-02", {"05-02": {"status": "running"}}, [None], [[]]])
def test_an_empty_state_has_no_plan(plans: object) -> None:
    assert execution_state.plan({"plans": plans}, "05-02") is None


@pytest.mark.parametrize("status", ["running", "in_progress", "executing"])
def test_the_running_one_of_several_plans_with_one_id_counts(status: str) -> None:
    same = [{"id": "05-02"}, {"id": "05-02", "status": "complete"}, {"id": "05-02", "status": status}]

    assert execution_state.plan({"plans": same}, "05-02") is same[2]
    assert execution_state.plan({"plans": same[:2]}, "05-02") is same[1]
    assert execution_state.plan({"plans": same[:1]}, "05-02") is None


def given_back(data: bytes, number: str) -> bytes:
    plan = Task(list=execution_state.EXECUTION_STATE, number=number, status="", owner=None, path=STATE)
    return tasks.with_state(plan, data, tasks.PENDING, None)


def test_a_requeued_plan_is_pending_and_otherwise_unchanged() -> None:
    after = json.loads(given_back(dumped(RUN), "05-02"))

    assert after["plans"][1] == {**RUN["plans"][1], "status": "pending"}  # type: ignore[index]
    after["plans"][1] = RUN["plans"][1]  # type: ignore[index]
    assert list(after.items()) == list(RUN.items())


@given(before=states, other=objects)
@relaxed
def test_other_fields_of_a_run_survive(before: dict[str, Any], other: dict[str, Any]) -> None:
    finite = json.loads(json.dumps({**before, "plans": [*before["plans"], other]}), parse_constant=lambda _: None)
    finite["plans"].append({"id": "05-02", "status": "running", "left": "alone"})

    after = json.loads(given_back(json.dumps(finite).encode(), "05-02"))

    assert after["plans"].pop() == {"id": "05-02", "status": "pending", "left": "alone"}
    assert after == {**finite, "plans": finite["plans"][:-1]}


def test_a_real_run_is_written_as_it_was_but_for_the_one_plan() -> None:
    for path in samples("plugin-output/*/.execution-state.json"):
        before = path.read_bytes()
        if execution_state.plan(load_object(before) or {}, "05-01") is None:
            continue
        after = given_back(before, "05-01").splitlines()
        changed = [new.strip() for old, new in zip(before.splitlines(), after, strict=True) if old != new]
        assert changed in ([], [b'"status": "pending",'])


@pytest.mark.parametrize("data", [b"", b"[]", b'{"plans": [', b"\0\0"])
def test_a_document_that_is_no_run_is_not_rewritten(data: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON object"):
        given_back(data, "05-02")


@pytest.mark.parametrize(
    ("name", "team_name", "plan", "works"),
    [
        ("dev-02", "yolo-phase-05", "05-02", True),
        ("dev-2", "yolo-phase-5", "05-02", True),
        ("dev-02", "session-85d6cfb4", "05-02", True),
        ("dev-02", None, "05-02", True),
        ("yolo:dev-02", None, "05-02", True),
        ("dev-02", "yolo-phase-06", "05-02", False),
        ("dev-01", "yolo-phase-05", "05-02", False),
        ("dev-02", None, "02-05", False),
        ("qa-02", None, "05-02", False),
        ("dev", None, "05-02", False),
        ("dev-02", None, "05", False),
        ("dev-02", None, "", False),
        ("dev-1", None, "05-" + "1" * 5000, False),
    ],
)
def test_a_plan_belongs_to_the_agent_that_the_plugin_named_after_it(
    name: str, team_name: str | None, plan: str, works: bool
) -> None:
    assert execution_state.works_on(name, team_name, plan) is works


# -- anything else ------------------------------------------------------------------------------------------------

PARSERS: dict[str, Callable[[bytes], object]] = {
    "health": lambda data: plugin_agents.health(data, "dev"),
    "lease": lambda data: plugin_leases.lease(data, LEASE),
    "lock": lambda data: plugin_leases.lease(data, LOCK),
    "plans": lambda data: execution_state.plans(data, STATE),
}


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(data=st.binary())
@relaxed
def test_garbage_is_unreadable_and_raises_nothing_else(parse: Callable[[bytes], object], data: bytes) -> None:
    assume(not data.lstrip().startswith(b"{"))

    assert parse(data) is None


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(value=states)
@relaxed
def test_any_object_can_be_looked_at(parse: Callable[[bytes], object], value: dict[str, Any]) -> None:
    parse(json.dumps(value).encode())
    parse(json.dumps({**value, "owner": "dev", "pid": 15}).encode())
    execution_state.plan(value, str(value.get("id")))


@pytest.mark.parametrize(("parse", "document"), [("health", HEALTH), ("lease", HELD), ("lock", HELD), ("plans", RUN)])
def test_a_half_written_file_is_unreadable_wherever_it_ends(parse: str, document: dict[str, Any]) -> None:
    whole = dumped(document)

    assert {PARSERS[parse](whole[:end]) for end in range(len(whole))} == {None}
    assert PARSERS[parse](whole) is not None
