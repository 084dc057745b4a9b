"""The plugin's own state: broken files, flags that fail."""

from __future__ import annotations

import random

from yolo_supervisor.drill.sandbox import Scene
from yolo_supervisor.drill.trial import Fault, Watch
from yolo_supervisor.formats.plugin import contracts, execution_state
from yolo_supervisor.fs.read import digest, read_or_none


def state_emptied(scene: Scene, dice: random.Random) -> Watch:
    """A crash leaves the plugin's execution state empty."""
    state = scene.planning() / execution_state.STATE_FILE
    whole = execution_state.dump(
        {"phase": 1, "status": "running", "plans": [{"id": "01-01", "status": dice.choice(("pending", "complete"))}]}
    )
    state.write_bytes(whole)
    sidecar = state.with_name(f"{state.name}.sha256")
    scene.wait(lambda: read_or_none(sidecar) == str(digest(whole)).encode(), "it was not kept as a good version")
    state.write_bytes(b"")
    return Watch(lambda: read_or_none(state) == whole, frozenset({execution_state.STATE_FILE}), ("restored",))


PLAN = """---
phase: 5
plan: 1
title: Drill
must_haves: [it works]
---
## Task 1
**Files:** src/a.py
## Task 2
**Files:** src/b.py
"""


def contract_broken(scene: Scene, dice: random.Random) -> Watch:
    """A crash leaves a plan's contract broken, and its gate lets nobody through: it is generated anew from the plan."""
    phase, contract = scene.planning("phases") / "05-drill", scene.planning(".contracts") / "5-1.json"
    phase.mkdir(exist_ok=True)
    (phase / "05-01-PLAN.md").write_text(PLAN)
    (scene.planning() / "config.json").write_text('{"v2_hard_gates": true, "v2_hard_contracts": true}')
    contract.write_bytes(dice.choice((b'{"phase": 5, "plan": 1, "contract_hash": "no"}', b'{"phase": 5}')))
    child = scene.begin("gate", "repair", "contract_compliance", "5", "1", "2")
    key = "contract_compliance/5-1-T2"
    return Watch(lambda: child.poll() == 0 and contracts.intact(contract.read_bytes()), frozenset({key}), ("repaired",))


def flag_broken(scene: Scene, dice: random.Random) -> Watch:
    """What a feature flag has switched on fails every time: it is switched off, another one stays."""
    flag, other = (f"v9_drill_{name}_{dice.randrange(10**9)}" for name in ("broken", "sound"))
    config = scene.planning() / "config.json"
    text = f'{{\n  "{other}": true, "{flag}":true,\n\t"effort": "balanced"}}'
    config.write_text(text)
    for _ in range(4):
        scene.command("flag", "record", flag, "error")
        scene.command("flag", "record", other, "ok")
    scene.begin("flag", "record", flag, "error")
    healed = text.replace(f'"{flag}":true', f'"{flag}":false').encode()
    return Watch(lambda: read_or_none(config) == healed, frozenset({flag}), ("disabled",))


FAULTS: tuple[Fault, ...] = (
    state_emptied,
    contract_broken,
    flag_broken,
)
