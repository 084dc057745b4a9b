"""The table of the client's options, compared with what the real clients say of themselves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.claude_code import VERSIONS, executable
from support.wait import LIMIT_S
from yolo_supervisor.formats.client_options import COMMANDS, OPTIONS, Takes

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("npm") is None, reason="npm, node, tmux or git is missing: the real client is not driven"
    ),
]

KINDS = {"": Takes.NONE, "<": Takes.ONE, "[": Takes.OPTIONAL}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_is_what_the_client_says(version: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [executable(version), "--help"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout
    options, commands = said.split("\nCommands:\n")
    declared = re.findall(r"^  ((?:-\w, )?--[\w-]+(?:, --[\w-]+)?)( [<\[][^>\]]*[>\]])?", options, re.MULTILINE)
    assert len(declared) > 50
    for names, value in declared:
        takes = Takes.MANY if "..." in value else KINDS[value.strip()[:1]]
        for name in names.split(", "):
            assert (name, OPTIONS[name][1]) == (name, takes)
    named = {word for words in re.findall(r"^  (\w[\w|-]*)", commands, re.MULTILINE) for word in words.split("|")}
    assert named <= COMMANDS
