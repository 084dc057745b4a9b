"""``commit``: git commit that recovers. Only its help, and what is wrong in its use, comes here: see ``commit``."""

from __future__ import annotations

import click

from yolo_supervisor.cli import Shared, shared


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--push", is_flag=True, help="Push it, too (so does auto_push = always in the plugin's config.json).")
@click.option(
    "--timeout", type=click.FloatRange(0.001, 86400), metavar="S", help="For git and its hooks (default: 600)."
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[GIT-COMMIT-ARGS]...")
@shared
@click.pass_obj
def command(options: Shared, push: bool, timeout: float | None, words: tuple[str, ...]) -> None:
    """git commit that recovers. All arguments after ours are git's; hooks, signing and filters are the user's own.

    Whoever commits in the same repository waits for a turn. A lock that a killed git has left behind is put aside, once
    no git is at work there. When others have pushed before, our commits are put on top of theirs, in a checkout of our
    own, and pushed; where that makes a conflict everything stays as it is, and you are told what to do. Nothing is ever
    forced, dropped or resolved.

    \b
    Examples:
      yolo-supervisor commit -m "feat(api): add paging" -- src/api.py
      yolo-supervisor commit --push -am "fix: off by one"
    """
    options.project()  # which says what is wrong with it
    raise click.UsageError("nothing was committed: --project names a folder, --timeout a number of seconds, both once")


if __name__ == "__main__":
    command()
