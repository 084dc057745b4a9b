"""Leases and locks whose holders are gone."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from yolo_supervisor.drill.sandbox import Scene
from yolo_supervisor.drill.trial import Fault, Watch
from yolo_supervisor.formats.plugin import leases as plugin_leases


def lease_abandoned(scene: Scene, dice: random.Random) -> Watch:
    """A lease runs out whose holder is nobody that is there."""
    locks = scene.planning(".locks")
    lease = locks / "src__api.py.lease"
    lease.write_bytes(plugin_leases.dump_lease("src/api.py", "nobody", datetime.now(UTC) - timedelta(seconds=60), 60))
    return Watch(lambda: not lease.exists(), frozenset({"src/api.py"}), ("released",))


def lock_ownerless(scene: Scene, dice: random.Random) -> Watch:
    """A killed git has left index.lock behind; that of another checkout, where a git is at work, stays."""
    project, other = scene.repository(), scene.folder / f"checkout-{dice.randrange(10**9)}"
    scene.configure(leases={"interval_s": 0.25})
    scene.git("worktree", "add", "-q", str(other))
    held = project / ".git" / "worktrees" / other.name / "index.lock"
    holder = scene.stranger("git", "cat-file", "--batch", folder=other)
    held.touch()
    left = project / ".git" / "index.lock"
    left.touch()
    return Watch(lambda: not left.exists(), frozenset({left.name}), ("released",), strangers=[holder], kept=[held])


FAULTS: tuple[Fault, ...] = (
    lease_abandoned,
    lock_ownerless,
)
