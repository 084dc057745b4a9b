"""Records how each living agent was started, so that it can be started again after its death.

One file an agent, in ``launches/`` of the state folder: a command line may hold secrets, so it is in no journal.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from yolo_supervisor.clock import TURN_S
from yolo_supervisor.formats import claude
from yolo_supervisor.formats.launch import (
    Launch,
    dump_launch,
    is_headless,
    kept_environment,
    load_launch,
    resumed_session,
)
from yolo_supervisor.formats.launch_fields import SESSION, SIZE_LIMIT
from yolo_supervisor.formats.transcripts import permission_mode
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import read_or_none, read_part
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.inventory.transcripts import TAIL_SIZE, Transcripts, Version, version
from yolo_supervisor.models import Agent
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import Server

FILE_TIME_SLACK_S = 1.0
"""How much a transcript's time may lie before the start of the process that writes it."""

PORTION = 5
"""The number of known agents that are looked at again in one round, to see what has changed."""

MODES_REMEMBERED = 1000
"""The number of transcripts whose permission modes are remembered."""

TAILS = 32
"""The number of parts of a transcript, from its end on, that are searched for its permission mode."""


@dataclass(slots=True)
class _Known:
    """What is known of one agent's launch."""

    launch: Launch | None
    session: str | None = None
    """The session that the agent itself was known to have when it was last looked at."""
    saved: bool = False
    """Whether the file says the same."""


class LaunchRecorder:
    """The launches of one project's agents, by the names of their records."""

    def __init__(self, store: Store, processes: Processes) -> None:
        self._store = store
        self._processes = processes
        self._transcripts = Transcripts()
        self._known: dict[str, _Known] = {}
        self._turns: deque[str] = deque()
        """The records of known agents in the order in which they are looked at again."""
        self._listed = False
        """Whether the files of an earlier supervisor were compared with the records."""
        self._missing: set[str] = set()
        """Records that were missing in the last round."""
        self._homes: tuple[Path, ...] = ()
        self._folders: tuple[Path, ...] = ()
        self._modes: dict[Path, tuple[Version, str | None]] = {}

    def record(
        self,
        agents: Mapping[str, Agent],
        homes: Iterable[Path],
        folders: Iterable[Path],
        servers: Iterable[Server] = (),
    ) -> None:
        """Record the launches of new agents among these, and what has changed of some others.

        Files of agents that are no longer among them are removed, except those that a start still needs. ``homes`` and
        ``folders`` are where their transcripts may be.
        """
        self._homes, self._folders = tuple(homes), tuple(folders)
        self._remove_others(agents)
        until_s = self._store.clock.monotonic() + TURN_S
        by_socket: Mapping[str, Server] | None = None
        for name in self._due(agents):
            if by_socket is None:
                by_socket = {server.socket: server for server in servers}
                self._transcripts.renew()
            self._look(name, agents[name], by_socket)
            if self._store.clock.monotonic() >= until_s:
                break

    def of(self, record: str) -> Launch | None:
        """How the agent of this record was started, with its permission mode by now; None if that is not known."""
        if record not in self._known:
            data = read_or_none(self._store.paths.launches / record, SIZE_LIMIT)
            launch = load_launch(data) if data is not None else None
            if launch is None:
                return None
            self._known[record] = _Known(launch, launch.session, saved=True)
        launch = self._known[record].launch
        return self._with_mode(launch) if launch is not None else None

    # -- looks at agents -----------------------------------------------------------------------------------------------

    def _due(self, agents: Mapping[str, Agent]) -> Iterable[str]:
        """The agents to look at: new ones, those whose session has changed, and a few others in turn."""
        for name, agent in agents.items():
            known = self._known.get(name)
            if agent.process is not None and agent.lead is None and (known is None or known.session != agent.session):
                yield name
        for _ in range(min(PORTION, len(self._turns))):
            name = self._turns.popleft()
            if name in agents:
                self._turns.append(name)
                yield name

    def _look(self, name: str, agent: Agent, servers: Mapping[str, Server]) -> None:
        """Read how the agent was started, and save it if that is new. What cannot be read stays as it was."""
        known = self._known.get(name)
        if known is None:
            launch = self.of(name)  # an earlier supervisor may have recorded it
            known = self._known.setdefault(name, _Known(launch))
            self._turns.append(name)
        known.session = agent.session
        launch = self._read(agent, known.launch, servers)
        if launch is None or (launch == known.launch and known.saved):
            return
        known.launch = launch
        with contextlib.suppress(OSError, Refused):  # the disk may be full: it is tried again in turn
            write_atomic(self._store.disk, self._store.paths.launches / name, dump_launch(launch), durable=False)
            known.saved = True

    def _read(self, agent: Agent, before: Launch | None, servers: Mapping[str, Server]) -> Launch | None:
        process, backend = agent.process, self._processes.backend
        assert process is not None
        try:
            argv = tuple(word.decode("utf-8", "surrogateescape") for word in backend.words(process.pid))
            if before is None or before.argv != argv:
                environment = backend.environment(process.pid)
                kept, absent = kept_environment(environment)
                home = agent.claude_dir or claude.config_dir(environment)
            else:
                kept, absent = dict(before.environment), before.absent
                home = agent.claude_dir or (Path(before.claude_dir) if before.claude_dir else None)
            folder = backend.folder(process.pid)
        except OSError:
            return None
        if not _is_program(argv) or not folder.startswith("/") or self._processes.identify(process.pid) != process:
            return None
        session = agent.session or (before.session if before else None) or self._session(agent, argv, folder)
        launch = Launch(
            agent=agent.id,
            name=agent.name,
            session=session if session is not None and SESSION.fullmatch(session) else None,
            argv=argv,
            folder=folder,
            environment=kept,
            absent=absent,
            claude_dir=str(home) if home is not None and home.is_absolute() else None,
            mode=before.mode if before else None,
            tmux_session=before.tmux_session if before else None,
            window=before.window if before else None,
            headless=is_headless(argv),
        )
        return _with_place(launch, agent, servers)

    def _session(self, agent: Agent, argv: Sequence[str], folder: str) -> str | None:
        """The session of a teammate: of the transcript that it writes, else by its command line."""
        if agent.team is not None and agent.process is not None:
            began = self._processes.backend.started_at(agent.process.started) - FILE_TIME_SLACK_S
            own = self._transcripts.of_teammate(agent.name, agent.team, self._homes_of(agent), self._places(folder))
            written = [path for path in own if (now := version(path)) is not None and now.mtime_ns / 1e9 >= began]
            if (path := self._transcripts.current(written)) is not None:
                return path.stem
        return resumed_session(argv)

    def _homes_of(self, agent: Agent) -> Iterable[Path]:
        return dict.fromkeys((*((agent.claude_dir,) if agent.claude_dir else ()), *self._homes))

    def _places(self, folder: str) -> Iterable[Path]:
        return dict.fromkeys((Path(folder), *self._folders))

    def _with_mode(self, launch: Launch) -> Launch:
        """The launch with the permission mode at the end of the session's transcript."""
        if launch.session is None:
            return launch
        homes = dict.fromkeys((*((Path(launch.claude_dir),) if launch.claude_dir else ()), *self._homes))
        path = self._transcripts.of_session(launch.session, homes, self._places(launch.folder))
        mode = self._mode(path) if path is not None else None
        return replace(launch, mode=mode) if mode is not None else launch

    def _mode(self, path: Path) -> str | None:
        now = version(path)
        if now is None:
            return None
        known = self._modes.get(path)
        if known is None or known[0] != now:
            if len(self._modes) >= MODES_REMEMBERED:
                self._modes.clear()
            known = self._modes[path] = now, _last_mode(path, now.size)
        return known[1]

    # -- agents that are forgotten -------------------------------------------------------------------------------------

    def _remove_others(self, agents: Mapping[str, Agent]) -> None:
        """Remove what was recorded of agents that are missing in two rounds, and that no start needs."""
        if self._listed and not self._missing and self._known.keys() <= agents.keys():
            return
        there = {*self._known, *self._missing}
        if not self._listed:
            there.update(names(self._store.paths.launches))
            self._listed = True
        missing = there - agents.keys()
        needed = {start.record for state in self._store.index.restarts.values() for start in state.starts}
        for name in (missing & self._missing) - needed:
            self._known.pop(name, None)
            with contextlib.suppress(OSError):
                self._store.disk.unlink(self._store.paths.launches / name)
            missing.discard(name)
        self._missing = missing


def _is_program(argv: Sequence[str]) -> bool:
    """Whether this is a program's command line, and not that of ``env``, which becomes the program in a moment."""
    return any(argv) and PurePosixPath(argv[0]).name != "env"


def _with_place(launch: Launch, agent: Agent, servers: Mapping[str, Server]) -> Launch:
    """The launch with the names of the agent's tmux session and window, if its server has them."""
    server = servers.get(agent.pane.socket) if agent.pane is not None else None
    if agent.pane is None or server is None or server.pid != agent.pane.server_pid:
        return launch
    pane = server.panes.get(agent.pane.pane)
    session = server.names.get(pane.sessions[0]) if pane is not None and pane.sessions else None
    if pane is None or session is None:
        return launch
    return replace(launch, tmux_session=session, window=pane.window or launch.window)


def _last_mode(path: Path, size: int) -> str | None:
    """The last permission mode that the transcript says, in its last parts."""
    rest = b""
    for part in range(TAILS):
        at = size - (part + 1) * TAIL_SIZE
        data = read_part(path, max(0, at), TAIL_SIZE + min(0, at)) or b""
        if (mode := permission_mode(data + rest)) is not None or at <= 0:
            return mode
        rest = data.partition(b"\n")[0] + b"\n" if b"\n" in data else data + rest
    return None
