"""Crash reports on disk: one file a death, the newest ``REPORTS_KEPT`` of them."""

from __future__ import annotations

import re
from pathlib import Path

from yolo_supervisor.formats.crash_report import Report, dump
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk

REPORTS_KEPT = 200

_REPORT_FILE = re.compile(r"\d{8}T\d{6}Z-.+\.json")


def save(disk: Disk, folder: Path, report: Report) -> None:
    """Write the report and prune old ones. Raises OSError or Refused."""
    write_atomic(disk, folder / f"{report.ident}.json", dump(report), durable=False)
    prune(disk, folder)


def prune(disk: Disk, folder: Path) -> None:
    """Remove all reports but the newest ``REPORTS_KEPT``. Files with other names are not reports and stay."""
    reports = sorted(name for name in disk.names(folder) if _REPORT_FILE.fullmatch(name))
    for name in reports[:-REPORTS_KEPT]:
        disk.unlink(folder / name)
