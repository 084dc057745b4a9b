"""``crash``: what agents died of."""

from __future__ import annotations

from typing import Any

import click

from yolo_supervisor import crashes
from yolo_supervisor.cli import EX_NO, Shared, entries, fail, out, out_json, shared
from yolo_supervisor.files import Disk, glance
from yolo_supervisor.folder import names
from yolo_supervisor.formats.transcripts import moment
from yolo_supervisor.journal import refuse_newer
from yolo_supervisor.redaction import cut
from yolo_supervisor.store import Paths

BRIEF = ("id", "at", "agent", "class", "confidence", "why")


@click.group()
def command() -> None:
    """What agents died of, as far as it can be known: one report a death, secrets taken out, the newest 200 kept.

    \b
    Examples:
      yolo-supervisor crash list
      yolo-supervisor crash show dev-1
    """


@command.command("list")
@shared
@click.pass_obj
def list_reports(options: Shared) -> None:
    """All reports, the oldest first.

    \b
    Example:
      yolo-supervisor crash list --json
    """
    paths = Paths(options.project())
    reports = _reports(paths)
    if options.json:
        brief = [{key: each.get(key) for key in BRIEF} for each in reports]
        out_json({"version": 1, "project": str(paths.project), "crashes": brief})
        return
    for each in reports:
        out(f"{each['id']}  {each['class']}: {each.get('why')}")
    if not reports:
        out("there are no crash reports")


@command.command("show")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def show(options: Shared, ident: str) -> None:
    """One report, with what was done about it. ID may also be an agent: that is its newest.

    \b
    Example:
      yolo-supervisor crash show dev-1@session-85d6cfb4
    """
    paths = Paths(options.project())
    found = [each for each in _reports(paths) if ident in (each["id"], each["agent"], each.get("name"))]
    if not found:
        fail(EX_NO, f"there is no crash report {ident}: yolo-supervisor crash list shows all")
    report = cut(found[-1], crashes.SIZE)  # whoever has damaged it may have nested it too deep to be told
    story = _story(paths, report)
    if options.json:
        out_json({**report, "story": story})
        return
    at = moment(report["at"])
    when = f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else report["at"]
    out(f"{report['agent']} died at {when}: {report['class']} ({report.get('confidence')})")
    out(f"  {report.get('why')}")
    for each in _list(report.get("perhaps")):
        finding = each if isinstance(each, dict) else {}
        out(f"  or {finding.get('class')} ({finding.get('confidence')}): {finding.get('why')}")
    _tell("exit", _fields(report.get("exit")))
    _tell("the end of its transcript", _list(report.get("turns")))
    _tell("hooks", _list(report.get("hooks")))
    _tell("its processes", _list(report.get("processes")))
    _tell("the repository", _fields(report.get("repository")))
    _tell("the end of its screen", _list(report.get("pane")))
    _tell("what was done", [f"{e['at']}  {e['kind']} {e['key']} {e['action']}: {e['reason']}" for e in story])


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _fields(value: object) -> list[str]:
    return [f"{key}: {each}" for key, each in value.items() if each] if isinstance(value, dict) else []


def _tell(title: str, lines: list[Any]) -> None:
    if lines:
        out(f"{title}:")
    for line in lines:
        text = "  ".join(f"{key}: {value}" for key, value in line.items()) if isinstance(line, dict) else str(line)
        out(f"    {text}")


def _reports(paths: Paths) -> list[dict[str, Any]]:
    """All that can be read, the oldest first. ``TooNew`` if they are a newer program's."""
    refuse_newer(Disk(), paths.folder)
    found = [crashes.load(glance(paths.crashes / name) or b"") for name in names(paths.crashes) if name[0] != "."]
    return sorted((each for each in found if each is not None), key=lambda each: str(each["at"]))


def _story(paths: Paths, report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the journal tells of this death, and of the tasks that the agent had."""
    from yolo_supervisor.journal import History

    told = entries(History(paths.journal))
    about = [entry for entry in told if entry["evidence"].get("report") == report["id"]]
    tasks = {entry["key"] for entry in about if entry["kind"] == "task"}
    return [entry for entry in told if entry in about or (entry["kind"] == "task" and entry["key"] in tasks)]
