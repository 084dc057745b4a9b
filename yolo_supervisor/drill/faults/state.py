"""The plugin's state: broken files, flags that fail."""

from __future__ import annotations

import random

from yolo_supervisor.drill.sandbox import Sandbox
from yolo_supervisor.drill.trial import Expectation, Fault
from yolo_supervisor.formats.plugin import contracts, execution_state
from yolo_supervisor.fs.read import digest, read_or_none


def state_emptied(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A crash leaves the plugin's execution state empty."""
    state = sandbox.planning() / execution_state.STATE_FILE
    content = execution_state.dump(
        {"phase": 1, "status": "running", "plans": [{"id": "01-01", "status": rng.choice(("pending", "complete"))}]}
    )
    state.write_bytes(content)
    checksum = state.with_name(f"{state.name}.sha256")
    sandbox.wait(lambda: read_or_none(checksum) == str(digest(content)).encode(), "it was not saved as a good version")
    state.write_bytes(b"")
    return Expectation(lambda: read_or_none(state) == content, frozenset({execution_state.STATE_FILE}), ("restored",))


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


def contract_broken(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A crash leaves a contract broken, and its gate fails: it is generated again from its plan."""
    phase, contract = sandbox.planning("phases") / "05-drill", sandbox.planning(".contracts") / "5-1.json"
    phase.mkdir(exist_ok=True)
    (phase / "05-01-PLAN.md").write_text(PLAN)
    (sandbox.planning() / "config.json").write_text('{"v2_hard_gates": true, "v2_hard_contracts": true}')
    contract.write_bytes(rng.choice((b'{"phase": 5, "plan": 1, "contract_hash": "no"}', b'{"phase": 5}')))
    child = sandbox.start_command("gate", "repair", "contract_compliance", "5", "1", "2")
    key = "contract_compliance/5-1-T2"
    return Expectation(
        lambda: child.poll() == 0 and contracts.intact(contract.read_bytes()), frozenset({key}), ("repaired",)
    )


def flag_broken(sandbox: Sandbox, rng: random.Random) -> Expectation:
    """A feature flag fails every time: it is disabled, another flag stays enabled."""
    flag, other = (f"v9_drill_{name}_{rng.randrange(10**9)}" for name in ("broken", "sound"))
    config = sandbox.planning() / "config.json"
    text = f'{{\n  "{other}": true, "{flag}":true,\n\t"effort": "balanced"}}'
    config.write_text(text)
    for _ in range(4):
        sandbox.run_command("flag", "record", flag, "error")
        sandbox.run_command("flag", "record", other, "ok")
    sandbox.start_command("flag", "record", flag, "error")
    healed = text.replace(f'"{flag}":true', f'"{flag}":false').encode()
    return Expectation(lambda: read_or_none(config) == healed, frozenset({flag}), ("disabled",))


FAULTS: tuple[Fault, ...] = (
    state_emptied,
    contract_broken,
    flag_broken,
)
