"""Looks for every process that runs a session of Claude Code, or may run it.

The launcher asks this right before it becomes the client, so only small modules of the standard library are imported.
Every doubt counts as unknown: two processes on one session mix its transcript and do its work twice.
"""

from __future__ import annotations

import json
import os
import re
import time

from yolo_supervisor.fs.bounded import read_regular
from yolo_supervisor.user_dirs import own_state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any, Protocol

    class Facts(Protocol):
        """What is asked about one process."""

        @property
        def started(self) -> int: ...
        @property
        def zombie(self) -> bool: ...
        @property
        def ending(self) -> bool: ...
        @property
        def comm(self) -> str: ...

    class System(Protocol):
        """Where the processes are: the part of a process backend that is needed."""

        def pids(self) -> list[int]: ...
        def facts(self, pid: int) -> Facts | None: ...
        def owner(self, pid: int) -> int: ...
        def argv(self, pid: int) -> list[str]: ...
        def environment(self, pid: int) -> dict[str, str]: ...
        def same_start(self, started: int, text: str) -> bool: ...


FILE_LIMIT = 2**20
"""The largest file of the client that is read, in bytes."""

FILES_LIMIT = 20_000
"""The largest number of names in a folder of the client that are looked at."""

EXEC_S = 0.1
"""How long an empty command line is read again: a program that is just being started has none for a moment."""

CLIENTS = re.compile(r"claude|node|bun|\d+\.\d+")
"""The beginnings of the names under which the kernel lists the client's programs."""

STARTERS = re.compile(r"claude|node|bun|\d+\.\d+|python|yolo|sh\b|bash|dash|zsh|env\b")
"""The same, with those of programs that become a client."""

ENDED = ("done", "failed", "stopped")
"""The states of a job of the client's own daemon in which it does not resume the job's session."""


class Look:
    """What was seen: the start of each living process of the session by its pid, and whether there may be more."""

    def __init__(self) -> None:
        self.processes: dict[int, int] = {}
        self.unknown = False

    def add(self, pid: int, started: int) -> None:
        self.processes[pid] = started


def lock_path(session: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The lock of the session: the launcher holds it from its last look until it has become the client."""
    import hashlib

    name = hashlib.sha256(session.encode("utf-8", "surrogatepass")).hexdigest()
    return own_state_dir(environment) / "sessions" / f"{name}.lock"


def look(session: str, agent: str, team: str | None, homes: Iterable[str], system: System, domain: str) -> Look:
    """Look now for the session's processes, or those of the teammate with this id.

    ``homes`` are the folders of the client's state, ``domain`` names the machine and the pid namespace as the client
    does.
    """
    seen, homes = Look(), list(homes)
    real = {os.path.realpath(home) for home in homes}
    try:
        pids = system.pids()
    except OSError:
        seen.unknown = True
        return seen
    for pid in pids:
        _by_command_line(pid, session, agent, team, real, system, seen)
    for home in homes:
        _by_files(home, session, system, domain, seen)
        _by_daemon(home, session, system, seen)
    return seen


def _is_over(facts: Facts) -> bool:
    """Whether the process runs no code any more. The command line of one that ends is empty."""
    return facts.zombie or facts.ending


# -- command lines ----------------------------------------------------------------------------------------------------


def _by_command_line(
    pid: int, session: str, agent: str, team: str | None, homes: set[str], system: System, seen: Look
) -> None:
    try:
        facts = system.facts(pid)
    except OSError:
        seen.unknown |= _is_ours(pid, system)
        return
    if facts is None or _is_over(facts):
        return
    if facts.comm.startswith("tmux"):  # the command line of a server may be that of its first session's agent
        return
    argv = _argv(pid, facts, system)
    if argv is None:
        seen.unknown |= _may_be_client(pid, facts, system)
    elif names_session(argv, session) or (
        team is not None and names_teammate(argv, agent, team) and _may_be_of(pid, homes, system)
    ):
        seen.add(pid, facts.started)


def _argv(pid: int, facts: Facts, system: System) -> list[str] | None:
    """The command line; None if it cannot be read, or stays empty. An ended process has an empty one."""
    until = time.monotonic() + EXEC_S
    while True:
        try:
            argv = system.argv(pid)
            if any(argv):
                return argv
            now = system.facts(pid)
        except OSError:
            return _none_if_there(pid, facts, system)
        if now is None or _is_over(now) or now.started != facts.started:
            return []
        if not STARTERS.match(now.comm) or time.monotonic() > until:
            return None
        time.sleep(0.002)


def _none_if_there(pid: int, facts: Facts, system: System) -> list[str] | None:
    """None if the process still lives."""
    try:
        now = system.facts(pid)
    except OSError:
        return None
    return None if now is not None and not _is_over(now) and now.started == facts.started else []


def _may_be_client(pid: int, facts: Facts, system: System) -> bool:
    """Whether a process without a readable command line may be a client: of this user, or by the client's name."""
    return facts.comm.startswith("claude") or (STARTERS.match(facts.comm) is not None and _is_ours(pid, system))


def _is_ours(pid: int, system: System) -> bool:
    try:
        return system.owner(pid) == os.geteuid()
    except OSError:
        return False


def names_session(argv: Sequence[str], session: str) -> bool:
    """Whether the command line resumes or begins this session. A copy that is made of it is another session."""
    copies = "--fork-session" in argv
    client = False
    for at, word in enumerate(argv):
        client |= is_client_name(word)
        option, attached, value = word.partition("=")
        following = argv[at + 1] if at + 1 < len(argv) else ""
        if option == "--session-id" and (value if attached else following) == session:
            return True
        if copies:
            continue
        if option == "--resume" and _is_session(value if attached else following, session):
            return True
        short = client and re.match(r"-[a-zA-Z]*?r", word)  # many other programs have an option -r
        if short and _is_session(word[short.end() :] or following, session):
            return True
    return False


def names_teammate(argv: Sequence[str], agent: str, team: str) -> bool:
    """Whether the command line is that of the teammate with this id."""
    return _has(argv, "--agent-id", agent) and _has(argv, "--team-name", team)


def _may_be_of(pid: int, homes: set[str], system: System) -> bool:
    """Whether the process may be of one of these homes: teams in different ones may have one name."""
    try:
        environment = system.environment(pid)
    except OSError:
        return True
    home = environment.get("CLAUDE_CONFIG_DIR") or f"{environment.get('HOME', '')}/.claude"
    return not homes or not environment or os.path.realpath(home) in homes


def _has(argv: Sequence[str], option: str, value: str) -> bool:
    pairs = zip(argv, argv[1:])  # noqa: B905  # the last word begins no pair
    return f"{option}={value}" in argv or (option, value) in pairs


def _is_session(value: str, session: str) -> bool:
    """Whether the value is the session's id or its transcript, which the client's own daemon names."""
    return value == session or os.path.basename(value) == f"{session}.jsonl"


def is_client_name(word: str) -> bool:
    """Whether the word may be the client's program."""
    return os.path.basename(word) in ("claude", "node", "bun") or "/claude/versions/" in word or "claude-code/" in word


# -- the client's files -----------------------------------------------------------------------------------------------


def _by_files(home: str, session: str, system: System, domain: str, seen: Look) -> None:
    """Look at ``sessions/``: ``<pid>.json`` names the session of a process, ``<pid>.<hex>.key`` only a process."""
    folder = f"{home}/sessions"
    for name in _names(folder, seen):
        if not (pid := name.partition(".")[0]).isdigit() or not name.endswith((".json", ".key")):
            continue
        raw = _object(f"{folder}/{name}")
        if raw is None:
            seen.unknown |= _lives(int(pid), None, system) is not False and os.path.lexists(f"{folder}/{name}")
            continue
        started, named = str(raw.get("procStart")), raw.get("pidDomain")
        foreign = isinstance(named, str) and not _same_domain(named, domain)
        if name.endswith(".key"):
            seen.unknown |= not foreign and not _is_readable(int(pid), started, system)
        elif raw.get("sessionId") == session:
            if foreign:
                seen.unknown = True
            else:
                _add(raw.get("pid"), started, system, seen)


def _same_domain(named: str, domain: str) -> bool:
    """Whether a pid in a file of the client counts here. A machine without an id has the name of its host in ours."""
    return named == domain or (
        not _has_machine_id(domain) and named.rpartition(":pid:")[2] == domain.rpartition(":")[2]
    )


def _has_machine_id(domain: str) -> bool:
    return re.fullmatch(r"linux:[0-9a-f]{32}:pid:.*", domain) is not None


def _is_readable(pid: int, started: str, system: System) -> bool:
    """Whether the process has ended, or its command line can be read."""
    alive = _lives(pid, started, system)
    if alive is not True:
        return alive is False
    try:
        return any(system.argv(pid)) or _lives(pid, started, system) is False
    except OSError:
        return _lives(pid, started, system) is False


def _add(pid: object, started: str, system: System, seen: Look) -> None:
    """Add a process that a file of the client names, if it lives."""
    if type(pid) is not int or pid <= 1:
        return
    alive = _lives(pid, started, system)
    if alive is None:
        seen.unknown = True
    elif alive and (facts := system.facts(pid)) is not None:
        seen.add(pid, facts.started)


def _lives(pid: int, started: str | None, system: System) -> bool | None:
    """Whether the process lives that had this start; None if that is unknown. Without a start any process counts."""
    try:
        facts = system.facts(pid)
    except OSError:
        return None
    if facts is None or _is_over(facts):
        return False
    return started is None or system.same_start(facts.started, started)


# -- the client's own daemon ------------------------------------------------------------------------------------------


def _by_daemon(home: str, session: str, system: System, seen: Look) -> None:
    """Look at the sessions that the client's own daemon runs: it resumes those that crashed, some seconds later."""
    daemon = _object(f"{home}/daemon.lock")
    if daemon is None:
        alive = None if os.path.lexists(f"{home}/daemon.lock") else False
    else:
        pid = daemon.get("pid")
        alive = _lives(pid, str(daemon.get("procStart")), system) if type(pid) is int else None
    hosted = False
    for worker in _workers(home, alive, seen):
        if session in (worker.get("sessionId"), (_part(worker, "dispatch")).get("sessionId")):
            before = len(seen.processes)
            _add(worker.get("pid"), str(worker.get("procStart")), system, seen)
            _add(worker.get("replPid"), str(worker.get("replProcStart")), system, seen)
            hosted |= len(seen.processes) > before
    if alive is not False and not hosted:
        seen.unknown |= any(_resumes(f"{home}/jobs/{job}", session) for job in _names(f"{home}/jobs", seen))


def _workers(home: str, alive: bool | None, seen: Look) -> Iterator[Mapping[str, Any]]:
    roster = _object(f"{home}/daemon/roster.json")
    if roster is None:
        seen.unknown |= alive is not False and os.path.lexists(f"{home}/daemon/roster.json")
        return
    for worker in _part(roster, "workers").values():
        if isinstance(worker, dict):
            yield worker


def _resumes(job: str, session: str) -> bool:
    """Whether a daemon runs this session as the job, or will resume it. A job that cannot be read may be of any."""
    state = _object(f"{job}/state.json")
    if state is None:
        return os.path.lexists(f"{job}/state.json")
    return session in (state.get("sessionId"), state.get("resumeSessionId")) and state.get("state") not in ENDED


def _part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _names(folder: str, seen: Look) -> list[str]:
    """The names in a folder. If it cannot be read, or has too many, there may be more processes."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError:
        seen.unknown = True
        return []
    seen.unknown |= len(names) > FILES_LIMIT
    return names[:FILES_LIMIT]


def _object(path: str) -> dict[str, Any] | None:
    """The JSON object in the file; None if there is none, or it cannot be read.

    The client writes in place, so a torn file is read again once.
    """
    for last in (False, True):
        try:
            raw = json.loads(read_regular(path, FILE_LIMIT).decode("utf-8", "replace"))
        except OSError:
            return None
        except (ValueError, RecursionError):
            raw = None
        if isinstance(raw, dict):
            return raw
        if not last:
            time.sleep(0.005)
    return None
