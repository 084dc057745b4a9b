"""``mcp``: the relay before an MCP server, on stdio."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any

import anyio
import click

from yolo_supervisor.cli import EX_UNAVAILABLE, Shared, fail, shared
from yolo_supervisor.formats.yolo import PLANNING

if TYPE_CHECKING:
    from yolo_supervisor.store import Store


MOST_NOTES = 1000
"""How many notes wait at most to be written."""

LAST_WORDS_S = 2.0
"""How long writing them may take at the end."""


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
    from yolo_supervisor import config as configuration
    from yolo_supervisor.clock import SystemClock
    from yolo_supervisor.formats.mcp import server_name
    from yolo_supervisor.kernel import adopt_orphans, kernel
    from yolo_supervisor.mcp.circuit_breaker import CircuitBreaker
    from yolo_supervisor.mcp.relay import Relay
    from yolo_supervisor.store import Store

    project = options.project()
    planned = (project / PLANNING).is_dir()
    config = configuration.load(project if planned else None, options.config)
    stores = [Store(project, lock_limit_s=limit_s) if planned else None for limit_s in (1.0, 5.0)]
    name = server_name(words)
    breaker = CircuitBreaker(words, name, config.mcp, SystemClock(), kernel().boot(), stores[0])
    scribe = Scribe(stores[1], name)
    adopt_orphans()

    async def live() -> int:
        relay = Relay(words, name, config.mcp, breaker, scribe.tell)
        async with anyio.create_task_group() as tasks:

            async def heed_signals() -> None:
                with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
                    async for _ in signals:
                        work.cancel()

            tasks.start_soon(heed_signals)
            tasks.start_soon(scribe.run)
            code = 0
            with anyio.CancelScope() as work:
                code = await relay.run()
            tasks.cancel_scope.cancel()
        with anyio.move_on_after(LAST_WORDS_S):
            await scribe.write()
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


class Scribe:
    """Writes what was healed, and what was not, into the project's journal, in a thread: reading a long journal takes
    longer than any call may have to wait. Without a project it writes nothing."""

    def __init__(self, store: Store | None, name: str) -> None:
        self._store = store
        self._name = name
        self._open = False
        self._left: list[tuple[str, str, Any]] = []
        self._wanted = anyio.Event()

    def tell(self, verb: str, text: str, evidence: Any) -> None:
        if self._store is not None and len(self._left) < MOST_NOTES:
            self._left.append((verb, text, evidence))
            self._wanted.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._wanted.wait()
            with anyio.CancelScope(shield=True):  # what has been begun is not lost because we are to leave
                await self.write()

    async def write(self) -> None:
        """Write what there is to be written."""
        self._wanted = anyio.Event()
        left, self._left = self._left, []
        if left:
            await anyio.to_thread.run_sync(self._write, left, abandon_on_cancel=True)

    def _write(self, left: list[tuple[str, str, Any]]) -> None:
        from yolo_supervisor.actions import Escalate, Healed
        from yolo_supervisor.files import Busy, Refused

        assert self._store is not None
        try:
            if not self._open:
                self._store.open()
                self._open = True
            for verb, text, evidence in left:
                healed = verb == "recovered"
                told = {"key": self._name, "reason": text, "evidence": evidence}
                self._store.note(Healed(**told) if healed else Escalate(kind="command", **told), "mcp")
        except (OSError, Busy, Refused) as error:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"yolo-supervisor: the journal cannot be written: {error}\n")
