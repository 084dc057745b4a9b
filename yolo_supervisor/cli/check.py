"""``check``: what would be done now."""

from __future__ import annotations

from typing import Any

import click

from yolo_supervisor.cli.context import Shared, out, out_json, shared


@click.command()
@shared
@click.pass_obj
def command(options: Shared) -> None:
    """Validate the configuration and show what would be done now, without changing anything.

    Every watcher is asked once. Actions that need a condition to last, such as a session that stays detached, are not
    shown.

    \b
    Examples:
      yolo-supervisor check
      yolo-supervisor check --json | jq '.actions[].reason'
    """
    import anyio

    from yolo_supervisor import config as configuration
    from yolo_supervisor.cli.project_view import ProjectView
    from yolo_supervisor.daemon.executor import PROPOSED, proposals

    project = options.project()
    view = ProjectView(project, configuration.load(project, options.config))
    actions: list[dict[str, Any]] = []
    for watcher in view.watchers():
        actions += [
            {
                "by": watcher.name,
                "kind": action.kind,
                "key": action.key,
                "action": f"{PROPOSED}{action.verb}",
                "reason": action.reason,
                "evidence": dict(action.evidence),
            }
            for action in proposals(anyio.run(watcher.tick, view.now))
        ]
    if options.json:
        out_json({"version": 2, "project": str(project), "mode": view.config.mode, "actions": actions})
        return
    out(f"{project}: the configuration is valid (mode {view.config.mode})")
    for action in actions:
        out(f"  {action['action']:<16} {action['kind']} {action['key']}: {action['reason']}")
    if not actions:
        out("  nothing to do")
