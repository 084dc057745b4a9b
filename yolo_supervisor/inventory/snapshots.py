"""The snapshots of a project's execution state, the supervisor's and the plugin's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from yolo_supervisor.actions.base import Edit
from yolo_supervisor.actions.state import SaveSnapshot, drop_snapshot
from yolo_supervisor.formats.json import text_or_none
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.plugin import snapshots as plugin_snapshots
from yolo_supervisor.formats.plugin.snapshots import Snapshot
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.policy import file_integrity
from yolo_supervisor.store.paths import Paths

_PLAIN = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
"""The phase names that may be part of a file name. A state may have any other phase name."""

KEPT = 10
"""The number of snapshots kept for each phase, as in the plugin."""


def phase_of(state: Mapping[str, Any]) -> str:
    """The phase in the names of the state's snapshots."""
    phase = str(state.get("phase", ""))
    return phase if _PLAIN.fullmatch(phase) else "none"


class Snapshots:
    """Reads snapshots. Saving and removal are returned as actions."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._known: dict[Path, tuple[int, Snapshot | None]] = {}

    @property
    def folder(self) -> Path:
        """The folder of new snapshots: the plugin's, so that it can restore them, or ours where that is no folder."""
        theirs = self._paths.plugin_snapshots
        blocked = theirs.is_symlink() or (theirs.exists() and not theirs.is_dir())
        return self._paths.snapshots if blocked else theirs

    def all(self) -> list[tuple[Path, Snapshot]]:
        """All valid snapshots, the oldest first."""
        loaded = [(path, snapshot) for path in self._paths_of_all() if (snapshot := self._load(path)) is not None]
        return sorted(loaded, key=lambda entry: (entry[1].at, entry[0]))

    def best(self, phase: str | None, role: str | None) -> Snapshot | None:
        """The snapshot to restore.

        It is the role's newest of the phase (None: the phase of the newest snapshot), or the newest of the phase. A
        snapshot whose state would need a restoration is not used.
        """
        whole = [
            snapshot
            for _, snapshot in self.all()
            if file_integrity.flaw(execution_state.STATE_FILE, execution_state.dump(snapshot.state)) is None
        ]
        if phase is None and whole:
            phase = whole[-1].phase
        return plugin_snapshots.best(whole, phase, role)

    def save(
        self, state: dict[str, Any], at: datetime, trigger: str, role: str | None = None, commits: tuple[str, ...] = ()
    ) -> tuple[Edit, ...]:
        """The actions that save this state, and drop the snapshots above the limit."""
        phase = phase_of(state)
        newest = max((snapshot.at for _, snapshot in self.all() if snapshot.phase == phase), default=None)
        if newest is not None and newest >= at.replace(microsecond=0):  # of the same second, or the clock was set back
            with contextlib.suppress(OverflowError):
                at = newest + timedelta(seconds=1)
        name = plugin_snapshots.file_name(phase, at)
        folder = self.folder
        taken = Snapshot(name, phase, at, role or self.active_role(), state, trigger, commits)
        reason = f"the state of phase {phase} as it is: {trigger}"
        snap = SaveSnapshot(
            key=f"{folder.name}/{name}",
            path=folder / name,
            expected_digest=None,
            data=plugin_snapshots.dump(taken),
            reason=reason,
        )
        names = [path.name for path in self._paths_of_all() if path.parent == folder]
        return (
            snap,
            *(
                drop_snapshot(key=f"{folder.name}/{old}", path=folder / old, reason=f"{KEPT} newer ones are kept")
                for old in plugin_snapshots.surplus([*names, name], phase, KEPT)
            ),
        )

    def active_role(self) -> str | None:
        """The agent that the plugin names as active."""
        name = (read_or_none(self._paths.active_agent) or b"").decode("utf-8", "replace").strip()
        return text_or_none(name)

    def _paths_of_all(self) -> Iterator[Path]:
        planning = self._paths.planning
        for folder in (self._paths.snapshots, self._paths.plugin_snapshots, planning / "snapshots"):
            try:
                yield from (path for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
            except OSError:
                continue

    def _load(self, path: Path) -> Snapshot | None:
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            return None
        if path not in self._known or self._known[path][0] != stamp:
            self._known[path] = stamp, plugin_snapshots.load(path.name, read_or_none(path) or b"")
        return self._known[path][1]
