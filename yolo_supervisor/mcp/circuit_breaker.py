"""Circuit breakers over an MCP server and its tools. An open circuit is a document in ``.supervisor/circuits/``: all
who stand before the same server heed it, and one of them tries whether the server is well again.

Closed until ``failures`` in a row; then open for ``cool_down_s``; then half open: one call is let through, and decides.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from yolo_supervisor.actions import Close, Probe, Trip
from yolo_supervisor.clock import Clock
from yolo_supervisor.config import McpConfig
from yolo_supervisor.files import Busy, Refused, digest, glance, make_folder
from yolo_supervisor.folder import names
from yolo_supervisor.formats import load_object
from yolo_supervisor.records import iso
from yolo_supervisor.store import Outcome, Store

UPSTREAM = ""
"""The circuit of the server as a whole, beside those of its tools."""

SETTLED_NS = 50_000_000
"""A folder's time of change is told in steps: after this long, in ns, another change has another time."""


@dataclass(frozen=True, slots=True)
class Circuit:
    """An open circuit as its document tells it. Times are seconds of the monotonic clock of ``boot``."""

    server: str
    tool: str
    why: str
    opened_at: str
    since_s: float
    boot: str
    cool_down_s: float
    failures: int
    probed_s: float | None = None
    """Since when somebody tries whether it can be closed."""

    def left_s(self, clock: Clock, boot: str) -> float:
        """How long it stays open; nothing is known of that after a reboot, so it has lasted long enough then."""
        return self.since_s + self.cool_down_s - clock.monotonic() if self.boot == boot else 0.0

    def dump(self) -> bytes:
        told = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({"version": 1, **told}, indent=2, sort_keys=True).encode()


def load(data: bytes) -> Circuit | None:
    """The circuit in a document; None if it cannot be read: then it is closed."""
    try:
        return msgspec.convert(load_object(data), Circuit)
    except msgspec.ValidationError:
        return None


def circuits(folder: Path) -> list[Circuit]:
    """All open circuits of a project; ``folder`` is the supervisor's own."""
    found = (load(glance(folder / "circuits" / name) or b"") for name in names(folder / "circuits"))
    return [circuit for circuit in found if circuit is not None]


class Breaker:
    """The circuits of one server, as one relay before it sees them. Without a ``store`` they are its own alone."""

    def __init__(
        self, server: Sequence[str], name: str, config: McpConfig, clock: Clock, boot: str, store: Store | None
    ) -> None:
        self._name = name
        self._config = config
        self._clock = clock
        self._boot = boot
        self._store = store
        self._ready = False
        """Whether the store is open: that is not needed before something has to be written."""
        self._ident = str(digest("\0".join(server).encode("utf-8", "surrogateescape")))[:16]
        self._folder = store.paths.folder / "circuits" if store is not None else None
        self._open: dict[str, Circuit] = {}
        self._seen: dict[str, str | None] = {}
        """The digests of the documents, by name."""
        self._kept: dict[str, tuple[str | None, Circuit | None]] = {}
        """What could not be written, by tool, with the document's digest then: it holds until another is written."""
        self._stamp: int | None = None
        self._failures: Counter[str] = Counter()
        self._probing: set[str] = set()

    def refusal(self, tool: str | None) -> str | None:
        """Why a call must not be tried now, in words that a model can act on; None if it may.

        Where it is time to try, the first who asks may, and has to tell how it went.
        """
        self._heed()
        due = []
        for circuit in (self._open.get(UPSTREAM), self._open.get(tool) if tool else None):
            if circuit is None:
                continue
            left_s = circuit.left_s(self._clock, self._boot)
            if left_s > 0:
                return self._words(circuit, f"it is tried again in {left_s:.0f} s")
            since_s = circuit.probed_s if circuit.boot == self._boot else None
            if since_s is not None and self._clock.monotonic() - since_s < self._config.cap_s:
                return self._words(circuit, "one call is trying it just now")
            due.append(circuit)
        for circuit in due:
            if not self._probe(circuit):
                self.given_up(tool or UPSTREAM)
                return self._words(circuit, "another call has just begun to try it")
        return None

    def failed(self, tool: str, why: str) -> None:
        """Another failure of the tool, or of the whole server (``UPSTREAM``)."""
        self._heed()
        probe, before = tool in self._probing, self._open.get(tool)
        self._probing.discard(tool)
        self._leave(UPSTREAM)  # whether the server is well is not known by this: the next call may try
        self._failures[tool] += 1
        if not probe and (before is not None or self._failures[tool] < self._config.failures):
            return  # not often enough yet; or it was under way when the circuit was opened
        now = Circuit(
            server=self._name, tool=tool, why=why, opened_at=before.opened_at if before else iso(self._clock.now()),
            since_s=self._clock.monotonic(), boot=self._boot, cool_down_s=self._config.cool_down_s,
            failures=before.failures + 1 if before else self._failures[tool],
        )  # fmt: skip
        reason = f"{now.failures} failures in a row, the last: {why}"
        evidence = {"cool_down_s": now.cool_down_s, "failures": now.failures}
        if self._write(Trip(**self._about(tool), data=now.dump(), reason=reason, evidence=evidence), tool, now):
            self._failures.pop(tool)

    def succeeded(self, tool: str) -> None:
        """A call has gone well: it counts for the tool, and for the server that answered it."""
        for name in (tool, UPSTREAM):
            if self._failures:
                self._failures.pop(name, None)
            if name in self._probing:
                self._probing.discard(name)
                if name in self._open:
                    reason = "it was tried, and is well again"
                    self._write(Close(**self._about(name), data=None, reason=reason), name, None)

    def given_up(self, tool: str) -> None:
        """The call that was to try has been cancelled: the next one may."""
        for name in (tool, UPSTREAM):
            self._leave(name)

    def _leave(self, name: str) -> None:
        if name in self._probing:
            self._probing.discard(name)
            if (circuit := self._open.get(name)) is not None:
                self._put(circuit, None)

    def left_s(self) -> float:
        """For how long the whole server is to be left alone."""
        self._heed()
        circuit = self._open.get(UPSTREAM)
        return max(0.0, circuit.left_s(self._clock, self._boot)) if circuit else 0.0

    def _probe(self, circuit: Circuit) -> bool:
        if not self._put(circuit, self._clock.monotonic()):
            return False
        self._probing.add(circuit.tool)
        return True

    def _put(self, circuit: Circuit, probed_s: float | None) -> bool:
        told = {name: getattr(circuit, name) for name in Circuit.__slots__}
        if circuit.boot != self._boot:  # its clock has begun anew: the cool-down counts as over, here as there
            told |= {"boot": self._boot, "since_s": self._clock.monotonic() - circuit.cool_down_s}
        now = Circuit(**{**told, "probed_s": probed_s})
        reason = "one call tries whether it is well again"
        return self._write(Probe(**self._about(circuit.tool), data=now.dump(), reason=reason), circuit.tool, now)

    def _write(self, action: Trip | Probe | Close, tool: str, now: Circuit | None) -> bool:
        """Make the change known. False if another was quicker; where it cannot be written it holds for us alone."""
        known = self._seen.get(action.path.name)
        try:
            if self._store is not None and self._commit(self._store, action) is Outcome.STALE:
                self._stamp = None
                return False
            self._kept.pop(tool, None)
            self._seen[action.path.name] = digest(action.data)
        except (OSError, Busy, Refused) as error:
            if isinstance(error, Busy) and now is not None and now.probed_s is not None:
                return False  # others may be about to try it as well
            self._kept[tool] = known, now
        self._open.pop(tool, None)
        if now is not None:
            self._open[tool] = now
        return True

    def _commit(self, store: Store, action: Trip | Probe | Close) -> Outcome:
        if not self._ready or not store.paths.folder.exists():  # somebody may have removed it meanwhile
            store.close()
            store.open()
            self._ready = True
        make_folder(store.disk, action.path.parent)
        outcome = store.commit(action, "mcp")
        if outcome is Outcome.BUSY:
            raise Busy("the store is being written to")
        return outcome

    def _heed(self) -> None:
        """Take in what others have found out. One look at the folder, while nothing has changed."""
        if self._folder is None:
            return
        try:
            stamp = os.stat(self._folder).st_mtime_ns
        except OSError:
            return
        if stamp != self._stamp:
            self._open, self._seen = {}, {}
            for name in os.listdir(self._folder):
                if name.startswith(self._ident) and name.endswith(".json"):
                    data = glance(self._folder / name)
                    self._seen[name] = digest(data)
                    if (circuit := load(data or b"")) is not None:
                        self._open[circuit.tool] = circuit
            for tool, (known, kept) in list(self._kept.items()):
                if self._seen.get(self._path(tool).name) != known:
                    del self._kept[tool]
                elif kept is None:
                    self._open.pop(tool, None)
                else:
                    self._open[tool] = kept
            self._stamp = stamp if abs(time.time_ns() - stamp) > SETTLED_NS else None

    def _about(self, tool: str) -> dict[str, Any]:
        """What a change of the circuit is about, and on what content it is decided."""
        path = self._path(tool)
        key = f"{self._name}/{tool}" if tool else self._name
        return {"key": key, "path": path, "judged": self._seen.get(path.name)}

    def _path(self, tool: str) -> Path:
        told = str(digest(tool.encode("utf-8", "surrogatepass")))[:16] if tool else "server"
        return (self._folder or Path()) / f"{self._ident}-{told}.json"

    def _words(self, circuit: Circuit, then: str) -> str:
        what = f"the tool {circuit.tool} of the MCP server" if circuit.tool else "the MCP server"
        return (
            f"{what} {self._name} is switched off since {circuit.opened_at}, after {circuit.failures} failures in a "
            f"row ({circuit.why}); {then}. Do something else until then, or go on without it."
        )


def describe(circuit: Circuit, clock: Clock, boot: str) -> dict[str, Any]:
    """An open circuit as ``status`` shows it."""
    return {
        "server": circuit.server,
        "tool": circuit.tool or None,
        "since": circuit.opened_at,
        "failures": circuit.failures,
        "why": circuit.why,
        "state": "half-open" if circuit.left_s(clock, boot) <= 0 else "open",
        "retry_in_s": round(max(0.0, circuit.left_s(clock, boot)), 1),
    }
