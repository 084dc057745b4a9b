"""Rows that tests have measured, for a table at the end of the run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pytest

ROW: Final = "row of the client matrix"
"""The property of a report (``record_property``) that is a row."""


def rows_of(reports: Iterable[object]) -> list[str]:
    """The rows of these reports, in columns."""
    found = [report for report in reports if isinstance(report, pytest.TestReport) and report.when == "call"]
    properties: list[tuple[str, Any]] = [each for report in found for each in report.user_properties]
    rows = [[str(cell) for cell in cells] for name, cells in properties if name == ROW]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in sorted(rows)]
