"""``status``: what is supervised, and its condition."""

from __future__ import annotations

from typing import Any

import click

from yolo_supervisor.cli.context import Shared, out, out_json, shared
from yolo_supervisor.cli.restart_text import restart_text


@click.command()
@shared
@click.pass_obj
def command(options: Shared) -> None:
    """Show what is supervised, and its condition. Works without a daemon too, and says so.

    \b
    Examples:
      yolo-supervisor status
      yolo-supervisor status --json | jq '.projects[0].agents'
    """
    from yolo_supervisor import config as configuration
    from yolo_supervisor.cli.project_view import ProjectView
    from yolo_supervisor.inventory.leases import readable_leases
    from yolo_supervisor.models import iso

    project = options.project()
    view = ProjectView(project, configuration.load(project, options.config))
    holder = view.holder()
    document: dict[str, Any] = {
        "version": 2,
        "at": iso(view.now),
        "daemon": {
            "running": holder is not None,
            "pid": holder.process.pid if holder else None,
            "started_at": holder.started_at if holder else None,
            "mode": holder.mode if holder else view.config.mode,
            "silent_s": view.silent_s(),
        },
        "projects": [
            {
                "path": str(project),
                "state_dir": str(view.store.paths.folder),
                "trust": {
                    "trusted": view.config.trust.trusted,
                    "edited": view.config.trust.edited,
                    "ignored": list(view.config.trust.ignored),
                    "error": view.config.trust.error or None,
                },
                "agents": view.agents_json(),
                "interrupted_agents": [
                    {"id": ended.agent.id, "ended_at": ended.at, "end": str(ended.end)}
                    for ended in (view.interrupted() if view.config.restart.restore == "ask" else ())
                ],
                "ended_agents": view.ended_agents_json(),
                "strays": view.strays_json(),
                "leases": [
                    {
                        "resource": lease.resource,
                        "owner": lease.owner,
                        "expires_at": iso(lease.expires_at) if lease.expires_at else None,
                    }
                    for lease in readable_leases(view.store.paths.planning)
                ],
                "locks": view.locks_json(),
                "unknown_pids": view.unknown_pids(),
                "tasks": view.tasks_json(),
                "dead_letters": len(view.store.index.dead_letters),
                "flags": view.flags_json(),
                "circuits": view.circuits_json(),
                "sessions": view.sessions_json(),
                "watchers": list(holder.watchers) if holder else [],
            }
        ],
    }
    if options.json:
        out_json(document)
    else:
        _print_status(document)


def _print_status(document: dict[str, Any]) -> None:
    daemon, project = document["daemon"], document["projects"][0]
    if daemon["running"]:
        out(f"{project['path']}: supervised by process {daemon['pid']} since {daemon['started_at']} ({daemon['mode']})")
        if daemon["silent_s"] is not None:
            out(f"  it has reported nothing for {daemon['silent_s']:.0f} s: it hangs or is stopped")
    else:
        out(f"{project['path']}: not supervised, no daemon is running. Start one: yolo-supervisor run")
    if error := project["trust"]["error"]:
        out(f"  supervisor.toml was changed and is not valid, so what was trusted is in force: {error}")
    if ignored := project["trust"]["ignored"]:
        changed = "has changed since it was trusted" if project["trust"]["edited"] else "is not trusted"
        out(f"  supervisor.toml {changed}; ignored: {', '.join(ignored)}. Read it, then: yolo-supervisor trust")
    if interrupted := project["interrupted_agents"]:
        were = "1 agent was" if len(interrupted) == 1 else f"{len(interrupted)} agents were"
        out(f"  {were} at work when the machine or a tmux server went down: yolo-supervisor agent restore")
    for title, rows in (
        (
            "agents",
            [
                (a["id"], a["role"], a["state"], a["activity"].replace("_", " "), f"pid {a['pid']}", a["sign"])
                for a in project["agents"]
            ],
        ),
        (
            "starts",
            [(a["id"], restart_text(a["id"], a["restart"])) for a in project["agents"] if a["restart"] is not None],
        ),
        (
            "countdowns",
            [
                (a["id"], f"will be ended in {a['ends_in_s']:.0f} s: {a['ends_because']}")
                for a in project["agents"]
                if a["ends_in_s"] is not None
            ],
        ),
        ("ended agents", [(e["id"], f"was ended at {e['ended_at']}: {e['reason']}") for e in project["ended_agents"]]),
        ("strays", [(s["id"], s["reason"]) for s in project["strays"]]),
        ("tasks", [(t["id"], t["status"], t["owner"] or "-", t["subject"]) for t in project["tasks"]]),
        (
            "dead letters",
            [(project["dead_letters"], "see: yolo-supervisor dead-letter list")][: project["dead_letters"]],
        ),
        ("leases", [(x["resource"], x["owner"], f"until {x['expires_at'] or 'released'}") for x in project["leases"]]),
        ("git's locks", [(lock["path"], lock["holder"]) for lock in project["locks"]]),
        (
            "pids in the plugin's files that no process has here",
            [(pid, "its process ended unseen, or runs in a container") for pid in project["unknown_pids"]],
        ),
        (
            "open circuits",
            [
                (
                    c["server"],
                    c["tool"] or "the whole server",
                    f"since {c['since']}",
                    c["why"],
                    f"next try in {c['retry_in_s']:g} s",
                )
                for c in project["circuits"]
            ],
        ),
        (
            "flags",
            [
                (
                    f["name"],
                    "on" if f["enabled"] else "off",
                    f"{f['errors']} of {f['samples']} failed",
                )
                for f in project["flags"]
                if f["samples"]
            ],
        ),
        ("sessions", [(s["name"], f"{s['attached']} attached", s["state"]) for s in project["sessions"]]),
        (
            "watchers",
            [
                (
                    w["name"],
                    f"every {w['interval_s']:g} s",
                    f"last {w['last_tick_at'] or 'never'}",
                    w["last_error"] or "ok",
                )
                for w in project["watchers"]
            ],
        ),
    ):
        if rows:
            out()
            out(title)
            widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
            for row in rows:
                out("  " + "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not project["agents"]:
        out()
        out("no agents")
