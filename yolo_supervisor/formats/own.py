"""The documents in a project's state folder: its enrolment, agent records, the holder, hook notes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yolo_supervisor.formats.json import load_object, same_path, text_or_none, time_or_none
from yolo_supervisor.models import Agent, LockStamp, Pane, ProcessId, SeenLock, iso

LINK = ".supervisor"
"""The name of the link to the state folder in the planning folder. In version 0.1.0 it was the folder itself."""

VERSION = 2
"""The version of the folder. It grows when an older program would misread the files in it."""


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps({"version": VERSION, **value}, indent=2).encode() + b"\n"


# -- version.json: the programs that may use the folder ---------------------------------------------------------------

VERSION_FILE = "version.json"


def dump_version() -> bytes:
    return _dump({})


def load_version(data: bytes) -> int | None:
    """The version of the folder; None if the file does not contain one."""
    version = (load_object(data) or {}).get("version")
    return version if type(version) is int else None


# -- project.json: the project that the folder belongs to -------------------------------------------------------------

ENROLMENT = "project.json"


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The project of a state folder. A device number is not part of it: it changes from boot to boot."""

    path: str
    inode: int
    offers: tuple[str, ...] = ()
    """Older state folders that ``state adopt`` may take up, until a person has decided."""

    def is_of(self, project: os.stat_result) -> bool:
        """Whether the folder with this status was enrolled: another one may be at its path by now."""
        return self.inode == project.st_ino


def dump_enrolment(enrolment: Enrolment) -> bytes:
    return _dump({"path": enrolment.path, "inode": enrolment.inode, "offers": list(enrolment.offers)})


def load_enrolment(data: bytes) -> Enrolment | None:
    raw = load_object(data) or {}
    path, inode, offers = text_or_none(raw.get("path")), raw.get("inode"), _texts(raw.get("offers"))
    return Enrolment(path, inode, offers) if path is not None and type(inode) is int else None


# -- agents/<id>.json -------------------------------------------------------------------------------------------


def agent_file(agent: Agent) -> str:
    """The file name of the agent's record.

    It contains the process, so a successor with the same id has another.
    """
    life = f"~{agent.process.pid}-{agent.process.started}" if agent.process else ""
    name = quote(agent.id, safe="@", errors="surrogatepass")
    if len(name) > 150:
        name = name[:120] + "~" + hashlib.sha256(name.encode()).hexdigest()[:20]
    return name + life + ".json"


def dump_agent(agent: Agent) -> bytes:
    return _dump(
        {
            "id": agent.id,
            "name": agent.name,
            "role": agent.role,
            "team": agent.team,
            "source": agent.source,
            "since": iso(agent.since),
            "process": dump_process(agent.process) if agent.process else None,
            "pane": {"socket": p.socket, "server_pid": p.server_pid, "pane": p.pane} if (p := agent.pane) else None,
            "lead": agent.lead,
            "session": agent.session,
            "claude_dir": str(agent.claude_dir) if agent.claude_dir else None,
            "lists": list(agent.lists),
            "aliases": list(agent.aliases),
            "hosted": agent.hosted,
            "home": agent.home,
        }
    )


def dump_process(process: ProcessId) -> dict[str, Any]:
    return {"pid": process.pid, "started": process.started, "boot": process.boot}


def load_process(raw: object) -> ProcessId | None:
    if not isinstance(raw, Mapping):
        return None
    pid, started, boot = raw.get("pid"), raw.get("started"), raw.get("boot")
    if type(pid) is int and pid > 1 and type(started) is int and isinstance(boot, str):
        return ProcessId(pid, started, boot)
    return None


def load_agent(data: bytes) -> Agent | None:
    """The agent of a record; None if it cannot be read."""
    raw = load_object(data)
    if raw is None:
        return None
    ident, name, role = text_or_none(raw.get("id")), text_or_none(raw.get("name")), text_or_none(raw.get("role"))
    since = time_or_none(raw.get("since"))
    if not ident or not name or not role or since is None:
        return None
    pane, folder = raw.get("pane"), text_or_none(raw.get("claude_dir"))
    process = load_process(raw.get("process"))
    return Agent(
        id=ident,
        name=name,
        role=role,
        team=text_or_none(raw.get("team")),
        source=text_or_none(raw.get("source")) or "record",
        since=since,
        process=process,
        pid=process.pid if process else None,
        pane=_load_pane(pane),
        lead=text_or_none(raw.get("lead")),
        session=text_or_none(raw.get("session")),
        claude_dir=same_path(folder) if folder else None,
        lists=_texts(raw.get("lists")),
        aliases=_texts(raw.get("aliases")),
        hosted=raw.get("hosted") is True,
        home=raw["home"] if type(raw.get("home")) is int else None,
    )


def _texts(raw: object) -> tuple[str, ...]:
    """The texts in a list; a record of version 0.1.0 has none."""
    return tuple(text for text in raw if isinstance(text, str) and text) if isinstance(raw, list) else ()


def _load_pane(raw: object) -> Pane | None:
    if not isinstance(raw, Mapping):
        return None
    socket, server, pane = text_or_none(raw.get("socket")), raw.get("server_pid"), text_or_none(raw.get("pane"))
    return Pane(socket=socket, server_pid=server, pane=pane) if socket and pane and type(server) is int else None


# -- trees.json: the agents' process trees at the last sample -------------------------------------------------

Trees = Mapping[ProcessId, tuple[tuple[ProcessId, int], ...]]
"""For each agent its descendants with their parents' pids, parents before children."""


@dataclass(frozen=True, slots=True)
class Descent:
    """The descendants of an agent that are not in its tree."""

    sessions: frozenset[int] = frozenset()
    """The sessions of its tools."""
    orphans: tuple[ProcessId, ...] = ()
    """Descendants whose parents have ended."""


NO_DESCENTS: Mapping[ProcessId, Descent] = {}


def dump_trees(trees: Trees, descents: Mapping[ProcessId, Descent] = NO_DESCENTS) -> bytes:
    boots = {process.boot for process in (*trees, *descents)}
    return json.dumps(
        {
            "version": VERSION,
            "trees": [
                {
                    "boot": boot,
                    "agents": [
                        [agent.pid, agent.started, [[p.pid, p.started, parent] for p, parent in tree]]
                        for agent, tree in trees.items()
                        if agent.boot == boot
                    ],
                    "descents": [
                        [agent.pid, agent.started, sorted(d.sessions), [[p.pid, p.started] for p in d.orphans]]
                        for agent, d in descents.items()
                        if agent.boot == boot
                    ],
                }
                for boot in sorted(boots)
            ],
        },
        separators=(",", ":"),
    ).encode()


def load_trees(data: bytes) -> dict[ProcessId, tuple[tuple[ProcessId, int], ...]]:
    """The sampled trees.

    Empty if the file cannot be read: then leftover processes are not signalled.
    """
    raw = load_object(data) or {}
    trees: dict[ProcessId, tuple[tuple[ProcessId, int], ...]] = {}
    try:
        for of_boot in raw["trees"]:
            boot = str(of_boot["boot"])
            for pid, started, tree in of_boot["agents"]:
                trees[ProcessId(int(pid), int(started), boot)] = tuple(
                    (ProcessId(int(p), int(s), boot), int(parent)) for p, s, parent in tree
                )
    except (KeyError, TypeError, ValueError, OverflowError):
        return {}
    return trees


def load_descents(data: bytes) -> dict[ProcessId, Descent]:
    """The descendants outside the trees. Empty if the file cannot be read, or names none."""
    raw = load_object(data) or {}
    descents: dict[ProcessId, Descent] = {}
    try:
        for of_boot in raw["trees"]:
            boot = str(of_boot["boot"])
            for pid, started, sessions, orphans in of_boot.get("descents", ()):
                descents[ProcessId(int(pid), int(started), boot)] = Descent(
                    frozenset(map(int, sessions)), tuple(ProcessId(int(p), int(s), boot) for p, s in orphans)
                )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return {}
    return descents


# -- daemon.json: the daemon that supervises the project ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon that holds a project, and the last reported health of its watchers."""

    process: ProcessId
    started_at: str
    mode: str
    watchers: tuple[Mapping[str, Any], ...] = ()
    program: str = ""
    """The daemon's program version; empty if it is too old to write one."""


def dump_holder(holder: Holder) -> bytes:
    return _dump(
        {
            "process": dump_process(holder.process),
            "started_at": holder.started_at,
            "mode": holder.mode,
            "program": holder.program,
            "watchers": list(holder.watchers),
        }
    )


def load_holder(data: bytes) -> Holder | None:
    raw = load_object(data)
    process = load_process(raw.get("process")) if raw else None
    if raw is None or process is None:
        return None
    listed = raw.get("watchers")
    watchers = tuple(w for w in (listed if isinstance(listed, list) else ()) if isinstance(w, dict))
    return Holder(process, str(raw.get("started_at")), str(raw.get("mode")), watchers, str(raw.get("program") or ""))


# -- held-lock.json: the lock of another program that the store holds now -----------------------------------------


def dump_held_lock(path: Path, inode: int, made: int) -> bytes:
    """The note about a lock folder that the store created.

    ``made`` is its modification time in nanoseconds.
    """
    return _dump({"path": str(path), "inode": inode, "made": made})


def load_held_lock(data: bytes) -> tuple[Path, int, int] | None:
    raw = load_object(data) or {}
    path, inode, made = text_or_none(raw.get("path")), raw.get("inode"), raw.get("made")
    return (Path(path), inode, made) if path and type(inode) is int and type(made) is int else None


# -- seen-locks.json: the processes that were seen with locks of git's ------------------------------------------------


def dump_seen_locks(seen: Mapping[Path, SeenLock]) -> bytes:
    return _dump(
        {
            "locks": [
                {"path": str(path), **lock.stamp._asdict(), "holders": [dump_process(p) for p in lock.holders]}
                for path, lock in sorted(seen.items())
            ]
        }
    )


def load_seen_locks(data: bytes) -> dict[Path, SeenLock]:
    """The locks by path; without those that cannot be read, whose holders count as never seen."""
    listed = (load_object(data) or {}).get("locks")
    seen: dict[Path, SeenLock] = {}
    for raw in listed if isinstance(listed, list) else ():
        if not isinstance(raw, Mapping):
            continue
        path, numbers = text_or_none(raw.get("path")), [n for f in LockStamp._fields if type(n := raw.get(f)) is int]
        holders = raw.get("holders")
        processes = [load_process(holder) for holder in holders] if isinstance(holders, list) else []
        if path and processes and None not in processes and len(numbers) == len(LockStamp._fields):
            stamp = LockStamp(*numbers)
            seen[Path(path)] = SeenLock(stamp=stamp, holders=tuple(p for p in processes if p is not None))
    return seen


# -- hooks/<event>-<pid>: the notes of the hook command ---------------------------------------------------------------

_ANCESTOR = re.compile(rb"(\d{1,20}):(\d{1,20}):([^\s:]*):(\d{1,20})")


@dataclass(frozen=True, slots=True)
class HookNote:
    """One hook event: the client's payload, and the ancestry of the hook command, nearest first."""

    event: str
    ancestry: tuple[tuple[int, int, str, int], ...]
    """The command itself and its ancestors: pid, start ticks, short name, session id."""
    payload: Mapping[str, Any]

    @property
    def agent_id(self) -> str | None:
        return text_or_none(self.payload.get("agent_id"))


def hook_note(data: bytes, event: str) -> HookNote:
    """Parse a note of ``yolo_supervisor.hook``: one line of ancestry, then the payload."""
    first, _, payload = data.partition(b"\n")
    ancestry = tuple(
        (int(pid), int(started), comm.decode("utf-8", "replace"), int(sid))
        for pid, started, comm, sid in _ANCESTOR.findall(first)
    )
    return HookNote(event, ancestry, load_object(payload) or {})
