"""The command line: one file per command, imported only when it is called."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from yolo_supervisor import __version__
from yolo_supervisor.formats.yolo import PLANNING

if TYPE_CHECKING:
    from yolo_supervisor.journal import History

EX_NO, EX_DATAERR, EX_UNAVAILABLE, EX_TEMPFAIL, EX_CONFIG = 1, 65, 69, 75, 78

KINDS = {"file": "state"} | {
    kind: kind for kind in ("agent", "task", "lease", "flag", "session", "state", "commit", "gate", "command", "daemon")
}
"""What a person calls the kinds of things in the journal."""

COMMANDS = {
    "run": "Watch projects and heal what agents leave behind (the daemon, in the foreground).",
    "status": "What is supervised and how it fares.",
    "check": "Validate the configuration and show what would be done now; change nothing.",
    "history": "What was done, when, why, on what evidence.",
    "explain": "The story of one agent, task, lease, session or file.",
    "agent": "List, register and forget agents.",
    "task": "List, claim, finish and requeue tasks.",
    "dead-letter": "List, show, redrive and drop tasks that kept failing.",
    "crash": "List and show the reports on what agents died of.",
    "lease": "Acquire, renew, release and list leases.",
    "flag": "List, record, enable and disable feature flags; those that fail too often are switched off.",
    "state": "Verify the plugin's critical files; recover those that are broken.",
    "snapshot": "Save, list and restore snapshots of the execution state.",
    "commit": "git commit that recovers: locks left behind, others who pushed before, never a forced thing.",
    "exec": "Run a command with a hard limit; end all that it has started when that is over.",
    "mcp": "Stand before an MCP server and heal its calls: retries, limits, a circuit breaker, restarts.",
    "gate": "Ask the plugin's hard gates; mend what one complains of, in two attempts at most.",
    "hook": "For Claude Code's hooks: note an event. Always succeeds, prints nothing.",
    "doctor": "Find what is wrong with the installation and the state.",
    "service": "Install the daemon as a service, remove it, tell how it fares.",
    "drill": "Fire drill: break a scratch team on purpose and watch it being healed.",
}

F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def _printable_mistakes() -> Iterator[None]:
    """What click tells of a wrong usage quotes the words that were typed, or pasted."""
    try:
        yield
    except click.UsageError as error:
        lines = error.format_message().split("\n")
        raise click.UsageError("\n".join(map(printable, lines)), error.ctx) from error


class Program(click.Group):
    """Knows its commands' names and one-line help; a command's module is only imported to run it."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _printable_mistakes():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_mistakes():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"yolo_supervisor.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            raise click.UsageError(error.message + (f" Did you mean '{near[0]}'?" if near else ""), ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


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


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="yolo-supervisor")
@shared
def _program() -> None:
    """Watch over teams of AI coding agents: notice crashed, orphaned and detached ones, heal what they leave behind.

    \b
    Examples:
      yolo-supervisor drill                       see it save a team, on a scratch project
      yolo-supervisor run --project ~/code/shop   watch a project
      yolo-supervisor run --observe               only tell what would be done
      yolo-supervisor explain task dev/3          why a task went back to the queue
    """


def program() -> NoReturn:
    """Run the command line. Whatever a user does wrong ends in one sentence and an exit code, never in a traceback."""
    from yolo_supervisor.files import Busy, Refused, TooNew

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # there are names in every script
    try:
        _program(prog_name="yolo-supervisor")
    except SystemExit:  # as all that goes well: nothing below is asked for then
        raise
    except (Refused, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(EX_NO)
        fail(EX_DATAERR if isinstance(error, PermissionError | TooNew) else EX_NO, str(error))
    except Busy as error:
        fail(EX_TEMPFAIL, f"{error}: try again")
    except _config_error() as error:
        fail(EX_CONFIG, str(error))
    sys.exit(0)


def _config_error() -> type[Exception]:
    """Asked for only where something has failed: importing it takes a quarter of a short command's time."""
    from yolo_supervisor.config import ConfigError

    return ConfigError


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
