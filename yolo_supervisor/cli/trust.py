"""``trust``: put a project's own configuration file in force."""

from __future__ import annotations

import click

from yolo_supervisor import config as configuration
from yolo_supervisor.actions import notes
from yolo_supervisor.cli.consent import refuse_agents
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, Shared, fail, print_result, shared
from yolo_supervisor.cli.project_view import PATIENCE_S, ProjectView
from yolo_supervisor.fs.trust import Refused
from yolo_supervisor.store.atomic import remove, write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.locks import Busy
from yolo_supervisor.store.state_folder import enrol, refuse_other_owners_root
from yolo_supervisor.store.store import write_note


@click.command()
@click.option("--revoke", is_flag=True, help="Trust the project no longer.")
@shared
@click.pass_obj
def command(options: Shared, revoke: bool) -> None:
    """Trust the project: its .yolo-planning/supervisor.toml as it is now, and the plugin's rules.

    A project that you cloned may bring a configuration. Until you trust it, only those of its settings count that make
    the supervisor do less than your own settings, and a session that was left is reported, not ended. After a change
    of the file the trusted content stays in force until you trust the new one. An agent cannot trust a project.

    \b
    Examples:
      yolo-supervisor trust
      yolo-supervisor trust --project ~/code/shop
      yolo-supervisor trust --revoke
    """
    project = options.project()
    path = configuration.project_file(project)
    content = configuration.read_project_file(project)
    view = ProjectView(project, configuration.load(None, options.config))
    refuse_agents(view)
    disk, paths = Disk(), view.store.paths
    try:
        refuse_other_owners_root(disk, paths)
        enrol(disk, paths, PATIENCE_S)
        if revoke:
            remove(disk, paths.trusted)
        else:
            write_atomic(disk, paths.trusted, content)
        write_note(project, notes.trusted(content=None if revoke else content, reason="asked to"), "cli")
    except Busy as error:
        fail(EX_TEMPFAIL, str(error))
    except (OSError, Refused) as error:
        fail(EX_NO, str(error))
    holder = view.holder()
    reload = f"; the daemon uses it after: kill -HUP {holder.process.pid}" if holder is not None else ""
    if revoke:
        text = f"no longer trusted: {project}"
    else:
        text = f"trusted: {path}" if content else f"trusted: {project} (it has no supervisor.toml)"
    document = {"version": 2, "project": str(project), "trusted": not revoke, "file": str(path)}
    print_result(options, document, text + reload)
