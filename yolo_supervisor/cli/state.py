"""``state``: verify the plugin's critical files, and restore broken ones."""

from __future__ import annotations

from typing import Any

import click

from yolo_supervisor.actions.base import Escalate
from yolo_supervisor.cli.context import EX_NO, Shared, out, out_json, shared
from yolo_supervisor.cli.project_view import project_view
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.store.store import Outcome
from yolo_supervisor.watchers.state import Broken, StateObservation, decide, repair_of


@click.group()
def command() -> None:
    """Verify the plugin's critical files, and restore broken ones.

    \b
    Examples:
      yolo-supervisor state verify
      yolo-supervisor state recover
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
    repair = repair_of(broken)
    if isinstance(repair, int):
        return "cut off its last line, with a copy in quarantine/"
    if repair is None:
        return "ask you: there is nothing to restore it from"
    return f"remove it, {repair.text}" if repair.data is None else f"restore it from {repair.text}"


@command.command("recover")
@shared
@click.pass_obj
def recover(options: Shared) -> None:
    """Restore every broken critical file.

    The sources are its last good version, else a snapshot, else plans and events. A copy of the broken file is kept in
    .yolo-planning/.supervisor/quarantine/. Exit code 1 if a file cannot be restored.

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
    for remediation in decide(restorable, view.store.paths.quarantine):
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
