"""``commit``: help and usage errors; ``commits.fast_path`` does the work."""

from __future__ import annotations

import sys

import click

from yolo_supervisor.cli.context import Shared, shared
from yolo_supervisor.commits.fast_path import CommandLine


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--push", is_flag=True, expose_value=False,
    help='Push the commit as well (auto_push = "always" in the plugin\'s config.json does the same).',
)  # fmt: skip
@click.option(
    "--timeout",
    metavar="S",
    expose_value=False,
    help="Time limit of git, its hooks and the push together, in seconds (default: 600).",
)  # fmt: skip
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[GIT-COMMIT-ARGS]...", expose_value=False)
@shared
@click.pass_obj
def command(options: Shared) -> None:
    """git commit that recovers, with the user's hooks, signing and filters.

    All arguments after ours are git's. Commits in one repository are serialised. A lock that a killed git left is moved
    aside once no git process is at work there. If others pushed first, our commits are rebased onto theirs in a
    temporary checkout and pushed. On a conflict nothing is changed, and the message gives the commands to go on with.
    Nothing is ever forced, dropped or resolved. Changes that a hook has hidden and not given back are put back, or the
    message says where they are.

    \b
    Examples:
      yolo-supervisor commit -m "feat(api): add paging" -- src/api.py
      yolo-supervisor commit --push -am "fix: off by one"
    """
    options.project()  # fails if its folder does not exist
    error = CommandLine(sys.argv[1:]).error or "invalid --project"
    raise click.UsageError(f"{error}; nothing was committed")


if __name__ == "__main__":
    command()
