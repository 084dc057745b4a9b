"""Leases and locks whose holders are gone."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault
from yolo_supervisor.formats.plugin import leases as plugin_leases


def lease_abandoned(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A lease expires whose holder does not exist."""
    locks = sandbox.planning(".locks")
    lease = locks / "src__api.py.lease"
    lease.write_bytes(plugin_leases.dump_lease("src/api.py", "nobody", datetime.now(UTC) - timedelta(seconds=60), 60))
    return Expectation(lambda: not lease.exists(), frozenset({"src/api.py"}), ("released",))


def lock_ownerless(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A killed git has left an index.lock; the lock of a checkout where git is at work stays."""
    project, other = sandbox.repository(), sandbox.folder / f"checkout-{rng.randrange(10**9)}"
    sandbox.configure(leases={"interval_s": 0.25})
    sandbox.git("worktree", "add", "-q", str(other))
    held = project / ".git" / "worktrees" / other.name / "index.lock"
    holder = sandbox.bystander_process("git", "cat-file", "--batch", folder=other)
    held.touch()
    left = project / ".git" / "index.lock"
    left.touch()
    return Expectation(
        lambda: not left.exists(),
        frozenset({left.name}),
        ("released",),
        bystander_processes=[holder],
        kept_files=[held],
    )


FAULTS: tuple[Fault, ...] = (
    lease_abandoned,
    lock_ownerless,
)
