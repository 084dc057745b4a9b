"""``check``: what would be done now."""

from __future__ import annotations

from typing import Any

import click

from yolo_supervisor.cli.context import Shared, out, out_json, shared


@click.command()
@shared
@click.pass_obj
def command(options: Shared) -> None:
    """Validate the configuration, ask every watcher once and print what it would do. Changes nothing.

    One look cannot know for how long a session has been detached: what needs patience is not shown.

    \b
    Examples:
      yolo-supervisor check
      yolo-supervisor check --json | jq '.actions[].reason'
    """
    import anyio

    from yolo_supervisor import config as configuration
    from yolo_supervisor.actions.state import SaveVersion
    from yolo_supervisor.cli.project_view import ProjectView

    project = options.project()
    view = ProjectView(project, configuration.load(project, options.config))
    actions: list[dict[str, Any]] = []
    for watcher in view.watchers():
        for remediation in anyio.run(watcher.tick, view.now):
            actions += [
                {
                    "by": watcher.name,
                    "kind": action.kind,
                    "key": action.key,
                    "action": f"would_{action.verb}",
                    "reason": action.reason,
                    "evidence": dict(action.evidence),
                }
                for action in remediation
                if not isinstance(action, SaveVersion)
            ]
    if options.json:
        out_json({"version": 2, "project": str(project), "mode": view.config.mode, "actions": actions})
        return
    out(f"{project}: the configuration is valid (mode {view.config.mode})")
    for each in actions:
        out(f"  {each['action']:<16} {each['kind']} {each['key']}: {each['reason']}")
    if not actions:
        out("  nothing is to be done")
