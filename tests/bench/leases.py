"""The delay between the deadline of a lease and its end by the real daemon, and the claims a second of processes that
compete for one resource, against SQLite's ``BEGIN IMMEDIATE`` in the same run.

python tests/bench/leases.py [--leases 50] [--processes 32] [--seconds 5]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from yolo_supervisor.actions.leases import Release
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.inventory.leases import Held, Leases
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.store import Outcome, Store
from yolo_supervisor.system.process_backend import backend

Claim = tuple[float, float, int]
"""The times between which it was certainly held, and its token."""


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def project_in(folder: Path) -> Path:
    project = folder / "project"
    (project / ".yolo-planning" / ".locks").mkdir(parents=True)
    return project


# -- expiry ----------------------------------------------------------------------------------------------------------


def expiry(count: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        project = project_in(folder)
        environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")}
        environment.pop("CLAUDE_CONFIG_DIR", None)
        words = [sys.executable, "-m", "yolo_supervisor", "run", "--project", str(project)]
        daemon = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        while not (project / ".yolo-planning" / ".supervisor" / "daemon.json").exists():
            time.sleep(0.05)
        time.sleep(1)
        times = []
        with closing(Store(project)) as store:
            store.open()
            leases = Leases(store, SystemClock(), backend().boot())
            for number in range(count):
                action = leases.lend(str(number), "dev-1", 1, datetime.now(UTC))
                assert not isinstance(action, Held)
                while store.commit(action, "bench") is not Outcome.DONE:
                    pass
                deadline = action.evidence["since_s"] + 1.0
                time.sleep(max(0.0, deadline - time.monotonic() - 0.01))
                while action.path.exists():
                    if time.monotonic() > deadline + 30:
                        raise SystemExit("not ended within 30 s")
                    time.sleep(0.0002)
                times.append((time.monotonic() - deadline) * 1000)
        daemon.terminate()
        daemon.wait()
    print(
        f"a lease ended after its deadline: p50 {quantile(times, 0.5):.1f} ms, p99 {quantile(times, 0.99):.1f} ms, "
        f"min {min(times):.1f} ms, max {max(times):.1f} ms over {count} leases"
    )


# -- contention ------------------------------------------------------------------------------------------------------


def with_leases(project: Path, name: str, until_s: float, tell: Callable[[Claim], None]) -> int:
    """Claim the one resource repeatedly, and return it at once; the number of attempts."""
    tries = 0
    with closing(Store(project)) as store:
        with suppress(Busy):  # all open it at once; then it is caught up with at the first change
            store.open()
        leases = Leases(store, SystemClock(), "here")
        while time.monotonic() < until_s:
            tries += 1
            action = leases.lend("r", name, 300, datetime.now(UTC))
            if isinstance(action, Held):
                time.sleep(0.0005)
                continue
            if store.commit(action, name) is not Outcome.DONE:
                continue
            since = time.monotonic()
            token = store.index.leases[str(action.path)].token
            requeue_or_dead_letter = Release(key="r", path=action.path, owner=name, reason="done")
            to = time.monotonic()
            while (outcome := store.commit(requeue_or_dead_letter, name)) is Outcome.BUSY:
                to = time.monotonic()
            tell((since, to if outcome is Outcome.DONE else -1.0, token))
    return tries


def with_sqlite(project: Path, name: str, until_s: float, tell: Callable[[Claim], None]) -> int:
    tries = 0
    database = sqlite3.connect(project / "leases.db", isolation_level=None, timeout=30)
    database.execute("PRAGMA synchronous=FULL")
    while time.monotonic() < until_s:
        tries += 1
        (owner,) = database.execute("SELECT owner FROM lease").fetchone()
        if owner is not None:
            time.sleep(0.0005)
            continue
        database.execute("BEGIN IMMEDIATE")
        owner, token = database.execute("SELECT owner, token FROM lease").fetchone()
        if owner is not None:
            database.execute("ROLLBACK")
            continue
        database.execute("UPDATE lease SET owner = ?, token = token + 1", (name,))
        database.execute("COMMIT")
        since = to = time.monotonic()
        database.execute("BEGIN IMMEDIATE")
        database.execute("UPDATE lease SET owner = NULL WHERE owner = ?", (name,))
        database.execute("COMMIT")
        tell((since, to, token + 1))
    database.close()
    return tries


def contention(title: str, run: Callable[..., int], processes: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = project_in(Path(folder).resolve())
        with closing(Store(project)) as store:
            store.open()
        with closing(sqlite3.connect(project / "leases.db")) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE lease (owner TEXT, token INTEGER)")
            database.execute("INSERT INTO lease VALUES (NULL, 0)")
            database.commit()
        start_s = time.monotonic() + 1
        pids = []
        for number in range(processes):
            if (pid := os.fork()) == 0:
                time.sleep(start_s - time.monotonic())
                claims: list[Claim] = []
                tries = run(project, f"dev-{number}", start_s + seconds, claims.append)
                lines = [f"{since} {to} {token}" for since, to, token in claims]
                (project / f"{number}.txt").write_text("\n".join([str(tries), *lines]))
                os._exit(0)
            pids.append(pid)
        if any([os.waitpid(pid, 0)[1] for pid in pids]):  # noqa: C419 - all of them are waited for
            raise SystemExit("a process failed")
        held: list[Claim] = []
        tries, busiest = 0, 0
        for path in project.glob("*.txt"):
            first, *lines = path.read_text().splitlines()
            tries += int(first)
            busiest = max(busiest, len(lines))
            for line in lines:
                since, to, token = line.split()
                held.append((float(since), float(to), int(token)))
    held.sort()
    tokens = [token for _, _, token in held]
    overlaps = sum(later[0] < earlier[1] for earlier, later in zip(held, held[1:], strict=False))
    lost = sum(to < 0 for _, to, _ in held)
    print(
        f"{title}: {len(held) / seconds:.0f} claims/s ({len(held)} claims in {tries} tries of {processes} processes, "
        f"the busiest had {busiest}); double claims {overlaps + lost + len(tokens) - len(set(tokens))}, "
        f"tokens {'grow' if tokens == sorted(tokens) else 'DO NOT GROW'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--leases", type=int, default=50)
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    expiry(options.leases)
    sys.stdout.flush()
    contention("leases", with_leases, options.processes, options.seconds)
    sys.stdout.flush()
    contention("SQLite", with_sqlite, options.processes, options.seconds)


if __name__ == "__main__":
    main()
