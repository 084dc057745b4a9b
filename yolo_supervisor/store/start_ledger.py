"""The pace of all starts of agents by this user on this machine, in all projects and over restarts of the supervisor.

Each start takes a slot, under a lock, before it is made. Many deaths at the same time are a storm, which pauses all.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from yolo_supervisor.clock import Clock, Instant, pace_s
from yolo_supervisor.config import RestartConfig
from yolo_supervisor.formats.starts import PAUSE_MOST_S, Death, Moment, Starts, Storm, dump_starts, load_starts
from yolo_supervisor.store.atomic import leftovers, make_folder, write_atomic
from yolo_supervisor.store.disk import FILE_MODE, Disk
from yolo_supervisor.store.locks import Busy, file_lock
from yolo_supervisor.store.state_folder import refuse_untrusted

FILE = "starts.json"
"""The name of the file in the supervisor's own state directory."""

LIMIT = 2**20
"""The largest file that is read, in bytes."""

LOCK_LIMIT_S = 0.2
"""How long the lock is waited for: the event loop waits too."""

BUSY_WAIT_S = 1.0
"""The pause after which to ask again if another process holds the lock."""


class StartLedger:
    """The ledger in the file at ``path``. ``boot`` identifies the boot in which monotonic times are comparable."""

    def __init__(self, path: Path, disk: Disk, clock: Clock, boot: str) -> None:
        self.path = path
        self.damage: str | None = None
        """The reason why the last look took the file as empty: it could not be read, or held something else."""
        self._disk = disk
        self._clock = clock
        self._boot = boot
        self._seen: tuple[tuple[int, int, int] | None, Starts] | None = None
        """The file at the last look, and its content, since a look is taken in each tick."""

    def take(self, rules: RestartConfig) -> float:
        """Record a start, and return 0; or record none, and return the seconds after which to ask again.

        Of several processes that ask at the same moment one gets the slot. OSError or ``Refused`` if the file cannot
        be read or written: then there is no start. A content that is damaged counts as empty.
        """
        try:
            with self._locked():
                now, stored = self._now(), self._read()
                content = self._of_this_boot(stored, now)
                ages = [_age_s(moment, now) for moment in content.starts]
                wait_s = pace_s(ages, rules.host_pause_s, rules.host_starts, rules.host_period_s)
                wait_s = max(wait_s, _storm_left_s(content, now))
                if wait_s <= 0:
                    content = replace(content, starts=(*content.starts, now))
                self._write(content, stored)
                return wait_s
        except Busy:
            return BUSY_WAIT_S

    def ages(self) -> tuple[float, ...]:
        """The ages of the starts in seconds, the newest last."""
        content, now = self._look(), self._now()
        return tuple(_age_s(moment, now) for moment in content.starts)

    def storm_left_s(self) -> float:
        """The rest of the pause after a storm, in seconds; 0 without a storm."""
        return _storm_left_s(self._look(), self._now())

    def record_deaths(self, lives: Collection[str], rules: RestartConfig) -> float:
        """Record deaths that no person wanted, each once, and return the rest of the pause after a storm, in seconds.

        ``lives`` are the names of the agents' records: a death that is recorded already is not counted again. ``Busy``
        if another process holds the lock; OSError or ``Refused`` if the file cannot be read or written.
        """
        with self._locked():
            now, stored = self._now(), self._read()
            content = self._of_this_boot(stored, now)
            known = {death.mark for death in content.deaths}
            if added := tuple(Death(now, mark) for mark in dict.fromkeys(map(_mark, lives)) if mark not in known):
                content = replace(content, deaths=(*content.deaths, *added))
                recent = sum(_age_s(death.moment, now) < rules.storm_s for death in content.deaths)
                if recent >= rules.storm_deaths and _storm_left_s(content, now) < rules.storm_pause_s:
                    content = replace(content, storm=Storm(now, rules.storm_pause_s))
            self._write(content, stored)
            return _storm_left_s(content, now)

    # -- the file -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock; ``Busy`` if another process holds it for ``LOCK_LIMIT_S``."""
        folder = self.path.parent
        refuse_untrusted(self._disk, folder)
        make_folder(self._disk, folder)
        path = self.path.with_suffix(".lock")  # the file itself is replaced, and a lock of it would be with the old one
        fd = self._disk.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
        try:
            with file_lock(self._disk, fd, path, LOCK_LIMIT_S):
                yield
        finally:
            self._disk.close(fd)

    def _look(self) -> Starts:
        """The content, for a look that decides nothing; empty if it cannot be read."""
        try:
            found = self._disk.status(self.path)
            file = (found.st_ino, found.st_mtime_ns, found.st_size) if found is not None else None
            if self._seen is None or self._seen[0] != file or self.damage is not None:
                self._seen = file, self._read()
            return self._seen[1]
        except OSError as error:
            self.damage = f"{self.path} cannot be read: {error.strerror}"
            return Starts()

    def _read(self) -> Starts:
        """The content. Empty if there is none, or it is damaged; OSError if it cannot be read."""
        self.damage = None
        try:
            data = self._disk.read(self.path, LIMIT)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            data = b""
        content = load_starts(data) if data is not None else Starts()
        if content is None:
            self.damage = f"{self.path} is damaged, and counts as empty"
            return Starts()
        return content

    def _write(self, content: Starts, stored: Starts) -> None:
        """Replace the content, if it differs from what is stored, or that is damaged."""
        if content != stored or self.damage is not None:
            for temporary in leftovers(self._disk, self.path):  # of killed writers, since the lock is held
                with contextlib.suppress(OSError):
                    self._disk.unlink(temporary)
            write_atomic(self._disk, self.path, dump_starts(content))

    # -- moments ------------------------------------------------------------------------------------------------------

    def _now(self) -> Moment:
        return Moment(Instant(self._boot, self._clock.monotonic()), self._clock.now())

    def _of_this_boot(self, content: Starts, now: Moment) -> Starts:
        """The content with all moments on the clock of this boot, without those that count no more.

        A moment of another boot gets its age by wall time, once: from then on the wall clock may be set.
        """
        starts = (self._moved(moment, now) for moment in content.starts)
        deaths = (replace(death, moment=self._moved(death.moment, now)) for death in content.deaths)
        storm = content.storm
        if storm is not None:
            storm = replace(storm, since=self._moved(storm.since, now)) if _storm_left_s(content, now) > 0 else None
        return Starts(
            tuple(moment for moment in starts if _age_s(moment, now) < PAUSE_MOST_S),
            tuple(death for death in deaths if _age_s(death.moment, now) < PAUSE_MOST_S),
            storm,
        )

    def _moved(self, moment: Moment, now: Moment) -> Moment:
        age_s = moment.instant.age(now.instant)
        if age_s is not None and age_s >= 0:
            return moment
        age_s = _age_s(moment, now)
        return Moment(Instant(self._boot, now.instant.seconds - age_s), now.at - timedelta(seconds=age_s))


def _mark(life: str) -> str:
    """The mark of an agent's record, which is as short for each."""
    return hashlib.sha256(life.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _age_s(moment: Moment, now: Moment) -> float:
    """The age of a moment in seconds; by wall time if it is of another boot. No moment is in the future."""
    age_s = moment.instant.age(now.instant)
    if age_s is None or age_s < 0:
        age_s = max(0.0, (now.at - moment.at).total_seconds())
    return age_s


def _storm_left_s(content: Starts, now: Moment) -> float:
    if (storm := content.storm) is None:
        return 0.0
    return max(0.0, storm.pause_s - _age_s(storm.since, now))
