"""``run``: the daemon in the foreground."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from yolo_supervisor.cli.context import EX_NO, NonEmptyPath, Shared, fail, restrict_umask, shared
from yolo_supervisor.formats.plugin import PLANNING


@click.command()
@click.option("--observe", is_flag=True, help="Record every action as would_… in the journal; change nothing.")
@click.option(
    "--log-format", type=click.Choice(["json", "console"]), help="The format of the log: JSON, or text for people."
)
@click.option(
    "--log-file",
    type=NonEmptyPath(path_type=Path),
    metavar="FILE",
    help="Write the log to this file instead of stderr.",
)
@click.option("--allow-root", is_flag=True, help="As root, supervise projects of other users too.")
@shared
@click.pass_obj
def command(options: Shared, observe: bool, log_format: str | None, log_file: Path | None, allow_root: bool) -> None:
    """Supervise projects in the foreground: requeue tasks of dead agents, and clean up after them.

    SIGTERM or Ctrl-C ends it, SIGHUP reloads the configuration.

    \b
    Examples:
      yolo-supervisor run
      yolo-supervisor run --project ~/code/shop --project ~/code/api --log-format console
      yolo-supervisor run --observe
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        faulthandler.enable()  # print tracebacks at the watchdog's SIGABRT or a segmentation fault
    signal.signal(
        signal.SIGHUP, signal.SIG_IGN
    )  # a reload request that comes before the daemon is ready must not end it
    from yolo_supervisor import config as configuration
    from yolo_supervisor import log, user_dirs
    from yolo_supervisor.daemon import daemon

    for project in options.projects:
        if not project.is_dir():
            fail(EX_NO, f"{project}: no such folder")
    overrides: dict[str, Any] = {"mode": "observe"} if observe else {}
    overrides["log"] = {"format": log_format} if log_format else {}
    if log_file:
        overrides["log"]["file"] = os.path.abspath(log_file)
    config = configuration.load(None, options.config, overrides)
    projects: tuple[Path, ...] = options.projects
    if not projects and not config.projects:
        projects = (options.project(),)
        home = Path(os.path.realpath(user_dirs.home() or "/"))
        if home.is_relative_to(projects[0]) and not (projects[0] / PLANNING).is_dir():
            fail(EX_NO, f"{projects[0]} contains your home folder: change to a project, or name one with --project")
    log.configure(config.log.format, configuration.expanded(config.log.file) if config.log.file else None)
    restrict_umask()
    sys.exit(daemon.start(daemon.Options(projects, options.config, overrides, allow_root)))
