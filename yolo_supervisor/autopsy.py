"""Finds out what an agent died of, before anything that it left is touched. It only looks, and takes milliseconds."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio

from yolo_supervisor import tmux
from yolo_supervisor.census import Census, within
from yolo_supervisor.clock import Clock
from yolo_supervisor.config import Config
from yolo_supervisor.crashes import Class, Clusters, Crash, Evidence, Report, judge
from yolo_supervisor.files import glance, part
from yolo_supervisor.folder import names
from yolo_supervisor.formats import supervisor, text_or_none, transcripts
from yolo_supervisor.kernel import KernelLog, memory_kills
from yolo_supervisor.processes import DeathWatch, Processes, Tree
from yolo_supervisor.records import Agent, ProcessId, iso
from yolo_supervisor.repository import work_trees
from yolo_supervisor.roster import Roster
from yolo_supervisor.store import Paths

PANES_S = 0.25
"""How long the terminals may take to answer, all together: healing waits for it."""

PANES = 16
"""Of how many dead agents at once the screens are looked at."""

TAIL = 128 * 1024
"""How much of a transcript's end is read, in bytes."""

HEAD = 16 * 1024
LOOKED_AT = 500
"""How many of the newest transcripts of a folder are looked into for those of teammates."""

KILLS_S = 10.0
"""How often the kills for memory in the agents' cgroups are counted."""

AT_ONCE = 8
"""After how many of the dead others get their turn."""

SLACK = timedelta(seconds=1)
"""By how much the start of a process and the times that others write may disagree."""

TOLD = ("at", "error", "error_details", "notification_type", "reason", "tool_name", "source", "message")
"""What of a hook's payload may tell of a death."""


@dataclass(frozen=True)
class _Kills:
    """How often memory was short in a cgroup: now, and ``KILLS_S`` or more before. A dying process takes its time."""

    at_s: float
    before: int
    newest: int


@dataclass
class _Case:
    report: Report
    held_until_s: float | None
    """Monotonic."""
    written: bool = False


class Coroner:
    """Examines the dead of one project, each once; what it found is remembered until they are settled."""

    def __init__(
        self, config: Callable[[], Config], roster: Roster, paths: Paths, processes: Processes, census: Census,
        deaths: DeathWatch, clock: Clock, files: bool = True,
    ) -> None:  # fmt: skip
        self._files = files
        """Whether somebody writes the reports: a command that only looks does not."""
        self._config = config
        self._roster = roster
        self._paths = paths
        self._processes = processes
        self._census = census
        self._deaths = deaths
        self._clock = clock
        self._cases: dict[str, _Case] = {}
        self._cgroups: dict[ProcessId, Path] = {}
        self._kills: dict[Path, _Kills] = {}
        self._clusters = Clusters()
        self._log = KernelLog()
        self._owners: dict[Path, tuple[str, str] | None] = {}
        """Whose transcript each is; it never changes hands."""
        self._listed: dict[Path, list[Path]] = {}
        """The transcripts in a folder, at this examination."""

    def meet(self, process: ProcessId) -> None:
        """Remember what can be known of a process only while it lives."""
        if (found := memory_kills(process.pid)) is not None:
            folder, count = found
            self._cgroups[process] = folder
            self._kills.setdefault(folder, _Kills(self._clock.monotonic(), count, count))

    def crash(self, record: str) -> Crash | None:
        """What was found about the agent with that record; None before it was examined."""
        case = self._cases.get(record)
        if case is None:
            return None
        until_s = case.held_until_s
        return Crash(
            report=case.report,
            hold_s=None if until_s is None else max(0.0, until_s - self._clock.monotonic()),
            written=case.written or not self._files,
        )

    def filed(self, ident: str) -> None:
        """The report has been written, or cannot be: nobody waits for it any longer."""
        for case in self._cases.values():
            case.written |= case.report.ident == ident

    def settle(self, record: str, process: ProcessId | None) -> None:
        """All is done about the agent, or a person has said so."""
        self._cases.pop(record, None)
        if process is not None:
            self._cgroups.pop(process, None)

    def clusters(self) -> Mapping[Class, str]:
        """Classes of which several agents died in a short time, and what is to be told of each."""
        return self._clusters.told(self._clock.monotonic())

    async def examine(self, dead: Mapping[str, Agent], now: datetime, trees: Mapping[ProcessId, Tree]) -> None:
        """Look at those that were not examined yet, by the names of their records. Whoever is not dead after all is
        examined anew when that has changed."""
        for name in self._cases.keys() - dead.keys():
            del self._cases[name]
        new = {name: agent for name, agent in dead.items() if name not in self._cases and agent.lead is None}
        panes = await self._panes(new)
        self._listed = {}
        for number, (name, agent) in enumerate(new.items()):
            if number % AT_ONCE == AT_ONCE - 1:
                await anyio.sleep(0)
            if agent.process is not None:
                try:
                    case = self._examine(agent, agent.process, now, panes.get(name), trees)
                except Exception as error:  # noqa: BLE001 - whatever neighbours have written, the dead are to be healed
                    case = self._unexamined(agent, now, error)
                self._cases[name] = case
        self._count_kills()

    def _count_kills(self) -> None:
        """A kill for memory is only blamed for deaths that come soon after it."""
        now_s = self._clock.monotonic()
        for folder in self._kills.keys() - set(self._cgroups.values()):
            del self._kills[folder]
        for folder, kills in self._kills.items():
            if now_s - kills.at_s >= KILLS_S and (found := memory_kills(0, folder)) is not None:
                self._kills[folder] = _Kills(now_s, kills.newest, found[1])

    async def _panes(self, dead: Mapping[str, Agent]) -> dict[str, tmux.LastWords]:
        found: dict[str, tmux.LastWords] = {}

        async def ask(name: str, agent: Agent) -> None:
            assert agent.pane is not None
            if (words := await tmux.last_words(agent.pane, PANES_S)) is not None:
                found[name] = words

        placed = [(name, agent) for name, agent in dead.items() if agent.pane][:PANES]
        if placed:
            with anyio.move_on_after(PANES_S):
                async with anyio.create_task_group() as tasks:
                    for name, agent in placed:
                        tasks.start_soon(ask, name, agent)
        return found

    def _examine(
        self, agent: Agent, process: ProcessId, now: datetime, pane: tmux.LastWords | None,
        trees: Mapping[ProcessId, Tree],
    ) -> _Case:  # fmt: skip
        status, killer, core = self._exit(process, pane)
        notes = list(self._notes(agent))
        oom = self._oom(process, killer)
        evidence = Evidence(
            at=now,
            seen=process in self._deaths.exits,
            status=status,
            signal=killer,
            core=core,
            oom=oom[0] if oom else None,
            oom_of_many=oom is not None and oom[1],
            pane=pane.lines if pane else (),
            tail=self._tail(agent, process, notes),
            hooks=tuple((event, {key: told[key] for key in TOLD if key in told}) for event, told in notes[-8:]),
        )
        config = self._config().tasks
        verdict = judge(evidence, config.hold_s, config.hold_max_s)
        more = {
            "processes": list(self._tree(trees.get(process, ()))),
            "repository": self._repository(agent),
            "started_at": iso(agent.since),
        }
        if verdict.died_of is not Class.SIGNAL or evidence.broke:  # else somebody has sent it
            self._clusters.add(verdict.died_of, agent.id, self._clock.monotonic())
        until_s = None
        if verdict.until is not None:
            left_s = min(max(0.0, (verdict.until - now).total_seconds()), config.hold_max_s)
            until_s = self._clock.monotonic() + left_s
        return _Case(Report(agent=agent, evidence=evidence, verdict=verdict, more=more), until_s)

    def _unexamined(self, agent: Agent, now: datetime, error: Exception) -> _Case:
        evidence = Evidence(at=now)
        more = {"examination": f"it was cut off: {type(error).__name__}: {error}"}
        return _Case(Report(agent=agent, evidence=evidence, verdict=judge(evidence), more=more), None)

    # -- the evidence ----------------------------------------------------------------------------------------------

    def _exit(self, process: ProcessId, pane: tmux.LastWords | None) -> tuple[int | None, int | None, bool]:
        """Exit code, signal, and whether its core was dumped: by the kernel, else by tmux."""
        wait = self._deaths.exits.get(process)
        if wait is not None:
            killer = wait & 0x7F
            return (None, killer, bool(wait & 0x80)) if killer else (wait >> 8, None, False)
        if pane is not None and pane.pid == process.pid:
            return pane.status, pane.signal, False
        return None, None, False

    def _oom(self, process: ProcessId, killer: int | None) -> tuple[str, bool] | None:
        """How the kernel tells that memory was short, and whether it may have killed another for it."""
        if process.boot != self._processes.boot or killer not in (None, 9):
            return None
        if (line := self._log.killed(process)) is not None:
            return f"the kernel log: {line}", False
        if (folder := self._cgroups.get(process)) is not None and killer == 9:
            before, after = self._kills[folder].before, memory_kills(process.pid, folder)
            if after is not None and after[1] > before:
                of_many = folder.name.startswith("session-") or list(self._cgroups.values()).count(folder) > 1
                return f"its cgroup counts {after[1] - before} OOM kill more", of_many
        return None

    def _notes(self, agent: Agent) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """What hooks told of its process, the oldest first. A pid is reused: older notes are of another."""
        found = []
        for name in names(self._paths.hooks):
            event, _, rest = name.partition(".")
            if rest.partition(".")[0] != str(agent.pid):
                continue
            try:
                written_s = (self._paths.hooks / name).stat().st_mtime
            except OSError:
                continue
            if written_s >= (agent.since - SLACK).timestamp():
                found.append((written_s, event, name))
        for written_s, event, name in sorted(found):
            payload = supervisor.hook_note(glance(self._paths.hooks / name) or b"", event).payload
            yield event, {**payload, "at": iso(datetime.fromtimestamp(written_s, UTC))}

    def _tail(self, agent: Agent, process: ProcessId, notes: list[tuple[str, Mapping[str, Any]]]) -> transcripts.Tail:
        for path in self._transcripts(agent, process, notes):
            if _written_since(path, agent.since) and (data := _end(path, TAIL)) is not None:
                return transcripts.tail(data, agent.since - SLACK)
        return transcripts.Tail()

    def _transcripts(
        self, agent: Agent, process: ProcessId, notes: list[tuple[str, Mapping[str, Any]]]
    ) -> Iterator[Path]:
        """Where its transcript may be, the likeliest first: as a hook said, by its session, by its name in there."""
        folders = [folder / "projects" for folder in self._roster.claude_dirs()]
        for _, payload in reversed(notes):
            path = Path(text_or_none(payload.get("transcript_path")) or "/")
            real = Path(os.path.realpath(path))
            if path.suffix == ".jsonl" and any(within(real, Path(os.path.realpath(folder))) for folder in folders):
                yield path
        seen = self._census.agents.get(process)
        places = dict.fromkeys([*([seen.folder] if seen else []), self._paths.project])
        slugs = [folder / transcripts.slug(place) for folder in folders for place in places]
        if agent.session:
            yield from (slug / f"{agent.session}.jsonl" for slug in slugs)
            return
        for slug in slugs:
            if slug not in self._listed:
                self._listed[slug] = _newest(slug)
            for path in self._listed[slug]:
                if self._owner(path) == (agent.name, agent.team):
                    yield path

    def _owner(self, path: Path) -> tuple[str, str] | None:
        """The teammate that the transcript says it is of, and its team."""
        if self._owners.get(path) is None:  # it may have said nothing yet
            if len(self._owners) > 2 * LOOKED_AT:
                self._owners.clear()
            self._owners[path] = transcripts.owner(part(path, 0, HEAD) or b"")
        return self._owners[path]

    def close(self) -> None:
        self._log.close()

    def _tree(self, tree: Tree) -> Iterator[dict[str, Any]]:
        """Its descendants; of those that live on also what they are."""
        for process, parent in tree[:30]:
            told: dict[str, Any] = {"pid": process.pid, "parent": parent}
            try:
                facts = self._processes.kernel.facts(process.pid)
                if facts is not None and facts.started == process.started and not facts.zombie:
                    told["command"] = shlex.join(self._processes.kernel.argv(process.pid)) or facts.comm
            except OSError:
                pass
            yield told

    def _repository(self, agent: Agent) -> dict[str, Any]:
        """What the work tree was in the middle of. git itself is not asked: it might run what the project says."""
        tree = next(work_trees(self._paths.project), None)
        if tree is None:
            return {}
        under_way = ("MERGE_HEAD", "REBASE_HEAD", "CHERRY_PICK_HEAD", "rebase-merge", "rebase-apply", "index.lock")
        head = (glance(tree.own / "HEAD") or b"")[:200].decode("utf-8", "replace").strip()
        return {"head": head.removeprefix("ref: "), "there": [n for n in under_way if os.path.lexists(tree.own / n)]}


def _newest(folder: Path) -> list[Path]:
    """The transcripts in the folder, the newest first."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.path)
                for entry in entries
                if entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False)
            ]
    except (OSError, ValueError):
        return []
    return [Path(path) for _, path in sorted(found, reverse=True)[:LOOKED_AT]]


def _written_since(path: Path, since: datetime) -> bool:
    try:
        return path.stat().st_mtime >= (since - SLACK).timestamp()
    except OSError:
        return False


def _end(path: Path, size: int) -> bytes | None:
    try:
        return part(path, max(0, path.stat().st_size - size), size)
    except (OSError, ValueError):
        return None
