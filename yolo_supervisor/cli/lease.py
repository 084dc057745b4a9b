"""``lease``: acquire, renew, release, list."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any, NoReturn

import click

from yolo_supervisor.actions.base import WriteFile
from yolo_supervisor.actions.leases import Release
from yolo_supervisor.cli.context import EX_NO, EX_TEMPFAIL, Shared, fail, keep_others_out, out, out_json, shared
from yolo_supervisor.cli.project_view import ProjectView, project_view
from yolo_supervisor.formats.plugin import leases as plugin_leases
from yolo_supervisor.inventory.leases import Held
from yolo_supervisor.models import iso
from yolo_supervisor.store.atomic import make_folder
from yolo_supervisor.store.store import Outcome

SETTLE_S = 0.3
"""How long a lease that cannot be read is given to become one."""

TRIES = 10
"""How often a decision is made anew because somebody else was quicker."""


@click.group()
def command() -> None:
    """Leases on resources, in the plugin's own files: one holder at a time, each with a fencing token that only grows.

    \b
    Examples:
      yolo-supervisor lease acquire src/api.py --owner dev-1 --ttl 120
      yolo-supervisor lease renew src/api.py --owner dev-1
      yolo-supervisor lease release src/api.py --owner dev-1
      yolo-supervisor lease list
    """
    keep_others_out()


RESOURCE = click.argument("resource")
OWNER = click.option("--owner", required=True, help="Who holds it: the name of an agent.")
TTL = click.option(
    "--ttl",
    type=click.IntRange(1, plugin_leases.MAX_TTL_S),
    help="How long it holds, in seconds (default: task_lease_ttl_secs of the plugin's config.json, else 300).",
)


@command.command("acquire")
@RESOURCE
@OWNER
@TTL
@shared
@click.pass_obj
def acquire(options: Shared, resource: str, owner: str, ttl: int | None) -> None:
    """Take the lease, or hold one's own for longer. Exit code 1 if another holds it.

    \b
    Example:
      yolo-supervisor lease acquire src/api.py --owner dev-1 && vi src/api.py
    """
    _lend(options, resource, owner, ttl, only_own=False)


@command.command("renew")
@RESOURCE
@OWNER
@TTL
@shared
@click.pass_obj
def renew(options: Shared, resource: str, owner: str, ttl: int | None) -> None:
    """Hold one's own lease for longer. Exit code 1 if it is not one's own any more.

    \b
    Example:
      yolo-supervisor lease renew src/api.py --owner dev-1 --ttl 600
    """
    _lend(options, resource, owner, ttl, only_own=True)


def _lend(options: Shared, resource: str, owner: str, ttl: int | None, only_own: bool) -> None:
    view = _view(options, resource, owner)
    view.store.open()
    ttl_s = ttl or view.lease_ttl_s()
    make_folder(view.store.disk, view.store.paths.planning / ".locks", 0o777)
    if view.leases.broken(resource):
        time.sleep(SETTLE_S)  # the plugin may be writing it: it cuts the file to nothing first
    for _ in range(TRIES):
        now = view.clock.now()
        held = view.leases.of(resource, now)
        if only_own and (held is None or held.lease.owner != owner):
            _refuse(options, resource, owner, held, "not_held" if held is None else "not_owner")
        action = view.leases.lend(resource, owner, ttl_s, now)
        if isinstance(action, Held):
            _refuse(options, resource, owner, action, "conflict")
        if view.store.commit(action, "cli") is Outcome.DONE:
            _tell(options, action, owner, iso(now.replace(microsecond=0) + timedelta(seconds=ttl_s)), view)
            return
    fail(EX_TEMPFAIL, f"the lease on {resource} changes hands all the time: try again")


def _tell(options: Shared, action: WriteFile, owner: str, expires_at: str, view: ProjectView) -> None:
    result = "acquired" if action.verb == "taken_over" else action.verb
    token = view.store.journal.memory.lent[str(action.path)]["token"]
    answer = {"result": result, "resource": action.key, "owner": owner, "expires_at": expires_at, "token": token}
    if options.json:
        out_json(answer | ({"taken_over": True} if action.verb == "taken_over" else {}))
    else:
        out(f"{action.key}: {result} by {owner} until {expires_at}, token {token}")


def _refuse(options: Shared, resource: str, owner: str, held: Held | None, result: str) -> NoReturn:
    answer: dict[str, Any] = {"result": result, "resource": resource, "owner": owner, "expires_at": None}
    why = f"nobody holds {resource}"
    if held is not None:
        until = iso(held.lease.expires_at) if held.lease.expires_at else None
        answer |= {"held_by": held.lease.owner, "expires_at": until}
        why = f"{resource} is held by {held.lease.owner} until {until}"
        if held.lease.resource != resource:
            why += f" (as {held.lease.resource}: both names are kept in one file)"
    if options.json:
        out_json(answer)
        raise SystemExit(EX_NO)
    fail(EX_NO, why)


@command.command("release")
@RESOURCE
@OWNER
@shared
@click.pass_obj
def release(options: Shared, resource: str, owner: str) -> None:
    """Give one's own lease back. Exit code 1 if it is not one's own.

    \b
    Example:
      yolo-supervisor lease release src/api.py --owner dev-1
    """
    view = _view(options, resource, owner)
    held = view.leases.of(resource, view.now)
    if held is None or (held.lease.owner, held.lease.resource) != (owner, resource):
        _refuse(options, resource, owner, held, "not_held" if held is None else "not_owner")
    view.store.open()
    action = Release(key=resource, path=held.lease.path, owner=owner, reason=f"{owner} gave it back",
                     evidence={"owner": owner})  # fmt: skip
    outcome = view.store.commit(action, "cli")
    if outcome is Outcome.BUSY:
        fail(EX_TEMPFAIL, "the store is being written to: try again")
    if outcome is Outcome.STALE:
        _refuse(options, resource, owner, view.leases.of(resource, view.now), "not_owner")
    answer = {"result": "released", "resource": resource, "owner": owner}
    out_json(answer) if options.json else out(f"{resource}: released by {owner}")


@command.command("list")
@shared
@click.pass_obj
def list_leases(options: Shared) -> None:
    """The leases of the project, and how long each still holds.

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
        out("there are no leases")


def _view(options: Shared, resource: str, owner: str) -> ProjectView:
    if not owner.strip():
        raise click.UsageError("--owner must not be empty")
    try:
        plugin_leases.lease_file(resource)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return project_view(options)
