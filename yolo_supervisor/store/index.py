"""The index: the state that follows from the journal's lines so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from yolo_supervisor.formats.plugin import outcome_table
from yolo_supervisor.models import Agent, ProcessId
from yolo_supervisor.store.lines import (
    Begun,
    Checkpoint,
    CheckpointLine,
    ClaimState,
    Done,
    Ended,
    Entry,
    Failed,
    FailureState,
    FlagState,
    GoodVersion,
    Heartbeat,
    LeaseState,
    Line,
    Promise,
    RestartState,
    SignOfLife,
    StartState,
    Version,
)

VERSIONS = 5
"""The number of good versions of a document that are remembered."""

LISTS_LEFT = 200
"""The number of task lists of forgotten agents that are remembered, the newest."""


RESTARTS, STARTS = 500, 20
"""The number of agents whose starts are remembered, and of starts of each, the newest."""


Exit = tuple[int | None, int | None]
"""An exit code and a signal; None for what is unknown."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of an entry's evidence that the index uses."""

    owner: str | None = None
    since_s: float | None = None
    boot: str | None = None
    cause: str | None = None
    charged: bool = True
    reports: tuple[str, ...] | None = None
    errors: int | None = None
    samples: int | None = None
    probation: bool = False
    was: str | None = None
    left: dict[str, list[str]] | None = None
    clean: bool = False
    record: str | None = None
    session: str | None = None
    answered_at: str | None = None
    result: str | None = None
    code: str | None = None
    pid: int | None = None
    started: int | None = None
    stalled: bool = False
    by_hand: bool = False
    duplicate_of: str | None = None
    status: int | None = None
    signal: int | None = None


class Index:
    """Claims, leases, attempts, dead letters, flags and good versions, as the lines so far say."""

    def __init__(self) -> None:
        self.seq = 0
        self.pending: dict[int, Promise | Begun] = {}
        """Promises and beginnings that have no mark yet, by their numbers."""
        self.requeues: Counter[str] = Counter()
        """The number of charged attempts of each task since it was last redriven."""
        self.good_versions: dict[str, list[str]] = {}
        """The digests of each document's good versions, the newest last."""
        self.leases: dict[str, LeaseState] = {}
        """The leases granted through the store, by the path of the lease's file."""
        self.claims: dict[str, ClaimState] = {}
        """The newest claim of each task."""
        self.failures: dict[str, FailureState] = {}
        """The newest failed attempt of each task."""
        self.dead_letters: dict[str, str] = {}
        """The dead letters by task, with the reason of each."""
        self.flags: dict[str, FlagState] = {}
        """The newest switch of each feature flag."""
        self.flag_outcomes: Counter[tuple[str, bool]] = Counter()
        """The number of outcomes of each flag that follow from entries, failures under True."""
        self.releases = 0
        """The number of leases' files that the store removed."""
        self.left: dict[str, list[str]] = {}
        """The folders of task lists of forgotten agents, with the tasks that these may have left in progress."""
        self.restarts: dict[str, RestartState] = {}
        """The starts of each agent that was brought back, and the holds."""
        self._exits: dict[str, dict[str, Exit]] = {}
        """The exits of the dead processes of each agent that is not forgotten."""
        self._agents: dict[str, dict[str, int]] = {}
        """The newest line of each action on an agent that is not forgotten."""

    def recorded(self, agent: str, action: str, since: str) -> bool:
        """Whether the agent has an entry with ``action`` after its newest entry with the action ``since``."""
        newest = self._agents.get(agent, {})
        return newest.get(action, 0) > newest.get(since, 0)

    def death_recorded(self, agent: Agent) -> bool:
        """Whether the death of the agent's process is in the journal: a successor of the same id has another one."""
        if agent.process is None:
            return self.recorded(agent.id, "died", "registered")
        return _death(agent.process.pid, agent.process.started) in self._agents.get(agent.id, {})

    def exit_of(self, agent: Agent) -> Exit:
        """The exit code or the signal of the agent's process, as its death was journaled; None for what is unknown."""
        process = agent.process
        exits = self._exits.get(agent.id, {})
        return exits.get(_death(process.pid, process.started), (None, None)) if process is not None else (None, None)

    def terminated(self, agent: str, process: ProcessId | None = None) -> bool:
        """Whether the supervisor ended the agent, or has begun to. To end a dead agent's processes does not count.

        A second process of a session is ended alone: that counts for the agent with this ``process`` only.
        """
        newest = self._agents.get(agent, {})
        if process is not None and _duplicate(process.pid, process.started) in newest:
            return True
        begun = [seq for seq, line in self.pending.items() if isinstance(line, Begun) and _ends(line, agent, process)]
        ours = max([newest.get("terminated", 0), *begun])
        registered, died = newest.get("registered", 0), newest.get("died", 0)
        return ours > registered and not registered < died < ours

    def ended_for_stall(self, agent: str) -> bool:
        """Whether the supervisor ended the agent, or has begun to, because it had stalled."""
        newest = self._agents.get(agent, {})
        begun = [
            seq
            for seq, line in self.pending.items()
            if isinstance(line, Begun) and line.key == agent and _evidence(line).stalled
        ]
        return max([newest.get(_STALLED, 0), *begun]) > newest.get("registered", 0)

    def apply(self, line: Line) -> None:
        """Apply one more line. One that stands in two segments counts once."""
        if line.seq <= self.seq:
            return
        self.seq = line.seq
        match line:
            case Promise() | Begun():
                self.pending[line.seq] = line
                if (line.kind, line.action) == ("agent", "restarted"):
                    self._begin_start(line, _evidence(line))
            case Ended():
                self._end(line.done, done=True)
                self.count(line)
            case Entry():
                self.count(line)
            case Done():
                self._end(line.done, done=True)
            case Failed():
                self._end(line.failed, done=False)
            case GoodVersion():
                self._keep(line.good)
            case Heartbeat():
                self._beat(line.beat)
            case CheckpointLine():
                self._load(line.checkpoint)

    def _end(self, seq: int, done: bool) -> None:
        started = self.pending.pop(seq, None)
        if started is None:
            return
        if done:
            self.count(started)
        elif (started.kind, started.action) == ("agent", "restarted"):
            self._drop_start(started.key, seq)

    def _keep(self, version: Version) -> None:
        digests = self.good_versions.setdefault(version.path, [])
        if version.digest in digests:
            digests.remove(version.digest)
        digests.append(version.digest)
        del digests[:-VERSIONS]

    def _beat(self, beat: SignOfLife) -> None:
        claim = self.claims.get(beat.task)
        if claim is not None and claim.token == beat.token:
            self.claims[beat.task] = msgspec.structs.replace(claim, since_s=beat.since_s, boot=beat.boot)

    def count(self, entry: Entry) -> None:
        """Apply an entry about something that is done."""
        write = entry.write if isinstance(entry, Promise) else None
        match entry.kind:
            case "agent" if entry.action == "forgotten":
                self._agents.pop(entry.key, None)
                self._exits.pop(entry.key, None)
                self._leave(_evidence(entry).left or {})
            case "agent" if entry.action == "updated":
                self._rename_agent(_evidence(entry).was, entry.key)
            case "agent" if entry.action in _RESTART_ACTIONS:
                self._count_restart(entry, _evidence(entry))
            case "agent":
                newest = self._agents.setdefault(entry.key, {})
                seq = entry.done if isinstance(entry, Ended) else entry.seq  # an operation stands where it began
                evidence = _evidence(entry)
                if entry.action == "terminated" and evidence.duplicate_of is not None:
                    newest[_duplicate(evidence.pid, evidence.started)] = seq
                    return
                newest[entry.action] = max(seq, newest.get(entry.action, 0))
                if entry.action == "died":
                    death = _death(evidence.pid, evidence.started)
                    newest[death] = seq
                    self._exits.setdefault(entry.key, {})[death] = evidence.status, evidence.signal
                elif entry.action == "terminated" and evidence.stalled:
                    newest[_STALLED] = seq
            case "lease" if isinstance(entry, Promise):
                self._lend(entry, _evidence(entry))
            case "task":
                self._count_task(entry, _evidence(entry))
            case "flag" if entry.action in ("disabled", "enabled"):
                self._switch(entry, _evidence(entry))
        self.releases += write is not None and write.after is None and write.path.endswith(".lease")
        self.flag_outcomes.update(outcome_table.in_journal_entry(entry))

    def _begin_start(self, line: Begun | Promise, evidence: Evidence) -> None:
        state = self.restarts.pop(line.key, RestartState())
        start = StartState(
            seq=line.seq, record=evidence.record or "", session=evidence.session, cause=evidence.cause,
            answered_at=evidence.answered_at, at=line.at, since_s=evidence.since_s, boot=evidence.boot,
        )  # fmt: skip
        starts = (*state.starts, start)[-STARTS:]
        held = state.held and not evidence.by_hand  # a person may have held it after the start was decided
        self.restarts[line.key] = RestartState(starts=starts, held=held)
        self._limit_restarts()

    def _drop_start(self, agent: str, seq: int) -> None:
        if (state := self.restarts.get(agent)) is not None:
            starts = tuple(start for start in state.starts if start.seq != seq)
            self.restarts[agent] = msgspec.structs.replace(state, starts=starts)

    def _count_restart(self, entry: Entry, evidence: Evidence) -> None:
        """Apply the end of a start, its first progress, or a decision of a person about an agent's starts."""
        state = self.restarts.get(entry.key, RestartState())
        match entry.action:
            case "restarted" if isinstance(entry, Ended):
                starts = tuple(_ended(start, entry, evidence) for start in state.starts)
                state = msgspec.structs.replace(state, starts=starts)
            case "resumed" if state.starts:
                newest = msgspec.structs.replace(state.starts[-1], resumed=True)
                state = msgspec.structs.replace(state, starts=(*state.starts[:-1], newest))
            case "restart_given_up":
                state = msgspec.structs.replace(state, given_up=evidence.code or "", reason=entry.reason)
            case "held":
                state = msgspec.structs.replace(state, held=True, given_up=None, reason="")
            case "restart_reset":
                self.restarts.pop(entry.key, None)
                return
        self.restarts[entry.key] = state
        self._limit_restarts()

    def _limit_restarts(self) -> None:
        """Forget the oldest agents; one that a person holds only if most of them are held."""
        excess = len(self.restarts) - RESTARTS
        for agent in [agent for agent, state in self.restarts.items() if not state.held][: max(0, excess)]:
            del self.restarts[agent]
        for agent in list(self.restarts)[: max(0, len(self.restarts) - 2 * RESTARTS)]:
            del self.restarts[agent]

    def _leave(self, lists: Mapping[str, Sequence[str]]) -> None:
        """Remember the lists of an agent that is forgotten: nothing else may tie them to the project."""
        for folder, tasks in lists.items():
            self.left[folder] = sorted({*self.left.pop(folder, ()), *tasks})
        for folder in list(self.left)[:-LISTS_LEFT]:
            del self.left[folder]

    def _settle(self, task: str) -> None:
        for tasks in self.left.values():
            if task in tasks:
                tasks.remove(task)

    def _rename_agent(self, before: str | None, after: str) -> None:
        """Give an agent's entries to the name that it is known by now."""
        if before is not None and before != after:
            if before in self.restarts:
                self.restarts[after] = self.restarts.pop(before)
            newest = self._agents.setdefault(after, {})
            for action, seq in self._agents.pop(before, {}).items():
                newest[action] = max(seq, newest.get(action, 0))

    def _switch(self, entry: Entry, evidence: Evidence) -> None:
        before = self.flags.get(entry.key)
        times = before.times if before else 0
        if evidence.errors is not None:
            times += 1
        elif not evidence.probation:  # a person has decided
            times = 0
        self.flags[entry.key] = FlagState(
            epoch=entry.seq, off=entry.action == "disabled", times=times, by=entry.by, at=entry.at, reason=entry.reason,
            errors=evidence.errors, samples=evidence.samples, since_s=evidence.since_s, boot=evidence.boot,
        )  # fmt: skip

    def _count_task(self, entry: Entry, evidence: Evidence) -> None:
        key = entry.key
        if entry.action in ("requeued", "dead_lettered", "completed", "dropped"):
            self._settle(key)
        match entry.action:
            case "claimed":
                self.claims[key] = ClaimState(
                    token=entry.seq, owner=evidence.owner, live=True, since_s=evidence.since_s, boot=evidence.boot
                )
            case "requeued":
                before = self.failures.get(key, FailureState())
                if evidence.charged:
                    self.requeues[key] += 1
                    self.failures[key] = FailureState(
                        cause=evidence.cause, since_s=evidence.since_s, boot=evidence.boot,
                        reports=evidence.reports or (), clean_ends=before.clean_ends,
                    )  # fmt: skip
                elif evidence.reports is not None or evidence.clean:
                    self.failures[key] = msgspec.structs.replace(
                        before,
                        reports=evidence.reports or before.reports,
                        clean_ends=before.clean_ends + evidence.clean,
                    )
                self._end_claim(key)
            case "dead_lettered":
                self.dead_letters[key] = entry.reason
                self._end_claim(key)
            case "redriven" | "dropped" | "completed" | "dead_letter_removed" | "put_away":  # the last one: 0.1.0
                self.requeues.pop(key, None)
                self.failures.pop(key, None)
                self.dead_letters.pop(key, None)
                if entry.action in ("dropped", "completed"):
                    self.claims.pop(key, None)

    def _end_claim(self, key: str) -> None:
        if (claim := self.claims.get(key)) is not None:
            self.claims[key] = msgspec.structs.replace(claim, live=False)

    def _lend(self, entry: Promise, evidence: Evidence) -> None:
        write = entry.write
        if write.after is None or evidence.since_s is None or evidence.boot is None:
            self.leases.pop(write.path, None)
            return
        before = self.leases.get(write.path)
        # a renewal keeps its token, unless the lease that is renewed was not granted here: then that token is unknown
        renewed = before is not None and entry.action == "renewed" and before.digest == write.before
        self.leases[write.path] = LeaseState(
            digest=write.after, since_s=evidence.since_s, boot=evidence.boot,
            token=before.token if before is not None and renewed else entry.seq,
        )  # fmt: skip

    def checkpoint(self) -> Checkpoint:
        """The index for the first line of the next segment."""
        return Checkpoint(
            pending=tuple(self.pending.values()),
            requeues=dict(self.requeues),
            good=self.good_versions,
            leases=self.leases,
            claims=self.claims,
            failures=self.failures,
            dead_letters=self.dead_letters,
            flags=self.flags,
            outcomes=tuple((flag, failed, number) for (flag, failed), number in self.flag_outcomes.items()),
            releases=self.releases,
            agents=self._agents,
            left=self.left,
            restarts=self.restarts,
            exits=self._exits,
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        self.pending = {line.seq: line for line in checkpoint.pending}
        self.requeues = Counter(checkpoint.requeues)
        self.good_versions = checkpoint.good
        self.leases = checkpoint.leases
        self.claims = checkpoint.claims
        self.failures = checkpoint.failures
        self.dead_letters = checkpoint.dead_letters
        self.flags = checkpoint.flags
        self.flag_outcomes = Counter({(flag, failed): number for flag, failed, number in checkpoint.outcomes})
        self.releases = checkpoint.releases
        self._agents = checkpoint.agents
        self.left = checkpoint.left
        self.restarts = checkpoint.restarts
        self._exits = checkpoint.exits


_RESTART_ACTIONS = ("restarted", "resumed", "restart_given_up", "restart_reset", "held")
"""The actions about the starts of an agent. Its registration and its death do not count among them."""


_STALLED = "terminated, stalled"
"""The name of the end of a stalled agent among the actions on it."""


def _death(pid: int | None, started: int | None) -> str:
    """The name of the death of a process among the actions on an agent."""
    return f"died {pid}/{started}"


def _duplicate(pid: int | None, started: int | None) -> str:
    """The name of the end of a second process of a session among the actions on an agent."""
    return f"terminated, duplicate {pid}/{started}"


def _ends(line: Begun, agent: str, process: ProcessId | None) -> bool:
    """Whether the operation may end the process of the agent."""
    evidence = _evidence(line)
    ours = process is not None and (evidence.pid, evidence.started) == (process.pid, process.started)
    return line.key == agent and (evidence.duplicate_of is None or ours)


def _ended(start: StartState, entry: Ended, evidence: Evidence) -> StartState:
    if start.seq != entry.done:
        return start
    result, pid, started = evidence.result or "", evidence.pid, evidence.started
    return msgspec.structs.replace(start, result=result, pid=pid, started=started)


def _evidence(entry: Entry) -> Evidence:
    """The evidence in types; empty where it has others."""
    try:
        return msgspec.convert(entry.evidence, Evidence)
    except (msgspec.ValidationError, UnicodeEncodeError):  # a lone surrogate in a key
        return Evidence()
