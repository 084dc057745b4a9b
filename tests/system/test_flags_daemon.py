"""Flags under the real daemon, and outcomes that many processes record at once."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from support.cli import Cli
from support.daemon import RunningDaemon, StartDaemon
from support.processes import Children
from support.wait import LIMIT_S
from yolo_supervisor.clock import SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.formats import plugin
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import event_log, execution_state
from yolo_supervisor.inventory.flag_outcomes import FlagOutcomes
from yolo_supervisor.inventory.flag_record import (
    flag_file,
    load_record,
)
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store
from yolo_supervisor.system.process_backend import backend

GATES, CONTRACTS = "v2_hard_gates", "v2_hard_contracts"
ROUTING = "v3_smart_routing"
CONFIG = Path("config.json")


# -- counting -----------------------------------------------------------------------------------------------------


def metric(failed: bool, task: int, at: datetime | None) -> bytes:
    raw = {
        "data": {"gate": "contract_compliance", "task": str(task)}, "event": "gate_fail" if failed else "gate_pass",
        "phase": 5, "plan": 1, **({"ts": f"{at:%Y-%m-%dT%H:%M:%SZ}"} if at else {}),
    }  # fmt: skip
    return json.dumps(raw, separators=(",", ":")).encode() + b"\n"


RECORDER = """
import sys
import time
from pathlib import Path
from yolo_supervisor.clock import Instant, SystemClock
from yolo_supervisor.config import Config
from yolo_supervisor.inventory.flag_outcomes import FlagOutcomes
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Store
store = Store(Path(sys.argv[1]), lock_limit_s=30.0)
store.open()
flags = FlagOutcomes(Config(), store, SystemClock(), "here")
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
for number in range(50):
    flags.record("v3_smart_routing", number % 5 == 0)
    flags.record(f"v3_own_{sys.argv[2]}", False)
"""


def test_concurrent_records_of_many_processes_all_count(children: Children, project: Path) -> None:
    go = project / "go"
    recorders = [children.python(RECORDER, str(project), str(number), str(go)) for number in range(6)]
    go.touch()
    assert [recorder.wait(LIMIT_S) for recorder in recorders] == [0] * 6

    stored = (Paths(project).folder / "flags" / flag_file(ROUTING)).read_bytes()
    assert json.loads(stored)["ever"] == 300
    found = load_record(stored, "here", 1e9)
    assert found is not None
    assert all(5 * p.errors <= 2 * p.samples for p in found.e_process.buckets)


# -- the real daemon ----------------------------------------------------------------------------------------------

WRITTEN = '{\n  "v3_smart_routing":true, "x": 1.50,\n\t"v3_event_log": true, "v4_other": true}'


@pytest.fixture
def config(project: Path) -> Path:
    path = project / plugin.PLANNING / CONFIG
    path.write_text(WRITTEN)
    return path


def fail(project: Path, name: str, times: int = 6, failed: bool = True) -> None:
    """As the command does, many times over."""
    with closing(Store(project, lock_limit_s=10.0)) as store:
        store.open()
        flags = FlagOutcomes(Config(), store, SystemClock(), backend().boot())
        for _ in range(times):
            flags.record(name, failed)


def wait_for(running: RunningDaemon, action: str, key: str = ROUTING) -> dict[str, Any]:
    found: list[dict[str, Any]] = running.wait(lambda: running.did(action, key), f"{key} to be {action}")
    return found[-1]


def test_a_failing_flag_is_disabled_and_nothing_else_changes(project: Path, daemon: StartDaemon, config: Path) -> None:
    running = daemon()
    fail(project, "v4_other", 3, failed=False)
    fail(project, ROUTING)

    entry = wait_for(running, "disabled")
    assert config.read_text() == WRITTEN.replace('routing":true', 'routing":false')
    assert (entry["kind"], entry["by"]) == ("flag", "flags")
    assert entry["evidence"]["errors"] == entry["evidence"]["samples"] >= 5
    assert "yolo-supervisor flag enable" in wait_for(running, "escalated")["reason"]
    (event,) = map(json.loads, (project / plugin.PLANNING / event_log.EVENT_LOG).read_text().splitlines())
    assert (event["event"], event["data"]["flag"]) == ("error", ROUTING)
    assert event["data"]["errors"] == str(entry["evidence"]["errors"])


def test_a_flag_enabled_by_command_starts_an_epoch(project: Path, daemon: StartDaemon, config: Path) -> None:
    cli, running = Cli(project), daemon()
    fail(project, ROUTING)
    wait_for(running, "disabled")
    assert cli("flag", "enable", ROUTING).returncode == 0
    fail(project, ROUTING, 4)
    fail(project, "v4_other", failed=False)

    (mine, _) = sorted(cli.json("flag", "list")["flags"], key=lambda flag: str(flag["name"]))[1:]
    assert (mine["name"], mine["errors"], mine["verdict"]) == (ROUTING, 4, "too few")
    assert config.read_text() == WRITTEN
    fail(project, ROUTING, 1)
    running.wait(lambda: len(running.did("disabled", ROUTING)) == 2, "the flag to be disabled again")


def test_a_flag_enabled_in_the_file_by_hand_stays_enabled(project: Path, daemon: StartDaemon, config: Path) -> None:
    cli, running = Cli(project), daemon()
    fail(project, ROUTING)
    wait_for(running, "disabled")
    config.write_text(WRITTEN)

    assert "by hand" in wait_for(running, "enabled")["reason"]
    assert config.read_text() == WRITTEN
    assert cli.json("flag", "list")["flags"][1]["samples"] == 0


def test_observe_mode_reports_a_proposal_once_and_counts_outcomes(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    running = daemon("--observe")
    fail(project, ROUTING)
    wait_for(running, "would_disabled")
    fail(project, ROUTING)
    fail(project, "v4_other")
    wait_for(running, "would_disabled", "v4_other")
    running.wait((running.folder / "flags" / "marks").exists, "the read positions to be saved")

    assert config.read_text() == WRITTEN
    assert len(running.did("would_disabled", ROUTING)) == 1


def test_an_unknown_flag_is_counted_and_the_configuration_stays(
    project: Path, daemon: StartDaemon, config: Path
) -> None:
    cli, running = Cli(project), daemon()
    fail(project, "v3_unheard/of ü")
    fail(project, ROUTING)
    wait_for(running, "escalated")

    assert "unheard" not in config.read_text()
    assert [entry["key"] for entry in running.history() if entry["kind"] == "flag"] == [ROUTING, ROUTING]
    (found,) = (flag for flag in cli.json("flag", "list")["flags"] if "unheard" in flag["name"])
    assert (found["name"], found["enabled"], found["errors"]) == ("v3_unheard/of ü", None, 6)


def test_gates_that_let_nothing_pass_are_disabled_by_the_plugins_metrics(project: Path, daemon: StartDaemon) -> None:
    path = project / plugin.PLANNING / CONFIG
    path.write_bytes(execution_state.dump({GATES: True, CONTRACTS: True}))
    metrics = project / plugin.PLANNING / event_log.METRICS
    running = daemon()
    running.wait(
        (project / plugin.PLANNING / ".supervisor" / "flags" / "marks").exists, "the first observation to be saved"
    )
    metrics.parent.mkdir()
    metrics.write_bytes(b"".join(metric(True, number, datetime.now(UTC)) for number in range(8)))

    running.wait(
        lambda: plugin_config.switches(path.read_bytes()) == {GATES: False, CONTRACTS: False},
        "both flags to be disabled",
    )
    wait_for(running, "escalated", CONTRACTS)
    assert [entry["key"] for entry in running.did("disabled")] == [GATES, CONTRACTS]


def test_a_failing_save_is_logged_and_a_flag_is_still_disabled(project: Path, daemon: StartDaemon) -> None:
    path = project / plugin.PLANNING / CONFIG
    path.write_bytes(execution_state.dump({CONTRACTS: True}))
    (Paths(project).flags / "lock").mkdir(parents=True)
    metrics = project / plugin.PLANNING / event_log.METRICS
    metrics.parent.mkdir()
    metrics.write_bytes(b"".join(metric(True, number, datetime.now(UTC)) for number in range(8)))
    running = daemon()

    wait_for(running, "disabled", CONTRACTS)
    assert "status_file_failed" in running.log.read_text()


def test_a_due_probation_enables_the_flag(project: Path, daemon: StartDaemon, config: Path) -> None:
    running = daemon(config="[flags]\nprobation_s = 0.5\n")
    fail(project, ROUTING)
    wait_for(running, "disabled")

    assert "probation" in wait_for(running, "enabled")["reason"]
    assert config.read_text() == WRITTEN


def test_a_broken_configuration_is_left_to_its_owner(project: Path, daemon: StartDaemon, config: Path) -> None:
    broken = WRITTEN.replace("{", "{ // mine", 1)
    config.write_text(broken)
    running = daemon()
    fail(project, ROUTING)

    assert "cannot be read" in wait_for(running, "escalated")["reason"]
    assert config.read_text() == broken
    assert running.did("disabled") == []
