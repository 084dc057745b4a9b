"""The program: its commands are found by name, and imported only when they are called."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from yolo_supervisor import __version__
from yolo_supervisor.cli.context import EX_CONFIG, EX_DATAERR, EX_NO, EX_TEMPFAIL, fail, printable, shared

GROUPS = {
    "Daemon": {
        "run": "Supervise projects: the daemon, in the foreground.",
        "service": "Install the daemon as a service, show it or remove it.",
        "hook": "Note an event of Claude Code (a command for its hooks).",
    },
    "Inspect": {
        "status": "Show what is supervised, and its condition.",
        "check": "Validate the configuration; show what would be done now.",
        "history": "List what was done, when, why, on what evidence.",
        "explain": "Show the history of one agent, task, lease or file.",
        "crash": "List and show crash reports: what agents died of.",
    },
    "Work": {
        "agent": "List, register, stop and forget agents.",
        "task": "List, claim, finish and requeue tasks.",
        "lease": "Acquire, renew, release and list leases.",
        "flag": "List, record, enable and disable feature flags.",
    },
    "Recovery": {
        "trust": "Trust a project's own configuration file and the plugin's rules in it.",
        "doctor": "Find problems of the installation and the state.",
        "dead-letter": "List, show, redrive and drop tasks that kept failing.",
        "state": "Verify and restore critical files; take up older state.",
        "snapshot": "Save, list and restore the execution state.",
        "gate": "Check the plugin's hard gates; repair what one reports.",
        "drill": "Run a fire drill: inject faults into a scratch team.",
    },
    "Wrappers": {
        "commit": "Run git commit, and recover if it or its push fails.",
        "exec": "Run a command with a time limit for all it starts.",
        "mcp": "Relay to an MCP server: retries, limits, restarts.",
    },
}
"""The commands with their one-line help, by the heading under which ``--help`` lists them."""

COMMANDS = {name: text for commands in GROUPS.values() for name, text in commands.items()}


@contextlib.contextmanager
def _printable_mistakes() -> Iterator[None]:
    """Escape control characters in click's usage errors, which quote the command line."""
    try:
        yield
    except NoArgsIsHelpError:  # it is the help text
        raise
    except click.UsageError as error:
        lines = error.format_message().split("\n")
        raise click.UsageError("\n".join(map(printable, lines)), error.ctx) from error


class Program(click.Group):
    """The top-level group. It imports the module of a command only to run it."""

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
        widest = max(map(len, COMMANDS))
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="yolo-supervisor")
@shared
def _program() -> None:
    """Supervise teams of AI coding agents: detect agents that crash, hang or lose their terminal, requeue their tasks
    and clean up after them.

    \b
    Examples:
      yolo-supervisor drill                       watch it recover a scratch team
      yolo-supervisor run --project ~/code/shop   supervise a project
      yolo-supervisor run --observe               only record what would be done
      yolo-supervisor explain task dev/3          see why a task was requeued
    """


def program() -> NoReturn:
    """Run the command line. A user's mistake ends with one sentence and an exit code, never with a traceback."""
    from yolo_supervisor.fs.trust import Refused, TooNew
    from yolo_supervisor.store.locks import Busy

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may be in any encoding
    try:
        _program(prog_name="yolo-supervisor")
    except SystemExit:  # the normal end: the exception types below need not be imported
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
    """``ConfigError``, imported only after a failure: the import takes a quarter of a short command's time."""
    from yolo_supervisor.config import ConfigError

    return ConfigError
