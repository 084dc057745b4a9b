"""``history``: the entries of the journal, for people and programs."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from yolo_supervisor.cli.context import KINDS, Shared, entries, out, out_json, shared
from yolo_supervisor.models import from_iso

if TYPE_CHECKING:
    from yolo_supervisor.store.lines import Entry

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def since_moment(text: str) -> datetime:
    """Parse ``--since``: an ISO 8601 time, or a duration before now (``90s``, ``15m``, ``2h``, ``7d``)."""
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
        try:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * UNITS_S[ago[2]])
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        return from_iso(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a time (2026-11-22T20:00Z) nor a duration (15m)") from None


@click.command()
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
@click.argument("key", required=False)
@click.option("--since", metavar="T", help="Only entries since a time, or since a duration ago (90s, 15m, 2h, 7d).")
@click.option("--follow", is_flag=True, help="Print new entries as they come, until Ctrl-C.")
@shared
@click.pass_obj
def command(options: Shared, kind: str | None, key: str | None, since: str | None, follow: bool) -> None:
    """List what was done, when, why, on what evidence.

    KIND (agent, task, …) and KEY restrict the list. KEY may be short: 3 for dev/3, dev-1 for dev-1@shop.

    \b
    Examples:
      yolo-supervisor history --since 2h
      yolo-supervisor history task dev/3
      yolo-supervisor history --json --follow | jq -c .reason
    """
    from yolo_supervisor.store.history import History
    from yolo_supervisor.store.paths import Paths

    project = options.project()
    start = since_moment(since) if since else None
    journal = History(Paths(project).journal)
    is_empty = True
    try:
        while True:
            for entry in entries(journal):
                if _is_selected(entry, kind, key) and (start is None or from_iso(entry.at) >= start):
                    _print_entry(entry, options.json)
                    is_empty = False
            if not follow:
                break
            time.sleep(0.2)
    except KeyboardInterrupt:
        return
    if is_empty and not options.json:
        out(f"no {'matching ' if kind or start else ''}entries in the journal of {project}")


def _is_selected(entry: Entry, kind: str | None, key: str | None) -> bool:
    return (kind is None or KINDS[kind] == entry.kind) and (key is None or matches(entry.key, key))


def matches(key: str, pattern: str) -> bool:
    """Whether the pattern is the key, or its short form (``3`` for ``dev/3``, ``dev`` for ``dev@x``)."""
    return pattern == key or key.rpartition("/")[2] == pattern or key.partition("@")[0] == pattern


def _print_entry(entry: Entry, as_json: bool) -> None:
    from yolo_supervisor.store.lines import fields

    if as_json:
        out_json({"version": 2, **fields(entry)})
    else:
        at = from_iso(entry.at).astimezone()
        out(f"{at:%Y-%m-%d %H:%M:%S}  {entry.action:<12} {entry.kind} {entry.key}: {entry.reason}")
