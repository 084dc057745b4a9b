"""The kinds of lines of the journal, and how a line is written and read.

A line is one JSON object. Its first keys are ``seq`` and ``line`` (the kind), its last one is ``crc``, the CRC-32 of
all before it, so that ``tail`` and ``jq`` read it as it is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import msgspec

from yolo_supervisor.actions.base import Action, WriteMode
from yolo_supervisor.clock import Instant
from yolo_supervisor.models import ProcessId, iso

_BEGIN = b'{"seq":'
_KIND = b',"line":"'
_CRC = b',"crc":"'


class Line(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag=""):
    """A line of the journal. One that is of no kind below has a form that this program does not know."""

    seq: int = 0
    """Its number; 0 until it is written."""


class Entry(Line, frozen=True, kw_only=True, tag="entry"):
    """A decision or a deed, in the keys that ``history --json`` promises."""

    at: str
    kind: str
    key: str
    action: str
    by: str
    reason: str
    evidence: dict[str, Any]
    project: str


class Write(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A promised change of a document: digests before and after, and what recovery needs to make it."""

    path: str
    before: str | None
    after: str | None
    replay: bool
    """Whether recovery may make the change."""
    stamp: tuple[int, int] | None = None
    """Inode and time of the document that the promise is about."""
    mode: WriteMode = WriteMode.REPLACE
    lock: tuple[str, float] | None = None
    """The lock folder of the document's owners, and after how many seconds such a lock is stale."""
    content: str | None = None
    content_base64: str | None = None
    content_in: str | None = None
    """The name of the content among the good versions, where it is too large for a line."""
    removed: str | None = None
    removed_base64: str | None = None
    removed_in: str | None = None
    """The name of the removed content in the quarantine, where it is too large for a line."""


class Promise(Entry, frozen=True, kw_only=True, tag="promise"):
    """An entry about a document that is going to be changed."""

    write: Write


class Begun(Entry, frozen=True, kw_only=True, tag="begun"):
    """The beginning of an operation outside the disk, such as a termination."""

    begun: bool = True


class Ended(Entry, frozen=True, kw_only=True, tag="ended"):
    """The entry that ends an operation; ``done`` is the number of its beginning."""

    done: int


class Done(Line, frozen=True, kw_only=True, tag="done", omit_defaults=True):
    """The mark of a promise that was kept, or an operation that was done."""

    done: int
    why: str | None = None


class Failed(Line, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """The mark of a promise that was not kept, or an operation that was not done."""

    failed: int
    why: str | None = None


class Version(msgspec.Struct, frozen=True, array_like=True):
    """A content of a document."""

    path: str
    digest: str


class GoodVersion(Line, frozen=True, kw_only=True, tag="good"):
    """A content of a critical file that could be parsed."""

    good: Version


class SignOfLife(msgspec.Struct, frozen=True, array_like=True):
    """A heartbeat: of which claim, and when."""

    task: str
    token: int
    since_s: float
    boot: str


class Heartbeat(Line, frozen=True, kw_only=True, tag="beat"):
    """A heartbeat of the holder of a claim."""

    beat: SignOfLife


class ClaimState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The newest claim of a task that was made through the store."""

    token: int
    owner: str | None
    live: bool
    """Whether the task was not given back since."""
    since_s: float | None = None
    boot: str | None = None

    @property
    def seen(self) -> Instant | None:
        """The last sign of life of its owner."""
        return _instant(self.boot, self.since_s)


class LeaseState(msgspec.Struct, frozen=True, kw_only=True):
    """A lease that was granted through the store and not released."""

    digest: str = msgspec.field(name="judged")
    """The digest of its file: a file with another content is another lease."""
    since_s: float
    boot: str
    token: int

    @property
    def granted(self) -> Instant:
        """The moment at which it was granted or renewed."""
        return Instant(self.boot, self.since_s)


class FailureState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The newest failed attempt of a task."""

    cause: str | None = None
    since_s: float | None = None
    boot: str | None = None
    reports: tuple[str, ...] = ()
    """The crash reports of the attempts so far, the oldest first."""
    clean_ends: int = 0
    """The number of agents that ended in order without finishing the task: no failures, and not charged."""

    @property
    def failed(self) -> Instant | None:
        """The moment at which the task was requeued."""
        return _instant(self.boot, self.since_s)


class FlagState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The newest switch of a feature flag."""

    epoch: int
    """The number of its line: outcomes before it do not count."""
    off: bool
    times: int
    """The number of times in a row that the flag was disabled for its errors."""
    by: str
    at: str
    reason: str
    errors: int | None = None
    samples: int | None = None
    since_s: float | None = None
    boot: str | None = None

    @property
    def switched(self) -> Instant | None:
        return _instant(self.boot, self.since_s)


class StartState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One start of an agent's client with its conversation."""

    seq: int
    """The number of its beginning."""
    record: str
    """The record of the dead agent that it brings back."""
    session: str | None = None
    cause: str | None = None
    """The cause of that agent's death."""
    answered_at: str | None = None
    """The time of the model's last answer before it, in its transcript."""
    at: str = ""
    """The wall time of its beginning: the moment below counts in one boot only."""
    since_s: float | None = None
    boot: str | None = None
    result: str = ""
    """Empty while it is under way; ``up`` with a process, else the code of what stopped it."""
    pid: int | None = None
    started: int | None = None
    resumed: bool = False
    """Whether the model has answered since."""

    @property
    def began(self) -> Instant | None:
        return _instant(self.boot, self.since_s)

    @property
    def process(self) -> ProcessId | None:
        """The process that it has started; None without one."""
        if self.boot is None or self.pid is None or self.started is None:
            return None
        return ProcessId(self.pid, self.started, self.boot)


class RestartState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The starts of one agent, and what a person has decided about further ones."""

    starts: tuple[StartState, ...] = ()
    """The newest ones since the last reset, the oldest first."""
    held: bool = False
    """Whether a person wants no further start."""
    given_up: str | None = None
    """The code of the reason why a person is needed; None if none is."""
    reason: str = ""
    """The reason, for people."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The index as a segment's first line carries it on. The names on the disk are older than those in the index."""

    pending: tuple[Promise | Begun, ...] = ()
    requeues: dict[str, int] = {}
    good: dict[str, list[str]] = {}
    leases: dict[str, LeaseState] = msgspec.field(name="lent", default_factory=dict)
    claims: dict[str, ClaimState] = {}
    failures: dict[str, FailureState] = {}
    dead_letters: dict[str, str] = msgspec.field(name="set_aside", default_factory=dict)
    flags: dict[str, FlagState] = {}
    outcomes: tuple[tuple[str, bool, int], ...] = ()
    releases: int = 0
    agents: dict[str, dict[str, int]] = {}
    left: dict[str, list[str]] = {}
    restarts: dict[str, RestartState] = {}
    exits: dict[str, dict[str, tuple[int | None, int | None]]] = {}


class CheckpointLine(Line, frozen=True, kw_only=True, tag="checkpoint"):
    """The first line of a segment."""

    checkpoint: Checkpoint


AnyLine = Entry | Promise | Begun | Ended | Done | Failed | GoodVersion | Heartbeat | CheckpointLine

_CLASSES: dict[object, type[Line]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyLine)}
_DECODER = msgspec.json.Decoder(AnyLine)


def _instant(boot: str | None, since_s: float | None) -> Instant | None:
    return Instant(boot, since_s) if boot is not None and since_s is not None else None


def entry(action: Action, by: str, at: datetime, project: Path, prefix: str = "") -> Entry:
    """The entry of an action. ``prefix`` is ``would_`` in observe mode."""
    return Entry(
        at=iso(at),
        kind=action.kind,
        key=action.key,
        action=prefix + action.verb,
        by=by,
        reason=action.reason,
        evidence=dict(action.evidence),
        project=str(project),
    )


def fields(entry: Entry) -> dict[str, Any]:
    """The fields that every entry has, by name, without those of its kind."""
    return {name: getattr(entry, name) for name in Entry.__struct_fields__}


def ended(begun: Entry, seq: int, evidence: Mapping[str, Any]) -> Ended:
    """The end of the operation that began with line ``seq``, with further evidence."""
    return Ended(**{**fields(begun), "evidence": {**begun.evidence, **evidence}}, done=seq)


def dump(line: Line) -> bytes:
    """The line as it is in the file."""
    return seal({"seq": line.seq, **msgspec.to_builtins(line, enc_hook=str)})


def load(data: bytes) -> Line | None:
    """The line (without its newline); None if it is not exactly what a program of ours has written.

    A ``Line`` of no kind if its form is unknown.
    """
    body = unseal(data)
    if body is None:
        return None
    if not body.startswith(_KIND, body.find(b",")):
        return _load_other(body)
    try:
        line: AnyLine = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _load_other(body)
    return line


def _load_other(body: bytes) -> Line | None:
    """A line without its kind, or with what strict JSON does not allow (a file name that is no UTF-8, say)."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict) or type(raw.get("seq")) is not int:
        return None
    try:
        raw = raw if "line" in raw else _with_kind(raw)
        return msgspec.convert(raw, _CLASSES[raw["line"]])
    except (msgspec.ValidationError, UnicodeEncodeError, AttributeError, KeyError, TypeError):
        return Line(seq=raw["seq"])


def _with_kind(raw: dict[str, Any]) -> dict[str, Any]:
    """The line of a version that did not write its kind, such as 0.1.0: the keys tell it."""
    if "action" in raw:
        kind = "ended" if "done" in raw else "begun" if "begun" in raw else "promise" if "write" in raw else "entry"
    else:
        kind = next((kind for kind in ("checkpoint", "done", "failed", "good", "beat") if kind in raw), "")
    if kind == "promise":  # 0.1.0 did not write ``replay``, and did not replay changes for a silent task
        raw["write"] = {"replay": "quiet_s" not in raw["evidence"], **raw["write"]}
    if kind == "checkpoint":
        raw["checkpoint"]["pending"] = [_with_kind(line) for line in raw["checkpoint"]["pending"]]
    return {**raw, "line": kind}


def load_last(data: bytes) -> tuple[Line | None, int]:
    """The line at the end of the data, and how many bytes before it cannot be read: something torn has no newline."""
    at = 0
    while at >= 0:
        if (line := load(data[at:])) is not None:
            return line, at
        at = data.find(_BEGIN, at + 1)
    return None, len(data) + 1


def seal(record: dict[str, Any]) -> bytes:
    """The record with its checksum, as a line."""
    body = json.dumps(record, separators=(",", ":"), default=str).encode()[:-1]
    return body + _CRC + b'%08x"}\n' % zlib.crc32(body)


def unseal(line: bytes) -> bytes | None:
    """The JSON in a line (without its newline); None if its checksum is wrong."""
    body, mark, tail = line.rpartition(_CRC)
    if not mark or len(tail) != 10 or tail[8:] != b'"}' or tail[:8] != b"%08x" % zlib.crc32(body):
        return None
    return body + b"}"
