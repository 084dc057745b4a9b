"""The private words of earlier versions stay out of code and documents (see docs/glossary.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

INSTEAD = {
    "actor": "fake agent", "anew": "again", "anybody": "any process, any person", "autopsy": "crash evidence",
    "bell": "wake-up", "breath": "rate limiter", "census": "process scan",
    "coroner": "crash investigator", "dice": "rng", "estate": "held resources",
    "everybody": "every process, every person", "judged": "expected digest",
    "mend": "repair", "neighbour": "external file, other program", "nobody": "no agent, no process, no person",
    "pulse": "watcher health",
    "remedy": "remediation", "roster": "agent registry", "scene": "sandbox", "sidecar": "checksum file",
    "somebody": "a person, another process", "stranger": "other process", "told": "reported, recorded, logged",
    "trouble": "error", "untold": "not reported", "whoever": "a sentence that starts with its subject",
}  # fmt: skip
"""Each private word, and what to write in its place."""

PHRASES = {"left behind": "left", "of its own": "separate", "of their own": "separate"}

ENDINGS = ("", "s", "d", "ed", "ing")

EXCEPTIONS = {
    ("told", "CHANGELOG.md"): "the old names, in the tables of renamed events and verbs",
    ("mend", "CHANGELOG.md"): "the old names, in the tables of renamed events and verbs",
    ("trouble", "CHANGELOG.md"): "the old names, in the tables of renamed events and verbs",
    ("told", "yolo_supervisor/cli/dead_letter.py"): "a verb in the journals of version 0.1.0",
    ("judged", "yolo_supervisor/store/lines.py"): "a key in the checkpoints of the journal",
    ("roster", "yolo_supervisor/system/session_scan.py"): "the client's own name for a file",
    ("nobody", "yolo_supervisor/drill/faults/locks.py"): "the name of an owner that does not exist",
    ("nobody", "yolo_supervisor/drill/faults/tasks.py"): "the name of an owner that does not exist",
}

DOCUMENTS = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("config/*.toml"), *ROOT.glob("systemd/*"),
    ROOT / "tests" / "README.md",
]  # fmt: skip
CODE = sorted(ROOT.glob("yolo_supervisor/**/*.py"))


def private_words(text: str) -> set[str]:
    """The private words in a text; parts of names, as in ``is_told`` or ``AutopsyReport``, count too."""
    words = {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", text)}
    phrases = {phrase for phrase in PHRASES if re.search(rf"\b{phrase}\b", text.lower())}
    return phrases | {private for private in INSTEAD for ending in ENDINGS if private + ending in words}


def misuses(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    words = sorted(word for word in private_words(path.read_text()) if (word, name) not in EXCEPTIONS)
    return [f"{name}: {word} (write: {(INSTEAD | PHRASES)[word]})" for word in words]


def test_private_words_are_found_in_names_and_sentences() -> None:
    assert private_words("is_told AutopsyReport mended TROUBLE") == {"told", "autopsy", "mend", "trouble"}
    assert private_words("retold amend obscene estates_of nobody's") == {"estate", "nobody"}
    assert private_words("Left behind in a folder of its own") == {"left behind", "of its own"}


@pytest.mark.parametrize("files", [CODE, DOCUMENTS], ids=["code", "documents"])
def test_no_private_word_is_used(files: list[Path]) -> None:
    assert [misuse for path in files for misuse in misuses(path)] == []
