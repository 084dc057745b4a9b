"""Actions on feature flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolo_supervisor.actions.base import NO_EVIDENCE, Edit, Kind, Note
from yolo_supervisor.formats.plugin import config as plugin_config


@dataclass(frozen=True, kw_only=True)
class Switch(Edit):
    """Change one flag in the plugin's ``config.json``; ``key`` is its name."""

    kind: Kind = "flag"
    on: bool

    def holds(self, before: bytes | None) -> bool:
        return before is not None and plugin_config.switches(before).get(self.key) is (not self.on)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return plugin_config.with_flag(before, self.key, self.on)


def disable(*, key: str, path: Path, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE) -> Switch:
    """Switch a flag off."""
    return Switch(verb="disabled", on=False, key=key, path=path, reason=reason, evidence=evidence)


def enable(*, key: str, path: Path, reason: str, evidence: Mapping[str, Any] = NO_EVIDENCE) -> Switch:
    """Switch a flag on; earlier outcomes no longer count."""
    return Switch(verb="enabled", on=True, key=key, path=path, reason=reason, evidence=evidence)


def found_on(*, key: str, reason: str) -> Note:
    """Record that a person enabled a flag that was disabled here: earlier outcomes no longer count."""
    return Note(kind="flag", verb="enabled", key=key, reason=reason)
