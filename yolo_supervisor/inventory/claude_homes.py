"""The folders of Claude Code's state that a project's agents use, with the live sessions and the teams in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from yolo_supervisor import user_dirs
from yolo_supervisor.config import Config, expanded
from yolo_supervisor.formats import claude
from yolo_supervisor.fs.changes import ParsedFileCache, names
from yolo_supervisor.fs.mounts import is_local
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.project_folders import ProjectFolders
from yolo_supervisor.inventory.project_snapshot import LiveSession
from yolo_supervisor.inventory.session_files import SessionFile, SessionFolder
from yolo_supervisor.models import Liveness, ProcessId
from yolo_supervisor.system.processes import Processes

TEAMS_REMEMBERED = 1000
"""The number of teams whose members are remembered, those seen last."""


def default_homes(config: Config, environment: Mapping[str, str]) -> list[Path]:
    """The folders of Claude Code's state: those of the daemon's user, unless configured."""
    if config.claude_dir:
        return [expanded(config.claude_dir)]
    folder = claude.config_dir({**environment, "HOME": str(user_dirs.home(environment) or "")})
    return [folder] if folder else []


class ClaudeHomes:
    """The homes of one project: the default ones, and those of all agents that it had."""

    def __init__(self, folders: ProjectFolders, processes: Processes, defaults: Iterable[Path]) -> None:
        self._folders = folders
        self._processes = processes
        self.defaults = tuple(defaults)
        self._known: dict[Path, None] = {}
        self._sessions: dict[Path, SessionFolder] = {}
        self._members: dict[str, frozenset[str]] = {}
        self._teams = ParsedFileCache(lambda data, path: claude.team(data, path.parent.name))

    def with_those_of(self, agents: Iterable[Path]) -> tuple[Path, ...]:
        """All homes. Those of ``agents`` are remembered: an agent's tasks outlive it."""
        self._known.update(dict.fromkeys(agents))
        return tuple(dict.fromkeys((*self.defaults, *self._known)))

    def read_ahead(self, homes: Iterable[Path]) -> Iterator[None]:
        """Read the session files that have changed, one in each step: ``session_files`` finds little left to read."""
        running = frozenset(self._processes.backend.pids())
        for home in homes:
            yield from self._sessions.setdefault(home, SessionFolder(home)).read(running)

    def session_files(self, homes: Iterable[Path]) -> tuple[SessionFile, ...]:
        """The session files in these homes, also those of processes that have ended or cannot be seen."""
        homes = tuple(homes)
        for _ in self.read_ahead(homes):
            pass
        return tuple(file for home in homes for file in self._sessions[home].files)

    def sessions(self, files: Iterable[SessionFile]) -> Iterator[LiveSession]:
        """The sessions whose process runs."""
        running = frozenset(self._processes.backend.pids())
        for file in files:
            session = file.session
            if session.pid not in running or not self._may_be_here(session):
                continue
            process = self._processes.identify(session.pid)
            if process and self._processes.backend.same_start(process.started, session.started):
                in_project = self._folders.has(file.folder)
                yield LiveSession(session=session, process=process, home=file.home, in_project=in_project)

    def _may_be_here(self, session: claude.Session) -> bool:
        """Whether the session's pid may be one of this pid namespace: that of a container may have the same number."""
        _, named, namespace = (session.pid_domain or "").rpartition("pid:[")
        return not named or namespace.rstrip("]") == self._processes.boot.rpartition("/")[2]

    def daemon_lives(self, home: Path) -> bool:
        """Whether the client's own daemon runs, which resumes crashed sessions of ``claude --bg``."""
        named = claude.daemon_process(read_or_none(home / "daemon.lock") or b"")
        if named is None or (process := self._processes.identify(named[0])) is None:
            return False
        return self._processes.backend.same_start(process.started, named[1])

    def lost_sessions(
        self, files: Iterable[SessionFile], homes: Iterable[Path], has_list: Callable[[LiveSession], bool]
    ) -> Iterator[LiveSession | None]:
        """The project's sessions whose process is proven to have ended, by a file that a killed client left.

        The file, of the session or of its team, must name this pid namespace (2.1.332), be of this boot, and lie on a
        disk of this machine. ``has_list`` is asked first. None is a step without a result.
        """
        booted_at = self._processes.backend.started_at(0)
        local: dict[Path, bool] = {}
        for file in (*self._sessions_here(files), *self._leads_here(homes)):
            session, home = file.session, file.home
            process = ProcessId(session.pid, int(session.started), self._processes.boot)
            lost = LiveSession(session=session, process=process, home=home, in_project=self._folders.has(file.folder))
            if not lost.in_project or not has_list(lost):
                continue
            is_over = self._processes.liveness(process) is Liveness.DEAD and _written_since(file.path, booted_at)
            if is_over and home not in local:
                local[home] = is_local(file.path)
            yield lost if is_over and local[home] else None

    def _sessions_here(self, files: Iterable[SessionFile]) -> Iterator[SessionFile]:
        """The sessions whose files name this pid namespace."""
        machine, _, namespace = self._processes.boot.split("/", 2)
        here = f"linux:{machine}:pid:[{namespace}]"
        return (file for file in files if file.session.pid_domain == here and file.session.started.isdigit())

    def _leads_here(self, homes: Iterable[Path]) -> Iterator[SessionFile]:
        """The sessions of leads whose team files name this pid namespace."""
        here = self._here()
        for home in homes:
            for path in (home / "teams" / name / "config.json" for name in names(home / "teams")):
                team = self._teams.get(path)
                if team is None or team.lead_process is None or team.lead_session is None or team.lead_space != here:
                    continue
                pid, started = team.lead_process
                lead = next((member for member in team.members if member.agent_id == team.lead_id), None)
                if lead is not None and lead.cwd and started.isdigit():
                    session = claude.Session(pid, team.lead_session, lead.cwd, started, name=None, status=None)
                    yield SessionFile(path, home, session, Path(lead.cwd))

    def lead_has_ended(self, team: claude.Team) -> bool:
        """Whether the process that the team's file names as its lead is proven to have ended."""
        if team.lead_process is None or team.lead_space != self._here() or not team.lead_process[1].isdigit():
            return False
        lead = ProcessId(team.lead_process[0], int(team.lead_process[1]), self._processes.boot)
        return self._processes.liveness(lead) is Liveness.DEAD

    def _here(self) -> str:
        """This host and pid namespace, as team files name them."""
        return f"{os.uname().nodename}#pid:[{self._processes.boot.rpartition('/')[2]}]"

    def members(self, teams: Iterable[claude.Team]) -> Mapping[str, frozenset[str]]:
        """By team, the teammates with a separate process that its file has named so far: the client removes files."""
        for team in teams:
            self._members[team.name] = self._members.pop(team.name, frozenset()) | _names_apart(team)
        for name in list(self._members)[:-TEAMS_REMEMBERED]:
            del self._members[name]
        return dict(self._members)

    def teams(self, homes: Iterable[Path]) -> tuple[tuple[claude.Team, ...], frozenset[Path]]:
        """The teams that have a member in this project, and the team files that cannot be read."""
        teams, unreadable = [], []
        for folder in (home / "teams" for home in homes):
            for path in (folder / name / "config.json" for name in names(folder)):
                team = self._teams.get(path)
                if team is None:
                    unreadable += [path] if os.path.isfile(path) else []
                elif any(member.cwd and self._folders.has(Path(member.cwd)) for member in team.members):
                    teams.append(team)
        return tuple(teams), frozenset(unreadable)


def _names_apart(team: claude.Team) -> frozenset[str]:
    """The names and ids of the teammates with a separate process. Those inside their lead's end with it."""
    apart = (member for member in team.members if not member.in_process and member.agent_id != team.lead_id)
    return frozenset(name for member in apart for name in (member.name, member.agent_id))


def _written_since(path: Path, since: float) -> bool:
    try:
        return path.stat().st_mtime > since
    except OSError:
        return False
