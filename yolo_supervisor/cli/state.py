"""``state``: verify the plugin's critical files, restore broken ones, take up older state folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from yolo_supervisor import config as configuration
from yolo_supervisor.actions import notes
from yolo_supervisor.actions.base import Escalate
from yolo_supervisor.cli.consent import refuse_agents
from yolo_supervisor.cli.context import (
    EX_NO,
    EX_TEMPFAIL,
    NonEmptyPath,
    Shared,
    fail,
    out,
    out_json,
    print_result,
    shared,
)
from yolo_supervisor.cli.project_view import PATIENCE_S, ProjectView, project_view
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.models import FlawCode
from yolo_supervisor.store import state_folder
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.paths import Paths
from yolo_supervisor.store.store import Outcome, write_note
from yolo_supervisor.watchers.state import Broken, StateObservation, decide, repair_of


@click.group()
def command() -> None:
    """Verify and restore the plugin's critical files, and take up older state of the supervisor's own.

    \b
    Examples:
      yolo-supervisor state verify
      yolo-supervisor state recover
      yolo-supervisor state adopt
    """


@command.command("verify")
@shared
@click.pass_obj
def verify(options: Shared) -> None:
    """Check every critical file, and the journal.

    Nothing is changed. Exit code 1 if any of them is broken.

    \b
    Examples:
      yolo-supervisor state verify
      yolo-supervisor state verify --json | jq '.files[] | select(.flaw)'
    """
    view = project_view(options)
    watcher = view.state()
    observation = watcher.observe(view.now, 0.0)
    flaws = {broken.key: (broken.flaw.text, _plan(broken)) for broken in observation.broken}
    flaws |= {
        unreadable.key: (f"cannot be read: {unreadable.text}", "ask you to repair or remove it")
        for unreadable in observation.unreadable
    }
    keys = [str(path.relative_to(view.store.paths.planning)) for path in watcher.files()]
    files: list[dict[str, Any]] = [
        {"file": key, "flaw": flaws.get(key, (None, None))[0], "would": flaws.get(key, (None, None))[1]} for key in keys
    ]
    journal = [damage.what for damage in view.store.journal.damage]
    if view.store.journal.unreadable:
        journal.append(view.store.journal.unreadable)
    if options.json:
        out_json({"version": 2, "project": str(view.project), "sound": not (flaws or journal), "files": files,
                  "journal": journal})  # fmt: skip
    else:
        for file in files:
            if file["flaw"]:
                out(f"BROKEN  {file['file']}: {file['flaw']}")
                out(f"        recover would {file['would']}")
            else:
                out(f"ok      {file['file']}")
        for damage in journal:
            out(f"BROKEN  the supervisor's journal: {damage}")
        if not files:
            out(f"no critical files in {view.project}")
    if flaws or journal:
        raise SystemExit(EX_NO)


def _plan(broken: Broken) -> str:
    if broken.flaw.code is FlawCode.UNMERGED:
        return "leave it to you: resolve the conflict, then git add it"
    repair = repair_of(broken)
    if isinstance(repair, int):
        return "cut off its last line, with a copy in quarantine/"
    if repair is None:
        return "ask you: there is nothing to restore it from"
    return f"remove it, {repair.text}" if repair.data is None else f"restore it from {repair.text}"


@command.command("adopt")
@click.argument("folder", required=False, type=NonEmptyPath(path_type=Path))
@click.option("--new", is_flag=True, help="Begin with a new state folder, whatever the project's link leads to.")
@click.option("--dismiss", is_flag=True, help="Leave all older state folders aside, and report them no more.")
@shared
@click.pass_obj
def adopt(options: Shared, folder: Path | None, new: bool, dismiss: bool) -> None:
    """Take up an older state folder.

    It may be that of a restored backup, of a copy or of another machine. A state folder holds the journal, agent
    records, dead letters and attempts, and is used only if it was made for this project on this machine. FOLDER is
    needed if there are several to choose from. The folder in use so far is set aside and kept. Stop the daemon before.

    \b
    Examples:
      yolo-supervisor state adopt
      yolo-supervisor state adopt /mnt/backup/shop/.yolo-planning/.supervisor
      yolo-supervisor state adopt --dismiss
    """
    if new + dismiss + (folder is not None) > 1:
        raise click.UsageError("give FOLDER, --new or --dismiss, and only one of them")
    view = ProjectView(options.project(), configuration.load(None, options.config))
    refuse_agents(view)
    disk, paths = Disk(), view.store.paths
    try:
        state_folder.refuse_other_owners_root(disk, paths)
        if new:
            state_folder.begin_here(disk, paths, PATIENCE_S)
            print_result(options, _adopted(paths), f"the state of {paths.project} is in {paths.folder}")
            return
        if folder is None:
            state_folder.enrol(disk, paths, PATIENCE_S)
        older = state_folder.undecided(disk, paths) if folder is None else []
        if dismiss:
            kept = state_folder.dismiss(disk, paths, PATIENCE_S)
            text = "\n".join(f"left aside: {each}" for each in kept) or "there is no older state folder"
            print_result(options, {**_adopted(paths), "left_aside": [str(each) for each in kept]}, text)
            return
        if folder is None and len(older) != 1:
            for each in older:
                click.echo(f"  {each.folder}", err=True)
            fail(EX_NO, "name one of these folders" if older else f"{paths.project} has no older state folder")
        chosen = Path(os.path.abspath(folder)) if folder is not None else older[0].folder
        replaced = state_folder.adopt(disk, paths, chosen, PATIENCE_S)
        write_note(paths.project, notes.adopted(folder=chosen, replaced=replaced), "cli")
    except Busy as error:
        fail(EX_TEMPFAIL, str(error))
    except (OSError, Refused) as error:
        fail(EX_NO, str(error))
    aside = f"; what was in use is in {replaced}" if replaced is not None else ""
    print_result(options, {**_adopted(paths), "adopted": str(chosen)}, f"taken up: {chosen}{aside}")


def _adopted(paths: Paths) -> dict[str, Any]:
    return {"version": 2, "project": str(paths.project), "state_dir": str(paths.folder)}


@command.command("recover")
@shared
@click.pass_obj
def recover(options: Shared) -> None:
    """Restore every broken critical file.

    The sources are its last good version, else a snapshot, else plans and events. A copy of the broken file is kept in
    quarantine/ in the state folder. Exit code 1 if a file cannot be restored.

    \b
    Examples:
      yolo-supervisor state recover
      yolo-supervisor state recover --json
    """
    view = project_view(options)
    view.note_flags_off(plugin_config.EVENT_RECOVERY)
    observation = view.state().observe(view.now, 0.0)
    view.store.open()
    view.store.recover()
    done: list[dict[str, Any]] = []
    restorable = StateObservation(broken=observation.broken, unreadable=observation.unreadable)
    for remediation in decide(restorable, view.store.paths.quarantine, by_hand=True):
        outcome, last = view.carry_out(*remediation), remediation[-1]
        left = isinstance(last, Escalate) or outcome is Outcome.STALE
        done.append({"file": last.key, "result": "left" if left else last.verb, "reason": last.reason})
    if options.json:
        out_json({"version": 2, "project": str(view.project), "files": done})
    else:
        for file in done:
            out(f"{file['result']:<9} {file['file']}: {file['reason']}")
        if not done:
            out("no critical file is broken")
    if any(file["result"] == "left" for file in done):
        raise SystemExit(EX_NO)
