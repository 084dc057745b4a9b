"""The documents with which the launcher starts agents, in ``starts/`` of the state folder."""

from __future__ import annotations

from pathlib import Path

from yolo_supervisor.formats.start import Start
from yolo_supervisor.store.disk import Disk


def write_start(disk: Disk, folder: Path, start: Start) -> Path:
    """Write the document for one start; its path. OSError if it cannot be written, or is too large."""
    raise NotImplementedError


def remove_stale_starts(disk: Disk, folder: Path, age_s: float) -> None:
    """Remove documents that no launcher has read for ``age_s`` seconds."""
