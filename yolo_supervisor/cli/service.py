"""``service``: the daemon as a service of systemd or launchd."""

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
    """Run the daemon as a service.

    It is a systemd user unit, a systemd system unit for one user (--system), or a launchd agent on a Mac.

    \b
    Examples:
      yolo-supervisor service install
      yolo-supervisor service status
      sudo yolo-supervisor service install --system --user alice
    """


system = click.option(
    "--system", is_flag=True, help="Use the system's service manager: no login is needed. For root only."
)
user = click.option(
    "--user", "name", metavar="NAME", default="", help="With --system: the user whose agents are supervised."
)


@command.command()
@system
@user
@click.option(
    "--linger/--no-linger", default=None, help="Whether to let the user's services run without a login (default: ask)."
)
@click.option(
    "--network/--no-network",
    default=None,
    help="Whether the service may use the network (default: as it is installed; not at first).",
)
@shared
@click.pass_obj
def install(options: Shared, system: bool, name: str, linger: bool | None, network: bool | None) -> None:
    """Install and enable the service, or update it.

    It is started if the configuration names projects. It may use local sockets only; --network adds a file to the unit
    that lifts this, for notices by webhook and for other hosts.

    \b
    Examples:
      yolo-supervisor service install
      yolo-supervisor service install --linger
      yolo-supervisor service install --network
      sudo yolo-supervisor service install --system --user alice
    """
    manager = _manager(system, name, network)
    _check_user(manager)
    if reason := manager.missing():
        fail(EX_UNAVAILABLE, reason)
    projects, file = _projects(manager)
    try:
        done = put(manager.files())
        obsolete = take_away(manager.obsolete())
        _enable(manager, done)
        if projects:
            manager.start(restart=bool(obsolete) or any(result != "unchanged" for result in done.values()))
    except ManagerError as error:
        fail(EX_NO, f"{error}\nIts log: {_log(manager)}")
    notes = []
    if not projects:
        notes.append(f"It is not started: {file} names no projects. Add them, then: {_start(manager)}")
    survives_logout = _configure_lingering(manager, linger, quiet=options.json)
    if survives_logout is False:
        notes.append("It ends when you log out, and so does a tmux that a service started: loginctl enable-linger")
    state = manager.state()
    if options.json:
        files = [{"path": str(path), "result": result} for path, result in done.items()]
        out_json(
            {
                **_description(manager, state, survives_logout),
                "files": files,
                "removed": [str(path) for path in obsolete],
                "projects": projects,
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
    """Stop the service and remove its files. Agents and state folders are not touched.

    \b
    Examples:
      yolo-supervisor service uninstall
      sudo yolo-supervisor service uninstall --system --user alice
    """
    manager = _manager(system, name)
    _check_user(manager)
    if reason := manager.missing():
        fail(EX_UNAVAILABLE, reason)
    paths = [*manager.files(), *manager.obsolete()]
    installed = any(map(os.path.lexists, paths))
    removed: list[Path] = []
    others = manager.others()
    if installed:
        try:
            manager.disable()
            removed = take_away(manager.unshared() if others else paths, manager.files())
            manager.gone()
        except ManagerError as error:
            fail(EX_NO, str(error))
    if options.json:
        out_json({"version": 2, "unit": manager.unit, "removed": [str(path) for path in removed], "others": others})
    else:
        for path in removed:
            out(f"removed    {path}")
        if others:
            out(f"The shared files were not removed: {', '.join(others)} need them.")
        elif not removed:
            out("It was not installed.")


@command.command()
@system
@user
@shared
@click.pass_obj
def status(options: Shared, system: bool, name: str) -> None:
    """Show whether the service is installed, enabled and running. Exit code 1 if it does not run.

    \b
    Examples:
      yolo-supervisor service status
      yolo-supervisor service status --system --user alice --json
    """
    manager = _manager(system, name)
    if reason := manager.missing():
        fail(EX_UNAVAILABLE, reason)
    state = manager.state()
    survives_logout = lingers(_me()) if isinstance(manager, Systemd) and not manager.user else None
    changed = (
        [str(path) for path, data in manager.files().items() if read_or_none(path) != data] if state.installed else []
    )
    if options.json:
        out_json(
            {
                **_description(manager, state, survives_logout),
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
            out(f"{path} differs from this version's file: yolo-supervisor service install")
        if isinstance(manager, Systemd):
            out(f"It may use the network: {manager.network_file}" if manager.network else "It may not use the network")
        if survives_logout is False:
            out("It ends when you log out: loginctl enable-linger")
        out(f"Its log: {_log(manager)}")
    sys.exit(0 if state.active else EX_NO)


@command.command(hidden=True)
def reload() -> None:
    """Reload the daemon and wait until it has done so (for the unit's ExecReload)."""
    from yolo_supervisor.service.notify import reload_and_wait

    pid, folder = os.environ.get("MAINPID", ""), os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if not pid.isdigit() or int(pid) <= 1 or not folder:
        raise click.UsageError("only for the service manager; use: systemctl --user reload yolo-supervisor")
    try:
        refused = reload_and_wait(int(pid), Path(folder), RELOAD_LIMIT_S)
    except TimeoutError as error:
        fail(EX_NO, str(error))
    if refused:
        fail(EX_CONFIG, f"{refused}\nThe daemon keeps its old configuration.")


# -- whose service -------------------------------------------------------------------------------------------------


def _manager(system: bool, name: str, network: bool | None = None) -> Manager:
    if sys.platform == "darwin":
        from yolo_supervisor.service.manager import Launchd

        if system or name:
            raise click.UsageError("launchd runs it as your agent: omit --system and --user")
        if network is not None:
            raise click.UsageError("launchd restricts no network: omit --network and --no-network")
        return Launchd()
    if not system:
        if name:
            raise click.UsageError("--user needs --system: a user service is always your own")
        _me()
        return Systemd(network=network)
    name = name or os.environ.get("SUDO_USER", "") or ("" if os.geteuid() == 0 else _me())
    if not name:
        raise click.UsageError("name the user whose agents are to be supervised: --user NAME")
    try:
        pwd.getpwnam(name)
    except KeyError:
        fail(EX_NO, f"no user {name!r}")
    return Systemd(name, network=network)


def _check_user(manager: Manager) -> None:
    """End the program if root is needed and missing, or if sudo would install root's user service by mistake."""
    if manager.user and os.geteuid() != 0:
        fail(EX_NO, "--system needs root: sudo yolo-supervisor service ... --system")
    if not manager.user and os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") != "0":
        fail(EX_NO, "sudo would make it root's service: omit sudo, or add --system --user NAME")


def _enable(manager: Manager, done: Mapping[Path, Result]) -> None:
    """Enable the service; if that fails, remove the files that were newly written and raise ``ManagerError``."""
    try:
        manager.enable()
    except ManagerError:
        take_away([path for path, result in done.items() if result == "written"])
        with contextlib.suppress(ManagerError):
            manager.gone()
        raise


def _me() -> str:
    if (name := user_name()) is None:
        fail(EX_UNAVAILABLE, f"user id {os.geteuid()} has no name on this machine: no service can be installed for it")
    return name


def _environment(manager: Manager) -> dict[str, str]:
    """The environment variables by which the service finds its configuration."""
    return {"HOME": pwd.getpwnam(manager.user).pw_dir} if manager.user else dict(os.environ)


def _projects(manager: Manager) -> tuple[list[str], Path]:
    """The projects that the service will supervise, and the file that names them. ``ConfigError`` if it is invalid."""
    from yolo_supervisor import config as configuration

    environment = _environment(manager)
    return list(configuration.load(environment=environment).projects), configuration.user_file(environment)


def _configure_lingering(manager: Manager, wanted: bool | None, quiet: bool) -> bool | None:
    """Enable lingering if that is wanted; whether the service survives a logout, None if logouts do not matter."""
    if manager.user or not isinstance(manager, Systemd):
        return None
    me = _me()
    if lingers(me):
        return True
    if wanted is None and not quiet and sys.stdin.isatty():
        out("At logout systemd ends your services, and a tmux that one of them started, unless lingering is enabled.")
        wanted = click.confirm("Enable lingering?", default=True, err=True)
    if wanted:
        ended = subprocess.run(
            ["loginctl", "enable-linger", me], capture_output=True, text=True, timeout=60, check=False
        )
        if ended.returncode != 0:
            fail(EX_NO, f"the service is installed, but loginctl enable-linger failed: {ended.stderr.strip()}")
    return lingers(me)


def _description(manager: Manager, state: State, survives_logout: bool | None) -> dict[str, Any]:
    return {
        "version": 2,
        "manager": manager.name,
        "scope": "system" if manager.user else "user",
        "unit": manager.unit,
        "installed": state.installed,
        "enabled": state.enabled,
        "active": state.active,
        "pid": state.pid,
        "linger": survives_logout,
        "network": manager.network,
    }


def _start(manager: Manager) -> str:
    if not isinstance(manager, Systemd):
        return "yolo-supervisor service install"
    return f"{manager.command} start {manager.unit.removesuffix('.service')}"


def _log(manager: Manager) -> str:
    """The file or command that shows the service's log."""
    from yolo_supervisor import config as configuration

    try:
        return manager.log(configuration.load(environment=_environment(manager)).log.file)
    except (
        configuration.ConfigError
    ):  # an invalid configuration names no log file: the daemon reports it to the default log
        return manager.log("")
