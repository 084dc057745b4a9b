"""What all commands share: options, output and exit codes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from yolo_supervisor.formats.plugin import PLANNING

if TYPE_CHECKING:
    from yolo_supervisor.store.history import History


EX_NO, EX_DATAERR, EX_UNAVAILABLE, EX_TEMPFAIL, EX_CONFIG = 1, 65, 69, 75, 78

KINDS = {"file": "state"} | {
    kind: kind for kind in ("agent", "task", "lease", "flag", "session", "state", "commit", "gate", "command", "daemon")
}
"""What a person calls the kinds of things in the journal."""

F = TypeVar("F", bound=Callable[..., Any])


class Named(click.Path):
    """A path that has a name: an unset variable in a script must not mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty name is no folder", param, ctx)
        return super().convert(value, param, ctx)


class Shared:
    """The options that may stand before or after the command."""

    def __init__(self) -> None:
        self.projects: tuple[Path, ...] = ()
        self.config: Path | None = None
        self.json = False

    def project(self) -> Path:
        """The one project a command is about: the option, else the nearest parent folder that is one."""
        if len(self.projects) > 1:
            raise click.UsageError("this command is about one project: give --project once")
        if self.projects:
            path = Path(os.path.realpath(self.projects[0]))
            if not path.is_dir():
                fail(EX_NO, f"{path}: there is no such folder")
            return path
        here = Path(os.path.realpath(Path.cwd()))
        return next((folder for folder in (here, *here.parents) if (folder / PLANNING).is_dir()), here)


def shared(command: F) -> F:
    """Give a command ``--project``, ``--config`` and ``--json``, and the values of both places."""

    def take(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        found = ctx.ensure_object(Shared)
        if param.name == "project" and value:
            found.projects = (*found.projects, *value)
        elif param.name == "config" and value:
            found.config = value
        elif param.name == "json" and value:
            found.json = True

    folder = Named(path_type=Path)
    for option in (
        click.option("--json", is_flag=True, expose_value=False, callback=take, help="One JSON document on stdout."),
        click.option(
            "--config", type=folder, metavar="FILE", expose_value=False, callback=take,
            help="A configuration file that wins over the user's and the project's.",
        ),
        click.option(
            "--project", type=folder, metavar="DIR", multiple=True, expose_value=False, callback=take,
            help=f"The project (default: here, or the nearest parent with a {PLANNING} folder).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def fail(code: int, message: str) -> NoReturn:
    """End with this code, the message on stderr."""
    for line in message.splitlines():
        click.echo(f"yolo-supervisor: {printable(line)}", err=True)
    sys.exit(code)


def entries(history: History) -> list[dict[str, Any]]:
    """What the journal has to tell since it was last asked; ends the program with exit code 65 if it cannot be read."""
    try:
        return sorted(history.news(), key=lambda entry: int(entry["seq"]))
    except OSError as error:
        fail(EX_DATAERR, f"the journal cannot be read: {error}; yolo-supervisor doctor tells more")


def keep_others_out() -> None:
    """Without a umask everybody could write into the plugin's folders that we make."""
    os.umask(os.umask(0o077) | 0o002)


def printable(text: str) -> str:
    """The text without control characters: what neighbours write must not drive the reader's terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def out(text: str = "") -> None:
    """Print one line."""
    click.echo(printable(text))


def out_json(value: Any) -> None:
    click.echo(json.dumps(value, default=str))
