"""``lease``: acquire, renew, release and list leases."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, NoReturn

import click

from yolo_supervisor.actions.base import WriteFile
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.cli.context import (
    EX_NO,
    EX_TEMPFAIL,
    Shared,
    fail,
    out,
    out_json,
    print_result,
    restrict_umask,
    shared,
)
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.daemon.executor import apply_action
from yolo_supervisor.formats.plugin import config as plugin_config
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.inventory.leases import Held
from yolo_supervisor.models import iso
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.store import Outcome

SETTLE_S = 0.3
"""The wait for an unreadable lease to become readable, in seconds."""

TRIES = 10
"""The number of decisions, if another program changes the lease each time."""


@click.group()
def command() -> None:
    """Leases on resources: one holder at a time, each with a fencing token that only grows.

    They are kept in the plugin's files, so that its scripts see them too, unless its flag v3_lock_lite is off.

    \b
    Examples:
      yolo-supervisor lease acquire src/api.py --owner dev-1 --ttl 120
      yolo-supervisor lease renew src/api.py --owner dev-1
      yolo-supervisor lease release src/api.py --owner dev-1
      yolo-supervisor lease list
    """
    restrict_umask()


RESOURCE = click.argument("resource")
OWNER = click.option("--owner", required=True, help="The holder: the name of an agent.")
TTL = click.option(
    "--ttl",
    type=click.IntRange(1, plugin_leases.MAX_TTL_S),
    help="Duration in seconds (default: task_lease_ttl_secs of the plugin's config.json, else 300).",
)


@command.command("acquire")
@RESOURCE
@OWNER
@TTL
@shared
@click.pass_obj
def acquire(options: Shared, resource: str, owner: str, ttl: int | None) -> None:
    """Acquire a lease, or renew it if OWNER holds it. Exit code 1 if another owner holds it.

    \b
    Example:
      yolo-supervisor lease acquire src/api.py --owner dev-1 && vi src/api.py
    """
    _grant(options, resource, owner, ttl, renew_only=False)


@command.command("renew")
@RESOURCE
@OWNER
@TTL
@shared
@click.pass_obj
def renew(options: Shared, resource: str, owner: str, ttl: int | None) -> None:
    """Renew a lease. Exit code 1 if OWNER does not hold it any more.

    \b
    Example:
      yolo-supervisor lease renew src/api.py --owner dev-1 --ttl 600
    """
    _grant(options, resource, owner, ttl, renew_only=True)


def _grant(options: Shared, resource: str, owner: str, ttl: int | None, renew_only: bool) -> None:
    view = _view(options, resource, owner)
    view.store.open()
    ttl_s = ttl or view.lease_ttl_s()
    make_folder(view.store.disk, view.store.paths.locks, 0o777)
    if view.leases.broken(resource):
        time.sleep(SETTLE_S)  # the plugin may be writing it: it truncates the file first
    for _ in range(TRIES):
        now = view.clock.now()
        held = view.leases.of(resource, now)
        if renew_only and (held is None or held.lease.owner != owner):
            _refuse(options, resource, owner, held, "not_held" if held is None else "not_owner")
        action = view.leases.lend(resource, owner, ttl_s, now)
        if isinstance(action, Held):
            _refuse(options, resource, owner, action, "conflict")
        if apply_action(action, view.store, "cli") is Outcome.DONE:  # a held lock is tried again
            _print_grant(options, action, owner, iso(now.replace(microsecond=0) + timedelta(seconds=ttl_s)), view)
            return
    fail(EX_TEMPFAIL, f"the lease on {resource} is being changed by other programs: try again")


def _print_grant(options: Shared, action: WriteFile, owner: str, expires_at: str, view: ProjectView) -> None:
    result = "acquired" if action.verb == "taken_over" else action.verb
    token = view.store.index.leases[str(action.path)].token
    document = {"result": result, "resource": action.key, "owner": owner, "expires_at": expires_at, "token": token}
    if action.verb == "taken_over":
        document["taken_over"] = True
    print_result(options, document, f"{action.key}: {result} by {owner} until {expires_at}, token {token}")


def _refuse(options: Shared, resource: str, owner: str, held: Held | None, result: str) -> NoReturn:
    document: dict[str, Any] = {"result": result, "resource": resource, "owner": owner, "expires_at": None}
    reason = f"{resource} is not leased"
    if held is not None:
        until = iso(held.lease.expires_at) if held.lease.expires_at else None
        document |= {"held_by": held.lease.owner, "expires_at": until}
        reason = f"{resource} is held by {held.lease.owner} until {until}"
        if held.lease.resource != resource:
            reason += f" (as {held.lease.resource}, which has the same file name)"
    if options.json:
        out_json(document)
        raise SystemExit(EX_NO)
    fail(EX_NO, reason)


@command.command("release")
@RESOURCE
@OWNER
@shared
@click.pass_obj
def release(options: Shared, resource: str, owner: str) -> None:
    """Release a lease. Exit code 1 if OWNER does not hold it.

    \b
    Example:
      yolo-supervisor lease release src/api.py --owner dev-1
    """
    view = _view(options, resource, owner)
    held = view.leases.of(resource, view.now)
    if held is None or (held.lease.owner, held.lease.resource) != (owner, resource):
        _refuse(options, resource, owner, held, "not_held" if held is None else "not_owner")
    view.store.open()
    action = Release(key=resource, path=held.lease.path, owner=owner, reason=f"{owner} released it",
                     evidence={"owner": owner})  # fmt: skip
    if view.carry_out(action) is Outcome.STALE:
        _refuse(options, resource, owner, view.leases.of(resource, view.now), "not_owner")
    document = {"result": "released", "resource": resource, "owner": owner}
    print_result(options, document, f"{resource}: released by {owner}")


@command.command("list")
@shared
@click.pass_obj
def list_leases(options: Shared) -> None:
    """List the leases of the project, and their remaining time.

    \b
    Example:
      yolo-supervisor lease list --json
    """
    view = project_view(options)
    rows = [
        {
            "resource": held.lease.resource,
            "owner": held.lease.owner,
            "expires_at": iso(held.lease.expires_at) if held.lease.expires_at else None,
            "left_s": round(held.left_s, 1),
            "token": view.leases.token(held),
        }
        for held in view.leases.all(view.now)
    ]
    if options.json:
        out_json({"version": 2, "project": str(view.project), "leases": rows})
        return
    for row in rows:
        out(f"{row['resource']}  held by {row['owner']}  {row['left_s']:g} s left")
    if not rows:
        out(f"no leases in {view.project}")


def _view(options: Shared, resource: str, owner: str) -> ProjectView:
    if not owner.strip():
        raise click.UsageError("--owner must not be empty")
    try:
        plugin_leases.lease_file(resource)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    view = project_view(options)
    view.note_flags_off(plugin_config.LOCK_LITE)
    return view
