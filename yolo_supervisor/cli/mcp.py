"""``mcp``: the relay between an MCP client and its server, on stdio."""

from __future__ import annotations

import sys

import anyio
import click

from yolo_supervisor.cli.context import EX_UNAVAILABLE, Shared, fail, shared
from yolo_supervisor.cli.signals import cancelled_by_signal
from yolo_supervisor.formats.plugin import PLANNING

LAST_WRITE_S = 2.0
"""The time limit of writing the last journal entries at the end, in seconds."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="UPSTREAM...")
@shared
@click.pass_obj
def command(options: Shared, argv: tuple[str, ...]) -> None:
    """Relay to an MCP server (stdio) with retries, time limits, a circuit breaker and restarts.

    Put it in front of the server's command in .mcp.json. Everything else passes unchanged. The [mcp] section of
    supervisor.toml says which calls may be repeated, and sets every limit. No limit runs while the server asks the
    client, and through it a person, for something.

    \b
    Examples:
      yolo-supervisor mcp -- npx -y @modelcontextprotocol/server-everything
      {"mcpServers": {"yolo": {"command": "yolo-supervisor", "args": ["mcp", "--", "yolo-mcp-server"]}}}
    """
    from yolo_supervisor import config as configuration
    from yolo_supervisor.clock import SystemClock
    from yolo_supervisor.formats.mcp import server_name
    from yolo_supervisor.mcp.circuit_breaker import CircuitBreaker
    from yolo_supervisor.mcp.journal_writer import JournalWriter
    from yolo_supervisor.mcp.relay import Relay
    from yolo_supervisor.store.store import Store
    from yolo_supervisor.system.process_backend import backend
    from yolo_supervisor.system.subreaper import adopt_orphans

    project = options.project()
    has_state = (project / PLANNING).is_dir()
    config = configuration.load(project if has_state else None, options.config)
    circuit_store, journal_store = (Store(project, lock_limit_s=s) if has_state else None for s in (1.0, 5.0))
    name = server_name(argv)
    breaker = CircuitBreaker(argv, name, config.mcp, SystemClock(), backend().boot(), circuit_store)
    journal = JournalWriter(journal_store, name)
    adopt_orphans()

    async def run() -> int:
        relay = Relay(argv, name, config.mcp, breaker, journal)
        code = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.run)
            async with cancelled_by_signal():
                code = await relay.run()
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(LAST_WRITE_S):
            await journal.write_queued()
        return code

    try:
        code = anyio.run(run)
    except* FileNotFoundError:
        fail(EX_UNAVAILABLE, f"{argv[0]}: no such program (the command of the MCP server)")
    except* PermissionError:
        fail(EX_UNAVAILABLE, f"{argv[0]}: not executable (the command of the MCP server)")
    except* OSError as errors:
        reason = ", ".join(str(error) for error in errors.exceptions)
        fail(EX_UNAVAILABLE, f"{argv[0]}: cannot be started: {reason} (the command of the MCP server)")
    sys.stdout = None  # the interpreter must not flush it at exit: its reader may be gone
    sys.exit(code)
