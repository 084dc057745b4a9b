"""``state``: are the plugin's critical files whole, and if not, make them so."""

from __future__ import annotations

from typing import Any

import click

from yolo_supervisor.actions.base import Escalate
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, Shared, fail, out, out_json, shared
from yolo_supervisor.cli.project_view import carry_out, project_view
from yolo_supervisor.store.store import Outcome
from yolo_supervisor.watchers.state import Broken, StateObservation, decide, repair_of


@click.group()
def command() -> None:
    """Verify the plugin's critical files; recover those that are broken.

    \b
    Examples:
      yolo-supervisor state verify
      yolo-supervisor state recover
    """


@command.command("verify")
@shared
@click.pass_obj
def verify(options: Shared) -> None:
    """Look at every critical file and at our own journal. Exit code 1 if any is damaged. Changes nothing.

    \b
    Examples:
      yolo-supervisor state verify
      yolo-supervisor state verify --json | jq '.files[] | select(.flaw)'
    """
    view = project_view(options)
    watcher = view.state()
    observation = watcher.observe(view.now, 0.0)
    flaws = {each.key: (each.flaw.text, _plan(each)) for each in observation.broken}
    flaws |= {
        each.key: (f"cannot be read: {each.text}", "ask you to repair or remove it") for each in observation.unreadable
    }
    keys = [str(path.relative_to(view.store.paths.planning)) for path in watcher.files()]
    files: list[dict[str, Any]] = [
        {"file": key, "flaw": flaws.get(key, (None, None))[0], "would": flaws.get(key, (None, None))[1]} for key in keys
    ]
    journal = [each.what for each in view.store.journal.damage]
    if view.store.journal.unreadable:
        journal.append(view.store.journal.unreadable)
    if options.json:
        out_json({"version": 2, "project": str(view.project), "sound": not (flaws or journal), "files": files,
                  "journal": journal})  # fmt: skip
    else:
        for each in files:
            out(
                f"{'BROKEN' if each['flaw'] else 'well  '}  {each['file']}"
                + (f": {each['flaw']}" if each["flaw"] else "")
            )
            if each["would"]:
                out(f"        recover would {each['would']}")
        for what in journal:
            out(f"BROKEN  the supervisor's own journal: {what}")
        if not files:
            out("there are no critical files here")
    if flaws or journal:
        raise SystemExit(EX_NO)


def _plan(broken: Broken) -> str:
    repair = repair_of(broken)
    if isinstance(repair, int):
        return "cut it off, with a copy in the quarantine"
    if repair is None:
        return "ask you: there is nothing to restore it from"
    return f"remove it, {repair.text}" if repair.data is None else f"restore it from {repair.text}"


@command.command("recover")
@shared
@click.pass_obj
def recover(options: Shared) -> None:
    """Restore every broken critical file: from its last good version, else a snapshot, else plans and events.

    What is broken is kept in .yolo-planning/.supervisor/quarantine. Exit code 1 if something is left to you.

    \b
    Examples:
      yolo-supervisor state recover
      yolo-supervisor state recover --json
    """
    view = project_view(options)
    observation = view.state().observe(view.now, 0.0)
    view.store.open()
    view.store.recover()
    done: list[dict[str, Any]] = []
    restorable = StateObservation(broken=observation.broken, unreadable=observation.unreadable)
    for remediation in decide(restorable, view.store.paths.quarantine):
        outcome, last = carry_out(view.store, remediation), remediation[-1]
        if outcome is Outcome.BUSY:
            fail(EX_TEMPFAIL, f"{last.key} is being written to: try again")
        left = isinstance(last, Escalate) or outcome is Outcome.STALE
        done.append({"file": last.key, "result": "left" if left else last.verb, "reason": last.reason})
    if options.json:
        out_json({"version": 2, "project": str(view.project), "files": done})
    else:
        for each in done:
            out(f"{each['result']:<9} {each['file']}: {each['reason']}")
        if not done:
            out("nothing is broken")
    if any(each["result"] == "left" for each in done):
        raise SystemExit(EX_NO)
