"""``crash``: the crash reports of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from yolo_supervisor.cli.context import EX_NO, Shared, entries, fail, out, out_json, shared
from yolo_supervisor.formats.crash_report import StoredReport, load
from yolo_supervisor.formats.json import time_or_none
from yolo_supervisor.fs.changes import names
from yolo_supervisor.fs.read import read_or_none
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.journal import refuse_newer
from yolo_supervisor.store.lines import Entry, fields
from yolo_supervisor.store.paths import Paths

BRIEF = ("id", "at", "agent", "class", "confidence", "why")
"""The keys of a report that ``crash list --json`` prints."""


@click.group()
def command() -> None:
    """Crash reports: what agents died of, with secrets redacted. The newest 200 are kept.

    \b
    Examples:
      yolo-supervisor crash list
      yolo-supervisor crash show dev-1
    """


@command.command("list")
@shared
@click.pass_obj
def list_reports(options: Shared) -> None:
    """List all reports, the oldest first.

    \b
    Example:
      yolo-supervisor crash list --json
    """
    paths = Paths(options.project())
    reports = _reports(paths)
    if options.json:
        brief = [{key: report.document.get(key) for key in BRIEF} for report in reports]
        out_json({"version": 2, "project": str(paths.project), "crashes": brief})
        return
    for report in reports:
        out(f"{report.ident}  {report.cause}: {report.reason}")
    if not reports:
        out("no crash reports")


@command.command("show")
@click.argument("ident", metavar="ID")
@shared
@click.pass_obj
def show(options: Shared, ident: str) -> None:
    """Show one report, and the recovery that followed.

    ID is the id of a report, or an agent: then its newest report is shown.

    \b
    Example:
      yolo-supervisor crash show dev-1@session-85d6cfb4
    """
    paths = Paths(options.project())
    matches = [report for report in _reports(paths) if ident in (report.ident, report.agent, report.name)]
    if not matches:
        fail(EX_NO, f"no crash report {ident}; see: yolo-supervisor crash list")
    report = matches[-1]
    story = _story(paths, report)
    if options.json:
        out_json({**report.document, "story": [fields(entry) for entry in story]})
        return
    at = time_or_none(report.at)
    when = f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else report.at
    out(f"{report.agent} died at {when}: {report.cause} (confidence {report.confidence})")
    out(f"  {report.reason}")
    for finding in report.others:
        out(f"  or {finding.cause} (confidence {finding.confidence}): {finding.reason}")
    _section("exit", _fields(report.exit))
    _section("end of the transcript", report.turns)
    _section("hooks", report.hooks)
    _section("processes", report.processes)
    _section("repository", _fields(report.repository))
    _section("uncommitted work", _fields(report.work))
    _section("end of the screen", report.pane)
    _section("recovery", [f"{e.at}  {e.kind} {e.key} {e.action}: {e.reason}" for e in story])


def _fields(values: Mapping[str, object]) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, list):
            lines += [f"{key}: {item}" for item in value]
        elif value:
            lines.append(f"{key}: {value}")
    return lines


def _section(title: str, lines: Sequence[object]) -> None:
    if lines:
        out(f"{title}:")
    for line in lines:
        text = "  ".join(f"{key}: {value}" for key, value in line.items()) if isinstance(line, dict) else str(line)
        out(f"    {text}")


def _reports(paths: Paths) -> list[StoredReport]:
    """All readable reports, the oldest first. Raises TooNew if a newer version has written them."""
    refuse_newer(Disk(), paths.folder)
    loaded = (load(read_or_none(paths.crashes / name) or b"") for name in names(paths.crashes) if name[0] != ".")
    return sorted((report for report in loaded if report is not None), key=lambda report: report.at)


def _story(paths: Paths, report: StoredReport) -> list[Entry]:
    """The journal entries about this death, and about the tasks of the agent."""
    from yolo_supervisor.store.history import History

    history = entries(History(paths.journal))
    about = [entry for entry in history if entry.evidence.get("report") == report.ident]
    tasks = {entry.key for entry in about if entry.kind == "task"}
    return [entry for entry in history if entry in about or (entry.kind == "task" and entry.key in tasks)]
