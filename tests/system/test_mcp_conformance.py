"""The official MCP conformance suite finds the same server with and without the relay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from support import conformance_server
from support.cli import PROGRAM
from support.http_bridge import served_over_http
from support.npm import installed
from support.wait import LIMIT_S

SUITE = "@modelcontextprotocol/conformance@0.1.11"
"""The last version that runs on Node.js 20. The suite speaks HTTP only."""

SERVER = [sys.executable, conformance_server.__file__]


def verdicts(argv: Sequence[str], suite: Path, folder: Path) -> list[str]:
    """The line of each scenario, and the number of checks that passed and failed."""
    with served_over_http(argv) as url:
        command = [str(suite / ".bin" / "conformance"), "server", "--url", url, "--output-dir", str(folder)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    summary = run.stdout.partition("=== SUMMARY ===")[2]
    assert summary, run.stdout + run.stderr
    return [line for line in summary.splitlines() if line.strip()]


@pytest.mark.thorough
def test_conformance_suite_passes_with_and_without_the_relay(tmp_path: Path, project: Path) -> None:
    suite = installed(SUITE)

    direct = verdicts(SERVER, suite, tmp_path)
    relayed = verdicts([*PROGRAM, "--project", str(project), "mcp", "--", *SERVER], suite, tmp_path)

    assert direct[-1] == "Total: 40 passed, 0 failed"
    assert relayed == direct
