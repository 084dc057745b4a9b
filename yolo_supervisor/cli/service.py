"""``service``: the daemon under the machine's service manager."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from yolo_supervisor.cli.context import EX_CONFIG, EX_NO, EX_UNAVAILABLE, Shared, fail, out, out_json, shared
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.service.manager import (
    Manager,
    ManagerError,
    Result,
    State,
    Systemd,
    lingers,
    put,
    take_away,
    user_name,
)

RELOAD_LIMIT_S = 30.0


@click.group(no_args_is_help=True)
def command() -> None:
    """Run the daemon as a service: a systemd user unit, a system service for a user, or a launchd agent on a Mac.

    \b
    Examples:
      yolo-supervisor service install
      yolo-supervisor service status
      sudo yolo-supervisor service install --system --user alice
    """


system = click.option("--system", is_flag=True, help="Under the system's service manager: no login is needed. By root.")
user = click.option("--user", "name", metavar="NAME", default="", help="With --system: whose agents it watches.")


@command.command()
@system
@user
@click.option("--linger/--no-linger", default=None, help="Let the user's services run without a login; or do not ask.")
@shared
@click.pass_obj
def install(options: Shared, system: bool, name: str, linger: bool | None) -> None:
    """Put the service's files where they belong, enable it, and start it if projects are named. Can be repeated.

    \b
    Examples:
      yolo-supervisor service install
      yolo-supervisor service install --linger
      sudo yolo-supervisor service install --system --user alice
    """
    manager = _manager(system, name)
    _refuse_strangers(manager)
    if why := manager.missing():
        fail(EX_UNAVAILABLE, why)
    named, where = _projects(manager)
    try:
        done = put(manager.files())
        obsolete = take_away(manager.obsolete())
        _enable(manager, done)
        if named:
            manager.start(anew=bool(obsolete) or any(result != "unchanged" for result in done.values()))
    except ManagerError as error:
        fail(EX_NO, f"{error}\nIts log: {_log(manager)}")
    notes = []
    if not named:
        notes.append(f"It is not started: no projects are named in {where}. Name them, then: {_start(manager)}")
    stays = _see_to_lingering(manager, linger, quiet=options.json)
    if stays is False:
        notes.append("Without lingering it ends when you log out, and tmux in its unit with it: loginctl enable-linger")
    state = manager.state()
    if options.json:
        files = [{"path": str(path), "result": result} for path, result in done.items()]
        out_json(
            {
                **_described(manager, state, stays),
                "files": files,
                "removed": [str(path) for path in obsolete],
                "projects": named,
                "notes": notes,
            }
        )
    else:
        for path, result in done.items():
            out(f"{result:9}  {path}")
        for path in obsolete:
            out(f"removed    {path}")
        out(f"{manager.unit}: {'enabled' if state.enabled else 'not enabled'}, {state.text}")
        for note in notes:
            out(note)


@command.command()
@system
@user
@shared
@click.pass_obj
def uninstall(options: Shared, system: bool, name: str) -> None:
    """Stop the service and remove its files. Agents are not touched, nor is what the supervisor knows of them.

    \b
    Examples:
      yolo-supervisor service uninstall
      sudo yolo-supervisor service uninstall --system --user alice
    """
    manager = _manager(system, name)
    _refuse_strangers(manager)
    if why := manager.missing():
        fail(EX_UNAVAILABLE, why)
    paths = [*manager.files(), *manager.obsolete()]
    installed = any(map(os.path.lexists, paths))
    gone: list[Path] = []
    others = manager.others()
    if installed:
        try:
            manager.disable()
            gone = [] if others else take_away(paths, manager.files())
            manager.gone()
        except ManagerError as error:
            fail(EX_NO, str(error))
    if options.json:
        out_json({"version": 2, "unit": manager.unit, "removed": [str(path) for path in gone], "others": others})
    else:
        for path in gone:
            out(f"removed    {path}")
        if others:
            out(f"The files stay: {', '.join(others)} need them.")
        elif not gone:
            out("Nothing was installed.")


@command.command()
@system
@user
@shared
@click.pass_obj
def status(options: Shared, system: bool, name: str) -> None:
    """Whether the service is installed, enabled and running. Exit code 1 if it does not run.

    \b
    Examples:
      yolo-supervisor service status
      yolo-supervisor service status --system --user alice --json
    """
    manager = _manager(system, name)
    if why := manager.missing():
        fail(EX_UNAVAILABLE, why)
    state = manager.state()
    stays = lingers(_me()) if isinstance(manager, Systemd) and not manager.user else None
    changed = (
        [str(path) for path, data in manager.files().items() if read_or_none(path) != data] if state.installed else []
    )
    if options.json:
        out_json(
            {
                **_described(manager, state, stays),
                "text": state.text,
                "restarts": state.restarts,
                "changed": changed,
                "log": _log(manager),
            }
        )
    elif not state.installed:
        out(f"{manager.unit} is not installed: yolo-supervisor service install")
    else:
        out(f"{manager.unit}: {state.text}")
        out(f"{'enabled' if state.enabled else 'not enabled'}" + (f", process {state.pid}" if state.pid else ""))
        for path in changed:
            out(f"{path} is not as this version ships it: yolo-supervisor service install")
        if stays is False:
            out("It ends when you log out: loginctl enable-linger")
        out(f"Its log: {_log(manager)}")
    sys.exit(0 if state.active else EX_NO)


@command.command(hidden=True)
def reload() -> None:
    """For the unit's ExecReload: ask the daemon to reload, and wait until it has."""
    from yolo_supervisor.service.notify import reload_and_wait

    pid, folder = os.environ.get("MAINPID", ""), os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not pid.isdigit() or int(pid) <= 1 or not folder:
        raise click.UsageError("this is for the service manager; you want: systemctl --user reload yolo-supervisor")
    try:
        refused = reload_and_wait(int(pid), Path(folder), RELOAD_LIMIT_S)
    except TimeoutError as error:
        fail(EX_NO, str(error))
    if refused:
        fail(EX_CONFIG, f"{refused}\nThe daemon goes on with the configuration that it has.")


# -- whose service -------------------------------------------------------------------------------------------------


def _manager(system: bool, name: str) -> Manager:
    if sys.platform == "darwin":
        from yolo_supervisor.service.manager import Launchd

        if system or name:
            raise click.UsageError("launchd runs it as an agent of the user: leave out --system")
        return Launchd()
    if not system:
        if name:
            raise click.UsageError("--user goes with --system; without it, the service is your own")
        _me()
        return Systemd()
    name = name or os.environ.get("SUDO_USER", "") or ("" if os.geteuid() == 0 else _me())
    if not name:
        raise click.UsageError("say whose agents it is to watch: --user NAME")
    try:
        pwd.getpwnam(name)
    except KeyError:
        fail(EX_NO, f"there is no user {name!r}")
    return Systemd(name)


def _refuse_strangers(manager: Manager) -> None:
    """Root is asked for where root is needed, and else not welcome by mere accident."""
    if manager.user and os.geteuid() != 0:
        fail(EX_NO, "only root may change the system's services: sudo yolo-supervisor service ... --system")
    if not manager.user and os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") != "0":
        fail(EX_NO, "sudo would make it root's service: leave out sudo, or say --system --user NAME")


def _enable(manager: Manager, done: Mapping[Path, Result]) -> None:
    """ManagerError, and what was newly written is taken away again, where it lies out of the manager's sight, say."""
    try:
        manager.enable()
    except ManagerError:
        take_away([path for path, result in done.items() if result == "written"])
        with contextlib.suppress(ManagerError):
            manager.gone()
        raise


def _me() -> str:
    if (name := user_name()) is None:
        fail(EX_UNAVAILABLE, f"this machine knows no user {os.geteuid()}: no service can be run for one")
    return name


def _environment(manager: Manager) -> dict[str, str]:
    """Where the service looks for its configuration."""
    return {"HOME": pwd.getpwnam(manager.user).pw_dir} if manager.user else dict(os.environ)


def _projects(manager: Manager) -> tuple[list[str], Path]:
    """The projects that the service will watch, and the file that names them. ConfigError if that cannot be used."""
    from yolo_supervisor import config as configuration

    environment = _environment(manager)
    return list(configuration.load(environment=environment).projects), configuration.user_file(environment)


def _see_to_lingering(manager: Manager, wanted: bool | None, quiet: bool) -> bool | None:
    """Whether the service outlives a logout; None where that is no question."""
    if manager.user or not isinstance(manager, Systemd):
        return None
    me = _me()
    if lingers(me):
        return True
    if wanted is None and not quiet and sys.stdin.isatty():
        out("When you log out, systemd ends your services, and tmux if one has started it, unless you let them linger.")
        wanted = click.confirm("Let them linger?", default=True, err=True)
    if wanted:
        told = subprocess.run(
            ["loginctl", "enable-linger", me], capture_output=True, text=True, timeout=60, check=False
        )
        if told.returncode != 0:
            fail(EX_NO, f"loginctl enable-linger: {told.stderr.strip()}; the service is installed")
    return lingers(me)


def _described(manager: Manager, state: State, stays: bool | None) -> dict[str, Any]:
    return {
        "version": 2,
        "manager": manager.name,
        "scope": "system" if manager.user else "user",
        "unit": manager.unit,
        "installed": state.installed,
        "enabled": state.enabled,
        "active": state.active,
        "pid": state.pid,
        "linger": stays,
    }


def _start(manager: Manager) -> str:
    if not isinstance(manager, Systemd):
        return "yolo-supervisor service install"
    return f"{manager.command} start {manager.unit.removesuffix('.service')}"


def _log(manager: Manager) -> str:
    """Where its log can be read."""
    from yolo_supervisor import config as configuration

    try:
        return manager.log(configuration.load(environment=_environment(manager)).log.file)
    except configuration.ConfigError:  # it tells of that before it knows of any file
        return manager.log("")
