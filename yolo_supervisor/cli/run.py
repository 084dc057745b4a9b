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

from yolo_supervisor.cli.context import EX_NO, Named, Shared, fail, keep_others_out, shared
from yolo_supervisor.formats.plugin import PLANNING


@click.command()
@click.option("--observe", is_flag=True, help="Decide and write down everything as would_…, touch nothing.")
@click.option("--log-format", type=click.Choice(["json", "console"]), help="What the log looks like.")
@click.option("--log-file", type=Named(path_type=Path), metavar="FILE", help="Where the log goes instead of stderr.")
@click.option("--allow-root", is_flag=True, help="As root, supervise also projects that belong to other users.")
@shared
@click.pass_obj
def command(options: Shared, observe: bool, log_format: str | None, log_file: Path | None, allow_root: bool) -> None:
    """Watch projects and heal what agents leave behind, until SIGTERM or Ctrl-C. SIGHUP reloads the configuration.

    \b
    Examples:
      yolo-supervisor run
      yolo-supervisor run --project ~/code/shop --project ~/code/api --log-format console
      yolo-supervisor run --observe
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        faulthandler.enable()  # the watchdog's SIGABRT, or a segmentation fault, says where it was
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it asks for a reload, never for the end, this early neither
    from yolo_supervisor import config as configuration
    from yolo_supervisor import log, user_dirs
    from yolo_supervisor.daemon import daemon

    for project in options.projects:
        if not project.is_dir():
            fail(EX_NO, f"{project}: there is no such folder")
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
            fail(EX_NO, f"{projects[0]} holds every agent of yours: go to a project, or name one with --project")
    log.configure(config.log.format, configuration.expanded(config.log.file) if config.log.file else None)
    keep_others_out()
    sys.exit(daemon.start(daemon.Options(projects, options.config, overrides, allow_root)))
