"""``mcp``: the relay before an MCP server, on stdio."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from yolo_supervisor.cli import EX_UNAVAILABLE, Shared, fail, shared
from yolo_supervisor.formats.yolo import PLANNING

if TYPE_CHECKING:
    from yolo_supervisor.store import Store


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="UPSTREAM...")
@shared
@click.pass_obj
def command(options: Shared, words: tuple[str, ...]) -> None:
    """Stand before an MCP server (stdio) and heal its calls: retries, limits, a circuit breaker, restarts.

    Put it before the server's command in .mcp.json. Everything else passes through as it is. What may be repeated, and
    every limit, is in the [mcp] section of supervisor.toml.

    \b
    Examples:
      yolo-supervisor mcp -- npx -y @modelcontextprotocol/server-everything
      {"mcpServers": {"yolo": {"command": "yolo-supervisor", "args": ["mcp", "--", "yolo-mcp-server"]}}}
    """
    import anyio

    from yolo_supervisor import config as configuration
    from yolo_supervisor.breaker import Breaker
    from yolo_supervisor.clock import SystemClock
    from yolo_supervisor.formats.mcp import server_name
    from yolo_supervisor.kernel import adopt_orphans, kernel
    from yolo_supervisor.relay import Relay
    from yolo_supervisor.store import Store

    project = options.project()
    planned = (project / PLANNING).is_dir()
    config = configuration.load(project if planned else None, options.config)
    store = Store(project, lock_limit_s=0.05) if planned else None
    name = server_name(words)
    breaker = Breaker(words, name, config.mcp, SystemClock(), kernel().boot(), store)
    adopt_orphans()

    async def live() -> int:
        relay = Relay(words, name, config.mcp, breaker, _teller(store, name))
        async with anyio.create_task_group() as tasks:

            async def heed_signals() -> None:
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                    async for _ in signals:
                        work.cancel()

            tasks.start_soon(heed_signals)
            code = 0
            with anyio.CancelScope() as work:
                code = await relay.run()
            tasks.cancel_scope.cancel()
        return code

    try:
        code = anyio.run(live)
    except* FileNotFoundError:
        fail(EX_UNAVAILABLE, f"{words[0]}: there is no such program; it is the command of the MCP server")
    except* PermissionError:
        fail(EX_UNAVAILABLE, f"{words[0]}: cannot be run; it is the command of the MCP server")
    except* OSError as errors:
        why = ", ".join(str(error) for error in errors.exceptions)
        fail(EX_UNAVAILABLE, f"{words[0]}: cannot be started: {why}; it is the command of the MCP server")
    sys.stdout = None  # nothing more is to be written there, and whoever read it may be gone
    sys.exit(code)


def _teller(store: Store | None, name: str) -> Callable[[str, str, Any], None]:
    """Writes what was healed, and what was not, into the project's journal, if there is one."""

    def tell(verb: str, text: str, evidence: Any) -> None:
        if store is None:
            return
        from yolo_supervisor.actions import Escalate, Healed
        from yolo_supervisor.files import Busy, Refused

        note = (
            Healed(key=name, reason=text, evidence=evidence)
            if verb == "recovered"
            else Escalate(kind="command", key=name, reason=text, evidence=evidence)
        )
        try:
            store.open()
            store.note(note, "mcp")
        except (OSError, Busy, Refused) as error:
            sys.stderr.write(f"yolo-supervisor: the journal cannot be written: {error}\n")
        finally:
            store.close()

    return tell
