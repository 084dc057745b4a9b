"""Crash reports on disk: one file a death, the newest of them."""

from __future__ import annotations

from pathlib import Path

from yolo_supervisor.formats.crash_report import Report, dump
from yolo_supervisor.store.atomic import write_atomic
from yolo_supervisor.store.disk import Disk
from yolo_supervisor.store.quotas import CRASHES, Pruned, QuotaFolder

_REPORT_FILE = r"\d{8}T\d{6}Z-.+\.json"
"""The name of a report. Files with other names are not reports and stay."""


def save(disk: Disk, folder: Path, report: Report) -> Pruned | None:
    """Write the report and remove the oldest ones above the quota. Raises OSError or Refused."""
    write_atomic(disk, folder / f"{report.ident}.json", dump(report), durable=False)
    return QuotaFolder(disk, folder, CRASHES, _REPORT_FILE).prune()
