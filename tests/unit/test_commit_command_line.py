"""The command line of ``commit``: our options, and what its fast path reads from git's."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from yolo_supervisor.commits.fast_path import CommandLine


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("commit -m x", ["-m", "x"]),
        ("--json commit --push --timeout 5 -m x --json", ["-m", "x", "--json"]),
        ("--project . commit --timeout=5 -- a --push", ["--", "a", "--push"]),
        ("commit commit", ["commit"]),
    ],
)
def test_our_options_end_at_the_first_argument_of_git(line: str, arguments: list[str]) -> None:
    command_line = CommandLine(line.split())

    assert (arguments, None) == (command_line.arguments, command_line.error)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("commit --timeout x", "--timeout x is not a number of seconds up to 86400"),
        ("commit --timeout=0", "--timeout 0 is not a number of seconds up to 86400"),
        ("commit --timeout nan", "--timeout nan is not a number of seconds up to 86400"),
        ("commit --timeout 86401", "--timeout 86401 is not a number of seconds up to 86400"),
        ("commit --project", "--project needs a value"),
        ("exec -- git commit", "exec is not an option of commit"),
    ],
)
def test_wrong_command_line_has_an_error(line: str, error: str) -> None:
    assert CommandLine(line.split()).error == error


def test_options_of_both_places_are_taken(tmp_path: Path) -> None:
    command_line = CommandLine(["--json", "commit", "--push", "--timeout", "5", "--project", str(tmp_path), "-m", "x"])

    assert (command_line.json, command_line.push, command_line.limit_s) == (True, True, 5.0)
    assert Path(command_line.folder) == tmp_path.resolve()


@pytest.mark.parametrize(
    ("line", "reads_stdin"),
    [
        ("-F -", True), ("-aF-", True), ("-aF -", True), ("--file=-", True), ("--file /dev/stdin", True),
        ("--pathspec-from-file=-", True), ("-F /proc/self/fd/0", True), ("-F message", False), ("-m -", False),
        ("-m x -- -F -", False), ("-", False),
    ],
)  # fmt: skip
def test_arguments_that_read_the_standard_input_are_recognised(line: str, reads_stdin: bool) -> None:
    assert CommandLine(["commit", *shlex.split(line)]).reads_stdin == reads_stdin


@pytest.mark.parametrize(
    ("line", "is_query"),
    [("--dry-run", True), ("--dry", True), ("--porcelain -m x", True), ("--short", True), ("-m x", False),
     ("-m x -- --dry-run", False), ("--d", False)],
)  # fmt: skip
def test_arguments_that_commit_nothing_are_recognised(line: str, is_query: bool) -> None:
    assert CommandLine(["commit", *line.split()]).is_query == is_query


@pytest.mark.parametrize(
    ("line", "asks"),
    [("-p", True), ("-qpm x", True), ("--patch", True), ("--interactive -m x", True), ("--pat", True),
     ("-mp", False), ("-Fp", False), ("--porcelain", False), ("-m x -- -p", False), ("-am x", False)],
)  # fmt: skip
def test_arguments_with_which_git_asks_are_recognised(line: str, asks: bool) -> None:
    assert CommandLine(["commit", *line.split()]).asks == asks


@pytest.mark.parametrize(("line", "is_amend"), [("--amend", True), ("--am", True), ("--author=a", False), ("", False)])
def test_amend_is_recognised(line: str, is_amend: bool) -> None:
    assert CommandLine(["commit", *line.split()]).is_amend == is_amend
