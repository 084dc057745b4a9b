"""Actions on feature flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from yolo_supervisor.actions.base import Action, Edit, Kind, Note
from yolo_supervisor.formats.plugin import config as plugin_config

# -- feature flags ----------------------------------------------------------------------------------------------


class FlagOutcome(NamedTuple):
    """One outcome of what a flag switches on; where it was told, how far that was read then, and at what it failed."""

    failed: bool
    source: str = ""
    position: int = 0
    at: str = ""


@dataclass(frozen=True, kw_only=True)
class CountOutcomes(Action):
    """Write outcomes down, and how far their sources were read. Nobody is told: there may be many."""

    kind: ClassVar[Kind] = "flag"
    verb: ClassVar[str] = "counted"
    outcomes: Mapping[str, Sequence[FlagOutcome]]
    marks: Mapping[str, Any]


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
    """Switch a flag on again; what was counted before does not count any more."""

    verb: ClassVar[str] = "enabled"
    on: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class FlagFoundOn(Note):
    """A flag that was switched off here is on: somebody wants it to be, so it is judged anew."""

    kind: ClassVar[Kind] = "flag"
    verb: ClassVar[str] = "enabled"
