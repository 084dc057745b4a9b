"""``hook``: the slow way to the same note, for when options stand before the command."""

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
    import sys

    from yolo_supervisor import hook

    sys.argv[-1] = event
    hook.main()
