"""Outcomes of the plugin's feature flags: from ``flag record``, the plugin's logs, and the supervisor's actions.

Each flag has one small document in ``.supervisor/flags/``. It does not hold the outcomes, only the state that the test
in ``failure_rate`` needs. It also holds the position to which each source was counted, so that every outcome counts
once. A power cut may lose some outcomes, which only delays a decision; none is counted twice. A journal line that
switches a flag begins a new *epoch* for it: earlier outcomes do not count any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yolo_supervisor.actions.flags import CountOutcomes, FlagOutcome
from yolo_supervisor.clock import Clock
from yolo_supervisor.config import Config
from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, outcome_table
from yolo_supervisor.fs.changes import EVERY, DirectoryScanner, ParsedFileCache
from yolo_supervisor.fs.read import digest, read_or_none
from yolo_supervisor.models import from_iso, iso
from yolo_supervisor.policy.failure_rate import Bucket, EProcess, Rule
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.atomic import write_atomic as replace_file
from yolo_supervisor.store.disk import FILE_MODE
from yolo_supervisor.store.locks import Busy, file_lock
from yolo_supervisor.store.store import Store

PORTION = 256 * 1024
"""The largest part of a log that is read in one observation, in bytes."""

FAR = 4 * 2**20
"""The distance from the end, in bytes, in which the read position is searched for in a log that did not just grow."""

FOLDER, MARKS = "flags", "marks"


# -- a flag's document ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Crossed:
    """The point at which the evidence became strong enough, and its numbers."""

    since_s: float
    at: int
    """The number of outcomes at that point, of all that were ever counted."""
    errors: int
    samples: int
    value: float


@dataclass(slots=True)
class Record:
    """The recorded state of one flag."""

    name: str
    epoch: int = 0
    trail: EProcess = field(default_factory=EProcess)
    crossed: Crossed | None = None
    ever: int = 0
    failing: str = ""
    """The subject of the newest outcome if that is a failure. A repeated failure (a retry, say) counts once."""
    counted: dict[str, int] = field(default_factory=dict)
    """The position to which each source was counted."""

    def begin(self, epoch: int) -> None:
        """Begin an epoch: forget the outcomes, but not the positions to which they were counted."""
        self.epoch, self.trail, self.crossed, self.failing = epoch, EProcess(), None, ""

    def take(self, told: FlagOutcome, now_s: float, rule: Rule) -> None:
        """Count an outcome, unless it was counted before."""
        if told.source:
            if told.position <= self.counted.get(told.source, 0):
                return
            self.counted[told.source] = told.position
        again = told.failed and told.at != "" and told.at == self.failing
        self.failing = told.at if told.failed else ""
        if again:
            return
        self.ever += 1
        self.trail.add(told.failed, now_s, rule)
        if told.failed and self.verdict(now_s, rule) is None:
            found = self.trail.e_value(rule)
            if found.value >= 1 / rule.alpha:
                self.crossed = Crossed(now_s, self.ever, found.errors, found.samples, found.value)

    def verdict(self, now_s: float, rule: Rule) -> Crossed | None:
        """The evidence that was strong enough, as long as it is in the window."""
        found = self.crossed
        if found is None or now_s - found.since_s > rule.window_s or self.ever - found.at > rule.window:
            return None
        return found

    def copy(self) -> Record:
        trail = EProcess(self.trail.started, (replace(portion) for portion in self.trail.buckets))
        return replace(self, trail=trail, counted=dict(self.counted))

    def dump(self, boot: str) -> bytes:
        crossed = self.crossed
        raw = {
            "version": 1,
            "flag": self.name,
            "epoch": self.epoch,
            "boot": boot,
            "begun": self.trail.started,
            "portions": [[p.number, p.since_s, p.samples, p.errors] for p in self.trail.buckets],
            "crossed": [getattr(crossed, name) for name in Crossed.__slots__] if crossed else None,
            "ever": self.ever,
            "failing": self.failing,
            "counted": self.counted,
        }
        return json.dumps(raw, separators=(",", ":")).encode()


def load(data: bytes, boot: str, now_s: float) -> Record | None:
    """The record in a document, or None if it cannot be read.

    Times of another boot's clock have no meaning in this boot and are dropped.
    """
    raw = load_object(data)
    try:
        if raw is None or text_or_none(raw["flag"]) is None:
            return None
        trail, crossed = EProcess(_number(raw["begun"])), None
        if raw["boot"] == boot:
            portions = [
                Bucket(_number(number), _time(since_s, now_s), _number(samples), _number(errors))
                for number, since_s, samples, errors in raw["portions"]
            ]
            if any(p.errors > p.samples or not 0 < p.number <= trail.started for p in portions):
                return None
            trail = EProcess(trail.started, portions)
            if raw["crossed"] is not None:
                since_s, at, errors, samples, value = raw["crossed"]
                crossed = Crossed(_time(since_s, now_s), _number(at), _number(errors), _number(samples), float(value))
        counted = {str(source): _number(position) for source, position in raw["counted"].items()}
        return Record(
            raw["flag"], _number(raw["epoch"]), trail, crossed, _number(raw["ever"]), str(raw["failing"]), counted
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of anything")
    return value


def _time(value: object, now_s: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= now_s + 1:
        raise ValueError(f"{value!r} is no time that has been")
    return float(value)


def flag_file(name: str) -> str:
    """The file name of a flag's document, unique for each flag name."""
    plain = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")  # ours: it marks a long name
    if len(plain) > 150:
        plain = plain[:120] + "~" + hashlib.sha256(plain.encode()).hexdigest()[:20]
    return f"{plain}.json"


# -- the log of another program ---------------------------------------------------------------------------------

OF_NEWEST = 50
"""The number of lines of one second that are remembered, to recognise them if the log was replaced."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The position to which a log was read. A position is ``base`` more than an offset: it grows for ever, even if the
    log is replaced."""

    base: int = 0
    offset: int = 0
    head: str | None = None
    """The digest of the first line."""
    last: str | None = None
    """The digest of the last line that was read, and its length."""
    length: int = 0
    newest: str | None = None
    """The time of the newest line that was read, in the form of ``iso``."""
    of_newest: tuple[str, ...] = ()
    """The digests, shortened, of the last lines of that time."""

    def at(self, offset: int) -> Mark:
        """The same position, at another offset."""
        return replace(self, base=self.base + self.offset - offset, offset=offset)


class Tail:
    """A log that other programs append to and sometimes rotate, cut or restore: each of its lines is read once."""

    def __init__(self, path: Path, mark: Mark | None) -> None:
        self.mark = mark
        self.behind = False
        """Whether more lines can be read at once."""
        self.old = 0
        """The end position of the lines that existed before the first read."""
        self._again = 0, Mark()
        """The end position of lines that may repeat the log before its replacement, and the mark in that log."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None

    def read(self) -> list[tuple[int, bytes]]:
        """The next complete lines, each with its position."""
        try:
            found = os.stat(self._path)
            stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
            if stamp == self._stamp and not self.behind:
                return []
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            self.mark = self.mark or Mark()  # all lines of a log that appears later are new
            self._stamp, self.behind = None, False
            return []
        except (OSError, ValueError):
            return []
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return []
            lines = self._lines(fd, found.st_size)
        except OSError:
            return []
        finally:
            os.close(fd)
        self._stamp = stamp
        return lines

    def known(self, position: int, at: datetime | None, line: bytes) -> bool:
        """Whether the line was read before the log was edited or replaced.

        It counts as read from now on. ``position`` and ``at`` are its place and time.
        """
        if at is None or self.mark is None:
            return False
        told, newest, short, (end, other) = iso(at), self.mark.newest or "", str(digest(line))[:12], self._again
        if told >= newest:
            before = self.mark.of_newest if told == newest else ()
            self.mark = replace(self.mark, newest=told, of_newest=(*before, short)[-OF_NEWEST:])
        until = other.newest or ""
        return position <= end and (told < until or (told == until and short in other.of_newest))

    def _lines(self, fd: int, size: int) -> list[tuple[int, bytes]]:
        mark = self.mark = self._place(fd, size)
        data = os.pread(fd, PORTION, mark.offset)
        whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == PORTION else 0)  # too long for a log line
        self.behind = whole > 0 and mark.offset + whole < size
        lines, at = [], mark.base + mark.offset
        for line in data[:whole].splitlines(keepends=True):
            at += len(line)
            lines.append((at, line))
        if lines:
            last = lines[-1][1]
            self.mark = Mark(
                mark.base, mark.offset + whole, _head(fd), digest(last), len(last), mark.newest, mark.of_newest
            )
        return lines

    def _place(self, fd: int, size: int) -> Mark:
        """The mark from which reading continues."""
        mark = self.mark
        if mark is None:
            self.old = size
            start = max(0, size - PORTION)
            part = os.pread(fd, PORTION, start) if start else b""
            part = part[: part.find(b"\n") + 1]  # of a line that began before
            return Mark(0, start + len(part), _head(fd), digest(part), len(part)) if part else Mark()
        if mark.last is None:
            return mark if mark.offset <= size else mark.at(0)
        if digest(os.pread(fd, mark.length, max(0, mark.offset - mark.length))) == mark.last:
            return mark
        start = max(0, size - FAR)
        rest = os.pread(fd, FAR, start)
        offset, again = start, None
        for line in rest.splitlines(keepends=True):
            offset += len(line)
            if len(line) == mark.length and digest(line) == mark.last:
                again = offset
        if again is not None:  # the log was cut at its beginning
            return mark.at(again)
        if _head(fd) != mark.head:  # the log was replaced or edited
            self._again = mark.base + mark.offset + size, mark
            return mark.at(0)
        whole = rest[: rest.rfind(b"\n") + 1]  # an earlier state was restored: all of its lines were read
        last = whole.splitlines(keepends=True)[-1] if whole else b""
        return replace(mark.at(start + len(whole)), last=digest(last), length=len(last))


def _head(fd: int) -> str | None:
    first = os.pread(fd, 4096, 0)
    return digest(first[: first.find(b"\n") + 1] or first)


# -- the flags of a project -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Off:
    """A flag that was disabled through the supervisor: by whom, why, and how long until probation (None: never)."""

    by: str
    at: str
    reason: str
    left_s: float | None = None


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
    """The error rate of each portion of the outcomes."""
    crossed: Crossed | None = None
    off: Off | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    flags: tuple[Flag, ...]
    config: Path
    """The plugin's ``config.json``."""
    now_s: float
    boot: str
    """The boot to which ``now_s`` belongs."""
    rule: Rule
    readable: bool = True
    """Whether the ``config.json`` can be read, if there is one."""
    count: CountOutcomes | None = None
    """Outcomes that are not recorded yet."""


class Flags:
    """Observes flags and counts outcomes. ``boot`` identifies the boot in which monotonic times are comparable."""

    def __init__(self, config: Callable[[], Config], store: Store, clock: Clock, boot: str) -> None:
        self._config = config
        self._store = store
        self._clock = clock
        self._boot = boot
        self.folder = store.paths.folder / FOLDER
        self._config_file = store.paths.planning / "config.json"
        self._switches = ParsedFileCache(
            lambda data, _: plugin_config.wishes(data) if load_object(data) is not None else None
        )
        self._files = DirectoryScanner(self.folder, lambda name: name.endswith(".json"))
        self._records: dict[str, Record] = {}
        """The records by the names of their documents."""
        self._tails: dict[str, Tail] | None = None
        self._seen: dict[tuple[str, bool], tuple[int, int]] = {}
        """For each flag and result, the number of outcomes in the journal and the position of that number."""
        self._pending: dict[str, list[FlagOutcome]] = {}
        self._leases: tuple[int, frozenset[str], int] | None = None
        """The folder's stamp, its leases, and the number of leases that the supervisor had ended."""
        self._returned = 0
        """The number of leases that their holders gave back."""
        self._off_since: dict[str, float] = {}
        """For flags disabled under another boot's clock, the time since which this process knows of it."""
        self._written: Mapping[str, Any] | None = None
        """The marks as they are on the disk."""

    @property
    def rule(self) -> Rule:
        config = self._config().flags
        return Rule(config.max_error_rate, config.alpha, config.min_samples, config.window, config.window_s)

    @property
    def behind(self) -> bool:
        """Whether a log has more unread lines than one observation reads."""
        return any(tail.behind for tail in (self._tails or {}).values())

    def look(self, now: datetime) -> Look:
        """All existing flags, and their new outcomes."""
        leases = self._leases_there()
        switches = self._switches.get(self._config_file)
        self._store.heed()  # after the read: a change of ours that it saw is known then
        for name in self._files.look(quiet=EVERY):
            record = load(read_or_none(self.folder / name) or b"", self._boot, self._clock.monotonic())
            if record is None or flag_file(record.name) != name:
                self._records.pop(name, None)
            else:
                self._records[name] = record
        if len(self._pending) < 1000 and sum(map(len, self._pending.values())) < 100_000:  # else no write succeeds
            self._hear(switches or {}, now, leases)
        shown = {*(record.name for record in self._records.values()), *self._pending}
        shown |= {name for name in switches or () if plugin_config.is_flag(name)}
        found = tuple(self._judged(name, (switches or {}).get(name)) for name in sorted(shown))
        count = CountOutcomes(key="outcomes", reason="they are new", outcomes=self._pending, marks=self._marks())
        fresh = bool(self._pending) or count.marks != self._written
        readable = switches is not None or not os.path.lexists(self._config_file)
        return Look(
            flags=found,
            config=self._config_file,
            now_s=self._clock.monotonic(),
            boot=self._boot,
            rule=self.rule,
            readable=readable,
            count=count if fresh else None,
        )

    def count(self, action: CountOutcomes) -> bool:
        """Record outcomes, each once; False if another process holds the lock.

        OSError if they cannot be written.
        """
        try:
            with self._locked():
                for name, outcomes in action.outcomes.items():
                    self._add(name, outcomes)
                raw = json.dumps(action.marks, separators=(",", ":")).encode()
                replace_file(self._store.disk, self.folder / MARKS, raw, durable=False)
        except Busy:
            return False
        self._written, self._pending = action.marks, {}
        return True

    def record(self, name: str, failed: bool) -> Flag:
        """Record an outcome from the command line.

        Busy if other processes hold the lock all the time.
        """
        with self._locked(5.0):
            self._records[flag_file(name)] = self._add(name, [FlagOutcome(failed)])
        return self._judged(name, (self._switches.get(self._config_file) or {}).get(name))

    def _add(self, name: str, outcomes: Sequence[FlagOutcome]) -> Record:
        now_s, path = self._clock.monotonic(), self.folder / flag_file(name)
        record = load(self._store.disk.read(path) or b"", self._boot, now_s)
        if record is None or record.name != name:
            record = Record(name)
        self._renew(record)
        for told in outcomes:
            record.take(told, now_s, self.rule)
        replace_file(self._store.disk, path, record.dump(self._boot), durable=False)
        return record

    def _renew(self, record: Record) -> None:
        epoch = self._store.journal.memory.flags.get(record.name, {}).get("epoch", 0)
        if record.epoch < epoch:
            record.begin(epoch)

    @contextlib.contextmanager
    def _locked(self, limit_s: float = 0.25) -> Iterator[None]:
        """Hold the lock of the flag documents.

        The kernel releases it when its holder dies.
        """
        disk = self._store.disk
        make_folder(disk, self.folder)
        fd = disk.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            with file_lock(disk, fd, limit_s):
                yield
        finally:
            disk.close(fd)

    # -- what is new ---------------------------------------------------------------------------------------------

    def _hear(self, switches: Mapping[str, bool], now: datetime, leases: tuple[int, frozenset[str]]) -> None:
        """Collect outcomes of enabled flags from the logs, the journal and the leases."""
        if self._tails is None:
            self._begin()
        for source, tail in (self._tails or {}).items():
            for position, line in tail.read():
                event = outcome_table.in_log_line(line)
                if event is None or tail.known(position, event.at, line):
                    continue
                if self._counts(event.at, now, old=position <= tail.old):
                    for flag, failed in event.results:
                        if switches.get(flag) and not self._before_epoch(flag, event.at):
                            outcome = FlagOutcome(failed, source, position, event.subject)
                            self._pending.setdefault(flag, []).append(outcome)
        memory = self._store.journal.memory
        for key, number in memory.outcomes.items():
            seen, position = self._seen.get(key, (0, 0))
            self._seen[key] = number, position + max(0, number - seen)
            flag, failed = key
            if switches.get(flag):
                source = f"journal {'error' if failed else 'ok'}"
                new = range(max(position, self._seen[key][1] - self.rule.window), self._seen[key][1])
                self._pending.setdefault(flag, []).extend(FlagOutcome(failed, source, each + 1) for each in new)
        for _ in range(self._given_back(*leases)):
            self._returned += 1
            for flag, failed in outcome_table.results(outcome_table.Source.LEASE_FILES, "returned"):
                if switches.get(flag):
                    self._pending.setdefault(flag, []).append(FlagOutcome(failed, "locks", self._returned))
        self._pending = {flag: told for flag, told in self._pending.items() if told}

    def _before_epoch(self, flag: str, at: datetime | None) -> bool:
        """Whether the time is before the last switch of the flag.

        Only later outcomes count.
        """
        switched = self._store.journal.memory.flags.get(flag, {}).get("at")
        try:
            return at is not None and switched is not None and at <= from_iso(str(switched))
        except ValueError:
            return False

    def _counts(self, at: datetime | None, now: datetime, old: bool) -> bool:
        """Whether a log's line is new enough.

        A line without a time is, unless it is unknown for how long it has existed. A time in the future means a wrong
        clock.
        """
        if at is None:
            return not old
        return (now - at).total_seconds() <= self.rule.window_s

    def _begin(self) -> None:
        """Continue from the marks of the last daemon.

        Without marks, the journal's outcomes so far are history and do not count.
        """
        raw = load_object(read_or_none(self.folder / MARKS) or b"") or {}
        logs, seen = raw.get("logs"), raw.get("journal")
        self._tails = {
            source: Tail(self._store.paths.planning / path, _mark(logs.get(source) if isinstance(logs, dict) else None))
            for source, path in (("events", event_log.EVENT_LOG), ("metrics", event_log.METRICS))
        }
        self._seen = {key: (number, 0) for key, number in self._store.journal.memory.outcomes.items()}
        with contextlib.suppress(TypeError, ValueError):
            for flag, failed, number, position in seen or ():
                self._seen[str(flag), bool(failed)] = _number(number), _number(position)
            self._returned = _number(raw.get("returned", 0))
        self._written = self._marks()

    def _marks(self) -> dict[str, Any]:
        logs = {source: tail.mark for source, tail in (self._tails or {}).items()}
        return {
            "version": 1,
            "logs": {
                source: {name: getattr(mark, name) for name in Mark.__slots__} for source, mark in logs.items() if mark
            },
            "journal": [[flag, failed, *told] for (flag, failed), told in self._seen.items()],
            "returned": self._returned,
        }

    def _leases_there(self) -> tuple[int, frozenset[str]]:
        folder = self._store.paths.planning / ".locks"
        try:
            stamp = os.stat(folder).st_mtime_ns
            if self._leases is not None and self._leases[0] == stamp:
                return self._leases[:2]
            return stamp, frozenset(name for name in os.listdir(folder) if name.endswith(".lease"))
        except OSError:
            return 0, frozenset()

    def _given_back(self, stamp: int, there: frozenset[str]) -> int:
        """The number of leases gone since the last observation that their holders gave back.

        Leases that the supervisor ended are not counted.
        """
        before, releases = self._leases, self._store.journal.memory.releases
        self._leases = stamp, there, releases
        if before is None:
            return 0
        return max(0, len(before[1] - there) - max(0, releases - before[2]))

    # -- the state of each flag ----------------------------------------------------------------------------------

    def _judged(self, name: str, enabled: bool | None) -> Flag:
        now_s, rule = self._clock.monotonic(), self.rule
        record = self._records.get(flag_file(name)) or Record(name)
        if name in self._pending:
            record = record.copy()
        self._renew(record)
        for told in self._pending.get(name, ()):
            record.take(told, now_s, rule)
        portions = record.trail.in_window(now_s, rule)
        return Flag(
            name=name,
            enabled=enabled,
            errors=sum(each.errors for each in portions),
            samples=sum(each.samples for each in portions),
            length_s=now_s - portions[0].since_s if portions else 0.0,
            rates=tuple(each.errors / each.samples for each in portions),
            crossed=record.verdict(now_s, rule),
            off=self._off(name, now_s),
        )

    def _off(self, name: str, now_s: float) -> Off | None:
        told = self._store.journal.memory.flags.get(name)
        if told is None or not told["off"]:
            self._off_since.pop(name, None)
            return None
        left_s, every_s = None, self._config().flags.probation_s
        if every_s and told["times"]:
            known = told.get("boot") == self._boot and "since_s" in told
            since_s = told["since_s"] if known else self._off_since.setdefault(name, now_s)
            left_s = max(0.0, since_s + every_s * 2.0 ** min(told["times"] - 1, 10) - now_s)
        return Off(by=str(told["by"]), at=str(told["at"]), reason=str(told["reason"]), left_s=left_s)


def _mark(raw: object) -> Mark | None:
    try:
        mark = Mark(**raw) if isinstance(raw, dict) else None
    except TypeError:
        return None
    sound = mark is not None and type(mark.base) is int and all(
        type(number) is int and number >= 0 for number in (mark.offset, mark.length)
    ) and isinstance(mark.newest, str | None) and isinstance(mark.of_newest, list | tuple)  # fmt: skip
    return replace(mark, of_newest=tuple(map(str, mark.of_newest))) if mark is not None and sound else None
