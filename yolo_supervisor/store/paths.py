"""Where a project keeps the files that concern the supervisor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import plugin
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a project keeps what concerns us."""

    project: Path

    @property
    def planning(self) -> Path:
        return self.project / plugin.PLANNING

    @property
    def folder(self) -> Path:
        return self.planning / own_files.FOLDER

    @property
    def journal(self) -> Path:
        return self.folder / "journal.jsonl"

    @property
    def agents(self) -> Path:
        return self.folder / "agents"

    @property
    def backups(self) -> Path:
        return self.folder / "backups"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine"

    @property
    def hooks(self) -> Path:
        return self.folder / "hooks"

    @property
    def crashes(self) -> Path:
        return self.folder / "crashes"

    @property
    def trees(self) -> Path:
        return self.folder / "trees.json"

    @property
    def store_lock(self) -> Path:
        return self.folder / "store.lock"

    @property
    def held_lock(self) -> Path:
        return self.folder / "held-lock.json"

    @property
    def holder(self) -> Path:
        return self.folder / "daemon.json"


def quarantine_file(quarantine: Path, name: str, data: bytes) -> Path:
    """Path in ``quarantine`` for a copy of the file ``name``: one for each content, so that no copy replaces another.

    The name is cut, and has no leading dot: other names are derived from it, and people list the folder.
    """
    short = os.fsdecode(os.fsencode(name.lstrip("."))[:180])
    return quarantine / f"{short}-{str(digest(data))[:12]}"


def refuse_root(project: Path, found: os.stat_result | None) -> None:
    """``Refused`` where root would make itself at home in another user's project, and lock that user out of it."""
    if found is not None and found.st_uid != 0 and os.geteuid() == 0:
        raise Refused(
            f"{project} belongs to user {found.st_uid}: run as that user, or tell root to: run --allow-root", project
        )
