"""Collects the evidence of an agent's death before recovery changes anything. Read-only.

Takes milliseconds.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio

from yolo_supervisor.clock import Clock
from yolo_supervisor.config import Config
from yolo_supervisor.formats import own as own_files
from yolo_supervisor.formats import transcripts
from yolo_supervisor.formats.crash_report import CrashCause, Evidence, HookEvent, Report, Verdict
from yolo_supervisor.formats.json import text_or_none
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import read_or_none, read_part
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.process_scan import ProcessScanner
from yolo_supervisor.inventory.project_folders import within
from yolo_supervisor.models import Agent, ProcessId, iso
from yolo_supervisor.policy.crash_bursts import CrashBursts
from yolo_supervisor.policy.crash_rules import classify
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.system import tmux
from yolo_supervisor.system.death_watch import DeathWatch
from yolo_supervisor.system.git_layout import work_trees
from yolo_supervisor.system.oom import KernelLog, memory_kills
from yolo_supervisor.system.process_table import Tree
from yolo_supervisor.system.processes import Processes

PANES_S = 0.25
"""The time for all terminals together to answer; recovery waits for them."""

MAX_PANES = 16
"""The number of dead agents at once whose screens are read."""

TAIL_SIZE = 128 * 1024
"""The size of the part at a transcript's end that is read, in bytes."""

HEAD_SIZE = 16 * 1024
"""The size of the part at a transcript's beginning that is searched for its owner, in bytes."""

MAX_TRANSCRIPTS = 500
"""The number of newest transcripts in a directory that are searched for those of teammates."""

COUNT_OOM_S = 10.0
"""The interval at which the OOM kills in the agents' cgroups are counted."""

BATCH = 8
"""The number of dead agents after which the event loop runs other tasks."""

CLOCK_SLACK = timedelta(seconds=1)
"""The tolerance between the start of a process and the times that other programs write."""

REPORTED_KEYS = ("at", "error", "error_details", "notification_type", "reason", "tool_name", "source", "message")
"""The keys of a hook's payload that may explain a death."""


@dataclass(frozen=True, kw_only=True)
class Crash:
    """A crash report and its consequences at present."""

    report: Report
    hold_s: float | None = None
    """The remaining time of the agent's rate-limit window; None if there is none."""
    written: bool = False
    """Whether the report was written, or cannot be written."""

    @property
    def verdict(self) -> Verdict:
        return self.report.verdict

    @property
    def cause(self) -> str | None:
        """The cause as one word; None if it is unknown."""
        return None if self.verdict.cause is CrashCause.UNKNOWN else str(self.verdict.cause)

    @property
    def clean(self) -> bool:
        """Whether the agent ended in order: that is no failure, is not charged, and leaves no crash report."""
        return self.verdict.cause is CrashCause.CLEAN_EXIT or self.report.evidence.ended_on_purpose

    @property
    def facts(self) -> dict[str, object]:
        """The verdict and the crash report's name, if there is one, for the journal."""
        return self.summary if self.clean else {**self.summary, "report": self.report.ident}

    @property
    def summary(self) -> dict[str, object]:
        """The verdict as JSON, for the journal."""
        return self.verdict.summary


@dataclass(frozen=True)
class _OomCount:
    """The OOM kills of a cgroup: at the last count and at the one before, at least ``COUNT_OOM_S`` earlier.

    A process may take seconds to die, so a kill is compared with the older count.
    """

    at_s: float
    before: int
    newest: int


@dataclass
class _Case:
    report: Report
    held_until_s: float | None
    """The end of the rate-limit window, in monotonic seconds."""
    written: bool = False


class CrashInvestigator:
    """Investigates each dead agent of a project once, and keeps the result until its release."""

    def __init__(
        self,
        config: Config,
        registry: AgentRegistry,
        paths: Paths,
        processes: Processes,
        scanner: ProcessScanner,
        deaths: DeathWatch,
        clock: Clock,
        writes_reports: bool = True,
    ) -> None:
        self._writes_reports = writes_reports
        """False in read-only commands, which do not wait for a report."""
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._paths = paths
        self._processes = processes
        self._scanner = scanner
        self._deaths = deaths
        self._clock = clock
        self._cases: dict[str, _Case] = {}
        self._cgroups: dict[ProcessId, Path] = {}
        self._oom_counts: dict[Path, _OomCount] = {}
        self._bursts = CrashBursts()
        self._kernel_log = KernelLog()
        self._owners: dict[Path, tuple[str, str] | None] = {}
        """The teammate of each transcript; it never changes once it is known."""
        self._listed: dict[Path, list[Path]] = {}
        """The transcripts of a directory, during one ``collect``."""

    def track(self, process: ProcessId) -> None:
        """Record facts that are known only while the process lives: its cgroup."""
        if (kills := memory_kills(process.pid)) is not None:
            folder, count = kills
            self._cgroups[process] = folder
            self._oom_counts.setdefault(folder, _OomCount(self._clock.monotonic(), count, count))

    def crash(self, record: str) -> Crash | None:
        """The result for the agent of that record, or None before it was collected."""
        case = self._cases.get(record)
        if case is None:
            return None
        until_s = case.held_until_s
        crash = Crash(
            report=case.report,
            hold_s=None if until_s is None else max(0.0, until_s - self._clock.monotonic()),
            written=case.written or not self._writes_reports,
        )
        return replace(crash, written=True) if crash.clean else crash

    def report_written(self, ident: str) -> None:
        """Stop waiting for the report: it was written, or cannot be."""
        for case in self._cases.values():
            case.written |= case.report.ident == ident

    def report_amended(self, record: str, report: Report) -> None:
        """Keep the report with what has become known since it was written."""
        if (case := self._cases.get(record)) is not None:
            case.report = report

    def release(self, record: str, process: ProcessId | None) -> None:
        """Drop the agent: its recovery is complete, or a person has removed its record."""
        self._cases.pop(record, None)
        if process is not None:
            self._cgroups.pop(process, None)

    def bursts(self) -> Mapping[CrashCause, str]:
        """The causes of which several agents died in a short time, with a sentence each."""
        return self._bursts.active(self._clock.monotonic())

    async def collect(self, dead: Mapping[str, Agent], now: datetime, trees: Mapping[ProcessId, Tree]) -> None:
        """Collect evidence about the dead agents, by record, that were not investigated before.

        An agent that is no longer dead is dropped, and investigated again should it die.
        """
        for name in self._cases.keys() - dead.keys():
            del self._cases[name]
        new = {name: agent for name, agent in dead.items() if name not in self._cases and agent.lead is None}
        panes = await self._panes(new)
        self._listed = {}
        for number, (name, agent) in enumerate(new.items()):
            if number % BATCH == BATCH - 1:
                await anyio.sleep(0)
            if agent.process is not None:
                try:
                    case = self._investigate(agent, agent.process, now, panes.get(name), trees)
                except Exception as error:  # noqa: BLE001 - no content of other programs' files may block recovery
                    case = self._without_evidence(agent, now, error)
                self._cases[name] = case
        self._count_oom_kills()

    def _count_oom_kills(self) -> None:
        """Advance the counts, so that a kill explains only deaths soon after it."""
        now_s = self._clock.monotonic()
        for folder in self._oom_counts.keys() - set(self._cgroups.values()):
            del self._oom_counts[folder]
        for folder, count in self._oom_counts.items():
            if now_s - count.at_s >= COUNT_OOM_S and (kills := memory_kills(0, folder)) is not None:
                self._oom_counts[folder] = _OomCount(now_s, count.newest, kills[1])

    async def _panes(self, dead: Mapping[str, Agent]) -> dict[str, tmux.LastWords]:
        """The screens of the dead agents that ran in tmux, as far as tmux answers in time."""
        screens: dict[str, tmux.LastWords] = {}

        async def ask(name: str, agent: Agent) -> None:
            assert agent.pane is not None
            if (screen := await tmux.last_words(agent.pane, PANES_S)) is not None:
                screens[name] = screen

        in_tmux = [(name, agent) for name, agent in dead.items() if agent.pane][:MAX_PANES]
        if in_tmux:
            with anyio.move_on_after(PANES_S):
                async with anyio.create_task_group() as tasks:
                    for name, agent in in_tmux:
                        tasks.start_soon(ask, name, agent)
        return screens

    def _investigate(
        self, agent: Agent, process: ProcessId, now: datetime, pane: tmux.LastWords | None,
        trees: Mapping[ProcessId, Tree],
    ) -> _Case:  # fmt: skip
        status, fatal_signal, core = self._exit(process, pane)
        notes = list(self._notes(agent))
        oom = self._oom(process, fatal_signal)
        evidence = Evidence(
            at=now,
            observed=process in self._deaths.exits,
            status=status,
            signal=fatal_signal,
            core=core,
            oom=oom[0] if oom else None,
            oom_ambiguous=oom is not None and oom[1],
            pane=pane.lines if pane else (),
            tail=self._tail(agent, process, notes),
            hooks=tuple(
                (event, {key: note[key] for key in REPORTED_KEYS if key in note}) for event, note in notes[-8:]
            ),
        )
        config = self.config.tasks
        verdict = classify(evidence, config.hold_s, config.hold_max_s)
        more = {
            "processes": list(self._tree(trees.get(process, ()))),
            "repository": self._repository(agent),
            "started_at": iso(agent.since),
        }
        by_another = verdict.cause is CrashCause.SIGNAL and not evidence.faulted  # another process sends these signals
        if not (by_another or evidence.ended_on_purpose or verdict.cause is CrashCause.CLEAN_EXIT):
            self._bursts.add(verdict.cause, agent.id, self._clock.monotonic())
        until_s = None
        if verdict.until is not None:
            hold_s = min(max(0.0, (verdict.until - now).total_seconds()), config.hold_max_s)
            until_s = self._clock.monotonic() + hold_s
        return _Case(Report(agent=agent, evidence=evidence, verdict=verdict, more=more), until_s)

    def _without_evidence(self, agent: Agent, now: datetime, error: Exception) -> _Case:
        """The case of an agent whose evidence could not be collected."""
        evidence = Evidence(at=now)
        more = {"examination": f"failed: {type(error).__name__}: {error}"}
        return _Case(Report(agent=agent, evidence=evidence, verdict=classify(evidence), more=more), None)

    # -- the evidence ----------------------------------------------------------------------------------------------

    def _exit(self, process: ProcessId, pane: tmux.LastWords | None) -> tuple[int | None, int | None, bool]:
        """Exit code, signal, and whether a core was dumped: from the kernel, otherwise from tmux."""
        wait = self._deaths.exits.get(process)
        if wait is not None:
            fatal_signal = wait & 0x7F
            return (None, fatal_signal, bool(wait & 0x80)) if fatal_signal else (wait >> 8, None, False)
        if pane is not None and pane.pid == process.pid:
            return pane.status, pane.signal, False
        return None, None, False

    def _oom(self, process: ProcessId, fatal_signal: int | None) -> tuple[str, bool] | None:
        """The kernel's record of an OOM kill, and whether it may be about another process."""
        if process.boot != self._processes.boot or fatal_signal not in (None, 9):
            return None
        if (line := self._kernel_log.killed(process)) is not None:
            return f"kernel log: {line}", False
        if (folder := self._cgroups.get(process)) is not None and fatal_signal == 9:
            before, after = self._oom_counts[folder].before, memory_kills(process.pid, folder)
            if after is not None and after[1] > before:
                ambiguous = folder.name.startswith("session-") or list(self._cgroups.values()).count(folder) > 1
                return f"its cgroup counted {after[1] - before} more OOM kills", ambiguous
        return None

    def _notes(self, agent: Agent) -> Iterator[HookEvent]:
        """The hook events of its process, the oldest first.

        Notes from before its start belong to an earlier process with the same pid.
        """
        notes = []
        for name in names(self._paths.hooks):
            event, _, rest = name.partition(".")
            if rest.partition(".")[0] != str(agent.pid):
                continue
            try:
                written_s = (self._paths.hooks / name).stat().st_mtime
            except OSError:
                continue
            if written_s >= (agent.since - CLOCK_SLACK).timestamp():
                notes.append((written_s, event, name))
        for written_s, event, name in sorted(notes):
            payload = own_files.hook_note(read_or_none(self._paths.hooks / name) or b"", event).payload
            yield event, {**payload, "at": iso(datetime.fromtimestamp(written_s, UTC))}

    def _tail(self, agent: Agent, process: ProcessId, notes: list[HookEvent]) -> transcripts.Tail:
        for path in self._transcripts(agent, process, notes):
            if _written_since(path, agent.since) and (data := _end(path, TAIL_SIZE)) is not None:
                return transcripts.tail(data, agent.since - CLOCK_SLACK)
        return transcripts.Tail()

    def _transcripts(self, agent: Agent, process: ProcessId, notes: list[HookEvent]) -> Iterator[Path]:
        """Its possible transcripts, the likeliest first.

        They are named by a hook, by its session, or by the agent's name in the transcript.
        """
        folders = [folder / "projects" for folder in self._registry.homes()]
        for _, payload in reversed(notes):
            path = Path(text_or_none(payload.get("transcript_path")) or "/")
            real = Path(os.path.realpath(path))
            if path.suffix == ".jsonl" and any(within(real, Path(os.path.realpath(folder))) for folder in folders):
                yield path
        seen = self._scanner.agents.get(process)
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
        """The name and the team of the teammate that the transcript names."""
        if self._owners.get(path) is None:  # a new transcript names no owner yet
            if len(self._owners) > 2 * MAX_TRANSCRIPTS:
                self._owners.clear()
            self._owners[path] = transcripts.owner(read_part(path, 0, HEAD_SIZE) or b"")
        return self._owners[path]

    def close(self) -> None:
        self._kernel_log.close()

    def _tree(self, tree: Tree) -> Iterator[dict[str, object]]:
        """The descendants, with the command of those that still run."""
        for process, parent in tree[:30]:
            entry: dict[str, object] = {"pid": process.pid, "parent": parent}
            try:
                facts = self._processes.backend.facts(process.pid)
                if facts is not None and facts.started == process.started and not facts.zombie:
                    entry["command"] = shlex.join(self._processes.backend.argv(process.pid)) or facts.comm
            except OSError:
                pass
            yield entry

    def _repository(self, agent: Agent) -> dict[str, object]:
        """HEAD and the operations under way in the work tree.

        They are read without git, because git may run programs of the project.
        """
        tree = next(work_trees(self._paths.project), None)
        if tree is None:
            return {}
        operations = ("MERGE_HEAD", "REBASE_HEAD", "CHERRY_PICK_HEAD", "rebase-merge", "rebase-apply", "index.lock")
        head = (read_or_none(tree.git_dir / "HEAD") or b"")[:200].decode("utf-8", "replace").strip()
        return {
            "head": head.removeprefix("ref: "),
            "there": [n for n in operations if os.path.lexists(tree.git_dir / n)],
        }


def _newest(folder: Path) -> list[Path]:
    """The transcripts in the directory, the newest first."""
    try:
        with os.scandir(folder) as entries:
            dated = [
                (entry.stat(follow_symlinks=False).st_mtime_ns, entry.path)
                for entry in entries
                if entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False)
            ]
    except (OSError, ValueError):
        return []
    return [Path(path) for _, path in sorted(dated, reverse=True)[:MAX_TRANSCRIPTS]]


def _written_since(path: Path, since: datetime) -> bool:
    try:
        return path.stat().st_mtime >= (since - CLOCK_SLACK).timestamp()
    except OSError:
        return False


def _end(path: Path, size: int) -> bytes | None:
    try:
        return read_part(path, max(0, path.stat().st_size - size), size)
    except (OSError, ValueError):
        return None
