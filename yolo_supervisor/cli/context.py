"""Options, output and exit codes that all commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from yolo_supervisor.formats.plugin import PLANNING

if TYPE_CHECKING:
    from yolo_supervisor.store.history import History
    from yolo_supervisor.store.lines import Entry


EX_NO, EX_DATAERR, EX_UNAVAILABLE, EX_TEMPFAIL, EX_CONFIG = 1, 65, 69, 75, 78

KINDS = {"file": "state"} | {
    kind: kind for kind in ("agent", "task", "lease", "flag", "session", "state", "commit", "gate", "command", "daemon")
}
"""The kinds of journal entries, by the names that the command line accepts for them."""

F = TypeVar("F", bound=Callable[..., Any])


class NonEmptyPath(click.Path):
    """A path that is not empty: an unset variable in a script must not mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class Shared:
    """The options that may stand before or after the command."""

    def __init__(self) -> None:
        self.projects: tuple[Path, ...] = ()
        self.config: Path | None = None
        self.json = False

    def project(self) -> Path:
        """The project of a command: the option's, else the current folder or its nearest parent that is a project."""
        if len(self.projects) > 1:
            raise click.UsageError("this command takes one project: give --project once")
        if self.projects:
            path = Path(os.path.realpath(self.projects[0]))
            if not path.is_dir():
                fail(EX_NO, f"{path}: no such folder")
            return path
        here = Path(os.path.realpath(Path.cwd()))
        return next((folder for folder in (here, *here.parents) if (folder / PLANNING).is_dir()), here)


def shared(command: F) -> F:
    """Give a command the options ``--project``, ``--config`` and ``--json``."""

    def store_value(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        options = ctx.ensure_object(Shared)
        if param.name == "project" and value:
            options.projects = (*options.projects, *value)
        elif param.name == "config" and value:
            options.config = value
        elif param.name == "json" and value:
            options.json = True

    path = NonEmptyPath(path_type=Path)
    for option in (
        click.option(
            "--json", is_flag=True, expose_value=False, callback=store_value,
            help="Print one JSON document on stdout, and nothing else.",
        ),
        click.option(
            "--config", type=path, metavar="FILE", expose_value=False, callback=store_value,
            help="A configuration file that overrides the user's and the project's.",
        ),
        click.option(
            "--project", type=path, metavar="DIR", multiple=True, expose_value=False, callback=store_value,
            help=f"The project (default: the current folder, or its nearest parent with {PLANNING}).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def fail(code: int, message: str) -> NoReturn:
    """End the program with this exit code, and print the message to stderr."""
    for line in message.splitlines():
        click.echo(f"yolo-supervisor: {printable(line)}", err=True)
    sys.exit(code)


def fail_busy(what: str) -> NoReturn:
    """End the program because another program is writing to something."""
    fail(EX_TEMPFAIL, f"{what} is being written to: try again")


def entries(history: History) -> list[Entry]:
    """The journal's entries since the last call; ends the program with exit code 65 if it cannot be read."""
    try:
        return sorted(history.new_entries(), key=lambda entry: entry.seq)
    except OSError as error:
        fail(EX_DATAERR, f"the journal cannot be read: {error}; see: yolo-supervisor doctor")


def restrict_umask() -> None:
    """Let no other user write to the folders that we create for the plugin, even if the umask would."""
    os.umask(os.umask(0o077) | 0o002)


def printable(text: str) -> str:
    """Escape control characters: text from other programs must not control the reader's terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out(text: str = "") -> None:
    """Print one line."""
    click.echo(printable(text))


def out_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, default=str))


def print_result(options: Shared, document: Mapping[str, Any], text: str) -> None:
    """Print the result of a command: the document with ``--json``, else the text."""
    if options.json:
        out_json(document)
    else:
        out(text)
