"""``history``: the journal, for people and programs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from yolo_supervisor.cli.context import KINDS, Shared, entries, out, out_json, shared
from yolo_supervisor.models import from_iso

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since_moment(text: str) -> datetime:
    """The moment that ``--since`` names: an ISO 8601 time, or how long ago (``90s``, ``15m``, ``2h``, ``7d``)."""
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
        try:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * UNITS_S[ago[2]])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        return from_iso(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a time like 2026-11-22T20:00Z nor a length like 15m") from None


@click.command()
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
@click.argument("key", required=False)
@click.option("--since", metavar="T", help="Only from then on: a time, or how long ago (90s, 15m, 2h, 7d).")
@click.option("--follow", is_flag=True, help="Go on with what is still to come, until Ctrl-C.")
@shared
@click.pass_obj
def command(options: Shared, kind: str | None, key: str | None, since: str | None, follow: bool) -> None:
    """What was done, when, why, on what evidence: all of it, or that of one KIND (agent, task, …), or of one KEY.

    \b
    Examples:
      yolo-supervisor history --since 2h
      yolo-supervisor history task dev/3
      yolo-supervisor history --json --follow | jq -c .reason
    """
    from yolo_supervisor.store.history import History
    from yolo_supervisor.store.paths import Paths

    project = options.project()
    from_then = since_moment(since) if since else None
    journal = History(Paths(project).journal)
    try:
        while True:
            for entry in entries(journal):
                if _wanted(entry, kind, key) and (from_then is None or from_iso(entry["at"]) >= from_then):
                    _show(entry, options.json)
            if not follow:
                return
            time.sleep(0.2)
    except KeyboardInterrupt:
        return


def _wanted(entry: dict[str, Any], kind: str | None, key: str | None) -> bool:
    return (kind is None or KINDS[kind] == entry["kind"]) and (key is None or matches(str(entry["key"]), key))


def matches(found: str, asked: str) -> bool:
    """Whether a key is the one asked for, in full or by its short form (``3`` for ``dev/3``, ``dev`` for ``dev@x``)."""
    return asked == found or found.rpartition("/")[2] == asked or found.partition("@")[0] == asked


def _show(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        out_json({"version": 2, **entry})
    else:
        at = from_iso(entry["at"]).astimezone()
        out(f"{at:%Y-%m-%d %H:%M:%S}  {entry['action']:<12} {entry['kind']} {entry['key']}: {entry['reason']}")
