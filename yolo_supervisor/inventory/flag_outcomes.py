"""Collects the outcomes of the plugin's feature flags, and gives the state of each flag.

Outcomes come from ``flag record``, the plugin's logs, the supervisor's journal, and leases that their holders returned;
``formats/plugin/outcome_table.py`` lists what counts. New outcomes belong to the state at once. ``save`` stores them;
until that succeeds the sources' positions stay where they were, so that nothing is lost or counted twice.

A journal line that switches a flag begins a new *epoch* for it: earlier outcomes no longer count.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from yolo_supervisor.clock import Clock, Instant
from yolo_supervisor.config import Config
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, outcome_table
from yolo_supervisor.formats.plugin.outcome_table import Source
from yolo_supervisor.fs.changes import ParsedFileCache
from yolo_supervisor.inventory.flag_record import Detection, FlagOutcome, FlagRecords, ReadPositions
from yolo_supervisor.inventory.log_tail import LogPosition, LogTail
from yolo_supervisor.models import from_iso
from yolo_supervisor.policy.failure_rate import Rule
from yolo_supervisor.store.index import Index
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Store

MAX_FLAGS, MAX_OUTCOMES = 1000, 100_000
"""While so many flags or outcomes wait to be saved, because every write fails, no more are collected."""

SAVE_LIMIT_S = 0.25
"""The time that ``save`` waits for the lock, in seconds: the daemon does nothing else meanwhile."""

RECORD_LIMIT_S = 5.0
"""The time that ``flag record`` waits for the lock, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Disabled:
    """The record of a flag that was disabled through the supervisor, with the time until its probation."""

    by: str
    at: str
    reason: str
    probation_in_s: float | None = None
    """None: there will be no probation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """The state of one flag in its window. ``enabled`` is None where ``config.json`` has neither true nor false."""

    name: str
    enabled: bool | None
    errors: int = 0
    samples: int = 0
    length_s: float = 0.0
    """The time that its window covers, in seconds."""
    rates: tuple[float, ...] = ()
    """The error rate of each bucket of outcomes."""
    detection: Detection | None = None
    """The evidence that it fails too often."""
    disabled: Disabled | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FlagsObservation:
    flags: tuple[Flag, ...]
    config_file: Path
    """The plugin's ``config.json``."""
    now: Instant
    rule: Rule
    readable: bool = True
    """Whether the ``config.json`` can be read, if there is one."""


class _Collected(NamedTuple):
    flag: str
    at: datetime | None
    outcome: FlagOutcome


class _PluginLogs:
    """Outcomes in the plugin's event log and metrics."""

    def __init__(self, planning: Path, positions: ReadPositions) -> None:
        files = (("events", event_log.EVENT_LOG), ("metrics", event_log.METRICS))
        self._tails = {source: LogTail(planning / path, positions.logs.get(source)) for source, path in files}

    @property
    def behind(self) -> bool:
        return any(tail.behind for tail in self._tails.values())

    def positions(self) -> dict[str, LogPosition]:
        return {source: tail.position for source, tail in self._tails.items() if tail.position is not None}

    def new(self, now: datetime, window_s: float) -> Iterator[_Collected]:
        """The new outcomes that are not older than the window.

        A line without a time counts unless it is unknown how old it is. A time in the future means a wrong clock.
        """
        for source, tail in self._tails.items():
            for line in tail.read():
                event = outcome_table.in_log_line(line.data)
                if event is None or tail.is_repeat(line, event.at):
                    continue
                if line.old if event.at is None else (now - event.at).total_seconds() > window_s:
                    continue
                for flag, failed in event.results:
                    yield _Collected(flag, event.at, FlagOutcome(failed, source, line.end, event.subject))


class _JournalCounts:
    """Outcomes among the supervisor's actions. The journal's index counts them for each flag and result.

    Without stored positions, the outcomes so far are history and do not count.
    """

    def __init__(self, positions: ReadPositions, index: Index) -> None:
        self._seen = {key: (number, 0) for key, number in index.flag_outcomes.items()}
        """For each flag and result, the number of outcomes in the journal and the position of that number."""
        self._seen |= {(flag, failed): (number, position) for flag, failed, number, position in positions.journal}

    def positions(self) -> list[tuple[str, bool, int, int]]:
        return [(flag, failed, *seen) for (flag, failed), seen in self._seen.items()]

    def new(self, index: Index, window: int) -> Iterator[_Collected]:
        """The new outcomes, of each flag and result at most as many as its window holds."""
        for (flag, failed), number in index.flag_outcomes.items():
            seen, before = self._seen.get((flag, failed), (0, 0))
            position = before + max(0, number - seen)
            self._seen[flag, failed] = number, position
            source = f"journal {'error' if failed else 'ok'}"
            for end in range(max(before, position - window) + 1, position + 1):
                yield _Collected(flag, None, FlagOutcome(failed, source, end))


class _LeaseFiles:
    """Leases whose files are gone, and that the supervisor did not remove: their holders returned them."""

    def __init__(self, folder: Path) -> None:
        self.returned = 0
        """The number of leases that their holders returned."""
        self._folder = folder
        self._seen: tuple[int, frozenset[str]] | None = None
        """The folder's time stamp and its leases."""
        self._present: tuple[int, frozenset[str]] = 0, frozenset()
        self._releases = 0
        """The number of leases that the supervisor had released when the folder was last compared."""

    def read(self) -> None:
        """List the folder. The journal has to be read after this, so that it holds every release seen here."""
        try:
            stamp = os.stat(self._folder).st_mtime_ns
            if self._seen is not None and self._seen[0] == stamp:
                self._present = self._seen
                return
            names = frozenset(name for name in os.listdir(self._folder) if name.endswith(".lease"))
            self._present = stamp, names
        except OSError:
            self._present = 0, frozenset()

    def new(self, index: Index) -> Iterator[_Collected]:
        """The outcomes since the folder was last compared."""
        before, releases = self._seen, index.releases - self._releases
        self._seen, self._releases = self._present, index.releases
        if before is None:
            return
        gone = len(before[1] - self._present[1])
        for _ in range(gone - max(0, releases)):
            self.returned += 1
            for flag, failed in outcome_table.results(Source.LEASE_FILES, "returned"):
                yield _Collected(flag, None, FlagOutcome(failed, "locks", self.returned))


class FlagOutcomes:
    """The flags of one project, and their new outcomes.

    ``boot`` identifies the boot in which monotonic times are comparable.
    """

    def __init__(self, config: Config, store: Store, clock: Clock, boot: str) -> None:
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._store = store
        self._clock = clock
        self._boot = boot
        self._config_file = store.paths.plugin_config
        self._enabled = ParsedFileCache(
            lambda data, _: plugin_config.switches(data) if load_object(data) is not None else None
        )
        self._records = FlagRecords(store, clock, boot)
        self._leases = _LeaseFiles(store.paths.locks)
        self._logs: _PluginLogs | None = None
        self._journal: _JournalCounts | None = None
        self._saved: ReadPositions | None = None
        """The positions as they are stored; None until they are read."""
        self._pending: dict[str, list[FlagOutcome]] = {}
        """Outcomes of each flag that are not stored yet."""
        self._disabled_since: dict[str, float] = {}
        """For flags disabled under another boot's clock, the time since which this process knows of it."""

    @property
    def rule(self) -> Rule:
        config = self.config.flags
        return Rule(config.max_error_rate, config.alpha, config.min_samples, config.window, config.window_s)

    @property
    def behind(self) -> bool:
        """Whether a log has more unread lines than one observation reads."""
        return self._logs is not None and self._logs.behind

    def observe(self, now: datetime) -> FlagsObservation:
        """All flags, with the outcomes that are not stored yet."""
        self._leases.read()
        enabled = self._enabled.get(self._config_file)
        self._store.heed()
        self._records.refresh()
        if len(self._pending) < MAX_FLAGS and sum(map(len, self._pending.values())) < MAX_OUTCOMES:
            self._collect(enabled or {}, now)
        names = {*self._records.names(), *self._pending, *filter(plugin_config.is_flag, enabled or ())}
        return FlagsObservation(
            flags=tuple(self._flag(name, (enabled or {}).get(name)) for name in sorted(names)),
            config_file=self._config_file,
            now=Instant(self._boot, self._clock.monotonic()),
            rule=self.rule,
            readable=enabled is not None or not os.path.lexists(self._config_file),
        )

    def save(self) -> bool:
        """Store the new outcomes, each once; False if another process holds the lock.

        OSError if they cannot be written.
        """
        positions = self._positions()
        if positions is None or (not self._pending and positions == self._saved):
            return True
        try:
            with self._records.locked(SAVE_LIMIT_S):
                for name, outcomes in self._pending.items():
                    self._records.store_outcomes(name, outcomes, self.rule)
                self._records.store_positions(positions)
        except Busy:
            return False
        self._saved, self._pending = positions, {}
        return True

    def record(self, name: str, failed: bool) -> Flag:
        """Store an outcome from the command line.

        Busy if other processes hold the lock all the time.
        """
        with self._records.locked(RECORD_LIMIT_S):
            self._records.store_outcomes(name, [FlagOutcome(failed)], self.rule)
        return self._flag(name, (self._enabled.get(self._config_file) or {}).get(name))

    # -- new outcomes --------------------------------------------------------------------------------------------

    def _collect(self, enabled: Mapping[str, bool], now: datetime) -> None:
        """Collect the new outcomes of enabled flags."""
        index = self._store.index
        if self._logs is None or self._journal is None:
            stored = self._records.load_positions()
            self._logs = _PluginLogs(self._store.paths.planning, stored)
            self._journal = _JournalCounts(stored, index)
            self._leases.returned = stored.returned
            self._saved = self._positions()
        for flag, at, outcome in itertools.chain(
            self._logs.new(now, self.rule.window_s),
            self._journal.new(index, self.rule.window),
            self._leases.new(index),
        ):
            if enabled.get(flag) and not self._before_epoch(flag, at):
                self._pending.setdefault(flag, []).append(outcome)

    def _before_epoch(self, flag: str, at: datetime | None) -> bool:
        """Whether the time is before the last switch of the flag."""
        switch = self._store.index.flags.get(flag)
        try:
            return at is not None and switch is not None and at <= from_iso(switch.at)
        except ValueError:
            return False

    def _positions(self) -> ReadPositions | None:
        """The read positions of the sources; None before the first observation."""
        if self._logs is None or self._journal is None:
            return None
        return ReadPositions(self._logs.positions(), self._journal.positions(), self._leases.returned)

    # -- the state of each flag ----------------------------------------------------------------------------------

    def _flag(self, name: str, enabled: bool | None) -> Flag:
        now_s, rule = self._clock.monotonic(), self.rule
        record = self._records.with_outcomes(name, self._pending.get(name, ()), rule)
        buckets = record.e_process.in_window(now_s, rule)
        return Flag(
            name=name,
            enabled=enabled,
            errors=sum(bucket.errors for bucket in buckets),
            samples=sum(bucket.samples for bucket in buckets),
            length_s=now_s - buckets[0].since_s if buckets else 0.0,
            rates=tuple(bucket.errors / bucket.samples for bucket in buckets),
            detection=record.detected(now_s, rule),
            disabled=self._disabled(name, now_s),
        )

    def _disabled(self, name: str, now_s: float) -> Disabled | None:
        switch = self._store.index.flags.get(name)
        if switch is None or not switch.off:
            self._disabled_since.pop(name, None)
            return None
        probation_in_s, first_s = None, self.config.flags.probation_s
        if first_s and switch.times:
            age_s = switch.switched.age(Instant(self._boot, now_s)) if switch.switched is not None else None
            off_s = age_s if age_s is not None else now_s - self._disabled_since.setdefault(name, now_s)
            probation_in_s = max(0.0, first_s * 2.0 ** min(switch.times - 1, 10) - off_s)
        return Disabled(by=switch.by, at=switch.at, reason=switch.reason, probation_in_s=probation_in_s)
