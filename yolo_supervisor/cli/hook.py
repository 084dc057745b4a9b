"""``hook``: only its help. The command itself is ``yolo_supervisor.hook``, which imports next to nothing."""

from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("event")
def command(event: str) -> None:
    """Note an event of Claude Code: its JSON on stdin. Always succeeds and prints nothing, whatever happens.

    \b
    Example (in ~/.claude/settings.json):
      {"hooks": {"SessionStart": [{"hooks": [
          {"type": "command", "command": "yolo-supervisor hook SessionStart"}]}]}}
    """
