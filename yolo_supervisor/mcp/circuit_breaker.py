"""Circuit breakers for an MCP server and each of its tools, shared by all relays of a project.

A circuit is *closed* until ``failures`` calls in a row have failed; then it is *open* for ``cool_down_s`` and calls are
refused; then it is *half-open*: one call is let through as a probe, and its outcome closes or reopens the circuit.

An open or half-open circuit is a document in the state folder; a closed one has none. A relay that finds the store
unusable keeps the circuit for itself.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from yolo_supervisor.actions import circuits
from yolo_supervisor.actions.base import WriteFile
from yolo_supervisor.clock import Clock, Instant
from yolo_supervisor.config import McpConfig
from yolo_supervisor.formats.json import load_object
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import digest, read_or_none
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import iso
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Outcome, Store

WHOLE_SERVER = ""
"""In place of a tool's name: the circuit of the server as a whole."""

MTIME_STEP_NS = 50_000_000
"""Directory times have a coarse resolution: only after this many ns does another change get another time."""


class Circuit(msgspec.Struct, frozen=True):
    """An open or half-open circuit, as stored. ``since_s`` and ``probed_s`` are monotonic seconds of ``boot``."""

    server: str
    tool: str
    reason: str = msgspec.field(name="why")
    opened_at: str
    since_s: float
    boot: str
    cool_down_s: float
    failures: int
    probed_s: float | None = None
    """The time at which a call was let through as a probe; None if none is under way."""

    def remaining_s(self, now: Instant) -> float:
        """Seconds until a probe is allowed, 0 or less if it is now. After a reboot it is."""
        age_s = Instant(self.boot, self.since_s).age(now)
        return self.cool_down_s - age_s if age_s is not None else 0.0

    def probed_for_s(self, now: Instant) -> float | None:
        """For how many seconds a probe has been under way; None if none is, or it began before a reboot."""
        return Instant(self.boot, self.probed_s).age(now) if self.probed_s is not None else None

    def dump(self) -> bytes:
        return json.dumps({"version": 1, **msgspec.to_builtins(self)}, indent=2, sort_keys=True).encode()


def load_circuit(data: bytes) -> Circuit | None:
    """The circuit in a document; None if it cannot be read, which counts as closed."""
    try:
        return msgspec.convert(load_object(data), Circuit)
    except (msgspec.ValidationError, UnicodeEncodeError):  # a lone surrogate in a key
        return None


def open_circuits(folder: Path) -> list[Circuit]:
    """All open and half-open circuits in the folder of circuits."""
    loaded = (load_circuit(read_or_none(folder / name) or b"") for name in names(folder))
    return [circuit for circuit in loaded if circuit is not None]


def circuit_status(circuit: Circuit, now: Instant) -> dict[str, Any]:
    """A circuit as ``status --json`` shows it."""
    remaining_s = circuit.remaining_s(now)
    return {
        "server": circuit.server,
        "tool": circuit.tool or None,
        "since": circuit.opened_at,
        "failures": circuit.failures,
        "why": circuit.reason,
        "state": "half-open" if remaining_s <= 0 else "open",
        "retry_in_s": round(max(0.0, remaining_s), 1),
    }


class CircuitBreaker:
    """The circuits of one server as one relay sees them. Without a ``store`` they are known to this relay only."""

    def __init__(
        self, argv: Sequence[str], name: str, config: McpConfig, clock: Clock, boot: str, store: Store | None
    ) -> None:
        self._name = name
        self._config = config
        self._clock = clock
        self._boot = boot
        self._store = store
        self._store_opened = False
        """The store is opened at the first write: most relays never write."""
        self._server_digest = str(digest("\0".join(argv).encode("utf-8", "surrogateescape")))[:16]
        self._folder = store.paths.circuits if store is not None else None
        self._circuits: dict[str, Circuit] = {}
        self._digests: dict[str, str | None] = {}
        """Digest of each document when it was read or written last, by file name."""
        self._unwritten: dict[str, tuple[str | None, Circuit | None]] = {}
        """Changes that could not be written, by tool, with the document's digest at that time: each holds until the
        document changes."""
        self._folder_mtime_ns: int | None = None
        self._failures: Counter[str] = Counter()
        self._probing: set[str] = set()
        """Circuits that a call of this relay is probing."""

    def refusal(self, tool: str | None) -> str | None:
        """The reason why the call must not be sent now, as text for a model; None if it may be sent.

        The first caller after the cool-down gets None and is the probe: its outcome has to be recorded.
        """
        self._refresh()
        now = self._now()
        due = []
        for circuit in (self._circuits.get(WHOLE_SERVER), self._circuits.get(tool) if tool else None):
            if circuit is None:
                continue
            remaining_s = circuit.remaining_s(now)
            if remaining_s > 0:
                return self._refusal_text(circuit, f"It is tried again in {remaining_s:.0f} s.")
            probed_for_s = circuit.probed_for_s(now)
            if probed_for_s is not None and probed_for_s < self._config.cap_s:
                return self._refusal_text(circuit, "Another call is probing it now.")
            due.append(circuit)
        for circuit in due:
            if not self._begin_probe(circuit):
                self.release_probe(tool or WHOLE_SERVER)
                return self._refusal_text(circuit, "Another call has just begun to probe it.")
        return None

    def record_failure(self, tool: str, reason: str) -> None:
        """Count a failure of the tool, or of ``WHOLE_SERVER``; open the circuit if it is one too many."""
        self._refresh()
        was_probe, before = tool in self._probing, self._circuits.get(tool)
        self._probing.discard(tool)
        self._end_probe(WHOLE_SERVER)  # a tool's failure says nothing about the server: let the next call probe it
        self._failures[tool] += 1
        if not was_probe and (before is not None or self._failures[tool] < self._config.failures):
            return  # too few failures, or a call that was in flight when the circuit was opened
        circuit = Circuit(
            server=self._name, tool=tool, reason=reason,
            opened_at=before.opened_at if before else iso(self._clock.now()), since_s=self._clock.monotonic(),
            boot=self._boot, cool_down_s=self._config.cool_down_s,
            failures=before.failures + 1 if before else self._failures[tool],
        )  # fmt: skip
        summary = f"{circuit.failures} failures in a row, the last: {reason}"
        evidence = {"cool_down_s": circuit.cool_down_s, "failures": circuit.failures}
        trip = circuits.opened(self._target(tool), circuit.dump(), summary, evidence)
        if self._write(trip, tool, circuit):
            self._failures.pop(tool)

    def record_success(self, tool: str) -> None:
        """Count an answer of the tool: it resets the tool's failures and the server's, and closes what it probed."""
        for name in (tool, WHOLE_SERVER):
            if self._failures:
                self._failures.pop(name, None)
            if name in self._probing:
                self._probing.discard(name)
                if name in self._circuits:
                    close = circuits.closed(self._target(name), "the probe succeeded")
                    self._write(close, name, None)

    def release_probe(self, tool: str) -> None:
        """Let the next call probe: the one that was to do it has been cancelled."""
        for name in (tool, WHOLE_SERVER):
            self._end_probe(name)

    def remaining_s(self) -> float:
        """For how many seconds the circuit of the whole server stays open."""
        self._refresh()
        circuit = self._circuits.get(WHOLE_SERVER)
        return max(0.0, circuit.remaining_s(self._now())) if circuit else 0.0

    def _now(self) -> Instant:
        return Instant(self._boot, self._clock.monotonic())

    def _begin_probe(self, circuit: Circuit) -> bool:
        if not self._set_probe(circuit, self._clock.monotonic(), "one call probes whether it works again"):
            return False
        self._probing.add(circuit.tool)
        return True

    def _end_probe(self, tool: str) -> None:
        if tool in self._probing:
            self._probing.discard(tool)
            if (circuit := self._circuits.get(tool)) is not None:
                self._set_probe(circuit, None, "the probe ended without an outcome; the next call probes")

    def _set_probe(self, circuit: Circuit, probed_s: float | None, reason: str) -> bool:
        changed = msgspec.structs.replace(circuit, probed_s=probed_s)
        if circuit.boot != self._boot:  # a reboot ends the cool-down; a time of this boot must say the same
            since_s = self._clock.monotonic() - circuit.cool_down_s
            changed = msgspec.structs.replace(changed, boot=self._boot, since_s=since_s)
        probe = circuits.half_opened(self._target(circuit.tool), changed.dump(), reason)
        return self._write(probe, circuit.tool, changed)

    def _write(self, action: WriteFile, tool: str, circuit: Circuit | None) -> bool:
        """Store the change. False if another relay was first; if it cannot be written, it holds for this relay."""
        known = self._digests.get(action.path.name)
        try:
            if self._store is not None and self._commit(self._store, action) is Outcome.STALE:
                self._folder_mtime_ns = None
                return False
            self._unwritten.pop(tool, None)
            self._digests[action.path.name] = digest(action.data)
        except (OSError, Busy, Refused) as error:
            if isinstance(error, Busy) and circuit is not None and circuit.probed_s is not None:
                return False  # another relay may be about to probe as well
            self._unwritten[tool] = known, circuit
        self._circuits.pop(tool, None)
        if circuit is not None:
            self._circuits[tool] = circuit
        return True

    def _commit(self, store: Store, action: WriteFile) -> Outcome:
        if not self._store_opened or not store.paths.folder.exists():  # the state folder may be removed at any time
            store.close()
            store.open()
            self._store_opened = True
        make_folder(store.disk, action.path.parent)
        outcome = store.commit(action, "mcp")
        if outcome is Outcome.BUSY:
            raise Busy(f"{action.path} is being written to", action.path)
        return outcome

    def _refresh(self) -> None:
        """Read what other relays have written; one ``stat`` while nothing has changed."""
        if self._folder is None:
            return
        try:
            mtime_ns = os.stat(self._folder).st_mtime_ns
        except OSError:
            return
        if mtime_ns == self._folder_mtime_ns:
            return
        self._circuits, self._digests = {}, {}
        for name in os.listdir(self._folder):
            if name.startswith(self._server_digest) and name.endswith(".json"):
                data = read_or_none(self._folder / name)
                self._digests[name] = digest(data)
                if (circuit := load_circuit(data or b"")) is not None:
                    self._circuits[circuit.tool] = circuit
        for tool, (known, unwritten) in list(self._unwritten.items()):
            if self._digests.get(self._path(tool).name) != known:
                del self._unwritten[tool]
            elif unwritten is None:
                self._circuits.pop(tool, None)
            else:
                self._circuits[tool] = unwritten
        self._folder_mtime_ns = mtime_ns if abs(time.time_ns() - mtime_ns) > MTIME_STEP_NS else None

    def _target(self, tool: str) -> circuits.Target:
        """The fields of an action that name its circuit, and the content on which it is decided."""
        path = self._path(tool)
        key = f"{self._name}/{tool}" if tool else self._name
        return {"key": key, "path": path, "expected_digest": self._digests.get(path.name)}

    def _path(self, tool: str) -> Path:
        suffix = str(digest(tool.encode("utf-8", "surrogatepass")))[:16] if tool else "server"
        return (self._folder or Path()) / f"{self._server_digest}-{suffix}.json"

    def _refusal_text(self, circuit: Circuit, next_step: str) -> str:
        target = f"the tool {circuit.tool} of the MCP server" if circuit.tool else "the MCP server"
        return (
            f"The circuit breaker of {target} {self._name} has been open since {circuit.opened_at}, after "
            f"{circuit.failures} failures in a row (the last: {circuit.reason}). This call was not sent. {next_step} "
            "Do something else until then, or continue without it."
        )
