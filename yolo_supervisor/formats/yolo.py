"""The YOLO plugin's files under ``.yolo-planning/`` (version 2.9.8, with what its bash predecessor left)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from yolo_supervisor.formats import dump_like, load_object, text_or_none
from yolo_supervisor.records import Lease, Task, from_iso

PLANNING = ".yolo-planning"
STATE_FILE = ".execution-state.json"
EXECUTION_STATE = "execution-state"
"""The list that the plans of ``.execution-state.json`` are tasks of."""

PID_LOCK = Path("/tmp/yolo-agent-pid-lock")
"""The plugin's lock over every ``.agent-pids`` on the machine: a folder, and no holder ever breaks a stale one."""

PID_LOCK_STALE_S = 30.0
"""The hooks that take the locks below are killed after at most 15 s, so an older one was left by a killed hook."""

MAX_PID = 2**22
"""The kernel's own limit; a larger number in a file is no pid, whatever a cast would make of it."""

DEFAULT_TTL_S = 300
MAX_TTL_S = 366 * 86400
EPOCH, FOREVER = from_iso("1970-01-01"), from_iso("9999-01-01")


def normal_role(name: str) -> str:
    """The role behind any spelling of it: ``yolo:yolo-dev``, ``@team-dev-01`` and ``Dev`` are all ``dev``."""
    role = name.strip().lower().lstrip("@")
    while (bare := re.sub(r"^(yolo|vbw)[:-]|^team-", "", role)) != role:
        role = bare
    role = re.sub(r"-\d+$", "", role)
    return {"leader": "lead", "team-lead": "lead", "arch": "architect", "debug": "debugger"}.get(role, role) or "agent"


# -- agents -----------------------------------------------------------------------------------------------------


def is_pid(value: object) -> bool:
    """Whether the number can name a process other than init: 0, 1, negative and oversized ones never do."""
    return type(value) is int and 1 < value <= MAX_PID


def agent_pids(data: bytes) -> list[int]:
    """The pids in an ``.agent-pids``, junk lines passed over."""
    words = (line.strip() for line in data.splitlines())
    return [pid for word in words if word.isdigit() and len(word) < 12 and is_pid(pid := int(word))]


def without_pids(data: bytes, gone: frozenset[int]) -> bytes:
    """An ``.agent-pids`` or ``.agent-panes`` without the lines whose first word is one of ``gone``."""
    wanted = {str(pid).encode() for pid in gone}
    return b"".join(
        line for line in data.splitlines(keepends=True) if (line.split() or [b""])[0].lstrip(b"0") not in wanted
    )


def mentions_pid(data: bytes, pids: frozenset[int]) -> bool:
    """Whether ``without_pids`` would change the data."""
    return without_pids(data, pids) != data


@dataclass(frozen=True, slots=True)
class Health:
    pid: int
    role: str
    started_at: datetime | None
    idle_count: int


def health(data: bytes, stem: str) -> Health | None:
    """An ``.agent-health/<stem>.json``; the pid is a string in files of the bash version. None without a sound pid."""
    raw = load_object(data)
    if raw is None:
        return None
    pid = raw.get("pid")
    if isinstance(pid, str) and pid.isascii() and pid.isdigit() and len(pid) < 12:
        pid = int(pid)
    if not is_pid(pid):
        return None
    idle = raw.get("idle_count")
    return Health(
        int(pid),  # type: ignore[arg-type]  # is_pid has said that it is an int
        normal_role(text_or_none(raw.get("role")) or stem),
        _moment(raw.get("started_at")),
        idle if type(idle) is int else 0,
    )


def _moment(value: object) -> datetime | None:
    try:
        return from_iso(value) if isinstance(value, str) else None
    except ValueError:
        return None


# -- .locks/*.lease and *.lock ----------------------------------------------------------------------------------


def lease(data: bytes, path: Path) -> Lease | None:
    """The lease or lock in a file of ``.locks/``; None if it cannot be read or names no owner.

    A missing ``ttl_secs`` means 300 s. An ``acquired_at`` that is no time makes a lease expired since ever.
    """
    raw = load_object(data)
    owner = text_or_none(raw.get("owner")) if raw else None
    if raw is None or owner is None:
        return None
    expires_at, ttl_s = None, 0.0
    if path.suffix == ".lease":
        ttl = raw.get("ttl_secs", DEFAULT_TTL_S)
        ttl_s = float(min(max(ttl, 0), MAX_TTL_S)) if isinstance(ttl, int | float) else DEFAULT_TTL_S
        acquired_at = _moment(raw.get("acquired_at")) or datetime.fromtimestamp(0, tz=from_iso("1970-01-01").tzinfo)
        try:
            expires_at = acquired_at + timedelta(seconds=ttl if isinstance(ttl, int | float) else DEFAULT_TTL_S)
        except (OverflowError, ValueError):
            expires_at = FOREVER
        if not EPOCH <= expires_at <= FOREVER:
            expires_at = EPOCH if expires_at < EPOCH else FOREVER
    resource = text_or_none(raw.get("resource")) or path.stem
    return Lease(resource=resource, owner=owner, path=path, expires_at=expires_at, ttl_s=ttl_s)


def lease_file(resource: str) -> str:
    """The name of the file that a lease on the resource is kept in: the plugin's, collisions (``a/b``, ``a__b``) too.

    ValueError for a resource that no file can be named by.
    """
    name = resource.replace("/", "__").replace("\\", "__").replace(" ", "_")
    if not name.strip(".") or "\0" in name or len(name.encode("utf-8", "surrogateescape")) > 200:
        raise ValueError(f"{resource!r} cannot name a lease")
    return f"{name}.lease"


def dump_lease(resource: str, owner: str, acquired_at: datetime, ttl_s: int) -> bytes:
    """A lease as ``lease-lock acquire`` writes it; a renewal is written anew."""
    at = acquired_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return dump({"acquired_at": at, "owner": owner, "resource": resource, "ttl_secs": ttl_s, "type": "lease"})


# -- config.json ------------------------------------------------------------------------------------------------


def wishes(data: bytes) -> dict[str, bool]:
    """The feature flags in a ``config.json`` that say yes or no; the plugin takes every other value for no.

    For us they are wishes: what is switched off by name is not done, what is not named is.
    """
    raw = load_object(data) or {}
    return {key: value for key, value in raw.items() if isinstance(value, bool)}


def lease_ttl_s(config: bytes) -> int:
    """How long a lease holds if nobody says otherwise: ``task_lease_ttl_secs`` of the ``config.json``, else 300 s."""
    ttl = (load_object(config) or {}).get("task_lease_ttl_secs")
    return ttl if type(ttl) is int and 1 <= ttl <= MAX_TTL_S else DEFAULT_TTL_S


def enabled(config: bytes, flag: str) -> bool:
    """Whether the plugin takes the flag for set: only a plain ``true`` is."""
    return wishes(config).get(flag, False)


COMMAND_LIMIT_S = 30.0


def command_limit_s(config: bytes) -> float:
    """How long a command may take: ``command_timeout_ms`` of the ``config.json`` (at least a second), else 30 s."""
    limit_ms = (load_object(config) or {}).get("command_timeout_ms")
    return limit_ms / 1000 if type(limit_ms) is int and 1000 <= limit_ms <= 86_400_000 else COMMAND_LIMIT_S


IN_VAIN = {
    ("v3_event_recovery", "v3_event_log"): "recovery from events has nothing to read",
    ("v3_lease_locks", "v3_lock_lite"): "the plugin's leases are skipped",
    ("v2_hard_gates", "v2_hard_contracts"): "the gates have no contracts to hold on to",
}
"""What comes of a flag that is on while the one that it needs is off."""

OURS = {
    "v3_event_log": "a lost execution state is told anew from it",
    "v3_snapshot_resume": "a lost execution state is restored from snapshots",
    "v3_event_recovery": "a lost execution state is restored from events",
}
"""The flags that the supervisor itself needs to heal, and what for."""

_FLAG = re.compile(r"v\d+_\w+")


def is_flag(key: str) -> bool:
    """Whether a switch in the ``config.json`` is a feature flag: others (``auto_commit``) are a matter of taste."""
    return _FLAG.fullmatch(key) is not None


def with_flag(config: bytes, flag: str, on: bool) -> bytes:
    """The ``config.json`` with this one flag switched, every other byte as it was.

    ValueError if it cannot be read, or says neither yes nor no to the flag.
    """
    found = None
    if load_object(config) is not None:
        text = config.decode()
        for key, start, end in _members(text):
            found = (start, end) if key == flag else found  # of two of the same name readers take the last one
        if found is not None and text[slice(*found)] in ("true", "false"):
            return (text[: found[0]] + ("true" if on else "false") + text[found[1] :]).encode()
    raise ValueError(f"{flag} is neither on nor off there")


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """The members of the object in a JSON text that can be read: key, and from where to where its value stands."""
    decode = json.JSONDecoder().raw_decode
    at = _space(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = decode(text, at)
        start = _space(text, _space(text, at) + 1)
        _, end = decode(text, start)
        yield key, start, end
        at = _space(text, end)
        at = _space(text, at + 1) if text[at] == "," else at


def _space(text: str, at: int) -> int:
    while text[at] in " \t\r\n":
        at += 1
    return at


# -- what the plugin's logs tell of its flags ---------------------------------------------------------------------

METRICS = Path(".metrics", "run-metrics.jsonl")

FAILED, WENT_WELL = True, False

TELLING = (
    ("gate_pass", None, "v2_hard_gates", WENT_WELL, "a gate has let the work go on"),
    ("gate_pass", "contract_compliance", "v2_hard_contracts", WENT_WELL, "the contract was there, whole, and fits"),
    (
        "gate_fail",
        "contract_compliance",
        "v2_hard_contracts",
        FAILED,
        "the contract is missing, unreadable, altered, or does not know the task",
    ),
    (
        "task_blocked",
        "contract_compliance",
        "v2_hard_gates",
        FAILED,
        "the gate stays closed although the contract was made anew: nothing gets through until somebody comes",
    ),
    ("snapshot_restored", None, "v3_snapshot_resume", WENT_WELL, "there was a snapshot, and work went on from it"),
)
"""Which event means what for which flag, and why: event, its gate (None: any), flag, outcome.

Only what tells whether that works which the flag switches on. That is little: a gate that refuses bad work, a rejected
completion or message, a budget that is used up, a conflict over a lock are these flags' purpose, not their failure. Of
``gate_pass`` (metrics, always written) and ``gate_passed`` (event log) only the one counts, they are the same fact.
What we write into the event log ourselves is no news: ``state_recovered``, ``task_blocked`` with its numbers as text.
"""


def outcomes(line: bytes) -> tuple[datetime | None, list[tuple[str, bool, str]]]:
    """What a line of the event log or of the metrics tells of flags: which one, whether it failed, and at what."""
    if not any(word in line for word in (b"gate_", b"task_blocked", b"snapshot_restored")):
        return None, []  # most of them: they need not be parsed
    raw = load_object(line) or {}
    data = raw["data"] if isinstance(raw.get("data"), dict) else {}
    gate, attempts = data.get("gate"), data.get("attempts")
    if raw.get("event") == "task_blocked" and not (type(attempts) is int and attempts > 0):
        return None, []  # the repair has not even tried: this gate is one for people
    at = "-".join(str(each) for each in (raw.get("phase"), raw.get("plan"), data.get("task")))
    found = [
        (flag, failed, at)
        for event, its_gate, flag, failed, _ in TELLING
        if event == raw.get("event") and its_gate in (None, gate)
    ]
    return _moment(raw.get("ts")), found


# -- .events/event-log.jsonl ------------------------------------------------------------------------------------

EVENT_LOG = Path(".events", "event-log.jsonl")


def dump_event(
    name: str, at: datetime, ident: str, correlation: str, place: tuple[int, int | None], data: Mapping[str, object]
) -> bytes:
    """A line of the event log as ``log-event`` writes it: compact, sorted, ``data`` in strings only.

    ``place`` is the phase and, where there is one, the plan, as numbers: the plugin's readers take no others.
    """
    phase, plan = place
    line = {
        "correlation_id": correlation,
        "data": {key: str(value) for key, value in data.items() if value is not None},
        "event": name,
        "event_id": ident,
        "phase": phase,
        "ts": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if plan is not None:
        line["plan"] = plan
    text = json.dumps(line, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"


def place(state: bytes, plan_id: str | None) -> tuple[int, int | None]:
    """Phase and plan that an event is about: a plan's own, else the phase that the execution state names, else 0."""
    if plan_id is not None and (found := _PLAN_ID.fullmatch(plan_id)):
        return int(found[1]), int(found[2])
    phase = (load_object(state) or {}).get("phase")
    return (phase if type(phase) is int and phase >= 0 else 0), None


def correlation(state: bytes) -> str:
    return text_or_none((load_object(state) or {}).get("correlation_id")) or ""


# -- .execution-state.json --------------------------------------------------------------------------------------

RUNNING = frozenset({"running", "in_progress", "executing"})
"""The spellings of a plan at work that real files hold."""

_PLAN_TEAM = re.compile(r"yolo-phase-(\d{1,9})")
_PLAN_DEV = re.compile(r"(?:yolo[:-])?dev-(\d{1,9})")
_PLAN_ID = re.compile(r"(\d{1,9})-(\d{1,9})")


def plans(data: bytes, path: Path) -> list[Task] | None:
    """The plans of an execution state as tasks, owner unknown; None if the file cannot be read."""
    raw = load_object(data)
    if raw is None:
        return None
    return [
        Task(
            list=EXECUTION_STATE,
            number=str(plan["id"]),
            status=status,
            owner=text_or_none(plan.get("owner")),
            path=path,
            subject=text_or_none(plan.get("title")) or "",
        )
        for plan in _plan_objects(raw)
        if (status := text_or_none(plan.get("status")))
    ]


def _plan_objects(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = raw.get("plans")
    return [
        p for p in (listed if isinstance(listed, list) else ()) if isinstance(p, dict) and text_or_none(p.get("id"))
    ]


def may_have_plans(agent_name: str) -> bool:
    """Whether the plugin's naming could give any plan to an agent of this name."""
    return bool(_PLAN_DEV.fullmatch(agent_name))


def works_on(agent_name: str, team: str | None, plan_id: str) -> bool:
    """Whether the plugin's naming gives the plan to the agent: ``dev-02`` has plan ``05-02``, and in a team
    ``yolo-phase-NN`` only where NN is 5 (newer clients name teams after sessions: then the number must do)."""
    dev, phase = _PLAN_DEV.fullmatch(agent_name), _PLAN_TEAM.fullmatch(team or "")
    plan = _PLAN_ID.fullmatch(plan_id)
    return bool(dev and plan and int(dev[1]) == int(plan[2]) and (not phase or int(phase[1]) == int(plan[1])))


def plan_is_running(raw: Mapping[str, Any], plan_id: str, owner: str | None = None) -> bool:
    """Whether the plan is being worked on by ``owner``: None where it names nobody."""
    return any(
        p["id"] == plan_id and text_or_none(p.get("status")) in RUNNING and text_or_none(p.get("owner")) == owner
        for p in _plan_objects(raw)
    )


def dump(value: dict[str, Any]) -> bytes:
    """An object as the plugin writes its files: sorted, two spaces, no final newline, UTF-8 as it is."""
    try:
        return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates can only be written as escapes
        return json.dumps(value, indent=2, sort_keys=True).encode()


def plan_given_back(data: bytes, plan_id: str) -> bytes:
    """The execution state with that plan pending again, and nobody's. ValueError if ``data`` is no execution state."""
    raw = load_object(data)
    if raw is None:
        raise ValueError("not an execution state: the file holds no JSON object")
    for plan in _plan_objects(raw):
        if plan["id"] == plan_id and text_or_none(plan.get("status")) in RUNNING:
            plan["status"] = "pending"
            plan.pop("owner", None)
    return dump_like(data, raw)
