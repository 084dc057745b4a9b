"""``snapshot``: save, list and restore snapshots of the execution state."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import click

from yolo_supervisor.actions.state import Restore, quarantine
from yolo_supervisor.cli.context import (
    EX_DATAERR,
    EX_NO,
    Shared,
    fail,
    fail_busy,
    out,
    out_json,
    print_result,
    restrict_umask,
    shared,
)
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats.json import load_object, text_or_none
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import execution_state
from yolo_supervisor.formats.plugin.snapshots import Snapshot
from yolo_supervisor.fs.read import digest, read
from yolo_supervisor.inventory.snapshots import Snapshots
from yolo_supervisor.models import iso
from yolo_supervisor.store.paths import quarantine_file
from yolo_supervisor.store.store import Outcome
from yolo_supervisor.watchers.base import Remediation

GIT_LIMIT_S = 2.0


@click.group()
def command() -> None:
    """Save, list and restore snapshots of the execution state, in the plugin's format and folder.

    \b
    Examples:
      yolo-supervisor snapshot save
      yolo-supervisor snapshot list
      yolo-supervisor snapshot restore 3-20260224T110957.json
    """
    restrict_umask()


@command.command("save")
@click.option("--role", help="The agent that it is for (default: the one that the plugin says is active).")
@shared
@click.pass_obj
def save(options: Shared, role: str | None) -> None:
    """Save the execution state as a snapshot. Ten of a phase are kept.

    \b
    Example:
      yolo-supervisor snapshot save --role dev
    """
    view = project_view(options)
    view.note_flags_off(plugin_config.SNAPSHOT_RESUME)
    state = _state(view)
    if state is None:
        fail(EX_DATAERR, "the execution state is missing or broken; see: yolo-supervisor state verify")
    snapshots = Snapshots(view.store.paths)
    view.store.open()
    remediation = snapshots.save(state, view.now, "manual", role, _commits(view.project))
    view.carry_out(*remediation)
    path = remediation[0].path
    print_result(options, {"result": "saved", "id": path.name, "path": str(path)}, str(path))


@command.command("list")
@shared
@click.pass_obj
def list_snapshots(options: Shared) -> None:
    """List all snapshots, the newest first.

    The plugin's snapshots are among them.

    \b
    Example:
      yolo-supervisor snapshot list --json
    """
    view = project_view(options)
    rows = [_row(path, snapshot) for path, snapshot in reversed(Snapshots(view.store.paths).all())]
    if options.json:
        out_json({"version": 2, "project": str(view.project), "snapshots": rows})
        return
    for row in rows:
        plans = f"{row['done']}/{row['plans']} plans"
        out(f"{row['id']}  phase {row['phase']}  {row['status']}  {plans}  by {row['role'] or '-'}")
    if not rows:
        out(f"no snapshots in {view.project}")


@command.command("restore")
@click.argument("ident", metavar="[ID]", required=False)
@click.option("--role", help="Without ID: the newest of this role, or the newest if it has none.")
@click.option("--phase", help="Without ID: only of this phase.")
@shared
@click.pass_obj
def restore(options: Shared, ident: str | None, role: str | None, phase: str | None) -> None:
    """Replace the execution state by a snapshot (default: the newest).

    The present state is saved as a snapshot first.

    \b
    Examples:
      yolo-supervisor snapshot restore
      yolo-supervisor snapshot restore --role dev --phase 3
      yolo-supervisor snapshot restore 3-20260224T110957.json
    """
    view = project_view(options)
    view.note_flags_off(plugin_config.SNAPSHOT_RESUME)
    snapshots = Snapshots(view.store.paths)
    if ident is None:
        wanted = snapshots.best(phase, role or snapshots.active_role())
    else:
        wanted = next((snapshot for path, snapshot in snapshots.all() if ident in (path.name, path.stem)), None)
    if wanted is None:
        fail(EX_NO, f"no snapshot {ident or 'matches'}; see: yolo-supervisor snapshot list")
    path = view.store.paths.planning / execution_state.STATE_FILE
    before = read(path)
    state = _state(view)
    view.store.open()
    if before:
        copy: Remediation
        if state is not None:
            copy = snapshots.save(state, view.now, f"before {wanted.name} was restored")[:1]
        else:
            file = quarantine_file(view.store.paths.quarantine, path.name, before)
            reason = f"it is broken, and is being replaced by the snapshot {wanted.name}"
            copy = (quarantine(key=execution_state.STATE_FILE, path=file, data=before, reason=reason),)
        view.carry_out(*copy)
    action = Restore(
        key=execution_state.STATE_FILE,
        path=path,
        expected_digest=digest(before),
        data=execution_state.dump(wanted.state),
        flaw=None,
        reason=f"replaced by the snapshot {wanted.name} on the command line",
        evidence={"source": wanted.name},
    )
    if view.carry_out(action) is not Outcome.DONE:
        fail_busy("the execution state")
    document = {"result": "restored", "id": wanted.name, "path": str(path)}
    print_result(options, document, f"restored {path} from {wanted.name}")


def _state(view: ProjectView) -> dict[str, Any] | None:
    data = read(view.store.paths.planning / execution_state.STATE_FILE)
    return load_object(data) if data is not None else None


def _row(path: Path, snapshot: Snapshot) -> dict[str, Any]:
    plans = snapshot.state.get("plans")
    listed = [plan for plan in plans if isinstance(plan, dict)] if isinstance(plans, list) else []
    return {
        "id": path.name,
        "path": str(path),
        "phase": snapshot.phase,
        "at": iso(snapshot.at),
        "role": snapshot.role,
        "trigger": snapshot.trigger,
        "status": str(snapshot.state.get("status")),
        "plans": len(listed),
        "done": sum(text_or_none(plan.get("status")) in execution_state.COMPLETE for plan in listed),
    }


def _commits(project: Path) -> tuple[str, ...]:
    """The newest commits in the plugin's form; none without git."""
    try:
        log = subprocess.run(
            ["git", "-C", str(project), "log", "--oneline", "-5"],
            capture_output=True, text=True, errors="replace", timeout=GIT_LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(log.stdout.splitlines()) if log.returncode == 0 else ()
