"""The threat model in SECURITY.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    text = (TESTS.parent / "SECURITY.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`(?:unit|system|soak)/.*) \|$", text, re.MULTILINE)
    named = [re.findall(r"`((?:unit|system|soak)/test_\w+\.py)::(test_\w+)`", row) for row in rows]
    every = {pair for row in named for pair in row}

    assert len(rows) >= 15
    assert all(named)
    assert [f"{file}::{name}" for file, name in every if not _has(TESTS / file, name)] == []


def _has(path: Path, name: str) -> bool:
    return path.is_file() and re.search(rf"^ *(?:async )?def {name}\(", path.read_text(), re.MULTILINE) is not None
