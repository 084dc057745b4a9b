"""The trust in a project's own configuration file, by its content.

A file that came with a clone must not decide what is ended. The user trusts a content once (``yolo-supervisor trust``);
a copy of it lies in the project's state folder, and stays in force when the file changes. Of a content that is not
trusted only the settings count that make the supervisor do less.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.user_dirs import project_state_dir

TRUSTED_FILE = "trusted.toml"
"""The name of the trusted content in the state folder; empty for a project without a file."""

Less = Literal["larger", "smaller", "subset", "superset"] | tuple[str, ...]
"""The values of a setting that make the supervisor do less; a tuple lists them, the least first."""

LESS: Mapping[str, Less] = {
    "mode": ("observe", "heal"),
    "processes.grace_s": "larger",
    "processes.sample_s": "larger",
    "agents.interval_s": "larger",
    "agents.mass_death_min": "smaller",
    "sessions.interval_s": "larger",
    "sessions.on_detach": ("keep", "notify", "auto", "drain", "terminate"),
    "sessions.detach_grace_s": "larger",
    "tasks.interval_s": "larger",
    "tasks.idle_limit_s": "larger",
    "tasks.unknown_limit_s": "larger",
    "tasks.stall_limit_s": "larger",
    "tasks.on_stall": ("notify", "requeue"),
    "tasks.waiting_after_s": "larger",
    "tasks.poison_s": "larger",
    "tasks.backoff_s": "larger",
    "tasks.backoff_max_s": "larger",
    "tasks.hold_s": "larger",
    "tasks.hold_max_s": "larger",
    "tasks.requeues_per_s": "smaller",
    "restart.policy": ("never", "on-crash", "always"),
    "restart.agents": ("never", "on-crash", "always"),
    "restart.window_s": "larger",
    "restart.progress_s": "larger",
    "restart.max_starts": "smaller",
    "restart.period_s": "larger",
    "restart.backoff_s": "larger",
    "restart.backoff_max_s": "larger",
    "restart.reset_s": "larger",
    "restart.host_pause_s": "larger",
    "restart.host_starts": "smaller",
    "restart.host_period_s": "larger",
    "restart.when_too_large": ("ask", "fresh"),
    "restart.strays": ("notify", "stop"),
    "restart.restore": ("never", "ask", "boot"),
    "restart.min_free_mib": "larger",
    "leases.interval_s": "larger",
    "state.interval_s": "larger",
    "state.settle_s": "larger",
    "state.files": "subset",
    "flags.interval_s": "larger",
    "flags.max_error_rate": "larger",
    "flags.alpha": "smaller",
    "flags.min_samples": "larger",
    "mcp.retries": "smaller",
    "mcp.backoff_s": "larger",
    "mcp.attempt_s": "larger",
    "mcp.retry_s": "larger",
    "mcp.cap_s": "larger",
    "mcp.start_s": "larger",
    "mcp.restarts": "smaller",
    "mcp.repeatable": "subset",
    "mcp.unrepeatable": "superset",
}
"""The settings of which a content that is not trusted may choose a lesser value. All others need trust.

A rule about a table holds for each of its keys. Storms are missing, since a storm pauses the starts of all projects,
and so are limits of which 0 means none.
"""


class Trust(msgspec.Struct, frozen=True):
    """The standing of a project's own file."""

    trusted: bool = False
    """Whether the user has ever trusted the project: the plugin's own rules hold there."""
    edited: bool = False
    """Whether the file has changed since it was trusted."""
    ignored: tuple[str, ...] = ()
    """The settings of the file that are not in force."""
    error: str = ""
    """The reason why the changed file is not valid; then nothing of it is in force."""


def trusted_content(project: str, environment: Mapping[str, str]) -> bytes | None:
    """The content that the user trusted for this project; None if none was."""
    folder = Path(project_state_dir(os.path.realpath(project), environment))
    try:
        found = os.stat(project)
    except OSError:
        return None
    enrolment = own_files.load_enrolment(read_or_none(folder / own_files.ENROLMENT) or b"")
    return read_or_none(folder / TRUSTED_FILE) if enrolment is not None and enrolment.is_of(found) else None


def limited(settings: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings that make the supervisor do less than ``base``, and the names of those that are ignored.

    A setting that equals the one in ``base`` is in neither.
    """
    allowed: dict[str, Any] = {}
    ignored: list[str] = []
    for path, value in _leaves(settings):
        under: Any = base
        for key in path:
            under = under.get(key) if isinstance(under, Mapping) else None
        if value == under:
            continue
        if not _is_less(_rule(path), value, under):
            ignored.append(".".join(path))
            continue
        *tables, key = path
        target = allowed
        for table in tables:
            target = target.setdefault(table, {})
        target[key] = value
    return allowed, tuple(ignored)


def _leaves(settings: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in settings.items():
        path = (*above, key)
        found += _leaves(value, path) if isinstance(value, Mapping) else [(path, value)]
    return found


def _rule(path: tuple[str, ...]) -> Less | None:
    """The rule about a setting, or about the table of the user's own keys that it is in."""
    return LESS.get(".".join(path), LESS.get(".".join(path[:-1])))


def _is_less(less: Less | None, value: Any, base: Any) -> bool:
    if less is None:
        return False
    if isinstance(less, tuple):
        return value == less[0] or (value in less and base in less and less.index(value) <= less.index(base))
    if isinstance(value, Sequence) and not isinstance(value, str) and isinstance(base, Sequence):
        return set(value) <= set(base) if less == "subset" else less == "superset" and set(value) >= set(base)
    if isinstance(value, int | float) and isinstance(base, int | float):
        return value >= base if less == "larger" else less == "smaller" and value <= base
    return False
