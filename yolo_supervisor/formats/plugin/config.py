"""The plugin's ``config.json``."""

from __future__ import annotations

import contextlib
import re

from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.json_edit import value_span
from yolo_supervisor.formats.plugin.leases import DEFAULT_TTL_S, MAX_TTL_S

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

    ValueError if the file cannot be read, or the flag is neither true nor false in it.
    """
    if load_object(config) is not None:
        text = config.decode()
        with contextlib.suppress(KeyError):
            start, end = value_span(text, (flag,))
            if text[start:end] in ("true", "false"):
                return (text[:start] + ("true" if on else "false") + text[end:]).encode()
    raise ValueError(f"{flag} is neither on nor off there")
