"""The program: its commands, found by name and imported only when they are called."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from yolo_supervisor import __version__

if TYPE_CHECKING:
    pass

from yolo_supervisor.cli.context import EX_CONFIG, EX_DATAERR, EX_NO, EX_TEMPFAIL, fail, printable, shared

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
    from yolo_supervisor.fs.trust import Refused, TooNew
    from yolo_supervisor.store.locks import Busy

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
