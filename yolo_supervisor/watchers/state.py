"""Restores broken critical files, after a crash or a torn write, from copies that it keeps."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fnmatch
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from yolo_supervisor.actions.base import AlertCode, Escalate
from yolo_supervisor.actions.state import Restore, SaveVersion, cut_tail, quarantine
from yolo_supervisor.clock import Clock, in_turns, until_next
from yolo_supervisor.config import Config
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.formats.plugin import event_log, execution_state, phases
from yolo_supervisor.formats.plugin import snapshots as plugin_snapshots
from yolo_supervisor.fs.changes import DirectoryScanner, names
from yolo_supervisor.fs.read import LIMIT, LOG_LIMIT, digest, read, read_or_none
from yolo_supervisor.inventory.agents import AgentRegistry
from yolo_supervisor.inventory.leases import readable_leases
from yolo_supervisor.inventory.snapshots import Snapshots, phase_of
from yolo_supervisor.models import FlawCode, RestoredFrom
from yolo_supervisor.policy import file_integrity
from yolo_supervisor.policy.file_integrity import Flaw
from yolo_supervisor.store.paths import quarantine_file
from yolo_supervisor.store.state_folder import Undecided, UndecidedCode, undecided
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.git_index import is_unmerged
from yolo_supervisor.system.git_layout import root_of
from yolo_supervisor.system.process_backend import ProcessBackend, file_id
from yolo_supervisor.watchers.base import Remediation

WRITER_S = 30.0
"""The longest time for which a broken file is left to a process that has it open for writing, in seconds."""

DIFF_LINES = 40
"""The largest part of a restoration's diff that is reported."""

KEEP_LOG = 2**20
"""A log larger than this, in bytes, is not copied whole each time it grows."""


@dataclass(frozen=True, kw_only=True)
class Cure:
    """A content that may replace a broken one: its source, and the parts that are only inferred."""

    data: bytes | None
    source: RestoredFrom
    text: str
    """The source in words for people."""
    inferred: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A critical file that has been broken for so long that it is not a write in progress."""

    path: Path
    key: str
    data: bytes
    flaw: Flaw
    cures: tuple[Cure, ...] = ()
    """The candidates, the best first."""
    writer: int | None = None
    """The process that has had it open for writing for ``WRITER_S``."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A critical file with new, valid content.

    ``snap`` are the actions that save it as a snapshot.
    """

    path: Path
    key: str
    data: bytes
    snap: Remediation = ()


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """An unreadable critical file: ``code`` is the name of the errno, ``text`` is for people."""

    key: str
    code: str | None
    text: str


@dataclass(frozen=True, kw_only=True)
class StateObservation:
    broken: tuple[Broken, ...] = ()
    sound: tuple[Sound, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    """The files that cannot be read now."""
    undecided: tuple[Undecided, ...] = ()
    """The older state folders that a person has to decide about."""
    ignored: tuple[str, ...] = ()
    """The settings of the project's own file that are ignored until the user trusts it."""
    settings_error: str = ""
    """The reason why the project's own file, which has changed since it was trusted, is not valid."""


def decide(observation: StateObservation, copies: Path, *, by_hand: bool = False) -> list[Remediation]:
    """Keep new good versions, and quarantine and restore broken files.

    A person is asked where no restoration is certain. A content that a person may mean as it is (``PERSONS_OWN``) is
    only rewritten for strict readers, and only ``by_hand``.
    """
    remediations: list[Remediation] = [
        (*sound.snap, SaveVersion(key=sound.key, path=sound.path, data=sound.data, reason="it is whole"))
        for sound in observation.sound
    ]
    remediations += [_repair(broken, copies, by_hand=by_hand) for broken in observation.broken]
    remediations += [
        (
            Escalate(
                kind="state",
                code=AlertCode.FILE_UNREADABLE,
                detail=file.code,
                key=file.key,
                reason=f"it cannot be read: {file.text}: repair it or remove it",
            ),
        )
        for file in observation.unreadable
    ]
    remediations += [(_ask_about(older),) for older in observation.undecided]
    if observation.ignored or observation.settings_error:
        names = ", ".join(observation.ignored)
        reason = f"it is not trusted, so these settings are ignored: {names}. Read it, then: yolo-supervisor trust"
        if observation.settings_error:
            reason = f"it was changed and is not valid, so what was trusted is in force: {observation.settings_error}"
        code = AlertCode.SETTINGS_UNTRUSTED
        remediations.append((Escalate(kind="state", code=code, detail=names, key="supervisor.toml", reason=reason),))
    return remediations


def _ask_about(older: Undecided) -> Escalate:
    do = "yolo-supervisor state adopt takes it up, state adopt --dismiss leaves it aside"
    if older.code is UndecidedCode.FOREIGN:
        code = AlertCode.STATE_FOLDER_FOREIGN
        reason = f"{older.folder} was not written on this machine, so nothing in it is used: {do}"
    else:
        code = AlertCode.STATE_FOLDER_OFFERED
        reason = f"another project was at this path, and its state is in {older.folder}: {do}"
    return Escalate(kind="state", code=code, key=older.folder.name, reason=reason)


def repair_of(broken: Broken) -> int | Cure | None:
    """The size to which the file is cut, or the content that replaces it.

    None if only a person can repair it. Whole lines before a half-written one are kept. A file without a whole line is
    restored, if there is a source.
    """
    whole = file_integrity.torn_at(broken.data) if broken.path.suffix == ".jsonl" else None
    if whole or (whole is not None and not broken.cures):
        return whole
    return broken.cures[0] if broken.cures else None


def _repair(broken: Broken, copies: Path, *, by_hand: bool) -> Remediation:
    if broken.flaw.code in file_integrity.PERSONS_OWN and not (by_hand and broken.cures):
        return (_ask_about_content(broken),)
    expected = str(digest(broken.data))
    cure = repair_of(broken)
    if isinstance(cure, int):
        aside = _aside(broken, broken.data[cure:], copies)
        cut = cut_tail(
            key=broken.key,
            path=broken.path,
            expected_digest=expected,
            data=broken.data[:cure],
            reason=broken.flaw.text,
            evidence={"cut_bytes": len(broken.data) - cure, "kept_bytes": cure},
        )
        return (*aside, cut)
    aside = _aside(broken, broken.data, copies)
    if cure is None:
        reason = f"{broken.flaw.text}, and there is nothing to restore it from: repair it or remove it"
        code, flaw = AlertCode.FILE_NOT_RESTORABLE, broken.flaw.code
        return (*aside, Escalate(kind="state", code=code, detail=flaw, key=broken.key, reason=reason))
    evidence: dict[str, Any] = {"source": cure.text, "restored_from": cure.source, "flaw": broken.flaw.text,
                                "diff": _diff(broken.data, cure.data)}  # fmt: skip
    if broken.writer is not None:
        evidence["open_for_writing_by"] = broken.writer
    if cure.inferred:
        evidence["inferred"] = list(cure.inferred)
    reason = f"{broken.flaw.text}: {'removed' if cure.data is None else 'restored from'} {cure.text}"
    return (
        *aside,
        Restore(
            key=broken.key,
            path=broken.path,
            expected_digest=expected,
            data=cure.data,
            flaw=broken.flaw.code,
            reason=reason,
            evidence=evidence,
        ),
    )


def _ask_about_content(broken: Broken) -> Escalate:
    if broken.flaw.code is FlawCode.UNMERGED:
        do = "resolve it, then git add the file"
    else:
        do = "yolo-supervisor state recover rewrites it" if broken.cures else "correct it by hand"
    code = AlertCode.FILE_NOT_STRICT if broken.flaw.code is not FlawCode.UNMERGED else AlertCode.FILE_UNMERGED
    reason = f"{broken.flaw.text}: {do}"
    return Escalate(kind="state", code=code, detail=broken.flaw.code, key=broken.key, reason=reason)


def _aside(broken: Broken, data: bytes, copies: Path) -> Remediation:
    """The copy of removed content.

    An empty file has nothing to copy.
    """
    if not data:
        return ()
    path = quarantine_file(copies, broken.path.name, data)
    return (
        quarantine(
            key=broken.key,
            path=path,
            data=data,
            reason=f"{broken.flaw.text}, and unchanged in a second check",
            evidence={"file": str(broken.path), "copy": f"quarantine/{path.name}", "bytes": len(data)},
        ),
    )


def _diff(before: bytes, after: bytes | None) -> list[str]:
    """The changes of a restoration as a unified diff, cut if long."""
    old, new = (((data or b"").decode("utf-8", "replace")[:65536]).splitlines() for data in (before, after))
    lines = [line[:200] for line in difflib.unified_diff(old, new, "broken", "restored", n=1, lineterm="")]
    more = len(lines) - DIFF_LINES
    return lines if more <= 0 else [*lines[:DIFF_LINES], f"… and {more} lines more"]


def _is_file(path: Path) -> bool:
    """Whether the path is a regular file.

    A link is not.
    """
    return path.is_file() and not path.is_symlink()


def meaning(state: Mapping[str, Any]) -> tuple[object, ...]:
    """The parts of an execution state that cause a snapshot when they change."""
    plans = state.get("plans")
    listed = [plan for plan in plans if isinstance(plan, dict)] if isinstance(plans, list) else []
    return (
        str(state.get("phase")),
        str(state.get("status")),
        tuple((str(plan.get("id")), str(plan.get("status"))) for plan in listed),
    )


@dataclass
class _Known:
    """The remembered state of one file: its last examined version, and since when it has been broken unchanged."""

    stamp: tuple[int, int, int]
    since_s: float
    flaw: Flaw | None = None
    digest: str | None = None
    """The digest of a content that is to be kept."""


@dataclass(slots=True)
class _Look:
    """The results of one look so far."""

    broken: list[Broken] = field(default_factory=list)
    sound: list[Sound] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)
    size: int = 0
    """The bytes that are to be written because of it."""


class StateWatcher:
    name = "state"

    def __init__(
        self, config: Config, registry: AgentRegistry, store: Store, clock: Clock, backend: ProcessBackend
    ) -> None:
        self._backend = backend
        self.config = config
        """The configuration in force: a reload replaces it."""
        self._registry = registry
        self._store = store
        self._clock = clock
        self._planning = store.paths.planning
        self._snapshots = Snapshots(store.paths)
        self._known: dict[Path, _Known] = {}
        self._folders: dict[tuple[Path, str], DirectoryScanner] = {}
        self._doubtful: dict[Path, None] = {}
        """The files examined again though unchanged: broken ones, unreadable ones, those to be kept."""
        self._unsettled = False

    @property
    def interval_s(self) -> float:
        return self.config.state.interval_s

    def rest_s(self) -> float:
        """A short pause while a broken file may be a write in progress."""
        return self.config.state.settle_s if self._unsettled else until_next(self.interval_s)

    async def tick(self, now: datetime) -> Sequence[Remediation]:
        look = _Look()
        async for _ in in_turns(self._examine(look, now, self.config.state.settle_s), self._clock):
            pass
        return decide(self._observation(look), self._store.paths.quarantine)

    def observe(self, now: datetime, settle_s: float) -> StateObservation:
        """All critical files that changed, or were broken for ``settle_s`` seconds without a change."""
        look = _Look()
        for _ in self._examine(look, now, settle_s):
            pass
        return self._observation(look)

    def _examine(self, look: _Look, now: datetime, settle_s: float) -> Iterator[None]:
        """Examine the critical files that changed or were broken, one in each step."""
        self._unsettled = False
        self._doubtful.update(dict.fromkeys(self._changed()))
        for path in list(self._doubtful):
            yield
            if look.size > LOG_LIMIT:
                self._unsettled = True
                return  # the next look goes on
            key = str(path.relative_to(self._planning))
            try:
                examined = self._judge(path, key)
            except OSError as error:
                self._known.pop(path, None)  # it is read again in each tick: a mode can change without a write
                code = errno.errorcode.get(error.errno) if error.errno is not None else None
                look.unreadable.append(Unreadable(key=key, code=code, text=error.strerror or str(error)))
                continue
            if examined is None:
                del self._doubtful[path]
                continue
            yield
            data, known = examined
            if known.flaw is None:
                if self.config.mode == "observe":
                    continue
                look.size += len(data)
                look.sound.append(Sound(path=path, key=key, data=data, snap=self._snap(path, data, now)))
            elif self._clock.awake() - known.since_s < settle_s:
                self._unsettled = True
            else:
                flaw = self._conflict(path, data) or known.flaw
                writer = self._writer(path) if flaw.code not in file_integrity.PERSONS_OWN else None
                if writer is not None and self._clock.awake() - known.since_s < WRITER_S:
                    self._unsettled = True
                    continue
                cures = tuple(self._cures(path, key, data, flaw, now))
                look.size += len(data) if cures else 0
                look.broken.append(Broken(path=path, key=key, data=data, flaw=flaw, cures=cures, writer=writer))

    def _observation(self, look: _Look) -> StateObservation:
        return StateObservation(
            broken=tuple(look.broken),
            sound=tuple(look.sound),
            unreadable=tuple(look.unreadable),
            undecided=tuple(undecided(self._store.disk, self._store.paths)),
            ignored=self.config.trust.ignored,
            settings_error=self.config.trust.error,
        )

    def _conflict(self, path: Path, data: bytes) -> Flaw | None:
        """The flaw of a file in a merge conflict. If git does not answer, the markers decide."""
        if root_of(self._planning.parent) is None:
            return None
        unmerged = is_unmerged(path)
        if unmerged or (unmerged is None and b"<<<<<<< " in data):
            return Flaw(FlawCode.UNMERGED, "git has left a merge conflict in it")
        return None

    def _writer(self, path: Path) -> int | None:
        """The pid of a process that has the file open for writing, or None."""
        try:
            found = file_id(path)
        except OSError:
            return None
        for pid in self._backend.pids():
            with contextlib.suppress(OSError):
                if pid != os.getpid() and self._backend.writes_to(pid, path, found):
                    return pid
        return None

    def folders(self) -> set[Path]:
        """The folders that contain critical files, existing or not."""
        return {(self._planning / pattern).parent for pattern in self.config.state.files}

    def files(self) -> Iterator[Path]:
        """The critical files that exist."""
        for inside, pattern in self._patterns():
            matching = fnmatch.filter(names(inside), pattern) if "*" in pattern else [pattern]
            yield from (path for name in matching if _is_file(path := inside / name))

    def _changed(self) -> Iterator[Path]:
        """The critical files, removed ones included, that may have changed since the last tick."""
        for inside, pattern in self._patterns():
            if "*" not in pattern:
                yield inside / pattern
                continue
            if (inside, pattern) not in self._folders:
                self._folders[inside, pattern] = DirectoryScanner(
                    inside, functools.partial(fnmatch.fnmatchcase, pat=pattern)
                )
            with contextlib.suppress(OSError):
                yield from (inside / name for name in self._folders[inside, pattern].look())

    def _patterns(self) -> Iterator[tuple[Path, str]]:
        """The folders and name patterns of critical files.

        A link does not count as a folder: its target may be anywhere.
        """
        for name in self.config.state.files:
            folder, _, pattern = name.rpartition("/")
            if not (self._planning / folder).is_symlink():
                yield self._planning / folder, pattern

    def _judge(self, path: Path, key: str) -> tuple[bytes, _Known] | None:
        """The file's content and its remembered state, or None where nothing is new.

        OSError if it cannot be read.
        """
        try:
            status = path.stat() if _is_file(path) else None
        except FileNotFoundError:
            status = None
        if status is None:
            self._known.pop(path, None)
            return None
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._known.get(path)
        if known is None or known.stamp != stamp:
            known = self._known[path] = _Known(stamp, self._clock.awake())
        elif known.flaw is None and known.digest in (None, self._store.good(path)):
            return None
        data = read(path, LOG_LIMIT if path.suffix == ".jsonl" else LIMIT)
        if data is None:
            return None
        known.flaw = file_integrity.flaw(key, data) or self._emptied(path, data)
        known.digest = digest(data) if known.flaw is None and self._worth_keeping(path, data) else None
        return (data, known) if known.flaw or known.digest else None

    def _emptied(self, path: Path, data: bytes) -> Flaw | None:
        """The flaw of an emptied log.

        A log only grows: an empty one has lost all its lines.
        """
        if path.suffix == ".jsonl" and not data.strip(b"\0 \r\n") and any(self._store.versions(path)):
            return Flaw(FlawCode.LINES_GONE, "all its lines are gone")
        return None

    def _worth_keeping(self, path: Path, data: bytes) -> bool:
        """Whether the content differs from the newest good version, for a growing log by a fourth.

        A lease is never kept: it is rewritten all the time, and a broken one has no value.
        """
        if self._store.good(path) == digest(data) or path.suffix == ".lease":
            return False
        if path.suffix != ".jsonl":
            return True
        before = next(self._store.versions(path), b"")
        return bool(data) and len(data) <= KEEP_LOG and not len(before) <= len(data) < 1.25 * len(before)

    def _snap(self, path: Path, data: bytes, now: datetime) -> Remediation:
        """A snapshot, if the execution state has changed in meaning."""
        state = load_object(data)
        if path != self._planning / execution_state.STATE_FILE or state is None:
            return ()
        newest = plugin_snapshots.best((snapshot for _, snapshot in self._snapshots.all()), phase_of(state), None)
        if newest is not None and meaning(newest.state) == meaning(state):
            return ()
        return self._snapshots.save(state, now, "state changed")

    # -- sources for the restoration of a broken file, the best first -----------------------------------------------

    def _cures(self, path: Path, key: str, data: bytes, flaw: Flaw, now: datetime) -> Iterator[Cure]:
        if flaw.code in file_integrity.PERSONS_OWN:
            if flaw.rewritten is not None:
                yield Cure(data=flaw.rewritten, source="itself", text="its own content, rewritten for strict readers")
            return
        for version in self._store.versions(path):
            if version != data and file_integrity.flaw(key, version) is None:
                yield Cure(data=version, source="good_version", text="the last good version")
        if path == self._planning / execution_state.STATE_FILE:
            yield from self._cures_of_state(now)
        if path.suffix == ".lease":
            reason = "since the plugin takes it for free, and would leave it for ever"
            yield Cure(data=None, source="lease", text=reason)

    def _cures_of_state(self, now: datetime) -> Iterator[Cure]:
        snapshot = self._snapshots.best(None, self._snapshots.active_role())
        if snapshot is not None:
            yield Cure(
                data=execution_state.dump(snapshot.state), source="snapshot", text=f"the snapshot {snapshot.name}"
            )
        rebuilt = self.rebuilt(now)
        if rebuilt is not None:
            state = self._for_readers(rebuilt.state)
            text = "plans, summaries and events"
            yield Cure(data=execution_state.dump(state), source="rebuilt", text=text, inferred=rebuilt.inferred)

    def _for_readers(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state in the values that the plugin's readers know.

        They resume a phase that is ``running`` and a plan that is ``pending``. They would never resume a plan that is
        ``stale`` unless its agent is there to continue it.
        """
        agents = self._registry.teammates()
        plans = [
            {
                **plan,
                "status": "running"
                if any(execution_state.works_on(a.name, a.team, plan["id"]) for a in agents)
                else "pending",
            }
            if plan["status"] == "stale"
            else plan
            for plan in state["plans"]
        ]
        return {**state, "plans": plans, "status": "complete" if state["status"] == "complete" else "running"}

    def rebuilt(self, now: datetime) -> phases.Rebuilt | None:
        """The execution state from plans, summaries, events and leases.

        None if there is no phase.
        """
        folder = self._planning / plugin.PHASES
        dirs = {name: self._phase_files(folder / name) for name in names(folder) if (folder / name).is_dir()}
        log = self._planning / event_log.EVENT_LOG
        events, _ = phases.events(read_or_none(log, LOG_LIMIT) or b"")
        current = phases.current_phase(dirs, events)
        if current is None:
            return None
        leases = {lease.resource: lease.expires_at for lease in readable_leases(self._planning)}
        return phases.rebuild(current, dirs[current], events, leases, now)

    def _phase_files(self, folder: Path) -> dict[str, bytes]:
        contents = {}
        for name in names(folder):
            if name.endswith(("-PLAN.md", "-SUMMARY.md")):
                try:
                    contents[name] = read(folder / name) or b""
                except OSError:
                    continue
        return contents
