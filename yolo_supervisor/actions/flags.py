"""Actions on feature flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from yolo_supervisor.actions.base import Edit, Kind, Note
from yolo_supervisor.formats.plugin import config as plugin_config


@dataclass(frozen=True, kw_only=True)
class Switch(Edit):
    """Change one flag in the plugin's ``config.json``; ``key`` is its name."""

    kind: ClassVar[Kind] = "flag"
    on: ClassVar[bool]

    def holds(self, before: bytes | None) -> bool:
        return before is not None and plugin_config.wishes(before).get(self.key) is (not self.on)

    def edit(self, before: bytes | None) -> bytes | None:
        assert before is not None
        return plugin_config.with_flag(before, self.key, self.on)


@dataclass(frozen=True, kw_only=True)
class Disable(Switch):
    """Switch a flag off."""

    verb: ClassVar[str] = "disabled"
    on: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Enable(Switch):
    """Switch a flag on; earlier outcomes no longer count."""

    verb: ClassVar[str] = "enabled"
    on: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FlagFoundOn(Note):
    """A flag that was disabled here is enabled by a person: earlier outcomes no longer count."""

    kind: ClassVar[Kind] = "flag"
    verb: ClassVar[str] = "enabled"
