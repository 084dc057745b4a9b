"""``hook``: its help. ``yolo_supervisor.hook`` does the work, with as few imports as possible."""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("event")
def command(event: str) -> None:
    """Note an event of Claude Code, whose JSON is on stdin.

    The exit code is always 0, and nothing is printed, so that no agent is disturbed.

    \b
    Example (in ~/.claude/settings.json):
      {"hooks": {"SessionStart": [{"hooks": [
          {"type": "command", "command": "yolo-supervisor hook SessionStart"}]}]}}
    """
