"""The stored state of each feature flag: a small document in the state folder, and the read positions beside it.

A document does not hold the outcomes, only the state that the test in ``failure_rate`` needs, and the position to
which each source was counted, so that every outcome counts once. The documents are not flushed: a power cut may lose
some outcomes, which only delays a decision. None is counted twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple
from urllib.parse import quote

import msgspec

from yolo_supervisor.clock import Clock
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.fs.changes import EVERY, DirectoryScanner
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.inventory.log_tail import LogPosition
from yolo_supervisor.policy.failure_rate import Bucket, EProcess, Rule
from yolo_supervisor.store.atomic import make_folder, write_atomic
from yolo_supervisor.store.disk import FILE_MODE
from yolo_supervisor.store.locks import file_lock
from yolo_supervisor.store.store import Store

FOLDER, POSITIONS, LOCK = "flags", "marks", "lock"

Count = Annotated[int, msgspec.Meta(ge=0)]


class FlagOutcome(NamedTuple):
    """One outcome of what a flag switches on. ``source`` is empty for ``flag record``, which has no positions."""

    failed: bool
    source: str = ""
    position: int = 0
    """The position in the source at which the outcome ends."""
    subject: str = ""
    """The thing that succeeded or failed. If it fails again (at a retry, say), that is not another outcome."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The moment at which the evidence became strong enough, and its numbers."""

    since_s: float
    total: int
    """The number of outcomes that had ever been counted."""
    errors: int
    samples: int
    e_value: float


@dataclass(slots=True)
class FlagRecord:
    """The recorded state of one flag."""

    name: str
    epoch: int = 0
    e_process: EProcess = field(default_factory=EProcess)
    detection: Detection | None = None
    total: int = 0
    """The number of outcomes that were ever counted."""
    failing: str = ""
    """The subject of the newest outcome if that is a failure."""
    counted: dict[str, int] = field(default_factory=dict)
    """The position to which each source was counted."""

    def start_epoch(self, epoch: int) -> None:
        """Drop the outcomes, but not the positions to which they were counted."""
        self.epoch, self.e_process, self.detection, self.failing = epoch, EProcess(), None, ""

    def add(self, outcome: FlagOutcome, now_s: float, rule: Rule) -> None:
        """Count an outcome, unless it was counted before."""
        if outcome.source:
            if outcome.position <= self.counted.get(outcome.source, 0):
                return
            self.counted[outcome.source] = outcome.position
        repeated = outcome.failed and outcome.subject != "" and outcome.subject == self.failing
        self.failing = outcome.subject if outcome.failed else ""
        if repeated:
            return
        self.total += 1
        self.e_process.add(outcome.failed, now_s, rule)
        if outcome.failed and self.detected(now_s, rule) is None:
            evidence = self.e_process.e_value(rule)
            if evidence.value >= 1 / rule.alpha:
                self.detection = Detection(now_s, self.total, evidence.errors, evidence.samples, evidence.value)

    def detected(self, now_s: float, rule: Rule) -> Detection | None:
        """The detection, as long as its evidence is in the window."""
        found = self.detection
        if found is None or now_s - found.since_s > rule.window_s or self.total - found.total > rule.window:
            return None
        return found

    def copy(self) -> FlagRecord:
        e_process = EProcess(self.e_process.started, (replace(bucket) for bucket in self.e_process.buckets))
        return replace(self, e_process=e_process, counted=dict(self.counted))


class _Document(msgspec.Struct, frozen=True):
    """A flag's document as it is on the disk."""

    flag: Annotated[str, msgspec.Meta(min_length=1)]
    epoch: Count
    boot: str
    """The boot to which its times belong."""
    begun: Count
    """The number of buckets that were ever started."""
    portions: list[tuple[Annotated[int, msgspec.Meta(ge=1)], float, Count, Count]]
    """The fields of each bucket."""
    crossed: tuple[float, Count, Count, Count, float] | None
    """The fields of the detection."""
    ever: Count
    failing: str
    counted: dict[str, Count]


def dump_record(record: FlagRecord, boot: str) -> bytes:
    found = record.detection
    document = _Document(
        flag=record.name,
        epoch=record.epoch,
        boot=boot,
        begun=record.e_process.started,
        portions=[(b.number, b.since_s, b.samples, b.errors) for b in record.e_process.buckets],
        crossed=(found.since_s, found.total, found.errors, found.samples, found.e_value) if found else None,
        ever=record.total,
        failing=record.failing,
        counted=record.counted,
    )
    return _dump(document)


def load_record(data: bytes, boot: str, now_s: float) -> FlagRecord | None:
    """The record in a document, or None if it cannot be read.

    Times of another boot's clock have no meaning in this boot, so its outcomes are dropped.
    """
    try:
        document = msgspec.convert(load_object(data), _Document)
    except (msgspec.ValidationError, UnicodeEncodeError):  # a lone surrogate in a key
        return None
    record = FlagRecord(
        document.flag,
        document.epoch,
        EProcess(document.begun),
        total=document.ever,
        failing=document.failing,
        counted=document.counted,
    )
    if document.boot == boot:
        buckets = [Bucket(*values) for values in document.portions]
        detection = Detection(*document.crossed) if document.crossed else None
        times = [bucket.since_s for bucket in buckets] + ([detection.since_s] if detection else [])
        if not all(0 <= since_s <= now_s + 1 for since_s in times):
            return None
        if any(bucket.errors > bucket.samples or bucket.number > document.begun for bucket in buckets):
            return None
        record.e_process, record.detection = EProcess(document.begun, buckets), detection
    return record


def flag_file(name: str) -> str:
    """The file name of a flag's document, unique for each flag name."""
    quoted = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")  # a tilde marks a shortened name
    if len(quoted) > 150:
        quoted = quoted[:120] + "~" + hashlib.sha256(quoted.encode()).hexdigest()[:20]
    return f"{quoted}.json"


class ReadPositions(msgspec.Struct, frozen=True):
    """The read position of each source when its outcomes were last counted."""

    logs: dict[str, LogPosition] = {}
    journal: list[tuple[str, bool, Count, Count]] = []
    """For each flag and result, the number of outcomes in the journal and the position of that number."""
    returned: Count = 0
    """The number of leases that their holders returned."""


def load_positions(data: bytes) -> ReadPositions | None:
    """The positions in a document, or None if it cannot be read."""
    try:
        return msgspec.convert(load_object(data), ReadPositions)
    except (msgspec.ValidationError, UnicodeEncodeError):  # a lone surrogate in a key
        return None


def _dump(document: msgspec.Struct) -> bytes:
    return json.dumps({"version": 1, **msgspec.to_builtins(document)}, separators=(",", ":")).encode()


class FlagRecords:
    """The documents of all flags of a project. Several processes write them, one at a time.

    ``boot`` identifies the boot in which monotonic times are comparable.
    """

    def __init__(self, store: Store, clock: Clock, boot: str) -> None:
        self.folder = store.paths.folder / FOLDER
        self._store = store
        self._clock = clock
        self._boot = boot
        self._files = DirectoryScanner(self.folder, lambda name: name.endswith(".json"))
        self._records: dict[str, FlagRecord] = {}
        """The records by the names of their documents."""

    def refresh(self) -> None:
        """Read the documents that were changed."""
        for name in self._files.look(quiet=EVERY):
            record = load_record(read_or_none(self.folder / name) or b"", self._boot, self._clock.monotonic())
            if record is None or flag_file(record.name) != name:
                self._records.pop(name, None)
            else:
                self._records[name] = record

    def names(self) -> set[str]:
        """The flags that have a document."""
        return {record.name for record in self._records.values()}

    def with_outcomes(self, name: str, outcomes: Sequence[FlagOutcome], rule: Rule) -> FlagRecord:
        """The record of a flag in its present epoch, with these outcomes added; nothing is stored."""
        record = self._records.get(flag_file(name)) or FlagRecord(name)
        if outcomes:
            record = record.copy()
        return self._updated(record, outcomes, rule)

    def store_outcomes(self, name: str, outcomes: Sequence[FlagOutcome], rule: Rule) -> None:
        """Add outcomes to a flag's document; the lock has to be held. OSError if it cannot be read or written."""
        disk, path = self._store.disk, self.folder / flag_file(name)
        record = load_record(disk.read(path) or b"", self._boot, self._clock.monotonic())
        if record is None or record.name != name:
            record = FlagRecord(name)
        record = self._updated(record, outcomes, rule)
        write_atomic(disk, path, dump_record(record, self._boot), durable=False)
        self._records[path.name] = record

    def load_positions(self) -> ReadPositions:
        """The stored read positions; none if there are none, or they cannot be read."""
        return load_positions(read_or_none(self.folder / POSITIONS) or b"") or ReadPositions()

    def store_positions(self, positions: ReadPositions) -> None:
        """Replace the stored read positions; the lock has to be held. OSError if they cannot be written."""
        write_atomic(self._store.disk, self.folder / POSITIONS, _dump(positions), durable=False)

    @contextlib.contextmanager
    def locked(self, limit_s: float) -> Iterator[None]:
        """Hold the lock of the documents; ``Busy`` if other processes hold it for ``limit_s`` seconds."""
        disk = self._store.disk
        make_folder(disk, self.folder)
        path = self.folder / LOCK
        fd = disk.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            with file_lock(disk, fd, path, limit_s):
                yield
        finally:
            disk.close(fd)

    def _updated(self, record: FlagRecord, outcomes: Sequence[FlagOutcome], rule: Rule) -> FlagRecord:
        switch = self._store.index.flags.get(record.name)
        if switch is not None and record.epoch < switch.epoch:
            record.start_epoch(switch.epoch)
        now_s = self._clock.monotonic()
        for outcome in outcomes:
            record.add(outcome, now_s, rule)
        return record
