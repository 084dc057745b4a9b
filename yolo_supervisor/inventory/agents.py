"""The agent registry of one project: its agents from every source, and the task lists that are tied to the project.
Several sightings of one agent are one agent. It only reads, and treats unreadable things as unknown."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from yolo_supervisor.config import Config, expanded
from yolo_supervisor.formats import claude, tasks
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats.plugin import agents as plugin_agents
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.changes import EVERY, DirectoryScanner, ParsedFileCache, listed, names
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.process_scan import AgentProcess, ProcessScanner, within
from yolo_supervisor.models import Agent, Lease, Liveness, Pane, ProcessId, Task
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system.processes import Processes
from yolo_supervisor.system.tmux import pane_of
from yolo_supervisor.user_dirs import home

T = TypeVar("T")

NO_AGENTS = ("tmux", "screen", "sshd", "systemd", "login", "init")
"""Programs that start sessions for people: sessions that they start are not started by a hook."""


def claude_dirs(config: Config, environment: Mapping[str, str]) -> list[Path]:
    """The folders of Claude Code's state: those of the daemon's user, unless configured."""
    if config.claude_dir:
        return [expanded(config.claude_dir)]
    folder = claude.config_dir({**environment, "HOME": str(home(environment) or "")})
    return [folder] if folder else []


class AgentRegistry:
    """All known agents of a project. ``claude_dirs`` are read beside the folders that agents name."""

    def __init__(
        self, paths: Paths, processes: Processes, scanner: ProcessScanner, claude_dirs: Callable[[], Iterable[Path]]
    ):
        self.paths = paths
        self._processes = processes
        self._scanner = scanner
        self._default_dirs = claude_dirs
        self._real = Path(os.path.realpath(paths.project))
        self._memo: dict[str, Any] = {}
        self._record_files: dict[str, Agent | None] = {}
        self._found: tuple[int, list[Agent]] = (-1, [])
        self._elsewhere: list[AgentProcess] = []
        self._dirs: dict[Path | None, None] = {}
        self._by_seen: dict[AgentProcess, Agent] = {}
        self._sessions = ParsedFileCache(lambda data, _: claude.session(data))
        self._teams = ParsedFileCache(lambda data, path: claude.team(data, path.parent.name))
        self._lists: dict[Path, _TaskList] = {}
        self._plans = ParsedFileCache(execution_state.plans)

    def renew(self) -> None:
        """Begin a new observation: within one, each folder is listed once."""
        self._memo = {}

    def _once(self, name: str, answer: Callable[[], T]) -> T:
        if name not in self._memo:
            self._memo[name] = answer()
        found: T = self._memo[name]
        return found

    # -- agents --------------------------------------------------------------------------------------------------

    def records(self) -> list[Agent]:
        """The recorded agents: seen in an earlier observation, or registered by a person or a hook."""
        return list(self.record_files().values())

    def record_files(self) -> dict[str, Agent]:
        """The recorded agents by the names of their records.

        A record is written once and never changed, so it is read once.
        """
        return self._once("records", self._read_records)

    def _read_records(self) -> dict[str, Agent]:
        known, there = self._record_files, set(listed(self.paths.agents))
        for name in known.keys() - there:
            del known[name]
        for name in there - known.keys() | {name for name, agent in known.items() if agent is None}:
            known[name] = agent = own_files.load_agent(read_or_none(self.paths.agents / name) or b"")
            if agent is not None:
                self._dirs[agent.claude_dir] = None
        home = self.home()
        return {name: agent for name, agent in known.items() if agent is not None and agent.home in (None, home)}

    def home(self) -> int | None:
        """The inode of the folder of records, or None if there is none yet.

        A record carries it: a record from another folder does not count.
        """
        try:
            return self.paths.agents.stat().st_ino
        except OSError:
            return None

    def damaged_records(self) -> list[str]:
        """The names of records that cannot be read."""
        self.record_files()
        return [name for name, agent in self._record_files.items() if agent is None and name.endswith(".json")]

    def others(self, now: datetime) -> Iterator[Agent]:
        """All other agents that run now, some more than once.

        The sources with the most information come first.
        """
        yield from self._by_session()
        yield from self._by_hook()
        yield from self._by_health()
        yield from self._by_pid_file(now)

    def in_process(self, lead: Agent, known: Iterable[Agent]) -> list[Agent]:
        """The teammates that live inside this lead's process, and die with it.

        A tmux teammate looks like one for a moment while it is being started. A teammate with a separate process is not
        in-process.
        """
        if not lead.session or lead.lead is not None:
            return []
        with_process = {
            agent.id
            for agent in known
            if agent.lead is None and agent.process and self._processes.liveness(agent.process) is Liveness.ALIVE
        }
        return [
            Agent(
                id=member.agent_id,
                name=member.name,
                role=plugin_agents.normal_role(member.role or member.name),
                team=team.name,
                source="team",
                since=lead.since,
                process=lead.process,
                pid=lead.pid,
                pane=lead.pane,
                lead=lead.id,
                claude_dir=lead.claude_dir,
            )
            for team in self.teams()
            if team.lead_session == lead.session
            for member in team.members
            if member.in_process and member.agent_id not in (team.lead_id, *with_process)
        ]

    def aliases(self, agent: Agent) -> list[Agent]:
        """The same agent as the lead of a team that was founded after the agent was found."""
        return [
            replace(agent, id=team.lead_id, name="team-lead", team=team.name)
            for team in self.teams()
            if agent.lead is None and team.lead_id and team.lead_session == agent.session is not None
        ]

    def unproven(self, known: Iterable[Agent]) -> list[Agent]:
        """Pids in the plugin's files whose identity cannot be proven.

        They are shown, and never acted on.
        """
        pids = {agent.pid for agent in known}
        numbers = dict.fromkeys(
            plugin_agents.agent_pids(read_or_none(self.paths.planning / ".agent-pids") or b""), "agent"
        )
        numbers |= {health.pid: health.role for health, _ in self.healths()}
        epoch = datetime.fromtimestamp(0, UTC)
        return [
            Agent(id=f"{role}#{pid}", name=role, role=role, team=None, source="agent-pids", since=epoch, pid=pid)
            for pid, role in numbers.items()
            if pid not in pids and self._exists(pid)
        ]

    def healths(self) -> list[tuple[plugin_agents.Health, Path]]:
        """The plugin's health files that can be read."""
        return self._once("healths", self._read_healths)

    def _read_healths(self) -> list[tuple[plugin_agents.Health, Path]]:
        folder = self.paths.planning / ".agent-health"
        return [
            (health, folder / name)
            for name in names(folder)
            if name.endswith(".json")
            and (health := plugin_agents.health(read_or_none(folder / name) or b"", name[:-5]))
        ]

    def dangling_pids(self) -> frozenset[int]:
        """Pids in the plugin's files that no process has."""
        numbers = {*plugin_agents.agent_pids(read_or_none(self.paths.planning / ".agent-pids") or b"")}
        numbers |= {health.pid for health, _ in self.healths()}
        return frozenset(pid for pid in numbers if not self._exists(pid))

    def _exists(self, pid: int) -> bool:
        try:
            facts = self._processes.backend.facts(pid)
        except OSError:
            return True
        return facts is not None and not facts.zombie

    def _ours(self, folder: Path) -> bool:
        """Whether an agent at work in the folder belongs to this project.

        The folder must be in the project, and not in a supervised project further inside.
        """
        if folder == self._real or not within(folder, self._real):
            return folder == self._real
        between = [f for f in (folder, *folder.parents) if f != self._real and within(f, self._real)]
        return not any(Paths(nearer).folder.is_dir() for nearer in between)

    def teammates(self) -> list[Agent]:
        """The agents whose command line identifies them.

        The list is the same object while nothing has changed.
        """
        if self._found[0] != self._scanner.generation:
            before = self._by_seen
            seen_ones = self._scanner.agents.values()
            here = [seen for seen in seen_ones if self._ours(seen.folder)]
            self._by_seen = {seen: before.get(seen) or self._teammate(seen, seen.flags) for seen in here if seen.flags}
            self._found = self._scanner.generation, list(self._by_seen.values())
            self._elsewhere = [
                seen for seen in self._scanner.agents.values() if seen.flags and not self._ours(seen.folder)
            ]
            self._dirs.update(dict.fromkeys(seen.claude_dir for seen in here))
        return self._found[1]

    def elsewhere(self) -> list[Agent]:
        """Teammates that run outside the project's folder, in a worktree, for example.

        They are not watched here, but a task that bears their name may be theirs.
        """
        dirs = self.claude_dirs()  # this call also updates the two lists
        return [self._teammate(seen, seen.flags) for seen in self._elsewhere if seen.flags and seen.claude_dir in dirs]

    def _teammate(self, seen: AgentProcess, flags: claude.Flags) -> Agent:
        return self._agent(
            seen.process,
            id=flags.agent_id,
            name=flags.name,
            role=plugin_agents.normal_role(self._member_role(flags) or flags.name),
            team=flags.team,
            source="tmux" if seen.pane else "process",
            pane=seen.pane,
            claude_dir=seen.claude_dir,
        )

    def _member_role(self, flags: claude.Flags) -> str | None:
        """The role of a member, or None if it is only the default.

        Every teammate is ``general-purpose`` by default; its name says more.
        """
        return flags.role if flags.role != "general-purpose" else None

    def _by_session(self) -> Iterator[Agent]:
        for folder in self.claude_dirs():
            for session in self._live_sessions(folder):
                if not self._ours(Path(session.cwd)):
                    continue
                process = self._processes.identify(session.pid)
                if process is None:
                    continue
                seen = self._scanner.agents.get(process)
                team = next((team for team in self.teams() if team.lead_session == session.session_id), None)
                yield self._agent(
                    process,
                    id=team.lead_id if team and team.lead_id else f"session-{session.session_id[:8]}",
                    name="team-lead" if team else session.name or "session",
                    role="lead",
                    team=team.name if team else None,
                    source="session",
                    pane=seen.pane if seen else None,
                    session=session.session_id,
                    claude_dir=folder,
                )

    def _live_sessions(self, folder: Path) -> list[claude.Session]:
        return self._once(f"sessions {folder}", lambda: list(self._find_sessions(folder)))

    def session_status(self, agent: Agent) -> str | None:
        """The client's status of the agent's session, or None if there is none.

        It is ``idle``, ``busy`` or ``waiting``.
        """
        return self._once("statuses", self._statuses).get(agent.pid)

    def _statuses(self) -> dict[int | None, str | None]:
        found = (session for folder in self.claude_dirs() for session in self._live_sessions(folder))
        return {session.pid: session.status for session in found}

    def _find_sessions(self, folder: Path) -> Iterator[claude.Session]:
        for name in names(folder / "sessions"):
            session = self._sessions.get(folder / "sessions" / name) if name.endswith(".json") else None
            process = self._processes.identify(session.pid) if session else None
            if session and process and self._processes.backend.same_start(process.started, session.started):
                yield session

    def _by_hook(self) -> Iterator[Agent]:
        for name in names(self.paths.hooks):
            event = name.partition(".")[0]
            if event not in ("SessionStart", "SubagentStart"):
                continue
            note = own_files.hook_note(read_or_none(self.paths.hooks / name) or b"", event)
            process = self.hook_process(note)
            if process is None:
                continue
            session = note.payload.get("session_id")
            kind, ident = note.payload.get("agent_type"), note.payload.get("agent_id")
            sub = event == "SubagentStart"
            role = plugin_agents.normal_role(kind) if isinstance(kind, str) and kind else "agent" if sub else "lead"
            seen = self._scanner.agents.get(process)
            yield self._agent(
                process,
                id=ident if isinstance(ident, str) and ident else f"{role}#{process.pid}",
                name=role,
                role=role,
                team=None,
                source="hook",
                pane=seen.pane if seen else self._pane(process),
                lead=f"process {process.pid}" if sub else None,
                session=session if isinstance(session, str) and not sub else None,
                claude_dir=seen.claude_dir if seen else None,
            )

    def hook_process(self, note: own_files.HookNote) -> ProcessId | None:
        """The live process that ran the hook.

        It is the parent of the session that the client starts its hooks in.
        """
        ancestors = [ProcessId(pid, started, self._processes.boot) for pid, started, _, _ in note.ancestry]
        for process in ancestors[1:]:  # the first is the hook command itself
            if process in self._scanner.agents and self._processes.liveness(process) is Liveness.ALIVE:
                return process
        leader = next((i for i, (pid, _, _, sid) in enumerate(note.ancestry[:3]) if pid == sid), None)
        above = note.ancestry[leader + 1 : leader + 2] if leader is not None else ()
        if not above or above[0][0] <= 1 or above[0][2].startswith(NO_AGENTS):
            return None
        process = ancestors[1:][leader or 0]
        return process if self._processes.liveness(process) is Liveness.ALIVE else None

    def _by_health(self) -> Iterator[Agent]:
        for health, path in self.healths():
            if process := self._proven(health.pid, path):
                yield self._agent(
                    process, id=f"{health.role}#{health.pid}", name=health.role, role=health.role, team=None,
                    source="agent-health", pane=self._pane(process),
                )  # fmt: skip

    def _by_pid_file(self, now: datetime) -> Iterator[Agent]:
        path = self.paths.planning / ".agent-pids"
        for pid in plugin_agents.agent_pids(read_or_none(path) or b""):
            if process := self._proven(pid, path):
                yield self._agent(
                    process, id=f"agent#{pid}", name="agent", role="agent", team=None, source="agent-pids",
                    pane=self._pane(process),
                )  # fmt: skip

    def _proven(self, pid: int, path: Path) -> ProcessId | None:
        """The process of a pid from a file, if it looks like an agent and is older than the file."""
        process = self._processes.identify(pid)
        if process is None or process not in self._scanner.agents:
            return None
        return process if self._processes.older_than_file(process, path) else None

    def _pane(self, process: ProcessId) -> Pane | None:
        seen = self._scanner.agents.get(process)
        if seen is not None:
            return seen.pane
        with contextlib.suppress(OSError):
            return pane_of(self._processes.backend.environment(process.pid))
        return None

    def _agent(self, process: ProcessId, **known: object) -> Agent:
        since = datetime.fromtimestamp(self._processes.backend.started_at(process.started), UTC)
        home = self._once("home", self.home)
        return Agent(since=since, process=process, pid=process.pid, home=home, **known)  # type: ignore[arg-type]

    # -- Claude's folders ----------------------------------------------------------------------------------------

    def claude_dirs(self) -> list[Path]:
        """The folders in which the clients of this project's agents keep their state."""
        return self._once("claude_dirs", self._find_claude_dirs)

    def _find_claude_dirs(self) -> list[Path]:
        self.teammates()  # this call finds their folders
        return list(dict.fromkeys(d for d in (*self._default_dirs(), *self._dirs) if d is not None))

    def teams(self) -> list[claude.Team]:
        """The teams that have a member in this project."""
        return self._once("teams", self._find_teams)

    def _find_teams(self) -> list[claude.Team]:
        found = []
        for folder in self.claude_dirs():
            for name in names(folder / "teams"):
                team = self._teams.get(folder / "teams" / name / "config.json")
                if team and any(member.cwd and self._ours(Path(member.cwd)) for member in team.members):
                    found.append(team)
        return found

    # -- tasks ---------------------------------------------------------------------------------------------------

    def task_lists(self) -> list[Path]:
        """The task folders that are tied to the project: those of its teams, agents and sessions."""
        wanted = {team.name for team in self.teams()}
        for agent in (*self.records(), *self.teammates()):
            wanted |= _list_names(agent)
        for folder in self.claude_dirs():
            for session in self._live_sessions(folder):
                if self._ours(Path(session.cwd)):
                    wanted |= {session.session_id, claude.team_of_session(session.session_id)}
        return self._folders(wanted)

    def lists_of(self, agent: Agent) -> list[Path]:
        """The task folders that the agent works on.

        Without a team or session, these are all that are tied to the project.
        """
        own = _list_names(agent)
        return self._folders(own, agent.claude_dir) if own else self.task_lists()

    def _folders(self, wanted: Iterable[str], first: Path | None = None) -> list[Path]:
        folders = list(dict.fromkeys([*([first] if first else []), *self.claude_dirs()]))
        return [
            path
            for name in sorted(wanted)
            if Path(name).name == name and not name.startswith(".")
            for folder in folders
            if os.path.isdir(path := folder / "tasks" / name)
        ]

    def tasks(self, folder: Path) -> list[Task]:
        """All readable tasks in a list's folder."""
        found = (_task(folder, name) for name in names(folder) if claude.is_task_file(name))
        return [task for task in found if task is not None]

    def task(self, folder: Path, number: str) -> Task | None:
        """One task of a list, or None if it does not exist or cannot be read."""
        return _task(folder, f"{number}.json") if claude.is_task_file(f"{number}.json") else None

    def at_work(self, folder: Path, quiet: int = EVERY) -> tuple[list[Task], list[Path]]:
        """The tasks in progress in a list's folder, and the files that cannot be read at present.

        ``quiet`` is the number of other files that are read again while the folder is unchanged.
        """
        if folder not in self._lists:  # replaces removed folders: every session has a folder
            self._lists = {path: known for path, known in self._lists.items() if os.path.isdir(path)}
            self._lists[folder] = _TaskList(folder)
        try:
            return self._lists[folder].look(quiet)
        except OSError:
            return [], [folder]

    def unreadable(self, agent: Agent) -> Iterator[Path]:
        """Unreadable files, other than its tasks, that may say what the agent was working on.

        They may be unreadable only at present.
        """
        state = self.paths.planning / execution_state.STATE_FILE
        if execution_state.may_have_plans(agent.name) and os.path.isfile(state) and self._plans.get(state) is None:
            yield state
        if agent.session and agent.lead is None:
            for folder in self.claude_dirs():
                team = folder / "teams" / (agent.team or claude.team_of_session(agent.session)) / "config.json"
                if os.path.isfile(team) and self._teams.get(team) is None:
                    yield team

    def unclear(self, folder: Path) -> bool:
        """Whether a file is unreadable at present that may name a worker of the folder's task list."""
        team = folder.parent.parent / "teams" / folder.name / "config.json"
        return bool(self.damaged_records()) or (os.path.isfile(team) and self._teams.get(team) is None)

    def plans(self) -> list[Task]:
        """The plans of the plugin's execution state, none if it cannot be read."""
        return self._plans.get(self.paths.planning / execution_state.STATE_FILE) or []

    def plans_of(self, agent: Agent) -> list[Task]:
        """The running plans of the agent.

        The owner of a plan decides if it is named, otherwise the plugin's numbering.
        """
        return [
            plan
            for plan in self.plans()
            if plan.status in execution_state.RUNNING
            and (
                agent.bears(plan.owner) if plan.owner else execution_state.works_on(agent.name, agent.team, plan.number)
            )
        ]

    def leases(self) -> list[Lease]:
        """The readable leases and locks in the plugin's folder."""
        folder = self.paths.planning / ".locks"
        found = (
            plugin_leases.lease(data, folder / name)
            for name in names(folder)
            if name.endswith((".lease", ".lock")) and (data := read_or_none(folder / name)) is not None
        )
        return [lease for lease in found if lease is not None]


class _TaskList:
    """The tasks in progress of one list. The client locks a task by a folder beside it, so a lock also changes the
    list."""

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._folder = DirectoryScanner(folder, claude.is_task_file)
        self._at_work: dict[str, Task | None] = {}
        """The tasks by file name; None for a file that cannot be read."""

    def look(self, quiet: int) -> tuple[list[Task], list[Path]]:
        for name in self._folder.look(self._at_work, quiet):
            self._at_work.pop(name, None)
            task = _task(self._path, name)
            if task is None and os.path.isfile(self._path / name):
                self._at_work[name] = None
            elif task is not None and task.status == tasks.AT_WORK:
                self._at_work[name] = task
        found = sorted(self._at_work.items())
        return [t for _, t in found if t is not None], [self._path / n for n, t in found if t is None]


def _task(folder: Path, name: str) -> Task | None:
    path = folder / name
    data = read_or_none(path)
    return claude.task(data, folder.name, path) if data is not None else None


def _list_names(agent: Agent) -> set[str]:
    wanted = {agent.team} if agent.team else set()
    if agent.session:
        wanted |= {agent.session, claude.team_of_session(agent.session)}
    return wanted
