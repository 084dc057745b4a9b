"""Finds the transcripts of an agent and reads how far its turn is.

A client keeps them in ``projects/<slug of its folder>/``: ``<session>.jsonl`` for a session, and below a folder of the
session's name ``subagents/agent-….jsonl`` for each subagent and in-process teammate, with a ``.meta.json`` beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats import transcripts
from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.turns import Turn, agent_turn, turn
from yolo_supervisor.fs.read import read_or_none, read_part

HEAD_SIZE = 16 * 1024
"""The size of the part at a transcript's beginning that is searched for its owner, in bytes."""

TAIL_SIZE = 128 * 1024
"""The size of the part at a transcript's end that is read, in bytes."""

MAX_TRANSCRIPTS = 500
"""The number of newest transcripts in a directory that are searched for those of teammates."""


@dataclass(frozen=True, slots=True)
class Version:
    """A file at one moment: any change of its content changes this."""

    size: int
    mtime_ns: int


@dataclass
class _Known:
    """The facts that are known of one transcript."""

    owner: tuple[str, str] | None = None
    mate: str | None = None
    """The name of the in-process teammate that it is of."""
    version: Version | None = None
    """Its version when it was last compared with others."""
    changed: int | None = None
    """The time of its last observed change, as a number that grows."""
    read: Version | None = None
    turn: Turn | None = None
    """The turn at its end in the version ``read``."""


class Transcripts:
    """The transcripts in the homes of one project's agents. Each is read again only after it has changed."""

    def __init__(self) -> None:
        self._files: dict[Path, _Known] = {}
        self._used: set[Path] = set()
        """The files that were asked for in this look."""
        self._listed: dict[Path, Mapping[tuple[str, str | None], Sequence[Path]]] = {}
        self._changes = 0
        """The number of changes seen so far."""

    def renew(self) -> None:
        """Begin a new look: within one, each directory is listed once. Forget the files that the last one left out."""
        self._listed = {}
        for path in self._files.keys() - self._used:
            del self._files[path]
        self._used = set()

    def of_session(self, session: str, homes: Iterable[Path], folders: Iterable[Path]) -> Path | None:
        """The transcript of a session of a client that works in one of ``folders``."""
        name = f"{session}.jsonl"
        if Path(name).name != name:
            return None
        slugs = [transcripts.slug(folder) for folder in folders]
        paths = (home / "projects" / slug / name for home in homes for slug in slugs)
        return next((path for path in paths if path.is_file()), None)

    def of_teammate(
        self, name: str, team: str | None, homes: Iterable[Path], folders: Iterable[Path]
    ) -> tuple[Path, ...]:
        """All transcripts that name this teammate: its own, and those of its predecessors."""
        slugs = [transcripts.slug(folder) for folder in folders]
        places = dict.fromkeys(home / "projects" / slug for home in homes for slug in slugs)
        return tuple(path for place in places for path in self._in_folder(place).get((name, team), ()))

    def of_mate(self, session_transcript: Path, name: str) -> Path | None:
        """The newest transcript of an in-process teammate of the session."""
        return next((path for path in self.subagents(session_transcript) if self._mate_name(path) == name), None)

    def subagents(self, session_transcript: Path) -> list[Path]:
        """The transcripts of the session's subagents and in-process teammates, the newest first."""
        return newest([session_transcript.with_suffix("") / "subagents"])

    def current(self, paths: Sequence[Path]) -> Path | None:
        """The one that is being written, None if that is not known.

        That is the only one, or the one that was seen to change last. No time of a file decides: clocks jump.
        """
        changed: dict[int, Path] = {}
        for path in paths:
            known, now = self._known(path), version(path)
            if known.version != now:
                if known.version is not None:
                    self._changes += 1
                    known.changed = self._changes
                known.version = now
            if known.changed is not None:
                changed[known.changed] = path
        if changed:
            return changed[max(changed)]
        return paths[0] if len(paths) == 1 else None

    def owner(self, path: Path) -> tuple[str, str] | None:
        """The name and the team of the teammate that the transcript names; it never changes once it is known."""
        known = self._known(path)
        if known.owner is None:  # a new transcript names no owner yet
            known.owner = transcripts.owner(read_part(path, 0, HEAD_SIZE) or b"")
        return known.owner

    def turn(self, path: Path, *, of_mate: bool = False) -> Turn | None:
        """The turn at the end of the transcript. ``of_mate`` says that it is a subagent's."""
        now = version(path)
        if now is None:
            return None
        known = self._known(path)
        if known.read != now:
            data = read_part(path, max(0, now.size - TAIL_SIZE), TAIL_SIZE) or b""
            known.read, known.turn = now, (agent_turn if of_mate else turn)(data)
        return known.turn

    def _known(self, path: Path) -> _Known:
        self._used.add(path)
        return self._files.setdefault(path, _Known())

    def _in_folder(self, folder: Path) -> Mapping[tuple[str, str | None], Sequence[Path]]:
        """The transcripts in a directory by the teammates that they name."""
        if folder not in self._listed:
            by_owner: dict[tuple[str, str | None], list[Path]] = {}
            for path in newest([folder]):
                if (owner := self.owner(path)) is not None:
                    by_owner.setdefault(owner, []).append(path)
            self._listed[folder] = by_owner
        return self._listed[folder]

    def _mate_name(self, path: Path) -> str | None:
        known = self._known(path)
        if known.mate is None:
            raw = load_object(read_or_none(path.with_suffix(".meta.json")) or b"") or {}
            if raw.get("taskKind") == "in_process_teammate":
                known.mate = text_or_none(raw.get("name"))
        return known.mate


def version(path: Path) -> Version | None:
    """The size and the time of the file, or None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):  # names in external files may be no file names
        return None
    return Version(found.st_size, found.st_mtime_ns)


def newest(folders: Iterable[Path]) -> list[Path]:
    """The transcripts in the folders, the newest first."""
    dated = [entry for folder in folders for entry in _transcripts(folder)]
    return [Path(path) for _, path in sorted(dated, reverse=True)[:MAX_TRANSCRIPTS]]


def _transcripts(folder: Path) -> Iterator[tuple[int, str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False):
                    yield entry.stat(follow_symlinks=False).st_mtime_ns, entry.path
    except (OSError, ValueError):
        return
