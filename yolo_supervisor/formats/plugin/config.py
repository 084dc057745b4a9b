"""The plugin's ``config.json``."""

from __future__ import annotations

import contextlib
import re

from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.json_edit import value_span
from yolo_supervisor.formats.plugin.leases import DEFAULT_TTL_S, MAX_TTL_S

# -- the flags that concern the supervisor -----------------------------------------------------------------------------

HARD_GATES = "v2_hard_gates"
HARD_CONTRACTS = "v2_hard_contracts"
CONTRACT_LITE = "v3_contract_lite"
LOCK_LITE = "v3_lock_lite"
"""The flag of the plugin's locks and leases. ``v3_lease_locks`` is read by none of its programs."""

EVENT_LOG = "v3_event_log"
SNAPSHOT_RESUME = "v3_snapshot_resume"
EVENT_RECOVERY = "v3_event_recovery"


# -- config.json ------------------------------------------------------------------------------------------------


def switches(data: bytes) -> dict[str, bool]:
    """The values in a ``config.json`` that are true or false.

    The plugin treats every other value as false.
    """
    raw = load_object(data) or {}
    return {key: value for key, value in raw.items() if isinstance(value, bool)}


def lease_ttl_s(config: bytes) -> int:
    """The default lifetime of a lease: ``task_lease_ttl_secs``, else 300 s."""
    ttl = (load_object(config) or {}).get("task_lease_ttl_secs")
    return ttl if type(ttl) is int and 1 <= ttl <= MAX_TTL_S else DEFAULT_TTL_S


def enabled(config: bytes, flag: str) -> bool:
    """Whether the flag is on for the plugin: only if it is ``true``."""
    return switches(config).get(flag, False)


def off(config: bytes, *flags: str) -> tuple[str, ...]:
    """Those of the flags that are off for the plugin; none where its configuration is missing or broken."""
    raw = load_object(config)
    return () if raw is None else tuple(flag for flag in flags if raw.get(flag) is not True)


COMMAND_LIMIT_S = 30.0


def command_limit_s(config: bytes) -> float:
    """The time limit of a command: ``command_timeout_ms`` if it is a second or more, else 30 s."""
    limit_ms = (load_object(config) or {}).get("command_timeout_ms")
    return limit_ms / 1000 if type(limit_ms) is int and 1000 <= limit_ms <= 86_400_000 else COMMAND_LIMIT_S


NEEDS = {
    (EVENT_RECOVERY, EVENT_LOG): "recovery from events has nothing to read",
    ("v3_lease_locks", LOCK_LITE): "the plugin's leases are skipped",
    (HARD_GATES, HARD_CONTRACTS): "the gates have no contracts to check",
}
"""Flag and needed flag, and the consequence if only the first is enabled."""

IF_OFF = {
    LOCK_LITE: "the plugin ignores leases; they hold among the agents that use the supervisor's commands",
    HARD_GATES: "the plugin skips its gates, and gate check and gate repair answer skip, too",
    HARD_CONTRACTS: "contracts have no hash and no checks, so gates that need them have little to check",
    EVENT_LOG: "the plugin writes no event log, and the supervisor adds nothing to it; the journal has everything",
    SNAPSHOT_RESUME: "the plugin ignores snapshots; the supervisor saves and restores them all the same",
    EVENT_RECOVERY: "the plugin rebuilds no execution state; the supervisor rebuilds it all the same",
}
"""The flags that concern the supervisor, and the consequence of each if it is off."""

NEEDED_BY_SUPERVISOR = {
    EVENT_LOG: "a lost execution state is rebuilt from it",
    SNAPSHOT_RESUME: "a lost execution state is restored from snapshots",
    EVENT_RECOVERY: "a lost execution state is rebuilt from events",
}
"""The flags that recovery needs, with the reason."""

_FLAG = re.compile(r"v\d+_\w+")


def is_flag(key: str) -> bool:
    """Whether the key is a feature flag and not a preference such as ``auto_commit``."""
    return _FLAG.fullmatch(key) is not None


def with_flag(config: bytes, flag: str, on: bool) -> bytes:
    """The ``config.json`` with this one flag switched, every other byte as it was.

    ValueError if the file cannot be read, or the flag is neither true nor false in it.
    """
    if load_object(config) is not None:
        text = config.decode()
        with contextlib.suppress(KeyError):
            start, end = value_span(text, (flag,))
            if text[start:end] in ("true", "false"):
                return (text[:start] + ("true" if on else "false") + text[end:]).encode()
    raise ValueError(f"{flag} is neither on nor off there")
