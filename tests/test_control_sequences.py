"""Nothing that others have written drives a person's terminal, and nothing of it is executed."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from conftest import LIMIT_S, PROGRAM, Cli

COLOUR = re.compile(r"\x1b\[[0-9;]{0,8}m")


def on_a_terminal(cli: Cli, *words: str) -> str:
    """What a person sees of a command."""
    reader, writer = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, *words], stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, cwd=cli.folder,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(writer)
    told = b""
    try:
        while True:
            told += os.read(reader, 65536)
    except OSError:  # EIO: nobody writes there any more
        child.wait(LIMIT_S)
    finally:
        os.close(reader)
        child.kill()
        child.wait()
    return told.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def assert_harmless(text: str) -> None:
    wrong = {c for c in text if not c.isprintable()} - {"\n"}
    assert not wrong, ascii(text)


@pytest.mark.parametrize(
    "words",
    [("task", "list", "\33[31mfoo"), ("\33[31m",), ("task", "\33]0;x\7"), ("--\33[2J",),
     ("history", "--since", "\x9b2J"), ("task", "list", "--project", "\33[31m"), ("flag", "record", "x", "\u202e"),
     ("crash", "show", "\33c\udcff"),
     ("service", "status", "\33[2J"), ("commit", "--\33[2J"), ("hook", "\33[2J", "\33[2J"), ("exec", "--\33[2J")],
)  # fmt: skip
def test_no_word_that_was_typed_drives_the_terminal(cli: Cli, words: tuple[str, ...]) -> None:
    assert_harmless(on_a_terminal(cli, *words))
