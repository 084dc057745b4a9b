"""The session files of one home of Claude Code. A killed client leaves its file, so thousands may be there."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolo_supervisor.formats import claude
from yolo_supervisor.fs.changes import DirectoryScanner, UnreadFiles
from yolo_supervisor.fs.read import read_or_none


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A session as its file, or that of its team, describes it. Its process may have ended."""

    path: Path
    home: Path
    session: claude.Session
    folder: Path
    """The folder that the session works in."""


class SessionFolder:
    """The folder ``sessions/`` of one home: each file is read again only after it has changed.

    Files of running processes are checked at each look. Of the others, which no process writes to, some are checked in
    turn if there are many.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path = home / "sessions"
        self._changes = DirectoryScanner(self._path, lambda name: name.endswith(".json"))
        self._unread = UnreadFiles()
        self._known: dict[str, SessionFile] = {}
        self._sorted: tuple[SessionFile, ...] | None = ()

    def read(self, running: Container[int]) -> Iterator[None]:
        """Read the files that have changed, one in each step. ``running`` are the pids of running processes."""
        closely = [name for name, file in self._known.items() if file.session.pid in running]
        try:
            changed = self._changes.look(closely)
        except OSError:
            return  # it cannot be read at present
        yield from self._unread.read(changed, self._read)

    def _read(self, name: str) -> None:
        path = self._path / name
        data = read_or_none(path)
        session = claude.session(data) if data is not None else None
        self._sorted = None
        if session is None:
            self._known.pop(name, None)
        else:
            self._known[name] = SessionFile(path, self._home, session, Path(session.cwd))

    @property
    def files(self) -> Sequence[SessionFile]:
        """The files that could be read, by name."""
        if self._sorted is None:
            self._sorted = tuple(self._known[name] for name in sorted(self._known))
        return self._sorted
