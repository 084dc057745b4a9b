"""The leases of one project and their remaining times, by clocks that cannot be set.

The plugin's format has wall-clock times only. A lease that was granted through the store has the age of its journal
line, by the monotonic clock. The wall clock decides about any other lease once, when it is first seen. From then on the
time left is counted in time awake: what stopped us may have stopped the holder, which could not renew it then.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from yolo_supervisor.actions.base import WriteFile
from yolo_supervisor.actions.leases import Grant, Release, grant
from yolo_supervisor.clock import Clock, Instant
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.fs.changes import DirectoryScanner, UnreadFiles, names
from yolo_supervisor.fs.read import digest, read_or_none
from yolo_supervisor.models import Lease, iso
from yolo_supervisor.store.lines import LeaseState
from yolo_supervisor.store.store import Store

WHOLE_S = 1.0
"""``acquired_at`` is cut to whole seconds: a lease may be this much younger than the file states."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """One lease in its present state.

    ``left_s`` is the time until it expires, negative if it has expired.
    """

    lease: Lease
    expected_digest: str
    """The digest of its content."""
    left_s: float


DUE, REST_S = 200, 0.2
"""The number of expired leases that one look returns, and the seconds until the next look if there are more."""


@dataclass(frozen=True, slots=True)
class _Deadline:
    """The deadline of a lease, in time awake. It holds for this content and this grant."""

    digest: str
    granted: LeaseState | None
    at_s: float


def readable_leases(planning: Path) -> list[Lease]:
    """The readable leases and locks in the plugin's folder, also expired ones."""
    folder = planning / plugin.LOCKS
    parsed = (
        plugin_leases.lease(data, folder / name)
        for name in names(folder)
        if name.endswith((".lease", ".lock")) and (data := read_or_none(folder / name)) is not None
    )
    return [lease for lease in parsed if lease is not None]


class Leases:
    """The leases of one project.

    ``boot`` identifies the boot in which monotonic times are comparable.
    """

    def __init__(self, store: Store, clock: Clock, boot: str) -> None:
        self._store = store
        self.clock = clock
        self._boot = boot
        self._folder = store.paths.locks
        self._files = DirectoryScanner(self._folder, lambda name: name.endswith(".lease"))
        self._unread = UnreadFiles()
        self._deadlines: dict[Path, _Deadline] = {}
        self._order: list[tuple[float, Path]] = []
        """The same deadlines as a heap; some are out of date."""

    def awake(self) -> float:
        return self.clock.awake()

    def all(self, now: datetime) -> list[Held]:
        """The readable leases, by name."""
        held_leases = [
            held for name in names(self._folder) if name.endswith(".lease") and (held := self._look(name, now))
        ]
        there = {held.lease.path for held in held_leases}
        self._deadlines = {path: known for path, known in self._deadlines.items() if path in there}
        return held_leases

    def read_ahead(self, now: datetime) -> Iterator[None]:
        """Read the leases that have changed, one in each step: ``due`` finds little left to read."""

        def read(name: str) -> None:
            if self._look(name, now) is None:
                self._deadlines.pop(self._folder / name, None)

        yield from self._unread.read(self._files.look(), read)

    def due(self, now: datetime) -> tuple[list[Held], float | None]:
        """The expired leases, and the seconds until the next one expires (None if there is none)."""
        for _ in self.read_ahead(now):
            pass
        expired: dict[Path, Held] = {}
        next_s = None
        while self._order and next_s is None:
            if len(expired) >= DUE:
                next_s = REST_S
                break
            deadline_s, path = heapq.heappop(self._order)
            known = self._deadlines.get(path)
            if path in expired or known is None or known.at_s != deadline_s:
                continue
            if (left_s := deadline_s - self.clock.awake()) > 0:
                next_s = left_s
                heapq.heappush(self._order, (deadline_s, path))
            elif (held := self._look(path.name, now)) is None:
                del self._deadlines[path]
            elif held.left_s <= 0:
                expired[path] = held
        for path in expired:  # they stay due until they are gone
            heapq.heappush(self._order, (self._deadlines[path].at_s, path))
        return list(expired.values()), next_s

    def of(self, resource: str, now: datetime) -> Held | None:
        """The lease on the resource, or None if no readable one exists.

        ValueError if the name cannot be a resource.
        """
        return self._look(plugin_leases.lease_file(resource), now)

    def broken(self, resource: str) -> bool:
        """Whether the resource has an unreadable lease.

        ValueError if the name cannot be a resource.
        """
        path = self._folder / plugin_leases.lease_file(resource)
        data = read_or_none(path)
        return data is not None and plugin_leases.lease(data, path) is None

    def _look(self, name: str, now: datetime) -> Held | None:
        path = self._folder / name
        return self._judge(path, read_or_none(path), now)

    def _judge(self, path: Path, data: bytes | None, now: datetime) -> Held | None:
        lease = plugin_leases.lease(data, path) if data is not None else None
        if data is None or lease is None:
            return None
        content_digest = str(digest(data))
        known, granted = self._deadlines.get(path), self._granted(lease, content_digest)
        if known is not None and known.at_s <= self.clock.awake():
            self._store.heed()  # another process may have renewed it within a second: then the file is the same
            granted = self._granted(lease, content_digest)
        if known is None or known.digest != content_digest or granted not in (None, known.granted):
            left_s = self._first_left_s(lease, content_digest, now)
            known = _Deadline(content_digest, self._granted(lease, content_digest), self.clock.awake() + left_s)
            self._deadlines[path] = known
            heapq.heappush(self._order, (known.at_s, path))
        return Held(lease=lease, expected_digest=content_digest, left_s=known.at_s - self.clock.awake())

    def token(self, held: Held) -> int | None:
        """The fencing token of a lease that was granted through the store."""
        granted = self._granted(held.lease, held.expected_digest)
        return granted.token if granted is not None else None

    def _granted(self, lease: Lease, digest: str) -> LeaseState | None:
        """The grant of exactly this lease, if it was made through the store."""
        state = self._store.index.leases.get(str(lease.path))
        return state if state is not None and state.digest == digest else None

    def _first_left_s(self, lease: Lease, content_digest: str, now: datetime) -> float:
        granted = self._granted(lease, content_digest)
        if granted is None:  # another process may have granted it
            self._store.heed()
            granted = self._granted(lease, content_digest)
        age_s = granted.granted.age(Instant(self._boot, self.clock.monotonic())) if granted is not None else None
        if age_s is not None:
            return lease.ttl_s - age_s
        assert lease.expires_at is not None
        left_s = (lease.expires_at - now).total_seconds() + WHOLE_S
        if left_s > lease.ttl_s + WHOLE_S:  # a lease from the future holds for its whole time, and no longer
            return lease.ttl_s
        return left_s

    def lend(self, resource: str, owner: str, ttl_s: int, now: datetime) -> WriteFile | Held:
        """The action that grants the resource to the owner, or the lease of another holder.

        ValueError if the name cannot be a resource.
        """
        path = self._folder / plugin_leases.lease_file(resource)
        before = read_or_none(path)  # read once: the content that is examined is the content that is replaced
        held = self._judge(path, before, now)
        if held is not None and held.left_s > 0 and (held.lease.owner, held.lease.resource) != (owner, resource):
            return held
        verb: Grant
        if held is None:
            verb, reason = "acquired", f"{owner} asked for it"
        elif (held.lease.owner, held.lease.resource) == (owner, resource):
            verb, reason = "renewed", f"{owner} holds it for longer"
        else:
            verb, reason = (
                "taken_over",
                f"{held.lease.owner} let it run out {-held.left_s:.0f} s ago, {owner} asked for it",
            )
        return grant(
            verb,
            key=resource,
            path=path,
            expected_digest=digest(before),
            data=plugin_leases.dump_lease(resource, owner, now, ttl_s),
            reason=reason,
            evidence={"owner": owner, "ttl_s": ttl_s, "since_s": self.clock.monotonic(), "boot": self._boot}
            | ({"previous_owner": held.lease.owner} if verb == "taken_over" and held else {}),
        )


def over(held: Held) -> Release:
    """The action that ends an expired lease."""
    ended = iso(held.lease.expires_at) if held.lease.expires_at else "its time"
    return Release(
        key=held.lease.resource,
        path=held.lease.path,
        owner=held.lease.owner,
        expected_digest=held.expected_digest,
        reason=f"{held.lease.owner} let it run out: it held until {ended}",
        evidence={"owner": held.lease.owner, "ttl_s": held.lease.ttl_s},
    )
