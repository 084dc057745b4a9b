"""Leases and locks whose holders are gone."""

from __future__ import annotations

import random
import signal
from datetime import UTC, datetime, timedelta

from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault, send
from yolo_supervisor.formats.plugin import leases as plugin_leases


def lease_abandoned(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A lease expires whose holder does not exist."""
    locks = sandbox.planning(".locks")
    lease = locks / "src__api.py.lease"
    lease.write_bytes(plugin_leases.dump_lease("src/api.py", "nobody", datetime.now(UTC) - timedelta(seconds=60), 60))
    return Expectation(lambda: not lease.exists(), frozenset({"src/api.py"}), ("released",))


def lock_ownerless(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A killed git has left an index.lock; those of a git that is at work, and of one without a known holder, stay."""
    project, other = sandbox.repository(), sandbox.folder / f"checkout-{rng.randrange(10**9)}"
    sandbox.configure(leases={"interval_s": 0.25})
    unseen = sandbox.folder / f"checkout-{rng.randrange(10**9)}"
    for tree in (other, unseen):
        sandbox.git("worktree", "add", "-q", str(tree))
    holder, held = sandbox.git_with_index_lock(other)
    unseen_lock = project / ".git" / "worktrees" / unseen.name / "index.lock"
    unseen_lock.touch()
    reader = sandbox.bystander_process("git", "cat-file", "--batch")
    killed, left = sandbox.git_with_index_lock(project)
    send(killed, signal.SIGKILL)
    return Expectation(
        lambda: not left.exists(),
        frozenset({left.name}),
        ("released",),
        bystander_processes=[holder, reader],
        kept_files=[held, unseen_lock],
    )


FAULTS: tuple[Fault, ...] = (
    lease_abandoned,
    lock_ownerless,
)
