"""The cost of durability: commits a second beside the bare system calls and SQLite, and the time of a start.

python tests/bench/store.py [folder]     # the folder's disk is the one that is measured
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from yolo_supervisor.actions import notes
from yolo_supervisor.actions.base import Edit, Kind, Verb
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.lines import dump, entry
from yolo_supervisor.store.store import Outcome, Store

SECONDS = 2.0
DOCUMENT = b'{"id":"1","status":"in_progress","owner":"dev-1"}' * 6
NOTE = notes.daemon("reloaded", reason="asked to by a person who wants to know how long it takes")


@dataclass(frozen=True, kw_only=True)
class Put(Edit):
    """Make ``content`` the document."""

    kind: Kind = "state"
    verb: Verb = "repaired"
    reason: str = "a benchmark wants it so"
    content: bytes

    def holds(self, before: bytes | None) -> bool:
        return True

    def edit(self, before: bytes | None) -> bytes | None:
        return self.content


def rate(step: Callable[[int], object]) -> float:
    """The number of times a second that it can be done."""
    begin, number = time.monotonic(), 0
    while (taken := time.monotonic() - begin) < SECONDS:
        step(number)
        number += 1
    return number / taken


def bare_append(folder: Path) -> float:
    fd = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = b"x" * 250 + b"\n"

    def step(_: int) -> None:
        os.write(fd, line)
        os.fdatasync(fd)

    try:
        return rate(step)
    finally:
        os.close(fd)


def bare_replace(folder: Path) -> float:
    return rate(lambda _: write_atomic(Disk(), folder / "replaced", DOCUMENT))


def sqlite(folder: Path) -> float:
    with closing(sqlite3.connect(folder / "sqlite.db", isolation_level=None)) as base:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
        base.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, line TEXT)")
        return rate(lambda _: base.execute("INSERT INTO entries (line) VALUES (?)", ("x" * 250,)))


def note(folder: Path) -> float:
    with closing(opened(folder / "note")) as store:
        return rate(lambda _: store.note(NOTE, "bench"))


def commit(folder: Path) -> float:
    with closing(opened(folder / "commit")) as store:
        path = store.paths.project / "document.json"

        def step(number: int) -> None:
            action = Put(key="document", path=path, content=DOCUMENT + b"%d" % number)
            assert store.commit(action, "bench") is Outcome.DONE

        return rate(step)


def opened(project: Path) -> Store:
    (project / ".yolo-planning").mkdir(parents=True, exist_ok=True)
    store = Store(project)
    store.open()
    return store


START = """
import resource, sys, time
from pathlib import Path
from yolo_supervisor.store.store import Store
begin = time.monotonic()
store = Store(Path(sys.argv[1]))
store.open()
store.recover()
print(time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def start(folder: Path, records: int) -> str:
    """The time and the memory of a start with so many lines in the newest segment."""
    project = folder / f"start-{records}"
    with closing(opened(project)) as store:
        line = entry(NOTE, "bench", store.clock.now(), project)
        lines = (dump(replace(line, seq=number)) for number in range(1, records + 1))
        store.paths.journal.write_bytes(b"".join(lines))
        size = store.paths.journal.stat().st_size
    output = subprocess.run([sys.executable, "-c", START, project], check=True, capture_output=True, text=True).stdout
    took_s, peak = map(float, output.split())
    return f"{took_s * 1e3:8.1f} ms, {peak / 1024:6.1f} MiB of memory at most, journal of {size / 2**20:.1f} MiB"


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        base = bare_append(folder)
        print(f"{'append + fdatasync':42} {base:8.0f} a second")
        for what, measure in (
            ("Store.note", note),
            ("SQLite, WAL, synchronous=FULL, one insert", sqlite),
            ("temp + fsync + rename + fsync(folder)", bare_replace),
            ("Store.commit of a document", commit),
        ):
            found = measure(folder)
            print(f"{what:42} {found:8.0f} a second, {found / base:6.2f} of the bare append")
        for records in (1_000, 10_000, 100_000):
            print(f"open + recover, {records:7} lines: {start(folder, records)}")


if __name__ == "__main__":
    main()
