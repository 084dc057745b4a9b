"""``explain``: the history of one agent, task or file, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from yolo_supervisor.cli.context import EX_NO, KINDS, Shared, entries, fail, out, out_json, shared
from yolo_supervisor.cli.restart_text import restart_text
from yolo_supervisor.models import from_iso

if TYPE_CHECKING:
    from yolo_supervisor.store.lines import Entry


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("key")
@shared
@click.pass_obj
def command(options: Shared, kind: str, key: str) -> None:
    """Show what was done to one agent, task, lease or file, why, on what evidence.

    \b
    Examples:
      yolo-supervisor explain task 3
      yolo-supervisor explain agent dev-1@session-85d6cfb4
    """
    from yolo_supervisor.cli.history import matches
    from yolo_supervisor.store.history import History
    from yolo_supervisor.store.lines import fields
    from yolo_supervisor.store.paths import Paths

    project = options.project()
    story = [
        entry
        for entry in entries(History(Paths(project).journal))
        if (entry.kind == KINDS[kind] and matches(entry.key, key))
        or (kind == "agent" and matches(str(entry.evidence.get("agent", "")), key))
    ]
    restarts = _restarts(options, {entry.key for entry in story if entry.kind == "agent"}) if kind == "agent" else {}
    if options.json:
        listed = [fields(entry) for entry in story]
        said = {"version": 2, "kind": kind, "key": key, "project": str(project), "story": listed}
        out_json({**said, "restart": restarts} if kind == "agent" else said)
    else:
        for entry in story:
            _print_entry(entry)
        for ident, restart in restarts.items():
            out(f"now: {ident} {restart_text(ident, restart)} ({restart['code']})")
    if not options.json and (reports := [e.evidence["report"] for e in story if _has_report(e)]):
        out(f"crash report: yolo-supervisor crash show {reports[-1]}")
    if not story:
        fail(EX_NO, f"the journal of {project} has no entries about {kind} {key}; see: yolo-supervisor status")


def _restarts(options: Shared, idents: set[str]) -> dict[str, dict[str, Any]]:
    """The present states of the starts of these agents, by their ids."""
    from yolo_supervisor.cli.project_view import project_view

    if not idents:
        return {}
    view = project_view(options)
    found = {ident: view.restart_json(ident) for ident in sorted(idents)}
    return {ident: restart for ident, restart in found.items() if restart is not None}


def _has_report(entry: Entry) -> bool:
    return entry.action == "died" and isinstance(entry.evidence.get("report"), str)


def _print_entry(entry: Entry) -> None:
    at = from_iso(entry.at).astimezone()
    out(f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + f"  {entry.kind} {entry.key} {entry.action.replace('_', ' ')}")
    out(f"    because {entry.reason} (decided by {entry.by})")
    for name, value in entry.evidence.items():
        if isinstance(value, list) and any(isinstance(item, str) and " " in item for item in value):
            out(f"    {name}:")
            for item in value:
                out(f"      {item}")
        else:
            out(f"    {name}: {', '.join(str(item) for item in value) if isinstance(value, list) else value}")
