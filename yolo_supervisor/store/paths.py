"""The paths of a project: the plugin's files and the supervisor's state folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path

from yolo_supervisor.config.trust import TRUSTED_FILE
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import plugin
from yolo_supervisor.fs.read import digest
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.user_dirs import project_state_dir


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths of one project. ``environment`` names the user's state directory (default: this process's)."""

    project: Path
    environment: InitVar[Mapping[str, str] | None] = None
    real: Path = field(init=False)
    """The project without links in its path."""
    folder: Path = field(init=False)
    """The state folder, in the user's own state directory: nothing that comes with a project can lie in it."""

    def __post_init__(self, environment: Mapping[str, str] | None) -> None:
        real = os.path.realpath(self.project)
        object.__setattr__(self, "real", Path(real))
        folder = project_state_dir(real, os.environ if environment is None else environment)
        object.__setattr__(self, "folder", Path(folder))

    @property
    def planning(self) -> Path:
        return self.project / plugin.PLANNING

    # -- the plugin's files ------------------------------------------------------------------------------------------

    @property
    def plugin_config(self) -> Path:
        return self.planning / plugin.CONFIG

    @property
    def locks(self) -> Path:
        return self.planning / plugin.LOCKS

    @property
    def agent_pids(self) -> Path:
        return self.planning / plugin.AGENT_PIDS

    @property
    def agent_panes(self) -> Path:
        return self.planning / plugin.AGENT_PANES

    @property
    def agent_health(self) -> Path:
        return self.planning / plugin.AGENT_HEALTH

    @property
    def active_agent(self) -> Path:
        return self.planning / plugin.ACTIVE_AGENT

    @property
    def active_agent_count(self) -> Path:
        return self.planning / plugin.ACTIVE_AGENT_COUNT

    @property
    def active_agent_lock(self) -> Path:
        return self.planning / plugin.ACTIVE_AGENT_LOCK

    @property
    def phases(self) -> Path:
        return self.planning / plugin.PHASES

    @property
    def plugin_snapshots(self) -> Path:
        return self.planning / plugin.SNAPSHOTS

    # -- the state folder --------------------------------------------------------------------------------------------

    @property
    def link(self) -> Path:
        """The link in the project that leads to the state folder, for people and for other programs."""
        return self.planning / own_files.LINK

    @property
    def enrolment(self) -> Path:
        return self.folder / own_files.ENROLMENT

    @property
    def trusted(self) -> Path:
        """The content of the project's configuration file that the user has trusted."""
        return self.folder / TRUSTED_FILE

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
    def circuits(self) -> Path:
        return self.folder / "circuits"

    @property
    def crashes(self) -> Path:
        return self.folder / "crashes"

    @property
    def dead_letters(self) -> Path:
        return self.folder / "dead-letters"

    @property
    def ended(self) -> Path:
        return self.folder / "ended"

    @property
    def flags(self) -> Path:
        return self.folder / "flags"

    @property
    def hooks(self) -> Path:
        return self.folder / "hooks"

    @property
    def launches(self) -> Path:
        return self.folder / "launches"

    @property
    def quarantine(self) -> Path:
        return self.folder / "quarantine"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    @property
    def starts(self) -> Path:
        return self.folder / "starts"

    @property
    def trees(self) -> Path:
        return self.folder / "trees.json"

    @property
    def seen_locks(self) -> Path:
        return self.folder / "seen-locks.json"

    @property
    def holder(self) -> Path:
        return self.folder / "daemon.json"

    @property
    def session_ends(self) -> Path:
        return self.folder / "session-ends.json"

    @property
    def planned_starts(self) -> Path:
        return self.folder / "restarts.json"

    @property
    def store_lock(self) -> Path:
        return self.folder / "store.lock"

    @property
    def supervisor_lock(self) -> Path:
        return self.folder / "supervisor.lock"

    @property
    def held_lock(self) -> Path:
        return self.folder / "held-lock.json"

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders in the state folder."""
        return (
            self.agents, self.hooks, self.snapshots, self.backups, self.quarantine, self.dead_letters, self.crashes,
            self.flags, self.circuits, self.launches, self.starts, self.ended,
        )  # fmt: skip


def quarantine_file(quarantine: Path, name: str, data: bytes) -> Path:
    """Path in ``quarantine`` for a copy of the file ``name``: one for each content, so that no copy replaces another.

    The name is cut, and has no leading dot: other names are derived from it, and people list the folder.
    """
    short = os.fsdecode(os.fsencode(name.lstrip("."))[:180])
    return quarantine / f"{short}-{str(digest(data))[:12]}"


def refuse_root(folder: Path, found: os.stat_result | None) -> None:
    """``Refused`` where root would work in another user's project or planning folder, and lock that user out of it."""
    if found is not None and found.st_uid != 0 and os.geteuid() == 0:
        raise Refused(
            f"{folder} belongs to user {found.st_uid}: run as that user, or tell root to: run --allow-root", folder
        )


def refuse_linked_planning(planning: Path, found: os.stat_result | None) -> None:
    """Raise ``Refused`` if the planning folder is a link by its ``lstat``: two projects cannot share a journal."""
    if found is not None and stat.S_ISLNK(found.st_mode):
        do = "supervise the project that it leads to, or replace it by a folder"
        raise Refused(f"{planning} is a symbolic link: {do}", planning)
